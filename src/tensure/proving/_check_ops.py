"""The checker's own op rules, backwards: what must operands be for a result to be this part of a value?

`shapes_of` gives the shapes of logical results; `follows` says whether an op on the given parts of logical
operands makes the claimed region (or addend) of one. Written apart from the prover's rules on purpose:
elementwise and contracted dims by demand, windows tap by tap, moves by the numbers of the elements. A part
of a dim along which an operand only repeats is `Anywhere`: it says how many, and nothing of where.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from ._check_index import EMPTY, FIRST, Anywhere, Index, all_of, joined
from ._check_moves import MOVES, filled_size, move_fits, moved_shape, repeats_moved
from ._check_piece import ONE, Piece, Reg, Shape
from ._check_piece import holds as _holds
from ._check_piece import whole as _whole
from ._check_training import TRAINING
from ._check_whole import WHOLE

RULES: Final = {**TRAINING, **WHOLE}

FLOATS: Final = frozenset({"f64", "f32", "f16", "bf16"})
ELEMENTWISE: Final = frozenset(
    "_to_copy abs acos acosh add add_n addcdiv addcmul asin asinh atan atanh bitwise_and "
    "bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp cos cosh div "
    "eq erf exp expm1 floor floor_divide fmod ge gelu gelu_backward gt hardsigmoid hardswish hardtanh "
    "hardtanh_backward integer_add isnan le leaky_relu log log1p log2 logical_and logical_not "
    "logical_or logical_xor lt masked_fill maximum minimum mul ne neg pow reciprocal relu remainder "
    "requantize round rsqrt rsub sigmoid sigmoid_backward sign silu silu_backward sin sinh softplus "
    "sqrt square sub tan tanh tanh_backward threshold_backward trunc where".split()
)
REDUCTIONS: Final = frozenset("sum mean amax amin logsumexp var any all argmax argmin prod".split())
ROWS: Final = frozenset(
    "softmax log_softmax _softmax _log_softmax cumsum _softmax_backward_data "
    "_log_softmax_backward_data".split()
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
AWARE: Final = ELEMENTWISE | REDUCTIONS | CONTRACTIONS | frozenset(["expand"])
WINDOWS: Final = frozenset(["convolution", "integer_convolution", "max_pool2d"])
OF_FIRST: Final = frozenset(
    "_log_softmax _log_softmax_backward_data _softmax _softmax_backward_data adaptive_avg_pool2d "
    "batch_norm constant_pad_nd convolution convolution_backward cumsum embedding "
    "embedding_dense_backward gather group_norm index index_add index_put index_select layer_norm "
    "log_softmax logsumexp mse_loss native_layer_norm nll_loss_backward prod rms_norm roll "
    "scaled_dot_product_attention scatter scatter_add scatter_reduce select_backward select_scatter "
    "slice_backward softmax tril triu var".split()
)
OTHER_DTYPE: Final = frozenset(
    "_to_copy bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq "
    "ge gt integer_add isnan le logical_and logical_not logical_or logical_xor lt ne requantize".split()
)
KEEPS_DTYPE: Final = (ELEMENTWISE - OTHER_DTYPE) | CONTRACTIONS | frozenset("sum mean amax amin".split())
"""Of floats of one dtype they make that one."""
KEEPS_INTEGERS: Final = frozenset(
    "abs add add_n amax amin clamp floor_divide fmod masked_fill maximum minimum mul neg relu "
    "remainder rsub sign square sub where".split()
)
"""Of integers of one dtype, and integer numbers, they make that one; a quotient or a root is a float."""
TRUTHS: Final = frozenset(
    "all any eq ge gt isnan le logical_and logical_not logical_or logical_xor lt ne".split()
)
BITWISE: Final = frozenset(["bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor"])
INTEGERS: Final = frozenset("u8 i8 i16 i32 i64".split())
DEFAULTS: Final[dict[str, Any]] = {
    "alpha": 1,
    "beta": 1,
    "keepdim": False,
    "rounding_mode": None,
    "groups": 1,
    "input_zero_point": 0,
    "dtype": None,
    "implicit": False,
    "sparse": False,
    "sparse_grad": False,
    "transposed": False,
    "half_to_float": False,
    "approximate": "none",
    "output_padding": (0,),
    "dilation": (1,),
    "step": 1,
    "cudnn_enable": True,
    "enable_gqa": False,
    "is_causal": False,
    "dropout_p": 0.0,
    "scale": None,
}
OWN_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "embedding": {"padding_idx": -1, "scale_grad_by_freq": False},
    "arange": {"start": 0},
    "slice_scatter": {"dim": 0, "start": None, "end": None},
    "slice": {"dim": 0, "start": None, "end": None},
    "mse_loss": {"reduction": 1},
    "cat": {"dim": 0},
    "stack": {"dim": 0},
    "tril": {"diagonal": 0},
    "triu": {"diagonal": 0},
    "constant_pad_nd": {"value": 0},
    "leaky_relu": {"negative_slope": 0.01},
    "softplus": {"beta": 1, "threshold": 20},
    "hardtanh": {"min_val": -1, "max_val": 1},
    "layer_norm": {"eps": 1e-05},
    "rms_norm": {"eps": None},
    "var": {"correction": None},
    "topk": {"dim": -1, "largest": True, "sorted": True},
    "sort": {"stable": None, "dim": -1, "descending": False},
    "convolution": {"stride": (1,), "padding": (0,)},
}
_FREE: Final = frozenset(["stride", "padding", "dilation", "groups"])


def clean(op: str, attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes without those that say what is meant anyway."""
    if not attrs:
        return {}
    known = {**DEFAULTS, **OWN_DEFAULTS.get(op, {})}
    return {key: at for key, at in attrs.items() if key not in known or repr(known[key]) != repr(at)}


