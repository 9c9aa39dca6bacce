"""The checker's view of whether a Program looks for the class that a loss ignores.

A certificate may say that it holds where no target is that class; not for a Program which compares targets
with it, puts it among them, or reckons with targets in any other way. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensure.program import For, Op, Program, expand, leaves

GIVEN: Final = "given that no target of a loss is the class it ignores"
ASIDE: Final = {  # operands that only say where to look something up
    **dict.fromkeys(["nll_loss_forward", "embedding", "embedding_dense_backward", "gather"], 1),
    **dict.fromkeys(["index", "index_add", "index_put", "index_select"], 1),
    **dict.fromkeys(["scatter", "scatter_add", "scatter_reduce"], 1),
    "nll_loss_backward": 2,
    "one_hot": 0,
}
LAID: Final = frozenset(
    """view reshape flatten squeeze unsqueeze permute transpose t expand repeat slice select slice_scatter cat
    stack copy flip roll constant_pad_nd""".split()
)


class _Steps:
    """The Program's steps by what they make, and by what they read otherwise than as places."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int]) -> None:
        self.maker: dict[str, Op] = {}
        self.readers: dict[str, list[Op]] = {}
        self.losses: list[Op] = []
        for step in expand(program.blocks, program.entry(entry).body, env):
            self.maker.update((str(out), step) for out in step.outs)
            for label in read_by(step):
                self.readers.setdefault(label, []).append(step)
            if step.op == "nll_loss_forward":
                self.losses.append(step)
        wholes = {"i64", "i32", "i16", "i8", "u8"}
        self.whole = {label for label, want, _ in leaves(program, entry, env) if want.dtype in wholes}

    def sources(self, label: str) -> Iterator[tuple[str | Op, bool]]:
        """Leaves of integers and fillings behind a value, and whether more than moves lies between."""
        todo, seen = [(label, False)], set[tuple[str, bool]]()
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            step = self.maker.get(at[0])
            if step is None:
                if at[0] in self.whole:
                    yield at
                continue
            if step.op in ("full", "constant_pad_nd"):
                yield step, at[1]
            if step.op not in ("eq", "ne"):  # what a comparison says is no target
                more = at[1] or not (is_laid(step) or step.op in ASIDE)
                todo += [(inner, more) for inner in read_by(step)]


def read_by(step: Op) -> list[str]:
    """What a step reads, but for places."""
    away = ASIDE.get(step.op)
    kept = tuple(arg for at, arg in enumerate(step.args) if at != away)
    return [str(ref.name) for ref in Op(step.op, kept, step.outs).reads()]


def is_laid(step: Op) -> bool:
    """Whether a step leaves integers as they are."""
    return step.op in LAID or (step.op == "_to_copy" and str(step.attr("dtype") or "i64")[0] in "iu")


def looks_for_ignored(program: Program, entry: str, env: Mapping[str, int]) -> bool:
    """Does the Program tell targets of the class that their loss ignores from others?"""
    steps = _Steps(program, entry, env)
    of_class: dict[Any, set[str]] = {}
    for loss in steps.losses:
        ignored = loss.attr("ignore_index")
        mine = of_class.setdefault(ignored, set())
        for ref in Op("", loss.args[1:2], ()).reads():
            for source, worked in steps.sources(str(ref.name)):
                if worked and isinstance(source, str):
                    return True
                if isinstance(source, str):
                    mine.add(source)
                elif ignored in numbers_of(source):
                    return True
    return any(_told_apart(steps, begun, ignored) for ignored, begun in of_class.items())


def condition(program: Program) -> str:
    """What is said of a proof that takes no target to be the class which its loss ignores."""
    bodies = [entry.body for entry in program.entries.values()]
    bodies += [block.body for block in program.blocks.values()]
    todo, classes = [item for body in bodies for item in body], set[str]()
    while todo:
        item = todo.pop()
        if isinstance(item, For):
            todo += item.body
        elif isinstance(item, Op) and item.op == "nll_loss_forward":
            classes.add(str(item.attr("ignore_index")))
    which = " or ".join(sorted(classes)) or "-"
    return (
        f"{GIVEN} (true if no label is {which}; to have it proved for padded batches, count tokens in the "
        f"model, as in (labels != {min(classes, default='-')}).sum())"
    )


def _is_of_smoothing(steps: _Steps, step: Op) -> bool:
    """Is a comparison one that torch writes for a loss with label smoothing, read by nothing else?

    Then what is not counted is what the loss does not count: no look of the Program's own.
    """
    of = [loss for loss in steps.losses if step.args == (loss.args[1], loss.attr("ignore_index"))]
    if step.op != "eq" or not of:
        return False
    smooths = False
    for reader in steps.readers.get(str(step.outs[0]), []):
        if reader.op == "bitwise_not":
            after = steps.readers.get(str(reader.outs[0]), [])
            if any(item.op != "sum" for item in after) or all(loss.attr("reduction") != 1 for loss in of):
                return False
        elif reader.op != "masked_fill" or reader.args[2] != 0 or reader.args[1] == reader.args[0]:
            return False
        else:
            less = [steps.maker.get(label) for label in read_by(Op("", reader.args[:1], ()))]
            sums = [steps.maker.get(at) for item in less if item and item.op == "neg" for at in read_by(item)]
            scores = [loss.args[0] for loss in of]
            smooths |= any(item is not None and item.op == "sum" and item.args[0] in scores for item in sums)
    return smooths


def numbers_of(step: Op) -> list[Any]:
    """Numbers that a step compares with or fills in."""
    return [
        item
        for item in (
            *step.args,
            *(value for key, value in step.attrs if key in ("fill_value", "value", "other")),
        )
        if isinstance(item, (int, float)) and not isinstance(item, bool)
    ]


def _told_apart(steps: _Steps, begun: set[str], ignored: Any) -> bool:
    todo, seen = list(begun), set[str]()
    while todo:
        label = todo.pop()
        if label in seen:
            continue
        seen.add(label)
        for step in steps.readers.get(label, ()):
            if step.op in ("eq", "ne"):
                if _is_of_smoothing(steps, step):
                    continue
                if ignored in numbers_of(step):
                    return True
                for other in read_by(step):
                    for source, _ in steps.sources(other):
                        strange = (
                            source not in begun if isinstance(source, str) else ignored in numbers_of(source)
                        )
                        if strange:
                            return True
            elif is_laid(step) or step.op in ASIDE:
                todo += map(str, step.outs)
            else:
                return True
    return False
