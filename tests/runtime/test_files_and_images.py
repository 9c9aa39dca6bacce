"""Tensors and images from strangers: read exactly, refused cheaply, written whole."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tensure.errors import FormatError, InputError, LimitError, TensureError
from tensure.program import numpy_dtype
from tensure.runtime import ImageRecipe, load_image, load_inputs, prepare_image, save_outputs

RECIPE = ImageRecipe(8, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@given(
    arrays.arrays(
        st.sampled_from([np.dtype(code) for code in ("f4", "f8", "i8", "i1", "u1", "?", "f2", ">f4")]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_tensors_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("files")
    path = save_outputs(folder / "a.npz", {"x": array, "y[0]": array.T})
    found = load_inputs(path)
    assert isinstance(found, dict)
    assert found["x"].dtype.byteorder in "=|<"
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["y[0]"], array.T)
    np.save(folder / "b.npy", array)
    np.testing.assert_array_equal(load_inputs(folder / "b.npy"), array)


def test_bf16_is_stored_as_f32(tmp_path: Path) -> None:
    array = np.array([1.5, -2.25], numpy_dtype("bf16"))
    found = load_inputs(save_outputs(tmp_path / "a.npz", {"x": array}))
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["x"], np.array([1.5, -2.25], np.float32), strict=True)


def test_equal_outputs_make_equal_files(tmp_path: Path) -> None:
    one, two = (save_outputs(tmp_path / name, {"x": np.ones(3)}) for name in ("a.npz", "b.npz"))
    assert one.read_bytes() == two.read_bytes()


def test_outputs_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = save_outputs(tmp_path / "a.npz", {"x": np.ones(3)})
    with pytest.raises(InputError, match="exists already"):
        save_outputs(path, {"x": np.zeros(3)})
    save_outputs(path, {"x": np.zeros(3)}, replace=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


def npy(shape: str, dtype: str = "<f4", data: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    return buffer.getvalue()


HOSTILE = {
    "empty.npy": b"",
    "text.npy": b"hello, this is no tensor at all, not even nearly",
    "objects.npy": objects(),
    "huge.npy": npy("(1 << 60,)".replace("1 << 60", str(1 << 60))),
    "overflow.npy": npy(f"({1 << 62}, {1 << 62})"),
    "short.npy": npy("(4,)", data=b"\0" * 15),
    "negative.npy": npy("(-1,)", data=b"\0" * 4),
    "code.npy": npy("__import__('os').system('true')"),
    "deep.npy": npy("(" * 500 + ")" * 500),
    "strings.npy": npy("(1,)", "<U4", b"\0" * 16),
    "records.npy": b"\x93NUMPY\x09\x00" + b"\0" * 80,
    "empty.npz": b"",
    "objects.npz": npz({"x.npy": objects()}),
    "short.npz": npz({"x.npy": npy("(4,)", data=b"\0" * 15)}),
    "long.npz": npz({"x.npy": npy("(4,)", data=b"\0" * 17)}),
    "overflow.npz": npz({"x.npy": npy(f"({1 << 40}, {1 << 40})")}),
    "other.npz": npz({"x.txt": b"hello"}),
    "torn.npz": npz({"x.npy": npy("(4,)", data=b"\0" * 16)})[:-30],
    "strings.npz": npz({"x.npy": npy("(1,)", "<U4", b"\0" * 16)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensor_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(TensureError) as caught:
        load_inputs(tmp_path / name)
    assert name in str(caught.value)


def test_the_makers_of_hostile_files_can_make_good_ones(tmp_path: Path) -> None:
    """Negative control: the same helpers, without the fault, are read."""
    (tmp_path / "a.npy").write_bytes(npy("(4,)", data=b"\0" * 16))
    (tmp_path / "a.npz").write_bytes(npz({"x.npy": npy("(4,)", data=b"\0" * 16)}))
    assert load_inputs(tmp_path / "a.npy").shape == (4,)  # type: ignore[union-attr]
    assert list(load_inputs(tmp_path / "a.npz")) == ["x"]


def test_bombs_are_refused_by_what_they_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensure.runtime._files.MAX_BYTES", 1 << 16)
    (tmp_path / "bomb.npz").write_bytes(npz({"x.npy": npy("(100000,)", data=b"\0" * 400_000)}))
    with pytest.raises(LimitError, match="unpacked"):
        load_inputs(tmp_path / "bomb.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_types_are_checked_before_anything_is_read(tmp_path: Path, suffix: str) -> None:
    data, path = npy("(2, 3)", data=b"\0" * 24), tmp_path / f"a.{suffix}"
    path.write_bytes(data if suffix == "npy" else npz({"x.npy": data}))
    seen: list[object] = []

    def check(found: Any) -> None:
        array = found["x"] if isinstance(found, dict) else found
        seen.append((array.shape, str(array.dtype), array.strides))
        if len(seen) == 2:
            raise InputError("not that one")

    load_inputs(path, check=check)
    with pytest.raises(InputError, match=rf"a\.{suffix}: not that one"):
        load_inputs(path, check=check)
    assert seen == [((2, 3), "float32", (0, 0))] * 2


@pytest.mark.parametrize("path", ["missing.npy", "missing.npz", "x.txt", "folder.npy"])
def test_what_is_no_tensor_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=path):
        load_inputs(tmp_path / path)


# --- images -------------------------------------------------------------


def test_constant_images_stay_constant() -> None:
    recipe = ImageRecipe(8, 0.875, (127.0, 0.0, 1.0), (128.0, 1.0, 2.0))
    for size in ((8, 8), (3, 30), (300, 217)):
        pixels = np.full((*size, 3), 200, np.uint8)
        found = prepare_image(pixels, recipe)
        assert found.shape == (1, 3, 8, 8)
        assert found.dtype == np.float32
        for channel, value in enumerate([73 / 128, 200.0, 99.5]):
            np.testing.assert_allclose(found[0, channel], value, rtol=1e-6)


@pytest.mark.parametrize("size", [(20, 20), (8, 8), (41, 33), (5, 7)])
def test_resizing_agrees_with_pillow(size: tuple[int, int]) -> None:
    """Pillow's bicubic filter has the same kernel and support; between the axes it rounds and clips."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((8, 8), Image.Resampling.BICUBIC), np.float32)
    found = prepare_image(pixels, RECIPE)[0].transpose(1, 2, 0)
    tolerance = 1.5 if side >= 8 else 6.0
    assert np.abs(found - expected).max() <= tolerance
    assert np.abs(np.flip(found, 0) - expected).max() > tolerance  # negative control: upside down is seen


