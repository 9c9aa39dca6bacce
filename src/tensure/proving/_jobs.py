"""Pieces of work in several processes: copies of this one, of which each sends back what it found.

A copy (`fork`) has every object that is there already, so that nothing need be written down and read again to
begin; what it found comes back through a pipe of its own. It runs no code but ours: no operation of torch, of
whose threads a copy has none. Knows nothing of the work.
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


def spread(works: Sequence[Callable[[], T]], jobs: int) -> list[T]:
    """What pieces of work return, in their order, as if one had been done after the other.

    Args:
        works: each independent of the others; what they return can be pickled.
        jobs: processes, this one among them. Where the system has no `fork` it is one.

    Raises:
        ProcessFailed: a process ended without an answer. Or whatever the first piece that fails raises.
    """
    count = min(jobs, len(works)) if CAN_FORK else 1
    if count <= 1:
        return [work() for work in works]
    copies = list[_Copy]()
    try:
        copies.extend(_Copy(works[at::count]) for at in range(1, count))
        rows = [_done(works[::count])]
        rows.extend(copy.get() for copy in copies)
    finally:
        for copy in copies:
            copy.end()
    made = list[T]()
    for at in range(len(works)):
        row, place = rows[at % count], at // count
        if place >= len(row):
            raise ProcessFailed(f"piece {at} of {len(works)} came to nothing")
        is_made, found = row[place]
        if not is_made:
            raise found
        made.append(found)
    return made


def _done(works: Sequence[Callable[[], Any]]) -> list[Found]:
    """What came of each, up to the first that failed."""
    found = list[Found]()
    for work in works:
        try:
            found.append((True, work()))
        except Exception as error:  # noqa: BLE001 - it is raised again, in its turn
            return [*found, (False, error)]
    return found


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

    def get(self) -> list[Found]:
        """What came of its work.

        Raises:
            ProcessFailed: it ended without saying.
        """
        try:
            found: list[Found] = self._pipe.recv()
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
        found = _done(works)
        if found and not found[-1][0]:
            error = found[-1][1]
            error.add_note("".join(traceback.format_exception(error)))  # where it was raised is not sent
        try:
            pipe.send(found)
        except Exception as error:  # noqa: BLE001 - what cannot be sent is no answer
            pipe.send([(False, ProcessFailed(f"a process of --jobs cannot send its answer: {error!r}"))])
        code = 0
    finally:
        os._exit(code)
