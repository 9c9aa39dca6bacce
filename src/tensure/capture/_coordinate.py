"""Numbers that say where a rank stands, watched: whoever looks at one leaves a condition behind.

A `Coordinate` is what code gets in place of a rank or a mesh coordinate. It is the concrete number of the
rank being traced and an expression of the mesh's coordinates. Arithmetic makes further ones. A comparison
answers, and notes what was asked and what the answer was; ranks that would get the same answers run the same
code. Whatever turns it into a plain number pins it: expression == number. It is no `int`, since C code
would read one unseen.

Knows no torch.
"""

from __future__ import annotations

import opcode
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from ._form import ASKED, Condition, Form
from ._ours import is_ours

__all__ = [
    "Coordinate",
    "Reads",
    "is_coordinate",
    "line_of_user",
    "softened",
]

_CALLS: Final = {
    opcode.opmap[name] for name in ("CALL", "PRECALL", "CALL_FUNCTION_EX", "CALL_KW") if name in opcode.opmap
}


@dataclass(slots=True)
class Reads:
    """What the code of one rank has asked of its place so far.

    Args:
        sizes: of the mesh's axes.
        place: the rank's coordinates.
    """

    sizes: dict[str, int]
    place: dict[str, int]
    conditions: dict[Condition, str] = field(default_factory=dict[Condition, str])
    """What was asked, and the first line that asked it."""
    soft: dict[str, str] = field(default_factory=dict[str, str])
    """Axes whose coordinate went into torch as a plain number, and the first line where."""
    _pending: list[tuple[tuple[int, int], int, Condition]] = field(
        default_factory=list["tuple[tuple[int, int], int, Condition]"]
    )

    def number(self, form: Form) -> Any:
        """A Coordinate, or the plain number that is the same everywhere."""
        return Coordinate(self, form) if form.terms else form.const

    def axis(self, name: str) -> Any:
        """One coordinate of this rank."""
        return self.number(Form(0, ((name, 1),)))

    def ask(self, form: Form, op: str, number: float) -> bool:
        """Answer, and note the answer unless every rank gets the same."""
        answer = bool(ASKED[op](form.value(self.place), number))
        low, high = form.range(self.sizes)
        if op == "==" and not low <= number <= high:
            return False
        if op != "==" and ASKED[op](low, number) == ASKED[op](high, number):
            return answer
        if low != high:
            found = Condition(Form(0, form.terms), op, number - form.const, answer)
            self.conditions.setdefault(found, line_of_user())
        return answer

    def pin(self, form: Form) -> int:
        """The plain number; only ranks with this one go the same way."""
        value = int(form.value(self.place))
        self.ask(form, "==", value)
        return value

    def soften(self, form: Form) -> int:
        """The plain number, for torch: it reaches the trace as an integer, to be lifted again.

        Quotients are pinned, so that within a class it is a sum of multiples of coordinates.
        """
        for quotient in form.quotients():
            self.pin(Form(0, ((quotient, 1),)))
        for atom, _ in form.terms:
            if isinstance(atom, str):
                self.note(atom)
        return int(form.value(self.place))

    def add_axis(self, name: str, size: int, at: int) -> None:
        """One more coordinate."""
        self.sizes[name], self.place[name] = size, at

    def note(self, *axes: str) -> None:
        """Torch itself was told a coordinate along these axes."""
        for name in axes:
            if self.sizes[name] > 1:
                self.soft.setdefault(name, line_of_user())

    # C code may ask for a plain number before it asks torch's function modes what to do

    def pin_by_c(self, read: Coordinate, frame: FrameType) -> int:
        """As `pin`, on behalf of a call in C that this frame is making."""
        known = len(self.conditions)
        value = self.pin(read.form)
        call = (id(frame), frame.f_lasti)
        if frame.f_code.co_code[frame.f_lasti] not in _CALLS:
            self._pending.clear()
            return value
        if self._pending and self._pending[0][0] != call:
            self._pending.clear()
        if len(self.conditions) > known:
            self._pending.append((call, id(read), next(reversed(self.conditions))))
        return value

    def unpin(self, reads: list[Coordinate], frame: FrameType) -> None:
        """The call in C that this frame is making was torch's: it only asked if these are numbers."""
        call, ids = (id(frame), frame.f_lasti), {id(read) for read in reads}
        for where, read, condition in self._pending:
            if where == call and read in ids:
                self.conditions.pop(condition, None)
        self._pending.clear()


def is_coordinate(value: object) -> bool:
    """Whether it is watched; `isinstance` would take it for an int."""
    return type(value) is Coordinate


