"""`prove` and `check`: does this plan compute its program? Joins files and models to the judge."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensure.errors import InputError, RecordError, TensureError

from ._code import code_named, names_code
from ._load import load
from ._paths import as_path
from ._untied import with_untied

if TYPE_CHECKING:
    from tensure.bundle import Plan
    from tensure.capture import (
        Captured,
        ModelFunction,
        NamedPlan,
        OptimizerFunction,
        ParallelFunction,
        RankClass,
    )
    from tensure.program import Model, Program
    from tensure.proving import CheckReport, ProofResult

__all__ = ["check", "must_have_gradients", "proof_page", "prove", "read_plan"]

MAX_CERTIFICATE = 1 << 30
MAX_NAMED_TRACED = 16
"""Ranks of a model by name that are traced one by one, if nothing else is asked for: its code is our own."""


def prove(
    plan: Plan | ParallelFunction | str | os.PathLike[str],
    program: Program | Model | ModelFunction | str | os.PathLike[str] | None = None,
    *,
    mesh: Mapping[str, int] | None = None,
    microbatches: int | None = None,
    optimizer: OptimizerFunction | str | None = None,
    small: ModelFunction | str | None = None,
    classes: bool | None = None,
    jobs: int = 1,
    replay: bool | None = None,
    strict: bool = False,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ProofResult:
    """Two verdicts on a plan, on values and on storage, and the certificate when values are proved.

    `proved` is exact; `probable` carries its error bound; `refuted` a counterexample that a concrete replay
    confirmed; `unknown` a reason. Of over 256 ranks, those that do the same are taken together along mesh
    axes (docs/decisions/0011); a hang or a part on no rank is then `refuted` without a replay, and says so.
    Entries with over 64 parameter values are `unknown` for now.

    A parallel PyTorch program is proved with `mesh`: then `plan` is a function that makes a module parallel
    and `program` one that returns the module and its inputs (`tensure.capture` says what these functions
    are handed and return). Both are traced at full size on a process group that does not exist, with no bytes
    for any tensor: every rank of up to 256, and of more one or a few of each class (docs/decisions/0010).
    Loss and gradients of the parallel step must be those of the module. With an optimizer, here or in a
    `TrainingStep`, instead of gradients the parameters and the optimizer's states after the step must be.

    A public model's training step is proved by name, as in `prove("llama3-8b@dp2-tp4")`: the module and its
    parallel twin are our own (`tensure.capture.named_plan` gives both), at the model's public sizes.

    Args:
        plan: the Plan, or the file of its text; with `mesh` a function, or `package.module:name`; alone, the
            name of a model and of how it is cut, `NAME@dpA-tpB-ppC-mbD`.
        program: what it must compute: a Program, a model, the file of a program's text, or whatever
            `load` takes; with `mesh` a function, or `package.module:name`.
        mesh: sizes of the mesh axes, outermost first.
        microbatches: handed to the parallel function under this name.
        optimizer: a function from a module's parameters to a `torch.optim` optimizer, or
            `package.module:name`; its step follows the backward pass on the single device, and the step of
            every rank whose `ParallelStep` brings no optimizer of its own.
        small: with `mesh`, returns the same module with smaller sizes, or `package.module:name`. A fault in a
            model of real sizes is only suspected, since nobody can run it: what is `unknown` there is tried
            over the same mesh on the smaller module, and the result is that one's if it is `refuted`.
        classes: trace a few ranks only, and find for whom each stands (docs/decisions/0010), as is always
            done with over 256; None does so with over 256, and of a model given by name with over 16.
        jobs: processes that trace ranks, check the certificate and look at bytes; the result is the same for
            any number (docs/decisions/0017).
        replay: run the parallel functions for real on drawn numbers, all ranks in one process, and say in
            the result whether that bears the verdict out; None does so where it is `refuted`. Up to 16 ranks
            that hold 1 GiB; the verdict stays what it is.
        strict: what is proved only given that no target of a loss is the class it ignores is `unknown`: of
            batches with padded labels nothing is proved.
        stage: told what is done next, in words, as each part begins.
        progress: told (ranks traced, ranks in all).

    Raises:
        InputError: a file that is no plan or no program, a plan for another program, functions that
            return something else than they should.
        UnsupportedError: an op, group or placement of the parallel step without a rule; says where.
    """
    from tensure.proving import prove_plan

    if small is not None and mesh is None:
        raise InputError("a smaller model without a mesh", wanted="a model, a parallel function and a mesh")
    if program is None:
        named = _named(plan, mesh, microbatches)
        return prove(
            named.parallel,
            named.model,
            mesh=named.mesh,
            optimizer=optimizer,
            classes=math.prod(named.mesh.values()) > MAX_NAMED_TRACED if classes is None else classes,
            jobs=jobs,
            replay=replay,
            strict=strict,
            stage=stage,
            progress=progress,
        )
    say = stage or (lambda words: None)
    if mesh is None:
        if optimizer is not None:
            raise InputError("an optimizer without a mesh", wanted="a parallel step with its mesh")
        if not isinstance(plan, str | os.PathLike) and callable(plan) and not hasattr(plan, "tracks"):
            raise InputError("a parallel function without a mesh", wanted='mesh={"dp": 2, "tp": 4}, say')
        if replay:
            raise InputError("a replay of a plan's text", wanted="functions of a parallel step, with a mesh")
        read = (read_plan(plan), _program(program))  # type: ignore[arg-type]
        say("proving")
        return prove_plan(*read, jobs=jobs, strict=strict)
    from tensure.capture import capture_model, capture_parallel, replay_step

    parallel, model = _function(plan, "parallel"), _function(program, "model")
    smaller = None if small is None else _function(small, "small")
    if microbatches is not None:
        parallel = _with_microbatches(parallel, microbatches)
    say("tracing the model")
    captured = capture_model(
        model, optimizer=None if optimizer is None else _function(optimizer, "optimizer")
    )
    if replay and captured.states is not None:
        raise InputError("a replay of a step with an optimizer", wanted="a step that leaves gradients")
    say("tracing ranks")
    found: list[RankClass] = []
    traced = capture_parallel(
        model, parallel, mesh, captured, classes=classes, jobs=jobs, progress=progress, told=found.extend
    )
    must_have_gradients(traced, captured)
    standing = [(_standing(traced.mesh, item.box), item.reason) for item in found]
    say("proving")
    result = prove_plan(
        traced,
        captured.program,
        jobs=jobs,
        classes=standing or [("every rank", "traced by itself")],
        strict=strict,
    )
    result = with_untied(result, captured)
    verdict = result.proof.values
    if captured.states is None and (replay or (replay is None and verdict.status == "refuted")):
        example = verdict.counterexample
        is_stuck = example is not None and not example.claim and verdict.method != "coverage"
        say("running all ranks for real")
        replayed = replay_step(
            model,
            parallel,
            traced,
            captured.program,
            is_stuck=is_stuck,
            is_proved=verdict.status in ("proved", "probable"),
        )
        result = replace(result, replay=replayed)
    if smaller is None or result.proof.values.status != "unknown":
        return result
    try:
        tried = prove(
            parallel,
            smaller,
            mesh=mesh,
            optimizer=optimizer,
            classes=classes,
            jobs=jobs,
            replay=replay,
            strict=strict,
            stage=lambda words: say(f"{words}, with smaller sizes"),
            progress=progress,
        )
    except TensureError as error:  # what was found at the model's own sizes is not lost for it
        return _further(result, f"with smaller sizes it cannot be traced: {error}")
    return _of_both(result, tried)


def must_have_gradients(traced: Plan, captured: Captured) -> None:
    """Refuse a step that leaves no gradient, where the single device's has some: forgotten, not wrong.

    Raises:
        InputError: says what to do.
    """
    outputs = [name.base for entry in captured.program.entries.values() for name in entry.outputs]
    wanted = {label for label in outputs if label.startswith("grad.")}
    locals_ = [traced.locals, *(track.locals for track in traced.tracks.values())]
    held = {item.place.of.base for named in locals_ for item in named.values() if item.place is not None}
    if captured.states is None and wanted and wanted.isdisjoint(held):
        raise InputError(
            f"the step left no gradients on any rank, where the single device has {len(wanted)}",
            wanted="a step that calls backward(), and does not clear gradients at its end",
            next_step="Where an optimizer has used them up, give it too: prove(optimizer=...), or in a "
            "TrainingStep and a ParallelStep. ParallelStep(module=...) names the module that has them.",
        )


def _of_both(result: ProofResult, smaller: ProofResult) -> ProofResult:
    """What is unknown of a step, and what was found of it at smaller sizes: refuted there is refuted.

    Unless something is cut evenly at its own sizes and not there, where a right step may be wrong.
    """
    from tensure.proving import uneven_cuts

    found = smaller.proof.values
    if found.status != "refuted":
        return _further(result, f"with smaller sizes it is {found.status}")
    even = uneven_cuts(result.plan, result.program)
    odd = [cut for what, cut in uneven_cuts(smaller.plan, smaller.program).items() if what not in even]
    if odd:
        first = odd[0]
        return _further(
            result,
            f"with smaller sizes it is refuted, but there {first.what} is cut into parts of "
            f"{' and '.join(map(str, first.sizes))}, which with its own sizes are equal, so this tells "
            f"nothing: choose sizes that are multiples of {first.parts} there",
        )
    told = replace(found, method=f"{found.method}, with smaller sizes; with its own it is unknown")
    return replace(smaller, proof=replace(smaller.proof, values=told))


def _further(result: ProofResult, words: str) -> ProofResult:
    """An unknown step, and what smaller sizes came to."""
    values = result.proof.values
    told = replace(values, reason=f"{values.reason}; {words}")
    return replace(result, proof=replace(result.proof, values=told))


def _standing(mesh: Mapping[str, int], box: Sequence[tuple[int, int]]) -> str:
    """Where ranks stand: `pp 3, dp 0:64, tp 0:8`."""
    return ", ".join(
        f"{axis} {lo}" if hi - lo == 1 else f"{axis} {lo}:{hi}"
        for axis, (lo, hi) in zip(mesh, box, strict=True)
    )


def _named(name: Any, mesh: Mapping[str, int] | None, microbatches: int | None) -> NamedPlan:
    from tensure.capture import NAMED_PLANS, named_plan

    if not isinstance(name, str) or "@" not in name:
        raise InputError(
            "a plan without a program",
            wanted=f"a program besides, or the name of a public plan, such as {', '.join(NAMED_PLANS)}",
        )
    if mesh is not None or microbatches is not None:
        raise InputError(f"{name} with a mesh or micro-batches besides", wanted="those of its name alone")
    return named_plan(name)


def _function(given: Any, what: str) -> Any:
    if isinstance(given, str) and names_code(given):
        given = code_named(given)
    if not callable(given):
        raise InputError(
            f"{given!r} as the {what} function", wanted="a function, or package.module:name of one"
        )
    return given


def _with_microbatches(parallel: Any, count: int) -> Any:
    takes = inspect.signature(parallel).parameters
    if "microbatches" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise InputError(
            f"microbatches={count}",
            wanted=f"a parallel function that takes `microbatches`; {parallel.__name__} does not",
        )
    return functools.partial(parallel, microbatches=count)


def proof_page(result: ProofResult) -> str:
    """One self-contained HTML page: the verdict, where it fails, every output, what was assumed."""
    from tensure.views import OutputRow, ProofView, render

    outputs = tuple(
        OutputRow(
            item.name,
            item.status,
            item.rank,
            f"it is {item.factor} times the model's; {item.why}" if item.factor else item.why,
            item.step,
            item.source,
        )
        for item in result.tensors
    )
    size = None if result.certificate is None else len(result.certificate)
    replay = "" if result.replay is None else result.replay.words(result.proof.values.status)
    return render(
        ProofView(
            result.proof,
            result.plan,
            result.program,
            outputs,
            size,
            result.classes,
            replay,
            result.numerics,
        )
    )


def check(
    certificate: bytes | str | os.PathLike[str],
    plan: Plan | str | os.PathLike[str],
    program: Program | Model | str | os.PathLike[str],
    *,
    jobs: int = 1,
) -> CheckReport:
    """Re-check a certificate with the small checker that shares no op code with the prover.

    Args:
        certificate: its bytes, or its file.
        plan: as in `prove`.
        program: as in `prove`.
        jobs: processes; the report is the same for any number.

    Raises:
        InputError: a file that is no certificate, plan or program.
    """
    from tensure.proving import check_certificate

    data = certificate if isinstance(certificate, bytes) else _bytes(certificate, "a certificate")
    return check_certificate(data, read_plan(plan), _program(program), jobs=jobs)


def read_plan(plan: Plan | str | os.PathLike[str]) -> Plan:
    """The Plan, or the one in a file of its text."""
    from tensure.bundle import Plan, parse_plan

    if isinstance(plan, Plan):
        return plan
    path = as_path(plan, "a plan's text file")
    try:
        return parse_plan(_text(path, "a plan's text file"))
    except TensureError as error:
        raise error.at(path) from None


def _program(program: Program | Model | str | os.PathLike[str]) -> Program:
    from tensure.program import Model, Program, parse_program, validate_program

    if isinstance(program, Program):
        return program
    if isinstance(program, Model):
        return program.program
    path = as_path(program, "a program's text file or a model")
    if path.suffix != ".txt":
        return load(program).program
    try:
        found = parse_program(_text(path, "a program's text file"))
        validate_program(found)
    except TensureError as error:
        raise error.at(path) from None
    return found


def _text(path: Path, wanted: str) -> str:
    try:
        return _bytes(path, wanted).decode()
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8 text", file=path, place=f"byte {error.start}", wanted=wanted) from None


def _bytes(given: str | os.PathLike[str], wanted: str) -> bytes:
    path = as_path(given, wanted)
    try:
        if path.stat().st_size > MAX_CERTIFICATE:
            raise InputError(f"{path.stat().st_size} bytes", file=path, wanted=f"at most {MAX_CERTIFICATE}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, wanted=wanted) from None
