"""A named plan with one fault, of one layer in one micro-batch of one rank; and a plan shrunken to be run.

A fault in a plan of real sizes cannot be shown by running it. The same layers over the same mesh, of a
smaller model, can be run as far as the doubt asks for: there `refuted` is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from tensure.capture import NamedPlan, ParallelStep
from tensure.capture._named import LlamaConfig
from tensure.capture._named._layers import FeedForward
from tensure.capture._named._llama3 import CUT
from tensure.capture._named._model import Decoder
from tensure.capture._named._parallel import Stage, by_microbatch

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


class Faulty(Stage):
    """One rank's step with a fault, where the fault is this rank's."""

    fault: Fault

    def microbatch(self, tokens: Tensor, targets: Tensor, index: int) -> Tensor:  # type: ignore[override]
        """As without a fault, but in one micro-batch of one rank."""
        if dist.get_rank() != self.fault.rank or index != self.fault.microbatch:
            return super().microbatch(tokens, targets)
        part: FeedForward = self.net.layers[str(self.fault.layer)].feed_forward  # type: ignore[assignment]
        part.forward = lambda x: part.w2(F.relu(part.w1(x)) * part.w3(x))  # type: ignore[method-assign]
        try:
            return super().microbatch(tokens, targets)
        finally:
            del part.forward


def with_fault(plan: NamedPlan, fault: Fault) -> Callable[[nn.Module, DeviceMesh], ParallelStep]:
    """What a Llama's plan does, with the fault, as capture takes it."""

    def parallel(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        assert isinstance(net, Decoder)
        stage = Faulty(net, mesh, plan.sizes, CUT)
        stage.fault = fault
        return by_microbatch(stage)

    return parallel


def shrunken(plan: NamedPlan) -> NamedPlan:
    """The same layers of a Llama over the same mesh, every other size as small as its cuts allow."""
    config, tp = plan.config, plan.sizes.tp
    assert isinstance(config, LlamaConfig)
    small = config.replace(
        hidden=4 * tp, heads=2 * tp, kv_heads=tp, inner=3 * tp, vocabulary=5 * tp, sequence=tp
    )
    return replace(plan, config=small)
