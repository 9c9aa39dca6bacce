"""What kinds of op there are, as far as comparing two runs goes: the same thing under several names, ops that
only move values, ops that only rename them, and how many terms a result sums.

Knows names of ATen and of our op table. Computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = [
    "EXACT",
    "family",
    "is_dequantiser",
    "is_exact",
    "is_quantiser",
    "is_view",
    "reduction_length",
    "unset_outputs",
]

_SAME: Final = {
    "conv1d": "convolution",
    "conv2d": "convolution",
    "conv3d": "convolution",
    "_convolution": "convolution",
    "mkldnn_convolution": "convolution",
    "mkldnn_linear": "mm",
    "_conv_depthwise2d": "convolution",
    "linear": "mm",
    "addmm": "mm",
    "matmul": "mm",
    "bmm": "mm",
    "baddbmm": "mm",
    "einsum": "mm",
    "mv": "mm",
    "dot": "mm",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "relu6": "hardtanh",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "add_n": "add",
    "rsub": "sub",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "max_pool2d_with_indices": "max_pool2d",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_attention_math": "attention",
    "scaled_dot_product_attention": "attention",
    "index_select": "embedding",
    "gather": "index",
    "slice_scatter": "scatter",
    "index_put": "scatter",
    "copy_": "scatter",
}

_VIEWS: Final = frozenset(
    "view reshape _unsafe_view _reshape_alias flatten squeeze unsqueeze alias detach copy clone contiguous "
    "lift_fresh lift_fresh_copy view_as unflatten".split()
)
"""The same values in the same order: nothing that a comparison of values could see."""

EXACT: Final = _VIEWS | frozenset(
    "permute transpose t expand slice select narrow split split_with_sizes chunk unbind cat concat "
    "stack flip roll index embedding gather where masked_fill relu maximum minimum amax amin "
    "max_pool2d clamp hardtanh neg abs sign constant_pad_nd pad eq ne lt le gt ge logical_and "
    "logical_or logical_not bitwise_and bitwise_or bitwise_xor bitwise_not scatter slice_scatter "
    "index_put tril triu full zeros ones zero_ fill_ copy_ arange argmax argmin isnan isinf repeat "
    "topk sort as_strided diagonal movedim".split()
)
"""Ops that hand values on as they are: two right answers are the same bits."""

_SUMS: Final = frozenset(
    "sum mean var std var_mean softmax log_softmax layer_norm group_norm rms_norm batch_norm avg_pool2d "
    "adaptive_avg_pool2d cumsum norm linalg_vector_norm logsumexp prod".split()
)


def family(op: str) -> str:
    """One name for what an op does, whatever it is called and whether it writes in place."""
    plain = op.rpartition("::")[2]
    plain = plain if plain in _SAME else plain.rstrip("_") if not plain.startswith("_") else plain
    return _SAME.get(plain, plain)


def is_view(op: str) -> bool:
    """Whether an op only renames what it is given."""
    return op.rpartition("::")[2] in _VIEWS


def is_dequantiser(op: str) -> bool:
    """Whether an op gives the numbers that integers stand for."""
    return op.rpartition("::")[2].startswith("dequantize")


def is_quantiser(op: str) -> bool:
    """Whether an op rounds numbers to integers that stand for them."""
    return op.rpartition("::")[2].startswith("quantize")


def unset_outputs(op: str) -> frozenset[int]:
    """Which results of an op hold memory that nobody has set: fresh buffers, a kernel's own workspace."""
    plain = op.rpartition("::")[2]
    if plain.startswith(("empty", "new_empty", "_empty")):
        return frozenset({0})
    return frozenset({3}) if plain == "mkldnn_rnn_layer" else frozenset()


def is_exact(op: str) -> bool:
    """Whether two right answers must be the same bits."""
    plain = op.rpartition("::")[2]
    return plain in EXACT or plain.rstrip("_") in EXACT or family(op) in EXACT


def reduction_length(op: str, reads: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """How many terms one element of the result sums, 1 for an op that sums nothing.

    Args:
        op: its name.
        reads: shapes of the tensors it read, in order.
        out: shape of its first result.
    """
    kind = family(op)
    if kind == "convolution":
        return max((math.prod(shape[1:]) for shape in reads[1:2] if len(shape) >= 3), default=1)
    if kind == "mm":
        # The product of all sizes over the result's is the contracted extent squared, batches apart.
        pair = [shape for shape in reads if len(shape) >= 1][-2:]
        if plain_addmm(op) and len(reads) >= 3:
            pair = list(reads[1:3])
        elif family(op) == "mm" and op.rpartition("::")[2] == "linear":
            pair = list(reads[:2])
        if len(pair) < 2:
            return 1
        return max(pair[0][-1], 1)
    if kind == "attention":
        return max(reads[0][-1] + reads[1][-2], 1) if len(reads) > 1 and len(reads[1]) > 1 else 1
    if kind in _SUMS:
        size = max((math.prod(shape) for shape in reads[:1]), default=1)
        if kind in ("batch_norm",):
            return 2
        if kind in ("softmax", "log_softmax", "layer_norm", "rms_norm", "cumsum"):
            return max(reads[0][-1], 1) if reads and reads[0] else 1
        return max(size // max(math.prod(out), 1), 1)
    return 1


def plain_addmm(op: str) -> bool:
    """Whether the sum's other term comes first."""
    return op.rpartition("::")[2] in ("addmm", "baddbmm", "addmv")
