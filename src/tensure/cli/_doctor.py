"""`tensure doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ._options import Json, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "doctor"
EXAMPLES = ("tensure doctor", "tensure doctor --json")
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
        rows = [(str(what), _plain(value)) for what, value in facts.items()]
        if rows:
            talk.rows(rows, to_data=True)
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
