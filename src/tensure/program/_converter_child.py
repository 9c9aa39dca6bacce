"""The converter child's own script: one checkpoint in, one safetensors file out, and nothing else.

Started by `from_checkpoint` as `python -I -B` on this file, with the input and the output already open. It
knows the order of events: limits, closed doors, the scan that executes nothing, torch's weights-only load as
a second reader, and a byte-for-byte comparison of the two before anything counts as converted. It does not
know any path, and it imports nothing of ours except its neighbours, by file.

Answers with one line of JSON on standard output: {"done": {...}} or {"refused": {...}}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

    from tensure.program import _converter_sandbox as sandbox
    from tensure.program import _converter_scan as scan

_TORCH_FLOOR = (2, 10)  # CVE-2026-24747: weights-only loading before 2.10 corrupts memory
_SAFETENSORS_NAMES = {
    "f64": "F64",
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "i64": "I64",
    "i32": "I32",
    "i16": "I16",
    "i8": "I8",
    "u8": "U8",
    "bool": "BOOL",
}


def main() -> int:
    """Convert the file on the inherited descriptor; 0 when a report was written, whatever it says."""
    task: dict[str, int] = json.loads(sys.argv[1])
    sandbox.limit_resources(
        memory_bytes=task["memory_bytes"], cpu_s=task["cpu_s"], file_bytes=task["output_bytes"]
    )
    layers = sandbox.close_doors()
    try:
        with os.fdopen(task["input_fd"], "rb", closefd=False) as file:
            done = convert(file, task["size"], task["output_fd"])
    except scan.Refused as error:
        keys = ("kind", "found", "place", "wanted", "next_step")
        answer: dict[str, object] = {"refused": {key: getattr(error, key) for key in keys}}
    except MemoryError:
        found = f"the checkpoint needs more than the {task['memory_bytes']} bytes allowed"
        answer = {"refused": {"kind": "limit", "found": found, "next_step": "Allow more with memory_bytes"}}
    else:
        answer = {"done": {**done, "layers": layers}}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


def convert(file: BinaryIO, size: int, output_fd: int) -> dict[str, object]:
    """Scan, compare with torch's own reading, write; gives layout, torch version and tensor count."""
    layout, records = scan.scan_checkpoint(file, size)
    # torch.export.load falls back to full unpickling (torch/_export/serde/serialize.py), so an export archive
    # has no second reader: its weights are raw bytes under a JSON table.
    version = "" if layout == "export" else _compare_with_torch(file, records)
    _write_safetensors(file, records, output_fd)
    return {"layout": layout, "torch": version, "num_tensors": len(records)}


def _compare_with_torch(file: BinaryIO, records: dict[str, scan.TensorRecord]) -> str:
    import torch

    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < _TORCH_FLOOR:
        floor = ".".join(map(str, _TORCH_FLOOR))
        raise scan.Refused(
            "unsupported", f"torch {version}", wanted=f"torch {floor} or later", next_step="Upgrade it"
        )
    file.seek(0)
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
        if "allocate" in str(error):
            raise MemoryError from None
        raise scan.Refused(
            "format", f"torch refuses the file ({type(error).__name__})", wanted="a state dict"
        ) from None
    for key in ("state_dict", "model"):
        if not any(isinstance(item, torch.Tensor) for item in state.values()) and isinstance(
            state.get(key), dict
        ):
            state = state[key]
    if list(state) != list(records):
        raise scan.Refused("format", "torch and our own reader find different tensors")
    for name, record in records.items():
        tensor = state.pop(name).detach()
        same = (
            tuple(tensor.shape) == record.shape and str(tensor.dtype) == _TORCH_DTYPES[record.storage.dtype]
        )
        flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))  # one element may have any stride
        theirs = flat.view(torch.uint8).numpy().tobytes() if same else b""
        if not same or theirs != _elements(file, record).tobytes():
            place = f"tensor {name[:80]!r}"
            raise scan.Refused("format", "torch and our own reader disagree", place=place)
    return version


_TORCH_DTYPES = {
    "f64": "torch.float64",
    "f32": "torch.float32",
    "f16": "torch.float16",
    "bf16": "torch.bfloat16",
    "i64": "torch.int64",
    "i32": "torch.int32",
    "i16": "torch.int16",
    "i8": "torch.int8",
    "u8": "torch.uint8",
    "bool": "torch.bool",
}


def _elements(file: BinaryIO, record: scan.TensorRecord) -> np.ndarray[Any, Any]:
    """The tensor's elements as unsigned integers, row-major; bounds were checked by the scan."""
    import numpy as np

    storage = record.storage
    file.seek(storage.offset)
    raw = file.read(storage.numel * storage.itemsize)
    if len(raw) != storage.numel * storage.itemsize:
        raise scan.Refused("format", "the file became shorter while it was read")
    flat = np.frombuffer(raw, dtype=f"<u{storage.itemsize}")
    strides = [stride * storage.itemsize for stride in record.stride]
    view = np.lib.stride_tricks.as_strided(flat[record.offset :], record.shape, strides, writeable=False)
    return np.ascontiguousarray(view).reshape(record.shape)


def _write_safetensors(file: BinaryIO, records: dict[str, scan.TensorRecord], output_fd: int) -> None:
    # Widest elements first keeps every tensor aligned, as safetensors itself orders them.
    order = sorted(records, key=lambda name: (-records[name].storage.itemsize, name))
    header: dict[str, object] = {}
    at = 0
    for name in order:
        record = records[name]
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[record.storage.dtype],
            "shape": list(record.shape),
            "data_offsets": [at, at + record.nbytes],
        }
        at += record.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(output_fd, len(text).to_bytes(8, "little") + text)
    for name in order:
        elements = _elements(file, records[name])
        if records[name].storage.dtype == "bool" and elements.size and int(elements.max()) > 1:
            raise scan.Refused("format", "a bool is neither 0 nor 1", place=f"tensor {name[:80]!r}")
        _write(output_fd, elements.reshape(-1).view("u1").data)


def _write(output_fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        try:
            view = view[os.write(output_fd, view[: 1 << 24]) :]
        except OSError as error:
            raise scan.Refused("limit", f"the output cannot be written ({error.strerror})") from None


def _neighbour(name: str) -> ModuleType:
    """A module beside this file, under its full name but without its package.

    `-I` keeps our packages off the import path where they are not installed, and the package itself would
    import far more than belongs in this process.
    """
    full_name = f"tensure.program.{name}"
    spec = importlib.util.spec_from_file_location(full_name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    if not TYPE_CHECKING:
        _neighbour("_converter_machine")
        sandbox, scan = _neighbour("_converter_sandbox"), _neighbour("_converter_scan")
    sys.exit(main())
