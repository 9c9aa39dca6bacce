"""Which locals rest on random numbers that a rank reads in another way than the model does.

`u >= p` for `u < 1 - p`, or `-n` for `n`, are other numbers and one distribution: a replay in which such a
local differs shows nothing. Where all random numbers that a local rests on are read as the model reads them
(by the same steps, for the same elements, with the same factors), it is another function of the same
values. Knows nothing of distributions: those are the business of `_ensemble`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.bundle import Rank
from tensure.program import Arg, Cat, Name, Op, Ref

from ._flow import Flow
from ._index import Region, shape_of
from ._logical import Logical
from ._relation import ONE, Relation, Term
from ._values import is_part

Local: TypeAlias = "tuple[Rank, Name]"
Heard: TypeAlias = "tuple[tuple[int, Fraction], ...]"
"""The model's values made of random numbers alone that a relation has terms of, and their factors."""
Way: TypeAlias = "tuple[str, int, tuple[str, ...], Heard]"
"""A step that reads some of them: op, operand, what else it is told."""
_EITHER_WAY: Final = frozenset({"add", "mul"})


@dataclass(frozen=True, slots=True)
class Readings:
    """What a walk's random numbers were read for.

    Args:
        otherwise: locals that rest on some read in another way than the model reads them.
        orders: by place in the order of production, the claims in doubt that do.
        unsettled: draws of which a claim in doubt rests, or of which all readers take parts only.
    """

    otherwise: frozenset[Local]
    orders: frozenset[int]
    unsettled: frozenset[Local]


def readings(found: Flow) -> Readings:
    """How the ranks of one walk read random numbers.

    Where some stand for what they cannot (`Draws.mixed`), whatever rests on any is read in another way.
    """
    drawn = found.draws.drawn()
    if not drawn or not found.doubts:
        return Readings(frozenset(), frozenset(), _partly_read(found, drawn))
    unsettled = _behind(found, {one for item in found.asked for one in item.members}) & drawn.keys()
    unsettled |= _partly_read(found, drawn)
    if found.draws.mixed(frozenset(unsettled)) is None:
        otherwise = _read_otherwise(found, drawn)
    else:
        otherwise = _resting_on(found, set(drawn))
    for group in found.trail.addends():
        if not otherwise.isdisjoint(group):
            otherwise.update(group)
    orders = {item.order for item in found.asked if not otherwise.isdisjoint(item.members)}
    return Readings(frozenset(otherwise), frozenset(orders), frozenset(unsettled))


def _behind(found: Flow, locals_: set[Local]) -> set[Local]:
    """All that some locals rest on, they included."""
    seen, todo = set(locals_), list(locals_)
    while todo:
        for item in _reads(found, todo.pop()):
            if item not in seen:
                seen.add(item)
                todo.append(item)
    return seen


def _resting_on(found: Flow, begun: set[Local]) -> set[Local]:
    seen = set(begun)
    for local in found.trail.in_order():
        if not seen.isdisjoint(_reads(found, local)):
            seen.add(local)
    return seen


def _reads(found: Flow, local: Local) -> tuple[Local, ...]:
    rank, name = local
    known = name in found.relations.get(rank, {}) and name not in found.supplied[rank]
    return tuple(found.trail.reads_of(rank, name)) if known else ()


def _partly_read(found: Flow, drawn: dict[Local, Region | None]) -> frozenset[Local]:
    """Draws that are read, and of which no reader takes all."""
    some, whole = set[Local](), set[Local]()
    for local in found.trail.in_order():
        rank, name = local
        for item in _reads(found, local):
            if item not in drawn:
                continue
            step = found.trail.made_by(rank, name)
            node = found.trail.relation(*item).terms[0].node
            made = [term for term in found.trail.relation(rank, name).terms if term.node == node]
            cut = made and all(_count(term.region) < _count(drawn[item] or term.region) for term in made)
            boxed = step is not None and any(ref.box for ref in _refs(step.args) if ref.name == item[1])
            (some if cut or boxed else whole).add(item)
    return frozenset(some - whole)


def _count(region: Region) -> int:
    count = 1
    for size in shape_of(region):
        count *= size
    return count


def _refs(args: tuple[Arg, ...]) -> Iterator[Ref]:
    for arg in args:
        if isinstance(arg, Ref):
            yield arg
        elif isinstance(arg, Cat):
            yield from _refs(arg.parts)


# --- in another way -----------------------------------------------------------------------------------


