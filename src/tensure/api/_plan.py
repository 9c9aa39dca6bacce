"""`plan`: how a model runs on the machines. For now one machine runs all of it, with kernels chosen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tensure.errors import NotYetError

if TYPE_CHECKING:
    from tensure.bundle import Fleet, Plan
    from tensure.planning import Accuracy
    from tensure.program import Model, Program

__all__ = ["plan"]


def plan(
    model: Model | Program,
    fleet: Fleet | None = None,
    *,
    tune: bool = False,
    threads: int = 1,
    accuracy: Accuracy = "strict",
) -> Plan:
    """The Plan for a model on a fleet.

    Convolutions of entries without states carry a note: algorithm, layout and why. Notes change neither what
    is computed nor the plan's digest.

    Args:
        model: what `load` gives, or a Program.
        fleet: the machines; this one, unmeasured, when left out.
        tune: measure the most promising kernels here, and remember the times, instead of estimating them.
        threads: that kernels are chosen for.
        accuracy: "strict", or "1e-4", which lets Winograd in. A session runs strict kernels only, whatever
            is noted.

    Raises:
        NotYetError: a fleet of several devices; the planners for those are coming.
    """
    from tensure.bundle import fleet_digest
    from tensure.errors import InputError
    from tensure.kernels import check_threads
    from tensure.planning import ACCURACIES, host_plan
    from tensure.program import Program

    check_threads(threads)
    if accuracy not in ACCURACIES:
        raise InputError(f"got {accuracy!r:.40}", place="accuracy", wanted=" or ".join(ACCURACIES))
    program = model if isinstance(model, Program) else model.program
    if fleet is None:
        return _with_kernels(program, host_plan(program), tune, threads, accuracy)
    if len(fleet.devices) != 1 or next(iter(fleet.devices.values())).count != 1:
        raise NotYetError(
            f"planning over {sum(device.count for device in fleet.devices.values())} devices",
            wanted="a fleet of one device",
            next_step="Plans over several devices (rows, stages, shards) are not built yet",
        )
    made = dataclasses.replace(host_plan(program, next(iter(fleet.devices))), fleet=fleet_digest(fleet))
    return _with_kernels(program, made, tune, threads, accuracy)


def _with_kernels(program: Program, plan: Plan, tune: bool, threads: int, accuracy: Accuracy) -> Plan:
    """The plan with a note at every convolution whose kernel could be chosen."""
    from tensure.errors import LimitError, UnsupportedError
    from tensure.planning import TuningCache, default_cache_path, note_kernels, plan_layouts

    known = TuningCache(default_cache_path(), threads=threads) if tune else None
    for label, entry in program.entries.items():
        if entry.states or entry.params:
            continue  # their sizes are settled when they are called
        try:
            found = plan_layouts(
                program,
                label,
                threads=threads,
                accuracy=accuracy,
                measure=None if known is None else known.measure,
                move_cost=None if known is None else known.move,
            )
        except (UnsupportedError, LimitError):
            continue  # nothing here that kernels are chosen for; the plan is whole without notes
        plan = note_kernels(plan, label, found.choices)
    if known is not None:
        known.save()
    return plan
