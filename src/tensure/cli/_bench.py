"""`tensure bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "bench"
EXAMPLES = ("tensure bench", "tensure bench decode --quick", "tensure bench conv --only conv9 --batch 8")
HELP = help_text(
    "Measure, with the peers that are installed beside us, interleaved in one run.",
    EXAMPLES,
    "Exit code 1 when one of its targets was missed.",
)


def command(
    name: Annotated[str | None, typer.Argument(help="Which benchmark; all are listed when left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="An honest slice of at most 60 s.")] = False,
    threads: Annotated[list[int] | None, typer.Option(help="How many threads; may be given again.")] = None,
    cpu_time: Annotated[bool, typer.Option("--cpu-time", help="Processor time instead of elapsed.")] = False,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size, where there is one; may be given again.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only cases with this word in their name; may be given again.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Also write a result file into this folder.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run the benchmark NAME."""
    from tensure import benchmarks

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if name is None:
        talk.data("\n".join(benchmarks.names()))
        talk.result("tensure.bench-names/1", {"names": list(benchmarks.names())})
        return 0
    report = benchmarks.bench(
        name,
        quick=quick,
        threads=threads or None,
        cpu_time=cpu_time,
        batches=batch or (),
        only=only or (),
        progress=talk.say,
    )
    table = report.to_json()
    talk.data(benchmarks.markdown(table))
    if save is not None:
        talk.say(f"result: {report.save(save)}")
    talk.result("tensure.bench/1", table)
    return report.exit_code
