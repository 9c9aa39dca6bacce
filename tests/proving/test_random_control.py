"""What a proof says of random numbers, held against real generators: ranks run, and their masks are seen.

Put together as the proof says they stand, the masks that ranks really drew make the single device's results
those of the ranks; and masks of different parts are different, those of one part the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep
from tests.proving.random_steps import _Reduced, _Scattered
from tests.proving.zoo._threads import AGREE, DIFFER, run_twin

RANKS, ROWS, HIDDEN, INNER = 2, 8, 8, 32
DRAWN: dict[str, dict[int, Tensor]] = {}
"""Masks that ranks drew, by dropout and rank."""
CUT: dict[str, int | None] = {}
"""Along which dim each dropout's parts stand; None where every rank has all of it."""


@pytest.fixture(autouse=True)
def _nothing_drawn() -> Iterator[None]:
    DRAWN.clear()
    CUT.clear()
    yield
    DRAWN.clear()


class Drop(nn.Module):
    """Dropout from a generator of one's own; on a single device, once ranks have run, of their masks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None and DRAWN:
            return x * whole_mask(self.name) / 0.75
        mask = torch.empty_like(x).bernoulli_(0.75, generator=self.generator)
        if self.generator is not None and type(mask.data) is Tensor and not _is_fake(mask):
            DRAWN.setdefault(self.name, {})[dist.get_rank()] = mask
        return x * mask / 0.75


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def whole_mask(name: str) -> Tensor:
    """The masks of all ranks put together; of copies, the first."""
    masks, dim = [mask for _, mask in sorted(DRAWN[name].items())], CUT[name]
    return masks[0] if dim is None else torch.cat(masks, dim)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.inner, self.outer = Drop("inner"), Drop("outer")

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.outer(self.down(self.inner(torch.relu(self.up(x)))))).pow(2).mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(ROWS, HIDDEN),)


Seeds = Callable[[int], int]


def seeded(net: Any, rank: int, inner: Seeds, outer: Seeds) -> None:
    net.inner.generator = torch.Generator().manual_seed(inner(rank))
    net.outer.generator = torch.Generator().manual_seed(outer(rank))


def replicas(inner: Seeds, outer: Seeds) -> Any:
    CUT.update(inner=0, outer=0)

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        seeded(net, mesh.get_local_rank("tp"), inner, outer)

        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x) / RANKS
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("tp"))
            return loss

        return ParallelStep(step, inputs=[{"tp": Shard(0)}], outputs=[{"tp": Partial()}])

    return parallel


def features(inner: Seeds, outer: Seeds, *, scattered: bool = False) -> Any:
    CUT.update(inner=1, outer=0 if scattered else None)

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank = mesh.get_group("tp"), mesh.get_local_rank("tp")
        net.up.weight = nn.Parameter(net.up.weight.detach().chunk(RANKS)[rank].clone())
        net.down.weight = nn.Parameter(net.down.weight.detach().chunk(RANKS, dim=1)[rank].clone())
        seeded(net, rank, inner, outer)

        def step(x: Tensor) -> Tensor:
            y = F.linear(net.inner(torch.relu(net.up(x))), net.down.weight)
            y = _Scattered.apply(y, group) if scattered else _Reduced.apply(y, group)
            rows = x.chunk(RANKS)[rank] if scattered else x
            loss: Tensor = (rows + net.outer(y)).pow(2).sum() / (ROWS * HIDDEN)
            loss.backward()
            return loss

        placed = {"up.weight": {"tp": Shard(0)}, "down.weight": {"tp": Shard(1)}}
        return ParallelStep(step, parameters=placed, outputs=[{"tp": Partial()}] if scattered else ())

    return parallel


TWINS: dict[str, tuple[Callable[[], Any], bool]] = {
    "replicas": (lambda: replicas(lambda rank: 1 + rank, lambda rank: 11 + rank), True),
    "replicas with one seed": (lambda: replicas(lambda rank: 1, lambda rank: 11 + rank), False),
    "features": (lambda: features(lambda rank: 1 + rank, lambda rank: 11), True),
    "features with one seed": (lambda: features(lambda rank: 1, lambda rank: 11), False),
    "a whole of several seeds": (lambda: features(lambda rank: 1 + rank, lambda rank: 11 + rank), False),
    "rows between": (
        lambda: features(lambda rank: 1 + rank, lambda rank: 11 + rank, scattered=True),
        True,
    ),
    "rows between with one seed": (
        lambda: features(lambda rank: 1 + rank, lambda rank: 11, scattered=True),
        False,
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_real_masks_are_as_the_proof_says(name: str) -> None:
    make, is_right = TWINS[name]
    parallel = make()
    verdict = tensure.prove(parallel, model, mesh={"tp": RANKS}).proof.values
    assert verdict.status == ("proved" if is_right else "refuted"), verdict
    assert not DRAWN, "a trace draws nothing"
    distances = run_twin(model, parallel, {"tp": RANKS})
    assert set(DRAWN) == {"inner", "outer"} and all(len(masks) == RANKS for masks in DRAWN.values())
    same = {label: torch.equal(*masks.values()) for label, masks in DRAWN.items()}
    as_said = all(same[label] == (CUT[label] is None) for label in same)
    assert as_said == is_right
    if is_right:
        assert max(distances.values()) < AGREE
    elif any(CUT[label] is None and not same[label] for label in same):
        assert max(distances.values()) > DIFFER, "copies that are no copies"
