"""Hostile `.keras` files, written here: each is refused with a typed error, in bounded time and memory.

Rows are those of the project's catalogue of bad inputs (CVE numbers in the ids). Each family is shown red
on a reader that was weakened on purpose, so that a refusal is known to come from the check it is meant to
come from.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tensure.api import load
from tensure.errors import FormatError, InputError, LimitError, RecordError, TensureError, UnsupportedError
from tensure.program import _fresh_names, _hdf5, _zip_door, format_program
from tensure.program import from_keras as adapter
from tensure.program._hdf5 import Hdf5File
from tensure.program._keras import _document, _table
from tensure.program._zip_door import read_zip
from tensure.program.from_keras import from_keras

Config = dict[str, Any]


def layer(kind: str, module: str = "keras.layers", **config: Any) -> Config:
    return {
        "module": module,
        "class_name": kind,
        "config": {"name": kind.lower(), **config},
        "registered_name": None,
    }


def dense(units: int = 2, **config: Any) -> Config:
    return layer("Dense", units=units, activation="linear", use_bias=True, **config)


def sequential(*layers: Config, size: int = 3) -> Config:
    source = layer("InputLayer", batch_shape=[None, size], dtype="float32")
    return layer("Sequential", "keras", layers=[source, *layers])


def hdf5(fill: Callable[[h5py.File], None] | None = None) -> bytes:
    """The variables of `sequential(dense())`, or what `fill` writes."""

    def plain(file: h5py.File) -> None:
        group = file.create_group("layers/dense/vars")
        group["0"], group["1"] = np.ones((3, 2), np.float32), np.zeros(2, np.float32)

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        (fill or plain)(file)
    return stream.getvalue()


def write(
    path: Path,
    config: Any = None,
    weights: bytes | None = None,
    *,
    version: str = "3.15.1",
    extra: dict[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
    without: str = "",
) -> Path:
    entries = {
        "metadata.json": json.dumps({"keras_version": version}).encode(),
        "config.json": config
        if isinstance(config, bytes)
        else json.dumps(config or sequential(dense())).encode(),
        "model.weights.h5": hdf5() if weights is None else weights,
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            if name != without:
                archive.writestr(name, data)
    return path


@contextmanager
def bounded(seconds: float = 2.0, most: int | None = 64 << 20) -> Iterator[None]:
    """At most so much CPU time and memory; counting memory triples the time of many small steps."""
    if most is not None:
        tracemalloc.start()
    begin = time.process_time()
    try:
        yield
        assert time.process_time() - begin < seconds
        assert most is None or tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def nothing_is_imported_or_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The payloads below would write this name; none may."""
    before = set(sys.modules)
    yield
    assert not hasattr(sys, "tensure_payload_ran")
    assert "antigravity" not in set(sys.modules) - before and "this" not in set(sys.modules) - before


def test_the_plain_file_is_read(tmp_path: Path) -> None:
    found = from_keras(write(tmp_path / "m.keras"))
    assert found.weights["dense.kernel"].decode().shape == (2, 3)
    assert load(tmp_path / "m.keras").program == found.program


# --- rows 11, 12, 14: code by name ------------------------------------------------------------------

