"""Faults to plant in a run of eager torch code, each at a known op: what an inspector is to find.

A fault sits in a weight, silently in a kernel (the op is called as before and gives something else) or
visibly in the code (other ops are called). Knows torch's dispatcher and the trace of a clean run. Does not
know how anybody looks for faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.inspection import Step, Trace

__all__ = ["KINDS", "Fault", "Subject", "choose_faults", "planted"]

Level: TypeAlias = Literal["weight", "silent", "visible"]
KINDS: Final = (
    "bit flip",
    "sign flip",
    "permutation",
    "reversal",
    "transposed weight",
    "eps change",
    "wrong axis",
    "bf16 cast",
    "missing bias",
    "stale cache",
    "in-place alias",
)


@dataclass(frozen=True)
class Subject:
    """Something that runs.

    Args:
        name: for people.
        module: whose parameters are its weights.
        run: one run from the same start; what it returns is not looked at.
        stale: positions, among the steps of a clean run, of those that bring a cache or state up to date or
            read it, with what a stale one gives.
    """

    name: str
    module: torch.nn.Module
    run: Callable[[], Any]
    stale: Callable[[Trace], Mapping[int, Callable[..., Any]]] = lambda trace: {}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: of a kind, at a level, at a step of the clean run or in a weight that it reads first."""

    kind: str
    level: Level
    step: int
    op: str
    seed: int
    weight: str = ""
    victim: int = -1
    """For an alias: the step whose result is overwritten."""

    def __str__(self) -> str:
        return f"{self.kind} ({self.level}) at {self.op} {self.step}" + (
            f", {self.weight}" * bool(self.weight)
        )


# --- which faults there can be ------------------------------------------------------------------------


def choose_faults(subject: Subject, trace: Trace, count: int, seed: int) -> list[Fault]:
    """`count` faults, every kind that the subject has a place for as often as the others.

    Deterministic in the seed. A fault that the clean run could not show (a permutation of equal values,
    say) is not chosen; whether one changes any bit is checked by who plants it.
    """
    rng = np.random.default_rng(seed)
    places = {kind: list(_places(kind, subject, trace)) for kind in KINDS}
    found: list[Fault] = []
    for turn in range(count * len(KINDS)):
        kind = KINDS[turn % len(KINDS)]
        if not places[kind]:
            continue
        at = int(rng.integers(len(places[kind])))
        level, step, weight, victim = places[kind].pop(at)
        found.append(
            Fault(kind, level, step, trace.steps[step].op, int(rng.integers(1 << 30)), weight, victim)
        )
        if len(found) == count:
            break
    return found


_Place: TypeAlias = tuple[Level, int, str, int]
"""Level, step, weight, victim."""


def _places(kind: str, subject: Subject, trace: Trace) -> Iterator[_Place]:
    """Wherever a fault of a kind can sit."""
    if kind in ("bit flip", "sign flip", "permutation", "reversal", "transposed weight"):
        parameters = dict(subject.module.named_parameters())
        for name, at in _weights(trace):
            tensor = parameters.get(name)
            if tensor is not None and _is_varied(tensor):
                if kind != "transposed weight" or _turns(tensor):
                    yield "weight", at, name, -1
    if kind in ("bit flip", "sign flip", "permutation", "reversal", "bf16 cast"):
        for step in _computing(trace):
            yield "silent", step.index, "", -1
            if kind == "bf16 cast":
                yield "visible", step.index, "", -1
    if kind in _HAS:
        for step in trace.steps:
            if _HAS[kind](step, trace):
                yield "visible", step.index, "", -1
                yield "silent", step.index, "", -1
    if kind == "stale cache":
        for at in subject.stale(trace):
            yield "silent", at, "", -1
    if kind == "in-place alias":
        for at, victim in _aliases(trace):
            yield "visible", at, "", victim


def _weights(trace: Trace) -> Iterator[tuple[str, int]]:
    """Every parameter that is read, with the step that reads it first."""
    seen: set[str] = set()
    for step in trace.steps:
        for name in step.reads:
            if trace.tensors[name].origin == "weight" and name not in seen:
                seen.add(name)
                yield name, step.index


def _is_varied(tensor: torch.Tensor) -> bool:
    """Whether moving its values about would show."""
    flat = tensor.reshape(-1)
    return tensor.is_floating_point() and flat.numel() >= 4 and bool(flat[0] != flat[-1])


