"""`load`: a model from a path or a known name. Knows which reader a path is for; does not know any format."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensure.errors import FormatError, InputError, NotYetError, UnsupportedError

from ._known import KNOWN
from ._open import open_verified
from ._paths import as_path

if TYPE_CHECKING:
    from tensure.program import Model

__all__ = ["is_bundle", "load"]

_CHECKPOINTS: Final = (".pth", ".pt", ".bin", ".ckpt")
_COMING: Final = {".tflite": "TFLite"}
_KERAS: Final = (".keras", ".h5", ".hdf5")
_GGUF_MAGIC: Final = b"GGUF"


def load(
    model: str | os.PathLike[str],
    *,
    context: int | None = None,
    name: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Model:
    """The model behind a path or a known name; nothing is downloaded.

    Args:
        model: a GGUF, ONNX or `.keras` file, a folder with config.json and safetensors, a sealed bundle
            (verified first), or a known name such as `smollm2-135m` or `efficientnet-lite0`. A path wins
            where both exist.
        context: positions of the key-value cache of a text model; 2,048 or the model's own limit when
            left out.
        name: what to call it.
        inputs: of an ONNX file whose sizes are open: by graph input its shape, or its value if it is to be
            fixed (`tensure.program.from_onnx.from_onnx`).
        sizes: the same by the names of the open sizes: `{"seq": 128}`, or `{"ids.1": 128}` by input and dim
            where the file has no name for one.

    Raises:
        InputError: nothing of that name; the message offers the nearest known one, or the line that
            installs it.
        NotYetError: a TFLite file.
        UnsupportedError: a kind of file, an architecture or an op that we do not read.
        FormatError: the file breaks its format.
        DamageError: a bundle that is not what was signed.
    """
    path = as_path(model, "a model's file or folder, or a known name")
    if path.suffix.lower() == ".onnx" and path.is_file():
        return _load_onnx(path, context, name, inputs, sizes)
    is_there = path.exists() or (isinstance(model, str) and model in KNOWN)
    for option, given in (("inputs", inputs), ("sizes (--size)", sizes)):
        if given is not None and is_there:
            raise InputError(f"{option} for a model that is no ONNX file", file=path, wanted="none")
    if path.is_dir():
        return _load_folder(path, context, name)
    if coming := _COMING.get(path.suffix.lower()):
        raise NotYetError(
            f"the {coming} reader is not built yet",
            file=path,
            wanted="a .gguf, .onnx or .keras file, a model folder or a bundle",
            next_step="A torch module goes through tensure.program.from_torch.from_torch(...)",
        )
    if path.exists():
        return _load_file(path, context, name)
    if isinstance(model, str) and model in KNOWN:
        found = KNOWN[model].read(KNOWN[model].path(), context)
        return found if name is None else _renamed(found, name)
    raise unknown_model(os.fspath(model))


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle, whole or damaged."""
    return path.is_dir() and any((path / name).exists() for name in ("model.sig", "bundle.json"))


def unknown_model(model: str) -> InputError:
    """Neither a path nor a known name."""
    near = difflib.get_close_matches(model, KNOWN, n=1)
    return InputError(
        f"{model[:200]!r} is no file, no folder and no known model",
        wanted=f"a path, or one of {', '.join(KNOWN)}",
        next_step=f"Did you mean {near[0]!r}?"
        if near
        else "Check the path; tensure doctor lists known models",
    )


def _load_folder(path: Path, context: int | None, name: str | None) -> Model:
    if is_bundle(path):
        if context is not None:
            raise InputError("context for a sealed bundle", file=path, wanted="the source it was sealed from")
        return _load_bundle(path, name)
    from tensure.program.from_hf import from_hf

    return from_hf(path, context=context, name=name)


def _load_file(path: Path, context: int | None, name: str | None) -> Model:
    if path.suffix.lower() in _CHECKPOINTS:
        raise UnsupportedError(
            "a torch checkpoint holds weights and no program",
            file=path,
            next_step="Load them into their torch module, then tensure.program.from_torch.from_torch(...)",
        )
    if path.suffix.lower() in _KERAS:
        from tensure.program.from_keras import from_keras

        return from_keras(path, name=name)
    if path.suffix.lower() == ".gguf" or _starts_with_magic(path):
        from tensure.program.from_gguf import from_gguf

        return from_gguf(path, context=context, name=name)
    raise FormatError(
        f"a {path.suffix or 'nameless kind of'} file",
        file=path,
        wanted="a .gguf, .onnx or .keras file, a model folder or a bundle",
        next_step="A torch module goes through tensure.program.from_torch.from_torch(...)",
    )


def _load_onnx(
    path: Path,
    context: int | None,
    name: str | None,
    inputs: Mapping[str, Any] | None,
    sizes: Mapping[str, int] | None,
) -> Model:
    if context is not None:
        raise InputError("context for an ONNX file", file=path, wanted="no context: its sizes are fixed")
    from tensure.program.from_onnx import from_onnx

    return from_onnx(path, name=name, inputs=inputs, sizes=sizes)


def _load_bundle(path: Path, name: str | None) -> Model:
    from tensure.program import Model, parse_program

    folder = open_verified(path)
    try:
        program = parse_program(folder.program.decode("utf-8"))
    except UnicodeDecodeError:
        raise FormatError("program.txt is not UTF-8", file=path) from None
    assets = {key: data for key, data in folder.assets.items() if key != "origin.txt"}
    origin = folder.assets.get("origin.txt", b"").decode("utf-8", "replace")
    return Model(name or folder.name, program, folder.weights, assets, origin or os.fspath(path))


def _renamed(model: Model, name: str) -> Model:
    from dataclasses import replace

    return replace(model, name=name)


def _starts_with_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(4) == _GGUF_MAGIC
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