CODE: dict[str, Config] = {
    "lambda layer": layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wEA"}}),
    "lambda by function name": layer("Lambda", function="system"),
    "function of a module (CVE-2025-1550)": {
        "module": "antigravity",
        "class_name": "function",
        "config": "geohash",
        "registered_name": "function",
    },
    "class of a module": layer("Popen", "subprocess", args=["touch", "/tmp/owned"]),
    "keras in front of another name": layer("Thing", "keras_evil.layers"),
    "keras' own function (CVE-2025-8747)": layer("function", "keras.src.utils.file_utils", fn="get_file"),
    "a path in module": layer("Dense", "keras.layers/../evil"),
    "a class of one's own": {**dense(), "registered_name": "mine>Dense"},
    "unsafe switch as a class (CVE-2025-9906)": layer("enable_unsafe_deserialization", "keras.config"),
    "unsafe switch as a function": {
        "module": "keras.config",
        "class_name": "x",
        "config": "enable_unsafe_deserialization",
        "registered_name": None,
    },
}
PLACES: dict[str, Callable[[Config], Config]] = {
    "as a layer": lambda found: sequential(found),
    "as an activation": lambda found: sequential(layer("Dense", units=2, use_bias=True, activation=found)),
    "as an initializer": lambda found: sequential(dense(kernel_initializer=found)),
    "in compile_config": lambda found: {**sequential(dense()), "compile_config": {"loss": found}},
    "deep in a wrapper": lambda found: sequential(
        layer("TimeDistributed", layer=layer("Activation", activation=found))
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", CODE)
def test_rows_11_12_14_code_by_name(code: str, place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", PLACES[place](CODE[code]))
    with bounded(), pytest.raises(UnsupportedError) as found:
        from_keras(path)
    assert found.value.file == str(path) and "config.json" in str(found.value)


@pytest.mark.parametrize("code", CODE)
def test_rows_11_12_14_are_red_without_the_check(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "check_document", lambda document: None)
    from_keras(write(tmp_path / "m.keras", PLACES["as an initializer"](CODE[code])))  # accepted (never run)


@pytest.mark.parametrize("code", [code for code in CODE if code != "a class of one's own"])
def test_the_table_refuses_what_the_check_would_miss(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "check_document", lambda document: None)
    with pytest.raises((UnsupportedError, FormatError)):
        from_keras(write(tmp_path / "m.keras", PLACES["as a layer"](CODE[code])))


# --- row 13: HDF5 models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.keras", "M.H5"])
def test_row_13_hdf5_is_refused_under_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(hdf5(lambda file: file.attrs.update(model_config="{}")))
    for read in (from_keras, load):
        with pytest.raises(UnsupportedError, match=r"safe loading does not apply.*\.keras"):
            read(tmp_path / name)


def test_row_13_is_red_without_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_check_path", lambda path: None)
    from_keras(write(tmp_path / "m.h5"))


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a folder"):
        from_keras(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\0")
    with pytest.raises(UnsupportedError, match="SavedModel") as found:
        from_keras(tmp_path)
    assert found.value.next_step and "model.save" in found.value.next_step


# --- row 15: vocabularies elsewhere -----------------------------------------------------------------

LOOKUPS = {
    "path": layer("StringLookup", vocabulary="/etc/passwd"),
    "url": layer("StringLookup", vocabulary="http://169.254.169.254/latest/meta-data"),
    "text": layer("TextVectorization", vocabulary="file:///etc/shadow"),
    "integers": layer("IntegerLookup", vocabulary="../../secret"),
    "list": layer("StringLookup", vocabulary=["a", "b"]),
}


@pytest.mark.parametrize("label", LOOKUPS)
def test_row_15_vocabulary_outside_the_file(label: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"Lookup|TextVectorization") as found:
        from_keras(write(tmp_path / "m.keras", sequential(LOOKUPS[label])))
    assert ("outside the file" in str(found.value)) == (label != "list")


def test_row_15_is_red_with_a_table_that_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_table, "_TEXT", frozenset())

    def rule(found: Any, options: Any, call: Any) -> Any:
        options.ignore("vocabulary")
        return call.one()

    monkeypatch.setitem(_table.LAYERS, "StringLookup", rule)
    weights = hdf5(lambda file: None)
    from_keras(write(tmp_path / "m.keras", sequential(LOOKUPS["path"]), weights))


# --- rows 16, 18: names that want to be paths -------------------------------------------------------

PATHS = ["assets/../../x", "/etc/x", "..", "assets\\..\\x", "C:x", "assets/a\x1b[2J", "a/../model.weights.h5"]


@pytest.mark.parametrize("name", PATHS)
def test_row_16_names_in_the_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="entry name"):
        from_keras(write(tmp_path / "m.keras", extra={name: b"x"}))
    assert [item.name for item in tmp_path.iterdir()] == ["m.keras"]


def test_row_16_is_red_without_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zip_door, "_name", lambda raw, at: raw.decode())
    from_keras(write(tmp_path / "m.keras", extra={PATHS[0]: b"x"}))


def test_unknown_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"evil\.py"):
        from_keras(write(tmp_path / "m.keras", extra={"evil.py": b"x"}))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\nb = send(x)", "\x1b[31m", "é" * 300, "for", ""])
def test_row_18_layer_names_are_never_paths(name: str, tmp_path: Path) -> None:
    config = sequential(dense())
    config["config"]["layers"][1]["config"]["name"] = name
    config["config"]["layers"][0]["config"]["name"] = name
    found = from_keras(write(tmp_path / "m.keras", config))
    assert [item.name for item in tmp_path.iterdir()] == ["m.keras"]
    for key in (*found.weights, *found.program.values):
        assert len(key) < 300 and all(char.isascii() and (char.isalnum() or char in "._") for char in key)
    assert "\x1b" not in format_program(found.program)


def test_row_18_is_red_with_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fresh_names, "plain_name", lambda wanted: wanted)
    config = sequential(dense())
    config["config"]["layers"][1]["config"]["name"] = "../x"
    with pytest.raises(RecordError, match=r"found '\.\.'"):
        from_keras(write(tmp_path / "m.keras", config))


