"""Prove a Plan: walk every invocation, decide every doubt, write and re-check the certificate.

`proved` is said only when no rule left a doubt and the independent checker accepts the certificate.
A doubt is first replayed concretely, which alone can refute a value; a doubt that no replay confirms goes to
the field, which can make the whole `probable`; what is left is `unknown`, with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensure.bundle import Counterexample, Plan, Proof, Replay, Verdict, plan_digest
from tensure.errors import LimitError, RecordError
from tensure.program import Program, Undecided, bind_entry, digest, state_pairs, unswept

from ._as_given import Given
from ._cells import Cells, unfolding
from ._certificate import Covered, write_certificate
from ._check import check_certificate
from ._check_looks import GIVEN
from ._decide import at_params, decided, mixed_up
from ._reals import over_reals, unclear_literal
from ._replay import storage_replay
from ._storage import too_large
from ._tensors import Shown, TensorVerdict, tensor_verdicts
from ._walks import MAX_INVOCATIONS, MAX_RANKS, SEEDS, Unit, invocations_of, walked

MAX_WALKED_AGAIN: Final = 1 << 15
"""Locals of a walk with fewer ranks taken together, made because one with more left doubts."""
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
    replay: Replay | None = None
    """What came of running the step itself, where whoever made the Plan has done so."""
    numerics: tuple[str, ...] = ()
    """Of what is equal over the reals: what ranks round and the Program does not, in words."""


def prove_plan(
    plan: Plan,
    program: Program,
    *,
    jobs: int = 1,
    accept: float = ACCEPT,
    fold: Sequence[str] | None = None,
    classes: Sequence[tuple[str, str]] = (),
    strict: bool = False,
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
        strict: what is proved only given that no target of a loss is the class it ignores is `unknown`.

    Raises:
        RecordError: the Plan is for another Program, or the Program is malformed.
        LimitError: a bound on steps or locals was passed.
    """
    if plan.program != digest(program):
        raise RecordError(f"the plan is for {plan.program}", wanted=f"the program's digest {digest(program)}")
    if not 0 < accept < 1:
        raise RecordError(f"accept={accept}", wanted="a probability above 0 and below 1")
    with unswept():
        result = _proved(plan, program, jobs, accept, fold, tuple(classes))
    return unconditional(result) if strict else result


def unconditional(result: ProofResult) -> ProofResult:
    """The same, but that a proof of batches without ignored targets alone is none."""
    values = result.proof.values
    if values.status != "proved" or GIVEN not in values.method:
        return result
    _, given, words = values.method.partition(GIVEN)
    verdict = Verdict("unknown", "relations", reason=f"proved only {given}{words}")
    return replace(result, proof=replace(result.proof, values=verdict, certificate=None), certificate=None)


def _proved(
    plan: Plan,
    program: Program,
    jobs: int,
    accept: float,
    fold: Sequence[str] | None,
    classes: tuple[tuple[str, str], ...],
) -> ProofResult:
    said, digests = (plan, program), (digest(program), plan_digest(plan))
    plan, program, floats = over_reals(plan, program)
    given = None if floats is None else Given(said[0], floats)
    if fold is None:
        fold = tuple(plan.mesh) if plan.num_ranks() > MAX_RANKS else ()
    if unknown := [axis for axis in fold if axis not in plan.mesh]:
        raise RecordError(f"fold along {unknown[0]!r}", wanted=f"axes of the mesh: {', '.join(plan.mesh)}")
    invocations, open_entries = invocations_of(program)
    wrong: Shown = {}
    units, certificate, looked = list[Unit](), None, False
    values = Verdict("unknown", "relations", reason="no way to walk it was found")
    for folded in unfolding(plan, fold):
        if units and _much_dearer(plan, units, folded):
            break
        try:
            units = walked(plan, program, invocations, jobs, folded, given=given)
        except Undecided as undecided:
            reason = f"ranks taken together differ: {undecided}"
            values = values if units else Verdict("unknown", "relations", reason=reason)
            faulty = (
                None if looked else _faulty(plan, program, invocations, jobs, folded, accept, wrong, given)
            )
            looked = True
            if faulty is not None:
                values, units = faulty
                break
            continue
        values, certificate = _values(plan, program, units, open_entries, accept, wrong, classes, said, jobs)
        if values.status in ("proved", "refuted"):
            break
    if given is not None and values.status == "refuted" and (unclear := unclear_literal(*said)):
        reason = f"it differs, and the plan has {unclear}, which may be the rounding of another"
        values, wrong = Verdict("unknown", values.method, reason=reason), {}
    storage = _storage(plan, program, units)
    named = None if certificate is None else f"sha256:{hashlib.sha256(certificate).hexdigest()}"
    return ProofResult(
        Proof(*digests, values, storage, named),
        certificate,
        *said,
        tensor_verdicts(plan, program, units, values, wrong),
        classes,
        numerics=_numerics(values, units, floats),
    )


