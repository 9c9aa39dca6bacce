"""What optimizers of one's own keep: states that are bound anew, numbers per parameter, counters.

Each right twin is proved; a twin with one mistake, which shows in a state alone, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

import tensure
from tensure.capture import ParallelStep, capture_model
from tensure.errors import InputError
from tests.proving.optimizer_steps import Net, data_parallel

TWO = {"dp": 2}
Update = Callable[[dict[str, Any], Tensor, Tensor], None]


class Own(Optimizer):
    """Calls a function with state, parameter and gradient; an attribute for functions that count."""

    def __init__(self, parameters: Iterable[Any], update: Update) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.update = update

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(self.state[parameter], parameter, parameter.grad)


def inputs() -> tuple[Tensor, ...]:
    return torch.randn(8, 8), torch.randn(8, 8)


def single() -> Any:
    return Net(), inputs()


def averaged(make: Any = None, *, shards: bool = False) -> Any:
    """Data parallelism by hand or by FSDP, with an optimizer of its own if there is one."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        if shards:
            fully_shard(net, mesh=mesh["dp"])

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in net.parameters() if not shards else ():
                torch.distributed.all_reduce(parameter.grad, group=mesh.get_group("dp"))
                parameter.grad.div_(mesh.size())
            if optimizer is not None:
                optimizer.step()
            return loss

        optimizer = None if make is None else make(net.parameters())
        return data_parallel(step, optimizer=optimizer)

    return parallel


def of(update: Update) -> Any:
    return lambda parameters: Own(parameters, update)


def status(make: Any, other: Any = None, *, shards: bool = False) -> str:
    """What becomes of an optimizer on both sides, or of another one on the ranks."""
    return tensure.prove(
        averaged(other or make, shards=shards), single, mesh=TWO, optimizer=make
    ).proof.values.status


# --- states that are bound anew -----------------------------------------------------------------------


def rebound(factor: float) -> Any:
    """The parameter goes by the moment from before, so that a wrong moment shows in the state alone."""

    def update(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        before = state.get("m", torch.zeros_like(parameter))
        parameter.sub_(0.1 * before)
        state["m"] = 0.9 * before + factor * grad

    return of(update)


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
def test_a_state_is_what_stands_under_its_name_after_the_step(shards: bool) -> None:
    assert status(rebound(1.0), shards=shards) == "proved"
    assert status(rebound(1.0), rebound(3.0), shards=shards) == "refuted"


def test_a_state_that_comes_later_or_changes_its_form_is_refused() -> None:
    def later(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        state["late" if "m" in state else "m"] = grad.clone()

    def dropped(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        if "m" in state:
            del state["m"]
        else:
            state["m"] = grad.clone()

    def grown(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        state["m"] = torch.cat([state.get("m", grad), grad])

    cases = (
        (later, "makes or drops late"),
        (dropped, "makes or drops m"),
        (grown, "changes m of a parameter"),
    )
    for update, says in cases:
        with pytest.raises(InputError, match=says):
            capture_model(single, optimizer=of(update))


def test_a_parameter_of_two_optimizers_is_refused() -> None:
    def twice(parameters: Iterable[Any]) -> Any:
        items = list(parameters)
        return [torch.optim.SGD(items, lr=0.1), torch.optim.SGD(items[:1], lr=0.2)]

    with pytest.raises(InputError, match="stepped twice"):
        capture_model(single, optimizer=twice)
