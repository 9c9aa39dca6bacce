"""A framework's parallel step as a Program and a Plan: plain PyTorch, traced on a fake process group."""

from ._step import ModelFunction, ParallelFunction, ParallelStep, Placements

__all__ = ["ModelFunction", "ParallelFunction", "ParallelStep", "Placements"]
