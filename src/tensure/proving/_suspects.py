"""Where a wrong result first went wrong: the earliest step that made what the program does not have.

Claims stand at the ends of a captured step, so a broken one names a gradient and not a line. From there this
walks back through locals that are no value of the program (or no part of one) to the first step whose
operands all were. That is a suspicion, not a proof; the proof that something is wrong is the replay's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tensure.bundle import Rank
from tensure.program import COLLECTIVES, Name, Op, where

from ._relation import Relation

__all__ = ["Made", "Suspect", "suspect"]

MAX_WALKED: Final = 1 << 17
_JOINS: Final = ("cat", "stack")


@dataclass(frozen=True, slots=True)
class Made:
    """How one local came to be: its place in the order of production, the step, the locals it came from."""

    order: int
    step: Op
    reads: tuple[tuple[Rank, Name], ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A step, its place in the order of production, where it is, and what is odd about it."""

    order: int
    rank: str
    step: str
    source: str
    why: str


def suspect(
    rank: Rank,
    name: Name,
    made: Mapping[tuple[Rank, Name], Made],
    relations: Mapping[Rank, Mapping[Name, Relation]],
    known: Callable[[Relation], bool],
    words: Callable[[Relation], str],
) -> Suspect | None:
    """The first step that led a local astray; None when nothing made it.

    Args:
        rank, name: the local whose claim is not derived.
        made: how locals came to be.
        relations: what they are, as derived.
        known: whether a relation speaks of values of the program only.
        words: a relation in words.
    """
    if (rank, name) not in made:
        return None
    first: tuple[bool, int, Rank, Name] | None = None
    todo, seen = [(rank, name)], {(rank, name)}
    while todo and len(seen) < MAX_WALKED:
        at = todo.pop()
        entry = made[at]
        operands = [item for item in entry.reads if item in made]
        astray = [item for item in operands if not known(relations[item[0]][item[1]])]
        if entry.step.op == "copy" and not astray:
            astray = operands  # whoever made what is copied is meant
        if not astray:
            # Pieces of an addend put side by side are no value by themselves, in a right plan too.
            is_joined = entry.step.op in _JOINS and not any(_plain(relations, item) for item in operands)
            if first is None or (is_joined, entry.order) < first[:2]:
                first = (is_joined, entry.order, *at)
            continue
        for item in astray:
            if item not in seen:
                seen.add(item)
                todo.append(item)
    if first is None:
        return None
    _, order, rank, name = first
    _, rank, name = _odd_one_out(rank, name, made, relations) or (order, rank, name)
    return _told(rank, name, made, relations, known, words)


def _plain(relations: Mapping[Rank, Mapping[Name, Relation]], at: tuple[Rank, Name]) -> bool:
    found = relations[at[0]][at[1]].single
    return found is not None and found.plain


def _odd_one_out(
    rank: Rank,
    name: Name,
    made: Mapping[tuple[Rank, Name], Made],
    relations: Mapping[Rank, Mapping[Name, Relation]],
) -> tuple[int, Rank, Name] | None:
    """Where a member that brings another kind of thing than most to a collective leaves their way."""
    entry = made[rank, name]
    if entry.step.op not in COLLECTIVES:
        return None
    kinds: dict[object, list[tuple[Rank, Name]]] = {}
    for rank, name in entry.reads:
        kinds.setdefault(_kind(relations[rank].get(name)), []).append((rank, name))
    few, most = min(kinds.values(), key=len, default=[]), max(kinds.values(), key=len, default=[])
    if len(few) == len(most):
        return None
    odd, peer = few[0], most[0]
    for _ in range(MAX_WALKED):
        mine, theirs = made.get(odd), made.get(peer)
        if mine is None or theirs is None:
            return None
        pairs = list(zip(mine.reads, theirs.reads, strict=False))
        differing = [
            (one, other)
            for one, other in pairs
            if _kind(relations[one[0]].get(one[1])) != _kind(relations[other[0]].get(other[1]))
        ]
        alike = mine.step.op == theirs.step.op and len(mine.reads) == len(theirs.reads)
        if not alike or not differing:
            return (mine.order, *odd)
        odd, peer = differing[0]
    return None


def _kind(relation: Relation | None) -> object:
    """What a relation is of, and how often, whichever part."""
    if relation is None:
        return None
    found = [
        (term.node, term.coef, () if term.limit is None else term.limit.skeleton) for term in relation.terms
    ]
    return tuple(sorted(found, key=repr))


def _told(
    rank: Rank,
    name: Name,
    made: Mapping[tuple[Rank, Name], Made],
    relations: Mapping[Rank, Mapping[Name, Relation]],
    known: Callable[[Relation], bool],
    words: Callable[[Relation], str],
) -> Suspect:
    entry = made[rank, name]
    step = entry.step
    relation = relations[rank][name]
    if known(relation):
        why = f"it makes {words(relation)}"
    else:
        odd = []
        for other, local in entry.reads:
            found = relations[other].get(local)
            if found is not None and (found.single is None or not found.single.plain):
                odd.append(f"{local}, which is {words(found)}")
        why = f"it reads {'; '.join(odd[:2])}" if odd else "the program has no such value"
    note = dict(step.note)
    source = ", ".join(str(note[key]) for key in ("module", "source") if key in note)
    return Suspect(entry.order, str(rank), where(step).split(" at ")[0], source, why)
