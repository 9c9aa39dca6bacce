"""What a certificate says, in the checker's terms: values that it defines, parts and addends of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final

from tensure.program import Op, coordinate, evaluate

from ._certificate import Invocation, Runs
from ._check_index import Index
from ._check_piece import ONE, Reg
from ._check_steps import CheckSteps
from ._check_sums import Def, Limit, Rel, Term, is_rel, need, refuse, spelled

NOWHERE: Final[Mapping[str, Any]] = {}


class CheckSaid:
    """Reads terms; `values` are the Program's, and grow by those that a certificate defines."""

    def __init__(self, values: CheckSteps) -> None:
        self._values = values
        self._spots, self._spelled = dict[Any, Index](), dict[Any, Reg]()
        self._names: dict[tuple[Runs, ...], tuple[str, ...]] = {}

    def define(self, given: Invocation) -> None:
        """Values that the certificate names besides the Program's."""
        for item in given.values:
            need(item.label.startswith("$") and item.label not in self._values.names, "{} again", item.label)
            attrs: Any = tuple(item.attrs.items())
            for axis, lo, hi in item.where:
                need(
                    axis in given.folded and 0 <= lo < hi,
                    "{} along {} at {}:{}",
                    item.label,
                    axis[:40],
                    lo,
                    hi,
                )
            env = {axis: coordinate(axis, lo, hi) for axis, lo, hi in item.where}
            operands = [self._part_of(part, env) for part in item.operands]
            rel: Rel
            if item.op == "+":
                rel = self._values.gathered(tuple(part[0] for part in operands if is_rel(part)))
            elif item.op == "full":
                rel = self._values.filled(item.attrs["fill_value"], item.shape, item.dtype)
            else:
                made = self._values.make(Op(item.op, (), (), attrs), operands)
                rel = made[item.out]
                if item.op == "cat" and rel is not None and not self._is_whole(rel):
                    # One part several times reads as places of it that repeat. Joined as they stand they are
                    # a value as well: the same elements, and each place may then be an addend of its own.
                    rel = self._values.as_joined(dict(item.attrs), operands)
            need(rel is not None and len(rel) == 1, "{} is no value", item.label)
            self._values.names[item.label] = rel

    def _is_whole(self, rel: Rel) -> bool:
        return rel is not None and all(self._values.is_whole(node, reg) for _, node, reg, _ in rel)

    def _part_of(self, part: Any, env: Mapping[str, Any]) -> Any:
        if part is None:
            return None
        if len(part) == 4:
            coef, label, dims, limit = part
            return (self.term(coef, label, dims, limit, env),)
        return _number(*part)

    def term(
        self, coef: Fraction, label: str, dims: tuple[Runs, ...], limit: Any, env: Mapping[str, Any] = NOWHERE
    ) -> Term:
        """A term; `env` says which coordinates the ends of its runs may name."""
        by, node, outer, _ = self.one(label)
        need(self._values.is_whole(node, outer), "{} is no whole value", label)
        reg = self._reg(dims, env, self._values.defs[node], label)
        found = None
        if limit is not None:
            found = self._limit(limit, env)
            need(self._values.sound(node, found), "{} has no such addend", label)
        coef = coef if by is ONE else coef * by
        return ONE if coef == 1 else coef, node, reg, found

    def _reg(self, dims: tuple[Runs, ...], env: Mapping[str, Any], item: Def, label: str) -> Reg:
        """A part of a class, as it is spelled; the same one over again is one object."""
        names = self._names.get(dims)
        if names is None:
            ends = [end for runs in dims for run in runs for end in run if not isinstance(end, int)]
            names = self._names[dims] = tuple(sorted({name for end in ends for name in end.names}))
        key = (dims, item.shape, item.free, tuple([env.get(name) for name in names]))
        if key not in self._spelled:
            reg = tuple(self._index(runs, env) for runs in dims)
            inside = len(reg) == len(item.shape) and all(
                dim in item.free or at.stop <= n
                for dim, (at, n) in enumerate(zip(reg, item.shape, strict=True))
            )
            need(inside, "{} has no such part", label)
            self._spelled[key] = spelled(item, reg)
        return self._spelled[key]

    def _index(self, runs: Runs, env: Mapping[str, Any]) -> Index:
        """Runs where the coordinates are; the same runs over again are worked out once."""
        names = {label for run in runs for end in run if not isinstance(end, int) for label in end.names}
        key = (runs, tuple((label, env.get(label)) for label in sorted(names)))
        if key not in self._spots:
            self._spots[key] = _index(runs, env)
        return self._spots[key]

    def _limit(self, limit: Any, env: Mapping[str, Any]) -> Limit:
        """A limit with the parts of sums by class."""
        if limit is None:
            return None
        through = [
            (self.one(key)[1] if isinstance(key, str) else key, self._limit(inner, env))
            for key, inner in limit[1]
        ]
        need(len(dict(through)) == len(through), "a limit through one operand twice")
        shares = {self._letter(letter): self._index(runs, env) for letter, runs in limit[0]}
        need(len(shares) == len(limit[0]), "a letter twice")
        return tuple(sorted(shares.items(), key=lambda pair: pair[0])), tuple(
            sorted(through, key=lambda pair: pair[0])
        )

    def _letter(self, letter: str) -> str:
        """A letter that names a tensor of indices, by its class."""
        if not letter.startswith("?"):
            return letter
        by, node, reg, _ = self.one(letter[1:])
        need(by == 1 and self._values.is_whole(node, reg), "{} is no index", letter[:80])
        return f"?{node}"

    def one(self, label: str) -> Term:
        """A value of the Program's or the certificate's by name, as one term."""
        rel = self._values.named(label)
        return rel[0] if rel is not None and len(rel) == 1 else refuse(f"{label} is no one value")


def _index(runs: Runs, env: Mapping[str, Any]) -> Index:
    """Runs with their ends where the coordinates are; spelled as they must be at every place."""
    ends = [(evaluate(lo, env), evaluate(hi, env)) for lo, hi in runs]
    for at, (lo, hi) in enumerate(ends):
        need(0 <= lo < hi and (not at or lo != ends[at - 1][1]), "runs that are empty, or one run as two")
    return Index(tuple(ends))


def _number(kind: str, text: str) -> Any:
    known: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda at: at == "True"}
    return known[kind](text)
