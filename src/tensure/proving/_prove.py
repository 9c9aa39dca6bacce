"""Prove a Plan: walk every invocation, decide every doubt, write and re-check the certificate.

`proved` is said only when no rule left a doubt and the independent checker accepts the certificate.
A doubt is first replayed concretely, which alone can refute; a doubt that no replay confirms goes to
the field, which can make the whole `probable`; what is left is `unknown`, with the reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Final

from tensure.bundle import Counterexample, Json, Plan, Proof, Verdict, format_plan, parse_plan, plan_digest
from tensure.errors import LimitError, RecordError, UnsupportedError
from tensure.program import (
    For,
    Op,
    Program,
    Undecided,
    bind_entry,
    corner_params,
    digest,
    evaluate,
    format_program,
    parse_program,
    state_pairs,
    unswept,
)

from ._cells import Cells, unfolding
from ._certificate import Covered, write_certificate
from ._check import check_certificate
from ._compare import Wrong, compare
from ._completed import completed
from ._cone import Shown, Unreplayable, shown
from ._field import Field
from ._flow import Doubt, Flow, flow
from ._replay import program_values, replay, storage_replay
from ._storage import Clash, clash, too_large
from ._suspects import Suspect
from ._tensors import Doubted, TensorVerdict, claimed_base, tensor_verdicts

MAX_INVOCATIONS: Final = 64
"""Values of an entry's parameters that are walked one by one; beyond that only corners, and no proof."""
MAX_RANKS: Final = 256
MAX_WALKED_AGAIN: Final = 1 << 15
"""Locals of a walk with fewer ranks taken together, made because one with more left doubts."""
SEEDS: Final = (1, 2)
ACCEPT: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ProofResult:
    """The Proof, the certificate when values are proved, what it is a proof of, and each output's verdict."""

    proof: Proof
    certificate: bytes | None
    plan: Plan
    program: Program
    tensors: tuple[TensorVerdict, ...] = ()
    classes: tuple[tuple[str, str], ...] = ()
    """Which ranks each text of a captured Plan stands for, and why."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """What one walk established, in plain values: the same whichever process made it."""

    entry: str
    params: Mapping[str, int]
    doubts: tuple[Doubt, ...]
    claims: tuple[list[Json], list[Json]] | None
    reads: Sequence[Json]
    keeps: Sequence[Json]
    clash: Clash | None
    ended: bool
    halted: bool
    suspects: Mapping[tuple[str, str], Suspect]
    folded: tuple[str, ...]
    shown: tuple[Shown, ...] | str
    """Of a Plan of too many ranks: claims that a replay in part shows not to hold, or why there are none."""
    size: int
    """How many locals were made."""
    targets: bool
    """Whether it holds where no class of a mean loss is the one to be ignored."""

    def suspected(self, doubt: Doubted) -> Suspect | None:
        """The step where what is doubted first went astray."""
        return self.suspects.get((doubt.rank, doubt.local))


def prove_plan(
    plan: Plan,
    program: Program,
    *,
    jobs: int = 1,
    accept: float = ACCEPT,
    fold: Sequence[str] | None = None,
    classes: Sequence[tuple[str, str]] = (),
) -> ProofResult:
    """Two verdicts on a Plan for a Program: values and storage.

    Args:
        plan: of over 256 ranks, those along mesh axes are taken together where what holds for one of
            them is seen to hold for all (docs/decisions/0011).
        jobs: processes; the result is the same for any number.
        accept: the greatest error bound that is still called `probable`.
        fold: the mesh axes along which ranks may be taken together; if not given, all of them for over
            256 ranks, and otherwise none.
        classes: which ranks each text stands for and why, as whoever made the Plan tells; it is put down.

    Raises:
        RecordError: the Plan is for another Program, or the Program is malformed.
        LimitError: a bound on steps or locals was passed.
    """
    if plan.program != digest(program):
        raise RecordError(f"the plan is for {plan.program}", wanted=f"the program's digest {digest(program)}")
    if not 0 < accept < 1:
        raise RecordError(f"accept={accept}", wanted="a probability above 0 and below 1")
    with unswept():
        return _proved(plan, program, jobs, accept, fold, tuple(classes))


def _proved(
    plan: Plan,
    program: Program,
    jobs: int,
    accept: float,
    fold: Sequence[str] | None,
    classes: tuple[tuple[str, str], ...],
) -> ProofResult:
    digests = (digest(program), plan_digest(plan))
    if fold is None:
        fold = tuple(plan.mesh) if plan.num_ranks() > MAX_RANKS else ()
    if unknown := [axis for axis in fold if axis not in plan.mesh]:
        raise RecordError(f"fold along {unknown[0]!r}", wanted=f"axes of the mesh: {', '.join(plan.mesh)}")
    invocations, open_entries = _invocations(program)
    wrong: set[str] = set()
    units, certificate = list[_Unit](), None
    values = Verdict("unknown", "relations", reason="no way to walk it was found")
    for folded in unfolding(plan, fold):
        if units and _much_dearer(plan, units, folded):
            break
        try:
            units = _walked(plan, program, invocations, jobs, folded)
        except Undecided as undecided:
            reason = f"ranks taken together differ: {undecided}"
            values = values if units else Verdict("unknown", "relations", reason=reason)
            continue
        values, certificate = _values(plan, program, units, open_entries, accept, wrong, classes)
        if values.status in ("proved", "refuted"):
            break
    storage = _storage(plan, program, units)
    named = None if certificate is None else f"sha256:{hashlib.sha256(certificate).hexdigest()}"
    return ProofResult(
        Proof(*digests, values, storage, named),
        certificate,
        plan,
        program,
        tensor_verdicts(plan, program, units, values, wrong),
        classes,
    )


def _invocations(program: Program) -> tuple[list[tuple[str, dict[str, int]]], list[str]]:
    """Every value of every entry's parameters, or corners where there are too many (and which those are)."""
    found: list[tuple[str, dict[str, int]]] = []
    open_entries: list[str] = []
    for label, entry in program.entries.items():
        rows: list[dict[str, int]] = [{}]
        count = 0
        for key, lo, hi in entry.params:
            grown: list[dict[str, int]] = []
            for row in rows:
                env = {**program.axes, **row}
                low, high = evaluate(lo, env), evaluate(hi, env)
                grown.extend(
                    {**row, key: value} for value in range(low, min(high, low + MAX_INVOCATIONS + 1))
                )
                if len(grown) > MAX_INVOCATIONS:
                    break
            rows = grown
        count = len(rows)
        if count > MAX_INVOCATIONS:
            open_entries.append(label)
            rows = [dict(params) for params in corner_params(program, label)]
        found.extend((label, row) for row in rows)
    return found, open_entries


