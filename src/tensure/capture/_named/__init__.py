"""Public models and how they are cut over a mesh, by name: what is proved is what such plans compute."""

from ._config import MODELS, DeepSeekConfig, LlamaConfig, PlanSizes
from ._registry import NAMED_PLANS, NamedPlan, named_plan

__all__ = [
    "MODELS",
    "NAMED_PLANS",
    "DeepSeekConfig",
    "LlamaConfig",
    "NamedPlan",
    "PlanSizes",
    "named_plan",
]
