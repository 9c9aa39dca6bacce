"""Optimizers on one device: the Program computes what torch does, at any step of the training.

Then what is refused, the identities that capture uses for norms, and parts of flat memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import clip_grad_norm_

from tensure.capture import Captured, ParallelStep, TrainingStep, capture_model, capture_parallel
from tensure.capture._layout import boxes
from tensure.capture._squares import unrooted
from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.program import Name, Op, Ref, evaluate_program

from .steps import Array, array

optim = torch.optim


class Net(nn.Module):
    """A layer in double precision, and a parameter that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 6, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.up(x) * self.scale).pow(2).mean()


def inputs() -> tuple[Tensor, ...]:
    return (torch.randn(4, 5, dtype=torch.float64),)


def single(make: Any, *, clip: float | None = None) -> Callable[[], TrainingStep]:
    def model() -> TrainingStep:
        net = Net()
        optimizer = make(net.parameters())

        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            return loss

        return TrainingStep(net, inputs(), step, optimizer)

    return model


def wrong(make: Any, captured: Captured, *, clip: float | None = None, steps: int = 7) -> list[str]:
    """Outputs of the Program that torch's step after some others does not give."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = single(make, clip=clip)()
    net, optimizer, states = given.module, given.optimizer, captured.states
    assert given.step is not None and isinstance(optimizer, optim.Optimizer) and states is not None
    for _ in range(steps):
        optimizer.zero_grad()
        given.step(*given.inputs)

    def now() -> dict[str, Array]:
        made: dict[str, Array] = {}
        for label, parameter in net.named_parameters():
            if label in states:
                made[f"new.{label}"] = array(parameter)
                made |= {
                    f"new.{label}.{key}": array(optimizer.state[parameter][key]) for key in states[label]
                }
        return made

    before = now()
    leaves = {label: array(p) for label, p in net.named_parameters()}
    leaves |= {f"input_{at}": array(item) for at, item in enumerate(given.inputs)}
    for label, named in states.items():
        leaves |= {leaf: before[f"new.{label}.{key}"] for key, leaf in named.items()}
    optimizer.zero_grad()
    given.step(*given.inputs)
    have, want = evaluate_program(captured.program, leaves).outputs, now()
    assert set(want) | {"loss"} == set(have)
    return [
        key
        for key, value in want.items()
        if not np.allclose(have[key], value, rtol=1e-8, atol=1e-10)
        or np.array_equal(value, before[key])  # nothing happened
    ]


MAKERS: dict[str, Any] = {
    "sgd": lambda p, **k: optim.SGD(p, lr=0.1, **k),
    "momentum": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.1, **k),
    "nesterov": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True, **k),
    "adam": lambda p, **k: optim.Adam(p, lr=0.1, weight_decay=0.2, **k),
    "amsgrad": lambda p, **k: optim.Adam(p, lr=0.1, amsgrad=True, maximize=True, **k),
    "adamw": lambda p, **k: optim.AdamW(p, lr=0.1, weight_decay=0.3, **k),
    "adamax": lambda p, **k: optim.Adamax(p, lr=0.1, **k),
    "nadam": lambda p, **k: optim.NAdam(p, lr=0.1, **k),
    "rmsprop": lambda p, **k: optim.RMSprop(p, lr=0.1, momentum=0.3, centered=True, **k),
    "adagrad": lambda p, **k: optim.Adagrad(p, lr=0.1, **k),
}
HOWS = [*((name, how) for name in MAKERS for how in ({"foreach": False}, {"foreach": True}))]
FUSED = [(name, {"fused": True}) for name in ("sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw")]


@pytest.mark.parametrize(("name", "how"), [*HOWS, *FUSED], ids=str)
def test_the_program_is_torchs_step(name: str, how: dict[str, bool]) -> None:
    def make(parameters: Iterable[Any]) -> Any:
        return MAKERS[name](parameters, **how)

    captured = capture_model(single(make))
    assert wrong(make, captured) == []


class Factors(optim.Optimizer):
    """A counter as a factor, in each way that torch lets it be called."""

    def __init__(self, parameters: Iterable[Any], how: str, grow: float = 1.0) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.how, self.grow = how, grow

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state, grad = self.state[parameter], parameter.grad
            step = state.setdefault("step", torch.zeros((), dtype=torch.float64)).add_(1)
            by, other = -0.01 * self.grow / step, grad.abs() + 1
            if self.how == "in order":
                parameter.addcdiv_(grad, other, value=by)
            elif self.how == "half by name":
                parameter.addcdiv_(grad, tensor2=other, value=by)
            else:
                parameter.addcdiv_(tensor1=grad, tensor2=other, value=by)


HOW = ["in order", "half by name", "by name"]


@pytest.mark.parametrize("how", HOW)
def test_factors_that_are_tensors_however_they_are_called(how: str) -> None:
    captured = capture_model(single(lambda p: Factors(p, how)))
    assert wrong(lambda p: Factors(p, how), captured) == []
    assert wrong(lambda p: Factors(p, how, grow=1.5), captured) != []


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipped_gradients(max_norm: float) -> None:
    """Below and above the norm: the coefficient is held to 1."""
    captured = capture_model(single(MAKERS["adamw"], clip=max_norm))
    assert wrong(MAKERS["adamw"], captured, clip=max_norm) == []
    other = 2e-3 if max_norm == 1e-3 else 1e-3
    assert wrong(MAKERS["adamw"], captured, clip=other) != []  # and it tells one norm from another


def test_an_optimizer_function_and_a_step_that_steps_are_one() -> None:
    said = capture_model(lambda: (Net(), inputs()), optimizer=MAKERS["adamw"])
    by_hand = capture_model(single(MAKERS["adamw"]))
    assert [op.op for op in ops(said)] == [op.op for op in ops(by_hand)]
    assert said.program.values == by_hand.program.values


def ops(captured: Captured) -> list[Op]:
    return [step for step in captured.program.entries["step"].body if isinstance(step, Op)]


def test_states_are_inputs_and_counters_one_for_all() -> None:
    captured = capture_model(single(MAKERS["adamw"]))
    leaves = {str(name) for name in captured.program.entries["step"].inputs}
    assert {"input_0", "optimizer.step", "up.bias.exp_avg", "up.bias.exp_avg_sq"} <= leaves
    assert "up.bias.step" not in leaves  # but after the step it is claimed of each parameter:
    assert "new.up.bias.step" in captured.shapes and "grad.up.bias" not in captured.shapes
    assert captured.states is not None and set(captured.states) == {"scale", "up.weight", "up.bias"}
    assert captured.states["scale"]["step"] == "scale.step"  # a parameter of one number: nobody can tell


def test_steps_of_the_optimizer_say_so() -> None:
    found = {dict(op.note).get("module") for op in ops(capture_model(single(MAKERS["adamw"])))}
    assert "AdamW" in found


def test_frozen_parameters_are_left_out() -> None:
    def make(parameters: Iterable[nn.Parameter]) -> Any:
        return optim.SGD(list(parameters)[:1], lr=0.1)

    captured = capture_model(single(make))
    assert captured.states is not None and list(captured.states) == ["scale"]


# --- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: optim.RAdam(p), "reads a value"),
        (lambda p: optim.Rprop(p), "Rprop reads a value"),
        (lambda p: optim.LBFGS(p), "closure"),
        (lambda p: 3, "an optimizer of type int"),
        (lambda p: optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1), "no parameter of the module"),
    ],
)
def test_optimizers_that_cannot_be_traced(make: Any, says: str) -> None:
    with pytest.raises(TensureError, match=says):
        capture_model(lambda: (Net(), inputs()), optimizer=make)


def refused(model: Any, parallel: Any, says: str) -> None:
    captured = capture_model(model)
    with pytest.raises(InputError, match=says):
        capture_parallel(model, parallel, {"dp": 2}, captured)


def with_optimizer(make: Any) -> Any:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(lambda x: net(x), optimizer=make(net))

    return parallel


def test_optimizers_on_one_side_only() -> None:
    refused(
        lambda: (Net(), inputs()),
        with_optimizer(lambda net: optim.SGD(net.parameters(), lr=0.1)),
        "an optimizer of the parallel step alone",
    )
    refused(single(MAKERS["sgd"]), lambda net, mesh: None, "without an optimizer")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda net: optim.SGD(net.parameters(), lr=0.1), "keeps nothing of"),
        (lambda net: optim.AdamW([nn.Parameter(torch.ones(7))]), "which part of the model"),
        (lambda net: optim.AdamW([nn.Parameter(net.up.weight * 2)]), "which part of the model"),
    ],
)
def test_an_optimizer_of_other_things(make: Any, says: str) -> None:
    refused(single(MAKERS["adamw"]), with_optimizer(make), says)


def test_what_torch_itself_refuses_is_said_with_its_line() -> None:
    """One list of DTensors and plain tensors, as torch refuses it on real machines."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        net.up.weight = nn.Parameter(distribute_tensor(net.up.weight, mesh["dp"], [Shard(0)]))
        optimizer = optim.SGD(net.parameters(), lr=0.1, foreach=True)
        return ParallelStep(lambda x: net(x), optimizer=optimizer)

    refused(single(MAKERS["sgd"]), parallel, "mixed torch.Tensor and DTensor")


