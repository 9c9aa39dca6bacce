"""Rules for ops of training steps: moments, index tensors, gradients, masks, losses.

As in `_rules.py`: parts of the logical operands forwards to a part (or addend) of every result, or None
where a rule does not know. Knows no plan, no rank and no claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._index import Index, Region, Shape, cut, distinct, length, whole, whole_region
from ._limit import Share, share_of

Given: TypeAlias = dict[str, Any]
Parts: TypeAlias = Sequence[Region | None]
Shapes: TypeAlias = Sequence[Shape | None]


@dataclass(frozen=True, slots=True)
class Derived:
    """The region of the logical result, the slices of what it sums if it is an addend, and a coefficient.

    A coefficient comes of a mean over fewer elements, or of a sum along a dim that only repeats.
    """

    region: Region
    shares: tuple[Share, ...] = ()
    coef: Fraction = Fraction(1)


Rule: TypeAlias = Callable[[str, Given, Given, Shapes, Parts, Sequence[Shape]], "list[Derived] | None"]


def _equal(local: Given, logical: Given, *but: str) -> bool:
    rest = dict.fromkeys(but)
    return repr({**local, **rest}) == repr({**logical, **rest})


def _all(part: Region | None, shape: Shape | None) -> bool:
    return part is None or shape is None or part == whole_region(shape)


def _once(index: Index) -> bool:
    return distinct(index)


def layer_norm(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Rows of the input, all of what is normalised; three results."""
    part, shape = parts[0], shapes[0]
    if not _equal(local, logical) or part is None or shape is None:
        return None
    lead = len(shape) - len(logical["normalized_shape"])
    if part[lead:] != whole_region(shape[lead:]) or not all(map(_all, parts[1:], shapes[1:])):
        return None
    moment = (*part[:lead], *(whole(1) for _ in shape[lead:]))
    return [Derived(part), Derived(moment), Derived(moment)]


