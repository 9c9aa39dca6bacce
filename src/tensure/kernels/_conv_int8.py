"""2-D convolution and matrix products of bytes, exact: the checked face of native/dotconv for int8.

Inputs are uint8 or int8 with one zero point, weights int8 with zero point 0, sums int32; the layout is NHWC.

    packed = pack_conv2d_int8(w_OIHW, conv)
    y_NHWC = conv2d_int8(x_NHWC, packed, zero_point=-3, bias=b, requantize=Requantize(multiplier, shift))

What comes out is one of

    int32      bias + the sum of (x - zero_point) * w; padding counts as the zero point
    int8       Requantize: TensorFlow Lite's double rounding, as the Program op `requantize` defines it
    uint8      likewise
    float32    float(sum) * scale + bias, each step rounded

bit for bit the same on every instruction set, with any number of threads, and equal to
`conv2d_int8_reference` (`_conv_int8_reference.py`). A convolution whose sums could leave 32 bits is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError
from tensure.kernels._buffers import check_buffer
from tensure.kernels._conv_geometry import Conv, sizes_of
from tensure.kernels._dotconv import Epilogue, PackedDot, matrix_shape, output_array, pack, run

__all__ = [
    "PackedConvInt8",
    "Requantize",
    "conv2d_int8",
    "gemm_int8",
    "pack_conv2d_int8",
    "pack_gemm_int8",
]

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Array = NDArray[Any]

INT32: Final = (-(1 << 31), (1 << 31) - 1)
_BYTES: Final = (np.uint8, np.int8)
_NAMES: Final = {np.dtype(name): name for name in ("int32", "int8", "uint8", "float32")}
_RANGES: Final = {np.dtype(np.uint8): ("uint8", 0, 255), np.dtype(np.int8): ("int8", -128, 127)}


@dataclass(frozen=True, slots=True, eq=False)
class Requantize:
    """Sums to bytes: `zero_point + sum * multiplier * 2^(shift - 31)`, held to `qmin`..`qmax`.

    The sum is shifted left (shift > 0), multiplied (SaturatingRoundingDoublingHighMul: halves up), shifted
    right (shift < 0; RoundingDivideByPOT: halves away from zero). A left shift that leaves 32 bits saturates;
    the Program op `requantize` refuses it.

    Args:
        multiplier: int32, one or one for each output channel, 0 and up; TensorFlow Lite's lie in
            [2^30, 2^31).
        shift: likewise, from -31 to 30.
        zero_point: of the output.
        qmin, qmax: within the dtype; a fused activation narrows them. The whole dtype when None.
        dtype: np.int8 or np.uint8.

    Raises:
        InputError: a number is out of its range.
    """

    multiplier: Ints
    shift: Ints
    zero_point: int = 0
    qmin: int | None = None
    qmax: int | None = None
    dtype: type[np.int8 | np.uint8] = np.int8

    def __post_init__(self) -> None:
        if self.dtype not in _BYTES:
            raise InputError(f"got {self.dtype!r:.60}", place="dtype", wanted="np.int8 or np.uint8")
        info = np.iinfo(self.dtype)
        low, high = int(info.min), int(info.max)
        if self.qmin is None:
            object.__setattr__(self, "qmin", low)
        if self.qmax is None:
            object.__setattr__(self, "qmax", high)
        _check_int("zero_point", self.zero_point, low, high)
        _check_int("qmin", self.qmin, low, high)
        _check_int("qmax", self.qmax, self.qmin or 0, high)
        for name, least, most in (("multiplier", 0, INT32[1]), ("shift", -31, 30)):
            values = getattr(self, name)
            check_buffer(name, values, [np.int32])
            if values.ndim != 1 or not values.size:
                raise InputError(f"got shape {list(values.shape)}", place=name, wanted="a vector")
            if int(values.min()) < least or int(values.max()) > most:
                raise InputError(
                    f"got {int(values.min())} to {int(values.max())}",
                    place=name,
                    wanted=f"integers from {least} to {most}",
                )


@dataclass(frozen=True, slots=True, eq=False)
class PackedConvInt8(PackedDot):
    """One convolution's int8 weights, packed for this process's instruction set and features only."""

    positive: NDArray[np.int64]
    """The sum of each output channel's weights above 0."""
    negative: NDArray[np.int64]
    """The sum of the others, sign dropped."""
    reach: int
    """No sum of products is larger than this, whatever x and its zero point."""

    def workspace_bytes(
        self, shape: tuple[int, ...], dtype: type[np.int8 | np.uint8] = np.int8, threads: int = 1
    ) -> int:
        """Bytes that `conv2d_int8` works in beside its arguments, for an x of this shape and dtype."""
        if dtype not in _BYTES:
            raise InputError(f"got {dtype!r:.60}", place="dtype", wanted="np.int8 or np.uint8")
        return self.workspace_of(tuple(shape), np.dtype(dtype).name, threads)