def _numerics(values: Verdict, units: Sequence[Unit], floats: Mapping[str, str] | None) -> tuple[str, ...]:
    """What equality over the reals leaves out, where there are half floats."""
    if floats is None or values.status not in ("proved", "probable"):
        return ()
    found = tuple(dict.fromkeys(words for unit in units for words in unit.numerics))
    if any(unit.doubts for unit in units):
        return found  # what a walk with doubts rounds is not known
    return found or ("ranks round to half floats where the model does, and sum over ranks in no half float",)


def _faulty(
    plan: Plan,
    program: Program,
    invocations: Sequence[tuple[str, dict[str, int]]],
    jobs: int,
    folded: frozenset[str],
    accept: float,
    wrong: Shown,
    given: Given | None,
) -> tuple[Verdict, list[Unit]] | None:
    """A refutation where ranks taken together differ: of those that are right, most do not."""
    if plan.num_ranks() <= MAX_RANKS:
        return None
    try:
        units = walked(plan, program, invocations, jobs, folded, given=given, listed=True)
    except Undecided:
        return None
    for unit in units:
        verdict = decided(plan, program, unit, accept, wrong) if unit.doubts else None
        if verdict is not None and verdict.status == "refuted":
            return verdict, units
    return None


def _much_dearer(plan: Plan, units: Sequence[Unit], folded: frozenset[str]) -> bool:
    """Whether walking again with fewer ranks taken together costs too much for what it may tell.

    Most doubts are not of taking ranks together: the same would be found again, once for each rank.
    """
    before = Cells(plan, units[0].folded).count()
    grown = Cells(plan, folded).count() / max(before, 1)
    return sum(unit.size for unit in units) * grown > MAX_WALKED_AGAIN


# --- values -----------------------------------------------------------------------------------------


def _values(
    plan: Plan,
    program: Program,
    units: Sequence[Unit],
    open_entries: Sequence[str],
    accept: float,
    wrong: Shown,
    classes: Sequence[tuple[str, str]],
    said: tuple[Plan, Program],
    jobs: int,
) -> tuple[Verdict, bytes | None]:
    """The verdict and, when proved, the certificate; `wrong` takes the outputs that a replay shows wrong.

    Args:
        said: Plan and Program as they were given, which the certificate is of.
    """
    error = 0.0
    reason = ""
    for unit in units:
        mixed = mixed_up(unit)
        if mixed is not None and mixed.status == "refuted":
            return mixed, None
        if unit.doubts:
            verdict = decided(plan, program, unit, accept, wrong)
            if verdict.status == "refuted":
                return verdict, None
            if verdict.status == "unknown":
                reason = reason or verdict.reason
            error += verdict.error or 0.0
        reason = reason or ("" if mixed is None else mixed.reason)
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
    certificate = write_certificate(digest(said[1]), plan_digest(said[0]), covered, classes)
    try:
        report = check_certificate(certificate, *said, jobs=jobs)
    except LimitError as limit:
        return Verdict("unknown", "relations", reason=f"derived, but beyond the checker: {limit}"), None
    if not report.accepted:
        return Verdict("unknown", "relations", reason=f"the checker refuses: {report.reason}"), None
    taken = sorted({axis for unit in units for axis in unit.folded})
    ranks = f"; ranks along {', '.join(taken)} taken together" if taken else ""
    return Verdict("proved", f"relations; {report.coverage}{ranks}"), certificate


def _lost_states(program: Program, units: Sequence[Unit]) -> str:
    """A part of a state that some invocation reads on a rank and some other does not leave there."""
    reads = {json.dumps(row) for unit in units for row in unit.reads}
    for unit in units:
        pairs = state_pairs(program.entry(unit.entry), bind_entry(program, unit.entry, unit.params))
        own = {str(before) for before, _ in pairs}
        for row in sorted(reads - {json.dumps(row) for row in unit.keeps}):
            rank, of, _ = json.loads(row)
            if of in own:
                return f"{rank} reads state {of}, which {unit.entry} does not leave there{at_params(unit)}"
    return ""


# --- storage ----------------------------------------------------------------------------------------


def _storage(plan: Plan, program: Program, units: Sequence[Unit]) -> Verdict:
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
            step = f"{found.step}{at_params(unit)}"
            example = Counterexample(found.rank, found.local, found.why, found.index, step, "", shown)
            return Verdict("refuted", "byte tags", counterexample=example)
    for unit in units:
        if not unit.ended:
            return Verdict(
                "unknown", "byte tags", reason=f"the plan does not come to its end{at_params(unit)}"
            )
    _, open_entries = invocations_of(program)
    if open_entries:
        reason = f"only corners of {', '.join(open_entries)} were walked"
        return Verdict("unknown", "byte tags", reason=reason)
    return Verdict("proved", "byte tags")
