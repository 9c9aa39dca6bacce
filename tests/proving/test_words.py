"""What people are told of a wrong step: who calls what, which tensor of the model, which line and number."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.api import proof_page
from tensure.capture import ParallelStep, TrainingStep
from tensure.errors import InputError, UnsupportedError
from tensure.program import fraction_words

ROWS = {"dp": Shard(0)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(6, 4), torch.randn(6, 4))


def replicas(reduce: Callable[[int, int, Tensor, Any], None], backward: bool = True) -> Any:
    """Data parallelism where `reduce` is told rank, number of the gradient, gradient and group."""

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        rank, group = mesh.get_local_rank("dp"), mesh.get_group("dp")

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            for at, weight in enumerate(net.parameters() if backward else ()):
                reduce(rank, at, weight.grad, group)
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=({"dp": Partial("avg")},))

    return parallel


def right(rank: int, at: int, grad: Tensor, group: Any) -> None:
    dist.all_reduce(grad, group=group)
    grad /= 3


def one_skips(rank: int, at: int, grad: Tensor, group: Any) -> None:
    if (rank, at) != (1, 2):
        right(rank, at, grad, group)


def one_skips_the_last(rank: int, at: int, grad: Tensor, group: Any) -> None:
    if (rank, at) != (1, 3):
        right(rank, at, grad, group)


def another_kind(rank: int, at: int, grad: Tensor, group: Any) -> None:
    if (rank, at) != (1, 2):
        right(rank, at, grad, group)
    else:
        dist.all_gather([torch.empty_like(grad) for _ in range(3)], grad, group=group)


def another_shape(rank: int, at: int, grad: Tensor, group: Any) -> None:
    if (rank, at) != (1, 2):
        right(rank, at, grad, group)
    else:
        dist.all_reduce(grad[:1], group=group)


def one_more(rank: int, at: int, grad: Tensor, group: Any) -> None:
    right(rank, at, grad, group)
    if (rank, at) == (1, 3):
        dist.all_reduce(torch.zeros(3), group=group)


AT = r" at test_words\.py:\d+"
SUM = r"all_reduce \(sum\)"
MISMATCHES: dict[Callable[..., None], str] = {
    one_skips: rf"over dp: dp0, dp2: {SUM} of f32\[4,6\]{AT}; dp1: {SUM} of f32\[4\]{AT}; "
    "of calls over dp there are 3 on dp1, 4 on dp0, dp2: who makes more waits for ever",
    one_skips_the_last: rf"over dp: dp0, dp2: {SUM} of f32\[4\]{AT}; dp1: no such call; of calls",
    another_kind: rf"dp0, dp2: {SUM}{AT}; dp1: all_gather along dim 0{AT}; they wait for one another",
    another_shape: rf"dp0, dp2: {SUM} of f32\[4,6\]{AT}; dp1: {SUM} of f32\[1,6\]{AT}",
    one_more: rf"dp0, dp2: no such call; dp1: {SUM} of f32\[3\]{AT}; .* 4 on dp0, dp2, 5 on dp1",
}


@pytest.mark.parametrize("fault", MISMATCHES, ids=lambda fault: fault.__name__)
def test_calls_that_do_not_match_are_told_as_a_hang(fault: Callable[..., None]) -> None:
    result = tensure.prove(replicas(fault), model, mesh={"dp": 3}, replay=False)
    verdict = result.proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None, verdict
    found = verdict.counterexample.step
    assert "ranks do not make the same calls" in found and "(a hang)" in found
    assert re.search(MISMATCHES[fault], found), found
    # What was not reached is not called derived.
    assert "derived" not in {item.status for item in result.tensors}
    assert any("end of the step" in item.why for item in result.tensors)


def test_calls_that_match_are_proved() -> None:
    assert tensure.prove(replicas(right), model, mesh={"dp": 3}).proof.values.status == "proved"


# --- one waits for another ----------------------------------------------------------------------------


def test_two_orders_on_two_axes_are_told_with_where_ranks_wait() -> None:
    def parallel(net: Any, mesh: Any) -> Any:
        def step(x: Tensor, y: Tensor) -> Tensor:
            axes = ["a", "b"] if mesh.get_rank() in (0, 3) else ["b", "a"]
            loss: Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach().clone()
            for axis in axes:
                dist.all_reduce(total, group=mesh.get_group(axis))
            return total / 4

        return step

    verdict = tensure.prove(parallel, model, mesh={"a": 2, "b": 2}, replay=False).proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None
    found = verdict.counterexample.step
    assert "deadlock" in found and "waits at all_reduce (sum)" in found and "before that call" in found, found


# --- zeros that one rank adds --------------------------------------------------------------------------


def stages(wrong: bool) -> Any:
    """The loss is a sum over stages, of which all but the last add zeros."""

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        first, group = mesh.get_local_rank("pp") == 0, mesh.get_group("pp")

        def step(x: Tensor, y: Tensor) -> Tensor:
            total = torch.zeros(())
            if first:
                sent = torch.relu(net.up(x))
                dist.send(sent.detach(), 1, group=group)
                grad = torch.empty_like(sent)
                dist.recv(grad, 1, group=group)
                sent.backward(grad)  # type: ignore[no-untyped-call]
                return total + 0
            got = torch.empty(6, 6)
            dist.recv(got, 0, group=group)
            got.requires_grad_()
            loss = (net.down(got) - (y.exp() if wrong else y)).pow(2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            dist.send(got.grad, 0, group=group)
            return total + loss.detach()

        part = nn.ModuleDict({"up": net.up} if first else {"down": net.down})
        return ParallelStep(step, module=part, outputs=({"pp": Partial()},))

    return parallel


def test_zeros_of_another_stage_are_not_what_went_astray() -> None:
    assert tensure.prove(stages(False), model, mesh={"pp": 2}).proof.values.status == "proved"
    result = tensure.prove(stages(True), model, mesh={"pp": 2}, replay=False)
    example = result.proof.values.counterexample
    assert example is not None and result.proof.values.status == "refuted"
    assert re.search(r"on pp1: (sub|exp)_\d+ = ", example.step) and "full(" not in example.step, example
    (loss,) = [item for item in result.tensors if item.name == "loss"]
    assert re.match(r"(sub|exp)_\d+ = ", loss.step) and "test_words.py" in loss.source, loss


# --- what is moved after a collective ---------------------------------------------------------------------


def test_a_step_without_a_line_has_that_of_the_collective_it_reads() -> None:
    """Parameters are views of one buffer, into which pieces are gathered, rolled by one rank."""

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        group, rank, count = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        weights, at = list(net.parameters()), 0
        size = sum(weight.numel() for weight in weights)
        flat = torch.zeros(size + -size % count)
        for weight in weights:
            flat[at : at + weight.numel()].copy_(weight.detach().view(-1))
            weight.data = flat[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
        own = nn.Parameter(flat.chunk(count)[rank].clone())
        optimizer = torch.optim.SGD([own], lr=0.1)

        def step(x: Tensor, y: Tensor) -> Tensor:
            for weight in weights:
                weight.grad = None
            loss: Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            grad = torch.zeros_like(flat)
            grad[:size].copy_(torch.cat([weight.grad.view(-1) for weight in weights]))
            own.grad = grad.chunk(count)[rank].clone()
            optimizer.step()
            with torch.no_grad():
                pieces = list(flat.chunk(count))
                dist.all_gather(pieces[1:] + pieces[:1], own.detach(), group=group)
            return loss

        return ParallelStep(step, optimizer=optimizer)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    result = tensure.prove(parallel, model, mesh={"dp": 2}, optimizer=sgd)
    example = result.proof.values.counterexample
    assert result.proof.values.status == "refuted" and example is not None
    lines = Path(__file__).read_text().splitlines()
    for source in (example.source, *(item.source for item in result.tensors if item.step)):
        assert "dist.all_gather(pieces" in lines[int(source.rpartition(":")[2]) - 1], source


# --- values by their names ------------------------------------------------------------------------------


def scaled(rank: int, at: int, grad: Tensor, group: Any) -> None:
    dist.all_reduce(grad, group=group)
    grad *= 0.123456789 / 3


def test_outputs_and_inner_values_are_told_by_name_module_and_line() -> None:
    result = tensure.prove(replicas(scaled), model, mesh={"dp": 3}, replay=False)
    by_name = {item.name: item for item in result.tensors}
    assert re.search(r"^it comes out as \S+ \* grad\.up\.weight$", by_name["grad.up.weight"].why), by_name


class Inner(nn.Module):
    """Its loss is made of a number that is no output."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).sum().exp()


