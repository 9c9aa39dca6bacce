"""Where and when: generators that turn a Program into a Plan, and a Plan's parts into what kernels run.

`host_plan` puts all of a Program on one machine. `plan_segment` fuses the ops of one entry into the steps a
single call of the kernels can run, over one arena; `plan_layouts` does so with the algorithm and layout of
every convolution chosen.
"""

from __future__ import annotations

from ._arena import arena_faults
from ._conv_choice import (
    ACCURACIES,
    Accuracy,
    Candidate,
    Choice,
    ConvProblem,
    MachineNumbers,
    candidates,
    choose_conv,
    predict_s,
)
from ._host import host_plan
from ._kernel_notes import kernels_noted, note_kernels
from ._layouts import LAYOUTS, LayoutPlan, conv_problem, plan_layouts
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
from ._tuning import TuningCache, default_cache_path, measure_conv, measure_move

__all__ = [
    "host_plan",
    "plan_segment",
    "plan_layouts",
    "conv_problem",
    "note_kernels",
    "kernels_noted",
    "choose_conv",
    "candidates",
    "predict_s",
    "measure_conv",
    "measure_move",
    "default_cache_path",
    "Accuracy",
    "Candidate",
    "Choice",
    "ConvProblem",
    "LayoutPlan",
    "MachineNumbers",
    "TuningCache",
    "arena_faults",
    "fold_norm",
    "writes",
    "ACCURACIES",
    "ACTIVATIONS",
    "LAYOUTS",
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
