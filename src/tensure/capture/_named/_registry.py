"""`llama3-405b@dp64-tp8-pp16-mb16`: a public model and how it is cut, by one name.

Knows names and sizes; torch is imported when a plan's functions are called.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tensure.errors import InputError

from ._config import MODELS, DeepSeekConfig, LlamaConfig, PlanSizes

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from .._step import ParallelStep
    from ._model import Decoder

__all__ = ["NAMED_PLANS", "NamedPlan", "named_plan"]

NAMED_PLANS: Final = (
    "llama3-8b@dp512",
    "llama3-70b@dp16-tp8-pp4-mb32",
    "llama3-405b@dp64-tp8-pp16-mb16",
    "deepseek-v3-16b@dp16-tp4-pp2-mb16",
    "deepseek-v3-236b@dp16-tp8-pp4-mb16",
    "deepseek-v3-671b@dp32-tp8-pp8-mb16",
)
"""Plans of published size. Any other sizes that divide the model's may be asked for likewise."""

_WANTED: Final = "NAME@dpA-tpB-ppC-mbD (any of these sizes, each once)"
_PART: Final = re.compile(r"(dp|tp|pp|mb)([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class NamedPlan:
    """A model of public sizes and its parallel twin; `model` and `parallel` are what capture takes.

    Args:
        name: as asked for.
        config: sizes of the model.
        sizes: of the plan.
    """

    name: str
    config: LlamaConfig | DeepSeekConfig
    sizes: PlanSizes

    def __post_init__(self) -> None:
        self.sizes.fit(self.name, self.config)

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh axes, outermost first."""
        return self.sizes.mesh

    def model(self) -> tuple[Decoder, tuple[torch.Tensor, torch.Tensor]]:
        """The step on one device: the module, with tokens and targets of the whole step [B, S]."""
        import torch

        shape = (self.sizes.batch, self.config.sequence)
        tokens, targets = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        if isinstance(self.config, LlamaConfig):
            from ._llama3 import llama3

            return llama3(self.config), (tokens, targets)
        from ._deepseek_v3 import deepseek_v3

        return deepseek_v3(self.config), (tokens, targets)

    def parallel(self, net: torch.nn.Module, mesh: DeviceMesh) -> ParallelStep:
        """One rank's step, of a fresh module of `model`."""
        from .._step import ParallelStep
        from ._deepseek_v3 import CUT as DEEPSEEK
        from ._llama3 import CUT as LLAMA
        from ._model import Decoder
        from ._parallel import Stage, by_microbatch, looped

        assert isinstance(net, Decoder)
        cut = LLAMA if isinstance(self.config, LlamaConfig) else DEEPSEEK
        is_axis = self.sizes.mb > 1 and "microbatch" in ParallelStep.__dataclass_fields__
        return (by_microbatch if is_axis else looped)(Stage(net, mesh, self.sizes, cut))


def named_plan(name: str) -> NamedPlan:
    """The plan of a name.

    Args:
        name: `MODEL@dpA-tpB-ppC-mbD`: replicas, tensor-parallel ranks, stages, micro-batches of a replica;
            what is left out is 1.

    Raises:
        InputError: a model or a form nobody knows, or sizes that do not divide the model's.
    """
    model, _, text = name.partition("@")
    if model not in MODELS:
        near = difflib.get_close_matches(model, MODELS, 1)
        raise InputError(
            f"model {model!r}",
            wanted=f"one of {', '.join(MODELS)}, and {_WANTED}",
            place=name,
            next_step=f"{near[0]}@{text} is one." if near else None,
        )
    sizes: dict[str, int] = {}
    for part in text.split("-"):
        found = _PART.fullmatch(part)
        if found is None or found[1] in sizes:
            raise InputError(f"sizes {text!r}", wanted=_WANTED, place=name)
        sizes[found[1]] = int(found[2])
    return NamedPlan(name, MODELS[model], PlanSizes(**sizes))
