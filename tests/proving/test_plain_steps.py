"""Steps of ordinary modules that no rule for parts is needed for: the same on every rank, or cut in rows.

Whatever the single device makes of whole tensors, a rank that does the same has made; a fault in it is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard
from torch.nn import functional as F

import tensure
from tensure.capture import ParallelStep
from tensure.proving import ProofResult
from tensure.proving._check_index import Index, all_of
from tensure.proving._check_origins import same_elements
from tensure.proving._check_piece import ONE, whole
from tensure.proving._check_sums import Def

Made = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROWS = torch.tensor([2, 0, 3, 1])
PLACES = torch.tensor([[0, 1], [5, 4], [1, 0], [2, 3]])


class Net(nn.Module):
    def __init__(self, made: Made) -> None:
        super().__init__()
        self.weight, self.made = nn.Parameter(torch.randn(4, 6)), made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.made(x, self.weight) * 2).exp().sum()


def proved(made: Made, other: Made | None = None) -> ProofResult:
    """The proof that two ranks, each doing all, do what one does; or what `other` says they do instead."""

    def parallel(net: Net, mesh: DeviceMesh) -> None:
        net.made = other or made

    return tensure.prove(parallel, lambda: (Net(made), (torch.randn(4, 6),)), mesh={"t": 2}, replay=False)


def proved_in_rows(made: Made, other: Made | None = None) -> ProofResult:
    """The same where each of two ranks has two rows, and gradients are summed."""

    def parallel(net: Net, mesh: DeviceMesh) -> ParallelStep:
        net.made = other or made

        def step(x: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x)
            loss.backward()  # type: ignore[no-untyped-call]
            dist.all_reduce(net.weight.grad, group=mesh.get_group("t"))
            return loss

        return ParallelStep(step, inputs=({"t": Shard(0)},), outputs=({"t": Partial()},))

    return tensure.prove(parallel, lambda: (Net(made), (torch.randn(4, 6),)), mesh={"t": 2}, replay=False)


def put(x: torch.Tensor, w: torch.Tensor, number: float = 1.0) -> torch.Tensor:
    return x + w.scatter(1, PLACES, number)


def copied(x: torch.Tensor, w: torch.Tensor, row: int = 1) -> torch.Tensor:
    made = w * 1
    made[0] = x[row]
    made[:, 5] = x[:, 2]
    return made


def nothing_left(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The first gradient of `w` is zero, through views, a mean and a sum."""
    made = w.unsqueeze(1).expand(4, 3, 6).mean(1).clone()
    made.copy_(x)
    return made + w


STEPS: dict[str, Made] = {
    "roll": lambda x, w: x.roll(1, 0) * w,
    "index_add": lambda x, w: x.index_add(0, ROWS, w),
    "scatter a number": put,
    "rows and columns written": copied,
    "highest": lambda x, w: F.embedding(x.argmax(0), w.t()).t()[:4],
    "one hot": lambda x, w: F.one_hot(x.argmax(1), 6).float() * w,
    "sorted": lambda x, w: x.sort(0).values * w,
    "product": lambda x, w: x.detach().prod(1, keepdim=True) + w,
    "zeros in the gradient": nothing_left,
    "put back where it was": lambda x, w: F.pad(x[:, 1:], (1, 0)) * w,
    "index by two": lambda x, w: x[torch.arange(4)[:, None], torch.arange(6)[None]] * w,
    "numbers counted up": lambda x, w: x[torch.arange(6)[:4] * 0 + torch.arange(4)] * w,
    "differences of neighbours": lambda x, w: torch.cat([x[:, :1] - 1, x], 1).diff()[:, :6] * w,
    "left as it is": lambda x, w: (x > 0).expand(-1, 6) * w,
    "it cancels": lambda x, w: (x - w) - (x - w) + w,
}


