"""Rows of tokens through a decoder's layers over a paged key-value cache: the checked face of native/decoder.

A row is one token of one sequence at one position. Each row's arithmetic is the same whoever else is in the
step, so that batch, chunks, arrivals and threads cannot change a bit of it. Knows arrays only: no files, no
tokenizer, no scheduler. Letters: R rows, S slots, P pages of a table, Q wanted rows, D width, H query heads,
G key/value heads, E head size, F feed-forward width, C context, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError
from tensure.kernels._buffers import aligned_bytes, check_buffer, check_threads
from tensure.kernels._gemv import ARITHMETICS, GEMV_FORMATS, Arithmetic, GemvWeights
from tensure.kernels._isa import native

__all__ = [
    "KV_FORMATS",
    "PAGE_TOKENS",
    "PLAIN_KINDS",
    "DecoderLayer",
    "DecoderSizes",
    "DecoderStage",
    "PlainMatrix",
    "StepRows",
]

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int32]

PAGE_TOKENS: Final = 16
"""Positions of one sequence that a page of the cache holds."""

# Name to KvFormat in native/decoder/kv.h: halves, or 8 or 4 bits with a scale for each head and position.
KV_FORMATS: Mapping[str, int] = MappingProxyType({"f16": 0, "int8": 1, "int4": 2})

# Name to MatrixKind in native/decoder/decoder.h and bytes of an element.
PLAIN_KINDS: Mapping[str, tuple[int, int]] = MappingProxyType({"f32": (1, 4), "f16": (2, 2), "bf16": (3, 2)})

MAX_SIZE: Final = 1 << 24
MAX_ROWS: Final = 1 << 20
MAX_FLOAT: Final = float(np.finfo(np.float32).max)

_NOTHING: Final = np.zeros(0, np.uint8)
_MATRICES: Final = ("q", "k", "v", "o", "gate", "up", "down")
_NUMBERS: Final = (
    "rms_eps",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_scale",
    "logits_divisor",
)
_VECTORS: Final = ("attn_norm", "ffn_norm", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")


@dataclass(frozen=True, slots=True, eq=False)
class PlainMatrix:
    """A matrix of plain numbers, row after row, read where they are.

    Args:
        kind: "f32", "f16" or "bf16".
        data: 1-D bytes, contiguous, any address; may be read-only.

    Raises:
        InputError: bytes that do not fit the shape.
    """

    kind: str
    num_rows: int
    num_cols: int
    data: Bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in PLAIN_KINDS:
            raise InputError(f"got {self.kind!r}", place="kind", wanted=", ".join(PLAIN_KINDS))
        for key in ("num_rows", "num_cols"):
            _check_size(key, getattr(self, key))
        wanted = self.num_rows * self.num_cols * PLAIN_KINDS[self.kind][1]
        if not isinstance(self.data, np.ndarray) or self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise InputError("no vector of bytes", place="data", wanted=f"{wanted} bytes")
        if self.data.size != wanted or not self.data.flags.c_contiguous:
            raise InputError(
                f"got {self.data.size} bytes",
                place="data",
                wanted=f"{wanted} for {self.num_rows} x {self.num_cols} of {self.kind}",
            )


Matrix: TypeAlias = "GemvWeights | PlainMatrix"


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """What distinguishes one decoder's arithmetic from another's.

    Args:
        adjacent: rotary pairs are elements 2i and 2i + 1 of a head, not i and i + E/2.
        attention_scale: multiplies query-key products.
        logits_divisor: divides the logits.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    adjacent: bool
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_scale: float = 1.0
    logits_divisor: float = 1.0

    def __post_init__(self) -> None:
        for key in ("width", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"):
            _check_size(key, getattr(self, key))
        if self.heads % self.kv_heads or self.head_dim % 2 or self.heads * self.head_dim > 1 << 24:
            raise InputError(
                f"got {self.heads} heads over {self.kv_heads} of size {self.head_dim}",
                place="heads",
                wanted="a whole multiple, and an even head size",
            )
        if not isinstance(self.adjacent, bool):
            raise InputError(f"got {self.adjacent!r}", place="adjacent", wanted="True or False")
        for key in _NUMBERS:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) <= MAX_FLOAT:
                raise InputError(f"got {value!r}", place=key, wanted="a number, finite as float32")
        if self.rms_eps < 0:
            raise InputError(f"got {self.rms_eps!r}", place="rms_eps", wanted="no negative number")
        if not np.float32(self.logits_divisor):
            raise InputError(f"got {self.logits_divisor!r}", place="logits_divisor", wanted="not zero")


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """One layer's weights: projections [out, in]; norms [D]; or None: biases [H E], [G E], head norms [E]."""

    attn_norm: Floats
    ffn_norm: Floats
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    q_bias: Floats | None = None
    k_bias: Floats | None = None
    v_bias: Floats | None = None
    q_norm: Floats | None = None
    k_norm: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """The rows of one step: one token at one position of one sequence each. The arrays become read-only.

    Args:
        tokens: i32 [R], from 0 to V - 1; read where the stage holds the embedding. R is at most 2^20.
        positions: i32 [R], where each stands in its sequence, from 0 to C - 1.
        slots: i32 [R], the row of `tables` that is its sequence's. A slot means nothing beyond this step.
        tables: i32 [S, P], the pages of each sequence in order, padded with -1: position p of slot s lies in
            page `tables[s, p // PAGE_TOKENS]` at offset `p % PAGE_TOKENS`.
        wanted: i32 [Q], ascending: the rows whose logits are asked for.

    A row reads the positions 0 to its own of its slot: those before the step are stored, the others are rows
    of the step.

    Raises:
        InputError: arrays of another dtype, shape or length, strided or not aligned.
    """

    tokens: Ints
    positions: Ints
    slots: Ints
    tables: Ints
    wanted: Ints

    def __post_init__(self) -> None:
        for item in fields(self):
            array = getattr(self, item.name)
            check_buffer(item.name, array, (np.int32,))
            dims = 2 if item.name == "tables" else 1
            if array.ndim != dims:
                raise InputError(f"got {array.ndim} dims", place=item.name, wanted=f"{dims}")
        rows = self.tokens.size
        if self.positions.size != rows or self.slots.size != rows or self.wanted.size > rows:
            raise InputError(
                f"{rows} tokens, {self.positions.size} positions, {self.slots.size} slots, "
                f"{self.wanted.size} wanted",
                place="rows",
                wanted="one of each for every row, and at most as many wanted",
            )
        if rows > MAX_ROWS:
            raise InputError(f"got {rows}", place="rows", wanted=f"at most {MAX_ROWS}")
        for item in fields(self):
            getattr(self, item.name).setflags(write=False)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.tokens)


