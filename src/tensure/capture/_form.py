"""Sums of multiples of mesh coordinates, floors of such sums among them, and questions about them.

What a watched number is an expression of. Arithmetic with floors stays exact; where bounds allow it, a floor
goes away: `(8 * dp + tp) // 8` is `dp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = ["ASKED", "Condition", "Form", "Quotient"]


@dataclass(frozen=True, slots=True)
class Quotient:
    """The floor of a form over a positive number, where it is no form itself."""

    of: Form
    by: int


Atom: TypeAlias = "str | Quotient"


@dataclass(frozen=True, slots=True)
class Form:
    """A constant plus multiples of mesh coordinates and of quotients of such sums."""

    const: int
    terms: tuple[tuple[Atom, int], ...] = ()

    def value(self, at: Mapping[str, Any]) -> Any:
        """Under coordinates: numbers, or arrays that broadcast."""
        total: Any = self.const
        for atom, factor in self.terms:
            found = at[atom] if isinstance(atom, str) else atom.of.value(at) // atom.by
            total = total + factor * found
        return total

    def range(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Bounds on its values, both inclusive."""
        low = high = self.const
        for atom, factor in self.terms:
            if isinstance(atom, str):
                first, last = 0, sizes[atom] - 1
            else:
                first, last = (bound // atom.by for bound in atom.of.range(sizes))
            ends = (factor * first, factor * last)
            low, high = low + min(ends), high + max(ends)
        return low, high

    def axes(self) -> frozenset[str]:
        """Every coordinate that it mentions."""
        found: frozenset[str] = frozenset()
        for atom, _ in self.terms:
            found |= {atom} if isinstance(atom, str) else atom.of.axes()
        return found

    def plus(self, other: Form, factor: int = 1) -> Form:
        """The sum with a multiple of another."""
        total = dict(self.terms)
        for atom, by in other.terms:
            total[atom] = total.get(atom, 0) + factor * by
        return _form(self.const + factor * other.const, total)

    def times(self, factor: int) -> Form:
        """A multiple."""
        return _form(self.const * factor, {atom: by * factor for atom, by in self.terms})

    def over(self, by: int, sizes: Mapping[str, int]) -> Form:
        """The floor of it over a positive number; a form without quotients where bounds allow it."""
        even = {atom: factor // by for atom, factor in self.terms if factor % by == 0}
        rest = _form(self.const % by, {atom: factor for atom, factor in self.terms if factor % by})
        low, high = rest.range(sizes)
        if low // by == high // by:
            return _form(self.const // by + low // by, even)
        rest_over = Quotient(rest, by)
        return _form(self.const // by, {**even, rest_over: even.get(rest_over, 0) + 1})

    def quotients(self) -> tuple[Quotient, ...]:
        """Those in it, inner ones first."""
        found: list[Quotient] = []
        for atom, _ in self.terms:
            if isinstance(atom, Quotient):
                found.extend((*atom.of.quotients(), atom))
        return tuple(found)

    def __str__(self) -> str:
        parts = [
            f"{'' if factor == 1 else f'{factor}*'}"
            + (atom if isinstance(atom, str) else f"({atom.of})//{atom.by}")
            for atom, factor in self.terms
        ]
        return "+".join([*parts, *([str(self.const)] if self.const or not parts else [])])


def _form(const: int, terms: Mapping[Atom, int]) -> Form:
    kept = sorted(((atom, by) for atom, by in terms.items() if by), key=lambda item: repr(item[0]))
    return Form(const, tuple(kept))


@dataclass(frozen=True, slots=True)
class Condition:
    """What was asked of a form, and the answer that the rank being traced got."""

    form: Form
    op: str
    """`==`, `<`, `<=`."""
    number: int | float
    outcome: bool

    def holds(self, at: Mapping[str, Any]) -> Any:
        """Whether ranks at these coordinates (numbers, or arrays) get the same answer."""
        return ASKED[self.op](self.form.value(at), self.number) == self.outcome

    def __str__(self) -> str:
        return f"{self.form}{self.op}{self.number} {'holds' if self.outcome else 'does not hold'}"


ASKED: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": lambda one, other: one == other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
}
