"""Which decoder a Program is: the configuration that `decoder_program` makes it from, or None.

An engine that runs decoders as a whole must not guess. So every number is read off the Program, the Program
is made again from them, and only an equal digest counts: what the engine then computes is this Program.
"""

from __future__ import annotations

from tensure.errors import TensureError

from ._decoder import DecoderConfig, decoder_program
from ._records import Attr, Block, Op, Program
from ._text import digest

__all__ = ["read_decoder"]


def read_decoder(program: Program) -> DecoderConfig | None:
    """The configuration of a decoder; None for any other Program.

    Rotary frequencies are weights, so `rope_theta` and `rope_scaling` are not in a Program and keep their
    defaults; `context` is the cache's length, the axis `C`.
    """
    try:
        config = _read(program)
        return config if digest(decoder_program(config, config.context)) == digest(program) else None
    except (TensureError, KeyError, TypeError, StopIteration):
        return None


def _read(program: Program) -> DecoderConfig:
    axes, values = program.axes, program.values
    start, attention, finish = (program.blocks[name] for name in ("start", "attention", "finish"))
    return DecoderConfig(
        layers=axes["L"],
        width=axes["D"],
        heads=axes["H"],
        kv_heads=axes["G"],
        head_dim=axes["E"],
        ffn=axes["F"],
        vocab=axes["vocab"],
        context=axes["C"],
        rms_eps=_number(_first(finish, "rms_norm").attr("eps")),
        rope_layout="half" if _first(start, "stack").attr("dim") == 1 else "adjacent",
        tied="head" not in values,
        qkv_bias="q_bias" in values,
        qk_norm="q_norm" in values,
        embedding_multiplier=_factor(start, "x"),
        residual_multiplier=_factor(attention, "attn_out_scaled"),
        attention_multiplier=_maybe(_first(attention, "scaled_dot_product_attention").attr("scale")),
        logits_scaling=_factor(finish, "logits"),
    )


def _first(block: Block, kind: str) -> Op:
    return next(item for item in block.body if isinstance(item, Op) and item.op == kind)


def _factor(block: Block, out: str) -> float:
    """The number by which the op that makes `out` multiplies or divides; 1 when none does."""
    for item in block.body:
        if isinstance(item, Op) and item.outs[0].base == out and item.op in ("mul", "div"):
            return _number(item.args[1])
    return 1.0


def _maybe(value: Attr) -> float | None:
    return None if value is None else _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)
