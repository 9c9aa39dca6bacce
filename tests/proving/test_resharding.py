"""Checkpoints saved on one mesh and loaded on another: torch's plans are proved, planted faults are found."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import tensure
from tensure.bundle import collect, evaluate_plan
from tensure.capture import RankState, capture_resharding
from tensure.errors import InputError, UnsupportedError

SHAPES = {"up.weight": (12, 8), "down.weight": (8, 12), "up.bias": (12,), "scale": ()}


def placed(**placements: Any) -> Callable[[Any], dict[str, Any]]:
    """A state dict of tensors cut along dim 0 or 1, where they have it."""

    def state(mesh: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"steps": 5}
        for label, shape in SHAPES.items():
            cuts = [placements.get(axis, Replicate()) for axis in mesh.mesh_dim_names]
            cuts = [Replicate() if isinstance(cut, Shard) and cut.dim >= len(shape) else cut for cut in cuts]
            found[label] = distribute_tensor(torch.randn(shape), mesh, cuts)
        return found

    return state


class Net(nn.Module):
    def __init__(self, inner: int = 12) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, inner), nn.Linear(inner, 7)


def tensor_parallel(mesh: Any) -> dict[str, Any]:
    net = Net()
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return {"model": net.state_dict()}


def fully_sharded(mesh: Any) -> dict[str, Any]:
    """Seven rows over four ranks: one has a row, and parts of one row are padded."""
    net = Net()
    for part in (net.up, net.down, net):
        fully_shard(part, mesh=mesh["dp"])
    return {"model": net.state_dict()}


def both(mesh: Any) -> dict[str, Any]:
    net = Net()
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for part in (net.up, net.down, net):
        fully_shard(part, mesh=mesh["dp"])
    return {"model": net.state_dict()}


RIGHT: dict[str, tuple[Any, dict[str, int], Any, dict[str, int]]] = {
    "two rows to four": (placed(tp=Shard(0)), {"tp": 2}, placed(tp=Shard(0)), {"tp": 4}),
    "four columns to two": (placed(tp=Shard(1)), {"tp": 4}, placed(tp=Shard(1)), {"tp": 2}),
    "rows to columns": (placed(tp=Shard(0)), {"tp": 4}, placed(dp=Shard(1)), {"dp": 2}),
    "blocks to blocks": (
        placed(dp=Shard(0), tp=Shard(1)),
        {"dp": 2, "tp": 2},
        placed(dp=Shard(1), tp=Shard(0)),
        {"dp": 4, "tp": 3},
    ),
    "uneven": (placed(tp=Shard(0)), {"tp": 5}, placed(tp=Shard(0)), {"tp": 3}),
    "some hold nothing": (placed(tp=Shard(1)), {"tp": 5}, placed(dp=Shard(1)), {"dp": 7}),
    "copies": (placed(), {"dp": 3}, placed(tp=Shard(0)), {"tp": 2}),
    "tensor parallel to fully sharded": (tensor_parallel, {"tp": 2}, fully_sharded, {"dp": 4}),
    "fully sharded to tensor parallel": (fully_sharded, {"dp": 4}, tensor_parallel, {"tp": 4}),
    "both to one": (both, {"dp": 2, "tp": 2}, fully_sharded, {"dp": 3}),
    "one to both": (tensor_parallel, {"tp": 4}, both, {"dp": 2, "tp": 2}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_torch_plans_is_proved(name: str) -> None:
    saved, saved_mesh, loaded, mesh = RIGHT[name]
    found = tensure.prove_resharding(saved, loaded, saved_mesh=saved_mesh, mesh=mesh)
    assert found.proof.values.status == "proved", found.proof.values
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted


@pytest.mark.parametrize("name", ["blocks to blocks", "uneven", "one to both"])
def test_the_plan_in_numbers_hands_tensors_on(name: str) -> None:
    saved, saved_mesh, loaded, mesh = RIGHT[name]
    program, plan = capture_resharding(saved, loaded, saved_mesh, mesh)
    rng = np.random.default_rng(1)
    given = {
        label: rng.standard_normal(value.shape).astype(np.float32) for label, value in program.values.items()
    }
    names = program.entry("load").outputs
    found = collect(evaluate_plan(plan, program, given, entry="load", params={}), program, names)
    for label in names:
        assert np.array_equal(found[str(label)], given[str(label).removeprefix("loaded.")])


# --- planted ------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], Any], label: str = "up.weight", rank: int = 1) -> Any:
    """A planner that does something else with the reads of one tensor on one rank."""
    made: list[Any] = []

    class Planner(DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            made.append(self)
            if len(made) == rank + 1:
                mine = [item for item in plan.items if item.dest_index.fqn == label]
                others = [item for item in plan.items if item.dest_index.fqn != label]
                plan = dataclasses.replace(plan, items=[*others, *change(mine)])
            return plan

    return Planner


def _at(item: Any, **fields: Any) -> Any:
    return dataclasses.replace(item, **{key: torch.Size(value) for key, value in fields.items()})


def _swapped(items: Any) -> Any:
    one, other = items
    return [
        dataclasses.replace(one, storage_index=other.storage_index),
        dataclasses.replace(other, storage_index=one.storage_index),
    ]


PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a read is left out": (lambda items: items[:1], ""),
    "nothing is read": (lambda items: [], ""),
    "two sources are swapped": (_swapped, "of up.weight at"),
    "one row too far": (
        lambda items: [_at(items[0], storage_offsets=(items[0].storage_offsets[0] - 1, 0)), items[1]],
        "of up.weight at",
    ),
    "one row less": (
        lambda items: [items[0], _at(items[1], lengths=(items[1].lengths[0] - 1, 8))],
        "",
    ),
    "put where the other goes": (
        lambda items: [items[0], _at(items[1], dest_offsets=(0, 0))],
        "",
    ),
    "another tensor's rows": (
        lambda items: [
            dataclasses.replace(
                item,
                storage_index=MetadataIndex("down.weight", torch.Size((0, 0))),
                storage_offsets=torch.Size((0, 0)),
            )
            if item.lengths[0] == 2
            else item
            for item in items
        ],
        "of down.weight at",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_read_is_refuted_at_its_rank(name: str) -> None:
    """Twelve rows of three ranks to two: the second reads two rows of one part and four of another."""
    change, says = PLANTED[name]
    found = tensure.prove_resharding(
        placed(tp=Shard(0)),
        placed(tp=Shard(0)),
        saved_mesh={"tp": 3},
        mesh={"tp": 2},
        load_planner=changed(change),
    ).proof.values
    assert found.status == "refuted" and found.counterexample is not None, found
    assert found.counterexample.rank == "loaded_tp1" and found.counterexample.local == "loaded.up.weight"
    assert says in str(found.counterexample), found.counterexample


def test_the_same_planner_with_no_fault_is_proved() -> None:
    found = tensure.prove_resharding(
        placed(tp=Shard(0)),
        placed(tp=Shard(0)),
        saved_mesh={"tp": 3},
        mesh={"tp": 2},
        load_planner=changed(lambda items: items[::-1]),
    )
    assert found.proof.values.status == "proved"


def relabelled(item: Any) -> Any:
    """The second and the third part of a tensor under each other's label."""
    if item.index.fqn != "up.bias" or not item.index.offset[0]:
        return item
    offset = torch.Size((12 - item.index.offset[0],))
    chunk = dataclasses.replace(item.tensor_data.chunk, offsets=offset)
    data = dataclasses.replace(item.tensor_data, chunk=chunk)
    return dataclasses.replace(item, index=MetadataIndex("up.bias", offset), tensor_data=data)


