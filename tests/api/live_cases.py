"""Run by torchrun, two processes: steps of live ranks, one after the other, and what a proof says of each.

Prints one JSON object a rank: by case, the verdict or the error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tensure
from tensure.api import _prove_step
from tensure.capture import ParallelStep

ROWS = {"dp": Shard(0)}
DATA: dict[str, Any] = {"inputs": [ROWS, ROWS], "outputs": [{"dp": Partial("avg")}]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


def batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 4, generator=generator)


def prove(step: Any, inputs: Any, module: nn.Module, **options: Any) -> str:
    _prove_step._called.clear()
    return tensure.prove_step(step, inputs, **{"model": model, "module": module, **options}).values.status


def by_hand(fault: str = "") -> Callable[[], str]:
    """Data parallelism in a few lines, with one fault or none."""

    def case() -> str:
        rank, net = dist.get_rank(), Net()
        if fault == "other numbers" and rank:
            with torch.no_grad():
                net.up.bias += 1e-6

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = net(x, y)
            if fault == "reads" and loss > 1e9:
                return loss
            if fault == "reads a parameter" and net.up.weight.tolist()[0][0] > 1e9:
                return loss
            loss.backward()
            for weight in net.parameters():
                assert weight.grad is not None
                dist.all_reduce(weight.grad)
                if fault not in ("sum", "warn"):
                    weight.grad /= 2
            if fault == "hangs" and rank:
                dist.barrier()
                dist.all_reduce(net.up.weight.grad)
            if fault == "clears":
                net.zero_grad()
            if fault == "clips":
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            return loss

        options: dict[str, Any] = {"mesh": {"dp": 2}}
        if fault == "mesh":
            options["mesh"] = {"dp": 3}
        if fault == "warn":
            options["on_refuted"] = "warn"
        if fault == "never":
            options["on_refuted"] = "never"
        if fault == "one comes":
            if rank:
                return "away"
            options["timeout_s"] = 4.0
        inputs = batch(2, rank)
        if fault == "whole inputs":
            inputs = batch(4)
        if fault == "clips":
            _prove_step._called.clear()
            step = ParallelStep(step, **DATA)  # type: ignore[assignment]
            return tensure.prove_step(step, inputs, model=model, module=net, **options).values.reason
        if fault == "an input too few":
            return prove(ParallelStep(step, **DATA), inputs[:1], net, **options)
        return prove(ParallelStep(step, **DATA), inputs, net, **options)

    return case


def trained(kind: str, *, proved: bool) -> tuple[str, list[Any]]:
    """A few steps of training, with or without a proof between them; what came out, to the bit."""
    torch.manual_seed(0)
    net: nn.Module = Net()
    options: dict[str, Any] = {}
    count = 2
    if kind == "tp":
        mesh, count = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), 4
        parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    else:
        mesh, options = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)), DATA
        if kind == "fsdp":
            fully_shard(net.up, mesh=mesh)
            fully_shard(net, mesh=mesh)
        else:
            net = DistributedDataParallel(net, gradient_as_bucket_view=kind == "ddp in buckets")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    losses: list[Any] = []

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = net(x, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(len(losses))
        return loss.detach()

    verdict = ""
    for at in range(3):
        inputs = batch(count, at + (0 if kind == "tp" else 10 * dist.get_rank()))
        if at == 1 and proved:
            verdict = prove(ParallelStep(step, **options), inputs, net, mesh=mesh)
        losses.append(step(*inputs).item())
    found = [getattr(weight, "_local_tensor", weight).detach().tolist() for weight in net.parameters()]
    return verdict, [losses, schedule.last_epoch, found, torch.randn(3).tolist()]


def as_it_was(kind: str) -> Callable[[], str]:
    def case() -> str:
        verdict, found = trained(kind, proved=True)
        return verdict if found == trained(kind, proved=False)[1] else "the training differs"

    return case


class Odd(Net):
    """Rows that two ranks cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 7), nn.Linear(7, 4)


