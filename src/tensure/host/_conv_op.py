"""`torch.ops.tensure.conv2d`: our convolution as a torch op, and a module that stands in for torch.nn.Conv2d.

Tensors reach the kernels as they lie in memory, without copies and without linking libtorch: a
channels_last tensor is NHWC, a contiguous one NCHW. The op has a meaning on fake tensors, so that
torch.export and torch.compile see through it; it has no derivative. It runs on as many threads as
torch.get_num_threads() says. Importing this file registers the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tensure import kernels
from tensure.errors import InputError, UnsupportedError

__all__ = ["PackedConv2d"]

_SCHEMA: Final = (
    "conv2d(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, int[] sizes, str algorithm, str layout, "
    "str activation, str isa) -> Tensor"
)
_LIBRARY: Final = torch.library.Library("tensure", "DEF")  # type: ignore[no-untyped-call]
_FORMATS: Final = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
# What NHWC calls first, second, ... of an [N, C, H, W] tensor.
_ORDERS: Final = {"NHWC": (0, 2, 3, 1), "NCHW": (0, 1, 2, 3)}


class PackedConv2d(torch.nn.Module):
    """A convolution with packed weights, for inference; `of` makes one from a torch.nn.Conv2d.

    Its packed weights suit the instruction set they were packed for; the op refuses to run with another.
    """

    def __init__(
        self,
        weight: Tensor,
        conv: kernels.Conv,
        bias: Tensor | None = None,
        *,
        algorithm: str = "direct",
        layout: str = "NHWC",
        activation: str = "none",
    ) -> None:
        super().__init__()
        if layout not in _FORMATS:
            raise UnsupportedError(f"layout {layout!r:.40}", wanted=" or ".join(_FORMATS))
        w_OIHW = weight.detach().to(torch.float32).contiguous().numpy()
        packed = kernels.pack_conv2d(w_OIHW, conv, algorithm, layout)
        # A tensor of torch's own begins at a multiple of 64, as the packed array does.
        self.register_buffer("packed", torch.empty(packed.data.size))
        self.packed: Tensor
        self.packed.numpy()[:] = packed.data
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32).clone())
        self.bias: Tensor | None
        self.sizes = _sizes(conv)
        self.algorithm, self.layout, self.activation, self.isa = algorithm, layout, activation, kernels.isa()

    @classmethod
    def of(
        cls,
        module: torch.nn.Conv2d,
        *,
        algorithm: str = "direct",
        layout: str = "NHWC",
        activation: str = "none",
    ) -> PackedConv2d:
        """The same convolution, packed.

        Raises:
            UnsupportedError: padding that is not zeros, or given by a word other than "valid".
        """
        if module.padding_mode != "zeros" or module.padding == "same":
            raise UnsupportedError(
                f"padding {module.padding!r} of {module.padding_mode}", wanted="numbers of zeros"
            )
        down, across = (0, 0) if isinstance(module.padding, str) else module.padding
        conv = kernels.Conv(
            module.in_channels, module.out_channels, _pair(module.kernel_size), _pair(module.stride),
            (down, down, across, across), _pair(module.dilation), module.groups,
        )  # fmt: skip
        return cls(
            module.weight, conv, module.bias, algorithm=algorithm, layout=layout, activation=activation
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Give activation(conv(x) + bias + residual); x [N, C, H, W] is copied only if it lies otherwise."""
        form = _FORMATS[self.layout]
        x = x.contiguous(memory_format=form)
        if residual is not None:
            residual = residual.contiguous(memory_format=form)
        found: Tensor = torch.ops.tensure.conv2d(
            x,
            self.packed,
            self.bias,
            residual,
            self.sizes,
            self.algorithm,
            self.layout,
            self.activation,
            self.isa,
        )
        return found


def _conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sizes: Sequence[int],
    algorithm: str,
    layout: str,
    activation: str,
    isa: str,
) -> Tensor:
    conv, shape = _checked(x, bias, residual, sizes, layout, activation, isa)
    given = kernels.PackedConv.of(packed.numpy(), conv, algorithm, layout)
    order = _ORDERS[layout]
    lying = _lying(x, "x", order)
    out = torch.empty(shape, dtype=torch.float32, memory_format=_FORMATS[layout])
    kernels.conv2d(
        lying.numpy(),
        given,
        bias=None if bias is None else bias.numpy(),
        residual=None if residual is None else _lying(residual, "residual", order).numpy(),
        activation=activation,
        out=out.permute(order).numpy(),
        threads=torch.get_num_threads(),
    )
    return out


