"""Run Program and Plan side by side in one domain of values and compare every claim, in order of production.

The domain says what a value is: float64 and integers (a concrete replay) or elements of a finite field.
One invocation on drawn inputs, weights and before-states; not a proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

from tensure.bundle import Placed, Plan, PlanMachine, Rank, sum_group
from tensure.errors import LimitError, RecordError, TensureError, UnsupportedError
from tensure.program import Arg, Cat, Name, Op, Program, Ref, TensorType, expand, leaves

from ._index import Region, members
from ._multiples import Multiple, common_multiple

Standing: TypeAlias = "Mapping[tuple[str, str], tuple[str, Region]]"
"""By rank and local: a value of the Program's, and the part of it."""


class Domain(Protocol):
    """What a value is and what ops make of it."""

    def draw(self, label: str, want: TensorType) -> Any:
        """A random value of a type."""
        ...

    def run(self, step: Op, operands: list[Any]) -> list[Any]:
        """One local op."""
        ...

    def meet(self, step: Op, members: list[Any]) -> list[Any]:
        """One collective."""
        ...

    def take(self, value: Any, dim: int, indices: list[int]) -> Any:
        """Some indices of a dim."""
        ...

    def join(self, dim: int, values: list[Any]) -> Any:
        """Values one after another."""
        ...

    def shape(self, value: Any) -> tuple[int, ...]:
        """Its shape."""
        ...

    def add(self, one: Any, other: Any) -> Any:
        """A sum."""
        ...

    def scale(self, value: Any, by: Fraction) -> Any:
        """A multiple."""
        ...

    def difference(self, have: Any, want: Any) -> tuple[int, ...] | None:
        """The first index where they differ."""
        ...

    def multiple(self, have: Any, want: Any) -> Multiple | None:
        """By what one number they differ, if that can be told."""
        ...

    def turn(self) -> None:
        """The Program has run; what comes now is the Plan."""
        ...


