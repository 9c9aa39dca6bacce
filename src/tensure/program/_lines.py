"""A program's entries as lines of ops, and what every pass over them needs: makers, uses, names, attributes.

Works on straight-line entries. Knows of ops only which ones treat every element alike. Does not know what a
pass is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from ._evaluate import infer_program
from ._records import Arg, Attr, Cat, Each, Entry, Name, Op, Program, Ref, TensorType
from ._validate import corner_params

__all__ = [
    "POINTWISE",
    "Array",
    "Arrays",
    "Line",
    "Run",
    "as_ints",
    "fresh_name",
    "rename_op",
    "rewrite_entries",
    "source_name",
    "whole_name",
    "with_attrs",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Arrays: TypeAlias = dict[str, Array]
"""Decoded weights by printed name."""
Run: TypeAlias = Callable[[Program, Arrays], tuple[Program, Arrays]]

POINTWISE: Final = frozenset(
    "relu hardtanh sigmoid tanh silu gelu hardswish hardsigmoid leaky_relu softplus neg abs exp sqrt rsqrt "
    "reciprocal erf square sign floor ceil round trunc _to_copy".split()
)
"""Ops of one operand that treat every element alike, so that a permutation may pass them."""


@dataclass(slots=True)
class Line:
    """One entry's ops with what passes ask of them."""

    entry: Entry
    ops: list[Op]
    types: Mapping[str, TensorType]
    """At the least parameters: ranks and dtypes always hold, sizes only where `static`."""
    static: bool

    @property
    def kept(self) -> set[Name]:
        """Values that must keep their names: outputs and after-states."""
        return {*self.entry.outputs, *(state.after for state in self.entry.states)}

    def makers(self) -> dict[Name, Op]:
        """Each value -> the op that makes it."""
        return {out: item for item in self.ops for out in item.outs}

    def uses(self) -> Counter[Name]:
        """How often each value is read or handed out."""
        found = Counter(ref.name for item in self.ops for ref in item.reads())
        found.update(self.kept)
        return found

    def type(self, name: Name) -> TensorType:
        """A value's type."""
        return self.types[str(name)]

    def rename(self, names: Mapping[Name, Name]) -> None:
        """Put other names in the place of names, where they are read and where they are made."""
        if names:
            self.ops = [rename_op(item, names) for item in self.ops]

    def remove(self, same: Mapping[Name, Name]) -> None:
        """Take out ops whose result is `same` as another value, and read that one instead.

        Where the result must keep its name, the other takes it on; where neither can give way, the op stays.
        """
        inner, outer = dict[Name, Name](), dict[Name, Name]()
        kept, made = self.kept, self.makers()
        for result, given in same.items():
            source = inner.get(given, given)
            if result not in kept:
                inner[result] = source
            elif source in made and source not in kept and source not in outer:
                outer[source] = result
                inner[result] = source
        self.ops = [item for item in self.ops if not (len(item.outs) == 1 and item.outs[0] in inner)]
        self.rename({**inner, **outer, **{key: outer.get(end, end) for key, end in inner.items()}})


def _lines_of(program: Program) -> Iterator[tuple[str, Line]]:
    for label, entry in program.entries.items():
        params = next(corner_params(program, label))
        types = infer_program(program, entry=label, params=params)
        ops = [item for item in entry.body if isinstance(item, Op)]
        yield label, Line(entry, ops, types, not entry.params)


def rewrite_entries(program: Program, rewrite: Callable[[Line], None]) -> Program:
    """Every entry after a rewriting of its line."""
    entries = dict(program.entries)
    for label, line in _lines_of(program):
        rewrite(line)
        entries[label] = replace(line.entry, body=tuple(line.ops))
    return replace(program, entries=entries)


def rename_op(item: Op, names: Mapping[Name, Name]) -> Op:
    """The op with other names in the place of names, read and made."""
    args = tuple(_renamed_arg(arg, names) for arg in item.args)
    return replace(item, args=args, outs=tuple(names.get(out, out) for out in item.outs))


def _renamed_arg(arg: Arg, names: Mapping[Name, Name]) -> Arg:
    if isinstance(arg, Ref):
        return Ref(names.get(arg.name, arg.name), arg.box)
    if isinstance(arg, Cat):
        return Cat(arg.dim, tuple(_renamed_arg(part, names) for part in arg.parts))
    if isinstance(arg, Each):
        return replace(arg, item=_renamed_arg(arg.item, names))
    return arg


def whole_name(arg: Arg) -> Name | None:
    """The value an operand reads whole."""
    return arg.name if isinstance(arg, Ref) and not arg.box else None


def source_name(item: Op) -> Name | None:
    """The value an op reads whole as its first operand."""
    return whole_name(item.args[0]) if item.args else None


def with_attrs(item: Op, **attrs: Attr) -> Op:
    """The op with attributes set, or taken out where None."""
    found = {**dict(item.attrs), **attrs}
    return replace(item, attrs=tuple(sorted((k, v) for k, v in found.items() if v is not None)))


def as_ints(value: Attr) -> tuple[int, ...] | None:
    """A list attribute if it holds integers only."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, tuple):
        return None
    found = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool))
    return found if len(found) == len(value) else None


def fresh_name(base: str, line: Line) -> Name:
    """A name like `base` that the line does not have yet."""
    taken = {name.base for name in line.makers()} | set(line.types)
    count = 0
    while (found := f"{base}_{count}" if count else base) in taken:
        count += 1
    return Name(found)
