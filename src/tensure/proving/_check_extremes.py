"""The checker's view of maxima over ranks: of what set of elements is the largest of their largest?

Each rank's must be the whole of a maximum over a box of one class. The boxes differ along one dim that is
taken over, so that the elements behind every entry of the result are those of the union of the boxes; an
element that stands in two of them is as large as in one. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tensure.program import Op

from ._check_index import FIRST, Index, all_of, joined
from ._check_piece import ONE, is_part
from ._check_sums import Rel, size

OPS: Final = {"max": "amax", "min": "amin"}


def extreme(values: Any, kind: str, members: Sequence[Any]) -> Rel:
    """The maximum (minimum) over ranks of relations; None when nothing is known of it."""
    if all(member == members[0] for member in members):
        return tuple(members[0])
    boxes: list[Any] = []
    for member in members:
        ((coef, node, reg, limit), *more) = member
        item = values.defs[node]
        if more or coef != 1 or limit is not None or item.op != OPS.get(kind) or item.out:
            return None
        (part,) = item.operands
        if not is_part(part) or part[2] != 1 or not values.is_whole(node, reg):
            return None
        boxes.append((part[0], repr(sorted(item.attrs.items())), part[1]))
    source, _, box = boxes[0]
    if any(other[:2] != boxes[0][:2] for other in boxes):
        return None
    attrs, inner = values.defs[members[0][0][1]].attrs, values.defs[source]
    over = {dim % len(box) for dim in attrs["dim"]}
    cut = {dim for dim in range(len(box)) if any(other[dim] != box[dim] for _, _, other in boxes)}
    if len(cut) != 1 or not cut <= over - inner.free:
        return None
    (dim,) = cut
    union = _union([other[dim] for _, _, other in boxes])
    # Taken over all of the dims that are kept, the entries at hand are a part of the result.
    kept = [
        union if at == dim else index if at in over or at in inner.free else all_of(inner.shape[at])
        for at, index in enumerate(box)
    ]
    (made,) = values.make(Op(OPS[kind], (), (), tuple(attrs.items())), [((ONE, source, tuple(kept), None),)])
    ((by, whole, reg, _),) = made
    keep = attrs.get("keepdim", False)
    spots = [FIRST if at in over else index for at, index in enumerate(box) if keep or at not in over]
    part = tuple(
        at if d in values.defs[whole].free else spot
        for d, (at, spot) in enumerate(zip(reg, spots, strict=True))
    )
    same_shape = size(part) == size(members[0][0][2])
    return ((by, whole, values.spelled(whole, part), None),) if same_shape else None


def _union(parts: Sequence[Index]) -> Index:
    """All members of any part, each once, in rising order."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(run for part in parts for run in part.runs):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return joined(found)
