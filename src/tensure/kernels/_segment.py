"""A planned run of steps over one arena: the checked face of native/segment.

    steps = StepList(input_shapes=[(1, 3, 64, 64)], arena_bytes=2 << 20)
    steps.add_move(ImageShape("NCHW", 1, 3, 64, 64), "NHWC", Input(0), Slot(0))
    steps.add_conv(packed, (1, 64, 64), Slot(0), Slot(49152), bias=b, activation="relu")
    steps.run([x])
    y = steps.view(Slot(49152), (1, 64, 64, 64))

Every step is checked when it is added (sizes, bytes inside the arena); that no step destroys what a later one
reads is for the planner to prove (tensure.planning.arena_faults). A run is one call: no Python between steps,
one team of threads for all of them. Values are float32; images lie in NCHW, NHWC or CHWN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError
from tensure.kernels._buffers import aligned_bytes, check_array, check_threads
from tensure.kernels._conv import PackedConv
from tensure.kernels._conv_geometry import ACTIVATIONS, LAYOUTS, check_choice
from tensure.kernels._isa import native

__all__ = ["ImageShape", "Input", "Slot", "StepList"]

Floats = NDArray[np.float32]

_SEGMENT_LAYOUTS: Final = LAYOUTS[:3]
MAX_ARENA: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Input:
    """The index-th array of a run."""

    index: int


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes of the arena from `offset` on, a multiple of 4 (of 64 for full speed)."""

    offset: int


Place: TypeAlias = Input | Slot


@dataclass(frozen=True, slots=True)
class ImageShape:
    """Images and how they lie."""

    layout: str
    num_images: int
    channels: int
    height: int
    width: int

    def numbers(self) -> tuple[int, int, int, int, int]:
        """As the compiled module takes it."""
        layout = check_choice("layout", self.layout, _SEGMENT_LAYOUTS)
        return (layout, self.num_images, self.channels, self.height, self.width)


