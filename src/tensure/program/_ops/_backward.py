"""Gradients as ATen names them, for captured and hand-written backward passes and training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._activations import ROOT_2_OVER_PI, check_approximate, erf, sigmoid, tanh_argument
from ._convolution import gradient_of_weight, spread, window_of
from ._rules import (
    INDICES,
    broadcast,
    cast,
    check_index,
    double,
    in_range,
    need,
    need_dtype,
    need_rank,
    need_shape,
    operand,
    same_dtype,
    single,
    type_of,
    wrap,
)
from ._shapes import put_slice, selected, sliced
from ._table import Array, Evaluate, Given, Infer, define, lookup, refuse

_ROOT_2_PI: Final = np.sqrt(2 * np.pi)

# --- element by element ---------------------------------------------------------------------------


def _pair_rule(args: list[Any], given: Given) -> list[TensorType]:
    grad, x = args
    dtype = same_dtype(grad_output=grad, operand=x)
    need_dtype("an operand", dtype, FLOATS)
    return [TensorType(broadcast(grad.shape, x.shape), dtype)]


def _pairwise(fn: Callable[[Array, Array], Any]) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        dtype = type_of(args[0]).dtype
        return [cast(np.asarray(fn(*(operand(arg, dtype) for arg in args))), dtype)]

    return evaluate


def _silu_gradient(g: Array, x: Array) -> Any:
    s = sigmoid(x)
    return g * s * (1 + x * (1 - s))


define(
    "sigmoid_backward(grad_output: Tensor, output: Tensor) -> 1",
    _pair_rule,
    _pairwise(lambda g, y: g * (1 - y) * y),
    "grad_output * (1 - output) * output.",
)
define(
    "tanh_backward(grad_output: Tensor, output: Tensor) -> 1",
    _pair_rule,
    _pairwise(lambda g, y: g * (1 - y * y)),
    "grad_output * (1 - output²).",
)
define(
    "silu_backward(grad_output: Tensor, self: Tensor) -> 1",
    _pair_rule,
    _pairwise(_silu_gradient),
    "grad_output * s * (1 + self * (1 - s)) with s = sigmoid(self).",
)
define(
    "threshold_backward(grad_output: Tensor, self: Tensor; threshold: number) -> 1",
    _pair_rule,
    lambda args, given: _pairwise(lambda g, x: np.where(x <= given["threshold"], np.zeros((), g.dtype), g))(
        args, given
    ),
    "grad_output where self is above threshold (or NaN), 0 elsewhere: the gradient of ReLU.",
)
define(
    "hardtanh_backward(grad_output: Tensor, self: Tensor; min_val: number, max_val: number) -> 1",
    _pair_rule,
    lambda args, given: _pairwise(
        lambda g, x: np.where((x <= given["min_val"]) | (x >= given["max_val"]), np.zeros((), g.dtype), g)
    )(args, given),
    "grad_output strictly between min_val and max_val (or at NaN), 0 elsewhere.",
)


def _gelu_gradient(g: Array, x: Array, approximate: str) -> Any:
    if approximate == "tanh":
        t = np.tanh(tanh_argument(x))
        slope = ROOT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)
    return g * (0.5 * (1 + erf(x / np.sqrt(2.0))) + x * np.exp(-0.5 * x * x) / _ROOT_2_PI)


def _gelu_rule(args: list[Any], given: Given) -> list[TensorType]:
    check_approximate(given)
    return _pair_rule(args, given)


define(
    'gelu_backward(grad_output: Tensor, self: Tensor; approximate: str = "none") -> 1',
    _gelu_rule,
    lambda args, given: _pairwise(lambda g, x: _gelu_gradient(g, x, given["approximate"]).astype(g.dtype))(
        args, given
    ),
    "grad_output times the slope of gelu at self.",
)

# --- softmax --------------------------------------------------------------------------------------


def _softmax_rule(args: list[Any], given: Given) -> list[TensorType]:
    grad, output = args
    if grad.shape != output.shape:
        raise refuse(f"grad_output of type {grad}, output of type {output}", "equal shapes")
    dtype = same_dtype(grad_output=grad, output=output)
    need_dtype("an operand", dtype, FLOATS)
    wrap(given["dim"], len(grad.shape))
    if given["input_dtype"] not in (dtype, "f16") or (
        given["input_dtype"] == "f16" and dtype not in ("f16", "f32")
    ):
        raise refuse(f"input_dtype={given['input_dtype']} for gradients of dtype {dtype}", f"{dtype}")
    return [TensorType(grad.shape, given["input_dtype"])]


def _total(x: Array, dim: int) -> Any:
    return x if x.ndim == 0 else np.add.reduce(x, axis=dim, keepdims=True)


define(
    "_softmax_backward_data(grad_output: Tensor, output: Tensor; dim: int, input_dtype: dtype) -> 1",
    _softmax_rule,
    lambda args, given: [
        cast(
            np.asarray(
                double(args[1]) * (double(args[0]) - _total(double(args[0]) * double(args[1]), given["dim"]))
            ),
            given["input_dtype"],
        )
    ],
    "output * (grad_output - sum(grad_output * output)) along dim.",
)
define(
    "_log_softmax_backward_data(grad_output: Tensor, output: Tensor; dim: int, input_dtype: dtype) -> 1",
    _softmax_rule,
    lambda args, given: [
        cast(
            np.asarray(double(args[0]) - np.exp(double(args[1])) * _total(double(args[0]), given["dim"])),
            given["input_dtype"],
        )
    ],
    "grad_output - exp(output) * sum(grad_output) along dim.",
)

# --- parts put back -------------------------------------------------------------------------------


def _whole(name: str) -> Infer:
    """The shape rule of the gradient of a part: input_sizes, whose part `name` must be grad_output."""

    def infer(args: list[Any], given: Given) -> list[TensorType]:
        (grad,) = args
        if any(size < 0 for size in given["input_sizes"]):
            raise refuse(f"input_sizes={list(given['input_sizes'])}", "dims of at least 0")
        whole = TensorType(given["input_sizes"], grad.dtype)
        (part,) = lookup(name).infer([whole], given)
        need_shape("grad_output", grad, part.shape)
        return [whole]

    return infer


def _put_back(args: list[Any], given: Given, place: Callable[[Any, Given], Any]) -> list[Array]:
    (grad,) = args
    out = np.zeros(given["input_sizes"], dtype=grad.dtype)
    dim, part = place(out, given)
    put_slice(out, dim, part, grad)
    return [out]


define(
    "slice_backward(grad_output: Tensor; input_sizes: int[], dim: int, start: int, end: int, step: int) -> 1",
    _whole("slice"),
    lambda args, given: _put_back(args, given, sliced),
    "grad_output put at the slice of a tensor of zeros of input_sizes.",
)
define(
    "select_backward(grad_output: Tensor; input_sizes: int[], dim: int, index: int) -> 1",
    _whole("select"),
    lambda args, given: _put_back(args, given, selected),
    "grad_output put at index along dim of a tensor of zeros of input_sizes.",
)


def _embedding_rule(args: list[Any], given: Given) -> list[TensorType]:
    grad, indices = args
    need("grad_output", grad, FLOATS)
    need("indices", indices, INDICES)
    in_range("num_weights", given["num_weights"], 0)
    if given["scale_grad_by_freq"]:
        raise refuse("scale_grad_by_freq=true", "false")
    if not grad.shape:
        raise refuse("grad_output of rank 0", "indices' shape and one dim more")
    need_shape("grad_output", grad, (*indices.shape, grad.shape[-1]))
    return [TensorType((given["num_weights"], grad.shape[-1]), grad.dtype)]


def _embedding(args: list[Any], given: Given) -> list[Array]:
    grad, indices = args
    check_index(indices, 0, given["num_weights"], "indices")
    out = np.zeros((given["num_weights"], grad.shape[-1]), dtype=np.float64)
    kept = indices != given["padding_idx"]
    np.add.at(out, indices[kept], double(grad)[kept])
    return [cast(out, type_of(grad).dtype)]


define(
    "embedding_dense_backward(grad_output: Tensor, indices: Tensor; num_weights: int, padding_idx: int, "
    "scale_grad_by_freq: bool) -> 1",
    _embedding_rule,
    _embedding,
    "The rows of grad_output added up by index; padding_idx gets none.",
)

# --- convolution ----------------------------------------------------------------------------------


def _convolution_rule(args: list[Any], given: Given) -> list[TensorType]:
    grad, x, weight = args
    if given["transposed"]:
        raise refuse("transposed=true", "false: the gradient of a transposed convolution is not listed")
    if len(given["output_mask"]) != 3:
        raise refuse(f"output_mask={list(given['output_mask'])}", "three flags: input, weight, bias")
    forward = {key: value for key, value in given.items() if key not in ("bias_sizes", "output_mask")}
    (out,) = lookup("convolution").infer([x, weight, None], forward)
    same_dtype(grad_output=grad, input=x)
    need_shape("grad_output", grad, out.shape)
    if given["bias_sizes"] is not None and given["bias_sizes"] != weight.shape[:1]:
        raise refuse(f"bias_sizes={list(given['bias_sizes'])}", f"{list(weight.shape[:1])}")
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return [
        TensorType(shape if wanted else (0,), grad.dtype)
        for shape, wanted in zip(shapes, given["output_mask"], strict=True)
    ]


def _convolution(args: list[Any], given: Given) -> list[Array]:
    grad, x, weight = args
    dtype, (to_input, to_weight, to_bias) = type_of(grad).dtype, given["output_mask"]
    window, groups = window_of(weight.shape[2:], given), given["groups"]
    none = np.zeros(0, dtype=grad.dtype)
    g = single(grad)
    return [
        cast(spread(g, single(weight), window, groups, x.shape[2:]), dtype) if to_input else none,
        cast(gradient_of_weight(g, single(x), weight.shape, window, groups), dtype) if to_weight else none,
        cast(np.asarray(double(grad).sum(axis=(0, *range(2, grad.ndim)))), dtype) if to_bias else none,
    ]


define(
    "convolution_backward(grad_output: Tensor, input: Tensor, weight: Tensor; bias_sizes: int[]?, stride: "
    "int[], padding: int[], dilation: int[], transposed: bool, output_padding: int[], groups: int, "
    "output_mask: bool[]) -> 3",
    _convolution_rule,
    _convolution,
    "Gradients of convolution for input, weight and bias; one that output_mask leaves out has shape [0].",
)

# --- negative log likelihood ----------------------------------------------------------------------

_REDUCTIONS: Final = ("none", "mean", "sum")


def _classes(x: TensorType, target: TensorType, weight: TensorType | None, given: Given) -> None:
    need("self", x, FLOATS)
    need("target", target, frozenset({"i64"}))
    need_rank("self", x, 1, 2)
    need_shape("target", target, x.shape[:-1])
    need_shape("weight", weight, x.shape[-1:])
    same_dtype(self=x, weight=weight)
    in_range("reduction", given["reduction"], 0, 2)


def _picked(
    x: Array, target: Array, weight: Array | None, given: Given
) -> tuple[Array, tuple[Array, ...], Array]:
    """Each sample's weight (0 where ignored), where its class stands, and the value there."""
    kept = np.asarray(target != given["ignore_index"])
    check_index(target[kept], 0, x.shape[-1], "target")
    safe = np.where(kept, target, 0)
    spot: tuple[Array, ...] = (safe,) if x.ndim == 1 else (np.arange(x.shape[0]), safe)
    per_class = np.ones(x.shape[-1]) if weight is None else double(weight)
    return np.where(kept, per_class[safe], 0.0), spot, kept


