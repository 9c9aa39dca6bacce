"""Calls of products, convolutions, pools, norms, attention and gradients that the op and ATen both accept."""

from __future__ import annotations

from typing import Any

import numpy as np

from .op_draws import (
    CASES,
    FLOATS,
    INTEGERS,
    Case,
    Draw,
    case,
    dim,
    flag,
    index,
    one,
    partner,
    shape,
    small,
    span,
    tensor,
)

# --- algebra --------------------------------------------------------------------------------------

PRODUCTS = ["f32", "f64", "bf16", "f16", "i64", "i32"]


def sizes(draw: Draw, count: int) -> list[int]:
    return [small(draw, 0, 5) for _ in range(count)]


@case("mm", "outer")
def _mm(draw: Draw) -> Case:
    m, k, n = sizes(draw, 3)
    dtype = one(draw, PRODUCTS)
    return Case([tensor(draw, (m, k), dtype), tensor(draw, (k, n), dtype)], slack=8)


CASES["outer"] = lambda draw: (
    lambda dtype: Case([tensor(draw, (small(draw, 0, 5),), dtype), tensor(draw, (small(draw, 0, 5),), dtype)])
)(one(draw, PRODUCTS))


@case("bmm")
def _bmm(draw: Draw) -> Case:
    b, m, k, n = sizes(draw, 4)
    dtype = one(draw, PRODUCTS)
    return Case([tensor(draw, (b, m, k), dtype), tensor(draw, (b, k, n), dtype)], slack=8)


@case("matmul")
def _matmul(draw: Draw) -> Case:
    m, k, n = sizes(draw, 3)
    dtype = one(draw, PRODUCTS)
    batch = shape(draw, 0, 2)
    left = one(draw, [(k,), (m, k), (*partner(draw, batch), m, k)])
    right = one(draw, [(k,), (k, n), (*batch, k, n)])
    return Case([tensor(draw, left, dtype), tensor(draw, right, dtype)], slack=8)


@case("mv")
def _mv(draw: Draw) -> Case:
    m, k = sizes(draw, 2)
    dtype = one(draw, PRODUCTS)
    return Case([tensor(draw, (m, k), dtype), tensor(draw, (k,), dtype)], slack=8)


@case("dot")
def _dot(draw: Draw) -> Case:
    k, dtype = small(draw, 0, 9), one(draw, PRODUCTS)
    return Case([tensor(draw, (k,), dtype), tensor(draw, (k,), dtype)], slack=16)


def scales(draw: Draw, dtype: str) -> dict[str, Any]:
    choices = [0, 1, 2] if dtype in INTEGERS else [0, 1, 0.5, -2]
    return {"beta": one(draw, choices), "alpha": one(draw, choices)}


@case("addmm")
def _addmm(draw: Draw) -> Case:
    m, k, n = sizes(draw, 3)
    dtype = one(draw, PRODUCTS)
    base = tensor(draw, partner(draw, (m, n)), dtype)
    return Case(
        [base, tensor(draw, (m, k), dtype), tensor(draw, (k, n), dtype)], scales(draw, dtype), slack=16
    )


@case("baddbmm")
def _baddbmm(draw: Draw) -> Case:
    b, m, k, n = sizes(draw, 4)
    dtype = one(draw, PRODUCTS)
    base = tensor(draw, (b, m, n), dtype)
    return Case(
        [base, tensor(draw, (b, m, k), dtype), tensor(draw, (b, k, n), dtype)], scales(draw, dtype), slack=32
    )


@case("linear")
def _linear(draw: Draw) -> Case:
    k, n = sizes(draw, 2)
    dtype = one(draw, ["f32", "f64", "bf16", "f16"])
    bias = tensor(draw, (n,), dtype) if flag(draw) else None
    return Case([tensor(draw, (*shape(draw, 0, 3), k), dtype), tensor(draw, (n, k), dtype), bias], slack=16)


