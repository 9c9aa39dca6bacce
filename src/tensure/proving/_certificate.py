"""The form of a certificate of values: every completed claim, in canonical JSON. Written here and read here.

It holds digests of Program and Plan, which invocations were covered, and for every local of every
rank what it is: terms of (coefficient, logical name, runs of each dim, addend). It says nothing of how
that was found; `_check.py` derives each anew from the claims of its operands. Locals that are no part of
the Program's values are left out: nothing that is claimed follows from them. Reading is bounded in
bytes and in runs; what it means is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
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
from tensure.program import Int, expr

FORMAT: Final = "tensure-certificate"
MAX_BYTES: Final = 64 << 20
MAX_RUNS: Final = 1 << 22
MAX_INDEX: Final = 1 << 48
MAX_TEXT: Final = 400
Runs: TypeAlias = tuple[tuple[Int, Int], ...]
"""(start, stop) of runs of indices in local order; of integers, none empty and no two neighbours one."""
Limit: TypeAlias = "tuple[tuple[tuple[str, Runs], ...], tuple[tuple[int | str, Limit], ...]]"
"""An addend: (contracted letter, indices of it); limits of operands by position, of a sum's parts by name."""
Term: TypeAlias = "tuple[Fraction, str, tuple[Runs, ...], Limit | None]"
"""Coefficient, name of a value, indices of each dim, addend."""
MAX_VALUES: Final = 1 << 18
MAX_DIGITS: Final = 4096


@dataclass(frozen=True, slots=True)
class Covered:
    """One invocation, to be written: rows that define values, and rows of (rank, local, terms).

    `targets`: it is proved of data where no class of a mean loss is the one to be ignored. `folded`: the mesh
    axes along which ranks are taken together; ends of runs may then be expressions of their coordinates.
    """

    entry: str
    params: Mapping[str, int]
    targets: bool
    values: Sequence[Json]
    locals: Sequence[Json]
    folded: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Defined:
    """A value that the Program does not name: result `out` of an op on parts of others.

    Operands are Terms, None, or (kind, text) of a number; shape and dtype are what was inferred; `where` says
    (axis, lo, hi) of the places whose coordinates ends of runs may name: it is a value for each of them.
    """

    label: str
    op: str
    attrs: Mapping[str, object]
    operands: tuple[Term | tuple[str, str] | None, ...]
    out: int
    shape: tuple[int, ...]
    dtype: str
    where: tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class _Budget:
    """How many more runs may be read; and the regions read so far, many of which stand again and again."""

    runs: int = MAX_RUNS
    regions: dict[tuple[Runs, ...], tuple[Runs, ...]] = field(
        default_factory=dict[tuple[Runs, ...], tuple[Runs, ...]]
    )


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation, as read."""

    entry: str
    params: Mapping[str, int]
    targets: bool
    folded: tuple[str, ...]
    values: Sequence[Defined]
    locals: Mapping[tuple[str, str], tuple[Term, ...]]


def write_certificate(
    program: str, plan: str, invocations: Sequence[Covered], classes: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The certificate's bytes, from digests and completed claims.

    Args:
        classes: which ranks a text was taken to stand for, and why; told on, as nothing here rests on it.
    """
    rows: list[Json] = [
        {
            "entry": item.entry,
            "params": dict(item.params),
            "targets": item.targets,
            "folded": list(item.folded),
            "values": list(item.values),
            "locals": list(item.locals),
        }
        for item in invocations
    ]
    return canonical_json(
        {
            "format": FORMAT,
            "version": 3,
            "program": program,
            "plan": plan,
            "classes": [[ranks, reason] for ranks, reason in classes],
            "invocations": rows,
        }
    )


def read_certificate(data: bytes) -> tuple[str, str, list[Invocation]]:
    """Digests of Program and Plan, and the invocations.

    Raises:
        FormatError: not a certificate. LimitError: over 64 MiB, over 2^22 runs, or an index over 2^48.
    """
    row = expect_object(parse_canonical(data, max_bytes=MAX_BYTES), "certificate")
    expect_keys(row, "certificate", ("format", "version", "program", "plan", "classes", "invocations"))
    for item in expect_list(row["classes"], "classes", max_items=1 << 16):
        for text in _fixed(item, 2):
            expect_str(text, "class", max_chars=1 << 14)
    if row["format"] != FORMAT or row["version"] != 3 or isinstance(row["version"], bool):
        raise FormatError(f"format {row['format']!r} version {row['version']!r}", wanted=f"{FORMAT} 3")
    budget = _Budget()
    items = expect_list(row["invocations"], "invocations", max_items=1 << 16)
    invocations = [_invocation(item, budget) for item in items]
    return expect_str(row["program"], "program"), expect_str(row["plan"], "plan"), invocations


def _invocation(row: Json, budget: _Budget) -> Invocation:
    part = expect_object(row, "invocation")
    expect_keys(part, "invocation", ("entry", "params", "targets", "folded", "values", "locals"))
    if not isinstance(part["targets"], bool):
        raise FormatError("targets", wanted="true or false")
    folded = tuple(
        expect_str(item, "axis", max_chars=64) for item in expect_list(part["folded"], "folded", max_items=16)
    )
    values = [_defined(item, budget) for item in expect_list(part["values"], "values", max_items=MAX_VALUES)]
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
        rows = expect_list(terms, "terms", max_items=1 << 12)
        found[key] = tuple(_term(term, budget, bool(folded)) for term in rows)
    return Invocation(expect_str(part["entry"], "entry"), params, part["targets"], folded, values, found)