def test_a_wrong_label_is_refuted() -> None:

    class Planner(DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            return dataclasses.replace(plan, items=[relabelled(item) for item in plan.items])

    found = tensure.prove_resharding(
        placed(tp=Shard(0)),
        placed(tp=Shard(0)),
        saved_mesh={"tp": 3},
        mesh={"tp": 2},
        save_planner=Planner,
    ).proof.values
    assert found.status == "refuted" and found.counterexample is not None
    assert found.counterexample.local == "loaded.up.bias"


# --- parts that placements do not tell ----------------------------------------------------------------


def fused(size: int, *, says: bool = True) -> Callable[[Any], Any]:
    """Queries, keys and values of some heads in one matrix, for each rank its own heads: no cut of rows."""

    def state(mesh: Any) -> Any:
        rank = mesh.get_local_rank("tp")
        weight = distribute_tensor(torch.randn(24, 4), mesh, [Shard(0)])
        own = 8 // size
        runs = [(part * 8 + rank * own, part * 8 + rank * own + own) for part in range(3)]
        return RankState({"qkv.weight": weight}, {"qkv.weight": {0: runs}} if says else {})

    return state


@pytest.mark.parametrize(("ranks", "status"), [(2, "proved"), (4, "refuted"), (1, "refuted")])
def test_a_fused_matrix_is_right_only_on_as_many_ranks(ranks: int, status: str) -> None:
    found = tensure.prove_resharding(
        fused(2), fused(ranks), saved_mesh={"tp": 2}, mesh={"tp": ranks}
    ).proof.values
    assert found.status == status, found
    if status == "refuted":
        assert found.counterexample is not None and found.counterexample.local == "loaded.qkv.weight"


def test_plain_parts_under_one_name_are_lost_but_for_one() -> None:
    """Ranks that save slices as plain tensors: torch takes them for copies and keeps one."""

    def plain(mesh: Any) -> Any:
        rank = mesh.get_local_rank("tp")
        parts = {"w": {0: [(4 * rank, 4 * rank + 4)]}}
        return RankState({"w": torch.randn(4, 8)}, parts, {"w": (8, 8)})

    found = tensure.prove_resharding(plain, plain, saved_mesh={"tp": 2}, mesh={"tp": 2}).proof.values
    assert found.status == "refuted" and found.counterexample is not None
    assert found.counterexample.local == "loaded.w"


VALUES = [torch.ones(3), torch.ones(3), torch.zeros(3)]


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (lambda rank: torch.tensor(rank), "holds other numbers on rank 1 than on rank 0"),
        (lambda rank: VALUES[rank], "holds other numbers on rank 2 than on rank 0"),
        (lambda rank: torch.randn(6, 4).chunk(3)[rank], "is another part of a larger tensor on rank 1"),
        (lambda rank: torch.nn.Parameter(torch.randn(6, 4).chunk(3)[rank]), "is another part of a larger"),
    ],
    ids=["numbers", "tensors with bytes", "slices", "parameters of slices"],
)
def test_plain_tensors_that_differ_between_ranks_are_named(tensor: Any, says: str) -> None:
    def state(mesh: Any) -> Any:
        return {"w": tensor(mesh.get_local_rank("tp"))}

    with pytest.raises(InputError, match=f"^w, a plain tensor, {says}"):
        tensure.prove_resharding(state, state, saved_mesh={"tp": 3}, mesh={"tp": 3})


