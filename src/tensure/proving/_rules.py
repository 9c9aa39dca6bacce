"""When an op on parts gives a part of the op on the wholes: one rule for each kind of op.

A rule is handed the attributes of the local op and of the logical op it may be a piece of, the
logical operands' shapes, and for each operand the region of it that the local operand holds. It
answers which region of the logical result the local result is, and which addend if a contracted dim
was cut; or None, which says only that this rule does not know. Rules are exact for the sizes at hand
and equal over the reals (reordered sums); they know no plan, no rank and no claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.program import axes_in

from ._contraction import TERMS, contract
from ._index import Index, Region, Shape, distinct, is_free, length, whole, whole_region
from ._limit import Share, share_of
from ._movement import MOVES
from ._relation import ONE
from ._training import TRAINING, Derived, Rule
from ._windows import WINDOWS

Given: TypeAlias = dict[str, Any]
Parts: TypeAlias = Sequence[Region | None]
Shapes: TypeAlias = Sequence[Shape | None]


ELEMENTWISE: Final = frozenset(
    "_to_copy abs acos acosh add add_n addcdiv addcmul asin asinh atan atanh bitwise_and "
    "bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp cos cosh div "
    "eq erf exp expm1 floor floor_divide fmod ge gelu gelu_backward gt hardsigmoid hardswish hardtanh "
    "hardtanh_backward integer_add isnan le leaky_relu log log1p log2 logical_and logical_not "
    "logical_or logical_xor lt masked_fill maximum minimum mul ne neg pow reciprocal relu remainder "
    "round rsqrt rsub sigmoid sigmoid_backward sign silu silu_backward sin sinh softplus sqrt square "
    "sub tan tanh tanh_backward threshold_backward trunc where".split()
)
PER_CHANNEL: Final = {
    "requantize": ("multiplier", "shift"),
    "quantize": ("scale", "zero_point"),
    "dequantize": ("scale", "zero_point"),
}
REDUCTIONS: Final = frozenset("sum mean amax amin logsumexp var any all argmax argmin prod".split())
ROWS: Final = frozenset(
    "softmax log_softmax _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data cumsum "
    "sort topk flip roll".split()
)
NORMS: Final = frozenset(["rms_norm", "layer_norm"])


def derive(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, out_shapes: Sequence[Shape]
) -> list[Derived] | None:
    """What a local op's results are, by the rule for its kind; None when no rule says so."""
    same = repr(local) == repr(logical)
    if same and all(
        part is None or part == whole_region(shape or ()) for part, shape in zip(parts, shapes, strict=True)
    ):
        return [Derived(whole_region(shape)) for shape in out_shapes]  # one function, one input
    rule = RULES.get(op)
    if rule is None:
        return None
    if rule in FREE_AWARE or not any(is_free(index) for part in parts for index in part or ()):
        return rule(op, local, logical, shapes, parts, out_shapes)
    # Where a value only repeats, any part is as good as any other: at the start, or where a neighbour stands.
    held = {index for part in parts for index in part or () if not is_free(index)}
    places = (None, *sorted(held, key=repr if axes_in(tuple(held)) else None))
    for stood in (*([_stood(part, place) for part in parts] for place in places), _beside(parts)):
        inside = all(_inside(part, shape) for part, shape in zip(stood, shapes, strict=True))
        found = rule(op, local, logical, shapes, stood, out_shapes) if inside else None
        if found is not None:
            return found
    return None


def _inside(part: Region | None, shape: Shape | None) -> bool:
    return part is None or all(
        max((stop for _, stop in index), default=0) <= size
        for index, size in zip(part, shape or (), strict=True)
    )


def _stood(part: Region | None, place: Index | None) -> Region | None:
    """Free parts at a place of their length, or at the start."""
    if part is None:
        return None
    return tuple(
        index
        if not is_free(index)
        else place
        if place is not None and length(place) == length(index)
        else ((0, length(index)),)
        for index in part
    )


def _beside(parts: Parts) -> list[Region | None]:
    """Free parts where another operand stands along the same dim, if as long there; else at the start."""
    stands: dict[tuple[int, int], Index] = {}
    for part in parts:
        for dim, index in enumerate(part or ()):
            if not is_free(index):
                stands.setdefault((dim, length(index)), index)
    return [
        None
        if part is None
        else tuple(
            stands.get((dim, length(index)), ((0, length(index)),)) if is_free(index) else index
            for dim, index in enumerate(part)
        )
        for part in parts
    ]


