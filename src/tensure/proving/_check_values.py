"""The checker's logical values: classes of equal ones, sums of them, and when two sums are one.

A class is how a value is made: op, attributes and operands, each a part of another class times a factor.
Factors of operands in which an op is linear stand before the class; a sum is known by its direction. An
addend is a class made from slices of what is summed, down a path of linear ops; whether addends make a
whole is decided index by index of what was sliced. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NoReturn, TypeAlias

from tensure.program import Op, Program, expand, leaves

from ._check_linear import every, signs, single, value
from ._check_ops import FLOATS, MOVES, Reg, Shape, clean, dtype_of, extent, repeats, shapes_of

Limit: TypeAlias = "tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[tuple[int, Any], ...]] | None"
"""(slices of own letters, limits of operands by position, or of a sum's parts by class)."""
Term: TypeAlias = tuple[Fraction, int, Reg, Limit]  # coefficient, class, region, addend
Rel: TypeAlias = "tuple[Term, ...] | None"  # None: nothing is known of it
ONE: Final = Fraction(1)
MAX_LEAD: Final = 64


class Refused(Exception):
    """A claim that does not follow; never leaves the checker."""


@dataclass(frozen=True, slots=True)
class Def:
    """How a class of equal logical values is made; operands are (class, region, factor), numbers or None."""

    op: str
    attrs: dict[str, Any]
    operands: tuple[Any, ...]
    out: int
    shape: Shape
    dtype: str
    form: Mapping[int, Fraction] | None = None
    free: frozenset[int] = frozenset()


class CheckValues:
    """The Program's values, and those a certificate defines besides."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int]) -> None:
        self.defs: list[Def] = []
        self.names: dict[str, Rel] = {}
        self._keys: dict[Any, int] = {}
        self._program, self._entry, self._env = program, entry, env

    def read_program(self, operands_of: Any) -> None:
        """Take every step of the Program; `operands_of(step, named)` reads its operands."""
        for label, want, _ in leaves(self._program, self._entry, self._env):
            node = self._put(Def("leaf", {"name": label}, (), 0, want.shape, want.dtype))
            self.names[label] = ((ONE, node, whole(want.shape), None),)
        for step in expand(self._program.blocks, self._program.entry(self._entry).body, self._env):
            for out, rel in zip(step.outs, self.make(step, operands_of(step, self.named)), strict=True):
                self.names[str(out)] = rel

    def named(self, label: str) -> Rel:
        """A value by name."""
        need(label in self.names, f"there is no value {label[:80]}")
        return self.names[label]

    # making ------------------------------------------------------------------------------------------

    def make(self, step: Op, operands: Sequence[Any]) -> list[Rel]:
        """What an op makes of whole parts of values: relations, numbers and None."""
        attrs = clean(dict(step.attrs))
        rel = self.passed(step.op, attrs, operands)
        if rel is None:
            rel = self.linear(step.op, attrs, operands)
            rel = None if rel is None else self.gathered(rel)
        if rel is not None:
            return [rel]
        for item in operands:
            need(not is_rel(item) or len(item) == 1, f"{step.op} of a sum that is no value")
            need(not is_rel(item) or item[0][3] is None, f"a value made of an addend by {step.op}")
        coef, parts = self._parted(step.op, attrs, operands)
        shapes = [size(part[1]) if is_part(part) else None for part in parts]
        outs = shapes_of(step.op, attrs, shapes)
        need(outs is not None, f"the checker has no rule for {step.op}")
        found = outs or ()
        need(not step.outs or len(step.outs) == len(found), f"{step.op} has {len(found)} results")
        dtypes = [self.defs[part[0]].dtype if is_part(part) else None for part in parts]
        made: list[Rel] = []
        for out, shape in enumerate(found):
            frees = [self.defs[part[0]].free if is_part(part) else frozenset[int]() for part in parts]
            free = repeats(step.op, attrs, shapes, frees, shape) if len(found) == 1 else frozenset[int]()
            told = {"rank": len(shape)} if step.op == "expand" else attrs
            key = (step.op, repr(sorted(told.items())), parts, out)
            item = Def(step.op, attrs, parts, out, shape, dtype_of(step.op, attrs, dtypes), None, free)
            node = self._put(item, key)
            made.append(((coef, node, self.spelled(node, whole(shape)), None),))
        return made

    def passed(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        """Copies, slices, parts put together again, numbers everywhere; None for any other step."""
        rels = [item for item in operands if is_rel(item)]
        if op == "full":
            number, dtype = attrs["fill_value"], attrs.get("dtype")
            kind = {bool: "bool", int: "i64", float: "f32"}[type(number)]
            return self.filled(number, tuple(attrs["size"]), dtype or kind)
        if not rels or len(rels) < len([item for item in operands if item is not None]):
            return None
        if (
            op == "_to_copy"
            and rels
            and {self.defs[n].dtype for _, n, _, _ in rels[0]} == {attrs.get("dtype")}
        ):
            return rels[0]
        if op in ("view", "reshape", "expand"):
            here = size(rels[0][0][2])
            if tuple(attrs["shape" if op == "reshape" else "size"]) == here:
                return rels[0]
        if op in ("copy", "slice"):
            moved = [(c, n, r if op == "copy" else sliced(attrs, r), lim) for c, n, r, lim in rels[0]]
            return self.tidy(tuple(moved))
        if op == "cat" and (known := self.joined(rels, attrs.get("dim", 0) % len(rels[0][0][2]))):
            return known
        first = rels[0][0]
        item = self.defs[first[1]]
        if item.op == "full" and op in MOVES and all(len(r) == 1 and r[0][:2] == first[:2] for r in rels):
            (shape,) = shapes_of(op, attrs, [size(rel[0][2]) for rel in rels]) or ((),)
            ((coef, node, reg, _),) = self.filled(item.attrs["fill_value"], shape, item.dtype) or (first,)
            return ((coef * first[0], node, reg, None),)
        return None

    def filled(self, number: Any, shape: Shape, dtype: str) -> Rel:
        """One number in every element: for floats a multiple of ones."""
        factor = value(number) if dtype in FLOATS else None
        if factor is not None:
            number = 1.0 if factor else 0.0
        key = ("full", len(shape), dtype, type(number).__name__, repr(number))
        every_dim = frozenset(range(len(shape)))
        item = Def("full", {"fill_value": number}, (), 0, (1,) * len(shape), dtype, None, every_dim)
        return ((factor or ONE, self._put(item, key), whole(shape), None),)

    def linear(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        """A sum, difference, multiple, or product with a bias, of floats, term by term; None where it is none."""
        rels = [item for item in operands if is_rel(item)]
        if not rels:
            return None
        if op in ("addmm", "baddbmm") or (op == "linear" and len(rels) == 3):
            return self._biased(op, attrs, operands)
        shapes = [size(rel[0][2]) for rel in rels]
        dtypes = {self.defs[n].dtype for rel in rels for _, n, _, _ in rel}
        if len(dtypes) != 1 or not dtypes <= FLOATS or attrs.get("rounding_mode") is not None:
            return None
        (dtype,) = dtypes
        if op in ("mul", "div") and len(operands) == 2:
            for one, other in ((0, 1), (1, 0))[: 1 if op == "div" else 2]:
                by = self._number(operands[other])
                if is_rel(operands[one]) and by and size(operands[one][0][2]) == _spread(shapes):
                    return _times(operands[one], 1 / by if op == "div" else by)
            return None
        coefs = signs(op, attrs, len(operands))
        shape = _spread(shapes)
        if coefs is None or shape is None:
            return None
        flat: list[Term] = []
        for by, item in zip(coefs, operands, strict=True):
            wide = self._widened(item, shape, dtype)
            if wide is None:
                return None
            flat.extend(_times(wide, by))
        kept = [term for term in flat if not self._zero(term[1])]
        return tuple(kept or flat)

    def _biased(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        order = (0, 1, 2) if op == "linear" else (1, 2, 0)
        one, other, bias = (operands[at] for at in order)
        alpha, beta = (value(attrs.get(key, 1)) for key in ("alpha", "beta"))
        kind = {"addmm": "mm", "baddbmm": "bmm", "linear": "linear"}[op]
        if not alpha or not beta or any(len(rel) != 1 or rel[0][3] is not None for rel in (one, other)):
            return None
        args = [one, other, None] if op == "linear" else [one, other]
        (product,) = self.make(Op(kind, (), (), ()), args)
        if product is None or self.defs[product[0][1]].dtype not in FLOATS:
            return None
        wide = self._widened(bias, size(product[0][2]), self.defs[product[0][1]].dtype)
        return None if wide is None else (*_times(wide, beta), *_times(product, alpha))

    def _widened(self, item: Any, shape: Shape, dtype: str) -> Rel:
        if not is_rel(item):
            return self.filled(item, shape, dtype) if value(item) is not None else None
        if any(self.defs[node].dtype != dtype for _, node, _, _ in item):
            return None
        if size(item[0][2]) == shape:
            return tuple(item)
        if len(item) != 1 or item[0][3] is not None:
            return None
        # Of all of the value, so that parts of it are parts of one and the same spread value.
        ((coef, node, reg, _),) = item
        full = tuple(
            reg[d] if d in self.defs[node].free else at for d, at in enumerate(whole(self.defs[node].shape))
        )
        skip = len(shape) - len(reg)
        kept = [d >= skip and len(reg[d - skip]) == n for d, n in enumerate(shape)]
        if any(d >= skip and not same and len(full[d - skip]) != 1 for d, same in enumerate(kept)):
            return None
        wide = tuple(
            len(full[d - skip]) if same else n for d, (same, n) in enumerate(zip(kept, shape, strict=True))
        )
        (rel,) = self.make(Op("expand", (), (), (("size", wide),)), [((coef, node, full, None),)])
        if rel is None:
            return None
        ((by, made, spread, _),) = rel
        part = tuple(reg[d - skip] if same else spread[d] for d, same in enumerate(kept))
        return ((by, made, self.spelled(made, part), None),)

    def _number(self, item: Any) -> Fraction | None:
        if not is_rel(item):
            return value(item)
        coef, node, _, limit = item[0]
        known = self.defs[node]
        if len(item) != 1 or limit is not None or known.op != "full" or known.dtype not in FLOATS:
            return None
        return coef * Fraction(known.attrs["fill_value"])

    def _zero(self, node: int) -> bool:
        item = self.defs[node]
        return item.op == "full" and item.dtype in FLOATS and item.attrs["fill_value"] == 0

    def _parted(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> tuple[Fraction, Any]:
        """The factors that come out, and what is left of the operands."""
        coef, parts = ONE, list[Any]()
        together = every(op, operands)
        alike = {operands[at][0][0] if is_rel(operands[at]) else 0 for at in together}
        floats = all(self.defs[item[0][1]].dtype in FLOATS for item in operands if is_rel(item))
        for at, item in enumerate(operands):
            if not is_rel(item):
                parts.append(None if item is None else ("number", type(item).__name__, repr(item)))
                continue
            ((by, node, reg, _),) = item
            is_float = self.defs[node].dtype in FLOATS
            shared = at in together and len(alike) == 1 and 0 not in alike and floats
            if is_float and (single(op, attrs, operands, at) or shared):
                coef = by if shared else coef * by
                by = ONE
            parts.append((node, self.spelled(node, reg), by))
        return coef, tuple(parts)

    def gathered(self, rel: tuple[Term, ...]) -> Rel:
        """A sum of whole values as a class of its own direction; None when it is no such sum."""
        sums: dict[int, Fraction] = {}
        reg = self._common(rel)
        for coef, node, part, limit in rel:
            if limit is not None or not self.is_whole(node, part) or reg is None:
                return rel if len(rel) == 1 else None
            for key, by in (self.defs[node].form or {node: ONE}).items():
                sums[key] = sums.get(key, Fraction(0)) + coef * by
        form = {node: coef for node, coef in sums.items() if coef}
        if not form or reg is None:
            return None
        if len(form) == 1:
            ((node, coef),) = form.items()
            return ((coef, node, self.spelled(node, reg), None),)
        lead = form[min(form)]
        key = ("sum", tuple(sorted((node, coef / lead) for node, coef in form.items())))
        shape = size(reg)
        free = frozenset.intersection(*(self.defs[node].free for node in form))
        dtype = self.defs[min(form)].dtype
        node = self._put(Def("sum", {}, (), 0, shape, dtype, form, free), key)
        by = lead / (self.defs[node].form or form)[min(form)]
        return ((by, node, self.spelled(node, reg), None),)

    def _common(self, rel: tuple[Term, ...]) -> Reg | None:
        """The one region of all terms, but for dims along which some only repeat."""
        found: list[tuple[int, ...]] = []
        for dim in range(len(rel[0][2])):
            held = {reg[dim] for _, node, reg, _ in rel if dim not in self.defs[node].free}
            if len(held) > 1:
                return None
            found.append(held.pop() if held else rel[0][2][dim])
        return tuple(found)

    def _put(self, item: Def, key: Any = None) -> int:
        key = key or (item.op, repr(sorted(item.attrs.items())), item.operands, item.out)
        if key not in self._keys:
            self._keys[key] = len(self.defs)
            self.defs.append(item)
        return self._keys[key]

    # regions -----------------------------------------------------------------------------------------

    def spelled(self, node: int, reg: Reg) -> Reg:
        """Where a value only repeats, a region says no more than how many."""
        free = self.defs[node].free
        return tuple(tuple(range(len(at))) if dim in free else at for dim, at in enumerate(reg))

    def is_whole(self, node: int, reg: Reg) -> bool:
        """All of a value, but for dims along which it only repeats."""
        item = self.defs[node]
        return all(d in item.free or reg[d] == tuple(range(n)) for d, n in enumerate(item.shape))

    def tidy(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """Parts of joined values as parts of what was joined."""
        return tuple(self._tidied(term) for term in rel)

    def _tidied(self, term: Term) -> Term:
        coef, node, reg, limit = term
        item = self.defs[node]
        if item.op != "cat":
            return (coef, node, self.spelled(node, reg), limit)
        dim, start = item.attrs.get("dim", 0) % len(reg), 0
        for at, (inner, outer, by) in enumerate(item.operands):
            stop = start + len(outer[dim])
            if reg[dim] and start <= min(reg[dim]) and max(reg[dim]) < stop:
                places = (*reg[:dim], tuple(i - start for i in reg[dim]), *reg[dim + 1 :])
                part = tuple(
                    tuple(index[i] for i in spots) for index, spots in zip(outer, places, strict=True)
                )
                left = None if limit is None else dict(limit[1]).get(at)
                return self._tidied((coef * by, inner, part, left))
            start = stop
        return term

    def joined(self, rels: Sequence[Any], dim: int) -> Rel:
        """Parts of one value one after another; None when they are of several."""
        if not rels or any(rel is None for rel in rels):
            return None
        rels = [rel for rel in rels if rel[0][2][dim]] or rels[:1]
        made: list[Term] = []
        for column in zip(*rels, strict=False):
            coef, node, reg, limit = column[0]
            if len({len(rel) for rel in rels}) != 1 or any(
                (c, n, _but(r, dim), lim) != (coef, node, _but(reg, dim), limit) for c, n, r, lim in column
            ):
                return None
            run = tuple(i for term in column for i in term[2][dim])
            made.append((coef, node, self.spelled(node, (*reg[:dim], run, *reg[dim + 1 :])), limit))
        return tuple(made)

    # when two sums are one ------------------------------------------------------------------------------

    def equal(self, one: Rel, other: Rel) -> bool:
        """Are two relations the same: is their difference nothing, index by index of what was sliced?"""
        if one is None or other is None:
            return False
        if one == other:
            return True
        groups: dict[tuple[int, Reg], list[tuple[Fraction, Limit]]] = {}
        for coef, node, reg, limit in (*self.opened(one), *_times(self.opened(other), -ONE)):
            groups.setdefault((node, reg), []).append((coef, limit))
        return all(self._nothing(node, items) for (node, _), items in groups.items())

    def opened(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """Every value that is itself a sum as its parts."""
        made: list[Term] = []
        for coef, node, reg, limit in rel:
            form = self.defs[node].form
            if form is None:
                made.append((coef, node, self.spelled(node, reg), limit))
                continue
            through = None if limit is None else dict(limit[1])
            for part, by in form.items():
                inner = None if through is None else through[part]
                made.append((coef * by, part, self.spelled(part, reg), inner))
        return tuple(made)

    def _nothing(self, node: int, items: list[tuple[Fraction, Limit]]) -> bool:
        """Do addends (and wholes, and multiples) of one value add up to zero?"""
        letters = {letter: index for _, limit in items if limit for letter, index in limit[0]}
        if letters:
            letter = min(letters)
            held = [(coef, limit, _slice(limit, letter)) for coef, limit in items]
            seen: set[tuple[bool, ...]] = set()
            for at in range(self.extent(node, letter)):
                there = tuple(index is None or at in index for _, _, index in held)
                if there not in seen:
                    seen.add(there)
                    left = [
                        (c, _without(lim, letter)) for (c, lim, _), so in zip(held, there, strict=True) if so
                    ]
                    if not self._nothing(node, left):
                        return False
            return True
        keys = {key for _, limit in items if limit for key, _ in limit[1]}
        if not keys:
            return sum(coef for coef, _ in items) == 0
        item = self.defs[node]
        if len(keys) > 1 and item.form is None and keys != set(every(item.op, item.operands)):
            return False
        for key in keys:
            inner = [(coef, None if limit is None else dict(limit[1])[key]) for coef, limit in items]
            if not self._nothing(key if item.form is not None else item.operands[key][0], inner):
                return False
        return True

    def extent(self, node: int, letter: str) -> int:
        """The size of a contracted letter of a value's op."""
        item = self.defs[node]
        shapes = [size(part[1]) if is_part(part) else None for part in item.operands]
        found = extent(item.op, item.attrs, shapes, letter)
        return found if found is not None else refuse(f"no addend over {letter[:40]!r} there")

    def sound(self, node: int, limit: Any) -> bool:
        """Is a limit one of this value: slices of its letters, and through operands it is linear in?"""
        if limit is None:
            return True
        item = self.defs[node]
        shares, through = limit
        keys = tuple(key for key, _ in through)
        for letter, index in shares:
            if len(set(index)) != len(index) or max(index, default=-1) >= self.extent(node, letter):
                return False
        if item.form is not None:
            return (
                not shares and set(keys) == set(item.form) and all(self.sound(k, lim) for k, lim in through)
            )
        if item.dtype not in FLOATS and keys:
            return False
        if not all(0 <= key < len(item.operands) and is_part(item.operands[key]) for key in keys):
            return False
        linear = not keys or keys == every(item.op, item.operands)
        linear = linear or (len(keys) == 1 and single(item.op, item.attrs, item.operands, keys[0]))
        return linear and all(
            self.defs[item.operands[key][0]].dtype in FLOATS and self.sound(item.operands[key][0], lim)
            for key, lim in through
        )


# --- small things ---------------------------------------------------------------------------------------


def is_rel(item: Any) -> bool:
    """A relation, and not a number or None."""
    return isinstance(item, tuple) and bool(item) and item[0] != "number"


def is_part(item: Any) -> bool:
    """A (class, region, factor) operand."""
    return isinstance(item, tuple) and item[0] != "number"


def whole(shape: Shape) -> Reg:
    """All of a tensor."""
    return tuple(tuple(range(n)) for n in shape)


def size(reg: Reg) -> Shape:
    """The shape of a part."""
    return tuple(map(len, reg))


def sliced(attrs: Mapping[str, Any], reg: Reg) -> Reg:
    """A slice of a part."""
    dim = attrs.get("dim", 0) % len(reg)
    part = slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))
    return (*reg[:dim], reg[dim][part], *reg[dim + 1 :])


def need(so: bool, why: str) -> None:
    """Refuse unless."""
    if not so:
        refuse(why)


def refuse(why: str) -> NoReturn:
    """Refuse."""
    raise Refused(why)


def _times(rel: Any, by: Fraction) -> tuple[Term, ...]:
    return tuple((coef * by, *rest) for coef, *rest in rel)


def _but(reg: Reg, dim: int) -> Reg:
    return (*reg[:dim], *reg[dim + 1 :])


def _spread(shapes: Sequence[Shape]) -> Shape | None:
    """The shape operands broadcast to; None when they do not."""
    rank = max(map(len, shapes))
    found: list[int] = []
    for back in range(rank, 0, -1):
        sizes = {shape[-back] for shape in shapes if len(shape) >= back} - {1}
        if len(sizes) > 1:
            return None
        found.append(sizes.pop() if sizes else 1)
    return tuple(found)


def _slice(limit: Limit, letter: str) -> frozenset[int] | None:
    return None if limit is None or letter not in dict(limit[0]) else frozenset(dict(limit[0])[letter])


def _without(limit: Limit, letter: str) -> Limit:
    if limit is None:
        return None
    left = tuple(item for item in limit[0] if item[0] != letter)
    return (left, limit[1]) if left or limit[1] else None
