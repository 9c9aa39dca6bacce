"""Weights in other files: read beneath the model's folder, and from nowhere else whatever the file says."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.program import _onnx_external
from tensure.program._onnx import OnnxModel
from tensure.program._onnx_reader import read_onnx, read_onnx_bytes

from .hostile_onnx import Message, entry, external, graph, header, model, node, value
from .onnx_peer import compare

VALUES = np.arange(16, dtype=np.float32)
SECRET = b"not yours" * 16


def _with(*initializers: Message) -> Message:
    return model(graph([node("Relu", "x", "y")], [value("x")], [value("y")], initializers))


def _write(folder: Path, *initializers: Message) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(_with(*initializers).serialise())
    return path


def _weights(**entries: str) -> Message:
    return external("w", "f32", (16,), **entries)


def _decoded(found: OnnxModel) -> list[float]:
    values = found.graph.initializers["w"].decode()
    assert values.dtype == np.float32
    return np.asarray(values).tolist()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with a model's weights in it, and secrets around it."""
    folder = tmp_path / "house"
    (folder / "sub" / "deep").mkdir(parents=True)
    for path in (folder / "w.bin", folder / "sub" / "w.bin", folder / "sub" / "deep" / "w.bin"):
        path.write_bytes(b"head" + VALUES.tobytes() + b"tail")
    (tmp_path / "secret").write_bytes(SECRET)
    return folder


# --- what is right is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "sub/deep/w.bin"])
def test_weights_are_read_where_they_lie(house: Path, location: str) -> None:
    path = _write(house, _weights(location=location, offset="4", length="64"))
    assert _decoded(read_onnx(path)) == VALUES.tolist()
    assert _decoded(read_onnx_bytes(path.read_bytes(), folder=house)) == VALUES.tolist()


def test_relative_paths_and_the_working_folder(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(house, _weights(location="w.bin", offset="4"))
    monkeypatch.chdir(house)
    assert _decoded(read_onnx("m.onnx")) == VALUES.tolist()
    monkeypatch.chdir(house.parent)
    assert _decoded(read_onnx("house/m.onnx")) == VALUES.tolist()


def test_weights_are_a_view_of_one_mapping_that_outlives_the_reading(house: Path) -> None:
    tensors = [external(f"w{i}", "f32", (1,), location="w.bin", offset=str(4 + 4 * i)) for i in range(16)]
    before = len(os.listdir("/proc/self/fd"))
    found = read_onnx(_write(house, *tensors))
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "a mapping keeps a descriptor of its own"
    at = [stored.data.__array_interface__["data"][0] for stored in found.graph.initializers.values()]
    assert [b - a for a, b in zip(at, at[1:], strict=False)] == [4] * 15
    assert found.graph.initializers["w7"].decode().tolist() == [7.0]


def test_a_checksum_is_checked(house: Path) -> None:
    digest = hashlib.sha1((house / "w.bin").read_bytes()).hexdigest()
    path = _write(house, _weights(location="w.bin", offset="4", checksum=digest.upper()))
    assert _decoded(read_onnx(path)) == VALUES.tolist()
    (house / "w.bin").write_bytes(b"head" + VALUES.tobytes() + b"tale")
    with pytest.raises(FormatError, match=f"'w.bin' has SHA-1 .*wanted {digest.upper()}"):
        read_onnx(path)


def test_the_onnx_package_writes_what_we_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    built = onnx.load_from_string(_with(header("w", "f32", (16,)).add(9, VALUES.tobytes())).serialise())
    for together in (True, False):
        path = tmp_path / f"{together}" / "m.onnx"
        path.parent.mkdir()
        onnx.save_model(
            onnx.ModelProto.FromString(built.SerializeToString()),
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=together,
            location="weights.bin" if together else None,
            size_threshold=0,
        )
        assert b"location" in path.read_bytes()
        found = read_onnx(path)
        assert _decoded(found) == VALUES.tolist()
        assert compare(onnx.load(path).SerializeToString(), found)


# --- rows 19 to 22 and 28: nothing leads elsewhere -----------------------------------------------------

LOCATIONS = [
    (19, "../secret"),
    (19, "../house/w.bin"),
    (20, "sub/../../secret"),
    (20, "sub/../w.bin"),
    (20, "sub/deep/../../../secret"),
    (19, ".."),
    (19, "."),
    (19, "./w.bin"),
    (19, "sub/./w.bin"),
    (19, "sub//w.bin"),
    (19, "w.bin/"),
    (19, "/etc/passwd"),
    (19, "//etc/passwd"),
    (19, ""),
    (19, "..\\secret"),
    (19, "C:w.bin"),
    (19, "file:///etc/passwd"),
    (19, "w.bin\0"),
    (19, "w.bin\n"),
    (19, "a/" * 16 + "w.bin"),
    (19, "n" * 1025),
    (28, "*/_ORT_MEM_ADDR_/*"),
    (28, "*/_ort_mem_addr_/*"),
    (28, "_ORT_MEM_ADDR_"),
    (28, "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*"),
]


@pytest.mark.parametrize(("row", "location"), LOCATIONS)
def test_a_location_that_is_no_plain_path_is_refused(house: Path, row: int, location: str) -> None:
    for at in (house, house / "sub"):
        path = _write(at, _weights(location=location))
        wanted = "reserved for addresses in memory" if row == 28 else "wanted a plain relative path"
        with pytest.raises(FormatError, match=f"m.onnx, byte .*initializer 0 'w': location .*{wanted}"):
            read_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "sub/../../secret", "sub/deep/../../../secret"])
