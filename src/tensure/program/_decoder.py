"""The one definition of a decoder-only language model: Llama, SmolLM2, Granite, Qwen2 or Qwen3 as configured.

Knows: pre-norm blocks of grouped-query attention with rotary positions and of SwiGLU; Granite's four
multipliers; biases on query, key and value (Qwen2); norms on query and key heads (Qwen3); both orders in
which rotary pairs lie in a head. Does not know any file format, tensor name in a file, or torch.

Entries: `prefill(n, pos)` reads `tokens` i64[n] at positions pos..pos+n and gives `logits` f32[vocab] after
the last; `decode(pos)` is the same arithmetic at n = 1; `score(n, pos)` gives `logits` f32[n, vocab] after
each. The KV cache is the states `K[l]`, `V[l]` f32[G, C, E], of which rows 0..pos+n are read.

Legend (axes): L layers, D model width, H query heads, G key/value heads, E head size, F feed-forward width,
C context, n tokens of this call; a rotary pair is 2 of a head's E elements.

Sources: RMSNorm, rotary embedding and SwiGLU as in Touvron et al. 2023 (Llama); frequency scaling as in the
Llama 3.1 release; multipliers as in Granite 3's published configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tensure.errors import InputError, RecordError

from ._expr import Int, axis, expr
from ._records import Block, Body, Call, Entry, For, Name, Op, Program, State, Value, name, op, ref

__all__ = [
    "DEFAULT_CONTEXT",
    "DecoderConfig",
    "RopeScaling",
    "choose_context",
    "decoder_program",
    "rope_frequencies",
]

DEFAULT_CONTEXT: Final = 2048
MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 20
MAX_VOCAB: Final = 1 << 24
MAX_CONTEXT: Final = 1 << 24  # every position up to here is exact in float32

RopeLayout: TypeAlias = Literal["half", "adjacent"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    "linear" divides all of them by `factor`. "llama3" divides those whose wavelength exceeds
    original_context / low_freq_factor, keeps those below original_context / high_freq_factor, and
    interpolates between.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        _in_range("rope factor", self.factor, 1e-3, 1e6)
        _in_range("rope low_freq_factor", self.low_freq_factor, 1e-3, 1e6)
        _in_range("rope high_freq_factor", self.high_freq_factor, 1e-3, 1e6)
        _in_range("rope original_context", self.original_context, 1, MAX_CONTEXT)
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise RecordError(
                f"rope low_freq_factor {self.low_freq_factor}", wanted="less than high_freq_factor"
            )


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What distinguishes one decoder from another; every number is range-checked on construction.

    Args:
        layers: number of blocks.
        width: model width D.
        heads: query heads H, a multiple of `kv_heads` G.
        head_dim: head size E, even.
        ffn: feed-forward width F.
        vocab: rows of the embedding.
        context: the longest context the model was made for.
        rms_eps: added to the mean square in every norm.
        rope_theta: base of the rotary frequencies.
        rope_layout: which elements of a head rotate together: i with i + E/2 ("half", as in
            transformers and ggml's NEOX order) or 2i with 2i + 1 ("adjacent", ggml's normal order).
        tied: the head is the embedding.
        qkv_bias: query, key and value projections have biases.
        qk_norm: query and key heads are normalised before rotation.
        embedding_multiplier: scales the embedding's rows.
        residual_multiplier: scales what attention and feed-forward add to the stream.
        attention_multiplier: scales query-key products; None is 1 / sqrt(E).
        logits_scaling: divides the logits.

    Raises:
        RecordError: a number outside its range, heads that do not divide, an odd head size.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope_theta: float = 10000.0
    rope_layout: RopeLayout = "half"
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_scaling: float = 1.0

    def __post_init__(self) -> None:
        _in_range("layers", self.layers, 1, MAX_LAYERS)
        for key in ("width", "heads", "kv_heads", "head_dim", "ffn"):
            _in_range(key, getattr(self, key), 1, MAX_WIDTH)
        _in_range("vocab", self.vocab, 1, MAX_VOCAB)
        _in_range("context", self.context, 1, MAX_CONTEXT)
        _in_range("rms_eps", self.rms_eps, 1e-12, 1e-1)
        _in_range("rope_theta", self.rope_theta, 1.0, 1e12)
        for key in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"):
            factor: float | None = getattr(self, key)
            if factor is not None:
                _in_range(key, factor, 1e-6, 1e6)
        if self.heads % self.kv_heads:
            raise RecordError(
                f"{self.heads} heads over {self.kv_heads} key/value heads", wanted="a whole multiple"
            )
        if self.head_dim % 2:
            raise RecordError(f"head_dim {self.head_dim}", wanted="an even number: rotary pairs")


def decoder_program(config: DecoderConfig, context: int) -> Program:
    """The Program of one decoder with a KV cache of `context` positions.

    Weights: `embed`, `norm`, `head` (unless tied), `inv_freq` (`rope_frequencies`, or what a file states)
    and, for each layer l: `attn_norm q k v o ffn_norm gate up down`, with `q_bias k_bias v_bias` and
    `q_norm k_norm` where the configuration has them. All are f32 once decoded; projections are [out, in].
    """
    sizes = {
        "L": config.layers, "D": config.width, "H": config.heads, "G": config.kv_heads, "E": config.head_dim,
        "F": config.ffn, "C": context, "vocab": config.vocab,
    }  # fmt: skip
    blocks = {
        "start": Block((), tuple(_start(config))),
        "attention": Block(("l",), tuple(_attention(config))),
        "mlp": Block(("l",), tuple(_mlp(config))),
        "layer": Block(("l",), (Call("attention", (axis("l"),)), Call("mlp", (axis("l"),)))),
        "finish": Block((), tuple(_finish(config))),
    }
    last = op("select", "x[L]", out="final", dim=0, index=expr("n-1"))
    every = op("view", "x[L]", out="final", size=_sizes("n", "D"))
    pos = ("pos", 0, expr("C-n+1"))
    entries = {
        "prefill": _entry(last, (("n", 1, expr("C+1")), pos)),
        "decode": _entry(last, (("pos", 0, axis("C")),), (("n", 1),)),
        "score": _entry(every, (("n", 1, expr("C+1")), pos)),
    }
    return Program(sizes, _values(config), blocks, entries)


def rope_frequencies(config: DecoderConfig) -> npt.NDArray[np.float32]:
    """Radians per position of each rotary pair, f32[E/2]: the weight `inv_freq`.

    Rounded where transformers rounds (exponent, power and reciprocal in float32), so that angles at far
    positions agree: one unit in the last place here is 1e-4 radians at position 2,000.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    power = np.power(config.rope_theta, exponent.astype(np.float64)).astype(np.float32)
    freq = (np.float32(1) / power).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    slow = (freq / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_context * freq.astype(np.float64) / (2 * math.pi)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    mix = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - mix) * slow + mix * freq).astype(np.float32)


