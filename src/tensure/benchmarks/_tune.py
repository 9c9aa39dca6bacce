"""`conv-choice`: what choosing kernels costs, and what a choice loses against trying everything.

Two cases: planning a ResNet-50 with nothing remembered (every promising kernel timed anew), and 200 random
convolutions on which the chosen way is held against the fastest of all strict ways. Every way is timed in
two sweeps: one is what the chooser sees, the other judges, so that noise which misleads a choice costs it.
Regret is what the choice takes longer in the judge's sweep. No peers: nobody else has these choices.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias

from tensure.kernels import Conv
from tensure.planning import (
    Candidate,
    ConvProblem,
    MachineNumbers,
    TuningCache,
    candidates,
    choose_conv,
    measure_conv,
    plan_layouts,
)

from ._declare import benchmark
from ._records import Bar, Case, Engine, EngineError, Json, Measured, NotMeasured, Scope, Timing

if TYPE_CHECKING:
    from tensure.program import Program

__all__ = ["Seconds", "conv_choice", "draw_problem", "regret_bars", "regrets"]

Seconds: TypeAlias = Mapping[tuple[str, Candidate], float]
"""By problem and way, what one run takes."""

TUNING: Final = "plan a ResNet-50, kernels timed anew"
REGRET: Final = "choose for random convolutions"
SHAPES: Final = (200, 12)  # full, quick
LIMIT_FLOPS: Final = 1_500_000_000
SEED: Final = 20_240_801
TUNING_MS: Final = 2000.0
MOST_REGRET: Final = 0.05


def draw_problem(rng: random.Random) -> ConvProblem:
    """A convolution as networks have them, up to LIMIT_FLOPS."""
    while True:
        size = rng.choice([1, 1, 3, 3, 3, 5, 7])
        stride, side = rng.choice([1, 1, 1, 2]), rng.choice([7, 14, 20, 28, 56, 112])
        channels = rng.choice([1, 3, 8, 16, 24, 32, 48, 64, 96, 128, 256])
        filters, groups = rng.choice([8, 16, 24, 32, 40, 64, 96, 128, 256]), 1
        if rng.random() < 0.15:
            channels = filters = groups = rng.choice([16, 32, 96, 144, 192])
        pad = size // 2 if rng.random() < 0.6 else 0
        if side + 2 * pad < size:
            continue
        conv = Conv(channels, filters, (size, size), (stride, stride), (pad,) * 4, (1, 1), groups)
        problem = ConvProblem(conv, rng.choice([1, 1, 1, 4, 8, 16]), side, side)
        if problem.flops <= LIMIT_FLOPS:
            return problem


def regrets(problems: Sequence[ConvProblem], chooser_seconds: Seconds, judge_seconds: Seconds) -> list[float]:
    """By problem, how much longer the chosen way takes than the fastest: 0.05 is five per cent.

    Args:
        problems: what is chosen for.
        chooser_seconds: the times the chooser may look at.
        judge_seconds: other times of the same ways, which say what the choice and the fastest take.
    """
    found = []
    for problem in problems:
        key = problem.key()
        choice = choose_conv(
            problem, MachineNumbers(), measure=lambda asked, way: chooser_seconds[asked.key(), way]
        )
        least = min(judge_seconds[key, way] for way in candidates(problem))
        found.append(judge_seconds[key, choice.candidate] / least - 1.0)
    return found


class ChoiceEngine:
    """Plans, and sweeps; both in this process, on one thread."""

    def __init__(self, quick: bool) -> None:
        self._num = SHAPES[1 if quick else 0]
        self._regrets: list[float] = []
        self._chosen: set[str] = set()

    def check(self, case: Case) -> Json:
        """None; EngineError when a plan leaves a convolution without a choice."""
        if case.name == TUNING:
            found = plan_layouts(_resnet())
            if len(found.choices) != 53:
                raise EngineError(f"{len(found.choices)} convolutions have a choice, not 53")
        return None

    def run(self, case: Case) -> Timing:
        """Plan once with an empty memory; or time everything twice for every drawn problem, then choose."""
        begin, cpu = time.perf_counter(), time.process_time()
        if case.name == TUNING:
            known = TuningCache()
            plan_layouts(_resnet(), measure=known.measure, move_cost=known.move)
        else:
            self._sweep()
        return Timing(time.perf_counter() - begin, time.process_time() - cpu)

    def facts(self) -> Mapping[str, Json]:
        """Regrets, when they were measured."""
        if not self._regrets:
            return {}
        ordered = sorted(self._regrets)
        return {
            "num_shapes": len(ordered),
            "regret_mean": statistics.fmean(ordered),
            "regret_p95": ordered[int(0.95 * (len(ordered) - 1))],
            "regret_max": ordered[-1],
        }

    def close(self) -> None:
        """Nothing is held."""

    def _sweep(self) -> None:
        rng = random.Random(SEED)
        problems = [draw_problem(rng) for _ in range(self._num)]
        chooser_seconds, judge_seconds = _timed(problems), _timed(problems)
        self._regrets = regrets(problems, chooser_seconds, judge_seconds)


def _timed(problems: Sequence[ConvProblem]) -> Seconds:
    return {
        (problem.key(), way): measure_conv(problem, way)
        for problem in problems
        for way in candidates(problem)
    }


def regret_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """The bar on the mean regret, which needs every drawn shape."""
    for row in found.rows:
        if row.case == REGRET and row.facts.get("num_shapes") == SHAPES[0]:
            name = f"regret of the choice, mean of {SHAPES[0]} random convolutions"
            return [Bar(name, float(row.facts["regret_mean"]), "x", MOST_REGRET, "lower")]
    return [NotMeasured("regret of the choice", f"needs all {SHAPES[0]} shapes, a full run")]


@benchmark(
    "conv-choice",
    about="choosing algorithm and layout of convolutions, one thread",
    metric="ms",
    better="lower",
    cases=lambda scope: [Case(TUNING, 1, target=TUNING_MS), Case(REGRET, 1, rounds=1)],
    rounds=(5, 3),
    threads=(1,),
    bars=regret_bars,
)
def conv_choice(scope: Scope) -> Engine:
    """Our planner."""
    return ChoiceEngine(scope.quick)


@cache
def _resnet() -> Program:
    import torch

    from tensure.program.from_torch import from_torch

    from ._networks import build_network

    return from_torch(build_network("resnet50"), (torch.zeros(1, 3, 224, 224),), name="resnet50").program