def uneven(fault: str = "") -> Callable[[], str]:
    """FSDP with a smaller last shard, which is padded with zeros."""

    def case() -> str:
        mesh, net = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)), Odd()
        fully_shard(net.up, mesh=mesh)
        fully_shard(net, mesh=mesh)

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x, y)
            loss.backward()
            if fault and dist.get_rank():
                assert net.up.weight.grad is not None
                net.up.weight.grad *= 2
            return loss

        options = {"model": lambda: (Odd(), batch(4)), "mesh": mesh}
        return prove(ParallelStep(step, **DATA), batch(2), net, **options)

    return case


class Dropping(Net):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(torch.relu(self.up(x)), 0.25)
        return (nn.functional.dropout(self.down(hidden), 0.5) - y).pow(2).mean()


def dropping(fault: str = "") -> Callable[[], str]:
    """Replicas that drop, each its own rows, from generators that have drawn before."""

    def case() -> str:
        rank, net = dist.get_rank(), Dropping()
        torch.manual_seed(3 if fault in ("alike", "further") else 3 + rank)
        torch.rand(5 + (fault == "further" and rank))
        own = torch.Generator().manual_seed(7 + rank)
        torch.rand(3, generator=own)
        before = torch.get_rng_state()

        def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if fault == "restored":
                torch.set_rng_state(before)
            return net(x, y)  # type: ignore[no-any-return]

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if fault == "alike later":
                torch.manual_seed(11)
            if fault.startswith("recomputed"):
                kept = fault == "recomputed"
                loss = checkpoint(net, x, y, use_reentrant=False, preserve_rng_state=kept)
            else:
                loss = forward(x, y)
            loss.backward()
            for weight in net.parameters():
                assert weight.grad is not None
                dist.all_reduce(weight.grad)
                weight.grad /= 2
            return loss  # type: ignore[no-any-return]

        options: dict[str, Any] = {"model": lambda: (Dropping(), batch(4)), "mesh": {"dp": 2}}
        found = prove(ParallelStep(step, **DATA), batch(2, rank), net, **options)
        return found if torch.equal(before, torch.get_rng_state()) else "other numbers are drawn afterwards"

    return case


def dropping_whole(fault: str = "") -> Callable[[], str]:
    """Tensor-parallel ranks that drop of what both hold whole."""

    def case() -> str:
        mesh, net = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), DroppingOut()
        parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if fault:
            torch.manual_seed(5 + dist.get_rank())
        return prove(None, batch(4), net, model=lambda: (DroppingOut(), batch(4)), mesh=mesh)

    return case


class DroppingOut(Net):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (nn.functional.dropout(self.down(torch.relu(self.up(x))), 0.5) - y).pow(2).mean()


def twice() -> str:
    case = by_hand()
    case()
    net = Net()
    return tensure.prove_step(None, batch(4), model=model, module=net).values.status


CASES: dict[str, Callable[[], str]] = {
    **{kind: as_it_was(kind) for kind in ("tp", "fsdp", "ddp", "ddp in buckets")},
    **{fault: by_hand(fault) for fault in (
        "", "sum", "warn", "other numbers", "reads", "reads a parameter", "hangs", "clears", "mesh", "never",
        "whole inputs", "an input too few", "clips",
    )},
    "uneven fsdp": uneven(),
    "uneven fsdp, one doubled": uneven("doubled"),
    **{f"dropping {fault}".strip(): dropping(fault) for fault in (
        "", "alike", "alike later", "further", "restored", "recomputed", "recomputed otherwise",
    )},
    "dropping whole": dropping_whole(),
    "dropping whole, each its own": dropping_whole("own"),
    "twice": twice,
    "one comes": by_hand("one comes"),  # the last: the other rank does not hear of it
}  # fmt: skip


def main() -> None:
    dist.init_process_group("gloo")
    found: dict[str, str] = {}
    for name, case in CASES.items():
        torch.manual_seed(1)
        try:
            found[name] = case()
        except tensure.TensureError as error:
            found[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    sys.stdout.write(f"\n{json.dumps({'rank': dist.get_rank(), 'found': found})}\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