@case("einsum")
def _einsum(draw: Draw) -> Case:
    equation = one(
        draw,
        ["ij,jk->ik", "bqhk,bthk->bhqt", "ab,bc,cd->ad", "ii->i", "ab->", "a,b->ba", "abc->ca", "aab,b->a"],
    )
    extents = {letter: small(draw, 0, 3) for letter in "abcdijkqht"}
    dtype = one(draw, ["f32", "f64", "i64"])
    terms = equation.split("->")[0].split(",")
    args = [tensor(draw, tuple(extents[letter] for letter in term), dtype) for term in terms]
    return Case(args, {"equation": equation}, slack=16)


# --- convolution, pooling, normalisation, attention -----------------------------------------------


def convolved(draw: Draw, *, transposed: bool) -> Case:
    count = small(draw, 1, 3)
    groups = one(draw, [1, 1, 2, 3])
    low, high = small(draw, 1, 2), small(draw, 1, 2)
    kernel = tuple(small(draw, 1, 3) for _ in range(count))
    dilation = tuple(small(draw, 1, 2) for _ in range(count))
    stride = tuple(small(draw, 1, 2) for _ in range(count))
    padding = tuple(small(draw, 0, 1 if k > 1 else 0) for k in kernel)
    spatial = tuple((k - 1) * d + small(draw, 1, 4) for k, d in zip(kernel, dilation, strict=True))
    dtype = one(draw, ["f32", "f64", "bf16"])
    num = small(draw, 0, 2)
    x = tensor(draw, (num, low * groups, *spatial), dtype)
    weight = tensor(
        draw, (low * groups, high, *kernel) if transposed else (high * groups, low, *kernel), dtype
    )
    bias = tensor(draw, (high * groups,), dtype) if flag(draw) else None
    extra = tuple(
        small(draw, 0, max(s, d) - 1) if transposed else 0 for s, d in zip(stride, dilation, strict=True)
    )
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "transposed": transposed}
    return Case([x, weight, bias], {**attrs, "output_padding": extra, "groups": groups}, slack=32)


@case("convolution")
def _convolution(draw: Draw) -> Case:
    return convolved(draw, transposed=flag(draw))


