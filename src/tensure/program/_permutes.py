"""Permutations moved down to where they meet their inverse, for models that keep channels last.

A permutation may pass an op that treats all elements alike, and one that names dims if the names change
with it: op(permute(x)) is permute(op'(x)). Pushed down as far as they go, those of channels-last
convolutions cancel between one layer and the next. The pass keeps its work only where fewer ops are left,
so that it never trades one form for another and the normaliser comes to rest.

Knows which ops a permutation may pass and how their dims change; the frame is `_lines.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np

from ._fresh_names import FreshNames
from ._lines import (
    POINTWISE,
    Arrays,
    Line,
    as_ints,
    rename_op,
    rewrite_entries,
    source_name,
    whole_name,
    with_attrs,
)
from ._records import Arg, Name, Op, Program, Ref, Value

__all__ = ["sink_permutes"]

Dims: TypeAlias = tuple[int, ...]

_ELEMENTWISE: Final = POINTWISE | frozenset(
    "add sub rsub mul div pow maximum minimum clamp where masked_fill addcmul addcdiv eq ne lt le gt ge "
    "expm1 log log1p log2 sin cos tan isnan logical_and logical_or logical_xor logical_not fmod remainder "
    "floor_divide".split()
)
"""Ops whose operands broadcast together and that treat every element alike."""
_REDUCTIONS: Final = frozenset("mean sum amax amin var all any logsumexp".split())


def sink_permutes(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With permutations moved down and cancelled, in every entry that has fewer ops for it."""
    weights, values = dict(weights), dict(program.values)

    def rewrite(line: Line) -> None:
        if not any(item.op == "permute" for item in line.ops):
            return
        sinking = _Sinking(line, weights, FreshNames({*values, *(str(name) for name in line.makers())}))
        ops = sinking.run()
        if _live(ops, line.kept) < _live(line.ops, line.kept):
            line.ops = ops
            line.remove(sinking.same)
            weights.update(sinking.made)
            for key, array in sinking.made.items():
                dtype = values[sinking.origins[key]].dtype
                values[key] = Value(tuple(array.shape), dtype, "weight")

    program = rewrite_entries(program, rewrite)
    return replace(program, values=values), weights


def _live(ops: Sequence[Op], kept: set[Name]) -> int:
    """How many ops lead to something handed out."""
    wanted, count = set(kept), 0
    for item in reversed(ops):
        if wanted & set(item.outs):
            wanted |= {ref.name for ref in item.reads()}
            count += 1
    return count


@dataclass(slots=True)
class _Sinking:
    """One pass over an entry: a permuted value is held back as (what it is of, dims) until it is read."""

    line: Line
    weights: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
    names: FreshNames
    held: dict[Name, tuple[Name, Dims]] = field(default_factory=dict[Name, tuple[Name, Dims]])
    written: set[Name] = field(default_factory=set[Name])
    """Values of `held` that had to be made after all."""
    notes: dict[Name, Op] = field(default_factory=dict[Name, Op])
    out: list[Op] = field(default_factory=list[Op])
    made: Arrays = field(default_factory=dict)
    """New weights, permuted."""
    origins: dict[str, str] = field(default_factory=dict[str, str])
    same: dict[Name, Name] = field(default_factory=dict[Name, Name])
    """Values handed out that came back to what they were of."""

    def run(self) -> list[Op]:
        """The ops with every permutation as far down as it goes."""
        for item in self.line.ops:
            if not (self._hold(item) or self._pass(item)):
                self.out.append(self._given(item))
        for name in self.line.kept:
            self._write(name)
        return self.out

    def _hold(self, item: Op) -> bool:
        """Take up a permutation, composed with one before it."""
        dims, source = as_ints(item.attr("dims")), source_name(item)
        if item.op != "permute" or dims is None or source is None:
            return False
        dims = tuple(dim % max(len(dims), 1) for dim in dims)
        if source in self.held:
            source, inner = self.held[source]
            dims = tuple(inner[dim] for dim in dims)
        self.held[item.outs[0]], self.notes[item.outs[0]] = (source, dims), item
        return True

    def _pass(self, item: Op) -> bool:
        """Write the op before the permutation of its operands, if it has one form there."""
        if len(item.outs) != 1:
            return False
        found = {
            self.held[name][1]
            for ref in item.reads()
            if (name := whole_name(ref)) is not None and name in self.held
        }
        if len(found) != 1:
            return False
        (dims,) = found
        if dims == tuple(range(len(dims))):
            return False
        moved = _moved(item, dims)
        if moved is None:
            return False
        changed, result = moved
        args: list[Arg] = []
        for arg in item.args:
            below = self._below(arg, dims, spread=item.op in _ELEMENTWISE)
            if below is None and arg is not None:
                return False
            args.append(below)
        if result is None:
            self.out.append(replace(changed, args=tuple(args)))
            return True
        made = Name(self.names.take(f"{item.outs[0].base}_below"))
        self.out.append(replace(changed, args=tuple(args), outs=(made,)))
        self.held[item.outs[0]], self.notes[item.outs[0]] = (made, result), item
        return True

    def _below(self, arg: Arg, dims: Dims, *, spread: bool) -> Arg:
        """An operand before the permutation; None if it has no such form."""
        if not isinstance(arg, Ref):
            return arg if isinstance(arg, int | float) else None
        name = whole_name(arg)
        if name is None:
            return None
        if name in self.held:
            return Ref(self.held[name][0])
        array = self.weights.get(str(name))
        if not spread or array is None or array.ndim > len(dims):
            return None
        if array.size == 1:
            return arg
        wide = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
        key = self.names.take(f"{name.base}.below")
        self.made[key] = np.ascontiguousarray(wide.transpose(np.argsort(dims)))
        self.origins[key] = name.base
        return Ref(Name(key))

    def _given(self, item: Op) -> Op:
        """The op as it stands, after what it reads of what was held back."""
        same: dict[Name, Name] = {}
        for ref in item.reads():
            if ref.name in self.held:
                source, dims = self.held[ref.name]
                if dims == tuple(range(len(dims))):
                    same[ref.name] = source
                else:
                    self._write(ref.name)
        return rename_op(item, same) if same else item

    def _write(self, name: Name) -> None:
        """Make what was held back."""
        if name not in self.held or name in self.written:
            return
        self.written.add(name)
        source, dims = self.held[name]
        still = dims == tuple(range(len(dims)))
        if still:
            self.same[name] = source
        kind, attrs = ("copy", ()) if still else ("permute", (("dims", dims),))
        self.out.append(Op(kind, (Ref(source),), (name,), attrs, self.notes[name].note))


