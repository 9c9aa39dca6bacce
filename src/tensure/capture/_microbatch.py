"""Micro-batches as a mesh axis: one of them is traced, and that it stands for all of them is shown.

Processes take micro-batches one after the other and add up gradients. Here each is a process of its own along
the axis `mb`, and what adds up is an all-reduce over it. That is the same if no micro-batch sees another
but by its gradients. So it is run a second time, with the gradients of the first there: it must do the same
steps and add into every gradient what it made the first time, and change no number that it can reach.
Afterwards nothing may read what one micro-batch made, but gradients and what it returned.
"""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed._meta_registrations as torch_registrations

from tensure.errors import InputError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import COLLECTIVES, Cat, Name, Op, Ref

from ._collectives import Collectives
from ._given import leaves, local_of, returned_by
from ._reach import numbers_in_reach
from ._step import ParallelStep
from ._tracer import Tracer
from ._turns import Turns

__all__ = ["MICROBATCH", "Microbatch", "checked_count"]

MICROBATCH: Final = "mb"
"""The axis."""


def checked_count(given: ParallelStep, mesh: Mapping[str, int]) -> int:
    """How many micro-batches a step has.

    Raises:
        InputError: a number that is none, or a mesh that has an axis of that name.
    """
    count = given.microbatches
    if given.microbatch is None or type(count) is not int or count < 1:
        raise InputError(
            f"microbatches={count!r} of a parallel step"
            + (" without microbatch=" if given.microbatch is None else ""),
            wanted="microbatch=, what one of them does, and how many there are, the same on every rank",
        )
    if MICROBATCH in mesh:
        raise InputError(f"a mesh axis {MICROBATCH!r}", wanted="another name: that one is for micro-batches")
    return count


