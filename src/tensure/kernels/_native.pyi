# The compiled module (native/bindings). Only files of this room import it.

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._isa import NativeDecoder, NativeSegment

def isa() -> str: ...
def isa_asked() -> str: ...
def features() -> list[str]: ...
def features_asked() -> str: ...
def features_understood() -> bool: ...
def isas_built() -> list[str]: ...
def isas_available() -> list[str]: ...
def Segment(input_floats: Sequence[int], arena_bytes: int) -> NativeSegment: ...
def Decoder(
    sizes: Sequence[int],
    numbers: Sequence[float],
    adjacent: bool,
    cosine: NDArray[np.float32],
    sine: NDArray[np.float32],
    kv_format: int,
    arithmetic: int,
    head_arithmetic: int,
) -> NativeDecoder: ...
def conv2d_packed_size(geometry: Sequence[int]) -> int: ...
def conv2d_pack(geometry: Sequence[int], w: NDArray[np.float32], packed: NDArray[np.float32]) -> None: ...
def conv2d_workspace(geometry: Sequence[int], shape: Sequence[int], num_threads: int) -> tuple[int, int]: ...
def conv2d(
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
    geometry: Sequence[int],
    shape: Sequence[int],
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    num_threads: int,
) -> None: ...
def convert_layout(
    source: int,
    target: int,
    shape: Sequence[int],
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    num_threads: int,
) -> None: ...
def dequantize_q4_0(blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int) -> None: ...
def dequantize_q4_1(blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int) -> None: ...
def dequantize_q8_0(blocks: NDArray[np.uint8], out: NDArray[np.float32], num_threads: int) -> None: ...
def dequantize_has_threads() -> bool: ...
def gemv_exact(
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
def gemv_quantize(arithmetic: int, x: NDArray[np.float32], activations: NDArray[np.uint8]) -> None: ...
def gemv_rounded(
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
    format: int,
    num_rows: int,
    num_cols: int,
    blocks: NDArray[np.uint8],
    q: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    minimums: NDArray[np.uint8],
    num_threads: int,
) -> None: ...
def gemv_activation_bytes(arithmetic: int, num_cols: int, batch: int) -> int: ...
def gemv_exact_is_fused() -> bool: ...
def gemv_read(data: NDArray[np.uint8], streams: int, prefetch: int, num_threads: int) -> int: ...
def dotconv_runs(halves: bool) -> bool: ...
def dotconv_packed_size(geometry: Sequence[int], halves: bool) -> int: ...
def dotconv_pack(
    geometry: Sequence[int], halves: bool, w: NDArray[np.uint8], packed: NDArray[np.uint8]
) -> None: ...
def dotconv_workspace(
    geometry: Sequence[int], shape: Sequence[int], element: int, num_threads: int
) -> tuple[int, int]: ...
def dotconv(
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
def peak_lacks(kind: int) -> str: ...
def measure_peak(kind: int, seconds: float) -> float: ...
def survey(
    x: NDArray[Any],
    as_bf16: bool,
    statistics: bool,
    digest: bool,
    canonical_nan: bool,
    limit: float,
    num_threads: int,
) -> dict[str, Any]: ...
def survey_at(
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
def histogram(x: NDArray[Any], as_bf16: bool, low: float, high: float, counts: NDArray[np.int64]) -> None: ...
def histogram_at(
    address: int,
    element: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    low: float,
    high: float,
    counts: NDArray[np.int64],
) -> None: ...
