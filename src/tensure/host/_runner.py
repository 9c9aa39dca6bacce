"""Run a Program in torch: one call, the same bits every time on the same machine.

`exact: repeatable` rests on three things kept here: the number of threads is pinned (it decides how sums are
split), inputs begin at torch's own alignment, and ops that add to one place from many threads run with
torch's deterministic algorithms. Across machines or thread counts bits may differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from tensure.errors import EvaluationError, RecordError, TensureError
from tensure.program import Entry, Env, Op, Program, bind_entry, evaluate, ground, leaves

from ._compile import Code, Leaf, compile_entry
from ._dtypes import NAMES, TORCH_DTYPES

Observer: TypeAlias = Callable[[Op, list[Tensor]], None]
"""Told of an op, its names and attributes bound, and of what it made."""

_ALIGNMENT: Final = 64
_MAX_CODES: Final = 256


class Runner:
    """A Program ready to run on this machine's processor.

    Each entry is compiled at its first call, and again only for other values of parameters that decide how
    many steps there are. Values are freed after their last use.

    Args:
        program: what to compute; validated by the caller.
        weights: every weight by printed name, as `load_weights` gives them. They are read where they lie:
            training may write into them between calls.
        threads: pinned for every call, process-wide; torch's present number when left out.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Tensor], *, threads: int | None = None
    ) -> None:
        self.program = program
        self.weights: Mapping[str, Tensor] = MappingProxyType(dict(weights))
        self.threads = torch.get_num_threads() if threads is None else threads
        if self.threads < 1:
            raise RecordError(f"threads={self.threads}", wanted="at least 1")
        self._codes: dict[tuple[Any, ...], Code] = {}
        self._pinned: dict[tuple[str, bool], frozenset[str]] = {}

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        entry: str | None = None,
        params: Mapping[str, int] | None = None,
        states: Mapping[str, Tensor] | None = None,
        in_place: bool = False,
        observe: Observer | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs by name, and after-states under the names of their before-states.

        Differentiable with respect to inputs, states and weights. With `in_place` there are no gradients, and
        a before-state that nothing reads after its slice is replaced is written in its own buffer: a KV
        cache is never copied, and the tensors handed in are the ones returned. `observe` is told of every op
        as it is done, before anything it read is let go; it must not keep what it is shown.

        Raises:
            RecordError: an input, state or parameter is missing, unknown or of another type.
            EvaluationError: an op refuses its values (an index out of range, say).
        """
        label = entry if entry is not None else next(iter(self.program.entries))
        env = bind_entry(self.program, label, params)
        code = self._code(label, env, in_place)
        registers = code.template.copy()
        for register, build in code.open:
            registers[register] = build(env)
        _place_leaves(code.inputs, inputs, registers, env, "input")
        _place_leaves(code.states, states or {}, registers, env, "state")
        if in_place:
            _apart([registers[leaf.register] for leaf in code.states if leaf.key in code.in_place])
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        guard = _fixed_order() if code.ordered else contextlib.nullcontext()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not in_place), guard:
            _execute(code, registers, env, observe)
            outputs = {key: registers[at].clone() if own else registers[at] for key, at, own in code.outputs}
        return outputs, {key: registers[at] for key, at in code.after}

    def num_ops(self, entry: str | None = None, params: Mapping[str, int] | None = None) -> int:
        """How many steps one invocation takes."""
        label = entry if entry is not None else next(iter(self.program.entries))
        return self._code(label, bind_entry(self.program, label, params), False).num_ops

    def written_in_place(
        self, entry: str | None = None, params: Mapping[str, int] | None = None
    ) -> tuple[str, ...]:
        """The before-states that `in_place=True` writes without a copy."""
        label = entry if entry is not None else next(iter(self.program.entries))
        return self._code(label, bind_entry(self.program, label, params), True).in_place

    def _code(self, label: str, env: Env, in_place: bool) -> Code:
        pinned = self._pinned.get((label, in_place))
        if pinned is not None:
            code = self._codes.get((label, in_place, *(env[key] for key in sorted(pinned))))
            if code is not None:
                return code
        found: Entry = self.program.entry(label)
        params = {key: env[key] for key, _, _ in found.params}
        code, pinned = compile_entry(self.program, label, self.weights, params, in_place=in_place)
        if len(self._codes) >= _MAX_CODES:
            self._codes.clear()
        self._pinned[label, in_place] = pinned
        self._codes[(label, in_place, *(env[key] for key in sorted(pinned)))] = code
        return code


def zero_states(
    program: Program, entry: str | None = None, params: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Every before-state of an entry as zeros, by printed name.

    Parameters left out take their least values (a state's shape rarely depends on them).
    """
    found = program.entry(entry)
    chosen = dict(params or {})
    env: dict[str, int] = {**program.axes}
    for key, lo, _ in found.params:
        env[key] = chosen.setdefault(key, evaluate(lo, env))
    bound = bind_entry(program, entry, chosen)
    return {
        key: torch.zeros(want.shape, dtype=TORCH_DTYPES[want.dtype])
        for key, want, role in leaves(program, entry, bound)
        if role == "state"
    }


def _execute(code: Code, registers: list[Any], env: Env, observe: Observer | None) -> None:
    place = ""
    try:
        for step in code.steps:
            place = step.place
            registers[step.out] = step.call(*[registers[at] for at in step.reads])
            if observe is not None and step.completes is not None:
                item, made = step.completes
                observe(ground(item, env), [registers[at] for at in made])
            for at in step.frees:
                registers[at] = None
    except TensureError as error:
        raise error.at(place=place) from None
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvaluationError(text, place=place) from error


def _place_leaves(
    leaves: tuple[Leaf, ...], given: Mapping[str, Tensor], registers: list[Any], env: Env, role: str
) -> None:
    """Check what was handed in and put it in its registers."""
    for leaf in leaves:
        tensor = given.get(leaf.key)
        if tensor is None:
            raise RecordError(f"{role} {leaf.key!r} is missing", wanted=_wanted(leaf, env))
        shape = tuple([size if isinstance(size, int) else size(env) for size in leaf.shape])
        if tensor.shape != shape or tensor.dtype is not TORCH_DTYPES[leaf.dtype]:
            name = NAMES.get(tensor.dtype, str(tensor.dtype))
            found = f"{role} {leaf.key} is {name}[{','.join(map(str, tensor.shape))}]"
            raise RecordError(found, wanted=_wanted(leaf, env))
        if role == "input" and tensor.data_ptr() % _ALIGNMENT:
            tensor = tensor.clone()
        registers[leaf.register] = tensor
    if len(given) > len(leaves):
        unknown = next(key for key in given if key not in {leaf.key for leaf in leaves})
        raise RecordError(
            f"unknown {role} {unknown!r}", wanted=", ".join(leaf.key for leaf in leaves) or "none"
        )


def _apart(buffers: list[Tensor]) -> None:
    """States written in place must not be one another."""
    if len({buffer.data_ptr() for buffer in buffers if buffer.numel()}) < sum(b.numel() > 0 for b in buffers):
        raise RecordError("two states share memory", wanted="one buffer each for in_place=True")


def _wanted(leaf: Leaf, env: Env) -> str:
    return f"{leaf.key} : {leaf.dtype}[{','.join(str(evaluate(size, env)) for size in leaf.shape)}]"


@contextlib.contextmanager
def _fixed_order() -> Iterator[None]:
    """Torch's deterministic algorithms, without their filling of fresh memory."""
    settings: Any = torch.utils.deterministic
    was, fill = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        settings.fill_uninitialized_memory = fill
