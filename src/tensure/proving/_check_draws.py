"""The checker's view of random numbers: do the ranks' draws stand for the model's, one for one?

What a draw stands for is taken from the certificate as it stands. It is right if the places of generators
that numbers come from, and the elements of the model's draws, are told apart by each other: numbers from
one place stand for one part, a part comes from one place, and places as well as parts that are not one have
nothing in common. Then the ranks' numbers have the distribution of the model's. Assumed is of generators that
one seed and the same draws since give the same numbers of one dtype, and all else independent ones. Shares
nothing with the prover.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tensure.errors import LimitError
from tensure.program import Op, at_place, axes_in

from ._check_cells import CheckCells, reg_at
from ._check_piece import Reg
from ._check_sums import Term, need, size

MAX_DRAWS: Final = 1 << 22
SEED_BITS: Final = 0xFFFFFFFF
"""Seeds that agree in these are one seed for a processor's generator and two for others."""


class CheckDraws:
    """Draws of the model, and what the ranks' are said to stand for."""

    def __init__(self) -> None:
        self._model: dict[int, tuple[Any, ...]] = {}
        self._rows: list[tuple[Any, int, Reg, Mapping[str, Any]]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def of_model(self, node: int, step: Op) -> None:
        """A draw of the model's, and its class."""
        self._model[node] = _source(dict(step.attrs))

    def stands(self, rank: Any, step: Op, claim: Sequence[Term]) -> bool:
        """May a rank's draw stand for this? To be settled with all others."""
        if len(claim) != 1:
            return False
        ((coef, node, reg, limit),) = claim
        given: dict[str, Any] = dict(step.attrs)
        if node not in self._model or coef != 1 or limit is not None or size(reg) != given["size"]:
            return False
        count = math.prod(map(len, reg))
        if self._model[node][1][2] != given["law"] or not 0 < count <= given["extent"]:
            return False
        self._rows.append((rank, node, reg, given))
        return True

    def settle(self, cells: CheckCells) -> None:
        """Hold all of them against each other.

        Raises:
            Refused: numbers that are mixed up, or of which that is not known.
        """
        of_source, of_part, of_stretch = dict[Any, Any](), dict[Any, Any](), dict[Any, int]()
        for rank, node, reg, given in self._rows:
            for part, source in self._everywhere(cells, rank, reg, given):
                need(all(index.distinct for index in part), "{}: an element of the model's twice", rank)
                need(
                    of_source.setdefault(source, (node, part)) == (node, part),
                    "{}: numbers that stand for others elsewhere",
                    rank,
                )
                need(
                    of_part.setdefault((node, part), source) == source,
                    "{}: other numbers than elsewhere for one part",
                    rank,
                )
                one = of_stretch.setdefault(source[:2], node) == node
                need(one, "{}: one stretch of numbers for two draws of the model's", rank)
                if len(of_source) > MAX_DRAWS:
                    raise LimitError(f"over {MAX_DRAWS} draws of random numbers")
        _apart_in_place(of_source)
        _apart_in_place(self._model.values())
        need(len(set(self._model.values())) == len(self._model), "two draws of the model's are one")
        by_node: dict[int, list[Reg]] = {}
        for node, part in of_part:
            by_node.setdefault(node, []).append(part)
        for parts in by_node.values():
            _apart(parts)

    @staticmethod
    def _everywhere(
        cells: CheckCells, rank: Any, reg: Reg, given: Mapping[str, Any]
    ) -> Iterator[tuple[Reg, Any]]:
        told = {key: at for key, at in given.items() if key != "size"}
        ends = [end for index in reg for run in index.runs for end in run]
        axes = sorted(axes_in((ends, tuple(told.values()))))
        for _, place in cells.spots(rank, axes) if axes else (((), {}),):
            yield reg_at(reg, place), _source({key: at_place(value, place) for key, value in told.items()})


def _source(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where numbers come from: seed; the stretch of the generator's numbers; where in it."""
    kind = given["law"], given.get("after", ""), given.get("dtype", "f32")
    stretch = (given["start"], given["extent"], *kind)
    return given["seed"], stretch, given.get("offset", 0)


def _apart_in_place(sources: Any) -> None:
    """No two stretches of one generator's numbers have some in common and are not one.

    Nor of generators that are one on some devices only.
    """
    by_seed: dict[int, set[tuple[Any, ...]]] = {}
    for seed, stretch, _ in sources:
        by_seed.setdefault(seed & SEED_BITS, set()).add((*stretch, seed))
    for seed, stretches in by_seed.items():
        reached = 0
        for start, extent, *_ in sorted(stretches):
            need(start >= 0 and extent >= 0, "numbers before the first")
            need(start >= reached or not extent, "numbers after seed {} that are and are not the same", seed)
            reached = max(reached, start + extent)


def _apart(parts: Sequence[Reg]) -> None:
    """No two different parts have an element in common."""
    along = [_classes({part[dim] for part in parts}) for dim in range(len(parts[0]))]
    if all(exact for exact in along):
        return  # along each dim two are the same or apart; different parts are apart along one
    for at, one in enumerate(parts):
        need(len(parts) <= 1 << 10, "too many parts of a draw that are cut in several ways")
        for other in parts[:at]:
            shared = all(_shares(a, b) for a, b in zip(one, other, strict=True))
            need(not shared, "two draws for one element")


def _classes(indices: set[Any]) -> bool:
    """Whether any two Indexes of one dim have no member in common."""
    runs = sorted((lo, hi) for index in indices for lo, hi in index.runs)
    return all(one[1] <= other[0] for one, other in zip(runs, runs[1:], strict=False))


def _shares(one: Any, other: Any) -> bool:
    return any(a < d and c < b for a, b in one.runs for c, d in other.runs)
