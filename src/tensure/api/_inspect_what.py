"""What is looked into: a recording, code of the caller's own, or a model.

Knows how to tell them apart and how to come by each. Runs nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from tensure.errors import InputError

if TYPE_CHECKING:
    from tensure.inspection import Recording

__all__ = [
    "check_recorded",
    "file_of",
    "is_eager",
    "is_onnx_file",
    "is_recorded",
    "model_of",
    "recorded",
    "refuse_for_recording",
]


def _is_recording_file(model: Any) -> TypeGuard[str | os.PathLike[str]]:
    from tensure.inspection import TRACE_SUFFIX

    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(TRACE_SUFFIX)


def is_recorded(model: Any) -> TypeGuard[Recording | str | os.PathLike[str]]:
    """Whether it is a recording or the file of one: read, not run."""
    from tensure.inspection import Recording

    return isinstance(model, Recording) or _is_recording_file(model)


def recorded(model: Recording | str | os.PathLike[str]) -> Recording:
    """The recording, from its file if need be."""
    from tensure.inspection import Recording, load_recording

    return model if isinstance(model, Recording) else load_recording(model)


def file_of(model: Recording | str | os.PathLike[str]) -> str | os.PathLike[str] | None:
    """The path that was given, for a message; None for a recording in memory."""
    return model if isinstance(model, str | os.PathLike) else None


def refuse_for_recording(model: Recording | str | os.PathLike[str], options: Sequence[str]) -> None:
    """Refuse options that only a run could follow.

    Raises:
        InputError: there are any; the message names them.
    """
    if options:
        raise InputError(
            f"a recording is not run again: {', '.join(options)} cannot apply",
            file=file_of(model),
            wanted="the recording alone",
        )


def check_recorded(recording: Recording, *, digest: bool, keep: bool) -> None:
    """Refuse to promise what a recording does not hold."""
    trace = recording.trace
    if digest and trace.tensors and all(facts.digest is None for facts in trace.tensors.values()):
        raise InputError(
            "digest (--digest): this recording has none", next_step="Record with digest=True (-o FILE.trace)"
        )
    if keep and recording.values is None:
        raise InputError(
            "keep (--keep): the values of this recording were not kept",
            next_step="Record with keep=True (-o FILE.trace)",
        )


def is_onnx_file(model: Any) -> bool:
    """Whether it is the path of an ONNX file."""
    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(".onnx")


def is_eager(model: Any) -> bool:
    """Whether it is torch code, to be recorded as it runs."""
    if "torch" in sys.modules:
        import torch

        if isinstance(model, torch.nn.Module | torch.jit.ScriptModule):
            return True
    return callable(model) and not isinstance(model, type) and not hasattr(model, "program")


def model_of(model: Any, sizes: Mapping[str, int] | None) -> Any:
    """The model, read if a path or a known name was given.

    Raises:
        InputError: it is nothing that can be inspected, or `sizes` are given for what was read already.
    """
    from tensure.program import Model
    from tensure.runtime import Session

    from ._load import load

    if isinstance(model, str | os.PathLike):
        return load(model, sizes=sizes)
    if sizes is not None:
        raise InputError(
            "sizes (--size) for a model that was read already", wanted="the path of an ONNX file"
        )
    if isinstance(model, Model):
        return model
    if isinstance(model, Session):
        folder = model.folder
        return Model(model.name, model.program, folder.weights, folder.assets)
    raise InputError(
        f"a {type(model).__name__} cannot be inspected",
        wanted="a model, a session, a torch module, a function, a path or package.module:name",
    )
