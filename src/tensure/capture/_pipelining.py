"""torch's pipeline schedules on ranks traced one by one: shapes must be said, not asked of neighbours.

A stage without them would learn shapes from messages; among fake ranks messages hold garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch.distributed.pipelining import schedules
from torch.distributed.pipelining._utils import InferenceMode

from tensure.errors import UnsupportedError

__all__ = ["static_stages"]

_WARM_UP: Final = "_warmup_p2p"


@contextmanager
def static_stages() -> Iterator[None]:
    """Let pipeline schedules be traced."""
    kept = {
        kind: kind.__dict__[_WARM_UP]
        for kind in vars(schedules).values()
        if isinstance(kind, type) and _WARM_UP in kind.__dict__
    }
    for kind in kept:
        setattr(kind, _WARM_UP, _decide)
    try:
        yield
    finally:
        for kind, method in kept.items():
            setattr(kind, _WARM_UP, method)


def _decide(_schedule: Any, stages: Sequence[Any], has_backward: bool, _done: bool) -> None:
    for stage in stages:
        meta = getattr(stage, "_user_meta", None)
        if meta is None or InferenceMode.needs_dynamic(meta, has_backward):
            raise UnsupportedError(
                f"pipeline stage {stage.stage_index} without the shapes of what it is sent",
                wanted="PipelineStage(..., input_args=..., output_args=...), for distributed tensors "
                "input_grads and output_grads too",
            )
        stage._inference_mode = InferenceMode.STATIC
