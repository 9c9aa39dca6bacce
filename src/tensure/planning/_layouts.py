"""Algorithm and layout of every convolution of an entry: the cheapest path through the steps.

Each step that makes an image may make it in any of the layouts; an operand that lies otherwise is moved
first, at a cost. Walking the steps in order, a state is the layout of every image that is still read later;
of all ways to reach a state only the cheapest is kept, so that the last state's cost is the least of all (up
to MAX_STATES, beyond which the dearest states are dropped). Costs come from `choose_conv` and from measured
moves; steps that are no convolution cost their bytes.

Knows planned steps and prices. Does not know how a price is found, nor how a step is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from tensure.kernels import Conv
from tensure.program import Program

from ._conv_choice import Accuracy, Choice, ConvProblem, MachineNumbers, Measure, choose_conv
from ._segments import ACTIVATIONS, plan_segment
from ._steps import ConvStep, Layout, MeanStep, MoveStep, PoolStep, Segment, Step

__all__ = ["LAYOUTS", "LayoutPlan", "MoveCost", "conv_problem", "plan_layouts"]

MAX_STATES: Final = 256
HOPELESS: Final = 1.3
"""A layout that the model puts this far behind NHWC is not measured."""
LAYOUTS: Final[tuple[Layout, ...]] = ("NHWC", "NCHW", "CHWN")

MoveCost: TypeAlias = Callable[[str, str, tuple[int, int, int, int]], float]


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """A segment with its choices.

    Args:
        segment: the steps, moves included.
        choices: by the value a convolution makes.
        seconds: what the path costs by the prices it was found with.
        plain_seconds: what NHWC throughout costs by the same prices.
        measured: whether the prices were measured.
    """

    segment: Segment
    choices: Mapping[str, Choice]
    seconds: float
    plain_seconds: float
    measured: bool

    @property
    def algorithms(self) -> dict[str, str]:
        """By the value a convolution makes."""
        return {name: choice.candidate.algorithm for name, choice in self.choices.items()}

    def explain(self) -> str:
        """The choices in words, then the segment."""
        basis = "measured" if self.measured else "predicted, nothing was measured"
        found, plain = f"{1e3 * self.seconds:.3g} ms", f"{1e3 * self.plain_seconds:.3g} ms"
        lines = [f"{len(self.choices)} convolutions: {found} ({basis}), {plain} for NHWC throughout"]
        lines += [f"  {name}: {choice.reason}" for name, choice in self.choices.items()]
        return "\n".join(lines) + "\n" + self.segment.explain()


@dataclass(frozen=True, slots=True)
class _Path:
    """How a state was reached."""

    seconds: float
    lies: Mapping[str, Layout]
    """Of the images that are still read later."""
    made: Mapping[str, Layout] = field(default_factory=dict[str, Layout])
    """Of every step so far."""


def plan_layouts(
    program: Program,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    *,
    threads: int = 1,
    accuracy: Accuracy = "strict",
    machine: MachineNumbers | None = None,
    measure: Measure | None = None,
    move_cost: MoveCost | None = None,
    activations: frozenset[str] = ACTIVATIONS,
) -> LayoutPlan:
    """The entry's segment with the cheapest layouts.

    Args:
        program, entry, params, activations: as for `plan_segment`.
        threads: that prices are for.
        accuracy: the class that every convolution keeps to.
        machine: numbers for the model; a server core's when left out.
        measure: seconds of a candidate (`TuningCache.measure`); by the model alone when None.
        move_cost: seconds of a conversion (`TuningCache.move`); by bytes when None.

    Raises:
        as `plan_segment`.
    """
    numbers = machine or MachineNumbers()
    base = plan_segment(program, entry, params, activations=activations)
    prices = _Prices(base, numbers, threads, accuracy, measure, move_cost)
    # Moves are put in again for the layouts that are chosen; here they are the edges, not the nodes.
    steps = [step for step in base.steps if not isinstance(step, MoveStep)]
    best = _cheapest(base, steps, prices, LAYOUTS)
    plain = _cheapest(base, steps, prices, ("NHWC",))
    segment = plan_segment(program, entry, params, layouts=best.made, activations=activations)
    choices = {
        step.out: prices.choice(step, best.made[step.out]) for step in steps if isinstance(step, ConvStep)
    }
    return LayoutPlan(segment, choices, best.seconds, plain.seconds, measure is not None)


def _cheapest(base: Segment, steps: Sequence[Step], prices: _Prices, layouts: Sequence[Layout]) -> _Path:
    last = {prices.origin(name): at for at, step in enumerate(steps) for name in step.reads()}
    last.update({prices.origin(held): len(steps) for _, held in base.outputs})
    paths = [_Path(0.0, {})]
    for at, step in enumerate(steps):
        found: dict[tuple[tuple[str, Layout], ...], _Path] = {}
        for path in paths:
            for layout in layouts if _is_free(step, base) else (None,):
                after = _extend(path, step, layout, prices)
                live = {name: lies for name, lies in after.lies.items() if last.get(name, -1) > at}
                key = tuple(sorted(live.items()))
                if key not in found or after.seconds < found[key].seconds:
                    found[key] = _Path(after.seconds, live, after.made)
        paths = sorted(found.values(), key=lambda path: path.seconds)[:MAX_STATES]
    return min(paths, key=lambda path: path.seconds)


def _is_free(step: Step, base: Segment) -> bool:
    """Whether the planner may be told in which layout a step makes its value."""
    return isinstance(step, ConvStep | PoolStep) and len(base.values[step.out].shape) == 4


def _extend(path: _Path, step: Step, layout: Layout | None, prices: _Prices) -> _Path:
    seconds, lies = path.seconds, dict(path.lies)
    reads = [prices.origin(name) for name in step.reads()]
    settled: Layout = layout or (lies.get(reads[0], "NCHW") if reads else "NCHW")
    for name in reads:
        found = lies.get(name, "NCHW")  # inputs and weights are row-major
        wanted = settled
        if isinstance(step, MeanStep):
            wanted = "NHWC" if found == "CHWN" else found  # read where it lies, but for CHWN
        if found != wanted:
            seconds += prices.move(name, found, wanted)
            lies[name] = wanted  # moved once, read again for nothing
    seconds += prices.step(step, settled)
    if layout is None:
        return _Path(seconds, {**lies, step.out: settled}, path.made)
    return _Path(seconds, {**lies, step.out: layout}, {**path.made, step.out: layout})


class _Prices:
    """Seconds of steps and moves, each worked out once."""

    def __init__(
        self,
        base: Segment,
        machine: MachineNumbers,
        threads: int,
        accuracy: Accuracy,
        measure: Measure | None,
        move_cost: MoveCost | None,
    ) -> None:
        self._base, self._machine, self._threads = base, machine, threads
        self._accuracy: Accuracy = accuracy
        self._measure, self._move_cost = measure, move_cost
        self._known: dict[tuple[str, Layout], Choice] = {}
        self._moved = {step.out: step.x for step in base.steps if isinstance(step, MoveStep)}

    def origin(self, name: str) -> str:
        """The value that a moved one is a copy of."""
        while name in self._moved:
            name = self._moved[name]
        return name

    def choice(self, step: ConvStep, layout: Layout) -> Choice:
        """The best way to run a convolution in a layout."""
        problem = conv_problem(self._base, step)
        key = (problem.key(), layout)
        if key not in self._known:
            self._known[key] = self._choose(step, problem, layout)
        return self._known[key]

    def _choose(self, step: ConvStep, problem: ConvProblem, layout: Layout) -> Choice:
        by_model = self._by(problem, layout, None)
        if self._measure is None:
            return by_model
        if layout == "NHWC":
            return self._by(problem, layout, self._measure)
        base = self._by(problem, "NHWC", None)
        if by_model.seconds <= HOPELESS * base.seconds:
            return self._by(problem, layout, self._measure)
        # Not measured, but on the scale of what was.
        seconds = self.choice(step, "NHWC").seconds * by_model.seconds / base.seconds
        return replace(by_model, seconds=seconds)

    def _by(self, problem: ConvProblem, layout: Layout, measure: Measure | None) -> Choice:
        return choose_conv(
            problem,
            self._machine,
            threads=self._threads,
            accuracy=self._accuracy,
            layouts=(layout,),
            measure=measure,
        )

    def step(self, step: Step, layout: Layout) -> float:
        """Of the step by itself."""
        if isinstance(step, ConvStep):
            return self.choice(step, layout).seconds
        out = self._base.values.get(step.out)
        nbytes = sum(self._base.values[name].nbytes for name in step.reads()) + (
            0 if out is None else out.nbytes
        )
        # Cells of one float leave the lanes of a pool empty.
        slow = 8.0 if isinstance(step, PoolStep) and layout != "NHWC" else 1.0
        return slow * nbytes / self._machine.memory_bytes_per_s / self._threads

    def move(self, name: str, source: Layout, target: Layout) -> float:
        """Of bringing a value into another layout."""
        stored = self._base.values[name]
        if len(stored.shape) != 4:
            return 0.0
        n, c, h, w = stored.shape
        if self._move_cost is not None:
            return self._move_cost(source, target, (n, c, h, w))
        return 4.0 * stored.nbytes / self._machine.memory_bytes_per_s / self._threads


def conv_problem(segment: Segment, step: ConvStep) -> ConvProblem:
    """What a segment's convolution computes."""
    x, out = segment.values[step.x], segment.values[step.out]
    images, channels, height, width = x.shape
    window = step.window
    conv = Conv(
        channels, out.shape[1], window.kernel, window.stride, window.padding, window.dilation, step.groups
    )
    return ConvProblem(conv, images, height, width)
