"""`prove` and `check`: does this plan compute its program? Joins files and models to the judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tensure.errors import InputError, RecordError, TensureError

from ._load import load
from ._paths import as_path

if TYPE_CHECKING:
    from tensure.bundle import Plan
    from tensure.program import Model, Program
    from tensure.proving import CheckReport, ProofResult

__all__ = ["check", "prove", "read_plan"]

MAX_CERTIFICATE = 1 << 30


def prove(
    plan: Plan | str | os.PathLike[str],
    program: Program | Model | str | os.PathLike[str],
    *,
    jobs: int = 1,
) -> ProofResult:
    """Two verdicts on a plan, on values and on storage, and the certificate when values are proved.

    `proved` is exact; `probable` carries its error bound; `refuted` a counterexample that a concrete replay
    confirmed; `unknown` a reason. Plans of over 256 ranks, and entries with over 64 parameter values, are
    `unknown` for now.

    Args:
        plan: the Plan, or the file of its text.
        program: what it must compute: a Program, a model, the file of a program's text, or whatever
            `load` takes.
        jobs: processes; the result is the same for any number.

    Raises:
        InputError: a file that is no plan or no program, or a plan for another program.
    """
    from tensure.proving import prove_plan

    return prove_plan(read_plan(plan), _program(program), jobs=jobs)


def check(
    certificate: bytes | str | os.PathLike[str],
    plan: Plan | str | os.PathLike[str],
    program: Program | Model | str | os.PathLike[str],
) -> CheckReport:
    """Re-check a certificate with the small checker that shares no op code with the prover.

    Args:
        certificate: its bytes, or its file.
        plan: as in `prove`.
        program: as in `prove`.

    Raises:
        InputError: a file that is no certificate, plan or program.
    """
    from tensure.proving import check_certificate

    data = certificate if isinstance(certificate, bytes) else _bytes(certificate, "a certificate")
    return check_certificate(data, read_plan(plan), _program(program))


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
