"""Random numbers as a function of where they come from: which generator, and how far along it is.

The numbers are ours, and no library's: what counts is which draws are one and which are apart.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import numpy as np

from .._records import TensorType
from ._rules import cast
from ._table import Array, Given, define, refuse

LAWS: Final = ("uniform", "normal")


def _draw_rule(args: list[Any], given: Given) -> list[TensorType]:
    if given["law"] not in LAWS:
        raise refuse(f"law {given['law']!r}", " or ".join(LAWS))
    dtype, shape = given["dtype"], given["size"]
    if dtype not in ("f32", "f64"):
        raise refuse(f"numbers of {dtype}", "f32 or f64")
    if any(size < 0 for size in shape):
        raise refuse(f"size={list(shape)}", "dims of at least 0")
    if args[0] is not None and args[0].shape != shape:
        raise refuse(f"numbers of shape {list(shape)}", f"{list(args[0].shape)}, like the operand")
    return [TensorType(shape, dtype)]


def _draw(_args: list[Any], given: Given) -> list[Array]:
    where = [given[key] for key in ("law", "seed", "start", "after", "offset", "extent")]
    key = int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=16).digest(), "little")
    rng = np.random.Generator(np.random.Philox(key=key))
    count = math.prod(given["size"])
    drawn = rng.random(count) if given["law"] == "uniform" else rng.standard_normal(count)
    return [cast(drawn.reshape(given["size"]), given["dtype"])]


define(
    "draw(self: Tensor?; law: str, seed: int, start: int, size: int[], extent: int, offset: int = 0,"
    ' after: str = "", dtype: dtype = f32) -> 1',
    _draw_rule,
    _draw,
    "Independent numbers in 0..1 (law `uniform`) or of mean 0 and variance 1 (`normal`), like an operand"
    " whose place they share. The draw takes `extent` numbers after the first `start` of a generator seeded"
    " so; these are its from `offset` on; `after` digests the draws before.",
    aten=False,
)
