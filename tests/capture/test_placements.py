"""Where a local tensor stands: our indices beside those of torch's own distributed tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from tensure.capture._placements import Part, part_of, whole_part
from tensure.errors import InputError, UnsupportedError

AXES = ("a", "b", "c")


@contextmanager
def rank_of(sizes: tuple[int, ...], rank: int) -> Iterator[DeviceMesh]:
    """This process as one rank, with real tensors."""
    count = 1
    for size in sizes:
        count *= size
    dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
    try:
        yield init_device_mesh("cpu", sizes, mesh_dim_names=AXES[: len(sizes)])
    finally:
        dist.destroy_process_group()


def held(shape: tuple[int, ...], part: Part) -> torch.Tensor:
    """The elements of a counted tensor that a part says it holds."""
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    for dim, runs in enumerate(part.dims):
        indices = [at for run in runs for at in range(*run)]
        whole = whole.index_select(dim, torch.tensor(indices, dtype=torch.int64))
    return whole


def disagreements(shape: tuple[int, ...], sizes: tuple[int, ...], placements: list[Any]) -> list[int]:
    """Ranks that torch gives other elements than we say."""
    mesh = dict(zip(AXES, sizes, strict=False))
    wrong: list[int] = []
    for rank, place in enumerate(product(*map(range, sizes))):
        with rank_of(sizes, rank) as there:
            whole = torch.arange(torch.Size(shape).numel()).view(shape)
            local = distribute_tensor(whole, there, placements, src_data_rank=None).to_local()
        part = part_of(
            shape, dict(zip(mesh, placements, strict=True)), mesh, dict(zip(mesh, place, strict=True)), "x"
        )
        if part.shape != tuple(local.shape) or not torch.equal(held(shape, part), local):
            wrong.append(rank)
    return wrong


CUTS = st.one_of(st.just(Replicate()), st.integers(-2, 1).map(Shard))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: torch.Size(s).numel() <= 8),
    data=st.data(),
)
def test_parts_are_those_of_distributed_tensors(
    shape: tuple[int, int], sizes: list[int], data: st.DataObject
) -> None:
    """Even and uneven sizes, parts that are empty, one dim cut along several axes."""
    placements = [data.draw(CUTS) for _ in sizes]
    assert disagreements(shape, tuple(sizes), placements) == []


@pytest.mark.parametrize(
    ("rows", "sizes"), [(8, (2, 2)), (12, (2, 2)), (6, (3, 2)), (12, (2, 3)), (12, (3, 2))]
)
def test_strided_parts_are_what_two_cuts_in_a_row_leave(rows: int, sizes: tuple[int, int]) -> None:
    """FSDP over tensor parallel: the outer axis cuts what the inner one has left."""
    shape, mesh = (rows, 3), dict(zip(AXES, sizes, strict=False))
    whole = torch.arange(rows * 3).view(shape)
    for a, b in product(*map(range, sizes)):
        want = whole.chunk(sizes[1])[b].chunk(sizes[0])[a]
        placed = {"a": _StridedShard(0, split_factor=sizes[1]), "b": Shard(0)}
        part = part_of(shape, placed, mesh, {"a": a, "b": b}, "x")
        assert torch.equal(held(shape, part), want)


def test_strided_parts_of_the_real_fsdp() -> None:
    """What fully_shard makes of a tensor-parallel parameter, element for element."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    sizes, mesh = (2, 2), {"a": 2, "b": 2}
    for rank, (a, b) in enumerate(product(range(2), range(2))):
        with rank_of(sizes, rank) as there:
            net = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
            with torch.no_grad():
                for layer in net:
                    layer.weight.copy_(torch.arange(64.0).view(8, 8))  # type: ignore[operator]
            parallelize_module(
                net,
                there["b"],
                {"0": ColwiseParallel(), "1": RowwiseParallel()},
                src_data_rank=None,
            )
            fully_shard(net, mesh=there["a"])
            for layer in net:
                weight: Any = layer.weight
                placed = dict(zip(("a", "b"), weight.placements, strict=True))
                part = part_of((8, 8), placed, mesh, {"a": a, "b": b}, "weight")
                assert torch.equal(held((8, 8), part).float(), weight.to_local()), (rank, placed)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 13),
    sizes=st.sampled_from([(2, 2), (2, 3), (3, 2), (2, 2, 2), (2, 1, 2)]),
    data=st.data(),
)
def test_strided_parts_are_torchs_or_refused(rows: int, sizes: tuple[int, ...], data: st.DataObject) -> None:
    """Whatever mix of cuts and strides, even or not: what is answered is what torch does."""
    cut = st.one_of(
        CUTS, st.sampled_from([1, 2, 3, 4]).map(lambda factor: _StridedShard(0, split_factor=factor))
    )
    placements = [data.draw(cut) for _ in sizes]
    with contextlib.suppress(UnsupportedError):
        assert disagreements((rows, 2), sizes, placements) == []


@pytest.mark.parametrize("rows", [3, 5, 6, 8, 9, 13])
@pytest.mark.parametrize(
    ("sizes", "placements"),
    [
        ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 3), [_StridedShard(-2, split_factor=3), Shard(0)]),
        ((2, 2, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2, 2), [Shard(0), _StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2, 2), [_StridedShard(0, split_factor=2), Shard(1), Shard(0)]),
    ],
)
def test_usual_strided_parts_are_answered(rows: int, sizes: tuple[int, ...], placements: list[Any]) -> None:
    assert disagreements((rows, 2), sizes, placements) == []


@pytest.mark.parametrize(
    ("placed", "total", "scale"),
    [
        ({}, (), 1),
        ({"a": Replicate()}, (), 1),
        ({"a": Partial()}, ("a",), 1),
        ({"a": Partial("avg")}, ("a",), 2),
        ({"a": Partial("avg"), "b": Partial("avg")}, ("a", "b"), 6),
        ({"b": Partial(), "a": Shard(0)}, ("b",), 1),
    ],
)
def test_sums_and_averages(placed: Mapping[str, Any], total: tuple[str, ...], scale: int) -> None:
    """An average of n is the n-th part of their sum, so the sum is n times the value."""
    part = part_of((4, 4), placed, {"a": 2, "b": 3}, {"a": 1, "b": 2}, "x")
    assert part.sum == total and part.scale == Fraction(scale)


def test_a_whole_part_is_all() -> None:
    assert whole_part((2, 3)) == Part(((((0, 2, 1)),), ((0, 3, 1),)))
    assert whole_part(()).shape == () and whole_part((0, 2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("placed", "kind", "says"),
    [
        ({"z": Shard(0)}, InputError, "axis 'z'"),
        ({"a": Shard(2)}, InputError, "dim 2"),
        ({"a": Shard(-3)}, InputError, "dim -3"),
        ({"a": Partial("max")}, UnsupportedError, "max"),
        ({"a": "Shard(0)"}, UnsupportedError, "Shard"),
        ({"a": 0}, UnsupportedError, "0"),
    ],
)
def test_what_is_no_placement(placed: Mapping[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        part_of((4, 4), placed, {"a": 2}, {"a": 1}, "the weight")
    assert "the weight" in str(caught.value)
