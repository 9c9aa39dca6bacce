"""How numbers lie in a weight file's bytes, and how to read them back.

Knows: every plain and block encoding we accept, its block geometry, a decoder for each, and encoders for the
plain ones and for the three simplest block codes. Does not know files, tensor names, torch or kernels.

The block layouts are ggml's (`block_q4_0` to `block_q6_K` in ggml-common.h); decoded values are
bit-identical to the `gguf` package's, which the tests check.

Legend: B blocks, S stored bytes of a block, E elements of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, UnsupportedError

__all__ = ["ENCODINGS", "MAX_DIM", "Encoding", "decode", "encode", "encoded_nbytes"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

#: No dimension reaches this, even where another one is zero: products of a few stay far inside 64 bits.
MAX_DIM = 1 << 48
#: No tensor is larger: sums of sizes and offsets stay inside a signed 64-bit integer.
MAX_NBYTES = 1 << 62
#: Elements decoded at a time: a result of half a MiB, so that temporaries stay near the core.
CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to store numbers: `block_bytes` bytes hold `block_elements` values that decode to `dtype`."""

    name: str
    block_elements: int
    block_bytes: int
    dtype: str

    @property
    def is_block(self) -> bool:
        """Whether values share a scale, so that no single value can be addressed."""
        return self.block_elements > 1


