"""Ops that are sums of products but for one function, in the finite field: an oracle for it, the rest exact.

So a gradient stays linear in what comes in, a softmax is exp over a sum of exp, and a choice is ha + (1 - h)b
with an oracle h of the condition. What holds for any function in its place holds for the true one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from tensure.program import rational

from ._field_degree import CONSTANT, DRAWN, Degree
from ._field_numbers import element_of, hash_number

if TYPE_CHECKING:
    from ._field import F, Field

__all__ = ["PRODUCTS"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Made: TypeAlias = "tuple[Array, Degree] | None"
"""An array of integers, not yet modulo p, and its degree; None where the op stays an oracle as a whole."""
MAX_POWER: Final = 8


def _sloped(name: str) -> Callable[[Field, dict[str, Any], list[Any]], Made]:
    """What comes in times a function of what went in."""

    def made(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
        grad, x = operands
        return grad.array * field.oracle(name, given, [x]).array, grad.degree.times(DRAWN)

    return made


def _sigmoid_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, y = operands
    return grad.array * y.array * (1 - y.array), grad.degree.times(y.degree, CONSTANT.plus(y.degree))


def _tanh_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, y = operands
    return grad.array * (1 - y.array * y.array), grad.degree.times(CONSTANT.plus(y.degree.power(2)))


def _where(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    condition, one, other = operands
    return _chosen(field, condition, one, other)


def _masked_fill(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, mask, value = operands
    return _chosen(field, mask, value, x)


def _chosen(field: Field, condition: Any, one: Any, other: Any) -> Made:
    a, b = _value(one), _value(other)
    if a is None or b is None:
        return None
    h = field.oracle("is", {}, [condition]).array
    return h * a + (1 - h) * b, _degree(one).times(DRAWN).plus(_degree(other).times(DRAWN))


def _softmax(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    (x,) = operands
    powers = field.oracle("exp", {}, [x]).array
    size = _size(x, given)
    return powers * field.inverse(_total(field, powers, given)), DRAWN.times(DRAWN.added(size).inverse())


def _log_softmax(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    (x,) = operands
    powers = field.oracle("exp", {}, [x]).array
    total = field.like(_total(field, powers, given))
    return x.array - field.oracle("log", {}, [total]).array, x.degree.plus(DRAWN)


def _softmax_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, y = operands
    total = _total(field, grad.array * y.array, given)
    summed = grad.degree.times(y.degree).added(_size(y, given))
    return y.array * (grad.array - total), y.degree.times(grad.degree.plus(summed))


def _log_softmax_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, y = operands
    powers = field.oracle("exp", {}, [y]).array
    summed = grad.degree.added(_size(y, given)).times(DRAWN)
    return grad.array - powers * _total(field, grad.array, given), grad.degree.plus(summed)


def _pow(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, exponent = operands
    if (
        not isinstance(exponent, (int, float))
        or exponent != int(exponent)
        or not 0 < abs(exponent) <= MAX_POWER
    ):
        return None
    if isinstance(x, (int, float)):
        return None
    count = abs(int(exponent))
    made = math.prod([x.array] * (count - 1), start=x.array)
    degree = x.degree.power(count)
    return (field.quotient(made), degree.inverse()) if exponent < 0 else (made, degree)


def _reciprocal(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    (x,) = operands
    return field.quotient(x.array), x.degree.inverse()


def _addcmul(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, one, other = operands
    by = element_of(rational(given["value"]))
    return x.array + by * one.array * other.array, x.degree.plus(one.degree.times(other.degree))


def _addcdiv(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, one, other = operands
    by = element_of(rational(given["value"]))
    degree = x.degree.plus(one.degree.times(other.degree.inverse()))
    return x.array + by * one.array * field.quotient(other.array), degree


def _added_product(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, one, other = operands
    beta, alpha = (element_of(rational(given[key])) for key in ("beta", "alpha"))
    field.work(one.array.size * other.array.shape[-1])
    product = np.asarray(np.matmul(one.array, other.array), dtype=object)
    inner = max(one.array.shape[-1], 1)
    degree = one.degree.times(other.degree).added(inner)
    return beta * x.array + alpha * product, x.degree.plus(degree)


def _total(field: Field, x: Array, given: dict[str, Any]) -> Array:
    return np.asarray(np.add.reduce(x, axis=given["dim"], keepdims=True) if x.ndim else x, dtype=object)


def _value(item: Any) -> Any:
    """An operand's elements; None for a number that is none of the field."""
    if not isinstance(item, (int, float)):
        return item.array
    if not math.isfinite(item):
        return None
    return hash_number(item)


def _degree(item: Any) -> Degree:
    return CONSTANT if isinstance(item, (int, float)) else item.degree


def _size(x: F, given: dict[str, Any]) -> int:
    return int(x.array.shape[given["dim"]]) if x.array.ndim else 1


PRODUCTS: Final[dict[str, Callable[[Field, dict[str, Any], list[Any]], Made]]] = {
    **{
        name: _sloped(name)
        for name in "silu_backward gelu_backward hardtanh_backward threshold_backward".split()
    },
    "sigmoid_backward": _sigmoid_gradient,
    "tanh_backward": _tanh_gradient,
    "where": _where,
    "masked_fill": _masked_fill,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _log_softmax,
    "_log_softmax": _log_softmax,
    "_softmax_backward_data": _softmax_gradient,
    "_log_softmax_backward_data": _log_softmax_gradient,
    "pow": _pow,
    "reciprocal": _reciprocal,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "addmm": _added_product,
    "baddbmm": _added_product,
}
