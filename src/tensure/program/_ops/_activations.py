"""Activation functions. Knows nothing of their gradients (`_backward.py`)."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._elementwise import unary, unary_rule
from ._rules import ANY, NUMBERS, SIGNED, cast, number, operand, type_of
from ._table import Array, Given, define, refuse

ROOT_2_OVER_PI: Final = math.sqrt(2 / math.pi)


def erf(x: Array) -> Array:
    """The error function: numpy has none, so every element goes through libm's."""
    flat = np.fromiter(map(math.erf, x.ravel().tolist()), dtype=np.float64, count=x.size)
    return flat.reshape(x.shape).astype(x.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); exp(-x) may overflow to inf, which gives the right 0."""
    return np.asarray(1 / (1 + np.exp(-x)))


def tanh_argument(x: Array) -> Array:
    """The argument of tanh in GELU's approximation."""
    return np.asarray(ROOT_2_OVER_PI * (x + 0.044715 * x**3))


def gelu(x: Array, approximate: str) -> Array:
    """GELU, by erf or by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(tanh_argument(x))))
    return np.asarray(0.5 * x * (1 + erf(x * math.sqrt(0.5))))


def check_approximate(given: Given) -> None:
    """Refuse an unknown approximation."""
    if given["approximate"] not in ("none", "tanh"):
        raise refuse(f"approximate={given['approximate']!r}", '"none" or "tanh"')


def relu(x: Array) -> Array:
    """max(x, 0), keeping NaN."""
    return np.asarray(np.maximum(x, np.zeros((), x.dtype)))


_FLOAT = unary_rule(FLOATS)
_TO_FLOAT = unary_rule(ANY, to_float=True)

define(
    "sigmoid(self: Tensor) -> 1",
    _TO_FLOAT,
    unary(sigmoid, to_float=True),
    "1 / (1 + exp(-self)). Integers give f32.",
)
define(
    "tanh(self: Tensor) -> 1",
    _TO_FLOAT,
    unary(np.tanh, to_float=True),
    "Hyperbolic tangent. Integers give f32.",
)
define(
    "erf(self: Tensor) -> 1", _TO_FLOAT, unary(erf, to_float=True), "The error function. Integers give f32."
)
define("relu(self: Tensor) -> 1", unary_rule(NUMBERS), unary(relu), "The larger of self and 0; NaN stays.")
define("silu(self: Tensor) -> 1", _FLOAT, unary(lambda x: x / (1 + np.exp(-x))), "self * sigmoid(self).")


def _gelu_rule(args: list[Any], given: Given) -> list[TensorType]:
    check_approximate(given)
    return _FLOAT(args, given)


define(
    'gelu(self: Tensor; approximate: str = "none") -> 1',
    _gelu_rule,
    lambda args, given: unary(lambda x: gelu(x, given["approximate"]))(args, given),
    'self times the normal distribution function, by erf ("none") or its "tanh" approximation.',
)


def _hardtanh_rule(args: list[Any], given: Given) -> list[TensorType]:
    (out,) = unary_rule(FLOATS | SIGNED)(args, given)
    for name in ("min_val", "max_val"):
        number(given[name], out.dtype, name)
    if not given["min_val"] <= given["max_val"]:
        raise refuse(f"min_val={given['min_val']}, max_val={given['max_val']}", "min_val ≤ max_val")
    return [out]


def _hardtanh(args: list[Any], given: Given) -> list[Array]:
    dtype = type_of(args[0]).dtype
    low, high = (operand(number(given[name], dtype, name), dtype) for name in ("min_val", "max_val"))
    return [cast(np.asarray(np.minimum(np.maximum(operand(args[0], dtype), low), high)), dtype)]


define(
    "hardtanh(self: Tensor; min_val: number = -1, max_val: number = 1) -> 1",
    _hardtanh_rule,
    _hardtanh,
    "self held to min_val..max_val (ReLU6 is 0..6); NaN stays.",
)
define(
    "hardswish(self: Tensor) -> 1",
    _FLOAT,
    unary(lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6),
    "self * clamp(self + 3, 0, 6) / 6.",
)
define(
    "hardsigmoid(self: Tensor) -> 1",
    _FLOAT,
    unary(lambda x: np.minimum(np.maximum(x + 3, 0), 6) / 6),
    "clamp(self + 3, 0, 6) / 6.",
)
define(
    "leaky_relu(self: Tensor; negative_slope: number = 0.01) -> 1",
    _FLOAT,
    lambda args, given: unary(lambda x: np.where(x > 0, x, x * given["negative_slope"]).astype(x.dtype))(
        args, given
    ),
    "self above 0, negative_slope * self elsewhere.",
)


def _softplus(x: Array, beta: float, threshold: float) -> Array:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta).astype(x.dtype)


def _softplus_rule(args: list[Any], given: Given) -> list[TensorType]:
    if given["beta"] == 0:
        raise refuse("beta=0", "a number other than 0")
    return _FLOAT(args, given)


define(
    "softplus(self: Tensor; beta: number = 1, threshold: number = 20) -> 1",
    _softplus_rule,
    lambda args, given: unary(lambda x: _softplus(x, given["beta"], given["threshold"]))(args, given),
    "log(1 + exp(beta * self)) / beta, and self itself where beta * self > threshold.",
)