class DecoderStage:
    """Some layers of a decoder, perhaps with its embedding and its head; immutable once built.

    Args:
        cosine: f32 [C, E/2], of each position and rotary pair; `sine` likewise.
        layers: of this stage, in order.
        embed: [V, D], where the stage begins with tokens: anything but Q4_K; the head's own matrix if tied.
        head: [V, D] and the last norm [D], where it ends with logits.
        kv_format: of the cache: "f16", "int8" or "int4".
        arithmetic: how quantised matrices are multiplied (`gemv`): "fine" with activations of 15 bits in
            groups of 32, "fast" with 8 bits, "exact" with float32. Plain matrices take float32 always. In any
            case the result does not depend on batch, chunks, threads, or (where sums are fused) the
            instruction set.
        head_arithmetic: the same for the head; as the layers' when None.

    Raises:
        InputError: shapes that do not fit each other.
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        cosine: Floats,
        sine: Floats,
        layers: Sequence[DecoderLayer],
        *,
        embed: Matrix | None = None,
        head: tuple[Matrix, Floats] | None = None,
        kv_format: str = "f16",
        arithmetic: Arithmetic = "fine",
        head_arithmetic: Arithmetic | None = None,
    ) -> None:
        if not isinstance(sizes, DecoderSizes):
            raise InputError(f"got {type(sizes).__name__}", place="sizes", wanted="DecoderSizes")
        if not isinstance(kv_format, str) or kv_format not in KV_FORMATS:
            raise InputError(f"got {kv_format!r}", place="kv_format", wanted=", ".join(KV_FORMATS))
        if arithmetic not in ARITHMETICS:
            raise InputError(f"got {arithmetic!r}", place="arithmetic", wanted=", ".join(ARITHMETICS))
        head_arithmetic = arithmetic if head_arithmetic is None else head_arithmetic
        if head_arithmetic not in ARITHMETICS:
            raise InputError(
                f"got {head_arithmetic!r}", place="head_arithmetic", wanted=", ".join(ARITHMETICS)
            )
        if not isinstance(layers, Sequence):
            raise InputError(f"got {type(layers).__name__}", place="layers", wanted="a list of DecoderLayer")
        if head is not None and (not isinstance(head, tuple) or len(head) != 2):
            raise InputError(f"got {type(head).__name__}", place="head", wanted="a matrix and the last norm")
        table = (sizes.context, sizes.head_dim // 2)
        check_buffer("cosine", cosine, (np.float32,), table)
        check_buffer("sine", sine, (np.float32,), table)
        self.sizes = sizes
        self.kv_format = kv_format
        self.arithmetic = arithmetic
        self.num_layers = len(layers)
        self.has_embed, self.has_head = embed is not None, head is not None
        s = sizes
        self._native = native().Decoder(
            [s.width, s.heads, s.kv_heads, s.head_dim, s.ffn, s.vocab, s.context],
            [s.rms_eps, s.embedding_multiplier, s.residual_multiplier, s.attention_scale, s.logits_divisor],
            s.adjacent,
            cosine,
            sine,
            KV_FORMATS[kv_format],
            ARITHMETICS.index(arithmetic),
            ARITHMETICS.index(head_arithmetic),
        )
        for index, layer in enumerate(layers):
            self._add(index, layer)
        if embed is not None:
            _told("embed", self._native.set_embed, _parts("embed", embed, (s.vocab, s.width)))
        if head is not None:
            matrix, norm = head
            check_buffer("norm", norm, (np.float32,), (s.width,))
            _told("head", self._native.set_head, _parts("head", matrix, (s.vocab, s.width)), norm)
        self._workspace = _NOTHING

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: `PAGE_TOKENS` positions of one sequence, in all layers of the stage."""
        return self._native.page_bytes()

    def workspace_bytes(self, num_rows: int, threads: int) -> int:
        """Bytes that a step of so many rows works in."""
        check_threads(threads)
        if isinstance(num_rows, bool) or not isinstance(num_rows, int) or not 0 <= num_rows <= MAX_ROWS:
            raise InputError(f"got {num_rows!r}", place="num_rows", wanted=f"from 0 to {MAX_ROWS}")
        return self._native.workspace(num_rows, threads)

    def run(self, rows: StepRows, pages: Bytes, *, hidden: Floats | None = None, threads: int = 1) -> Floats:
        """One step: the logits [Q, V] of the wanted rows, or the rows [R, D] where the stage has no head.

        Args:
            pages: u8 [num_pages, page_bytes]: the cache, written where the rows' positions lie.
            hidden: f32 [R, D], what the stage before gave; None where this stage holds the embedding. It is
                overwritten, and shares no memory with the pages.

        Not for several threads at once: the stage has one workspace.

        Raises:
            InputError: rows outside the context, the vocabulary or the cache; two rows that write one place;
                arrays that are not as described. Nothing is written then.
        """
        check_threads(threads)
        if not isinstance(rows, StepRows):
            raise InputError(f"got {type(rows).__name__}", place="rows", wanted="StepRows")
        num_rows, s = rows.tokens.size, self.sizes
        check_buffer("pages", pages, (np.uint8,))
        if pages.ndim != 2 or pages.shape[1] != self.page_bytes:
            raise InputError(
                f"got shape {list(pages.shape)}", place="pages", wanted=f"pages of {self.page_bytes} bytes"
            )
        if not pages.flags.writeable:
            raise InputError("got a read-only array", place="pages", wanted="a writable one")
        if self.has_embed:
            if hidden is not None:
                raise InputError("got an array", place="hidden", wanted="None: this stage begins with tokens")
            hidden = np.empty((num_rows, s.width), np.float32)
        else:
            check_buffer("hidden", hidden, (np.float32,), (num_rows, s.width))
            assert hidden is not None
            if not hidden.flags.writeable or np.may_share_memory(hidden, pages):
                raise InputError(
                    "got a read-only array, or one that overlaps pages",
                    place="hidden",
                    wanted="a writable one of its own",
                )
        logits = np.empty((rows.wanted.size if self.has_head else 0, s.vocab), np.float32)
        need = self._native.workspace(num_rows, threads)
        if self._workspace.size < need:
            self._workspace = aligned_bytes(need)
        _told(
            "rows",
            self._native.run,
            *(rows.tokens, rows.positions, rows.slots, rows.tables, rows.wanted),
            *(pages, hidden, logits, self._workspace, threads),
        )
        return logits if self.has_head else hidden

    def _add(self, index: int, layer: DecoderLayer) -> None:
        if not isinstance(layer, DecoderLayer):
            raise InputError(f"got {type(layer).__name__}", place=f"layer {index}", wanted="DecoderLayer")
        s = self.sizes
        query, key = s.heads * s.head_dim, s.kv_heads * s.head_dim
        shapes = {
            "q": (query, s.width), "k": (key, s.width), "v": (key, s.width), "o": (s.width, query),
            "gate": (s.ffn, s.width), "up": (s.ffn, s.width), "down": (s.width, s.ffn),
        }  # fmt: skip
        counts = dict(zip(_VECTORS, (s.width, s.width, query, key, key, s.head_dim, s.head_dim), strict=True))
        place = f"layer {index}"
        matrices = [_parts(f"{place}, {key}", getattr(layer, key), shapes[key]) for key in _MATRICES]
        vectors: list[Floats | None] = []
        for name in _VECTORS:
            vector: Floats | None = getattr(layer, name)
            if vector is not None or name in ("attn_norm", "ffn_norm"):
                check_buffer(f"{place}, {name}", vector, (np.float32,), (counts[name],))
            vectors.append(vector)
        _told(place, self._native.add_layer, matrices, vectors)


