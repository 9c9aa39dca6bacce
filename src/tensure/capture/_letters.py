"""Whether who receives a message takes what is sent: as many elements, of one type.

A Plan's message is what the sender gives; torch fills the receiver's tensor with its bytes. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensure.errors import InputError, UnsupportedError
from tensure.program import Op

from ._boxes import Box, Cells
from ._class_tracks import shifted
from ._meets import type_met

__all__ = ["check_class_letters", "check_letters"]


def check_letters(texts: Sequence[Sequence[Op]]) -> None:
    """Of ranks that were all traced.

    Raises:
        InputError: a rank sends another type than is received.
    """
    sent = {_key(step): step for steps in texts for step in steps if step.op == "send"}
    for steps in texts:
        for step in steps:
            letter = sent.get(_key(step)) if step.op == "recv" else None
            if letter is not None and type_met(letter) != type_met(step):
                raise _unlike(letter, step)


def check_class_letters(
    boxes: Sequence[Box], samples: Sequence[Sequence[Sequence[Op]]], mesh: Mapping[str, int]
) -> None:
    """Of classes of ranks, whose messages are tokens.

    Args:
        boxes: of ranks that do the same.
        samples: of each, the steps of those that settle all integers.
        mesh: sizes of the axes.

    Raises:
        InputError: as `check_letters`.
        UnsupportedError: ranks of one class that send several types under one key.
    """
    ends = list[tuple[Box, Op]]()
    for box, texts in zip(boxes, samples, strict=True):
        letters = [[step for step in steps if step.op in ("send", "recv")] for steps in texts]
        for steps in zip(*letters, strict=True):
            step = steps[0]
            if len({type_met(item) for item in steps}) > 1:
                raise UnsupportedError(
                    "messages of several shapes of ranks that are taken together",
                    place=_line(step) or None,
                    wanted="messages of one shape, or at most 256 ranks",
                )
            ends.append((shifted(box, _key(step)[1], mesh) if step.op == "send" else box, step))
    cells = Cells([*boxes, *(box for box, _ in ends)], tuple(mesh.values()))
    sides: dict[Any, dict[str, list[tuple[Any, Op]]]] = {}
    for box, step in ends:
        mask = cells.none()
        cells.add(mask, box)
        sides.setdefault(_key(step), {"send": [], "recv": []})[step.op].append((mask, step))
    for side in sides.values():
        for there, letter in side["send"]:
            for here, step in side["recv"]:
                if type_met(letter) != type_met(step) and (there & here).any():
                    raise _unlike(letter, step)


def _unlike(letter: Op, step: Op) -> InputError:
    gives, takes = (f"{dtype}{list(shape)}" for dtype, shape in (type_met(letter), type_met(step)))
    return InputError(
        f"a message of {gives}, sent at {_line(letter)}, into a tensor of {takes}",
        place=_line(step) or None,
        wanted="a tensor of the shape and type that is sent",
    )


def _key(step: Op) -> Any:
    return step.attr("key")


def _line(step: Op) -> str:
    return ", ".join(str(value) for key, value in step.note if key in ("module", "source"))