def shapes_of(op: str, attrs: dict[str, Any], shapes: Sequence[Shape | None]) -> list[Shape] | None:
    """The shapes of a logical op's results; None for an op without a rule."""
    if op in RULES:
        return RULES[op].shapes(attrs, shapes)
    tensors = [shape for shape in shapes if shape is not None]
    if not tensors:
        return None
    first = tensors[0]
    if op in ELEMENTWISE:
        return [np.broadcast_shapes(*tensors)]
    if op in ROWS or op in NORMS:
        return [first]
    if op in REDUCTIONS:
        dims = _dims(attrs.get("dim"), len(first))
        keep = attrs.get("keepdim", False)
        return [tuple(1 if d in dims else n for d, n in enumerate(first) if keep or d not in dims)]
    if op in CONTRACTIONS:
        terms, out = letters(op, attrs, tensors)
        sizes = {
            c: n for term, shape in zip(terms, tensors, strict=True) for c, n in zip(term, shape, strict=True)
        }
        return [tuple(sizes[c] for c in out)]
    if op in WINDOWS:
        lead = first[: len(first) - 2] if op == "max_pool2d" else (first[0], tensors[1][0])
        if attrs.get("transposed"):
            lead = (first[0], tensors[1][1] * attrs.get("groups", 1))
        return [(*lead, *_counts(op, attrs, tensors))]
    if op == "embedding":
        return [(*tensors[1], first[1])]
    if op == "expand":
        return [filled_size(attrs["size"], first)]
    if op == "unsqueeze":
        dim = attrs["dim"] % (len(first) + 1)
        return [(*first[:dim], 1, *first[dim:])]
    if op == "squeeze":
        gone = {d % len(first) for d in attrs["dim"]}
        return [tuple(n for d, n in enumerate(first) if d not in gone or n != 1)]
    if op in MOVES and len(tensors) == len(shapes):
        shape = moved_shape(op, attrs, tensors)
        return None if shape is None else [shape]
    return None


