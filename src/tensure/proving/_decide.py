"""What the doubts of one walk come to: refuted by a replay, probable by the field, or unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tensure.bundle import Counterexample, Plan, Verdict
from tensure.errors import LimitError, RecordError, UnsupportedError
from tensure.program import (
    Program,
    bind_entry,
)

from ._compare import Wrong, compare
from ._doubt import Doubt
from ._ensemble import differing
from ._field import Field
from ._multiples import factor_words
from ._replay import replay
from ._tensors import Shown, claimed_base
from ._unmatched import MISMATCH
from ._walks import MAX_RANKS, SEEDS, Unit

METHOD: Final = "places of random numbers"
OTHERWISE: Final = (
    "it reads random numbers in another way than the model does: others come out, perhaps of one distribution"
)


def mixed_up(unit: Unit) -> Verdict | None:
    """That random numbers are not what they stand for; it is certain if nothing was in doubt before."""
    found = unit.mixed
    if found is None:
        return None
    if found.certain and not (unit.doubts and unit.doubts[0].order < found.doubt.order):
        return Verdict(
            "refuted", METHOD, counterexample=_stuck(found.doubt, at_params(unit), confirmed=False)
        )
    at = f" at {found.doubt.source}" if found.doubt.source else ""
    where = f"{found.doubt.rank}: {found.doubt.local}: " if found.doubt.rank else ""
    return Verdict("unknown", METHOD, reason=f"{where}{found.doubt.why}{at}")


def decided(plan: Plan, program: Program, unit: Unit, accept: float, wrong: Shown) -> Verdict:
    """One walk's doubts: refuted by a replay, probable by the field, or unknown."""
    first = unit.doubts[0]
    at = at_params(unit)
    if plan.num_ranks() > MAX_RANKS:
        return _decided_in_part(plan, unit, at, wrong)
    hidden = False
    for seed in SEEDS:
        try:
            seen = replay(plan, program, unit.entry, unit.params, seed, unit.standing)
        except (LimitError, UnsupportedError, RecordError) as failed:
            return Verdict("unknown", "replay", reason=f"{_words(first, unit)}{at}; no replay: {failed}")
        if seen is None:
            return Verdict("unknown", "replay", reason=f"{_words(first, unit)}{at}; too large to replay")
        found, method = _alike_in_no_way(unit, seen.wrong), "relations and replay"
        if seen.wrong and not found and not hidden and unit.has_ensemble:
            found = differing(plan, program, unit.entry, unit.params, seed, unit.size)
            method = f"{method} of many draws of random numbers"
        hidden = hidden or (bool(seen.wrong) and not found)
        for base in {item.claim.of.base for item in found}:
            factor = factor_words(seen.factors.get(base))
            wrong[base] = factor if wrong.get(base, factor) == factor else ""
        if found and not (seen.error is not None and MISMATCH in unit.doubts[-1].why):
            return Verdict("refuted", method, counterexample=_counter(unit, _earliest(unit, found), at))
        if seen.error is not None:
            stuck = unit.doubts[-1]
            return Verdict(
                "refuted", "relations and replay", counterexample=_stuck(stuck, at, confirmed=True)
            )
    uncovered = next((doubt for doubt in unit.doubts if not doubt.rank), None)
    if uncovered is not None:
        return Verdict("refuted", "coverage", counterexample=_stuck(uncovered, at, confirmed=True))
    if hidden:
        return Verdict("unknown", "replay", reason=f"{_words(first, unit)}{at}; {OTHERWISE}")
    if not unit.ended:
        return Verdict(
            "unknown", "relations", reason=f"{_words(unit.doubts[-1], unit)}{at}; a replay comes to its end"
        )
    return _field(plan, program, unit, accept, f"{_words(first, unit)}{at}")


