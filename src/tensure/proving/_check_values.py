"""The checker's logical values: how an op makes them, and what is no value of its own.

Factors of operands in which an op is linear stand before a class; a sum is known by its direction. Views
say their whole shape, and a view of a view is one of what was viewed. Written apart from the prover.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from tensure.program import Op, Program, Undecided, axes_in, expand, leaves

from ._check_cells import rel_at
from ._check_combined import CheckCombined
from ._check_conditional import range_of
from ._check_constants import are_targets, constant, index_of, targets_of, zeros
from ._check_draws import CheckDraws
from ._check_linear import every, single, value
from ._check_moves import MOVES, filled_size
from ._check_ops import FLOATS, clean, dtype_of, repeats, shapes_of
from ._check_piece import ONE, Reg, Shape, is_part, whole
from ._check_sums import Def, Rel, Term, is_rel, need, size, sliced, times

NO_AXES: Final[frozenset[str]] = frozenset()
MAX_DIM: Final = 1 << 48
"""Indices of one dim of a value."""


class CheckValues(CheckCombined):
    """The Program's values, and those a certificate defines besides."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int], targets: bool) -> None:
        self.targets = targets
        super().__init__()
        self.names: dict[str, Rel] = {}
        self.draws = CheckDraws()
        self._keys: dict[Any, int] = {}
        self._instances: dict[Any, Term] = {}
        self._program, self._entry, self._env = program, entry, env
        self.aims: dict[tuple[int, Any], list[Reg]] = {}
        """By class of integers and the class that a loss ignores: which parts are targets of such a loss."""
        self.below: dict[int, list[tuple[Reg, int]]] = {}
        """By class of integers: which parts are indices of the Program's, counted from 0, and below what."""

    def read_program(self, operands_of: Any) -> None:
        """Take every step of the Program; `operands_of(step, named)` reads its operands."""
        for label, want, _ in leaves(self._program, self._entry, self._env):
            node = self._put(Def("leaf", {"name": label}, (), 0, want.shape, want.dtype))
            self.names[label] = ((ONE, node, whole(want.shape), None),)
        for step in expand(self._program.blocks, self._program.entry(self._entry).body, self._env):
            if step.op == "draw":  # numbers from one place of one generator are one value
                place = repr(sorted(step.attrs))
                shape: Any = step.attr("size")
                given = Def("leaf", {"draw": place}, (), 0, shape, str(step.attr("dtype") or "f32"))
                node = self._put(given)
                self.names[str(step.outs[0])] = ((ONE, node, whole(shape), None),)
                self.draws.of_model(node, step)
                continue
            operands = operands_of(step, self.named)
            found = (
                range_of(self, operands[0], operands[1], step.attr("dim")) if step.op == "gather" else None
            )
            if found is not None:
                self.ranges[found[0]] = min(found[1], self.ranges.get(*found))
            if step.op == "nll_loss_forward":
                for node, part in targets_of(self, operands[1]):
                    self.aims.setdefault((node, step.attr("ignore_index")), []).append(part)
            counted = index_of(self, step.op, operands, dict(step.attrs).get("dim"))
            if counted is not None:
                for node, part in targets_of(self, counted[0]):
                    self.below.setdefault(node, []).append((part, counted[1]))
            for out, rel in zip(step.outs, self.make(step, operands), strict=True):
                self.names[str(out)] = rel
        self.theirs = len(self.defs)

    def named(self, label: str) -> Rel:
        """A value by name."""
        need(label in self.names, "there is no value {}", label[:80])
        return self.names[label]

    # making ------------------------------------------------------------------------------------------

    def make(self, step: Op, operands: Sequence[Any]) -> list[Rel]:
        """What an op makes of whole parts of values: relations, numbers and None."""
        op, attrs, operands = self.told(step.op, clean(step.op, dict(step.attrs)), operands)
        rel = self.passed(op, attrs, operands)
        if rel is None:
            rel = self.linear(op, attrs, operands, True)
            rel = None if rel is None else self.gathered(rel)
        if rel is not None:
            return [rel]
        if op == "convolution_backward":
            return self._gradients(attrs, operands)
        ways = self.ways(op, attrs, operands)
        if ways is None:
            return self._made(op, attrs, operands, len(step.outs))
        by, steps = ways
        made: list[Rel] = list(operands)
        for kind, given, args in steps:
            made = self.make(Op(kind, (), (), tuple(given.items())), args(made))[:1]
        found: list[Rel] = [times(made[0] or (), 1 / by)]
        return found if op != "nll_loss_forward" else [*found, self._total(op, attrs, operands)]

    def gradient(self, attrs: dict[str, Any], operands: Sequence[Any], at: int) -> Any:
        """One gradient of a convolution as (op, attributes, operands, which result); None when it is empty.

        A bias's is the sum of what comes in over samples and places (dims kept: it is then seen without
        them), the others are asked for one by one.
        """
        if not attrs["output_mask"][at]:
            return None
        if at == 2:
            rank = len(operands[0][0][2])
            return "sum", {"dim": (0, *range(2, rank)), "keepdim": True}, [operands[0]], 0
        one = {**attrs, "output_mask": tuple(k == at for k in range(3)), "bias_sizes": None}
        return "convolution_backward", one, list(operands), at

    def _gradients(self, attrs: dict[str, Any], operands: Sequence[Any]) -> list[Rel]:
        found: list[Rel] = []
        for at in range(3):
            way = self.gradient(attrs, operands, at)
            if way is None:
                found.append(self.filled(0.0, (0,), self.defs[operands[0][0][1]].dtype))
            elif at == 2:
                (summed,) = self.make(Op(way[0], (), (), tuple(way[1].items())), way[2])
                shape = size(summed[0][2])[1:2] if summed is not None else ()
                found += self.make(Op("view", (), (), (("size", shape),)), [summed])
            else:
                found.append(self._made(way[0], way[1], way[2])[at])
        return found

    def _total(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        """The total weight of a loss: how many samples count, where all of them do."""
        if attrs["reduction"] == 1:  # only where all samples count
            return self.filled(float(len(operands[1][0][2][0])), (), self.defs[operands[0][0][1]].dtype)
        return self._made(op, attrs, operands)[1]

    def ways(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Any:
        """A mean, a summed or a mean loss as simpler steps, each on what the one before made, and a divisor.

        Steps are (op, attributes, what makes operands of the results so far).
        """
        rel: Any = operands[0] if operands and is_rel(operands[0]) else ()
        floats = bool(rel) and all(self.defs[n].dtype in FLOATS for _, n, _, _ in rel)
        if op == "mean" and floats and "dtype" not in attrs:
            count = math.prod(len(rel[0][2][dim]) for dim in attrs["dim"])
            return (Fraction(count), [("sum", attrs, lambda made: made)]) if count else None
        if op not in ("nll_loss_forward", "nll_loss_backward"):
            return None
        if op == "nll_loss_forward" and attrs["reduction"] == 0:
            return None
        at = 1 if op == "nll_loss_forward" else 2
        target, weight = operands[at : at + 2]
        if not is_rel(target) or len(target[0][2]) != 1 or not target[0][2][0]:
            return None
        mean, rows = attrs["reduction"] == 1, len(target[0][2][0])
        if mean and (not self.counts(attrs, target) or weight is not None):
            return None
        each = {**attrs, "reduction": 0}
        if at == 1:
            summed = ("sum", {"dim": (0,)}, lambda made: made)
            return Fraction(rows if mean else 1), [(op, each, lambda made: made), summed]
        by = self._number(operands[4]) if mean else ONE
        if not by or not floats:
            return None
        one = self.filled(1.0, (), self.defs[operands[4][0][1]].dtype)
        if attrs["reduction"] == 0:
            return None if operands[4] == one else (by, [(op, each, lambda _: [*operands[:4], one])])
        wide = self.widened(operands[0], (rows,), self.defs[rel[0][1]].dtype)
        return by, [(op, each, lambda _: [wide, *operands[1:4], one])]

    def counts(self, attrs: Mapping[str, Any], target: Any) -> bool:
        """Are these targets of a loss of the Program that ignores the same class? Then it is none of them."""
        return self.targets and are_targets(self, target, attrs["ignore_index"])

    def _made(self, op: str, attrs: dict[str, Any], operands: Sequence[Any], results: int = 0) -> list[Rel]:
        for item in operands:
            need(not is_rel(item) or len(item) == 1, "{} of a sum that is no value", op)
            need(not is_rel(item) or item[0][3] is None, "a value made of an addend by {}", op)
        coef, parts = self._parted(op, attrs, operands)
        shapes = [size(part[1]) if is_part(part) else None for part in parts]
        outs = shapes_of(op, attrs, shapes)
        need(outs is not None, "the checker has no rule for {}", op)
        found = outs or ()
        need(not results or results == len(found), "{} has {} results", op, len(found))
        dtypes = [self.defs[part[0]].dtype if is_part(part) else None for part in parts]
        numbers = frozenset(part[1] for part in parts if isinstance(part, tuple) and part[0] == "number")
        made: list[Rel] = []
        for out, shape in enumerate(found):
            need(max(shape, default=0) <= MAX_DIM, f"{op} makes a dim of {max(shape, default=0)}")
            frees = [self.defs[part[0]].free if is_part(part) else frozenset[int]() for part in parts]
            free = repeats(op, attrs, shapes, frees, shape) if len(found) == 1 else frozenset[int]()
            told = {"rank": len(shape)} if op == "expand" else attrs
            key = (op, repr(sorted(told.items())), parts, out)
            dtype = dtype_of(op, attrs, dtypes, numbers, out)
            item = Def(op, attrs, parts, out, shape, dtype, None, free)
            node = self._put(item, key)
            made.append(((coef, node, self.spelled(node, whole(shape)), None),))
        return made

    def as_joined(self, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        """Parts one after another as a class of their own, whether or not they are places of one value."""
        return self._made("cat", clean("cat", attrs), operands)[0]

    def passed(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        """Copies, slices, parts put together again, numbers everywhere; None for any other step."""
        rels = [item for item in operands if is_rel(item)]
        if op == "full":
            number, dtype = attrs["fill_value"], attrs.get("dtype")
            kind = {bool: "bool", int: "i64", float: "f32"}[type(number)]
            return self.filled(number, tuple(attrs["size"]), dtype or kind)
        if (known := constant(self, op, attrs, operands)) is not None:
            return known
        if not rels or len(rels) < len([item for item in operands if item is not None]):
            return None
        if op == "_to_copy" and {self.defs[n].dtype for _, n, _, _ in rels[0]} == {attrs.get("dtype")}:
            return _same(rels[0])
        if op == "permute" and attrs["dims"] == tuple(range(len(attrs["dims"]))):
            return _same(rels[0])
        if op in ("view", "expand") and tuple(attrs["size"]) == size(rels[0][0][2]):
            return _same(rels[0])
        if op == "expand" and filled_size(attrs["size"], shape := size(rels[0][0][2])) == shape:
            return _same(rels[0])  # -1 leaves a dim as it is
        if op == "view" and len(rels[0]) == 1 and (back := self._viewed(rels[0][0], tuple(attrs["size"]))):
            return back
        if op in ("copy", "slice"):
            moved = [(c, n, r if op == "copy" else sliced(attrs, r), lim) for c, n, r, lim in rels[0]]
            return self.tidy(tuple(moved))
        if op == "cat" and (known := self.joined(rels, attrs.get("dim", 0) % len(rels[0][0][2]))):
            return known
        if op == "constant_pad_nd" and not any(attrs["pad"]):
            return _same(rels[0])
        if op == "slice_backward" and tuple(attrs["input_sizes"]) == size(rels[0][0][2]):
            return _same(rels[0])  # all of it: a part of it would be put back among zeros
        if op == "slice_scatter" and (over := self._written_over(attrs, rels)) is not None:
            return over
        first = rels[0][0]
        item = self.defs[first[1]]
        if item.op == "full" and op in MOVES and all(len(r) == 1 and r[0][:2] == first[:2] for r in rels):
            (shape,) = shapes_of(op, attrs, [size(rel[0][2]) for rel in rels]) or ((),)
            ((coef, node, reg, _),) = self.filled(item.attrs["fill_value"], shape, item.dtype) or (first,)
            return ((coef * first[0], node, reg, None),)
        return zeros(self, op, attrs, operands)

    def _written_over(self, attrs: dict[str, Any], rels: Sequence[Any]) -> Rel:
        """A slice put into what it, or a like part, is a slice of; None for a slice of anything else."""
        target, source = rels
        dim = attrs.get("dim", 0) % len(target[0][2])
        count = len(target[0][2][dim])
        start, stop, step = slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1)).indices(count)
        dtypes = {self.defs[node].dtype for rel in rels for _, node, _, _ in rel}
        if step != 1 or stop - start != len(source[0][2][dim]) or len(dtypes) != 1:
            return None

        def between(low: int, high: int) -> Rel:
            cut = {"dim": dim, "start": low, "end": high}
            return self.tidy(tuple([(c, n, sliced(cut, r), lim) for c, n, r, lim in target]))

        return self.joined([between(0, start), source, between(stop, count)], dim)

    def filled(self, number: Any, shape: Shape, dtype: str) -> Rel:
        """One number in every element: for floats a multiple of ones."""
        factor = value(number) if dtype in FLOATS else None
        if factor is not None:
            number = 1.0 if factor else 0.0
        need(max(shape, default=0) <= MAX_DIM, f"a dim of {max(shape, default=0)}")
        key = ("full", len(shape), dtype, type(number).__name__, repr(number))
        every_dim = frozenset(range(len(shape)))
        item = Def("full", {"fill_value": number}, (), 0, (1,) * len(shape), dtype, None, every_dim)
        return ((factor or ONE, self._put(item, key), whole(shape), None),)

    def _parted(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> tuple[Fraction, Any]:
        """The factors that come out, and what is left of the operands."""
        coef, parts = ONE, list[Any]()
        together = every(op, operands)
        known = bool(together) and all(is_rel(operands[at]) for at in together)
        common = operands[together[0]][0][0] if known else ONE
        floats = all(self.defs[item[0][1]].dtype in FLOATS for item in operands if is_rel(item))
        stays = attrs.get("dtype") is None or attrs["dtype"] in FLOATS
        for at, item in enumerate(operands):
            if not is_rel(item):
                need(not axes_in(item), "{} of a number that is another at every place", op)
                parts.append(None if item is None else ("number", type(item).__name__, repr(item)))
                continue
            ((by, node, reg, _),) = item
            is_float = self.defs[node].dtype in FLOATS
            if at in together and known and floats:
                coef, by = common, by / common
            elif is_float and stays and single(op, attrs, operands, at):
                coef, by = coef * by, ONE
            parts.append((node, self.spelled(node, reg), by))
        return coef, tuple(parts)

    def _put(self, item: Def, key: Any = None) -> int:
        key = key or (item.op, repr(sorted(item.attrs.items())), item.operands, item.out)
        if key not in self._keys:
            node = self._keys[key] = len(self.defs)
            self.defs.append(item)
            axes = axes_in((item.attrs, item.shape)).union(
                *(self.families.get(part, NO_AXES) for part in item.form or ()),
                *(self._apart(part) for part in item.operands),
            )
            if axes:
                self.families[node] = axes
        return self._keys[key]

    def instance(self, node: int, place: Mapping[str, int]) -> Term:
        """What a class that is another at every place is at one: made anew of what its operands are there."""
        key = (node, tuple(sorted(place.items())))
        if key in self._instances:
            return self._instances[key]
        item = self.defs[node]
        if item.op == "leaf" or item.out or axes_in((item.attrs, item.shape)):
            raise Undecided("a value that each place makes for itself", frozenset(place))
        made: Rel
        if item.form is not None:
            parts = [((coef, part, whole(self.defs[part].shape), None),) for part, coef in item.form.items()]
            terms = [rel_at(part, place, self.families, self.instance) for part in parts]
            made = self.gathered(tuple(itertools.chain.from_iterable(terms)))
        else:
            operands = [
                rel_at(((part[2], part[0], part[1], None),), place, self.families, self.instance)
                if is_part(part)
                else _told_number(part)
                for part in item.operands
            ]
            results = self.make(Op(item.op, (), (), tuple(item.attrs.items())), operands)
            made = results[0] if len(results) == 1 else None
        if made is None or len(made) != 1 or made[0][3] is not None:
            raise Undecided("a value that cannot be made at one place", frozenset(place))
        self._instances[key] = made[0]
        return made[0]

    def _apart(self, part: Any) -> frozenset[str]:
        """The axes along which an operand is another at every place."""
        if not is_part(part):
            return NO_AXES
        ends = [end for index in part[1] for run in index.runs for end in run]
        return self.families.get(part[0], NO_AXES) | axes_in(ends)


def _told_number(item: Any) -> Any:
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": lambda text: text == "True"}
    return None if item is None else kinds[item[1]](item[2])


def _same(rel: Any) -> Rel:
    return tuple(rel)
