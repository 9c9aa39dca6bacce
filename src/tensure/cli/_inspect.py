"""`tensure inspect`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import (
    Entry,
    InputFile,
    InspectArgument,
    Json,
    Param,
    PlanFile,
    Prompt,
    Quiet,
    Seed,
    Size,
    Verbose,
    Way,
    help_text,
    parse_params,
    parse_sizes,
)
from ._talk import Talk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tensure.inspection import Break, Recording, Stop, Trace

NAME = "inspect"
EXAMPLES = (
    "tensure inspect efficientnet-lite0 --input photo.png",
    "tensure inspect efficientnet-lite0 --input photo.png --step",
    "tensure inspect efficientnet-lite0 --seed 0 --break nan --break '|x|>1e4'",
    "tensure inspect model.onnx --size batch=1 --size seq=128 --seed 0",
    "tensure inspect smollm2-135m --prompt \"Why is the sky blue?\" --only '*attn*' --digest -o sky.trace",
)
HELP = help_text(
    "Step through every tensor of a run: type, memory, statistics, digest.",
    EXAMPLES,
    "Prints a table of steps and a summary, or with --json the whole trace. --step begins a view to go "
    "through the run as it happens (n next, b back, c continue, h help), also from a script on stdin. "
    "--break COND does so at a terminal, from the first step that meets it; elsewhere it stops there, prints "
    "that step and exits 1, or 0 when no step did. COND is nan (a NaN or Inf that no operand had), |x|>1e4, "
    "shape=1,*,7,7, name=GLOB, op=GLOB or module=GLOB. A recording written with -o FILE.trace "
    "is for tensure diff; given as MODEL, its steps are gone through likewise.",
)


def command(
    model: InspectArgument,
    input_file: InputFile = None,
    prompt: Prompt = None,
    seed: Seed = None,
    entry: Entry = None,
    param: Param = None,
    size: Size = None,
    by: Annotated[
        Way | None,
        typer.Option(
            "--by", help="torch op by op (when left out), our fused kernels, or the plain numpy reference."
        ),
    ] = None,
    plan: PlanFile = None,
    step: Annotated[bool, typer.Option("--step", help="Go through the run step by step.")] = False,
    breaks: Annotated[
        list[str] | None, typer.Option("--break", metavar="COND", help="Stop where this is met; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Show steps of this op, module or tensor; repeatable."),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="All columns, weights and inputs too.")] = False,
    digest: Annotated[
        bool, typer.Option("--digest", help="A 128-bit digest of each tensor: position, sign, shape count.")
    ] = False,
    limit: Annotated[
        float | None, typer.Option("--limit", metavar="C", help="Count elements with |x| over this.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep all values on disk while stepping, to print any of them.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.trace", help="Save the run, values too, for diff."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Inspect MODEL."""
    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    steps_through = step or (bool(breaks) and is_terminal and not as_json)
    _check(model, input_file, prompt, output, html, force, as_json, steps_through, bool(breaks))
    from tensure import api
    from tensure.inspection import limit_of, parse_break

    conditions = [parse_break(words) for words in breaks or ()]
    if _doing(model) == "reading":
        given = (input_file, prompt, entry, param or None, size or None, by, plan, seed, limit)
        _refuse_for_recording(model, given)
        record = _recorded(model, conditions, digest, keep)
    else:
        record = partial(
            api.inspect,
            model,
            input_file if prompt is None else prompt,
            entry=entry,
            params=parse_params(param or []) or None,
            sizes=parse_sizes(size),
            by=by or "torch",
            plan=plan,
            seed=seed,
            digest=digest or output is not None,
            limit=limit_of(conditions) if limit is None else limit,
            keep=keep or output is not None or html is not None,
        )
    if steps_through:
        return _step_through(talk, model, record, conditions, run_on=bool(conditions) and not step)
    stop, recording = _record(talk, model, record, conditions)
    return _show(talk, recording, stop, only or [], long, output, html, force)


def _check(
    model: str,
    input_file: Path | None,
    prompt: str | None,
    output: Path | None,
    html: Path | None,
    force: bool,
    as_json: bool,
    steps_through: bool,
    breaks: bool,
) -> None:
    """Refuse what cannot be meant, before any work."""
    from tensure.errors import InputError

    from ._targets import check_target

    check_inputs_of(input_file, prompt)
    if steps_through and (as_json or output is not None or html is not None):
        raise InputError(
            "--step with --json, --output or --html",
            wanted="one of them: a run that is stepped through leaves none",
        )
    if breaks and output is not None:
        raise InputError("--break with --output", wanted="one of them: a run that is stopped is not whole")
    if output is not None and output.suffix != ".trace":
        raise InputError("a run is saved as a recording", file=output, wanted="a name that ends in .trace")
    for target in (output, html):
        if target is not None:
            check_target(target, force=force)


