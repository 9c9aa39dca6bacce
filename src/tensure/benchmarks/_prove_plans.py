"""All correct parallel training steps that `bench prove` asks the prover about."""

from __future__ import annotations

from . import (
    _prove_plans_context,
    _prove_plans_data,
    _prove_plans_flat,
    _prove_plans_mixed,
    _prove_plans_optimizer,
    _prove_plans_pipeline,
    _prove_plans_tensor,
)
from ._prove_parts import ParallelPlan

__all__ = ["PLANS", "ParallelPlan"]

PLANS: tuple[ParallelPlan, ...] = tuple(
    plan
    for theme in (
        _prove_plans_tensor,
        _prove_plans_data,
        _prove_plans_context,
        _prove_plans_pipeline,
        _prove_plans_optimizer,
        _prove_plans_flat,
        _prove_plans_mixed,
    )
    for plan in theme.plans()
)
