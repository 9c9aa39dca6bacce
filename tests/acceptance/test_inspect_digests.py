"""The digest: 128 bits that see every bit, its place and its sign; any NaN equals any other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import tensure

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(value: torch.Tensor) -> str:
    """Of a leaf, as a step that reads it sees it."""
    with tensure.watch(inputs={"x": value}, digest=True, statistics=False) as run:
        value.clone()
    found = run.trace.tensors["x"].digest
    assert found is not None and len(found) == 32 and int(found, 16) >= 0
    clone = run.trace.tensors[run.trace.steps[-1].outs[0]].digest
    assert clone == found
    return str(found)


def drawn(size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(size, generator=random, dtype=torch.float64).to(dtype)
    return torch.randint(0, 100, (size,), generator=random).to(dtype)


def with_flips(value: torch.Tensor, *flips: tuple[int, int]) -> torch.Tensor:
    other = value.clone()
    words = other.view(WORDS[value.element_size()])
    for at, bit in flips:
        words[at] ^= -(2**7) if words.dtype == torch.int8 and bit == 7 else _mask(words.dtype, bit)
    return other


def _mask(dtype: torch.dtype, bit: int) -> int:
    bits = torch.iinfo(dtype).bits
    return -(1 << bit) if bit == bits - 1 and dtype != torch.uint8 else 1 << bit


def assert_all_differ(values: dict[Any, torch.Tensor]) -> None:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = digest(value)
        assert key not in found, (name, found.get(key))
        found[key] = name


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("size", [1, 8, 63, 64, 65, 1000])
def test_every_bit_of_the_first_and_last_elements_counts(dtype: torch.dtype, size: int) -> None:
    value = drawn(size, dtype)
    bits = 8 * value.element_size()
    places = {0, size // 2, size - 1}
    values = {
        (at, bit): with_flips(value, (at, bit)) for at in places for bit in {0, bits // 2, bits - 2, bits - 1}
    }
    values = {
        key: other
        for key, other in values.items()
        if not other.is_floating_point() or not other.isnan().any()
    }
    assert_all_differ({"clean": value, **values})


@pytest.mark.parametrize("size", [3, 16, 63, 64, 128, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pairs_of_flips_do_not_cancel(dtype: torch.dtype, size: int) -> None:
    """The same bit of two elements, next to each other or a power of two apart; both signs of all."""
    value = drawn(size, dtype)
    top = 8 * value.element_size() - 1
    values: dict[Any, torch.Tensor] = {"clean": value, "negated": -value}
    for apart in [gap for gap in (1, 2, 4, 8, 16, 32, 64, 1024) if gap < size]:
        for bit in (0, 3, top):
            values[apart, bit] = with_flips(value, (0, bit), (apart, bit))
    assert_all_differ(values)


@pytest.mark.parametrize("size", [2, 7, 63, 64, 65, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bfloat16])
def test_order_sign_shift_and_halves_count(dtype: torch.dtype, size: int) -> None:
    value = torch.arange(1, size + 1, dtype=torch.float64).to(dtype)
    values = {
        "clean": value,
        "negated": -value,
        "reversed": value.flip(0),
        "negated and reversed": -value.flip(0),
    }
    if size > 2:
        values |= {"rolled": value.roll(1), "sorted apart": torch.cat([value[1::2], value[::2]])}
        swapped = value.clone()
        swapped[[0, -1]] = swapped[[-1, 0]]
        values["ends exchanged"] = swapped
    if dtype == torch.float32 or size < 64:
        assert_all_differ(values)


def test_blocks_that_are_exchanged_count() -> None:
    """Whole blocks of every power of two, where a sum of parts would not see it."""
    value = drawn(4096)
    values = {"clean": value}
    for block in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]:
        order = value.view(-1, 2, block).flip(1).reshape(-1)
        values[f"pairs of {block}"] = order
        first = value.clone()
        first[:block], first[block : 2 * block] = value[block : 2 * block], value[:block]
        if block < 2048:
            values[f"first two of {block}"] = first
    assert_all_differ(values)


def test_shapes_count() -> None:
    value = drawn(24)
    shapes = [(24,), (1, 24), (24, 1), (2, 12), (12, 2), (2, 3, 4), (4, 3, 2), (4, 6), (6, 4), (24, 1, 1)]
    assert_all_differ({shape: value.view(shape) for shape in shapes})
    assert_all_differ({"t": value.view(4, 6).t().contiguous(), "as it is": value.view(6, 4)})
    empty = [(0,), (0, 3), (3, 0), (0, 0), ()]
    assert_all_differ({shape: torch.zeros(shape) for shape in empty})


def test_dtypes_count() -> None:
    zeros = {dtype: torch.zeros(8, dtype=dtype) for dtype in [*FLOATS, *INTEGERS, torch.bool]}
    assert_all_differ(zeros)
    ones = {dtype: torch.ones(8, dtype=dtype) for dtype in [*FLOATS, *INTEGERS, torch.bool]}
    assert_all_differ(ones)


def test_lengths_of_zeros_count() -> None:
    assert_all_differ({size: torch.zeros(size) for size in range(1, 70)})


def test_the_sign_of_zero_counts() -> None:
    assert digest(torch.tensor([0.0, 1.0])) != digest(torch.tensor([-0.0, 1.0]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_nan_equals_any_other_in_its_place(dtype: torch.dtype) -> None:
    value = drawn(70, dtype)
    value[[3, 64]] = torch.nan
    other = value.clone()
    words = other.view(WORDS[value.element_size()])
    words[3] ^= 1  # another payload
    words[64] ^= _mask(words.dtype, 8 * value.element_size() - 1)  # another sign
    assert other.isnan().equal(value.isnan())
    assert digest(other) == digest(value)
    moved = value.roll(1)
    less = value.clone()
    less[3] = 1
    infinite = value.clone()
    infinite[3] = torch.inf
    assert len({digest(item) for item in (value, moved, less, infinite)}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bfloat16, torch.bool])
def test_layout_does_not_count(dtype: torch.dtype) -> None:
    """Equal values, whatever the strides: copied, transposed twice, channels last, a slice, a broadcast."""
    value = (drawn(2 * 3 * 4 * 5, torch.float32).view(2, 3, 4, 5) * 5).to(dtype)
    wanted = digest(value)
    assert digest(value.contiguous(memory_format=torch.channels_last)) == wanted
    assert digest(value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)) == wanted
    assert digest(torch.cat([value, value], 3)[..., :5]) == wanted
    gapped = torch.zeros(2, 3, 8, 5, dtype=dtype)
    gapped[:, :, ::2] = value
    assert digest(gapped[:, :, ::2]) == wanted
    row = value[:1]
    assert digest(row.expand(7, 3, 4, 5)) == digest(row.repeat(7, 1, 1, 1))


def test_equal_values_have_equal_digests_in_every_engine() -> None:
    """From run to run, from thread count to thread count, and from a process's other engines."""
    value = drawn(100_000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = digest(value)
        torch.set_num_threads(2)
        assert digest(value.clone()) == one
    finally:
        torch.set_num_threads(threads)
    assert digest(torch.from_numpy(value.numpy().copy())) == one


def test_many_tensors_no_collision() -> None:
    """Every tensor of eight bits' worth of sign patterns and their permutations."""
    values = [
        torch.tensor(pattern, dtype=torch.float32) for pattern in itertools.product((1.0, -1.0), repeat=8)
    ]
    values += [torch.tensor(order, dtype=torch.float32) for order in itertools.permutations((1, 2, 3, 4, 5))]
    with tensure.watch(digest=True, statistics=False) as run:
        for value in values:
            value.clone()
    found = [run.trace.tensors[step.outs[0]].digest for step in run.trace.steps]
    assert len(found) == len(values) and len(set(found)) == len(values)


def test_digest_bits_are_spread() -> None:
    """One flip changes about half of the 128 bits, wherever it is."""
    value = drawn(512)
    clean = int(digest(value), 16)
    changed = [
        (clean ^ int(digest(with_flips(value, (at, bit))), 16)).bit_count()
        for at in (0, 1, 255, 511)
        for bit in (0, 12, 31)
    ]
    assert min(changed) >= 40 and max(changed) <= 88, changed
    assert 56 <= np.mean(changed) <= 72
