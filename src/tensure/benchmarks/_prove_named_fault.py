"""A named plan with one fault, of one layer in one micro-batch of one rank; and a plan shrunken to be run.

A fault in a plan of real sizes cannot be shown by running it. The same layers over the same mesh, of a
smaller model, can be run as far as the doubt asks for: there `refuted` is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from tensure.capture import NamedPlan, ParallelStep

__all__ = ["Fault", "shrunken", "with_fault"]


@dataclass(frozen=True)
class Fault:
    """A feed-forward takes ReLU where it should take SiLU.

    Args:
        layer: of this layer, from 0.
        rank: on this rank alone, counted over the mesh row by row; its stage must have the layer.
        microbatch: in this micro-batch alone, from 0.
    """

    layer: int
    rank: int
    microbatch: int


def with_fault(plan: NamedPlan, fault: Fault) -> Callable[[nn.Module, DeviceMesh], ParallelStep]:
    """What a Llama's plan of several micro-batches does, with the fault, as capture takes it."""

    def parallel(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        right = plan.parallel(net, mesh)
        one: Any = right.microbatch

        def microbatch(tokens: Tensor, targets: Tensor, index: int) -> Any:
            if dist.get_rank() != fault.rank or index != fault.microbatch:
                return one(tokens, targets)
            layers: Any = net.layers
            part = layers[str(fault.layer)].feed_forward
            part.forward = lambda x: part.w2(F.relu(part.w1(x)) * part.w3(x))
            try:
                return one(tokens, targets)
            finally:
                del part.forward

        return replace(right, microbatch=microbatch)

    return parallel


def shrunken(plan: NamedPlan) -> NamedPlan:
    """The same layers of a Llama over the same mesh, every other size as small as its cuts allow."""
    config, tp = plan.config, plan.sizes.tp
    small: Any = config.replace(
        hidden=4 * tp, heads=2 * tp, kv_heads=tp, inner=3 * tp, vocabulary=5 * tp, sequence=tp
    )
    return replace(plan, config=small)
