"""2-D convolution and matrix products of bfloat16: the checked face of native/dotconv for bf16.

Inputs and weights are bfloat16 (ml_dtypes, or their bits as uint16), sums float32; the layout is NHWC.

    packed = pack_gemm_bf16(w_NK)
    y_MN = gemm_bf16(a_MK, packed, bias=b, activation="relu")

Needs a processor with bfloat16 dot products (the feature "bf16"); elsewhere an UnsupportedError, never a slow
imitation. The instruction adds two products to a float32 sum one after the other: products are exact, each
addition rounds to nearest even, subnormal inputs and results count as zero. So with K products the error of
a sum, before bias and activation, is at most

    K * 2^-24 * (1 + K * 2^-24) * sum |x||w|  +  (K + sum |x| + sum |w|) * 2^-126

where K is rounded up to an even number in each kernel column, or row. Results depend on no number of threads,
no batch and no row partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError, UnsupportedError
from tensure.kernels._buffers import check_buffer
from tensure.kernels._conv_geometry import ACTIVATIONS, Conv, check_choice, sizes_of
from tensure.kernels._dotconv import Epilogue, PackedDot, matrix_shape, output_array, pack, run
from tensure.kernels._isa import isa, native

__all__ = ["PackedConvBf16", "conv2d_bf16", "gemm_bf16", "pack_conv2d_bf16", "pack_gemm_bf16"]

Array = NDArray[Any]
Floats = NDArray[np.float32]

BF16: Final = np.dtype(ml_dtypes.bfloat16)
_HALVES: Final = (BF16, np.dtype(np.uint16))


@dataclass(frozen=True, slots=True, eq=False)
class PackedConvBf16(PackedDot):
    """One convolution's bfloat16 weights, packed for this process's instruction set only."""

    def workspace_bytes(self, shape: tuple[int, ...], threads: int = 1) -> int:
        """Bytes that `conv2d_bf16` works in beside its arguments."""
        return self.workspace_of(tuple(shape), "bfloat16", threads)


def pack_conv2d_bf16(w_OIHW: Array, conv: Conv) -> PackedConvBf16:
    """Weights made ready for `conv2d_bf16`.

    Raises:
        InputError: they are not bfloat16 (or uint16) of shape `conv.weight_shape`.
        UnsupportedError: the processor has no bfloat16 dot products.
    """
    check_buffer("w_OIHW", w_OIHW, _HALVES, conv.weight_shape)
    if not native().dotconv_runs(True):
        raise UnsupportedError(
            f"no bfloat16 dot products with instruction set {isa()}",
            wanted="a processor with AVX512_BF16, and TENSURE_ISA and TENSURE_FEATURES that leave it on",
            next_step="Use float32: pack_conv2d, conv2d",
        )
    return PackedConvBf16(conv, *pack(w_OIHW, conv, halves=True))


def conv2d_bf16(
    x: Array,
    packed: PackedConvBf16,
    *,
    bias: Floats | None = None,
    activation: str = "none",
    dtype: str = "float32",
    out: Array | None = None,
    workspace: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> Array:
    """activation(convolution of x + bias), as float32 or rounded once more to bfloat16.

    Args:
        x: bfloat16, or uint16 holding its bits, C-contiguous, [N, H, W, in_channels].
        packed: by `pack_conv2d_bf16`.
        bias: float32 [out_channels].
        activation: one of ACTIVATIONS.
        dtype: "float32" or "bfloat16", of the output.
        out: of the output's shape and dtype (or uint16), C-contiguous, writable, overlapping nothing else;
            made when None.
        workspace: uint8, at least `packed.workspace_bytes(x.shape, threads)`, starting at a multiple of 64;
            made when None.
        threads: at most this many work.

    Raises:
        InputError: an argument is not as described; nothing has been written.
    """
    if not isinstance(packed, PackedConvBf16):
        raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_conv2d_bf16 gives")
    chosen = check_choice("activation", activation, ACTIVATIONS)
    check_choice("dtype", dtype, ("float32", "bfloat16"))
    check_buffer("x", x, _HALVES)
    if bias is not None:
        check_buffer("bias", bias, [np.float32], (packed.conv.out_channels,))
    wanted = BF16 if dtype == "bfloat16" else np.dtype(np.float32)
    if wanted == BF16 and isinstance(out, np.ndarray) and out.dtype == np.uint16:
        wanted = np.dtype(np.uint16)
    sizes = sizes_of("NHWC", x.shape, packed.conv.in_channels)
    out = output_array(packed, packed.output_shape_of(sizes), wanted, out, {"x": x, "bias": bias})
    epilogue = Epilogue(bias_floats=bias, activation=chosen)
    run(packed, x, sizes, "bfloat16", out, dtype, epilogue, workspace, threads)
    return out


def pack_gemm_bf16(w_NK: Array) -> PackedConvBf16:
    """Weights made ready for `gemm_bf16`: those of a 1x1 convolution.

    Raises:
        InputError: they are no bfloat16 (or uint16) matrix.
        UnsupportedError: the processor has no bfloat16 dot products.
    """
    check_buffer("w_NK", w_NK, _HALVES)
    if w_NK.ndim != 2 or not w_NK.size:
        raise InputError(f"got shape {list(w_NK.shape)}", place="w_NK", wanted="[N, K], both above 0")
    num, depth = w_NK.shape
    return pack_conv2d_bf16(w_NK.reshape(num, depth, 1, 1), Conv(depth, num, (1, 1)))


def gemm_bf16(
    a_MK: Array,
    packed: PackedConvBf16,
    *,
    bias: Floats | None = None,
    activation: str = "none",
    dtype: str = "float32",
    out: Array | None = None,
    workspace: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> Array:
    """activation(a_MK @ w_NK.T + bias) as [M, N], with the arguments of `conv2d_bf16`.

    Raises:
        InputError: an argument is not as described there; nothing has been written.
    """
    if not isinstance(packed, PackedConvBf16):
        raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_gemm_bf16 gives")
    check_buffer("a_MK", a_MK, _HALVES)
    shape = matrix_shape(packed, a_MK)
    if not len(a_MK):
        shape = (0, 1, 1, shape[3])
    num = packed.conv.out_channels
    if out is not None:
        check_buffer("out", out, [out.dtype] if isinstance(out, np.ndarray) else [], (len(a_MK), num))
        out = out.reshape(*shape[:3], num)
    made = conv2d_bf16(
        a_MK.reshape(shape),
        packed,
        bias=bias,
        activation=activation,
        dtype=dtype,
        out=out,
        workspace=workspace,
        threads=threads,
    )
    return made.reshape(len(a_MK), num)
