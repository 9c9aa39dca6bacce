"""Small decoders of any shape, and a server that runs sequences in any steps, for tests of `DecoderStage`.

Weights are scaled so that hidden rows, scores and probabilities are of ordinary size: a softmax with one
winner would hide faults in all other keys. Pages stand in an array whose bytes are all 0xff (NaN as a half or
a float), under page ids in no order.

Letters as in tensure.kernels._decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tensure.kernels import (
    GEMV_FORMATS,
    PAGE_TOKENS,
    DecoderLayer,
    DecoderSizes,
    DecoderStage,
    GemvWeights,
    PlainMatrix,
    StepRows,
    decoder_reference,
    exact_is_fused,
    map_gguf,
    pack_int4,
    pack_int8,
)

PLAIN = ("f32", "f16", "bf16")
OWN = ("int8", "int4", "int4_min")
BLOCKS_OF_32 = ("q4_0", "q4_1", "q8_0")
ANY = (*PLAIN, *OWN, *BLOCKS_OF_32, "q4_k")
LOOKED_UP = [kind for kind in ANY if kind != "q4_k"]

Step = list[tuple[int, int]]  # (sequence, position) of each row


# --- weights -----------------------------------------------------------------------------------------


def random_matrix(
    rng: np.random.Generator, kind: str, num_rows: int, num_cols: int
) -> GemvWeights | PlainMatrix:
    """Numbers of standard deviation about 1 / sqrt(K)."""
    size = num_cols**-0.5
    if kind in PLAIN:
        return plain(kind, rng.normal(0, size, (num_rows, num_cols)))
    if kind in OWN:
        group = [None, 32, 64, 128][rng.integers(0 if kind == "int8" else 1, 4)]
        shape = (num_rows,) if group is None else (num_rows, -(-num_cols // group))
        scales = rng.uniform(0.5, 1.5, shape) * size / (74 if kind == "int8" else 4.6)
        if kind == "int8":
            q = rng.integers(-128, 128, (num_rows, num_cols), np.int8)
            return pack_int8(q, scales.astype(np.float32), group)
        least = 0 if kind == "int4_min" else -8
        q = rng.integers(least, least + 16, (num_rows, num_cols), np.int8)
        minimums = (scales * rng.uniform(-9, -6, shape)).astype(np.float16) if kind == "int4_min" else None
        return pack_int4(q, scales.astype(np.float16), minimums, group=group or 32)
    layout = GEMV_FORMATS[kind]
    blocks = rng.integers(0, 256, (num_rows * num_cols // layout.block_cols, layout.block_bytes), np.uint8)
    scale = rng.uniform(0.5, 1.5, len(blocks)) * size / {"q8_0": 74, "q4_k": 150}.get(kind, 4.6)
    halves = {"q4_1": [scale, -7.5 * scale], "q4_k": [scale, 7.5 * scale]}.get(kind, [scale])
    blocks[:, : 2 * len(halves)] = np.stack(halves, axis=1).astype("<f2").view(np.uint8)
    return map_gguf(kind, blocks.reshape(-1), num_rows, num_cols)


def plain(kind: str, w: np.ndarray) -> PlainMatrix:
    """Numbers of one kind, at an address that suits no vector."""
    if kind == "bf16":
        stored = (np.asarray(w, "<f4").view(np.uint32) >> 16).astype("<u2")
    else:
        stored = np.asarray(w, "<f4" if kind == "f32" else "<f2")
    there = np.zeros(stored.nbytes + 1, np.uint8)[1:]
    there[:] = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    return PlainMatrix(kind, *w.shape, there)


def fitting(kinds: Sequence[str], num_cols: int) -> list[str]:
    """Those whose blocks a row of so many columns is made of."""
    return [k for k in kinds if k not in GEMV_FORMATS or num_cols % (GEMV_FORMATS[k].block_cols or 1) == 0]


# --- a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    sizes: DecoderSizes
    cosine: np.ndarray
    sine: np.ndarray
    layers: list[DecoderLayer]
    embed: GemvWeights | PlainMatrix
    head: tuple[GemvWeights | PlainMatrix, np.ndarray]
    kv_format: str = "f16"
    arithmetic: str = "fast"
    head_arithmetic: str | None = None

    def stages(self, cuts: Sequence[int] = ()) -> list[DecoderStage]:
        """The stage, or several: cut before these layers."""
        edges = [0, *cuts, len(self.layers)]
        return [
            DecoderStage(
                self.sizes,
                self.cosine,
                self.sine,
                self.layers[first:last],
                embed=self.embed if i == 0 else None,
                head=self.head if i == len(edges) - 2 else None,
                kv_format=self.kv_format,
                arithmetic=self.arithmetic,
                head_arithmetic=self.head_arithmetic,
            )
            for i, (first, last) in enumerate(zip(edges, edges[1:], strict=False))
        ]

    def reference(self, tokens: np.ndarray, fused: bool | None = None) -> np.ndarray:
        return decoder_reference(
            self.sizes,
            self.cosine,
            self.sine,
            self.layers,
            tokens,
            embed=self.embed,
            head=self.head,
            kv_format=self.kv_format,
            arithmetic=self.arithmetic,
            head_arithmetic=self.head_arithmetic,
            fused=exact_is_fused() if fused is None else fused,
        )

    def tokens(self, count: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, self.sizes.vocab, count, np.int32)


def random_model(
    seed: int,
    *,
    width: int = 20,
    heads: tuple[int, int] = (2, 2),
    head_dim: int = 6,
    ffn: int = 24,
    vocab: int = 21,
    context: int = 70,
    layers: int = 2,
    kinds: Sequence[str] = ANY,
    kv_format: str = "f16",
    arithmetic: str = "fast",
    adjacent: bool = False,
    biases: bool = False,
    head_norms: bool = False,
    multipliers: bool = False,
) -> Model:
    """A model of these sizes, each matrix of any of `kinds`; `heads`: of keys, and query heads for each."""
    rng = np.random.default_rng(seed)
    kv, group = heads
    numbers = {}
    if multipliers:
        names = ("embedding_multiplier", "residual_multiplier", "logits_divisor")
        numbers = {name: float(rng.uniform(0.3, 3)) for name in names}
    sizes = DecoderSizes(
        width, kv * group, kv, head_dim, ffn, vocab, context, 1e-5, adjacent,
        attention_scale=head_dim**-0.5, **numbers,
    )  # fmt: skip

    def matrix(num_rows: int, num_cols: int, among: Sequence[str] = kinds) -> GemvWeights | PlainMatrix:
        return random_matrix(rng, str(rng.choice(fitting(among, num_cols))), num_rows, num_cols)

    def vector(count: int, about: float) -> np.ndarray:
        return rng.normal(about, 0.2, count).astype(np.float32)

    def layer() -> DecoderLayer:
        query, key = heads[0] * group * head_dim, kv * head_dim
        bias = [vector(n, 0) for n in (query, key, key)] if biases else [None] * 3
        norms = [vector(head_dim, 1) for _ in range(2)] if head_norms else [None] * 2
        return DecoderLayer(
            vector(width, 1),
            vector(width, 1),
            matrix(query, width),
            matrix(key, width),
            matrix(key, width),
            matrix(width, query),
            matrix(ffn, width),
            matrix(ffn, width),
            matrix(width, ffn),
            *bias,
            *norms,
        )

    angles = np.arange(context)[:, None] * 1e4 ** (-np.arange(head_dim // 2) / (head_dim // 2))[None]
    return Model(
        sizes,
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        [layer() for _ in range(layers)],
        matrix(vocab, width, [k for k in kinds if k in LOOKED_UP] or LOOKED_UP),
        (matrix(vocab, width), vector(width, 1)),
        kv_format,
        arithmetic,
    )


# --- serving -----------------------------------------------------------------------------------------


@dataclass
class Server:
    """Stages, their pages (all bytes 0xff at first), and tables that name pages in no order."""

    model: Model
    sequences: list[np.ndarray]
    cuts: Sequence[int] = ()
    seed: int = 0
    threads: int = 1
    stages: list[DecoderStage] = field(init=False)
    pages: list[np.ndarray] = field(init=False)
    tables: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        deep = max(-(-len(s) // PAGE_TOKENS) for s in self.sequences) + 1
        self.tables = np.full((len(self.sequences), deep), -1, np.int32)
        free = list(rng.permutation(len(self.sequences) * deep + 3))
        for table, tokens in zip(self.tables, self.sequences, strict=True):
            for p in range(-(-len(tokens) // PAGE_TOKENS)):
                table[p] = free.pop()
        count = len(self.sequences) * deep + 3
        self.stages = self.model.stages(self.cuts)
        self.pages = [np.full((count, stage.page_bytes), 0xFF, np.uint8) for stage in self.stages]

    def step(self, rows: Step, wanted: Sequence[int] | None = None) -> np.ndarray:
        """The logits [Q, V] of these rows, of all if None."""
        step = StepRows(
            np.array([self.sequences[s][p] for s, p in rows], np.int32),
            np.array([p for _, p in rows], np.int32),
            np.array([s for s, _ in rows], np.int32),
            self.tables.copy(),
            np.array(range(len(rows)) if wanted is None else wanted, np.int32),
        )
        out = None
        for stage, pages in zip(self.stages, self.pages, strict=True):
            out = stage.run(step, pages, hidden=out, threads=self.threads)
        assert out is not None
        return out

    def serve(self, steps: Sequence[Step]) -> list[np.ndarray]:
        """The logits [T, V] of each sequence, its rows computed in these steps."""
        found = [np.full((len(s), self.model.sizes.vocab), 12345.0, np.float32) for s in self.sequences]
        for rows in steps:
            for (sequence, position), logits in zip(rows, self.step(rows), strict=True):
                found[sequence][position] = logits
        return found


def whole(sequences: Sequence[np.ndarray]) -> list[Step]:
    """Each sequence in one step of its own."""
    return [[(i, p) for p in range(len(s))] for i, s in enumerate(sequences)]


def scattered(sequences: Sequence[np.ndarray], seed: int) -> Iterator[Step]:
    """Mixed batches: in each step any sequences go on by any number of rows."""
    rng = np.random.default_rng(seed)
    done = [0] * len(sequences)
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        rows: Step = []
        for i in rng.permutation(len(sequences)):
            ahead = min(int(rng.choice([0, 1, 1, 2, 5, 17, 33])), len(sequences[i]) - done[i])
            rows += [(int(i), done[i] + p) for p in range(ahead)]
            done[i] += ahead
        if rows:
            yield rows


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, NaN standing for any NaN."""
    nan = np.isnan(a)
    return (
        a.shape == b.shape
        and bool(np.array_equal(nan, np.isnan(b)))
        and bool(np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32)))
    )
