"""The instruction set the kernels run with: what this build holds, the processor runs, and is in use.

The choice is made in native/common/isa.cc; this file turns a choice that cannot be honoured into an error a
person can act on. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tensure.errors import UnsupportedError

__all__ = ["available_isas", "built_isas", "features", "isa", "native"]


class NativeSegment(Protocol):
    """The compiled module's list of steps; see tensure.kernels.StepList."""

    def workspace(self, num_threads: int) -> int: ...
    def num_steps(self) -> int: ...
    def run(
        self,
        inputs: list[NDArray[np.float32]],
        arena: NDArray[np.float32],
        workspace: NDArray[np.uint8],
        num_threads: int,
        timed: bool,
    ) -> list[float]: ...


class NativeDecoder(Protocol):
    """The compiled module's stage of a decoder; see tensure.kernels.DecoderStage."""

    def add_layer(
        self,
        matrices: Sequence[tuple[int | NDArray[np.uint8], ...]],
        vectors: Sequence[NDArray[np.float32] | None],
    ) -> None: ...
    def set_embed(self, matrix: tuple[int | NDArray[np.uint8], ...]) -> None: ...
    def set_head(self, matrix: tuple[int | NDArray[np.uint8], ...], norm: NDArray[np.float32]) -> None: ...
    def page_bytes(self) -> int: ...
    def workspace(self, num_rows: int, num_threads: int) -> int: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        slots: NDArray[np.int32],
        tables: NDArray[np.int32],
        wanted: NDArray[np.int32],
        pages: NDArray[np.uint8],
        hidden: NDArray[np.float32],
        logits: NDArray[np.float32],
        workspace: NDArray[np.uint8],
        num_threads: int,
    ) -> None: ...


class Native(Protocol):
    """What the compiled module (native/bindings) offers."""

    def isa(self) -> str: ...
    def isa_asked(self) -> str: ...
    def features(self) -> list[str]: ...
    def features_asked(self) -> str: ...
    def features_understood(self) -> bool: ...
    def isas_built(self) -> list[str]: ...
    def isas_available(self) -> list[str]: ...
    def Segment(self, input_floats: Sequence[int], arena_bytes: int) -> NativeSegment: ...
    def Decoder(
        self,
        sizes: Sequence[int],
        numbers: Sequence[float],
        adjacent: bool,
        cosine: NDArray[np.float32],
        sine: NDArray[np.float32],
        kv_format: int,
        arithmetic: int,
        head_arithmetic: int,
    ) -> NativeDecoder: ...
    def conv2d_packed_size(self, geometry: Sequence[int]) -> int: ...
    def conv2d_pack(
        self, geometry: Sequence[int], w: NDArray[np.float32], packed: NDArray[np.float32]
    ) -> None: ...
    def conv2d_workspace(
        self, geometry: Sequence[int], shape: Sequence[int], num_threads: int
    ) -> tuple[int, int]: ...
    def conv2d(
        self,
        geometry: Sequence[int],
        shape: Sequence[int],
        x: NDArray[np.float32],
        packed: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        residual: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        activation: int,
        num_threads: int,
        workspace: NDArray[np.uint8],
    ) -> None: ...
    def im2win(
        self,
        geometry: Sequence[int],
        shape: Sequence[int],
        x: NDArray[np.float32],
        out: NDArray[np.float32],
        num_threads: int,
    ) -> None: ...
    def convert_layout(
        self,
        source: int,
        target: int,
        shape: Sequence[int],
        x: NDArray[np.float32],
        out: NDArray[np.float32],
        num_threads: int,
    ) -> None: ...
    def dequantize_q4_0(
        self, blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int
    ) -> None: ...
    def dequantize_q4_1(
        self, blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int
    ) -> None: ...
    def dequantize_q8_0(
        self, blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int
    ) -> None: ...
    def dequantize_has_threads(self) -> bool: ...
    def gemv_exact(
        self,
        format: int,
        num_rows: int,
        num_cols: int,
        group: int,
        q: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        minimums: NDArray[np.uint8],
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        num_threads: int,
    ) -> None: ...
    def gemv_quantize(
        self, arithmetic: int, x: NDArray[np.float32], activations: NDArray[np.uint8]
    ) -> None: ...
    def gemv_rounded(
        self,
        arithmetic: int,
        format: int,
        num_rows: int,
        num_cols: int,
        group: int,
        q: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        minimums: NDArray[np.uint8],
        activations: NDArray[np.uint8],
        y: NDArray[np.float32],
        num_threads: int,
    ) -> None: ...
    def gemv_repack(
        self,
        format: int,
        num_rows: int,
        num_cols: int,
        blocks: NDArray[np.uint8],
        q: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        minimums: NDArray[np.uint8],
        num_threads: int,
    ) -> None: ...
    def gemv_activation_bytes(self, arithmetic: int, num_cols: int, batch: int) -> int: ...
    def gemv_exact_is_fused(self) -> bool: ...
    def gemv_read(self, data: NDArray[np.uint8], streams: int, prefetch: int, num_threads: int) -> int: ...
    def dotconv_runs(self, halves: bool) -> bool: ...
    def dotconv_packed_size(self, geometry: Sequence[int], halves: bool) -> int: ...
    def dotconv_pack(
        self, geometry: Sequence[int], halves: bool, w: NDArray[np.uint8], packed: NDArray[np.uint8]
    ) -> None: ...
    def dotconv_workspace(
        self, geometry: Sequence[int], shape: Sequence[int], element: int, num_threads: int
    ) -> tuple[int, int]: ...
    def dotconv(
        self,
        geometry: Sequence[int],
        shape: Sequence[int],
        element: int,
        output: int,
        x: NDArray[np.uint8],
        packed: NDArray[np.uint8],
        bias_ints: NDArray[np.int32] | None,
        bias_floats: NDArray[np.float32] | None,
        multiplier: NDArray[np.int32] | None,
        shift: NDArray[np.int32] | None,
        scale: NDArray[np.float32] | None,
        numbers: Sequence[int],
        activation: int,
        out: NDArray[np.uint8],
        num_threads: int,
        workspace: NDArray[np.uint8],
    ) -> None: ...
    def peak_lacks(self, kind: int) -> str: ...
    def measure_peak(self, kind: int, seconds: float) -> float: ...
    def survey(
        self,
        x: NDArray[Any],
        as_bf16: bool,
        statistics: bool,
        digest: bool,
        canonical_nan: bool,
        limit: float,
        num_threads: int,
    ) -> dict[str, Any]: ...
    def survey_at(
        self,
        address: int,
        element: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        statistics: bool,
        digest: bool,
        canonical_nan: bool,
        limit: float,
        num_threads: int,
    ) -> dict[str, Any]: ...
    def histogram(
        self, x: NDArray[Any], as_bf16: bool, low: float, high: float, counts: NDArray[np.int64]
    ) -> None: ...
    def histogram_at(
        self,
        address: int,
        element: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        low: float,
        high: float,
        counts: NDArray[np.int64],
    ) -> None: ...