def dtype_of(
    op: str, attrs: dict[str, Any], dtypes: Sequence[str | None], numbers: frozenset[str], at: int = 0
) -> str:
    """The dtype of an op's result `at`, "?" where the checker does not need to know.

    Args:
        dtypes: of operands that are tensors.
        numbers: the Python types of those that are numbers.
    """
    held = [dtype for dtype in dtypes if dtype is not None]
    if op in ("sort", "topk"):
        return "i64" if at else held[0]
    if isinstance(attrs.get("dtype"), str):
        return str(attrs["dtype"])
    if op in ("where", "nll_loss_forward") or (op == "masked_fill" and held):
        held = held[1:] if op == "where" else held[:1]
        return held[0] if len(set(held)) == 1 else "?"
    if op in OF_FIRST and held:
        return held[0] if held[0] in FLOATS else "?"
    if op in TRUTHS:
        return "bool"
    kinds, keeps = set(held), op in KEEPS_DTYPE or op in MOVES
    if op in ELEMENTWISE and len(kinds & FLOATS) == 1 and kinds - FLOATS <= INTEGERS | {"bool"}:
        kinds &= FLOATS  # integers beside floats become floats
    if len(kinds) == 1 and (kinds <= FLOATS or op in MOVES):
        return kinds.pop() if keeps else "?"
    if op in BITWISE and len(kinds) == 1:
        return held[0]
    if op in ("sum", "div") and kinds and kinds <= INTEGERS | {"bool"}:
        return "i64" if op == "sum" else "f32" if attrs.get("rounding_mode") is None else "?"
    stays = op in KEEPS_INTEGERS and len(kinds) == 1 and kinds <= INTEGERS and "float" not in numbers
    return held[0] if stays else "?"


def repeats(
    op: str, attrs: dict[str, Any], shapes: Sequence[Any], frees: Sequence[frozenset[int]], out: Shape
) -> frozenset[int]:
    """Along which dims a result only repeats, when its operands do along `frees`."""
    tensors = [(shape, free) for shape, free in zip(shapes, frees, strict=True) if shape is not None]
    made: set[int] = set()
    if op == "expand":
        shape, free = tensors[0]
        skip = len(out) - len(shape)
        for dim, n in enumerate(out):
            if dim < skip or dim - skip in free or (shape[dim - skip] == 1 and n != 1):
                made.add(dim)
    elif not any(free for _, free in tensors):
        return frozenset()
    elif op in ELEMENTWISE and op != "requantize":  # whose factors may go along a dim
        for dim, n in enumerate(out):
            own = [(shape, free, dim - len(out) + len(shape)) for shape, free in tensors]
            if all(d < 0 or d in free or (shape[d] == 1 and n != 1) for shape, free, d in own):
                made.add(dim)
    elif op in CONTRACTIONS and (op != "linear" or len(tensors) == 2):
        terms, letters_out = letters(op, attrs, [shape for shape, _ in tensors])
        for dim, letter in enumerate(letters_out):
            places = [
                (free, at)
                for term, (_, free) in zip(terms, tensors, strict=True)
                for at, c in enumerate(term)
                if c == letter
            ]
            if all(at in free for free, at in places):
                made.add(dim)
    elif op in ("permute", "view"):
        made = repeats_moved(op, attrs, *tensors[0], out)
    return frozenset(made)


