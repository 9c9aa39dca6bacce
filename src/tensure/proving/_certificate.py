"""The form of a certificate of values: every completed claim, in canonical JSON. Written here and read here.

It holds digests of Program and Plan, which invocations were covered, and for every local of every
rank what it is: terms of (coefficient, logical name, runs of each dim, addend). It says nothing of how
that was found; `_check.py` derives each anew from the claims of its operands. Locals that are no part of
the Program's values are left out: nothing that is claimed follows from them. Reading is bounded in
bytes and in indices; what it means is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

from tensure.bundle import (
    Json,
    canonical_json,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_canonical,
)
from tensure.errors import FormatError, LimitError

FORMAT: Final = "tensure-certificate"
MAX_BYTES: Final = 64 << 20
MAX_MEMBERS: Final = 1 << 26
Members: TypeAlias = tuple[int, ...]
Term: TypeAlias = "tuple[Fraction, str, tuple[Members, ...], tuple[str, Members] | None]"
"""Coefficient, logical name, indices of each dim, addend: (contracted letter, indices of it)."""


@dataclass(frozen=True, slots=True)
class Covered:
    """One invocation, to be written: rows of (rank, local, terms)."""

    entry: str
    params: Mapping[str, int]
    locals: Sequence[Json]


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation, as read."""

    entry: str
    params: Mapping[str, int]
    locals: Mapping[tuple[str, str], tuple[Term, ...]]


def write_certificate(program: str, plan: str, invocations: Sequence[Covered]) -> bytes:
    """The certificate's bytes, from digests and completed claims."""
    rows: list[Json] = [
        {"entry": item.entry, "params": dict(item.params), "locals": list(item.locals)}
        for item in invocations
    ]
    return canonical_json(
        {"format": FORMAT, "version": 1, "program": program, "plan": plan, "invocations": rows}
    )


def read_certificate(data: bytes) -> tuple[str, str, list[Invocation]]:
    """Digests of Program and Plan, and the invocations.

    Raises:
        FormatError: not a certificate. LimitError: over 64 MiB, or over 2^26 indices.
    """
    row = expect_object(parse_canonical(data, max_bytes=MAX_BYTES), "certificate")
    expect_keys(row, "certificate", ("format", "version", "program", "plan", "invocations"))
    if row["format"] != FORMAT or row["version"] != 1 or isinstance(row["version"], bool):
        raise FormatError(f"format {row['format']!r} version {row['version']!r}", wanted=f"{FORMAT} 1")
    budget = [MAX_MEMBERS]
    items = expect_list(row["invocations"], "invocations", max_items=1 << 16)
    invocations = [_invocation(item, budget) for item in items]
    return expect_str(row["program"], "program"), expect_str(row["plan"], "plan"), invocations


def _invocation(row: Json, budget: list[int]) -> Invocation:
    part = expect_object(row, "invocation")
    expect_keys(part, "invocation", ("entry", "params", "locals"))
    params = {
        key: expect_int(value, "params", least=-(1 << 62))
        for key, value in expect_object(part["params"], "params").items()
    }
    found: dict[tuple[str, str], tuple[Term, ...]] = {}
    for item in expect_list(part["locals"], "locals", max_items=1 << 20):
        rank, name, terms = _fixed(item, 3)
        key = (expect_str(rank, "rank"), expect_str(name, "local"))
        if key in found:
            raise FormatError(f"{key[0]}: {key[1]} stands twice")
        found[key] = tuple(_term(term, budget) for term in expect_list(terms, "terms", max_items=1 << 12))
    return Invocation(expect_str(part["entry"], "entry"), params, found)


def _term(row: Json, budget: list[int]) -> Term:
    coef, label, region, share = _fixed(row, 4)
    text = expect_str(coef, "coefficient", max_chars=200)
    top, _, bottom = text.partition("/")
    if not (top.removeprefix("-").isdecimal() and bottom.isdecimal() and int(bottom)):
        raise FormatError(f"coefficient {text!r}", wanted="a fraction")
    value = Fraction(int(top), int(bottom))
    if f"{value.numerator}/{value.denominator}" != text or not value:
        raise FormatError(f"coefficient {text!r}", wanted="a reduced fraction other than 0")
    dims = tuple(_runs(runs, budget) for runs in expect_list(region, "region", max_items=8))
    if share is None:
        return value, expect_str(label, "value"), dims, None
    letter, runs = _fixed(share, 2)
    return value, expect_str(label, "value"), dims, (expect_str(letter, "letter"), _runs(runs, budget))


def _runs(value: Json, budget: list[int]) -> Members:
    members: list[int] = []
    for run in expect_list(value, "runs", max_items=1 << 20):
        lo, hi = (expect_int(end, "run") for end in _fixed(run, 2))
        if lo >= hi or (members and lo == members[-1] + 1):
            raise FormatError(f"run {lo}:{hi}", wanted="maximal runs that are not empty")
        budget[0] -= hi - lo
        if budget[0] < 0:
            raise LimitError(f"over {MAX_MEMBERS} indices in one certificate")
        members.extend(range(lo, hi))
    return tuple(members)


def _fixed(row: Json, count: int) -> list[Json]:
    items = expect_list(row, "certificate", max_items=count)
    if len(items) != count:
        raise FormatError(f"{len(items)} items", place="certificate", wanted=str(count))
    return items
