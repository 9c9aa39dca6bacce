"""Claims of families bound once: what `placed` says of each local alone, and one object for parts alike."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from tensure.benchmarks._prove_gate_plan import Shape, gate_plan, gate_program
from tensure.bundle import BoundClaims, Plan, Rank
from tensure.bundle._plan import Placed, placed
from tensure.errors import RecordError
from tensure.program import Name, Program, bind_entry, coordinate, expand

SHAPE = Shape(3, 2, 2, 2, 3)


@pytest.fixture(scope="module")
def case() -> tuple[Plan, Program]:
    program = gate_program(SHAPE)
    return gate_plan(SHAPE, program), program


def names(plan: Plan, program: Program, rank: Rank) -> Iterator[Name]:
    env = plan.rank_env(rank, bind_entry(program, "step", {}))
    for step in expand(plan.blocks, plan.tracks[rank.track].bodies["step"], env):
        yield from step.outs
        yield from (ref.name for ref in step.reads())


def test_they_are_those_of_each_local_alone(case: tuple[Plan, Program]) -> None:
    plan, program = case
    seen = 0
    for rank in plan.ranks():
        env = plan.rank_env(rank, bind_entry(program, "step", {}))
        claims = BoundClaims(plan, rank.track, env)
        for name in names(plan, program, rank):
            local, found = plan.local(rank.track, name.base), claims.of(name)
            want = None if local is None else placed(local, name, env)
            assert (found is None) == (want is None)
            if found is None or want is None:
                continue
            seen += 1
            dims = {dim: members(runs) for dim, runs in found.dims.items()}
            over = None if found.over is None else (found.over[0], members(found.over[1]))
            assert Placed(found.of, dims, found.sum, over, found.scale) == want
    assert seen > 1000


def members(runs: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(at for lo, hi in runs for at in range(lo, hi))


def test_parts_alike_are_one_object_and_others_are_not(case: tuple[Plan, Program]) -> None:
    plan, program = case
    rank = Rank("s0", (1, 1))
    claims = BoundClaims(plan, "s0", plan.rank_env(rank, bind_entry(program, "step", {})))
    found = [claims.of(Name("q", (layer, batch))) for layer, batch in ((0, 0), (1, 0), (0, 1))]
    assert all(item is not None for item in found)
    one, alike, other = (item for item in found if item is not None)
    assert one.dims is alike.dims and str(one.of) != str(alike.of)
    assert other.dims != one.dims


def test_bounds_of_many_places_are_expressions(case: tuple[Plan, Program]) -> None:
    plan, program = case
    many = Rank("s0", (coordinate("dp", 0, 2), coordinate("tp", 0, 2)))
    claims = BoundClaims(plan, "s0", plan.rank_env(many, bind_entry(program, "step", {})))
    found = claims.of(Name("q", (0, 1)))
    assert found is not None
    assert [str(end) for run in found.dims[2] for end in run] == ["2*tp", "2*tp+2"]


def test_another_number_of_indices_is_refused(case: tuple[Plan, Program]) -> None:
    plan, program = case
    claims = BoundClaims(plan, "s0", plan.rank_env(Rank("s0", (0, 0)), bind_entry(program, "step", {})))
    with pytest.raises(RecordError, match="has 1 indices"):
        claims.of(Name("q", (0,)))
    assert claims.of(Name("sum_dWq", (0, 0))) is None


def test_a_rank_is_the_same_in_another_process() -> None:
    """Its hash is kept, and there text has another."""
    rank = Rank("s0", (1, 2))
    again = pickle.loads(pickle.dumps(rank))
    assert again == rank and hash(again) == hash(rank)
    assert b"_hash" not in pickle.dumps(rank)
