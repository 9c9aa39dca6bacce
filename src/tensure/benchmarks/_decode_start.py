"""`decode-start`: from a process's start to its first token and to a whole answer, and the memory that takes.

Each run is a new process (`_first_token.py`) on files that are in the page cache. Ours in both modes, beside
llama.cpp. Outputs of the first token are compared first. Does not know how an engine works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ._child import child_environment
from ._declare import benchmark
from ._engine_llama_cpp import llama_cpp_missing
from ._records import OURS, Bar, Case, Engine, EngineError, Json, Measured, NotMeasured, Peer, Scope, Timing
from ._text_cases import FAST, LLAMA_CPP, model_path, plural, same_logits, token_ids

__all__ = ["MEMORY", "StartOfDecode", "decode_start", "memory_bars"]

LOAD: Final = "load"
WARM: Final = "first token, modules imported"
COLD: Final = "first token, from process start"
MEMORY: Final = "256 tokens read, 64 made, from process start"

PROMPT_TOKENS: Final = 24
LONG_PROMPT: Final = 256
TOKENS: Final = 64
SPARE_MIB: Final = 64.0
_RUN_S: Final = 300.0
_MIB: Final = 1 << 20

#: Between which marks a case's time lies; a process starts at "spawned".
_SPANS: Final = {
    LOAD: ("imported", "loaded"),
    WARM: ("imported", "first"),
    COLD: ("spawned", "first"),
    MEMORY: ("spawned", "last"),
}

Command = Callable[[Case, bool], Sequence[str]]


def memory_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Peak memory of our process beyond the weights as stored and the cache pages that were used."""
    bars: list[Bar | NotMeasured] = []
    for case in (case for case in cases if case.params["span"] == MEMORY):
        for mode in (OURS, FAST):
            name = f"{case.name}: memory of {mode} beyond weights and cache"
            row = next((r for r in found.rows if r.case == case.name and r.engine == mode), None)
            if row is None:
                bars.append(NotMeasured(name, f"without {mode}"))
                continue
            facts = row.facts
            over = facts["peak_rss_bytes"] - facts["weight_bytes"] - facts["cache_bytes"]
            bars.append(Bar(name, over / _MIB, "MiB", SPARE_MIB, "lower"))
    return bars


class StartOfDecode:
    """Runs one command a time and takes the time between two of the marks it prints."""

    def __init__(self, command: Command, env: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._env = env
        self._case = ""
        self._facts: dict[str, Json] = {}

    def check(self, case: Case) -> Json:
        """The logits of the first token, packed."""
        _, found = self._finished(case, logits=True)
        return [found["logits"]]

    def run(self, case: Case) -> Timing:
        """One process."""
        spawned, found = self._finished(case, logits=False)
        begin, end = (
            (spawned, 0.0) if mark == "spawned" else found["marks"][mark]
            for mark in _SPANS[case.params["span"]]
        )
        if case.name != self._case:
            self._case, self._facts = case.name, {}
        peak = max(found["peak_rss_bytes"], self._facts.get("peak_rss_bytes", 0))
        self._facts = {"weight_bytes": found["weight_bytes"], "peak_rss_bytes": peak}
        if found["cache_bytes"] is not None:
            self._facts["cache_bytes"] = found["cache_bytes"]
        return Timing(end[0] - begin[0], end[1] - begin[1])

    def facts(self) -> Mapping[str, Json]:
        """Weights, cache and the largest peak over the case's runs."""
        return self._facts

    def close(self) -> None:
        """Nothing is left running."""

    def _finished(self, case: Case, *, logits: bool) -> tuple[float, Any]:
        begin = time.monotonic()
        try:
            done = subprocess.run(
                list(self._command(case, logits)),
                capture_output=True,
                text=True,
                timeout=_RUN_S,
                check=False,
                env=None if self._env is None else dict(self._env),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"the process did not finish: {type(error).__name__}") from None
        lines = done.stderr.strip().splitlines()
        if done.returncode:
            raise EngineError(f"the process ended with {done.returncode}: {lines[-1][:300] if lines else ''}")
        try:
            return begin, json.loads(done.stdout)
        except ValueError:
            raise EngineError(f"the process printed {done.stdout[:80]!r}", wanted="JSON") from None


def _engine(name: str, scope: Scope) -> Engine:
    def command(case: Case, logits: bool) -> Sequence[str]:
        params = case.params
        asked = {"prompt": params["prompt"], "tokens": params["tokens"], "logits": logits}
        script = str(Path(__file__).with_name("_first_token.py"))
        path, threads = str(model_path()), str(case.threads)
        return [sys.executable, "-P", script, name, path, threads, json.dumps(asked)]

    return StartOfDecode(command, child_environment(scope))


def _cases(scope: Scope) -> list[Case]:
    ids = token_ids(LONG_PROMPT)
    cases: list[Case] = []
    for threads in scope.threads:
        for span in _SPANS:
            long = span == MEMORY
            prompt, tokens = ids[: LONG_PROMPT if long else PROMPT_TOKENS], TOKENS if long else 0
            params = {"span": span, "prompt": prompt, "tokens": tokens}
            cases.append(Case(f"{span}, {plural(threads)}", threads, params=params))
    return cases


@benchmark(
    "decode-start",
    about=f"SmolLM2-135M-Instruct Q4_1, a new process: loading, a prompt of {PROMPT_TOKENS} tokens, memory",
    metric="ms",
    better="lower",
    cases=_cases,
    peers=(
        Peer(FAST, lambda: None, lambda scope: _engine("fast", scope)),
        Peer(LLAMA_CPP, llama_cpp_missing, lambda scope: _engine("llama.cpp", scope)),
    ),
    agree=same_logits,
    rounds=(7, 2),
    bars=memory_bars,
)
def decode_start(scope: Scope) -> Engine:
    """Our engine in mode exact."""
    return _engine("exact", scope)
