"""Activations as listed ops: the names a layer's `activation` may have, and the layers that are one.

Knows: Keras' formulas and their default parameters (an `elu` inside Dense has alpha 1). Knows nothing of
layouts: all but softmax treat every element alike, and softmax counts its dim from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tensure.errors import UnsupportedError

from ._build import Builder, Tensor
from ._document import class_of
from ._options import Options
from ._table import LAYERS, Call, Layer, layer

__all__ = ["activate", "activation_of"]

Step = Callable[[Builder, Tensor], Tensor]

_SELU_ALPHA: Final = 1.6732632423543772
_SELU_SCALE: Final = 1.0507009873554805


def activation_of(found: Layer, options: Options, key: str = "activation", default: Any = None) -> Step:
    """The activation an option names: a string, none, or an activation layer as an object.

    Raises:
        UnsupportedError: another name or object.
    """
    value = options.raw(key, default)
    if value is None:
        return _same
    if isinstance(value, str):
        if value not in _BY_NAME:
            raise UnsupportedError(
                f"{key}={value[:80]!r}", place=options.place, wanted=f"one of {', '.join(_BY_NAME)}"
            )
        return _BY_NAME[value]
    module, kind, config = class_of(value, options.place)
    if not module.startswith(("keras.layers", "keras.src.layers")) or kind not in _AS_OBJECT:
        raise UnsupportedError(f"{key}={module[:80]}.{kind[:80]}", place=options.place, wanted="its name")
    inner = Layer(kind, kind, config, (*found.path, key), found.source, found.build, options.place)

    def step(build: Builder, x: Tensor) -> Tensor:
        inner_options = inner.options()
        inner_options.dtype()
        result = LAYERS[kind](inner, inner_options, Call([x], {}))
        inner_options.done()
        assert isinstance(result, Tensor)
        return result

    return step


def activate(found: Layer, options: Options, x: Tensor, key: str = "activation") -> Tensor:
    """A tensor after the activation an option names."""
    return activation_of(found, options, key)(found.build, x)


def _same(build: Builder, x: Tensor) -> Tensor:
    return x


def _op(kind: str, **attrs: Any) -> Step:
    return lambda build, x: build.op(kind, x, **attrs)


def _elu(alpha: float) -> Step:
    def step(build: Builder, x: Tensor) -> Tensor:
        below = build.op("expm1", build.op("clamp", x, None, 0.0))
        below = below if alpha == 1.0 else build.op("mul", below, alpha)
        return build.op("where", build.op("gt", x, 0.0), x, below)

    return step


def _celu(build: Builder, x: Tensor) -> Tensor:
    return _elu(1.0)(build, x)


def _selu(build: Builder, x: Tensor) -> Tensor:
    return build.op("mul", _elu(_SELU_ALPHA)(build, x), _SELU_SCALE)


def _softsign(build: Builder, x: Tensor) -> Tensor:
    return build.op("div", x, build.op("add", build.op("abs", x), 1.0))


def _mish(build: Builder, x: Tensor) -> Tensor:
    return build.op("mul", x, build.op("tanh", build.op("softplus", x)))


def _log_sigmoid(build: Builder, x: Tensor) -> Tensor:
    tail = build.op("log1p", build.op("exp", build.op("neg", build.op("abs", x))))
    return build.op("sub", build.op("clamp", x, None, 0.0), tail)


def _tanh_shrink(build: Builder, x: Tensor) -> Tensor:
    return build.op("sub", x, build.op("tanh", x))


def _squareplus(build: Builder, x: Tensor) -> Tensor:
    root = build.op("sqrt", build.op("add", build.op("square", x), 4.0))
    return build.op("div", build.op("add", x, root), 2.0)


def _hard_shrink(build: Builder, x: Tensor) -> Tensor:
    return build.op("where", build.op("gt", build.op("abs", x), 0.5), x, 0.0)


def _soft_shrink(build: Builder, x: Tensor) -> Tensor:
    return build.op("sub", x, build.op("clamp", x, -0.5, 0.5))


def _sparse_sigmoid(build: Builder, x: Tensor) -> Tensor:
    return build.op("clamp", build.op("mul", build.op("add", x, 1.0), 0.5), 0.0, 1.0)


def _sparse_plus(build: Builder, x: Tensor) -> Tensor:
    bent = build.op("mul", build.op("square", build.op("add", build.op("clamp", x, -1.0, None), 1.0)), 0.25)
    return build.op("where", build.op("lt", x, 1.0), bent, x)


def _glu(build: Builder, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate = build.op("slice", x, dim=x.rank - 1, start=half, end=2 * half)
    return build.op("mul", build.op("slice", x, dim=x.rank - 1, start=0, end=half), build.op("sigmoid", gate))


_BY_NAME: Final[dict[str, Step]] = {
    "linear": _same,
    "relu": _op("relu"),
    "relu6": _op("hardtanh", min_val=0.0, max_val=6.0),
    "leaky_relu": _op("leaky_relu", negative_slope=0.2),
    "elu": _elu(1.0),
    "selu": _selu,
    "celu": _celu,
    "gelu": _op("gelu"),
    "silu": _op("silu"),
    "swish": _op("silu"),
    "mish": _mish,
    "tanh": _op("tanh"),
    "hard_tanh": _op("hardtanh"),
    "tanh_shrink": _tanh_shrink,
    "sigmoid": _op("sigmoid"),
    "hard_sigmoid": _op("hardsigmoid"),
    "hard_silu": _op("hardswish"),
    "hard_swish": _op("hardswish"),
    "log_sigmoid": _log_sigmoid,
    "sparse_sigmoid": _sparse_sigmoid,
    "softplus": _op("softplus"),
    "sparse_plus": _sparse_plus,
    "squareplus": _squareplus,
    "softsign": _softsign,
    "hard_shrink": _hard_shrink,
    "soft_shrink": _soft_shrink,
    "exponential": _op("exp"),
    "glu": _glu,
    "softmax": _op("softmax", dim=-1),
    "log_softmax": _op("log_softmax", dim=-1),
}
_AS_OBJECT: Final = frozenset({"ReLU", "LeakyReLU", "ELU", "Softmax"})


@layer("Activation")
def _activation(found: Layer, options: Options, call: Call) -> Tensor:
    return activate(found, options, call.one())


@layer("ReLU")
def _relu(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    top = options.raw("max_value", None)
    high = None if top is None else options.number("max_value")
    slope, threshold = options.number("negative_slope", 0.0), options.number("threshold", 0.0)
    if slope == 0.0 and threshold == 0.0:
        return build.op("relu", x) if high is None else build.op("hardtanh", x, min_val=0.0, max_val=high)
    above = x if high is None else build.op("clamp", x, None, high)
    below = build.op("mul", build.op("sub", x, threshold), slope)
    return build.op("where", build.op("ge", x, threshold), above, below)


@layer("LeakyReLU")
def _leaky_relu(found: Layer, options: Options, call: Call) -> Tensor:
    return found.build.op("leaky_relu", call.one(), negative_slope=options.number("negative_slope", 0.3))


@layer("ELU")
def _elu_layer(found: Layer, options: Options, call: Call) -> Tensor:
    return _elu(options.number("alpha", 1.0))(found.build, call.one())


@layer("PReLU")
def _prelu(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    shared = options.raw("shared_axes", None)
    axes = () if shared is None else options.integers("shared_axes", None)
    shape = tuple(1 if at in axes else size for at, size in enumerate(x.shape[1:], 1))
    alpha = found.weight("alpha", 0, shape)
    below = build.op("mul", build.op("clamp", x, None, 0.0), alpha)
    return build.op("add", build.op("relu", x), below)


@layer("Softmax")
def _softmax(found: Layer, options: Options, call: Call) -> Tensor:
    (axis,) = options.integers("axis", 1, -1, least=-8)
    return found.build.op("softmax", call.one(), dim=axis)
