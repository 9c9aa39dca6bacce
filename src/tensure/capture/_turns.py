"""Random numbers of micro-batches that are an axis: which go on from one to the next, and which do not.

What a micro-batch does with states of generators it does to whatever they are: it takes numbers, saves,
restores, seeds. So if two in a row, with all states that can be reached looked at before, between and after,
draw alike from states that went on alike, each further one goes on by as much again: of the first by the
numbers `on` that one micro-batch takes, its draw after `within` is, of micro-batch k, after k times `on`,
and `within`. A draw that is the same both times is the same in all. Anything else is refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch

from tensure.errors import UnsupportedError
from tensure.program import Op

from ._generators import Generators, State
from ._reach import random_states_in_reach

__all__ = ["Turns"]

_OWN: Final = "torch's generator"
_WANTED: Final = (
    "micro-batches that go on drawing where the one before ended, or are seeded by themselves; "
    "or a step that loops over its micro-batches itself"
)

Drawn: TypeAlias = "tuple[tuple[str, int], ...]"
"""Draws after one another: of each what was drawn, and how many numbers it took."""


@dataclass(frozen=True, slots=True)
class _Going:
    """Where a draw is that goes on: after a state before the first one, by `on` each, then `within`."""

    begun: State
    on: Drawn
    within: Drawn


class Turns:
    """The draws of two micro-batches in a row; made before the first.

    Args:
        generators: of the rank.
        function: what one micro-batch does.
    """

    def __init__(self, generators: Generators, function: Any) -> None:
        self._generators, self._function = generators, function
        self._states: list[dict[str, State | bytes]] = [self._look()]
        self._logs: list[list[State]] = []
        generators.log, generators.synchronized_at = [], None

    @property
    def draws(self) -> bool:
        """Whether any were drawn."""
        return any(self._logs)

    def turn(self) -> None:
        """Once, after each of the two."""
        log, at = self._generators.log, self._generators.synchronized_at
        assert log is not None
        if at is not None:
            # Ranks take one state, once; the first micro-batch might as well begin with it. What it drew
            # before goes on from nothing.
            self._states[-1][_OWN] = self._generators.state_synchronized()
        self._logs.append(log)
        self._states.append(self._look())
        self._generators.log, self._generators.synchronized_at = [], None

    def end(self) -> None:
        """Nothing is drawn any more: how far along generators are is known of each micro-batch alone."""
        self._generators.log = None
        if self.draws:
            self._generators.refusal = "a step after the last micro-batch that draws none"

    def goes_on(self) -> bool:
        """Whether what is drawn depends on how many micro-batches were before.

        Raises:
            UnsupportedError: the second micro-batch draws otherwise than the first.
        """
        return any(found is not None for found in self._found())

    def placed(self, steps: Sequence[Op], index: int) -> list[Op]:
        """The steps of either of the two, with draws where those of micro-batch `index` are.

        Raises:
            UnsupportedError: as `goes_on`.
        """
        found, made, at = self._found(), list[Op](), 0
        for step in steps:
            if step.op != "draw":
                made.append(step)
                continue
            going = found[at]
            at += 1
            made.append(step if going is None else _moved(step, going, index))
        assert at == len(found), "each draw is a step"
        return made

    # what goes on ------------------------------------------------------------------------------------

    def _look(self) -> dict[str, State | bytes]:
        found = {_OWN: self._generators.seen(torch.default_generator)}
        for path, item in random_states_in_reach(self._function).items():
            if item is not torch.default_generator:
                found[path] = self._generators.seen(item)
        return found

    def _found(self) -> list[_Going | None]:
        first, second = self._logs
        if len(first) != len(second):
            raise UnsupportedError(
                f"{len(first)} draws of random numbers in one micro-batch and {len(second)} in the next",
                wanted=_WANTED,
            )
        return [self._of(one, other) for one, other in zip(first, second, strict=True)]

    def _of(self, one: State, other: State) -> _Going | None:
        """How two draws in the same place go on; None if they are the same in every micro-batch."""
        before, between, after = self._states
        found: _Going | None = None
        for path, begun in before.items():
            then, end = between.get(path), after.get(path)
            if not isinstance(begun, State) or not isinstance(then, State):
                continue
            within, again = self._since(begun, one), self._since(then, other)
            if within is None or within != again:
                continue
            on = self._since(begun, then)
            if on is None or not isinstance(end, State) or self._since(then, end) != on:
                raise UnsupportedError(
                    f"random numbers from a state ({path}) that goes on otherwise in a second micro-batch",
                    wanted=_WANTED,
                )
            found = found or _Going(begun, on, within)
        if found is not None:
            return found if found.on else None
        if one == other:
            return None
        raise UnsupportedError(
            f"random numbers of seed {one.seed}, and of seed {other.seed} in the same place of a second "
            "micro-batch, that go on from nothing the micro-batch can reach",
            wanted=_WANTED,
        )

    def _since(self, state: State, later: State) -> Drawn | None:
        """What was drawn from one state to another; None if it does not lead there."""
        return self._generators.since(state, later)


def _moved(step: Op, going: _Going, index: int) -> Op:
    given: dict[str, Any] = dict(step.attrs)
    by, within = (sum(count for _, count in drawn) for drawn in (going.on, going.within))
    given["start"] = going.begun.start + index * by + within
    text = f"{going.begun.after} {going.on} {going.within}"
    kind = str(given.get("after", "")).partition(":")
    # The same for every micro-batch: with the start it tells which draws there were before.
    given["after"] = hashlib.blake2b(text.encode(), digest_size=6).hexdigest() + kind[1] + kind[2]
    return Op(step.op, step.args, step.outs, tuple(sorted(given.items())), step.note)
