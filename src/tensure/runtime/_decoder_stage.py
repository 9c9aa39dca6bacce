"""A decoder's stored weights as a kernel stage: quantised matrices stay quantised, in layouts kernels like.

Q4_0, Q4_1 and Q8_0 matrices are repacked as they are read (every weight to the bit, twice the speed) or used
where they lie in the file; Q4_K is used where it lies; f32, f16 and bf16 are too. Encodings that no kernel
multiplies are decoded to f32. Knows a Program's weight names; does not know bundles or requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tensure import kernels
from tensure.kernels import Arithmetic, DecoderLayer, DecoderSizes, DecoderStage, GemvWeights, PlainMatrix
from tensure.program import DecoderConfig, StoredTensor, Weights

from ._mapped import forget_pages

__all__ = ["build_stage", "stage_bytes"]

Floats: TypeAlias = NDArray[np.float32]
Matrix: TypeAlias = "GemvWeights | PlainMatrix"

_REPACKED: Final = ("q4_0", "q4_1", "q8_0")
_PLAIN: Final = {"f32": "f32", "wide_f16": "f16", "wide_bf16": "bf16"}
_TABLE_ROWS: Final = 1024
_MATRICES: Final = ("q", "k", "v", "o", "gate", "up", "down")


def build_stage(
    config: DecoderConfig,
    weights: Weights,
    *,
    layers: Sequence[int] | None = None,
    kv_format: str = "f16",
    arithmetic: Arithmetic = "fine",
    in_place: bool = False,
    threads: int = 1,
) -> DecoderStage:
    """The stage that computes these layers; the first also reads tokens, the last also gives logits.

    Args:
        config: what `read_decoder` found; its `context` is the length of the cache.
        weights: by printed name, `q[3]`; each block of them is checked as it is taken.
        layers: which, adjacent and in order; all when None.
        arithmetic: of quantised matrices; with "fast" the head is still multiplied by "fine".
        in_place: read GGUF blocks where they are instead of repacking them: no memory of their own, half
            the speed.
        threads: to repack with.

    Raises:
        DamageError: a block of the weights is not what was signed.
    """
    chosen = range(config.layers) if layers is None else layers
    reader = _Reader(weights, in_place, threads)
    cosine, sine = _rotary_tables(reader.vector("inv_freq"), config.context)
    first, last = chosen[0] == 0, chosen[-1] == config.layers - 1
    head = (reader.matrix("embed" if config.tied else "head"), reader.vector("norm")) if last else None
    embed = None
    if first:
        # A tied matrix is held once: rows are looked up where the head is multiplied.
        tied = head is not None and config.tied and reader.can_look_up("embed")
        embed = head[0] if tied and head is not None else reader.rows("embed")
    return DecoderStage(
        _sizes(config),
        cosine,
        sine,
        [_layer(config, reader, index) for index in chosen],
        embed=embed,
        head=head,
        kv_format=kv_format,
        arithmetic=arithmetic,
        # Fifteen bits for the head's activations cost nothing that shows and take a third off the divergence.
        head_arithmetic="fine" if arithmetic == "fast" else arithmetic,
    )


def stage_bytes(config: DecoderConfig, weights: Weights, *, in_place: bool) -> int:
    """About the memory that `build_stage` takes for all layers; what it reads where it lies is not counted.

    No byte of a weight is read.
    """
    total = 4 * config.context * config.head_dim  # rotary tables
    for name, (shape, encoding) in _described(weights).items():
        if len(shape) != 2 or (name == "embed" and not config.tied and encoding in _REPACKED):
            continue
        rows, cols = shape
        if encoding in _REPACKED:
            total += 0 if in_place else kernels.repacked_bytes(encoding, rows, cols)
        elif encoding not in _PLAIN and (encoding != "q4_k" or name == "embed"):
            total += 4 * rows * cols
    return total


@runtime_checkable
class _Described(Protocol):
    """Weights that can be described without being read, as a bundle's."""

    def described(self) -> dict[str, tuple[tuple[int, ...], str]]: ...