def _turns(tensor: torch.Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.shape[0] > 1 and tensor.shape[1] > 1


_QUIET: Final = frozenset("equal zeros ones empty arange detach alias view t expand slice select".split())


def _computing(trace: Trace) -> Iterator[Step]:
    """Steps that make float values of some size, by computing them."""
    for step in trace.steps:
        if step.op in _QUIET or not step.outs or step.wrote or step.op.endswith("_"):
            continue
        facts = trace.tensors[step.outs[0]]
        statistics = facts.statistics
        if facts.dtype == "f32" and facts.size >= 8 and statistics is not None and (statistics.std or 0) > 0:
            if facts.alias_of is None:
                yield step


def _has_epsilon(step: Step, trace: Trace) -> bool:
    arguments = dict(step.arguments)
    return _is_epsilon(arguments.get("eps")) or (step.op == "add" and _is_epsilon(arguments.get("other")))


def _is_epsilon(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1e-2


def _other_axis(step: Step, trace: Trace) -> int | None:
    """Another axis under which the step gives a result of the same shape."""
    if step.op not in ("_softmax", "softmax", "flip", "cumsum", "_log_softmax") or not step.outs:
        return None
    dim = dict(step.arguments).get("dim")
    shape = trace.tensors[step.outs[0]].shape
    if not isinstance(dim, int) or len(shape) < 2:
        return None
    return (dim % len(shape) - 1) % len(shape)


def _has_bias(step: Step, trace: Trace) -> bool:
    terms = {"convolution": 3, "native_batch_norm": 5, "addmm": 3}
    return len(step.reads) == terms.get(step.op)


_HAS: Final[Mapping[str, Callable[[Step, Trace], bool]]] = {
    "eps change": _has_epsilon,
    "wrong axis": lambda step, trace: _other_axis(step, trace) is not None,
    "missing bias": _has_bias,
}
"""Kinds that are a change of one argument: which steps have it."""


def _aliases(trace: Trace) -> Iterator[tuple[int, int]]:
    """(step, earlier step): the later result may be written over the earlier one, which is read again."""
    last: dict[str, int] = {}
    for step in trace.steps:
        for name in step.reads:
            last[name] = step.index
    for step in _computing(trace):
        facts = trace.tensors[step.outs[0]]
        for earlier in _computing(trace):
            if earlier.index >= step.index:
                break
            victim = trace.tensors[earlier.outs[0]]
            if victim.shape == facts.shape and last.get(victim.name, -1) > step.index:
                if victim.digest != facts.digest:
                    yield step.index, earlier.index


# --- planting them -------------------------------------------------------------------------------------


@contextmanager
def planted(fault: Fault, subject: Subject, trace: Trace, look: Callable[[], Any]) -> Iterator[Any]:
    """With the fault in place, and what `look` makes, a context manager that inspects, around the run."""
    if fault.level == "weight":
        parameter = dict(subject.module.named_parameters())[fault.weight]
        with torch.no_grad():
            kept = parameter.detach().clone()
            parameter.copy_(_changed_weight(fault, kept))
        try:
            with look() as seen:
                yield seen
        finally:
            with torch.no_grad():
                parameter.copy_(kept)
        return
    mode = _FaultMode(fault, subject, trace)
    if fault.level == "silent":
        with mode, look() as seen:
            yield seen
    else:
        with look() as seen, mode:
            yield seen


def _changed_weight(fault: Fault, weight: torch.Tensor) -> torch.Tensor:
    if fault.kind == "transposed weight":
        return weight.transpose(0, 1).reshape(weight.shape)
    return _changed(fault, weight)


def _changed(fault: Fault, tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor as the fault leaves it."""
    rng = np.random.default_rng(fault.seed)
    if fault.kind == "bit flip":
        made = tensor.clone(memory_format=torch.contiguous_format)
        words = made.reshape(-1).view(torch.int32)
        # Any bit but the last few: below the rounding of what follows nobody could see it in an output.
        at = int(torch.nonzero(words & 0x7FFFFFFF)[int(rng.integers(1 << 30)) % int((words != 0).sum())])
        words[at] ^= 1 << int(rng.integers(12, 31))
        return made
    if fault.kind == "sign flip":
        return -tensor
    if fault.kind == "reversal":
        return tensor.reshape(-1).flip(0).reshape(tensor.shape)
    if fault.kind == "permutation":
        flat = tensor.reshape(-1)
        return flat[torch.from_numpy(rng.permutation(flat.numel()))].reshape(tensor.shape)
    if fault.kind == "bf16 cast":
        return tensor.to(torch.bfloat16).to(tensor.dtype)
    raise AssertionError(fault.kind)


class _FaultMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ops of a run and does the wrong thing at one of them."""

    def __init__(self, fault: Fault, subject: Subject, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fault = fault
        self._stale = subject.stale(trace) if fault.kind == "stale cache" else {}
        self._axis = _other_axis(trace.steps[fault.step], trace) if fault.kind == "wrong axis" else None
        self._count = -1
        self._victim: torch.Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._count += 1
        if self._count != self._fault.step:
            result = func(*args, **kwargs)
            if self._count == self._fault.victim:
                self._victim = result[0] if isinstance(result, tuple) else result
            return result
        return self._wrong(func, args, kwargs)

    def _wrong(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = self._fault.kind
        if kind == "stale cache":
            return self._stale[self._fault.step](func, args, kwargs)
        if kind == "eps change":
            swapped = [1.5 * item if _is_epsilon(item) else item for item in args]
            return func(*swapped, **{k: 1.5 * v if _is_epsilon(v) else v for k, v in kwargs.items()})
        if kind == "wrong axis":
            names = [item.name for item in func._schema.arguments]
            at = names.index("dim")
            return func(*(self._axis if i == at else item for i, item in enumerate(args)), **kwargs)
        if kind == "missing bias":
            return _without_bias(func, args, kwargs)
        result = func(*args, **kwargs)
        if kind == "in-place alias":
            assert self._victim is not None
            self._victim.copy_(result[0] if isinstance(result, tuple) else result)
            return result
        if isinstance(result, tuple):
            return (_changed(self._fault, result[0]), *result[1:])
        return _changed(self._fault, result)


def _without_bias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = str(func._schema.name).removeprefix("aten::")
    if name == "addmm":
        return torch.ops.aten.mm.default(*args[1:3])
    swapped = list(args)
    swapped[2] = None if name == "convolution" else torch.zeros_like(args[2])
    return func(*swapped, **kwargs)
