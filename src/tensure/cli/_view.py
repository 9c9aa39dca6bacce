"""`tensure view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Key, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "view"
EXAMPLES = ("tensure view out.receipt.json -o receipt.html", "tensure view smollm2.bundle -o bundle.html")
HELP = help_text("Make one self-contained HTML page of a bundle, program, plan or receipt.", EXAMPLES)


def command(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A bundle folder, or a program, plan or receipt file.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="HTML", help="Write here instead of to stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    key: Key = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make a page of FILE."""
    from tensure.api import page_of

    from ._targets import check_target

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_target(output, force=force)
    page = page_of(path, key=key)
    if output is None:
        talk.data(page, end="")
    else:
        from tensure.bundle import write_file_atomic

        write_file_atomic(output, page.encode(), replace=force)
        talk.data(str(output))
    where = {"page": page} if output is None else {"file": str(output)}
    talk.result("tensure.view/1", {**where, "bytes": len(page.encode())})
    return 0