def _described(weights: Weights) -> Mapping[str, tuple[tuple[int, ...], str]]:
    if isinstance(weights, _Described):
        return weights.described()  # taking a tensor would check its blocks
    return {name: (stored.shape, stored.encoding) for name, stored in weights.items()}


def _sizes(config: DecoderConfig) -> DecoderSizes:
    scale = config.attention_multiplier
    return DecoderSizes(
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn=config.ffn,
        vocab=config.vocab,
        context=config.context,
        rms_eps=config.rms_eps,
        adjacent=config.rope_layout == "adjacent",
        embedding_multiplier=config.embedding_multiplier,
        residual_multiplier=config.residual_multiplier,
        attention_scale=config.head_dim**-0.5 if scale is None else scale,
        logits_divisor=config.logits_scaling,
    )


def _layer(config: DecoderConfig, reader: _Reader, index: int) -> DecoderLayer:
    biases = ("q_bias", "k_bias", "v_bias") if config.qkv_bias else ()
    norms = ("q_norm", "k_norm") if config.qk_norm else ()
    q, k, v, o, gate, up, down = (reader.matrix(f"{key}[{index}]") for key in _MATRICES)
    attn_norm, ffn_norm = (reader.vector(f"{key}[{index}]") for key in ("attn_norm", "ffn_norm"))
    others = {key: reader.vector(f"{key}[{index}]") for key in (*biases, *norms)}
    return DecoderLayer(attn_norm, ffn_norm, q, k, v, o, gate, up, down, **others)


def _rotary_tables(inv_freq: Floats, context: int) -> tuple[Floats, Floats]:
    """Cosine and sine of every position and pair; angles are rounded to float32, as the Program's are."""
    cosine, sine = (np.empty((context, inv_freq.size), np.float32) for _ in range(2))
    for first in range(0, context, _TABLE_ROWS):
        positions = np.arange(first, min(first + _TABLE_ROWS, context), dtype=np.float32)
        # In long doubles: numpy's own sine of doubles may differ in its last bit from processor to processor.
        angles = (positions[:, None] * inv_freq[None]).astype(np.longdouble)
        rows = slice(first, first + len(positions))
        cosine[rows], sine[rows] = np.cos(angles), np.sin(angles)
    return cosine, sine


class _Reader:
    """Takes weights one by one, so that at most one is in memory twice."""

    def __init__(self, weights: Weights, in_place: bool, threads: int) -> None:
        self._weights = weights
        self._in_place = in_place
        self._threads = threads

    def vector(self, name: str) -> Floats:
        return np.ascontiguousarray(self._weights[name].decode(), np.float32)

    def matrix(self, name: str) -> Matrix:
        """In the form that multiplies fastest."""
        stored = self._weights[name]
        rows, cols = stored.shape
        if stored.encoding in _REPACKED and not self._in_place:
            packed = kernels.repack_gguf(stored.encoding, stored.data, rows, cols, threads=self._threads)
            forget_pages(stored.data)
            return packed
        if stored.encoding in (*_REPACKED, "q4_k"):
            return kernels.map_gguf(stored.encoding, stored.data, rows, cols)
        return _plain(stored)

    def can_look_up(self, name: str) -> bool:
        """Whether single rows can be read from what `matrix` gives."""
        return self._weights[name].encoding != "q4_k"

    def rows(self, name: str) -> Matrix:
        """In a form that single rows can be read from: where it lies, so that only rows that are read are."""
        stored = self._weights[name]
        if stored.encoding in _REPACKED:
            return kernels.map_gguf(stored.encoding, stored.data, *stored.shape)
        return _plain(stored)


def _plain(stored: StoredTensor) -> PlainMatrix:
    rows, cols = stored.shape
    if stored.encoding in _PLAIN:
        return PlainMatrix(_PLAIN[stored.encoding], rows, cols, stored.data)
    decoded = np.ascontiguousarray(stored.decode(), np.float32)
    forget_pages(stored.data)
    return PlainMatrix("f32", rows, cols, decoded.reshape(-1).view(np.uint8))
