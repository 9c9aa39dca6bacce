"""Scaled dot-product attention, as ATen's mathematical form computes it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._rules import broadcast, cast, in_range, need, same_dtype, single, type_of
from ._table import Array, Given, define, refuse, room


def _attention_rule(args: list[Any], given: Given) -> list[TensorType]:
    query, key, value, mask = args
    need("query", query, FLOATS)
    same_dtype(query=query, key=key, value=value)
    if (
        min(len(item.shape) for item in (query, key, value)) < 2
        or len({len(item.shape) for item in args[:3]}) > 1
    ):
        raise refuse(f"query, key, value of types {query}, {key}, {value}", "[..., length, size], one rank")
    if key.shape[:-1] != value.shape[:-1] or key.shape[-1] != query.shape[-1]:
        raise refuse(
            f"query, key, value of types {query}, {key}, {value}", "key as long as value and as wide as query"
        )
    _check_heads(query, key, given["enable_gqa"])
    if given["dropout_p"] != 0:
        raise refuse(f"dropout_p={given['dropout_p']}", "0: random ops are not listed")
    if given["scale"] is not None:
        in_range("scale", given["scale"], -math.inf)
    if mask is not None:
        _check_mask(mask, query, (*query.shape[:-1], key.shape[-2]), given)
    return [TensorType((*query.shape[:-1], value.shape[-1]), query.dtype)]


def _check_heads(query: TensorType, key: TensorType, grouped: bool) -> None:
    if not grouped:
        if query.shape[:-2] != key.shape[:-2]:
            raise refuse(
                f"query of shape {list(query.shape)}, key of shape {list(key.shape)}",
                "equal batch dims and heads",
            )
        return
    if (
        len(query.shape) < 3
        or query.shape[:-3] != key.shape[:-3]
        or not key.shape[-3]
        or query.shape[-3] % key.shape[-3]
    ):
        raise refuse(
            f"query of shape {list(query.shape)}, key of shape {list(key.shape)} with enable_gqa",
            "equal batch dims and a whole number of query heads for each key head",
        )


def _check_mask(mask: TensorType, query: TensorType, scores: tuple[int, ...], given: Given) -> None:
    if given["is_causal"]:
        raise refuse("attn_mask beside is_causal=true", "one of them")
    need("attn_mask", mask, frozenset({"bool", query.dtype}))
    if len(mask.shape) < 2 or broadcast(mask.shape, scores) != scores:
        raise refuse(
            f"attn_mask of shape {list(mask.shape)}", f"what broadcasts to {list(scores)}, of rank at least 2"
        )


def _attention(args: list[Any], given: Given) -> list[Array]:
    query, key, value, mask = args
    dtype = type_of(query).dtype
    query, key, value = single(query), single(key), single(value)
    if given["enable_gqa"]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (np.repeat(item, groups, axis=-3) for item in (key, value))
    if given["is_causal"]:
        mask = np.tri(query.shape[-2], key.shape[-2], dtype=bool)
    scale = given["scale"] if given["scale"] is not None else _default_scale(query.shape[-1])
    room((*query.shape[:-1], key.shape[-2]), "the scores")
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) * query.dtype.type(scale)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + single(mask)
    return [cast(np.asarray(np.matmul(weights(scores).astype(query.dtype), value)), dtype)]


def _default_scale(size: int) -> float:
    return 1 / math.sqrt(size) if size else math.inf


def weights(scores: Array) -> Array:
    """Softmax over the last dim; a row masked out altogether gives 0, as ATen's safe softmax does."""
    top = np.maximum.reduce(scores, axis=-1, keepdims=True, initial=-np.inf)
    shifted = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = np.add.reduce(shifted, axis=-1, keepdims=True)
    return np.asarray(np.where(np.isneginf(top), 0, shifted / total))


define(
    "scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor?; "
    "dropout_p: float = 0.0, is_causal: bool = false, scale: float? = none, enable_gqa: bool = false) -> 1",
    _attention_rule,
    _attention,
    "softmax(query @ key.T * scale + mask) @ value; a bool mask keeps where true, is_causal keeps key ≤ "
    "query; a row with nothing left gives 0; scale none is 1 / sqrt(size); enable_gqa shares each key "
    "head among query heads.",
)