def follows(p: Piece) -> Fraction | None:
    """The coefficient with which the op on the parts is that region (or addend); None when it is not."""
    parts = [(part, shape) for part, shape in zip(p.parts, p.shapes, strict=True) if part is not None]
    if not p.shares and p.reg == _whole(p.out) and all(part == _whole(shape) for part, shape in parts):
        if _same(p.mine, p.theirs, frozenset()):
            return ONE  # one function of the same operands
    if p.op == "expand":
        return _holds(not p.shares and _expand_fits(p))
    if p.op not in AWARE and any(isinstance(index, Anywhere) for part in p.parts for index in part or ()):
        # What only repeats stands anywhere: at the start, or where the result or another operand does.
        places = {index for part in (p.reg, *p.parts) for index in part or () if isinstance(index, Index)}
        stood = itertools.chain(
            (_standing(p, place) for place in (EMPTY, *sorted(places, key=repr))), [_beside(p)]
        )
        tries = (follows(piece) for piece in stood if _inside(piece))
        return next((found for found in tries if found is not None), None)
    if p.op in MOVES:
        return _holds(not p.shares and move_fits(p))
    if p.op in RULES:
        return RULES[p.op].follows(p)
    if not _same(p.mine, p.theirs, _FREE if p.op in WINDOWS else frozenset()):
        return None
    if p.op in CONTRACTIONS:
        return _contraction_fits(p)
    if p.op in REDUCTIONS:
        return _reduction_fits(p)
    if p.op in ELEMENTWISE:
        plain = not p.shares and (p.op != "requantize" or p.theirs.get("axis") is None)
        pairs = [(part, shape) for part, shape in zip(p.parts, p.shapes, strict=True) if part is not None]
        return _holds(plain and all(_agree(part, _demand(shape, p.out, p.reg)) for part, shape in pairs))
    if p.op in WINDOWS:
        return _holds(_window_fits(p))
    if p.shares:
        return None
    first, size = p.parts[0], p.shapes[0]
    if p.op in ROWS:
        (dim,) = _dims(p.theirs["dim"], len(size))
        return _holds(all(part == p.reg for part in p.parts) and p.reg[dim].is_whole(size[dim]))
    if p.op in NORMS:
        tail = range(len(size) - len(p.theirs["normalized_shape"]), len(size))
        rest = zip(p.parts[1:], p.shapes[1:], strict=True)
        whole = all(part is None or part == _whole(shape) for part, shape in rest)
        return _holds(whole and first == p.reg and all(p.reg[d].is_whole(size[d]) for d in tail))
    if p.op == "embedding":
        return _holds(first[0].is_whole(size[0]) and p.reg == (*p.parts[1], first[1]))
    return None


def _standing(p: Piece, place: Index) -> Piece:
    """Parts that stand anywhere put at a place of their length, or at the start."""
    parts = [
        None
        if part is None
        else tuple(
            index if isinstance(index, Index) else place if len(place) == len(index) else _start(index)
            for index in part
        )
        for part in p.parts
    ]
    return replace(p, parts=parts)


def _beside(p: Piece) -> Piece:
    """Parts that stand anywhere put where the result stands along the same dim, if it is as long there."""
    parts = [
        None
        if part is None
        else tuple(
            index
            if isinstance(index, Index)
            else p.reg[dim]
            if dim < len(p.reg) and isinstance(p.reg[dim], Index) and len(p.reg[dim]) == len(index)
            else _start(index)
            for dim, index in enumerate(part)
        )
        for part in p.parts
    ]
    return replace(p, parts=parts)


def _start(index: Any) -> Any:
    """What stands anywhere put at the start; any other part as it is."""
    return all_of(len(index)) if isinstance(index, Anywhere) else index


def _inside(p: Piece) -> bool:
    return all(
        index.stop <= n
        for part, shape in zip(p.parts, p.shapes, strict=True)
        if part is not None
        for index, n in zip(part, shape, strict=True)
    )


def _agree(part: Sequence[Any], wanted: Reg) -> bool:
    return len(part) == len(wanted) and all(
        len(one) == len(other) if isinstance(one, Anywhere) else one == other
        for one, other in zip(part, wanted, strict=True)
    )


def _expand_fits(p: Piece) -> bool:
    part, shape = p.parts[0], p.shapes[0]
    skip, made = len(p.out) - len(shape), filled_size(p.mine["size"], tuple(map(len, part)))
    if len(made) != len(p.out) or tuple(map(len, p.reg)) != made:
        return False
    for dim, index in enumerate(p.reg):
        if dim >= skip and shape[dim - skip] == p.out[dim]:
            if not _agree((part[dim - skip],), (index,)):
                return False
        elif dim >= skip and _start(part[dim - skip]) != FIRST:
            return False
    return True


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