# --- row 17: HDF5 that asks for more than it holds --------------------------------------------------


def claimed(shape: tuple[int, ...]) -> bytes:
    """A kernel of 3 x 2 whose header says `shape`."""
    data = hdf5()
    at = data.index(struct.pack("<QQ", 3, 2))
    return data[:at] + struct.pack("<QQ", *shape) + data[at + 16 :]


@pytest.mark.parametrize("shape", [(1 << 30, 1 << 30), (1 << 62, 2), (3, 1 << 20), (3, 3)])
def test_row_17_declared_over_stored(shape: tuple[int, ...], tmp_path: Path) -> None:
    config = sequential(dense(units=min(shape[1], 1 << 30)), size=min(shape[0], 1 << 30))
    with bounded(), pytest.raises((FormatError, LimitError)) as found:
        from_keras(write(tmp_path / "m.keras", config, claimed(shape)))
    assert "bytes" in str(found.value) or "shape" in str(found.value)


def zeros(count: int, **options: Any) -> bytes:
    return hdf5(lambda file: file.create_dataset("a", data=np.zeros(count, np.float32), **options))


def test_row_17_deflated_bomb() -> None:
    data = np.frombuffer(zeros(1 << 22, chunks=(1 << 20,), compression="gzip", compression_opts=9), np.uint8)
    with bounded(most=4 << 20), pytest.raises(LimitError, match="declares 16777216 bytes"):
        Hdf5File(data).read(["a"])
    assert Hdf5File(data, max_ratio=2000).read(["a"]).size == 1 << 22  # red when the cap is lifted


def test_row_17_many_datasets_over_the_same_bytes() -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = np.zeros(10_000, np.float32)
        for at in range(50):
            file[f"b{at}"] = file["a"]

    file = Hdf5File(np.frombuffer(hdf5(fill), np.uint8))
    with pytest.raises(LimitError, match="share their bytes"):
        for at in range(50):
            file.read([f"b{at}"])


def test_row_17_is_red_without_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hdf5File, "_spend", lambda self, at, size: None)
    data = np.frombuffer(zeros(10_000), np.uint8)
    file = Hdf5File(data)
    for _ in range(50):
        file.read(["a"])


def tree_of_one_node(entries: int, names: int = 0) -> bytes:
    """A group whose tree is one node `entries` times, each time one leaf that is one table as often."""
    data = bytearray(hdf5(lambda file: file.create_group("g")))
    table = len(data)
    data += b"SNOD" + struct.pack("<BBH", 1, 0, names)
    child = table
    for level in (0, 1):
        at = len(data)
        data += b"TREE" + struct.pack("<BBHQQ", 0, level, entries, (1 << 64) - 1, (1 << 64) - 1)
        data += struct.pack("<QQ", 0, child) * entries + struct.pack("<Q", 0)
        child = at
    struct.pack_into("<Q", data, 40, len(data))
    file = Hdf5File(np.frombuffer(bytes(data), np.uint8))
    group = (file.group([]) or {})["g"]
    old = next(body for kind, body in file._messages(group) if kind == 17)
    struct.pack_into("<Q", data, data.index(old, group), child)
    return bytes(data)


def test_row_17_a_tree_whose_branches_are_one_node() -> None:
    small = Hdf5File(np.frombuffer(tree_of_one_node(20), np.uint8))
    assert small.group(["g"]) == {}
    data = np.frombuffer(tree_of_one_node(65535), np.uint8)
    with bounded(seconds=20, most=None), pytest.raises(LimitError, match="nodes, names and messages"):
        Hdf5File(data).group(["g"])


