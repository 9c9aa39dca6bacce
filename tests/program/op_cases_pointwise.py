"""Calls of elementwise ops and reductions that the op and ATen both accept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.program._dtypes import numpy_dtype

from .op_draws import (
    ANY,
    FLOATS,
    INTEGERS,
    NUMBERS,
    Case,
    Draw,
    case,
    dim,
    dims,
    flag,
    is_float,
    number,
    one,
    pair,
    partner,
    random,
    shape,
    small,
    tensor,
)

# --- elementwise ----------------------------------------------------------------------------------


@case(*"exp expm1 log log1p log2 sqrt rsqrt reciprocal sin cos tan sigmoid tanh erf".split())
@case(*"acos asin atan cosh sinh acosh asinh atanh".split())
@case("logical_not", "isnan")
def _unary(draw: Draw) -> Case:
    return Case([tensor(draw, shape(draw), one(draw, ANY), specials=True)], slack=4)


@case("copy", "t")
def _plain(draw: Draw) -> Case:
    return Case([tensor(draw, shape(draw, 0, 2), one(draw, ANY), specials=True)])


@case(*"neg abs sign floor ceil round trunc square relu".split())
def _signed(draw: Draw) -> Case:
    return Case([tensor(draw, shape(draw), one(draw, NUMBERS), specials=True)])


@case("silu", "hardswish", "hardsigmoid")
def _float(draw: Draw) -> Case:
    return Case([tensor(draw, shape(draw), one(draw, FLOATS), low=-9, high=9)], slack=2)


@case("gelu")
def _gelu(draw: Draw) -> Case:
    return Case(
        [tensor(draw, shape(draw), one(draw, FLOATS))], {"approximate": one(draw, ["none", "tanh"])}, slack=2
    )


@case("leaky_relu")
def _leaky(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, FLOATS), specials=True)
    return Case([x], {"negative_slope": one(draw, [0.01, 0.25, 2])})


@case("softplus")
def _softplus(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, FLOATS), low=-30, high=30)
    return Case([x], {"beta": one(draw, [1, 0.5, 2.0]), "threshold": one(draw, [20, 3.0])}, slack=2)


@case("hardtanh")
def _hardtanh(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, [*FLOATS, "i32", "i64", "i8"]), specials=True)
    low = small(draw, -3, 1)
    return Case([x], {"min_val": low, "max_val": low + small(draw, 0, 6)})


@case("bitwise_not")
def _bits(draw: Draw) -> Case:
    return Case([tensor(draw, shape(draw), one(draw, [*INTEGERS, "bool"]))])


@case("_to_copy")
def _to_copy(draw: Draw) -> Case:
    source, target = one(draw, ANY), one(draw, [*ANY, None])
    wide = 100 if target in INTEGERS or source in INTEGERS else 1e4
    unsigned = target == "u8" or source == "u8"
    x = tensor(
        draw,
        shape(draw),
        source,
        low=0 if unsigned else -wide,
        high=wide,
        specials=target in [*FLOATS, "bool"],
    )
    return Case([x], {"dtype": target})


def two(draw: Draw, dtypes: list[str], *, numbers: bool = True, low: float = -4) -> list[Any]:
    """Two operands of their own shapes and dtypes; the second may be a number."""
    a, b = pair(draw)
    first = one(draw, dtypes)
    left = tensor(draw, a, first, low=low, specials=True)
    if numbers and flag(draw):
        return [left, number(draw, first if first == "u8" else None)]
    second = one(draw, dtypes) if flag(draw) else first
    return [left, tensor(draw, b, second, low=low, specials=True)]


@case("add", "sub", "rsub")
def _add(draw: Draw) -> Case:
    args = two(draw, NUMBERS)
    whole = not any(map(is_float, args))
    return Case(args, {"alpha": one(draw, [1, 2, 3] if whole else [1, 2, 0.5])}, slack=4)


@case("mul", *"eq ne lt le gt ge".split())
def _mul(draw: Draw) -> Case:
    return Case(two(draw, ANY))


@case("maximum", "minimum", "logical_and", "logical_or", "logical_xor")
def _maximum(draw: Draw) -> Case:
    return Case(two(draw, ANY, numbers=False))


@case("bitwise_and", "bitwise_or", "bitwise_xor")
def _bitwise(draw: Draw) -> Case:
    dtypes = one(draw, [INTEGERS, ["bool"]])
    args = two(draw, dtypes, numbers=False)
    return Case(args)


@case("bitwise_left_shift", "bitwise_right_shift")
def _shift(draw: Draw) -> Case:
    a, b = pair(draw)
    left = tensor(draw, a, one(draw, INTEGERS), low=-100, high=100)
    amount = tensor(draw, b, one(draw, INTEGERS), low=-70 if flag(draw) else 0, high=70)
    return Case([left, amount if flag(draw) else small(draw, 0, 9)])


def divided(draw: Draw, dtypes: list[str]) -> list[Any]:
    """Two operands, the second without zeros where the result is an integer."""
    left, right = two(draw, dtypes)
    if not is_float(left) and not is_float(right):
        right = (
            np.where(right == 0, 3, right).astype(right.dtype)
            if isinstance(right, np.ndarray)
            else right or 3
        )
    return [left, right]


@case("div")
def _div(draw: Draw) -> Case:
    mode = one(draw, [None, "floor", "trunc"])
    return Case(divided(draw, NUMBERS), {"rounding_mode": mode})


@case("floor_divide", "remainder", "fmod")
def _modulo(draw: Draw) -> Case:
    return Case(divided(draw, NUMBERS))


@case("pow")
def _pow(draw: Draw) -> Case:
    if flag(draw):
        args = two(draw, FLOATS)
        return Case(args if flag(draw) else [number(draw) or 2, args[0]], slack=40)
    x = tensor(draw, shape(draw), one(draw, INTEGERS), low=-2, high=2)
    return Case([x, small(draw, 0, 4) if flag(draw) else tensor(draw, x.shape, "i32", low=0)])


@case("where")
def _where(draw: Draw) -> Case:
    mask = tensor(draw, shape(draw), "bool")
    sides = [
        number(draw)
        if flag(draw) and flag(draw)
        else tensor(draw, partner(draw, mask.shape), one(draw, ANY), specials=True)
        for _ in range(2)
    ]
    return Case([mask, *sides])


@case("masked_fill")
def _masked_fill(draw: Draw) -> Case:
    a, b = pair(draw)
    dtype = one(draw, ANY)
    value = number(draw, dtype)
    if dtype in FLOATS and flag(draw):
        value = one(draw, [-math.inf, tensor(draw, (), dtype)])
    return Case([tensor(draw, a, dtype, specials=True), tensor(draw, b, "bool"), value])


@case("clamp")
def _clamp(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, NUMBERS), specials=True)
    if flag(draw):
        bounds: list[Any] = [number(draw, "u8" if x.dtype == np.uint8 else None), number(draw, "u8")]
        if x.dtype.kind in "iu":
            bounds = [int(bound) for bound in bounds]
    else:
        dtype = one(draw, NUMBERS)
        bounds = [tensor(draw, partner(draw, x.shape), dtype) for _ in range(2)]
    gone = small(draw, 0, 4)
    return Case([x, *(None if at == gone else bound for at, bound in enumerate(bounds))])


@case("addcmul", "addcdiv")
def _addcmul(draw: Draw) -> Case:
    size = shape(draw)
    dtype = one(draw, ["f32", "f64"])
    args = [
        tensor(draw, size, dtype),
        tensor(draw, partner(draw, size), dtype),
        tensor(draw, size, dtype, low=0.5),
    ]
    return Case(args, {"value": one(draw, [1, 0.5, -2])}, slack=4)


@case("add_n")
def _add_n(draw: Draw) -> Case:
    size, dtype = shape(draw), one(draw, FLOATS)
    return Case([tensor(draw, size, dtype) for _ in range(small(draw, 1, 4))], slack=2)


# --- reductions -----------------------------------------------------------------------------------


@case("sum", "any", "all")
def _sum(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, ANY), specials=True)
    attrs = {"dim": one(draw, [None, dims(draw, x.ndim)]), "keepdim": flag(draw)}
    return Case([x], attrs, slack=4)


@case("mean")
def _mean(draw: Draw) -> Case:
    dtype = one(draw, [None, "f32", "f64"])
    x = tensor(draw, shape(draw), one(draw, FLOATS if dtype is None else ANY), specials=True)
    return Case(
        [x], {"dim": one(draw, [None, dims(draw, x.ndim)]), "keepdim": flag(draw), "dtype": dtype}, slack=4
    )


@case("var")
def _var(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, FLOATS))
    attrs = {"dim": one(draw, [None, dims(draw, x.ndim)]), "correction": one(draw, [None, 0, 1, 2, 0.5])}
    return Case([x], {**attrs, "keepdim": flag(draw)}, slack=8)


@case("prod")
def _prod(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, ANY), specials=True)
    dtype = one(draw, [None, "f64"] if is_float(x) else [None, "i64"])
    return Case([x], {"dim": dim(draw, x.ndim), "keepdim": flag(draw), "dtype": dtype}, slack=16)


@case("cumsum")
def _cumsum(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, ANY), specials=True)
    return Case([x], {"dim": dim(draw, x.ndim), "dtype": one(draw, [None, "f32", "f64"])}, slack=8)


@case("amax", "amin")
def _amax(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, side=1), one(draw, ANY), specials=True)
    return Case([x], {"dim": dims(draw, x.ndim), "keepdim": flag(draw)})


@case("argmax", "argmin")
def _argmax(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, side=1), one(draw, NUMBERS), specials=True)
    return Case([x], {"dim": one(draw, [None, dim(draw, x.ndim)]), "keepdim": flag(draw)})


@case("logsumexp")
def _logsumexp(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, 1), one(draw, ANY), specials=True)
    return Case([x], {"dim": dims(draw, x.ndim, least=1), "keepdim": flag(draw)}, slack=4)


@case("softmax", "log_softmax")
def _softmax(draw: Draw) -> Case:
    dtype = one(draw, [None, "f32", "f64"])
    x = tensor(draw, shape(draw), one(draw, FLOATS), specials=True)
    return Case([x], {"dim": dim(draw, x.ndim), "dtype": dtype}, slack=4)


@case("_softmax", "_log_softmax")
def _bare_softmax(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, FLOATS), specials=True)
    return Case([x], {"dim": dim(draw, x.ndim), "half_to_float": False}, slack=4)


@case("sort")
def _sort(draw: Draw) -> Case:
    x = tensor(draw, shape(draw), one(draw, ANY), specials=True)
    return Case([x], {"stable": True, "dim": dim(draw, x.ndim), "descending": flag(draw)})


@case("topk")
def _topk(draw: Draw) -> Case:
    size, dtype = shape(draw, 1, 3), one(draw, NUMBERS)
    x = random(draw).permutation(math.prod(size)).reshape(size).astype(np.float32).astype(numpy_dtype(dtype))
    if dtype in FLOATS and x.size:
        x.flat[0] = math.nan
    at = dim(draw, x.ndim)
    return Case([x], {"k": small(draw, 0, size[at]), "dim": at, "largest": flag(draw), "sorted": True})
