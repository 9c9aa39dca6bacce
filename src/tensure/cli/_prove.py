"""`tensure prove` and `tensure check`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tensure.errors import InputError

from ._options import Json, Quiet, Verbose, help_text
from ._prove_words import HELD, tensor_lines, verdict_words
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.bundle import Replay, Verdict

PROVE_EXAMPLES = (
    "tensure prove rows.plan.txt --program net.program.txt",
    "tensure prove rows.plan.txt --program net.program.txt -o rows.certificate --jobs 2",
    "tensure prove --model train:model --parallel train:tensor_parallel --mesh tp=2",
    "tensure prove --model train:model --parallel train:pipeline --mesh pp=2 --microbatches 2 --keep proof",
    "tensure prove --model train:model --parallel train:tensor_parallel --mesh tp=2 --optimizer train:adamw",
    "tensure prove --model train:model --parallel train:tensor_parallel --mesh tp=2 --small train:tiny",
)
SCRIPT_EXAMPLES = ("tensure prove --script 'train.py --steps 10' --nproc 2",)
NAMED_EXAMPLES = ("tensure prove llama3-8b@dp2-tp4", "tensure prove llama3-405b@dp64-tp8-pp16-mb16")
PROVE_HELP = help_text(
    "Prove that a plan computes its program, or that a parallel PyTorch step computes what its model says: "
    "one verdict on values, one on storage.",
    (*PROVE_EXAMPLES, *SCRIPT_EXAMPLES, *NAMED_EXAMPLES),
    "--model names a function that returns a module and its example inputs, --parallel one that is given "
    "the module and the mesh and makes it parallel; both run here, on a process group that does not exist. "
    "With --optimizer, a function from the parameters to a torch.optim optimizer, its step is part of both. "
    "--script runs a script under torchrun as far as its call of tensure.prove_step, and shows that proof. "
    "--small names one that returns the same module with smaller sizes: what is unknown of a model too "
    "large to run is tried there, where a fault can be shown. "
    "NAME@dpA-tpB-ppC-mbD stands for both: a public model, replicas, tensor-parallel ranks, stages and "
    "micro-batches of a replica. Of over 256 ranks, up to 65,536, those that do the same are taken together. "
    "Exit code 0 when both are proved, 1 when one is refuted (with rank, tensor, index and step), 3 when "
    "undecided; probable counts as undecided unless --accept-probable says how much doubt is fine. A refuted "
    "step of up to 16 ranks is run for real as well, which says whether it is confirmed.",
)
CHECK_EXAMPLES = ("tensure check rows.certificate --plan rows.plan.txt --program net.program.txt",)
CHECK_HELP = help_text(
    "Re-check a certificate with the independent checker.",
    CHECK_EXAMPLES,
    "Exit code 1 when it is not accepted.",
)
CheckedProgram = Annotated[
    str, typer.Option("--program", metavar="FILE", help="The program's text (.txt), or a model.")
]
WANTED: Final = (
    "PLAN --program FILE, or --model PKG:FN --parallel PKG:FN --mesh AXIS=N,..., or --script 'FILE ARGS' "
    "--nproc N, or NAME@dpA-tpB-ppC-mbD"
)
NO: Final = {"refuted": 1, "unknown": 3, "proved": 0}


def prove_command(
    plan: Annotated[
        str | None,
        typer.Argument(metavar="[PLAN]", help="The plan's text, or a public model's name with @ and sizes."),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option("--program", metavar="FILE", help="The program's text (.txt), or a model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PKG:FN", help="The step on one device.")
    ] = None,
    parallel: Annotated[
        str | None, typer.Option("--parallel", metavar="PKG:FN", help="What makes it parallel.")
    ] = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", metavar="AXIS=N,...", help="Axes of the mesh, outermost first.")
    ] = None,
    microbatches: Annotated[
        int | None,
        typer.Option("--microbatches", min=1, metavar="N", help="Handed to the parallel function."),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option("--optimizer", metavar="PKG:FN", help="From parameters to what steps them."),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option("--script", metavar="'FILE ARGS'", help="A script that calls tensure.prove_step."),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", min=1, max=256, metavar="N", help="Its processes, on this machine."),
    ] = None,
    small: Annotated[
        str | None,
        typer.Option("--small", metavar="PKG:FN", help="The model with smaller sizes, to show a fault on."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Write the traced program.txt and plan.txt there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the certificate here.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with every output's verdict.")
    ] = None,
    classes: Annotated[
        bool | None,
        typer.Option(
            "--classes/--each-rank",
            help="Trace a few ranks, each for its class, or all; else a few of over 256.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes; the verdict is the same.")] = 1,
    replay: Annotated[
        bool | None,
        typer.Option(
            "--replay/--no-replay",
            help="Run the step itself too, or not; else where it is refuted.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Count a proof of batches without ignored labels alone as undecided.",
        ),
    ] = False,
    accept_probable: Annotated[
        float | None, typer.Option(metavar="1E-N", help="Count `probable` up to this error bound as yes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Prove PLAN, or a parallel step."""
    from tensure import api
    from tensure.bundle import format_plan, write_file_atomic
    from tensure.program import format_program
    from tensure.proving import multiple_words

    from ._targets import check_target

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    targets = [] if keep is None else [keep / "program.txt", keep / "plan.txt"]
    if keep is not None:
        check_target(keep, force=True, is_folder=True)
    for target in [
        *(targets if keep and keep.exists() else ()),
        *(path for path in (output, html) if path is not None),
    ]:
        check_target(target, force=force)
    if accept_probable is not None and not 0 < accept_probable < 1:
        raise InputError(
            f"--accept-probable {accept_probable:g}", wanted="a chance above 0 and below 1, such as 1e-9"
        )
    is_step = any(option is not None for option in (model, parallel, mesh, microbatches, small))
    if script is not None or nproc is not None:
        if script is None or nproc is None:
            had, lacks = ("--nproc", "--script") if script is None else ("--script", "--nproc")
            raise InputError(f"{had} without {lacks}", wanted="--script 'FILE ARGS' --nproc N")
        others = {
            "PLAN": plan, "--program": program, "--model": model, "--parallel": parallel, "--mesh": mesh,
            "--microbatches": microbatches, "--small": small, "--optimizer": optimizer,
            "--replay": replay or None, "--classes": classes,
        }  # fmt: skip
        if odd := [option for option, value in others.items() if value is not None]:
            raise InputError(
                f"--script with {', '.join(odd)}", wanted="the script alone, which says these itself"
            )
        result = api.prove_script(_words(script), nproc, strict=strict)
    elif plan is not None and program is not None:
        if is_step or keep or optimizer is not None or classes is not None:
            raise InputError("a plan and options for a parallel step", wanted=WANTED)
        with talk.stages() as (stage, _):
            result = api.prove(plan, program, jobs=jobs, replay=replay, strict=strict, stage=stage)
    elif plan is not None and "@" in plan:
        if is_step:
            raise InputError(f"{plan} and options for another step", wanted=WANTED)
        with talk.stages() as (stage, progress):
            result = api.prove(
                plan,
                optimizer=optimizer,
                classes=classes,
                jobs=jobs,
                replay=replay,
                strict=strict,
                stage=stage,
                progress=progress,
            )
    elif plan is not None or program is not None or model is None or parallel is None or mesh is None:
        given = {"--model": model, "--parallel": parallel, "--mesh": mesh}
        missing = [option for option, value in given.items() if value is None]
        if plan is None and program is None and 0 < len(missing) < len(given):
            raise InputError(f"a parallel step without {' and '.join(missing)}", wanted=WANTED)
        raise InputError("nothing to prove", wanted=WANTED)
    else:
        with talk.stages() as (stage, progress):
            result = api.prove(
                parallel,
                model,
                mesh=_mesh(mesh),
                microbatches=microbatches,
                optimizer=optimizer,
                small=small,
                classes=classes,
                jobs=jobs,
                replay=replay,
                strict=strict,
                stage=stage,
                progress=progress,
            )
    proof = result.proof
    if output is not None and result.certificate is not None:
        write_file_atomic(output, result.certificate, replace=force)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        texts = (format_program(result.program), format_plan(result.plan))
        for target, text in zip(targets, texts, strict=True):
            write_file_atomic(target, text.encode(), replace=force)
    if html is not None:
        write_file_atomic(html, api.proof_page(result).encode(), replace=force)
    file = str(output) if output is not None and result.certificate is not None else None
    verdicts = {"values": proof.values, "storage": proof.storage}
    talk.result(
        "tensure.prove/1",
        {
            "program": proof.program,
            "plan": proof.plan,
            "verdicts": {key: _fields(verdict) for key, verdict in verdicts.items()},
            "certificate": proof.certificate,
            "file": file,
            "classes": [{"ranks": ranks, "reason": reason} for ranks, reason in result.classes],
            "tensors": [dataclasses.asdict(tensor) for tensor in result.tensors],
            "numerics": list(result.numerics),
            "replay": None if result.replay is None else _replayed(result.replay, proof.values.status),
            "kept": [str(target) for target in targets],
            "html": None if html is None else str(html),
        },
    )
    factor = multiple_words({tensor.name: tensor.factor for tensor in result.tensors})
    for key, verdict in verdicts.items():
        talk.data(f"{key}: {verdict.status} by {verdict.method}{verdict_words(verdict, factor)}")
    for words in result.numerics:
        talk.data(f"numerics: {words}")
    if result.replay is not None:
        talk.data(f"replay: {result.replay.words(proof.values.status)}")
    if result.tensors:
        held = sum(tensor.status in HELD for tensor in result.tensors)
        talk.say(f"{held} of {len(result.tensors)} outputs derived")
    for line in tensor_lines(result.tensors, is_full=verbose):
        talk.say(f"  {line}")
    for ranks, reason in result.classes:
        talk.detail(f"  {ranks}: {reason}")
    if html is not None:
        talk.say(f"page written to {html}")
    if file is not None:
        talk.say(f"certificate written to {file}")
    for target in targets:
        talk.say(f"written: {target}")
    is_bare = proof.values.status == "proved" and "given that" not in proof.values.method
    if result.replay is not None and result.replay.status == "differs" and is_bare:
        talk.error("proof and replay contradict each other: one of them is wrong, please report it")
        return 4
    codes = [_code(verdict, accept_probable) for verdict in verdicts.values()]
    return 1 if 1 in codes else max(codes)


