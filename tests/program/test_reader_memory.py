"""The costliest files a stranger can send: each refused or read in bounded memory, in one fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .hostile_gguf import ARRAY, STRING, U32, Entry, array, small, text, u64
from .hostile_safetensors import Parts

MIB = 1 << 20
BOUND_MIB = 256

# One reader per line of input; the high-water mark is read per process, so that one file's cost cannot hide
# another's, and from /proc: getrusage would count what the parent had mapped before exec.
CHILD = """
import sys
from tensure.errors import TensureError
from tensure.program._gguf import read_gguf
from tensure.program._gguf_tokenizer import tokenizer_json
from tensure.program._safetensors import read_safetensors
path = sys.argv[1]
try:
    if path.endswith("gguf"):
        tokenizer_json(read_gguf(path).metadata)
    else:
        read_safetensors(path)
    said = "read"
except TensureError as error:
    said = f"{type(error).__name__}: {error}"
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024, said[:300])
"""


def _gguf(*entries: Entry, num_infos: int | None = None) -> bytes:
    parts = small()
    parts.entries += entries
    parts.num_infos = num_infos
    return parts.serialise()


def _header(body: bytes, count: int, *, close: bytes = b"}") -> bytes:
    return Parts(b'{"a":' + body * count + close).serialise()


BOMBS = {
    "string of 2^60.gguf": lambda: _gguf(Entry(b"x.s", STRING, text(b"", 2**60))),
    "2^40 strings.gguf": lambda: _gguf(Entry(b"x.a", ARRAY, array(STRING, [], 2**40) + bytes(MIB))),
    "2^58 numbers.gguf": lambda: _gguf(Entry(b"x.a", ARRAY, array(U32, [], 2**58) + bytes(MIB))),
    "2^60 tensors.gguf": lambda: _gguf(num_infos=2**60),
    "3 million strings.gguf": lambda: _gguf(Entry(b"x.a", ARRAY, array(STRING, [bytes(8)] * 3_000_000))),
    "a million tokens.gguf": lambda: _gguf(
        Entry(b"x.a", ARRAY, array(STRING, [u64(2) + b"%02x" % (i % 256) for i in range(1 << 20)]))
    ),
    "a string of 20 MiB.gguf": lambda: _gguf(Entry(b"x.s", STRING, text(b"a" * 20 * MIB))),
    "strings that widen.gguf": lambda: _gguf(
        *[Entry(b"x.%d" % i, STRING, text("\U0001f600".encode() + b"a" * 4_000_000)) for i in range(12)]
    ),
    "header of 2^63.safetensors": lambda: Parts(b"{}", length=2**63).serialise(),
    "header of 100 MB.safetensors": lambda: Parts(b"{" + b" " * 100_000_000).serialise(),
    "open lists.safetensors": lambda: _header(b"[", 15 * MIB),
    "open strings.safetensors": lambda: _header(b'"', 15 * MIB),
    "many numbers.safetensors": lambda: _header(b"[" + b"1," * 7 * MIB + b"1]", 1),
    "half a million keys.safetensors": lambda: _header(
        b"{%s}" % b",".join(b'"%x":0' % i for i in range(500_000)), 1
    ),
    "escapes.safetensors": lambda: _header(b'"' + rb"\u0061" * (2 * MIB) + b'"', 1),
    "a number of 15 MB.safetensors": lambda: _header(b"9", 15 * MIB),
    "a long name.safetensors": lambda: Parts(b'{"' + b"n" * 15 * MIB + b'":1}').serialise(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_bounded(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    peak, _, said = ran.stdout.partition(" ")
    assert int(peak) < BOUND_MIB, said
    assert said.startswith(("FormatError", "LimitError")) or name == "a million tokens.gguf", said
    assert len(said) < 400, "a message never repeats the bomb"


def test_the_measure_sees_a_reader_without_bounds(tmp_path: Path) -> None:
    """The control: Python's own parser on one of the same files passes the bound."""
    path = tmp_path / "m.json"
    path.write_bytes(b'{"a":' + b"[" + b"[]," * 5 * MIB + b"1]}")
    child = (
        "import json, sys; kept = json.load(open(sys.argv[1]))\n"
        + CHILD.splitlines()[-2]
        + "\nprint(peak.split()[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", child, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(ran.stdout) // 1024 > BOUND_MIB
    assert json.loads(path.read_bytes()[:5] + b"1}")
