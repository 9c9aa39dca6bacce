"""The checker's own op rules, backwards: what must operands be for a result to be this part of a value?

`shape_of` gives the shape of a logical result; `follows` says whether an op on the given parts of logical
operands makes the claimed region (or addend) of it. Written apart from the prover's rules on purpose:
elementwise and contracted dims by demand, windows tap by tap, moves on the numbers of the elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

Reg: TypeAlias = tuple[tuple[int, ...], ...]
Shape: TypeAlias = tuple[int, ...]
MAX_MOVED: Final = 1 << 22
FLOATS: Final = frozenset({"f64", "f32", "f16", "bf16"})
ELEMENTWISE: Final = frozenset(
    "abs add add_n addcmul addcdiv ceil clamp cos div eq erf exp expm1 floor gelu gelu_backward ge gt "
    "hardsigmoid hardswish hardtanh integer_add le leaky_relu log log1p log2 logical_and logical_not "
    "logical_or lt masked_fill maximum minimum mul ne neg pow reciprocal relu requantize round rsqrt rsub "
    "sigmoid sigmoid_backward sign silu silu_backward sin softplus sqrt square sub tan tanh tanh_backward "
    "threshold_backward where _to_copy".split()
)
REDUCTIONS: Final = frozenset(["sum", "mean", "amax", "amin", "logsumexp", "var"])
ROWS: Final = frozenset(
    ["softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "_softmax_backward_data"]
)
PRODUCTS: Final = {
    "mm": "mk,kn->mn",
    "bmm": "bmk,bkn->bmn",
    "mv": "mk,k->m",
    "dot": "k,k->",
    "outer": "m,n->mn",
}
CONTRACTIONS: Final = frozenset([*PRODUCTS, "einsum", "linear", "integer_linear", "matmul"])
NORMS: Final = frozenset(["rms_norm", "layer_norm"])
WINDOWS: Final = frozenset(["convolution", "integer_convolution", "max_pool2d"])
SUMS: Final = frozenset(["add", "sub", "rsub", "add_n", "neg", "mul", "div"])
OTHER_DTYPE: Final = frozenset(
    "eq ge gt le lt ne logical_and logical_not logical_or _to_copy requantize integer_add".split()
)
KEEPS_DTYPE: Final = (ELEMENTWISE - OTHER_DTYPE) | CONTRACTIONS | frozenset(["sum", "mean", "amax", "amin"])
MOVES: Final[dict[str, Callable[[list[Any], dict[str, Any]], Any]]] = {
    "view": lambda x, a: x[0].reshape(a["size"]),
    "reshape": lambda x, a: x[0].reshape(a["shape"]),
    "permute": lambda x, a: x[0].transpose(a["dims"]),
    "transpose": lambda x, a: x[0].swapaxes(a["dim0"], a["dim1"]),
    "t": lambda x, a: x[0].T,
    "unsqueeze": lambda x, a: np.expand_dims(x[0], a["dim"]),
    "select": lambda x, a: x[0].take(a["index"], axis=a["dim"]),
    "cat": lambda x, a: np.concatenate(x, axis=a.get("dim", 0)),
    "stack": lambda x, a: np.stack(x, axis=a.get("dim", 0)),
    "expand": lambda x, a: np.broadcast_to(x[0], _filled(a["size"], x[0].shape)),
    "slice_scatter": lambda x, a: _scattered(x[0], x[1], a),
}
DEFAULTS: Final = {"alpha": 1, "keepdim": False, "rounding_mode": None, "groups": 1, "input_zero_point": 0}
_FREE: Final = frozenset(["stride", "padding", "dilation", "groups"])


def shape_of(op: str, attrs: dict[str, Any], shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape of a logical result; None for an op without a rule."""
    tensors = [shape for shape in shapes if shape is not None]
    if not tensors:
        return None
    first = tensors[0]
    if op in ELEMENTWISE:
        return np.broadcast_shapes(*tensors)
    if op in ROWS or op in NORMS:
        return first
    if op in REDUCTIONS:
        dims = _dims(attrs.get("dim"), len(first))
        keep = attrs.get("keepdim", False)
        return tuple(1 if d in dims else n for d, n in enumerate(first) if keep or d not in dims)
    if op in CONTRACTIONS:
        terms, out = letters(op, attrs, tensors)
        sizes = {
            c: n for term, shape in zip(terms, tensors, strict=True) for c, n in zip(term, shape, strict=True)
        }
        return tuple(sizes[c] for c in out)
    if op in WINDOWS:
        walks = _walks(op, attrs, tensors)
        lead = first[: len(first) - len(walks)] if op == "max_pool2d" else (first[0], tensors[1][0])
        return (*lead, *(_count(walk, n) for walk, n in zip(walks, first[-len(walks) :], strict=True)))
    if op == "embedding":
        return (*tensors[1], first[1])
    if op in MOVES:
        return tuple(_moved(op, attrs, shapes, [_whole(shape) for shape in tensors]).shape)
    return None


