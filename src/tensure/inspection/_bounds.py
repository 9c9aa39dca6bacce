"""How far rounding alone may move a result: computed again in float64, with a bound from dtype and length
of sum.

For a sum of K products in precision eps, any order of summation stays within about `sqrt(K) eps sum |a| |b|`
of the exact value (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019), here
times four; bfloat16 and half are summed in float32 and rounded once. Other float ops are taken to be
backward stable: the result is exact for operands moved by a few eps, found by moving them. A region of
several steps is computed twice more with every intermediate moved by its own bound, at random signs, and
the largest change counts threefold. Ops that only hand values on have no allowance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ._families import family, is_exact, reduction_length
from ._recording import Recording
from ._records import Step
from ._versions import rewritten

__all__ = ["EPSILON", "Expected", "expect"]

EPSILON: Final = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
"""Unit roundoff."""

_ROUNDS: Final = 2
_GROWTH: Final = 3.0
_ULPS: Final = 8.0
"""That a well-made elementwise function may be off by, `exp` and `erf` among them."""
_SIGMAS: Final = 4.0
"""Roundings are as good as independent: their sum grows as the root of their number, times this."""
_CANCELLING: Final = frozenset({"gelu", "erfc", "mish", "silu", "softplus", "log_sigmoid"})
"""Elementwise functions that float32 computes through a difference: exact to a share of the operand only."""
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a region should give: values in float64 (integers as they are) and how far from them is allowed.

    `bound` is None where the bits must be the same.
    """

    value: torch.Tensor
    bound: torch.Tensor | None
    reduction: int
    """The most terms that one sum in the region adds."""


def expect(
    run: Recording,
    steps: Sequence[Step],
    wanted: str,
    given: Mapping[str, torch.Tensor],
    dtype: str,
    read: Callable[[str], torch.Tensor],
) -> Expected | None:
    """What `steps` of a run make of `given`, for the tensor `wanted`; None where a step cannot be computed
    again.

    Args:
        run: whose steps these are; what `given` lacks is read from it.
        steps: in order, the last one making `wanted`.
        given: tensors by name, taken instead of the run's own.
        dtype: whose rounding is allowed: the coarser of the two results'.
        read: the run's own tensors by name.
    """
    eps = EPSILON.get(dtype)
    first = _compute(run, steps, given, read, eps, None)
    if first is None or wanted not in first.made:
        return None
    value = first.made[wanted]
    if not value.is_floating_point() or first.exact:
        return Expected(value, None, first.reduction)
    if eps is None:
        return Expected(value, None, first.reduction)
    bound = first.bounds[wanted]
    if len(steps) > 1:
        generator = torch.Generator().manual_seed(0)
        spread = torch.zeros_like(value)
        for _ in range(_ROUNDS):
            moved = _compute(run, steps, given, read, eps, generator)
            if moved is not None:
                spread = torch.maximum(spread, (moved.made[wanted] - value).abs())
        # One element may be lucky twice: the tensor's typical change stands in for it.
        finite = spread[torch.isfinite(spread)]
        typical = finite.square().mean().sqrt() if finite.numel() else spread.new_zeros(())
        bound = bound + _GROWTH * torch.maximum(spread, typical.expand_as(spread))
    return Expected(value, bound, first.reduction)


@dataclass(slots=True)
class _Computed:
    made: dict[str, torch.Tensor]
    bounds: dict[str, torch.Tensor]
    exact: bool
    reduction: int