def elementwise(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Every operand holds the same indices of the result's dims, but where it is broadcast."""
    if repr(local) != repr(logical):
        return None
    return _broadcast(shapes, parts, outs[0])


def per_channel(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Elementwise, with lists of factors that go along one dim."""
    lists = PER_CHANNEL[op]
    if repr({**local, **dict.fromkeys(lists)}) != repr({**logical, **dict.fromkeys(lists)}):
        return None
    part, shape = parts[0], shapes[0]
    if part is None or shape is None:
        return None
    for name in lists:
        wanted = tuple(logical[name])
        if logical["axis"] is not None and len(wanted) > 1:
            index = part[logical["axis"] % len(shape)]
            wanted = tuple(wanted[at] for start, stop in index for at in range(start, stop))
        if tuple(local[name]) != wanted:
            return None
    return [Derived(part)]


def _broadcast(shapes: Shapes, parts: Parts, out: Shape) -> list[Derived] | None:
    region: list[Index] = []
    for back in range(len(out), 0, -1):
        found: set[Index] = set()
        free: set[Index] = set()
        for shape, part in zip(shapes, parts, strict=True):
            if shape is None or part is None or len(shape) < back:
                continue
            if is_free(part[-back]):
                free.add(part[-back])
            elif shape[-back] == out[-back]:
                found.add(part[-back])
            elif part[-back] != whole(1):
                return None
        if len(found) > 1 or len(free) > 1 or not (found or free):
            return None
        many = length(next(iter(free))) if free else 0
        if free and found and many not in (1, length(next(iter(found)))):
            return None
        region.append(found.pop() if found else ((0, many),))
    return [Derived(tuple(region))]


def reduced_dims(dim: Any, rank: int) -> tuple[int, ...]:
    """The dims a reduction goes over: none or an empty list says all."""
    if dim is None or dim == () or not rank:
        return tuple(range(rank))
    return tuple(sorted({item % rank for item in (dim if isinstance(dim, tuple) else (dim,))}))


def reduction(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Reduced dims are whole; a sum or mean over a slice of one is an addend."""
    shape, part = shapes[0], parts[0]
    if repr(local) != repr(logical) or shape is None or part is None:
        return None
    dims = reduced_dims(logical["dim"], len(shape))
    shares: list[Share] = []
    coef = ONE
    for dim in dims:
        held, size = part[dim], shape[dim]
        if is_free(held):
            coef *= Fraction(length(held), size) if op == "sum" else 1
            if op not in ("sum", "mean", "amax", "amin"):
                return None
        elif held != whole(size):
            share = share_of(f"dim{dim}", size, held)
            if op not in ("sum", "mean") or not held or not distinct(held):
                return None
            if op == "mean":
                coef *= Fraction(size, length(held))
            if share is not None:
                shares.append(share)
    keep = logical.get("keepdim", False)
    region = tuple(
        whole(1) if dim in dims else ((0, length(index)),) if is_free(index) else index
        for dim, index in enumerate(part)
        if keep or dim not in dims
    )
    return [Derived(region, tuple(shares), coef)]


def rows(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Works along some dims, which must be whole and in order; the others only index rows."""
    if repr(local) != repr(logical):
        return None
    along = logical["dims"] if op in ("flip", "roll") else logical["dim"]
    first = parts[0]
    if first is None or shapes[0] is None or any(part != first for part in parts):
        return None
    if any(shape != shapes[0] for shape in shapes) or (op == "roll" and along == ()):
        return None
    dims = reduced_dims(along, len(shapes[0]))
    if any(first[dim] != whole(shapes[0][dim]) for dim in dims):
        return None
    return [
        Derived(tuple(whole(out[dim]) if dim in dims else index for dim, index in enumerate(first)))
        for out in outs
    ]


def norm(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Normalised dims whole, weight and bias too; the others only index rows."""
    first, shape = parts[0], shapes[0]
    if repr(local) != repr(logical) or first is None or shape is None:
        return None
    dims = range(len(shape) - len(logical["normalized_shape"]), len(shape))
    if any(first[dim] != whole(shape[dim]) for dim in dims):
        return None
    for part, size in zip(parts[1:], shapes[1:], strict=True):
        if part is not None and size is not None and part != whole_region(size):
            return None
    return [Derived(first)]


def attention(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Leading dims (batch, heads) agree; positions and features are whole."""
    if repr(local) != repr(logical) or logical["enable_gqa"] or (len(parts) > 3 and parts[3] is not None):
        return None
    lead: set[Region] = set()
    for part, shape in zip(parts[:3], shapes[:3], strict=True):
        if part is None or shape is None or part[-2:] != whole_region(shape[-2:]):
            return None
        lead.add(part[:-2])
    if len(lead) != 1 or len({len(shape or ()) for shape in shapes[:3]}) != 1:
        return None
    if len({(shape or ())[:-2] for shape in shapes[:3]}) != 1:
        return None
    return [Derived((*lead.pop(), *whole_region(outs[0][-2:])))]


def embedding(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """All rows of the table, any of its columns; any of the indices."""
    table, indices = parts[0], parts[1]
    if repr(local) != repr(logical) or table is None or indices is None or shapes[0] is None:
        return None
    if table[0] != whole(shapes[0][0]):
        return None
    return [Derived((*indices, *table[1:]))]


def contraction(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Sums of products, by letters."""
    if repr(local) != repr(logical):
        return None
    found = contract(op, logical, shapes, parts)
    return None if found is None else [Derived(*found)]


def window(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Convolution and pooling."""
    found = WINDOWS[op](op, local, logical, shapes, parts, outs[0])
    return None if found is None else [Derived(found[0], () if found[1] is None else (found[1],))]


def movement(
    op: str, local: Given, logical: Given, shapes: Shapes, parts: Parts, outs: Sequence[Shape]
) -> list[Derived] | None:
    """Elements change their place only."""
    region = MOVES[op](local, logical, shapes, parts, outs[0])
    return None if region is None else [Derived(region)]


RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(PER_CHANNEL, per_channel),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(ROWS, rows),
    **dict.fromkeys(NORMS, norm),
    **dict.fromkeys(TERMS, contraction),
    **dict.fromkeys(WINDOWS, window),
    **dict.fromkeys(MOVES, movement),
    **TRAINING,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
}
FREE_AWARE: Final = frozenset([elementwise, reduction, contraction])
