"""The zoo of real bugs, both twins of each, before the prover. It lies with the tests: a wheel has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tensure.bundle import Counterexample, Plan, coordinates
from tensure.errors import TensureError
from tensure.proving import prove_plan

from ._prove_replay import ACCEPTED, Prover, capture

__all__ = ["Zoo", "zoo_part"]


@dataclass(slots=True)
class Zoo:
    """What came of the zoo's twins. `named` are refutations that name a step's line and the bug's rank."""

    entries: int = 0
    refuted: int = 0
    named: int = 0
    proved: int = 0
    alarms: list[str] = field(default_factory=list[str])
    missed: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def zoo_part(
    every: int, *, prover: Prover = prove_plan, say: Callable[[str], None] = lambda text: None
) -> Zoo | None:
    """Both twins of every entry, or of one in `every`; None where the package is not there."""
    try:
        there = find_spec("tests.proving.zoo") is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        return None
    entries: Any = import_module("tests.proving.zoo").ENTRIES
    found = Zoo()
    for entry in entries[::every]:
        found.entries += 1
        verdicts: list[Any] = []
        for twin in (entry.fixed, entry.buggy):
            try:
                plan, program = capture(entry.model, twin, entry.mesh)
                verdicts.append((prover(plan, program).proof.values, plan))
            except (TensureError, RuntimeError) as error:
                verdicts.append((None, None))
                found.notes.append(f"{entry.name}: not captured: {error}"[:400])
        (fixed, _), (buggy, plan) = verdicts
        if fixed is not None:
            found.proved += fixed.status in ACCEPTED
            if fixed.status == "refuted":
                found.alarms.append(f"{entry.name}: {fixed.counterexample}"[:600])
            elif fixed.status == "unknown":
                found.notes.append(f"{entry.name}, fixed: {fixed.reason}"[:400])
        if buggy is not None:
            found.refuted += buggy.status == "refuted"
            if buggy.status in ACCEPTED:
                found.missed.append(entry.name)
            if buggy.status == "refuted" and buggy.counterexample is not None:
                named = _names(buggy.counterexample, plan, entry.at.ranks)
                found.named += named
                if not named:
                    found.notes.append(f"{entry.name}, buggy: {buggy.counterexample}, not {entry.at}"[:600])
        say(f"{entry.name}: {', '.join('not captured' if v is None else v.status for v, _ in verdicts)}")
    return found


def _names(example: Counterexample, plan: Plan, ranks: Sequence[int]) -> bool:
    """Whether a counterexample names a step with its line, and one of the ranks, if the entry says which.

    Whoever reads what a faulty rank sent is wrong too: the rank where it began counts, and where it shows.
    A step that is missing has no line; its reader is named.
    """
    if "(...)" not in example.step or ".py:" not in example.source:
        return False
    begun = example.step.partition("first astray on ")[2].partition(":")[0]
    named = {number for word in (example.rank, begun) if (number := _number(plan, word)) is not None}
    return bool(named & set(ranks)) if ranks else bool(named)


def _number(plan: Plan, word: str) -> int | None:
    """A rank counted over the mesh row by row."""
    at = next((rank for rank in plan.ranks() if str(rank) == word), None)
    if at is None:
        return None
    number, place = 0, coordinates(plan, at)
    for axis, size in plan.mesh.items():
        number = number * size + place.get(axis, 0)
    return number