def _fake_conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sizes: Sequence[int],
    algorithm: str,
    layout: str,
    activation: str,
    isa: str,
) -> Tensor:
    conv, shape = _checked(x, bias, residual, sizes, layout, activation, isa)
    if packed.dtype != torch.float32 or packed.dim() != 1:
        raise InputError(
            f"got {packed.dtype} with {packed.dim()} dims", place="packed", wanted="float32 with 1 dim"
        )
    if _known(packed.shape):
        # Memory that nobody touches stands in for the weights: their number is what is checked.
        kernels.PackedConv.of(np.empty(tuple(packed.shape), np.float32), conv, algorithm, layout)
    for place, images in (("x", x), ("residual", residual)):
        if images is not None and _known(images.shape):
            _lying(images, place, _ORDERS[layout])
    return torch.empty(shape, dtype=torch.float32, memory_format=_FORMATS[layout], device=x.device)


def _checked(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sizes: Sequence[int],
    layout: str,
    activation: str,
    isa: str,
) -> tuple[kernels.Conv, tuple[int, ...]]:
    """The convolution and the shape of its output.

    Refuses what can be seen on fake tensors too; sizes that are symbols there are left to the run.
    """
    if isa != kernels.isa():
        raise UnsupportedError(
            f"weights packed for {isa!r:.20} on {kernels.isa()}", place="packed", wanted="weights packed here"
        )
    if layout not in _ORDERS:
        raise UnsupportedError(f"layout {layout!r:.40}", wanted=" or ".join(_ORDERS))
    if activation not in kernels.ACTIVATIONS:
        raise UnsupportedError(
            f"got {activation!r:.60}", place="activation", wanted="one of " + ", ".join(kernels.ACTIVATIONS)
        )
    conv = _conv(sizes)
    _check_tensor("x", x, ("N", conv.in_channels, "H", "W"))
    shape = _out_shape(conv, x)
    if bias is not None:
        _check_tensor("bias", bias, (conv.out_channels,))
    if residual is not None:
        _check_tensor("residual", residual, shape)
    return conv, shape


def _check_tensor(place: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Refuse another dtype, number of dims or size, where both the size and the wanted one are numbers."""
    if tensor.dtype != torch.float32 or tensor.dim() != len(wanted):
        raise InputError(
            f"got {tensor.dtype} with {tensor.dim()} dims",
            place=place,
            wanted=f"float32 [{', '.join(map(str, wanted))}]",
        )
    pairs = zip(tensor.shape, wanted, strict=True)
    if any(_known((size, other)) and size != other for size, other in pairs):
        raise InputError(
            f"got shape {list(tensor.shape)}", place=place, wanted=f"[{', '.join(map(str, wanted))}]"
        )


def _out_shape(conv: kernels.Conv, x: Tensor) -> tuple[int, ...]:
    if _known(x.shape[2:]):
        return (x.shape[0], conv.out_channels, *conv.out_size(x.shape[2], x.shape[3]))
    # Symbols: plain arithmetic only. What is a number is checked alone.
    conv.out_size(*(size if _known((size,)) else 1 << 40 for size in x.shape[2:]))
    height, width = x.shape[2] + sum(conv.padding[:2]), x.shape[3] + sum(conv.padding[2:])
    rows = (height - (conv.kernel[0] - 1) * conv.dilation[0] - 1) // conv.stride[0] + 1
    columns = (width - (conv.kernel[1] - 1) * conv.dilation[1] - 1) // conv.stride[1] + 1
    return (x.shape[0], conv.out_channels, rows, columns)


def _known(sizes: Sequence[object]) -> bool:
    """Whether all are numbers; under torch.export and torch.compile some are symbols."""
    return all(isinstance(size, int) for size in sizes)


def _lying(x: Tensor, place: str, order: tuple[int, ...]) -> Tensor:
    lying = x.detach().permute(order)
    if not lying.is_contiguous():
        raise InputError(
            f"got strides {tuple(x.stride())} for shape {tuple(x.shape)}",
            place=place,
            wanted="channels_last memory for NHWC, contiguous for NCHW",
        )
    return lying


def _sizes(conv: kernels.Conv) -> list[int]:
    windows = (*conv.kernel, *conv.stride, *conv.padding, *conv.dilation)
    return [conv.in_channels, conv.out_channels, *windows, conv.groups]


def _conv(sizes: Sequence[int]) -> kernels.Conv:
    if len(sizes) != 13:
        raise InputError(f"got {len(sizes)} numbers", place="sizes", wanted="13, as PackedConv2d.sizes")
    n = [int(size) for size in sizes]
    return kernels.Conv(
        n[0], n[1], (n[2], n[3]), (n[4], n[5]), (n[6], n[7], n[8], n[9]), (n[10], n[11]), n[12]
    )


def _pair(value: Any) -> tuple[int, int]:
    down, across = value
    return int(down), int(across)


_LIBRARY.define(_SCHEMA)  # type: ignore[no-untyped-call]
_LIBRARY.impl("conv2d", _conv2d, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("tensure::conv2d", _fake_conv2d, lib=_LIBRARY)
