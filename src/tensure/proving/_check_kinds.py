"""The checker's account of which dtype each local has as the Plan was given: ranks that meet must agree.

Read over the reals all floats are one, but who brings bfloat16 to where another brings float32 has other
bytes. A kind is a dtype's word where the checker knows it, and otherwise stands for what the step is like: a
dtype hangs on the op, on words and switches among its attributes and on dtypes and dims of operands, so
two steps that are alike in these make one dtype, whichever it is. Written apart from `_as_given.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tensure.bundle import Plan, Rank
from tensure.program import Cat, Name, Op, Ref

from ._check_moves import MOVES
from ._check_ops import CONTRACTIONS, ELEMENTWISE, FLOATS, KEEPS_DTYPE, OF_FIRST, REDUCTIONS, ROWS, TRUTHS
from ._check_sums import Rel, need, size

_MIXED: Final = ELEMENTWISE & KEEPS_DTYPE - TRUTHS
_ALIKE: Final = _MIXED | CONTRACTIONS | ROWS | frozenset(MOVES) | (REDUCTIONS - TRUTHS - {"argmax", "argmin"})
"""Of operands that are floats of one dtype they make that one."""


@dataclass(frozen=True, slots=True)
class AsWritten:
    """What reading over the reals takes away: the Plan as given, and what the Program declares, by base."""

    plan: Plan
    declared: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Read:
    """An operand: its kind, and whether it has dims, if that is known."""

    kind: str
    has_dims: bool | None


class Kinds:
    """Kinds of locals as they come to be."""

    def __init__(self, written: AsWritten, made: Mapping[Rank, Mapping[Name, Rel]]) -> None:
        self._written, self._made = written, made
        self._kinds: dict[tuple[Rank, Name], str] = {}
        self._tokens: dict[Any, str] = {}
        self._sent: dict[Any, str] = {}

    def supplied(self, rank: Rank, name: Name, of: str) -> None:
        """A part of what the Program declares under this base."""
        self._set(rank, name, self._written.declared[of])

    def step(self, rank: Rank, step: Op) -> None:
        """A step of a rank's own."""
        read = [self._operand(rank, arg) for arg in step.args]
        for at, out in enumerate(step.outs):
            self._set(rank, out, self._of(step, read, at) or self._token(("only", rank, out)))

    def sent(self, address: Any, rank: Rank, step: Op) -> None:
        """On its way."""
        self._sent[address] = self._brought(rank, step)

    def received(self, address: Any, rank: Rank, step: Op) -> None:
        """There."""
        self._set(rank, step.outs[0], self._sent.pop(address))

    def met(self, group: Sequence[Rank], steps: Sequence[Op]) -> None:
        """All members of a collective bring one kind; it is what they get."""
        brought = {self._brought(rank, step) for rank, step in zip(group, steps, strict=True)}
        alike = len(brought) == 1
        need(alike, "{}: {} of members of several dtypes: {}", group[0], steps[0].op, sorted(brought))
        for rank, step in zip(group, steps, strict=True):
            self._set(rank, step.outs[0], *brought)

    def _set(self, rank: Rank, name: Name, kind: str) -> None:
        local = self._written.plan.local(rank.track, name.base)
        said = None if local is None else local.dtype
        if said in FLOATS and kind in FLOATS:
            need(said == kind, "{}: {} is {} and declared as {}", rank, name, kind, said)
        self._kinds[rank, name] = kind

    def _brought(self, rank: Rank, step: Op) -> str:
        (read,) = (self._operand(rank, arg) for arg in step.args)
        return read.kind

    def _operand(self, rank: Rank, arg: Any) -> _Read:
        if isinstance(arg, Ref):
            rel = self._made[rank][arg.name]
            return _Read(self._kinds[rank, arg.name], None if rel is None else bool(size(rel[0][2])))
        if isinstance(arg, Cat):
            parts = [self._operand(rank, part) for part in arg.parts]
            kinds = {part.kind for part in parts}
            return _Read(kinds.pop() if len(kinds) == 1 else self._token(("cat", *parts)), True)
        return _Read(f"a {type(arg).__name__}", False)

    def _of(self, step: Op, read: Sequence[_Read], at: int) -> str | None:
        """The kind of a result; None of what may be one or another, for all that is known."""
        words = dict(step.note)
        named = words.get("dtype", words.get("input_dtype"))
        if isinstance(named, str) and step.op not in ("sort", "topk"):
            return named
        if words.get("half_to_float") is True:
            return "f32"
        known = [item for item in read if not item.kind.startswith("a ")]
        kinds = {item.kind for item in known}
        if step.op in OF_FIRST and known and known[0].kind in FLOATS:
            return known[0].kind
        if step.op in TRUTHS - {"all", "any"}:  # of u8 these are u8
            return "bool"
        if step.op in ("masked_fill", "where"):  # masks decide nothing
            known = known[:1] if step.op == "masked_fill" else known[1:]
            kinds = {item.kind for item in known}
        floats = kinds & FLOATS
        if step.op in _ALIKE and len(kinds) == 1 and floats:
            return floats.pop()
        if step.op in MOVES and len(kinds) == 1:
            return kinds.pop()
        if step.op in _MIXED and floats and not any(kind.startswith("?") for kind in kinds):
            return _promoted([item for item in known if item.kind in FLOATS])
        if len(kinds) > 1 and any(item.has_dims is None for item in known):
            return None
        return self._token((step.op, at, tuple(_told(step, words)), *read))

    def _token(self, key: Any) -> str:
        return self._tokens.setdefault(key, f"?{len(self._tokens)}")


def _promoted(read: Sequence[_Read]) -> str | None:
    """Of floats beside each other: those that have dims decide; bfloat16 beside float16 is float32."""
    kinds = {item.kind for item in read}
    if len(kinds) > 1:
        if any(item.has_dims is None for item in read):
            return None
        kinds = {item.kind for item in read if item.has_dims} or kinds
    return kinds.pop() if len(kinds) == 1 else "f64" if "f64" in kinds else "f32"


def _told(step: Op, words: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Attributes as far as a dtype may hang on them."""
    for key, value in sorted(step.attrs, key=lambda item: item[0]):
        yield key, words.get(key, type(value).__name__)
