"""What a parallel function may hand back, and what it is told where its tensors' places are not known."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tensure.bundle import Plan, Rank, evaluate_plan
from tensure.capture import Captured, ParallelStep, capture_model, capture_parallel
from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.program import Name, Op
from tensure.proving import prove_plan

from .steps import captured_plan, drawn, wrong_claims
from .whole_models import DIM, Net, backward, net


def refused(parallel: Any, says: str, kind: type[TensureError] = InputError) -> TensureError:
    """The error of a parallel function on two ranks, which says what and what would do."""
    captured = capture_model(net)
    with pytest.raises(kind, match=says) as caught:
        capture_parallel(net, parallel, {"tp": 2}, captured)
    assert caught.value.wanted or "raises" in str(caught.value)
    return caught.value


# --- what is handed back ----------------------------------------------------------------------------


def test_nothing_the_module_a_step_and_a_record_are_the_same() -> None:
    def nothing(module: nn.Module, mesh: DeviceMesh) -> None:
        pass

    def step(module: nn.Module, mesh: DeviceMesh) -> Callable[..., Tensor]:
        return lambda x, y: backward(module, x, y)

    def record(module: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(lambda x, y: backward(module, x, y), module=module)

    def itself(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        return module

    captured = capture_model(net)
    steps = []
    for parallel in (nothing, itself, step, record):
        plan = capture_parallel(net, parallel, {"tp": 2}, captured)
        assert wrong_claims(captured, plan) == []
        (track,) = plan.tracks.values()
        steps.append(
            [(item.op, item.args, item.outs) for item in track.bodies["step"] if isinstance(item, Op)]
        )
    assert steps[0] == steps[1] == steps[2] == steps[3]


def test_a_module_is_returned_around_the_one_that_was_given() -> None:
    """Gradients of the returned one are meant, under their names on the single device."""

    def wrapped(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        return nn.parallel.DistributedDataParallel(module, process_group=mesh.get_group("dp"))

    captured, plan = captured_plan(net, wrapped, {"dp": 2})
    assert wrong_claims(captured, plan) == []
    claimed = {local for track in plan.tracks.values() for local in track.locals}
    assert {label for label in captured.shapes if label.startswith("grad.")} <= claimed


@pytest.mark.parametrize("found", [3, "step", (1, 2), [], nn.Parameter(torch.ones(2))])
def test_a_parallel_function_that_returns_something_else(found: Any) -> None:
    refused(lambda module, mesh: found, "the parallel function returns")


@pytest.mark.parametrize("found", [None, 1.0, (), (1.0,), "loss"])
def test_a_step_that_returns_no_tensors(found: Any) -> None:
    refused(lambda module, mesh: lambda x, y: found, "returns no tensors")


def test_a_step_that_returns_more_than_the_module() -> None:
    error = refused(lambda module, mesh: lambda x, y: (module(x, y), x), "returns 2 tensors")
    assert "loss" in str(error.wanted)


def test_a_step_without_backward_leaves_gradients_unclaimed() -> None:
    """It is traced; no local claims a gradient, so nothing is proved of those."""
    captured, plan = captured_plan(net, lambda module, mesh: lambda x, y: module(x, y).detach(), {"tp": 2})
    claimed = {local for track in plan.tracks.values() for local in track.locals}
    assert "loss" in claimed and not any(local.startswith("grad.") for local in claimed)
    assert prove_plan(plan, captured.program).proof.values.status != "proved"


# --- places -----------------------------------------------------------------------------------------


def test_a_parameter_that_nobody_placed_is_named() -> None:
    """It was made elsewhere, so nobody saw which part it is."""
    elsewhere = Net()
    elsewhere.up.weight = nn.Parameter(torch.zeros(DIM, DIM))

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(lambda x, y: backward(elsewhere, x, y), module=elsewhere)

    error = refused(parallel, "up.weight")
    assert "ParallelStep(parameters=" in str(error)


def test_a_module_made_elsewhere_is_taken_to_be_whole() -> None:
    elsewhere = Net()

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        elsewhere.zero_grad()
        return ParallelStep(lambda x, y: backward(elsewhere, x, y), module=elsewhere)

    captured, plan = captured_plan(net, parallel, {"tp": 2})
    assert wrong_claims(captured, plan) == []


def test_a_parameter_set_to_something_else_is_seen() -> None:
    """Weights that are no part of the model's are what they were set to."""

    def parallel(module: Any, mesh: DeviceMesh) -> None:
        module.up.weight = nn.Parameter(module.up.weight * 2)

    wrong = wrong_claims(*captured_plan(net, parallel, {"tp": 2}))
    assert any(item.startswith("loss") for item in wrong)


def test_a_parameter_of_another_shape_than_placed() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        module.up.weight = nn.Parameter(torch.zeros(3, DIM))
        return ParallelStep(lambda x, y: backward(module, x, y), parameters={"up.weight": {"tp": Shard(0)}})

    refused(parallel, "up.weight")


