"""Work in a copy of this process that can reach nobody, and ends.

A copy (`fork`) has every object of the caller's, closures and process groups included, and whatever it does
to them is gone with it. Its sockets are closed first: what the caller's process groups would send goes
nowhere.
Knows processes; knows nothing of what is done in them.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TypeAlias

from tensure.errors import LimitError, TensureError, UnsupportedError

__all__ = ["Beside", "Talk"]

Talk: TypeAlias = "Connection[bytes, bytes]"


class Beside:
    """A copy of this process at work.

    Args:
        work: called there with one end of a pipe; what it raises is lost but for the end of the pipe.
        until: when it must have ended, by `time.monotonic`.
        purpose: what it is for, as a refusal has it.
        wanted: what helps where it did not end in time.

    Raises:
        UnsupportedError: this system has no `fork`.
    """

    def __init__(
        self,
        work: Callable[[Talk], None],
        until: float,
        *,
        purpose: str = "a proof of a live step",
        wanted: str | None = "a greater timeout_s",
    ) -> None:
        if not hasattr(os, "fork"):
            raise UnsupportedError(f"{purpose} on {sys.platform}", wanted="a system with fork")
        self.until, self.wanted = until, wanted
        self.signal: str | None = None
        """What ended it, when it was no end of its own."""
        self._pipe, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # threads of the caller's are not there in the copy: none is needed
            self._process = os.fork()
        if not self._process:
            _run(work, theirs)
        theirs.close()

    def get(self, what: str) -> bytes:
        """The next thing it sends.

        Raises:
            LimitError: it did not come in time.
            TensureError: it ended without sending anything.
        """
        try:
            if not self._pipe.poll(max(0.0, self.until - time.monotonic())):
                raise LimitError(f"{what} did not end in time", wanted=self.wanted)
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise TensureError(f"{what} ended early: {self._ending()}") from None

    def put(self, data: bytes) -> None:
        """Send it something; who is gone does not hear it."""
        with suppress(OSError):
            self._pipe.send_bytes(data)

    def end(self) -> None:
        """Whatever it is at, it ends now."""
        self._pipe.close()
        if self._process:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self._reap()

    def _ending(self) -> str:
        status = self._reap()
        if os.WIFSIGNALED(status):
            self.signal = signal.Signals(os.WTERMSIG(status)).name
            return f"signal {self.signal}"
        return f"exit code {os.waitstatus_to_exitcode(status)}"

    def _reap(self) -> int:
        status = 0
        with suppress(ChildProcessError):
            status = os.waitpid(self._process, 0)[1]
        self._process = 0
        return status


def _run(work: Callable[[Talk], None], pipe: Talk) -> None:
    """The copy's life; it never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
        _close_sockets(pipe.fileno())
        work(pipe)
        code = 0
    finally:
        os._exit(code)


def _close_sockets(kept: int) -> None:
    """Put nothing where sockets, and what waits on them, were; who is at the other end is told nothing.

    Output goes nowhere too: what the caller prints in a step is printed when it is run.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for found in map(int, os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else range(1024)):
        with suppress(OSError):
            if found not in (kept, nowhere) and (
                found in (1, 2) or stat.S_ISSOCK(os.fstat(found).st_mode) or _is_poll(found)
            ):
                os.dup2(nowhere, found)


def _is_poll(number: int) -> bool:
    try:
        return "eventpoll" in os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False
