"""`decode` and `prefill`: SmolLM2-135M beside transformers (bf16, f32) and llama.cpp.

All engines read the same tokens and are compared on their logits first. Decode makes greedy tokens after a
short prompt; prefill reads a prompt of 256 tokens up to its last logits. Does not know how an engine works.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import numpy as np

from tensure.api import KNOWN
from tensure.text import Tokenizer

from ._child import ChildEngine, child_environment, engine_command
from ._declare import benchmark
from ._engine_llama_cpp import llama_cpp_missing
from ._records import Case, Engine, Json, Limit, Peer, Scope
from ._text_engine import Floats, unpack

__all__ = ["PROMPT_TOKENS", "TOLERANCES", "decode", "prefill", "same_logits"]

MODEL: Final = "smollm2-135m"
PROMPT_TOKENS: Final = {"decode": 24, "prefill": 256}
DECODE_TOKENS: Final = (64, 16)  # full, quick
FORCED_TOKENS: Final = 4

#: Largest relative error of centred logits (root mean square) that still counts as the same output. f32
#: engines differ in the order of sums only; bf16 rounds weights and activations to 8 bits; llama.cpp rounds
#: the activations of each product to 8-bit integers.
TOLERANCES: Final = {"tensure": 1e-4, "transformers f32": 1e-4, "transformers bf16": 0.1, "llama.cpp": 0.1}

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

_Task = Literal["decode", "prefill"]


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


def _cases(task: _Task, scope: Scope) -> list[Case]:
    """One case for each number of threads."""
    ids = _token_ids()
    num = PROMPT_TOKENS[task]
    tokens = DECODE_TOKENS[1 if scope.quick else 0]
    forced = ids[num : num + FORCED_TOKENS] if task == "decode" else []
    params = {"task": task, "prompt": ids[:num], "forced": forced, "tokens": tokens}
    work = float(tokens if task == "decode" else num)
    return [Case(_plural(threads), threads, work, params) for threads in scope.threads]


def _decode_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    """A token reads every weight once: bandwidth over the bytes of the model as stored."""
    stored = _model_sizes()[0]
    with _limits_child(scope) as child:
        found = [(case, child.ask("limits", case.threads)["bandwidth"]) for case in cases]
    return [
        Limit("memory bandwidth", case.threads, row["value"], row["unit"], row["value"] / stored, row["how"])
        for case, row in found
    ]


def _prefill_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    """A token needs a multiply and an add for each weight of the blocks; the head is used once."""
    _, in_blocks, in_head = _model_sizes()
    with _limits_child(scope) as child:
        found = [(case, child.ask("limits", case.threads)["f32"]) for case in cases]
    needed = 2.0 * (in_blocks * PROMPT_TOKENS["prefill"] + in_head)
    return [
        Limit("f32 arithmetic", case.threads, row["value"], row["unit"],
              PROMPT_TOKENS["prefill"] * row["value"] / needed, row["how"])
        for case, row in found
    ]  # fmt: skip


def _setup(scope: Scope, *words: str) -> Engine:
    return ChildEngine(engine_command(words[0], str(_path()), *words[1:]), child_environment(scope))


def _limits_child(scope: Scope) -> ChildEngine:
    return ChildEngine(engine_command("limits"), child_environment(scope))


def _transformers_missing() -> str | None:
    return (
        None if find_spec("transformers") else "transformers is not installed (pip install 'tensure[bench]')"
    )


PEERS: Final = (
    Peer("llama.cpp", llama_cpp_missing, lambda scope: _setup(scope, "llama.cpp")),
    Peer("transformers bf16", _transformers_missing, lambda scope: _setup(scope, "transformers", "bf16")),
    Peer("transformers f32", _transformers_missing, lambda scope: _setup(scope, "transformers", "f32")),
)


@benchmark(
    "decode",
    about=f"SmolLM2-135M-Instruct Q4_1, one sequence, greedy, after {PROMPT_TOKENS['decode']} prompt tokens",
    metric="tok/s",
    better="higher",
    cases=lambda scope: _cases("decode", scope),
    peers=PEERS,
    agree=same_logits,
    reference="transformers f32",
    limits=_decode_limits,
)
def decode(scope: Scope) -> Engine:
    """Our engine; the cases tell it what to do."""
    return _setup(scope, "tensure")


@benchmark(
    "prefill",
    about=f"SmolLM2-135M-Instruct Q4_1, a prompt of {PROMPT_TOKENS['prefill']} tokens to its last logits",
    metric="tok/s",
    better="higher",
    cases=lambda scope: _cases("prefill", scope),
    peers=PEERS,
    agree=same_logits,
    reference="transformers f32",
    limits=_prefill_limits,
)
def prefill(scope: Scope) -> Engine:
    """Our engine; the cases tell it what to do."""
    return _setup(scope, "tensure")


def _path() -> Path:
    return KNOWN[MODEL].path()


@cache
def _token_ids() -> list[int]:
    """The ids of TEXT, repeated until every case has enough."""
    from tensure.program.from_gguf import from_gguf

    assets = from_gguf(_path()).assets
    tokenizer = Tokenizer.from_json(assets["tokenizer.json"], json.loads(assets["text.json"]))
    ids = tokenizer.encode(TEXT, add_special=False)
    most = max(PROMPT_TOKENS.values()) + FORCED_TOKENS
    return (ids * (1 + most // len(ids)))[:most]


@cache
def _model_sizes() -> tuple[int, int, int]:
    """Bytes as stored, weights in the blocks, weights in the head."""
    from tensure.program.from_gguf import read_gguf

    tensors = read_gguf(_path()).tensors
    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in tensors.items()}
    head = sizes.get("output.weight", sizes["token_embd.weight"])
    blocks = sum(size for name, size in sizes.items() if name.startswith("blk."))
    return sum(tensor.data.nbytes for tensor in tensors.values()), blocks, head


def _plural(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
