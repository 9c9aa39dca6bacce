"""Random numbers where micro-batches are an axis: each goes on where the one before ended, or is seeded."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import tensure
from tensure.bundle import Plan, format_plan, parse_plan, plan_digest
from tensure.bundle._json import canonical_json
from tensure.capture import ParallelStep, capture_model, capture_parallel
from tensure.errors import UnsupportedError
from tensure.program import Op, evaluate
from tensure.proving import check_certificate

from .random_steps import Tracker

F = nn.functional
COUNT = 4
Body = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def hidden(self, x: Tensor) -> Tensor:
        return F.dropout(torch.relu(self.up(x)), 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.down(self.hidden(x)), 0.5).pow(2).mean()


class Plain(Net):
    """Numbers of a generator of its own may be drawn here, by `drop`."""

    def hidden(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.up(x)))

    def drop(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(0.75) / 0.75

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hidden(x)).pow(2).mean()


def model(kind: type[Net] = Net, rows: int = 16) -> Callable[[], Any]:
    return lambda: (kind(), (torch.randn(rows, 4),))


def accumulated(
    before: Callable[[int], Any] = lambda rank: None,
    change: Callable[[Any, int], Any] = lambda net, rank: None,
    *,
    seed: Callable[[int], int] = lambda rank: 1 + rank,
    by_index: Callable[[int, Any], Any] | None = None,
    after: Callable[[], Any] = lambda: None,
    axis: bool = True,
    count: int = COUNT,
) -> Any:
    """Replicas, each of which adds up micro-batches.

    Args:
        before: called at the beginning of each micro-batch, with the rank.
        change: called with the module and the rank, once.
        seed: of each rank.
        by_index: called at the beginning of each micro-batch that is told its number, with rank and number.
        after: called after the last.
        axis: micro-batches are an axis, or a loop.
    """

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        rank, size, group = mesh.get_local_rank("dp"), mesh.size(), mesh.get_group("dp")
        torch.manual_seed(seed(rank))
        change(net, rank)

        def one(x: Tensor) -> Tensor:
            before(rank)
            loss: Tensor = net(x) / count
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        def told(x: Tensor, index: int) -> Tensor:
            assert by_index is not None
            by_index(rank, index)
            return one(x)

        def step() -> None:
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=group)
                weight.grad /= size
            after()

        def looped(x: Tensor) -> Tensor:
            losses = [one(part) for part in x.chunk(count)]
            step()
            return torch.stack(losses).sum()

        rows, mean = {"dp": Shard(0)}, {"dp": Partial("avg")}
        if not axis:
            return ParallelStep(looped, inputs=(rows,), outputs=(mean,))
        return ParallelStep(
            step,
            microbatch=one if by_index is None else told,
            microbatches=count,
            inputs=({**rows, "mb": Shard(0)},),
            outputs=({**mean, "mb": Partial()},),
        )

    return parallel


def verdict(parallel: Any, kind: type[Net] = Net, mesh: dict[str, int] | None = None, rows: int = 16) -> Any:
    return tensure.prove(parallel, model(kind, rows), mesh=mesh or {"dp": 2}, replay=False).proof.values


def recomputed(net: Any, rank: int, *, keep: bool = True) -> None:
    net.hidden = lambda x: checkpoint(
        lambda x: Net.hidden(net, x), x, use_reentrant=False, preserve_rng_state=keep
    )


def tracked(net: Any, rank: int) -> None:
    """A state of its own, kept from one micro-batch to the next."""
    tracker = Tracker(10 + rank)

    def drop(x: Tensor) -> Tensor:
        with tracker.fork():
            return Plain.drop(net, x)

    net.drop = drop


def with_generator(net: Any, rank: int, *, anew: bool = False) -> None:
    kept = torch.Generator().manual_seed(10 + rank)

    def drop(x: Tensor) -> Tensor:
        own = torch.Generator().manual_seed(10 + rank) if anew else kept
        return x * torch.empty_like(x).bernoulli_(0.75, generator=own) / 0.75

    net.drop = drop


def seeded_by_number(rank: int, index: Any) -> None:
    torch.manual_seed(100 * rank + index)


RIGHT: dict[str, tuple[Any, type[Net]]] = {
    "one after the other": (accumulated(), Net),
    "recomputed": (accumulated(change=recomputed), Net),
    "a state of its own": (accumulated(change=tracked), Plain),
    "a generator of its own": (accumulated(change=with_generator), Plain),
    "seeded by number": (accumulated(by_index=seeded_by_number), Net),
    "one micro-batch": (accumulated(count=1), Net),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_numbers_are_proved(name: str) -> None:
    found = verdict(*RIGHT[name])
    assert found.status == "proved" and "given that a part of a draw" in found.method, found


SAVED = torch.Generator().manual_seed(3).get_state()
WRONG: dict[str, tuple[Any, type[Net], str]] = {
    "every rank alike": (accumulated(seed=lambda rank: 1), Net, "same numbers as"),
    "seeded anew": (accumulated(lambda rank: torch.manual_seed(rank)), Net, "same numbers as"),
    "restored": (accumulated(lambda rank: torch.set_rng_state(SAVED)), Net, "same numbers as"),
    "recomputed with others": (
        accumulated(change=lambda net, rank: recomputed(net, rank, keep=False)), Net, "draws other numbers",
    ),
    "a generator made anew": (
        accumulated(change=lambda net, rank: with_generator(net, rank, anew=True)), Plain, "same numbers as",
    ),
    "one seed for all numbers": (
        accumulated(by_index=lambda rank, index: torch.manual_seed(rank)), Net, "same numbers as",
    ),
    "seeds of ranks and numbers that clash": (
        accumulated(by_index=lambda rank, index: torch.manual_seed(rank + index)), Net, "same numbers as",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_are_refuted(name: str) -> None:
    parallel, kind, says = WRONG[name]
    found = verdict(parallel, kind)
    assert found.status == "refuted" and found.method == "places of random numbers", found
    assert says in found.counterexample.step and "test_random_microbatches.py" in found.counterexample.source


# --- what draws are, held against a loop ----------------------------------------------------------------


def places(plan: Plan, axis: bool) -> dict[int, list[tuple[Any, ...]]]:
    """By replica, where each number comes from, one micro-batch after the other."""
    found: dict[int, list[tuple[Any, ...]]] = {}
    for rank in sorted(plan.ranks(), key=lambda rank: plan.rank_env(rank, {}).get("mb", 0)):
        env = plan.rank_env(rank, {})
        for step in plan.tracks[rank.track].bodies["step"]:
            if isinstance(step, Op) and step.op == "draw":
                given: dict[str, Any] = dict(step.attrs)
                row = tuple(evaluate(given[key], env) for key in ("seed", "start", "extent"))
                found.setdefault(env["dp"], []).append((*row, given["law"]))
    return found


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        ("draws", lambda net, rank: None, Net),
        ("recomputed", recomputed, Net),
        ("tracked", tracked, Plain),
        ("generator", with_generator, Plain),
    ],
)
def test_draws_of_the_axis_are_those_of_a_loop(name: str, change: Any, kind: type[Net]) -> None:
    """What is extrapolated from two micro-batches is what four traced one by one do."""
    one = capture_model(model(kind))
    mesh = {"dp": 2}
    as_axis = capture_parallel(model(kind), accumulated(change=change), mesh, one)
    as_loop = capture_parallel(model(kind), accumulated(change=change, axis=False), mesh, one)
    found = places(as_axis, True)
    assert found == places(as_loop, False) and len(found[0]) >= COUNT


def test_one_text_for_all_micro_batches() -> None:
    plan = capture_parallel(model(), accumulated(), {"dp": 2}, capture_model(model()))
    assert list(plan.tracks) == ["ranks"] and plan.mesh == {"dp": 2, "mb": COUNT}


# --- what cannot be told ----------------------------------------------------------------------------------


def swapped(net: Any, rank: int) -> None:
    """Two states that change places: the third micro-batch goes on from the first."""
    pair = {"a": Tracker(10 + 2 * rank), "b": Tracker(11 + 2 * rank)}

    def drop(x: Tensor) -> Tensor:
        pair["a"], pair["b"] = pair["b"], pair["a"]
        with pair["a"].fork():
            return Plain.drop(net, x)

    net.drop = drop


def from_a_list(net: Any, rank: int, *, hidden: bool = False) -> None:
    """States that were saved beforehand, as if one went on from the other: the third is the first again."""
    own, states = torch.Generator().manual_seed(10 + rank), list[Tensor]()
    for _ in range(2):
        states.append(own.get_state())
        torch.empty(2, 6).bernoulli_(0.75, generator=own)
    states.append(states[0])
    told = Path(tempfile.mkdtemp()) / "count"  # nobody sees what a file holds

    def drop(x: Tensor) -> Tensor:
        kept = torch.get_rng_state()
        if hidden:
            with told.open("a") as file:
                torch.set_rng_state(states[file.write(".") and file.tell() - 1])
        else:
            torch.set_rng_state(states.pop(0))
        try:
            return Plain.drop(net, x)
        finally:
            torch.set_rng_state(kept)

    net.drop = drop


def drawing_more(net: Any, rank: int) -> None:
    done: list[Any] = []

    def drop(x: Tensor) -> Tensor:
        done.append(x)
        return Plain.drop(net, x) * (torch.rand_like(x) if len(done) > 1 else 1)

    net.drop = drop


@pytest.mark.parametrize(
    ("parallel", "says"),
    [
        (accumulated(change=swapped), "goes on otherwise in a second micro-batch"),
        (accumulated(change=from_a_list), "a second micro-batch is not as the first"),
        (
            accumulated(change=lambda net, rank: from_a_list(net, rank, hidden=True)),
            "that go on from nothing the micro-batch can reach",
        ),
        (accumulated(change=drawing_more), "micro-batch"),
        (accumulated(by_index=lambda rank, index: None), "each told its number"),
        (accumulated(after=lambda: torch.rand(3)), "after the last micro-batch that draws none"),
    ],
    ids=["swapped", "from a list", "from a file", "drawing more", "told its number", "after the last"],
)
def test_what_cannot_be_told_is_refused_by_name(parallel: Any, says: str) -> None:
    with pytest.raises(tensure.TensureError, match=says):
        verdict(parallel, Plain)


# --- distributed tensors, and many ranks -------------------------------------------------------------------


def by_dtensor(
    net: Any, mesh: DeviceMesh, change: Callable[[Any], Any] = lambda net: None, *, begun: bool = False
) -> ParallelStep:
    split = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel(use_local_output=False)}
    parallelize_module(net, mesh["tp"], split)
    if begun:  # ranks take one state before any is saved
        torch.distributed.tensor.rand(8, device_mesh=mesh["tp"], placements=[Shard(0)])
    change(net)

    def one(x: Tensor) -> Tensor:
        loss = net(x) / COUNT
        loss.backward()
        return loss.full_tensor()  # type: ignore[no-any-return]

    return ParallelStep(
        lambda: None,
        microbatch=one,
        microbatches=COUNT,
        inputs=({"mb": Shard(0)},),
        outputs=({"mb": Partial()},),
    )


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)


def test_distributed_tensors_go_on_too() -> None:
    assert verdict(by_dtensor, Wide, {"tp": 2}).status == "proved"


def test_a_shape_that_a_distributed_tensor_asks_for_draws_nothing() -> None:
    """Only the first call asks for it: recomputation draws what the forward pass drew."""

    def parallel(keep: bool) -> Any:
        return lambda net, mesh: by_dtensor(net, mesh, lambda net: recomputed(net, 0, keep=keep), begun=True)

    assert verdict(parallel(True), Wide, {"tp": 2}).status == "proved"
    wrong = verdict(parallel(False), Wide, {"tp": 2})
    assert wrong.status == "refuted" and "draws other numbers" in wrong.counterexample.step


@pytest.mark.parametrize(
    ("seed", "status"),
    [(lambda rank: 1 + rank, "proved"), (lambda rank: 7 if rank == 70 else 1 + rank, "refuted")],
    ids=["right", "one wrong"],
)
def test_many_ranks_are_traced_by_a_few(seed: Any, status: str) -> None:
    found = verdict(accumulated(seed=seed), Net, {"dp": 96}, 96 * COUNT * 2)
    assert found.status == status, found


def test_reading_a_state_that_nobody_made_is_refused() -> None:
    used = torch.Generator().manual_seed(5)
    torch.rand(3, generator=used)

    def use(net: Any, rank: int) -> None:
        net.drop = lambda x: x * torch.empty_like(x).bernoulli_(0.75, generator=used) / 0.75

    with pytest.raises(UnsupportedError, match="of which numbers were drawn before"):
        verdict(accumulated(change=use), Plain)


# --- a false certificate ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda by: 0, "numbers that stand for others elsewhere"),
        (lambda by: by - 1, "that are and are not the same"),
        (lambda by: by // 2, "that are and are not the same"),
    ],
    ids=["the same", "one less", "half as many"],
)
def test_the_checker_holds_micro_batches_apart(other: Callable[[int], int], says: str) -> None:
    """The certificate of the right plan, for one whose micro-batches draw what another one draws."""
    found = tensure.prove(accumulated(count=2), model(rows=12), mesh={"dp": 2})
    assert found.certificate is not None
    text = format_plan(found.plan)
    first = re.search(r"start=mb\*(\d+)\+(\d+)", text)
    assert first is not None
    made = parse_plan(text.replace(first[0], f"start=mb*{other(int(first[1]))}+{first[2]}", 1))
    row = json.loads(found.certificate)
    row["plan"] = plan_digest(made)
    report = check_certificate(canonical_json(row), made, found.program)
    assert not report.accepted and says in report.reason, report