def test_an_inner_value_is_told_with_its_module_and_line() -> None:
    def parallel(net: Any, mesh: Any) -> Any:
        def step(x: Tensor) -> Tensor:
            net(x).backward()
            return net.up(x).sum()  # type: ignore[no-any-return]

        return step

    verdict = tensure.prove(parallel, lambda: (Inner(), (torch.randn(6, 4),)), mesh={"dp": 1}, replay=False)
    (loss,) = [item for item in verdict.tensors if item.name == "loss"]
    assert re.search(r"^it comes out as sum_\d+ \(test_words\.py:\d+\)$", loss.why), loss


def test_fractions_with_many_digits_are_rounded_for_people_alone() -> None:
    assert fraction_words(Fraction(8, 9)) == "8/9" and fraction_words(Fraction(1 << 40)) == str(1 << 40)
    assert fraction_words(Fraction(-999_998, 7)) == "-999998/7"
    assert fraction_words(Fraction(3088182601625491, 3431314001806101)) == "~0.9"
    assert fraction_words(Fraction(-1, 3 * 10**400)) == "~-3.33333e-401"
    result = tensure.prove(replicas(scaled), model, mesh={"dp": 3}, replay=False)
    for item in result.tensors:
        assert not re.search(r"\d{7}", item.why), item
    assert {item.name: item.factor for item in result.tensors} == {
        "loss": "",
        **dict.fromkeys(
            ("grad.up.weight", "grad.up.bias", "grad.down.weight", "grad.down.bias"), "~0.123457"
        ),
    }
    assert "~0.123457 * grad.up.weight" in next(
        item.why for item in result.tensors if "up.weight" in item.name
    )


