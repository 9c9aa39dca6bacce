"""What convolutions of bytes and of bfloat16 share: packed weights, one run of native/dotconv.

Both run in NHWC: there the products that an instruction adds at once are neighbours in memory. Does not
know what the outputs mean (`_conv_int8.py`, `_conv_bf16.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError
from tensure.kernels._buffers import (
    aligned_array,
    aligned_bytes,
    as_bytes,
    check_buffer,
    check_out,
    check_threads,
    check_workspace,
)
from tensure.kernels._conv_geometry import ALGORITHMS, LAYOUTS, SWITCHES, Conv, image_shape, sizes_of
from tensure.kernels._isa import native

__all__ = ["Epilogue", "PackedDot", "matrix_shape", "output_array", "pack", "run"]

Array = NDArray[Any]
ELEMENTS: Final = ("uint8", "int8", "bfloat16")
"""In the order of DotElement in native/dotconv/dotconv.h."""
OUTPUTS: Final = ("int32", "int8", "uint8", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class PackedDot:
    """One convolution's weights as its register tiles read them: for this process's instruction set only."""

    conv: Conv
    data: NDArray[np.uint8]
    geometry: tuple[int, ...]
    """What the compiled module calls this convolution."""

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return self.data.nbytes

    def output_shape(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape of the output for an x of this shape."""
        return self.output_shape_of(sizes_of("NHWC", tuple(shape), self.conv.in_channels))

    def output_shape_of(self, sizes: tuple[int, int, int]) -> tuple[int, ...]:
        """The same for images, height, width."""
        images, height, width = sizes
        return image_shape(
            "NHWC", images, self.conv.out_channels, *self.conv.check_run(images, height, width)
        )

    def workspace_of(self, shape: Iterable[int], element: str, threads: int) -> int:
        """Bytes that a run works in beside its arguments: what is shared, and a part for each thread."""
        check_threads(threads)
        sizes = sizes_of("NHWC", tuple(shape), self.conv.in_channels)
        self.conv.check_run(*sizes)
        return _workspace_bytes(self, sizes, ELEMENTS.index(element), threads)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to the sums: the fields of DotRun in native/dotconv/dotconv.h."""

    bias_ints: NDArray[np.int32] | None = None
    bias_floats: NDArray[np.float32] | None = None
    multiplier: NDArray[np.int32] | None = None
    shift: NDArray[np.int32] | None = None
    scale: NDArray[np.float32] | None = None
    zero_point: int = 0
    out_zero_point: int = 0
    low: int = 0
    high: int = 0
    activation: int = 0


def pack(w_OIHW: Array, conv: Conv, *, halves: bool) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Packed weights and the geometry they are packed for."""
    sizes = (conv.in_channels, conv.out_channels, conv.groups, *conv.kernel, *conv.stride, *conv.dilation)
    choice = (LAYOUTS.index("NHWC"), ALGORITHMS.index("direct"), (1 << len(SWITCHES)) - 1)
    geometry = (*sizes, *conv.padding, *choice)
    module = native()
    data = aligned_bytes(module.dotconv_packed_size(geometry, halves))
    module.dotconv_pack(geometry, halves, as_bytes(w_OIHW), data)
    data.flags.writeable = False
    return data, geometry


def output_array(
    packed: PackedDot,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    out: Array | None,
    operands: Mapping[str, Array | None],
) -> Array:
    """`out`, found fit to be the output and apart from the operands; a new array when None."""
    if out is None:
        return aligned_array(shape, dtype)
    check_buffer("out", out, [dtype], shape)
    check_out(out, {"the weights": packed.data, **operands})
    return out


def run(
    packed: PackedDot,
    x: Array,
    sizes: tuple[int, int, int],
    element: str,
    out: Array,
    output: str,
    epilogue: Epilogue,
    workspace: NDArray[np.uint8] | None,
    threads: int,
) -> None:
    """Fill `out`; the arrays have been checked, and `sizes` are x's images, height and width."""
    check_threads(threads)
    index = ELEMENTS.index(element)
    need = _workspace_bytes(packed, sizes, index, threads)
    if workspace is None:
        workspace = aligned_bytes(need)
    else:
        check_workspace(workspace, need, (x, packed.data, out))
    native().dotconv(
        packed.geometry,
        sizes,
        index,
        OUTPUTS.index(output),
        as_bytes(x),
        packed.data,
        epilogue.bias_ints,
        epilogue.bias_floats,
        epilogue.multiplier,
        epilogue.shift,
        epilogue.scale,
        (epilogue.zero_point, epilogue.out_zero_point, epilogue.low, epilogue.high),
        epilogue.activation,
        as_bytes(out),
        threads,
        workspace,
    )


def _workspace_bytes(packed: PackedDot, sizes: tuple[int, int, int], element: int, threads: int) -> int:
    shared, per_thread = native().dotconv_workspace(packed.geometry, sizes, element, threads)
    return shared + threads * per_thread


def matrix_shape(packed: PackedDot, a_MK: Array) -> tuple[int, int, int, int]:
    """The shape of a matrix as an image of one row, whose pixels are the rows of the matrix.

    Raises:
        InputError: it is no matrix, or the packed weights are none.
    """
    conv = packed.conv
    if (conv.kernel, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0, 0, 0), 1):
        raise InputError(
            f"got weights of a {conv.kernel[0]}x{conv.kernel[1]} convolution, stride {conv.stride}, padding "
            f"{conv.padding}, {conv.groups} groups",
            place="packed",
            wanted="those of a matrix product",
        )
    if a_MK.ndim != 2 or a_MK.shape[1] != conv.in_channels:
        raise InputError(f"got shape {list(a_MK.shape)}", place="a_MK", wanted=f"[M, {conv.in_channels}]")
    return (1, 1, *a_MK.shape)
