"""Optimizers where nothing has bytes: their states are there before the step, their counters have no value.

What a parameter's state is called and which number of the single device it stands for is said here, and how
torch's own optimizers run on a counter that is a tensor: they ask for its value, and get the tensor. Then
`1 - beta ** step` is a step like any other, and what is proved holds at every step of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode

from tensure.errors import InputError, UnsupportedError

from ._calls import check_call
from ._changes import changed, replaced
from ._sources import their_errors
from ._step import OptimizerFunction

__all__ = [
    "SHARED",
    "States",
    "as_optimizers",
    "built_optimizer",
    "counted",
    "started",
    "state_leaf",
    "states_of",
]

SHARED: Final = "optimizer"
"""Before the name of a state that all parameters have in common, as their number of steps."""


@dataclass(frozen=True)
class States:
    """One parameter as an optimizer holds it.

    Args:
        parameter: the tensor that it steps.
        tensors: its state, by torch's names (`exp_avg`, `momentum_buffer`, `step`, ...).
    """

    parameter: Tensor
    tensors: Mapping[str, Tensor]


def state_leaf(label: str, name: str, shape: Sequence[int], parameter: Sequence[int]) -> str:
    """The value that a state of the single device begins with.

    A state of one number of a parameter that has more is no part of it: a counter. All parameters were
    stepped equally often, so there is one for all.
    """
    return f"{SHARED}.{name}" if not shape and parameter else f"{label}.{name}"


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
                raise UnsupportedError(
                    f"{type(optimizer).__name__} reads a value in its first step ({error.func})",
                    wanted="an optimizer whose course does not depend on values",
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
        target, one, other = args
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
