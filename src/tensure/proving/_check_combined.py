"""Sums, differences and multiples in the checker: term by term, or as a class known by its direction."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from tensure.program import Op, rational

from ._check_defined import defined
from ._check_index import FIRST, Index, all_of
from ._check_linear import signs, value
from ._check_ops import FLOATS
from ._check_piece import ONE, Reg, Shape, whole
from ._check_spelled import CheckSpelled
from ._check_sums import Def, Rel, Term, but, is_rel, size, spread, times

COMBINING: Final = frozenset("addmm baddbmm linear convolution sum mul div add sub rsub add_n neg".split())
"""Steps that may be linear in several operands, or multiples of one."""


class CheckCombined(CheckSpelled):
    """Relations that linear ops make of relations."""

    def filled(self, number: Any, shape: Shape, dtype: str) -> Rel:
        """A tensor of one number; `CheckValues` keeps it."""
        raise NotImplementedError

    def _put(self, item: Def, key: Any = None) -> int:
        raise NotImplementedError

    def linear(self, op: str, attrs: dict[str, Any], operands: Sequence[Any], own: bool) -> Rel:
        """A sum, difference or multiple of floats, or a product with a bias, term by term; else None."""
        rels = [item for item in operands if is_rel(item)] if op in COMBINING else None
        if not rels:
            return None
        if op in ("addmm", "baddbmm") or (op in ("linear", "convolution") and len(rels) == 3):
            return self._biased(op, attrs, operands) if own else None
        shapes = [size(rel[0][2]) for rel in rels]
        numbers = op in ("mul", "div") and len(rels) == 2  # which may be of another dtype
        told = [rel for rel in rels if not numbers or self._number(rel) is None]
        told = told or [rel for rel in rels if self.defs[rel[0][1]].dtype in FLOATS] or rels
        dtypes = {self.defs[n].dtype for rel in told for _, n, _, _ in rel}
        if len(dtypes) != 1 or not dtypes <= FLOATS or attrs.get("rounding_mode") is not None:
            return None
        (dtype,) = dtypes
        if op == "sum":
            return self._scalars(attrs, rels[0])
        if op in ("mul", "div") and len(operands) == 2:
            for one, other in ((0, 1), (1, 0))[: 1 if op == "div" else 2]:
                by = self._number(operands[other])
                if is_rel(operands[one]) and by and size(operands[one][0][2]) == spread(shapes):
                    return times(operands[one], 1 / by if op == "div" else by)
            return None
        coefs = signs(op, attrs, len(operands))
        shape = spread(shapes)
        if coefs is None or shape is None:
            return None
        flat: list[Term] = []
        for by, item in zip(coefs, operands, strict=True):
            wide = self.widened(item, shape, dtype)
            if wide is None:
                return None
            flat.extend(times(wide, by))
        kept = [term for term in flat if not self.zero(term[1])]
        return tuple(kept or flat)

    def _scalars(self, attrs: dict[str, Any], rel: Any) -> Rel:
        """A sum over tensors that were stacked, each as it was before; None for any other sum."""
        if len(rel) != 1 or len(attrs["dim"]) != 1 or attrs.get("keepdim") or "dtype" in attrs:
            return None
        coef, node, reg, limit = rel[0]
        (dim,), item = attrs["dim"], self.defs[node]
        count = len(reg[dim])
        if dim in item.free or not reg[dim].is_whole(item.shape[dim]):
            return None
        stacked = (
            item.op == "cat" and item.attrs.get("dim", 0) % len(reg) == dim and len(item.operands) == count
        )
        if count != 1 and not stacked:
            return None
        made: list[Term] = []
        for at in range(count):
            thin = self._tidied((coef, node, (*reg[:dim], FIRST.shifted(at), *reg[dim + 1 :]), limit))
            back = self._unviewed(thin)
            if back is None or size(back[2]) != but(size(reg), dim):
                return None
            made.append(back)
        return tuple(made)

    def biased(self, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> Any:
        """What of a claim is left for the product when the bias is taken off: (op, operands, terms)."""
        biased = op in ("linear", "convolution") and len(operands) == 3 and operands[2] is not None
        if op not in ("addmm", "baddbmm") and not biased:
            return None
        order = (0, 1, 2) if biased else (1, 2, 0)
        one, other, bias = (operands[at] for at in order)
        if op == "convolution" and is_rel(bias):
            bias = self._per_channel(bias, len(claim[0][2]))
        alpha, beta = (value(attrs.get(key, 1)) for key in ("alpha", "beta"))
        if not alpha or not beta or not is_rel(bias):
            return None
        wide = self.widened(bias, size(claim[0][2]), self.defs[bias[0][1]].dtype)
        if wide is None or self.defs[bias[0][1]].dtype not in FLOATS:
            return None
        sums: dict[Any, Fraction] = {}
        for coef, *key in (*self.opened(claim), *times(self.opened(wide), -beta)):
            sums[tuple(key)] = sums.get(tuple(key), Fraction(0)) + coef
        left = tuple((coef / alpha, *key) for key, coef in sums.items() if coef)
        kind = {"addmm": "mm", "baddbmm": "bmm"}.get(op, op)
        return kind, [one, other, None] if biased else [one, other], left

    def _biased(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
        third = op in ("linear", "convolution")
        one, other, bias = (operands[at] for at in ((0, 1, 2) if third else (1, 2, 0)))
        alpha, beta = (value(attrs.get(key, 1)) for key in ("alpha", "beta"))
        kind = {"addmm": "mm", "baddbmm": "bmm"}.get(op, op)
        if not alpha or not beta or any(len(rel) != 1 or rel[0][3] is not None for rel in (one, other)):
            return None
        args = [one, other, None] if third else [one, other]
        given = tuple(attrs.items()) if op == "convolution" else ()
        (product,) = self.make(Op(kind, (), (), given), args)
        if product is None or self.defs[product[0][1]].dtype not in FLOATS:
            return None
        if op == "convolution" and is_rel(bias):
            bias = self._per_channel(bias, len(product[0][2]))
        wide = self.widened(bias, size(product[0][2]), self.defs[product[0][1]].dtype)
        return None if wide is None else (*times(wide, beta), *times(product, alpha))

    def _per_channel(self, bias: Any, rank: int) -> Rel:
        """A bias with dims of size 1 behind its channels: it is added alike at every place."""
        rel: Rel = bias
        for dim in range(1, rank - 1):
            rel = None if rel is None else self._thin(rel, dim)
        return rel

    def widened(self, item: Any, shape: Shape, dtype: str) -> Rel:
        """A number or a tensor spread to a shape; None where that is no class's part."""
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
        if len(item) != 1 or limit is not None or known.op != "full" or known.dtype == "bool":
            return None
        found: Fraction = coef * rational(known.attrs["fill_value"])
        return found

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
        if not all(defined(self, node) for node in sums.keys() - form.keys()):
            return None
        if not form or reg is None:
            return None
        if len(form) == 1:
            ((node, coef),) = form.items()
            return ((coef, node, self.spelled(node, reg), None),)
        lead = form[min(form)]
        known = ("+", tuple(sorted((node, coef / lead) for node, coef in form.items())))
        shape = size(reg)
        free = frozenset.intersection(*(self.defs[node].free for node in form))
        dtype = self.defs[min(form)].dtype
        node = self._put(Def("+", {}, (), 0, shape, dtype, form, free), known)
        by = lead / (self.defs[node].form or form)[min(form)]
        return ((by, node, self.spelled(node, reg), None),)

    def classed(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """A sum of parts at one region as that part of the sum; what is none as it is."""
        reg = self._common(rel)
        if len(rel) == 1 or reg is None or any(limit is not None for *_, limit in rel):
            return rel
        sizes = [
            {self.defs[node].shape[dim] for _, node, _, _ in rel if dim not in self.defs[node].free}
            for dim in range(len(reg))
        ]
        if any(len(found) > 1 for found in sizes):
            return rel
        full = tuple(all_of(found.pop()) if found else index for found, index in zip(sizes, reg, strict=True))
        made = self.gathered(tuple((coef, node, self.spelled(node, full), None) for coef, node, _, _ in rel))
        if made is None or len(made) != 1:
            return rel
        return ((made[0][0], made[0][1], self.spelled(made[0][1], reg), None),)

    def _common(self, rel: tuple[Term, ...]) -> Reg | None:
        """The one region of all terms, but for dims along which some only repeat."""
        found: list[Index] = []
        for dim in range(len(rel[0][2])):
            held = {reg[dim] for _, node, reg, _ in rel if dim not in self.defs[node].free}
            if len(held) > 1:
                return None
            found.append(held.pop() if held else rel[0][2][dim])
        return tuple(found)
