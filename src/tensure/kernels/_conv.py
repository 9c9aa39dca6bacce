"""2-D convolution of float32: the checked face of native/conv.

Weights are packed once for one algorithm and layout; a packed convolution then runs on any batch and size.

    conv = Conv(64, 128, kernel=(3, 3), padding=(1, 1, 1, 1))
    packed = pack_conv2d(w_OIHW, conv, algorithm="direct", layout="NHWC")
    y_NHWC = conv2d(x_NHWC, packed, bias=b, activation="relu", threads=2)

Algorithms: `direct` reads x where it stands; `im2win` makes the im2win rows of a block at a time (arXiv
2408.00278), `im2win_full` makes all of them first, as the paper has it; `im2col` is the classical baseline;
`winograd` is F(4x4, 3x3), faster and less accurate, and never chosen by anybody but the caller.

Every algorithm but winograd is strict: an output adds its K products one after the other, each fused
(rounded once), in an order that algorithm and layout fix. Bits depend on no number of threads, no batch and
no row partition, and are the same on x86-64-v3, v4 and NEON; x86-64-v2 has no fused multiply-add. The error
of a sum is at most K * 2^-24 * sum |x||w|; Winograd's stays within 1e-4 of the largest output for inputs of
one scale.

The definition beside it is `conv2d_reference` (`_conv_reference.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError, UnsupportedError
from tensure.kernels._buffers import (
    aligned_bytes,
    aligned_floats,
    check_array,
    check_threads,
    check_workspace,
)
from tensure.kernels._conv_geometry import (
    ACTIVATIONS,
    ALGORITHMS,
    LAYOUTS,
    SWITCHES,
    Conv,
    check_choice,
    image_shape,
    sizes_of,
)
from tensure.kernels._isa import native

__all__ = [
    "PackedConv",
    "convert_layout",
    "conv2d",
    "im2win",
    "pack_conv2d",
]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ALL_SWITCHES: Final = (1 << len(SWITCHES)) - 1


@dataclass(frozen=True, slots=True, eq=False)
class PackedConv:
    """One convolution's weights as its register tiles read them: for this process's instruction set only."""

    conv: Conv
    algorithm: str
    layout: str
    data: Floats
    geometry: tuple[int, ...]
    """What the compiled module calls this convolution."""

    @classmethod
    def of(cls, data: Floats, conv: Conv, algorithm: str, layout: str) -> PackedConv:
        """Weights that `pack_conv2d` packed before, for this very instruction set.

        Raises:
            InputError: not as many floats as this convolution packs into.
            UnsupportedError: no such algorithm or layout, or not for this convolution.
        """
        geometry = _checked_geometry(conv, algorithm, layout, None)
        check_array("data", data, (native().conv2d_packed_size(geometry),))
        return cls(conv, algorithm, layout, data, geometry)

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return self.data.nbytes

    def output_shape(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape of the output for an x of this shape."""
        images, height, width = sizes_of(self.layout, tuple(shape), self.conv.in_channels)
        rows, columns = self.conv.check_run(images, height, width)
        return image_shape(self.layout, images, self.conv.out_channels, rows, columns)

    def workspace_bytes(self, shape: Iterable[int], threads: int = 1) -> int:
        """Bytes that `conv2d` works in beside its arguments: what is shared, and a part for each thread."""
        check_threads(threads)
        sizes = sizes_of(self.layout, tuple(shape), self.conv.in_channels)
        self.conv.check_run(*sizes)
        shared, per_thread = native().conv2d_workspace(self.geometry, sizes, threads)
        return shared + threads * per_thread


