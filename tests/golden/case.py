"""What a golden case is: a Program, a Plan for it, values to run it on, and faults to plant in the Plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tensure.bundle import Plan, Track
from tensure.program import Block, Body, For, Op, Program, bind_entry, leaves, numpy_dtype


@dataclass(frozen=True)
class Golden:
    """One case. `params` are the invocations to try, in order; states carry over between them."""

    name: str
    program: Program
    plan: Plan
    faults: Mapping[str, Plan]
    entry: str = "run"
    params: tuple[Mapping[str, int], ...] = ({},)
    storage: bool = False
    storage_faults: Mapping[str, Plan] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    """For each fault, what the first difference must say (a regular expression): where it is seen."""

    def values(
        self, seed: int = 0, params: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded inputs, weights and before-states."""
        rng = np.random.default_rng(seed)
        env = bind_entry(self.program, self.entry, params if params is not None else self.params[0])
        values = {}
        for label, want, _ in leaves(self.program, self.entry, env):
            if want.dtype.startswith("f"):
                values[label] = (rng.standard_normal(want.shape) * 0.5).astype(numpy_dtype(want.dtype))
            else:
                values[label] = rng.integers(-90, 90, want.shape).astype(numpy_dtype(want.dtype))
        return values


def edit(plan: Plan, change: Callable[[Op], Op | None]) -> Plan:
    """The plan with every op passed through `change`; None drops it."""

    def body(items: Body) -> Body:
        out = []
        for item in items:
            if isinstance(item, For):
                out.append(replace(item, body=body(item.body)))
            elif isinstance(item, Op):
                changed = change(item)
                if changed is not None:
                    out.append(changed)
            else:
                out.append(item)
        return tuple(out)

    def track(old: Track) -> Track:
        return replace(old, bodies={key: body(items) for key, items in old.bodies.items()})

    return replace(
        plan,
        blocks={key: Block(block.params, body(block.body)) for key, block in plan.blocks.items()},
        tracks={key: track(old) for key, old in plan.tracks.items()},
    )