def _nll_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, target, weight = args
    _classes(x, target, weight, given)
    shape = x.shape[:1] if given["reduction"] == 0 and len(x.shape) == 2 else ()
    return [TensorType(shape, x.dtype), TensorType((), x.dtype)]


def _nll(args: list[Any], given: Given) -> list[Array]:
    x, target, weight = args
    dtype = type_of(x).dtype
    share, spot, kept = _picked(x, target, weight, given)
    loss = np.where(kept, -double(x)[spot] * share, 0.0)
    total = share.sum()
    if given["reduction"] == 0 and x.ndim == 2:
        return [cast(loss, dtype), cast(np.zeros(()), dtype)]
    out = loss.sum()
    if given["reduction"] == 1:
        out = np.divide(out, total)
    return [cast(np.asarray(out), dtype), cast(np.asarray(total), dtype)]


define(
    "nll_loss_forward(self: Tensor, target: Tensor, weight: Tensor?; reduction: int, ignore_index: int) -> 2",
    _nll_rule,
    _nll,
    "-self at each sample's class (times its weight) and the total weight; reduction 0 none, 1 mean, 2 "
    "sum. A class out of range is an error unless it is ignore_index.",
)


def _nll_gradient_rule(args: list[Any], given: Given) -> list[TensorType]:
    grad, x, target, weight, total = args
    _classes(x, target, weight, given)
    same_dtype(grad_output=grad, self=x, total_weight=total)
    need_shape("grad_output", grad, x.shape[:1] if given["reduction"] == 0 and len(x.shape) == 2 else ())
    need_shape("total_weight", total, ())
    return [x]


