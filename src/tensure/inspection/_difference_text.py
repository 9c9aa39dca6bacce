"""How a difference looks in plain text: the verdict, the first tensors that part, where and by how much.

Knows the records of a difference. Computes nothing. Knows no terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._text import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._difference import Difference, Finding
    from ._records import Trace

__all__ = ["difference_lines"]


def difference_lines(found: Difference, *, show_all: bool = False) -> Iterator[str]:
    """A difference line by line: how many pairs of each class, and the first finding.

    `show_all` gives every finding, and every pair that is not bit-identical.
    """
    counts = ", ".join(f"{count} {_words(kind)}" for kind, count in found.counts().most_common())
    yield f"A {found.a.name} ({found.a.how}); B {found.b.name} ({found.b.how})"
    yield f"{_words(found.kind)}: {counts or 'no tensors in common'}"
    alone = [
        (run, len(names)) for run, names in (("A", found.alignment.only_a), ("B", found.alignment.only_b))
    ]
    yield (
        "; ".join(
            f"{count} {'tensor' if count == 1 else 'tensors'} only in {run}" for run, count in alone if count
        )
        or ("every tensor has a pair" if found.alignment.pairs else "neither run has a tensor to pair")
    )
    shown = found.findings if show_all else found.findings[:1]
    for at, finding in enumerate(shown):
        yield "first divergent tensor:" if at == 0 else f"finding {at + 1}:"
        yield from _finding_lines(found, finding)
    if len(shown) < len(found.findings):
        yield f"{len(found.findings) - len(shown)} more findings (--all shows them)"
    if show_all:
        yield from _pair_lines(found)
    for note in found.notes:
        yield f"note: {note}"


def _finding_lines(found: Difference, finding: Finding) -> Iterator[str]:
    yield f"  {finding.text}"
    for run, trace, region in (("A", found.a, finding.region_a), ("B", found.b, finding.region_b)):
        if region:
            yield f"  smallest subgraph in {run}:"
            yield from (f"    {line}" for line in aligned([_row(trace, index) for index in region]))
    if (element := finding.element) is not None:
        at = ", ".join(map(str, element.index))
        bit = "" if element.bit is None else f"; bit {element.bit} ({element.bit_role})"
        yield f"  element [{at}]: {element.a!r} in A, {element.b!r} in B{bit}; {element.count} differ"
    for name, ours, theirs in finding.arguments:
        yield f"  argument {name}: {ours} in A, {theirs} in B"


def _row(trace: Trace, index: int) -> tuple[str, ...]:
    step = trace.steps[index]
    made = ", ".join(f"{facts.name} {facts.type}" for facts in trace.made(step))
    place = "  ".join(word for word in (step.module, step.source) if word)
    return f"[{index}]", step.op, place, made


def _pair_lines(found: Difference) -> Iterator[str]:
    rows = [
        (
            _words(verdict.kind),
            verdict.pair.a if verdict.pair.a == verdict.pair.b else f"{verdict.pair.a} = {verdict.pair.b}",
            f"|a-b| {verdict.gap:.3g}",
            "" if verdict.excess is None else f"{verdict.excess:.3g} of its bound",
            verdict.basis,
        )
        for verdict in found.verdicts
        if verdict.kind != "identical"
    ]
    yield from (f"  {line}" for line in aligned(rows))


def _words(kind: str) -> str:
    return {"identical": "bit-identical", "within": "within rounding", "by_design": "other by design"}.get(
        kind, kind
    )
