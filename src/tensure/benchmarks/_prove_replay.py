"""What a Plan really computes: both sides in float64 on drawn values, by the records' own evaluators.

The judge over the prover. It shares nothing with it: not the draws, not the walk, not the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from tensure.bundle import (
    Plan,
    PlanRun,
    collect,
    compare_claims,
    evaluate_plan,
    format_plan,
    parse_plan,
)
from tensure.capture import ModelFunction, ParallelFunction, capture_model, capture_parallel
from tensure.errors import TensureError
from tensure.program import (
    Program,
    bind_entry,
    evaluate_program,
    format_program,
    leaves,
    numpy_dtype,
    parse_program,
)
from tensure.proving import ProofResult

__all__ = ["ACCEPTED", "SEEDS", "Array", "Prover", "Replay", "capture", "draw", "replay"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
SEEDS: Final = (101, 202)
Prover: TypeAlias = Callable[[Plan, Program], ProofResult]
ACCEPTED: Final = frozenset({"proved", "probable"})
TOLERANCE: Final = 1e-9
MOST_INDEX: Final = 5
"""Indices are drawn below this; every table and every number of classes is at least as large."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What two sides came to on one draw: `wrong` in words, or None; whether the Plan came to its end."""

    wrong: str | None
    ran: bool
    run: PlanRun | None


@contextmanager
def _double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def capture(
    model: ModelFunction, parallel: ParallelFunction, mesh: Mapping[str, int]
) -> tuple[Plan, Program]:
    """A step and its twin in float64, so that a replay's differences are of meaning, not of rounding."""
    with _double_precision():
        captured = capture_model(model)
        return capture_parallel(model, parallel, mesh, captured), captured.program


def draw(program: Program, entry: str, seed: int) -> dict[str, Array]:
    """Inputs and weights; roots and softmax of them are numbers.

    A mask never hides a whole row; what an optimizer keeps of squares, and its counter, are not negative.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for label, want, _ in leaves(program, entry, bind_entry(program, entry, {})):
        if want.dtype.startswith("f"):
            values: Any = 0.25 + 0.5 * rng.standard_normal(want.shape)
            values = np.abs(values) if label.endswith(("_sq", ".step")) else values
        elif want.dtype == "bool":
            values = rng.random(want.shape) < 0.4
            values[..., :1] = False
        else:
            values = rng.integers(0, MOST_INDEX, want.shape)
        drawn[label] = np.asarray(values).astype(numpy_dtype(want.dtype))
    return drawn


def _wide(plan: Plan, program: Program) -> tuple[Plan, Program]:
    """Both in float64 where they name half floats, so that a replay's differences are no rounding."""
    texts = [format_program(program), format_plan(plan)]
    if not any(re.search(r"\bb?f16\b", text) for text in texts):
        return plan, program
    texts = [re.sub(r'(dtype="|: )(?:f32|f16|bf16)\b', r"\1f64", text) for text in texts]
    said, planned = (text.replace("half_to_float=true", "half_to_float=false") for text in texts)
    return parse_plan(planned), parse_program(said)


def replay(plan: Plan, program: Program, seed: int) -> Replay:
    """Run both; every claim, and every output put together, is held against the Program's own values.

    Raises:
        ValueError: the Program itself gives no finite numbers on this draw: then nothing is judged.
    """
    plan, program = _wide(plan, program)
    (entry,) = program.entries
    values: Mapping[str, Array] = draw(program, entry, seed)
    with np.errstate(all="ignore"):
        logical = evaluate_program(program, values, entry=entry)
        for label, value in logical.outputs.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{label} is not finite on seed {seed}")
        try:
            run = evaluate_plan(plan, program, values, entry=entry)
        except (TensureError, ValueError, IndexError, TypeError, KeyError) as error:
            return Replay(f"the plan does not run: {error}", False, None)
        wrong = compare_claims(run, logical, rtol=TOLERANCE, atol=TOLERANCE)
        if wrong is None:
            try:
                found = collect(run, program, program.entries[entry].outputs)
            except TensureError as error:
                return Replay(str(error), True, run)
            for label, want in logical.outputs.items():
                if not np.allclose(found[label], want, rtol=TOLERANCE, atol=TOLERANCE):
                    return Replay(f"{label} differs", True, run)
    return Replay(wrong, True, run)
