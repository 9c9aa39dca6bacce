"""Micro-batches as a mesh axis: as an unrolled loop, and refused where they see each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep, RankClass, capture_model, capture_parallel
from tensure.errors import InputError
from tensure.proving import prove_plan

from .steps import captured_plan, wrong_claims
from .test_classes import both_ways, layers
from .whole_models import block

DIM, COUNT = 4, 4
CUT = {"dp": Shard(0), "mb": Shard(0)}
LOSS = {"dp": Partial("avg"), "mb": Partial()}


def reduced(net: nn.Module, mesh: DeviceMesh) -> None:
    for weight in net.parameters():
        dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
        weight.grad /= mesh.size()  # type: ignore[operator]


def accumulated(once: Callable[..., Any] | None = None, after: Callable[..., Any] = reduced) -> Any:
    """Data parallelism with `COUNT` micro-batches; `once` is what one of them does besides."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def microbatch(x: Tensor, y: Tensor, index: int) -> Tensor:
            loss: Tensor = net(x, y) / COUNT
            loss.backward()
            if once is not None:
                once(net, index)
            return loss.detach()

        return ParallelStep(
            lambda: after(net, mesh),
            microbatch=microbatch,
            microbatches=COUNT,
            inputs=[CUT, CUT],
            outputs=[LOSS],
        )

    return parallel


