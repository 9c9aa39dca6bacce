"""What inspecting a run costs: one of the real models as eager torch code, plain or under an inspector.

    setup("plain" | "statistics" | "digests" | "debug" | "debug-hashes" | "torchlens")

Each in a process of its own, so that peak memory is the inspector's. DebugMode is torch's own (torch 2.13).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib.util import find_spec
from typing import Any, Final

import torch

from tensure.inspection import watch

from ._inspect_faults import Subject
from ._inspect_subjects import SUBJECTS
from ._records import AbsentError, Json
from ._text_engine import memory_facts

__all__ = ["setup"]


class InspectEngine:
    """Runs a subject under one inspector."""

    def __init__(self, kind: str) -> None:
        if kind not in _LOOKS:
            raise AbsentError(f"no inspector {kind!r}")
        self._kind = kind
        self._name = ""
        self._subject: Subject | None = None
        self._steps = 0
        self._live = 0

    def check(self, case: Json) -> Json:
        """Whether the run under the inspector gives the plain run's result, bit for bit."""
        subject = self._prepare(case)
        plain = _first(subject.run())
        looked = _first(self._run(subject))
        return {"same": bool(torch.equal(plain, looked)), "shape": list(plain.shape)}

    def run(self, case: Json) -> Json:
        """Time `repeats` runs after one that is not timed."""
        subject = self._prepare(case)
        self._run(subject)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(case["params"]["repeats"]):
            self._run(subject)
        return {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """Memory, and how many steps were looked at."""
        return {**memory_facts(), "steps": self._steps, "live_bytes": self._live}

    def _run(self, subject: Subject) -> Any:
        if self._kind == "torchlens":
            return self._torchlens(subject)
        with _LOOKS[self._kind](subject) as seen:
            result = subject.run()
        if self._kind in ("statistics", "digests"):
            self._steps, self._live = len(seen.trace.steps), seen.trace.peak_bytes
        return result

    def _torchlens(self, subject: Subject) -> Any:
        import torchlens

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _Runs(subject)
            log = torchlens.trace(module, torch.zeros(1))
        self._steps = len(log)
        return module.result

    def _prepare(self, case: Json) -> Subject:
        torch.set_num_threads(case["threads"])
        name = case["params"]["subject"]
        if name != self._name or self._subject is None:
            self._subject = SUBJECTS[name]()
            self._name = name
            for _ in range(3):  # TorchScript settles on its code in the first runs
                self._subject.run()
        return self._subject


class _Runs(torch.nn.Module):
    """A subject as a module of one argument that it does not need."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.inner = subject.module
        self._run = subject.run
        self.result: Any = None

    def forward(self, x: torch.Tensor) -> Any:
        """One run."""
        self.result = self._run()
        return self.result


def _debug(subject: Subject, *, hashes: bool) -> AbstractContextManager[Any]:
    from torch.utils._debug_mode import DebugMode

    stack = ExitStack()
    stack.enter_context(DebugMode())
    if hashes:
        stack.enter_context(DebugMode.log_tensor_hashes())
    return stack


_LOOKS: Final[dict[str, Callable[[Subject], AbstractContextManager[Any]]]] = {
    "plain": lambda subject: nullcontext(),
    "statistics": lambda subject: watch(subject.module),
    "digests": lambda subject: watch(subject.module, digest=True),
    "debug": lambda subject: _debug(subject, hashes=False),
    "debug-hashes": lambda subject: _debug(subject, hashes=True),
    "torchlens": lambda subject: nullcontext(),
}


def _first(result: Any) -> torch.Tensor:
    found: torch.Tensor = result[-1] if isinstance(result, list | tuple) else result
    return found


def setup(kind: str) -> InspectEngine:
    """The engine under one inspector.

    Raises:
        AbsentError: torchlens is not installed.
    """
    if kind == "torchlens" and find_spec("torchlens") is None:
        raise AbsentError("torchlens is not installed", next_step="pip install --no-deps torchlens==2.36.1")
    return InspectEngine(kind)
