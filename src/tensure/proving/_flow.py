"""Walk a Plan with relations for values: what every local of every rank is, and which claims hold.

Claims are compared as locals come to be. A claim that cannot be derived is a *doubt*, not yet a
fault: after it the claim is taken for granted, so that one doubt does not breed others and each step
is judged on its own. Deciding a doubt is for the field and for a concrete replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensure.bundle import Plan, Rank
from tensure.errors import EvaluationError, LimitError, RecordError, TensureError
from tensure.program import Name, Program, TensorType

from ._as_given import Given
from ._cells import Cells
from ._cone import Asked, Trail
from ._coverage import StatePart
from ._doubt import Doubt
from ._draws import Draws
from ._logical import Logical
from ._machine import Relations
from ._relation import Relation
from ._suspects import Suspect
from ._values import NO_AXES


@dataclass(frozen=True, slots=True)
class Flow:
    """What one walk established.

    Args:
        logical: the values, ghosts included.
        relations: by rank, in order of production, the derived (or, after a doubt, claimed) relation.
        types: tells them by rank, supplied locals included.
        doubts: in order of production; none means that every claim holds.
        reads: the parts of before-states that ranks are supplied with.
        keeps: the parts of after-states that ranks hold at the end, under the before-state's name.
        supplied: locals taken from inputs, weights and before-states, by rank.
        ended: whether every rank came to its end.
        halted: whether they were stopped by a step that cannot be taken, or by waiting for one another.
        suspects: for doubts, by rank and local as they are printed, the first step that went astray.
        asked: the claims in doubt, for a replay.
        trail: how locals came to be.
        draws: the random numbers of ranks.
    """

    logical: Logical
    relations: Mapping[Rank, Mapping[Name, Relation]]
    types: Callable[[], Mapping[Rank, Mapping[Name, TensorType]]]
    doubts: tuple[Doubt, ...]
    reads: frozenset[StatePart]
    keeps: frozenset[StatePart]
    supplied: Mapping[Rank, frozenset[Name]]
    ended: bool
    halted: bool
    suspects: Mapping[tuple[str, str], Suspect]
    asked: Sequence[Asked]
    trail: Trail
    draws: Draws


def flow(
    plan: Plan,
    program: Program,
    entry: str,
    env: Mapping[str, int],
    *,
    targets: bool = False,
    folded: frozenset[str] = NO_AXES,
    given: Given | None = None,
    listed: bool = False,
) -> Flow:
    """Derive every relation of one invocation; errors of the Plan become doubts.

    Args:
        targets: assume that no class of a mean loss is the one to be ignored.
        folded: mesh axes along which ranks are taken together.
        given: what the records were before all floats were read as one, if they were.
        listed: keep place by place what is no expression of the coordinates, rather than take axes apart.

    Raises:
        TensureError: the Program itself cannot be expanded or typed.
        Undecided: ranks taken together would have to be taken apart; says along which axes.
    """
    logical = Logical(program, entry, env, targets=targets)
    machine = Relations(plan, program, entry, env, logical, Cells(plan, folded), given=given, listed=listed)
    ended, halted = True, False
    try:
        machine.go()
    except LimitError:
        raise
    except TensureError as error:
        machine.stuck(error)
        ended, halted = False, isinstance(error, (EvaluationError, RecordError))
    if ended:
        machine.close()
    doubts = tuple(sorted(machine.doubts, key=lambda doubt: doubt.order))
    relations = {
        rank: {name: held.relation for name, held in {**machine.given[rank], **made}.items()}
        for rank, made in machine.made.items()
    }
    reads, keeps = machine.states()
    supplied = {rank: frozenset(table) for rank, table in machine.given.items()}
    suspects = machine.suspects()
    return Flow(
        machine.logical,
        relations,
        machine.types,
        doubts,
        reads,
        keeps,
        supplied,
        ended,
        halted,
        suspects,
        machine.asked,
        machine,
        machine.draws,
    )
