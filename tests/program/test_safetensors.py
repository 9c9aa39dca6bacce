"""Safetensors files: the same as upstream reads and writes, and stricter where upstream lets lies pass."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.program import _encodings, _safetensors
from tensure.program._safetensors import (
    SafetensorsFile,
    open_safetensors,
    parse_safetensors,
    read_safetensors,
    read_sharded,
    safetensors_bytes,
    write_safetensors,
)
from tensure.program._weights import StoredTensor

from .hostile_safetensors import Parts, mutate, small

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def _parse(raw: bytes) -> SafetensorsFile:
    return parse_safetensors(np.frombuffer(raw, dtype=np.uint8), "x.safetensors")


@st.composite
def _arrays(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
    found = {}
    for name in draw(st.sets(names.filter(lambda name: name != "__metadata__"), max_size=5)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        seed = draw(st.integers(0, 2**16))
        found[name] = np.random.default_rng(seed).integers(0, 2, shape).astype(draw(st.sampled_from(DTYPES)))
    return found


METADATA = st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)


# --- differential: both directions -------------------------------------------------------------------


@given(arrays=_arrays(), metadata=METADATA)
@settings(max_examples=100, deadline=None)
def test_reads_what_upstream_writes(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    # No metadata is given as None: of no tensors and {} upstream 0.8.0 writes JSON that nobody can read.
    found = _parse(safetensors.numpy.save(arrays, metadata=metadata or None))
    assert found.tensors.keys() == arrays.keys()
    assert found.metadata == metadata
    for name, values in arrays.items():
        decoded = found.tensors[name].decode()
        assert (decoded.dtype, decoded.shape) == (values.dtype, values.shape)
        assert decoded.tobytes() == values.tobytes()


@given(arrays=_arrays(), metadata=METADATA)
@settings(max_examples=100, deadline=None)
def test_upstream_reads_what_we_write(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    raw = safetensors_bytes(arrays, metadata)
    found = safetensors.numpy.load(raw)
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert found[name].tobytes() == values.tobytes()


@given(arrays=_arrays(), metadata=METADATA, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_equal_content_gives_equal_bytes(arrays: dict[str, Any], metadata: dict[str, str], seed: int) -> None:
    raw = safetensors_bytes(arrays, metadata)
    names = list(arrays)
    random.Random(seed).shuffle(names)
    keys = list(reversed(metadata))
    assert (
        safetensors_bytes({name: arrays[name] for name in names}, {key: metadata[key] for key in keys}) == raw
    )
    back = _parse(raw)
    assert safetensors_bytes(back.tensors, back.metadata) == raw
    starts = [int(tensor.data.__array_interface__["data"][0]) for tensor in back.tensors.values()]
    base = int(np.frombuffer(raw, dtype=np.uint8).__array_interface__["data"][0])
    for start, tensor in zip(starts, back.tensors.values(), strict=True):
        assert tensor.data.size == 0 or (start - base) % tensor.decode().dtype.itemsize in (
            0,
            tensor.decode().dtype.itemsize // 2,
        )


def test_bf16_travels_as_its_bits(tmp_path: Path) -> None:
    patterns = np.arange(0, 1 << 16, 7, dtype=np.uint16)
    write_safetensors(tmp_path / "m", {"x": StoredTensor(patterns.shape, "bf16", patterns.view(np.uint8))})
    found = read_safetensors(tmp_path / "m")["x"]
    assert found.encoding == "bf16"
    assert (found.data.view(np.uint16) == patterns).all()
    assert safetensors.deserialize((tmp_path / "m").read_bytes())[0][1]["dtype"] == "BF16"


def test_writing_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_safetensors(target, {"x": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert target.read_bytes() == b"old"
    monkeypatch.undo()
    write_safetensors(target, {"x": np.zeros(3)}, {"a": "b"})
    assert open_safetensors(target).metadata == {"a": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"x": StoredTensor.from_array(np.ones(32, dtype=np.float32), "q8_0")}, None, UnsupportedError),
        ({"x": np.ones(2, dtype=np.complex64)}, None, UnsupportedError),
        ({"__metadata__": np.ones(2)}, None, FormatError),
        ({"": np.ones(2)}, None, FormatError),
        ({"a\nb": np.ones(2)}, None, FormatError),
        ({"x": np.ones(2)}, {"a": 1}, FormatError),
        ({"x": np.ones(2)}, {"a": "\ud800"}, FormatError),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tensors: Any, metadata: Any, error: type[TensureError]
) -> None:
    with pytest.raises(error):
        safetensors_bytes(tensors, metadata)


# --- the catalogue: each attack is refused for its own reason ----------------------------------------


@dataclass(frozen=True)
class Attack:
    """One lie in an otherwise valid file. `row` is its number in the catalogue of bad inputs."""

    row: int
    name: str
    change: Callable[[Parts], bytes | None]
    error: type[TensureError]
    message: str

    def raw(self) -> bytes:
        parts = copy.deepcopy(small())
        return self.change(parts) or parts.serialise()


def _set(name: str, **fields: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.tensor(name).update(fields)


def _replace(old: str, new: str) -> Callable[[Parts], None]:
    """The header with one piece of its text replaced."""

    def change(parts: Parts) -> None:
        text = json.dumps(parts.header)
        assert text.count(old) == 1
        parts.header = text.replace(old, new).encode()

    return change


def _file(**fields: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for name, value in fields.items():
            setattr(parts, name, value)

    return change


_A = '"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}'
ATTACKS = [
    Attack(
        69,
        "bytes after",
        lambda parts: parts.serialise() + b"PK\3\4",
        FormatError,
        "4 bytes follow the last tensor",
    ),
    Attack(69, "bytes before", lambda parts: b"\x7fELF" + parts.serialise(), FormatError, "header of"),
    Attack(69, "a hole", _set("b", data_offsets=[25, 33]), FormatError, "leaves a hole"),
    Attack(
        69,
        "a hole for a missing tensor",
        lambda parts: parts.header.pop("b") and None,
        FormatError,
        "leaves a hole",
    ),  # type: ignore[union-attr,call-arg]
    Attack(69, "an overlap", _set("b", data_offsets=[16, 24]), FormatError, "overlaps"),
    Attack(
        69,
        "the same bytes twice",
        _replace(_A, _A + ", " + _A.replace('"a"', '"a2"')),
        FormatError,
        "overlaps",
    ),
    Attack(69, "header not an object", _file(header=b"[]" + b" " * 9), FormatError, "starts with b'\\['"),
    Attack(
        69,
        "header after spaces",
        lambda parts: Parts(b" " + json.dumps(parts.header).encode(), parts.data).serialise(),
        FormatError,
        "starts with b' '",
    ),
    Attack(69, "two documents", _replace("[33, 33]}}", "[33, 33]}} {}"), FormatError, "not JSON: Extra data"),
    Attack(35, "past the end", lambda parts: parts.serialise()[:-1], FormatError, "past the file"),
    Attack(
        35,
        "far past the end",
        _set("c", shape=[2**40], data_offsets=[32, 32 + 2**40]),
        FormatError,
        "past the file",
    ),
    Attack(35, "falling offsets", _set("b", data_offsets=[32, 24]), FormatError, "rising"),
    Attack(35, "header past the end", _file(length=2**20), FormatError, "header of 1048576 bytes"),
    Attack(35, "header of 2^63", _file(length=2**63), FormatError, "header of 9223372036854775808 bytes"),
    Attack(35, "header of 2^64-1", _file(length=-1), FormatError, "header of 18446744073709551615 bytes"),
    Attack(35, "too short", lambda parts: b"\2\0\0\0\0\0\0\0{", FormatError, "9 bytes"),
    Attack(32, "negative dimension", _set("a", shape=[-2, -3]), FormatError, "shape \\[-2, -3\\]"),
    Attack(32, "product wraps to the true one", _set("a", shape=[2**32, 2**32, 6]), FormatError, "2\\^62"),
    Attack(32, "bool for a dimension", _set("a", shape=[True, 6]), FormatError, "shape \\[True, 6\\]"),
    Attack(32, "fraction for a dimension", _set("a", shape=[2.0, 3]), FormatError, "whole numbers only"),
    Attack(32, "exponent for a dimension", _replace("[2, 3]", "[6e0]"), FormatError, "whole numbers only"),
    Attack(32, "NaN for a dimension", _replace("[2, 3]", "[NaN]"), FormatError, "constant NaN"),
    Attack(32, "a string for a dimension", _set("a", shape=["2", 3]), FormatError, "whole numbers"),
    Attack(32, "nine dimensions", _set("a", shape=[1] * 7 + [2, 3]), FormatError, "at most 8"),
    Attack(
        32, "a number of 5000 digits", _replace("[2, 3]", "[" + "9" * 5000 + "]"), FormatError, "5000 digits"
    ),
    Attack(32, "shape not a list", _set("a", shape=6), FormatError, "shape 6"),
    Attack(
        32,
        "shape too small for the bytes",
        _set("a", shape=[2, 2]),
        FormatError,
        "24 bytes for F32.*wanted 16",
    ),
    Attack(32, "three offsets", _set("a", data_offsets=[0, 24, 24]), FormatError, "two rising"),
    Attack(33, "unknown dtype", _set("a", dtype="F31"), FormatError, "'F31'"),
    Attack(33, "dtype not a string", _set("a", dtype=4), FormatError, "dtype '4'"),
    Attack(33, "dtype we do not compute", _set("a", dtype="F8_E4M3"), UnsupportedError, "'F8_E4M3'"),
    Attack(33, "a key too many", _set("a", location="/etc/passwd"), FormatError, "exactly dtype"),
    Attack(
        33,
        "a key missing",
        lambda parts: parts.tensor("a").pop("shape") and None,
        FormatError,
        "exactly dtype",
    ),
    Attack(33, "a tensor that is a list", _replace(_A, '"a": []'), FormatError, "exactly dtype"),
    Attack(33, "a number in the metadata", _replace('"pt"', "1"), FormatError, "object of strings"),
    Attack(33, "an object in the metadata", _replace('"pt"', "{}"), FormatError, "object of strings"),
    Attack(
        33,
        "metadata a list",
        _replace('{"format": "pt", "note": "two\\nlines"}', "[]"),
        FormatError,
        "object of strings",
    ),
    Attack(33, "an empty name", _replace('"a"', '""'), FormatError, "printable"),
    Attack(33, "escape codes in a name", _replace('"a"', '"\\u001b[2J"'), FormatError, "printable"),
    Attack(33, "half a character in a name", _replace('"a"', '"\\ud800"'), FormatError, "Unicode"),
    Attack(
        33,
        "not UTF-8",
        lambda parts: Parts(
            json.dumps(parts.header).encode().replace(b'"a"', b'"\xff"'), parts.data
        ).serialise(),
        FormatError,
        "not valid UTF-8",
    ),
    Attack(
        33,
        "nested 100,000 deep",
        _file(header=b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        LimitError,
        "nested over 3",
    ),
    Attack(33, "nested past an escaped quote", _replace(_A, '"\\"": [[[[]]]]'), LimitError, "nested over 3"),
    Attack(70, "a tensor twice", _replace(_A, _A + ", " + _A), FormatError, "'a' stands there twice"),
    Attack(
        70,
        "a tensor twice, spelled differently",
        _replace(_A, _A + ", " + _A.replace('"a"', '"\\u0061"')),
        FormatError,
        "'a' stands there twice",
    ),
    Attack(
        70,
        "offsets twice",
        _replace('"data_offsets": [0, 24]', '"data_offsets": [0, 24], "data_offsets": [0, 24]'),
        FormatError,
        "'data_offsets' stands there twice",
    ),
    Attack(
        70,
        "metadata twice",
        _replace('{"__metadata__"', '{"__metadata__": {}, "__metadata__"'),
        FormatError,
        "'__metadata__' stands there twice",
    ),
    Attack(
        70,
        "a metadata key twice",
        _replace('"format": "pt"', '"format": "pt", "format": "tf"'),
        FormatError,
        "'format' stands there twice",
    ),
    Attack(71, "2^63 beside 0", _set("d", shape=[0, 2**63]), FormatError, r"below 2\^48"),
    Attack(71, "2^48 beside 0", _set("d", shape=[0, 2**48]), FormatError, r"below 2\^48"),
    Attack(71, "2^64 before 0", _set("d", shape=[2**64, 0]), FormatError, r"below 2\^48"),
    Attack(71, "10^30 beside 0", _set("d", shape=[10**30, 0]), FormatError, "31 digits"),
]


def test_the_unharmed_file_is_accepted() -> None:
    """The control of every attack below: without its one lie, the same file reads."""
    found = _parse(small().serialise())
    assert list(found.tensors) == ["a", "b", "c", "d"]
    assert found.metadata == {"format": "pt", "note": "two\nlines"}
    assert found.tensors["c"].decode().tolist() is True


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.row} {attack.name}")
def test_the_catalogue_is_refused(attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(attack.raw())
    with pytest.raises(attack.error, match=f"^{path}[,:] .*{attack.message}"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "name", ["a tensor twice", "a tensor twice, spelled differently", "a metadata key twice"]
)
def test_upstream_shows_the_danger_of_row_70(name: str) -> None:
    """Its control: the duplicates are otherwise valid, and a lenient reader takes one of the two unasked."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    assert safetensors.deserialize(attack.raw())