def _table() -> Mapping[str, Encoding]:
    plain = {
        "f64": 8,
        "f32": 4,
        "f16": 2,
        "bf16": 2,
        "i64": 8,
        "i32": 4,
        "i16": 2,
        "i8": 1,
        "u8": 1,
        "bool": 1,
    }
    small = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}
    large = {"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210}
    rows = [Encoding(name, 1, size, name) for name, size in plain.items()]
    # Stored narrow, computed wide: a checkpoint kept in half precision whose Program says f32.
    rows += [Encoding(name, 1, 2, "f32") for name in ("wide_f16", "wide_bf16")]
    rows += [Encoding(name, 32, size, "f32") for name, size in small.items()]
    rows += [Encoding(name, 256, size, "f32") for name, size in large.items()]
    return MappingProxyType({row.name: row for row in rows})


ENCODINGS: Mapping[str, Encoding] = _table()

#: The numpy type of an encoding's stored words, where one word is one value.
_WORDS: Mapping[str, npt.DTypeLike] = MappingProxyType(
    {
        "f64": "<f8",
        "f32": "<f4",
        "f16": "<f2",
        "wide_f16": "<f2",
        "bf16": ml_dtypes.bfloat16,
        "i64": "<i8",
        "i32": "<i4",
        "i16": "<i2",
        "i8": "i1",
        "u8": "u1",
    }
)


def encoded_nbytes(encoding: str, shape: tuple[int, ...]) -> int:
    """The exact number of bytes a tensor takes.

    Raises:
        UnsupportedError: an encoding that is not in `ENCODINGS`.
        FormatError: a dimension outside [0, 2^48), a last dimension that is no whole number of blocks, or a
            product past 2^62.
    """
    kind = ENCODINGS.get(encoding)
    if kind is None:
        raise UnsupportedError(f"encoding {encoding!r} is not one we read", wanted=" ".join(ENCODINGS))
    for dim in shape:
        if not 0 <= dim < MAX_DIM:
            raise FormatError(f"dimension {dim} in shape {list(shape)}", wanted="0 <= dimension < 2^48")
    if kind.is_block and (not shape or shape[-1] % kind.block_elements):
        raise FormatError(
            f"shape {list(shape)} cannot be stored as {encoding}",
            wanted=f"a last dimension that is a multiple of {kind.block_elements}",
        )
    nbytes = math.prod(shape) // kind.block_elements * kind.block_bytes
    if nbytes > MAX_NBYTES:
        raise FormatError(
            f"shape {list(shape)} as {encoding} takes {nbytes} bytes", wanted="at most 2^62 bytes"
        )
    return nbytes


def decode(encoding: str, data: U8, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The values, with their shape, in the encoding's dtype (float32 from block and wide encodings).

    `data` is 1-D and exactly `encoded_nbytes(encoding, shape)` long. Plain encodings give a view of `data`
    where its alignment allows, read-only if `data` is. Extra memory beyond the result: under 2 MiB.
    """
    if data.size != encoded_nbytes(encoding, shape):
        raise FormatError(
            f"{data.size} bytes for shape {list(shape)} as {encoding}", wanted="the exact length"
        )
    if encoding == "wide_bf16":
        return _widen_bf16(data).reshape(shape)
    if encoding == "wide_f16":
        return data.view("<f2").astype(np.float32).reshape(shape)
    if encoding == "bool":
        if data.size and int(data.max()) > 1:
            raise FormatError(f"a bool stored as {int(data.max())}", wanted="0 or 1")
        return data.view(np.bool_).reshape(shape)
    if encoding in _WORDS:
        return np.require(data.view(_WORDS[encoding]), requirements="A").reshape(shape)
    return _decode_blocks(ENCODINGS[encoding], data).reshape(shape)


def encode(encoding: str, values: npt.NDArray[np.generic]) -> U8:
    """The stored bytes of `values`, rounded to the encoding: the plain ones, q8_0, q4_0 and q4_1.

    Block codes take the scale from each block's extremes and round to nearest, as ggml's reference
    quantisers do: bit-identical to the `gguf` package on finite input. For test and golden models; a
    quantiser that looks at error lives in the quantization room.
    """
    expected = encoded_nbytes(encoding, values.shape)
    if encoding == "bool":
        stored = np.ascontiguousarray(values, dtype=np.bool_).reshape(-1).view(np.uint8)
    elif encoding in _WORDS:
        stored = np.ascontiguousarray(values, dtype=_WORDS[encoding]).reshape(-1).view(np.uint8)
    elif encoding == "wide_bf16":
        stored = _narrow_bf16(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    elif encoding in _ENCODERS:
        x_BE = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, ENCODINGS[encoding].block_elements)
        stored = _ENCODERS[encoding](x_BE).reshape(-1)
    else:
        raise UnsupportedError(
            f"no encoder for {encoding}", wanted="a plain encoding or one of " + " ".join(_ENCODERS)
        )
    assert stored.size == expected
    return stored


def _widen_bf16(data: U8) -> F32:
    # A bfloat16 is the upper half of a float32.
    out = np.zeros(data.size // 2, dtype="<u4")
    out.view("<u2")[1::2] = data.view("<u2")
    return out.view("<f4")


def _narrow_bf16(x: F32) -> U8:
    bits = x.view("<u4")
    # Round half to even; the carry is done in 64 bits so that the largest patterns cannot wrap.
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN whose payload lies in the dropped half must stay a NaN
    return np.where(np.isnan(x), quiet, rounded).astype("<u2").view(np.uint8)


def _decode_blocks(kind: Encoding, data: U8) -> F32:
    stored_BS = data.reshape(-1, kind.block_bytes)
    out_BE = np.empty((stored_BS.shape[0], kind.block_elements), dtype=np.float32)
    step = CHUNK_ELEMENTS // kind.block_elements
    decoder = _DECODERS[kind.name]
    # Every bit pattern is a legal block: a scale may be infinite or NaN, and that is no event.
    with np.errstate(all="ignore"):
        for start in range(0, stored_BS.shape[0], step):
            decoder(stored_BS[start : start + step], out_BE[start : start + step])
    return out_BE


def _half(stored_BS: U8, at: int) -> F32:
    """The float16 at byte `at` of every block, as a float32 column."""
    return np.ascontiguousarray(stored_BS[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed_BS: U8, out_BE: F32) -> None:
    """Low nibbles fill the first half of a block, high nibbles the second."""
    half = packed_BS.shape[1]
    out_BE[:, :half] = packed_BS & 15
    out_BE[:, half:] = packed_BS >> 4


def _fifth_bits(stored_BS: U8, at: int) -> U8:
    """Bit e of the 32-bit word at byte `at`, times 16, for element e."""
    return np.unpackbits(stored_BS[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _decode_q4_0(stored_BS: U8, out_BE: F32) -> None:
    _nibbles(stored_BS[:, 2:], out_BE)
    out_BE -= 8
    out_BE *= _half(stored_BS, 0)


def _decode_q4_1(stored_BS: U8, out_BE: F32) -> None:
    _nibbles(stored_BS[:, 4:], out_BE)
    out_BE *= _half(stored_BS, 0)
    out_BE += _half(stored_BS, 2)


def _decode_q5_0(stored_BS: U8, out_BE: F32) -> None:
    _nibbles(stored_BS[:, 6:], out_BE)
    out_BE += _fifth_bits(stored_BS, 2)
    out_BE -= 16
    out_BE *= _half(stored_BS, 0)


def _decode_q5_1(stored_BS: U8, out_BE: F32) -> None:
    _nibbles(stored_BS[:, 8:], out_BE)
    out_BE += _fifth_bits(stored_BS, 4)
    out_BE *= _half(stored_BS, 0)
    out_BE += _half(stored_BS, 2)


def _decode_q8_0(stored_BS: U8, out_BE: F32) -> None:
    out_BE[...] = stored_BS[:, 2:].view(np.int8)
    out_BE *= _half(stored_BS, 0)


def _planes(packed_BS: U8, width: int, bits: int, out: npt.NDArray[np.generic]) -> None:
    """Unpack runs of `width` bytes, each byte holding 8/bits fields: field k of a run is its k-th output row.

    `out` has shape (B, runs, 8 // bits, width).
    """
    runs = packed_BS.reshape(packed_BS.shape[0], -1, width)
    mask = (1 << bits) - 1
    for field in range(8 // bits):
        out[:, :, field] = (runs >> (field * bits)) & mask


def _decode_q2_k(stored_BS: U8, out_BE: F32) -> None:
    scales_B16 = stored_BS[:, :16]
    d, dmin = _half(stored_BS, 80), _half(stored_BS, 82)
    out = out_BE.reshape(-1, 16, 16)
    _planes(stored_BS[:, 16:80], 32, 2, out_BE.reshape(-1, 2, 4, 32))
    out *= (d * (scales_B16 & 15))[:, :, None]
    out -= (dmin * (scales_B16 >> 4))[:, :, None]


def _decode_q3_k(stored_BS: U8, out_BE: F32) -> None:
    high = np.empty((stored_BS.shape[0], 1, 8, 32), dtype=np.uint8)
    _planes(stored_BS[:, :32], 32, 1, high)
    _planes(stored_BS[:, 32:96], 32, 2, out_BE.reshape(-1, 2, 4, 32))
    # The third bit is stored inverted: where it is clear, 4 is subtracted.
    out_BE -= (4 - 4 * high).reshape(out_BE.shape)
    packed = stored_BS[:, 96:108]
    scales = np.empty((packed.shape[0], 16), dtype=np.uint8)
    scales[:, :8], scales[:, 8:] = packed[:, :8] & 15, packed[:, :8] >> 4
    for quarter in range(4):
        scales[:, 4 * quarter : 4 * quarter + 4] |= ((packed[:, 8:] >> (2 * quarter)) & 3) << 4
    factor_B16 = _half(stored_BS, 108) * (scales.view(np.int8) - np.int8(32))
    out = out_BE.reshape(-1, 16, 16)
    out *= factor_B16[:, :, None]


def _scales_and_mins(packed_BS: U8) -> tuple[U8, U8]:
    """Eight 6-bit scales and eight 6-bit minima from the twelve bytes that q4_k and q5_k share."""
    low, mid, high = packed_BS[:, 0:4], packed_BS[:, 4:8], packed_BS[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | ((mid >> 2) & 48)], axis=1)
    return scales, mins


def _apply_scales_and_mins(stored_BS: U8, out_BE: F32) -> None:
    scales, mins = _scales_and_mins(stored_BS[:, 4:16])
    out = out_BE.reshape(-1, 8, 32)
    out *= (_half(stored_BS, 0) * scales)[:, :, None]
    out -= (_half(stored_BS, 2) * mins)[:, :, None]


def _decode_q4_k(stored_BS: U8, out_BE: F32) -> None:
    _planes(stored_BS[:, 16:144], 32, 4, out_BE.reshape(-1, 4, 2, 32))
    _apply_scales_and_mins(stored_BS, out_BE)


def _decode_q5_k(stored_BS: U8, out_BE: F32) -> None:
    high = np.empty((stored_BS.shape[0], 1, 8, 32), dtype=np.uint8)
    _planes(stored_BS[:, 16:48], 32, 1, high)
    _planes(stored_BS[:, 48:176], 32, 4, out_BE.reshape(-1, 4, 2, 32))
    out_BE += (high << 4).reshape(out_BE.shape)
    _apply_scales_and_mins(stored_BS, out_BE)


def _decode_q6_k(stored_BS: U8, out_BE: F32) -> None:
    high = np.empty((stored_BS.shape[0], 2, 4, 32), dtype=np.uint8)
    _planes(stored_BS[:, 128:192], 32, 2, high)
    _planes(stored_BS[:, :128], 64, 4, out_BE.reshape(-1, 2, 2, 64))
    out_BE += (high << 4).reshape(out_BE.shape)
    out_BE -= 32
    out = out_BE.reshape(-1, 16, 16)
    out *= (_half(stored_BS, 208) * stored_BS[:, 192:208].view(np.int8))[:, :, None]


_DECODERS: Mapping[str, Callable[[U8, F32], None]] = MappingProxyType(
    {
        "q4_0": _decode_q4_0,
        "q4_1": _decode_q4_1,
        "q5_0": _decode_q5_0,
        "q5_1": _decode_q5_1,
        "q8_0": _decode_q8_0,
        "q2_k": _decode_q2_k,
        "q3_k": _decode_q3_k,
        "q4_k": _decode_q4_k,
        "q5_k": _decode_q5_k,
        "q6_k": _decode_q6_k,
    }
)


def _inverse(d: F32) -> F32:
    return np.divide(1, d, out=np.zeros_like(d), where=d != 0)


def _store_half(x: F32) -> U8:
    return x.astype("<f2").view(np.uint8)


def _pack_nibbles(q_BE: U8) -> U8:
    half = q_BE.shape[1] // 2
    return q_BE[:, :half] | (q_BE[:, half:] << np.uint8(4))


def _encode_q8_0(x_BE: F32) -> U8:
    d = np.abs(x_BE).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x_BE * _inverse(d)
    # Round half away from zero, as C's roundf does; numpy's own rounding goes to even.
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += magnitude - whole >= 0.5
    q = np.copysign(whole, scaled).astype(np.int8)
    return np.concatenate([_store_half(d), q.view(np.uint8)], axis=1)


def _encode_q4_0(x_BE: F32) -> U8:
    extreme = np.take_along_axis(x_BE, np.abs(x_BE).argmax(axis=1, keepdims=True), axis=1)
    d = extreme / np.float32(-8)
    q = np.minimum((x_BE * _inverse(d) + np.float32(8.5)).astype(np.uint8), 15)
    return np.concatenate([_store_half(d), _pack_nibbles(q)], axis=1)


def _encode_q4_1(x_BE: F32) -> U8:
    low, high = x_BE.min(axis=1, keepdims=True), x_BE.max(axis=1, keepdims=True)
    d = (high - low) / np.float32(15)
    q = np.minimum(((x_BE - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8), 15)
    return np.concatenate([_store_half(d), _store_half(low), _pack_nibbles(q)], axis=1)


_ENCODERS: Mapping[str, Callable[[F32], U8]] = MappingProxyType(
    {"q8_0": _encode_q8_0, "q4_0": _encode_q4_0, "q4_1": _encode_q4_1}
)
