"""Correct steps in mixed precision: half floats, autocast, FSDP2's policies and factors, scaled losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tensure.capture import ParallelStep

from ._prove_parts import Mesh, ParallelPlan, reduce_all, run
from ._prove_plans_data import rows
from ._prove_plans_tensor import llama, mlp, tensor_parallel

__all__ = ["plans"]

Made = tuple[nn.Module, tuple[Tensor, ...]]
_HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def _in(dtype: torch.dtype, model: Callable[[], Made]) -> Made:
    """A model in another dtype, its inputs too where they are floats."""
    net, inputs = model()
    return net.to(dtype), tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _autocast(model: Callable[[], Made]) -> Made:
    """A model that runs in bfloat16 where torch holds that to be enough."""
    net, inputs = model()

    def cast(self: nn.Module, *given: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return type(self).forward(self, *given)

    net.forward = MethodType(cast, net)  # a copy of the module calls its own
    return net, inputs


def _sharded(
    net: Any, mesh: Mesh, policy: MixedPrecisionPolicy = _HALF, factor: float | None = None
) -> ParallelStep:
    """FSDP2 in a policy; with a factor gradients are divided by that, and the loss makes up for it."""
    blocks = [
        module for name, module in net.named_modules() if name.startswith("blocks.") and name[7:].isdigit()
    ]
    for module in (*blocks, net):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        if factor is not None:
            module.set_gradient_divide_factor(factor)
    share = 1.0 if factor is None else factor / mesh.size()
    return rows(lambda *inputs: run(net, inputs, share) / (share * mesh.size()))


def _sharded_tp(net: Any, mesh: Mesh) -> ParallelStep:
    tensor_parallel(net, mesh["tp"], True)
    for module in (*net.blocks, net):
        fully_shard(module, mesh=mesh["dp"], mp_policy=_HALF)
    return rows(lambda *inputs: run(net, inputs) / mesh["dp"].size())


def _ddp(net: Any, mesh: Mesh) -> ParallelStep:
    wrapped = DistributedDataParallel(net, process_group=mesh.get_group("dp"))
    return rows(lambda *inputs: run(wrapped, inputs) / mesh.size())


def _scaled(net: Any, mesh: Mesh, scale: float = 1024.0) -> ParallelStep:
    """A loss scaled up before the backward pass, gradients down after it; parameters in float16 on ranks."""
    net.to(torch.float16)

    def step(x: Tensor, target: Tensor) -> Any:
        loss = run(net, (x.half(), target.half()), scale / mesh.size())
        reduce_all(net, mesh.get_group("dp"))
        for parameter in net.parameters():
            parameter.grad = parameter.grad / scale
        return loss / scale

    return rows(step)


def _parallel(net: Any, mesh: Mesh, sequence: bool = False) -> Any:
    return tensor_parallel(net, mesh["tp"], sequence)


def plans() -> Iterator[ParallelPlan]:
    """All of this file's."""
    dp, tp = {"dp": 2}, {"tp": 2}
    four, half = partial(llama, batch=4), torch.bfloat16
    yield ParallelPlan("FSDP2 in bfloat16, reduced in float32", llama, _sharded, dp)
    whole = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half, output_dtype=torch.float32)
    yield ParallelPlan("FSDP2 of an MLP in bfloat16, reduced in it", mlp, partial(_sharded, policy=whole), dp)
    factor = partial(_sharded, factor=8.0)
    yield ParallelPlan("FSDP2 with a gradient divide factor", four, factor, {"dp": 4})
    yield ParallelPlan("FSDP2 in bfloat16 over TP2", four, _sharded_tp, {"dp": 2, "tp": 2})
    yield ParallelPlan("TP of Llama under autocast", partial(_autocast, llama), _parallel, tp)
    yield ParallelPlan(
        "sequence parallelism of a bfloat16 Llama",
        partial(_in, half, llama),
        partial(_parallel, sequence=True),
        tp,
    )
    yield ParallelPlan("DDP of Llama under autocast", partial(_autocast, llama), _ddp, dp)
    yield ParallelPlan("a scaled loss on float16 replicas", mlp, _scaled, dp)