def test_a_gradient_scale_is_refused() -> None:
    from tensure.capture._fused import FUSED as KERNELS

    one = torch.ones(())
    with pytest.raises(UnsupportedError, match="gradient scale"):
        KERNELS["aten::_fused_sgd_"](
            [], [], [], weight_decay=0, momentum=0, lr=0, dampening=0, nesterov=False, maximize=False,
            is_first_step=False, grad_scale=one,
        )  # fmt: skip


# --- roots that are squared -------------------------------------------------------------------------


def op(kind: str, out: str, *args: Any, **attrs: Any) -> Op:
    refs = tuple(Ref(Name(arg)) if isinstance(arg, str) else arg for arg in args)
    return Op(kind, refs, (Name(out),), tuple(sorted(attrs.items())))


NORMS = [
    op("mul", "xx_0", "x", "x"),
    op("sum", "s_0", "xx_0", dim=(0,)),
    op("sqrt", "n_0", "s_0"),
    op("abs", "m_0", "y"),
    op("sum", "s_1", "m_0", dim=(0,)),
    op("sqrt", "n_1", "s_1"),
    op("stack", "both_0", "n_0", "n_1"),
    op("pow", "squares_0", "both_0", 2.0),
    op("sum", "total_0", "squares_0", dim=(0,)),
]


