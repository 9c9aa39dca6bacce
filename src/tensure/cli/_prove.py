"""`tensure prove` and `tensure check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ._options import Json, Quiet, Verbose, help_text
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.bundle import Verdict

PROVE_EXAMPLES = (
    "tensure prove rows.plan.txt --program net.program.txt",
    "tensure prove rows.plan.txt --program net.program.txt -o rows.certificate --jobs 2",
)
PROVE_HELP = help_text(
    "Prove that a plan computes its program: one verdict on values, one on storage.",
    PROVE_EXAMPLES,
    "Exit code 0 when both are proved, 1 when one is refuted (with rank, tensor, index and step), 3 when "
    "undecided; probable counts as undecided unless --accept-probable says how much doubt is fine.",
)
CHECK_EXAMPLES = ("tensure check rows.certificate --plan rows.plan.txt --program net.program.txt",)
CHECK_HELP = help_text(
    "Re-check a certificate with the independent checker.",
    CHECK_EXAMPLES,
    "Exit code 1 when it is not accepted.",
)
Program = Annotated[
    str, typer.Option("--program", metavar="FILE", help="The program's text (.txt), or a model.")
]
NO: Final = {"refuted": 1, "unknown": 3, "proved": 0}


def prove_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan's text.")],
    program: Program,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the certificate here.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes; the verdict is the same.")] = 1,
    accept_probable: Annotated[
        float | None, typer.Option(metavar="1E-N", help="Count `probable` up to this error bound as yes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Prove PLAN."""
    from tensure import api
    from tensure.bundle import write_file_atomic

    from ._targets import check_target

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_target(output, force=force)
    result = api.prove(plan, program, jobs=jobs)
    proof = result.proof
    if output is not None and result.certificate is not None:
        write_file_atomic(output, result.certificate, replace=force)
    written = str(output) if output is not None and result.certificate is not None else None
    verdicts = {"values": proof.values, "storage": proof.storage}
    talk.result(
        "tensure.prove/1",
        {
            "program": proof.program,
            "plan": proof.plan,
            "verdicts": {key: _fields(verdict) for key, verdict in verdicts.items()},
            "certificate": proof.certificate,
            "file": written,
        },
    )
    for key, verdict in verdicts.items():
        talk.data(f"{key}: {verdict.status} by {verdict.method}{_why(verdict)}")
    if written is not None:
        talk.say(f"certificate written to {written}")
    codes = [_code(verdict, accept_probable) for verdict in verdicts.values()]
    return 1 if 1 in codes else max(codes)


def check_command(
    certificate: Annotated[Path, typer.Argument(metavar="CERT", help="What `tensure prove -o` wrote.")],
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan's text.")],
    program: Program,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Check CERT."""
    from tensure import api

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    report = api.check(certificate, plan, program)
    talk.result(
        "tensure.check/1",
        {
            "accepted": report.accepted,
            "reason": report.reason,
            "locals": report.locals,
            "coverage": report.coverage,
        },
    )
    if report.accepted:
        talk.data(f"accepted: {report.locals} local tensors; {report.coverage}")
        return 0
    talk.error(f"not accepted: {report.reason}")
    return 1


def _code(verdict: Verdict, accept: float | None) -> int:
    if verdict.status == "probable":
        return 0 if accept is not None and verdict.error is not None and verdict.error <= accept else 3
    return NO[verdict.status]


def _why(verdict: Verdict) -> str:
    example = verdict.counterexample
    if example is not None:
        index = ", ".join(map(str, example.index))
        source = f" ({example.source})" if example.source else ""
        found = f"{example.rank}: {example.local} is not {example.claim} at [{index}]"
        return f"\n  {found}\n  {example.step}{source}"
    if verdict.error is not None:
        return f", wrong with a chance below {verdict.error:.1e}"
    return f": {verdict.reason}" if verdict.reason else ""


def _fields(verdict: Verdict) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(verdict)