# --- walking ----------------------------------------------------------------------------------------


def _walked(
    plan: Plan,
    program: Program,
    invocations: Sequence[tuple[str, dict[str, int]]],
    jobs: int,
    folded: frozenset[str],
) -> list[_Unit]:
    if jobs <= 1 or len(invocations) <= 1:
        return [_unit(plan, program, entry, params, folded) for entry, params in invocations]
    texts = (format_plan(plan), format_program(program))
    with ProcessPoolExecutor(min(jobs, len(invocations)), get_context("spawn")) as pool:
        return list(pool.map(_unit_of_text, itertools.repeat(texts), invocations, itertools.repeat(folded)))


def _much_dearer(plan: Plan, units: Sequence[_Unit], folded: frozenset[str]) -> bool:
    """Whether walking again with fewer ranks taken together costs too much for what it may tell.

    Most doubts are not of taking ranks together: the same would be found again, once for each rank.
    """
    before = Cells(plan, units[0].folded).count()
    grown = Cells(plan, folded).count() / max(before, 1)
    return sum(unit.size for unit in units) * grown > MAX_WALKED_AGAIN


def _unit_of_text(
    texts: tuple[str, str], invocation: tuple[str, dict[str, int]], folded: frozenset[str]
) -> _Unit:
    return _unit(parse_plan(texts[0]), parse_program(texts[1]), *invocation, folded)


