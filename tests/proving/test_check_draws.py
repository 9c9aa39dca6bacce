"""The checker on random numbers: false certificates, and both sides against every element counted out."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import tensure
from tensure.bundle import Rank, format_plan, parse_plan, plan_digest
from tensure.bundle._json import canonical_json
from tensure.errors import TensureError
from tensure.program import Name, Op, TensorType
from tensure.proving import check_certificate
from tensure.proving._check_draws import CheckDraws
from tensure.proving._check_index import joined
from tensure.proving._check_sums import ONE, Refused
from tensure.proving._draws import Draws
from tensure.proving._values import Value
from tests.proving import random_steps as steps
from tests.proving.random_steps import by_seeds, model, replicas

# --- false certificates -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proof() -> Any:
    """Two rows of four features each, from seeds of their own."""
    found = tensure.prove(replicas(lambda rank: 5 + rank), model, mesh={"dp": 2})
    assert found.certificate is not None
    return found


def refusal(data: bytes, plan: Any, program: Any) -> str:
    try:
        report = check_certificate(data, plan, program)
    except TensureError as error:
        return str(error)
    return report.reason


def changed_plan(proof: Any, change: Callable[[str], str]) -> str:
    """Why the certificate is refused for a Plan with other draws, its digest put right."""
    text = format_plan(proof.plan)
    other = parse_plan(change(text))
    assert format_plan(other) != text
    row = json.loads(proof.certificate)
    row["plan"] = plan_digest(other)
    return refusal(canonical_json(row), other, proof.program)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed=dp+5", "seed=5", "numbers that stand for others elsewhere"),
        ("seed=dp+5", "seed=0*dp+5", "numbers that stand for others elsewhere"),
        ("seed=dp+5", "seed=4294967296*dp+5", "that are and are not the same"),
        ("start=0", "start=1", "that are and are not the same"),
        ("start=64", "start=63", "that are and are not the same"),
        ("start=0", "start=-64", "numbers before the first"),
        ('law="uniform"', 'law="normal"', "does not follow"),
    ],
)
def test_other_draws_than_the_certificate_is_about(proof: Any, old: str, new: str, says: str) -> None:
    assert says in changed_plan(proof, lambda text: text.replace(old, new, 1))


def draw_rows(row: Any) -> list[Any]:
    return [item for item in row["invocations"][0]["locals"] if item[1].startswith("draw_")]


def test_a_certificate_that_lets_draws_stand_for_other_parts(proof: Any) -> None:
    count = 0
    for at, change in itertools.product(range(4), FALSE):
        row = json.loads(proof.certificate)
        (term,) = draw_rows(row)[at][2]
        FALSE[change](term, row)
        assert refusal(canonical_json(row), proof.plan, proof.program), (at, change)
        count += 1
    assert count == 4 * len(FALSE)


def _other(term: Any, row: Any) -> None:
    names = sorted({item[2][0][1] for item in draw_rows(row)})
    term[1] = names[1 - names.index(term[1])]


def _other_rows(term: Any, row: Any) -> None:
    term[2][0] = [[4 - lo, 8 - lo] for lo, _ in term[2][0]]


FALSE: dict[str, Callable[[Any, Any], None]] = {
    "another draw": _other,
    "other rows": _other_rows,
    "one row more": lambda term, row: term[2].__setitem__(0, [[1, 5]]),
    "a row twice": lambda term, row: term[2].__setitem__(0, [[0, 2], [0, 2]]),
    "rows in another order": lambda term, row: term[2].__setitem__(0, [[2, 4], [0, 2]]),
    "twice as much": lambda term, row: term.__setitem__(0, "2/1"),
    "no draw": lambda term, row: term.__setitem__(1, "input_0"),
}


def test_draws_of_which_nothing_is_said_help_nobody(proof: Any) -> None:
    row = json.loads(proof.certificate)
    kept = row["invocations"][0]["locals"]
    row["invocations"][0]["locals"] = [item for item in kept if not item[1].startswith("draw_")]
    assert refusal(canonical_json(row), proof.plan, proof.program)


def test_the_model_itself_may_not_draw_numbers_twice() -> None:
    from tests.proving.test_random_numbers import DP

    class Reseeded(steps.Net):
        def forward(self, x: Any) -> Any:
            import torch

            torch.manual_seed(3)
            y = self.hidden(x)
            torch.manual_seed(3)
            return (x + self.outer(self.down(y))).pow(2).mean()

    def reseeded() -> Any:
        import torch

        return Reseeded(), (torch.randn(8, 8),)

    def parallel(net: Any, mesh: Any) -> Any:
        net.__class__ = steps.Net
        return replicas(lambda rank: 5 + rank)(net, mesh)

    verdict = tensure.prove(parallel, reseeded, mesh=DP).proof.values
    assert verdict.status == "unknown" and "the model draws the same numbers twice" in verdict.reason


# --- every element counted out ------------------------------------------------------------------------

SHAPES = ((6,), (4, 3))
Row = tuple[dict[str, Any], int, tuple[tuple[tuple[int, int], ...], ...]]
"""Where a draw comes from; which of the model's it stands for, and what part of it."""


