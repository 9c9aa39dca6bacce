"""Eager torch code recorded as it runs: a module, or a function that is one or makes one.

Knows what torch code takes and returns. The looking is done in `inspection/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tensure.inspection import OnStep, Recording, ValueStore

__all__ = ["record_eager"]


def record_eager(
    code: Any,
    inputs: Any,
    seed: int | None,
    statistics: bool,
    digest: bool,
    limit: float | None,
    store: ValueStore | None,
    on_step: OnStep | None,
) -> Recording:
    """A run of a module or function, as `tensure.inspect` says; a function may return the call to record."""
    import torch

    from tensure.inspection import watch as open_watch

    options: dict[str, Any] = {"statistics": statistics, "digest": digest, "limit": limit, "on_step": on_step}

    def run_once(module: torch.nn.Module | None, inputs: Any) -> tuple[Recording, Any]:
        if seed is not None:
            torch.manual_seed(seed)
        args, kwargs = _eager_inputs(inputs)
        named = dict(zip(_parameter_names(module or code, len(args)), args, strict=True)) | kwargs
        named = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
        name = getattr(module or code, "__name__", type(module or code).__name__)
        with open_watch(module, name=name, inputs=named, keep=store or False, **options) as run:
            results = (module or code)(*args, **kwargs)
            for key, tensor in _named_results(results):
                run.output(key, tensor)
        return run.recording(), results

    if on_step is not None and inputs is None and not isinstance(code, torch.nn.Module):
        # Only its result tells a function that makes a module from one that is the run itself, and nobody
        # wants to be told of the steps that draw a module's first weights.
        if seed is not None:
            torch.manual_seed(seed)
        results = code()
        if _is_call(results):
            return run_once(*results)[0]
    recording, results = run_once(code if isinstance(code, torch.nn.Module) else None, inputs)
    if inputs is None and _is_call(results):
        module, given = results  # the function stands for this call
        if store is not None:
            store.clear()
        recording, _ = run_once(module, given)
    return recording


def _is_call(results: Any) -> bool:
    """Whether a function's result is a module with inputs for it."""
    import torch

    return isinstance(results, tuple) and len(results) == 2 and isinstance(results[0], torch.nn.Module)


def _parameter_names(code: Any, count: int) -> list[str]:
    """What the first arguments of a module or function are called."""
    import inspect as python_inspect

    target = getattr(code, "forward", code)
    try:
        known = list(python_inspect.signature(target).parameters)
    except (TypeError, ValueError):
        known = []
    return [known[at] if at < len(known) else f"input_{at}" for at in range(count)]


def _eager_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import numpy as np
    import torch

    def tensor(value: Any) -> Any:
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    if isinstance(inputs, os.PathLike):
        from tensure.runtime import load_inputs

        inputs = load_inputs(inputs)
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), {str(key): tensor(value) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return tuple(tensor(value) for value in inputs), {}
    return (tensor(inputs),), {}


def _named_results(results: Any) -> list[tuple[str, Any]]:
    """Every tensor in what a run returned, by its place: `out`, `out_1`, `logits`, `past.0.key`."""
    import dataclasses

    import torch

    found: list[tuple[str, Any]] = []

    def collect(path: str, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            found.append((path or "out", value))
        elif depth >= 16:
            return
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(f"{path}.{key}" if path else str(key), item, depth + 1)
        elif isinstance(value, list | tuple):
            for at, item in enumerate(value):
                collect(f"{path}.{at}" if path else f"out_{at}", item, depth + 1)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                name = f"{path}.{field.name}" if path else field.name
                collect(name, getattr(value, field.name), depth + 1)

    collect("", results, 0)
    return found
