"""A captured step beside a real run of the same module, and captured plans beside their programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tensure.bundle import Plan, collect, evaluate_plan
from tensure.capture import Captured, ModelFunction, ParallelFunction, capture_model, capture_parallel
from tensure.program import Name, Program, bind_entry, evaluate_program, leaves, numpy_dtype
from tensure.proving._replay import replay

Array = np.ndarray[Any, np.dtype[Any]]
Build = Callable[[], tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]


def seeded(build: Build, seed: int = 0) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The module and its inputs with real numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def array(tensor: torch.Tensor) -> Array:
    return np.array(tensor.detach().numpy())


def label(path: str) -> str:
    """A parameter's name in a Program."""
    return path if path[0].isalpha() or path[0] == "_" else f"_{path}"


def torch_results(build: Build) -> tuple[dict[str, Array], dict[str, Array]]:
    """What torch makes of it: leaves as they were before, and loss, outputs and gradients."""
    net, inputs = seeded(build)
    given = {label(path): array(t) for path, t in [*net.named_parameters(), *net.named_buffers()]}
    given |= {f"input_{at}": array(t) for at, t in enumerate(inputs)}
    found = net(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    found[0].backward()
    made = {"loss" if at == 0 else f"out_{at}": array(t) for at, t in enumerate(found)}
    made |= {f"grad.{label(path)}": array(t.grad) for path, t in net.named_parameters() if t.grad is not None}
    made |= {f"grad.input_{at}": array(t.grad) for at, t in enumerate(inputs) if t.grad is not None}
    return given, made


def differences(have: Mapping[str, Array], want: Mapping[str, Array], tol: float = 1e-9) -> list[str]:
    """The names that differ, in presence, dtype, shape or value."""
    wrong = sorted(set(have) ^ set(want))
    for key in sorted(set(have) & set(want)):
        one, other = have[key], want[key]
        if one.shape != other.shape or one.dtype != other.dtype:
            wrong.append(f"{key}: {one.dtype}{one.shape} and {other.dtype}{other.shape}")
        elif not np.allclose(one, other, rtol=tol, atol=tol, equal_nan=True):
            wrong.append(f"{key}: off by {np.abs(one - other).max()}")
    return wrong


def model_differences(build: Build, tol: float = 1e-9) -> list[str]:
    """Where the captured Program and torch disagree on one draw of leaves."""
    captured = capture_model(build)
    given, want = torch_results(build)
    kept = {key: value for key, value in given.items() if key in captured.program.values}
    return differences(evaluate_program(captured.program, kept).outputs, want, tol)


def drawn(program: Program, seed: int = 0) -> dict[str, Array]:
    """Seeded leaves of a Program; integers are 0 or 1."""
    rng = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for key, want, _ in leaves(program, None, bind_entry(program)):
        made = rng.standard_normal(want.shape) if want.dtype[0] == "f" else rng.integers(0, 2, want.shape)
        values[key] = np.asarray(made).astype(numpy_dtype(want.dtype))
    return values


def captured_plan(
    model: ModelFunction, parallel: ParallelFunction, mesh: Mapping[str, int]
) -> tuple[Captured, Plan]:
    captured = capture_model(model)
    return captured, capture_parallel(model, parallel, mesh, captured)


def plan_differences(captured: Captured, plan: Plan, seed: int = 0) -> list[str]:
    """Outputs of the single device that the assembled locals of a plan do not equal."""
    given = drawn(captured.program, seed)
    want = evaluate_program(captured.program, given).outputs
    names = tuple(Name(key) for key in want)
    return differences(collect(evaluate_plan(plan, captured.program, given), captured.program, names), want)


def wrong_claims(captured: Captured, plan: Plan) -> list[str]:
    """`local on rank` of each claim that a concrete float64 replay finds wrong, in order of production."""
    found = replay(plan, captured.program, "step", {}, 0)
    assert found is not None, "too large to replay"
    if found.error is not None:
        raise found.error
    return [f"{item.name} on {item.rank}" for item in found.wrong]