def drawn_rows(rng: random.Random) -> list[Row]:
    """A few draws: cuts of the model's, each from a place of its own; now and then one that is not right."""
    rows: list[Row] = []
    for node, shape in enumerate(SHAPES):
        cuts = rng.choice([1, 2]), rng.choice([1, 3])
        parts = [
            [((size * at // count, size * (at + 1) // count),) for at in range(count)]
            for size, count in zip(shape, cuts, strict=False)
        ]
        for number, part in enumerate(itertools.product(*parts)):
            extent = 1
            for ((lo, hi),) in part:
                extent *= hi - lo
            place = {"seed": 10 * node + number, "start": 0, "extent": extent, "law": "uniform"}
            if rng.random() < 0.3:
                place = {**place, "seed": 10 * node, "start": number * extent}
            if rng.random() < 0.2:
                place = {**place, "seed": 99, "start": 7 * node, "offset": 4 * number, "extent": 99}
            rows += [(place, node, part)] * rng.choice([1, 1, 2])
    for at in range(len(rows)):
        if rng.random() < 0.1:
            place, node, part = rows[at]
            other = rng.choice(rows)
            rows[at] = rng.choice(
                [
                    (other[0], node, part),
                    (place, *other[1:]),
                    ({**place, "start": place["start"] + 1}, node, part),
                    ({**place, "after": "00"}, node, part),
                    ({**place, "dtype": "f64"}, node, part),
                    (place, node, (*part[:-1], tuple((lo, hi) for lo, hi in part[-1][::-1]))),
                ]
            )
    return rows


def counted_out(rows: list[Row]) -> bool:
    """Whether numbers of generators and elements of the model's draws are told apart by each other.

    A number is known by its generator, the draw it is taken in, and its turn in it; what is taken in two
    draws that overlap may be anything.
    """
    element: dict[Any, Any] = {}
    number: dict[Any, Any] = {}
    stretches: dict[int, set[Any]] = {}
    for place, node, part in rows:
        stretch = (place["start"], place["extent"], place.get("after", ""), place.get("dtype", "f32"))
        stretches.setdefault(place["seed"], set()).add(stretch)
        dims = [[at for lo, hi in runs for at in range(lo, hi)] for runs in part]
        for turn, index in enumerate(itertools.product(*dims)):
            source = (place["seed"], stretch, place.get("offset", 0), turn)
            if element.setdefault(source, (node, index)) != (node, index):
                return False
            if number.setdefault((node, index), source) != source:
                return False
    for found in stretches.values():
        for one, other in itertools.combinations(found, 2):
            if one[0] < other[0] + other[1] and other[0] < one[0] + one[1]:
                return False
    return True


def step_of(place: dict[str, Any], part: Any) -> Op:
    shape = tuple(sum(hi - lo for lo, hi in runs) for runs in part)
    return Op("draw", (None,), (Name("u"),), tuple(sorted({**place, "size": shape}.items())))


def checker_accepts(rows: list[Row]) -> bool:
    draws = CheckDraws()
    for node, shape in enumerate(SHAPES):
        whole = {"seed": 0, "start": 100 * node, "extent": 12, "law": "uniform", "size": shape}
        draws.of_model(node, Op("draw", (None,), (Name("u"),), tuple(sorted(whole.items()))))
    try:
        for at, (place, node, part) in enumerate(rows):
            claim = ((ONE, node, tuple(joined(runs) for runs in part), None),)
            if not draws.stands(at, step_of(place, part), claim):
                return False
        draws.settle(SimpleNamespace(spots=None))  # type: ignore[arg-type]
    except Refused:
        return False
    return True


class _Cells:
    folded = frozenset[str]()

    def places(self, rank: Rank, axes: Any) -> Iterator[Any]:
        yield ()


def prover_accepts(rows: list[Row]) -> bool:
    types = [TensorType(shape, "f32") for shape in SHAPES]
    given = [{"seed": 0, "start": 100 * at, "extent": 12, "law": "uniform"} for at in range(len(SHAPES))]
    values = [
        Value("draw", told, (("number", "NoneType", "None"),), 0, found)
        for told, found in zip(given, types, strict=True)
    ]
    logical: Any = SimpleNamespace(values=values, labels={0: ("u0", 1), 1: ("u1", 1)})
    draws = Draws(logical, _Cells(), lambda relation: "")  # type: ignore[arg-type]
    for at, (place, node, part) in enumerate(rows):
        draws.take(at, Rank("r", (at,)), step_of(place, part), node, part)
    return draws.mixed() is None


def test_both_sides_accept_what_holds_element_by_element() -> None:
    rng, right = random.Random(11), 0
    for _ in range(1500):
        rows = drawn_rows(rng)
        wanted = counted_out(rows)
        assert checker_accepts(rows) == wanted, rows
        assert prover_accepts(rows) == wanted, rows
        right += wanted
    assert 300 < right < 1200, "both kinds are drawn"


def test_shards_of_one_draw_are_of_one_of_the_models() -> None:
    """They begin at other numbers, and nobody knows where they end."""
    place = {"seed": 1, "start": 0, "extent": 12, "law": "uniform"}
    rows: list[Row] = [
        ({**place, "offset": 0}, 0, (((0, 6),),)),
        ({**place, "offset": 4}, 1, (((0, 4),), ((0, 3),))),
    ]
    assert not checker_accepts(rows) and not prover_accepts(rows)
    assert checker_accepts(rows[:1]) and prover_accepts(rows[:1])


def test_the_count_sees_what_it_is_there_for() -> None:
    part = (((0, 6),),)
    place = {"seed": 1, "start": 0, "extent": 6, "law": "uniform"}
    halves = [(((0, 3),),), (((3, 6),),)]
    assert counted_out([(place, 0, part), (place, 0, part)])
    assert not counted_out([(place, 0, part), ({**place, "seed": 2}, 0, part)])
    assert not counted_out([({**place, "extent": 3}, 0, half) for half in halves])
    assert counted_out([({**place, "extent": 3, "start": 3 * at}, 0, half) for at, half in enumerate(halves)])


# --- what a rank's draw stands for --------------------------------------------------------------------


def test_what_a_draw_is_like_only_suggests() -> None:
    """A dropout moved before an activation is like another tensor, and still the model's."""

    def change(net: Any) -> None:
        import torch

        net.hidden = lambda x: torch.relu(net.inner(net.up(x)))

    found = tensure.prove(replicas(lambda rank: 5 + rank, change), model, mesh={"dp": 2}).proof.values
    assert found.status in ("proved", "unknown")


def test_four_ranks_of_two_kinds() -> None:
    parallel = by_seeds(lambda rank: 40 + rank // 2, lambda rank: 1)
    verdict = tensure.prove(parallel, model, mesh={"tp": 4}).proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None
    assert verdict.counterexample.rank == "ranks[1]"
