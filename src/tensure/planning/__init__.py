"""Where and when: generators that turn a Program into a Plan, and a Plan's parts into what kernels run.

`host_plan` puts all of a Program on one machine. `plan_segment` fuses the ops of one entry into the steps a
single call of the kernels can run, over one arena.
"""

from __future__ import annotations

from ._arena import arena_faults
from ._host import host_plan
from ._segments import ACTIVATIONS, plan_segment
from ._steps import (
    Activation,
    ActivationStep,
    AdaptivePoolStep,
    Arena,
    ConvStep,
    FoldedNorm,
    HostStep,
    Layout,
    LinearStep,
    MeanStep,
    MoveStep,
    PointwiseStep,
    PoolStep,
    Segment,
    SoftmaxStep,
    Step,
    Stored,
    Window,
    fold_norm,
    writes,
)

__all__ = [
    "host_plan",
    "plan_segment",
    "arena_faults",
    "fold_norm",
    "writes",
    "ACTIVATIONS",
    "Activation",
    "ActivationStep",
    "AdaptivePoolStep",
    "Arena",
    "ConvStep",
    "FoldedNorm",
    "HostStep",
    "Layout",
    "LinearStep",
    "MeanStep",
    "MoveStep",
    "PointwiseStep",
    "PoolStep",
    "Segment",
    "SoftmaxStep",
    "Step",
    "Stored",
    "Window",
]