def isa() -> str:
    """The instruction set in use: "v2", "v3", "v4" (x86-64 levels), "neon" or "base".

    Raises:
        UnsupportedError: TENSURE_ISA names a set that this build or this processor lacks, or the C++ part
        is not built.
    """
    return native().isa()


def available_isas() -> tuple[str, ...]:
    """The sets that this build holds and this processor can run, narrowest first."""
    return tuple(_load().isas_available())


def built_isas() -> tuple[str, ...]:
    """The sets that this build holds code for, narrowest first."""
    return tuple(_load().isas_built())


def features() -> tuple[str, ...]:
    """What kernels may use beyond the instruction set: "vnni" (8-bit dot products), "bf16" (bfloat16 ones).

    TENSURE_FEATURES=-vnni,-bf16 takes them away, for tests and comparisons.
    """
    return tuple(native().features())


@cache  # what is in use is decided when the module is loaded, and asking takes as long as a small kernel
def native() -> Native:
    """The compiled module, once an instruction set is in use."""
    module = _load()
    if not module.features_understood():
        raise UnsupportedError(
            f"TENSURE_FEATURES={module.features_asked()!r} cannot be read",
            wanted="-vnni, -bf16, or both with a comma between",
            next_step="Unset TENSURE_FEATURES, or set it to one of these",
        )
    if not module.isa():
        asked = module.isa_asked()
        runs = ", ".join(module.isas_available()) or "none"
        if not asked:
            raise UnsupportedError(
                "this processor runs none of the instruction sets Tensure's kernels are built for",
                wanted=f"at least {module.isas_built()[0]}",
            )
        raise UnsupportedError(
            f"TENSURE_ISA={asked!r} cannot be honoured: this processor and build offer {runs}",
            wanted=f"one of {runs}",
            next_step="Unset TENSURE_ISA, or set it to one of these",
        )
    return module


def _load() -> Native:
    try:
        from tensure.kernels import _native
    except ImportError as error:
        raise UnsupportedError(
            f"the C++ kernels cannot be loaded ({error})",
            next_step="In a checkout run `make build`; otherwise install the package again",
        ) from error
    return _native
