"""Half floats as they are traced: norms, factors of reductions, leaves in another dtype; and run for real."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tensure.bundle import collect, evaluate_plan
from tensure.capture import ParallelStep, capture_model, capture_parallel, replay_step
from tensure.errors import UnsupportedError
from tensure.program import evaluate_program, numpy_dtype

HALF = torch.bfloat16
ROWS = {"dp": Shard(0)}
MEAN = {"dp": Partial("avg")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(torch.relu(self.up(self.norm(x)))).float() - y).pow(2).mean()


def model(dtype: torch.dtype | None = None, norm: torch.dtype | None = None) -> Any:
    def made() -> Any:
        net = Net().to(dtype)
        net.norm.to(norm)
        return net, (torch.randn(4, 4, dtype=dtype), torch.randn(4, 4))

    return made


@pytest.mark.parametrize("norm", [HALF, torch.float32], ids=["half", "wide"])
def test_a_norm_of_halves_gives_what_torch_does(norm: torch.dtype) -> None:
    """Weights in bfloat16, or left in float32: the program computes torch's loss and gradients."""
    torch.manual_seed(3)
    net, inputs = model(HALF, norm)()
    program = capture_model(model(HALF, norm)).program
    loss = net(*inputs)
    loss.backward()
    given: dict[str, Any] = {
        label: item.detach().float().numpy().astype(numpy_dtype(program.values[label].dtype))
        for label, item in [*net.named_parameters(), *((f"input_{at}", x) for at, x in enumerate(inputs))]
    }
    found = evaluate_program(program, given).outputs
    expected = {f"grad.{label}": item.grad for label, item in net.named_parameters()} | {"loss": loss}
    for label, want in expected.items():
        one, other = np.asarray(found[label], np.float64), want.detach().double().numpy()
        assert np.abs(one - other).max() <= 0.03 * np.abs(other).max(), label
        assert numpy_dtype({torch.float32: "f32", HALF: "bf16"}[want.dtype]) == found[label].dtype


def summed(factor: Any, reduce: Any = dist.all_reduce) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        group = mesh.get_group("dp")

        def step(*inputs: Tensor) -> Tensor:
            loss: Tensor = net(*inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            for weight in net.parameters():
                reduce(weight.grad, op=dist.ReduceOp.PREMUL_SUM(factor), group=group)
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=(MEAN,))

    return parallel


@pytest.mark.parametrize(("factor", "is_right"), [(0.5, True), (0.25, False)])
def test_a_reduction_that_multiplies_first(factor: float, is_right: bool) -> None:
    captured = capture_model(model())
    plan = capture_parallel(model(), summed(factor), {"dp": 2}, captured)
    rng = np.random.default_rng(1)
    given: dict[str, Any] = {
        label: rng.standard_normal(value.shape).astype("f4")  # type: ignore[arg-type]
        for label, value in captured.program.values.items()
    }
    want = evaluate_program(captured.program, given).outputs
    found = collect(
        evaluate_plan(plan, captured.program, given), captured.program, list(captured.program.entry().outputs)
    )
    same = {label: np.allclose(found[label], value, atol=1e-5) for label, value in want.items()}
    assert same.pop("loss") and all(good == is_right for good in same.values()), same


def test_a_factor_that_is_not_seen_is_refused() -> None:
    """A tensor is one, and a group that is called without torch's function."""

    def directly(tensor: Tensor, op: Any, group: Any) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = op
        group.allreduce([tensor], options)

    for parallel in (summed(torch.tensor(0.5)), summed(0.5, directly)):
        with pytest.raises(UnsupportedError, match="premul_sum with a factor that is not seen"):
            capture_parallel(model(), parallel, {"dp": 2}, capture_model(model()))


def test_parameters_in_another_dtype_begin_with_a_cast() -> None:
    """The leaf is the model's, as it is declared there; what the rank has of it is rounded."""

    def parallel(net: Any, mesh: Any) -> None:
        net.to(HALF)
        parallelize_module(net, mesh["dp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})

    def made() -> Any:
        net, (_, y) = model()()
        return net, (torch.randn(4, 4, dtype=HALF), y)

    captured = capture_model(lambda: (Net(), (torch.randn(4, 4), torch.randn(4, 4))))
    plan = capture_parallel(made, parallel, {"dp": 2}, captured)
    casts = [
        str(step.args[0].name)  # type: ignore[union-attr]
        for track in plan.tracks.values()
        for step in track.bodies["step"]
        if step.op == "_to_copy" and step.attr("dtype") == "bf16"  # type: ignore[union-attr]
    ]
    assert {"up.weight", "up.bias", "down.weight"} <= set(casts)


def sharded(factor: float) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        policy = MixedPrecisionPolicy(param_dtype=HALF, reduce_dtype=torch.float32)
        fully_shard(net, mesh=mesh["dp"], mp_policy=policy)
        net.set_gradient_divide_factor(factor)

        def step(*inputs: Tensor) -> Tensor:
            loss: Tensor = net(*inputs)
            (loss * 2).backward()  # type: ignore[no-untyped-call]
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=(MEAN,))

    return parallel


@pytest.mark.parametrize(("factor", "is_right"), [(4.0, True), (2.0, False)])
def test_a_replay_knows_rounding_from_faults(factor: float, is_right: bool) -> None:
    captured = capture_model(model())
    plan = capture_parallel(model(), sharded(factor), {"dp": 2}, captured)
    found = replay_step(
        model(), sharded(factor), plan, captured.program, ways=["threads"], is_proved=is_right
    )
    assert found.status == ("unclear" if is_right else "differs"), found