def _compute(
    run: Recording,
    steps: Sequence[Step],
    given: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    eps: float | None,
    generator: torch.Generator | None,
) -> _Computed | None:
    """One pass in float64; with a generator every float result but the last is moved by its bound."""
    found = _Computed({}, {}, True, 1)

    def wide(name: str) -> torch.Tensor:
        if name in found.made:
            return found.made[name]
        tensor = given[name] if name in given else read(name)
        return tensor.double() if tensor.dtype in _FLOATS else tensor

    for step in steps:
        replay = run.replays.get(step.index)
        if replay is None:
            return None
        made = _quietly(replay, wide)
        if made is None:
            made = _in_single(replay, wide)
        if made is None or len(made) < len(step.outs):
            return None
        exact = is_exact(step.op)
        found.exact &= exact
        shapes = [run.trace.tensors[name].shape for name in step.reads]
        terms = reduction_length(step.op, shapes, run.trace.tensors[step.outs[0]].shape) if step.outs else 1
        found.reduction = max(found.reduction, terms)
        for name, tensor in zip(step.outs, made, strict=False):
            tensor = tensor.double() if tensor.dtype in _FLOATS else tensor
            found.made[name] = tensor
            if exact or eps is None or not tensor.is_floating_point():
                continue
            bound = _step_bound(step, replay, wide, tensor, name, eps, terms)
            found.bounds[name] = bound
            if generator is not None and step is not steps[-1]:
                signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
                found.made[name] = tensor + signs * torch.nan_to_num(bound, 0.0, 0.0, 0.0)
        if step.wrote:
            found.made |= rewritten(run.trace, step, found.made, wide)
        if exact:
            for name in step.outs:
                if found.made[name].is_floating_point():
                    found.bounds.setdefault(name, torch.zeros_like(found.made[name]))
    return found


def _in_single(
    replay: Callable[[Callable[[str], torch.Tensor]], list[torch.Tensor]],
    wide: Callable[[str], torch.Tensor],
) -> list[torch.Tensor] | None:
    """For an op that torch has in float32 alone."""

    def narrow(name: str) -> torch.Tensor:
        tensor = wide(name)
        return tensor.float() if tensor.is_floating_point() else tensor

    return _quietly(replay, narrow)


def _step_bound(
    step: Step,
    replay: Callable[[Callable[[str], torch.Tensor]], list[torch.Tensor]],
    wide: Callable[[str], torch.Tensor],
    value: torch.Tensor,
    name: str,
    eps: float,
    terms: int,
) -> torch.Tensor:
    """How far one step's result may be from the exact one, rounded to precision `eps` in the end."""
    at = step.outs.index(name)
    inner = min(eps, EPSILON["f32"])  # narrower dtypes are computed in float32
    own = _ULPS * inner * value.abs()
    if eps > inner:
        own = own + 2 * eps * value.abs()
    if family(step.op) in _CANCELLING and step.reads:
        first = wide(step.reads[0])
        if first.shape == value.shape and first.is_floating_point():
            own = own + 4 * inner * first.abs()
    if family(step.op) in ("convolution", "mm"):

        def magnitude(key: str) -> torch.Tensor:
            tensor = wide(key)
            return tensor.abs() if tensor.is_floating_point() else tensor

        total = _quietly(replay, magnitude)
        if total is not None and total[at].shape == value.shape:
            return _SIGMAS * math.sqrt(terms + 2) * inner * total[at].abs() + own
    spread = torch.zeros_like(value)
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)

        def moved(key: str, generator: torch.Generator = generator) -> torch.Tensor:
            tensor = wide(key)
            if not tensor.is_floating_point():
                return tensor
            signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
            return tensor * (1 + inner * signs)

        found = _quietly(replay, moved)
        if found is not None and found[at].shape == value.shape:
            spread = torch.maximum(spread, torch.nan_to_num((found[at] - value).abs(), 0.0, 0.0, 0.0))
    if terms > 1:
        largest = spread.max() if spread.numel() else spread.new_zeros(())
        spread = torch.maximum(spread, largest.expand_as(spread)) * 2 * math.sqrt(terms)
    return own + 4 * spread


def _quietly(
    replay: Callable[[Callable[[str], torch.Tensor]], list[torch.Tensor]],
    given: Callable[[str], torch.Tensor],
) -> list[torch.Tensor] | None:
    try:
        return replay(given)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
