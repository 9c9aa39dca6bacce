"""The frozen records a Program is made of; Plans share Op, For, Call and Block.

A Program says what must be computed and nothing of where. Everything is single-assignment: an Op
reads values and makes new ones. Control flow is For and Call over integer expressions, nothing
else, so expanding an entry with its parameters bound gives one finite list of ops, and on that list
meaning is defined (`_walk.py`). Records hold no weights, no code and no framework objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tensure.errors import LimitError, RecordError

from ._affine import Affine
from ._expr import Env, Expr, Int, evaluate, expr, parse_int
from ._lex import Line

MAX_MEMBERS: Final = 1 << 20
MAX_LETTERS: Final = 8
MAX_KEPT: Final = 1 << 14

Attr: TypeAlias = bool | int | float | str | Expr | tuple["Attr", ...] | None
Attrs: TypeAlias = tuple[tuple[str, Attr], ...]
"""Sorted by name, so that equal ops are equal records."""


@dataclass(frozen=True, slots=True)
class Name:
    """A value's name: one member `base[index, ...]` of an indexed family, or a plain `base`."""

    base: str
    index: tuple[Int, ...] = ()

    def __str__(self) -> str:
        return f"{self.base}[{','.join(map(str, self.index))}]" if self.index else self.base

    def ground(self, env: Env) -> Name:
        """The same name with every index an integer."""
        for part in self.index:
            if isinstance(part, Expr):
                return Name(self.base, _kept(tuple([evaluate(part, env) for part in self.index])))
        return self

    def members(self) -> tuple[int, ...]:
        """The integers of a ground name."""
        return tuple([part for part in self.index if isinstance(part, (int, Affine))])


_INDICES: Final[dict[tuple[int, ...], tuple[int, ...]]] = {}


def _kept(index: tuple[int, ...]) -> tuple[int, ...]:
    """The same indices as one object: many names of an expansion have them."""
    for part in index:
        if type(part) is not int:  # expressions of two kinds may be equal, and are not the same
            return index
    if len(_INDICES) >= MAX_KEPT:
        _INDICES.clear()
    return _INDICES.setdefault(index, index)


@dataclass(frozen=True, slots=True)
class Ref:
    """Read one value, or the box of it given by (dim, start, stop) triples in rising dim order."""

    name: Name
    box: tuple[tuple[int, Int, Int], ...] = ()


@dataclass(frozen=True, slots=True)
class Cat:
    """Read several values as one operand, joined along `dim`. No copy is implied."""

    dim: int
    parts: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Each:
    """Splice `item` for every value of `var` in lo..hi (hi excluded) into the surrounding list."""

    var: str
    lo: Int
    hi: Int
    item: Arg


Arg: TypeAlias = Ref | Cat | Each | Expr | int | float | bool | None
"""An operand: a read, a number, an integer expression, or None for an optional operand left out."""


@dataclass(frozen=True, slots=True)
class Op:
    """One single-assignment step: `outs = op(args) attrs`.

    `op` names an entry of the op table (ATen's name wherever ATen has the op). `note` carries
    kernel, precision, lane and source line; it never changes meaning and is outside the digest.
    """

    op: str
    args: tuple[Arg, ...]
    outs: tuple[Name, ...]
    attrs: Attrs = ()
    note: Attrs = ()

    def attr(self, name: str, default: Attr = None) -> Attr:
        """One attribute by name."""
        return next((value for key, value in self.attrs if key == name), default)

    def reads(self) -> Iterator[Ref]:
        """Every Ref among the operands, inside Cat and Each too."""
        return _reads(self.args)


@dataclass(frozen=True, slots=True)
class For:
    """Repeat the body for var in lo..hi (hi excluded)."""

    var: str
    lo: Int
    hi: Int
    body: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """The body of a block with its parameters bound."""

    block: str
    args: tuple[Int, ...] = ()