class StepList:
    """Steps in order, the arena they share, and their workspace.

    Args:
        input_shapes: of the float32 arrays each run gets.
        arena_bytes: of memory between the steps; allocated here, once.

    Raises:
        InputError: from every method, when a size does not fit; the step has not been added then.
    """

    def __init__(self, input_shapes: Sequence[Sequence[int]], arena_bytes: int) -> None:
        self._shapes = [tuple(shape) for shape in input_shapes]
        if (
            isinstance(arena_bytes, bool)
            or not isinstance(arena_bytes, int)
            or not 0 <= arena_bytes < MAX_ARENA
        ):
            raise InputError(
                f"got {arena_bytes!r}", place="arena_bytes", wanted=f"0 to {MAX_ARENA - 1} bytes"
            )
        arena_bytes = -(-arena_bytes // 4) * 4
        self._steps = native().Segment([math.prod(shape) for shape in self._shapes], arena_bytes)
        self._arena = aligned_bytes(arena_bytes).view(np.uint8)
        self._floats = self._arena.view(np.float32)
        self._workspace = aligned_bytes(0)
        self._sized_for = 0

    def __len__(self) -> int:
        return self._steps.num_steps()

    @property
    def arena_bytes(self) -> int:
        """Of the arena."""
        return self._arena.nbytes

    def add_conv(
        self,
        packed: PackedConv,
        sizes: tuple[int, int, int],
        x: Place,
        out: Slot,
        *,
        bias: Floats | None = None,
        residual: Place | None = None,
        activation: str = "none",
    ) -> None:
        """A convolution; `sizes` are x's images, height, width. A matrix product is a 1x1 one over rows."""
        if not isinstance(packed, PackedConv):
            raise InputError(f"got {type(packed).__name__}", place="packed", wanted="what pack_conv2d gives")
        lanes = {"CHWN8": 8, "CHWN16": 16}.get(packed.layout, 1)
        if len(sizes) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise InputError(
                f"got {sizes!r:.80}", place="sizes", wanted="images, height, width, each 1 or more"
            )
        if sizes[0] % lanes:
            raise InputError(f"got {sizes[0]} images", place="sizes", wanted=f"a multiple of {lanes}")
        packed.conv.check_run(*sizes)
        if bias is not None:
            check_array("bias", bias, (packed.conv.out_channels,))
        chosen = check_choice("activation", activation, ACTIVATIONS)
        self._add(
            "add_conv", packed.geometry, sizes, packed.data, bias, _ref(x),
            None if residual is None else _ref(residual), _ref(out), chosen,
        )  # fmt: skip

    def add_pool(
        self,
        image: ImageShape,
        kind: str,
        out_size: tuple[int, int],
        x: Place,
        out: Slot,
        *,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> None:
        """The largest ("max") or mean ("avg") value of each window; padding is above, below, left, right."""
        average = check_choice("kind", kind, ("max", "avg")) == 1
        window = (*out_size, *kernel, *stride, *dilation, *padding)
        self._add(
            "add_pool",
            image.numbers(),
            window,
            average,
            count_padding,
            divisor or 0,
            False,
            _ref(x),
            _ref(out),
        )

    def add_adaptive_pool(self, image: ImageShape, out_size: tuple[int, int], x: Place, out: Slot) -> None:
        """Means of windows that cover the image: floor(i * in / out) to ceil((i + 1) * in / out)."""
        window = (*out_size, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
        self._add("add_pool", image.numbers(), window, True, False, 0, True, _ref(x), _ref(out))

    def add_mean(self, image: ImageShape, x: Place, out: Slot) -> None:
        """The mean of each channel: [num_images, channels]; from CHWN, [channels, num_images]."""
        self._add("add_mean", image.numbers(), _ref(x), _ref(out))

    def add_pointwise(
        self,
        image: ImageShape,
        kind: str,
        a: Place,
        b: Place,
        out: Slot,
        *,
        spread: bool = False,
        activation: str = "none",
    ) -> None:
        """The sum a + b ("add") or product a * b ("mul").

        With `spread`, b holds one number for each image and channel, in the same layout.
        """
        multiply = check_choice("kind", kind, ("add", "mul")) == 1
        chosen = check_choice("activation", activation, ACTIVATIONS)
        self._add("add_pointwise", image.numbers(), spread, multiply, chosen, _ref(a), _ref(b), _ref(out))

    def add_activation(self, count: int, activation: str, x: Place, out: Slot) -> None:
        """An activation of `count` floats."""
        self._add(
            "add_activation", count, check_choice("activation", activation, ACTIVATIONS), _ref(x), _ref(out)
        )

    def add_softmax(self, rows: int, columns: int, x: Place, out: Slot) -> None:
        """exp(x) over its sum, along rows of `columns`."""
        self._add("add_softmax", rows, columns, _ref(x), _ref(out))

    def add_move(self, image: ImageShape, target: str, x: Place, out: Slot) -> None:
        """The same images in another layout."""
        self._add(
            "add_move", image.numbers(), check_choice("target", target, _SEGMENT_LAYOUTS), _ref(x), _ref(out)
        )

    def run(self, inputs: Sequence[Floats], threads: int = 1) -> None:
        """Every step in order; results are then in the arena.

        Not for two callers at a time: they would share the arena.
        """
        self._run(inputs, threads, timed=False)

    def time_steps(self, inputs: Sequence[Floats], threads: int = 1) -> list[float]:
        """The same run, and the seconds that each step took."""
        return self._run(inputs, threads, timed=True)

    def _run(self, inputs: Sequence[Floats], threads: int, *, timed: bool) -> list[float]:
        check_threads(threads)
        if len(inputs) != len(self._shapes):
            raise InputError(f"got {len(inputs)}", place="inputs", wanted=f"{len(self._shapes)}")
        for index, (array, shape) in enumerate(zip(inputs, self._shapes, strict=True)):
            check_array(f"inputs[{index}]", array, shape)
            if np.may_share_memory(array, self._arena):
                raise InputError("lies in the arena", place=f"inputs[{index}]", wanted="memory of its own")
        if threads != self._sized_for:
            self._workspace = aligned_bytes(self._steps.workspace(threads))
            self._sized_for = threads
        return self._steps.run(list(inputs), self._floats, self._workspace, threads, timed)

    def fill(self, value: float) -> None:
        """Put one value everywhere in the arena, so that what no step writes is seen."""
        self._floats[:] = value

    def view(self, slot: Slot, shape: Sequence[int]) -> Floats:
        """Floats of the arena as an array: valid until the next run, read-only."""
        end = slot.offset + 4 * math.prod(shape)
        if slot.offset % 4 or not 0 <= slot.offset <= end <= self._arena.nbytes:
            raise InputError(
                f"bytes {slot.offset} to {end}",
                place="slot",
                wanted=f"inside the arena of {self._arena.nbytes}",
            )
        view = self._floats[slot.offset // 4 : end // 4].reshape(tuple(shape))
        view.flags.writeable = False
        return view

    def _add(self, kind: str, *numbers: object) -> None:
        try:
            getattr(self._steps, kind)(*numbers)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{reason} ({numbers!r:.200})", place=f"step {len(self)}, {kind}", wanted="sizes that fit"
            ) from None
        self._sized_for = 0


def _ref(place: Place) -> tuple[bool, int]:
    if not isinstance(place, Input | Slot):
        raise InputError(f"got {place!r:.40}", place="place", wanted="an Input or a Slot")
    return (True, place.index) if isinstance(place, Input) else (False, place.offset)
