"""The independent checker: does each completed claim of a certificate follow, and do they cover the Program?

It shares no op code with prover, evaluator or op table, and no walk. Given what a local is claimed to be, it
asks which parts of the operands that must have been computed from (`_check_ops.py`). From below it takes
the records and what their text means: `expand`, the leaves, bound claims, digests. What it has no rule
for is refused. It checks values only; storage is decided by byte tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tensure.bundle import Plan, plan_digest
from tensure.errors import FormatError, LimitError, TensureError
from tensure.program import Program, Undecided, digest, evaluate

from ._certificate import read_certificate
from ._check_reals import read_over_reals
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


def check_certificate(certificate: bytes, plan: Plan, program: Program) -> CheckReport:
    """Re-check a certificate of values against a Plan and its Program.

    Raises:
        FormatError: not a certificate. LimitError: over the checker's bounds.
    """
    named, planned, given = read_certificate(certificate)
    count, covered, walks = 0, dict[str, int](), list[Walk]()
    try:
        need((named, planned) == (digest(program), plan_digest(plan)), "it is for another plan")
        need(plan.program == named, "the plan is for another program")
        plan, program = read_over_reals(plan, program)
        due = _invocations(program)
        need(len(given) == len(due), f"{len(given)} invocations where {len(due)} are due")
        for (entry, params), item in zip(due, given, strict=True):
            need((item.entry, item.params) == (entry, params), f"{entry} at {params} is due")
            walks.append(Walk(plan, program, item))
            walks[-1].run()
            count, covered[entry] = count + len(item.locals), covered.get(entry, 0) + 1
        reads = set().union(*(walk.reads for walk in walks))
        for walk in walks:
            states = {str(before) for before in walk.pairs.values()}
            need(
                all(read in walk.keeps for read in reads if read[1] in states),
                "a state is not left where it is read",
            )
    except Refused as refused:
        return CheckReport(False, str(refused), count)
    except (LimitError, FormatError):
        raise
    except Undecided as undecided:
        return CheckReport(False, f"ranks taken together would differ: {undecided}", count)
    except (TensureError, *_BROKEN) as error:
        return CheckReport(False, f"a step that cannot be taken: {error}", count)
    span = "; ".join(f"{key}: {_span(program, key, n)}" for key, n in covered.items())
    if any(item.targets for item in given):
        span += "; given that no target of a loss is the class it ignores"
    if any(walk.values.draws for walk in walks):
        span += "; given that a part of a draw of random numbers is as good as a draw of that part"
    return CheckReport(True, "", count, span)


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