def extent(op: str, attrs: dict[str, Any], shapes: Sequence[Shape | None], letter: str) -> int | None:
    """The size of a dim that a value's op sums over; None when it has no such dim."""
    if op in RULES:
        return RULES[op].letters(attrs, shapes).get(letter)
    tensors = [shape for shape in shapes if shape is not None]
    if op in ("sum", "mean") and letter in [f"dim{d}" for d in _dims(attrs.get("dim"), len(tensors[0]))]:
        return tensors[0][int(letter[3:])]
    if op == "sum" and letter == "flat" and len(_dims(attrs.get("dim"), len(tensors[0]))) == len(tensors[0]):
        return math.prod(tensors[0])  # all elements, counted row by row
    if op == "embedding" and letter == "v":
        return tensors[0][0]
    if op == "convolution" and letter == "c" and attrs.get("groups", 1) == 1 and len(tensors) == 2:
        return tensors[0][1]
    if op in CONTRACTIONS and len(letter) == 1 and not (op == "linear" and len(tensors) == 3):
        terms, out = letters(op, attrs, tensors)
        if letter not in out and op != "integer_linear":
            return next(
                (s[t.index(letter)] for t, s in zip(terms, tensors, strict=True) if letter in t), None
            )
    return None


def _same(mine: dict[str, Any], theirs: dict[str, Any], free: frozenset[str]) -> bool:
    if mine.keys() == theirs.keys() and all(type(at) is str and at == theirs[k] for k, at in mine.items()):
        return True  # texts, or no attributes at all: most steps
    one, other = ({**DEFAULTS, **clean("", attrs), **dict.fromkeys(free)} for attrs in (mine, theirs))
    return repr(sorted(one.items())) == repr(sorted(other.items()))


def _dims(dim: Any, rank: int) -> list[int]:
    if dim is None or dim == ():
        return list(range(rank))
    return sorted({d % rank for d in (dim if isinstance(dim, tuple) else (dim,))})


def _demand(shape: Shape, out: Shape, reg: Reg) -> Reg:
    """The part of a broadcast operand that a region of the result is made from."""
    skip = len(out) - len(shape)
    return tuple(reg[skip + d] if n == out[skip + d] else FIRST for d, n in enumerate(shape))


def _reduction_fits(p: Piece) -> Fraction | None:
    part, size = p.parts[0], p.shapes[0]
    dims, keep = _dims(p.theirs.get("dim"), len(size)), p.theirs.get("keepdim", False)
    made = tuple(FIRST if d in dims else index for d, index in enumerate(part) if keep or d not in dims)
    if not _agree(made, p.reg) or any(
        isinstance(m, Anywhere) and r != _start(m) for m, r in zip(made, p.reg, strict=True)
    ):
        return None
    coef, shares = Fraction(1), dict(p.shares)
    for dim in dims:
        held, n = part[dim], size[dim]
        if isinstance(held, Anywhere):
            if p.op not in ("sum", "mean", "amax", "amin") or not n or not held:
                return None
            coef *= Fraction(len(held), n) if p.op == "sum" else 1
            continue
        cut = shares.pop(f"dim{dim}", None)
        if cut is None:
            if not (held.reorders(all_of(n)) if p.op in ("sum", "mean") else held.is_whole(n)):
                return None
        elif p.op not in ("sum", "mean") or not held or not held.reorders(cut):
            return None
        else:
            coef *= Fraction(n, len(held)) if p.op == "mean" else 1
    return coef if not shares else None


