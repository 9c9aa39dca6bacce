"""Which numbers a Program tells apart in its integers, and whether the class that a loss ignores is one.

A proof may take it that no target of a loss is the class which that loss ignores. A Program that looks for
this class among them (it counts the others, or masks them) says itself that there are some: then it may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tensure.program import Arg, Cat, Name, Op, Program, Ref, expand, leaves

__all__ = ["Looks", "looks_of"]

_INTEGERS: Final = frozenset({"i64", "i32", "i16", "i8", "u8"})
_MOVES: Final = frozenset(
    "cat constant_pad_nd copy expand flatten flip permute repeat reshape roll select slice slice_scatter "
    "squeeze stack t transpose unsqueeze view".split()
)
_INDEX: Final = {
    "embedding": 1, "embedding_dense_backward": 1, "gather": 1, "index": 1, "index_add": 1, "index_put": 1,
    "index_select": 1, "nll_loss_backward": 2, "nll_loss_forward": 1, "one_hot": 0, "scatter": 1,
    "scatter_add": 1, "scatter_reduce": 1,
}  # fmt: skip
"""Steps that only look something up by integers, and which operand these are."""
_Origin = str | int
"""A leaf that integers come from, or a number that is put among them."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What a Program asks of its integers.

    Args:
        has_loss: whether there is a loss that ignores a class.
        ignored: whether it looks for the class that a loss ignores among its targets, or puts it there.
        marks: by leaf, the numbers that are told apart in it.
    """

    has_loss: bool
    ignored: bool
    marks: Mapping[str, tuple[int, ...]]


def looks_of(program: Program, entry: str, env: Mapping[str, int]) -> Looks:
    """Follow integers of the Program from its leaves to all that reads them."""
    origins: dict[Name | str, frozenset[_Origin]] = {
        label: frozenset([label]) for label, want, _ in leaves(program, entry, env) if want.dtype in _INTEGERS
    }
    told: dict[str, set[_Origin]] = {}
    worked: set[_Origin] = set()
    aimed: dict[int, set[_Origin]] = {}
    steps = list(expand(program.blocks, program.entry(entry).body, env))
    of_torch = _smoothings(steps)
    for step in steps:
        at = _INDEX.get(step.op)
        if step.op == "nll_loss_forward":
            ignored = step.attr("ignore_index")
            assert isinstance(ignored, int)
            aimed.setdefault(ignored, set()).update(_from(origins, step.args[1:2]))
        read = _from(origins, [arg for place, arg in enumerate(step.args) if place != at])
        numbers = _numbers(step)
        if step.op in ("eq", "ne"):
            for label in () if str(step.outs[0]) in of_torch else read:
                if isinstance(label, str):
                    told.setdefault(label, set()).update(read | numbers)
            continue
        if step.op == "full" or (step.op == "constant_pad_nd" and read):
            read |= numbers
        elif not _is_move(step) and at is None:
            worked |= read
        if read:
            origins.update((str(out), read) for out in step.outs)
    is_looked = any(
        origin == ignored or origin in worked or _is_told(told.get(str(origin), set()), ignored, targets)
        for ignored, targets in aimed.items()
        for origin in targets
    )
    marks = {label: {number for number in found if isinstance(number, int)} for label, found in told.items()}
    for ignored, targets in aimed.items():
        for origin in targets & worked:
            marks.setdefault(str(origin), set()).add(ignored)
    return Looks(bool(aimed), is_looked, {label: tuple(sorted(found)) for label, found in marks.items()})


def _smoothings(steps: Iterable[Op]) -> set[str]:
    """Comparisons with the ignored class that are torch's own: label smoothing is written with them.

    The class is masked out of the logarithms' sum over classes, and the others are counted where the loss is
    a mean: as the loss itself does. Anybody else's comparison is read otherwise, or is one of another view.
    """
    makers, readers, losses = dict[str, Op](), dict[str, list[Op]](), list[Op]()
    for step in steps:
        makers.update((str(out), step) for out in step.outs)
        for ref in step.reads():
            readers.setdefault(str(ref.name), []).append(step)
        if step.op == "nll_loss_forward":
            losses.append(step)
    found = set[str]()
    for loss in losses:
        scores, target = loss.args[0], loss.args[1]
        if not isinstance(scores, Ref) or not isinstance(target, Ref):
            continue
        for step in readers.get(str(target.name), ()):
            if step.op != "eq" or step.args != (target, loss.attr("ignore_index")):
                continue
            read_by = readers.get(str(step.outs[0]), [])
            masked = [item for item in read_by if item.op == "masked_fill" and item.args[2] == 0]
            counted = [item for item in read_by if item.op == "bitwise_not" and loss.attr("reduction") == 1]
            after = [item for count in counted for item in readers.get(str(count.outs[0]), ())]
            is_torchs = len(masked) + len(counted) == len(read_by) and all(item.op == "sum" for item in after)
            if is_torchs and any(_is_less_sum(makers, item.args[0], scores) for item in masked):
                found.add(str(step.outs[0]))
    return found


def _is_less_sum(makers: Mapping[str, Op], arg: Arg, scores: Ref) -> bool:
    """Whether an operand is less the sum of a loss's scores."""
    less = makers.get(str(arg.name)) if isinstance(arg, Ref) else None
    if less is None or less.op != "neg" or not isinstance(less.args[0], Ref):
        return False
    total = makers.get(str(less.args[0].name))
    return total is not None and total.op == "sum" and total.args[0] == scores


def _is_told(found: set[_Origin], ignored: int, targets: set[_Origin]) -> bool:
    """Whether targets are compared with the ignored class, or with a leaf that may hold it."""
    return ignored in found or any(isinstance(other, str) and other not in targets for other in found)


def _is_move(step: Op) -> bool:
    if step.op == "_to_copy":
        return (step.attr("dtype") or "i64") in _INTEGERS
    return step.op in _MOVES


def _from(origins: Mapping[Name | str, frozenset[_Origin]], args: Iterable[Arg]) -> frozenset[_Origin]:
    found: frozenset[_Origin] = frozenset()
    for arg in args:
        if isinstance(arg, Ref):
            found |= origins.get(str(arg.name), frozenset())
        elif isinstance(arg, Cat):
            found |= _from(origins, arg.parts)
    return found


def _numbers(step: Op) -> frozenset[_Origin]:
    """The integers that a comparison or a filling is told."""
    keys = {"full": ("fill_value",), "constant_pad_nd": ("value",), "eq": ("other",), "ne": ("other",)}
    told = [*step.args, *(step.attr(key) for key in keys.get(step.op, ()))]
    return frozenset(
        int(item)
        for item in told
        if isinstance(item, (int, float)) and not isinstance(item, bool) and item == item // 1
    )
