"""Step through a run as it happens: the run waits in a thread of its own, between two steps, until it is told
to go on.

Knows recording functions (anything that takes `on_step`), facts and break conditions. Does not know how a
step is shown, nor what is run. Nothing of the run stays behind when it is closed early: an exception goes up
through the run's own code, so that every context it had opened is left the way it would leave on an error.
"""

from __future__ import annotations

import contextvars
import difflib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import torch

from tensure.errors import InputError

from ._breaks import Break
from ._recorder import OnStep
from ._recording import Recording
from ._records import Step, Trace
from ._selection import Selection
from ._values import ValueStore

__all__ = ["Hit", "Record", "Stepper", "Stop"]

Record: TypeAlias = Callable[[OnStep], Recording]
"""Runs and records something, telling `on_step` of every step."""

RING_BYTES: Final = 64 << 20
CLOSE_SECONDS: Final = 30.0
_FAR: Final = 1 << 62


class _ClosedError(BaseException):
    """Goes up through a run that nobody wants to go on; no `except Exception` of its code may stop it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A break condition that a step met: its number, itself, and why."""

    number: int
    condition: Break
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Where one is.

    `why` is `step` where it was asked to stop, `break` where a condition was met, `start` before the first
    step, `end` after the last one, `interrupted` after Ctrl-C.
    """

    why: Literal["step", "break", "start", "end", "interrupted"]
    step: Step | None
    hits: tuple[Hit, ...] = ()


class Stepper:
    """A run that is gone through step by step, forwards as it happens, backwards in what it left.

    Going forward from an earlier step looks at recorded steps until it comes to where the run waits.

        with Stepper(lambda on_step: tensure.inspect(model, x, on_step=on_step)) as run:
            run.add_break(parse_break("nan"))
            stop = run.go()
            print(stop.step, run.values(stop.step.outs[0]))

    Args:
        record: starts when the first step is asked for.
        breaks: conditions to begin with, numbered from 1.
        ring_bytes: of the last values that are kept to look back at, where the run keeps none itself.
    """

    def __init__(self, record: Record, breaks: Iterable[Break] = (), *, ring_bytes: int = RING_BYTES) -> None:
        self._record = record
        self._ring = _Ring(ring_bytes)
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._trace = Trace("run")
        self._store: ValueStore | None = None
        self._recording: Recording | None = None
        self._error: BaseException | None = None
        self._leaves: dict[str, weakref.ref[torch.Tensor]] = {}
        self._here: Mapping[str, torch.Tensor] = {}
        self._at = self._front = -1
        self._goal = -1
        self._waits = self._ended = self._closing = False
        self._bare = False
        """Whether steps come without what they made: a recording of which no values were kept."""
        self._breaks: dict[int, Break] = {}
        self._last_break = 0
        for item in breaks:
            self.add_break(item)

    # --- where one is ---

    @property
    def trace(self) -> Trace:
        """What was recorded so far."""
        return self._trace

    @property
    def at(self) -> int:
        """Index of the step that is looked at, -1 before the first."""
        return self._at

    @property
    def front(self) -> int:
        """Index of the last step that ran."""
        return self._front

    @property
    def ended(self) -> bool:
        """Whether the run is over, well or not."""
        return self._ended

    @property
    def recording(self) -> Recording | None:
        """The whole run, once it is over."""
        return self._recording

    # --- going ---

    def next(self, count: int = 1) -> Stop:
        """`count` steps further, or to the first that meets a condition.

        Raises:
            Exception: what the run raised, when it does.
        """
        return self.run_to(self._at + max(1, count))

    def back(self, count: int = 1) -> Stop:
        """`count` steps back; the run itself stays where it is."""
        self._at = max(0, self._at - max(1, count)) if self._trace.steps else -1
        return self._stop("step")

    def go(self) -> Stop:
        """To the next step that meets a condition, or to the end. Raises as `next`."""
        return self.run_to(_FAR)

    def run_to(self, index: int) -> Stop:
        """To this step, or on the way there to the first that meets a condition. Raises as `next`.

        An earlier index is looked at without going anywhere.
        """
        if index <= self._at:
            self._at = max(index, 0) if self._trace.steps else -1
            return self._stop("step")
        while self._at < self._front:
            self._at += 1
            if self._at == index or self._hits(self._trace.steps[self._at]):
                return self._stop("step")
        interrupted = self._advance(index)
        self._at = self._front
        if self._ended:
            if self._error is not None:
                raise self._error
            return self._stop("end")
        return self._stop("interrupted" if interrupted else "step")

    def close(self) -> bool:
        """End the run where it is; whether it could be (a run that hangs inside one op cannot)."""
        with self._turn:
            self._closing, self._waits = True, False
            self._turn.notify_all()
        thread = self._thread
        if thread is not None:
            thread.join(CLOSE_SECONDS)
        self._here = {}
        self._ring.clear()
        return thread is None or not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- conditions ---

    @property
    def breaks(self) -> Mapping[int, Break]:
        """The conditions by number."""
        return dict(self._breaks)

    def add_break(self, condition: Break) -> int:
        """Stop where this is met, from now on; returns its number."""
        self._last_break += 1
        self._breaks[self._last_break] = condition
        return self._last_break

    def delete_break(self, number: int) -> Break:
        """Forget a condition.

        Raises:
            InputError: no such number.
        """
        if number not in self._breaks:
            known = ", ".join(map(str, self._breaks)) or "none: there are no conditions"
            raise InputError(f"no condition {number}", wanted=known)
        return self._breaks.pop(number)

    # --- values ---

    def values(self, name: str, selection: Selection = ()) -> torch.Tensor:
        """The values of a tensor, or of a part of it, as they were when it was made; read-only by agreement.

        Args:
            name: as it stands in the trace, or an output's own name once the run is over.
            selection: as `parse_selection` gives it.

        Raises:
            InputError: no such tensor yet, values that are gone, or a part outside the tensor.
        """
        tensor = self._find(name)
        if not selection:
            return tensor
        try:
            return tensor[selection]
        except (IndexError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0][:160]
            facts = self._trace.tensors[self._trace.outputs.get(name, name)]
            raise InputError(reason, place=name[:80], wanted=f"a part of {facts.type}") from None

    def _find(self, name: str) -> torch.Tensor:
        key = self._trace.outputs.get(name, name)
        facts = self._trace.tensors.get(key)
        if facts is None:
            near = difflib.get_close_matches(name[:200], list(self._trace.tensors), n=1)
            raise InputError(
                f"no tensor {name[:80]!r} so far", next_step=f"Did you mean {near[0]!r}?" if near else None
            )
        kept = self._here.get(key)
        if kept is None:
            kept = self._ring.get(key)
        if kept is not None:
            return kept.detach()
        if self._store is not None and key in self._store:
            return self._store.get(key)
        leaf = self._leaves[key]() if key in self._leaves else None
        if leaf is None and (self._bare or self._store is not None):
            raise InputError(
                f"the values of {key[:80]} were not kept", next_step="Record with keep=True (-o FILE.trace)"
            )
        if leaf is None:
            raise InputError(
                f"the values of {key[:80]} are gone: only the last {self._ring.max_bytes >> 20} MiB are kept",
                next_step="Keep them all with keep=True (--keep)",
            )
        for step in self._trace.steps:
            if any(self._trace.tensors[other].storage == facts.storage for other in step.wrote):
                raise InputError(f"the values of {key[:80]} are gone: step {step.index} wrote over them")
        return leaf.detach()

    # --- the run's side: called in its thread ---

    def begin(self, trace: Trace, values: ValueStore | None) -> None:
        """A run begins (see `Follower`); a second one under the same recording function takes its place."""
        self._trace, self._store = trace, values
        self._ring.clear()
        self._leaves.clear()
        self._at = self._front = -1

    def leaf(self, name: str, tensor: torch.Tensor) -> None:
        """A leaf was met; it is not kept alive."""
        self._leaves[name] = weakref.ref(tensor)

    def __call__(self, step: Step, made: Mapping[str, torch.Tensor]) -> None:
        """A step ran: wait here if this is where to stop."""
        if self._closing:
            raise _ClosedError
        self._front = step.index
        self._bare = self._store is None and bool(step.outs) and not made
        if step.index >= self._goal or self._hits(step):
            with self._turn:
                self._here = made
                self._waits = True
                self._turn.notify_all()
                self._turn.wait_for(lambda: not self._waits)
                self._here = {}
            if self._closing:
                raise _ClosedError
        if self._store is None:
            self._ring.put(made)

    def _work(self, grad: bool) -> None:
        try:
            with torch.set_grad_enabled(grad):
                self._recording = self._record(self)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            if not self._closing:  # else it is ours, or what some layer of the run made of it
                self._error = error
        with self._turn:
            self._ended, self._waits = True, True
            self._turn.notify_all()

    # --- the caller's side ---

    def _advance(self, goal: int) -> bool:
        """Let the run go on until it waits again or ends; whether Ctrl-C stopped it."""
        if self._closing and self._recording is None and self._error is None:
            raise InputError("this run was closed", next_step="Begin it anew")
        if self._ended:
            return False
        self._goal = goal
        interrupted = False
        with self._turn:  # held while the thread starts: what it says is not missed
            if self._thread is None:
                # What belongs to a thread goes along; a daemon, so that a run that hangs cannot keep us.
                context = contextvars.copy_context()
                self._thread = threading.Thread(
                    target=context.run, args=(self._work, torch.is_grad_enabled()), daemon=True
                )
                self._thread.start()
            self._waits = False
            self._turn.notify_all()
            while not self._waits:
                try:
                    self._turn.wait_for(lambda: self._waits)
                except KeyboardInterrupt:
                    if interrupted:  # for the second time: it does not come to a step
                        raise
                    interrupted, self._goal = True, -1
        return interrupted

    def _hits(self, step: Step) -> tuple[Hit, ...]:
        found = ((number, item, item.met(self._trace, step)) for number, item in self._breaks.items())
        return tuple(Hit(number, item, reason) for number, item, reason in found if reason is not None)

    def _stop(self, why: Literal["step", "end", "interrupted"]) -> Stop:
        if self._at < 0:
            return Stop("end" if why == "end" else "start", None)
        step = self._trace.steps[self._at]
        hits = () if why == "end" else self._hits(step)
        return Stop("break" if hits and why == "step" else why, step, hits)


class _Ring:
    """The last tensors that were made, copied, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def put(self, made: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors in, the oldest out. One that is larger than all there is room for is not kept."""
        for name, tensor in made.items():
            nbytes = tensor.numel() * tensor.element_size()
            if nbytes > self.max_bytes:
                continue
            while self._bytes + nbytes > self.max_bytes:
                _, old = self._kept.popitem(last=False)
                self._bytes -= old.numel() * old.element_size()
            self._kept[name] = tensor.detach().clone()
            self._bytes += nbytes

    def get(self, name: str) -> torch.Tensor | None:
        """A kept tensor."""
        return self._kept.get(name)

    def clear(self) -> None:
        """Forget them all."""
        self._kept.clear()
        self._bytes = 0
