"""Arithmetic, comparison, logic, activations and casts, element by element."""

from __future__ import annotations

from functools import reduce
from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, UnsupportedError

from .._dtypes import DTYPES, FLOATS, numpy_dtype
from .._records import TensorType
from ._builder import CARRIERS, Builder, Tensor
from ._table import Attributes, Translate, onnx_op

_ONNX_DTYPES: Final = {
    1: "f32",
    2: "u8",
    3: "i8",
    4: "u16",
    5: "i16",
    6: "i32",
    7: "i64",
    9: "bool",
    10: "f16",
    11: "f64",
    12: "u32",
    16: "bf16",
}
"""TensorProto.DataType of the dtypes a Program has, and of the two that it holds in a wider one."""


def dtype_of(code: int, what: str = "to") -> str:
    """Our name of an ONNX dtype number.

    Raises:
        UnsupportedError: a dtype that no Program has, or (but for a cast) only holds in a wider one.
    """
    if code not in _ONNX_DTYPES or (what != "to" and _ONNX_DTYPES[code] in CARRIERS):
        raise UnsupportedError(f"{what}={code} (a dtype number)", wanted=" ".join(DTYPES))
    return _ONNX_DTYPES[code]


# --- one listed op --------------------------------------------------------------------------------

_UNARY: Final = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "BitwiseNot": "bitwise_not",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "HardSwish": "hardswish",
    "Identity": "copy",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "neg",
    "Not": "logical_not",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Softplus": "softplus",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}


def _unary(kind: str) -> Translate:
    return lambda b, x, a: x[0] if kind == "copy" else b.op(kind, x[0])


for _name, _kind in _UNARY.items():
    onnx_op(f"{_name}(X)")(_unary(_kind))

_BINARY: Final = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}


def same_dtype(*tensors: Tensor) -> None:
    """Refuse operands of different dtypes: ONNX promotes nothing."""
    dtypes = [named_dtype(item) for item in tensors]
    if len(set(dtypes)) > 1:
        raise FormatError(f"operands of dtypes {', '.join(dtypes)}", wanted="one dtype")


def _binary(kind: str) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        same_dtype(*x)
        if x[0].is_known and not x[1].is_known and kind in ("add", "mul"):
            return b.op(kind, x[1], x[0])  # the known one may become a number
        return b.op(kind, *x)

    return translate


for _name, _kind in _BINARY.items():
    onnx_op(f"{_name}(A, B)")(_binary(_kind))


