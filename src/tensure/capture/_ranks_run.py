"""One step of ranks that have bytes: what each is called with and what it holds at the end.

Knows the convention of `_step`; does not know how many ranks a call stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tensure.errors import EvaluationError

from ._given import as_step, gradients, output_names, returned_by
from ._microbatch import MICROBATCH
from ._placements import part_of
from ._step import ParallelStep, Placements

__all__ = ["EndlessError", "Found", "cut_input", "run_step"]

Found: TypeAlias = "dict[str, Tensor | None]"
"""What a rank, or a micro-batch of one, holds, by the name of the result."""

Cut: TypeAlias = "Callable[[Tensor, Placements, Mapping[str, int], Mapping[str, int]], Tensor]"
"""An input, its placements, size and place along the axis of micro-batches, if any: what a call is given."""


class EndlessError(EvaluationError):
    """Ranks wait for others for ever, or for longer than anybody waits for them."""


def run_step(net: nn.Module, answer: Any, inputs: Sequence[Tensor], cut: Cut) -> list[dict[str, Tensor]]:
    """Run what a parallel function answered; by micro-batch, every result by name."""
    given = as_step(answer, net)
    rounds, local = list[dict[str, Tensor]](), list[Tensor]()
    sizes = {} if given.microbatch is None else {MICROBATCH: given.microbatches}
    for index in range(sizes.get(MICROBATCH, 1)):
        at_axis = dict.fromkeys(sizes, index)
        local = [cut(item, _nth(given.inputs, at), sizes, at_axis) for at, item in enumerate(inputs)]
        returned = returned_by(_call(given, index)(*local))
        rounds.append(dict(zip(output_names(len(returned)), returned, strict=True)))
    known = {f"input_{at}": item for at, item in enumerate(local)}
    if given.microbatch is not None:
        given.step()
    module = given.module if given.module is not None else net
    for label, grad in gradients(module, known):
        for found in rounds:
            found[f"grad.{label}"] = grad
    return rounds


def cut_input(
    whole: Tensor, placements: Placements, mesh: Mapping[str, int], place: Mapping[str, int]
) -> Tensor:
    """One rank's part of an input, with memory of its own."""
    part = part_of(tuple(whole.shape), placements, mesh, place, "an input")
    with torch.no_grad():
        found = whole.detach()
        for dim, runs in enumerate(part.dims):
            ((lo, hi, _),) = runs
            found = found.narrow(dim, lo, hi - lo)
        return found.clone().requires_grad_(whole.requires_grad)


def _call(given: ParallelStep, index: int) -> Callable[..., Any]:
    if given.microbatch is None:
        return given.step
    takes = "index" in inspect.signature(given.microbatch).parameters
    microbatch = given.microbatch
    return (lambda *args: microbatch(*args, index=index)) if takes else microbatch


def _nth(items: Sequence[Placements | None], at: int) -> Placements:
    return (items[at] if at < len(items) else None) or {}
