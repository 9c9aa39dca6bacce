"""Pieces of work in several processes: copies of this one, of which each sends back what it found.

A copy (`fork`) has every object that is there already, so that nothing need be written down and read again to
begin; what it found comes back through a pipe of its own. It has none of the threads of this one: work must
not need a pool of them. Knows nothing of the work.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any, Final, TypeAlias, TypeVar

__all__ = ["ProcessFailed", "spread"]

T = TypeVar("T")
Found: TypeAlias = "tuple[bool, Any]"
"""What a piece of work returned (True), or what it raised."""
_LOOK_S: Final = 1.0
CAN_FORK: Final = hasattr(os, "fork")


class ProcessFailed(RuntimeError):
    """A process ended without an answer: killed, out of memory, or by a fault of ours; nothing is known."""


def spread(works: Sequence[Callable[[], T]], jobs: int, done: Callable[[int], None] | None = None) -> list[T]:
    """What pieces of work return, in their order, as if one had been done after the other.

    Pieces are dealt out in turn, and what came of them is taken in turn, so that little waits to be sent.

    Args:
        works: each independent of the others; what they return can be pickled.
        jobs: processes, this one among them. Where the system has no `fork` it is one.
        done: told how many pieces are done.

    Raises:
        ProcessFailed: a process ended without an answer. Or whatever the first piece that fails raises.
    """
    count = max(1, min(jobs, len(works))) if CAN_FORK else 1
    copies, made = list[_Copy](), list[T]()
    try:
        copies.extend(_Copy(works[at::count]) for at in range(1, count))
        for lo in range(0, len(works), count):
            made.append(works[lo]())
            for copy in copies[: len(works) - lo - 1]:
                is_made, found = copy.get()
                if not is_made:
                    raise found
                made.append(found)
            if done is not None:
                done(len(made))
    finally:
        for copy in copies:
            copy.end()
    return made


class _Copy:
    """A copy of this process at work."""

    def __init__(self, works: Sequence[Callable[[], Any]]) -> None:
        self._pipe, theirs = Pipe(duplex=False)
        caller = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads that are not there in the copy: none is needed
            self._process = os.fork()
        if not self._process:
            self._pipe.close()
            _live(works, theirs, caller)
        theirs.close()

    def get(self) -> Found:
        """What came of its next piece.

        Raises:
            ProcessFailed: it ended without saying.
        """
        try:
            found: Found = self._pipe.recv()
        except (EOFError, OSError):
            raise ProcessFailed(f"a process of --jobs ended without an answer: {self._ending()}") from None
        return found

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
            return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
        return f"exit code {os.waitstatus_to_exitcode(status)}"

    def _reap(self) -> int:
        status = 0
        with suppress(ChildProcessError):
            status = os.waitpid(self._process, 0)[1]
        self._process = 0
        return status


def _live(works: Sequence[Callable[[], Any]], pipe: Any, caller: int) -> None:
    """The copy's life; it never returns."""
    code = 1

    def look(*_: object) -> None:
        if os.getppid() != caller:
            os._exit(code)  # nobody is there any more to be told

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the caller, and ends this
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
        for work in works:
            if not _send(work, pipe):
                break
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)


def _send(work: Callable[[], Any], pipe: Any) -> bool:
    """Do a piece and say what came of it; whether to go on."""
    found: Found
    try:
        found = True, work()
    except Exception as error:  # noqa: BLE001 - it is raised again, in its turn
        error.add_note("".join(traceback.format_exception(error)))  # where it was raised is not sent
        found = False, error
    try:
        pipe.send(found)
    except BrokenPipeError:
        return False
    except Exception as error:  # noqa: BLE001 - what cannot be sent is no answer
        found = False, ProcessFailed(f"a process of --jobs cannot send its answer: {error!r}")
        pipe.send(found)
    return found[0]
