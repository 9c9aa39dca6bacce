"""Normalisation at inference: moments in f64, the result rounded once. All operands share one dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._rules import cast, double, in_range, need, need_shape, opmath, same_dtype, type_of
from ._table import Array, Given, define, refuse


def _trailing(x: TensorType, given: Given) -> tuple[int, ...]:
    shape: tuple[int, ...] = given["normalized_shape"]
    if not shape or len(shape) > len(x.shape) or x.shape[-len(shape) :] != shape:
        raise refuse(
            f"normalized_shape={list(shape)} for input of shape {list(x.shape)}",
            "its last dims, at least one",
        )
    return shape


def _eps(value: float | None) -> None:
    if value is not None:
        in_range("eps", value, 0)
        if math.isinf(value):
            raise refuse(f"eps={value}", "a finite number")


def _affine(
    x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...], dtype: str
) -> list[Array]:
    if weight is not None:
        x = np.asarray(x * double(weight).reshape(shape))
    if bias is not None:
        x = np.asarray(x + double(bias).reshape(shape))
    return [cast(x, dtype)]


def standardized(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + eps) over axes, with the mean and 1 / sqrt(var + eps), kept."""
    mean = np.asarray(x.mean(axis=axes, keepdims=True))
    scale = np.asarray(1 / np.sqrt(np.square(x - mean).mean(axis=axes, keepdims=True) + eps))
    return np.asarray((x - mean) * scale), mean, scale


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-len(shape), 0))


def _rms_norm_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight = args
    need("input", x, FLOATS)
    same_dtype(input=x, weight=weight)
    need_shape("weight", weight, _trailing(x, given))
    _eps(given["eps"])
    return [x]


def _rms_norm(args: list[Any], given: Given) -> list[Array]:
    x, weight = args
    dtype, shape = type_of(x).dtype, given["normalized_shape"]
    eps = given["eps"]
    if eps is None:
        eps = float(np.finfo(cast(np.zeros(1), opmath(dtype)).dtype).eps)
    wide = double(x)
    scaled = wide / np.sqrt(np.square(wide).mean(axis=_last(shape), keepdims=True) + eps)
    return _affine(np.asarray(scaled), weight, None, shape, dtype)


define(
    "rms_norm(input: Tensor, weight: Tensor?; normalized_shape: int[], eps: float? = none) -> 1",
    _rms_norm_rule,
    _rms_norm,
    "input / sqrt(mean(input²) + eps) * weight over the last dims; eps none is the machine epsilon of the "
    "arithmetic.",
)


def _layer_norm_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    need("input", x, FLOATS)
    same_dtype(input=x, weight=weight, bias=bias)
    shape = _trailing(x, given)
    need_shape("weight", weight, shape)
    need_shape("bias", bias, shape)
    _eps(given["eps"])
    return [x]


def _layer_norm(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    shape = given["normalized_shape"]
    return _affine(
        standardized(double(x), _last(shape), given["eps"])[0], weight, bias, shape, type_of(x).dtype
    )


define(
    "layer_norm(input: Tensor, weight: Tensor?, bias: Tensor?; normalized_shape: int[], eps: float = 1e-05, "
    "cudnn_enable: bool = true) -> 1",
    _layer_norm_rule,
    _layer_norm,
    "(input - mean) / sqrt(var + eps) * weight + bias over the last dims.",
)


def _native_layer_norm_rule(args: list[Any], given: Given) -> list[TensorType]:
    (out,) = _layer_norm_rule(args, given)
    rest = out.shape[: -len(given["normalized_shape"])]
    kept = TensorType((*rest, *[1] * len(given["normalized_shape"])), out.dtype)
    return [out, kept, kept]


def _native_layer_norm(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    shape, dtype = given["normalized_shape"], type_of(x).dtype
    out, mean, scale = standardized(double(x), _last(shape), given["eps"])
    return [*_affine(out, weight, bias, shape, dtype), cast(mean, dtype), cast(scale, dtype)]


define(
    "native_layer_norm(input: Tensor, weight: Tensor?, bias: Tensor?; normalized_shape: int[], eps: "
    "float) -> 3",
    _native_layer_norm_rule,
    _native_layer_norm,
    "layer_norm, the mean, and 1 / sqrt(var + eps).",
)


def _channels(x: TensorType, **vectors: TensorType | None) -> None:
    need("input", x, FLOATS)
    same_dtype(input=x, **vectors)
    if len(x.shape) < 2:
        raise refuse(f"input of type {x}", "[N, C, ...]")
    for name, vector in vectors.items():
        need_shape(name, vector, (x.shape[1],))


def _batch_norm_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias, mean, var = args
    if given["training"]:
        raise refuse("training=true", "false: batch statistics are not listed")
    _channels(x, weight=weight, bias=bias, running_mean=mean, running_var=var)
    _eps(given["eps"])
    return [x]


def _batch_norm(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias, mean, var = args
    shape = (-1, *[1] * (x.ndim - 2))
    scaled = (double(x) - double(mean).reshape(shape)) / np.sqrt(double(var).reshape(shape) + given["eps"])
    return _affine(np.asarray(scaled), weight, bias, shape, type_of(x).dtype)


define(
    "batch_norm(input: Tensor, weight: Tensor?, bias: Tensor?, running_mean: Tensor, running_var: Tensor; "
    "training: bool = false, momentum: float = 0.1, eps: float = 1e-05, cudnn_enabled: bool = true) -> 1",
    _batch_norm_rule,
    _batch_norm,
    "(input - running_mean) / sqrt(running_var + eps) * weight + bias by channel (dim 1); inference only.",
)


def _group_norm_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    _channels(x, weight=weight, bias=bias)
    in_range("num_groups", given["num_groups"], 1)
    if x.shape[1] % given["num_groups"]:
        raise refuse(f"{x.shape[1]} channels in {given['num_groups']} groups", "whole groups")
    _eps(given["eps"])
    return [x]


def _group_norm(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    groups = given["num_groups"]
    grouped = double(x).reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    out = standardized(grouped, tuple(range(2, grouped.ndim)), given["eps"])[0]
    return _affine(out.reshape(x.shape), weight, bias, (-1, *[1] * (x.ndim - 2)), type_of(x).dtype)


define(
    "group_norm(input: Tensor, weight: Tensor?, bias: Tensor?; num_groups: int, eps: float = 1e-05, "
    "cudnn_enabled: bool = true) -> 1",
    _group_norm_rule,
    _group_norm,
    "(input - mean) / sqrt(var + eps) over each group of channels, * weight + bias by channel.",
)