def index(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """One index tensor: its dims stand where the indexed dim was, which is whole."""
    part, shape = parts[0], shapes[0]
    named = [at for at, item in enumerate(parts[1:]) if item is not None]
    if part is None or shape is None or len(named) != 1:
        return None
    at = named[0]
    places = parts[1 + at]
    if places is None or part[at] != whole(shape[at]):
        return None
    return [Derived((*part[:at], *places, *part[at + 1 :]))]


def index_select(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """As `index`, along a named dim."""
    part, places, shape = parts[0], parts[1], shapes[0]
    if not _equal(local, logical) or part is None or places is None or shape is None or len(places) != 1:
        return None
    at = logical["dim"] % len(shape)
    if part[at] != whole(shape[at]):
        return None
    return [Derived((*part[:at], *places, *part[at + 1 :]))]


def gather(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Whole along the gathered dim; along the others each entry reads at its own place."""
    part, places, shape = parts[0], parts[1], shapes[0]
    if not _equal(local, logical) or part is None or places is None or shape is None:
        return None
    at = logical["dim"] % len(shape)
    if part[at] != whole(shape[at]):
        return None
    for dim, (mine, wanted) in enumerate(zip(part, places, strict=True)):
        if dim != at and cut(mine, 0, length(wanted)) != wanted:
            return None
    return [Derived(places)]


def embedding_backward(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A sum over all indices; of those that are there, an addend."""
    grad, places, shape = parts[0], parts[1], shapes[1]
    if not _equal(local, logical) or grad is None or places is None or shape is None:
        return None
    rank = len(places)
    if grad[:rank] != places or logical["scale_grad_by_freq"] or not all(map(_once, places)):
        return None
    made = [
        share_of(f"i{dim}", size, item) for dim, (size, item) in enumerate(zip(shape, places, strict=True))
    ]
    shares = tuple(share for share in made if share is not None)
    return [Derived((whole(outs[0][0]), *grad[rank:]), shares)]


def put_back(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A slice or one index of a dim put into zeros: that dim is whole, the others are cut alike."""
    grad, shape = parts[0], shapes[0]
    rank = len(outs[0])
    if not _equal(local, logical, "input_sizes", "dim") or grad is None or shape is None:
        return None
    dim = logical["dim"] % rank
    if local["dim"] % rank != dim:
        return None
    if op == "slice_backward":
        if grad[dim] != whole(shape[dim]):
            return None
        rest = (*grad[:dim], *grad[dim + 1 :])
    else:
        rest = grad
    region = (*rest[:dim], whole(outs[0][dim]), *rest[dim:])
    return [Derived(region)] if tuple(map(length, region)) == tuple(local["input_sizes"]) else None


def pad(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Padded dims are whole; the others any part."""
    part, shape = parts[0], shapes[0]
    if not _equal(local, logical) or part is None or shape is None:
        return None
    region = list(part)
    for back, ends in enumerate(zip(logical["pad"][::2], logical["pad"][1::2], strict=True)):
        dim = len(shape) - 1 - back
        if any(ends):
            if part[dim] != whole(shape[dim]):
                return None
            region[dim] = whole(outs[0][dim])
    return [Derived(tuple(region))]


def triangle(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A block of a triangle: its diagonal moves by where the block stands."""
    part = parts[0]
    if part is None:
        return None
    rows, columns = part[-2:]
    if len(rows) != 1 or len(columns) != 1:
        return None
    if logical["diagonal"] - local["diagonal"] != columns[0][0] - rows[0][0]:
        return None
    return [Derived(part)]


def counted(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A run of integers inside a longer one."""
    edges = [given[key] for given in (local, logical) for key in ("start", "end", "step")]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in edges):
        return None
    if local["dtype"] != logical["dtype"] or local["step"] != logical["step"] or not local["step"]:
        return None
    count = len(range(local["start"], local["end"], local["step"]))
    first, rest = divmod(local["start"] - logical["start"], logical["step"])
    if rest or first < 0 or first + count > outs[0][0] or not count:
        return None
    return [Derived((((first, first + count),),))]


def squares(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A mean or sum over everything: over a part, an addend."""
    part, shape = parts[0], shapes[0]
    if not _equal(local, logical) or part is None or shape is None or part != parts[1] or shape != shapes[1]:
        return None
    if logical["reduction"] == 0:
        return [Derived(part)]
    held = math.prod(map(length, part))
    if not held or not all(map(_once, part)):
        return None
    made = [
        share_of(f"dim{dim}", size, item) for dim, (size, item) in enumerate(zip(shape, part, strict=True))
    ]
    coef = Fraction(math.prod(shape), held) if logical["reduction"] == 1 else Fraction(1)
    return [Derived((), tuple(share for share in made if share is not None), coef)]


def nll(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Samples one by one, or summed: of some of them, an addend. All classes are there."""
    part, target, shape = parts[0], parts[1], shapes[0]
    if not _equal(local, logical) or part is None or target is None or shape is None or len(shape) != 2:
        return None
    if part[1] != whole(shape[1]) or part[0] != target[0] or not _all(parts[2], shapes[2]):
        return None
    share = share_of("n", shape[0], part[0])
    if logical["reduction"] == 2 and _once(part[0]):
        return [Derived((), () if share is None else (share,)) for _ in outs]
    return [Derived(target), Derived(())] if logical["reduction"] == 0 else None


def nll_backward(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """The gradient of each sample from its own class; all classes are there."""
    grad, part, target, shape = parts[0], parts[1], parts[2], shapes[1]
    if not _equal(local, logical) or part is None or target is None or shape is None or len(shape) != 2:
        return None
    if part[1] != whole(shape[1]) or target != (part[0],) or not all(map(_all, parts[3:], shapes[3:])):
        return None
    wanted: Region = target if logical["reduction"] == 0 else ()
    return [Derived(part)] if grad == wanted else None


def convolution_backward(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A batch cut: the input's gradient by sample, those of weight and bias summed over samples.

    dx[n, c] is a sum over output channels o of dy[n, o] with w[o, c]; dw[o, c] is one over samples n of
    dy[n, o] with x[n, c]. So (without groups) each gradient asked for alone may have its channels cut, dx of
    some o is an addend, and the third operand only lends its shape. Places are whole.
    """
    grad, x, weight = parts[0], parts[1], parts[2]
    if not _equal(local, logical) or grad is None or x is None or weight is None:
        return None
    sizes = [shape for shape in shapes if shape is not None]
    if grad[0] != x[0] or not _once(x[0]) or not _once(grad[1]):
        return None
    if grad[2:] != whole_region(sizes[0][2:]) or x[2:] != whole_region(sizes[1][2:]):
        return None
    mask = logical["output_mask"]
    every_tap = weight[2:] == whole_region(sizes[2][2:])
    rest = every_tap and weight[:2] == (grad[1], x[1])
    every = (
        every_tap
        and weight[:2] == whole_region(sizes[2][:2])
        and (grad[1], x[1])
        == (
            whole(sizes[0][1]),
            whole(sizes[1][1]),
        )
    )
    alone = logical["groups"] == 1 and not logical["transposed"] and sum(mask) == 1 and not mask[2]
    if not every and not (alone and rest):
        return None
    share, over = share_of("n", sizes[1][0], x[0]), share_of("o", sizes[0][1], grad[1])
    shares = () if share is None else (share,)
    return [
        Derived(x, () if over is None else (over,)) if mask[0] else Derived(whole_region(outs[0])),
        Derived((grad[1], x[1], *whole_region(outs[1][2:])), shares)
        if mask[1] and not every
        else Derived(whole_region(outs[1]), shares if mask[1] else ()),
        Derived(whole_region(outs[2]), shares if mask[2] else ()),
    ]


def scatter(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Whole along the dim where numbers are put; along the others each is put at its own place."""
    base, places, source = parts
    if not _equal(local, logical) or base is None or places is None or source is None:
        return None
    at = logical["dim"] % len(outs[0])
    if base[at] != whole(outs[0][at]) or places != source or shapes[1] != shapes[2]:
        return None
    for dim, (mine, wanted) in enumerate(zip(base, places, strict=True)):
        if dim == at:
            if wanted != whole((shapes[1] or ())[at]):
                return None
        elif mine != wanted or (shapes[1] or ())[dim] != outs[0][dim]:
            return None
    return [Derived(base)]


def one_hot(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """A row of its own for each number."""
    (numbers,) = parts
    if not _equal(local, logical) or numbers is None:
        return None
    return [Derived((*numbers, whole(outs[0][-1])))]


def put(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """All of a tensor put by all of an index."""
    if not _equal(local, logical) or not all(map(_all, parts, shapes)):
        return None
    return [Derived(whole_region(outs[0]))]


TRAINING: Final[dict[str, Rule]] = {
    "native_layer_norm": layer_norm,
    "index": index,
    "index_select": index_select,
    "gather": gather,
    "scatter_add": scatter,
    "scatter": scatter,
    "one_hot": one_hot,
    "index_put": put,
    "embedding_dense_backward": embedding_backward,
    "slice_backward": put_back,
    "select_backward": put_back,
    "constant_pad_nd": pad,
    "tril": triangle,
    "triu": triangle,
    "arange": counted,
    "mse_loss": squares,
    "nll_loss_forward": nll,
    "nll_loss_backward": nll_backward,
    "convolution_backward": convolution_backward,
}
