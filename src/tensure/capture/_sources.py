"""Where in somebody's code an op comes from: its line and module, in the backward pass those of the forward.

Knows Python frames, module hooks and autograd's sequence numbers; nothing of ops.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.program import Attrs

from ._ours import is_ours

__all__ = [
    "OPTIMIZER_WANTED",
    "Sources",
    "asked_by_distributed",
    "only_shapes_asked",
    "optimizer_line",
    "their_errors",
]

OPTIMIZER_WANTED: Final = "an optimizer whose course does not depend on values"
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep
_HOUSE: Final = os.path.dirname(os.path.dirname(__file__))
_SKIPPED: Final = (
    _TORCH,
    os.path.join(os.path.dirname(os.path.dirname(torch.__file__)), "typing_extensions.py"),  # deprecations
    *(os.path.join(_HOUSE, room) + os.sep for room in ("api", "cli")),
)
_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_DISTRIBUTED: Final = os.path.join(_TORCH, "distributed") + os.sep
_PLUMBING: Final = tuple(
    os.path.join(_TORCH, part)
    for part in ("_compile.py", "_dynamo", "_ops.py", "_subclasses", "_tensor.py", "functional.py", "utils")
)
_READ: Final = re.compile(
    r"passed to \w*Tensor\.__(format)__|\.(numpy)\(\) is not supported for tensor subclasses"
)
"""What torch says where a tensor without bytes, or a distributed one, is to be shown."""
_BACKWARD: Final = os.path.join(_TORCH, "autograd", "graph.py")
_OPTIMIZERS: Final = os.path.join(_TORCH, "optim") + os.sep
_ENTRANCES: Final = (
    *(os.path.join(_HOUSE, room) + os.sep for room in ("api", "cli")),
    os.path.join(_HOUSE, "program", "_jobs.py"),
)
"""Whoever calls these is not what is traced: the command line, a script that asks for a proof."""
_GIVEN: Final = os.path.join(os.path.dirname(__file__), "_given.py")
_PROPAGATION: Final = os.path.join(_DISTRIBUTED, "tensor", "_sharding_prop.py")
_CLIPPING: Final = os.path.join(_TORCH, "nn", "utils", "clip_grad.py")


class Sources:
    """Says where the op being dispatched now comes from."""

    def __init__(self, module: torch.nn.Module | None) -> None:
        self._paths = {} if module is None else {id(part): path for path, part in module.named_modules()}
        self._kept = module  # its parts' ids stay theirs
        self._stack: list[str] = []
        self.clips = ""
        """The line that calls torch's clipping of gradients, if one does."""
        self._forward: dict[int, Attrs] = {}
        self._last: Attrs = ()
        """What was told last in the backward pass that goes on."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module, or which optimizer, runs."""

        def enter(module: torch.nn.Module, _: Any) -> None:
            self._stack.append(self._paths.get(id(module), self._stack[-1] if self._stack else ""))

        def leave(_module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
            self._stack.pop()

        def begin(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._stack.append(type(optimizer).__name__)

        def end(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._stack.pop()

        hooks = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
            register_optimizer_step_pre_hook(begin),
            register_optimizer_step_post_hook(end),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def note(self) -> Attrs:
        """Line and module of what is dispatched now, sorted by name."""
        line, backward, clips, by_engine = _line()
        if clips:
            self.clips = self.clips or line or "an unknown line"
        node = torch._C._current_autograd_node()
        if backward:
            known = None if node is None else self._forward.get(node._sequence_nr())
            if known is None and self._last and (by_engine or not line):
                known = self._last  # a gradient is cast or added up for the node that has just made it
            if known is not None:
                self._last = known
                return known
        else:
            self._last = ()
        found = _note(self._stack[-1] if self._stack else "", line)
        if node is None:
            # Autograd numbers an op's node just before the op is dispatched.
            self._forward.setdefault(torch.autograd._get_sequence_nr() - 1, found)
        return found


def optimizer_line(frame: FrameType | None = None) -> str:
    """`torch/optim/radam.py:288` of the innermost frame that is an optimizer of torch's; empty if none is.

    Args:
        frame: the innermost to look at; the caller's if none is given.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_OPTIMIZERS):
            return f"{os.path.relpath(path, os.path.dirname(_TORCH.rstrip(os.sep)))}:{frame.f_lineno}"
        if not path.startswith((*_SKIPPED, "<")) and not is_ours(path):
            return ""  # somebody's own code, which is named itself
        frame = frame.f_back
    return ""


def asked_by_distributed() -> bool:
    """Whether torch.distributed itself calls what is dispatched now, and nobody's model."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(("<", *_PLUMBING)) or is_ours(frame.f_code.co_filename)
    ):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_DISTRIBUTED)


def only_shapes_asked() -> bool:
    """Whether DTensor calls what is dispatched now to know its result's shape: nothing is drawn then."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path == _PROPAGATION:
            return True
        if not path.startswith((*_SKIPPED, "<")) and not is_ours(path):
            return False
        frame = frame.f_back
    return False


@contextmanager
def their_errors(what: str) -> Iterator[None]:
    """What somebody's code raises while it is traced, as an InputError that names its line.

    Args:
        what: the code, for messages.
    """
    try:
        yield
    except TensureError:
        raise
    except Exception as error:
        place, is_ours = _raised_at(error.__traceback__)
        if is_ours:
            raise
        found = str(error).strip().partition("\n")[0]
        if (read := _READ.search(found)) is not None:
            raise UnsupportedError(
                f"the step reads a value ({read[1] or read[2]})",
                place=place,
                wanted="a step whose course does not depend on values",
            ) from error
        raise InputError(f"{what} raises {type(error).__name__}: {found}", place=place) from error


def _raised_at(trace: TracebackType | None) -> tuple[str | None, bool]:
    """`file.py:12` of the innermost frame that is neither torch's nor ours; whether the innermost is ours.

    A mode of ours that hands a call on to torch is not what raises.
    """
    found, path, name = None, "", ""
    while trace is not None:
        path, name = trace.tb_frame.f_code.co_filename, trace.tb_frame.f_code.co_name
        if not path.startswith((_TORCH, _PACKAGE, "<")):
            found = f"{os.path.basename(path)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found, path.startswith(_PACKAGE) and name != "__torch_function__"


def _note(module: str, line: str) -> Attrs:
    return tuple((key, found) for key, found in (("module", module), ("source", line)) if found)


def _line() -> tuple[str, bool, bool, bool]:
    """`file.py:12` of the innermost frame that is traced and not torch's; what is inside of it.

    Returns:
        The line, empty where we ourselves call torch; whether autograd and clipping are inside; whether
        autograd's engine itself asks, and no hook or function that it calls.
    """
    frame: FrameType | None = sys._getframe(2)
    backward = clips = by_engine = is_seen = False
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_ENTRANCES) or (path == _GIVEN and frame.f_code.co_name == "run_backward"):
            break
        if not is_ours(path) and not is_seen:
            by_engine, is_seen = path == _BACKWARD, True
        if path == _BACKWARD:
            backward = True
        clips = clips or path == _CLIPPING
        if not path.startswith((*_SKIPPED, "<")) and not is_ours(path):
            return f"{os.path.basename(path)}:{frame.f_lineno}", backward, clips, by_engine
        frame = frame.f_back
    return "", backward, clips, by_engine