def looped(net: Any, mesh: DeviceMesh) -> ParallelStep:
    """The same as people write it without."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(())
        for xs, ys in zip(x.chunk(COUNT), y.chunk(COUNT), strict=True):
            loss = net(xs, ys) / COUNT
            loss.backward()
            total += loss.detach()
        reduced(net, mesh)
        return total

    return ParallelStep(step, inputs=[{"dp": Shard(0)}] * 2, outputs=[{"dp": Partial("avg")}])


def test_an_axis_and_a_loop_are_proved_alike() -> None:
    model = layers(2, rows=16)
    for parallel in (accumulated(), looped):
        assert tensure.prove(parallel, model, mesh={"dp": 2}).proof.values.status == "proved"


def test_the_axis_is_in_the_plan() -> None:
    captured, plan, (found,) = both_ways(layers(2, rows=16), accumulated(), {"dp": 2})
    assert dict(plan.mesh) == {"dp": 2, "mb": COUNT} and plan.num_ranks() == 8
    assert found.reason == "no coordinate is read along dp, mb"
    assert wrong_claims(captured, plan) == []
    over = [
        dict(step.attrs)["axes"]
        for step in plan.tracks["ranks"].bodies["step"]
        if "met_mb" in str(step.outs)  # type: ignore[union-attr]
    ]
    assert over == [("mb",)] * 4, "one for each gradient"


def test_one_micro_batch_is_a_step() -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def microbatch(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()
            return loss.detach()

        return ParallelStep(
            lambda: reduced(net, mesh), microbatch=microbatch, inputs=[CUT, CUT], outputs=[LOSS]
        )

    captured, plan = captured_plan(layers(1, rows=16), parallel, {"dp": 2})
    assert prove_plan(plan, captured.program).proof.values.status == "proved"


def test_a_micro_batch_that_does_something_else_is_a_class_of_its_own() -> None:
    """It doubles what it makes; in place it would double what was accumulated before, too."""

    def once(net: Any, index: int) -> None:
        if index == 2:
            net.layers[0].bias.grad.mul_(2)

    def fresh(net: Any, mesh: DeviceMesh) -> ParallelStep:
        found = accumulated()(net, mesh)

        def microbatch(x: Tensor, y: Tensor, index: int) -> Tensor:
            loss: Tensor = net(x, y) / COUNT
            (loss * 2 if index == 2 else loss).backward()
            return loss.detach()

        return ParallelStep(
            found.step, microbatch=microbatch, microbatches=COUNT, inputs=[CUT, CUT], outputs=[LOSS]
        )

    captured, plan, told = both_ways(layers(1, rows=16), fresh, {"dp": 2})
    assert [found.box for found in told] == [((0, 2), (0, 2)), ((0, 2), (2, 3)), ((0, 2), (3, 4))]
    assert prove_plan(plan, captured.program).proof.values.status == "refuted"
    refused(accumulated(once), "added to the gradient")


def test_a_rank_and_a_micro_batch_together() -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def microbatch(x: Tensor, y: Tensor, index: int) -> Tensor:
            loss: Tensor = net(x, y) / COUNT
            (loss * 2 if index == 2 and dist.get_rank() == 3 else loss).backward()
            return loss.detach()

        return ParallelStep(
            lambda: reduced(net, mesh), microbatch=microbatch, microbatches=COUNT,
            inputs=[CUT, CUT], outputs=[LOSS],
        )  # fmt: skip

    captured, told = capture_model(large), list[RankClass]()
    plan = capture_parallel(large, parallel, {"dp": 512}, captured, told=told.extend)
    assert plan.num_ranks() == 512 * COUNT
    assert ((3, 4), (2, 3)) in [found.box for found in told]
    both_ways(layers(1, rows=16), parallel, {"dp": 4})


def large() -> Any:
    return layers(1, rows=2048 * COUNT, dim=8)()


# --- what a second micro-batch shows ------------------------------------------------------------------


def refused(parallel: Any, says: str, model: Any = None) -> InputError:
    model = model or layers(1, rows=16)
    with pytest.raises(InputError, match=says) as caught:
        capture_parallel(model, parallel, {"dp": 2}, capture_model(model))
    return caught.value


def test_a_counter_in_a_closure_is_seen() -> None:
    count = 0

    def once(net: Any, index: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            net.layers[0].bias.grad.mul_(2)

    error = refused(accumulated(once), "count is")
    assert "Loop over micro-batches in step()" in str(error)


@pytest.mark.parametrize("where", ["attribute", "list", "iterator", "default", "global", "class"])
def test_a_counter_elsewhere_is_seen(where: str) -> None:
    held: list[int] = []
    numbers = itertools.count()

    class Counter:
        of_all = 0

    def once(net: Any, index: int, table: dict[str, int] = {"n": 0}) -> None:  # noqa: B006
        match where:
            case "attribute":
                net.count = getattr(net, "count", 0) + 1
            case "list":
                held.append(1)
            case "iterator":
                next(numbers)
            case "default":
                table["n"] += 1
            case "global":
                globals()["COUNTED"] = COUNTED + 1
            case _:
                Counter.of_all += 1

    refused(accumulated(once), "a second micro-batch is not as the first")


COUNTED = 0


def test_an_optimizer_of_its_own_is_seen() -> None:
    def once(net: Any, index: int) -> None:
        with torch.no_grad():
            net.layers[0].bias -= 0.1 * net.layers[0].bias.grad

    refused(accumulated(once), "layers.0.bias is written")


def test_a_gradient_that_is_replaced_is_seen() -> None:
    def once(net: Any, index: int) -> None:
        net.layers[0].bias.grad = net.layers[0].bias.grad * 1

    refused(accumulated(once), "added to the gradient of layers.0.bias")


def test_a_reduction_of_what_was_accumulated_is_seen() -> None:
    def once(net: Any, index: int) -> None:
        dist.all_reduce(net.layers[0].bias.grad)

    refused(accumulated(once), "other ranks")


def test_gradients_that_are_there_once_are_seen() -> None:
    first = True

    def only_once(net: Any, index: int) -> None:
        nonlocal first
        if not first:
            net.layers[0].bias.grad = None
        first = False

    refused(accumulated(only_once), "a second micro-batch is not as the first")


def test_a_step_that_reads_one_micro_batch_is_refused() -> None:
    kept: list[Tensor] = [torch.zeros(())]

    def once(net: Any, index: int) -> None:
        kept[0] = net.layers[0].bias.grad * 1

    def after(net: Any, mesh: DeviceMesh) -> None:
        reduced(net, mesh)
        net.layers[0].bias.grad += 0 * kept[0]

    refused(accumulated(once, after), "reads what one of them made")


def test_numbers_that_make_no_sense() -> None:
    def parallel(count: Any, **given: Any) -> Any:
        return lambda net, mesh: ParallelStep(lambda: None, microbatches=count, **given)

    refused(parallel(2), "microbatches=2 of a parallel step without")
    refused(parallel(0, microbatch=lambda x, y: x), "microbatches=0")
    with pytest.raises(InputError, match="axis 'mb'"):
        capture_parallel(layers(), parallel(2, microbatch=lambda x, y: x), {"mb": 2}, capture_model(layers()))


def test_ranks_with_other_numbers_of_micro_batches() -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        given = accumulated()(net, mesh)
        count = 4 if mesh.get_local_rank("dp") == 0 else 2
        return ParallelStep(
            given.step, microbatch=given.microbatch, microbatches=count, inputs=[CUT, CUT], outputs=[LOSS]
        )

    refused(parallel, "2 micro-batches on rank")
    captured = capture_model(layers(1, rows=16))
    with pytest.raises(InputError, match="2 micro-batches on rank 1"):
        capture_parallel(layers(1, rows=16), parallel, {"dp": 2}, captured, classes=True)


# --- with other ways of being parallel ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_with_fsdp() -> None:
    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        for part in (module.attention, module.mlp):
            fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)

        def microbatch(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = module(x, y) / 2
            loss.backward()
            return loss

        return ParallelStep(
            lambda: None, microbatch=microbatch, microbatches=2, inputs=[CUT, CUT], outputs=[LOSS]
        )

    captured, plan, _ = both_ways(block, parallel, {"dp": 2})
    assert wrong_claims(captured, plan) == []


def test_with_a_pipeline() -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        stage, count, group = mesh.get_local_rank("pp"), mesh.size(), mesh.get_group("pp")
        layer = net.layers[stage]

        def microbatch(x: Tensor, y: Tensor) -> Tensor:
            held, total = x, torch.zeros(())
            if stage > 0:
                held = torch.empty(x.shape)
                dist.recv(held, group_src=stage - 1, group=group)
                held.requires_grad_()
            made = torch.tanh(layer(held))
            if stage == count - 1:
                loss = F.mse_loss(made, y) / COUNT
                loss.backward()
                total = loss.detach()
            else:
                dist.send(made.detach(), group_dst=stage + 1, group=group)
                grad = torch.empty_like(made)
                dist.recv(grad, group_src=stage + 1, group=group)
                made.backward(grad)
            if stage > 0:
                assert held.grad is not None
                dist.send(held.grad, group_dst=stage - 1, group=group)
            return total

        rows = {"mb": Shard(0)}
        return ParallelStep(
            lambda: None, microbatch=microbatch, microbatches=COUNT,
            inputs=[rows, rows], outputs=[{"pp": Partial(), "mb": Partial()}],
        )  # fmt: skip

    captured, plan, told = both_ways(layers(3, rows=8), parallel, {"pp": 3})
    assert list(plan.tracks) == ["pp0", "pp1", "pp2"]
    assert all("no coordinate is read along mb" in found.reason for found in told)
    assert prove_plan(plan, captured.program).proof.values.status == "proved"


def test_the_model_is_the_whole_batch() -> None:
    """A loss that is not divided by the number of micro-batches is not the mean over all."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def microbatch(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()
            return loss.detach()

        return ParallelStep(
            lambda: reduced(net, mesh), microbatch=microbatch, microbatches=COUNT,
            inputs=[CUT, CUT], outputs=[LOSS],
        )  # fmt: skip

    captured, plan = captured_plan(layers(1, rows=16), parallel, {"dp": 2})
    assert prove_plan(plan, captured.program).proof.values.status == "refuted"


def test_few_ranks_with_many_micro_batches_are_classes() -> None:
    """8 ranks of 64 micro-batches are 512 processes, which are not traced one by one."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def microbatch(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y) / 64
            loss.backward()
            return loss.detach()

        return ParallelStep(
            lambda: reduced(net, mesh), microbatch=microbatch, microbatches=64,
            inputs=[CUT, CUT], outputs=[LOSS],
        )  # fmt: skip

    model, told = layers(1, rows=1024), list[RankClass]()
    captured = capture_model(model)
    plan = capture_parallel(model, parallel, {"dp": 8}, captured, told=told.extend)
    assert plan.num_ranks() == 512 and [found.box for found in told] == [((0, 8), (0, 64))]
    assert prove_plan(plan, captured.program).proof.values.status == "proved"