def pooled(draw: Draw, dtypes: list[str], *, dilated: bool) -> Case:
    kernel = (small(draw, 1, 3), small(draw, 1, 3))
    dilation = (small(draw, 1, 2), small(draw, 1, 2)) if dilated else (1, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = (*shape(draw, 1, 2, side=1), reach[0] + small(draw, 0, 4), reach[1] + small(draw, 0, 4))
    attrs = {
        "kernel_size": kernel,
        "stride": one(draw, [(), (1, 1), (2, 3)]),
        "padding": tuple(small(draw, 0, k // 2) for k in kernel),
        "ceil_mode": flag(draw),
    }
    return Case(
        [tensor(draw, size, one(draw, dtypes))], attrs | ({"dilation": dilation} if dilated else {}), slack=4
    )


@case("max_pool2d")
def _max_pool(draw: Draw) -> Case:
    return pooled(draw, ["f32", "f64", "bf16", "i64"], dilated=True)


@case("avg_pool2d")
def _avg_pool(draw: Draw) -> Case:
    found = pooled(draw, ["f32", "f64", "bf16"], dilated=False)
    more = {"count_include_pad": flag(draw), "divisor_override": one(draw, [None, 3])}
    return Case(found.args, found.attrs | more, slack=4)


@case("adaptive_avg_pool2d")
def _adaptive(draw: Draw) -> Case:
    size = (*shape(draw, 1, 2, side=1), small(draw, 1, 7), small(draw, 1, 7))
    x = tensor(draw, size, one(draw, ["f32", "f64", "bf16"]))
    return Case([x], {"output_size": (small(draw, 1, 5), small(draw, 1, 5))}, slack=4)


def normed(draw: Draw, *, dtypes: list[str]) -> tuple[Any, list[Any], tuple[int, ...], str]:
    size = shape(draw, 1, 4, side=1)
    dtype = one(draw, dtypes)
    inner = size[small(draw, 0, len(size) - 1) :]
    affine = [tensor(draw, inner, dtype) if flag(draw) else None for _ in range(2)]
    return tensor(draw, size, dtype), affine, inner, dtype


EPS = [1e-5, 1e-3, 0.1]


@case("rms_norm")
def _rms_norm(draw: Draw) -> Case:
    x, affine, inner, _ = normed(draw, dtypes=FLOATS)
    return Case([x, affine[0]], {"normalized_shape": inner, "eps": one(draw, [None, *EPS])}, slack=8)


@case("layer_norm", "native_layer_norm")
def _layer_norm(draw: Draw) -> Case:
    x, affine, inner, _ = normed(draw, dtypes=["f32", "f64"])
    return Case([x, *affine], {"normalized_shape": inner, "eps": one(draw, EPS)}, slack=300)


@case("batch_norm")
def _batch_norm(draw: Draw) -> Case:
    size, dtype = shape(draw, 2, 4, side=1), one(draw, ["f32", "f64", "bf16"])
    x = tensor(draw, size, dtype)
    affine = [tensor(draw, size[1:2], dtype) if flag(draw) else None for _ in range(2)]
    moments = [tensor(draw, size[1:2], dtype), tensor(draw, size[1:2], dtype, low=0.1)]
    fixed = {"training": False, "momentum": 0.1, "cudnn_enabled": True}
    return Case([x, *affine, *moments], {**fixed, "eps": one(draw, EPS)}, slack=16)


@case("group_norm")
def _group_norm(draw: Draw) -> Case:
    groups, dtype = small(draw, 1, 3), one(draw, ["f32", "f64"])
    size = (small(draw, 1, 3), groups * small(draw, 1, 2), *shape(draw, 0, 2, side=1))
    affine = [tensor(draw, size[1:2], dtype) if flag(draw) else None for _ in range(2)]
    return Case(
        [tensor(draw, size, dtype), *affine], {"num_groups": groups, "eps": one(draw, EPS)}, slack=300
    )


@case("scaled_dot_product_attention")
def _attention(draw: Draw) -> Case:
    batch, heads, length, keys, wide, out = (small(draw, 1, 3) for _ in range(6))
    grouped = flag(draw)
    dtype = one(draw, ["f32", "f64", "bf16"])
    query = tensor(draw, (batch, heads * (2 if grouped else 1), length, wide), dtype)
    key = tensor(draw, (batch, heads, keys, wide), dtype)
    value = tensor(draw, (batch, heads, keys, out if flag(draw) else wide), dtype)
    kind = one(draw, ["none", "bool", "float", "causal"])
    mask = None
    if kind in ("bool", "float"):
        size = one(draw, [(length, keys), (batch, 1, length, keys), (batch, query.shape[1], length, keys)])
        mask = tensor(draw, size, "bool")
        if kind == "float":
            mask = np.where(mask, tensor(draw, size, "f32"), -np.inf).astype(query.dtype)
    attrs = {
        "is_causal": kind == "causal",
        "scale": one(draw, [None, 0.5]),
        "enable_gqa": grouped,
        "dropout_p": 0.0,
    }
    return Case([query, key, value, mask], attrs, slack=32)


# --- gradients ------------------------------------------------------------------------------------


def gradient(draw: Draw) -> list[Any]:
    size, dtype = shape(draw), one(draw, ["f32", "f64", "bf16"])
    return [tensor(draw, size, dtype), tensor(draw, size, dtype)]


@case("sigmoid_backward", "tanh_backward", "silu_backward")
def _pointwise_backward(draw: Draw) -> Case:
    return Case(gradient(draw), slack=16)


@case("threshold_backward")
def _threshold_backward(draw: Draw) -> Case:
    return Case(gradient(draw), {"threshold": one(draw, [0, 1, 0.5])})


@case("hardtanh_backward")
def _hardtanh_backward(draw: Draw) -> Case:
    return Case(gradient(draw), {"min_val": one(draw, [0, -1.0]), "max_val": one(draw, [2, 1.5])})


@case("gelu_backward")
def _gelu_backward(draw: Draw) -> Case:
    return Case(gradient(draw), {"approximate": one(draw, ["none", "tanh"])}, slack=16)


@case("_softmax_backward_data", "_log_softmax_backward_data")
def _softmax_backward(draw: Draw) -> Case:
    size, dtype = shape(draw), one(draw, ["f32", "f64"])
    args = [tensor(draw, size, dtype), tensor(draw, size, dtype, low=-2, high=1)]
    return Case(args, {"dim": dim(draw, len(size)), "input_dtype": dtype}, slack=16)


@case("slice_backward")
def _slice_backward(draw: Draw) -> Case:
    size = shape(draw, 1)
    at = dim(draw, len(size)) % len(size)
    attrs = span(draw, size[at])
    attrs["start"] = 0 if attrs["start"] is None else attrs["start"]
    attrs["end"] = size[at] if attrs["end"] is None else attrs["end"]
    count = len(range(size[at])[slice(attrs["start"], attrs["end"], attrs["step"])])
    grad = tensor(draw, (*size[:at], count, *size[at + 1 :]), one(draw, FLOATS))
    return Case([grad], {"input_sizes": size, "dim": at, **attrs})


@case("select_backward")
def _select_backward(draw: Draw) -> Case:
    size = shape(draw, 1, side=1)
    at = dim(draw, len(size)) % len(size)
    grad = tensor(draw, (*size[:at], *size[at + 1 :]), one(draw, FLOATS))
    return Case([grad], {"input_sizes": size, "dim": at, "index": small(draw, -size[at], size[at] - 1)})


@case("embedding_dense_backward")
def _embedding_backward(draw: Draw) -> Case:
    rows = small(draw, 1, 5)
    places = index(draw, shape(draw, 1, 2, side=1), rows)
    grad = tensor(draw, (*places.shape, small(draw, 1, 4)), one(draw, ["f32", "f64"]))
    attrs = {"num_weights": rows, "padding_idx": small(draw, -1, rows - 1), "scale_grad_by_freq": False}
    return Case([grad, places], attrs, slack=8)


@case("convolution_backward")
def _convolution_backward(draw: Draw) -> Case:
    forward = convolved(draw, transposed=False)
    x, weight, _ = forward.args
    attrs = forward.attrs
    out = [
        (n + 2 * p - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(
            x.shape[2:], attrs["padding"], weight.shape[2:], attrs["dilation"], attrs["stride"], strict=True
        )
    ]
    x = tensor(draw, x.shape, "f32")
    weight = tensor(draw, weight.shape, "f32")
    grad = tensor(draw, (x.shape[0], weight.shape[0], *out), "f32")
    asked = (flag(draw), flag(draw), flag(draw))
    more = {"bias_sizes": weight.shape[:1], "output_mask": asked}
    unasked = tuple(at for at in range(3) if not asked[at])
    return Case([grad, x, weight], {**attrs, **more}, slack=64, unasked=unasked)


def classified(draw: Draw) -> tuple[Any, Any, Any, dict[str, Any]]:
    classes, dtype = small(draw, 1, 4), one(draw, ["f32", "f64"])
    size = one(draw, [(classes,), (small(draw, 1, 4), classes)])
    target = np.asarray(index(draw, size[:-1], classes))
    weight = tensor(draw, (classes,), dtype, low=0.5) if flag(draw) else None
    ignored = one(draw, [-100, 0])
    return (
        tensor(draw, size, dtype),
        target,
        weight,
        {"reduction": small(draw, 0, 2), "ignore_index": ignored},
    )


@case("nll_loss_forward")
def _nll(draw: Draw) -> Case:
    x, target, weight, attrs = classified(draw)
    return Case([x, target, weight], attrs, slack=8)


@case("nll_loss_backward")
def _nll_backward(draw: Draw) -> Case:
    x, target, weight, attrs = classified(draw)
    grad = tensor(draw, x.shape[:1] if attrs["reduction"] == 0 and x.ndim == 2 else (), "f32").astype(x.dtype)
    total = tensor(draw, (), "f32", low=1).astype(x.dtype)
    return Case([grad, x, target, weight, total], attrs, slack=8)


@case("mse_loss")
def _mse(draw: Draw) -> Case:
    size, dtype = shape(draw, side=1), one(draw, ["f32", "f64"])
    return Case(
        [tensor(draw, size, dtype), tensor(draw, size, dtype)], {"reduction": small(draw, 0, 2)}, slack=16
    )
