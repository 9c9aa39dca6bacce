"""An entry of a Program as a flat list of torch calls over numbered registers.

Everything decidable is decided here, once: which overload, which register, when a value dies, which sizes
change from call to call, whether a state may be written in place. What is left for a call is a loop of a few
lines (`_runner.py`).

In-place rule: `slice_scatter` may write into a before-state's own buffer if its operand is that whole buffer,
its source is not part of the buffer, and nothing reads the buffer as it was (itself, or a view of it) later
in the invocation, outputs and after-states included.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tensure.errors import RecordError, TensureError
from tensure.program import (
    Arg,
    Cat,
    Env,
    Expr,
    Int,
    Op,
    Program,
    Ref,
    TensorType,
    axis,
    evaluate,
    infer_program,
    leaves,
    state_pairs,
)

from ._dtypes import TORCH_DTYPES
from ._expand import NeedsValue, expand_open, ground, substitute
from ._resolve import ORDER_MATTERS, Give, Resolved, Take, TakeAll, by_name, resolve

Builder = Callable[[Env], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One torch call: registers in, one register out, registers nobody reads afterwards."""

    call: Callable[..., Any]
    reads: tuple[int, ...]
    out: int
    frees: tuple[int, ...]
    place: str
    completes: tuple[Op, tuple[int, ...]] | None = None
    """The op of the Program that is done after this call, and the registers of its results."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """Something an invocation is given: its name, register and type, sizes perhaps open."""

    key: str
    register: int
    shape: tuple[Int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled entry."""

    template: list[Any]
    """Registers before a call: weights and constants in place."""
    steps: tuple[Step, ...]
    open: tuple[tuple[int, Builder], ...]
    """Registers whose value is worked out anew for each call."""
    inputs: tuple[Leaf, ...]
    states: tuple[Leaf, ...]
    outputs: tuple[tuple[str, int, bool], ...]
    """(name, register, whether it must be copied out of a state's buffer)."""
    after: tuple[tuple[str, int], ...]
    num_ops: int
    ordered: bool
    """Whether torch must be told to add in a fixed order."""
    in_place: tuple[str, ...]
    """Before-states that are written in place."""


def compile_entry(
    program: Program,
    label: str,
    weights: Mapping[str, Tensor],
    params: Mapping[str, int],
    *,
    in_place: bool,
) -> tuple[Code, frozenset[str]]:
    """The code of an entry, and the parameters whose values it is bound to.

    Raises:
        RecordError: the entry is malformed, or a weight is missing or of another type.
        UnsupportedError: torch has no counterpart for a step.
    """
    pinned: frozenset[str] = frozenset()
    while True:
        bound = _bound(program, label, params, pinned)
        try:
            code = _Compiler(program, label, weights, dict(params), bound, in_place).build()
        except NeedsValue as signal:
            if signal.names <= pinned:
                raise RecordError(f"{', '.join(sorted(signal.names))} is not bound", place=label) from None
            pinned |= signal.names
            continue
        return code, pinned


def _bound(program: Program, label: str, params: Mapping[str, int], pinned: frozenset[str]) -> dict[str, Int]:
    """Axes, parameters (open unless pinned) and fixed names."""
    entry = program.entry(label)
    bound: dict[str, Int] = dict(program.axes)
    for key, _, _ in entry.params:
        bound[key] = params[key] if key in pinned else axis(key)
    for key, value in entry.fixed:
        bound[key] = substitute(value, bound)
    return bound


