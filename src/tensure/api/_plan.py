"""`plan`: how a model runs on the machines. For now one machine runs all of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tensure.errors import NotYetError

if TYPE_CHECKING:
    from tensure.bundle import Fleet, Plan
    from tensure.program import Model, Program

__all__ = ["plan"]


def plan(model: Model | Program, fleet: Fleet | None = None) -> Plan:
    """The Plan for a model on a fleet.

    Args:
        model: what `load` gives, or a Program.
        fleet: the machines; this one, unmeasured, when left out.

    Raises:
        NotYetError: a fleet of several devices; the planners for those are coming.
    """
    from tensure.bundle import fleet_digest
    from tensure.planning import host_plan
    from tensure.program import Program

    program = model if isinstance(model, Program) else model.program
    if fleet is None:
        return host_plan(program)
    if len(fleet.devices) != 1 or next(iter(fleet.devices.values())).count != 1:
        raise NotYetError(
            f"planning over {sum(device.count for device in fleet.devices.values())} devices",
            wanted="a fleet of one device",
            next_step="Plans over several devices (rows, stages, shards) are not built yet",
        )
    return dataclasses.replace(host_plan(program, next(iter(fleet.devices))), fleet=fleet_digest(fleet))