def _moved(item: Op, dims: Dims) -> tuple[Op, Dims | None] | None:
    """The op before the permutation `dims` of its operands, with the permutation of its result, if any."""
    if item.op in _ELEMENTWISE:
        return item, dims
    rule = _RULES.get(item.op) or (_reduced if item.op in _REDUCTIONS else None)
    return None if rule is None else rule(item, dims)


def _one_dim(item: Op, dims: Dims) -> tuple[Op, Dims | None] | None:
    """An op along one dim, named `dim`, 0 by default."""
    dim = item.attr("dim", 0)
    if not isinstance(dim, int) or not -len(dims) <= dim < len(dims):
        return None
    return with_attrs(item, dim=dims[dim % len(dims)]), dims


def _flipped(item: Op, dims: Dims) -> tuple[Op, Dims | None] | None:
    over = as_ints(item.attr("dims"))
    return (
        None if over is None else (with_attrs(item, dims=tuple(dims[dim % len(dims)] for dim in over)), dims)
    )


def _padded(item: Op, dims: Dims) -> tuple[Op, Dims | None] | None:
    sides, rank = as_ints(item.attr("pad")), len(dims)
    if sides is None or len(sides) % 2 or len(sides) > 2 * rank:
        return None
    pairs = [(0, 0)] * rank
    for at in range(len(sides) // 2):  # the last dim comes first
        pairs[dims[rank - 1 - at]] = (sides[2 * at], sides[2 * at + 1])
    while pairs and pairs[0] == (0, 0):
        pairs = pairs[1:]
    return with_attrs(item, pad=tuple(side for pair in reversed(pairs) for side in pair)), dims


def _reduced(item: Op, dims: Dims) -> tuple[Op, Dims | None] | None:
    over, rank = as_ints(item.attr("dim")), len(dims)
    if not over or not all(-rank <= dim < rank for dim in over):
        return None
    gone = {dims[dim % rank] for dim in over}
    changed = with_attrs(item, dim=tuple(sorted(gone)))
    if item.attr("keepdim") is True:
        return changed, dims
    left = [dim for dim in range(rank) if dim not in gone]
    order = tuple(left.index(dim) for dim in dims if dim not in gone)
    return changed, None if order == tuple(range(len(order))) else order


_RULES: Final[dict[str, Callable[[Op, Dims], tuple[Op, Dims | None] | None]]] = {
    "cat": _one_dim,
    "softmax": _one_dim,
    "log_softmax": _one_dim,
    "slice": _one_dim,
    "cumsum": _one_dim,
    "flip": _flipped,
    "constant_pad_nd": _padded,
}
