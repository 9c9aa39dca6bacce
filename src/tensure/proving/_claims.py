"""What a Plan claims of its locals, as relations to the Program's values."""

from __future__ import annotations

from collections.abc import Mapping

from tensure.bundle import BoundClaims, PlacedRuns, Plan, Rank
from tensure.errors import RecordError
from tensure.program import Name, Op, Undecided, axes_in

from ._contraction import TERMS, terms_of
from ._index import Region, length, select, shape_of, whole
from ._laid import label_of
from ._limit import Share, limited, share_of
from ._logical import Logical
from ._relation import Relation, Term, Told, describe
from ._values import is_part


class Claims:
    """The claims of one invocation.

    Args:
        envs: what parameters and coordinates are, by rank.
    """

    def __init__(self, plan: Plan, logical: Logical, envs: Mapping[Rank, Mapping[str, int]]) -> None:
        self._logical = logical
        self._ranks = {rank: BoundClaims(plan, rank.track, env) for rank, env in envs.items()}
        self._last: tuple[Name, Rank, PlacedRuns | None] | None = None
        """A step's results are asked about twice: when it is taken, and when they have come to be."""
        self._regions: dict[object, Region] = {}
        self._told: dict[int, Told] | None = None

    def of(self, rank: Rank, name: Name) -> PlacedRuns | None:
        """The claim on a local, if there is one.

        Raises:
            Undecided: which value it names differs from place to place.
        """
        if self._last is None or self._last[0] is not name or self._last[1] is not rank:
            claim = self._ranks[rank].of(name)
            if claim is not None and (differing := axes_in(claim.of.index)):
                raise Undecided(f"which {claim.of.base} {rank} has", differing)
            self._last = (name, rank, claim)
        return self._last[2]

    def relation(self, claim: PlacedRuns) -> Relation:
        """A claim as a relation.

        Raises:
            RecordError: it names what the Program does not have.
        """
        whole = self._logical.names.get(str(claim.of))
        if whole is None:
            raise RecordError(f"the program never makes {claim.of}")
        (term,) = whole.relation.terms
        # Of many locals: one tuple serves them all.
        key = (term.region, self._logical.values[term.node].free, tuple(claim.dims.items()))
        spelled = self._regions.get(key)
        if spelled is None:
            region = list(term.region)
            for dim, runs in claim.dims.items():
                if dim >= len(region) or any(stop > length(region[dim]) for _, stop in runs):
                    found = f"a part of {claim.of} that does not exist"
                    raise RecordError(found, wanted=f"inside {whole.type}")
                region[dim] = select(region[dim], runs)
            spelled = self._logical.spelled(term.node, tuple(region))
            spelled = self._regions[key] = self._regions.setdefault(spelled, spelled)
        shares: list[Share] = []
        if claim.over is not None:
            share = share_of(claim.over[0], self._extent(term.node, claim), claim.over[1])
            shares = [share] if share is not None else []
        coef = term.coef if claim.scale == 1 else claim.scale * term.coef
        return Relation((Term(term.node, spelled, coef, limited(shares, ())),))

    def _extent(self, node: int, claim: PlacedRuns) -> int:
        """The size of the contracted letter an addend is cut along."""
        value = self._logical.values[node]
        shapes = [shape_of(item[1]) for item in value.operands if isinstance(item, tuple) and is_part(item)]
        found = (
            terms_of(value.op, dict(value.given), [len(shape) for shape in shapes])
            if value.op in TERMS
            else None
        )
        letter = claim.over[0] if claim.over is not None else ""
        if found is not None and letter not in found[1]:
            for term, shape in zip(found[0], shapes, strict=False):
                if letter in term:
                    return shape[term.index(letter)]
        raise RecordError(f"an addend over {letter!r} of {claim.of}", wanted="a contracted letter of its op")

    def part(self, claim: PlacedRuns) -> Region | None:
        """The part of a value that a claim names; None where there is no such part."""
        found = self._logical.names.get(str(claim.of))
        if found is None:
            return None
        shape = found.type.shape
        if any(
            dim >= len(shape) or any(stop > shape[dim] for _, stop in runs)
            for dim, runs in claim.dims.items()
        ):
            return None
        return tuple(claim.dims[dim] if dim in claim.dims else whole(size) for dim, size in enumerate(shape))

    def words(self, relation: Relation) -> str:
        """A relation as people read it."""
        if self._told is None:
            self._told = _told(self._logical)
        values = self._logical.values
        nodes = {term.node for term in relation.terms}
        told = {node: self._told[node] for node in nodes if node in self._told}
        for node in nodes - told.keys():
            laid = label_of(values, node, self._logical.labels)
            if laid is not None:
                told[node] = Told(*laid)
        return describe(relation, told, {node: values[node].type.shape for node in nodes})

    def is_known(self, relation: Relation) -> bool:
        """Whether it speaks of values of the Program only, or of such laid one after another."""
        logical = self._logical
        return all(label_of(logical.values, term.node, logical.labels) for term in relation.terms)


def _told(logical: Logical) -> dict[int, Told]:
    """Every value of the Program as people know it: an output by its name, others with what made them."""
    found = {
        node: Told(label, by, _origin(logical.origins.get(label)))
        for node, (label, by) in logical.labels.items()
    }
    for label in reversed(logical.outputs):  # of several that are one, the first
        term = logical.names[label].relation.single
        if term is not None and found.get(term.node) is not None and found[term.node].origin:
            found[term.node] = Told(label, term.coef, "")
    return found


def _origin(step: Op | None) -> str:
    """The module and the line that a step is of; nothing where a value is there from the start."""
    note = {} if step is None else dict(step.note)
    return ", ".join(str(note[key]) for key in ("module", "source") if key in note)
