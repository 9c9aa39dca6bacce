"""Transfers that were started and not waited for: whoever uses their tensors meanwhile races with them.

`async_op=True`, `isend` and `irecv` return something to wait for, and functional collectives a tensor. On
fake ranks everything is done at once, so that a missing `wait()` would change nothing that is traced; here
it is an error with both lines. Told are only sure cases: a tensor's elements are known to be among those in
flight. Collectives one after another are let be, and waiting for one is waiting for those before it: a
group does them in order. Knows memory and no values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch._C._distributed_c10d import FakeWork, Work

from tensure.errors import InputError
from tensure.program import Attrs

__all__ = ["end", "seen_waits", "start", "tensors_in", "use"]

_WAITS: Final = (
    "wait", "synchronize", "block_current_stream", "get_future", "getFuture", "get_future_result", "result",
    "is_completed", "is_success", "exception",
)  # fmt: skip
"""What a person who cares about the end of a transfer asks of it; any of them counts as waiting."""
_READ_ONLY: Final = frozenset(["send"])
_INPUTS: Final = frozenset(["input", "input_tensor", "input_tensors", "inputs"])


@dataclass(frozen=True, slots=True)
class _Span:
    """From where to where in a memory a tensor lies; `dense`: it has all that is between."""

    memory: int
    start: int
    stop: int
    dense: bool

    def surely_meets(self, other: _Span) -> bool:
        """Whether they have an element in common, whatever the order in memory."""
        if self.memory != other.memory or self.stop <= other.start or other.stop <= self.start:
            return False
        if self.dense and other.dense:
            return True
        outer, inner = (self, other) if self.dense else (other, self)
        return outer.dense and outer.start <= inner.start and inner.stop <= outer.stop


@dataclass(slots=True)
class _Transfer:
    """One that is under way: what it reads and writes, and what keeps both and its handle alive."""

    word: str
    group: tuple[int, ...]
    note: Attrs
    reads: list[_Span]
    writes: list[_Span]
    kept: Any = field(repr=False)


_under_way: dict[int, _Transfer] = {}


@contextmanager
def seen_waits() -> Iterator[None]:
    """See what is waited for here; nothing is under way at the start."""
    kept = {name: FakeWork.__dict__[name] for name in _WAITS if name in FakeWork.__dict__}
    for name in _WAITS:
        setattr(FakeWork, name, _waited(getattr(FakeWork, name)))
    _under_way.clear()
    try:
        yield
    finally:
        for name in _WAITS:
            if name in kept:
                setattr(FakeWork, name, kept[name])
            else:
                delattr(FakeWork, name)
        _under_way.clear()


def _waited(method: Callable[..., Any]) -> Callable[..., Any]:
    is_question = method.__name__ in ("is_completed", "is_success")

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _done(id(self))
        return True if is_question else method(self, *args, **kwargs)  # torch's fake work is never done

    return call


def _done(work: int) -> None:
    """One is waited for, and so are those that its group began before it."""
    if work not in _under_way:
        return
    group = _under_way[work].group
    for number in list(_under_way):
        if _under_way[number].group == group:
            del _under_way[number]
        if number == work:
            return


def start(word: str, group: Sequence[int], bound: dict[str, Any], result: Any, note: Attrs) -> None:
    """A call of torch.distributed in Python that gave something to wait for.

    Args:
        word: c10d's name of it.
        group: the ranks that take part.
        bound: its arguments by name.
        result: what it returned; its last item is the work.
        note: where it comes from.
    """
    last = result[-1] if isinstance(result, tuple | list) and result else result
    if not isinstance(last, torch.ScriptObject) or not _asked_in_python():
        return
    work = Work.unbox(last)
    read, written = list[torch.Tensor](), list[torch.Tensor]()
    for key, value in bound.items():
        is_read = word in _READ_ONLY or key in _INPUTS
        (read if is_read else written).extend(tensors_in(value))
    transfer = _Transfer(word, tuple(group), note, _spans(read), _spans(written), (work, read, written))
    _under_way[id(work)] = transfer


def use(read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], note: Attrs) -> None:
    """A step reads and writes tensors.

    Raises:
        InputError: one of them is in flight.
    """
    if not _under_way:
        return
    for tensor in written:
        for span in _spans([tensor]):
            _check(span, tensor, "written", note)
    for tensor in read:
        for span in _spans([tensor]):
            _check(span, tensor, "read", note)


def end(results: Sequence[tuple[str, torch.Tensor]]) -> None:
    """The step is done; these are its results, by name.

    Raises:
        InputError: one of them is in flight.
    """
    for name, tensor in results if _under_way else ():
        for span in _spans([tensor]):
            _check(span, tensor, "left", (), name)


def _check(span: _Span, tensor: torch.Tensor, how: str, note: Attrs, name: str = "") -> None:
    for transfer in _under_way.values():
        met = transfer.writes if how != "written" else [*transfer.writes, *transfer.reads]
        if any(span.surely_meets(other) for other in met):
            what = name or f"a tensor of shape {list(tensor.shape)}"
            raise InputError(
                f"{what} is {how} while {_said(transfer)} may still be under way",
                place=_line(note) or _line(transfer.note) or None,
                wanted="wait() on what it returned, before its tensors are used",
            )


def _said(transfer: _Transfer) -> str:
    at = _line(transfer.note)
    return f"{transfer.word.strip('_')}{f' at {at}' if at else ''}"


def _line(note: Attrs) -> str:
    return str(dict(note).get("source", ""))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """A tensor, or those of lists of lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [found for item in value for found in tensors_in(item)] if isinstance(value, tuple | list) else []


def _spans(tensors: Sequence[torch.Tensor]) -> list[_Span]:
    found: list[_Span] = []
    for tensor in tensors:
        if tensor.layout is not torch.strided or not tensor.numel():
            continue
        start = int(tensor.storage_offset())
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        memory = tensor.untyped_storage()._cdata
        found.append(_Span(memory, start, start + extent, extent == tensor.numel()))
    return found


def _asked_in_python() -> bool:
    """Whether a function of torch.distributed called, which hands out the work or waits; not DDP itself."""
    frame = sys._getframe(1)
    while frame is not None and "/torch/distributed/" not in frame.f_code.co_filename:
        name = frame.f_code.co_filename
        if "/tensure/capture/" not in name and "/torch/" not in name:
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_filename.endswith("distributed_c10d.py")
