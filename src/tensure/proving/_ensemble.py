"""Whether a claim's values have another distribution on the ranks than the model's: by many replays.

Every run draws all random numbers anew, on either side by where they come from, and takes the same inputs.
A claim's values are seen as a few numbers each, which earlier runs chose. If both sides had one distribution,
the chance that one would lead the other by as much is known exactly, whatever the distribution (Gnedenko and
Korolyuk 1951). Runs are few and always the same ones: what differs little is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tensure.bundle import Plan
from tensure.errors import RecordError, TensureError
from tensure.program import Op, Program, bind_entry, infer_program

from ._compare import Wrong, compare
from ._domain import Manner, manner_of
from ._replay import Array, Real, changed_plan, changed_program, ways, widened_plan, widened_program

CHANCE: Final = 1e-10
"""Of calling one distribution two, over all claims of a run."""
MAX_LOCALS: Final = 2000
MAX_ELEMENTS: Final = 1 << 18
"""Of the Program's values."""
MAX_KEPT: Final = 1 << 25
"""Elements of claims' values in all runs."""
_NEAR: Final = 1e-7
"""Rounding does not tell distributions apart."""


def runs_of(size: int) -> tuple[int, int]:
    """How many runs choose what to look at, and how many are compared, of a walk of so many locals."""
    return (40, 200) if size <= 400 else (16, 48) if size <= MAX_LOCALS else (0, 0)


def differing(
    plan: Plan, program: Program, entry: str, params: Mapping[str, int], seed: int, size: int
) -> tuple[Wrong, ...]:
    """Claims whose values are not distributed as the Program's; empty where that is not seen.

    Numbers of one place of a generator, as the records tell it, are the same, and independent of all others.

    Args:
        seed: of inputs and weights.
        size: how many locals the Plan makes.
    """
    program, plan = widened_program(program), widened_plan(plan)
    types = infer_program(program, entry=entry, params=params)
    first, more = runs_of(size)
    if not more or sum(math.prod(found.shape) for found in types.values()) > MAX_ELEMENTS:
        return ()
    env = bind_entry(program, entry, params)
    manner = manner_of(program, entry, env, seed)

    def run(number: int, domain: _Seen) -> tuple[Wrong, ...]:
        own, theirs = (_anew(f"{side} {number}") for side in ("ranks", "model"))
        found = compare(changed_plan(plan, own), changed_program(program, theirs), entry, env, domain)
        return () if found.error is not None else found.wrong

    for most, how in ways(manner):
        rows: list[list[tuple[Array, Array]]] = []
        try:
            for number in range(first + more):
                domain = _Seen(seed, most, how)
                run(number, domain)
                rows.append(domain.pairs)
                kept = sum(one.size + other.size for one, other in domain.pairs)
                if len(domain.pairs) != len(rows[0]) or kept * (first + more) > MAX_KEPT:
                    return ()
            claims = len(rows[0])
            apart = {at for at in range(claims) if are_apart([row[at] for row in rows], first, claims)}
            return run(0, _Seen(seed, most, how, apart)) if apart else ()
        except RecordError:  # the Program refuses what was drawn
            continue
        except TensureError:
            return ()
    return ()


def are_apart(pairs: Sequence[tuple[Array, Array]], first: int, claims: int = 1) -> bool:
    """Whether two samples, in pairs of one run each, are of two distributions.

    Args:
        pairs: values of one shape.
        first: how many choose what to look at; the others are compared.
        claims: how many such questions share one chance of a wrong answer.
    """
    if any(one.shape != other.shape for one, other in pairs):
        return False
    have, want = (np.stack([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    if not (np.isfinite(have).all() and np.isfinite(want).all()):
        return False
    views = list(_views(have[:first], want[:first]))
    rows = [(view(have[first:]), view(want[first:])) for view in views]
    leads = [max(_lead(one, other), _lead(other, one)) for one, other in rows]
    count = len(pairs) - first
    # Of 2n numbers of one distribution, n by n, the chance that one side's lead comes to k or more.
    chances = (math.comb(2 * count, count - lead) / math.comb(2 * count, count) for lead in leads)
    return any(2 * chance * len(views) * claims <= CHANCE for chance in chances)


def _views(have: Array, want: Array) -> Iterator[Callable[[Array], Array]]:
    """Numbers to see a value as: along the means' difference, how far from the mean, and how large."""
    mean, apart = want.mean(0), have.mean(0) - want.mean(0)
    spread = np.sqrt(have.var(0) + want.var(0))
    varies = spread > 1e-6 * max(float(np.abs(want).max(initial=0)), float(np.abs(have).max(initial=0)))
    by = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    yield lambda found: found @ apart
    yield lambda found: np.square((found - mean) * by).sum(1)
    yield lambda found: np.square(found * varies).sum(1)


def _lead(one: Array, other: Array) -> int:
    """By how many more of `one` are beyond some edge."""
    near = _NEAR * float(max(np.abs(one).max(initial=0), np.abs(other).max(initial=0)))
    edges, ours, theirs = one, np.sort(one), np.sort(other + near)
    ahead = np.searchsorted(theirs, edges) - np.searchsorted(ours, edges)
    return max(int(ahead.max(initial=0)), 0)


def _anew(run: str) -> Any:
    """A change to steps: other random numbers in every run, the same for the same place."""

    def change(step: Op) -> Op:
        if step.op != "draw":
            return step
        attrs = {**dict(step.attrs), "after": f"{run} {step.attr('after') or ''}"}
        return Op(step.op, step.args, step.outs, tuple(sorted(attrs.items())), step.note)

    return change


class _Seen(Real):
    """Keeps what is compared, and says of some pairs that they differ."""

    def __init__(self, seed: int, most: int, manner: Manner, apart: set[int] | None = None) -> None:
        super().__init__(seed, most, manner)
        self.pairs: list[tuple[Array, Array]] = []
        self._apart = apart or set()

    def difference(self, have: Array, want: Array) -> tuple[int, ...] | None:
        self.pairs.append((have.astype(np.float64), want.astype(np.float64)))
        return (0,) * have.ndim if len(self.pairs) - 1 in self._apart else None