@dataclass(slots=True)
class _Compiler:
    program: Program
    label: str
    weights: Mapping[str, Tensor]
    params: dict[str, int]
    bound: dict[str, Int]
    in_place: bool
    template: list[Any] = field(default_factory=list[Any])
    registers: dict[str, int] = field(default_factory=dict[str, int])
    constants: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    open: list[tuple[int, Builder]] = field(default_factory=list[tuple[int, Builder]])
    raw: list[Step] = field(default_factory=list[Step])
    buffers: dict[str, int] = field(default_factory=dict[str, int])
    """Before-states by name, as their registers."""
    versions: dict[int, frozenset[tuple[int, int]]] = field(
        default_factory=dict[int, frozenset[tuple[int, int]]]
    )
    """(buffer, version) whose memory a register may share."""
    scatters: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Position of every slice_scatter of a whole value -> (register of it, register of its source)."""
    aliasing: set[int] = field(default_factory=set[int])
    """Positions of steps whose result may share memory with what they read."""
    scattered: set[int] = field(default_factory=set[int])
    """Registers that are a whole buffer after a scatter into it."""
    ordered: bool = False
    num_ops: int = 0

    def build(self) -> Code:
        entry = self.program.entry(self.label)
        types = infer_program(self.program, entry=self.label, params=self.params)
        inputs, states = self._leaves()
        for item in expand_open(self.program.blocks, entry.body, self.bound):
            self.num_ops += 1
            self._step(item, types)
        outputs = [
            (str(name), self._register(str(name))) for name in (ground(o, self.bound) for o in entry.outputs)
        ]
        after = tuple(
            (str(before), self._register(str(end))) for before, end in state_pairs(entry, self._env())
        )
        kept = frozenset([register for _, register in (*outputs, *after)])
        written = self._write_in_place(kept) if self.in_place else ()
        owned = {self.buffers[key] for key in written}
        return Code(
            self.template,
            self._with_deaths(kept),
            tuple(self.open),
            inputs,
            states,
            tuple((key, at, bool({b for b, _ in self.versions.get(at, ())} & owned)) for key, at in outputs),
            after,
            self.num_ops,
            self.ordered,
            written,
        )

    def _env(self) -> dict[str, int]:
        """Every name with the value it has in this invocation."""
        env = {**self.program.axes, **self.params}
        for key, value in self.program.entry(self.label).fixed:
            env[key] = evaluate(value, env)
        return env

    # --- leaves and registers ---

    def _leaves(self) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
        found: dict[str, list[Leaf]] = {"input": [], "state": []}
        for key, want, role in leaves(self.program, self.label, self._env()):
            if role == "weight":
                self._weight(key, want)
                continue
            register = self._new()
            self.registers[key] = register
            found[role].append(Leaf(key, register, self._open_shape(key, want), want.dtype))
            if role == "state":
                self.buffers[key] = register
        return tuple(found["input"]), tuple(found["state"])

    def _weight(self, key: str, want: TensorType) -> None:
        tensor = self.weights.get(key)
        if tensor is None:
            raise RecordError(f"weight {key} is missing", wanted=str(want))
        if tuple(tensor.shape) != want.shape or tensor.dtype is not TORCH_DTYPES[want.dtype]:
            raise RecordError(f"weight {key} is {tensor.dtype}{list(tensor.shape)}", wanted=str(want))
        self.registers[key] = self._new(tensor)

    def _open_shape(self, key: str, want: TensorType) -> tuple[Int, ...]:
        base, _, rest = key.partition("[")
        value = self.program.values[base]
        members = [int(part) for part in rest.rstrip("]").split(",")] if rest else []
        letters = dict(zip((letter for letter, _ in value.params), members, strict=True))
        shape = tuple(substitute(size, {**self.bound, **letters}) for size in value.shape)
        assert len(shape) == len(want.shape)
        return shape

    def _new(self, value: Any = None) -> int:
        self.template.append(value)
        return len(self.template) - 1

    def _register(self, key: str) -> int:
        if key not in self.registers:
            raise RecordError(f"{key} is read before anything made it", place=self.label)
        return self.registers[key]

    def _constant(self, value: Any) -> int:
        """A register for a number, list or other fixed value; open ones are worked out for each call."""
        key = (type(value).__name__, repr(value))
        if key not in self.constants:
            builder = _builder(value)
            self.constants[key] = register = self._new(value if builder is None else None)
            if builder is not None:
                self.open.append((register, builder))
        return self.constants[key]

    def _emit(self, call: Callable[..., Any], reads: Sequence[int], place: str, *, aliases: bool) -> int:
        out = self._new()
        if aliases:
            self.aliasing.add(len(self.raw))
        self.raw.append(Step(call, tuple(reads), out, (), place))
        return out

    # --- steps ---

    def _step(self, item: Op, types: Mapping[str, TensorType]) -> None:
        place = _place(item)
        operands = [self._operand(arg, place) for arg in item.args]
        kinds = [
            "none" if arg is None else "tensor" if isinstance(arg, Ref | Cat) else "number"
            for arg in item.args
        ]
        ranks = [_rank(arg, types) for arg in item.args]
        try:
            found = resolve(item.op, kinds, dict(item.attrs), ranks)
        except TensureError as error:
            raise error.at(place=place) from None
        self.ordered |= item.op in ORDER_MATTERS
        reads = [self._argument(slot, operands, place) for slot in found.slots]
        out = self._emit(_callable(found), reads, place, aliases=found.aliases)
        if item.op == "slice_scatter":
            self.scatters[len(self.raw) - 1] = (operands[0], operands[1])
        made = [out]
        if len(item.outs) > 1:
            made = [
                self._emit(operator.getitem, (out, self._constant(at)), place, aliases=True)
                for at in range(len(item.outs))
            ]
        for name, register in zip(item.outs, made, strict=True):
            self._make(str(name), register)
        self.raw[-1] = replace(self.raw[-1], completes=(item, tuple(made)))

    def _make(self, key: str, register: int) -> None:
        if key in self.registers:
            raise RecordError(f"{key} is made twice", wanted="single assignment")
        self.registers[key] = register

    def _operand(self, arg: Arg, place: str) -> int:
        if isinstance(arg, Ref):
            register = self._register(str(arg.name))
            for dim, lo, hi in arg.box:
                size = hi - lo
                reads = (register, self._constant(dim), self._constant(lo), self._constant(size))
                register = self._emit(torch.narrow, reads, place, aliases=True)
            return register
        if isinstance(arg, Cat):
            parts = [self._operand(part, place) for part in arg.parts]
            if len(parts) == 1:
                return parts[0]
            packed = self._emit(_pack, parts, place, aliases=True)
            return self._emit(torch.cat, (packed, self._constant(arg.dim)), place, aliases=False)
        return self._constant(arg)

    def _argument(self, slot: Take | TakeAll | Give, operands: list[int], place: str) -> int:
        if isinstance(slot, Take):
            return operands[slot.at]
        if isinstance(slot, TakeAll):
            return self._emit(_pack, operands[slot.at :], place, aliases=True)
        return self._constant(slot.value)

    # --- storage ---

    def _write_in_place(self, kept: frozenset[int]) -> tuple[str, ...]:
        """Turn every slice_scatter that may write into its buffer into one that does."""
        last: dict[int, int] = dict.fromkeys(kept, len(self.raw))
        for at, step in enumerate(self.raw):
            for register in step.reads:
                last[register] = max(last.get(register, -1), at)
        names = {register: key for key, register in self.buffers.items()}
        self.versions = {register: frozenset({(register, 0)}) for register in names}
        written: dict[str, None] = {}
        for at, step in enumerate(self.raw):
            shared = frozenset[tuple[int, int]]().union(
                *(self.versions.get(r, frozenset()) for r in step.reads)
            )
            if at in self.scatters:
                whole, source = self.scatters[at]
                target = self._target(at, whole, source, last)
                if target is not None:
                    buffer, version = target
                    self.raw[at] = replace(step, call=_scatter_in_place)
                    self.versions[step.out] = frozenset({(buffer, version + 1)})
                    self.scattered.add(step.out)
                    written[names[buffer]] = None
            elif at in self.aliasing and shared:
                self.versions[step.out] = shared
        return tuple(written)

    def _target(self, at: int, whole: int, source: int, last: Mapping[int, int]) -> tuple[int, int] | None:
        """The (buffer, version) a scatter may overwrite."""
        versions = self.versions.get(whole, frozenset())
        if len(versions) != 1 or not (whole in self.buffers.values() or whole in self.scattered):
            return None
        ((buffer, version),) = versions
        if any(other == buffer for other, _ in self.versions.get(source, ())):
            return None
        for register, found in self.versions.items():
            if any(other == buffer for other, _ in found) and last.get(register, -1) > at:
                return None
        return buffer, version

    def _with_deaths(self, kept: frozenset[int]) -> tuple[Step, ...]:
        """Steps that let go of every value after its last reader; weights and constants stay."""
        made = {step.out for step in self.raw} | set(self.buffers.values())
        last: dict[int, int] = {}
        for at, step in enumerate(self.raw):
            for register in (*step.reads, step.out):
                last[register] = at
        dying: dict[int, list[int]] = {}
        for register, at in last.items():
            if register in made and register not in kept:
                dying.setdefault(at, []).append(register)
        return tuple(replace(step, frees=tuple(dying.get(at, ()))) for at, step in enumerate(self.raw))


def _scatter_in_place(x: Tensor, src: Tensor, *where: Any) -> Tensor:
    torch.ops.aten.slice.Tensor(x, *where).copy_(src)
    return x


def _pack(*items: Any) -> list[Any]:
    return list(items)


def _callable(found: Resolved) -> Callable[..., Any]:
    return by_name(found.call, found.keywords) if found.keywords else found.call


def _builder(value: Any) -> Builder | None:
    """How to work a value out from the parameters; None if it is fixed."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, list | tuple):
        parts = [_builder(part) for part in value]
        if any(part is not None for part in parts):
            return lambda env: [
                part if build is None else build(env) for part, build in zip(value, parts, strict=True)
            ]
    return None


def _rank(arg: Arg, types: Mapping[str, TensorType]) -> int | None:
    while isinstance(arg, Cat):
        arg = arg.parts[0]
    return len(types[str(arg.name)].shape) if isinstance(arg, Ref) and str(arg.name) in types else None


def _place(item: Op) -> str:
    line = next((value for key, value in item.note if key == "source"), None)
    return f"{', '.join(map(str, item.outs))} = {item.op}(...)" + (f" at {line}" if line else "")
