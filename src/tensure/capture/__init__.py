"""A framework's parallel step as a Program and a Plan: plain PyTorch, traced on a fake process group."""

from ._classes import RankClass
from ._model import Captured, capture_model
from ._named import MODELS, NAMED_PLANS, NamedPlan, named_plan
from ._parallel import capture_parallel
from ._step import (
    ModelFunction,
    OptimizerFunction,
    ParallelFunction,
    ParallelStep,
    Placements,
    TrainingStep,
)

__all__ = [
    "MODELS",
    "NAMED_PLANS",
    "Captured",
    "ModelFunction",
    "NamedPlan",
    "OptimizerFunction",
    "ParallelFunction",
    "ParallelStep",
    "Placements",
    "RankClass",
    "TrainingStep",
    "capture_model",
    "capture_parallel",
    "named_plan",
]