@dataclass(frozen=True, slots=True)
class Piece:
    """A local op beside the logical op it is claimed to be a piece of.

    `parts` are the regions of the logical operands (of `shapes`) that the local op reads, `reg` the region of
    the logical result (of shape `out`) it is to make, `share` the addend: (contracted letter, slice of it).
    """

    op: str
    mine: dict[str, Any]
    theirs: dict[str, Any]
    shapes: Sequence[Any]
    parts: Sequence[Any]
    out: Shape
    reg: Reg
    share: tuple[str, tuple[int, ...]] | None


def follows(p: Piece) -> Fraction | None:
    """The coefficient with which the op on the parts is that region (or addend); None when it is not."""
    if p.op in MOVES:
        return _holds(p.share is None and _move_fits(p))
    if not _same(p.mine, p.theirs, _FREE if p.op in WINDOWS else frozenset()):
        return None
    if p.op in WINDOWS:
        return _holds(_window_fits(p))
    if p.op in CONTRACTIONS:
        return _holds(_contraction_fits(p))
    if p.op in REDUCTIONS:
        return _reduction_fits(p)
    if p.share is not None:
        return None
    first, size = p.parts[0], p.shapes[0]
    if p.op in ELEMENTWISE:
        plain = p.op != "requantize" or p.theirs.get("axis") is None
        pairs = [(part, shape) for part, shape in zip(p.parts, p.shapes, strict=True) if part is not None]
        return _holds(plain and all(part == _demand(shape, p.out, p.reg) for part, shape in pairs))
    if p.op in ROWS:
        (dim,) = _dims(p.theirs["dim"], len(size))
        return _holds(all(part == p.reg for part in p.parts) and p.reg[dim] == tuple(range(size[dim])))
    if p.op in NORMS:
        tail = range(len(size) - len(p.theirs["normalized_shape"]), len(size))
        rest = zip(p.parts[1:], p.shapes[1:], strict=True)
        whole = all(part is None or part == _whole(shape) for part, shape in rest)
        return _holds(whole and first == p.reg and all(p.reg[d] == tuple(range(size[d])) for d in tail))
    if p.op == "embedding":
        return _holds(first[0] == tuple(range(size[0])) and p.reg == (*p.parts[1], first[1]))
    return None


