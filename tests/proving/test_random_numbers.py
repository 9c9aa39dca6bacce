"""Random numbers on ranks: right twins are proved, and what is mixed up is refuted where it is drawn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Shard

import tensure
from tensure.capture import ParallelStep
from tests.proving import random_steps as steps
from tests.proving.random_steps import Net, by_seeds, model, replicas, sequence_parallel

DP, TP = {"dp": 2}, {"tp": 2}
RIGHT: dict[str, tuple[Any, dict[str, int]]] = {
    "distributed tensors": (steps.by_dtensor, {"tp": 4}),
    "a seed for what is cut": (by_seeds(lambda rank: 2719 + rank, lambda rank: 1), {"tp": 4}),
    "sequence parallel": (sequence_parallel(lambda rank: 5 + rank), TP),
    "replicas": (replicas(lambda rank: 5 + rank), {"dp": 4}),
    "replicas, recomputed": (replicas(lambda rank: 5 + rank, steps.recomputed(keep=True)), DP),
    "replicas, recomputed by hand": (
        replicas(lambda rank: 5 + rank, steps.recomputed_by_hand(restore=True)),
        DP,
    ),
    "fully sharded": (steps.fully_sharded(lambda rank: 5 + rank), DP),
}
INNER, OUTER = "self.inner(", "# outer"
WRONG: dict[str, tuple[Any, dict[str, int], str, str]] = {
    "a cut tensor whole to its dropout": (
        steps.by_dtensor_as_local,
        {"tp": 4},
        "the same numbers as ranks[0]",
        INNER,
    ),
    "one seed for what is cut": (
        by_seeds(lambda rank: 2719, lambda rank: 1),
        TP,
        "the same numbers as ranks[0]",
        "# inner",
    ),
    "one seed for two of four": (
        by_seeds(lambda rank: 2719 + rank % 3, lambda rank: 1),
        {"tp": 4},
        "the same numbers as ranks[0]",
        "# inner",
    ),
    "several seeds for what is whole": (
        by_seeds(lambda rank: 2719 + rank, lambda rank: 1 + rank),
        TP,
        "other numbers than ranks[",
        OUTER,
    ),
    "the cut one's seeds are the whole one's": (
        by_seeds(lambda rank: 1 + rank, lambda rank: 1),
        {"tp": 4},
        "after seed 1",
        OUTER,
    ),
    "sequence parallel with one seed": (
        sequence_parallel(lambda rank: 5),
        TP,
        "the same numbers as",
        "net.inner(",
    ),
    "replicas with one seed": (replicas(lambda rank: 5), DP, "the same numbers as ranks[0]", INNER),
    "replicas without a seed": (replicas(None), DP, "the same numbers as ranks[0]", INNER),
    "fully sharded with one seed": (steps.fully_sharded(lambda rank: 5), DP, "the same numbers as", INNER),
    "recomputed with other numbers": (
        replicas(lambda rank: 5 + rank, steps.recomputed(keep=False)),
        DP,
        "other numbers than",
        INNER,
    ),
    "recomputed by hand with other numbers": (
        replicas(lambda rank: 5 + rank, steps.recomputed_by_hand(restore=False)),
        DP,
        "other numbers than",
        INNER,
    ),
}


def lines_with(text: str) -> set[str]:
    source = inspect.getsource(steps).splitlines()
    return {f"random_steps.py:{at}" for at, line in enumerate(source, 1) if text in line}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_twin_is_proved(name: str) -> None:
    parallel, mesh = RIGHT[name]
    found = tensure.prove(parallel, model, mesh=mesh)
    assert found.proof.values.status == "proved", found.proof.values
    assert "a draw of random numbers" in found.proof.values.method
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_twin_is_not_and_its_draw_is_named(name: str) -> None:
    parallel, mesh, says, line = WRONG[name]
    verdict = tensure.prove(parallel, model, mesh=mesh).proof.values
    if verdict.status == "unknown":  # generators of one seed that went different ways
        assert says in verdict.reason and any(place in verdict.reason for place in lines_with(line))
        return
    found = verdict.counterexample
    assert verdict.status == "refuted" and found is not None and found.local.startswith("draw_")
    assert says in found.step
    assert found.source.split(", ")[-1] in lines_with(line), found


def test_only_what_is_not_certain_is_unknown() -> None:
    """Two dropouts of several shapes from one seed may share numbers, or not: it is up to the generator."""
    unknown = [
        name
        for name, (parallel, mesh, _, _) in WRONG.items()
        if tensure.prove(parallel, model, mesh=mesh).proof.values.status == "unknown"
    ]
    assert unknown == ["the cut one's seeds are the whole one's"]


# --- many ranks ---------------------------------------------------------------------------------------


def many() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(1024, steps.HIDDEN),)


def test_seeds_of_many_ranks_are_taken_together() -> None:
    found = tensure.prove(replicas(lambda rank: 100 + 3 * rank), many, mesh={"dp": 512})
    assert found.proof.values.status == "proved", found.proof.values
    assert list(found.plan.tracks) == ["ranks"] and "dp taken together" in found.proof.values.method


def test_one_rank_of_many_with_anothers_seed_is_named() -> None:
    parallel = replicas(lambda rank: 100 + (5 if rank == 77 else rank))
    verdict = tensure.prove(parallel, many, mesh={"dp": 512}).proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None
    assert verdict.counterexample.rank == "dp77" and "[5]" in verdict.counterexample.step


def test_a_rank_of_many_that_seeds_alike_is_named() -> None:
    verdict = tensure.prove(replicas(lambda rank: 7), many, mesh={"dp": 512}).proof.values
    assert verdict.status == "refuted" and "the same numbers as ranks[0]" in str(verdict.counterexample)


# --- two axes, heads, stages --------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention with dropout of its weights."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 4 * heads, bias=False) for _ in range(3))
        self.o = nn.Linear(4 * heads, 16, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.25).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.o(self.heads(x)) ** 2).mean()


def attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Attention(), (torch.randn(4, 8, 16),)


def heads_and_rows(seed: Callable[[Any, Any], int]) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        import torch.distributed as dist
        from torch.distributed.tensor import Partial

        group, rank, size = mesh.get_group("tp"), mesh.get_local_rank("tp"), mesh["tp"].size()
        for part in (net.q, net.k, net.v):
            part.weight = nn.Parameter(part.weight.chunk(size)[rank])
        net.o.weight = nn.Parameter(net.o.weight.chunk(size, dim=1)[rank])
        torch.manual_seed(seed(mesh.get_local_rank("dp"), rank))

        def step(x: Tensor) -> Tensor:
            y = steps._Reduced.apply(F.linear(net.heads(x), net.o.weight), group)
            loss: Tensor = (y**2).mean()
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
                weight.grad /= mesh["dp"].size()
            return loss

        return ParallelStep(step, inputs=[{"dp": Shard(0)}], outputs=[{"dp": Partial("avg")}])

    return parallel


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        (lambda dp, tp: 10 + 2 * dp + tp, ""),
        (lambda dp, tp: 10 + dp + tp, "the same numbers as ranks[0,1]"),
        (lambda dp, tp: 10 + dp, "the same numbers as ranks[0,0]"),
    ],
)
def test_heads_and_rows_cut(seed: Any, says: str) -> None:
    verdict = tensure.prove(heads_and_rows(seed), attention, mesh={"dp": 2, "tp": 2}).proof.values
    if not says:
        assert verdict.status == "proved", verdict
    else:
        assert verdict.status == "refuted" and says in str(verdict.counterexample), verdict


class Twice(nn.Module):
    """Two layers, each with a dropout, on one rank each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.other(F.dropout(self.one(x)))).pow(2).mean()