def _read_otherwise(found: Flow, drawn: dict[Local, Region | None]) -> set[Local]:
    trail, logical = found.trail, found.logical
    noise = _noise(logical)
    ways = _ways(logical, noise)
    doubted = {one for item in found.asked for one in item.members}
    told = _resting_on(found, doubted)  # what was claimed, from there on, and not what was derived
    otherwise = set[Local]()
    strange = {
        local: frozenset[Heard](((node, ONE),) for node in nodes)
        for local, nodes in found.draws.strange().items()
    }
    roots: dict[Local, set[Region]] = {
        local: {region} for local, region in drawn.items() if region is not None
    }
    for local in trail.in_order():
        reads = _reads(found, local)
        rank, name = local
        relation = trail.relation(rank, name)
        heard = _heard(relation, noise)
        if heard and local not in drawn:
            roots[local] = {region for item in reads for region in roots.get(item, ())}
        if local in drawn or (local not in told and _is_known(relation, logical)):
            continue
        step = trail.made_by(rank, name)
        odd = {item for item in reads if item in strange}
        if odd and otherwise.isdisjoint(reads):
            like = _like_some(local, step, odd, strange, ways)
            if like is None or any(item in roots for item in reads):
                otherwise.add(local)
            elif like:
                strange[local] = like
            continue
        if not otherwise.isdisjoint(reads) or (
            step is not None and not _as_the_model(found, local, step, reads, roots, noise, ways)
        ):
            otherwise.add(local)
    return otherwise


def _like_some(
    local: Local,
    step: Op | None,
    odd: set[Local],
    strange: Mapping[Local, frozenset[Heard]],
    ways: Mapping[Way, set[Heard]],
) -> frozenset[Heard] | None:
    """What a step makes of numbers that stand for none of the model's: what the model makes of its own so.

    Empty if that is of other values besides; None if the model has no such step.
    """
    if step is None or len(odd) > 1 or any(ref.box for ref in _refs(step.args)):
        return None
    (item,) = odd
    at = [k for k, arg in enumerate(step.args) if isinstance(arg, Ref) and arg.name == item[1]]
    if item[0] != local[0] or len(at) != 1:
        return None
    found = [ways.get(_way(step, at[0], heard)) for heard in strange[item]]
    seen = [made for made in found if made is not None]
    return frozenset[Heard]().union(*seen) if seen else None


def _as_the_model(
    found: Flow,
    local: Local,
    step: Op,
    reads: tuple[Local, ...],
    roots: dict[Local, set[Region]],
    noise: frozenset[int],
    ways: Mapping[Way, set[Heard]],
) -> bool:
    """Whether a step reads random numbers, if it does, by a step of the model's, for the same elements."""
    for item in reads:
        relation = found.trail.relation(*item)
        heard = _heard(relation, noise)
        if not heard:
            continue
        at = {k for k, arg in enumerate(step.args) if isinstance(arg, Ref) and arg.name == item[1]}
        if item[0] != local[0] or not at or any(ref.box for ref in _refs(step.args)):
            return False
        if any({term.region} != roots.get(item, set()) for term in _terms(relation, noise)):
            return False
        if any(_way(step, place, heard) not in ways for place in at):
            return False
    return True


def _is_known(relation: Relation, logical: Logical) -> bool:
    return all(term.node in logical.labels for term in relation.terms)


def _terms(relation: Relation, noise: frozenset[int]) -> list[Term]:
    return [term for term in relation.terms if term.node in noise]


def _heard(relation: Relation, noise: frozenset[int]) -> Heard:
    return tuple(sorted((term.node, term.coef) for term in _terms(relation, noise)))


def _way(step: Op, place: int, heard: Heard) -> Way:
    said: list[Any] = [item for item in step.attrs if item[0] != "size"]
    said += [(k, arg) for k, arg in enumerate(step.args) if not isinstance(arg, (Ref, Cat))]
    return step.op, 0 if step.op in _EITHER_WAY else place, tuple(map(repr, said)), heard


def _ways(logical: Logical, noise: frozenset[int]) -> dict[Way, set[Heard]]:
    """How the model's own steps read random numbers, and what they make of these alone."""
    found: dict[Way, set[Heard]] = {}
    for step in logical.origins.values():
        for place, arg in enumerate(step.args):
            if isinstance(arg, Ref) and not arg.box:
                heard = _heard(logical.named(arg).relation, noise)
                if heard:
                    made = [_heard(logical.names[str(out)].relation, noise) for out in step.outs]
                    is_more = any(
                        term.node not in noise
                        for out in step.outs
                        for term in logical.names[str(out)].relation.terms
                    )
                    of_way = found.setdefault(_way(step, place, heard), set())
                    of_way.update(item for item in made if item and not is_more)
    return found


def _noise(logical: Logical) -> frozenset[int]:
    """The values made of random numbers and constants alone."""
    drawn, given = set[int](), set[int]()
    for node, value in enumerate(logical.values):
        parts = [item[0] for item in value.operands if is_part(item)]  # type: ignore[index]
        parts = parts or list(value.form or ())
        if value.op == "draw":  # what it is like is not in its numbers
            drawn.add(node)
        elif value.op in ("leaf", "ghost") or not given.isdisjoint(parts):
            given.add(node)
        elif not drawn.isdisjoint(parts):
            drawn.add(node)
    return frozenset(drawn)
