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
from tensure.capture import ParallelStep, capture_model, capture_parallel
from tensure.errors import InputError, UnsupportedError
from tests.proving.optimizer_steps import Net, data_parallel, model, zero_flat

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


# --- numbers of a parameter ---------------------------------------------------------------------------


def scaled(swap: bool = False, name: str = "scale") -> Any:
    """Each parameter goes by a number of its own; or by its neighbour's, if they are taken to be equal."""

    def make(parameters: Iterable[Any]) -> Optimizer:
        items = list(parameters)

        class Scaled(Optimizer):
            def __init__(self) -> None:
                super().__init__(items, {"lr": 0.1})
                for item in items:
                    self.state[item][name] = torch.ones(())

            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                others = [*items[1:], items[0]] if swap else items
                for item, other in zip(items, others, strict=True):
                    item.sub_(self.state[other][name] * item.grad)
                for item in items:
                    self.state[item][name].mul_(1.25)

        return Scaled()

    return make


@pytest.mark.parametrize("name", ["scale", "step"])
def test_a_number_of_a_parameter_is_its_own(name: str) -> None:
    """Whatever it is called: what is multiplied is no counter."""
    assert status(scaled(name=name)) == "proved"
    assert status(scaled(name=name), scaled(True, name)) == "refuted"


def two(parameters: Iterable[Any]) -> Any:
    items = list(parameters)
    return [torch.optim.AdamW(half, lr=0.1) for half in (items[:2], items[2:])]


def counting(swap: bool) -> Any:
    """Two optimizers on the ranks; one parameter may be stepped with the other optimizer's counter."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        made, items = two(net.parameters()), list(net.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in items:
                torch.distributed.all_reduce(parameter.grad, group=mesh.get_group("dp"))
                parameter.grad.div_(mesh.size())
            mine, other = (made[at].state[item]["step"] for at, item in ((0, items[0]), (1, items[2])))
            kept = mine.clone()
            if swap:
                mine.copy_(other)
            for optimizer in made:
                optimizer.step()
            mine.copy_(kept + 1)
            return loss

        return data_parallel(step, optimizer=made)

    return parallel


def test_each_optimizer_has_a_counter() -> None:
    captured = capture_model(single, optimizer=two)
    leaves = {str(name) for name in captured.program.entries["step"].inputs}
    assert {"optimizer.step", "optimizer_1.step"} <= leaves
    for swap, said in ((False, "proved"), (True, "refuted")):
        values = tensure.prove(counting(swap), single, mesh=TWO, optimizer=two).proof.values
        assert values.status == said, values.reason


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of collectives by newer names
def test_a_number_of_several_parameters_that_each_have_their_own_is_refused() -> None:
    """NAdam's product of momenta, of parameters laid one after another; a counter alone is one for all."""
    make = torch.optim.NAdam
    whole = model(make, rows=9)
    with pytest.raises(InputError, match="one number mu_product for"):
        capture_parallel(whole, zero_flat(make), {"dp": 3}, capture_model(whole))
    adagrad = model(torch.optim.Adagrad, rows=9)
    assert capture_parallel(adagrad, zero_flat(torch.optim.Adagrad), {"dp": 3}, capture_model(adagrad)).tracks


def test_counters_of_two_dtypes_are_not_one() -> None:
    def make(parameters: Iterable[Any]) -> Any:
        optimizer = torch.optim.AdamW(list(parameters), lr=0.1)
        for at, parameter in enumerate(optimizer.param_groups[0]["params"]):
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float64 if at else torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    values = capture_model(single, optimizer=make).program.values
    kinds = {str(name): value.dtype for name, value in values.items() if str(name).endswith(".step")}
    assert len(kinds) == 6 and set(kinds.values()) == {"f32", "f64"}


# --- counters -----------------------------------------------------------------------------------------


def by_state(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
    state["step"] = state.get("step", 0) + 1
    state["m"] = 0.9 * state.get("m", torch.zeros_like(parameter)) + grad
    parameter.sub_(0.1 / (1 - 0.9 ** state["step"]) * state["m"])


def by_tensor(power: int = 0) -> Any:
    def update(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        step = state.setdefault("step", torch.zeros(()))
        step.add_(1)
        state["m"] = 0.9 * state.get("m", torch.zeros_like(parameter)) + grad
        parameter.sub_(0.1 / (1 - 0.9 ** (step + power)) * state["m"])

    return of(update)


def by_group(parameters: Iterable[Any]) -> Optimizer:
    class Group(Own):
        def step(self, closure: Any = None) -> None:
            self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1
            super().step()

    return Group(parameters, lambda state, parameter, grad: parameter.sub_(grad))


def by_attribute(parameters: Iterable[Any]) -> Optimizer:
    class Attribute(Own):
        count = 0

        def step(self, closure: Any = None) -> None:
            self.count += 1
            super().step()

    return Attribute(parameters, lambda state, parameter, grad: parameter.sub_(grad))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (of(by_state), r"Own.state\[0\]\['step'\], a Python number, from 1 to 2"),
        (by_group, r"Group.param_groups\[0\]\['k'\], a Python number"),
        (by_attribute, r"Attribute\.count, a Python number"),
    ],
    ids=["state", "group", "attribute"],
)
def test_a_counter_that_is_a_python_number_is_refused(make: Any, says: str) -> None:
    """What was traced is its second step, and no other."""
    with pytest.raises(UnsupportedError, match=says):
        capture_model(single, optimizer=make)


def test_ranks_that_count_in_python_are_refused() -> None:
    def plain(state: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        parameter.sub_(0.1 * grad)

    assert status(of(plain)) == "proved"
    with pytest.raises(UnsupportedError, match=r"Attribute\.count"):
        status(of(plain), by_attribute)


def test_a_counter_that_is_a_tensor_is_proved() -> None:
    assert status(by_tensor()) == "proved"
    assert status(by_tensor(), by_tensor(1)) == "refuted"


def test_a_scheduler_in_the_step_is_none() -> None:
    """What it sets is a hyperparameter; that it counts for itself is no state of the optimizer."""

    def make(parameters: Iterable[Any]) -> Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    assert status(make) == "proved"