def stages(seed: Callable[[int], int]) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        import torch.distributed as dist
        from torch.distributed.tensor import Partial

        rank = mesh.get_local_rank("pp")
        torch.manual_seed(seed(rank))
        if rank:
            del net.one
        else:
            del net.other

        def step(x: Tensor) -> Tensor:
            if rank == 0:
                y = F.dropout(net.one(x))
                dist.send(y.detach(), 1)
                grad = torch.empty_like(y)
                dist.recv(grad, 1)
                y.backward(grad)
                return torch.zeros(())
            y = torch.empty(4, 8, requires_grad=True)
            with torch.no_grad():
                dist.recv(y, 0)
            loss: Tensor = F.dropout(net.other(y)).pow(2).mean()
            loss.backward()
            assert y.grad is not None
            dist.send(y.grad, 0)
            return loss

        return ParallelStep(step, outputs=[{"pp": Partial()}])

    return parallel


@pytest.mark.parametrize(("seed", "status"), [(lambda rank: rank, "proved"), (lambda rank: 0, "refuted")])
def test_stages_with_one_seed_drop_the_same_of_two_layers(seed: Any, status: str) -> None:
    def twice() -> Any:
        return Twice(), (torch.randn(4, 8),)

    verdict = tensure.prove(stages(seed), twice, mesh={"pp": 2}).proof.values
    assert verdict.status == status, verdict
    if status == "refuted":
        assert "pp0: draw_0" in str(verdict.counterexample)