def pack_conv2d_int8(w_OIHW: NDArray[np.int8], conv: Conv) -> PackedConvInt8:
    """Weights made ready for `conv2d_int8`.

    Raises:
        InputError: they are not int8 of shape `conv.weight_shape`.
    """
    check_buffer("w_OIHW", w_OIHW, [np.int8], conv.weight_shape)
    data, geometry = pack(w_OIHW, conv, halves=False)
    rows = w_OIHW.reshape(conv.out_channels, -1)
    positive = np.maximum(rows, 0).sum(axis=1, dtype=np.int64)
    negative = positive - rows.sum(axis=1, dtype=np.int64)
    reach = 255 * int((positive + negative).max())
    return PackedConvInt8(conv, data, geometry, positive, negative, reach)


def conv2d_int8(
    x: Array,
    packed: PackedConvInt8,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
    requantize: Requantize | None = None,
    scale: Floats | None = None,
    out: Array | None = None,
    workspace: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> Array:
    """The convolution of x - zero_point: int32, or requantized bytes, or float32 by a scale.

    Args:
        x: uint8 or int8, C-contiguous, [N, H, W, in_channels].
        packed: by `pack_conv2d_int8`.
        zero_point: of x, within its dtype.
        bias: [out_channels]: int32, float32 beside a scale.
        requantize: gives int8 or uint8.
        scale: float32, one for each output channel; gives float32. Not beside `requantize`.
        out: of the output's shape and dtype, C-contiguous, writable, overlapping nothing else; made when
            None.
        workspace: uint8, at least `packed.workspace_bytes(x.shape, x.dtype, threads)`, starting at a multiple
            of 64; made when None.
        threads: at most this many work.

    Raises:
        InputError: an argument is not as described, or sums could leave 32 bits; nothing has been written.
    """
    if not isinstance(packed, PackedConvInt8):
        raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_conv2d_int8 gives")
    check_buffer("x", x, _BYTES)
    element, low, high = _RANGES[x.dtype]
    _check_int("zero_point", zero_point, low, high)
    sizes = sizes_of("NHWC", x.shape, packed.conv.in_channels)
    channels = (packed.conv.out_channels,)
    if bias is not None:
        check_buffer("bias", bias, [np.int32 if scale is None else np.float32], channels)
    epilogue, dtype = _epilogue(channels, zero_point, bias, requantize, scale)
    _check_sums(packed, high - zero_point, zero_point - low, epilogue.bias_ints)
    operands = {"x": x, "bias": bias, "scale": scale}
    out = output_array(packed, packed.output_shape_of(sizes), dtype, out, operands)
    run(packed, x, sizes, element, out, _NAMES[dtype], epilogue, workspace, threads)
    return out


def pack_gemm_int8(w_NK: NDArray[np.int8]) -> PackedConvInt8:
    """Weights made ready for `gemm_int8`: those of a 1x1 convolution.

    Raises:
        InputError: they are no int8 matrix.
    """
    check_buffer("w_NK", w_NK, [np.int8])
    if w_NK.ndim != 2 or not w_NK.size:
        raise InputError(f"got shape {list(w_NK.shape)}", place="w_NK", wanted="[N, K], both above 0")
    num, depth = w_NK.shape
    return pack_conv2d_int8(w_NK.reshape(num, depth, 1, 1), Conv(depth, num, (1, 1)))


def gemm_int8(
    a_MK: Array,
    packed: PackedConvInt8,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
    requantize: Requantize | None = None,
    scale: Floats | None = None,
    out: Array | None = None,
    workspace: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> Array:
    """(a_MK - zero_point) @ w_NK.T as [M, N], with the epilogues of `conv2d_int8`.

    Raises:
        InputError: an argument is not as described there; nothing has been written.
    """
    if not isinstance(packed, PackedConvInt8):
        raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_gemm_int8 gives")
    check_buffer("a_MK", a_MK, _BYTES)
    shape = matrix_shape(packed, a_MK)
    if not len(a_MK):
        shape = (0, 1, 1, shape[3])
    num = packed.conv.out_channels
    if out is not None:
        check_buffer("out", out, [out.dtype] if isinstance(out, np.ndarray) else [], (len(a_MK), num))
        out = out.reshape(*shape[:3], num)
    made = conv2d_int8(
        a_MK.reshape(shape),
        packed,
        zero_point=zero_point,
        bias=bias,
        requantize=requantize,
        scale=scale,
        out=out,
        workspace=workspace,
        threads=threads,
    )
    return made.reshape(len(a_MK), num)


def _epilogue(
    channels: tuple[int],
    zero_point: int,
    bias: Array | None,
    requantize: Requantize | None,
    scale: Floats | None,
) -> tuple[Epilogue, np.dtype[Any]]:
    if scale is not None:
        if requantize is not None:
            raise InputError("got requantize, too", place="scale", wanted="one of them")
        check_buffer("scale", scale, [np.float32], channels)
        return Epilogue(bias_floats=bias, scale=scale, zero_point=zero_point), np.dtype(np.float32)
    if requantize is None:
        return Epilogue(bias_ints=bias, zero_point=zero_point), np.dtype(np.int32)
    if not isinstance(requantize, Requantize):
        raise InputError(f"got {type(requantize).__name__}", place="requantize", wanted="a Requantize")
    made = Epilogue(
        bias_ints=bias,
        multiplier=_each_channel("multiplier", requantize.multiplier, channels),
        shift=_each_channel("shift", requantize.shift, channels),
        zero_point=zero_point,
        out_zero_point=requantize.zero_point,
        low=requantize.qmin or 0,
        high=requantize.qmax or 0,
    )
    return made, np.dtype(requantize.dtype)


def _each_channel(place: str, values: Ints, channels: tuple[int]) -> Ints:
    if values.shape == channels:
        return values
    if values.size != 1:
        raise InputError(f"got {values.size} numbers", place=place, wanted=f"1 or {channels[0]}")
    return np.full(channels, values[0], np.int32)


def _check_sums(packed: PackedConvInt8, above: int, below: int, bias: Ints | None) -> None:
    """Refuse weights with which an x within -below..above, less its zero point, can leave 32 bits."""
    most = packed.reach if bias is None else packed.reach + max(int(bias.max()), -int(bias.min()))
    if most <= INT32[1]:
        return
    added = np.int64(0) if bias is None else bias.astype(np.int64)
    high = int((packed.positive * above + packed.negative * below + added).max())
    low = int((added - packed.positive * below - packed.negative * above).min())
    if high > INT32[1] or low < INT32[0]:
        raise InputError(
            f"sums of {packed.conv.num_products} products could reach {high if high > INT32[1] else low}",
            place="packed",
            wanted=f"within {INT32[0]} to {INT32[1]}",
            next_step="Split the channels of x, or choose smaller weights or biases",
        )


def _check_int(place: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"got {value!r:.60}", place=place, wanted=f"an integer from {low} to {high}")
