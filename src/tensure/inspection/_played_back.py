"""A finished recording gone through again step by step, as if it ran: for conditions and for a `Stepper`.

Knows recordings and who follows a run. Runs nothing: what a step made is what was kept of it.
"""

from __future__ import annotations

from itertools import islice

from ._recorder import Follower, OnStep
from ._recording import Recording
from ._records import Trace

__all__ = ["play_back"]


def play_back(recording: Recording, on_step: OnStep) -> Recording:
    """Tell `on_step` of every recorded step in order, with the values that were kept; none if none were.

    A follower sees a trace that grows as it grew in the run: what a later step made is not there yet.
    """
    whole, store = recording.trace, recording.values
    shown = Trace(whole.name, whole.how, notes=whole.notes)
    if isinstance(on_step, Follower):
        on_step.begin(shown, store)
    place = {name: at for at, name in enumerate(whole.tensors)}
    rest = iter(whole.tensors.items())
    for step in whole.steps:
        needed = max((place[name] for name in (*step.reads, *step.wrote, *step.outs)), default=-1)
        shown.tensors.update(islice(rest, max(0, needed + 1 - len(shown.tensors))))
        shown.steps.append(step)
        shown.peak_bytes = max(shown.peak_bytes, step.live_bytes)
        on_step(
            step, {name: store.get(name) for name in step.outs if name in store} if store is not None else {}
        )
    shown.tensors.update(rest)
    shown.outputs = whole.outputs
    return recording