def test_grey_and_alpha() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (9, 9), np.uint8)
    colour = np.repeat(grey[:, :, None], 3, 2)
    alpha = np.dstack([colour, np.zeros_like(grey)])
    for form in (grey, grey[:, :, None], alpha):
        np.testing.assert_array_equal(prepare_image(form, RECIPE), prepare_image(colour, RECIPE))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_wrong_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError):
        prepare_image(image, RECIPE)


def test_images_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), pixels)
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b""),
        ("b.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50),
        ("c.gif", b"GIF89a" + b"\0" * 50),
        ("d.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 50),
    ],
)
def test_hostile_images_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=name):
        load_image(tmp_path / name)


def test_torn_and_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"torn\.png"):
        load_image(tmp_path / "torn.png")
    monkeypatch.setattr("tensure.runtime._image.MAX_PIXELS", 4095)
    with pytest.raises(LimitError, match="64 x 64"):
        load_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a file"):
        load_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": True},
        {"size": 1 << 20},
        {"crop": 0},
        {"crop": "x"},
        {"mean": [1, 2]},
        {"std": [0, 1, 1]},
        {"more": 1},
    ],
)
def test_recipes_are_checked(change: dict[str, object]) -> None:
    good = {"size": 8, "crop": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert ImageRecipe.from_json(ImageRecipe.from_json(good).to_json()) == ImageRecipe.from_json(good)
    with pytest.raises(FormatError, match=r"image\.json"):
        ImageRecipe.from_json(good | change)
