"""A tensor's values at one look, and a 128-bit digest of it: the checked face of native/survey.

    found = survey(x, digest=True, limit=1e4)
    found.mean, found.nans, found.first_nonfinite, found.digest

One pass over memory, whatever the strides: a tensor that does not lie in order is gathered 32 KiB at a
time, never copied. Complex numbers are looked at as their two parts: counts and places are of parts, 2 *
size of them, and place // 2 is the element. Results are the same bits for every instruction set, number of
threads and strides.

**The digest**: 128 bits of the elements' bytes in C order, the shape and the dtype.

1. Bytes are cut into chunks of 4096, the last one filled up with zeros to a multiple of 64, and a chunk is
   read as little-endian 32-bit words m[i]. For each of four passes p, with key words k of 32 bits,

       sum over even i of  (m[i] + k[i + 16 p] mod 2^32) * (m[i + 1] + k[i + 1 + 16 p] mod 2^32)  mod 2^64

   This is NH with Toeplitz keys, from the message authentication code UMAC (Black, Halevi, Krawczyk, Krovetz,
   Rogaway 1999), in four passes as in Adiantum's hash (Crowley, Biggers 2018).
2. h = 1; then h = (h * r + c) mod (2^127 - 1) for each coefficient c: the four sums of each chunk in order,
   each size of the shape, the number of dims, the dtype's place in ELEMENTS: polynomial hashing (Carter,
   Wegman).
3. Four rounds of a Feistel mix, a bijection, spread every bit of h over all 128.

Key, r and the constants of the mix are numbers of SplitMix64 (Steele, Lea, Flood 2014) from the seed
0x243f6a8885a308d3, public and fixed. `hash128_reference` says the same in numpy.

What that gives: two different tensors, chosen without regard to the key, have one digest with a probability
of at most 2^-128 + n * 2^-127, where n is the number of coefficients: 2^-97 for a terabyte. Nothing in that
bound depends on *how* they differ: order, position, signs, an even number of equal flips, zeros at the end
and the shape all count. It is **not** cryptographic: the key is public, so who wants to can make two
tensors of one digest. It guards against faults, not against an adversary.

With `canonical_nan`, every NaN of a float dtype counts as one and the same, whatever its sign and payload;
-0.0 and +0.0 always differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError
from tensure.kernels._buffers import check_threads
from tensure.kernels._isa import native

__all__ = ["ELEMENTS", "Survey", "hash128", "histogram", "histogram_at", "survey", "survey_at"]

ELEMENTS: Final = (
    "f32", "f64", "f16", "bf16", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool", "c64", "c128",
)  # fmt: skip
"""The dtypes, in the order of Element in native/survey/survey.h: places in it are part of the digest."""

MAX_BINS: Final = 1 << 20

Array = NDArray[Any]

_CODES: Final = {name: code for code, name in enumerate(ELEMENTS)}
_BF16: Final = np.dtype(ml_dtypes.bfloat16)
_INFINITY: Final = float("inf")


@dataclass(frozen=True)
class Survey:
    """What a tensor holds. Figures are of finite parts; where there is none, they are None (l2: 0).

    With statistics=False only `count` and `digest` are told; the other counts are 0, the figures None.

    Attributes:
        count: parts: elements, or twice as many for complex dtypes.
        minimum, maximum: rounded to float64 (integers beyond 2^53); a zero is never -0.0.
        mean, std, l2: in float64 arithmetic; std is the population's, without cancellation however far the
            mean is from zero. Where squares are beyond float64 (1e154 and 1e-154) std and l2 are inf or 0.
        zeros: of either sign.
        denormals: other than zero and below the least normal number of the tensor's own dtype.
        nans, infinities: of either sign.
        first_nonfinite: place of the first NaN or infinity in C order.
        over_limit: parts whose magnitude is above `limit`, infinities among them, no NaN.
        first_over: place of the first of those.
        digest: 16 bytes.
    """

    count: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    l2: float | None
    zeros: int
    denormals: int
    nans: int
    infinities: int
    first_nonfinite: int | None
    over_limit: int
    first_over: int | None
    digest: bytes | None


def survey(
    x: Array,
    *,
    digest: bool = False,
    statistics: bool = True,
    canonical_nan: bool = False,
    threads: int = 1,
    limit: float | None = None,
) -> Survey:
    """Statistics of an array, its digest, or both in one pass over memory.

    Args:
        x: of a dtype in ELEMENTS (bf16: ml_dtypes.bfloat16), native byte order, any strides.
        digest: whether to work the digest out.
        statistics: whether to work anything else out.
        canonical_nan: for the digest, every NaN counts as one and the same.
        threads: at most this many threads work; small tensors use one.
        limit: count the parts with |x| above it; None counts none.

    Raises:
        InputError: an argument is not as described.
        UnsupportedError: no instruction set is in use.
    """
    check_threads(threads)
    bits, as_bf16 = _bits(x)
    try:
        found = native().survey(
            bits, as_bf16, statistics, digest, canonical_nan, _INFINITY if limit is None else limit, threads
        )
    except (TypeError, ValueError) as error:
        raise _refusal(error, x.dtype) from None
    return _as_survey(found)


def survey_at(
    address: int,
    element: str,
    shape: tuple[int, ...],
    byte_strides: tuple[int, ...] | None = None,
    *,
    digest: bool = False,
    statistics: bool = True,
    canonical_nan: bool = False,
    threads: int = 1,
    limit: float | None = None,
) -> Survey:
    """The same of memory that the caller vouches for: a torch tensor's `data_ptr()`, with no array around it.

    **Nothing can be checked about the address**: if the elements do not all lie in memory that stays as it is
    until the return, this reads what is not the tensor's, or ends the process. Sizes and strides are checked
    for themselves. A lazily conjugated or negated torch tensor must be resolved first.

    Args:
        address: of the first element, in this process.
        element: a name in ELEMENTS.
        shape: sizes, any number of dims up to 64.
        byte_strides: of each dim, any sign, zero included; None when the tensor is C-contiguous.

    Raises:
        InputError: sizes, strides, the element or an option is not as described.
        UnsupportedError: no instruction set is in use.
    """
    check_threads(threads)
    try:
        found = native().survey_at(
            address, _CODES.get(element, -1), shape, byte_strides, statistics, digest, canonical_nan,
            _INFINITY if limit is None else limit, threads,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise _refusal(error, element) from None
    return _as_survey(found)


def hash128(x: Array, *, canonical_nan: bool = False, threads: int = 1) -> bytes:
    """The digest alone: 16 bytes; see this file's docstring for what it means.

    Raises:
        InputError: x is no array of a dtype in ELEMENTS.
        UnsupportedError: no instruction set is in use.
    """
    found = survey(x, digest=True, statistics=False, canonical_nan=canonical_nan, threads=threads).digest
    assert found is not None
    return found


def histogram(x: Array, lo: float, hi: float, bins: int) -> NDArray[np.int64]:
    """How many parts of x lie in each of `bins` equal cuts of lo to hi, both included; others do not count.

    A part v belongs to cut min(int((v - lo) * (bins / (hi - lo))), bins - 1), in float64: numpy.histogram's
    cut, but for parts within a rounding of an edge.

    Raises:
        InputError: x is no array of a dtype in ELEMENTS, lo is not below hi, or the cuts are too many.
        UnsupportedError: no instruction set is in use.
    """
    counts = _counts(bins)
    bits, as_bf16 = _bits(x)
    try:
        native().histogram(bits, as_bf16, lo, hi, counts)
    except (TypeError, ValueError) as error:
        raise _refusal(error, x.dtype) from None
    return counts


def histogram_at(
    address: int,
    element: str,
    shape: tuple[int, ...],
    byte_strides: tuple[int, ...] | None,
    lo: float,
    hi: float,
    bins: int,
) -> NDArray[np.int64]:
    """The same of memory that the caller vouches for, as `survey_at` has it.

    Raises:
        InputError: an argument is not as described.
        UnsupportedError: no instruction set is in use.
    """
    counts = _counts(bins)
    try:
        native().histogram_at(address, _CODES.get(element, -1), shape, byte_strides, lo, hi, counts)
    except (TypeError, ValueError) as error:
        raise _refusal(error, element) from None
    return counts


def _bits(x: object) -> tuple[Array, bool]:
    """What the buffer protocol can carry, and whether it is bfloat16's bits."""
    if type(x) is not np.ndarray and not isinstance(x, np.ndarray):
        raise InputError(f"got {type(x).__name__}", place="x", wanted="a numpy array")
    if x.dtype == _BF16:
        return x.view(np.uint16), True
    return x, False


def _as_survey(fields: dict[str, Any]) -> Survey:
    """The record of those fields: as Survey(**fields), which takes longer than a small tensor's survey."""
    found = object.__new__(Survey)
    object.__setattr__(found, "__dict__", fields)
    return found


def _counts(bins: object) -> NDArray[np.int64]:
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= MAX_BINS:
        raise InputError(f"got {bins!r:.40}", place="bins", wanted=f"an integer from 1 to {MAX_BINS}")
    return np.zeros(bins, np.int64)


def _refusal(error: Exception, dtype: object) -> InputError:
    """The binding's reason, with what to hand over instead."""
    reason = str(error) if isinstance(error, ValueError) else "an argument is of another type"
    return InputError(
        f"{reason} (dtype {dtype})",
        place="survey",
        wanted=f"a tensor of {', '.join(ELEMENTS)}, a limit of at least 0, a range lo < hi",
    )
