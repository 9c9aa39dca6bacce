"""Plant faults in three real models and count who finds them, at the right op: ours, and torch's DebugMode.

    python -m tensure.benchmarks._inspect_campaign NUM_FAULTS SEED

Prints one JSON object. A fault counts as found where the first divergent tensor named is the one the fault
is in: the weight it changed, the result of the op it sat in, the ops it added. DebugMode names ops only: it
has found a fault if its first mismatch is at the op, counted from the start. Runs that are equal, NaNs
included, must raise no alarm. A fault that changes no bit (checked with torch alone) is no fault and is
planted again elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tensure.inspection import Finding, Recording, compare, watch

from ._inspect_faults import Fault, Subject, choose_faults, planted
from ._inspect_subjects import SUBJECTS

__all__ = ["Outcome", "is_right", "run_campaign"]


@dataclass(slots=True)
class Outcome:
    """What came of a campaign."""

    faults: int = 0
    found: int = 0
    found_by_debug_mode: int = 0
    alarms: int = 0
    equal_runs: int = 0
    missed: list[str] = field(default_factory=list[str])
    by_kind: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Kind -> planted, found by ours, found by DebugMode."""


def run_campaign(
    count: int,
    seed: int,
    *,
    subjects: Sequence[str] = tuple(SUBJECTS),
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """`count` faults spread over the subjects."""
    outcome = Outcome()
    for at, name in enumerate(subjects):
        share = count // len(subjects) + (at < count % len(subjects))
        _one_subject(SUBJECTS[name](), share, seed + at, outcome, say)
    return outcome


def is_right(fault: Fault, finding: Finding | None) -> bool:
    """Whether a finding is at the fault's op."""
    if finding is None:
        return False
    if fault.level == "weight":
        reader = finding.step_a
        return finding.a == fault.weight and reader is not None and reader.index == fault.step
    if fault.kind == "in-place alias":
        blamed = finding.step_b
        return finding.kind == "order" and blamed is not None and blamed.index == fault.step + 1
    if fault.kind == "bf16 cast" and fault.level == "visible":
        return finding.step_b is not None and finding.step_b.index in (fault.step + 1, fault.step + 2)
    return finding.step_a is not None and finding.step_a.index == fault.step


def _one_subject(
    subject: Subject, count: int, seed: int, outcome: Outcome, say: Callable[[str], None]
) -> None:
    for _ in range(3):  # TorchScript settles on its code in the first runs
        subject.run()
    clean = _record(subject)
    assert clean.values is not None
    clean_log = _debug_log(subject)
    again = _record(subject)
    outcome.equal_runs += 1
    outcome.alarms += compare(clean, again).kind != "identical"
    _close(again)
    outcome.equal_runs += 1
    outcome.alarms += _alarm_with_nan(subject)
    planted_so_far = 0
    for fault in choose_faults(subject, clean.trace, 3 * count, seed):
        if planted_so_far == count:
            break
        with planted(
            fault, subject, clean.trace, lambda: watch(subject.module, digest=True, keep=True)
        ) as run:
            subject.run()
        faulty = run.recording()
        if _same_bits(clean, faulty):
            _close(faulty)
            continue
        planted_so_far += 1
        first = compare(clean, faulty, first_only=True).first
        _close(faulty)
        with planted(fault, subject, clean.trace, _debug_mode) as log:
            subject.run()
        _count(outcome, fault, is_right(fault, first), _debug_is_right(fault, clean_log, _calls(log)))
        if not is_right(fault, first):
            outcome.missed.append(
                f"{subject.name}: {fault}; named {first.text if first else 'nothing'}"[:400]
            )
        say(f"{subject.name}: {planted_so_far} of {count}")
    _close(clean)


def _count(outcome: Outcome, fault: Fault, ours: bool, debug_mode: bool) -> None:
    outcome.faults += 1
    outcome.found += ours
    outcome.found_by_debug_mode += debug_mode
    row = outcome.by_kind.setdefault(fault.kind, [0, 0, 0])
    for at, count in enumerate((1, ours, debug_mode)):
        row[at] += count


def _record(subject: Subject) -> Recording:
    with watch(subject.module, digest=True, keep=True) as run:
        subject.run()
    return run.recording()


def _close(recording: Recording) -> None:
    if recording.values is not None:
        recording.values.close()


def _same_bits(clean: Recording, faulty: Recording) -> bool:
    """Whether every tensor has the digest it had: then there was nothing to find."""
    ours, theirs = clean.trace, faulty.trace
    return len(ours.steps) == len(theirs.steps) and [f.digest for f in ours.tensors.values()] == [
        f.digest for f in theirs.tensors.values()
    ]


def _alarm_with_nan(subject: Subject) -> bool:
    """Whether two equal runs with a NaN in a weight are told apart."""
    parameter = next(p for p in subject.module.parameters() if p.is_floating_point() and p.numel() > 1)
    with torch.no_grad():
        kept = parameter.reshape(-1)[0].clone()
        parameter.reshape(-1)[0] = float("nan")
        try:
            one, other = _record(subject), _record(subject)
            kind = compare(one, other).kind
        finally:
            parameter.reshape(-1)[0] = kept
    _close(one)
    _close(other)
    return kind != "identical"


# --- torch's DebugMode --------------------------------------------------------------------------------


class _DebugLog(ExitStack):
    """DebugMode with hashes of both kinds, as one context manager."""

    def __enter__(self) -> Any:
        from torch.utils._debug_mode import DebugMode

        super().__enter__()
        mode = self.enter_context(DebugMode())
        self.enter_context(DebugMode.log_tensor_hashes(_both_hashes))
        return mode


def _both_hashes(tensor: torch.Tensor) -> Any:
    """DebugMode's two hashes, out of reach of a fault planted beneath it."""
    from torch.utils._debug_mode._utils import hash_tensor_fn, norm_hash_fn
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return norm_hash_fn(tensor, use_scalar=True), hash_tensor_fn(tensor, use_scalar=True)


def _debug_mode() -> _DebugLog:
    return _DebugLog()


def _debug_log(subject: Subject) -> list[Any]:
    with _debug_mode() as mode:
        subject.run()
    return _calls(mode)


def _calls(mode: Any) -> list[Any]:
    return list(mode.logs)


def _debug_is_right(fault: Fault, clean: list[Any], faulty: list[Any]) -> bool:
    """Whether `check_hash_mismatches` raises nothing and its first mismatch is the fault's op."""
    from torch.utils._debug_mode import DebugMode

    try:
        mismatches = DebugMode.check_hash_mismatches(clean, faulty)
    except ValueError:
        return False  # it compares runs of the same ops only
    if not mismatches:
        return False
    first = mismatches[0]["call"]
    if fault.level == "weight":
        # The op that reads the weight, or the view of it that op takes.
        return _index_of_first(clean, faulty) in (fault.step, fault.step + 1)
    return _name(first) == fault.op and _index_of_first(clean, faulty) == fault.step


def _index_of_first(clean: list[Any], faulty: list[Any]) -> int:
    from torch.utils._debug_mode import DebugMode

    ops = [(one, other) for one, other in zip(clean, faulty, strict=True) if type(one).__name__ == "_OpCall"]
    for at, (one, other) in enumerate(ops):
        if DebugMode.check_hash_mismatches([one], [other]):
            return at
    return -1


def _name(call: Any) -> str:
    return str(call).removeprefix("aten::").removeprefix("aten.").partition(".")[0]


def main(argv: Sequence[str]) -> None:
    """Run a campaign and print its outcome."""
    torch.set_num_threads(1)
    outcome = run_campaign(int(argv[0]), int(argv[1]), say=lambda text: print(text, file=sys.stderr))
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(sys.argv[1:])
