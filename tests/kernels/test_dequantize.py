"""dequantize against its numpy reference and against gguf's, for every encoding and instruction set here."""

from __future__ import annotations

import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.kernels import ENCODINGS, available_isas, built_isas, dequantize, dequantize_reference, isa

# Halves where conversion goes wrong: zeros, subnormals, the least normal, 1, the largest, Inf, both NaNs.
HALVES = [
    0x0000,
    0x8000,
    0x0001,
    0x8001,
    0x03FF,
    0x0400,
    0x3C00,
    0x7BFF,
    0xFBFF,
    0x7C00,
    0xFC00,
    0x7E00,
    0xFE01,
    0x7C01,
]
NUM_SCALES = {"q4_0": 1, "q4_1": 2, "q8_0": 1}

encodings = st.sampled_from(sorted(ENCODINGS))


def random_blocks(encoding: str, num_blocks: int, seed: int) -> np.ndarray:
    """Random bytes, every third block with special scales."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (num_blocks, ENCODINGS[encoding]), np.uint8)
    chosen = rng.choice(np.array(HALVES, "<u2"), (len(rows[::3]), NUM_SCALES[encoding]))
    rows[::3, : 2 * NUM_SCALES[encoding]] = chosen.view(np.uint8)
    return rows.reshape(-1)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, NaN standing for any NaN."""
    nan = np.isnan(a)
    return bool(
        np.array_equal(nan, np.isnan(b)) and np.array_equal(a.view(np.uint32)[~nan], b.view(np.uint32)[~nan])
    )


@given(encodings, st.integers(0, 70), st.integers(0, 2**32), st.integers(0, 63), st.integers(0, 15))
def test_equals_reference(encoding: str, num_blocks: int, seed: int, skip_in: int, skip_out: int) -> None:
    """Any number of blocks, at any address."""
    blocks = random_blocks(encoding, num_blocks, seed)
    moved = np.zeros(blocks.size + 64, np.uint8)[skip_in : skip_in + blocks.size]
    moved[:] = blocks
    frame = np.full(num_blocks * 32 + 32, 7.0, np.float32)
    out = frame[skip_out : skip_out + num_blocks * 32]
    given_back = dequantize(encoding, moved, out)
    assert given_back is out
    assert same_bits(out, dequantize_reference(encoding, blocks))
    frame[skip_out : skip_out + num_blocks * 32] = 7.0
    assert (frame == 7.0).all(), "wrote outside out"


@given(encodings, st.integers(1, 3000), st.integers(2, 9), st.integers(0, 2**32))
def test_threads_change_no_bit(encoding: str, num_blocks: int, threads: int, seed: int) -> None:
    blocks = random_blocks(encoding, num_blocks + 2000, seed)
    assert same_bits(dequantize(encoding, blocks, threads=threads), dequantize_reference(encoding, blocks))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_half_is_exact(encoding: str) -> None:
    """All 65,536 scales, NaN payloads apart."""
    rows = np.zeros((65536, ENCODINGS[encoding]), np.uint8)
    rows[:, :2] = np.arange(65536, dtype="<u2").reshape(-1, 1).view(np.uint8)
    first = 2 * NUM_SCALES[encoding]
    rows[:, first:] = np.random.default_rng(1).integers(
        0, 256, (65536, ENCODINGS[encoding] - first), np.uint8
    )
    blocks = rows.reshape(-1)
    assert same_bits(dequantize(encoding, blocks), dequantize_reference(encoding, blocks))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_reference_equals_gguf(encoding: str) -> None:
    """An independent implementation; finite scales, where it defines the value."""
    blocks = random_blocks(encoding, 200, 5).reshape(200, -1)
    blocks = blocks[np.isfinite(dequantize_reference(encoding, blocks).reshape(200, 32)).all(axis=1)]
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[encoding.upper()])
    assert same_bits(dequantize_reference(encoding, blocks), theirs.reshape(-1))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("bit", [0, 3, 9, 15, 16 * 8 + 4])
