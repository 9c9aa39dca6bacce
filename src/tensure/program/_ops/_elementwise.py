"""Arithmetic, comparison, logic and selection, element by element, with broadcasting.

Result dtypes follow ATen's promotion; arithmetic on f16 and bf16 runs in f32 and rounds once. Integers
wrap. Integer division by zero and negative integer powers are errors. Activations are next door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from .._records import TensorType
from ._rules import (
    ANY,
    INTEGERS,
    NUMBERS,
    as_float,
    broadcast,
    cast,
    in_range,
    need,
    need_dtype,
    number,
    operand,
    promoted,
    type_of,
)
from ._table import Array, Evaluate, Given, Infer, define, refuse

Pointwise: TypeAlias = Callable[..., Any]


def shapes(args: list[Any]) -> tuple[int, ...]:
    """The broadcast shape of the tensors among operands."""
    return broadcast(*(arg.shape for arg in args if hasattr(arg, "shape")))


# --- one operand ----------------------------------------------------------------------------------


def unary_rule(dtypes: frozenset[str], *, to_float: bool = False) -> Infer:
    """Same shape; same dtype, or f32 for integers where `to_float`."""

    def infer(args: list[Any], given: Given) -> list[TensorType]:
        need("self", args[0], dtypes)
        return [TensorType(args[0].shape, as_float(args[0].dtype) if to_float else args[0].dtype)]

    return infer


def unary(fn: Pointwise, *, to_float: bool = False) -> Evaluate:
    """Semantics of one operand, computed in the arithmetic dtype of the result."""

    def evaluate(args: list[Any], given: Given) -> list[Array]:
        (x,) = args
        dtype = type_of(x).dtype
        out = as_float(dtype) if to_float else dtype
        return [cast(np.asarray(fn(operand(x, out))), out)]

    return evaluate


def _rsqrt(x: Array) -> Array:
    return np.asarray(1 / np.sqrt(x))


def _signum(x: Array) -> Any:
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


_FLOATING: Final[tuple[tuple[str, Pointwise, str], ...]] = (
    ("exp", np.exp, "e to the power of self."),
    ("expm1", np.expm1, "e to the power of self, less 1, exact near 0."),
    ("log", np.log, "Natural logarithm."),
    ("log1p", np.log1p, "Natural logarithm of 1 + self, exact near 0."),
    ("log2", np.log2, "Logarithm to base 2."),
    ("sqrt", np.sqrt, "Square root; NaN below 0."),
    ("rsqrt", _rsqrt, "One over the square root."),
    ("reciprocal", lambda x: 1 / x, "One over self."),
    ("sin", np.sin, "Sine of radians."),
    ("cos", np.cos, "Cosine of radians."),
    ("tan", np.tan, "Tangent of radians."),
    ("acos", np.arccos, "Arc cosine in radians; NaN outside -1..1."),
    ("asin", np.arcsin, "Arc sine in radians; NaN outside -1..1."),
    ("atan", np.arctan, "Arc tangent in radians."),
    ("cosh", np.cosh, "Hyperbolic cosine."),
    ("sinh", np.sinh, "Hyperbolic sine."),
    ("acosh", np.arccosh, "Inverse hyperbolic cosine; NaN below 1."),
    ("asinh", np.arcsinh, "Inverse hyperbolic sine."),
    ("atanh", np.arctanh, "Inverse hyperbolic tangent; NaN outside -1..1."),
)
for _name, _fn, _doc in _FLOATING:
    define(
        f"{_name}(self: Tensor) -> 1",
        unary_rule(ANY, to_float=True),
        unary(_fn, to_float=True),
        f"{_doc} Integers give f32.",
    )

_PLAIN: Final[tuple[tuple[str, Pointwise, frozenset[str], str], ...]] = (
    ("neg", np.negative, NUMBERS, "Minus self."),
    ("abs", np.abs, NUMBERS, "Magnitude."),
    ("sign", _signum, NUMBERS, "-1, 0 or 1; NaN gives 0."),
    ("floor", np.floor, NUMBERS, "Largest integer not above self."),
    ("ceil", np.ceil, NUMBERS, "Smallest integer not below self."),
    ("round", np.rint, NUMBERS, "Nearest integer, halves to even."),
    ("trunc", np.trunc, NUMBERS, "Integer part, towards 0."),
    ("square", np.square, NUMBERS, "Self times self."),
    ("bitwise_not", np.invert, INTEGERS | {"bool"}, "Every bit flipped; for bool, not."),
)
for _name, _fn, _admits, _doc in _PLAIN:
    define(f"{_name}(self: Tensor) -> 1", unary_rule(_admits), unary(_fn), _doc)


def _flags(args: list[Any], given: Given) -> list[TensorType]:
    return [TensorType(shapes(args), "bool")]


def _truth(x: Array) -> Array:
    return cast(x, "bool")


define(
    "logical_not(self: Tensor) -> 1", _flags, lambda args, given: [~_truth(args[0])], "True where self is 0."
)
define(
    "isnan(self: Tensor) -> 1",
    _flags,
    lambda args, given: [
        np.isnan(args[0]) if args[0].dtype.kind not in "iub" else np.zeros(args[0].shape, bool)
    ],
    "True where self is NaN.",
)


def _copy_rule(args: list[Any], given: Given) -> list[TensorType]:
    return [TensorType(args[0].shape, given["dtype"] or args[0].dtype)]


define(
    "_to_copy(self: Tensor; dtype: dtype? = none) -> 1",
    _copy_rule,
    lambda args, given: [cast(args[0], given["dtype"]) if given["dtype"] else args[0].copy()],
    "The values in another dtype. A float outside an integer dtype's range gives an unspecified integer.",
)
define(
    "copy(self: Tensor) -> 1",
    unary_rule(ANY),
    lambda args, given: [args[0].copy()],
    "The same values.",
    aten=False,
)

# --- two operands ---------------------------------------------------------------------------------


def binary_rule(dtypes: frozenset[str], *, to_float: bool = False) -> Infer:
    """Broadcast shape, promoted dtype (f32 for integers where `to_float`), which must be among `dtypes`."""

    def infer(args: list[Any], given: Given) -> list[TensorType]:
        dtype = promoted(*args)
        need_dtype("a result", dtype, dtypes)
        return [TensorType(shapes(args), as_float(dtype) if to_float else dtype)]

    return infer


def binary(fn: Pointwise, *, to_float: bool = False) -> Evaluate:
    """Semantics of two operands, both first converted to the result dtype."""

    def evaluate(args: list[Any], given: Given) -> list[Array]:
        dtype = promoted(*map(type_of, args))
        out = as_float(dtype) if to_float else dtype
        return [cast(np.asarray(fn(*(operand(arg, out) for arg in args))), out)]

    return evaluate


def _sum_rule(dtypes: frozenset[str]) -> Infer:
    plain = binary_rule(dtypes)

    def infer(args: list[Any], given: Given) -> list[TensorType]:
        (out,) = plain(args, given)
        alpha = given["alpha"]
        if out.dtype in INTEGERS and isinstance(alpha, float):
            raise refuse(f"alpha={alpha} for a result of dtype {out.dtype}", "an integer")
        if out.dtype == "bool" and alpha != 1:
            raise refuse(f"alpha={alpha} for a result of dtype bool", "1")
        if dtypes is NUMBERS and any(_is_bool(arg) for arg in args):
            raise refuse("an operand of dtype bool", "numbers; use logical_not or bitwise_xor on bools")
        return [out]

    return infer


def _is_bool(arg: Any) -> bool:
    return isinstance(arg, bool) or (isinstance(arg, TensorType) and arg.dtype == "bool")


def _weighted(fn: Callable[[Array, Array, Any], Any]) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        out = promoted(*map(type_of, args))
        a, b = (operand(arg, out) for arg in args)
        if given["alpha"] == 1:
            return [cast(np.asarray(fn(a, b, None)), out)]
        return [cast(np.asarray(fn(a, b, operand(given["alpha"], out))), out)]

    return evaluate


def _times(x: Array, alpha: Any) -> Array:
    return x if alpha is None else np.asarray(x * alpha)


define(
    "add(self: Tensor, other: Tensor|number; alpha: number = 1) -> 1",
    _sum_rule(ANY),
    _weighted(lambda a, b, alpha: a + _times(b, alpha)),
    "self + alpha * other; on bools, or.",
)
define(
    "sub(self: Tensor, other: Tensor|number; alpha: number = 1) -> 1",
    _sum_rule(NUMBERS),
    _weighted(lambda a, b, alpha: a - _times(b, alpha)),
    "self - alpha * other.",
)
define(
    "rsub(self: Tensor, other: Tensor|number; alpha: number = 1) -> 1",
    _sum_rule(NUMBERS),
    _weighted(lambda a, b, alpha: b - _times(a, alpha)),
    "other - alpha * self.",
)
define(
    "mul(self: Tensor, other: Tensor|number) -> 1",
    binary_rule(ANY),
    binary(np.multiply),
    "self * other; on bools, and.",
)


def _nonzero(b: Array) -> Array:
    if b.dtype.kind in "iu" and (b == 0).any():
        raise refuse("an integer division by zero", "divisors other than 0")
    return b


def _floor_divide(a: Array, b: Array) -> Array:
    return np.asarray(np.floor_divide(a, _nonzero(b)))


def _trunc_divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.trunc(a / b))
    quotient = np.floor_divide(a, _nonzero(b))
    return np.asarray(quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(a.dtype))


def _divide_rule(args: list[Any], given: Given) -> list[TensorType]:
    mode = given["rounding_mode"]
    if mode not in (None, "floor", "trunc"):
        raise refuse(f"rounding_mode={mode!r}", 'none, "floor" or "trunc"')
    return binary_rule(ANY if mode is None else NUMBERS, to_float=mode is None)(args, given)


def _divide(args: list[Any], given: Given) -> list[Array]:
    if given["rounding_mode"] is None:
        return binary(np.divide, to_float=True)(args, given)
    return binary(_floor_divide if given["rounding_mode"] == "floor" else _trunc_divide)(args, given)


define(
    "div(self: Tensor, other: Tensor|number; rounding_mode: str? = none) -> 1",
    _divide_rule,
    _divide,
    'self / other. Without rounding_mode integers give f32; "floor" and "trunc" keep the promoted dtype.',
)
define(
    "floor_divide(self: Tensor, other: Tensor|number) -> 1",
    binary_rule(NUMBERS),
    binary(_floor_divide),
    "self / other rounded down.",
)
define(
    "remainder(self: Tensor, other: Tensor|number) -> 1",
    binary_rule(NUMBERS),
    binary(lambda a, b: np.remainder(a, _nonzero(b))),
    "What floor division leaves; has the sign of other.",
)
define(
    "fmod(self: Tensor, other: Tensor|number) -> 1",
    binary_rule(NUMBERS),
    binary(lambda a, b: np.fmod(a, _nonzero(b))),
    "What truncating division leaves; has the sign of self.",
)


def _power(base: Array, exponent: Array) -> Array:
    if exponent.dtype.kind == "i" and (exponent < 0).any():
        raise refuse("a negative integer power of an integer", "exponents of at least 0, or a float dtype")
    return np.asarray(np.power(base, exponent))


define(
    "pow(self: Tensor|number, exponent: Tensor|number) -> 1",
    binary_rule(NUMBERS),
    binary(_power),
    "self to the power of exponent. At least one is a tensor.",
)
define(
    "maximum(self: Tensor, other: Tensor) -> 1",
    binary_rule(ANY),
    binary(np.maximum),
    "The larger; NaN if either is.",
)
define(
    "minimum(self: Tensor, other: Tensor) -> 1",
    binary_rule(ANY),
    binary(np.minimum),
    "The smaller; NaN if either is.",
)
_BITWISE: Final[tuple[tuple[str, Pointwise], ...]] = (
    ("and", np.bitwise_and),
    ("or", np.bitwise_or),
    ("xor", np.bitwise_xor),
)
for _name, _fn in _BITWISE:
    define(
        f"bitwise_{_name}(self: Tensor, other: Tensor|number) -> 1",
        binary_rule(INTEGERS | {"bool"}),
        binary(_fn),
        f"Bitwise {_name}; for bools, the logical one.",
    )


for _name, _fn, _doc in (
    ("left", np.left_shift, "self * 2^other, wrapped."),
    ("right", np.right_shift, "self / 2^other rounded down."),
):
    define(
        f"bitwise_{_name}_shift(self: Tensor, other: Tensor|number) -> 1",
        binary_rule(INTEGERS),
        binary(_fn),
        f"{_doc} Where other is negative or no less than the bits of the dtype, all are lost but the sign's.",
    )


def _compare(fn: Pointwise) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        out = promoted(*map(type_of, args))
        return [np.asarray(fn(*(operand(arg, out) for arg in args)))]

    return evaluate


_COMPARISONS: Final[tuple[tuple[str, Pointwise, str], ...]] = (
    ("eq", np.equal, "="),
    ("ne", np.not_equal, "≠"),
    ("lt", np.less, "<"),
    ("le", np.less_equal, "≤"),
    ("gt", np.greater, ">"),
    ("ge", np.greater_equal, "≥"),
)
for _name, _fn, _sign in _COMPARISONS:
    define(
        f"{_name}(self: Tensor, other: Tensor|number) -> 1",
        _flags,
        _compare(_fn),
        f"True where self {_sign} other, compared in their promoted dtype.",
    )


def _logical(fn: Pointwise) -> Evaluate:
    return lambda args, given: [np.asarray(fn(_truth(args[0]), _truth(args[1])))]


_LOGICAL: Final[tuple[tuple[str, Pointwise], ...]] = (
    ("and", np.logical_and),
    ("or", np.logical_or),
    ("xor", np.logical_xor),
)
for _name, _fn in _LOGICAL:
    define(
        f"logical_{_name}(self: Tensor, other: Tensor) -> 1",
        _flags,
        _logical(_fn),
        f"Logical {_name} of self ≠ 0 and other ≠ 0.",
    )

# --- selection and bounds -------------------------------------------------------------------------


def _where_rule(args: list[Any], given: Given) -> list[TensorType]:
    need("condition", args[0], frozenset({"bool"}))
    return [TensorType(shapes(args), promoted(*args[1:]))]


def _where(args: list[Any], given: Given) -> list[Array]:
    out = promoted(*map(type_of, args[1:]))
    return [cast(np.where(args[0], *(operand(arg, out) for arg in args[1:])), out)]


define(
    "where(condition: Tensor, self: Tensor|number, other: Tensor|number) -> 1",
    _where_rule,
    _where,
    "self where condition holds, else other.",
)


def _masked_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, mask, value = args
    need("mask", mask, frozenset({"bool"}))
    if isinstance(value, TensorType):
        if value.shape:
            raise refuse(f"value of shape {list(value.shape)}", "a number or a tensor of rank 0")
    else:
        number(value, x.dtype, "value")
    return [TensorType(broadcast(x.shape, mask.shape), x.dtype)]


def _masked_fill(args: list[Any], given: Given) -> list[Array]:
    x, mask, value = args
    dtype = type_of(x).dtype
    fill = cast(value, dtype) if isinstance(value, np.ndarray) else number(value, dtype, "value")
    return [np.where(mask, fill, x)]


define(
    "masked_fill(self: Tensor, mask: Tensor, value: Tensor|number) -> 1",
    _masked_rule,
    _masked_fill,
    "value where mask holds, else self.",
)


def _clamp_rule(args: list[Any], given: Given) -> list[TensorType]:
    if args[1] is None and args[2] is None:
        raise refuse("neither min nor max", "at least one of them")
    dtype = promoted(*args)
    need_dtype("a result", dtype, NUMBERS)
    return [TensorType(shapes(args), dtype)]


def _clamp(args: list[Any], given: Given) -> list[Array]:
    out = promoted(*map(type_of, args))
    x, low, high = (None if arg is None else operand(arg, out) for arg in args)
    assert x is not None
    if low is not None:
        x = np.asarray(np.maximum(x, low))
    return [cast(x if high is None else np.asarray(np.minimum(x, high)), out)]


define(
    "clamp(self: Tensor, min: Tensor|number?, max: Tensor|number?) -> 1",
    _clamp_rule,
    _clamp,
    "self held to min..max; max where min > max; NaN stays.",
)


def _scaled_rule(args: list[Any], given: Given) -> list[TensorType]:
    in_range("value", given["value"], -np.inf)
    dtype = promoted(*args)
    need_dtype("a result", dtype, frozenset({"f64", "f32", "f16", "bf16"}))
    return [TensorType(shapes(args), dtype)]


def _scaled(fn: Pointwise) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        out = promoted(*map(type_of, args))
        x, a, b = (operand(arg, out) for arg in args)
        return [cast(np.asarray(x + operand(given["value"], out) * fn(a, b)), out)]

    return evaluate


define(
    "addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor; value: number = 1) -> 1",
    _scaled_rule,
    _scaled(np.multiply),
    "self + value * tensor1 * tensor2.",
)
define(
    "addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor; value: number = 1) -> 1",
    _scaled_rule,
    _scaled(np.divide),
    "self + value * tensor1 / tensor2.",
)


def _add_all_rule(args: list[Any], given: Given) -> list[TensorType]:
    if not args:
        raise refuse("no operand", "at least one")
    if len(set(args)) != 1:
        raise refuse(f"operands of types {', '.join(map(str, args))}", "one type for all")
    return [args[0]]


def _add_all(args: list[Any], given: Given) -> list[Array]:
    dtype = type_of(args[0]).dtype
    total = operand(args[0], dtype).copy()
    for arg in args[1:]:
        total = np.asarray(total + operand(arg, dtype))
    return [cast(total, dtype)]


define(
    "add_n(tensors: Tensor*) -> 1",
    _add_all_rule,
    _add_all,
    "The sum in operand order, rounded once.",
    aten=False,
)