def _unit(
    plan: Plan, program: Program, entry: str, params: Mapping[str, int], folded: frozenset[str]
) -> _Unit:
    env = bind_entry(program, entry, params)
    found, targets = _flowed(plan, program, entry, env, folded)
    clashing = None
    if plan.pools and found.ended and plan.num_ranks() <= MAX_RANKS and too_large(plan) is None:
        alone = flow(plan, program, entry, env) if folded else found  # bytes are each rank's own
        if alone.ended:
            clashing = clash(plan, program, entry, env, alone.types, alone.supplied)
    return _Unit(
        entry,
        dict(params),
        found.doubts,
        None if found.doubts else completed(found),
        _plain(found.reads),
        _plain(found.keeps),
        clashing,
        found.ended,
        found.halted,
        dict(found.suspects),
        tuple(axis for axis in plan.mesh if axis in folded),
        _shown(plan, program, entry, params, found),
        sum(map(len, found.relations.values())),
        targets,
    )


def _flowed(
    plan: Plan, program: Program, entry: str, env: Mapping[str, int], folded: frozenset[str]
) -> tuple[Flow, bool]:
    """The walk; and whether it took that no class of a mean loss is the one to be ignored.

    Doubts are told without the assumption.
    """
    found: Flow | None = None
    differing: Undecided | None = None
    try:
        found = flow(plan, program, entry, env, folded=folded)
    except Undecided as undecided:
        differing = undecided
    if (found is None or (found.doubts and found.ended)) and _has_mean_loss(program):
        try:
            counted = flow(plan, program, entry, env, targets=True, folded=folded)
        except Undecided:
            counted = None
        if counted is not None and (found is None or not counted.doubts):
            return counted, True
    if found is None:
        assert differing is not None
        raise differing
    return found, False


def _shown(
    plan: Plan, program: Program, entry: str, params: Mapping[str, int], found: Flow
) -> tuple[Shown, ...] | str:
    """What a replay of the doubts alone shows, where all ranks would be too many."""
    if not found.doubts or plan.num_ranks() <= MAX_RANKS:
        return ()
    reason = ""
    for seed in SEEDS:
        values = program_values(program, entry, params, seed)
        if values is None:
            return "too large to replay"
        try:
            seen = shown(found.trail, found.asked, values)
        except Unreplayable as why:
            reason = str(why)
            continue
        if seen:
            return tuple(seen)
        reason = "a replay shows no difference"
    return reason


def _has_mean_loss(program: Program) -> bool:
    bodies = [
        *(entry.body for entry in program.entries.values()),
        *(block.body for block in program.blocks.values()),
    ]
    todo = [item for body in bodies for item in body]
    while todo:
        item = todo.pop()
        if isinstance(item, For):
            todo.extend(item.body)
        elif isinstance(item, Op) and item.op == "nll_loss_forward":
            return True
    return False


def _plain(parts: Any) -> list[Json]:
    rows: list[Json] = json.loads(json.dumps(sorted(parts)))
    return rows


# --- values -----------------------------------------------------------------------------------------