def chunks_that_lie(factor: int, count: int = 1000) -> bytes:
    """`count` chunks of a float, all said to lie over the file's first half and to hold `factor` floats."""
    data = bytearray(zeros(count, chunks=(1,), compression="gzip"))
    at = data.find(b"TREE\x01")
    while at >= 0:
        level, used = data[at + 5], struct.unpack_from("<H", data, at + 6)[0]
        for key in range(at + 24, at + 24 + 32 * used, 32):
            (first,) = struct.unpack_from("<Q", data, key + 8)
            struct.pack_into("<Q", data, key + 8, first * factor)
            if level == 0:
                struct.pack_into("<I", data, key, len(data) // 2)
                struct.pack_into("<Q", data, key + 24, 0)
        at = data.find(b"TREE\x01", at + 8)
    file = Hdf5File(np.frombuffer(bytes(data), np.uint8))
    address = (file.group([]) or {})["a"]
    for kind, body in file._messages(address):
        spot = data.find(body, address)
        if kind == 1:
            for size in range(8 if body[0] == 1 else 4, len(body) - 7, 8):
                struct.pack_into("<Q", data, spot + size, count * factor)
        if kind == 8:
            struct.pack_into("<L", data, spot + 11, factor)
    return bytes(data)


def test_row_17_chunks_over_the_same_bytes_are_refused_before_there_is_an_array() -> None:
    data = np.frombuffer(chunks_that_lie(1 << 17), np.uint8)
    assert data.size < 1 << 18
    with bounded(most=4 << 20), pytest.raises(LimitError, match="chunks that share their bytes"):
        Hdf5File(data).read(["a"])


def test_row_17_no_memory_is_an_error_that_names_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Hdf5File, address: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(Hdf5File, "_dataset", full)
    with pytest.raises(LimitError, match="no memory") as found:
        Hdf5File(np.frombuffer(zeros(4), np.uint8)).read(["a"])
    assert found.value.place == "a"


FEATURES: dict[str, Callable[[h5py.File], object]] = {
    "soft link": lambda file: file.__setitem__("a", h5py.SoftLink("/b")),
    "external link": lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "b")),
    "external storage": lambda file: file.create_dataset(
        "a", (4,), np.float32, external=[("/etc/passwd", 0, 16)]
    ),
    "shuffle": lambda file: file.create_dataset("a", data=np.zeros(9), chunks=(3,), shuffle=True),
    "fletcher32": lambda file: file.create_dataset("a", data=np.zeros(9), chunks=(3,), fletcher32=True),
    "lzf": lambda file: file.create_dataset("a", data=np.zeros(9), chunks=(3,), compression="lzf"),
    "never written": lambda file: file.create_dataset("a", (4,), np.float32),
    "big end first": lambda file: file.create_dataset("a", data=np.zeros(4, ">f4")),
    "strings": lambda file: file.create_dataset("a", data=["x", "y"]),
    "records": lambda file: file.create_dataset("a", data=np.zeros(3, [("x", "<f4"), ("y", "<i4")])),
    "a group": lambda file: file.create_group("a"),
}


@pytest.mark.parametrize("label", FEATURES)
def test_hdf5_features_that_lead_elsewhere(label: str) -> None:
    data = np.frombuffer(hdf5(lambda file: FEATURES[label](file)), np.uint8)
    with pytest.raises((UnsupportedError, FormatError)) as found:
        Hdf5File(data).read(["a"])
    named = {"external link": "external link", "external storage": "another file", "soft link": "soft link"}
    assert named.get(label, "") in str(found.value)


def test_newer_hdf5_is_refused() -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver="latest") as file:
        file["a"] = 1.0
    with pytest.raises(UnsupportedError, match="superblock"):
        Hdf5File(np.frombuffer(stream.getvalue(), np.uint8))