@onnx_op("Div(A, B)")
def _div(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    same_dtype(*x)
    if x[0].dtype in FLOATS:
        return b.op("div", *x)
    return b.op("div", *x, rounding_mode="trunc")  # as C divides


@onnx_op("Mod(A, B; fmod: int = 0)")
def _mod(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    same_dtype(*x)
    return b.op("fmod" if a["fmod"] else "remainder", *x)


@onnx_op("Pow(X, Y)")
def _pow(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """The result has the dtype of the base."""
    base, exponent = x
    if base.dtype == exponent.dtype or (base.dtype in FLOATS and exponent.dtype in FLOATS):
        exponent = b.cast(exponent, base.dtype)
        if exponent.is_known and exponent.size == 1 and exponent.rank <= base.rank:
            if b.number(exponent, "Y") == 2 and base.dtype != "bool":
                return b.op("square", base)
        return b.op("pow", base, exponent)
    if base.dtype in FLOATS:
        return b.op("pow", base, b.cast(exponent, base.dtype))
    if exponent.dtype in FLOATS:
        return b.cast(b.op("pow", b.cast(base, "f64"), b.cast(exponent, "f64")), base.dtype)
    return b.cast(b.op("pow", b.cast(base, "i64"), b.cast(exponent, "i64")), base.dtype)


@onnx_op("BitShift(X, Y; direction: str)")
def _bit_shift(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    same_dtype(*x)
    if a["direction"] not in ("LEFT", "RIGHT"):
        raise FormatError(f"direction={a['direction']!r}", wanted="LEFT or RIGHT")
    return b.op(f"bitwise_{a['direction'].lower()}_shift", *x)


def _many(kind: str, *, mean: bool = False) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        if not x:
            raise FormatError("no inputs", wanted="at least one")
        same_dtype(*x)
        total: Tensor = reduce(lambda left, right: b.op(kind, left, right), x)
        return b.op("div", total, float(len(x))) if mean else total

    return translate


onnx_op("Max(data*)")(_many("maximum"))
onnx_op("Min(data*)")(_many("minimum"))
onnx_op("Sum(data*)")(_many("add"))
onnx_op("Mean(data*)")(_many("add", mean=True))


@onnx_op("Where(condition, X, Y)")
def _where(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    same_dtype(*x[1:])
    return b.op("where", *x)


# --- bounds and casts -----------------------------------------------------------------------------


@onnx_op("Clip(input, min?, max?; min: float?, max: float?)")
def _clip(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Bounds are inputs since opset 11, attributes before."""
    bounds = [
        bound if bound is not None else a[key] for bound, key in zip(x[1:], ("min", "max"), strict=True)
    ]
    for bound in bounds:
        if isinstance(bound, Tensor) and (bound.size != 1 or bound.rank > 1):
            raise FormatError(f"a bound of shape {list(bound.shape)}", wanted="one element")
    bounds = [b.reshape(bound, ()) if isinstance(bound, Tensor) else bound for bound in bounds]
    numbers = [
        b.number(item, "a bound") if isinstance(item, Tensor) and item.is_known else item for item in bounds
    ]
    if all(item is None or (isinstance(item, float) and np.isinf(item)) for item in numbers):
        return x[0] if all(item is None for item in numbers) else b.op("clamp", x[0], *numbers)
    if any(isinstance(item, Tensor) for item in numbers):
        numbers = [b.known(item, x[0].dtype) if isinstance(item, int | float) else item for item in numbers]
    return b.op("clamp", x[0], *numbers)


@onnx_op('Cast(input; to: int, saturate: int = 1, round_mode: str = "up")')
def _cast(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.cast(x[0], dtype_of(a["to"]))


def named_dtype(x: Tensor) -> str:
    """The dtype the file says a tensor has."""
    return {16: "u16", 32: "u32"}.get(x.bits, x.dtype)


@onnx_op('CastLike(input, target_type; saturate: int = 1, round_mode: str = "up")')
def _cast_like(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.cast(x[0], named_dtype(x[1]))


@onnx_op("BitCast(input; to: int)", since=26)
def _bit_cast(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Between the dtypes of eight bits, by wrapping; other bits have no listed op."""
    to = dtype_of(a["to"])
    signed = {("u16", "i16"): "i16", ("u32", "i32"): "i32"}.get((named_dtype(x[0]), to))
    if signed is not None:
        over = b.op("ge", x[0], 1 << (x[0].bits - 1))
        wide = b.op("_to_copy", x[0], dtype="i64")
        return b.cast(b.op("sub", wide, b.op("mul", b.cast(over, "i64"), 1 << x[0].bits)), to)
    if x[0].bits or to in CARRIERS:
        raise UnsupportedError(f"bits of {named_dtype(x[0])} as {to}", wanted="integers of equal size")
    if x[0].is_known:
        return b.known(x[0].values().view(numpy_dtype(to)).reshape(x[0].shape))
    if {x[0].dtype, to} == {"i8", "u8"}:
        wide = b.op("remainder", b.cast(x[0], "i16"), 256)
        if to == "i8":
            wide = b.op("sub", wide, b.op("mul", b.cast(b.op("ge", wide, 128), "i16"), 256))
        return b.cast(wide, to)
    if x[0].dtype == to:
        return b.op("copy", x[0])
    raise UnsupportedError(f"bits of {x[0].dtype} as {to}", wanted="a value known when the file is read")


@onnx_op("IsInf(X; detect_negative: int = 1, detect_positive: int = 1)")
def _is_inf(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    signs = [sign for sign, key in ((1, "detect_positive"), (-1, "detect_negative")) if a[key]]
    if not signs:
        return b.full(x[0].shape, False, "bool")
    flags = [b.op("eq", x[0], sign * np.inf) for sign in signs]
    return flags[0] if len(flags) == 1 else b.op("logical_or", *flags)


# --- activations ----------------------------------------------------------------------------------


def where_positive(b: Builder, x: Tensor, other: Tensor) -> Tensor:
    """X where it is above 0, else other."""
    return b.op("where", b.op("gt", x, 0.0), x, other)


@onnx_op("Elu(X; alpha: float = 1.0)")
def elu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Alpha * (exp(x) - 1) below 0."""
    below = b.op("mul", b.op("expm1", b.op("clamp", x[0], None, 0.0)), a["alpha"])
    return where_positive(b, x[0], below)


@onnx_op("Celu(X; alpha: float = 1.0)")
def _celu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    below = b.op("expm1", b.op("div", b.op("clamp", x[0], None, 0.0), a["alpha"]))
    return b.op("add", b.op("relu", x[0]), b.op("mul", below, a["alpha"]))


@onnx_op("Selu(X; alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554804)")
def _selu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    below = b.op("mul", b.op("expm1", b.op("clamp", x[0], None, 0.0)), a["alpha"])
    return b.op("mul", where_positive(b, x[0], below), a["gamma"])


@onnx_op("LeakyRelu(X; alpha: float = 0.01)")
def leaky_relu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Alpha * x below 0."""
    return b.op("leaky_relu", x[0], negative_slope=float(a["alpha"]))


@onnx_op("PRelu(X, slope)")
def _prelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    below = b.op("mul", *x)
    if below.shape != x[0].shape:
        raise FormatError(
            f"slope of shape {list(x[1].shape)}", wanted=f"one that broadcasts to {list(x[0].shape)}"
        )
    zero = 0.0 if x[0].dtype in FLOATS else 0
    return b.op("where", b.op("ge", x[0], zero), x[0], below)


@onnx_op("ThresholdedRelu(X; alpha: float = 1.0)")
def thresholded_relu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """X above alpha, else 0."""
    return b.op("where", b.op("gt", x[0], a["alpha"]), x[0], b.full(x[0].shape, 0, x[0].dtype))


@onnx_op("Shrink(input; lambd: float = 0.5, bias: float = 0.0)")
def _shrink(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    number = float if x[0].dtype in FLOATS else int
    bias = number(a["bias"])
    zero = b.full(x[0].shape, 0, x[0].dtype)
    low = b.op("where", b.op("lt", x[0], -a["lambd"]), b.op("add", x[0], bias), zero)
    return b.op("where", b.op("gt", x[0], a["lambd"]), b.op("sub", x[0], bias), low)


@onnx_op("HardSigmoid(X; alpha: float = 0.2, beta: float = 0.5)")
def hard_sigmoid(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Alpha * x + beta held to 0..1."""
    scaled = b.op("add", b.op("mul", x[0], float(a["alpha"])), float(a["beta"]))
    return b.op("clamp", scaled, 0.0, 1.0)


@onnx_op("Softsign(input)")
def softsign(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """X / (1 + |x|)."""
    return b.op("div", x[0], b.op("add", b.op("abs", x[0]), 1.0))


@onnx_op("Mish(X)")
def _mish(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("mul", x[0], b.op("tanh", b.op("softplus", x[0])))


@onnx_op('Gelu(X; approximate: str = "none")')
def _gelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("gelu", x[0], approximate=a["approximate"])


@onnx_op("Swish(X; alpha: float = 1.0)", since=24)
def _swish(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    if a["alpha"] == 1:
        return b.op("silu", x[0])
    return b.op("mul", x[0], b.op("sigmoid", b.op("mul", x[0], a["alpha"])))


# --- constants ------------------------------------------------------------------------------------


@onnx_op(
    "Constant(; value: tensor?, value_float: float?, value_floats: floats?, value_int: int?, "
    "value_ints: ints?, value_string: str?, value_strings: strs?)"
)
def _constant(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    given = {key: value for key, value in a.items() if value is not None}
    if len(given) != 1:
        raise FormatError(f"{len(given)} values", wanted="one")
    ((key, value),) = given.items()
    if key == "value":
        return Tensor(TensorType(value.shape, value.dtype), stored=value)
    if key.startswith("value_string"):
        raise UnsupportedError("a constant of strings", wanted=" ".join(DTYPES))
    return b.known(value, "f32" if "float" in key else "i64")
