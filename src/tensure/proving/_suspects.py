"""Where a wrong result first went wrong: the earliest step that made what the program does not have.

Claims stand at the ends of a captured step, so a broken one names a gradient and not a line. From there this
walks back through locals that are no value of the program (or no part of one) to the first step whose
operands all were. That is a suspicion, not a proof; the proof that something is wrong is the replay's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tensure.bundle import Rank
from tensure.program import COLLECTIVES, Name, Op, where

from ._relation import Relation

__all__ = ["Made", "Suspect", "is_constant", "suspect"]

MAX_WALKED: Final = 1 << 17
MAX_CONSTANT: Final = 64
"""Locals that a constant is made of; more are not looked at."""
_JOINS: Final = ("cat", "stack")
Local: TypeAlias = tuple[Rank, Name]


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
    made: Callable[[Local], Made | None],
    derived: Callable[[Local], Relation],
    known: Callable[[Relation], bool],
    words: Callable[[Relation], str],
) -> Suspect | None:
    """The first step that led a local astray; None when nothing made it.

    Args:
        rank, name: the local whose claim is not derived.
        made: how a local came to be; None where it was supplied, or is none.
        derived: what a local that came to be is, before its claim was taken for granted.
        known: whether a relation speaks of values of the program only.
        words: a relation in words.
    """
    if made((rank, name)) is None:
        return None
    first: tuple[bool, int, Rank, Name] | None = None
    todo, seen = [(rank, name)], {(rank, name)}
    while todo and len(seen) < MAX_WALKED:
        at = todo.pop()
        entry = made(at)
        assert entry is not None
        operands = [item for item in entry.reads if made(item) is not None]
        astray = [item for item in operands if not known(derived(item))]
        if len(astray) > 1:  # zeros to which what is wrong is added are not meant
            astray = [item for item in astray if not is_constant(item, made)] or astray
        if entry.step.op == "copy" and not astray:
            astray = operands  # whoever made what is copied is meant
        if not astray:
            # Pieces of an addend put side by side are no value by themselves, in a right plan too.
            is_joined = entry.step.op in _JOINS and not any(_plain(derived(item)) for item in operands)
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
    _, rank, name = _odd_one_out(rank, name, made, derived) or (order, rank, name)
    return _told(rank, name, made, derived, known, words)


def is_constant(local: Local, made: Callable[[Local], Made | None]) -> bool:
    """Whether a local is made of nothing supplied or drawn, as the zeros of a stage without a loss."""
    todo, seen = [local], {local}
    while todo and len(seen) < MAX_CONSTANT:
        entry = made(todo.pop())
        if entry is None or (entry.step.op in ("draw", "recv") and not entry.reads):
            return False
        fresh = [item for item in entry.reads if item not in seen]
        seen.update(fresh)
        todo += fresh
    return not todo


def _plain(relation: Relation) -> bool:
    found = relation.single
    return found is not None and found.plain


def _odd_one_out(
    rank: Rank,
    name: Name,
    made: Callable[[Local], Made | None],
    derived: Callable[[Local], Relation],
) -> tuple[int, Rank, Name] | None:
    """Where a member that brings another kind of thing than most to a collective leaves their way."""
    entry = made((rank, name))
    if entry is None or entry.step.op not in COLLECTIVES:
        return None
    kinds: dict[object, list[Local]] = {}
    for item in entry.reads:
        kinds.setdefault(_kind(derived(item)), []).append(item)
    few, most = min(kinds.values(), key=len, default=[]), max(kinds.values(), key=len, default=[])
    if len(few) == len(most):
        return None
    odd, peer = few[0], most[0]
    if is_constant(odd, made):  # zeros that one rank adds
        return None
    for _ in range(MAX_WALKED):
        mine, theirs = made(odd), made(peer)
        if mine is None or theirs is None:
            return None
        pairs = list(zip(mine.reads, theirs.reads, strict=False))
        differing = [pair for pair in pairs if _kind(derived(pair[0])) != _kind(derived(pair[1]))]
        alike = mine.step.op == theirs.step.op and len(mine.reads) == len(theirs.reads)
        if not alike or not differing:
            return (mine.order, *odd)
        odd, peer = differing[0]
    return None


def _kind(relation: Relation) -> object:
    """What a relation is of, and how often, whichever part."""
    found = [
        (term.node, term.coef, () if term.limit is None else term.limit.skeleton) for term in relation.terms
    ]
    return tuple(sorted(found, key=repr))


def _told(
    rank: Rank,
    name: Name,
    made: Callable[[Local], Made | None],
    derived: Callable[[Local], Relation],
    known: Callable[[Relation], bool],
    words: Callable[[Relation], str],
) -> Suspect:
    entry, relation = made((rank, name)), derived((rank, name))
    assert entry is not None
    step = entry.step
    if known(relation):
        why = f"it makes {words(relation)}"
    else:
        odd = []
        for item in entry.reads:
            if not _plain(derived(item)):
                odd.append(f"{item[1]}, which is {words(derived(item))}")
        why = f"it reads {'; '.join(odd[:2])}" if odd else "the program has no such value"
    return Suspect(entry.order, str(rank), where(step).split(" at ")[0], _line_near((rank, name), made), why)


def _line_near(local: Local, made: Callable[[Local], Made | None]) -> str:
    """Module and line of the step that made a local, or of the nearest that it comes from."""
    at, seen, module = [local], {local}, ""
    while at and len(seen) < MAX_WALKED:
        before: list[Local] = []
        for item in at:
            entry = made(item)
            if entry is None:
                continue
            note = dict(entry.step.note)
            if "source" in note:
                return ", ".join(str(note[key]) for key in ("module", "source") if key in note)
            module = module or str(note.get("module", ""))
            before += entry.reads
        at = [item for item in dict.fromkeys(before) if item not in seen]
        seen.update(at)
    return module
