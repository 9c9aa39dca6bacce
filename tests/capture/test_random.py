"""Random numbers in a step: which generator they come from, how far along, and like which tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.utils.checkpoint import checkpoint

from tensure.capture import ParallelStep, capture_model, capture_parallel
from tensure.errors import UnsupportedError
from tensure.program import Op, evaluate_program

Step = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """A product, then what is given, summed."""

    def __init__(self, then: Step) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8))
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return (self.then(x @ self.w) ** 2).sum()


def around(then: Step) -> Any:
    return lambda: (Around(then), (torch.randn(16, 4),))


def draws(steps: Any) -> list[dict[str, Any]]:
    """Of each draw: its attributes, and what it is like."""
    found = [step for step in steps if isinstance(step, Op) and step.op == "draw"]
    return [{**dict(step.attrs), "like": step.args[0] and str(step.args[0].name)} for step in found]


def of_model(then: Step) -> list[dict[str, Any]]:
    return draws(capture_model(around(then)).program.entry("step").body)


def of_ranks(parallel: Any, mesh: dict[str, int], then: Step = F.dropout) -> list[list[dict[str, Any]]]:
    model = around(then)
    plan = capture_parallel(model, parallel, mesh, capture_model(model), classes=False)
    return [draws(track.bodies["step"]) for track in plan.tracks.values()]


# --- one device -------------------------------------------------------------------------------------


LAWS: dict[str, tuple[Step, Callable[[Tensor, Tensor], Tensor]]] = {
    "dropout": (lambda y: F.dropout(y, 0.25), lambda y, u: y * (u < 0.75) / 0.75),
    "native dropout": (
        lambda y: torch.ops.aten.native_dropout(y, 0.25, True)[0],
        lambda y, u: y * (u < 0.75) / 0.75,
    ),
    "bernoulli": (lambda y: y * torch.bernoulli(torch.sigmoid(y)), lambda y, u: y * (u < torch.sigmoid(y))),
    "bernoulli of a number": (lambda y: y * torch.bernoulli(y.detach(), 0.3), lambda y, u: y * (u < 0.3)),
    "in place": (lambda y: y * torch.zeros_like(y).bernoulli_(0.3), lambda y, u: y * (u < 0.3)),
    "uniform": (lambda y: y + torch.rand_like(y), lambda y, u: y + u),
    "between": (lambda y: y + torch.empty_like(y).uniform_(-2, 3), lambda y, u: y + u * 5 - 2),
    "normal": (lambda y: y + torch.randn_like(y), lambda y, u: y + u),
    "moved": (lambda y: y + torch.empty_like(y).normal_(2, 3), lambda y, u: y + u * 3 + 2),
    "of a shape": (lambda y: y * torch.rand(8), lambda y, u: y * u),
    "attention": (
        lambda y: F.scaled_dot_product_attention(y, y, y, dropout_p=0.5),
        lambda y, u: (torch.softmax(y @ y.T / 8**0.5, -1) * (u < 0.5) / 0.5) @ y,
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_step_is_torchs_given_the_numbers(name: str) -> None:
    """Loss and gradient of the Program, with the numbers that it drew put into torch by hand."""
    then, by_hand = LAWS[name]
    program = capture_model(around(then)).program
    (drawn,) = {
        step.outs[0] for step in program.entry("step").body if isinstance(step, Op) and step.op == "draw"
    }
    rng = np.random.default_rng(3)
    leaves = {"w": rng.standard_normal((4, 8)), "input_0": rng.standard_normal((16, 4))}
    leaves = {label: value.astype(np.float32) for label, value in leaves.items()}
    values = evaluate_program(program, leaves, entry="step", params={}).values
    numbers = torch.from_numpy(np.array(values[str(drawn)]))
    net = Around(lambda y: by_hand(y, numbers))
    net.w.data = torch.from_numpy(leaves["w"])
    loss = net(torch.from_numpy(leaves["input_0"]))
    loss.backward()
    assert net.w.grad is not None
    assert np.allclose(values["loss"], loss.item(), rtol=1e-4)
    assert np.allclose(values["grad.w"], net.w.grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("then", "says"),
    [
        (lambda y: y[torch.randperm(8)], "randperm draws random numbers"),
        (lambda y: y * torch.multinomial(torch.sigmoid(y), 8), "multinomial draws random numbers"),
    ],
)
def test_other_laws_are_refused(then: Step, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        capture_model(around(then))


def test_each_draw_goes_on_where_the_one_before_ended() -> None:
    first, second, third = of_model(lambda y: F.dropout(F.dropout(F.dropout(y)[:2])))
    assert [draw["start"] - first["start"] for draw in (first, second, third)] == [0, 128, 144]
    assert len({draw["after"] for draw in (first, second, third)}) == 3
    assert len({draw["seed"] for draw in (first, second, third)}) == 1


def _seeded(y: Tensor) -> Tensor:
    torch.manual_seed(5)
    y = F.dropout(y)
    torch.manual_seed(5)
    return F.dropout(y)


def _forked(y: Tensor) -> Tensor:
    with torch.random.fork_rng():
        kept = F.dropout(y)
    return kept + F.dropout(y)


def _restored(y: Tensor) -> Tensor:
    state = torch.get_rng_state()
    kept = F.dropout(y)
    torch.set_rng_state(state)
    return kept + F.dropout(y)


def _own_generators(y: Tensor) -> Tensor:
    one, other = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    kept = y * torch.bernoulli(y.detach(), 0.5, generator=one)
    return kept * torch.bernoulli(y.detach(), 0.5, generator=other)


def _accelerator(y: Tensor) -> Tensor:
    """As Megatron keeps a generator for each purpose."""
    state = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(11)
    other = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(state)
    torch.cuda.set_rng_state(other)
    kept = F.dropout(y)
    torch.cuda.set_rng_state(other)
    return kept + F.dropout(y)


@pytest.mark.parametrize("then", [_seeded, _forked, _restored, _own_generators, _accelerator])
def test_one_state_gives_the_same_numbers(then: Step) -> None:
    one, other = of_model(then)
    assert {**one, "like": ""} == {**other, "like": ""}


def _cloned(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    kept = y * torch.bernoulli(y.detach(), 0.5, generator=generator)
    return kept * torch.bernoulli(y.detach(), 0.5, generator=generator.clone_state())


def test_a_state_that_went_on_gives_others() -> None:
    one, other = of_model(_cloned)
    assert (one["seed"], other["seed"]) == (9, 9) and other["start"] == one["start"] + 128


@pytest.mark.parametrize("keep", [True, False])
def test_recomputation_draws_again_unless_the_state_is_kept(keep: bool) -> None:
    found = of_model(
        lambda y: checkpoint(F.dropout, y, use_reentrant=False, preserve_rng_state=keep)  # type: ignore[no-any-return]
    )
    assert (found[0]["start"] == found[1]["start"]) == keep and len(found) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_another_dtype_are_others_and_so_is_the_state_after(dtype: torch.dtype) -> None:
    def drawn(first: torch.dtype, then: torch.dtype) -> Step:
        def step(y: Tensor) -> Tensor:
            torch.manual_seed(5)
            return y * torch.rand_like(y, dtype=first) * torch.rand_like(y, dtype=then)

        return step

    plain = of_model(drawn(torch.float32, torch.float32))
    other, after = of_model(drawn(dtype, torch.float32))
    assert other != plain[0] and after["after"] not in ("", plain[1]["after"])
    assert of_model(drawn(dtype, torch.float32)) == [other, after]


def test_what_is_made_for_a_tensors_elements_is_like_it() -> None:
    (plain,) = of_model(lambda y: F.dropout(y))
    assert plain["like"] is not None and "like" not in plain["like"]
    (alone,) = of_model(lambda y: y * torch.rand(16, 8))
    assert alone["like"] is None


def test_the_process_keeps_its_own_state() -> None:
    torch.manual_seed(77)
    wanted = torch.get_rng_state()
    of_model(_seeded)
    of_ranks(lambda net, mesh: torch.manual_seed(1) and None, {"dp": 2})
    assert torch.equal(torch.get_rng_state(), wanted)


def test_building_the_module_takes_numbers_too() -> None:
    def seeded() -> Any:
        torch.manual_seed(3)
        return around(F.dropout)()

    found = draws(capture_model(seeded).program.entry("step").body)
    assert (found[0]["seed"], found[0]["start"]) == (3, 4 * 8 + 16 * 4)


# --- ranks ------------------------------------------------------------------------------------------


def test_ranks_begin_alike_and_seeds_follow_their_place() -> None:
    (same,) = of_ranks(lambda net, mesh: None, {"dp": 4})
    (own,) = of_ranks(lambda net, mesh: torch.manual_seed(100 + 3 * mesh.get_rank()) and None, {"dp": 4})
    assert str(same[0]["seed"]).isdigit() and str(own[0]["seed"]) == "dp*3+100"


def by_dtensor(placement: Any) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        net.w = nn.Parameter(DTensor.from_local(net.w.detach(), mesh, [Replicate()]))

        def step(x: Tensor) -> Tensor:
            y = DTensor.from_local(x, mesh, [Replicate()]) @ net.w
            loss = (net.then(y.redistribute(mesh, [placement])) ** 2).sum().full_tensor()
            loss.backward()
            return loss

        return ParallelStep(step)

    return parallel


@pytest.mark.parametrize(("placement", "offset"), [(Replicate(), "0"), (Shard(0), "tp*32")])
def test_distributed_tensors_draw_their_shard(placement: Any, offset: str) -> None:
    (found,) = of_ranks(by_dtensor(placement), {"tp": 4})
    assert str(found[0]["offset"]) == offset and found[0]["extent"] == 128


def test_micro_batches_go_on_where_the_one_before_ended() -> None:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        def microbatch(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            return loss

        return ParallelStep(
            lambda: None,
            microbatch=microbatch,
            microbatches=2,
            inputs=[{"mb": Shard(0)}],
            outputs=[{"mb": Partial()}],
        )

    (found,) = of_ranks(parallel, {"dp": 2})  # after the numbers of parameters and inputs
    assert str(found[0]["start"]) == "mb*64+96" and found[0]["extent"] == 64 and found[0]["after"]


@contextmanager
def no_trace() -> Iterator[None]:
    with (
        torch._subclasses.fake_tensor.unset_fake_temporarily(),
        torch.utils._python_dispatch._disable_current_modes(),
    ):
        yield


def test_numbers_drawn_behind_the_trace_are_seen() -> None:
    def hidden(y: Tensor) -> Tensor:
        y = F.dropout(y)
        with no_trace():
            torch.rand(3)
        return F.dropout(y)

    with pytest.raises(UnsupportedError, match="where nothing is traced"):
        of_model(hidden)


# --- generators that outlive a trace ------------------------------------------------------------------


def by_generator(generator: torch.Generator) -> Step:
    """Dropout by a generator that the model and all ranks share."""
    return lambda y: y * torch.empty_like(y).bernoulli_(0.5, generator=generator)


def test_each_trace_finds_a_generator_as_it_was_before_the_first() -> None:
    generator = torch.Generator().manual_seed(6)
    wanted = generator.get_state()
    then = by_generator(generator)
    for found in (of_model(then), *of_ranks(lambda net, mesh: None, {"dp": 2}, then)):
        assert [(str(draw["seed"]), draw["start"]) for draw in found] == [("6", 0)]
    assert torch.equal(generator.get_state(), wanted)


def test_a_generator_that_was_drawn_from_before_is_refused() -> None:
    generator = torch.Generator().manual_seed(6)
    torch.rand(3, generator=generator)
    with pytest.raises(UnsupportedError, match="seed 6 of which numbers were drawn before"):
        of_model(by_generator(generator))
    assert of_model(by_generator(generator.manual_seed(6)))[0]["start"] == 0


def test_a_state_that_another_trace_left_is_refused() -> None:
    """A tracker that keeps states for good: the next rank's process would not find this one's."""
    torch.manual_seed(7)
    kept = [torch.get_rng_state()]

    def tracked(y: Tensor) -> Tensor:
        torch.set_rng_state(kept[0])
        y = F.dropout(y)
        kept[0] = torch.get_rng_state()
        return y

    assert of_model(tracked)[0]["seed"] == 7
    with pytest.raises(UnsupportedError, match="a state of another trace"):
        of_model(tracked)
