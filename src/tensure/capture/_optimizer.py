"""Optimizers where nothing has bytes: their states are there before the step, their counters have no value.

What a parameter's state is called and which number of the single device it stands for is said here, and how
torch's own optimizers run on a counter that is a tensor: they ask for its value, and get the tensor. Then
`1 - beta ** step` is a step like any other, and what is proved holds at every step of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Number
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.distributed.tensor import DTensor
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode

from tensure.errors import InputError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import Name, Op, Ref

from ._calls import check_call
from ._changes import changed, replaced
from ._sources import OPTIMIZER_WANTED, optimizer_line, their_errors
from ._step import OptimizerFunction

__all__ = [
    "SHARED",
    "States",
    "Watched",
    "as_optimizers",
    "built_optimizer",
    "counted",
    "counters",
    "increment",
    "started",
    "states_of",
]

SHARED: Final = "optimizer"
"""Before the name of a state that all parameters of an optimizer have in common: their number of steps."""

_COUNTER: Final = "step"
"""What torch's optimizers, and others after them, call it."""


@dataclass(frozen=True)
class States:
    """One parameter as an optimizer holds it.

    Args:
        parameter: the tensor that it steps.
        tensors: its state, by torch's names (`exp_avg`, `momentum_buffer`, `step`, ...).
    """

    parameter: Tensor
    tensors: Mapping[str, Tensor]


def counters(optimizers: Sequence[torch.optim.Optimizer]) -> dict[int, str]:
    """The shared leaf that a parameter's number of steps is before the step, by the parameter's id.

    Parameters of one optimizer are taken to be stepped equally often, so there is one for all of them.
    Nothing but `step` is meant: any other number of a parameter, a norm or a scale, is its own. A parameter
    of one number has its own too, for there it may be a moment.
    """
    found = dict[int, str]()
    for at, optimizer in enumerate(optimizers):
        counts = {
            id(states.parameter): states.tensors[_COUNTER]
            for states in states_of(optimizer)
            if states.parameter.ndim and _COUNTER in states.tensors and not states.tensors[_COUNTER].ndim
        }
        if len({count.dtype for count in counts.values()}) == 1:
            found |= dict.fromkeys(counts, f"{SHARED}{f'_{at}' if at else ''}.{_COUNTER}")
    return found


def increment(made: Mapping[Name, Op], value: Ref, leaf: str) -> float | None:
    """What a step adds to a counter; None if it is no such sum.

    Args:
        made: the step behind every value.
        value: the counter afterwards.
        leaf: the counter before.
    """
    step = made.get(_uncopied(made, value).name)
    if step is None or step.op != "add" or step.attrs or len(step.args) != 2:
        return None
    first, by = step.args
    if not isinstance(first, Ref) or _uncopied(made, first) != Ref(Name(leaf)):
        return None
    number: Any = by
    if isinstance(by, Ref):
        constant = made.get(_uncopied(made, by).name)
        number = dict(constant.attrs).get("fill_value") if constant and constant.op == "full" else None
    return float(number) if isinstance(number, (int, float)) else None


def _uncopied(made: Mapping[Name, Op], value: Ref) -> Ref:
    while (step := made.get(value.name)) is not None and step.op == "copy" and isinstance(step.args[0], Ref):
        value = step.args[0]
    return value


def as_optimizers(found: Any) -> tuple[torch.optim.Optimizer, ...]:
    """What people hand in as optimizers, in one form.

    Raises:
        InputError: something else.
    """
    items = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    for item in items:
        if not isinstance(item, torch.optim.Optimizer):
            raise InputError(
                f"an optimizer of type {type(item).__name__}",
                wanted="torch.optim.Optimizer, or a list of such; optimizer= of prove() takes a function "
                "from the parameters to one",
            )
    return items


