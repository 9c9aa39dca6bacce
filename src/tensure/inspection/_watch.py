"""Watch any eager torch code, training steps included: a context manager below autograd.

Knows torch's dispatcher. Every op that reaches a backend is one step, at the level where autograd is already
resolved: `linear` arrives as `addmm` of a transpose, a backward pass as its own steps. Does not know what the
trace is for.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
)

from tensure.errors import InputError

from ._facts import Looking
from ._frames import source_line
from ._modules import ModulePaths, parameter_names
from ._recorder import Made, OnStep, Recorder
from ._recording import Read, Recording, Replay
from ._records import Argument, Origin, Step, Trace
from ._values import ValueStore
from ._versions import split_version

__all__ = ["Watch", "watch"]

_HIDDEN_WRITES: Final = dict.fromkeys(
    ("native_batch_norm", "_batch_norm_impl_index"), ("running_mean", "running_var")
)
"""Operands that an op writes over in training though its schema does not say so."""

_MAX_ITEMS: Final = 64
"""Of a list argument that are written down."""


def watch(
    model: torch.nn.Module | None = None,
    *,
    name: str = "run",
    inputs: Mapping[str, torch.Tensor] | None = None,
    statistics: bool = True,
    digest: bool = False,
    limit: float | None = None,
    keep: bool | ValueStore = False,
    on_step: OnStep | None = None,
) -> Watch:
    """A context manager that records every torch op run inside it, in this thread and its backward passes.

    Args:
        model: its parameters and buffers are named by path; a module that runs inside names itself.
        name: of the trace.
        inputs: tensors to name.
        statistics, digest, limit: what to find out of every tensor.
        keep: keep every value on disk, so that the run can be compared with `diff`.
        on_step: called after every step with what it made.

    Example:
        with watch(model, digest=True) as run:
            loss = model(x).sum()
            loss.backward()
        print(run.trace.steps[0])
    """
    store = ValueStore() if keep is True else None if keep is False else keep
    recorder = Recorder(
        Trace(name, "torch, eager"), Looking(statistics, digest, limit), store=store, on_step=on_step
    )
    return Watch(recorder, model, inputs or {})


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    writes: bool


@dataclass(frozen=True, slots=True)
class _Schema:
    """What is asked of an op's schema, worked out once an op."""

    op: str
    parameters: tuple[_Parameter, ...]
    mutates: bool


