"""Our kernels and torch's weight-only ones as `gemv` times them, each in a process of its own.

Both make the same matrix from the same numbers. A run goes through all copies `passes` times. Ours compares
itself with float64 before it is timed. torch's are torch.ops.aten._weight_int4pack_mm_for_cpu and
_weight_int8pack_mm in bf16 (in f32 they are ten times as slow), with weights packed by torch's own function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError

from ._records import AbsentError, EngineError, Json
from ._text_engine import memory_facts, pack

__all__ = ["GemvEngine", "setup", "setup_torch"]

GROUP: Final = 32
CHECKED_ROWS: Final = 128
Floats: TypeAlias = NDArray[np.float32]
#: One product with the copy of that number: y [rows]
Product: TypeAlias = Callable[[int], Floats]


class GemvEngine:
    """`check` and `run` of the cases; `prepare` makes the product of a case."""

    def __init__(self, prepare: Callable[[Json, int], Product], says: Json) -> None:
        self._prepare = prepare
        self._says = says
        self._made: tuple[str, Product] | None = None

    def check(self, case: Json) -> Json:
        """The product with the last copy."""
        return pack(self._product(case)(case["params"]["copies"] - 1))

    def run(self, case: Json) -> Json:
        """Every copy, `passes` times."""
        product = self._product(case)
        numbers = range(case["params"]["copies"])
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(case["params"]["passes"]):
            for number in numbers:
                product(number)
        return {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """What computes, and this process's memory."""
        return {**self._says, **memory_facts()}

    def _product(self, case: Json) -> Product:
        if self._made is None or self._made[0] != case["name"]:
            self._made = None  # let go of the last case's weights first
            self._made = (case["name"], self._prepare(case["params"], case["threads"]))
        return self._made[1]


def setup() -> GemvEngine:
    """Ours."""
    from tensure import kernels

    return GemvEngine(_own_product, {"features": list(kernels.features())})


def setup_torch() -> GemvEngine:
    """The products that torch has."""
    import torch

    return GemvEngine(_torch_product, {"computes": "bf16", "version": torch.__version__})


def _numbers(params: Json) -> tuple[NDArray[np.int8], NDArray[np.float16], Floats]:
    """Integers [rows, cols] (int4: -8..7), scales [rows, groups] or [rows, 1], and x [cols]."""
    rng = np.random.default_rng(3)
    low, high = (-8, 8) if params["form"] in ("int4", "q4_1") else (-127, 128)
    shape = (params["rows"], params["cols"])
    q = rng.integers(low, high, shape, np.int8)
    groups = 1 if params["form"] == "int8" else params["cols"] // GROUP
    scales = rng.uniform(0.01, 0.02, (params["rows"], groups)).astype(np.float16)
    return q, scales, rng.standard_normal(params["cols"]).astype(np.float32)


def _own_product(params: Json, threads: int) -> Product:
    from dataclasses import replace

    from tensure import kernels

    q, scales, x = _numbers(params)
    rows, cols = q.shape
    if params["form"] == "int4":
        weights = kernels.pack_int4(q, scales, group=GROUP)
    elif params["form"] == "int8":
        weights = kernels.pack_int8(q, scales[:, 0].astype(np.float32))
    elif params["form"] == "q4_1":
        runs = (q + 8).astype(np.uint8).reshape(rows, -1, 2, 16)
        parts = [_bytes(scales), _bytes(-8 * scales), runs[:, :, 0] | runs[:, :, 1] << 4]
        weights = kernels.map_gguf("q4_1", np.concatenate(parts, axis=2).reshape(-1), rows, cols)
    elif params["form"] == "q8_0":
        parts = [_bytes(scales), q.view(np.uint8).reshape(rows, -1, 32)]
        weights = kernels.map_gguf("q8_0", np.concatenate(parts, axis=2).reshape(-1), rows, cols)
    else:
        raise InputError(f"form {params['form']!r}", wanted="int4, int8, q4_1 or q8_0")
    arrays = (weights.q, weights.scales, weights.minimums)
    copies = _copies(arrays, params["copies"])
    matrices = [replace(weights, q=q, scales=s, minimums=m) for q, s, m in copies]
    out = np.empty((1, rows), np.float32)
    x_BK, arithmetic = x.reshape(1, -1), params["arithmetic"]
    y: Floats = out[0]

    def product(number: int) -> Floats:
        kernels.gemv(matrices[number], x_BK, arithmetic=arithmetic, out=out, threads=threads)
        return y

    few = slice(0, CHECKED_ROWS)
    right = (q[few].astype(np.float64) * np.repeat(scales[few], cols // scales.shape[1], axis=1)) @ x
    found = product(len(matrices) - 1)[few]
    bound = 0.015 if arithmetic == "fast" else 1e-5
    error = float(np.sqrt(np.mean((found - right) ** 2) / np.mean(right**2)))
    if not error <= bound:
        raise EngineError(f"products differ from float64 by {error:.2g} relative, over {bound:g}")
    return product


def _bytes(scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    return scales.astype("<f2")[:, :, None].view(np.uint8)


def _copies(arrays: Sequence[NDArray[np.uint8]], num: int) -> list[list[NDArray[np.uint8]]]:
    """Copies in one piece of memory, each array at a multiple of 64 bytes, as in a mapped file."""
    sizes = [-(-array.size // 64) * 64 for array in arrays]
    memory = np.zeros(sum(sizes) * num + 64, np.uint8)
    place = -memory.ctypes.data % 64
    copies: list[list[NDArray[np.uint8]]] = []
    for _ in range(num):
        views: list[NDArray[np.uint8]] = []
        for array, size in zip(arrays, sizes, strict=True):
            views.append(memory[place : place + array.size])
            views[-1][:] = array
            place += size
        copies.append(views)
    return copies


def _torch_product(params: Json, threads: int) -> Product:
    import torch

    if params["form"] not in ("int4", "int8"):
        raise AbsentError("torch has no product with GGUF blocks")
    if params["arithmetic"] == "exact":
        raise AbsentError("torch has no product whose bits are defined")
    torch.set_num_threads(threads)
    q, scales, x = _numbers(params)
    right = torch.from_numpy(x.reshape(1, -1)).to(torch.bfloat16)
    try:
        if params["form"] == "int4":
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
                torch.from_numpy(q.astype(np.int32) + 8), 2
            )
            scale_GM = torch.from_numpy(scales.astype(np.float32)).t().to(torch.bfloat16)
            factors = torch.stack([scale_GM, torch.zeros_like(scale_GM)], dim=2).contiguous()
            weights = [(packed.clone(), factors.clone()) for _ in range(params["copies"])]

            def product(number: int) -> Floats:
                w, f = weights[number]
                with torch.inference_mode():
                    return _row(torch.ops.aten._weight_int4pack_mm_for_cpu(right, w, GROUP, f))

        else:
            matrix, row_scales = torch.from_numpy(q), torch.from_numpy(scales[:, 0]).to(torch.bfloat16)
            matrices = [matrix.clone() for _ in range(params["copies"])]

            def product(number: int) -> Floats:
                with torch.inference_mode():
                    return _row(torch.ops.aten._weight_int8pack_mm(right, matrices[number], row_scales))

        product(0)
    except RuntimeError as error:
        raise AbsentError(f"torch refuses: {str(error).splitlines()[0][:120]}") from None
    return product


def _row(y: Any) -> Floats:
    array: Floats = y[0].float().numpy()
    return array