def built_optimizer(make: OptimizerFunction, module: torch.nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizer of a module's parameters."""
    check_call("the optimizer function", make, {"parameters": ()})
    with their_errors("the optimizer function"):
        return as_optimizers(make(module.parameters()))


def started(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the states be there, as after some step: torch makes them within the first.

    One step with gradients that are zero does it; parameters have no bytes, so it changes nothing.
    """
    for optimizer in optimizers:
        if any(states.tensors for states in states_of(optimizer)):
            continue
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [p.grad for p in parameters]
        with their_errors("a first step of the optimizer"), counted():
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            try:
                optimizer.step()
            except DataDependentOutputException as error:
                trace, line = error.__traceback__, ""
                while trace is not None:  # the innermost is last
                    line, trace = optimizer_line(trace.tb_frame) or line, trace.tb_next
                raise UnsupportedError(
                    f"{type(optimizer).__name__} reads a value in its first step ({error.func})",
                    place=line or None,
                    wanted=OPTIMIZER_WANTED,
                ) from None
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def states_of(optimizer: torch.optim.Optimizer) -> list[States]:
    """Every parameter that an optimizer steps here; of one that shards its work, those of this rank."""
    inner: Any = getattr(optimizer, "optim", None)
    held = inner if isinstance(inner, torch.optim.Optimizer) else optimizer
    return [
        States(
            parameter, {key: t for key, t in held.state.get(parameter, {}).items() if isinstance(t, Tensor)}
        )
        for group in held.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]


class Watched:
    """What optimizers hold of each parameter, by its id: before the step, and read again after it.

    A state is what stands under its name: an optimizer may write into the tensor or put another there.

    Raises:
        InputError: two optimizers step one parameter.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self.before, self._numbers = self._read(), _numbers_of(self._optimizers)

    def after(self) -> Mapping[int, States]:
        """The states as they are now, of the parameters and names from before.

        Raises:
            InputError: other parameters, names, shapes or dtypes than before; then the next step is another.
            UnsupportedError: a Python number has changed: what was traced is the step at one count of many.
        """
        numbers = _numbers_of(self._optimizers)
        for name in sorted(numbers.keys() | self._numbers.keys()):
            if numbers.get(name) != self._numbers.get(name):
                raise UnsupportedError(
                    f"a step that changes {name}, a Python number, from {self._numbers.get(name)} to "
                    f"{numbers.get(name)}: it would be proved for this count alone",
                    wanted="a counter that is a tensor in the optimizer's state, as torch's own have it "
                    "(torch.tensor(0.0)), and is counted in place",
                )
        now = self._read()
        if now.keys() != self.before.keys():
            raise InputError(
                "a step after which the optimizer holds other parameters", wanted="the same ones every step"
            )
        for key, states in self.before.items():
            shape, tensors = list(states.parameter.shape), now[key].tensors
            unlike = sorted(states.tensors.keys() ^ tensors.keys())
            if unlike:
                raise InputError(
                    f"a step that makes or drops {', '.join(unlike)} of a parameter of shape {shape}",
                    wanted="an optimizer that keeps the same states from its first step on",
                )
            for name, tensor in states.tensors.items():
                if _form(tensors[name]) != _form(tensor):
                    raise InputError(
                        f"a step that changes {name} of a parameter of shape {shape} from "
                        f"{_said(tensor)} to {_said(tensors[name])}",
                        wanted="a state of one form",
                    )
        return now

    def _read(self) -> dict[int, States]:
        found = dict[int, States]()
        for optimizer in self._optimizers:
            for states in states_of(optimizer):
                if id(states.parameter) in found:
                    raise InputError(
                        f"a parameter of shape {list(states.parameter.shape)} that is stepped twice",
                        wanted="one optimizer for each parameter",
                    )
                found[id(states.parameter)] = states
        return found


def _numbers_of(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Python numbers that optimizers keep from one step to the next: in states, groups and attributes.

    What torch's schedulers set is a hyperparameter, which is what it is built with.
    """
    found = dict[str, Any]()
    for at, optimizer in enumerate(optimizers):
        inner: Any = getattr(optimizer, "optim", None)
        for item in (optimizer, inner) if isinstance(inner, torch.optim.Optimizer) else (optimizer,):
            said = f"{type(item).__name__}{f' {at}' if at else ''}"
            for number, state in enumerate(item.state.values()):
                _note_numbers(found, f"{said}.state[{number}]", state)
            for number, group in enumerate(item.param_groups):
                kept = {key: value for key, value in group.items() if key not in ("params", *_SCHEDULED)}
                _note_numbers(found, f"{said}.param_groups[{number}]", kept)
            for name, value in vars(item).items():
                if isinstance(value, Number) and name not in _MARKS:
                    found[f"{said}.{name}"] = value
    return found


def _note_numbers(found: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, Number):
        found[name] = value
    elif isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _note_numbers(found, f"{name}[{key!r}]", item)


_SCHEDULED: Final = ("lr", "momentum", "betas")
_MARKS: Final = ("_opt_called", "_step_count")
"""Set by torch's schedulers, to warn; no step reads them."""


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, isinstance(tensor, DTensor)


def _said(tensor: Tensor) -> str:
    kind = " DTensor" if isinstance(tensor, DTensor) else ""
    return f"{dtype_word(tensor.dtype)}{list(tensor.shape)}{kind}"


@contextmanager
def counted() -> Iterator[None]:
    """Let torch's optimizers compute with a counter that is a tensor, where they would read its value.

    What follows from it are factors; torch takes only Python numbers for these, so they are multiplied here.
    """
    with ExitStack() as stack:
        stack.enter_context(changed(torch_optimizer._get_value, _number))
        devices = torch_optimizer._get_capturable_supported_devices
        stack.enter_context(changed(devices, lambda known, *args, **named: [*known(*args, **named), "cpu"]))
        for name, make in _BY_FACTOR.items():
            stack.enter_context(replaced(torch, name, _added_each(getattr(torch, name), make)))
        stack.enter_context(_TensorFactors())
        yield


def _number(_: Any, value: Any) -> Any:
    """A counter as Python counts with it, in double precision."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _TensorFactors(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        make, value = _BY_FACTOR.get(f"_foreach_{getattr(func, '__name__', '')}"), given.get("value")
        if make is None or not isinstance(value, Tensor):
            return func(*args, **given)
        # tensors come in order or by name
        operands = [*args, *(given[key] for key in ("tensor1", "tensor2") if key in given)]
        if len(operands) != 3:
            return func(*args, **given)  # torch itself says what is wrong
        target, one, other = operands
        return target.add_(value * make(one, other))


def _added_each(plain: Callable[..., Any], make: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def call(targets: Any, ones: Any, others: Any, *values: Any, **named: Any) -> Any:
        (by,) = values or (named.get("value", 1),)
        if not isinstance(by, (list, tuple)) or not any(isinstance(item, Tensor) for item in by):
            return plain(targets, ones, others, *values, **named)
        for target, one, other, value in zip(targets, ones, others, by, strict=True):
            target.add_(value * make(one, other))
        return None

    return call


_BY_FACTOR: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "_foreach_addcmul_": torch.mul,
    "_foreach_addcdiv_": torch.div,
}