def pack_conv2d(
    w_OIHW: Floats,
    conv: Conv,
    algorithm: str = "direct",
    layout: str = "NHWC",
    *,
    switches: Iterable[str] | None = None,
) -> PackedConv:
    """Weights made ready for `conv2d`.

    Args:
        w_OIHW: float32 of shape `conv.weight_shape`.
        conv: the convolution.
        algorithm: one of ALGORITHMS.
        layout: one of LAYOUTS, of x and of the output.
        switches: the names of SWITCHES that stay on, for an ablation of direct convolution in NHWC; all of
            them when None.

    Raises:
        InputError: the weights are not those of `conv`.
        UnsupportedError: no such algorithm or layout, or not for this convolution.
    """
    geometry = _checked_geometry(conv, algorithm, layout, switches)
    check_array("w_OIHW", w_OIHW, conv.weight_shape)
    module = native()
    data = aligned_bytes(module.conv2d_packed_size(geometry) * 4).view(np.float32)
    module.conv2d_pack(geometry, w_OIHW, data)
    data.flags.writeable = False
    return PackedConv(conv, algorithm, layout, data, geometry)


def conv2d(
    x: Floats,
    packed: PackedConv,
    *,
    bias: Floats | None = None,
    residual: Floats | None = None,
    activation: str = "none",
    out: Floats | None = None,
    workspace: Bytes | None = None,
    threads: int = 1,
) -> Floats:
    """activation(convolution of x + bias + residual), in the packed layout.

    Args:
        x: float32, C-contiguous, in `packed.layout`.
        packed: by `pack_conv2d`.
        bias: float32 [out_channels].
        residual: in the shape of the output; may be `out` itself.
        activation: one of ACTIVATIONS.
        out: float32, C-contiguous, writable, overlapping nothing else; made when None.
        workspace: uint8, at least `packed.workspace_bytes(x.shape, threads)`, starting at a multiple of 64;
            made when None.
        threads: at most this many work.

    Raises:
        InputError: an argument is not as described; nothing has been written.
    """
    chosen = check_choice("activation", activation, ACTIVATIONS)
    if not isinstance(packed, PackedConv):
        raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_conv2d gives")
    check_threads(threads)
    check_array("x", x)
    sizes = sizes_of(packed.layout, x.shape, packed.conv.in_channels)
    shape = packed.output_shape(x.shape)
    if bias is not None:
        check_array("bias", bias, (packed.conv.out_channels,))
    if residual is not None:
        check_array("residual", residual, shape)
    if out is None:
        out = aligned_floats(shape)
    else:
        check_array("out", out, shape)
        if not out.flags.writeable:
            raise InputError("got a read-only array", place="out", wanted="a writable one")
        for name, other in (("x", x), ("the weights", packed.data), ("bias", bias), ("residual", residual)):
            if other is None or (name == "residual" and _same_memory(other, out)):
                continue
            if np.may_share_memory(other, out):
                raise InputError(f"overlaps {name} in memory", place="out", wanted="memory of its own")
    need = packed.workspace_bytes(x.shape, threads)
    if workspace is None:
        workspace = aligned_bytes(need)
    else:
        check_workspace(workspace, need, (x, packed.data, out, bias, residual))
    native().conv2d(packed.geometry, sizes, x, packed.data, bias, residual, out, chosen, threads, workspace)
    return out


def im2win(x: Floats, conv: Conv, layout: str = "NHWC", *, threads: int = 1) -> Floats:
    """The im2win tensor of x: for each output row, the columns of the input rows it reaches, in a row.

    With Wp = width + padding and Hf = kernel height, the columns' Hf elements stand together:

        NCHW   [N, C, Ho, Wp*Hf]        [i, r, m, k*Hf+u] = x[i, r, m*s + u*d, k]
        NHWC   [N, Ho, Wp*Hf, C]        [i, m, k*Hf+u, r]
        CHWN   [C, Ho, Wp*Hf, N]        and CHWN8, CHWN16 as [N/b, C, Ho, Wp*Hf, b]

    Source: the papers' abstracts and reference code for NCHW; the other layouts are our reconstruction.
    """
    index = check_choice("layout", layout, LAYOUTS)
    check_threads(threads)
    check_array("x", x)
    images, height, width = sizes_of(layout, x.shape, conv.in_channels)
    rows, _ = conv.check_run(images, height, width)
    cells = (width + conv.padding[2] + conv.padding[3]) * conv.kernel[0]
    out = np.empty(image_shape(layout, images, conv.in_channels, rows, cells), np.float32)
    geometry = _geometry(conv, index, ALGORITHMS.index("im2win"), _ALL_SWITCHES)
    native().im2win(geometry, (images, height, width), x, out, threads)
    return out