@pytest.mark.parametrize("name", STEPS)
def test_the_same_on_every_rank(name: str) -> None:
    result = proved(STEPS[name])
    assert result.proof.values.status == "proved", result.proof.values
    assert result.certificate is not None
    assert tensure.api.check(result.certificate, result.plan, result.program).accepted


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (STEPS["roll"], lambda x, w: x.roll(-1, 0) * w),
        (put, lambda x, w: put(x, w, 1.5)),
        (copied, lambda x, w: copied(x, w, 2)),
        (STEPS["index_add"], lambda x, w: x.index_add(0, ROWS.flip(0), w)),
        (STEPS["product"], lambda x, w: x.detach().prod(0, keepdim=True) + w),
        (STEPS["sorted"], lambda x, w: x.sort(0, descending=True).values * w),
    ],
    ids=["shift", "number", "row", "index", "dim", "order"],
)
def test_a_fault_in_it_is_refuted(made: Made, other: Made) -> None:
    verdict = proved(made, other).proof.values
    assert verdict.status == "refuted", verdict


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_rows_of_what_is_put_and_shifted(is_right: bool) -> None:
    """Each rank has two rows; a shift along them would go from one rank to the next."""

    def made(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        hot = torch.zeros_like(x).scatter(1, x.topk(2).indices, 1.0)
        return (hot * x).roll(1, 1 if is_right else 0) + F.one_hot(x.argmax(1), 6) + w[:1]

    result = proved_in_rows(made)
    assert result.proof.values.status == ("proved" if is_right else "refuted"), result.proof.values


@pytest.mark.parametrize("by", [2, 3])
def test_a_slice_reduced_where_it_lies(by: int) -> None:
    """A bucket whose middle is summed over ranks, and then divided, by two views of the same elements."""

    def model() -> tuple[nn.Module, Any]:
        return Net(lambda x, w: x * w), (torch.randn(4, 6),)

    def parallel(net: Net, mesh: DeviceMesh) -> Callable[..., torch.Tensor]:
        def step(x: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x)
            loss.backward()  # type: ignore[no-untyped-call]
            grad = net.weight.grad
            assert grad is not None
            dist.all_reduce(grad[1:3], group=mesh.get_group("t"))
            grad[1:3] /= by
            return loss

        return step

    verdict = tensure.prove(parallel, model, mesh={"t": 2}, replay=False).proof.values
    assert verdict.status == ("proved" if by == 2 else "refuted"), verdict


def fused(x: torch.Tensor, w: torch.Tensor, start: int = 2) -> torch.Tensor:
    """Two heads of keys out of queries, keys and values in one, for each sequence."""
    every = F.linear(x.view(x.shape[0], 2, 3), w.reshape(8, 3))
    keys = every[..., start : start + 4]
    return keys.view(x.shape[0], 2, 2, 2).transpose(1, 2).reshape(x.shape[0], 8)


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_rows_of_heads_out_of_one_product(is_right: bool) -> None:
    result = proved_in_rows(fused, fused if is_right else lambda x, w: fused(x, w, 3))
    assert result.proof.values.status == ("proved" if is_right else "refuted"), result.proof.values


def test_the_same_elements_by_another_way() -> None:
    """Rows 4:8 of 12 heads are the heads of a slice; the next ones, or those in another order, are not."""

    class Known:
        defs = (
            Def("leaf", {}, (), 0, (6, 12), "f32", None, frozenset()),
            Def("view", {}, ((0, whole((6, 12)), ONE),), 0, (6, 3, 4), "f32", None, frozenset()),
            Def(
                "view", {}, ((0, (all_of(6), Index(((4, 8),))), ONE),), 0, (6, 1, 4), "f32", None, frozenset()
            ),
            Def(
                "permute",
                {"dims": (2, 0, 1)},
                ((2, whole((6, 1, 4)), ONE),),
                0,
                (4, 6, 1),
                "f32",
                None,
                frozenset(),
            ),
        )

    def heads(start: int) -> Any:
        return ONE, 1, (all_of(6), Index(((start, start + 1),)), all_of(4)), None

    mine = (ONE, 2, whole((6, 1, 4)), None)
    assert same_elements(Known, heads(1), mine)
    assert not same_elements(Known, heads(2), mine)
    assert not same_elements(Known, heads(1), (2 * ONE, *mine[1:]))
    turned = (ONE, 3, whole((4, 6, 1)), None)
    assert same_elements(Known, turned, turned) and not same_elements(Known, turned, mine)