def test_hdf5_arrays_equal_h5py() -> None:
    rng = np.random.default_rng(0)

    def fill(file: h5py.File) -> None:
        for at, kind in enumerate("f2 f4 f8 i1 i4 i8 u2".split()):
            array = (rng.standard_normal((5, 7)) * 9).astype(kind)
            file[f"deep/{at}/plain"] = array
            file.create_dataset(f"deep/{at}/deflated", data=array, chunks=(2, 3), compression="gzip")
            file.create_dataset(f"deep/{at}/chunked", data=array, chunks=(4, 4))
        file["scalar"] = np.float32(2.5)
        file.create_dataset("many", data=np.arange(4000.0), chunks=(3,))
        for at in range(700):
            file[f"wide/{at}"] = np.float32(at)

    data = hdf5(fill)
    mine = Hdf5File(np.frombuffer(data, np.uint8))

    def compare(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            have = mine.read(name.split("/"))
            assert have.dtype == item.dtype and np.array_equal(have, item[()])
        else:
            assert set(mine.group(name.split("/")) or ()) == set(item)

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(compare)


# --- the archive ------------------------------------------------------------------------------------


def test_zip_bomb_in_the_config(tmp_path: Path) -> None:
    bomb = json.dumps(sequential(dense())).encode() + b" " * (8 << 20)
    path = write(tmp_path / "m.keras", bomb, method=zipfile.ZIP_DEFLATED)
    with bounded(most=4 << 20), pytest.raises(LimitError, match="at most 64 to 1"):
        from_keras(path)


def test_zip_bomb_is_red_without_the_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensure.program import _keras_file

    monkeypatch.setattr(_keras_file, "_MAX_RATIO", 10_000)
    from_keras(
        write(
            tmp_path / "m.keras",
            json.dumps(sequential(dense())).encode() + b" " * (1 << 20),
            method=zipfile.ZIP_DEFLATED,
        )
    )


def test_a_liar_about_its_size(tmp_path: Path) -> None:
    """The directory claims 100 bytes for an entry that inflates to more."""
    path = write(tmp_path / "m.keras", method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(b"config.json") if mark == b"PK\3\4" else data.rindex(b"config.json")
        head = data.rindex(mark, 0, at)
        data[head + offset : head + offset + 4] = struct.pack("<L", 100)
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="checksum"):
        from_keras(path)


def test_too_many_entries(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", extra={f"assets/{at}": b"" for at in range(5000)})
    with bounded(), pytest.raises(LimitError, match="entries"):
        from_keras(path)


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", extra={"assets/a": b"12", "assets/b": b"12"})
    data = bytearray(path.read_bytes())
    a, b = data.index(b"PK\3\4", data.index(b"assets/a") - 40), data.rindex(b"assets/b")
    head = data.rindex(b"PK\1\2", 0, b)
    data[head + 42 : head + 46] = struct.pack("<L", a)
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match=r"disagree|share bytes"):
        from_keras(path)


def test_a_name_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", b"{}")
    with pytest.raises(FormatError, match="twice"):
        from_keras(path)


def test_bytes_behind_the_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras")
    path.write_bytes(path.read_bytes() + b"GIF89a")
    with pytest.raises(FormatError, match="behind"):
        from_keras(path)


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_a_missing_entry(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=name):
        from_keras(write(tmp_path / "m.keras", without=name))


def test_keras_2_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"Keras 2\.15"):
        from_keras(write(tmp_path / "m.keras", version="2.15.0"))


def test_zip64_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, archive.open("a", "w", force_zip64=True) as entry:
        entry.write(b"hello")
    (entry_found,) = read_zip(np.frombuffer(stream.getvalue(), np.uint8), max_entries=3).values()
    assert entry_found.read(max_bytes=9, max_ratio=9).tobytes() == b"hello"


# --- the config -------------------------------------------------------------------------------------

