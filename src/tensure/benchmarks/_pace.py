"""What the machine allows, measured in turn with the engines: the clock of a shared processor wanders.

A limit that is measured once, at the machine's best moment, makes every share too small at its other
moments. A pace is asked in each round, beside the engines, and a share is the median of the shares inside
rounds. Knows how to ask a child for a rate. Does not know what runs at that rate.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._child import ChildEngine, child_environment, engine_command
from ._records import Case, Json, Scope, Timing

__all__ = ["Pace"]

SECONDS = 0.03
"""Of each measurement: long enough for the clock to settle, short beside a round."""


class Pace:
    """An engine that does a case's work at the rate of `kind` on registers ("f32", "int8", "bf16")."""

    def __init__(self, scope: Scope, kind: str, env: Mapping[str, str] | None = None) -> None:
        self._kind = kind
        self._child = ChildEngine(
            engine_command("limits"), {**child_environment(scope), **(dict(env) if env else {})}
        )

    def check(self, case: Case) -> Json:
        """Nothing: it computes nothing that anybody asked for."""
        return None

    def run(self, case: Case) -> Timing:
        """The seconds that the case's operations take at the rate measured now."""
        asked = {"kind": self._kind, "threads": case.threads, "seconds": SECONDS}
        seconds = case.work / self._child.ask("peak", asked)["value"]
        return Timing(seconds, seconds * case.threads)

    def facts(self) -> Mapping[str, Json]:
        """Nothing beyond its rate."""
        return {}

    def close(self) -> None:
        """Ends the child."""
        self._child.close()
