"""Stored bytes decode to the same bits as the `gguf` package decodes them, and encode likewise."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, UnsupportedError
from tensure.program import _encodings, dtype_name
from tensure.program._weights import ENCODINGS, StoredTensor, encoded_nbytes

BLOCKS = sorted(name for name, kind in ENCODINGS.items() if kind.is_block)
AS_FLOAT = [*BLOCKS, "wide_bf16"]
PLAIN = ["f64", "f32", "f16", "i64", "i32", "i16", "i8", "u8", "bool"]


def _peer(name: str, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        decoded = quants.dequantize(data.reshape(1, -1), _peer_type(name))
    return np.asarray(decoded, dtype=np.float32).reshape(-1)


def _peer_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.removeprefix("wide_").upper()]


def _tensor(name: str, data: npt.NDArray[np.uint8]) -> StoredTensor:
    kind = ENCODINGS[name]
    return StoredTensor((data.size // kind.block_bytes * kind.block_elements,), name, data)


def _same(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> bool:
    """Equal bits; any NaN equals any NaN."""
    bits = a.view(np.uint32) == b.view(np.uint32)
    return bool((bits | (np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64)))).all())


@st.composite
def _stored(draw: st.DrawFn, name: str) -> npt.NDArray[np.uint8]:
    size = ENCODINGS[name].block_bytes
    blocks = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    data = np.random.default_rng(seed).integers(0, 256, size * blocks, dtype=np.uint8)
    # Drawn bytes over random ones, so that shrinking reaches zeros, infinities and NaN scales.
    for at, value in draw(
        st.dictionaries(st.integers(0, data.size - 1), st.integers(0, 255), max_size=8)
    ).items():
        data[at] = value
    return data


@pytest.mark.parametrize("name", AS_FLOAT)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decodes_to_the_bits_of_the_gguf_package(name: str, data: st.DataObject) -> None:
    stored = data.draw(_stored(name))
    assert _same(_tensor(name, stored).decode(), _peer(name, stored))


@pytest.mark.parametrize("name", AS_FLOAT)
def test_chunks_meet_without_a_seam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(1).integers(0, 256, 37 * ENCODINGS[name].block_bytes, dtype=np.uint8)
    monkeypatch.setattr(_encodings, "CHUNK_ELEMENTS", 1024)
    assert _same(_tensor(name, stored).decode(), _peer(name, stored))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_the_comparison_sees_a_swapped_nibble_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(packed: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        half = packed.shape[1]
        out[:, :half], out[:, half:] = packed >> 4, packed & 15

    stored = np.random.default_rng(2).integers(0, 256, 8 * ENCODINGS[name].block_bytes, dtype=np.uint8)
    monkeypatch.setattr(_encodings, "_nibbles", swapped)
    assert not _same(_tensor(name, stored).decode(), _peer(name, stored))


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
def test_the_comparison_sees_a_wrong_field_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = _encodings._planes

    def reversed_fields(
        packed: npt.NDArray[np.uint8], width: int, bits: int, out: npt.NDArray[np.generic]
    ) -> None:
        planes(packed, width, bits, out[:, :, ::-1])

    stored = np.random.default_rng(3).integers(0, 256, 4 * ENCODINGS[name].block_bytes, dtype=np.uint8)
    monkeypatch.setattr(_encodings, "_planes", reversed_fields)
    assert not _same(_tensor(name, stored).decode(), _peer(name, stored))


def test_every_bf16_pattern_widens_and_narrows_back() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    values = StoredTensor((1 << 16,), "wide_bf16", patterns.view(np.uint8)).decode()
    assert values.dtype == np.float32
    back = StoredTensor.from_array(values, "wide_bf16").data.view(np.uint16)
    finite = ~np.isnan(values)
    assert (back[finite] == patterns[finite]).all()
    assert np.isnan(StoredTensor.from_array(values[~finite], "wide_bf16").decode()).all()


@pytest.mark.parametrize("name", ["wide_bf16", "q8_0", "q4_0", "q4_1"])
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1e-6, 1.0, 300.0]))
@settings(max_examples=40, deadline=None)
def test_encodes_to_the_bytes_of_the_gguf_package(name: str, seed: int, scale: float) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 64), dtype=np.float32) * np.float32(scale)
    peer = quants.quantize(x, _peer_type(name))
    assert StoredTensor.from_array(x, name).data.tobytes() == np.ascontiguousarray(peer).tobytes()


@pytest.mark.parametrize("narrow", ["f16", "bf16"])
def test_wide_encodings_share_their_bytes_with_narrow_ones(narrow: str) -> None:
    values = np.random.default_rng(5).standard_normal(64, dtype=np.float32)
    stored = StoredTensor.from_array(values, narrow)
    wide = StoredTensor(stored.shape, f"wide_{narrow}", stored.data)
    assert (stored.dtype, wide.dtype) == (narrow, "f32")
    assert dtype_name(stored.decode().dtype) == narrow
    assert wide.decode().dtype == np.float32
    np.testing.assert_array_equal(wide.decode(), stored.decode().astype(np.float32))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_encodings_come_back_as_they_were(name: str) -> None:
    values = (
        np.random.default_rng(4)
        .integers(0, 2, (3, 5))
        .astype(
            "bool"
            if name == "bool"
            else name.replace("f", "float").replace("i", "int").replace("u8", "uint8")
        )
    )
    stored = StoredTensor.from_array(values, name)
    decoded = stored.decode()
    assert decoded.dtype == values.dtype
    assert (decoded == values).all()
    assert decoded.base is not None and not decoded.flags.writeable, "a view of the file, not a copy"


def test_unaligned_words_are_copied_into_alignment() -> None:
    raw = np.zeros(9, dtype=np.uint8)
    raw[1:] = np.frombuffer(np.array([1.5, -2.0], dtype="<f4").tobytes(), dtype=np.uint8)
    decoded = StoredTensor((2,), "f32", raw[1:]).decode()
    assert decoded.flags.aligned
    assert decoded.tolist() == [1.5, -2.0]


def test_the_stored_bytes_cannot_be_written_through_the_record() -> None:
    raw = np.zeros(4, dtype=np.uint8)
    tensor = StoredTensor((1,), "f32", raw)
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        tensor.decode()[0] = 1


@pytest.mark.parametrize(
    ("encoding", "shape", "message"),
    [
        ("f32", (-1,), "dimension -1"),
        ("f32", (1 << 48,), "dimension"),
        ("f32", (0, 1 << 48), "dimension"),
        ("f32", (1 << 47, 1 << 47), "at most 2\\^62"),
        ("q4_1", (32, 31), "multiple of 32"),
        ("q6_k", (32,), "multiple of 256"),
        ("q8_0", (), "multiple of 32"),
    ],
)
def test_impossible_shapes_are_refused(encoding: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        encoded_nbytes(encoding, shape)


def test_other_misuse_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="iq2_xs"):
        encoded_nbytes("iq2_xs", (256,))
    with pytest.raises(UnsupportedError, match="no encoder"):
        StoredTensor.from_array(np.zeros(256, dtype=np.float32), "q6_k")
    with pytest.raises(FormatError, match="wanted 8 bytes"):
        StoredTensor((2,), "f32", np.zeros(7, dtype=np.uint8))
    with pytest.raises(FormatError, match="stored as 2"):
        StoredTensor((1,), "bool", np.array([2], dtype=np.uint8)).decode()
