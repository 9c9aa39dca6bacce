"""Which parts of the Program's values ranks have at the end: outputs, and states from one run to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from tensure.bundle import Rank
from tensure.program import Name, Undecided, axes_in

from ._cells import Cells, region_at
from ._claims import Claims
from ._index import Region

StatePart: TypeAlias = tuple[str, str, Region]
"""(rank, before-state, region of it)."""
Locals: TypeAlias = Mapping[Rank, Iterable[Name]]
"""Names by rank, supplied ones first."""


def parts_held(
    labels: set[str], names: Locals, claims: Claims, cells: Cells, *, sums: bool
) -> dict[str, list[Region]]:
    """The parts of values that claims put on some rank.

    Args:
        labels: of which values.
        sums: count pending sums and multiples too.
    """
    held: dict[str, list[Region]] = {}
    for rank, own in names.items():
        for name in own:
            claim = claims.of(rank, name)
            if claim is None or claim.over is not None or not claim.scale:
                continue
            if str(claim.of) not in labels:
                continue
            if not sums and (claim.sum or claim.scale != 1):
                continue
            want = claims.part(claim)
            if want is not None:
                held.setdefault(str(claim.of), []).extend(_everywhere(cells, rank, want))
    return {label: list(dict.fromkeys(parts)) for label, parts in held.items()}


def _everywhere(cells: Cells, rank: Rank, part: Region) -> Iterator[Region]:
    """A part of many places as the part at each."""
    axes = axes_in(part)
    for place in cells.places(rank, axes) if axes else ((),):
        yield region_at(part, dict(place))


def states(
    pairs: Mapping[str, str],
    names: Locals,
    is_supplied: Callable[[Rank, Name], bool],
    claims: Claims,
    cells: Cells,
) -> tuple[frozenset[StatePart], frozenset[StatePart]]:
    """Parts of before-states supplied, and parts of after-states held whole at the end.

    Args:
        pairs: before-states by their after-states.

    Raises:
        Undecided: ranks are taken together.
    """
    if pairs and cells.folded:
        raise Undecided("what a rank keeps from one run to the next", cells.folded)
    reads: set[StatePart] = set()
    keeps: set[StatePart] = set()
    befores = set(pairs.values())
    for rank, own in names.items() if pairs else ():
        for name in own:
            claim = claims.of(rank, name)
            part = None if claim is None else claims.part(claim)
            if claim is None or part is None or claim.sum or claim.over is not None or claim.scale != 1:
                continue
            of = str(claim.of)
            if of in befores and is_supplied(rank, name):
                reads.add((str(rank), of, part))
            if of in pairs:
                keeps.add((str(rank), pairs[of], part))
    return frozenset(reads), frozenset(keeps)
