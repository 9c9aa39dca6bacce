"""Ranks whose collectives do not match, in words: who calls what at which line, and who waits for ever.

Knows steps and where ranks stand; knows no values. Says nothing about whether they match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tensure.bundle import Rank
from tensure.program import COLLECTIVES, Op

from ._doubt import step_words

MAX_NAMED: Final = 4
MISMATCH: Final = "ranks do not make the same calls"
"""Told before values that are wrong: they may be so because a call was left out."""


def unmatched(
    met: Op,
    members: Sequence[Rank],
    current: Mapping[Rank, Op | None],
    streams: Mapping[Rank, Iterable[Op]],
    brought: Mapping[Rank, str],
    *,
    stuck: bool,
) -> str:
    """What the members of a collective do in its place.

    Args:
        met: the collective, as one of them calls it.
        members: of its group.
        current: the step each rank stands at; None where it came to its end.
        streams: all steps of a rank, from the first.
        brought: the type of what each member brings that came so far.
        stuck: whether nobody can go on, so that the others wait where they stand.
    """
    axes = met.attr("axes")
    calls = {
        rank: [step for step in streams[rank] if step.op in COLLECTIVES and step.attr("axes") == axes]
        for rank in members
    }
    does = dict[str, list[Rank]]()
    counts = dict[int, list[Rank]]()
    typed = all(rank in brought for rank in members)
    for rank in members:
        counts.setdefault(len(calls[rank]), []).append(rank)
        own, stands = next((step for step in calls[rank] if step.outs == met.outs), None), current.get(rank)
        if own is None and stands is not None and stands.attr("axes") == axes and stands.op in COLLECTIVES:
            words = _called(stands)
        elif own is None:
            words = "no such call"
        elif stuck and stands is not None and stands.outs != met.outs:
            words = f"waits at {_called(stands)}, before that call"
        else:
            words = _called(own, brought.get(rank, "") if typed or stuck else "")
        does.setdefault(words, []).append(rank)
    over = ", ".join(map(str, axes)) if isinstance(axes, tuple) else str(axes)
    told = "; ".join(f"{_named(ranks)}: {words}" for words, ranks in does.items())
    if len(counts) > 1:
        several = ", ".join(f"{count} on {_named(ranks)}" for count, ranks in sorted(counts.items()))
        end = f"of calls over {over} there are {several}: who makes more waits for ever (a hang)"
    elif stuck:
        end = "they wait for one another for ever (a hang)"
    else:
        end = "they wait for one another for ever (a hang), or take one another's numbers"
    return f"{MISMATCH} over {over}: {told}; {end}"


def _called(step: Op, brought: str = "") -> str:
    call = next((str(value) for key, value in step.note if key == "call"), "")
    reduce = f" ({step.attr('reduce')})" if step.attr("reduce") else ""
    dims = "" if step.attr("dim") is None else f" along dim {step.attr('dim')}"
    _, source = step_words(step)
    brought = next((str(value) for key, value in step.note if key == "brought"), brought)
    brought = "" if call == "barrier" else brought
    what = (call or f"{step.op}{reduce}{dims}") + (f" of {brought}" if brought else "")
    return what + (f" at {source}" if source else "")


def _named(ranks: Sequence[Rank]) -> str:
    more = f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
    return ", ".join(map(str, ranks[:MAX_NAMED])) + more