def _nll_gradient(args: list[Any], given: Given) -> list[Array]:
    grad, x, target, weight, total = args
    share, spot, kept = _picked(x, target, weight, given)
    scale = double(grad) / double(total) if given["reduction"] == 1 else double(grad)
    out = np.zeros(x.shape)
    out[spot] = np.where(kept, -share * scale, 0.0)
    return [cast(out, type_of(x).dtype)]


define(
    "nll_loss_backward(grad_output: Tensor, self: Tensor, target: Tensor, weight: Tensor?, total_weight: "
    "Tensor; reduction: int, ignore_index: int) -> 1",
    _nll_gradient_rule,
    _nll_gradient,
    "The gradient of nll_loss_forward for self.",
)


def _loss_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, target = args
    dtype = same_dtype(self=x, target=target)
    need_dtype("an operand", dtype, FLOATS)
    in_range("reduction", given["reduction"], 0, 2)
    shape = broadcast(x.shape, target.shape)
    return [TensorType(() if given["reduction"] else shape, dtype)]


def _mse(args: list[Any], given: Given) -> list[Array]:
    x, target = args
    squares = np.asarray(np.square(double(x) - double(target)))
    if given["reduction"]:
        squares = np.asarray(np.divide(squares.sum(), squares.size if given["reduction"] == 1 else 1))
    return [cast(squares, type_of(x).dtype)]


define(
    "mse_loss(self: Tensor, target: Tensor; reduction: int = 1) -> 1",
    _loss_rule,
    _mse,
    "Squared differences; reduction 0 none, 1 mean, 2 sum.",
)
