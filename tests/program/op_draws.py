"""What the strategies for ops draw from: shapes, dims, dtypes, indices, and values from a drawn seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensure.program._dtypes import numpy_dtype

Draw = Callable[[st.SearchStrategy[Any]], Any]
FLOATS = ["f32", "f64", "f16", "bf16"]
INTEGERS = ["i64", "i32", "i16", "i8", "u8"]
NUMBERS = FLOATS + INTEGERS
ANY = [*NUMBERS, "bool"]


@dataclass(frozen=True)
class Case:
    """One call."""

    args: list[Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    slack: float = 1.0
    """A factor on the dtype's tolerance."""
    unasked: tuple[int, ...] = ()
    """Results that the attributes leave out: ATen may give anything or nothing."""


CASES: dict[str, Callable[[Draw], Case]] = {}
Build = Callable[[Draw], Case]


def case(*names: str) -> Callable[[Build], Build]:
    """Register a builder for these ops."""

    def register(build: Build) -> Build:
        for name in names:
            assert name not in CASES, name
            CASES[name] = build
        return build

    return register


# --- drawing --------------------------------------------------------------------------------------


def one(draw: Draw, values: list[Any]) -> Any:
    return draw(st.sampled_from(values))


def small(draw: Draw, low: int, high: int) -> int:
    return int(draw(st.integers(low, high)))


def flag(draw: Draw) -> bool:
    return bool(draw(st.booleans()))


def shape(draw: Draw, low: int = 0, high: int = 4, *, side: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(side, 4), min_size=low, max_size=high)))


def random(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def tensor(
    draw: Draw, size: tuple[int, ...], dtype: str, *, low: float = -4, high: float = 4, specials: bool = False
) -> np.ndarray[Any, Any]:
    """Values in low..high; with `specials` some may be NaN, an infinity or a zero of either sign."""
    rng = random(draw)
    if dtype == "bool":
        return rng.integers(0, 2, size).astype(bool)
    if dtype in INTEGERS:
        return rng.integers(
            max(int(low), 0) if dtype == "u8" else int(low), int(high), size, endpoint=True
        ).astype(numpy_dtype(dtype))
    values = np.asarray(rng.uniform(low, high, size))
    if specials and values.size and flag(draw):
        odd = rng.random(size) < 0.3
        values = np.where(odd, rng.choice([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0], size), values)
    return values.astype(np.float32).astype(numpy_dtype(dtype)) if dtype != "f64" else values


def partner(draw: Draw, size: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `size`."""
    kept = size[small(draw, 0, len(size)) :]
    return tuple(1 if flag(draw) and flag(draw) else item for item in kept)


def pair(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast together."""
    size = shape(draw)
    a, b = partner(draw, size), partner(draw, size)
    return (size, b) if flag(draw) else (a, size)


def number(draw: Draw, dtype: str | None = None) -> bool | int | float:
    """A number exact in every float dtype, and small enough for every integer one."""
    if dtype in INTEGERS:
        return int(one(draw, [0, 1, 2, 3]))
    if dtype == "bool":
        return flag(draw)
    return one(draw, [0, 1, 2, -1, 3, 0.5, -1.5, 2.0])  # type: ignore[no-any-return]


def dim(draw: Draw, rank: int) -> int:
    return small(draw, -max(rank, 1), max(rank, 1) - 1)


def dims(draw: Draw, rank: int, *, least: int = 0) -> tuple[int, ...]:
    picked = draw(
        st.lists(st.integers(0, max(rank - 1, 0)), min_size=min(least, rank), max_size=rank, unique=True)
    )
    return tuple(at - rank if flag(draw) else at for at in picked)


def index(draw: Draw, size: tuple[int, ...], count: int, *, negative: bool = False) -> np.ndarray[Any, Any]:
    if count == 0:
        size = (0,) if not size else (0, *size[1:])
    return random(draw).integers(-count if negative else 0, max(count, 1), size)


def any_tensor(draw: Draw, low: int = 0, high: int = 4, *, side: int = 0) -> np.ndarray[Any, Any]:
    return tensor(draw, shape(draw, low, high, side=side), one(draw, ANY), specials=True)


def span(draw: Draw, size: int) -> dict[str, Any]:
    ends = [one(draw, [None, small(draw, -size - 2, size + 2), 2**63 - 1]) for _ in range(2)]
    return {"start": ends[0], "end": ends[1], "step": small(draw, 1, 3)}


def is_float(x: Any) -> bool:
    return isinstance(x, float) or (isinstance(x, np.ndarray) and x.dtype.kind not in "iub")
