"""Our products of bytes and bfloat16 and oneDNN's through torch, as `gemm` times them, each in its process.

Both make the same numbers. Weights are packed before anything is timed; ours writes where it wrote the last
time, torch returns a fresh tensor, as there is no way to hand it an output. Ours compares itself with exact
sums before it is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._conv_cases import Problem, problem_of
from ._records import AbsentError, EngineError, Json
from ._text_engine import memory_facts, pack

__all__ = ["GemmEngine", "setup", "setup_torch"]

#: Gives the output of one call: NHWC or [M, N]
Call: TypeAlias = Callable[[], NDArray[Any]]

ZERO_POINT: Final = 7
OUT_ZERO_POINT: Final = 128
MULTIPLIER: Final = 5 << 28  # 0.625, as a Q31 number
WHOLE: Final = 1 << 18
STEP: Final = 61
"""An output of up to WHOLE elements crosses to the parent, of a larger one every STEP-th."""


class GemmEngine:
    """`check` and `run` of the cases; `prepare` makes the call of a case."""

    def __init__(self, prepare: Callable[[Json, int], Call], says: Json) -> None:
        self._prepare = prepare
        self._says = says
        self._made: tuple[str, Call] | None = None

    def check(self, case: Json) -> Json:
        """A sample of the output."""
        flat = self._call(case)().reshape(-1)
        return pack(flat[:: 1 if flat.size <= WHOLE else STEP].astype(np.float32))

    def run(self, case: Json) -> Json:
        """The call, `repeats` times."""
        call = self._call(case)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(case["params"]["repeats"]):
            call()
        return {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """What computes, and this process's memory."""
        return {**self._says, **memory_facts()}

    def _call(self, case: Json) -> Call:
        if self._made is None or self._made[0] != case["name"]:
            self._made = None  # let go of the last case's arrays first
            self._made = (case["name"], self._prepare(case, case["threads"]))
        return self._made[1]


def setup() -> GemmEngine:
    """Ours."""
    from tensure import kernels

    return GemmEngine(
        _own_call, {"version": f"tensure {kernels.isa()}", "features": list(kernels.features())}
    )


def setup_torch() -> GemmEngine:
    """torch.ops.onednn's quantized products, and torch's own of bfloat16."""
    import torch

    return GemmEngine(_torch_call, {"version": torch.__version__})


