"""`tensure verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ._options import Json, Key, Quiet, Verbose, help_text
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.api import Verification

NAME = "verify"
EXAMPLES = ("tensure verify smollm2.bundle", "tensure verify smollm2.bundle --json")
HELP = help_text(
    "Check a bundle: its signature, and every byte against its digest.",
    EXAMPLES,
    "Exit code 1 when anything is damaged (each place is named), 2 when there is no bundle. "
    "A receipt is checked too, as `tensure receipt verify` does.",
)

WORDS: Final = {
    "tampered": "tampered: NOT what was signed",
    "untrusted": "signer not trusted",
    "other output": "is for another output",
    "other bundle": "is for another bundle",
    "other nonce": "is for another nonce",
    "bad bundle": "not compared: the bundle does not verify",
}


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


def show_verdict(talk: Talk, verdict: Verification) -> int:
    """Print a verdict; returns its exit code. The reason of a no is said with --quiet too."""
    talk.result(
        "tensure.verify/1",
        {
            "kind": verdict.kind,
            "path": verdict.path,
            "ok": verdict.ok,
            "reason": verdict.reason,
            "compared": list(verdict.compared),
            "damage": list(verdict.damage),
            "facts": _facts(verdict),
        },
    )
    for line in verdict.damage:
        talk.error(line)
    if verdict.facts and not talk.quiet:
        if verdict.kind == "receipt":
            talk.data("the issuer says:")
        talk.rows(verdict.facts, to_data=True)
    talk.data(f"{verdict.path}: {in_words(verdict)}")
    return 0 if verdict.ok else 1


def _facts(verdict: Verification) -> list[dict[str, str]]:
    """Every fact in full, with its basis."""
    from tensure.receipts import summarize

    rows: tuple[tuple[str, str, str], ...] = tuple((*fact, "checked-now") for fact in verdict.facts)
    if verdict.receipt is not None:
        rows = summarize(verdict.receipt, full=True)
    return [{"what": what, "value": value, "basis": basis} for what, value, basis in rows]


def in_words(verdict: Verification) -> str:
    """A verdict in one line: what was established, and what nobody looked at."""
    if verdict.reason is not None:
        return WORDS[verdict.reason]
    if verdict.kind == "bundle":
        return "verified"
    fits = [f"{what} {'fit' if what == 'outputs' else 'fits'}" for what in verdict.compared]
    if "outputs" not in verdict.compared:
        fits.append("output not compared (pass --output)")
    return f"signature verified; {', '.join(fits)}"