class Coordinate:
    """A number of the rank being traced that knows how it follows from the rank's place."""

    __slots__ = ("form", "reads")

    def __init__(self, reads: Reads, form: Form) -> None:
        self.reads, self.form = reads, form

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Code that asks for a number shall find one."""
        return int

    # arithmetic --------------------------------------------------------------------------------------

    def _with(self, other: Any, sign: int, own: int = 1) -> Any:
        form = _as_form(other)
        if form is None:
            return NotImplemented
        if isinstance(form, float):
            return own * int(self) + sign * form
        return self.reads.number(self.form.times(own).plus(form, sign))

    def __add__(self, other: Any) -> Any:
        return self._with(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._with(other, -1)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, 1, -1)

    def __mul__(self, other: Any) -> Any:
        form = _as_form(other)
        if form is None:
            return NotImplemented
        if isinstance(form, float):
            return int(self) * form
        if form.terms:
            return self * self.reads.pin(form)
        return self.reads.number(self.form.times(form.const))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        by = _as_form(other)
        if by is None:
            return NotImplemented
        if isinstance(by, float):
            return int(self) // by
        number = self.reads.pin(by) if by.terms else by.const
        if number <= 0:
            return int(self) // number
        return self.reads.number(self.form.over(number, self.reads.sizes))

    def __mod__(self, other: Any) -> Any:
        by = _as_form(other)
        if by is None:
            return NotImplemented
        if isinstance(by, float):
            return int(self) % by
        number = self.reads.pin(by) if by.terms else by.const
        if number <= 0:
            return int(self) % number
        whole = self.form.over(number, self.reads.sizes)
        return self.reads.number(self.form.plus(whole, -number))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __neg__(self) -> Any:
        return self.reads.number(self.form.times(-1))

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << int(other))

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << int(other))

    def __and__(self, other: Any) -> Any:
        is_low = type(other) is int and other >= 0 and other & (other + 1) == 0
        return self % (other + 1) if is_low else int(self) & other

    def __pow__(self, other: Any, mod: Any = None) -> Any:
        return pow(int(self), other, mod)

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None else round(int(self), digits)

    __trunc__ = __floor__ = __ceil__ = __pos__

    # questions ---------------------------------------------------------------------------------------

    def _ask(self, other: Any, op: str) -> Any:
        form = _as_form(other)
        if form is None:
            return NotImplemented
        if isinstance(form, float):
            return self.reads.ask(self.form, op, form)
        left = self.form.plus(form, -1)
        return self.reads.ask(Form(0, left.terms), op, -left.const)

    def __eq__(self, other: object) -> Any:
        return self._ask(other, "==")

    def __ne__(self, other: object) -> Any:
        found = self._ask(other, "==")
        return found if found is NotImplemented else not found

    def __lt__(self, other: Any) -> Any:
        return self._ask(other, "<")

    def __le__(self, other: Any) -> Any:
        return self._ask(other, "<=")

    def __gt__(self, other: Any) -> Any:
        found = self._ask(other, "<=")
        return found if found is NotImplemented else not found

    def __ge__(self, other: Any) -> Any:
        found = self._ask(other, "<")
        return found if found is NotImplemented else not found

    def __bool__(self) -> bool:
        return not self.reads.ask(self.form, "==", 0)

    # what turns it into a plain number, and pins it -----------------------------------------------------

    def __index__(self) -> int:
        return self.reads.pin_by_c(self, sys._getframe(1))

    def __int__(self) -> int:
        return self.reads.pin(self.form)

    def __float__(self) -> float:
        return float(self.reads.pin(self.form))

    def __complex__(self) -> complex:
        return complex(self.reads.pin(self.form))

    def __hash__(self) -> int:
        return hash(self.reads.pin(self.form))

    def __str__(self) -> str:
        return str(self.reads.pin(self.form))

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(self.reads.pin(self.form), spec)

    def __reduce__(self) -> Any:
        return int, (self.reads.pin(self.form),)

    def __copy__(self) -> Coordinate:
        return self

    def __deepcopy__(self, _memo: Any) -> Coordinate:
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """That there is one lets torch ask what to do, where it would refuse what is no number."""
        return func(*softened(args, []), **softened(dict(kwargs or {}), []))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reads.pin(self.form), name)


def softened(value: Any, found: list[Coordinate]) -> Any:
    """The same with plain numbers, noted; lists and dicts that hold no Coordinate stay who they are.

    Args:
        value: an argument of torch's, or many.
        found: what was replaced is added.
    """
    kind = type(value)
    if kind is Coordinate:
        found.append(value)
        return value.reads.soften(value.form)
    if kind is slice:
        return slice(*(softened(item, found) for item in (value.start, value.stop, value.step)))
    if kind is dict:
        made = {key: softened(item, found) for key, item in value.items()}
        return made if any(made[key] is not item for key, item in value.items()) else value
    if isinstance(value, (tuple, list)) and kind.__module__ in ("builtins", "torch"):
        items = [softened(item, found) for item in value]
        if all(one is other for one, other in zip(items, value, strict=True)):
            return value
        return items if kind is list else tuple(items)
    return value


def _by_number(name: str) -> Callable[[Coordinate, Any], Any]:
    """An operator of plain numbers."""

    def apply(own: Coordinate, other: Any) -> Any:
        return getattr(own.reads.pin(own.form), name)(int(other) if is_coordinate(other) else other)

    return apply


for _name in (
    "truediv rtruediv rfloordiv rmod rdivmod rpow or ror xor rxor rand rlshift rrshift".split()
):  # fmt: skip
    setattr(Coordinate, f"__{_name}__", _by_number(f"__{_name}__"))


def _as_form(value: Any) -> Form | float | None:
    """An operand; None for what is no number, which then decides what happens."""
    if type(value) is Coordinate:
        return value.form
    if isinstance(value, int):
        return Form(int(value))
    if isinstance(value, float):
        return float(value)
    kind = type(value)
    return Form(int(value)) if kind.__module__ == "numpy" and hasattr(kind, "__index__") else None


def line_of_user() -> str:
    """`file.py:12` of the innermost frame that is neither ours nor torch's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not is_ours(path) and not path.startswith("<") and f"{os.sep}torch{os.sep}" not in path:
            return f"{os.path.basename(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return "somewhere"
