"""Where a local tensor stands in a logical one: torch's placements as indices, sums and factors.

`Shard` cuts as torch.chunk does, so the last parts may be smaller or empty; `_StridedShard` (FSDP over a
tensor-parallel shard) cuts what the other axes have left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from torch.distributed.tensor import Partial, Placement, Replicate, Shard

from tensure.errors import InputError, UnsupportedError

__all__ = ["Part", "cut_dims", "part_of", "whole_part"]

Run: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A claim about one rank's tensor.

    Args:
        dims: for each dim, the runs (start, stop, step) of the logical tensor that it holds.
        sum: mesh axes over which the locals add up to the logical value.
        scale: what that sum is a multiple of.
    """

    dims: tuple[tuple[Run, ...], ...]
    sum: tuple[str, ...] = ()
    scale: Fraction = Fraction(1)
    origin: tuple[tuple[int, ...], Mapping[str, Any]] | None = field(default=None, compare=False, repr=False)
    """The shape and the placements it follows from, if it does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the local tensor."""
        return tuple(sum(len(range(*run)) for run in runs) for runs in self.dims)


def whole_part(shape: Sequence[int]) -> Part:
    """The tensor itself."""
    return Part(tuple(((0, size, 1),) for size in shape))


def part_of(
    shape: Sequence[int],
    placements: Mapping[str, Any],
    mesh: Mapping[str, int],
    place: Mapping[str, int],
    what: str = "a tensor",
) -> Part:
    """The part of a tensor that one rank holds.

    Args:
        shape: of the logical tensor.
        placements: by mesh axis; axes left out replicate.
        mesh: sizes of the axes, outermost first.
        place: the rank's coordinates.
        what: the tensor, for messages.

    Raises:
        InputError: an axis or dim that is not there.
        UnsupportedError: a placement nobody has a rule for.
    """
    ranges = [(0, size) for size in shape]
    total: list[str] = []
    scale = Fraction(1)
    if not isinstance(placements, Mapping):
        raise InputError(
            f"{what} is placed as {placements!r}", wanted='{axis: placement}, such as {"dp": Shard(0)}'
        )
    unknown = [axis for axis in placements if axis not in mesh]
    if unknown:
        raise InputError(f"{what} is placed on axis {unknown[0]!r}", wanted=f"one of {', '.join(mesh)}")
    # What is strided was cut last, although its axis comes first.
    ordered = sorted(
        ((axis, placements[axis]) for axis in mesh if axis in placements),
        key=lambda item: "Strided" in type(item[1]).__name__,
    )
    for axis, placement in ordered:
        if isinstance(placement, Replicate):
            continue
        if isinstance(placement, Partial):
            if placement.reduce_op not in ("sum", "avg"):
                raise UnsupportedError(f"{what} is {placement}", wanted="Partial('sum') or Partial('avg')")
            total.append(axis)
            if placement.reduce_op == "avg":
                scale *= mesh[axis]
            continue
        dim = getattr(placement, "dim", None)
        if not isinstance(placement, (Shard, Placement)) or not isinstance(dim, int):
            raise UnsupportedError(f"{what} is placed as {placement!r}", wanted="Shard, Replicate or Partial")
        if not -len(shape) <= dim < len(shape):
            raise InputError(
                f"{what} of shape {list(shape)} is cut along dim {dim}", wanted=f"a dim below {len(shape)}"
            )
        if hasattr(placement, "split_factor"):
            _check_strided(axis, placement, shape, placements, mesh, what)
        lo, hi = ranges[dim]
        size = -(-(hi - lo) // mesh[axis])
        start = min(lo + place[axis] * size, hi)
        ranges[dim] = (start, min(start + size, hi))
    runs = tuple(((lo, hi, 1),) for lo, hi in ranges)
    return Part(runs, tuple(total), scale, (tuple(shape), dict(placements)))


def cut_dims(
    shape: Sequence[int], placements: Mapping[str, Any], mesh: Mapping[str, int]
) -> dict[int, tuple[str, ...]]:
    """By dim that is cut: the axes along which it is."""
    found: dict[int, tuple[str, ...]] = {}
    for axis in mesh:
        dim = getattr(placements.get(axis), "dim", None)
        if isinstance(dim, int) and shape:
            found[dim % len(shape)] = (*found.get(dim % len(shape), ()), axis)
    return found


def _check_strided(
    axis: str,
    placement: Any,
    shape: Sequence[int],
    placements: Mapping[str, Any],
    mesh: Mapping[str, int],
    what: str,
) -> None:
    """Refuse strides that are not those of a cut after the cuts along the inner axes."""
    rank, names = len(shape), list(mesh)
    dim = placement.dim % rank

    def cuts(other: str) -> bool:
        found = getattr(placements.get(other), "dim", None)
        return isinstance(found, int) and found % rank == dim

    inner = [other for other in names[names.index(axis) + 1 :] if cuts(other)]
    strided = [other for other in names if cuts(other) and hasattr(placements[other], "split_factor")]
    factor = math.prod(mesh[other] for other in inner)
    is_even = shape[dim] % math.prod(mesh[other] for other in names if cuts(other)) == 0
    if strided != [axis] or placement.split_factor != factor or (len(inner) > 1 and not is_even):
        raise UnsupportedError(
            f"{what} is {placement!r} on axis {axis}",
            wanted=f"one strided axis for a dim, whose split factor ({factor}) is that of the inner axes",
        )
