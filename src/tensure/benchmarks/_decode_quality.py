"""`decode-quality`: how far each engine's probabilities are from the float model's, over 512 tokens.

The figure is the Kullback-Leibler divergence in nats, mean over positions; what is timed beside it is
reading the text with all logits. The float model is the Program itself in f32 on torch; transformers in f32
stands beside it as a check of that. Does not know how an engine works.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from ._declare import benchmark
from ._quality_text import QUALITY_TEXT
from ._records import Bar, Case, Engine, Json, Measured, NotMeasured, Scope
from ._text_cases import BF16, F32, FAST, LLAMA_CPP, plural, text_child, text_peer, token_ids

__all__ = ["decode_quality", "quality_bars", "within"]

TOKENS: Final = 512
LARGEST: Final = 0.05
"""Mean divergence beyond which an output is wrong, not rounded; another text's logits are at several."""


def within(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """How an output differs from the float model's by more than rounding, or None."""
    if output["shape"] != reference["shape"]:
        return f"logits {output['shape']}, not {reference['shape']}"
    return None if output["kl"] <= LARGEST else f"a divergence of {output['kl']:.2g}, over {LARGEST:g}"


def quality_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Mode fast diverges no more than llama.cpp, which rounds activations to 8 bits as well."""
    bars: list[Bar | NotMeasured] = []
    for case in cases:
        name = f"{case.name}: divergence of {FAST} over that of {LLAMA_CPP}"
        kl = {row.engine: row.facts["kl"] for row in found.rows if row.case == case.name}
        absent = [engine for engine in (FAST, LLAMA_CPP) if engine not in kl]
        if absent:
            bars.append(NotMeasured(name, f"without {' and '.join(absent)}"))
        else:
            bars.append(Bar(name, kl[FAST] / max(kl[LLAMA_CPP], 1e-300), "x", 1.0, "lower"))
    return bars


def _cases(scope: Scope) -> list[Case]:
    """One, with the most threads: what is compared does not depend on them."""
    threads = max(scope.threads)
    params = {"tokens": token_ids(TOKENS, QUALITY_TEXT), "expected": str(_expected())}
    return [Case(f"{TOKENS} tokens, {plural(threads)}", threads, float(TOKENS), params)]


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where the right logits lie until this process ends."""
    return TemporaryDirectory(prefix="tensure-quality-")


def _expected() -> Path:
    return Path(_folder().name) / "logits.npy"


@benchmark(
    "decode-quality",
    about=f"SmolLM2-135M-Instruct Q4_1, divergence from the float model over {TOKENS} tokens, all logits",
    metric="tok/s",
    better="higher",
    cases=_cases,
    peers=(
        text_peer(FAST, "quality-tensure", "fast"),
        text_peer(LLAMA_CPP, "quality-llama.cpp"),
        text_peer(BF16, "quality-transformers", "bf16"),
        text_peer(F32, "quality-transformers", "f32"),
    ),
    agree=within,
    reference="the float model",
    oracle=lambda scope: text_child(scope, "float"),
    rounds=(3, 1),
    bars=quality_bars,
)
def decode_quality(scope: Scope) -> Engine:
    """Our engine in mode exact; the cases tell it what to do."""
    return text_child(scope, "quality-tensure", "exact")
