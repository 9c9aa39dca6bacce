"""Ops Keras records when tensors are added, multiplied, ... outside any layer (`keras.ops`, `x + y`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tensure.errors import UnsupportedError

from ._build import Builder, Tensor
from ._options import Options
from ._table import Call

__all__ = ["TENSOR_OPS", "is_tensor_op"]

Rule = Callable[[Builder, Options, Call], Tensor]


def is_tensor_op(module: str) -> bool:
    """Whether a module is where Keras keeps them."""
    return module.startswith(("keras.src.ops", "keras.ops"))


def _operands(call: Call, names: tuple[str, ...]) -> list[Any]:
    given = list(call.args) + [
        call.kwargs.pop(name) for name in names[len(call.args) :] if name in call.kwargs
    ]
    fits = [
        isinstance(item, Tensor) or (isinstance(item, int | float) and not isinstance(item, bool))
        for item in given
    ]
    if len(given) != len(names) or not all(fits) or not any(isinstance(item, Tensor) for item in given):
        raise UnsupportedError("called with something else", wanted="tensors and numbers")
    return given


def _two(kind: str) -> Rule:
    def rule(build: Builder, options: Options, call: Call) -> Tensor:
        a, b = _operands(call, ("x1", "x2"))
        # Only the second operand of an op may be a number.
        if isinstance(a, Tensor):
            if not isinstance(b, Tensor) and kind in ("maximum", "minimum"):
                return build.op("clamp", a, *((b, None) if kind == "maximum" else (None, b)))
            return build.op(kind, a, b)
        if kind == "sub":
            return build.op("rsub", b, a)
        if kind == "div":
            return build.op("mul", build.op("reciprocal", b), a)
        if kind in ("add", "mul"):
            return build.op(kind, b, a)
        if kind == "pow":
            return build.op("pow", a, b)
        raise UnsupportedError(f"{kind} of a number and a tensor", wanted="the tensor first")

    return rule


def _one(kind: str) -> Rule:
    def rule(build: Builder, options: Options, call: Call) -> Tensor:
        (x,) = _operands(call, ("x",))
        return build.op(kind, x)

    return rule


TENSOR_OPS: Final[dict[str, Rule]] = {
    "Add": _two("add"),
    "Subtract": _two("sub"),
    "Multiply": _two("mul"),
    "Divide": _two("div"),
    "TrueDivide": _two("div"),
    "Power": _two("pow"),
    "Maximum": _two("maximum"),
    "Minimum": _two("minimum"),
    "Matmul": _two("matmul"),
    "Negative": _one("neg"),
    "Absolute": _one("abs"),
    "Square": _one("square"),
    "Sqrt": _one("sqrt"),
    "Rsqrt": _one("rsqrt"),
    "Exp": _one("exp"),
    "Log": _one("log"),
    "Tanh": _one("tanh"),
    "Sigmoid": _one("sigmoid"),
    "Relu": _one("relu"),
    "Silu": _one("silu"),
}
