from ._beside import Beside
from ._classes import RankClass
from ._compact import compacted
from ._exchange import Exchange
from ._live import LiveRank, live_mesh, one_state_a_seed, same_contents, without_bytes
from ._live_text import rank_from_bytes, rank_to_bytes
from ._model import Captured, capture_model
from ._named import MODELS, NAMED_PLANS, NamedPlan, named_plan
from ._parallel import capture_parallel, plan_of
from ._reads import RankState, StateFunction
from ._replay import replay_step
from ._resharding import capture_resharding
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
    "Beside",
    "Captured",
    "Exchange",
    "LiveRank",
    "ModelFunction",
    "NamedPlan",
    "OptimizerFunction",
    "ParallelFunction",
    "ParallelStep",
    "Placements",
    "RankClass",
    "RankState",
    "StateFunction",
    "TrainingStep",
    "capture_model",
    "capture_parallel",
    "capture_resharding",
    "compacted",
    "live_mesh",
    "named_plan",
    "one_state_a_seed",
    "plan_of",
    "rank_from_bytes",
    "rank_to_bytes",
    "replay_step",
    "same_contents",
    "without_bytes",
]
