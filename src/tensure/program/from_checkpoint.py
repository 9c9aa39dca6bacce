"""Weights out of a torch checkpoint (`.pth`, `.pt`, `.bin`, `.pt2`), which only a converter child ever opens.

Knows how to start the child, bound it, and turn what it says into our own errors. Does not know the format:
this process hands over an open file, gets a safetensors file back, and reads that with our own bounded
reader. A refusal is final; there is no second, more trusting way in.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError

if TYPE_CHECKING:
    from tensure.program._weights import StoredTensor

__all__ = ["Conversion", "convert_checkpoint", "convert_file"]

_CHILD = Path(__file__).with_name("_converter_child.py")
_BASE_BYTES = 1 << 30  # address space of the interpreter with torch: 0.65 GB measured (torch 2.13.0)
_MAX_REPORT_BYTES = 1 << 16
_ERRORS: Mapping[str, type[InputError]] = {
    "format": FormatError,
    "unsupported": UnsupportedError,
    "limit": LimitError,
}
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a converter child did: the layout found, tensors written, and the sandbox layers that held."""

    layout: str
    num_tensors: int
    torch_version: str
    layers: tuple[str, ...]


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    timeout_s: float = 120,
    memory_bytes: int = 4 << 30,
) -> Mapping[str, StoredTensor]:
    """Give every tensor of a checkpoint by name; with `out`, also keep the safetensors file there.

    Without `out` the file lives in a private folder and is unlinked before this returns.

    Raises:
        FormatError: the bytes are not a whole checkpoint.
        UnsupportedError: it holds more than a state dict of plain tensors.
        LimitError: it needs more time or memory than allowed.
    """
    # Deferred so that this room's import order does not depend on its leaf files.
    from tensure.program._safetensors import read_safetensors

    if out is not None:
        convert_file(path, out, timeout_s=timeout_s, memory_bytes=memory_bytes)
        return read_safetensors(out)
    with tempfile.TemporaryDirectory(prefix="tensure-") as folder:
        target = Path(folder) / "weights.safetensors"
        convert_file(path, target, timeout_s=timeout_s, memory_bytes=memory_bytes)
        return read_safetensors(target)


def convert_file(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    timeout_s: float = 120,
    memory_bytes: int = 4 << 30,
) -> Conversion:
    """Write a checkpoint's tensors to `out` as safetensors, whole or not at all, and say how it went.

    Raises:
        TensureError: as `convert_checkpoint`; nothing is left behind.
    """
    if not (0 < timeout_s <= 86_400 and _BASE_BYTES < memory_bytes <= 1 << 46):
        found = f"timeout_s={timeout_s!r}, memory_bytes={memory_bytes!r}"
        raise LimitError(found, wanted=f"0 < timeout_s <= 86400 and {_BASE_BYTES} < memory_bytes <= 2**46")
    for given in (path, out):
        if not isinstance(given, str | os.PathLike):
            raise InputError(f"a {type(given).__name__} is no path", wanted="a str or a Path")
    path, out = Path(path), Path(out)
    with _open_input(path) as source:
        size = os.fstat(source.fileno()).st_size
        if size + _BASE_BYTES > memory_bytes:
            raise LimitError(
                f"a checkpoint of {size} bytes with memory_bytes={memory_bytes}",
                file=path,
                next_step=f"Pass memory_bytes={2 * size + _BASE_BYTES} or more",
            )
        try:
            handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        except OSError as error:
            raise InputError(f"cannot write there ({error.strerror})", file=out) from None
        try:
            with os.fdopen(handle, "wb") as target:
                task = {"size": size, "memory_bytes": memory_bytes, "output_bytes": 4 * size + (64 << 20)}
                try:
                    conversion = _run_child(_CHILD, source, target, task, timeout_s)
                except TensureError as error:
                    raise error.at(path) from None
                os.fsync(target.fileno())
            os.replace(name, out)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    return conversion


def _open_input(path: Path) -> IO[bytes]:
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # a ValueError is Python's, for a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot be opened ({reason})", file=path, wanted="a checkpoint file") from None
    source = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if source is None:
        os.close(handle)
        raise InputError("not a regular file", file=path, wanted="a checkpoint file")
    return source


def _run_child(
    script: Path, source: IO[bytes], target: IO[bytes], task: Mapping[str, int], timeout_s: float
) -> Conversion:
    fds = {"input_fd": source.fileno(), "output_fd": target.fileno()}
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(script), json.dumps({**task, **fds, "cpu_s": int(timeout_s) + 1})],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(fds.values()),
        env=_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    try:
        report = _read_report(process.stdout, deadline, timeout_s)
        try:
            code = process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise _too_slow(timeout_s) from None
    finally:
        # Not yet reaped, so the group is still the child's own.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    if code != 0:
        raise _crashed(code, timeout_s)
    return _parse_report(report)


def _read_report(pipe: IO[bytes], deadline: float, timeout_s: float) -> bytes:
    report = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise _too_slow(timeout_s)
        chunk = os.read(pipe.fileno(), 1 << 16)
        if not chunk:
            return report
        report += chunk
        if len(report) > _MAX_REPORT_BYTES:
            raise FormatError("the converter child answered without end", next_step=_DISTRUST)


_DISTRUST = "Treat the file as hostile; ask its maker for safetensors"


def _too_slow(timeout_s: float) -> LimitError:
    return LimitError(
        f"the converter child was stopped after {timeout_s:g} s",
        next_step="Allow more with timeout_s, or use safetensors",
    )


def _crashed(code: int, timeout_s: float) -> TensureError:
    if -code == signal.SIGXCPU:
        return _too_slow(timeout_s)
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return FormatError(f"the converter child {how}", wanted="a plain state dict", next_step=_DISTRUST)


def _parse_report(report: bytes) -> Conversion:
    """The child's answer, itself held to be hostile: the file may have taken the child over."""
    try:
        answer = json.loads(report)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"refused": {"kind": str(kind), "found": str(found), **rest}} if kind in _ERRORS:
            texts = {key: _printable(rest.get(key)) for key in ("place", "wanted", "next_step")}
            return _refuse(kind, _printable(found) or "refused", texts)
        case {
            "done": {
                "layout": str(layout),
                "torch": str(version),
                "num_tensors": int(count),
                "layers": [*layers],
            }
        }:
            names = tuple(str(layer)[:20] for layer in layers)
            return Conversion(layout[:20], count, version[:40], names)
        case _:
            raise FormatError("the converter child gave no answer we know", next_step=_DISTRUST)


def _refuse(kind: str, found: str, texts: Mapping[str, str | None]) -> Conversion:
    raise _ERRORS[kind](found, place=texts["place"], wanted=texts["wanted"], next_step=texts["next_step"])


def _printable(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    return "".join(char if char.isprintable() else "?" for char in value[:500])