class Microbatch:
    """One micro-batch of one rank, and the step that follows the last.

    Args:
        given: what the parallel function said.
        module: whose gradients are meant.
        inputs: the rank's, for this micro-batch.
        tracer: sees what is done.
        number: which micro-batch it is.
    """

    def __init__(
        self,
        given: ParallelStep,
        module: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        tracer: Tracer,
        number: int,
    ) -> None:
        self.number = number
        self.given, self.module, self.inputs, self.tracer = given, module, inputs, tracer
        self.tape = tracer.tape
        assert tracer.collectives is not None
        self.ranks: Collectives = tracer.collectives

    def run(self, index: Any) -> tuple[torch.Tensor, ...]:
        """Trace it; what the micro-batch returned.

        Raises:
            InputError: a second micro-batch would not do the same; says what differs.
        """
        tape, sent = self.tape, dict(self.ranks._sent)
        with_grad = [label for label, tensor in self._leaves() if tensor.grad is not None]
        if with_grad:
            raise InputError(
                f"parameter {with_grad[0]} has a gradient before the first micro-batch",
                wanted="none: what is added to it is to be seen",
            )
        turns = Turns(self.tracer.generators, self.given.microbatch) if self.given.microbatches > 1 else None
        begun = len(tape.steps)
        held = {label: tape.read(local_of(tensor), ()) for label, tensor in self._leaves()}
        returned = self._once(self.inputs, index)
        results = [tape.read(local_of(tensor), ()) for tensor in returned]
        ended = len(tape.steps)
        made = self._gradients()
        apart = {out for step in tape.steps[begun:] for out in step.outs}
        if turns is not None:
            turns.turn()
            self._restore(held)
            self._part_gradients(made)
            self._repeat(index, (begun, ended), results, made, sent, turns)
            self._restore(held)
            apart |= {out for step in tape.steps[ended:] for out in step.outs}
            del tape.steps[ended:]
            tape.forget()
            for label, tensor in leaves(self.module):
                if label in made and tensor.grad is not None:
                    total = tape.step("all_reduce", (made[label],), (), axes=(MICROBATCH,), reduce="sum")
                    tape.write(local_of(tensor.grad), total, ())
        else:
            apart -= {ref.name for ref in made.values()}
        after = len(tape.steps)
        with self.tracer:
            self.given.step()
        again = [tape.read(local_of(tensor), ()) for tensor in returned]
        for step in tape.steps[after:]:
            if any(ref.name in apart for ref in step.reads()):
                raise InputError(
                    f"after the last micro-batch, {step.op} reads what one of them made",
                    place=_line(step) or None,
                    wanted="gradients alone; what microbatch() returns is placed by outputs=",
                )
        if again != results:
            raise InputError("what microbatch() returned is written afterwards", wanted="tensors of its own")
        return returned

    def _once(self, inputs: Sequence[torch.Tensor], index: Any) -> tuple[torch.Tensor, ...]:
        run = self.given.microbatch
        assert run is not None
        named = {"index": index} if takes_index(run) else {}
        with self.tracer:
            return returned_by(run(*inputs, **named))

    def _leaves(self) -> list[tuple[str, torch.Tensor]]:
        named = {f"input {at}": tensor for at, tensor in enumerate(self.inputs)}
        return [*leaves(self.module), *named.items()]

    def _gradients(self) -> dict[str, Ref]:
        return {
            label: self.tape.read(local_of(tensor.grad), ())
            for label, tensor in self._leaves()
            if tensor.grad is not None
        }

    def _restore(self, held: Mapping[str, Ref]) -> None:
        """Refuse a parameter, buffer or input that was written; casts to its own dtype write nothing."""
        makers = self.tape.makers()
        for label, tensor in self._leaves():
            local = local_of(tensor)
            ref = self.tape.read(local, ())
            while ref != held[label]:
                step = makers.get(ref.name)
                if step is None or step.op not in ("copy", "_to_copy") or not isinstance(step.args[0], Ref):
                    raise _differs(f"{label} is written", step)
                ref = step.args[0]
            if self.tape.read(local, ()) != ref:
                self.tape.add(local, ref)

    def _part_gradients(self, made: Mapping[str, Ref]) -> None:
        """Give each gradient a memory of its own: FSDP's are windows on what one reduction gave.

        Whoever looks at the memory they shared finds what one micro-batch made there, and is refused.
        """
        windows: dict[int, list[tuple[int, int, str]]] = {}
        found = {
            label: local_of(t.grad) for label, t in self._leaves() if label in made and t.grad is not None
        }
        for label, grad in found.items():
            start = int(grad.storage_offset())
            end = start + grad.numel() if grad.is_contiguous() else 1 << 62
            windows.setdefault(grad.untyped_storage()._cdata, []).append((start, end, label))
        for inside in windows.values():
            inside.sort()
            for (_, end, one), (start, _, other) in itertools.pairwise(inside):
                if start < end:
                    raise _differs(f"the gradients of {one} and {other} share memory")
        for label, grad in found.items():
            self.tape.add(grad, made[label])

    # the second time ---------------------------------------------------------------------------------

    def _repeat(
        self,
        index: Any,
        ends: tuple[int, int],
        results: Sequence[Ref],
        made: Mapping[str, Ref],
        sent: Mapping[tuple[int, int, int], int],
        turns: Turns,
    ) -> None:
        tape, inputs = self.tape, list[torch.Tensor]()
        for at, tensor in enumerate(self.inputs):
            again = torch.empty_like(tensor, requires_grad=tensor.requires_grad)
            tape.add(again, Ref(Name(f"input_{at}{_AGAIN}")))
            inputs.append(again)
        named = {
            Name(f"input_{at}{_AGAIN}"): tape.read(tensor, ()).name for at, tensor in enumerate(self.inputs)
        }
        met, self.ranks._sent, before = self.ranks._sent, dict(sent), numbers_in_reach(self.given.microbatch)
        begun, tape.aside = len(tape.steps), _AGAIN
        try:
            with _torch_draws_apart():
                found = self._once(inputs, index)
        finally:
            self.ranks._sent, tape.aside = met, ""
        turns.turn()
        after = numbers_in_reach(self.given.microbatch)
        if (change := before.change(after)) is not None:
            raise _differs(change)
        first, second = self._with_draws(ends, turns), turns.placed(tape.steps[begun:], self.number)
        if (change := before.moved(after)) is not None:
            raise _differs(change)
        turns.end()
        table = _Same(named)
        table.follow(first)
        table.follow(second)
        ours, theirs = table.calls
        for at, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
            if one != other:
                steps = [step for step in second if step.op in _JOINT]
                raise _differs("what it does with other ranks", steps[at] if at < len(steps) else None)
        for at, (tensor, ref) in enumerate(zip(found, results, strict=False)):
            if len(found) != len(results) or table.key(tape.read(local_of(tensor), ())) != table.key(ref):
                raise _differs(f"result {at}", table.maker(tape.read(local_of(tensor), ())))
        total, dtypes = self._gradients(), {label: dtype_word(t.dtype) for label, t in self._leaves()}
        for label in sorted(made.keys() | total.keys()):
            if label.startswith("input "):
                continue  # the other micro-batch has inputs of its own
            if label not in made or label not in total:
                raise _differs(f"the gradient of {label} is there once and once not")
            added, dtype = table.added(total[label], made[label]), dtypes[label]
            if added is None or table.key(table.bare(added, dtype)) != table.key(
                table.bare(made[label], dtype)
            ):
                raise _differs(f"what is added to the gradient of {label}", table.maker(total[label]))

    def _with_draws(self, ends: tuple[int, int], turns: Turns) -> list[Op]:
        """The first micro-batch's steps, their draws where those of this one are; so they are on the tape."""
        begun, ended = ends
        run = self.given.microbatch
        assert run is not None
        if turns.goes_on():
            if takes_index(run):
                raise UnsupportedError(
                    "random numbers that go on from one micro-batch to the next, each told its number",
                    wanted="micro-batches that take no `index`, or seed what they draw from",
                    next_step="Loop over micro-batches in step() instead, without microbatch=.",
                )
            if self.ranks.reads is not None:
                self.ranks.reads.note(MICROBATCH)
        first = turns.placed(self.tape.steps[begun:ended], self.number)
        self.tape.steps[begun:ended] = first
        return first


