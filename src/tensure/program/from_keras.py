"""A Keras model as a Model: a `.keras` file read without Keras, or a live object.

Both arrive as the same config and variables and go through one table of layers (`_keras/`); a live model
with layers outside the table goes through torch.export instead, if Keras runs on torch. Knows what a path
may be and how to ask a live model for its config and variables; does not know layers (`_keras/`) nor the
file (`_keras_file.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, InputError, TensureError, UnsupportedError

from ._keras import (
    ASK_EXPORT,
    Builder,
    Socket,
    Variables,
    check_document,
    class_of,
    make_layer,
    run_model,
    snake,
    sockets,
)
from ._keras_file import parse_config, read_keras_file
from ._model import Model
from ._normalise import normalise as simplify
from ._records import TensorType
from ._validate import validate_program

__all__ = ["from_keras"]

_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def from_keras(
    model_or_path: Any, example_inputs: Any = None, *, name: str | None = None, normalise: bool = True
) -> Model:
    """The Model that computes what a Keras 3 model computes at inference.

    Inputs bear the names of the input layers and keep Keras' shapes (channels last, as a rule); one output is
    named `out`, several `out_0`, `out_1`, ..., and those of a dict after its keys. Weights are named after
    their layer. "Same" padding is TensorFlow's: the odd element stands behind and an average leaves
    padding out (Keras' torch backend repeats the edge there, so uneven average pools differ from it).

    Args:
        model_or_path: a `keras.Model`, or a `.keras` file, which is read without Keras and runs no code.
        example_inputs: an array, a tuple of arrays or a dict by input name, of which shapes count; without
            it the batch is 1 and every other size must be in the model.
        name: the Model's name; the Keras model's own when left out.
        normalise: simplify the Program (fold batch norm, cancel permutations, ...).

    Raises:
        InputError: no such file, or an open size without an example.
        FormatError: the file breaks its format. LimitError: it asks for more than its bytes account for.
        UnsupportedError: a layer, option or class outside the table; HDF5 files and SavedModel folders.
    """
    if isinstance(model_or_path, str | os.PathLike):
        path = Path(model_or_path)
        _check_path(path)
        config, variables = read_keras_file(path)
        try:
            model = _translated(config, variables, example_inputs, name, os.fspath(path))
        except TensureError as error:
            raise error.at(file=path) from None
    else:
        model = _live(model_or_path, example_inputs, name)
    return simplify(model) if normalise else model


def _check_path(path: Path) -> None:
    """Refuse what is no `.keras` file by its name.

    Raises:
        UnsupportedError: a SavedModel, a folder, or an HDF5 file. For HDF5 Keras' `safe_mode` never held
            (CVE-2025-9905), and a promise of safety that does not hold is an error.
    """
    if path.is_dir():
        saved = (path / "saved_model.pb").exists()
        raise UnsupportedError(
            "a TensorFlow SavedModel folder" if saved else "a folder",
            file=path,
            wanted="a .keras file",
            next_step="Load it where it was made and write model.save('model.keras').",
        )
    if path.suffix.lower() in (".h5", ".hdf5") or _starts_with(path, _HDF5):
        raise UnsupportedError(
            "a legacy Keras HDF5 file: it may hold pickled code, and safe loading does not apply to it",
            file=path,
            wanted="a .keras file",
            next_step="Load it in Keras where you trust it and write model.save('model.keras').",
        )


def _starts_with(path: Path, magic: bytes) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None


# --- one table for both -----------------------------------------------------------------------------


def _translated(config: Any, variables: Variables, example: Any, name: str | None, origin: str) -> Model:
    check_document(config)
    _, kind, _ = class_of(config, "config.json")
    if kind not in ("Sequential", "Functional", "Model"):
        raise UnsupportedError(
            f"a model of class {kind[:80]}",
            wanted="Sequential or Functional",
            next_step=ASK_EXPORT,
        )
    build = Builder()
    model = make_layer(config, (), variables, build, "model")
    wanted = sockets(model)
    given = [
        build.input(*_filled(socket, found))
        for socket, found in zip(wanted, _shapes(wanted, example), strict=True)
    ]
    program = build.program(run_model(model, given))
    validate_program(program)
    return Model(name or model.name, program, build.weights, {}, origin)


def _filled(socket: Socket, found: tuple[int, ...] | None) -> tuple[str, TensorType]:
    """An input's name and type: the example's sizes, else the model's with a batch of 1."""
    if found is None:
        shape = (1 if socket.shape[0] is None else socket.shape[0], *socket.shape[1:])
        if None in shape:
            raise InputError(
                f"input {socket.name[:80]} has open sizes: {list(socket.shape)}",
                wanted="an example input that says them",
                next_step="Pass example_inputs.",
            )
        found = tuple(size for size in shape if size is not None)
    pairs = zip(socket.shape, found, strict=False)
    if len(found) != len(socket.shape) or any(want not in (None, have) for want, have in pairs):
        raise InputError(
            f"an example of shape {list(found)} for {socket.name[:80]}", wanted=str(list(socket.shape))
        )
    return socket.name, TensorType(found, socket.dtype)


def _shapes(wanted: Sequence[Socket], example: Any) -> list[tuple[int, ...] | None]:
    """The example's shapes in the order of the inputs, None for each without an example."""
    if example is None:
        return [None] * len(wanted)
    if isinstance(example, Mapping):
        names = [socket.name for socket in wanted]
        if set(example) != set(names):
            raise InputError(
                f"examples for {', '.join(map(str, example))[:200]}", wanted=", ".join(names)[:200]
            )
        items = [example[name] for name in names]
    else:
        items = list(example) if isinstance(example, tuple | list) else [example]
    if len(items) != len(wanted) or not all(hasattr(item, "shape") for item in items):
        raise InputError(f"{len(items)} example inputs", wanted=f"{len(wanted)} arrays")
    return [tuple(int(size) for size in item.shape) for item in items]


# --- live models ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _LiveVariables:
    """Variables of a live model under the paths a file would have them."""

    model: Any

    def count(self, path: tuple[str, ...]) -> int:
        """How many variables the object at a path has of its own."""
        return len(self._stored(path))

    def read(self, path: tuple[str, ...], index: int) -> npt.NDArray[Any]:
        """One of them, copied: the model may go on training."""
        found = self._stored(path)[str(index)]
        if hasattr(found, "detach"):
            found = found.detach().cpu()
        return np.array(found.numpy() if hasattr(found, "numpy") else found)

    def _stored(self, path: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        target = self._find(path)
        if target is not None:
            target.save_own_variables(found)
        return {key: getattr(value, "value", value) for key, value in found.items()}

    def _find(self, path: tuple[str, ...]) -> Any:
        target, parts = self.model, iter(path)
        for part in parts:
            if part == "layers":
                target = _named(target.layers).get(next(parts))
            else:
                target = getattr(target, part, None)
            if target is None:
                return None
        return target


def _named(layers: Sequence[Any]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    found: dict[str, Any] = {}
    for item in layers:
        label = snake(type(item).__name__)
        counts[label] = counts.get(label, -1) + 1
        found[f"{label}_{counts[label]}" if counts[label] else label] = item
    return found


def _live(model: Any, example: Any, name: str | None) -> Model:
    keras = sys.modules.get("keras")  # whoever made a Keras model has imported it
    if keras is None or not isinstance(model, keras.Model):
        raise InputError(f"a {type(model).__name__}", wanted="a keras.Model or the path of a .keras file")
    origin = f"keras.{type(model).__name__}"
    try:
        return _translated(_config_of(model), _LiveVariables(model), example, name, origin)
    except UnsupportedError as error:
        if keras.backend.backend() != "torch":
            raise error.at(place=model.name) from None
        return _exported(model, example, name, error)


def _config_of(model: Any) -> Any:
    """What Keras would write into config.json.

    Raises:
        UnsupportedError: the model cannot say.
    """
    try:
        return parse_config(model.to_json().encode())
    except (NotImplementedError, TypeError, ValueError, AttributeError, FormatError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(f"the model has no config: {lines[0][:200]}") from error


def _exported(model: Any, example: Any, name: str | None, reason: UnsupportedError) -> Model:
    """The model through torch.export.

    Raises:
        InputError: it cannot be traced. UnsupportedError: it uses an op that is not listed; both say why the
            table of layers did not do.
    """
    import torch

    from .from_torch import from_torch

    inputs = _example_tensors(model, example, torch)
    try:
        return from_torch(model, inputs, name=name or model.name, normalise=False)
    except TensureError as error:
        error.next_step = f"The table of layers has no way either: {reason}."
        raise


def _example_tensors(model: Any, example: Any, torch: Any) -> tuple[Any, ...]:
    if example is None:
        specs = list(model.inputs or ())
        if not specs:
            raise InputError("the model does not say what goes in", wanted="example_inputs")
        out: list[Any] = []
        for spec in specs:
            sizes = (1 if spec.shape[0] is None else spec.shape[0], *spec.shape[1:])
            if None in sizes:
                raise InputError(
                    f"input {spec.name} has open sizes: {list(spec.shape)}", wanted="example_inputs"
                )
            out.append(torch.zeros(sizes, dtype=getattr(torch, spec.dtype)))
        return tuple(out) if len(out) == 1 else (out,)
    if isinstance(example, Mapping):
        names = [spec.name for spec in model.inputs or ()]
        if set(names) != set(example):
            raise InputError(
                f"examples for {', '.join(map(str, example))[:200]}", wanted=", ".join(names)[:200]
            )
        example = [example[name] for name in names]
    items = list(example) if isinstance(example, tuple | list) else [example]
    tensors = [torch.as_tensor(item) for item in items]
    return tuple(tensors) if len(tensors) == 1 else (tensors,)