# --- what is not decided ------------------------------------------------------------------------------


def test_a_mask_of_a_shape_alone_has_no_place() -> None:
    class Shaped(Net):
        def hidden(self, x: Tensor) -> Tensor:
            return super().hidden(x) * torch.rand(x.shape[0], steps.INNER)

    def shaped() -> Any:
        return Shaped(), (torch.randn(8, 8),)

    verdict = tensure.prove(replicas(lambda rank: rank), shaped, mesh=DP).proof.values
    assert verdict.status == "unknown" and "a shape alone" in verdict.reason


def test_a_shape_alone_is_the_whole_where_it_is() -> None:
    class Shaped(Net):
        def hidden(self, x: Tensor) -> Tensor:
            return super().hidden(x) * torch.rand(steps.INNER)

    def shaped() -> Any:
        return Shaped(), (torch.randn(8, 8),)

    def one_seed_after_the_other(net: Any, mesh: Any) -> Any:
        rank = mesh.get_local_rank("dp")

        def hidden(x: Tensor) -> Tensor:
            torch.manual_seed(50 + rank)
            y = Net.hidden(net, x)
            torch.manual_seed(3)
            y = y * torch.rand(steps.INNER)
            torch.manual_seed(70 + rank)
            return y

        net.hidden = hidden
        return replicas(None)(net, mesh)

    assert tensure.prove(one_seed_after_the_other, shaped, mesh=DP).proof.values.status == "proved"


def test_other_numbers_in_the_model_than_on_ranks() -> None:
    """A rank that drops with another chance, or draws by another law, computes something else."""

    def change(net: Any) -> None:
        net.inner.p = 0.5

    verdict = tensure.prove(replicas(lambda rank: 5 + rank, change), model, mesh=DP).proof.values
    assert verdict.status == "refuted" and "replay" in verdict.method

    def noisy(net: Any) -> None:
        net.inner.forward = lambda x: x * (torch.randn_like(x) < 0.75) / 0.75

    verdict = tensure.prove(replicas(lambda rank: 5 + rank, noisy), model, mesh=DP).proof.values
    assert verdict.status == "unknown" and "draws no such numbers" in verdict.reason


def test_a_fault_before_a_draw_is_told_first() -> None:
    """What a draw is like is in doubt: then the doubt is told, with a replay whose masks are the model's."""

    def change(net: Any) -> None:
        net.hidden = lambda x: net.inner(torch.relu(net.up(2 * x)))

    verdict = tensure.prove(replicas(lambda rank: 5, change), model, mesh=DP).proof.values
    assert verdict.status in ("unknown", "refuted")
    assert "draws the same" not in str(verdict)


# --- torch's own --------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """Six features, two for each of three ranks: torch begins shards at numbers 0, 4 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.dropout(torch.relu(self.up(x)))).pow(2).mean()


@pytest.mark.parametrize(("rows", "status"), [(1, "refuted"), (2, "proved")])
def test_small_shards_of_distributed_tensors_may_begin_at_one_number(rows: int, status: str) -> None:
    def narrow() -> Any:
        return Narrow(), (torch.randn(rows, 8),)

    verdict = tensure.prove(steps.by_dtensor, narrow, mesh={"tp": 3}).proof.values
    assert verdict.status == status, verdict
    if status == "refuted":
        assert verdict.counterexample is not None and verdict.counterexample.rank == "ranks[2]"
        assert "the same numbers as ranks[1]" in verdict.counterexample.step