def _defined(row: Json, budget: _Budget) -> Defined:
    label, op, given, operands, out, shape, dtype, where = _fixed(row, 8)
    places = tuple(_place(item) for item in expect_list(where, "places", max_items=16))
    attrs: dict[str, object] = {}
    for item in expect_list(given, "attributes", max_items=64):
        key, value = _fixed(item, 2)
        attrs[expect_str(key, "attribute")] = _attr(value, 8)
    return Defined(
        expect_str(label, "value"),
        expect_str(op, "op"),
        attrs,
        tuple(
            _operand(item, budget, bool(places))
            for item in expect_list(operands, "operands", max_items=1 << 12)
        ),
        expect_int(out, "result", most=8),
        tuple(expect_int(size, "size") for size in expect_list(shape, "shape", max_items=8)),
        expect_str(dtype, "dtype", max_chars=8),
        places,
    )


def _place(row: Json) -> tuple[str, int, int]:
    axis, lo, hi = _fixed(row, 3)
    return expect_str(axis, "axis", max_chars=64), expect_int(lo, "place"), expect_int(hi, "place")


def _operand(row: Json, budget: _Budget, many: bool) -> Term | tuple[str, str] | None:
    if row is None:
        return None
    items = expect_list(row, "operand", max_items=4)
    if len(items) == 4:
        return _term(items, budget, many)
    kind, text = _fixed(row, 2)
    return expect_str(kind, "kind", max_chars=8), expect_str(text, "number", max_chars=400)


def _attr(row: Json, deep: int) -> object:
    """None, or (kind, text) of a number or string, or ("tuple", items)."""
    if row is None:
        return None
    kind, value = _fixed(row, 2)
    if kind == "tuple" and deep:
        return tuple(_attr(item, deep - 1) for item in expect_list(value, "attribute", max_items=1 << 16))
    text = expect_str(value, "attribute")
    try:
        if kind == "str":
            return text
        if kind == "bool" and text in ("True", "False"):
            return text == "True"
        if kind == "int" and len(text) < 400:
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        pass
    raise FormatError(f"attribute {kind!r}", wanted="a number, a string, a list or nothing")


def _term(row: Json, budget: _Budget, many: bool = False) -> Term:
    """`many`: ends of runs may be expressions of coordinates."""
    coef, label, region, share = _fixed(row, 4)
    value = _coefficient(expect_str(coef, "coefficient", max_chars=MAX_DIGITS))
    dims = tuple(_runs(runs, budget, many) for runs in expect_list(region, "region", max_items=8))
    limit = None if share is None else _limit(share, budget, many)
    return value, expect_str(label, "value"), budget.regions.setdefault(dims, dims), limit


@lru_cache(1 << 10)
def _coefficient(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    if not (top.removeprefix("-").isdecimal() and bottom.isdecimal() and int(bottom)):
        raise FormatError(f"coefficient {text!r}", wanted="a fraction")
    value = Fraction(int(top), int(bottom))
    if f"{value.numerator}/{value.denominator}" != text or not value:
        raise FormatError(f"coefficient {text!r}", wanted="a reduced fraction other than 0")
    return value


def _limit(row: Json, budget: _Budget, many: bool) -> Limit:
    """Rows of one limit, each after those it names by their numbers; the last is the whole of it."""
    made: list[Limit] = []
    used: set[int] = set()  # a tree: each row is named once, so that reading it stays as small as its text
    for item in expect_list(row, "limit", max_items=1 << 14):
        shares, through = _fixed(item, 2)
        own: list[tuple[str, Runs]] = []
        for share in expect_list(shares, "shares", max_items=16):
            letter, runs = _fixed(share, 2)
            own.append((expect_str(letter, "letter"), _runs(runs, budget, many)))
        inner: list[tuple[int | str, Limit]] = []
        for pair in expect_list(through, "limits", max_items=1 << 12):
            key, at = _fixed(pair, 2)
            place = key if isinstance(key, str) else expect_int(key, "operand", most=1 << 12)
            number = expect_int(at, "limit", most=len(made) - 1)
            if number in used:
                raise FormatError("a limit named twice")
            used.add(number)
            inner.append((place, made[number]))
        if len({letter for letter, _ in own}) < len(own) or not (own or inner):
            raise FormatError("a limit of nothing, or of one letter twice")
        made.append((tuple(own), tuple(inner)))
    if len(used) != len(made) - 1:
        raise FormatError("a limit of rows that nothing names")
    return made[-1]


def _runs(value: Json, budget: _Budget, many: bool) -> Runs:
    found: list[tuple[Int, Int]] = []
    for run in expect_list(value, "runs", max_items=1 << 20):
        lo, hi = (_end(end, many) for end in _fixed(run, 2))
        budget.runs -= 1
        if budget.runs < 0:
            raise LimitError(f"over {MAX_RUNS} runs of indices in one certificate")
        if not isinstance(lo, int) or not isinstance(hi, int):
            found.append((lo, hi))  # of what coordinates these are is not known here
            continue
        if lo >= hi or (found and lo == found[-1][1]):
            raise FormatError(f"run {lo}:{hi}", wanted="maximal runs that are not empty")
        if hi > MAX_INDEX:
            raise LimitError(f"index {hi - 1}", wanted=f"at most {MAX_INDEX - 1}")
        found.append((lo, hi))
    return tuple(found)


def _end(value: Json, many: bool) -> Int:
    if many and isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise LimitError(f"an end of {len(value)} characters", wanted=f"at most {MAX_TEXT}")
        return expr(value)
    return expect_int(value, "run")


def _fixed(row: Json, count: int) -> list[Json]:
    items = expect_list(row, "certificate", max_items=count)
    if len(items) != count:
        raise FormatError(f"{len(items)} items", place="certificate", wanted=str(count))
    return items
