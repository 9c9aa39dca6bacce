"""A framework's parallel step as a Program and a Plan: plain PyTorch, traced on a fake process group."""

from ._classes import RankClass
from ._model import Captured, capture_model
from ._parallel import capture_parallel
from ._step import ModelFunction, ParallelFunction, ParallelStep, Placements

__all__ = [
    "Captured",
    "ModelFunction",
    "ParallelFunction",
    "ParallelStep",
    "Placements",
    "RankClass",
    "capture_model",
    "capture_parallel",
]
