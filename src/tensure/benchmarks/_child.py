"""An engine in a process of its own, asked over pipes: one JSON object a line, both ways.

A process each keeps thread pools apart (two OpenMP run-times in one process fight over the cores), makes
peak memory a property of one engine, and lets an engine crash alone. The child times itself, so the pipe is
never in a figure. Lines are `{"do": ..., "case": ...}`, where do is check, run, facts, limits, peak or close,
and answers `{"ok": value}` or `{"error": text}`; the first answer says that the engine is set up.

Does not know what an engine does (`_serve.py` finds it by name).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Final, Self

from ._records import Case, EngineError, Json, Scope, Timing

__all__ = ["ChildEngine", "child_environment", "engine_command"]

ANSWER_S: Final = 900.0
CLOSE_S: Final = 10.0
MAX_LINE: Final = 64 << 20
_POOLS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def engine_command(name: str, *args: str) -> list[str]:
    """The command line that serves one of our engines (`_serve.ENGINES`)."""
    return [sys.executable, "-m", "tensure.benchmarks._serve", name, *args]


def child_environment(scope: Scope) -> dict[str, str]:
    """The environment every engine gets: the same thread pools, and no network."""
    most = str(max(scope.threads))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **dict.fromkeys(_POOLS, most), **offline}


class ChildEngine:
    """The parent's end of an engine. Starts at once and is first waited for when first asked.

    Raises:
        EngineError: from every method, when the child has stopped, answers nonsense or takes too long.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, *, answer_s: float = ANSWER_S
    ) -> None:
        self._answer_s = answer_s
        self._buffer = bytearray()
        self._ready = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=None if env is None else dict(env),
            )
        except OSError as error:
            self._errors.close()
            raise EngineError(f"{command[0]} cannot be started: {error.strerror}") from None

    def check(self, case: Case) -> Json:
        """The output, as the child gives it."""
        return self.ask("check", _case_json(case))

    def run(self, case: Case) -> Timing:
        """The child's own timing of one run."""
        answer = self.ask("run", _case_json(case))
        try:
            return Timing(float(answer["wall_s"]), float(answer["cpu_s"]))
        except (KeyError, TypeError, ValueError):
            raise EngineError(f"the engine's timing is {answer!r:.80}") from None

    def facts(self) -> Mapping[str, Json]:
        """What the child says about itself; its memory so far included."""
        answer = self.ask("facts", None)
        return answer if isinstance(answer, dict) else {}

    def ask(self, do: str, value: Json) -> Json:
        """One request, one answer."""
        if not self._ready:
            self._answer()
            self._ready = True
        self._send({"do": do, "case": value})
        return self._answer()

    def close(self) -> None:
        """Ask the child to end, and see to it."""
        if self._errors.closed:
            return
        try:
            self._send({"do": "close", "case": None})
            self._process.wait(CLOSE_S if self._ready else 0.1)
        except (EngineError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unsent bytes to a child that is gone
                    pass
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: Json) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._stopped() from None

    def _answer(self) -> Json:
        line = self._read_line()
        try:
            message = json.loads(line)
        except ValueError:
            raise EngineError(f"the engine answered {line[:80]!r}", wanted="a line of JSON") from None
        if isinstance(message, dict) and "ok" in message:
            return message["ok"]
        text = message.get("error") if isinstance(message, dict) else None
        raise EngineError(str(text)[:500] if text else f"the engine answered {line[:80]!r}")

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + self._answer_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise EngineError(f"no answer within {self._answer_s:g} s")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise self._stopped()
            self._buffer += part
            if len(self._buffer) > MAX_LINE:
                raise EngineError(f"an answer of over {MAX_LINE} bytes")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _stopped(self) -> EngineError:
        """What became of the child, with the last line it wrote."""
        try:
            code: int | str = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = lines[-1][:300] if lines else "it wrote nothing"
        return EngineError(f"the engine's process ended (exit code {code}): {last}")


def _case_json(case: Case) -> Json:
    return {"name": case.name, "threads": case.threads, "params": dict(case.params)}
