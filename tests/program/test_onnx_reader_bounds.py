"""Whatever bytes come: bounded memory and time, only our errors, and what is read is what protobuf reads."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import TensureError
from tensure.program import _protobuf
from tensure.program._onnx_reader import read_onnx_bytes

from .hostile_onnx import (
    Message,
    attribute,
    header,
    laughs,
    mutate,
    node,
    opset,
    small,
)
from .onnx_peer import compare

MIB = 1 << 20
BOUND_MIB = 256
CHILD = """
import sys, time
from tensure.errors import TensureError
from tensure.program._onnx import OnnxModel
from tensure.program._onnx_reader import read_onnx
start = time.process_time()
try:
    kept = read_onnx(sys.argv[1])
    said = "read"
except TensureError as error:
    said = f"{type(error).__name__}: {error}"
took = time.process_time() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024, took, said[:300])
"""


def _of_graph(body: bytes) -> bytes:
    return Message().add(1, 8).add(8, opset(17)).add(7, body).serialise()


def _of_node(body: bytes) -> bytes:
    return _of_graph(Message().add(1, node("Op", "", "y").serialise() + body).serialise())


def _of_attribute(body: bytes, kind: int) -> bytes:
    return _of_node(Message().add(5, Message().add(1, "a").add(20, kind).serialise() + body).serialise())


def _field(number: int, raw: bytes) -> bytes:
    """A short field with a length, without the detour over a message."""
    return bytes([number << 3 | 2, len(raw)]) + raw


def _distinct(number: int, count: int, inner: int | None = None, rest: bytes = b"") -> bytes:
    """Fields that are names of their own, or messages with such a name in field `inner`, then `rest`."""
    names = (b"%x" % i for i in range(count))
    return b"".join(_field(number, name if inner is None else _field(inner, name) + rest) for name in names)


BOMBS: dict[str, Callable[[], bytes]] = {
    "1 million unknown fields": lambda: _of_graph(b"\x98\x06\x00"[:3] * 1_040_000),
    "10 million unknown fields": lambda: _of_graph(b"\x98\x06\x00" * 10_000_000),
    "3 million graphs": lambda: _of_graph(b"") + b"\x3a\x00" * 3_000_000,
    "1 million empty nodes": lambda: _of_graph(b"\x0a\x00" * 1_000_000),
    "1 million inputs of one node": lambda: _of_node(b"\x0a\x01y" * 1_000_000),
    "1 million inputs with names of their own": lambda: _of_node(_distinct(1, 1_000_000)),
    "400,000 outputs with names of their own": lambda: _of_node(_distinct(2, 400_000)),
    "1 million graphs in an attribute": lambda: _of_attribute(b"\x5a\x00" * 1_000_000, 10),
    "350,000 tensors in an attribute": lambda: _of_attribute(b"\x52\x04\x08\x00\x10\x01" * 345_000, 9),
    "1 million strings": lambda: _of_attribute(b"\x4a\x00" * 1_000_000, 8),
    "1 million numbers": lambda: _of_attribute(b"\x40\x01" * 1_000_000, 7),
    "1 million packed numbers": lambda: _of_attribute(Message().add(8, b"\x7f" * 1_000_000).serialise(), 7),
    "30 million packed floats": lambda: _of_attribute(Message().add(7, bytes(120_000_000)).serialise(), 6),
    "attributes on every node": lambda: _of_graph(
        Message().add(1, node("O", "", "y", *[attribute(c, 1, 2, 0.5) for c in "abcd"])).serialise() * 100_000
    ),
    "130,000 values": lambda: _of_graph(_distinct(13, 130_000, 1)),
    "65,000 initializers": lambda: _of_graph(_distinct(5, 65_000, 8, b"\x08\x00\x10\x01")),
    "a list that grows eight times": lambda: _of_graph(
        Message().add(5, header("w", "i64", (30_000_000,)).add(7, bytes(30_000_000))).serialise()
    ),
    "half a million pieces of a list": lambda: _of_graph(
        Message()
        .add(5, Message(header("w", "i64", (500_000,)).fields).serialise() + b"\x3a\x01\x01" * 500_000)
        .serialise()
    ),
    "1 million unpacked floats": lambda: _of_graph(
        Message()
        .add(5, header("w", "f32", (1_000_000,)).serialise() + b"\x25\0\0\0\0" * 1_000_000)
        .serialise()
    ),
    "a string of 20 MiB": lambda: _of_attribute(Message().add(9, b"a" * 20 * MIB).serialise(), 8),
    "strings that widen": lambda: _of_attribute(
        Message().add(9, "\U0001f600".encode() + b"a" * 4_000_000).serialise() * 12, 8
    ),
    "65,000 metadata": lambda: _of_graph(b"") + _distinct(14, 65_000, 1),
    "functions that double": lambda: laughs(4000).serialise(),
}
#: Those that break no bound: what is read must be cheap as well.
READ = {
    "1 million unknown fields",
    "1 million numbers",
    "1 million packed numbers",
    "1 million unpacked floats",
    "400,000 outputs with names of their own",
    "130,000 values",
    "65,000 initializers",
}


def _measured(path: Path, weaken: str = "") -> tuple[int, float, str]:
    """Peak memory in MiB, seconds and words of a fresh process that reads the file."""
    ran = subprocess.run(
        [sys.executable, "-c", weaken + CHILD, str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    peak, took, said = ran.stdout.split(" ", 2)
    return int(peak), float(took), said.strip()


@pytest.mark.parametrize("name", BOMBS)
def test_memory_and_time_stay_bounded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(BOMBS[name]())
    peak, took, said = _measured(path)
    assert peak < BOUND_MIB, said
    assert took < 12, said  # under 2 s alone; a shared or slower machine has needed more than 4
    assert said.startswith(("FormatError", "LimitError")) or name in READ, said
    assert len(said) < 400, "a message never repeats the bomb"


def test_the_measure_sees_a_reader_without_bounds(tmp_path: Path) -> None:
    """The control: the same file, one of the bounds lifted."""
    path = tmp_path / "bomb.onnx"
    path.write_bytes(BOMBS["a list that grows eight times"]())
    lifted = "from tensure.program import _onnx_tensors\n_onnx_tensors.MAX_DECODED_BYTES = 1 << 60\n"
    peak, _, said = _measured(path, lifted)
    assert said == "read"
    assert peak > BOUND_MIB


# --- anything at all: only our errors come out ------------------------------------------------------------


def _survives(seed: int) -> bool:
    """Whether a damaged file is read, and by the onnx package too: then both must make the same of it."""
    raw = mutate(small(), random.Random(seed))
    try:
        found = read_onnx_bytes(raw)
        for stored in found.graph.initializers.values():
            stored.decode()
    except TensureError as error:
        assert len(str(error)) < 500
        return False
    return compare(raw, found)


@given(st.integers(0, 2**32))
@settings(max_examples=600, deadline=None)
def test_structured_damage_gives_only_our_errors(seed: int) -> None:
    _survives(seed)


def test_the_mutants_are_neither_all_refused_nor_mostly_harmless() -> None:
    assert 100 < sum(_survives(seed) for seed in range(1000)) < 500


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_only_our_errors(raw: bytes) -> None:
    for whole in (raw, Message().add(1, 8).add(8, opset(17)).add(7, raw).serialise()):
        try:
            read_onnx_bytes(whole)
        except TensureError:
            pass


def test_the_search_finds_a_missing_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control: without the check of a number's end, something other than our errors comes out."""

    def careless(wire: _protobuf.Wire, position: int, end: int) -> tuple[int, int]:
        return wire.view[position] | wire.view[position + 1] << 7, position + 2

    monkeypatch.setattr(_protobuf.Wire, "varint", careless)
    with pytest.raises((IndexError, AssertionError)):
        for seed in range(2000):
            _survives(seed)