def _contraction_fits(p: Piece) -> Fraction | None:
    pairs = [(shape, part) for shape, part in zip(p.shapes, p.parts, strict=True) if part is not None]
    terms, out = letters(p.op, p.theirs, [shape for shape, _ in pairs])
    plain = p.op == "integer_linear" or (p.op == "linear" and len(pairs) == 3)
    wanted, sizes, anywhere = dict(zip(out, p.reg, strict=True)), dict[str, int](), dict[str, int]()
    stands: dict[str, Index] = {}
    for term, (shape, part) in zip(terms, pairs, strict=True):
        for letter, n, index in zip(term, shape, part, strict=True):
            if sizes.setdefault(letter, n) != n:
                return None
            if isinstance(index, Anywhere):
                if anywhere.setdefault(letter, len(index)) != len(index):
                    return None
            elif stands.setdefault(letter, index) != index:
                return None
    coef, shares = ONE, dict(p.shares)
    for letter, n in sizes.items():
        index = stands.get(letter, all_of(anywhere.get(letter, 0)))
        if anywhere.get(letter, len(index)) != len(index):
            return None
        if letter in wanted:
            if wanted[letter] != index:
                return None
            continue
        cut = shares.pop(letter, None)
        if letter not in stands:
            coef *= Fraction(len(index), n)
        elif not index.reorders(all_of(n) if cut is None else cut):
            return None
        if cut is not None and (plain or letter not in stands):
            return None
    return None if shares or (plain and coef != 1) else coef


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


def _counts(op: str, attrs: dict[str, Any], shapes: Sequence[Any]) -> list[int]:
    """How many windows there are along each spatial dim; places of the result, if it is transposed."""
    walks = _walks(op, attrs, shapes)
    sizes = shapes[0][-len(walks) :]
    if attrs.get("transposed"):
        extra = _each(attrs.get("output_padding", (0,)), len(walks))
        return [
            (n - 1) * stride + (kernel - 1) * dilation + 1 - before - after + more
            for n, more, (kernel, stride, dilation, before, after) in zip(sizes, extra, walks, strict=True)
        ]
    counts = [_count(walk, n) for walk, n in zip(walks, sizes, strict=True)]
    if attrs.get("ceil_mode"):  # one more that goes over the end, if it starts before it
        for d, (n, (kernel, stride, dilation, before, after)) in enumerate(zip(sizes, walks, strict=True)):
            over = (n + before + after - (kernel - 1) * dilation - 1) % stride > 0
            counts[d] += over and counts[d] * stride < n + before
    return counts


def _window_fits(p: Piece) -> bool:
    if p.theirs.get("transposed") or p.theirs.get("ceil_mode"):
        return False
    ones, others = _walks(p.op, p.mine, p.shapes), _walks(p.op, p.theirs, p.shapes)
    x, full = p.parts[0], p.shapes[0]
    lead = len(full) - len(ones)
    for one, other, held, size, rows in zip(ones, others, x[lead:], full[lead:], p.reg[lead:], strict=True):
        if one[:3] != other[:3] or len(rows) != _count(one, len(held)):
            return False
        there = held.members()
        for (at, row), tap in itertools.product(enumerate(rows.members()), range(one[0])):
            local, whole = at * one[1] + tap * one[2] - one[3], row * other[1] + tap * other[2] - other[3]
            if (there[local] if 0 <= local < len(there) else None) != (whole if 0 <= whole < size else None):
                return False
    if p.op == "max_pool2d":
        return not p.shares and bool(x[:lead] == p.reg[:lead])
    weight, bias = p.parts[1], p.parts[2] if len(p.parts) > 2 else None
    fits = (
        weight[2:] == _whole(p.shapes[1][2:])
        and (x[0], weight[0]) == p.reg[:2]
        and bias in (None, (p.reg[1],))
    )
    groups, mine = p.theirs.get("groups", 1), p.mine.get("groups", 1)
    if groups == 1:
        whole = not p.shares and x[1].reorders(all_of(full[1]))
        cut = p.shares.get("c")
        addend = cut is not None and len(p.shares) == 1 and x[1].reorders(cut)
        addend = addend and p.op == "convolution" and bias is None
        return bool(fits and mine == 1 and x[1] == weight[1] and (whole or addend))
    inside, made = full[1] // groups, p.out[1] // groups
    # Whole groups, in one order on both sides: group g of the local op is group of[g] of the logical one.
    of = [c // inside for c in x[1][::inside].members()]
    return bool(
        fits
        and not p.shares
        and weight[1].is_whole(p.shapes[1][1])
        and len(of) == mine
        and x[1] == joined((g * inside, g * inside + inside) for g in of)
        and p.reg[1] == joined((g * made, g * made + made) for g in of)
    )