def convert_layout(
    x: Floats,
    source: str,
    target: str,
    num_images: int | None = None,
    *,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """The same images in another layout.

    Lanes that pad the last block of CHWN8 and CHWN16 become zero, and are dropped on leaving.

    Args:
        x: float32, C-contiguous, in `source`.
        source, target: of LAYOUTS.
        num_images: how many images are real; needed when leaving a padded CHWN8 or CHWN16, else x's own.
        out: float32 of the new shape; made when None.
        threads: at most this many work.

    Raises:
        InputError: an argument is not as described.
    """
    numbers = check_choice("source", source, LAYOUTS), check_choice("target", target, LAYOUTS)
    check_threads(threads)
    check_array("x", x)
    channel_dim = {"NCHW": 1, "NHWC": 3, "CHWN": 0}.get(source, 1)
    if x.ndim <= channel_dim:
        raise InputError(f"got shape {list(x.shape)}", place="x", wanted=f"the dims of {source}")
    channels = x.shape[channel_dim]
    held, height, width = sizes_of(source, x.shape, channels)
    images = held if num_images is None else num_images
    lanes = held - x.shape[-1] if source in ("CHWN8", "CHWN16") and held else held - 1
    if isinstance(images, bool) or not isinstance(images, int) or not min(lanes + 1, held) <= images <= held:
        raise InputError(
            f"got {num_images!r}", place="num_images", wanted=f"{lanes + 1} to {held}, what x holds"
        )
    shape = image_shape(target, images, channels, height, width)
    if out is None:
        out = aligned_floats(shape)
    else:
        check_array("out", out, shape)
        if not out.flags.writeable or np.may_share_memory(x, out):
            raise InputError(
                "read-only, or overlaps x in memory", place="out", wanted="writable memory of its own"
            )
    native().convert_layout(*numbers, (images, channels, height, width), x, out, threads)
    return out


def _checked_geometry(
    conv: Conv, algorithm: str, layout: str, switches: Iterable[str] | None
) -> tuple[int, ...]:
    index = check_choice("algorithm", algorithm, ALGORITHMS), check_choice("layout", layout, LAYOUTS)
    if switches is not None and (algorithm, layout) != ("direct", "NHWC"):
        raise UnsupportedError(
            f"switches for {algorithm} in {layout}", place="switches", wanted="direct in NHWC"
        )
    on = _ALL_SWITCHES if switches is None else _bits(switches)
    if algorithm == "winograd":
        _check_winograd(conv, layout)
    return _geometry(conv, index[1], index[0], on)


def _bits(switches: Iterable[str]) -> int:
    return sum({1 << check_choice("switches", name, SWITCHES) for name in switches})


def _check_winograd(conv: Conv, layout: str) -> None:
    found = (conv.kernel, conv.stride, conv.dilation, conv.groups, layout)
    if found != ((3, 3), (1, 1), (1, 1), 1, "NHWC"):
        raise UnsupportedError(
            "winograd for kernel {}, stride {}, dilation {}, {} groups in {}".format(*found),
            place="algorithm",
            wanted="3x3, stride 1, no dilation, one group, NHWC",
        )


def _geometry(conv: Conv, layout: int, algorithm: int, switches: int) -> tuple[int, ...]:
    """A convolution as native/bindings/conv.cc takes it."""
    sizes = (conv.in_channels, conv.out_channels, conv.groups, *conv.kernel, *conv.stride, *conv.dilation)
    return (*sizes, *conv.padding, layout, algorithm, switches)


def _same_memory(a: Floats, b: Floats) -> bool:
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape
