"""`tensure doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ._options import Json, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "doctor"
EXAMPLES = ("tensure doctor", "tensure doctor --json")
_UNITS = {"memory_bytes": "GB", "f32_flops": "GFLOP/s", "read_bytes_per_s": "GB/s"}
_SHORT = {"memory_bytes": "memory", "f32_flops": "f32 arithmetic", "read_bytes_per_s": "reading memory"}
HELP = help_text("Say what this machine has, what is missing, and how to get it.", EXAMPLES)


def command(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure arithmetic and bandwidth (1 s).")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Look around."""
    from tensure.api import examine

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    found = examine(measure=measure)
    talk.result("tensure.doctor/1", found)
    for section, facts in found.items():
        talk.data(section)
        rows = [(_SHORT.get(what, what), _plain(what, value)) for what, value in facts.items()]
        if rows:
            talk.rows(rows, to_data=True)
    return 0


def _plain(what: str, value: Any) -> str:
    if isinstance(value, int | float) and (unit := _UNITS.get(what)):
        return f"{value / 1e9:.1f} {unit}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
