"""`tensure plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tensure.errors import InputError

from ._options import Json, ModelArgument, Quiet, Verbose, help_text
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.bundle import Fleet, Plan
    from tensure.planning import Accuracy

NAME = "plan"
EXAMPLES = (
    "tensure plan smollm2-135m",
    "tensure plan efficientnet-lite0 --tune --explain",
    "tensure plan smollm2-135m --fleet fleet.toml -o host.plan.txt",
)
HELP = help_text(
    "Plan how a model runs on the machines.",
    EXAMPLES,
    "For now: all of it on one device. The plan's text is written with -o, or printed with --text; "
    "--explain says which kernel each convolution runs with, and why.",
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
    explain: Annotated[bool, typer.Option("--explain", help="Print the chosen kernels and why.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the most promising kernels here, and remember the times.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="To choose kernels for.")] = 1,
    accuracy: Annotated[
        str,
        typer.Option(
            metavar="CLASS", help="strict, or 1e-4, which lets Winograd in; sessions run strict kernels only."
        ),
    ] = "strict",
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
    plan = api.plan(found, machines, tune=tune, threads=threads, accuracy=_accuracy(accuracy))
    chosen = _chosen(plan)
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
            "kernels": chosen,
            "file": None if output is None else str(output),
        },
    )
    if explain:
        talk.data("\n".join(f"{row['value']}: {row['why']}" for row in chosen) or "no kernel was chosen")
    if as_text:
        talk.data(text, end="")
    elif output is not None:
        talk.data(str(output))
    summary = f"{found.name}: {plan.num_ranks()} rank, nothing moves between machines; {plan_digest(plan)}"
    (talk.say if as_text or output is not None else talk.data)(summary)
    return 0


def _accuracy(text: str) -> Accuracy:
    from tensure.planning import ACCURACIES

    for known in ACCURACIES:
        if text == known:
            return known
    raise InputError(f"got {text[:40]!r}", place="--accuracy", wanted="strict or 1e-4")


def _chosen(plan: Plan) -> list[dict[str, str]]:
    """The kernels that the plan's notes name, in order."""
    from tensure.program import Op

    found = []
    for track in plan.tracks.values():
        for body in track.bodies.values():
            for item in body:
                note = dict(item.note) if isinstance(item, Op) else {}
                if "kernel" in note and isinstance(item, Op):
                    found.append(
                        {
                            "value": str(item.outs[0]),
                            "kernel": str(note["kernel"]),
                            "why": str(note.get("why", "")),
                        }
                    )
    return found


def _read_fleet(path: Path) -> Fleet:
    from tensure.bundle import parse_fleet
    from tensure.errors import TensureError

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