_AGAIN: Final = "_again"
_JOINT: Final = COLLECTIVES | {"send", "recv"}


@contextmanager
def _torch_draws_apart() -> Iterator[None]:
    """Torch numbers the collectives of fake tensors by `random`; not by the user's numbers."""
    registrations: Any = torch_registrations
    own, registrations.random = registrations.random, random.Random(0)
    try:
        yield
    finally:
        registrations.random = own


def _differs(what: str, step: Op | None = None) -> InputError:
    return InputError(
        f"a second micro-batch is not as the first: {what}",
        place=(_line(step) or None) if step is not None else None,
        wanted="micro-batches that see each other by accumulated gradients alone",
        next_step="Loop over micro-batches in step() instead, without microbatch=.",
    )


def _line(step: Op) -> str:
    found = dict(step.note)
    return ", ".join(str(found[key]) for key in ("module", "source") if key in found)


def takes_index(microbatch: Callable[..., Any]) -> bool:
    """Whether it is to be told its number."""
    try:
        return "index" in inspect.signature(microbatch).parameters
    except (TypeError, ValueError):
        return False


class _Same:
    """Numbers values so that two have one number if they are made alike of the same."""

    def __init__(self, renamed: Mapping[Name, Name]) -> None:
        self._renamed = renamed
        self._keys: dict[Name, int] = {}
        self._table: dict[Any, int] = {}
        self._makers: dict[Name, Op] = {}
        self.calls: list[list[Any]] = []
        """What is done with other ranks, in order, each time."""

    def follow(self, steps: Sequence[Op]) -> None:
        calls: list[Any] = []
        for step in steps:
            args = tuple(map(self._argument, step.args))
            if step.op == "copy" and len(step.outs) == 1:
                self._keys[step.outs[0]] = args[0]
                self._makers[step.outs[0]] = step
                continue
            key: Any = (step.op, repr(step.attrs), args)
            if step.op in _JOINT:
                calls.append(key)
                key = (*key, len(calls))
            for at, out in enumerate(step.outs):
                self._keys[out] = self._number((key, at))
                self._makers[out] = step
        self.calls.append(calls)

    def key(self, ref: Ref) -> Any:
        return self._argument(ref)

    def maker(self, ref: Ref) -> Op | None:
        return self._makers.get(ref.name)

    def added(self, total: Ref, before: Ref) -> Ref | None:
        """What was added to a value."""
        made = self._makers.get(total.name)
        while made is not None and made.op == "copy" and isinstance(made.args[0], Ref):
            made = self._makers.get(made.args[0].name)
        if made is None or made.op != "add" or len(made.args) != 2 or made.attrs:
            return None
        one, other = made.args
        if not isinstance(one, Ref) or not isinstance(other, Ref):
            return None
        if self._is(one, before):
            return other
        return one if self._is(other, before) else None

    def bare(self, ref: Ref, dtype: str) -> Ref:
        """What a value is a copy of, or a cast to its dtype: the first gradient is copied, others added."""
        while True:
            made = self._makers.get(ref.name)
            is_cast = made is not None and made.op == "_to_copy" and dict(made.attrs) == {"dtype": dtype}
            if made is None or not (is_cast or made.op == "copy") or not isinstance(made.args[0], Ref):
                return ref
            ref = made.args[0]

    def _is(self, ref: Ref, other: Ref) -> bool:
        """Whether it is that very value, or a copy."""
        while ref != other:
            made = self._makers.get(ref.name)
            if made is None or made.op != "copy" or not isinstance(made.args[0], Ref):
                return False
            ref = made.args[0]
        return True

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            name = self._renamed.get(arg.name, arg.name)
            if name not in self._keys:
                self._keys[name] = self._number(("leaf", str(name)))
            return self._keys[name] if not arg.box else (self._keys[name], arg.box)
        if isinstance(arg, Cat):
            return self._number(("cat", arg.dim, tuple(map(self._argument, arg.parts))))
        return repr(arg)

    def _number(self, key: Any) -> int:
        return self._table.setdefault(key, len(self._table))
