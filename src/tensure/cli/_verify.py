"""`tensure verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Key, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "verify"
EXAMPLES = ("tensure verify smollm2.bundle", "tensure verify smollm2.bundle --json")
HELP = help_text(
    "Check a bundle: its signature, and every byte against its digest.",
    EXAMPLES,
    "Exit code 1 when anything is damaged (each place is named), 2 when there is no bundle. "
    "A receipt is checked too, as `tensure receipt verify` does.",
)


def command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A sealed bundle.")],
    key: Key = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Verify DIR."""
    from tensure.api import verify

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    with talk.progress(f"reading {path}") as report:
        verdict = verify(path, key=key, progress=report)
    return show_verdict(talk, verdict)


def show_verdict(talk: Talk, verdict: object) -> int:
    """Print a Verification; returns its exit code."""
    from tensure.api import Verification

    assert isinstance(verdict, Verification)
    talk.result(
        "tensure.verify/1",
        {
            "kind": verdict.kind,
            "path": verdict.path,
            "ok": verdict.ok,
            "damage": list(verdict.damage),
            "facts": [{"what": what, "value": value} for what, value in verdict.facts],
        },
    )
    for line in verdict.damage:
        talk.say(f"damaged: {line}")
    if verdict.facts and not talk.quiet:
        talk.rows(verdict.facts, to_data=True)
    talk.data(f"{verdict.path}: {'verified' if verdict.ok else 'NOT what was signed'}")
    return 0 if verdict.ok else 1