def test_without_the_check_of_the_path_the_secret_is_read(
    house: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of rows 19 and 20: these do lead to the secret."""
    monkeypatch.setattr(_onnx_external, "check_location", lambda location: None)
    found = read_onnx(_write(house, _weights(location=location)))
    assert found.graph.initializers["w"].data.tobytes() == SECRET[:64]


def test_without_the_check_of_the_marker_its_file_is_read(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of row 28: as a path, the marker is a plain one."""
    (house / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (house / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(SECRET)
    path = _write(house, _weights(location="*/_ORT_MEM_ADDR_/*"))
    with pytest.raises(FormatError, match="reserved"):
        read_onnx(path)
    monkeypatch.setattr(_onnx_external, "_RESERVED", re.compile("(?!)"))
    assert read_onnx(path).graph.initializers["w"].data.tobytes() == SECRET[:64]


def _links(house: Path) -> dict[str, str]:
    """Row 21: a symbolic link as the last, a middle and the first component; row 22: a hard link."""
    secret = house.parent / "secret"
    (house / "last.bin").symlink_to(secret)
    (house / "inside.bin").symlink_to("w.bin")
    (house / "gone.bin").symlink_to("nowhere")
    (house / "loop").symlink_to("loop")
    (house / "up").symlink_to("..", target_is_directory=True)
    (house / "sub" / "up").symlink_to(house.parent, target_is_directory=True)
    os.link(secret, house / "hard.bin")
    return {
        "last.bin": "symbolic link",
        "inside.bin": "symbolic link",
        "gone.bin": "symbolic link",
        "loop": "symbolic link",
        "loop/w.bin": "symbolic link",
        "up/secret": "symbolic link",
        "sub/up/secret": "symbolic link",
        "hard.bin": "2 names",
    }


def test_links_of_every_kind_are_refused(house: Path) -> None:
    for location, message in _links(house).items():
        with pytest.raises(TensureError, match=f"m.onnx, byte .*'w'.*{message}.*cp -rL"):
            read_onnx(_write(house, _weights(location=location)))


@pytest.mark.parametrize("location", ["last.bin", "up/secret", "sub/up/secret", "hard.bin"])
def test_a_reader_that_follows_links_reads_the_secret(
    house: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of rows 21 and 22: opened by path, each of these leads to the secret."""
    _links(house)

    def careless(folder: int, location: str) -> Any:
        return np.fromfile(house / location, dtype=np.uint8)

    monkeypatch.setattr(_onnx_external, "open_beneath", careless)
    found = read_onnx(_write(house, _weights(location=location)))
    assert found.graph.initializers["w"].data.tobytes() == SECRET[:64]


def test_a_folder_swapped_for_a_link_while_reading_leads_nowhere(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a component is, is asked of the descriptor that is read: there is no time between."""
    path = _write(house, _weights(location="sub/w.bin", offset="4"))
    (house.parent / "elsewhere").mkdir()
    (house.parent / "elsewhere" / "w.bin").write_bytes(SECRET)
    plain = _onnx_external.map_file

    def swapping(name: str, **how: Any) -> Any:
        (house / "sub").rename(house / "moved")
        (house / "sub").symlink_to(house.parent / "elsewhere", target_is_directory=True)
        return plain(name, **how)

    monkeypatch.setattr(_onnx_external, "map_file", swapping)
    assert _decoded(read_onnx(path)) == VALUES.tolist()


def test_what_is_no_plain_file_is_refused(house: Path) -> None:
    os.mkfifo(house / "pipe")
    (house / "empty").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(house / "socket"))
        for location, message in (
            ("pipe", "not a regular file"),
            ("socket", "cannot open"),
            ("sub", "not a regular file"),
            ("empty", "empty"),
            ("absent", "No such file"),
            ("absent/w.bin", "No such file"),
            ("w.bin/w.bin", "Not a directory"),
        ):
            with pytest.raises(InputError, match=f"m.onnx, byte .*'w'.*{message}"):
                read_onnx(_write(house, _weights(location=location)))


# --- extents and keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"offset": "9"}, FormatError, "ends past 'w.bin'; wanted at most 72 bytes"),
        ({"offset": "73", "length": "64"}, FormatError, "ends past"),
        ({"offset": str(2**63 - 1)}, FormatError, "ends past"),
        ({"offset": str(2**64 - 4)}, FormatError, "offset .*wanted a decimal number"),
        ({"offset": "-4"}, FormatError, "offset '-4'"),
        ({"offset": "+4"}, FormatError, "wanted a decimal number"),
        ({"offset": " 4"}, FormatError, "wanted a decimal number"),
        ({"offset": "4_0"}, FormatError, "wanted a decimal number"),
        ({"offset": "٤"}, FormatError, "wanted a decimal number"),
        ({"offset": "0x4"}, FormatError, "wanted a decimal number"),
        ({"offset": ""}, FormatError, "wanted a decimal number"),
        ({"length": "65"}, FormatError, "65 bytes; wanted 64"),
        ({"length": "0"}, FormatError, "0 bytes; wanted 64"),
        ({"checksum": "abc"}, FormatError, "checksum 'abc'"),
        ({"checksum": "0" * 40}, FormatError, "has SHA-1"),
        ({"basepath": "/etc"}, UnsupportedError, "key 'basepath'"),
        ({"Location": "/etc"}, UnsupportedError, "key 'Location'"),
    ],
)
def test_entries_that_lie_are_refused(
    house: Path, entries: dict[str, str], error: type[TensureError], message: str
) -> None:
    path = _write(house, _weights(location="w.bin", **entries))
    with pytest.raises(error, match=f"m.onnx, byte .*initializer 0 'w': .*{message}"):
        read_onnx(path)


def test_a_key_twice_and_no_location(house: Path) -> None:
    twice = _weights(location="w.bin").add(13, entry("location", "../secret"))
    with pytest.raises(FormatError, match="'location' stands there twice"):
        read_onnx(_write(house, twice))
    with pytest.raises(FormatError, match="location ''"):
        read_onnx(_write(house, _weights(offset="4")))


def test_more_elements_than_the_file_has_take_no_memory(house: Path) -> None:
    huge = external("w", "f32", (2**40, 2**18), location="w.bin")
    with pytest.raises(FormatError, match="ends past"):
        read_onnx(_write(house, huge))


def test_files_and_hashing_are_bounded(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx_external, "MAX_FILES", 2)
    tensors = [external(f"w{i}", "f32", (1,), location=name) for i, name in enumerate(
        ("w.bin", "sub/w.bin", "w.bin", "sub/deep/w.bin"))]  # fmt: skip
    assert len(read_onnx(_write(house, *tensors[:3])).graph.initializers) == 3
    with pytest.raises(LimitError, match="'w3': external data in too many files; wanted at most 2"):
        read_onnx(_write(house, *tensors))
    monkeypatch.setattr(_onnx_external, "MAX_HASHED_BYTES", 10)
    with pytest.raises(LimitError, match="checksums of too much"):
        read_onnx(_write(house, _weights(location="w.bin", checksum="0" * 40)))


def test_what_is_given_as_bytes_has_no_folder(house: Path) -> None:
    raw = _with(_weights(location="w.bin")).serialise()
    with pytest.raises(InputError, match=r"given as bytes; wanted the model's folder. Read the model from"):
        read_onnx_bytes(raw)
    with pytest.raises(InputError, match=r"cannot open .*No such file"):
        read_onnx_bytes(raw, folder=house / "absent")


def test_a_tensor_in_an_attribute_is_held_to_the_same(house: Path) -> None:
    constant = Message().add(1, "value").add(5, external("", "f32", (16,), location="../secret")).add(20, 4)
    whole = model(graph([node("Constant", "", "y", constant)], [], [value("y")]))
    (house / "m.onnx").write_bytes(whole.serialise())
    with pytest.raises(FormatError, match=r"node 0 'Constant', attribute 'value': location '../secret'"):
        read_onnx(house / "m.onnx")


def test_no_descriptor_is_left_open(house: Path) -> None:
    _links(house)
    before = sorted(os.listdir("/proc/self/fd"))
    for location in ("w.bin", "sub/deep/w.bin", "sub/up/secret", "hard.bin", "absent/x", "sub"):
        try:
            read_onnx(_write(house, _weights(location=location, offset="4")))
        except TensureError:
            pass
    assert sorted(os.listdir("/proc/self/fd")) == before