def signs(op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> list[Fraction] | None:
    """The coefficients of a linear op's tensors; None where it is none."""
    tensors = [item for item in operands if is_tensor(item)]
    if op not in SUMS or not tensors:
        return None
    if op in ("mul", "div"):
        number = next((_value(item) for item in operands if not is_tensor(item)), None)
        if len(tensors) != 1 or number is None or attrs.get("rounding_mode") is not None:
            return None
        if op == "div":
            return [1 / number] if is_tensor(operands[0]) and number else None
        return [number]
    alpha = _value(attrs.get("alpha", 1))
    if len(tensors) != len(operands) or alpha is None:
        return None
    one = Fraction(1)
    known = {"add": [one, alpha], "sub": [one, -alpha], "rsub": [-alpha, one], "neg": [-one]}
    return known.get(op, [one] * len(tensors))


def is_tensor(item: Any) -> bool:
    """A relation or a (class, region) pair, and not a number."""
    return isinstance(item, tuple) and item[0] != "number"


def letters(op: str, attrs: dict[str, Any], shapes: Sequence[Any]) -> tuple[list[str], str]:
    """The letters of a contraction's operands and of its result."""
    if op in ("einsum", *PRODUCTS):
        left, out = (attrs["equation"] if op == "einsum" else PRODUCTS[op]).split("->")
        return left.split(","), out
    rows = "abcdefgh"[: len(shapes[0]) - 1]
    if op in ("linear", "integer_linear"):
        return [f"{rows}k", "nk", "n"][: len(shapes)], f"{rows}n"
    stack = rows[:-1] if len(shapes[1]) > 2 else ""
    return [f"{rows}k", f"{stack}kn"], f"{rows}n"


def extent(op: str, attrs: dict[str, Any], shapes: Sequence[Shape], letter: str) -> int | None:
    """The size of a dim that a value's op sums over; None when it has no such dim."""
    if op in ("sum", "mean") and letter in [f"dim{d}" for d in _dims(attrs.get("dim"), len(shapes[0]))]:
        return shapes[0][int(letter[3:])]
    if op == "convolution" and letter == "c" and attrs.get("groups", 1) == 1:
        return shapes[0][1]
    if op in CONTRACTIONS and len(letter) == 1:
        terms, out = letters(op, attrs, shapes)
        if letter not in out:
            return next((s[t.index(letter)] for t, s in zip(terms, shapes, strict=True) if letter in t), None)
    return None


def _holds(so: bool) -> Fraction | None:
    return Fraction(1) if so else None


def _value(item: Any) -> Fraction | None:
    if isinstance(item, tuple) and item[:1] == ("number",) and item[1] in ("int", "float"):
        item = float(item[2]) if item[1] == "float" else int(item[2])
    number = isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
    return Fraction(item) if number else None


def _same(mine: dict[str, Any], theirs: dict[str, Any], free: frozenset[str]) -> bool:
    one, other = ({**DEFAULTS, **attrs, **dict.fromkeys(free)} for attrs in (mine, theirs))
    return repr(sorted(one.items())) == repr(sorted(other.items()))


def _whole(shape: Shape) -> Reg:
    return tuple(tuple(range(n)) for n in shape)


def _dims(dim: Any, rank: int) -> list[int]:
    if dim is None or dim == ():
        return list(range(rank))
    return sorted({d % rank for d in (dim if isinstance(dim, tuple) else (dim,))})


def _demand(shape: Shape, out: Shape, reg: Reg) -> Reg:
    """The part of a broadcast operand that a region of the result is made from."""
    skip = len(out) - len(shape)
    return tuple(reg[skip + d] if n == out[skip + d] else (0,) for d, n in enumerate(shape))


def _reduction_fits(p: Piece) -> Fraction | None:
    part, size = p.parts[0], p.shapes[0]
    dims, keep = _dims(p.theirs.get("dim"), len(size)), p.theirs.get("keepdim", False)
    if p.reg != tuple((0,) if d in dims else index for d, index in enumerate(part) if keep or d not in dims):
        return None
    rest, coef = {f"dim{d}": (part[d], size[d]) for d in dims}, Fraction(1)
    if p.share is not None:
        index, whole = rest.pop(p.share[0], (None, 0))
        if p.op not in ("sum", "mean") or index != p.share[1]:
            return None
        coef = Fraction(whole, len(index)) if p.op == "mean" else coef
    return coef if all(index == tuple(range(n)) for index, n in rest.values()) else None


def _contraction_fits(p: Piece) -> bool:
    pairs = [(shape, part) for shape, part in zip(p.shapes, p.parts, strict=True) if part is not None]
    terms, out = letters(p.op, p.theirs, [shape for shape, _ in pairs])
    if p.share is not None and (p.op == "integer_linear" or (p.op == "linear" and len(pairs) == 3)):
        return False
    held = dict(zip(out, p.reg, strict=True))
    for term, (shape, part) in zip(terms, pairs, strict=True):
        for letter, size, index in zip(term, shape, part, strict=True):
            if held.setdefault(letter, index) != index:
                return False
            cut = p.share is not None and letter == p.share[0]
            if letter not in out and sorted(index) != (
                sorted(p.share[1]) if cut and p.share else list(range(size))
            ):
                return False
    return p.share is None or (p.share[0] in held and p.share[0] not in out)


def _walks(op: str, attrs: dict[str, Any], shapes: Sequence[Any]) -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, dilation, before, after) of every spatial dim."""
    kernel = _each(attrs["kernel_size"], 2) if op == "max_pool2d" else tuple(shapes[1][2:])
    count = len(kernel)
    stride = _each(attrs.get("stride") or (kernel if op == "max_pool2d" else (1,)), count)
    dilation, padding = _each(attrs.get("dilation", (1,)), count), attrs.get("padding", (0,))
    pads = padding if len(padding) == 2 * count else [p for p in _each(padding, count) for _ in range(2)]
    return [(kernel[d], stride[d], dilation[d], pads[2 * d], pads[2 * d + 1]) for d in range(count)]


def _each(values: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(values) * count if len(values) == 1 else tuple(values)


def _count(walk: tuple[int, int, int, int, int], size: int) -> int:
    kernel, stride, dilation, before, after = walk
    return (size + before + after - (kernel - 1) * dilation - 1) // stride + 1


def _window_fits(p: Piece) -> bool:
    if p.theirs.get("transposed") or p.theirs.get("ceil_mode"):
        return False
    ones, others = _walks(p.op, p.mine, p.shapes), _walks(p.op, p.theirs, p.shapes)
    x, full = p.parts[0], p.shapes[0]
    lead = len(full) - len(ones)
    for one, other, held, size, rows in zip(ones, others, x[lead:], full[lead:], p.reg[lead:], strict=True):
        if one[:3] != other[:3] or len(rows) != _count(one, len(held)):
            return False
        for (at, row), tap in itertools.product(enumerate(rows), range(one[0])):
            local, whole = at * one[1] + tap * one[2] - one[3], row * other[1] + tap * other[2] - other[3]
            if (held[local] if 0 <= local < len(held) else None) != (whole if 0 <= whole < size else None):
                return False
    if p.op == "max_pool2d":
        return p.share is None and bool(x[:lead] == p.reg[:lead])
    weight, bias = p.parts[1], p.parts[2] if len(p.parts) > 2 else None
    fits = (
        weight[2:] == _whole(p.shapes[1][2:])
        and (x[0], weight[0]) == p.reg[:2]
        and bias in (None, (p.reg[1],))
    )
    groups, mine = p.theirs.get("groups", 1), p.mine.get("groups", 1)
    if groups == 1:
        whole = p.share is None and x[1] == tuple(range(full[1]))
        addend = p.share == ("c", x[1]) and p.op == "convolution" and bias is None
        return bool(fits and mine == 1 and x[1] == weight[1] and (whole or addend))
    inside, made = full[1] // groups, p.out[1] // groups
    # Whole groups, in one order on both sides: group g of the local op is group of[g] of the logical one.
    of = [c // inside for c in x[1][::inside]]
    return bool(
        fits
        and p.share is None
        and weight[1] == tuple(range(p.shapes[1][1]))
        and len(of) == mine
        and x[1] == tuple(g * inside + c for g in of for c in range(inside))
        and p.reg[1] == tuple(g * made + c for g in of for c in range(made))
    )


def _filled(size: Sequence[int], shape: Shape) -> Shape:
    skip = len(size) - len(shape)
    return tuple(shape[d - skip] if n == -1 else n for d, n in enumerate(size))


def _scattered(target: Any, source: Any, attrs: dict[str, Any]) -> Any:
    made, dim = target.copy(), attrs.get("dim", 0) % target.ndim
    part = slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))
    made[(slice(None),) * dim + (part,)] = source
    return made


def _moved(op: str, attrs: dict[str, Any], shapes: Sequence[Shape | None], parts: Sequence[Any]) -> Any:
    """The op done on the numbers of the elements: operand i's start after those of operand i-1."""
    numbers, start = [], 0
    for shape, part in zip(shapes, parts, strict=True):
        if shape is None or start + math.prod(shape) > MAX_MOVED:
            raise ValueError("a move too large, or of a number")
        numbers.append((np.arange(math.prod(shape)).reshape(shape) + start)[np.ix_(*part)])
        start += math.prod(shape)
    return MOVES[op](numbers, attrs)


def _move_fits(p: Piece) -> bool:
    whole = _moved(p.op, p.theirs, p.shapes, [_whole(shape) for shape in p.shapes])
    return bool(np.array_equal(whole[np.ix_(*p.reg)], _moved(p.op, p.mine, p.shapes, p.parts)))