def _values(
    plan: Plan,
    program: Program,
    units: Sequence[_Unit],
    open_entries: Sequence[str],
    accept: float,
    wrong: set[str],
    classes: Sequence[tuple[str, str]],
) -> tuple[Verdict, bytes | None]:
    """The verdict and, when proved, the certificate; `wrong` takes the outputs that a replay shows wrong."""
    error = 0.0
    reason = ""
    for unit in units:
        if not unit.doubts:
            continue
        verdict = _decided(plan, program, unit, accept, wrong)
        if verdict.status == "refuted":
            return verdict, None
        if verdict.status == "unknown":
            reason = reason or verdict.reason
        error += verdict.error or 0.0
    lost = _lost_states(program, units)
    if open_entries:
        reason = reason or (
            f"entry {', '.join(open_entries)} has over {MAX_INVOCATIONS} values of its parameters; "
            "only corners were walked"
        )
    if lost:
        reason = reason or lost
    if reason:
        return Verdict("unknown", "relations", reason=reason), None
    if error:
        return Verdict("probable", "relations and field", error=error), None
    covered = [
        Covered(unit.entry, unit.params, unit.targets, *(unit.claims or ([], [])), unit.folded)
        for unit in units
    ]
    certificate = write_certificate(digest(program), plan_digest(plan), covered, classes)
    try:
        report = check_certificate(certificate, plan, program)
    except LimitError as limit:
        return Verdict("unknown", "relations", reason=f"derived, but beyond the checker: {limit}"), None
    if not report.accepted:
        return Verdict("unknown", "relations", reason=f"the checker refuses: {report.reason}"), None
    taken = sorted({axis for unit in units for axis in unit.folded})
    ranks = f"; ranks along {', '.join(taken)} taken together" if taken else ""
    return Verdict("proved", f"relations; {report.coverage}{ranks}"), certificate


def _decided(plan: Plan, program: Program, unit: _Unit, accept: float, wrong: set[str]) -> Verdict:
    """One walk's doubts: refuted by a replay, probable by the field, or unknown."""
    first = unit.doubts[0]
    at = _at(unit)
    if plan.num_ranks() > MAX_RANKS:
        return _decided_in_part(plan, unit, at, wrong)
    for seed in SEEDS:
        try:
            seen = replay(plan, program, unit.entry, unit.params, seed)
        except (LimitError, UnsupportedError, RecordError) as failed:
            return Verdict("unknown", "replay", reason=f"{_words(first, unit)}{at}; no replay: {failed}")
        if seen is None:
            return Verdict("unknown", "replay", reason=f"{_words(first, unit)}{at}; too large to replay")
        if seen.wrong:
            wrong.update(item.claim.of.base for item in seen.wrong)
            return Verdict(
                "refuted",
                "relations and replay",
                counterexample=_counter(unit, _earliest(unit, seen.wrong), at),
            )
        if seen.error is not None:
            stuck = unit.doubts[-1]
            return Verdict(
                "refuted", "relations and replay", counterexample=_stuck(stuck, at, confirmed=True)
            )
    uncovered = next((doubt for doubt in unit.doubts if not doubt.rank), None)
    if uncovered is not None:
        return Verdict("refuted", "coverage", counterexample=_stuck(uncovered, at, confirmed=True))
    if not unit.ended:
        return Verdict(
            "unknown", "relations", reason=f"{_words(unit.doubts[-1], unit)}{at}; a replay comes to its end"
        )
    return _field(plan, program, unit, accept, f"{_words(first, unit)}{at}")


def _decided_in_part(plan: Plan, unit: _Unit, at: str, wrong: set[str]) -> Verdict:
    """By a replay of what doubts rest on, or by what is on no rank."""
    lost = next((doubt for doubt in unit.doubts if not doubt.rank), None)
    if unit.halted or lost is not None:
        found, method = (unit.doubts[-1], "order of steps") if unit.halted else (lost, "coverage")
        assert found is not None
        return Verdict("refuted", method, counterexample=_stuck(found, at, confirmed=False))
    if isinstance(unit.shown, str):
        return Verdict("unknown", "replay", reason=f"{_words(unit.doubts[0], unit)}{at}; {unit.shown}")
    seen = {item.order: item for item in unit.shown}
    for doubt in unit.doubts:
        if doubt.order not in seen:
            continue
        item = seen[doubt.order]
        wrong.update(claimed_base(plan, one.local) for one in unit.shown)
        words = doubt.step + at
        begun = unit.suspected(doubt)
        if begun is not None:
            words += f"; first astray on {begun.rank}: {begun.step}: {begun.why}"
        source = doubt.source or ("" if begun is None else begun.source)
        example = Counterexample(item.rank, item.local, doubt.claim, item.index, words, source, True)
        return Verdict("refuted", "relations and a replay of what the doubt rests on", counterexample=example)
    return Verdict("unknown", "replay", reason=f"{_words(unit.doubts[0], unit)}{at}; no replay of it")


