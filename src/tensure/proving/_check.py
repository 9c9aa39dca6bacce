"""The independent checker: does each completed claim of a certificate follow, and do they cover the Program?

It shares no op code with prover, evaluator or op table, and no walk. Given what a local is claimed to be, it
asks which parts of the operands that must have been computed from (`_check_ops.py`). From below it takes
the records and what their text means: `expand`, the leaves, bound claims, digests. What it has no rule
for is refused. It checks values only; storage is decided by byte tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from tensure.bundle import Plan, plan_digest
from tensure.errors import FormatError, LimitError, TensureError
from tensure.program import Program, Undecided, digest, evaluate, spread, unswept

from ._certificate import Invocation, read_certificate
from ._check_kinds import AsWritten
from ._check_looks import condition
from ._check_reals import read_over_reals
from ._check_shares import Share, Walked, joined_shares
from ._check_sums import Refused, need
from ._check_walk import Walk

MAX_VALUES: Final = 64
_BROKEN: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a certificate that makes no sense may run into."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Whether a certificate was accepted and, if not, why; `coverage` says which invocations it is about."""

    accepted: bool
    reason: str
    locals: int = 0
    coverage: str = ""


def check_certificate(certificate: bytes, plan: Plan, program: Program, *, jobs: int = 1) -> CheckReport:
    """Re-check a certificate of values against a Plan and its Program.

    Args:
        jobs: processes; the report is the same for any number.

    Raises:
        FormatError: not a certificate. LimitError: over the checker's bounds.
        RuntimeError: a process ended without an answer.
    """
    with unswept():
        return _checked(certificate, plan, program, jobs)


def _checked(certificate: bytes, plan: Plan, program: Program, jobs: int) -> CheckReport:
    named, planned, given = read_certificate(certificate)
    count, covered, walks = 0, dict[str, int](), list[Walked]()
    try:
        need((named, planned) == (digest(program), plan_digest(plan)), "it is for another plan")
        need(plan.program == named, "the plan is for another program")
        plan, program, written = read_over_reals(plan, program)
        due = _invocations(program)
        need(len(given) == len(due), f"{len(given)} invocations where {len(due)} are due")
        for (entry, _), item, walk in zip(
            due, given, _walked(plan, program, written, due, given, jobs), strict=True
        ):
            if walk.broken is not None:
                raise walk.broken
            need(walk.refused is None, str(walk.refused))
            walks.append(walk)
            count, covered[entry] = count + len(item.locals), covered.get(entry, 0) + 1
        reads = frozenset().union(*(walk.reads for walk in walks))
        for walk in walks:
            need(
                all(read in walk.keeps for read in reads if read[1] in walk.states),
                "a state is not left where it is read",
            )
    except Refused as refused:
        return CheckReport(False, str(refused), count)
    except (LimitError, FormatError):
        raise
    except Undecided as undecided:
        return CheckReport(False, _differ(undecided), count)
    except (TensureError, *_BROKEN) as error:
        return CheckReport(False, _no_step(error), count)
    span = "; ".join(f"{key}: {_span(program, key, n)}" for key, n in covered.items())
    if any(item.targets for item in given):
        span += f"; {condition(program)}"
    if any(walk.draws for walk in walks):
        span += "; given that a part of a draw of random numbers is as good as a draw of that part"
    return CheckReport(True, "", count, span)


def _differ(undecided: Undecided) -> str:
    return f"ranks taken together would differ: {undecided}"


def _no_step(error: Exception) -> str:
    return f"a step that cannot be taken: {error}"


Due: TypeAlias = tuple[str, dict[str, int]]
"""An entry, and values of its parameters."""


def _walked(
    plan: Plan,
    program: Program,
    written: AsWritten | None,
    due: Sequence[Due],
    given: Sequence[Invocation],
    jobs: int,
) -> Iterator[Walked]:
    """What a walk of each invocation comes to, in order: many of them side by side, or each in shares."""
    of = 1 if len(due) >= jobs else jobs
    width = jobs if of == 1 else 1
    for lo in range(0, len(due), width):
        works = [
            partial(_walk, plan, program, written, due[at], given[at], Share(number, of))
            for at in range(lo, min(lo + width, len(due)))
            for number in range(of)
        ]
        found = spread(works, jobs)
        for at in range(0, len(found), of):
            yield joined_shares(found[at : at + of])


def _walk(
    plan: Plan, program: Program, written: AsWritten | None, due: Due, given: Invocation, share: Share
) -> Walked:
    """One walk, of which whatever stops it is an answer."""
    walk: Walk | None = None
    refused, broken = None, None
    try:
        need((given.entry, given.params) == due, "{} at {} is due", *due)
        walk = Walk(plan, program, given, share, written)
        walk.run()
    except Refused as why:
        refused = str(why)
    except (LimitError, FormatError) as error:
        broken = error
    except Undecided as undecided:
        refused = _differ(undecided)
    except (TensureError, *_BROKEN) as error:
        refused = _no_step(error)
    if walk is None:
        return Walked(share, 0, 0, 0, refused, broken)
    return Walked(
        share,
        walk.at,
        walk.asked,
        walk.decided,
        refused,
        broken,
        frozenset(walk.reads),
        frozenset(walk.keeps),
        frozenset(str(before) for before in walk.pairs.values()),
        bool(walk.values.draws),
    )


def _invocations(program: Program) -> list[tuple[str, dict[str, int]]]:
    found: list[tuple[str, dict[str, int]]] = []
    for label, entry in program.entries.items():
        rows: list[dict[str, int]] = [{}]
        for key, lo, hi in entry.params:
            grown: list[dict[str, int]] = []
            for row in rows:
                low, high = (evaluate(edge, {**program.axes, **row}) for edge in (lo, hi))
                need(len(grown) + high - low <= MAX_VALUES, f"{label} has over {MAX_VALUES} parameter values")
                grown.extend({**row, key: value} for value in range(low, high))
            rows = grown
        found.extend((label, row) for row in rows)
    return found


def _span(program: Program, entry: str, count: int) -> str:
    keys = ", ".join(key for key, _, _ in program.entry(entry).params)
    return f"all {count} values of {keys}" if keys else "its one form"
