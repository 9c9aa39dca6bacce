"""`start`: what stands between a person and an answer: the command line's start, a receipt's price.

Each case has a bar from the Foundation issue. Commands are timed as a shell would start them, interpreter
included; signing and verifying in this process. No peers: nobody else writes these receipts.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tensure.bundle import OutputDigest, Receipt, Sha256, SigningKey, issued_now, next_link, sign_receipt
from tensure.errors import TensureError
from tensure.receipts import verify_receipt

from ._declare import benchmark
from ._records import AbsentError, Case, Engine, EngineError, Json, Scope, Timing

__all__ = ["start"]

_REPEATS: Final = 200
_COMMAND_S: Final = 60.0
_MAKE_S: Final = 900.0
_CHECKOUT: Final = Path(__file__).resolve().parents[3]

HELP: Final = "tensure --help"
VERIFY_COMMAND: Final = "tensure receipt verify"
SIGN: Final = "sign a receipt"
VERIFY: Final = "verify a receipt"
MAKE_RUN: Final = "make run, again"


def _cases(scope: Scope) -> list[Case]:
    return [
        Case(HELP, 1, target=300.0),
        Case(VERIFY_COMMAND, 1, target=500.0),
        Case(SIGN, 1, float(_REPEATS), target=1.0),
        Case(VERIFY, 1, float(_REPEATS), target=500.0),
        Case(MAKE_RUN, os.cpu_count() or 1, target=60e3, rounds=1),
    ]


class StartEngine:
    """Runs commands; signs and verifies one receipt of a usual size with a key made for it and dropped."""

    def __init__(self, quick: bool = False) -> None:
        self._quick = quick
        self._folder = Path(tempfile.mkdtemp(prefix="tensure-bench-"))
        self._key = SigningKey.generate()
        digest = Sha256(hashlib.sha256(b"bench").hexdigest())
        output = OutputDigest("logits", digest, "f32", (49152,))
        self._receipt = Receipt(outputs=(output,), link=next_link("bench"), issued=issued_now(self._key))
        self._signed = sign_receipt(self._receipt, self._key)
        self._file, self._public = self._folder / "receipt.json", self._folder / "key.pem"
        self._file.write_bytes(self._signed)
        self._public.write_bytes(self._key.public.pem)

    def check(self, case: Case) -> Json:
        """None; EngineError unless it works: help without torch, a changed receipt refused."""
        if case.name == HELP:
            self._check_help()
        elif case.name == VERIFY_COMMAND:
            self._command(*self._verify_words(), wanted=0)
            changed = self._folder / "changed.json"
            changed.write_bytes(self._changed())
            words = ["receipt", "verify", str(changed), "--key", str(self._public)]
            self._command(*words, wanted=1)
        elif case.name == MAKE_RUN:
            self._check_make()
        else:
            self._verify(sign_receipt(self._receipt, self._key))
            try:
                self._verify(self._changed())
            except TensureError:
                return None
            raise EngineError("a receipt with a changed byte was verified")
        return None

    def run(self, case: Case) -> Timing:
        """One command, or `_REPEATS` signatures or verifications."""
        actions: dict[str, Callable[[], object]] = {
            HELP: lambda: self._command("--help", wanted=0),
            VERIFY_COMMAND: lambda: self._command(*self._verify_words(), wanted=0),
            SIGN: lambda: [sign_receipt(self._receipt, self._key) for _ in range(_REPEATS)],
            VERIFY: lambda: [self._verify(self._signed) for _ in range(_REPEATS)],
            MAKE_RUN: self._make_run,
        }
        begin, cpu = time.perf_counter(), _cpu_s()
        actions[case.name]()
        return Timing(time.perf_counter() - begin, _cpu_s() - cpu)

    def facts(self) -> Mapping[str, Json]:
        """How large the receipt is."""
        return {"receipt_bytes": len(self._signed)}

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _changed(self) -> bytes:
        """The receipt with one letter of its payload exchanged."""
        place = len(self._signed) // 2
        other = b"A" if self._signed[place : place + 1] != b"A" else b"B"
        return self._signed[:place] + other + self._signed[place + 1 :]

    def _verify_words(self) -> list[str]:
        return ["receipt", "verify", str(self._file), "--key", str(self._public)]

    def _verify(self, data: bytes) -> Receipt:
        return verify_receipt(data, keys=[self._key.public])

    def _check_help(self) -> None:
        self._command("--help", wanted=0)
        code = (
            "import sys, tensure.cli\nsys.argv = ['tensure', '--help']\n"
            "try: tensure.cli.main()\nexcept SystemExit: pass\n"
            "sys.exit(9 if 'torch' in sys.modules else 0)"
        )
        done = _finished([sys.executable, "-c", code])
        if done.returncode:
            raise EngineError("the help loads torch" if done.returncode == 9 else _complaint(done))

    def _command(self, *words: str, wanted: int) -> None:
        done = _finished([*_tensure(), *words])
        if done.returncode != wanted:
            raise EngineError(
                f"`tensure {words[0]}` exits {done.returncode}, not {wanted}: {_complaint(done)}"
            )

    def _check_make(self) -> None:
        if self._quick:
            raise AbsentError("may take longer than a quick run has")
        if not (_CHECKOUT / "Makefile").is_file():
            raise AbsentError("only a checkout has `make run`")
        stamps = [f".venv/stamps/{name}" for name in ("demo", "package", "native")]
        if _finished(["make", "-C", str(_CHECKOUT), "-q", *stamps]).returncode:
            raise AbsentError("the set-up is not up to date; `make run` once, this is the time of the second")

    def _make_run(self) -> None:
        done = _finished(["make", "-C", str(_CHECKOUT), "run"], _MAKE_S)
        if done.returncode:
            raise EngineError(f"`make run` exits {done.returncode}: {_complaint(done)}")


@benchmark(
    "start",
    about="the command line's start and the price of a receipt",
    metric="ms",
    better="lower",
    cases=_cases,
    rounds=(15, 5),
)
def start(scope: Scope) -> Engine:
    """Our commands and our receipts."""
    return StartEngine(scope.quick)


def _tensure() -> list[str]:
    """The installed command, else the same function through the interpreter."""
    script = Path(sys.executable).with_name("tensure")
    return (
        [str(script)] if script.is_file() else [sys.executable, "-c", "from tensure.cli import main; main()"]
    )


def _finished(command: Sequence[str], seconds: float = _COMMAND_S) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]} did not finish: {type(error).__name__}") from None


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:200] if lines else "it says nothing"


def _cpu_s() -> float:
    """Processor time of this process and of the commands it waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
