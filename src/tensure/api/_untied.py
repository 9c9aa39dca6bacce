"""Parameters that are one in the model and several on a rank, told where their values are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensure.bundle import Plan
    from tensure.capture import Captured
    from tensure.proving import ProofResult


def with_untied(result: ProofResult, captured: Captured) -> ProofResult:
    """The result, in which every output of a parameter that is wrong says where it was untied.

    Each of the parameters begins as the one of the model; the gradient is the sum over all of them.
    """
    apart = _untied(result.plan, captured)
    tensors = list(result.tensors)
    for at, item in enumerate(tensors):
        _, _, name = item.name.partition(".")
        other = next((key for key in apart if name == key or name.startswith(f"{key}.")), None)
        if other is None or item.status in ("proved", "derived"):
            continue
        said = f"{apart[other]} is {other} in the model (tied) and no longer is after the parallel function"
        tensors[at] = replace(item, why=f"{said}; {item.why}")
    return replace(result, tensors=tuple(tensors))


def _untied(plan: Plan, captured: Captured) -> dict[str, str]:
    """Parameters of the model, each with the name of another that some rank has beside it."""
    found: dict[str, str] = {}
    for other, label in captured.tied.items():
        if label not in captured.program.values:
            continue
        for track in plan.tracks:
            mine, theirs = plan.local(track, other), plan.local(track, label)
            if mine is not None and theirs is not None and mine.place is not None:
                found.setdefault(label, other)
    return found