def _replayed(replay: Replay, verdict: str) -> dict[str, Any]:
    return {**dataclasses.asdict(replay), "confirms": replay.confirms(verdict)}


def _mesh(text: str) -> dict[str, int]:
    """`dp=2,tp=4` as sizes by axis."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, sep, size = part.strip().partition("=")
        if name in found:
            raise InputError(f"--mesh {text} names {name} twice", wanted="each axis once, such as dp=2,tp=4")
        if not sep or not name.isidentifier() or not size.isdecimal() or len(size) > 6:
            raise InputError(f"--mesh {text}", wanted="axes with their sizes, such as dp=2,tp=4")
        found[name] = int(size)
    return found


def _words(script: str) -> list[str]:
    """A script and its arguments, as a shell takes them apart."""
    try:
        return shlex.split(script)
    except ValueError as error:
        raise InputError(f"--script {script}: {error}", wanted="a file and its arguments") from None


def check_command(
    certificate: Annotated[Path, typer.Argument(metavar="CERT", help="What `tensure prove -o` wrote.")],
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan's text.")],
    program: CheckedProgram,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes; the answer is the same.")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Check CERT."""
    from tensure import api

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    report = api.check(certificate, plan, program, jobs=jobs)
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


def _fields(verdict: Verdict) -> dict[str, Any]:
    return dataclasses.asdict(verdict)