def test_comparison_sees_one_flipped_bit(encoding: str, bit: int) -> None:
    """Negative control: the oracle is red when one stored bit differs."""
    blocks = np.full((5, ENCODINGS[encoding]), 0x35, np.uint8)
    damaged = blocks.copy()
    damaged[3, bit // 8] ^= 1 << bit % 8
    assert same_bits(dequantize(encoding, blocks.reshape(-1)), dequantize_reference(encoding, blocks))
    assert not same_bits(dequantize(encoding, damaged.reshape(-1)), dequantize_reference(encoding, blocks))


def test_read_only_blocks() -> None:
    blocks = random_blocks("q8_0", 3, 0)
    expected = dequantize_reference("q8_0", blocks)
    blocks.flags.writeable = False
    assert same_bits(dequantize("q8_0", blocks), expected)


BAD = {
    "encoding": lambda b, o: dequantize("q9_9", b, o),
    "part of a block": lambda b, o: dequantize("q4_0", b[:-1], None),
    "dtype": lambda b, o: dequantize("q4_0", b.view(np.int8), o),
    "dims": lambda b, o: dequantize("q4_0", b.reshape(2, -1), o),
    "strides": lambda b, o: dequantize("q4_0", b[::2], None),
    "a list": lambda b, o: dequantize("q4_0", [0] * 18, None),
    "out dtype": lambda b, o: dequantize("q4_0", b, o.astype(np.float64)),
    "out size": lambda b, o: dequantize("q4_0", b, o[:-1]),
    "out strides": lambda b, o: dequantize("q4_0", b, np.empty(128, np.float32)[::2]),
    "out misaligned": lambda b, o: dequantize("q4_0", b, np.empty(257, np.uint8)[1:].view(np.float32)),
    "out big-endian": lambda b, o: dequantize("q4_0", b, o.astype(">f4")),
    "out overlaps": lambda b, o: dequantize("q4_0", o.view(np.uint8)[:36], o),
    "no threads": lambda b, o: dequantize("q4_0", b, o, threads=0),
    "too many threads": lambda b, o: dequantize("q4_0", b, o, threads=10**9),
    "threads is a float": lambda b, o: dequantize("q4_0", b, o, threads=1.0),
    "threads is a bool": lambda b, o: dequantize("q4_0", b, o, threads=True),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_arguments_are_named(what: str) -> None:
    blocks, out = np.zeros(36, np.uint8), np.full(64, 7.0, np.float32)
    with pytest.raises(InputError) as caught:
        BAD[what](blocks, out)
    assert caught.value.found
    assert caught.value.wanted
    assert (out == 7.0).all(), "wrote before refusing"


def test_read_only_out_is_refused() -> None:
    out = np.zeros(32, np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        dequantize("q4_0", np.zeros(18, np.uint8), out)


def run_forced(name: str) -> subprocess.CompletedProcess[str]:
    """This file's `forced` part, in a process whose TENSURE_ISA is `name`."""
    return subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TENSURE_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_instruction_set_here_gives_the_same_bits() -> None:
    for name in available_isas():
        done = run_forced(name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name} ok\n"


def test_the_widest_is_chosen_and_a_wish_that_cannot_be_met_is_refused() -> None:
    assert os.environ.get("TENSURE_ISA") or isa() == available_isas()[-1]
    lacking = [name for name in built_isas() if name not in available_isas()]
    for name in [*lacking, "v9", "V3", "v3 "]:
        done = run_forced(name)
        assert done.returncode == 2, done
        assert name in done.stdout
        assert "wanted one of" in done.stdout


def forced() -> int:
    """Compare on this process's instruction set; the exit code of a TensureError otherwise."""
    try:
        name = isa()
        for encoding in ENCODINGS:
            blocks = random_blocks(encoding, 5000, 3)
            for threads in (1, 2):
                assert same_bits(
                    dequantize(encoding, blocks, threads=threads), dequantize_reference(encoding, blocks)
                )
    except UnsupportedError as error:
        print(error)
        return TensureError.exit_code
    print(name, "ok")
    return 0


if __name__ == "__main__":
    sys.exit(forced())
