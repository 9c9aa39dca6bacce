"""Losses: what a graph exported with its training objective computes at the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.errors import FormatError

from ._builder import Builder, Tensor
from ._indexing import check_known
from ._table import Attributes, onnx_op

_LOSS = 'reduction: str = "mean", ignore_index: int?'


def _picked_loss(b: Builder, scores: Tensor, target: Tensor, weight: Tensor | None, a: Attributes) -> Tensor:
    """Minus the score of each sample's class, times its weight; nothing for a class that is ignored."""
    n, c, rest = scores.shape[0], scores.shape[1], scores.shape[2:]
    if target.shape != (n, *rest) or (weight is not None and weight.shape != (c,)):
        raise FormatError(
            f"target of shape {list(target.shape)}", wanted=f"{[n, *rest]}, weights of {c} classes"
        )
    whole = b.cast(target, "i64")
    kept: Tensor | None = None
    if a["ignore_index"] is not None:
        kept = b.op("ne", whole, a["ignore_index"])
        whole = b.op("where", kept, whole, b.known(np.zeros((), np.int64)))
    else:
        check_known(target, c, "target")
    index = b.op("unsqueeze", whole, dim=1)
    loss = b.op("neg", b.reshape(b.op("gather", scores, index, dim=1), target.shape))
    share: Tensor | None = None
    if weight is not None:
        flat = b.op("index_select", weight, b.reshape(whole, (math.prod(target.shape),)), dim=0)
        share = b.reshape(flat, target.shape)
    if kept is not None:
        ones = b.cast(kept, scores.dtype)
        share = ones if share is None else b.op("mul", share, ones)
        zero = b.full((), 0, scores.dtype)
        loss = b.op("where", kept, loss, zero)
    if share is not None:
        loss = b.op("mul", loss, share)
    if a["reduction"] == "none":
        return loss
    total = b.op("sum", loss)
    if a["reduction"] == "sum":
        return total
    if a["reduction"] != "mean":
        raise FormatError(f"reduction={a['reduction']!r}", wanted="none, sum or mean")
    return b.op("mean", loss) if share is None else b.op("div", total, b.op("sum", share))


def _check(scores: Tensor) -> None:
    if scores.rank < 2:
        raise FormatError(f"scores of shape {list(scores.shape)}", wanted="[N, C, ...]")


@onnx_op(f"NegativeLogLikelihoodLoss(input, target, weight?; {_LOSS})")
def _nll(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    _check(x[0])
    scores, target, weight = x
    return _picked_loss(b, scores, target, weight, a)


@onnx_op(f"SoftmaxCrossEntropyLoss(scores, labels, weights?; {_LOSS})")
def _cross_entropy(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    _check(x[0])
    logs = b.op("log_softmax", x[0], dim=1)
    return [_picked_loss(b, logs, x[1], x[2], a), logs]
