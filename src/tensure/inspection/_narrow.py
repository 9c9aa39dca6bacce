"""From a divergent pair to its fault: the least part of either run, the element, the bit, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ._align import Pair
from ._difference import Finding
from ._explain import describe_change, first_difference, same_bits
from ._families import is_view
from ._recording import Recording
from ._records import Step

__all__ = ["Suspects", "changed_arguments", "explain", "explain_stand_in"]

MAX_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Suspects:
    """The steps of either run between the last tensors they agree on and the divergent one.

    `extra_a`, `extra_b` are those of them that the other run lacks; `innocent` says that the last step of B
    does what A's would do of the same operands, so that the fault lies before it; `overwriter` is a step of B
    that wrote over what A reads here.
    """

    steps_a: Sequence[Step]
    steps_b: Sequence[Step]
    extra_a: Sequence[Step]
    extra_b: Sequence[Step]
    innocent: bool
    overwriter: Step | None = None


def explain(a: Recording, b: Recording, pair: Pair, suspects: Suspects) -> Finding:
    """The fault behind a divergent pair."""
    assert a.values is not None
    assert b.values is not None
    x, y = a.values.get(pair.a), b.values.get(pair.b)
    y = y.reshape(x.shape) if x.numel() == y.numel() else y
    step_a, step_b = _maker(a, pair.a, suspects.steps_a), _maker(b, pair.b, suspects.steps_b)
    change = describe_change(x, y)
    element = None
    if x.shape == y.shape and x.dtype == y.dtype:
        # Of what was given the first difference, of what was computed the largest: others may be rounding.
        element = first_difference(x, y, None if step_a is None else ~same_bits(x, y))
    found = Finding("step", pair.a, pair.b, step_a, step_b, (), (), element, change, (), "")
    if step_a is None:
        readers = _first_reader(a, pair.a), _first_reader(b, pair.b)
        found = replace(found, kind="leaf", step_a=readers[0], step_b=readers[1])
        return _worded(a, found, Suspects((), (), (), (), False))
    writer = suspects.overwriter
    if writer is None and suspects.innocent and suspects.extra_b:
        writer = next((step for step in suspects.extra_b if step.wrote), None)
        if writer is None:
            return _worded(a, replace(found, step_b=suspects.extra_b[0]), suspects)
    if writer is not None:
        return _worded(a, replace(found, kind="order", step_b=writer), suspects)
    if suspects.innocent and suspects.extra_a:
        return _worded(a, replace(found, step_a=suspects.extra_a[0], step_b=None), suspects)
    if step_b is not None:
        found = replace(found, arguments=changed_arguments(step_a, step_b))
    return _worded(a, found, suspects)


def explain_stand_in(b: Recording, pair: Pair, source: str, step: Step, scale: float) -> Finding:
    """Numbers that came back from integers further off than the grid's half step."""
    assert b.values is not None
    x, y = b.values.get(source), b.values.get(pair.b)
    element = first_difference(
        x, y.reshape(x.shape), (x.double() - y.reshape(x.shape).double()).abs() > scale
    )
    text = f"{pair.b} stands for {source} through integers, yet is off by more than half a step of {scale:g}"
    return Finding("step", pair.a, pair.b, None, step, (), (step.index,), element, "", (), text)


def changed_arguments(a: Step, b: Step) -> tuple[tuple[str, str, str], ...]:
    """Arguments that both steps have and that differ, or that one has alone."""
    ours, theirs = dict(a.arguments), dict(b.arguments)
    return tuple(
        (key, _shown(ours, key), _shown(theirs, key))
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key) or (key in ours) != (key in theirs)
    )


def _shown(arguments: Mapping[str, object], key: str) -> str:
    return str(arguments[key])[:80] if key in arguments else "absent"


def _maker(run: Recording, name: str, suspects: Sequence[Step]) -> Step | None:
    """The step that made a tensor's values; of what only shows another one, that one's.

    Only as far as the suspects go: a copy of what both runs agree on is itself to blame.
    """
    within = {step.index for step in suspects}
    step = run.trace.maker(name)
    while step is not None and is_view(step.op) and step.reads:
        before = run.trace.maker(step.reads[0])
        if before is None or before.index not in within:
            break
        step = before
    return step


def _first_reader(run: Recording, name: str) -> Step | None:
    return next((step for step in run.trace.steps if name in step.reads), None)


def _worded(a: Recording, found: Finding, suspects: Suspects) -> Finding:
    """A finding with its regions and its sentence filled in."""
    return replace(
        found,
        region_a=tuple(step.index for step in suspects.steps_a),
        region_b=tuple(step.index for step in suspects.steps_b),
        text=_text(a, found, suspects),
    )


def _text(a: Recording, found: Finding, suspects: Suspects) -> str:
    step_a, step_b, element = found.step_a, found.step_b, found.element
    facts = a.trace.tensors[found.a]
    names = found.a if found.a == found.b else f"{found.a} (in B {found.b})"
    parts: list[str] = []
    if found.kind == "leaf":
        parts.append(f"{facts.origin} {names} {facts.type} differs, first read by {_step(step_a)}")
    elif found.kind == "order":
        parts.append(f"{names} {facts.type}: in B it is made of memory that {_step(step_b)} had written over")
    elif step_b is None:
        parts.append(f"{names} {facts.type} parts because B lacks {_step(step_a)}")
    else:
        extra = suspects.innocent and any(step.index == step_b.index for step in suspects.extra_b)
        parts.append(f"{names} {facts.type} parts at {_step(step_b)}" + ", which A lacks" * extra)
        if not extra and step_a is not None and step_b is not None and step_a.op != step_b.op:
            parts.append(f"A has {_step(step_a)}")
    if found.change:
        parts.append(found.change)
    parts += [f"{key} is {ours} in A and {theirs} in B" for key, ours, theirs in found.arguments[:MAX_SHOWN]]
    if element is not None:
        at = ",".join(map(str, element.index))
        where = f"{element.count} of {facts.size} elements; at [{at}] {element.a!r} became {element.b!r}"
        if element.bit is not None:
            where += f" (bit {element.bit}, {element.bit_role})"
        parts.append(where)
    return "; ".join(parts)


def _step(step: Step | None) -> str:
    if step is None:
        return "no step"
    place = " in ".join(part for part in (step.source and f"at {step.source}", step.module) if part)
    return f"step {step.index} {step.op}" + (f" ({place})" if place else "")
