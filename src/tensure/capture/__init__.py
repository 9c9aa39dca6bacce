"""A framework's parallel step as a Program and a Plan: plain PyTorch, traced on a fake process group."""

from ._classes import RankClass
from ._compact import compacted
from ._model import Captured, capture_model
from ._named import MODELS, NAMED_PLANS, NamedPlan, named_plan
from ._parallel import capture_parallel
from ._reads import RankState, StateFunction
from ._resharding import capture_resharding
from ._step import ModelFunction, ParallelFunction, ParallelStep, Placements

__all__ = [
    "MODELS",
    "NAMED_PLANS",
    "Captured",
    "ModelFunction",
    "NamedPlan",
    "ParallelFunction",
    "ParallelStep",
    "Placements",
    "RankClass",
    "RankState",
    "StateFunction",
    "capture_model",
    "capture_parallel",
    "capture_resharding",
    "compacted",
    "named_plan",
]