def _check_size(place: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise InputError(f"got {value!r}", place=place, wanted=f"an integer from 1 to {MAX_SIZE}")


def _parts(place: str, matrix: Matrix, shape: tuple[int, int]) -> tuple[int | Bytes, ...]:
    """A matrix as the compiled module takes it: kind, format, rows, columns, group, q, scales, minimums."""
    if not isinstance(matrix, GemvWeights | PlainMatrix):
        raise InputError(f"got {type(matrix).__name__}", place=place, wanted="GemvWeights or PlainMatrix")
    if (matrix.num_rows, matrix.num_cols) != shape:
        raise InputError(
            f"got {matrix.num_rows} x {matrix.num_cols}", place=place, wanted=f"{shape[0]} x {shape[1]}"
        )
    if isinstance(matrix, PlainMatrix):
        return (PLAIN_KINDS[matrix.kind][0], 0, *shape, 0, matrix.data, _NOTHING, _NOTHING)
    index = GEMV_FORMATS[matrix.format].index
    return (0, index, *shape, matrix.group, matrix.q, matrix.scales, matrix.minimums)


def _told(place: str, call: Callable[..., None], *arguments: object) -> None:
    """The compiled module's refusals in the house's form."""
    try:
        call(*arguments)
    except ValueError as error:
        raise InputError(str(error), place=place, wanted="what the stage's sizes ask for") from None