def test_a_parameter_under_another_name_is_named() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        other = nn.Module()
        other.add_module("top", module)
        return ParallelStep(lambda x, y: backward(other.get_submodule("top"), x, y), module=other)

    error = refused(parallel, "top.up.weight")
    assert "up.weight" in str(error.wanted)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([{"dp": Shard(0)}], "axis 'dp'"),
        ([{"tp": Shard(5)}], "dim 5"),
        ([{"tp": Partial()}], "sum"),
        ([{"tp": Shard}], "placed"),
    ],
)
def test_inputs_placed_where_nothing_is(inputs: list[Any], says: str) -> None:
    error = refused(
        lambda module, mesh: ParallelStep(lambda x, y: backward(module, x, y), inputs=inputs), says
    )
    assert "input 0" in str(error)


def test_an_output_of_another_shape_than_placed() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(lambda x, y: backward(module, x, y).expand(2), outputs=[{}])

    error = refused(parallel, "loss of shape")
    assert "outputs=" in str(error)


def test_a_gradient_of_another_shape_than_placed() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(lambda x, y: backward(module, x, y), gradients={"up.weight": {"tp": Shard(0)}})

    error = refused(parallel, "grad.up.weight of shape")
    assert "gradients=" in str(error)


def test_a_value_read_on_one_rank_names_its_line() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = backward(module, x, y)
            if dist.get_rank() == 1:
                print(loss.item())
            return loss

        return step

    error = refused(parallel, "reads a value", UnsupportedError)
    assert "test_parallel.py:" in str(error.place)


