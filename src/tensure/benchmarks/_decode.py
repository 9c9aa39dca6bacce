"""`decode` and `prefill`: SmolLM2-135M beside transformers (bf16, f32) and llama.cpp.

All engines read the same tokens and are compared on their logits first. Decode makes greedy tokens after a
short prompt; prefill reads a prompt of 256 tokens up to its last logits. Ours runs in both of its modes. Does
not know how an engine works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from ._child import ChildEngine, child_environment, engine_command
from ._declare import benchmark
from ._records import OURS, Bar, Case, Engine, Limit, Measured, NotMeasured, Scope
from ._text_cases import (
    BF16,
    F32,
    FAST,
    LLAMA_CPP,
    model_sizes,
    plural,
    ratio_bar,
    same_logits,
    text_child,
    text_peer,
    token_ids,
)

__all__ = ["PROMPT_TOKENS", "decode", "decode_bars", "prefill", "prefill_bars"]

PROMPT_TOKENS: Final = {"decode": 24, "prefill": 256}
DECODE_TOKENS: Final = (64, 16)  # full, quick
FORCED_TOKENS: Final = 4

DECODE_TARGET: Final = 1.6
PREFILL_TARGET: Final = 1.0

_Task = Literal["decode", "prefill"]


def decode_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Both modes over llama.cpp."""
    return [ratio_bar(found, case, mode, LLAMA_CPP, DECODE_TARGET) for case in cases for mode in (OURS, FAST)]


def prefill_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Fast over bf16, which rounds too; exact over llama.cpp."""
    pairs = ((FAST, BF16), (OURS, LLAMA_CPP))
    return [ratio_bar(found, case, mode, rival, PREFILL_TARGET) for case in cases for mode, rival in pairs]


def _cases(task: _Task, scope: Scope) -> list[Case]:
    """One case for each number of threads."""
    num = PROMPT_TOKENS[task]
    ids = token_ids(num + FORCED_TOKENS)
    tokens = DECODE_TOKENS[1 if scope.quick else 0]
    forced = ids[num:] if task == "decode" else []
    params = {"task": task, "prompt": ids[:num], "forced": forced, "tokens": tokens}
    work = float(tokens if task == "decode" else num)
    return [Case(plural(threads), threads, work, params) for threads in scope.threads]


def _decode_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    """A token reads every weight once: bandwidth over the bytes of the model as stored."""
    stored = model_sizes()[0]
    with _limits_child(scope) as child:
        found = [
            (case, child.ask("limits", {"kind": "bandwidth", "threads": case.threads})) for case in cases
        ]
    return [
        Limit("memory bandwidth", case.threads, row["value"], row["unit"], row["value"] / stored, row["how"])
        for case, row in found
    ]


def _prefill_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    """A token needs a multiply and an add for each weight of the blocks; the head is used once."""
    _, in_blocks, in_head = model_sizes()
    with _limits_child(scope) as child:
        found = [(case, child.ask("limits", {"kind": "f32", "threads": case.threads})) for case in cases]
    needed = 2.0 * (in_blocks * PROMPT_TOKENS["prefill"] + in_head)
    return [
        Limit("f32 arithmetic", case.threads, row["value"], row["unit"],
              PROMPT_TOKENS["prefill"] * row["value"] / needed, row["how"])
        for case, row in found
    ]  # fmt: skip


def _limits_child(scope: Scope) -> ChildEngine:
    return ChildEngine(engine_command("limits"), child_environment(scope))


PEERS: Final = (
    text_peer(FAST, "tensure", "fast"),
    text_peer(LLAMA_CPP, "llama.cpp"),
    text_peer(BF16, "transformers", "bf16"),
    text_peer(F32, "transformers", "f32"),
)


@benchmark(
    "decode",
    about=f"SmolLM2-135M-Instruct Q4_1, one sequence, greedy, after {PROMPT_TOKENS['decode']} prompt tokens",
    metric="tok/s",
    better="higher",
    cases=lambda scope: _cases("decode", scope),
    peers=PEERS,
    agree=same_logits,
    reference=F32,
    limits=_decode_limits,
    bars=decode_bars,
)
def decode(scope: Scope) -> Engine:
    """Our engine in mode exact; the cases tell it what to do."""
    return text_child(scope, "tensure", "exact")


@benchmark(
    "prefill",
    about=f"SmolLM2-135M-Instruct Q4_1, a prompt of {PROMPT_TOKENS['prefill']} tokens to its last logits",
    metric="tok/s",
    better="higher",
    cases=lambda scope: _cases("prefill", scope),
    peers=PEERS,
    agree=same_logits,
    reference=F32,
    limits=_prefill_limits,
    bars=prefill_bars,
)
def prefill(scope: Scope) -> Engine:
    """Our engine in mode exact; the cases tell it what to do."""
    return text_child(scope, "tensure", "exact")
