"""What one 2-D convolution is: sizes, strides, padding, dilation, groups, and the shapes that follow.

Layouts hold N images of C channels, H rows and W columns:

    NCHW    [N, C, H, W]
    NHWC    [N, H, W, C]
    CHWN    [C, H, W, N]
    CHWN8   [ceil(N/8), C, H, W, 8]      the last images of a batch that is no multiple are padding
    CHWN16  [ceil(N/16), C, H, W, 16]

Knows numbers only: no array, no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tensure.errors import InputError, LimitError, UnsupportedError

__all__ = [
    "ACTIVATIONS",
    "ALGORITHMS",
    "LAYOUTS",
    "SWITCHES",
    "Conv",
    "check_choice",
    "image_shape",
    "sizes_of",
]

LAYOUTS: Final = ("NCHW", "NHWC", "CHWN", "CHWN8", "CHWN16")
ALGORITHMS: Final = ("direct", "im2win", "im2win_full", "im2col", "winograd")
ACTIVATIONS: Final = ("none", "relu", "relu6", "silu")
SWITCHES: Final = ("vectorise", "hoist", "register_block", "reorder", "cache_block", "coalesce")
"""The paper's optimisations, in the order of their bits in native/conv/conv.h."""

MAX_FLOATS: Final = 1 << 58
"""Of any array: byte sizes and sums of a few such stay inside 64 bits."""
MAX_CHANNELS: Final = 1 << 31
MAX_STEP: Final = 1 << 20
"""Of a kernel, stride, padding or dilation: a row of memory times one stays inside 64 bits."""
_LANES: Final = {"CHWN8": 8, "CHWN16": 16}


@dataclass(frozen=True, slots=True)
class Conv:
    """One convolution, whatever it is applied to.

    Args:
        in_channels, out_channels: both multiples of `groups`.
        kernel: height, width.
        stride: down, across.
        padding: zeros above, below, left, right.
        dilation: down, across.
        groups: `in_channels` of them make a depthwise convolution.

    Raises:
        InputError: a number is not an integer or out of its range.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            _check(name, (getattr(self, name),), 1, 1, MAX_CHANNELS)
        _check("kernel", self.kernel, 2, 1, MAX_STEP)
        _check("stride", self.stride, 2, 1, MAX_STEP)
        _check("padding", self.padding, 4, 0, MAX_STEP)
        _check("dilation", self.dilation, 2, 1, MAX_STEP)
        for name in ("kernel", "stride", "padding", "dilation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise InputError(
                    f"{name} {channels} in {self.groups} groups",
                    place="groups",
                    wanted=f"a divisor of {channels}",
                )
        _check_size("the weights", self.weight_shape)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Of the weights as they come: [out_channels, in_channels / groups, kernel height, kernel width]."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def num_products(self) -> int:
        """How many products one output adds: K."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output.

        Raises:
            InputError: the padded input is smaller than the (dilated) kernel.
        """
        found = []
        for name, size, axis in (("height", height, 0), ("width", width, 1)):
            padded = size + self.padding[2 * axis] + self.padding[2 * axis + 1]
            window = (self.kernel[axis] - 1) * self.dilation[axis] + 1
            if size < 1 or padded < window:
                raise InputError(
                    f"{name} {size}, {padded} with padding, under a kernel that reaches {window}",
                    place="x",
                    wanted=f"at least {max(1, window - padded + size)}",
                )
            found.append((padded - window) // self.stride[axis] + 1)
        return found[0], found[1]

    def check_run(self, num_images: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output, once everything a run may allocate is known to be countable.

        Raises:
            InputError: as `out_size`.
            LimitError: an array, or what an algorithm makes of it, has over 2^58 elements.
        """
        rows, columns = self.out_size(height, width)
        padded = (height + sum(self.padding[:2])) * (width + sum(self.padding[2:]))
        # A batch of 0 still has a shape: count one image. 16: the lanes that a layout may pad images to.
        images = max(num_images, 16)
        for what, total in (
            ("the output", images * self.out_channels * rows * columns),
            ("its padded or im2win input", images * self.in_channels * padded * self.kernel[0]),
            ("its im2col matrix", images * rows * columns * self.groups * self.num_products),
        ):
            if total > MAX_FLOATS:
                raise LimitError(
                    f"{what} has {total} elements for {num_images} images of {height} x {width}",
                    place="x",
                    wanted=f"at most {MAX_FLOATS}",
                )
        return rows, columns

    def flops(self, num_images: int, height: int, width: int) -> int:
        """Multiplications and additions of the definition; Winograd does fewer."""
        rows, columns = self.out_size(height, width)
        return 2 * num_images * self.out_channels * rows * columns * self.num_products


def check_choice(place: str, value: object, known: Sequence[str]) -> int:
    """The index of a name in its list.

    Raises:
        UnsupportedError: it is not there.
    """
    if not isinstance(value, str) or value not in known:
        raise UnsupportedError(f"got {value!r:.60}", place=place, wanted="one of " + ", ".join(known))
    return known.index(value)


def image_shape(layout: str, num_images: int, channels: int, height: int, width: int) -> tuple[int, ...]:
    """The array shape of images in a layout."""
    if layout == "NCHW":
        return (num_images, channels, height, width)
    if layout == "NHWC":
        return (num_images, height, width, channels)
    if layout == "CHWN":
        return (channels, height, width, num_images)
    lanes = _LANES[layout]
    return (-(-num_images // lanes), channels, height, width, lanes)


def sizes_of(layout: str, shape: Sequence[int], channels: int, place: str = "x") -> tuple[int, int, int]:
    """Images (padded ones included), height and width of an array in a layout.

    Raises:
        InputError: the shape is not that of `channels` channels in this layout.
        LimitError: too large to index.
    """
    lanes = _LANES.get(layout)
    dims = tuple(int(size) for size in shape)
    wanted = f"{layout} with {channels} channels: {_letters(layout, channels)}"
    if len(dims) != (4 if lanes is None else 5):
        raise InputError(f"got shape {list(dims)}", place=place, wanted=wanted)
    if layout == "NCHW":
        images, found, height, width = dims
    elif layout == "NHWC":
        images, height, width, found = dims
    elif layout == "CHWN":
        found, height, width, images = dims
    else:
        blocks, found, height, width, last = dims
        images = blocks * last
        if last != lanes:
            raise InputError(f"got shape {list(dims)}", place=place, wanted=wanted)
    if found != channels:
        raise InputError(f"got {found} channels in shape {list(dims)}", place=place, wanted=wanted)
    _check_size(place, dims)
    return images, height, width


def _letters(layout: str, channels: int) -> str:
    lanes = _LANES.get(layout)
    if lanes is not None:
        return f"[N/{lanes}, {channels}, H, W, {lanes}]"
    return "[" + ", ".join(str(channels) if letter == "C" else letter for letter in layout) + "]"


def _check(place: str, values: object, count: int, least: int, limit: int) -> None:
    if not isinstance(values, Sequence) or len(values) != count:
        raise InputError(f"got {values!r:.80}", place=place, wanted=f"{count} integers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < limit:
            raise InputError(
                f"got {values!r:.80}", place=place, wanted=f"integers from {least} to {limit - 1}"
            )


def _check_size(place: str, shape: Sequence[int]) -> None:
    total = 1
    for size in shape:
        total *= size
    if total > MAX_FLOATS:
        raise LimitError(
            f"shape {list(shape)} has {total} elements", place=place, wanted=f"at most {MAX_FLOATS}"
        )