def choose_context(wanted: int | None, longest: int) -> int:
    """The number of positions to keep: as wanted, else the model's longest up to 2,048."""
    if wanted is None:
        return min(longest, DEFAULT_CONTEXT)
    if not 1 <= wanted <= longest:
        raise InputError(f"context {wanted}", wanted=f"1 to {longest}, what the model was made for")
    return wanted


def _values(config: DecoderConfig) -> dict[str, Value]:
    whole = {"embed": ("vocab", "D"), "norm": ("D",), "inv_freq": ("E//2",)}
    if not config.tied:
        whole["head"] = ("vocab", "D")
    layer = {
        "attn_norm": ("D",), "q": ("H*E", "D"), "k": ("G*E", "D"), "v": ("G*E", "D"), "o": ("D", "H*E"),
        "ffn_norm": ("D",), "gate": ("F", "D"), "up": ("F", "D"), "down": ("D", "F"),
    }  # fmt: skip
    if config.qkv_bias:
        layer |= {"q_bias": ("H*E",), "k_bias": ("G*E",), "v_bias": ("G*E",)}
    if config.qk_norm:
        layer |= {"q_norm": ("E",), "k_norm": ("E",)}
    of_layer = (("l", axis("L")),)
    values = {base: Value(_shape(*shape), role="weight") for base, shape in whole.items()}
    values |= {base: Value(_shape(*shape), role="weight", params=of_layer) for base, shape in layer.items()}
    values |= {base: Value(_shape("G", "C", "E"), role="state", params=of_layer) for base in ("K", "V")}
    values["tokens"] = Value((axis("n"),), "i64")
    values["x"] = Value(_shape("n", "D"), params=(("l", expr("L+1")),))
    return values