def check_inputs_of(input_file: Path | None, prompt: str | None) -> None:
    """Refuse an input that is not there, and two at once."""
    from tensure.errors import InputError

    if input_file is not None and prompt is not None:
        raise InputError("--input with --prompt", wanted="one of them")
    if prompt == "":
        raise InputError("the prompt is empty", wanted="at least one character")
    if input_file is not None and not input_file.is_file():
        raise InputError(
            "is not a file" if input_file.exists() else "no such file",
            file=input_file,
            wanted="a tensor (.npy), tensors (.npz) or an image (.png, .jpg)",
        )


def _refuse_for_recording(model: str, given: Sequence[object]) -> None:
    from tensure.errors import InputError

    names = ("--input", "--prompt", "--entry", "--param", "--size", "--by", "--plan", "--seed", "--limit")
    found = [name for name, value in zip(names, given, strict=True) if value is not None]
    if found:
        raise InputError(
            f"a recording is not run again: {', '.join(found)} cannot apply",
            file=model,
            wanted="the recording alone",
        )


def _recorded(model: str, conditions: list[Break], digest: bool, keep: bool) -> Callable[..., Recording]:
    """A recording read once, gone through as a run is."""
    from tensure import api
    from tensure.errors import InputError

    recording = api.inspect(model, digest=digest, keep=keep)
    tensors = recording.trace.tensors.values()
    asked = [item.text for item in conditions if item.kind in ("nan", "over")]
    if asked and tensors and all(facts.statistics is None for facts in tensors):
        raise InputError(
            f"--break {asked[0]}: this recording has no statistics",
            file=model,
            next_step="Record with statistics=True",
        )
    return partial(api.inspect, recording)


def _step_through(
    talk: Talk, model: str, record: Callable[..., Recording], conditions: list[Break], *, run_on: bool
) -> int:
    from tensure.inspection import Stepper

    from ._code import as_theirs
    from ._stepping import Stepping

    with Stepper(lambda on_step: record(on_step=on_step), conditions) as run:
        talk.say("h lists the commands, q quits")
        Stepping(talk, run, lambda error: as_theirs(error, model, verbose=talk.verbose)).run(run_on=run_on)
    return 0


def _record(
    talk: Talk, model: str, record: Callable[..., Recording], conditions: list[Break]
) -> tuple[Stop | None, Recording]:
    """The whole run, or with conditions the run up to where one is met."""
    from tensure.inspection import Recording, Stepper

    from ._code import of_their_code

    with talk.progress(f"{_doing(model)} {model}"), of_their_code(model, verbose=talk.verbose):
        if not conditions:
            return None, record()
        with Stepper(lambda on_step: record(on_step=on_step), conditions) as run:
            stop = run.go()
            return (stop if stop.why == "break" else None), run.recording or Recording(run.trace)


def _doing(model: str) -> str:
    from tensure.inspection import TRACE_SUFFIX

    return "reading" if model.lower().endswith(TRACE_SUFFIX) else "running"


def _show(
    talk: Talk,
    recording: Recording,
    stop: Stop | None,
    only: list[str],
    long: bool,
    output: Path | None,
    html: Path | None,
    force: bool,
) -> int:
    from tensure.inspection import (
        save_recording,
        select_steps,
        step_lines,
        stop_line,
        summarize,
        summary_lines,
        table_rows,
        without_empty,
    )

    trace = recording.trace
    digest = any(facts.digest for facts in trace.tensors.values())
    over = any(facts.statistics and facts.statistics.over_limit for facts in trace.tensors.values())
    if stop is not None and stop.step is not None:
        talk.data("\n".join(step_lines(trace, stop.step)))
        talk.data(f"  {stop_line(stop)}")
    else:
        rows = table_rows(trace, select_steps(trace, only), long=long, digest=digest, over=over)
        talk.rows(without_empty(rows), to_data=True)
        talk.data("\n".join(summary_lines(trace, summarize(trace))))
    files: dict[str, str] = {}
    if html is not None:
        files["html"] = str(_write_page(recording, html, force))
    if output is not None:
        files["trace"] = str(save_recording(recording, output, replace=force))
    for what, path in files.items():
        talk.say(f"{what}: {path}")
    talk.result("tensure.inspect/1", {**_fields(trace, stop), **({"files": files} if files else {})})
    return 0 if stop is None else 1


def _write_page(recording: Recording, path: Path, force: bool) -> Path:
    from tensure.bundle import write_file_atomic
    from tensure.inspection import page_of

    write_file_atomic(path, page_of(recording).encode(), replace=force)
    return path


def _fields(trace: Trace, stop: Stop | None) -> dict[str, Any]:
    """The trace's own contract, and where a condition stopped it."""
    found = trace.to_json()
    if stop is not None and stop.step is not None:
        hits = [{"break": hit.condition.text, "reason": hit.reason} for hit in stop.hits]
        found["stopped"] = {"step": stop.step.index, "hits": hits}
    return found