def _field(plan: Plan, program: Program, unit: _Unit, accept: float, doubt: str) -> Verdict:
    domain = Field(1)
    try:
        env = bind_entry(program, unit.entry, unit.params)
        seen = compare(plan, program, unit.entry, env, domain)
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


def _earliest(unit: _Unit, wrong: Sequence[Wrong]) -> Wrong:
    """Of the claims that a replay found broken, the one that went astray first."""

    def begin(item: Wrong) -> tuple[float, int]:
        seen = unit.suspects.get((str(item.rank), str(item.name)))
        return (math.inf if seen is None else seen.order, item.order)

    return min(wrong, key=begin)


def _counter(unit: _Unit, wrong: Wrong, at: str) -> Counterexample:
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


def _lost_states(program: Program, units: Sequence[_Unit]) -> str:
    """A part of a state that some invocation reads on a rank and some other does not leave there."""
    reads = {json.dumps(row) for unit in units for row in unit.reads}
    for unit in units:
        pairs = state_pairs(program.entry(unit.entry), bind_entry(program, unit.entry, unit.params))
        own = {str(before) for before, _ in pairs}
        for row in sorted(reads - {json.dumps(row) for row in unit.keeps}):
            rank, of, _ = json.loads(row)
            if of in own:
                return f"{rank} reads state {of}, which {unit.entry} does not leave there{_at(unit)}"
    return ""


def _words(doubt: Doubt, unit: _Unit) -> str:
    where = (
        f"{doubt.rank}: {doubt.local} is not derived as {doubt.claim}, {doubt.why}"
        if doubt.rank
        else doubt.why
    )
    first = unit.suspected(doubt)
    begun = "" if first is None else f"; first astray on {first.rank}: {first.step}: {first.why}"
    source = doubt.source or ("" if first is None else first.source)
    return f"{where}{begun}{f' at {source}' if source else ''}"


def _at(unit: _Unit) -> str:
    return f" at {', '.join(f'{key}={value}' for key, value in unit.params.items())}" if unit.params else ""


# --- storage ----------------------------------------------------------------------------------------


def _storage(plan: Plan, program: Program, units: Sequence[_Unit]) -> Verdict:
    if not plan.pools:
        return Verdict("proved", "no pools")
    if plan.num_ranks() > MAX_RANKS:
        reason = f"{plan.num_ranks()} ranks are more than tags are kept for, {MAX_RANKS}"
        return Verdict("unknown", "byte tags", reason=reason)
    size = too_large(plan)
    if size is not None:
        return Verdict(
            "unknown", "byte tags", reason=f"pools of {size} bytes are more than tags are kept for"
        )
    for unit in units:
        if unit.clash is not None:
            found = unit.clash
            shown = storage_replay(plan, program, unit.entry, unit.params, SEEDS[0]) is not None
            step = f"{found.step}{_at(unit)}"
            example = Counterexample(found.rank, found.local, found.why, found.index, step, "", shown)
            return Verdict("refuted", "byte tags", counterexample=example)
    for unit in units:
        if not unit.ended:
            return Verdict("unknown", "byte tags", reason=f"the plan does not come to its end{_at(unit)}")
    _, open_entries = _invocations(program)
    if open_entries:
        reason = f"only corners of {', '.join(open_entries)} were walked"
        return Verdict("unknown", "byte tags", reason=reason)
    return Verdict("proved", "byte tags")