def _bytes(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    rng = np.random.default_rng(11)
    return rng.integers(0, 256, x_shape, np.uint8), rng.integers(-127, 128, w_shape, np.int8)


def _shift(problem: Problem) -> int:
    """Such that outputs fill a byte: sums spread with the root of their number."""
    spread = math.sqrt(problem.in_channels * problem.kernel**2) * 74 * 74
    return -round(math.log2(spread / 40))


def _own_call(case: Json, threads: int) -> Call:
    if "problem" in case["params"]:
        return _own_convolution(problem_of(case), threads)
    m, n, k = case["params"]["matrix"]
    return _own_halves(m, n, k, threads) if case["params"]["form"] == "bf16" else _own_bytes(m, n, k, threads)


def _own_convolution(problem: Problem, threads: int) -> Call:
    from tensure import kernels

    num, channels, height, width = problem.in_shape
    x, w = _bytes((num, height, width, channels), problem.weight_shape)
    size, step = (problem.kernel, problem.kernel), (problem.stride, problem.stride)
    conv = kernels.Conv(channels, problem.out_channels, size, step)
    packed = kernels.pack_conv2d_int8(w, conv)
    bias = np.arange(problem.out_channels, dtype=np.int32)
    narrow = kernels.Requantize(
        np.full(problem.out_channels, MULTIPLIER, np.int32),
        np.full(problem.out_channels, _shift(problem), np.int32),
        OUT_ZERO_POINT,
        dtype=np.uint8,
    )
    out = np.zeros(packed.output_shape(x.shape), np.uint8)
    workspace = kernels.aligned_bytes(packed.workspace_bytes(x.shape, np.uint8, threads))

    def call() -> NDArray[Any]:
        return kernels.conv2d_int8(
            x,
            packed,
            zero_point=ZERO_POINT,
            bias=bias,
            requantize=narrow,
            out=out,
            workspace=workspace,
            threads=threads,
        )

    few = np.ascontiguousarray(x[:, : problem.kernel + 2])
    exact = kernels.conv2d_int8_reference(few, w, conv, zero_point=ZERO_POINT, bias=bias, requantize=narrow)
    if not np.array_equal(call()[:, : exact.shape[1]], exact):
        raise EngineError("the first rows are not those of exact sums")
    return call


def _own_bytes(m: int, n: int, k: int, threads: int) -> Call:
    from tensure import kernels

    a, w = _bytes((m, k), (n, k))
    packed, scale = kernels.pack_gemm_int8(w), np.full(n, 2.0**-12, np.float32)
    out = np.zeros((m, n), np.float32)
    workspace = kernels.aligned_bytes(packed.workspace_bytes((1, 1, m, k), np.uint8, threads))

    def call() -> NDArray[Any]:
        return kernels.gemm_int8(
            a, packed, zero_point=ZERO_POINT, scale=scale, out=out, workspace=workspace, threads=threads
        )

    exact = (a.astype(np.float64) - ZERO_POINT) @ w.T.astype(np.float64)
    if not np.array_equal(call(), exact.astype(np.float32) * scale):
        raise EngineError("the products are not those of exact sums")
    return call


def _halves(m: int, n: int, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    import ml_dtypes

    rng = np.random.default_rng(12)
    a, w = (rng.standard_normal((rows, k), np.float32).astype(ml_dtypes.bfloat16) for rows in (m, n))
    return a, w


def _own_halves(m: int, n: int, k: int, threads: int) -> Call:
    from tensure import kernels

    if "bf16" not in kernels.features():
        raise AbsentError("this processor has no bfloat16 dot products")
    a, w = _halves(m, n, k)
    packed = kernels.pack_gemm_bf16(w)
    out = np.zeros((m, n), a.dtype)
    workspace = kernels.aligned_bytes(packed.workspace_bytes((1, 1, m, k), threads))

    def call() -> NDArray[Any]:
        return kernels.gemm_bf16(a, packed, dtype="bfloat16", out=out, workspace=workspace, threads=threads)

    right = a.astype(np.float64) @ w.T.astype(np.float64)
    error = float(np.abs(call().astype(np.float64) - right).max() / np.abs(right).max())
    if not error <= 2.0**-8:
        raise EngineError(f"products differ from float64 by {error:.2g} of the largest")
    return call


def _torch_call(case: Json, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    params = case["params"]
    try:
        call = _torch_of(params, None if "matrix" in params else problem_of(case))
        call()
    except RuntimeError as error:
        raise AbsentError(f"torch refuses: {str(error).splitlines()[0][:120]}") from None
    return call


def _torch_of(params: Json, problem: Problem | None) -> Call:
    import torch

    ops: Any = torch.ops.onednn
    if problem is not None:
        num, channels, height, width = problem.in_shape
        x_NHWC, w = _bytes((num, height, width, channels), problem.weight_shape)
        x = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2)
        scale, zeros = torch.ones(problem.out_channels), torch.zeros(problem.out_channels, dtype=torch.int64)
        step = [problem.stride, problem.stride]
        packed = ops.qconv_prepack(
            torch.from_numpy(w), scale, 1.0, ZERO_POINT, step, [0, 0], [1, 1], 1, list(x.shape)
        )
        bias = torch.arange(problem.out_channels, dtype=torch.float32)
        out_scale = 1 / (MULTIPLIER / 2**31 * 2.0 ** _shift(problem))

        def convolve() -> NDArray[Any]:
            with torch.inference_mode():
                y = ops.qconv_pointwise(
                    x, 1.0, ZERO_POINT, packed, scale, zeros, bias, step, [0, 0], [1, 1], 1, out_scale,
                    OUT_ZERO_POINT, torch.uint8, "none", [], "",
                )  # fmt: skip
            array: NDArray[Any] = y.permute(0, 2, 3, 1).numpy()
            return array

        return convolve
    m, n, k = params["matrix"]
    if params["form"] == "bf16":
        left, right = (
            torch.from_numpy(part.view(np.int16)).view(torch.bfloat16) for part in _halves(m, n, k)
        )
        transposed = right.t()

        def multiply() -> NDArray[Any]:
            with torch.inference_mode():
                product = torch.mm(left, transposed)
            return _floats(product.view(torch.int16).numpy())

        return multiply
    a, weights = (torch.from_numpy(part) for part in _bytes((m, k), (n, k)))
    packed = ops.qlinear_prepack(weights, [m, k])
    scale, zeros = torch.full((n,), 2.0**-12), torch.zeros(n, dtype=torch.int64)

    def linear() -> NDArray[Any]:
        with torch.inference_mode():
            y = ops.qlinear_pointwise(
                a, 1.0, ZERO_POINT, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        array: NDArray[Any] = y.numpy()
        return array

    return linear


def _floats(bits: NDArray[np.int16]) -> NDArray[Any]:
    import ml_dtypes

    halves: NDArray[Any] = bits.view(ml_dtypes.bfloat16)
    return halves
