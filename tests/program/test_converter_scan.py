"""The scan that executes nothing, against torch's own writer, planted faults and flipped bytes."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensure.program import _converter_child as child
from tensure.program import _converter_machine
from tensure.program import _converter_scan as scan
from tensure.program._converter_scan import Refused, TensorRecord, scan_checkpoint

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def state_dict() -> OrderedDict[str, Any]:
    """Every dtype, and every way a tensor can lie in its storage."""
    base = torch.arange(24, dtype=torch.float32)
    state: OrderedDict[str, Any] = OrderedDict(
        (f"dtype.{name}", torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)) for name, dtype in DTYPES.items()
    )
    state |= {
        "tied.a": base,
        "tied.b": base.view(4, 6),
        "transposed": base.view(2, 3, 4).permute(2, 0, 1),
        "slice": base[5:17:3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "é.weight": torch.ones(1),
    }
    return state


def saved(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@cache
def good(legacy: bool) -> bytes:
    return saved(state_dict(), legacy=legacy)


@cache
def exported() -> bytes:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)
            self.register_buffer("offset", torch.arange(3))
            self.constant = torch.ones(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.linear(x) + self.offset + self.constant.sum())

    torch.manual_seed(0)
    program = torch.export.export(Tiny().eval(), (torch.ones(2, 4),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def scanned(data: bytes) -> dict[str, TensorRecord]:
    return scan_checkpoint(io.BytesIO(data), len(data))[1]


def values(data: bytes, record: TensorRecord, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(child, "scan", scan, raising=False)
    return child._elements(io.BytesIO(data), record)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reads_what_torch_wrote(legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state, data = state_dict(), good(legacy)
    records = scanned(data)
    assert list(records) == list(state)
    for name, tensor in state.items():
        ours = values(data, records[name], monkeypatch)
        theirs = tensor.detach().contiguous()
        assert ours.shape == tuple(theirs.shape) and DTYPES[records[name].storage.dtype] == theirs.dtype
        assert ours.tobytes() == theirs.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_one_level_of_nesting(key: str) -> None:
    inner = OrderedDict(w=torch.ones(2))
    assert list(
        scanned(saved({"epoch": 3, key: inner, "lr": 0.1, "note": "x", "done": True, "none": None}))
    ) == ["w"]
    with pytest.raises(Refused, match="entry is a dict"):
        scanned(saved({"other": inner}))
    with pytest.raises(Refused, match="entry is a int"):
        scanned(saved({"w": torch.ones(2), "epoch": 3}))


def test_module_metadata_passes_unread() -> None:
    assert "running_var" in scanned(saved(torch.nn.BatchNorm2d(3).state_dict()))


def test_reads_an_export_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    data = exported()
    layout, records = scan_checkpoint(io.BytesIO(data), len(data))
    program = torch.export.load(io.BytesIO(data))  # the oracle; our own bytes, so trusted
    wanted = {**program.state_dict, **program.constants}
    assert layout == "export" and set(records) == set(wanted)
    for name, tensor in wanted.items():
        theirs = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert values(data, records[name], monkeypatch).tobytes() == theirs


# --- planted faults ----------------------------------------------------------------------------------------


def entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield name.partition("/")[2], archive.read(name)


def rezip(
    data: bytes, edit: dict[str, bytes | None], *, compress: str = "", more: tuple[str, ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    contents = dict(entries(data)) | edit
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                kind = zipfile.ZIP_DEFLATED if name == compress else zipfile.ZIP_STORED
                archive.writestr(f"archive/{name}", content, kind)
        for name in more:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def small() -> bytes:
    return saved(OrderedDict(w=torch.arange(6, dtype=torch.float32).view(2, 3)))


def stream(*parts: bytes) -> bytes:
    """A checkpoint whose main stream is these opcodes."""
    return rezip(small(), {"data.pkl": b"\x80\x02" + b"".join(parts) + b"."})


def tensor(
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x02K\x03\x86",
    stride: bytes = b"K\x03K\x01\x86",
    numel: int = 6,
) -> bytes:
    """Opcodes that make one tensor named w of storage 0."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
        + bytes([numel])
        + b"tQ"
    )
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"}X\x01\x00\x00\x00w" + call + b"s"


def test_the_hand_made_stream_is_whole() -> None:
    """Control for the faults below: without one, it is read."""
    assert scanned(stream(tensor()))["w"].shape == (2, 3)


def _shared_tuples() -> bytes:
    return b"K\x01" + b"q\x01h\x01\x86" * 200


def _overlap(data: bytes) -> bytes:
    """The directory says that the last entry starts where the first does."""
    end = data.rfind(b"PK\x01\x02")
    return data[: end + 42] + struct.pack("<I", 0) + data[end + 46 :]


_BIG = torch.ones(1 << 20)

FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    # Row 2: opcodes and storage metadata that the weights-only unpickler once trusted.
    "storage larger than its bytes": (lambda: stream(tensor(numel=7)), "declares 28 bytes but has 24"),
    "storage smaller than its bytes": (lambda: stream(tensor(numel=5)), "declares 20 bytes but has 24"),
    "storage missing": (lambda: rezip(small(), {"data/0": None}), "is missing"),
    "view past the end": (lambda: stream(tensor(offset=b"K\x01")), "needs element 6"),
    "stride past the end": (lambda: stream(tensor(stride=b"K\x09K\x01\x86")), "needs element 11"),
    "negative offset": (lambda: stream(tensor(offset=b"J\xff\xff\xff\xff")), "no count"),
    "expanded without end": (
        lambda: stream(tensor(shape=b"J\xff\xff\xff\x7fK\x03\x86", stride=b"K\x00K\x00\x86")),
        "needs element 0",
    ),
    "dims and strides differ": (lambda: stream(tensor(stride=b"K\x01\x85")), "2 dims with a stride of 1"),
    "shape is a nest": (lambda: stream(tensor(shape=_shared_tuples())), "2 dims"),
    "huge dim": (lambda: stream(tensor(shape=b"\x8a\x09" + b"\xff" * 8 + b"\x00K\x00\x86")), "2 dims"),
    "item set in a list": (lambda: stream(b"]K\x00K\x01s"), "what is no mapping"),
    "item set in a tensor": (
        lambda: stream(tensor()[1:].replace(b"X\x01\x00\x00\x00w", b"", 1)),
        "no mapping|empty",
    ),
    "element added to a dict": (lambda: stream(b"}K\x00a"), "what is no list"),
    "state set on a tensor": (lambda: stream(tensor()[:-1] + b"}bs"), "state is set"),
    "state set on a dict": (lambda: stream(b"}}X\x08\x00\x00\x00__dict__}sb"), "state is set"),
    "call of a value": (lambda: stream(b"})R"), "no function"),
    "call with other arguments": (
        lambda: stream(b"ccollections\nOrderedDict\nK\x01\x85R"),
        "other arguments",
    ),
    # Names and opcodes outside the lists.
    "system": (lambda: stream(b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R"), "posix.system"),
    "nested load": (lambda: stream(b"ctorch.storage\n_load_from_bytes\nU\x01x\x85R"), "_load_from_bytes"),
    "attribute path": (lambda: stream(b"ctorch\n_utils.os.system\n."), "_utils.os.system"),
    "new object": (lambda: stream(b"ccollections\nOrderedDict\n)\x81"), "opcode 0x81"),
    "old instance": (lambda: stream(b"(iposix\nsystem\n"), "opcode 0x69"),
    "object": (lambda: stream(b"(ccollections\nOrderedDict\no"), "opcode 0x6f"),
    "stack global": (lambda: stream(b"\x8c\x02os\x8c\x06system\x93"), "opcode 0x93"),
    "extension": (lambda: stream(b"\x82\x01"), "opcode 0x82"),
    "text reference": (lambda: stream(b"Pstorage\n"), "opcode 0x50"),
    "newer protocol": (lambda: rezip(small(), {"data.pkl": b"\x80\x04}."}), "protocol"),
    # Broken streams.
    "empty stack": (lambda: stream(b"0"), "opcode 0x30"),
    "nothing to stop with": (lambda: rezip(small(), {"data.pkl": b"\x80\x02."}), "stack is empty"),
    "no mark": (lambda: stream(b"t"), "no mark"),
    "unset memo": (lambda: stream(b"h\x07"), "memo 7"),
    "cut off": (lambda: rezip(small(), {"data.pkl": b"\x80\x02X\xff\x00\x00\x00abc"}), "cut off"),
    "text of 4 GB": (lambda: stream(b"X\xff\xff\xff\xff"), "text of 4294967295"),
    "bytes after the end": (lambda: rezip(small(), {"data.pkl": b"\x80\x02}.garbage"}), "no tensor|follow"),
    "values left over": (lambda: stream(b"K\x01", tensor()), "left at the end"),
    "key twice": (lambda: stream(tensor() + tensor()[1:]), "repeated"),
    "itself inside": (lambda: stream(b"}q\x01X\x01\x00\x00\x00wh\x01s"), "entry is a dict"),
    "hostile name": (
        lambda: stream(tensor().replace(b"\x01\x00\x00\x00w", b"\x05\x00\x00\x00a\x1b[2J", 1)),
        "named",
    ),
    "reserved name": (lambda: saved({"__metadata__": torch.ones(1)}), "named"),
    "a list": (lambda: saved([torch.ones(1)]), "checkpoint is a list"),
    "a whole module": (lambda: saved(torch.nn.Linear(1, 1)), "torch.nn.modules.linear"),
    "no tensor": (lambda: saved({}), "no tensor"),
    "sparse": (lambda: saved({"w": torch.eye(2).to_sparse()}), "_rebuild_sparse_tensor"),
    "complex": (lambda: saved({"w": torch.ones(2, dtype=torch.complex64)}), "ComplexFloatStorage"),
    "tied many times": (
        lambda: saved({f"w{n}": _BIG for n in range(20)}),
        "tensors of 83886080 bytes in a file",
    ),
    # Row 43 and the zip layer.
    "deflated bomb": (
        lambda: rezip(small(), {"data/0": bytes(50_000_000)}, compress="data/0"),
        "is compressed",
    ),
    "deflated stream": (lambda: rezip(small(), {}, compress="data.pkl"), "is compressed"),
    "two folders": (lambda: rezip(small(), {}, more=("other/x",)), "2 top-level folders"),
    "entry above": (lambda: rezip(small(), {}, more=("archive/../x",)), "outside"),
    "bytes before": (
        lambda: b"PK\x03\x04" + small(),
        "before the first|cannot be read|no entry header|differ",
    ),
    "overlap": (lambda: _overlap(small()), "differ on its name|overlaps"),
    "no end record": (lambda: small()[:-30], "end record is missing"),
    "big-endian": (lambda: rezip(small(), {"byteorder": b"big"}), "little-endian"),
    "other archive": (lambda: rezip(small(), {"data.pkl": None}), "neither data.pkl"),
    # The legacy layout.
    "legacy cut off": (lambda: saved(state_dict(), legacy=True)[:-1], "does not have the"),
    "legacy bytes after": (lambda: saved(state_dict(), legacy=True) + b"x", "follow the last storage"),
    "legacy other magic": (lambda: b"\x80\x02K\x01.", "magic"),
    "plain dict": (lambda: pickle.dumps({"w": 1}, protocol=2), "magic"),
    # Not checkpoints at all.
    "empty file": (lambda: b"", "none"),
    "text": (lambda: b"<html>404</html>", "3c68746d"),
    "newer plain": (lambda: pickle.dumps({"w": 1}, protocol=4), "starts with"),
    # Export archives.
    "export without bytes": (lambda: rezip(exported(), {"data/weights/weight_0": None}), "bytes are missing"),
    "export with other size": (
        lambda: rezip(exported(), {"data/weights/weight_0": b"1234"}),
        "needs element",
    ),
    "export table no JSON": (lambda: _export_table(b"{"), "not JSON"),
    "export table deep": (lambda: _export_table(b"[" * 100_000), "not JSON"),
    "export with objects": (
        lambda: _export_edit(b'"use_pickle": false', b'"use_pickle": true'),
        "serialised Python object",
    ),
    "export with symbols": (
        lambda: _export_edit(b'{"as_int": 4}', b'{"as_expr": "__import__(1)"}'),
        "plain number",
    ),
    "export other dtype": (lambda: _export_edit(b'"dtype": 7', b'"dtype": 9'), "scalar type 9"),
}
_TABLE = "data/weights/model_weights_config.json"


def _export_table(table: bytes) -> bytes:
    return rezip(exported(), {_TABLE: table})


def _export_edit(old: bytes, new: bytes) -> bytes:
    return _export_table(dict(entries(exported()))[_TABLE].replace(old, new))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults(fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(Refused, match=message) as caught:
        scanned(make())
    assert caught.value.kind in ("format", "unsupported", "limit") and len(caught.value.found) < 400


def test_opcodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_converter_machine, "MAX_OPCODES", 100)
    with pytest.raises(Refused, match="more than 100 opcodes"):
        scanned(stream(b"N" + b"\x85" * 200))


@pytest.mark.parametrize("kind", ["zip", "legacy", "export"])
@given(data=st.data())
def test_flipped_bytes_are_refused_or_stay_in_bounds(kind: str, data: st.DataObject) -> None:
    whole = exported() if kind == "export" else good(kind == "legacy")
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del broken[len(broken) - data.draw(st.sampled_from([0, 0, 0, 1, 7, 100])) :]
    try:
        records = scanned(bytes(broken))
    except Refused:
        return
    for record in records.values():
        assert record.storage.offset >= 0
        assert record.storage.offset + record.storage.numel * record.storage.itemsize <= len(broken)
        last = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.stride, strict=True))
        assert 0 in record.shape or last < record.storage.numel


# --- the second reader -------------------------------------------------------------------------------------


def compare(data: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(child, "scan", scan, raising=False)
    return child._compare_with_torch(io.BytesIO(data), scanned(data))


def test_the_two_readers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for legacy in (False, True):
        assert compare(good(legacy), monkeypatch) == torch.__version__


@pytest.mark.parametrize("fault", ["value", "shape", "dtype", "name", "missing"])
def test_a_disagreement_is_final(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: whatever differs between the readers is noticed."""
    state = OrderedDict(w=torch.arange(6, dtype=torch.float32).view(2, 3))
    if fault == "value":
        state["w"][1, 2] = -0.0
    elif fault == "shape":
        state["w"] = state["w"].view(3, 2)
    elif fault == "dtype":
        state["w"] = state["w"].view(torch.int32)
    elif fault == "name":
        state = OrderedDict(v=state["w"])
    else:
        state["x"] = torch.ones(1)
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: state)
    with pytest.raises(Refused, match="torch and our own reader"):
        compare(small(), monkeypatch)


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(Refused, match=r"torch 2\.9\.1\+cpu") as caught:
        compare(data, monkeypatch)
    assert caught.value.wanted == "torch 2.10 or later"
