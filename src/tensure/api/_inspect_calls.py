"""The inputs of a model that is looked into, whatever they come as: arrays, a file, a prompt, a seed.

Knows a program's declared inputs. Does not run it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensure.errors import InputError

if TYPE_CHECKING:
    from tensure.inspection import Call
    from tensure.program import Model

__all__ = ["calls_of"]


def calls_of(
    model: Model, inputs: Any, entry: str | None, params: Mapping[str, int] | None, seed: int | None
) -> list[Call]:
    """The calls to make: one, with every input as an array by its name.

    Raises:
        InputError: no inputs, inputs the entry does not take, or inputs and a seed.
    """
    from tensure.inspection import Call
    from tensure.runtime import check_inputs

    program = model.program
    if seed is not None:
        if inputs is not None:
            raise InputError("inputs and a seed", wanted="one of them")
        inputs = _drawn(model, entry, params, seed)
    if inputs is None:
        wanted = ", ".join(str(name) for name in program.entry(entry).inputs) or "none"
        raise InputError(
            f"{model.name} was given no inputs",
            wanted=wanted,
            next_step="Pass inputs (--input FILE or --prompt TEXT), or seed=0 (--seed 0) to draw some",
        )
    if isinstance(inputs, str):
        return _prompt(model, inputs)
    if isinstance(inputs, os.PathLike):
        inputs = _from_file(model, Path(inputs), entry, params)
    names = [str(name) for name in program.entry(entry).inputs]
    call = check_inputs(program, _by_name(inputs, names), entry=entry, params=params)
    return [Call(call.entry, call.params, call.inputs)]


def _prompt(model: Model, text: str) -> list[Call]:
    """The prefill of a prompt, chat template and all."""
    import numpy as np

    from tensure.inspection import Call
    from tensure.runtime import TextSide

    ids = TextSide(model.assets, model.name).prompt_ids(text)
    if "prefill" not in model.program.entries:
        raise InputError(f"{model.name} does not generate text", wanted="tensors")
    return [Call("prefill", {"n": len(ids), "pos": 0}, {"tokens": np.asarray(ids, np.int64)})]


def _from_file(model: Model, path: Path, entry: str | None, params: Mapping[str, int] | None) -> Any:
    from tensure.runtime import ImageRecipe, check_types, load_image, load_inputs, prepare_image, read_object

    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        if "image.json" not in model.assets:
            raise InputError(f"{model.name} does not say how it reads images", file=path, wanted="tensors")
        recipe = ImageRecipe.from_json(read_object(model.assets, "image.json"))
        return prepare_image(load_image(path), recipe)
    return load_inputs(
        path, check=lambda found: check_types(model.program, found, entry=entry, params=params)
    )


def _by_name(inputs: Any, names: Sequence[str]) -> Any:
    """Inputs as arrays by name, whatever they came as."""
    if isinstance(inputs, Mapping):
        return {key: _array(value) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        if len(inputs) != len(names):
            raise InputError(f"{len(inputs)} inputs", wanted=", ".join(names) or "none")
        return {name: _array(value) for name, value in zip(names, inputs, strict=True)}
    return _array(inputs)


def _array(value: Any) -> Any:
    if "torch" in sys.modules:
        import torch

        from tensure.runtime import to_array

        if isinstance(value, torch.Tensor):
            return to_array(value)
    return value


def _drawn(model: Model, entry: str | None, params: Mapping[str, int] | None, seed: int) -> dict[str, Any]:
    """Inputs of the declared types: normal numbers, or small integers from 0."""
    import numpy as np

    from tensure.program import bind_entry, evaluate, leaves, numpy_dtype

    program = model.program
    chosen = dict(params or {})
    env: dict[str, int] = dict(program.axes)
    for key, low, _ in program.entry(entry).params:
        env[key] = chosen.setdefault(key, evaluate(low, env))
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for key, want, role in leaves(program, entry, bind_entry(program, entry, chosen)):
        if role != "input":
            continue
        if want.dtype[0] in "fb" and want.dtype != "bool":
            found[key] = rng.standard_normal(want.shape).astype(numpy_dtype(want.dtype))
        else:
            found[key] = rng.integers(0, 2 if want.dtype == "bool" else 8, want.shape).astype(
                numpy_dtype(want.dtype)
            )
    return found