GARBLED: dict[str, Any] = {
    "no object": [],
    "a number": 3,
    "no layers": layer("Sequential", "keras", layers=[]),
    "layers of numbers": layer("Sequential", "keras", layers=[1]),
    "an unknown layer": sequential(layer("SpectralNormalization")),
    "an unknown model": layer("Booster", "keras"),
    "a model of one's own": layer("Dense", units=3),
    "an option of the future": sequential(dense(rank_reduction=4)),
    "a negative size": sequential(dense(units=-1)),
    "a size as text": sequential(dense(units="2")),
    "true as a size": sequential(dense(units=True)),
    "a size over 2^40": sequential(dense(units=1 << 50)),
    "another dtype": sequential(dense(dtype="mixed_float16")),
    "quantised": sequential(dense(dtype=layer("QuantizedDTypePolicy", "keras", mode="int8"))),
    "an activation nobody knows": sequential(layer("Dense", units=2, use_bias=True, activation="evil")),
    "a name that is a number": sequential({**dense(), "config": {"name": 3, "units": 2}}),
    "an input of no shape": layer("Sequential", "keras", layers=[layer("InputLayer", batch_shape="x")]),
    "a negative input": sequential(dense(), size=-3),
    "a sparse input": layer(
        "Sequential", "keras", layers=[layer("InputLayer", batch_shape=[None, 3], sparse=True), dense()]
    ),
    "no class name": {"module": "keras", "registered_name": None, "config": {}},
    "a list as class": {"module": "keras", "class_name": [], "config": {}, "registered_name": None},
    "kernel larger than input": sequential(layer("Conv2D", filters=1, kernel_size=9), size=3),
    "reshape to nothing": sequential(layer("Reshape", target_shape=[0, 3])),
    "reshape to twice open": sequential(layer("Reshape", target_shape=[-1, -1])),
    "permute by 64 dims": sequential(layer("Permute", dims=list(range(64)))),
    "repeat 2^40 times": sequential(layer("RepeatVector", n=1 << 40), layer("RepeatVector", n=1 << 40)),
    "axis far outside": sequential(layer("Softmax", axis=10**9)),
    "infinite scale": sequential(layer("Rescaling", scale=1e39)),
    "infinitely small": sequential(layer("Rescaling", scale="nan")),
}


@pytest.mark.parametrize("label", GARBLED)
def test_a_garbled_config(label: str, tmp_path: Path) -> None:
    with bounded(), pytest.raises(InputError) as found:
        from_keras(write(tmp_path / "m.keras", json.dumps(GARBLED[label]).encode()))
    assert len(str(found.value).splitlines()) == 1


def test_json_bombs(tmp_path: Path) -> None:
    for text in (b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" + b"0," * 600_000 + b"0]"):
        with bounded(), pytest.raises((LimitError, FormatError)):
            from_keras(write(tmp_path / "m.keras", text))


def graph(layers: list[Config], outputs: Any, inputs: Any = None) -> Config:
    return layer(
        "Functional",
        "keras.src.models.functional",
        layers=layers,
        input_layers=inputs or ["x", 0, 0],
        output_layers=outputs,
    )


def node(name: str, call: int = 0, index: int = 0) -> Config:
    history = {"shape": [None, 3], "dtype": "float32", "keras_history": [name, call, index]}
    return {"args": [{"class_name": "__keras_tensor__", "config": history}], "kwargs": {}}


def named(found: Config, name: str, *nodes: Config) -> Config:
    return {**found, "config": {**found["config"], "name": name}, "name": name, "inbound_nodes": list(nodes)}


SOURCE = named(layer("InputLayer", batch_shape=[None, 3], dtype="float32"), "x")
RELU = layer("ReLU")
GRAPHS: dict[str, Config] = {
    "a cycle": graph([SOURCE, named(RELU, "a", node("b")), named(RELU, "b", node("a"))], ["b", 0, 0]),
    "a loop of one": graph([SOURCE, named(RELU, "a", node("a"))], ["a", 0, 0]),
    "nobody": graph([SOURCE, named(RELU, "a", node("z"))], ["a", 0, 0]),
    "no such call": graph([SOURCE, named(RELU, "a", node("x", 7))], ["a", 0, 0]),
    "no such result": graph([SOURCE, named(RELU, "a", node("x", 0, 3))], ["a", 0, 0]),
    "no such output": graph([SOURCE, named(RELU, "a", node("x"))], ["a", 5, 0]),
    "negative call": graph([SOURCE, named(RELU, "a", node("x", -1))], ["a", 0, 0]),
    "two of a name": graph([SOURCE, named(RELU, "a", node("x")), named(RELU, "a", node("x"))], ["a", 0, 0]),
    "an output that is text": graph([SOURCE], "x"),
    "no outputs": graph([SOURCE], []),
    "an input that is a layer": graph([SOURCE, named(RELU, "a", node("x"))], ["a", 0, 0], ["a", 0, 0]),
    "calls as a number": graph([SOURCE, {**named(RELU, "a"), "inbound_nodes": 3}], ["a", 0, 0]),
    "calls of Keras 2": graph(
        [SOURCE, {**named(RELU, "a"), "inbound_nodes": [[["x", 0, 0, {}]]]}], ["a", 0, 0]
    ),
    "a mask": graph(
        [SOURCE, named(RELU, "a", {**node("x"), "kwargs": {"mask": node("x")["args"][0]}})], ["a", 0, 0]
    ),
    "in training": graph(
        [SOURCE, named(RELU, "a", {**node("x"), "kwargs": {"training": True}})], ["a", 0, 0]
    ),
    "an op nobody lists": graph(
        [SOURCE, named(layer("Custom", "keras.src.ops.numpy"), "a", node("x"))], ["a", 0, 0]
    ),
}