def test_what_the_step_itself_raises_names_its_line(caplog: pytest.LogCaptureFixture) -> None:
    """Shapes that do not fit, say; torch's own traceback of it is not printed."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    try:
        error = refused(
            lambda module, mesh: lambda x, y: module(x[:, 1:], y), "the step of rank 0 raises RuntimeError"
        )
    finally:
        log.removeHandler(caplog.handler)
    assert "whole_models.py:" in str(error.place)
    assert isinstance(error.__cause__, RuntimeError)
    assert not caplog.records


class Columns(nn.Module):
    """Layers made anew at their local size, as model-parallel libraries make them."""

    def __init__(self, size: int, group: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 2 * DIM // size), nn.Linear(2 * DIM // size, DIM)
        nn.init.trunc_normal_(self.up.weight, std=0.02)
        nn.init.normal_(self.down.weight)
        nn.init.zeros_(self.up.bias)
        self.group = group

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        made = F.linear(F.gelu(self.up(x)), self.down.weight)
        made = fc.all_reduce(made, "sum", self.group) if self.group is not None else made
        return F.mse_loss(made + self.down.bias, y)


@pytest.mark.parametrize("is_placed", [True, False])
def test_a_module_made_anew_at_its_local_size(is_placed: bool) -> None:
    """Its random numbers stand for the model's parameters, where these are placed."""
    columns, rows = {"tp": Shard(0)}, {"tp": Shard(1)}

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        local = Columns(2, mesh.get_group("tp"))

        def step(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                return local(x, y)  # type: ignore[no-any-return]

        parameters = {"up.weight": columns, "up.bias": columns, "down.weight": rows}
        return ParallelStep(step, module=local, parameters=parameters if is_placed else {})

    if is_placed:
        # up.bias was set to zeros, and is placed
        captured, plan = captured_plan(net, parallel, {"tp": 2})
        assert wrong_claims(captured, plan) == []
    else:
        refused(parallel, "up.weight")


def test_random_numbers_that_are_no_parameters_are_refused() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        noise = torch.randn(DIM)
        return lambda x, y: backward(module, x + noise, y)

    error = refused(parallel, "random numbers drawn by the parallel function", UnsupportedError)
    assert "test_parallel.py:" in str(error.place)


def test_dropout_that_the_model_does_not_have_shows() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        return lambda x, y: backward(module, torch.dropout(x, 0.1, True), y)

    assert "loss on ranks[0,0]" in wrong_claims(*captured_plan(net, parallel, {"dp": 2, "tp": 2}))


def test_a_second_mesh_needs_names() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> None:
        bare = init_device_mesh("cpu", (2,))
        module.up.weight = nn.Parameter(distribute_tensor(module.up.weight, bare, [Shard(0)]))

    refused(parallel, "mesh without names", UnsupportedError)


def test_a_second_mesh_of_the_same_axes() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> None:
        again = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
        parallelize_module(module, again, {"up": ColwiseParallel(), "down": RowwiseParallel()})

    assert wrong_claims(*captured_plan(net, parallel, {"dp": 2, "tp": 2})) == []


# --- who holds what ---------------------------------------------------------------------------------


def _weights(captured: Captured, plan: Plan, name: str) -> dict[int, Any]:
    """By rank: what stands under a name when drawn leaves are handed out."""
    run = evaluate_plan(plan, captured.program, drawn(captured.program))
    found: dict[Rank, Any] = {
        rank: values[Name(name)] for rank, values in run.made.items() if Name(name) in values
    }
    return {at: found[rank] for at, rank in enumerate(sorted(found, key=str))}


def test_every_rank_holds_its_own_slice() -> None:
    """Two ranks traced one after the other share no decision: rank 1 once cut the slice of rank 0."""

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        weight = distribute_tensor(module.up.weight, mesh, [Shard(0)])
        module.up.weight = nn.Parameter(weight)
        whole = distribute_tensor(module.down.weight, mesh, [Replicate()])
        local = whole.redistribute(placements=[Shard(1)]).to_local()

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x.sum(), module.up.weight.to_local() * 1, local * 1

        return ParallelStep(step, outputs=[{}, {"tp": Shard(0)}, {"tp": Shard(1)}])

    class Slices(Net):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            return x.sum() + 0 * self.up.bias.sum(), self.up.weight * 1, self.down.weight * 1

    def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Slices(), net()[1]

    for _ in range(2):  # and no decision of an earlier capture either
        captured, plan = captured_plan(model, parallel, {"tp": 4})
        assert wrong_claims(captured, plan) == []
    given = drawn(captured.program)
    for name, weight, dim in (("out_1", "up.weight", 0), ("out_2", "down.weight", 1)):
        held = _weights(captured, plan, name)
        assert len(held) == 4
        for at, part in held.items():
            assert np.allclose(part, np.split(given[weight], 4, axis=dim)[at]), (name, at)


def test_an_all_to_all_of_distributed_tensors() -> None:
    """Shard(0) to Shard(1) is one call, as accelerators do it, with its gradient."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            made = x * self.w
            return made.pow(2).mean(), made

    def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Moved(), (torch.randn(4, 8),)

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        module.w = nn.Parameter(distribute_tensor(module.w, mesh, [Shard(0)]))

        def step(x: Tensor) -> tuple[Any, Any]:
            there: Any = DTensor.from_local(x, mesh, [Shard(1)], run_check=False)
            made = module.w.redistribute(placements=[Shard(1)]) * there
            loss = made.pow(2).mean()
            loss.backward()
            return loss, made

        return ParallelStep(step, inputs=[{"tp": Shard(1)}])

    captured, plan = captured_plan(model, parallel, {"tp": 2})
    assert wrong_claims(captured, plan) == []
    (track,) = plan.tracks.values()
    ops = [step.op for step in track.bodies["step"] if isinstance(step, Op)]
    assert ops.count("all_to_all") == 2 and "all_gather" not in ops


def test_progress_is_told_for_each_rank() -> None:
    seen: list[tuple[int, int]] = []
    captured = capture_model(net)
    capture_parallel(
        net, lambda module, mesh: None, {"a": 2, "b": 2}, captured, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_same_is_traced_twice() -> None:
    """Names do not tell what else was traced in this process."""

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(
            lambda x, y: backward(module, x, y),
            inputs=[{"tp": Shard(0)}] * 2,
            outputs=[{"tp": Partial("avg")}],
            gradients={name: {"tp": Partial("avg")} for name, _ in module.named_parameters()},
        )

    one, other = (captured_plan(net, parallel, {"tp": 2}) for _ in range(2))
    assert one == other
    assert wrong_claims(*one) == []


# --- size -------------------------------------------------------------------------------------------

LARGE = """
    import resource
    import torch
    from torch import nn
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from tensure.capture import capture_model, capture_parallel

    DIM, INNER = 16384, 53248

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.RMSNorm(DIM)
            self.gate, self.up = nn.Linear(DIM, INNER, bias=False), nn.Linear(DIM, INNER, bias=False)
            self.down = nn.Linear(INNER, DIM, bias=False)

        def forward(self, x):
            y = self.norm(x)
            return (x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))).pow(2).mean()

    def model():
        return Mlp(), (torch.randn(1, 8192, DIM),)

    def parallel(net, mesh):
        plan = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(net, mesh, plan)

    capture_model(lambda: (nn.Linear(2, 1), (torch.ones(1, 2),)))  # what is loaded once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    captured = capture_model(model)
    plan = capture_parallel(model, parallel, {"tp": 8}, captured)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    (track,) = plan.tracks.values()
    assert captured.shapes["grad.gate.weight"] == (INNER, DIM)
    assert "grad.gate.weight" in track.locals
    print(grown)
"""


def test_a_block_of_real_size_takes_no_bytes() -> None:
    """Its weights alone would take 10 GB."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500, "megabytes"


def test_what_python_does_with_an_uncaught_error_is_as_before() -> None:
    """torch prints ranks before every line of a traceback from its first process group on."""
    hook = sys.excepthook
    capture_parallel(net, lambda module, mesh: None, {"tp": 2}, capture_model(net))
    assert sys.excepthook is hook