@pytest.mark.parametrize("name", ["2^48 beside 0", "nine dimensions"])
def test_a_weakened_reader_accepts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    monkeypatch.setattr(_safetensors, "MAX_DIMS", 9)
    for module in (_safetensors, _encodings):
        monkeypatch.setattr(module, "MAX_DIM", 2**64)
    assert _parse(attack.raw()).tensors


# --- shards ------------------------------------------------------------------------------------------


def _sharded(folder: Path) -> Path:
    write_safetensors(folder / "m-1.safetensors", {"a": np.arange(3), "b": np.arange(4)})
    write_safetensors(folder / "m-2.safetensors", {"c": np.arange(5)})
    placed = {"c": "m-2.safetensors", "a": "m-1.safetensors", "b": "m-1.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 150.0, "more": {}}, "weight_map": placed}))
    return index


def test_shards_are_gathered(tmp_path: Path) -> None:
    found = read_sharded(_sharded(tmp_path))
    assert {name: tensor.shape for name, tensor in found.items()} == {"c": (5,), "a": (3,), "b": (4,)}
    assert list(found) == ["c", "a", "b"]


def test_shards_are_found_beside_an_index_named_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = _sharded(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_sharded(index.name).keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"m-2.safetensors"', '"../m-2.safetensors"', "plain file name"),
        ('"m-2.safetensors"', '"x/../m-2.safetensors"', "plain file name"),
        ('"m-2.safetensors"', '"/etc/m-2.safetensors"', "plain file name"),
        ('"m-2.safetensors"', '"..\\\\m-2.safetensors"', "plain file name"),
        ('"m-2.safetensors"', '"m-2.safetensors\\n"', "plain file name"),
        ('"m-2.safetensors"', '"m-2.safetensors\\u0000.bin"', "plain file name"),
        ('"m-2.safetensors"', '".m-2.safetensors"', "plain file name"),
        ('"m-2.safetensors"', '"pickle.bin"', "plain file name"),
        ('"m-2.safetensors"', "2", "plain file name"),
        ('"m-2.safetensors"', '"m-3.safetensors"', "m-3.safetensors: cannot open: No such file"),
        ('"m-2.safetensors"', '"link.safetensors"', "link.safetensors: cannot open: it is a symbolic link"),
        ('"m-2.safetensors"', '"folder.safetensors"', "not a regular file"),
        ('"c"', '"x"', "tensor 'x': the tensor is not in m-2.safetensors"),
        ('"c": "m-2.safetensors", ', "", None),
        ('"a": "m-1.safetensors", ', "", "tensor 'a': the tensor lies in m-1.safetensors"),
        ('"b": "m-1.safetensors"', '"b": "m-2.safetensors"', "tensor 'b': the tensor is not in m-2"),
        ('"b"', '"a"', "'a' stands there twice"),
        ('"weight_map"', '"weights"', "wanted an object with weight_map"),
        ('"more": {}', '"more": [[[[]]]]', "nested over 4"),
        ("150.0", "NaN", "constant NaN"),
    ],
)  # fmt: skip
def test_a_lying_index_is_refused(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    index = _sharded(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "m-2.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    text = index.read_text()
    assert text.count(old) == 1
    index.write_text(text.replace(old, new))
    if message is None:  # a shard that nothing points to is not read
        assert read_sharded(index).keys() == {"a", "b"}
        return
    with pytest.raises(InputError, match=message):
        read_sharded(index)


def test_a_weakened_index_reader_follows_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the paths above: the folder and file are there to be reached."""
    (tmp_path / "inner").mkdir()
    index = _sharded(tmp_path / "inner")
    (tmp_path / "inner" / "m-2.safetensors").rename(tmp_path / "m-2.safetensors")
    index.write_text(index.read_text().replace("m-2.", "../m-2."))
    with pytest.raises(FormatError, match="plain file name"):
        read_sharded(index)
    monkeypatch.setattr(_safetensors, "_SHARD_NAME", re.compile(".*"))
    assert read_sharded(index).keys() == {"a", "b", "c"}


# --- anything at all: only our errors come out ---------------------------------------------------------


def _survives(seed: int) -> bool:
    raw = mutate(copy.deepcopy(small()), random.Random(seed))
    try:
        for tensor in _parse(raw).tensors.values():
            tensor.decode()
    except TensureError as error:
        str(error).encode()  # printable, whatever stood in the file
        return False
    return True


def test_structured_damage_gives_only_our_errors() -> None:
    accepted = sum(_survives(seed) for seed in range(2000))
    assert 20 < accepted < 1000, "the mutants are neither all refused nor mostly harmless"


def test_the_search_finds_a_missing_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control: a reader that believes what the header says of itself fails in other ways."""
    monkeypatch.setattr(_safetensors, "_whole", lambda numbers: True)
    with pytest.raises((TypeError, ValueError, IndexError)):
        for seed in range(2000):
            _survives(seed)


def test_upstream_and_we_agree_on_damage() -> None:
    """Whatever we accept of the mutants, upstream accepts and reads alike: we are never the laxer one."""
    compared = 0
    for seed in range(2000):
        raw = mutate(copy.deepcopy(small()), random.Random(seed))
        try:
            ours = _parse(raw)
        except TensureError:
            continue
        theirs = dict(safetensors.deserialize(raw))
        assert theirs.keys() == ours.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert tuple(theirs[name]["shape"]) == tensor.shape
            assert bytes(theirs[name]["data"]) == tensor.data.tobytes()
        compared += 1
    assert compared > 20