# --- steps that lack something --------------------------------------------------------------------------


def test_a_step_without_any_gradient_is_an_error_of_its_own() -> None:
    with pytest.raises(InputError, match=r"left no gradients on any rank.*calls backward\(\)"):
        tensure.prove(replicas(right, backward=False), model, mesh={"dp": 3})


def test_one_gradient_too_few_is_refuted_as_before() -> None:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        def step(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            net.up.bias.grad = None
            return loss

        return ParallelStep(step)

    assert tensure.prove(parallel, model, mesh={"dp": 2}).proof.values.status == "refuted"


def test_a_step_that_rightly_has_no_gradients_is_proved() -> None:
    """An optimizer's step that clears them at its end; and a model that nobody trains."""

    def stepping(net: Any, mesh: Any) -> ParallelStep:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return ParallelStep(step, optimizer=optimizer)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    assert tensure.prove(stepping, model, mesh={"dp": 2}, optimizer=sgd).proof.values.status == "proved"

    def frozen() -> TrainingStep:
        net, inputs = model()
        net.requires_grad_(False)
        return TrainingStep(net, inputs, net)

    assert (
        tensure.prove(lambda net, mesh: net.forward, frozen, mesh={"dp": 2}).proof.values.status == "proved"
    )


def test_an_optimizer_that_reads_is_named_with_its_line() -> None:
    with pytest.raises(UnsupportedError, match=r"^torch/optim/radam\.py:\d+: RAdam reads a value \(item\)"):
        tensure.prove(replicas(right), model, mesh={"dp": 3}, optimizer=lambda p: torch.optim.RAdam(p))
    with pytest.raises(
        UnsupportedError, match=r"^torch/optim/_adafactor\.py:\d+: Adafactor reads a value in its"
    ):
        tensure.prove(replicas(right), model, mesh={"dp": 3}, optimizer=lambda p: torch.optim.Adafactor(p))


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_explains_the_verdicts_that_are_on_it() -> None:
    proved = proof_page(tensure.prove(replicas(right), model, mesh={"dp": 3}))
    assert "proved: derived by exact rules" in proved and "shows the difference" not in proved

    def one_wrong(rank: int, at: int, grad: Tensor, group: Any) -> None:
        right(rank, at, grad, group)
        if at == 1:
            grad *= 2

    refuted = proof_page(tensure.prove(replicas(one_wrong), model, mesh={"dp": 3}, replay=False))
    assert "refuted: a replay on drawn numbers" in refuted and "derived: every rule held" in refuted
    assert "proved: derived by exact rules" not in refuted and "unknown:" not in refuted
    hangs = proof_page(tensure.prove(replicas(one_skips), model, mesh={"dp": 3}, replay=False))
    assert "unknown: no rule says so; that it is wrong too is not shown" in hangs
    assert "refuted: a replay" not in hangs