Item: TypeAlias = Op | For | Call
Body: TypeAlias = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A named body with integer parameters; other names in it are bound where it is called."""

    params: tuple[str, ...]
    body: Body


Role: TypeAlias = Literal["weight", "state", "value"]
ROLES: Final[tuple[Role, ...]] = ("weight", "state", "value")


@dataclass(frozen=True, slots=True)
class Value:
    """The type of one family of tensors; `params` are (letter, extent) with 0 <= letter < extent.

    `order` lists the dims as stored, outermost first; None means as the shape says. Values that are
    neither weights, states nor entry inputs may be left out: their type follows from the ops.
    """

    shape: tuple[Int, ...]
    dtype: str = "f32"
    role: Role = "value"
    params: tuple[tuple[str, Int], ...] = ()
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What an invocation carries on: family `before` goes in, `after` comes out and is the next before.

    Same shape and dtype. The names may use the letters of `params`, as Value's do.
    """

    before: Name
    after: Name
    params: tuple[tuple[str, Int], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to invoke a Program (prefill, decode, a train step); entries share weights and states.

    `params` are the integers an invocation supplies, as (name, lo, hi) with lo <= value < hi; a
    bound may use axes and earlier params. `fixed` binds further names. Shapes of inputs and states
    may mention all of them.
    """

    inputs: tuple[Name, ...]
    body: Body
    outputs: tuple[Name, ...]
    states: tuple[State, ...] = ()
    params: tuple[tuple[str, Int, Int], ...] = ()
    fixed: tuple[tuple[str, Int], ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What must be computed: immutable, canonical, digestible.

    Args:
        axes: named sizes.
        values: types by family base; every weight, state and entry input stands here.
        blocks: bodies by name.
        entries: at least one.
    """

    axes: Mapping[str, int] = field(default_factory=dict[str, int])
    values: Mapping[str, Value] = field(default_factory=dict[str, Value])
    blocks: Mapping[str, Block] = field(default_factory=dict[str, Block])
    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])

    def __hash__(self) -> int:
        return hash((tuple(self.values), tuple(self.entries)))

    def entry(self, name: str | None = None) -> Entry:
        """An entry by name; without a name, the only or first one."""
        if name is None:
            return next(iter(self.entries.values()))
        if name not in self.entries:
            raise RecordError(f"no entry {name!r}", wanted=f"one of {', '.join(self.entries)}")
        return self.entries[name]

    def weights(self) -> dict[str, Value]:
        """The weight families by base, in order of declaration."""
        return {base: value for base, value in self.values.items() if value.role == "weight"}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of one concrete tensor."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def op(
    kind: str,
    *args: Arg | Name | str,
    out: str | Name | tuple[str | Name, ...] = (),
    note: Attrs = (),
    **attrs: object,
) -> Op:
    """Build an Op: strings among `args` and `out` are parsed as names, lists become tuples, attrs are sorted.

    A string attribute stays a string; pass `expr("pos+1")` for an expression.
    """
    outs = out if isinstance(out, tuple) else (out,)
    return Op(
        kind,
        tuple(Ref(name(arg)) if isinstance(arg, (str, Name)) else arg for arg in args),
        tuple(name(item) for item in outs),
        tuple(sorted((key, _attr(value)) for key, value in attrs.items())),
        note,
    )


def name(text: str | Name) -> Name:
    """Parse `q[l,mb]` into a Name."""
    if isinstance(text, Name):
        return text
    line = Line(text)
    base = line.name()
    index: list[Int] = []
    if line.take("["):
        index.append(parse_int(line))
        while line.take(","):
            index.append(parse_int(line))
        line.expect("]")
    line.end()
    return Name(base, tuple(index))


def ref(text: str | Name, *box: tuple[int, Int | str, Int | str]) -> Ref:
    """Build a Ref: `ref("K2[l]", (0, 0, "pos+1"))` reads rows 0..pos+1."""
    return Ref(
        name(text), tuple((dim, _int(lo), _int(hi)) for dim, lo, hi in sorted(box, key=lambda side: side[0]))
    )


def family(base: str, params: tuple[tuple[str, Int], ...], env: Env) -> Iterator[tuple[Name, dict[str, int]]]:
    """Every member of a family with its letters bound, the last letter fastest.

    Raises:
        LimitError: over 2^20 members.
    """

    def members(at: int, bound: dict[str, int]) -> Iterator[dict[str, int]]:
        if at == len(params):
            yield bound
            return
        letter, extent = params[at]
        size = evaluate(extent, {**env, **bound})
        if size > MAX_MEMBERS:
            raise LimitError(f"{size} members of {base or letter!r}", wanted=f"at most {MAX_MEMBERS}")
        for i in range(size):
            yield from members(at + 1, {**bound, letter: i})

    if len(params) > MAX_LETTERS:
        raise LimitError(f"{base!r} has {len(params)} letters", wanted=f"at most {MAX_LETTERS}")
    for count, binding in enumerate(members(0, {})):
        if count == MAX_MEMBERS:
            raise LimitError(f"over {MAX_MEMBERS} members of {base!r}")
        yield Name(base, tuple(binding.values())), binding


def _attr(value: object) -> Attr:
    if isinstance(value, (list, tuple)):
        return tuple(_attr(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if value is None or isinstance(value, (bool, int, float, str, Expr)):
        return value
    raise RecordError(
        f"an attribute of type {type(value).__name__}",
        wanted="none, bool, int, float, str, expression or a list of them",
    )


def _int(value: Int | str) -> Int:
    return expr(value) if isinstance(value, str) else value


def _reads(args: tuple[Arg, ...]) -> Iterator[Ref]:
    for arg in args:
        if isinstance(arg, Ref):
            yield arg
        elif isinstance(arg, Cat):
            yield from _reads(arg.parts)
        elif isinstance(arg, Each):
            yield from _reads((arg.item,))