def _entry(
    rows: Op, params: tuple[tuple[str, Int, Int], ...], fixed: tuple[tuple[str, Int], ...] = ()
) -> Entry:
    body: Body = (
        Call("start"),
        For("l", 0, axis("L"), (Call("layer", (axis("l"),)),)),
        rows,
        Call("finish"),
    )
    of_layer = (("l", axis("L")),)
    states = (State(name("K[l]"), name("K2[l]"), of_layer), State(name("V[l]"), name("V2[l]"), of_layer))
    return Entry((Name("tokens"),), body, (Name("logits"),), states, params, fixed)


def _start(config: DecoderConfig) -> Iterator[Op]:
    """Rotary tables of positions pos..pos+n, the causal mask, and the embedded tokens."""
    first, past = axis("pos"), expr("pos+n")
    half = config.rope_layout == "half"
    yield op("arange", out="rope_position", start=first, end=past, dtype="f32")
    yield op("view", "rope_position", out="rope_column", size=_sizes("n", 1))
    yield op("mul", "rope_column", "inv_freq", out="angle")
    yield op("cos", "angle", out="cosine")
    yield op("sin", "angle", out="sine")
    yield op("neg", "sine", out="minus_sine")
    # The first of a pair takes minus sine, the second plus; which dim counts the two is the layout.
    yield op("stack", "minus_sine", "sine", out="signed_sine", dim=1 if half else 2)
    yield op("view", "cosine", out="rope_cos", size=_pairs("n", 1, half=half, two=1))
    yield op("view", "signed_sine", out="rope_sin", size=_pairs("n", 1, half=half, two=2))
    yield op("arange", out="key_position", start=0, end=past)
    yield op("arange", out="query_position", start=first, end=past)
    yield op("view", "query_position", out="query_column", size=_sizes("n", 1))
    yield op("le", "key_position", "query_column", out="mask")
    if config.embedding_multiplier == 1.0:
        yield op("embedding", "embed", "tokens", out="x[0]")
    else:
        yield op("embedding", "embed", "tokens", out="embedded")
        yield op("mul", "embedded", config.embedding_multiplier, out="x[0]")


def _attention(config: DecoderConfig) -> Iterator[Op]:
    yield _norm(config, "x[l]", "attn_norm[l]", "attn_in[l]")
    for long, short, heads in (("query", "q", "H"), ("key", "k", "G"), ("value", "v", "G")):
        bias = name(f"{short}_bias[l]") if config.qkv_bias else None
        yield op("linear", "attn_in[l]", f"{short}[l]", bias, out=f"{long}[l]")
        yield op("view", f"{long}[l]", out=f"{long}_heads[l]", size=_sizes("n", heads, "E"))
    yield from _rotate(config, "query", "q", "H")
    yield from _rotate(config, "key", "k", "G")
    for made, cache in (("key_rotated", "K"), ("value_heads", "V")):
        by_head = f"{made.partition('_')[0]}_by_head[l]"
        yield op("permute", f"{made}[l]", out=by_head, dims=(1, 0, 2))
        yield op(
            "slice_scatter", f"{cache}[l]", by_head, out=f"{cache}2[l]",
            dim=1, start=axis("pos"), end=expr("pos+n"),
        )  # fmt: skip
    yield op("permute", "query_rotated[l]", out="query_by_head[l]", dims=(1, 0, 2))
    options: dict[str, Any] = {}
    if config.heads != config.kv_heads:
        options["enable_gqa"] = True
    if config.attention_multiplier is not None:
        options["scale"] = config.attention_multiplier
    seen = (1, 0, "pos+n")
    yield op(
        "scaled_dot_product_attention", "query_by_head[l]", ref("K2[l]", seen), ref("V2[l]", seen), "mask",
        out="attended[l]", **options,
    )  # fmt: skip
    yield op("permute", "attended[l]", out="attended_rows[l]", dims=(1, 0, 2))
    yield op("reshape", "attended_rows[l]", out="attended_flat[l]", shape=_sizes("n", "H*E"))
    yield op("linear", "attended_flat[l]", "o[l]", None, out="attn_out[l]")
    yield from _residual(config, "x[l]", "attn_out", "mid[l]")