@pytest.mark.parametrize(
    "tensor",
    [lambda rank: torch.tensor(7), lambda rank: VALUES[rank % 2], lambda rank: torch.randn(6, 4)[2:4]],
    ids=["a number", "tensors with bytes", "one slice"],
)
def test_plain_tensors_that_are_one_are_proved(tensor: Any) -> None:
    def state(mesh: Any) -> Any:
        return {"w": tensor(mesh.get_local_rank("tp"))}

    found = tensure.prove_resharding(state, state, saved_mesh={"tp": 3}, mesh={"tp": 3}).proof.values
    assert found.status == "proved", found


# --- a checkpoint that is there -----------------------------------------------------------------------


def test_the_metadata_of_a_checkpoint_will_do(tmp_path: Path) -> None:
    whole = {label: torch.randn(shape) for label, shape in SHAPES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process alone
        dcp.save({**whole, "steps": 5}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    metadata = dcp.FileSystemReader(tmp_path).read_metadata()
    loaded = placed(dp=Shard(0), tp=Shard(1))
    found = tensure.prove_resharding(metadata, loaded, mesh={"dp": 2, "tp": 3})
    assert found.proof.values.status == "proved", found.proof.values
    wrong = tensure.prove_resharding(
        metadata, loaded, mesh={"dp": 2, "tp": 3}, load_planner=changed(lambda items: [], rank=4)
    ).proof.values
    assert wrong.status == "refuted" and wrong.counterexample is not None
    assert wrong.counterexample.rank == "loaded_dp1_tp1"


# --- what does not go together ------------------------------------------------------------------------


def _tensors(**shapes: tuple[int, ...]) -> Callable[[Any], dict[str, Any]]:
    return lambda mesh: {label: torch.randn(shape) for label, shape in shapes.items()}


@pytest.mark.parametrize(
    ("saved", "loaded", "says"),
    [
        (_tensors(w=(4,)), _tensors(v=(4,)), "Missing key"),
        (_tensors(w=(4,)), _tensors(w=(5,)), "Size mismatch"),
        (_tensors(w=(4,)), lambda mesh: 3, "a state of type int"),
        (_tensors(w=(4,)), lambda mesh: {}, "a state without tensors"),
        (_tensors(w=(4,)), lambda mesh: RankState({"w": torch.randn(4)}, {"v": {}}), "a part of v"),
        (
            _tensors(w=(4,)),
            lambda mesh: RankState({"w": torch.randn(4)}, {"w": {0: [(0, 2)]}}),
            "of shape \\[4\\] on a rank",
        ),
    ],
)
def test_states_that_do_not_go_together(saved: Any, loaded: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tensure.prove_resharding(saved, loaded, saved_mesh={"dp": 1}, mesh={"dp": 1})


def test_a_function_of_what_is_saved_needs_its_mesh() -> None:
    with pytest.raises(InputError, match="without its mesh"):
        tensure.prove_resharding(_tensors(w=(4,)), _tensors(w=(4,)), mesh={"dp": 1})


def test_a_read_outside_of_what_was_saved() -> None:
    planner = changed(lambda items: [_at(items[0], storage_offsets=(11, 0))], rank=0)
    with pytest.raises(InputError, match="outside of a part"):
        tensure.prove_resharding(
            placed(tp=Shard(0)),
            placed(tp=Shard(0)),
            saved_mesh={"tp": 2},
            mesh={"tp": 2},
            load_planner=planner,
        )


# --- large --------------------------------------------------------------------------------------------


def large(axis: str) -> Callable[[Any], dict[str, Any]]:
    def state(mesh: Any) -> dict[str, Any]:
        cuts = [Shard(0) if name == axis else Replicate() for name in mesh.mesh_dim_names]
        return {
            f"layers.{at}.weight": distribute_tensor(torch.empty(16384, 16384), mesh, cuts) for at in range(4)
        }

    return state


def test_a_checkpoint_at_full_size() -> None:
    found = tensure.prove_resharding(large("tp"), large("dp"), saved_mesh={"tp": 8}, mesh={"dp": 16})
    assert found.proof.values.status == "proved"


@pytest.mark.parametrize(
    ("change", "index"),
    [
        (lambda items: [], (0, 0)),
        (lambda items: [_at(items[0], storage_offsets=(1024, 0))], (0, 0)),
        (lambda items: [_at(items[0], lengths=(768, 16384))], (768, 0)),
    ],
)
def test_a_fault_in_a_large_one_is_shown_in_units(change: Any, index: tuple[int, ...]) -> None:
    found = tensure.prove_resharding(
        large("tp"),
        large("dp"),
        saved_mesh={"tp": 8},
        mesh={"dp": 16},
        load_planner=changed(change, "layers.2.weight", rank=6),
    ).proof.values
    assert found.status == "refuted" and found.counterexample is not None, found
    assert (found.counterexample.rank, found.counterexample.index) == ("loaded_dp6", index)
    assert found.counterexample.local == "loaded.layers.2.weight"


def test_dtypes_must_be_one() -> None:
    with pytest.raises(UnsupportedError, match="f32 on some ranks and bf16"):
        tensure.prove_resharding(
            _tensors(w=(4,)),
            lambda mesh: {"w": torch.randn(4, dtype=torch.bfloat16)},
            saved_mesh={"dp": 1},
            mesh={"dp": 1},
        )


# --- bad input ----------------------------------------------------------------------------------------


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x).sum()


@pytest.mark.parametrize("mesh", [4, {}, {"dp": 0}, {"dp": 2.0}, {3: 2}])
def test_a_mesh_that_is_none(mesh: Any) -> None:
    with pytest.raises(InputError, match="a mesh"):
        tensure.prove_resharding(_tensors(w=(4,)), _tensors(w=(4,)), saved_mesh={"dp": 1}, mesh=mesh)
    with pytest.raises(InputError, match="a mesh"):
        tensure.prove(lambda net, mesh: None, lambda: (Summed(), (torch.randn(4),)), mesh=mesh)


@pytest.mark.parametrize("parts", [{1: [(0, 4)]}, {0: [(0, 5)]}, {0: [(1,)]}, {0: [(3, 1)]}])
def test_parts_that_are_outside_of_their_tensor(parts: Any) -> None:
    def state(mesh: Any) -> RankState:
        return RankState({"w": torch.randn(4)}, parts={"w": parts}, shapes={"w": (4,)})

    with pytest.raises(InputError, match="parts of w"):
        tensure.prove_resharding(state, state, saved_mesh={"dp": 1}, mesh={"dp": 1})


def test_a_planner_that_writes_by_pieces_is_refused() -> None:
    class Pieces(DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            items = []
            for item in plan.items:
                assert item.tensor_data is not None
                chunk = dataclasses.replace(item.tensor_data.chunk, sizes=torch.Size([2]))
                items.append(
                    dataclasses.replace(item, tensor_data=dataclasses.replace(item.tensor_data, chunk=chunk))
                )
            return dataclasses.replace(plan, items=items)

    with pytest.raises(UnsupportedError, match="written by itself"):
        tensure.prove_resharding(
            _tensors(w=(4,)), _tensors(w=(4,)), saved_mesh={"dp": 1}, mesh={"dp": 1}, save_planner=Pieces
        )
