"""GGUF blocks repacked into gemv's own layouts: every weight to the bit, hostile sizes refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import (
    GEMV_FORMATS,
    GemvWeights,
    decode_weights,
    gemv,
    map_gguf,
    pack_int4,
    pack_int8,
    repack_gguf,
    repacked_bytes,
)

OWN = {"q4_0": "int4", "q4_1": "int4_min", "q8_0": "int8"}
encodings = st.sampled_from(sorted(OWN))


def random_blocks(encoding: str, num_rows: int, num_cols: int, seed: int) -> np.ndarray:
    """Any integers, scales and minimums of any finite half."""
    rng = np.random.default_rng(seed)
    layout = GEMV_FORMATS[encoding]
    rows = rng.integers(0, 256, (num_rows * num_cols // 32, layout.block_bytes), np.uint8)
    for offset in (0, 2) if encoding == "q4_1" else (0,):
        halves = rng.integers(0, 1 << 16, len(rows), np.uint16)
        halves[halves & 0x7C00 == 0x7C00] &= 0x83FF  # neither Inf nor NaN
        rows[:, offset : offset + 2] = halves.astype("<u2")[:, None].view(np.uint8)
    return rows.reshape(-1)


def bits(values: np.ndarray) -> bytes:
    return values.astype(np.float32).tobytes()


def packed_in_numpy(encoding: str, blocks: np.ndarray, num_rows: int, num_cols: int) -> GemvWeights:
    """The same weights through pack_int8 and pack_int4: another way to the same bytes."""
    rows = blocks.reshape(num_rows, -1, GEMV_FORMATS[encoding].block_bytes)
    scales = rows[:, :, :2].copy().view("<f2").reshape(num_rows, -1)
    if encoding == "q8_0":
        q8 = np.ascontiguousarray(rows[:, :, 2:]).reshape(num_rows, num_cols).view(np.int8)
        return pack_int8(q8, scales.astype(np.float32), 32)
    pairs = rows[:, :, -16:]
    q = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(num_rows, num_cols)
    if encoding == "q4_0":
        return pack_int4(q.astype(np.int8) - 8, scales)
    return pack_int4(q, scales, rows[:, :, 2:4].copy().view("<f2").reshape(num_rows, -1))


@given(encodings, st.integers(1, 50), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 70))
def test_every_weight_is_kept_to_the_bit(
    encoding: str, num_rows: int, units: int, seed: int, skip: int
) -> None:
    """Odd rows, odd addresses on both sides, memory that held something else."""
    num_cols = 32 * units
    blocks = np.zeros(num_rows * units * GEMV_FORMATS[encoding].block_bytes + skip, np.uint8)[skip:]
    blocks[:] = random_blocks(encoding, num_rows, num_cols, seed)
    blocks.flags.writeable = False
    room = np.full(repacked_bytes(encoding, num_rows, num_cols) + 2 * skip, 0xA5, np.uint8)
    out = room[skip : room.size - skip]
    found = repack_gguf(encoding, blocks, num_rows, num_cols, out=out)
    assert found.format == OWN[encoding]
    assert np.shares_memory(found.q, out)
    assert bits(decode_weights(found)) == bits(decode_weights(map_gguf(encoding, blocks, num_rows, num_cols)))
    wanted = packed_in_numpy(encoding, blocks, num_rows, num_cols)
    for name in ("q", "scales", "minimums"):  # filling included
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()
    assert (room[:skip] == 0xA5).all() and (room[room.size - skip :] == 0xA5).all()


@pytest.mark.parametrize("encoding", sorted(OWN))
def test_threads_change_no_byte(encoding: str) -> None:
    blocks = random_blocks(encoding, 1000, 5120, 1)
    once = repack_gguf(encoding, blocks, 1000, 5120)
    for threads in (2, 3, 7):
        again = repack_gguf(encoding, blocks, 1000, 5120, threads=threads)
        assert again.q.tobytes() == once.q.tobytes()
        assert again.scales.tobytes() == once.scales.tobytes()
        assert again.minimums.tobytes() == once.minimums.tobytes()


@pytest.mark.parametrize("encoding", sorted(OWN))
def test_one_stored_bit_is_one_weight(encoding: str) -> None:
    """Negative control: the comparison of decoded weights sees a bit, and sees it in its place."""
    blocks = random_blocks(encoding, 20, 96, 3)
    damaged = blocks.copy()
    size = GEMV_FORMATS[encoding].block_bytes
    damaged[(7 * 3 + 1) * size + size - 1] ^= 1
    same, other = (decode_weights(repack_gguf(encoding, b, 20, 96)) for b in (blocks, damaged))
    column = 32 + (31 if encoding == "q8_0" else 15)
    assert [tuple(map(int, place)) for place in np.argwhere(same != other)] == [(7, column)]


@pytest.mark.parametrize("encoding", sorted(OWN))
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E01])
def test_a_scale_that_is_not_finite_stays_visible(encoding: str, half: int) -> None:
    blocks = random_blocks(encoding, 17, 64, 4)
    blocks[:2] = np.array([half], "<u2").view(np.uint8)
    y = gemv(repack_gguf(encoding, blocks, 17, 64), np.ones((1, 64), np.float32), arithmetic="fast")
    assert not np.isfinite(y[0, 0])
    assert np.isfinite(y[0, 1:]).all()


BLOCKS = random_blocks("q4_1", 4, 64, 0)
OUT = np.zeros(repacked_bytes("q4_1", 4, 64), np.uint8)
READ_ONLY = OUT.copy()
READ_ONLY.flags.writeable = False

BAD = {
    "bytes missing": lambda: repack_gguf("q4_1", BLOCKS[:-1], 4, 64),
    "a row too many": lambda: repack_gguf("q4_1", BLOCKS, 5, 64),
    "part of a block": lambda: repack_gguf("q4_1", BLOCKS, 4, 48),
    "no rows": lambda: repack_gguf("q4_1", BLOCKS, 0, 64),
    "rows below zero": lambda: repack_gguf("q4_1", BLOCKS, -4, 64),
    "rows are a bool": lambda: repack_gguf("q4_1", BLOCKS, True, 64),
    "columns are a float": lambda: repack_gguf("q4_1", BLOCKS, 4, 64.0),
    "beyond counting": lambda: repack_gguf("q4_1", BLOCKS, 1 << 40, 1 << 40),
    "size beyond counting": lambda: repacked_bytes("q4_1", 1 << 40, 64),
    "blocks strided": lambda: repack_gguf("q4_1", np.zeros(320, np.uint8)[::2], 4, 64),
    "blocks of another dtype": lambda: repack_gguf("q4_1", BLOCKS.view(np.int8), 4, 64),
    "blocks are a list": lambda: repack_gguf("q4_1", [], 4, 64),
    "out too small": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, out=OUT[:-1]),
    "out too large": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, out=np.append(OUT, OUT[:1])),
    "out of floats": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, out=OUT.view(np.float32)),
    "out with two dims": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, out=OUT.reshape(2, -1)),
    "out read-only": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, out=READ_ONLY),
    "out overlaps blocks": lambda: repack_gguf("q4_1", OUT[: BLOCKS.size], 4, 64, out=OUT),
    "no threads": lambda: repack_gguf("q4_1", BLOCKS, 4, 64, threads=0),
    "no own layout": lambda: repack_gguf("q4_k", BLOCKS, 4, 64),
    "an own layout": lambda: repack_gguf("int4", BLOCKS, 4, 64),
    "encoding is a list": lambda: repacked_bytes([], 4, 64),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_arguments_are_named(what: str) -> None:
    with pytest.raises((InputError, UnsupportedError)) as caught:
        BAD[what]()
    assert caught.value.place
    assert caught.value.found
    assert caught.value.wanted