@dataclass(frozen=True, slots=True)
class Wrong:
    """A claim that does not hold on the drawn values."""

    order: int
    rank: Rank
    name: Name
    claim: Placed
    index: tuple[int, ...]
    step: Op | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Wrong claims in order of production; why the Plan could not go on, if so; addends left unchecked.

    `factors` has by what number a value is off, wherever it is claimed, by its name.
    """

    wrong: tuple[Wrong, ...]
    error: TensureError | None
    pinned: int
    factors: Mapping[str, Fraction]


def compare(
    plan: Plan,
    program: Program,
    entry: str,
    env: Mapping[str, int],
    domain: Domain,
    standing: Standing | None = None,
) -> Comparison:
    """Draw values, run both, compare.

    Args:
        standing: by rank and local as they are printed, which random numbers of the Program's a rank's are;
            if not given, they are the rank's own.

    Raises:
        UnsupportedError, LimitError: the domain cannot run them.
        RecordError: the Program refuses the drawn values.
    """
    logical: dict[str, Any] = {}
    for label, want, _ in leaves(program, entry, env):
        logical[label] = domain.draw(label, want)
    for step in expand(program.blocks, program.entry(entry).body, env):
        operands = [_read(domain, arg, lambda ref: logical[str(ref.name)]) for arg in step.args]
        for out, result in zip(step.outs, domain.run(step, operands), strict=True):
            logical[str(out)] = result
    domain.turn()
    machine = _Both(plan, program, entry, env, logical, domain, standing)
    error: TensureError | None = None
    try:
        machine.go()
    except (UnsupportedError, LimitError):
        raise
    except TensureError as found:
        error = found
    else:
        machine.close()
    common = {label: common_multiple(parts) for label, parts in machine.multiples.items()}
    factors = {label: factor for label, factor in common.items() if factor is not None and error is None}
    wrong = tuple(sorted(machine.wrong, key=lambda item: item.order))
    return Comparison(wrong, error, machine.pinned, factors)


class _Both(PlanMachine[Any]):
    """The Plan's values, each held against its claim as it comes to be."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        logical: Mapping[str, Any],
        domain: Domain,
        standing: Standing | None,
    ) -> None:
        super().__init__(plan, program, entry, env)
        self.logical, self.domain, self.standing = logical, domain, standing
        self.wrong: list[Wrong] = []
        self.pinned = 0
        self.multiples: dict[str, list[Multiple]] = {}
        self._count = 0
        self._step: Op | None = None
        self._sums: dict[tuple[object, ...], tuple[Wrong, Any]] = {}

    def leaf(self, rank: Rank, name: Name, claim: Placed) -> Any:
        return self._part(claim)

    def operand(self, rank: Rank, arg: Arg) -> Any:
        return _read(self.domain, arg, lambda ref: self.find(rank, ref))

    def run(self, step: Op, operands: list[Any]) -> list[Any]:
        self._step = step
        return self.domain.run(step, operands)

    def compute(self, rank: Rank, step: Op) -> None:
        if step.op != "draw" or self.standing is None:
            super().compute(rank, step)
            return
        self._step = step
        found = self.standing.get((str(rank), str(step.outs[0])))
        if found is None:
            raise UnsupportedError(f"{rank} draws random numbers that stand for none of the model's")
        label, region = found
        value = self.logical[label]
        for dim, index in enumerate(region):
            value = self.domain.take(value, dim, members(index))
        self._make(rank, step, [value])

    def _check_call(self, rank: Rank, step: Op, operands: list[Any]) -> None:
        typed = [item if _plain(item) else TensorType(self.domain.shape(item), "f64") for item in operands]
        super()._check_call(rank, step, typed)

    def recv(self, rank: Rank, step: Op, payload: Any) -> None:
        self._step = step
        super().recv(rank, step, payload)

    def meet(self, step: Op, members: list[Any]) -> list[Any]:
        self._step = step
        return self.domain.meet(step, members)

    def keep(self, rank: Rank, name: Name, value: Any) -> None:
        self._count += 1
        local = self.plan.local(rank.track, name.base)
        claim = self.claim(rank, name) if local is not None else None
        if local is None or claim is None:
            return
        made = Wrong(self._count, rank, name, claim, (), self._step)
        if claim.over is not None:
            self.pinned += 1
        elif claim.sum:
            key = sum_group(self.plan, rank, local, name, claim)
            if key in self._sums:
                _, before = self._sums[key]  # a sum comes to be with its last addend
                same = self.domain.shape(before) == self.domain.shape(value)
                self._sums[key] = (made, self.domain.add(before, value) if same else value)
            else:
                self._sums[key] = (made, value)
        else:
            self._hold(made, value)

    def close(self) -> None:
        """Sums, once all their addends are in."""
        for made, value in self._sums.values():
            self._hold(made, value)

    def _hold(self, made: Wrong, value: Any) -> None:
        try:
            want = self._part(made.claim)
        except RecordError:
            self.wrong.append(made)
            return
        if made.claim.scale != 1:
            want = self.domain.scale(want, made.claim.scale)
        multiple = self.domain.multiple(value, want)
        if multiple is not None:
            self.multiples.setdefault(made.claim.of.base, []).append(multiple)
        if self.domain.shape(want) != self.domain.shape(value):
            self.wrong.append(made)
            return
        index = self.domain.difference(value, want)
        if index is not None:
            self.wrong.append(Wrong(made.order, made.rank, made.name, made.claim, index, made.step))

    def _part(self, claim: Placed) -> Any:
        if str(claim.of) not in self.logical:
            raise RecordError(f"the program never makes {claim.of}")
        value = self.logical[str(claim.of)]
        for dim, indices in claim.dims.items():
            shape = self.domain.shape(value)
            if dim >= len(shape) or (indices and max(indices) >= shape[dim]):
                raise RecordError(f"a part of {claim.of} that does not exist")
            value = self.domain.take(value, dim, list(indices))
        return value


def _read(domain: Domain, arg: Arg, get: Any) -> Any:
    if isinstance(arg, Ref):
        value = get(arg)
        for dim, lo, hi in arg.box:
            shape = domain.shape(value)
            if dim >= len(shape) or not 0 <= int(str(lo)) <= int(str(hi)) <= shape[dim]:
                raise RecordError(f"box {lo}:{hi} of dim {dim} leaves {arg.name}")
            value = domain.take(value, dim, list(range(int(str(lo)), int(str(hi)))))
        return value
    if isinstance(arg, Cat):
        parts = [_read(domain, part, get) for part in arg.parts]
        shapes = [domain.shape(part) for part in parts if part is not None]
        if not parts or len(shapes) != len(parts) or len({_but(shape, arg.dim) for shape in shapes}) != 1:
            raise RecordError("cat of values that do not fit")
        return domain.join(arg.dim, parts)
    return arg


def _plain(item: Any) -> bool:
    return item is None or isinstance(item, (bool, int, float))


def _but(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], -len(shape), *shape[dim + 1 :])
