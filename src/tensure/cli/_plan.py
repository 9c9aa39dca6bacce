"""`tensure plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import Json, ModelArgument, Quiet, Verbose, help_text
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.bundle import Fleet

NAME = "plan"
EXAMPLES = ("tensure plan smollm2-135m", "tensure plan smollm2-135m --fleet fleet.toml -o host.plan.txt")
HELP = help_text(
    "Plan how a model runs on the machines.",
    EXAMPLES,
    "For now: all of it on one device. The plan's text is written with -o, or printed with --text.",
)


def command(
    model: ModelArgument,
    fleet: Annotated[
        Path | None, typer.Option(metavar="TOML", help="The machines; this one when left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the plan here.")
    ] = None,
    as_text: Annotated[bool, typer.Option("--text", help="Print the whole plan.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Plan MODEL."""
    from tensure import api
    from tensure.bundle import format_plan, plan_digest

    from ._targets import check_target

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_target(output, force=force)
    machines = None if fleet is None else _read_fleet(fleet)
    found = api.load(model)
    plan = api.plan(found, machines)
    text = format_plan(plan)
    if output is not None:
        from tensure.bundle import write_file_atomic

        write_file_atomic(output, text.encode(), replace=force)
    talk.result(
        "tensure.plan/1",
        {
            "model": found.name,
            "program": plan.program,
            "plan": plan_digest(plan),
            "ranks": plan.num_ranks(),
            "file": None if output is None else str(output),
        },
    )
    if as_text:
        talk.data(text, end="")
    elif output is not None:
        talk.data(str(output))
    summary = f"{found.name}: {plan.num_ranks()} rank, nothing moves between machines; {plan_digest(plan)}"
    (talk.say if as_text or output is not None else talk.data)(summary)
    return 0


def _read_fleet(path: Path) -> Fleet:
    from tensure.bundle import parse_fleet
    from tensure.errors import InputError, TensureError

    try:
        if path.stat().st_size > 1 << 20:
            raise InputError("a fleet file of over 1 MiB", file=path)
        return parse_fleet(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}", file=path
        ) from None
    except TensureError as error:
        raise error.at(path) from None