def _decided_in_part(plan: Plan, unit: Unit, at: str, wrong: Shown) -> Verdict:
    """By a replay of what doubts rest on, or by what is on no rank."""
    lost = next((doubt for doubt in unit.doubts if not doubt.rank), None)
    if unit.halted or lost is not None:
        found, method = (unit.doubts[-1], "order of steps") if unit.halted else (lost, "coverage")
        assert found is not None
        return Verdict("refuted", method, counterexample=_stuck(found, at, confirmed=False))
    if isinstance(unit.shown, str):
        return Verdict("unknown", "replay", reason=f"{_words(unit.doubts[0], unit)}{at}; {unit.shown}")
    seen = {item.order: item for item in unit.shown if item.order not in unit.otherwise_asked}
    if unit.shown and not seen:
        return Verdict("unknown", "replay", reason=f"{_words(unit.doubts[0], unit)}{at}; {OTHERWISE}")
    for doubt in unit.doubts:
        if doubt.order not in seen:
            continue
        item = seen[doubt.order]
        wrong.update({claimed_base(plan, one.local): "" for one in seen.values()})
        words = doubt.step + at
        begun = unit.suspected(doubt)
        if begun is not None:
            words += f"; first astray on {begun.rank}: {begun.step}: {begun.why}"
        source = doubt.source or ("" if begun is None else begun.source)
        example = Counterexample(item.rank, item.local, doubt.claim, item.index, words, source, True)
        return Verdict("refuted", "relations and a replay of what the doubt rests on", counterexample=example)
    return Verdict("unknown", "replay", reason=f"{_words(unit.doubts[0], unit)}{at}; no replay of it")


def _field(plan: Plan, program: Program, unit: Unit, accept: float, doubt: str) -> Verdict:
    domain = Field(1)
    try:
        env = bind_entry(program, unit.entry, unit.params)
        if unit.standing is None:
            raise UnsupportedError("random numbers of which nobody knows what they stand for")
        seen = compare(plan, program, unit.entry, env, domain, unit.standing)
    except (UnsupportedError, LimitError, RecordError) as failed:
        return Verdict("unknown", "field", reason=f"{doubt}; a replay shows no difference; {failed}")
    if seen.wrong or seen.error is not None or seen.pinned:
        what = f"{seen.wrong[0].name} differs" if seen.wrong else "an addend pinned to a slice is not checked"
        return Verdict(
            "unknown", "field", reason=f"{doubt}; a replay shows no difference; in the field {what}"
        )
    if domain.error > accept:
        return Verdict("unknown", "field", reason=f"{doubt}; the field's bound is only {domain.error:.1e}")
    return Verdict("probable", "field", error=domain.error)


def _alike_in_no_way(unit: Unit, wrong: Sequence[Wrong]) -> tuple[Wrong, ...]:
    """Those whose random numbers, if any, are read as the model reads them: another function of them."""
    return tuple(item for item in wrong if (str(item.rank), str(item.name)) not in unit.otherwise)


def _earliest(unit: Unit, wrong: Sequence[Wrong]) -> Wrong:
    """Of the claims that a replay found broken, the one that went astray first."""

    def begin(item: Wrong) -> tuple[float, int]:
        seen = unit.suspects.get((str(item.rank), str(item.name)))
        return (math.inf if seen is None else seen.order, item.order)

    return min(wrong, key=begin)


def _counter(unit: Unit, wrong: Wrong, at: str) -> Counterexample:
    """The first claim that a replay found broken, in the words of the doubt about it if there is one."""
    same = next((d for d in unit.doubts if d.rank == str(wrong.rank) and d.local == str(wrong.name)), None)
    step = wrong.step
    made = "" if step is None or not step.outs else f"{', '.join(map(str, step.outs))} = "
    words = same.step if same else "supplied" if step is None else f"{made}{step.op}(...)"
    source = "" if step is None else next((str(v) for k, v in step.note if k == "source"), "")
    claim = same.claim if same else str(wrong.claim.of)
    source = same.source if same else source
    first = unit.suspects.get((str(wrong.rank), str(wrong.name)))
    words += at
    if first is not None:
        again = (first.rank, first.step) == (str(wrong.rank), words)
        words += f": {first.why}" if again else f"; first astray on {first.rank}: {first.step}: {first.why}"
        source = source or first.source
    return Counterexample(str(wrong.rank), str(wrong.name), claim, wrong.index, words, source, True)


def _stuck(doubt: Doubt, at: str, *, confirmed: bool) -> Counterexample:
    words = f"{doubt.step}: {doubt.why}" if doubt.step else doubt.why
    return Counterexample(
        doubt.rank or "no rank", doubt.local, doubt.claim, (), words + at, doubt.source, confirmed
    )


def _words(doubt: Doubt, unit: Unit) -> str:
    where = (
        f"{doubt.rank}: {doubt.local} is not derived as {doubt.claim}, {doubt.why}"
        if doubt.rank
        else doubt.why
    )
    first = unit.suspected(doubt)
    begun = "" if first is None else f"; first astray on {first.rank}: {first.step}: {first.why}"
    source = doubt.source or ("" if first is None else first.source)
    return f"{where}{begun}{f' at {source}' if source else ''}"


def at_params(unit: Unit) -> str:
    return f" at {', '.join(f'{key}={value}' for key, value in unit.params.items())}" if unit.params else ""
