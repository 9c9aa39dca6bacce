"""What the benchmarks of a language model share: the model, the text, the engines' processes, outputs.

Knows SmolLM2's file and our own words. Does not know how an engine works.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from tensure.api import KNOWN
from tensure.text import Tokenizer

from ._child import ChildEngine, child_environment, engine_command
from ._engine_llama_cpp import llama_cpp_missing
from ._records import OURS, Bar, Better, Case, Engine, Json, Measured, NotMeasured, Peer, Scope
from ._text_engine import Floats, unpack

__all__ = [
    "BF16",
    "F32",
    "FAST",
    "LLAMA_CPP",
    "TEXT",
    "TOLERANCES",
    "VLLM",
    "model_path",
    "model_sizes",
    "plural",
    "ratio_bar",
    "same_logits",
    "text_child",
    "text_peer",
    "token_ids",
]

MODEL: Final = "smollm2-135m"

FAST: Final = "tensure fast"
"""Our mode `fast`; `tensure` alone is mode `exact`."""
LLAMA_CPP: Final = "llama.cpp"
BF16: Final = "transformers bf16"
F32: Final = "transformers f32"
VLLM: Final = "vLLM"

#: Largest relative error of centred logits (root mean square) that still counts as the same output. Mode
#: exact keeps its cache in halves and activations in 15 bits; f32 engines differ in the order of sums only;
#: bf16 rounds weights and activations to 8 bits; llama.cpp and mode fast round the activations of each
#: product to 8-bit integers.
TOLERANCES: Final[Mapping[str, float]] = {
    OURS: 1e-3,
    FAST: 0.1,
    F32: 1e-4,
    BF16: 0.1,
    LLAMA_CPP: 0.1,
    VLLM: 0.1,
}

#: Our own words; repeated until there are enough tokens.
TEXT: Final = (
    "A tide gauge is a simple instrument with a hard duty: it must report the height of the sea, every few "
    "minutes, for decades, and never be wrong in silence. The people who look after one keep a paper book "
    "beside it. When the float sticks, they write it down; when a storm moves the pier by a finger's width, "
    "they measure the pier again and write that down too. Years later somebody who never met them draws a "
    "line through a century of numbers and can still tell which of them to believe. What makes the record "
    "good is not that nothing ever went wrong. It is that each value carries the account of how it came to "
    "be, and that the account can be checked by a stranger. Machines that compute deserve the same book. "
)


def same_logits(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """How two outputs differ, or None.

    Compares every logits vector after subtracting its mean (a constant changes no probability): the root
    mean square of the difference over that of the reference must stay within the engine's tolerance.
    """
    if len(reference) != len(output):
        return f"{len(output)} logits vectors, not {len(reference)}"
    for place, (wanted, found) in enumerate(zip(map(unpack, reference), map(unpack, output), strict=True)):
        if wanted.shape != found.shape:
            return f"{found.size} logits, not {wanted.size}"
        error = _relative_error(wanted, found)
        if not error <= TOLERANCES[engine]:
            return f"logits {place} differ by {error:.2g} relative, over {TOLERANCES[engine]:g}"
    return None


def _relative_error(wanted: Floats, found: Floats) -> float:
    a, b = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (wanted, found))
    return float(np.sqrt(np.mean((a - b) ** 2) / max(float(np.mean(a**2)), 1e-300)))


def ratio_bar(
    found: Measured, case: Case, ours: str, rival: str, target: float, better: Better = "higher"
) -> Bar | NotMeasured:
    """The bar on the median over rounds of one engine's figure over a rival's in the same round."""
    name = f"{case.name}: {ours} over {rival}"
    rows = {row.engine: row for row in found.rows if row.case == case.name}
    absent = [engine for engine in (ours, rival) if engine not in rows]
    if absent:
        return NotMeasured(name, f"without {' and '.join(absent)}")
    return Bar(name, rows[ours].ratios[rival], "x", target, better)


def text_child(scope: Scope, engine: str, *words: str) -> ChildEngine:
    """One of `_serve.py`'s engines on the model's file, in a process of its own."""
    return ChildEngine(engine_command(engine, str(model_path()), *words), child_environment(scope))


def text_peer(name: str, engine: str, *words: str) -> Peer:
    """A peer, or a mode of ours, that `text_child` starts."""
    missing = {LLAMA_CPP: llama_cpp_missing, BF16: _transformers_missing, F32: _transformers_missing}

    def setup(scope: Scope) -> Engine:
        return text_child(scope, engine, *words)

    return Peer(name, missing.get(name, lambda: None), setup)


def _transformers_missing() -> str | None:
    return (
        None if find_spec("transformers") else "transformers is not installed (pip install 'tensure[bench]')"
    )


def model_path() -> Path:
    """The installed file of the model."""
    return KNOWN[MODEL].path()


@cache
def _tokenizer() -> Tokenizer:
    from tensure.program.from_gguf import from_gguf

    assets = from_gguf(model_path()).assets
    return Tokenizer.from_json(assets["tokenizer.json"], json.loads(assets["text.json"]))


def token_ids(most: int, text: str = TEXT) -> list[int]:
    """The first ids of a text, which is repeated until there are enough."""
    ids = _tokenizer().encode(text, add_special=False)
    return (ids * (1 + most // len(ids)))[:most]


@cache
def model_sizes() -> tuple[int, int, int]:
    """Bytes as stored, weights in the blocks, weights in the head."""
    from tensure.program.from_gguf import read_gguf

    tensors = read_gguf(model_path()).tensors
    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in tensors.items()}
    head = sizes.get("output.weight", sizes["token_embd.weight"])
    blocks = sum(size for name, size in sizes.items() if name.startswith("blk."))
    return sum(tensor.data.nbytes for tensor in tensors.values()), blocks, head


def plural(threads: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{threads} thread{'' if threads == 1 else 's'}"