def value(steps: list[Op], out: str) -> Array:
    from tensure.program import Entry, Program, Value

    leaves = {label: Value((4,), "f64", "value") for label in "xy"}
    entry = Entry((Name("x"), Name("y")), tuple(steps), (Name(out),))
    given = {label: np.random.default_rng(at).standard_normal(4) for at, label in enumerate("xy")}
    return evaluate_program(Program(values=leaves, entries={"run": entry}), given).outputs[out]


def test_squares_of_norms_are_their_sums() -> None:
    (made,) = unrooted([NORMS])
    assert np.allclose(value(made, "total_0"), value(NORMS, "total_0"), rtol=1e-14)
    steps = {str(step.outs[0]): step for step in made}
    assert steps["total_0"].op == "add_n" and [str(ref.name) for ref in steps["total_0"].reads()] == [
        "s_0",
        "s_1",
    ]


def test_roots_of_what_may_be_negative_stay() -> None:
    """(sqrt s)^2 is not s where s is negative."""
    signed = [op("sum", "s_0", "x", dim=(0,)), op("sqrt", "n_0", "s_0"), op("mul", "nn_0", "n_0", "n_0")]
    assert unrooted([signed]) == [signed]


def test_what_ranks_sum_up_is_looked_at_on_all_of_them() -> None:
    def rank(first: Op) -> list[Op]:
        met = op("all_reduce", "met_tp_0", "a_0", axes=("tp",), reduce="sum")
        return [first, met, op("sqrt", "n_0", "met_tp_0"), op("mul", "nn_0", "n_0", "n_0")]

    square, signed = rank(op("mul", "a_0", "x", "x")), rank(op("neg", "a_0", "x"))
    assert all(steps[-1].op == "copy" for steps in unrooted([square, square]))
    assert unrooted([square, signed]) == [square, signed]


# --- flat memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (1, 1, 5)])
def test_boxes_hold_the_elements_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for start in range(numbers.size + 1):
        for stop in range(start, numbers.size + 1):
            found = [
                numbers[tuple(slice(*run) for (run,) in part.dims)].reshape(-1)
                for part in boxes(shape, start, stop)
            ]
            flat = np.concatenate(found) if found else np.zeros(0, int)
            assert flat.tolist() == list(range(start, stop))
            assert len(found) <= max(1, 2 * len(shape) - 1)
