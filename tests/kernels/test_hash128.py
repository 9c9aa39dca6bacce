"""hash128 does what its definition says, and sees what such a digest must see; not cryptographic.

Two negative controls at the end: the same checks against digests that miss order, signs or even numbers of
equal flips must turn red.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.kernels.survey_cases import DTYPES, any_bits, restrided

from tensure.kernels import ELEMENTS, hash128, hash128_reference, survey

Array = NDArray[Any]
Digest = Callable[[Array], object]

# About stripes of 64 bytes, chunks of 4096 and tasks of 64 units.
SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 2049, 5000)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("canonical_nan", [False, True])
def test_is_what_the_definition_says(element: str, canonical_nan: bool) -> None:
    rng = np.random.default_rng(1)
    for size in SIZES:
        x = any_bits(element, (size,), rng)
        assert hash128(x, canonical_nan=canonical_nan) == hash128_reference(x, canonical_nan=canonical_nan)
    for _ in range(10):
        shape = tuple(int(n) for n in rng.integers(1, 12, rng.integers(0, 5)))
        y = restrided(any_bits(element, shape, rng), rng)
        wanted = hash128_reference(y, canonical_nan=canonical_nan)
        assert hash128(y, canonical_nan=canonical_nan) == wanted
        assert survey(y, digest=True, canonical_nan=canonical_nan).digest == wanted


def test_stays_what_it_was() -> None:
    """Digests are kept in files: a change of one is a change of the format."""
    assert hash128(np.zeros(0, np.float32)).hex() == GOLDEN["empty"]
    assert hash128(np.arange(6, dtype=np.float32).reshape(2, 3)).hex() == GOLDEN["2x3"]
    assert hash128(np.arange(5000, dtype=np.int16)).hex() == GOLDEN["5000"]


GOLDEN = {
    "empty": "3ee359fce08e9ad578a9fd3c1b99cc7f",
    "2x3": "d6c1f32446e808e4991b91cc4b1e237b",
    "5000": "a68b34ebc203f9f48b33792ba1d5f2cb",
}


def changed_by_one_step(x: Array) -> Iterator[tuple[str, Array]]:
    """Every bit flip, sign flip, swap, shift, reversal and padding of a small vector of floats."""
    for bit in range(8 * x.nbytes):
        y = x.copy()
        y.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", y
    for i in range(x.size):
        for j in range(i):
            y = x.copy()
            y[[i, j]] = y[[j, i]]
            yield f"{i} and {j} swapped", y
            for bit in (0, 22, 30, 31):
                y = x.copy()
                y.view(np.uint32)[[i, j]] ^= np.uint32(1 << bit)
                yield f"bit {bit} of {i} and {j} flipped", y
    yield "negated", -x
    yield "reversed", x[::-1].copy()
    for by in range(1, x.size):
        yield f"rolled by {by}", np.roll(x, by)
    for more in range(1, 40):
        yield f"{more} zeros behind", np.concatenate([x, np.zeros(more, x.dtype)])
        yield f"{more} zeros before", np.concatenate([np.zeros(more, x.dtype), x])
    yield "one less", x[:-1].copy()
    for shape in ((1, x.size), (x.size, 1), (1, 1, x.size)):
        yield f"as {shape}", x.reshape(shape)
    yield "as integers", x.view(np.int32)
    yield "as unsigned", x.view(np.uint32)


def unseen(digest: Digest, x: Array) -> list[str]:
    """Changes whose digest was there before, whether x's or another change's."""
    seen = {digest(x): "nothing"}
    missed = []
    contents = {(x.dtype.str, x.shape, x.tobytes())}
    for what, y in changed_by_one_step(x):
        content = (y.dtype.str, y.shape, y.tobytes())
        if content in contents:
            continue  # such as a swap of neighbours and a roll of two
        contents.add(content)
        found = digest(y)
        if found in seen:
            missed.append(f"{what} looks as {seen[found]}")
        seen[found] = what
    return missed


@pytest.mark.parametrize("size", [2, 3, 16, 17, 33])
def test_sees_every_small_change(size: int) -> None:
    rng = np.random.default_rng(2)
    for x in (rng.normal(size=size), np.arange(1, size + 1), rng.integers(1, 3, size) * 2.0**-140):
        assert unseen(hash128, x.astype(np.float32)) == []


def test_sees_every_bit_of_a_chunk_and_of_the_next() -> None:
    x = np.random.default_rng(3).normal(size=1100).astype(np.float32)
    seen = {hash128(x)}
    for bit in range(8 * x.nbytes):
        x.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        seen.add(hash128(x))
        x.view(np.uint8)[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 8 * x.nbytes + 1


@given(st.integers(0, 2**32), st.integers(2, 400_000), st.sampled_from(["f32", "f16", "bf16", "i8", "f64"]))
def test_sees_drawn_changes_of_large_tensors(seed: int, size: int, element: str) -> None:
    rng = np.random.default_rng(seed)
    x = any_bits(element, (size,), rng)
    words = f"u{x.itemsize}"
    before = hash128(x)
    number = 2 * int(rng.integers(1, 1 + min(32, size // 2)))
    places = rng.choice(size, number, replace=False)
    flip = np.array(1, words) << int(rng.integers(8 * x.itemsize))
    y = x.copy()
    y.view(words)[places] ^= flip.astype(words)
    assert hash128(y) != before, "an even number of equal flips"
    y = x.copy()
    y[places[:2]] = y[places[1::-1]]
    assert (hash128(y) != before) == (y.tobytes() != x.tobytes()), "a swap"
    for z in (x[::-1], np.roll(x, 1), np.roll(x, -7)):
        assert (hash128(z) != before) == (np.ascontiguousarray(z).tobytes() != x.tobytes())
    assert hash128(x.copy()) == before


def test_sees_the_order_of_rows_and_the_shape() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(96, 40)).astype(np.float32)
    seen = {hash128(x), hash128(x.T)}
    for _ in range(500):
        seen.add(hash128(x[rng.permutation(96)]))
        seen.add(hash128(x[:, rng.permutation(40)]))
    factors = [n for n in range(1, 3841) if 3840 % n == 0]
    shapes = [
        (3840,),
        *[(n, 3840 // n) for n in factors],
        *[(n, 2, 1920 // n) for n in factors if 1920 % n == 0],
    ]
    seen |= {hash128(x.reshape(shape)) for shape in shapes}
    assert len(seen) == 1002 + len(set(shapes) - {(96, 40)})


def test_tells_lengths_of_zeros_apart() -> None:
    room = np.zeros(20_000, np.uint8)
    digests = {hash128(room[:size]) for size in range(6000)} | {
        hash128(room[:size].view(np.int8)) for size in range(6000)
    }
    digests |= {hash128(room[: 4 * size].view(np.float32)) for size in range(5000)}
    digests |= {
        hash128(room[: 2 * size].view(kind))
        for size in range(5000)
        for kind in (np.float16, ml_dtypes.bfloat16)
    }
    assert len(digests) == 6000 * 2 + 5000 * 3
    empty = {
        hash128(np.zeros(shape, np.float32))
        for shape in ((0,), (0, 0), (0, 1), (1, 0), (2, 0), (0, 2), (0, 2, 3))
    }
    assert len(empty) == 7


def test_a_million_structured_inputs_do_not_collide() -> None:
    """Two or three words of few bits, counters, repeated rows: 16 bytes each, all different."""
    bits = [1 << i for i in range(64)]
    pairs = np.array([(a ^ c, b) for a in [0, *bits] for b in [0, *bits] for c in bits[::4]], np.uint64)
    count = np.arange(400_000, dtype=np.uint64)
    counters = np.stack([count, np.zeros_like(count)], 1)
    mirrored = np.stack([count << 40, count], 1)
    floats = np.stack([np.arange(200_000), np.arange(200_000) * -0.5, np.ones(200_000), np.zeros(200_000)], 1)
    inputs = np.unique(
        np.concatenate([pairs, counters, mirrored, floats.astype(np.float32).view(np.uint64)]), axis=0
    )
    assert len(inputs) > 1_000_000
    assert len({hash128(row) for row in inputs}) == len(inputs)


def test_each_half_of_a_digest_is_as_good_as_random() -> None:
    """32 bits of a digest collide as often as 32 random ones do: about 29 of half a million."""
    count = np.arange(500_000, dtype=np.uint64)
    found = np.frombuffer(b"".join(hash128(count[i : i + 1]) for i in range(count.size)), "<u4").reshape(
        -1, 4
    )
    for column in found.T:
        collisions = count.size - np.unique(column).size
        assert 5 <= collisions <= 70


def test_half_of_the_bits_flip_with_any_bit() -> None:
    rng = np.random.default_rng(5)
    for size in (1, 40, 1500):
        flips = np.zeros(128)
        draws = 2000
        for _ in range(draws):
            x = rng.normal(size=size).astype(np.float32)
            before = np.unpackbits(np.frombuffer(hash128(x), np.uint8))
            bit = int(rng.integers(32 * size))
            x.view(np.uint8)[bit // 8] ^= 1 << bit % 8
            flips += before != np.unpackbits(np.frombuffer(hash128(x), np.uint8))
        assert abs(flips.mean() / draws - 0.5) < 0.005
        assert np.abs(flips / draws - 0.5).max() < 0.06, "five standard deviations"


@pytest.mark.parametrize(("element", "words"), [("f32", "u4"), ("f64", "u8"), ("f16", "u2"), ("bf16", "u2")])
def test_nans_in_one_place_are_equal_and_zeros_have_signs(element: str, words: str) -> None:
    rng = np.random.default_rng(6)
    dtype = DTYPES[element]
    sign = 1 << 8 * dtype.itemsize - 1
    for size, place in ((1, 0), (17, 16), (5000, 3000)):
        x = rng.normal(size=size).astype(dtype)
        infinity = int(np.array([np.inf], dtype).view(words)[0])
        nans = set()
        exact = set()
        for bits in (infinity + 1, infinity + 2, sign | infinity + 1, 2 * sign - 1, sign - 1):
            x.view(words)[place] = bits
            nans.add(hash128(x, canonical_nan=True))
            exact.add(hash128(x))
        assert len(nans) == 1
        assert len(exact) >= 4
        others = set()
        for bits in (infinity, sign | infinity, 0, sign, 1):
            x.view(words)[place] = bits
            others.add(hash128(x, canonical_nan=True))
            assert hash128(x, canonical_nan=True) == hash128(x)
        assert len(others | nans) == 6
        y = x.copy()
        x[place], y[place - 1] = np.nan, np.nan
        if size > 1:
            assert hash128(x, canonical_nan=True) != hash128(y, canonical_nan=True)
    integers = any_bits(element, (400,), rng).view(words)
    assert hash128(integers, canonical_nan=True) == hash128(integers)


def test_parts_of_complex_numbers_are_floats() -> None:
    x = np.array([1 + 2j, complex(np.nan, 3)], np.complex64)
    y = x.copy()
    y.view(np.uint32)[2] |= 0x80000001
    assert hash128(x) != hash128(y)
    assert hash128(x, canonical_nan=True) == hash128(y, canonical_nan=True)
    assert hash128(x) != hash128(x.view(np.float32))


BLIND: dict[str, tuple[Digest, str]] = {
    "order": (lambda x: (x.shape, x.dtype, tuple(sorted(x.reshape(-1).view(np.uint32).tolist()))), "swapped"),
    "xor": (
        lambda x: (x.shape, x.dtype, int(np.bitwise_xor.reduce(x.reshape(-1).view(np.uint32)))),
        "flipped",
    ),
    "norm": (
        lambda x: (x.shape, x.dtype, int((x.reshape(-1).view(np.uint32) & 0x7FFFFFFF).sum())),
        "negated",
    ),
    "shape": (lambda x: (x.dtype, x.tobytes()), "as (1,"),
    "zeros": (lambda x: (x.ndim, x.dtype, x.tobytes().rstrip(b"\0")), "zeros behind"),
    "eight bits": (lambda x: (x.shape, x.dtype, zlib.crc32(x.tobytes()) & 0xFF), "bit"),
}


@pytest.mark.parametrize("name", BLIND)
def test_a_digest_that_is_blind_to_something_is_caught(name: str) -> None:
    digest, what = BLIND[name]
    x = np.random.default_rng(2).normal(size=16).astype(np.float32)
    assert any(what in line for line in unseen(digest, x))