def _rotate(config: DecoderConfig, long: str, short: str, heads: str) -> Iterator[Op]:
    """Each pair (a, b) of a head becomes (a cos - b sin, b cos + a sin)."""
    source, half = f"{long}_heads[l]", config.rope_layout == "half"
    if config.qk_norm:
        yield _norm(config, source, f"{short}_norm[l]", f"{long}_normed[l]", "E")
        source = f"{long}_normed[l]"
    yield op("view", source, out=f"{long}_pairs[l]", size=_pairs("n", heads, half=half, two=2))
    yield op("flip", f"{long}_pairs[l]", out=f"{long}_swapped[l]", dims=(2,) if half else (3,))
    yield op("mul", f"{long}_pairs[l]", "rope_cos", out=f"{long}_cos[l]")
    yield op("mul", f"{long}_swapped[l]", "rope_sin", out=f"{long}_sin[l]")
    yield op("add", f"{long}_cos[l]", f"{long}_sin[l]", out=f"{long}_turned[l]")
    yield op("view", f"{long}_turned[l]", out=f"{long}_rotated[l]", size=_sizes("n", heads, "E"))


def _mlp(config: DecoderConfig) -> Iterator[Op]:
    yield _norm(config, "mid[l]", "ffn_norm[l]", "ffn_in[l]")
    yield op("linear", "ffn_in[l]", "gate[l]", None, out="ffn_gate[l]")
    yield op("linear", "ffn_in[l]", "up[l]", None, out="ffn_up[l]")
    yield op("silu", "ffn_gate[l]", out="ffn_open[l]")
    yield op("mul", "ffn_open[l]", "ffn_up[l]", out="ffn_mid[l]")
    yield op("linear", "ffn_mid[l]", "down[l]", None, out="ffn_out[l]")
    yield from _residual(config, "mid[l]", "ffn_out", "x[l+1]")


def _finish(config: DecoderConfig) -> Iterator[Op]:
    head = "embed" if config.tied else "head"
    yield _norm(config, "final", "norm", "normed")
    if config.logits_scaling == 1.0:
        yield op("linear", "normed", head, None, out="logits")
    else:
        yield op("linear", "normed", head, None, out="raw_logits")
        yield op("div", "raw_logits", config.logits_scaling, out="logits")


def _norm(config: DecoderConfig, source: str, weight: str, out: str, size: str = "D") -> Op:
    return op("rms_norm", source, weight, out=out, normalized_shape=_sizes(size), eps=config.rms_eps)


def _residual(config: DecoderConfig, stream: str, addend: str, out: str) -> Iterator[Op]:
    if config.residual_multiplier != 1.0:
        yield op("mul", f"{addend}[l]", config.residual_multiplier, out=f"{addend}_scaled[l]")
        addend = f"{addend}_scaled"
    yield op("add", stream, f"{addend}[l]", out=out)


def _shape(*parts: str) -> tuple[Int, ...]:
    return tuple(expr(part) for part in parts)


def _sizes(*parts: str | int) -> tuple[Int, ...]:
    return tuple(expr(part) if isinstance(part, str) else part for part in parts)


def _pairs(rows: str, heads: str | int, *, half: bool, two: int) -> tuple[Int, ...]:
    """The shape of rows of heads seen as rotary pairs; a table alike for both of a pair has `two` = 1."""
    return _sizes(rows, heads, two, "E//2") if half else _sizes(rows, heads, "E//2", two)


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise RecordError(f"{key} {value}", wanted=f"{low} to {high}")
