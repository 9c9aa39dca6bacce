"""Normalisations at inference, and dropout, which then does nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.errors import FormatError, UnsupportedError

from ._builder import Builder, Tensor, axes_of, axis_of
from ._shapes import pad_with
from ._table import MICROSOFT, Attributes, onnx_op


@onnx_op(
    "BatchNormalization(X, scale, B, input_mean, input_var; epsilon: float = 1e-05, momentum: float = 0.9, "
    "training_mode: int = 0, spatial: int = 1, is_test: int = 1)"
)
def _batch_norm(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """With training_mode by the moments of the batch, which also move the running ones."""
    data, scale, bias, mean, var = x
    if a["spatial"] != 1 or (b.num_outs > 1 and not a["training_mode"]):
        raise UnsupportedError("spatial=0, or further outputs at inference", wanted="one output by channel")
    if data.rank < 2 or any(item.shape != (data.shape[1],) for item in x[1:]):
        raise FormatError(
            f"an input of shape {list(data.shape)}", wanted="[N, C, ...] and vectors of C entries"
        )
    scale, bias = b.cast(scale, data.dtype), b.cast(bias, data.dtype)
    if not a["training_mode"]:
        mean, var = b.cast(mean, data.dtype), b.cast(var, data.dtype)
        return [b.op("batch_norm", data, scale, bias, mean, var, eps=a["epsilon"])]
    dims = (0, *range(2, data.rank))
    now, spread = b.op("mean", data, dim=dims), b.op("var", data, dim=dims, correction=0)
    out = b.op("batch_norm", data, scale, bias, now, spread, eps=a["epsilon"])

    def moved(old: Tensor, new: Tensor) -> Tensor:
        kept = b.op("mul", old, float(a["momentum"]))
        return b.op("add", kept, b.op("mul", b.cast(new, old.dtype), 1.0 - a["momentum"]))

    return [out, moved(mean, now), moved(var, spread)]


@onnx_op("InstanceNormalization(input, scale, B; epsilon: float = 1e-05)")
def _instance_norm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("group_norm", *x, num_groups=x[0].shape[1], eps=a["epsilon"])


@onnx_op(
    "GroupNormalization(X, scale, bias; epsilon: float = 1e-05, num_groups: int, stash_type: int = 1)",
    since=18,
)
def _group_norm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Scale and bias are by channel since opset 21, by group in 18."""
    data, scale, bias = x
    groups = a["num_groups"]
    if data.rank < 2 or groups < 1 or data.shape[1] % groups:
        raise FormatError(
            f"{groups} groups of an input of shape {list(data.shape)}", wanted="whole groups of channels"
        )
    if scale.shape == (groups,) and b.version < 21 and groups != data.shape[1]:
        b.room(data.shape[1:2], "the group of each channel")
        each = np.repeat(np.arange(groups), data.shape[1] // groups)
        scale, bias = b.pick(scale, 0, each), b.pick(bias, 0, each)
    return b.op("group_norm", data, scale, bias, num_groups=groups, eps=a["epsilon"])


@onnx_op(
    "LayerNormalization(X, Scale, B?; axis: int = -1, epsilon: float = 1e-05, stash_type: int = 1)", since=17
)
def layer_norm(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """Over the last dims from axis on; Mean and InvStdDev where they are read."""
    data, scale, bias = x
    axis = axis_of(a["axis"], data.rank)
    shape = data.shape[axis:]
    whole = all(item is None or item.shape == shape for item in (scale, bias))
    moments: list[Tensor] = []
    given = (scale, bias) if whole else (None, None)
    if b.num_outs > 1:
        out, *moments = b.many("native_layer_norm", data, *given, normalized_shape=shape, eps=a["epsilon"])
    else:
        out = b.op("layer_norm", data, *given, normalized_shape=shape, eps=a["epsilon"])
    if not whole:
        out = b.op("mul", out, scale)
        out = out if bias is None else b.op("add", out, bias)
    return [out, *moments]


@onnx_op("RMSNormalization(X, scale; axis: int = -1, epsilon: float = 1e-05, stash_type: int = 1)", since=23)
def _rms_norm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, scale = x
    shape = data.shape[axis_of(a["axis"], data.rank) :]
    if scale.shape == shape:
        return b.op("rms_norm", data, scale, normalized_shape=shape, eps=a["epsilon"])
    return b.op("mul", b.op("rms_norm", data, None, normalized_shape=shape, eps=a["epsilon"]), scale)


@onnx_op(
    "SimplifiedLayerNormalization(X, scale; axis: int = -1, epsilon: float = 1e-05, stash_type: int = 1)",
    domain=MICROSOFT,
)
def _simplified_norm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return _rms_norm_of(b, x, a)


def _rms_norm_of(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    found = _rms_norm(b, x, a)
    assert isinstance(found, Tensor)
    return found


@onnx_op("SkipLayerNormalization(input, skip, gamma, beta?, bias?; epsilon: float = 1e-12)", domain=MICROSOFT)
def _skip_norm(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    """The sum of input, skip and bias, normalised over the last dim; the sum itself is the fourth output."""
    total = b.op("add", x[0], x[1])
    if x[4] is not None:
        total = b.op("add", total, x[4])
    shape = total.shape[-1:]
    return [
        b.op("layer_norm", total, x[2], x[3], normalized_shape=shape, eps=a["epsilon"]),
        None,
        None,
        total,
    ]


@onnx_op("Gelu(X)", domain=MICROSOFT)
def _gelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("gelu", x[0])


@onnx_op("BiasGelu(A, B)", domain=MICROSOFT)
def _bias_gelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("gelu", b.op("add", *x))


@onnx_op("FastGelu(X, bias?)", domain=MICROSOFT)
def _fast_gelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("gelu", x[0] if x[1] is None else b.op("add", *x), approximate="tanh")


@onnx_op("QuickGelu(X; alpha: float = 1.702)", domain=MICROSOFT)
def _quick_gelu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("mul", x[0], b.op("sigmoid", b.op("mul", x[0], a["alpha"])))


@onnx_op("LpNormalization(input; axis: int = -1, p: int = 2)")
def _lp_norm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """X over its norm; 0 where the norm is 0."""
    data: Tensor = x[0]
    dim = axis_of(a["axis"], data.rank)
    if a["p"] not in (1, 2):
        raise FormatError(f"p={a['p']}", wanted="1 or 2")
    powers = b.op("abs", data) if a["p"] == 1 else b.op("square", data)
    norm = b.op("sum", powers, dim=(dim,), keepdim=True)
    norm = norm if a["p"] == 1 else b.op("sqrt", norm)
    return b.op(
        "div", data, b.op("where", b.op("eq", norm, 0.0), b.full((1,) * data.rank, 1, data.dtype), norm)
    )


@onnx_op("MeanVarianceNormalization(X; axes: ints = [0, 2, 3])")
def _mean_variance(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    dims = axes_of(a["axes"], data.rank)
    centred = b.op("sub", data, b.op("mean", data, dim=dims, keepdim=True))
    spread = b.op("sqrt", b.op("mean", b.op("square", centred), dim=dims, keepdim=True))
    return b.op("div", centred, b.op("add", spread, 1e-9))


@onnx_op("LRN(X; alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int)")
def _lrn(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """X over (bias + alpha / size * the sum of squares of `size` neighbouring channels) ^ beta."""
    data: Tensor = x[0]
    size = a["size"]
    if data.rank < 3 or not 1 <= size <= 4096:
        raise FormatError(
            f"size={size} of an input of shape {list(data.shape)}", wanted="[N, C, ...] and 1 to 4096"
        )
    n, c = data.shape[:2]
    rows = b.reshape(b.op("square", data), (n, 1, c, math.prod(data.shape[2:])))
    sides = [(0, 0), (0, 0), ((size - 1) // 2, size // 2), (0, 0)]
    total = b.op(
        "avg_pool2d", pad_with(b, rows, sides, 0), kernel_size=(size, 1), stride=(1, 1), divisor_override=1
    )
    scaled = b.op("add", b.op("mul", b.reshape(total, data.shape), a["alpha"] / size), float(a["bias"]))
    return b.op("div", data, b.op("pow", scaled, float(a["beta"])))


@onnx_op("Dropout(data, ratio?, training_mode?; ratio: float = 0.5, seed: int?, is_test: int = 1)")
def _dropout(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """Nothing at inference; what is drawn in training cannot be planned."""
    training = x[2] is not None and bool(b.number(x[2], "training_mode"))
    ratio = 0.5 if x[1] is None else float(b.number(x[1], "ratio"))
    if (training and ratio > 0) or not a["is_test"]:
        raise UnsupportedError("dropout in training", wanted="a model for inference")
    return [x[0], b.full(x[0].shape, True, "bool")] if b.num_outs > 1 else [x[0]]