@pytest.mark.parametrize("label", GRAPHS)
def test_a_garbled_graph(label: str, tmp_path: Path) -> None:
    with bounded(), pytest.raises(InputError):
        from_keras(write(tmp_path / "m.keras", GRAPHS[label], hdf5(lambda file: None)))


def test_the_plain_graph_is_read(tmp_path: Path) -> None:
    config = graph([SOURCE, named(RELU, "b", node("a")), named(RELU, "a", node("x"))], ["b", 0, 0])
    found = from_keras(write(tmp_path / "m.keras", config, hdf5(lambda file: None)))
    assert [item.op for item in found.program.entry().body] == ["relu", "relu"]  # type: ignore[union-attr]


def test_models_called_twice_that_double(tmp_path: Path) -> None:
    """Twenty-five models, each calling the next one twice, would be 2^25 calls."""
    inner: Config = RELU
    for _ in range(25):
        twice = [named(inner, "a", node("x"), node("a", 0)), SOURCE]
        functional = inner["class_name"] == "Functional"
        inner = graph(twice, ["a", 2 if functional else 1, 0])
    with bounded(4.0, None), pytest.raises(LimitError, match="over 8192"):
        from_keras(write(tmp_path / "m.keras", inner, hdf5(lambda file: None)))


# --- damage -----------------------------------------------------------------------------------------


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras")
    data = path.read_bytes()
    for size in [*range(1, 200, 7), *range(200, len(data), 211)]:
        path.write_bytes(data[:size])
        with pytest.raises(InputError):
            from_keras(path)


def test_hdf5_cut_short_anywhere() -> None:
    data = hdf5()
    for size in range(0, len(data), 61):
        with pytest.raises(InputError):
            file = Hdf5File(np.frombuffer(data[:size], np.uint8))
            file.read(["layers", "dense", "vars", "0"])


def test_no_mutation_escapes_the_errors(tmp_path: Path) -> None:
    """Bytes of the HDF5 part and of the archive changed at random: an answer or a typed error."""
    draw = random.Random(7)
    weights = hdf5(
        lambda file: [
            file.create_dataset(
                "layers/dense/vars/0", data=np.ones((3, 2), np.float32), chunks=(2, 2), compression="gzip"
            ),
            file.create_dataset("layers/dense/vars/1", data=np.zeros(2, np.float32)),
        ]
    )
    live = [at for at, byte in enumerate(weights) if byte]
    refused = 0
    begin = time.process_time()
    for turn in range(500):
        changed = bytearray(weights)
        for _ in range(draw.randint(1, 4)):
            at = draw.choice(live) + draw.randint(-2, 8)
            changed[at % len(changed)] = draw.choice((0, 1, 2, 127, 128, 255, draw.randrange(256)))
        path = write(tmp_path / "m.keras", weights=bytes(changed) if turn % 3 else None)
        if not turn % 3:
            data = bytearray(path.read_bytes())
            data[draw.randrange(len(data)) if turn % 2 else -draw.randint(1, 300)] = draw.randrange(256)
            path.write_bytes(bytes(data))
        try:
            from_keras(path, normalise=False)
        except TensureError:
            refused += 1
    assert refused > 100
    assert time.process_time() - begin < 60


def test_the_doors_are_the_ones_in_use() -> None:
    """The controls above weaken these modules; they would prove nothing of others."""
    assert adapter.check_document is _document.check_document
    assert _hdf5.Hdf5File is Hdf5File and _zip_door.read_zip is read_zip