@dataclass(slots=True)
class _Named:
    ref: weakref.ref[torch.Tensor]
    name: str
    as_of: int
    """The step after which the name stood for these bytes."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """See `watch`. `trace` grows while it is open."""

    def __init__(
        self, recorder: Recorder, model: torch.nn.Module | None, inputs: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder
        self._modules = ModulePaths(self._add_root)
        self._weights: dict[int, tuple[str, torch.Tensor]] = {}
        self._given = {id(tensor): (name, tensor) for name, tensor in inputs.items()}
        self._named: dict[int, _Named] = {}
        self._schemas: dict[Any, _Schema] = {}
        self._places: dict[int, tuple[str, str]] = {}
        """Module and source of a forward step by autograd's sequence number."""
        self._counts: dict[str, int] = {}
        self._stack: ExitStack | None = None
        self._replays: dict[int, Replay] = {}
        if model is not None:
            self._modules.add_root(model)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch wraps the dispatch for its compiler: that costs 80 MB and some time at every op."""
        return False

    @property
    def trace(self) -> Trace:
        """What was recorded so far."""
        return self._recorder.trace

    @property
    def values(self) -> ValueStore | None:
        """The kept values, if they are kept."""
        return self._recorder.store

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise InputError("this run is watched already", wanted="one `with` for each watch(...)")
        self._stack = ExitStack()
        self._stack.enter_context(self._modules.hooked())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        # A trace outlives its run; the tensors of the run must not.
        self._given.clear()
        self._weights.clear()
        self._modules.forget()
        if self._stack is not None:
            self._stack.close()

    def recording(self) -> Recording:
        """The run as it stands."""
        return Recording(self.trace, self.values, self._replays)

    def output(self, name: str, tensor: torch.Tensor) -> None:
        """Say that this tensor is a result of the run."""
        self.trace.outputs = {**self.trace.outputs, name: self._read(tensor)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # marks of a profiler, as optimizers set them: no tensor is touched
            return func(*args, **kwargs)
        with _alone():
            call = self._before(func, args, kwargs)
        begin = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - begin
        with _alone():
            self._note(*call, result, seconds)
        return result

    # --- one step ---

    def _before(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Schema, list[str], list[tuple[str, Argument]], list[torch.Tensor], tuple[str, ...]]:
        """What can be seen of a step only before it runs."""
        schema = self._schemas.get(func)
        if schema is None:
            schema = self._schemas[func] = _schema(func)
        reads: list[str] = []
        arguments: list[tuple[str, Argument]] = []
        written: list[torch.Tensor] = []
        hidden = _HIDDEN_WRITES.get(schema.op, ()) if self._trains(schema, args, kwargs) else ()
        for parameter, value in self._bound(schema, args, kwargs):
            found = list(_tensors(value))
            for tensor in found:
                reads.append(self._read(tensor))
                if parameter.writes or parameter.name in hidden:
                    written.append(tensor)
            if not found:
                arguments.append((parameter.name, plain_argument(value)))
        wrote = tuple([self._named[id(tensor)].name for tensor in written])
        if self._recorder.store is not None:
            for name in wrote:
                self._recorder.store.save_before_write(name)
        if self._recorder.store is not None:
            names = iter(reads)
            again = (_template(args, names), _template(tuple(kwargs.values()), names), tuple(kwargs))
            self._replays[len(self.trace.steps)] = partial(_replay, func, *again, wrote)
        return schema, reads, arguments, written, wrote

    def _trains(self, schema: _Schema, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return schema.op in _HIDDEN_WRITES and any(
            parameter.name == "training" and value is True
            for parameter, value in self._bound(schema, args, kwargs)
        )

    def _note(
        self,
        schema: _Schema,
        reads: list[str],
        arguments: list[tuple[str, Argument]],
        written: list[torch.Tensor],
        wrote: tuple[str, ...],
        result: Any,
        seconds: float,
    ) -> Step:
        index = len(self.trace.steps)
        made: list[Made] = []
        overwritten = {id(tensor) for tensor in written}
        for tensor in (*_tensors(result), *written):
            if any(tensor is item.tensor for item in made):
                continue
            base = f"{schema.op.rpartition('::')[2]}_{index}"
            name = base if not made else f"{base}.{len(made)}"
            made.append(Made(name, tensor, id(tensor) in overwritten))
        for item in made:
            self._name(item.tensor, item.name, index)
        if not made and not isinstance(result, torch.Tensor) and result is not None:
            arguments.append(("returns", plain_argument(result)))
        module, source, phase = self._place()
        return self._recorder.step(
            schema.op,
            reads,
            made,
            module=module,
            source=source,
            phase=phase,
            arguments=tuple(arguments),
            wrote=wrote,
            seconds=seconds,
        )

    def _place(self) -> tuple[str, str, Literal["forward", "backward"]]:
        node = torch._C._current_autograd_node()
        if node is not None:
            # A gradient's step belongs where the forward step that recorded it stood.
            module, source = self._places.get(node._sequence_nr(), ("", ""))
            return module, source or source_line(), "backward"
        module, source = self._modules.current, source_line()
        if torch.is_grad_enabled():
            number = torch.autograd._get_sequence_nr()
            if number is not None:
                self._places[number - 1] = (module, source)
        return module, source, "forward"

    # --- names ---

    def _read(self, tensor: torch.Tensor) -> str:
        """The name of what a tensor holds now."""
        known = self._named.get(id(tensor))
        if known is None or known.ref() is not tensor:
            return self._first_seen(tensor)
        if tensor.layout is torch.strided:
            written = self._recorder.storages.written(tensor, known.as_of)
            if written >= 0:
                return self._overwritten(tensor, known, written)
        return known.name

    def _overwritten(self, tensor: torch.Tensor, known: _Named, written: int) -> str:
        """A new name for old memory: another tensor that shares it was written to."""
        name = f"{split_version(known.name)[0]}@{written}"
        before = self.trace.tensors[known.name]
        known.as_of = written
        if name not in self.trace.tensors and not self._recorder.changed(name, tensor, written, before):
            return known.name  # the write went between its elements
        known.name = name
        return name

    def _first_seen(self, tensor: torch.Tensor) -> str:
        key = id(tensor)
        origin: Origin = "constant"
        if key in self._weights and self._weights[key][1] is tensor:
            name, origin = self._weights[key][0], "weight"
        elif key in self._given and self._given[key][1] is tensor:
            name, origin = self._given[key][0], "input"
        else:
            name = self._numbered("constant")
        name = name.replace("@", "_at_")  # that mark is ours (`_versions.py`)
        if name in self.trace.tensors:
            name = self._numbered(name)
        self._name(tensor, name, len(self.trace.steps) - 1)
        self._recorder.leaf(name, tensor, origin)
        return name

    def _name(self, tensor: torch.Tensor, name: str, step: int) -> None:
        self._named[id(tensor)] = _Named(weakref.ref(tensor), name, step)

    def _numbered(self, stem: str) -> str:
        self._counts[stem] = count = self._counts.get(stem, -1) + 1
        return f"{stem}_{count}"

    def _add_root(self, module: torch.nn.Module, prefix: str) -> None:
        self._weights.update(parameter_names(module, prefix))

    # --- arguments ---

    def _bound(
        self, schema: _Schema, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[_Parameter, Any]]:
        yield from zip(schema.parameters, args, strict=False)
        if kwargs:
            by_name = {parameter.name: parameter for parameter in schema.parameters}
            for key, value in kwargs.items():
                yield by_name.get(key, _Parameter(key, False)), value


def _alone() -> AbstractContextManager[Any]:
    """Without the modes outside this one: they are there for the run, not for our looking at it."""
    return _NOTHING if _get_current_dispatch_mode() is None else _disable_current_modes()


_NOTHING: Final = nullcontext()


def _schema(func: Any) -> _Schema:
    found = func._schema
    op = str(found.name)
    parameters = tuple(
        _Parameter(item.name, item.alias_info is not None and item.alias_info.is_write)
        for item in found.arguments
    )
    return _Schema(op.removeprefix("aten::"), parameters, any(item.writes for item in parameters))


@dataclass(frozen=True, slots=True)
class _Hole:
    """Where a tensor stood among the arguments."""

    name: str


def _template(value: Any, names: Iterator[str]) -> Any:
    """Arguments without their tensors, which would be kept alive."""
    if isinstance(value, torch.Tensor):
        return _Hole(next(names))
    if isinstance(value, tuple):
        return tuple([_template(item, names) for item in value])
    return [_template(item, names) for item in value] if isinstance(value, list) else value


def _filled(value: Any, read: Read) -> Any:
    if isinstance(value, _Hole):
        return read(value.name)
    if isinstance(value, tuple):
        return tuple([_filled(item, read) for item in value])
    return [_filled(item, read) for item in value] if isinstance(value, list) else value


def _replay(
    func: Any, args: Any, values: Any, keys: tuple[str, ...], wrote: tuple[str, ...], read: Read
) -> list[torch.Tensor]:
    """The op once more; what it writes over is given as a copy, and comes after its results."""
    copies: dict[str, torch.Tensor] = {}

    def source(name: str) -> torch.Tensor:
        if name not in wrote:
            return read(name)
        if name not in copies:
            copies[name] = read(name).clone()
        return copies[name]

    result = func(*_filled(args, source), **dict(zip(keys, _filled(values, source), strict=True)))
    found = list(_tensors(result))
    return found + [copy for copy in copies.values() if not any(copy is item for item in found)]


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return ()


def plain_argument(value: Any) -> Argument:
    """An argument as a trace writes it down: numbers and short lists as they are, the rest as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = tuple(plain_argument(item) for item in value[:_MAX_ITEMS])
        return items if len(value) <= _MAX_ITEMS else (*items, "...")
    return str(value).removeprefix("torch.")[:200]
