"""Semantic faults for certificates: a claim that is canonical, well-formed, and false.

A certificate says of every local of every rank what it is: terms of (coefficient, value, region, addend).
Each fault gives one local another such claim, and numbers show that it is false, so that it must not be
accepted: claims are exchanged between locals whose values differ (of another rank, region, addend or
class); a coefficient or a region is changed and the claimed part evaluated.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.bundle import PlanRun, canonical_json

from ._prove_replay import Array

__all__ = ["KINDS", "CertificateMutant", "Claims", "Known", "certificate_mutant", "known"]

Claims: TypeAlias = "list[list[Any]]"
"""Rows [rank, local, terms] of a certificate's one invocation."""
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class CertificateMutant:
    """A changed certificate: what kind of change, where in words, and its bytes."""

    kind: str
    where: str
    data: bytes


@dataclass(frozen=True)
class Known:
    """A certificate beside what its locals and the Program's values are on one draw."""

    rows: Claims
    locals: Mapping[tuple[str, str], Array]
    logical: Mapping[str, Array]


def known(certificate: bytes, run: PlanRun, logical: Mapping[str, Array]) -> tuple[Any, Known]:
    """A certificate read, with the values of a replay of its Plan."""
    read: Any = json.loads(certificate)
    made = {
        (str(rank), str(name)): value for rank, table in run.made.items() for name, value in table.items()
    }
    return read, Known(read["invocations"][0]["locals"], made, logical)


def certificate_mutant(
    read: Any, what: Known, kind: str, rng: np.random.Generator
) -> CertificateMutant | None:
    """One false claim of a kind; None when nothing of the kind is found in a few tries."""
    for _ in range(50):
        at = int(rng.integers(len(what.rows)))
        rank, name, terms = what.rows[at]
        here = what.locals.get((rank, name))
        if here is None or not terms or here.dtype.kind != "f" or not np.isfinite(here).all():
            continue
        changed = KINDS[kind](what, at, here, rng)
        if changed is None or changed == terms:
            continue
        made = copy.copy(read)
        invocation = {**read["invocations"][0]}
        invocation["locals"] = [*what.rows[:at], [rank, name, changed], *what.rows[at + 1 :]]
        made["invocations"] = [invocation]
        return CertificateMutant(kind, f"{rank}: {name} as {str(changed)[:200]}", canonical_json(made))
    return None


def _differ(one: Array, other: Array) -> bool:
    """Whether two values are plainly not equal (another shape is another value)."""
    return one.shape != other.shape or not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def _others(
    what: Known, at: int, here: Array, rng: np.random.Generator, want: Callable[[Any, Any], bool]
) -> Any | None:
    """The terms of another local that `want` and whose value is of this one's shape, and another."""
    mine = what.rows[at]
    for index in rng.permutation(len(what.rows))[:400]:
        row = what.rows[int(index)]
        value = what.locals.get((row[0], row[1]))
        if (
            value is not None
            and row[2]
            and value.shape == here.shape
            and want(mine, row)
            and _differ(here, value)
        ):
            return row[2]
    return None


def _of_rank(what: Known, at: int, here: Array, rng: np.random.Generator) -> Any | None:
    """What the same local is on another rank."""
    return _others(what, at, here, rng, lambda mine, row: mine[1] == row[1] and mine[0] != row[0])


def _of_class(what: Known, at: int, here: Array, rng: np.random.Generator) -> Any | None:
    """Another value in the same part."""
    return _others(what, at, here, rng, lambda mine, row: mine[2][0][1] != row[2][0][1])


def _of_region(what: Known, at: int, here: Array, rng: np.random.Generator) -> Any | None:
    """Another part of the same value: that of another local, or one moved by one."""
    found = _others(
        what, at, here, rng, lambda mine, row: mine[2][0][1] == row[2][0][1] and mine[2][0][2] != row[2][0][2]
    )
    if found is not None and rng.random() < 0.5:
        return found
    terms = copy.deepcopy(what.rows[at][2])
    if len(terms) != 1 or terms[0][3] is not None or terms[0][1] not in what.logical:
        return found
    dims = [dim for dim, runs in enumerate(terms[0][2]) if runs]
    if not dims:
        return found
    dim = int(rng.choice(dims))
    by = int(rng.choice([-1, 1]))
    terms[0][2][dim] = [[lo + by, hi + by] for lo, hi in terms[0][2][dim]]
    value = _part(what.logical[terms[0][1]], terms[0])
    return terms if value is not None and _differ(here, value) else found


def _of_share(what: Known, at: int, here: Array, rng: np.random.Generator) -> Any | None:
    """Another addend of the same part, or the whole in the place of an addend."""

    def want(mine: Any, row: Any) -> bool:
        return bool(mine[2][0][1:3] == row[2][0][1:3] and mine[2][0][3] != row[2][0][3])

    found = _others(what, at, here, rng, want)
    if found is not None and rng.random() < 0.7:
        return found
    terms = copy.deepcopy(what.rows[at][2])
    if len(terms) != 1 or terms[0][3] is None or terms[0][1] not in what.logical:
        return found
    terms[0][3] = None
    value = _part(what.logical[terms[0][1]], terms[0])
    return terms if value is not None and _differ(here, value) else found


def _of_coefficient(what: Known, at: int, here: Array, rng: np.random.Generator) -> Any | None:
    """A multiple of what is true."""
    if not _differ(here, np.zeros_like(here)):
        return None
    terms = copy.deepcopy(what.rows[at][2])
    # All terms alike: then the claimed value is that multiple of the true one.
    by = [Fraction(2), Fraction(1, 2), Fraction(-1), Fraction(3, 2), Fraction(1001, 1000)][
        int(rng.integers(5))
    ]
    for term in terms:
        value = Fraction(term[0]) * by
        term[0] = f"{value.numerator}/{value.denominator}"
    return terms


def _part(value: Array, term: Any) -> Array | None:
    """Coefficient times a region of a value, or None when there is no such region."""
    coefficient, _, region, _ = term
    if len(region) != value.ndim:
        return None
    index: list[list[int]] = []
    for size, runs in zip(value.shape, region, strict=True):
        members = [at for lo, hi in runs for at in range(lo, hi)]
        if any(not 0 <= at < size for at in members):
            return None
        index.append(members)
    return np.asarray(value[np.ix_(*index)] * float(Fraction(coefficient)))


KINDS: Final[Mapping[str, Callable[[Known, int, Array, np.random.Generator], Any]]] = {
    "rank": _of_rank,
    "class": _of_class,
    "region": _of_region,
    "share": _of_share,
    "coefficient": _of_coefficient,
}
