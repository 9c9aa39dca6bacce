"""PyTorch's convolution: as it comes (NCHW), channels_last, and channels_last with weights packed beforehand.

Packed weights are what torch's own compiler uses for a frozen model (`mkldnn._convolution_pointwise`). A call
returns a fresh tensor, as there is no way to hand PyTorch an output. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine
from ._records import Json

__all__ = ["setup"]


class TorchConv:
    """One of `nchw`, `channels_last`, `prepacked`, `im2col` (unfold and a matrix product)."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._out: torch.Tensor | None = None

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """Bind the tensors in the memory format of this way."""
        torch.set_num_threads(threads)
        x, w = torch.from_numpy(x_NCHW), torch.from_numpy(w_OIHW)
        stride = [problem.stride, problem.stride]
        if self._way == "im2col":
            return self._bound(_im2col(problem, x, w))
        if self._way == "nchw":
            return self._bound(lambda: torch.nn.functional.conv2d(x, w, stride=stride))
        x = x.contiguous(memory_format=torch.channels_last)
        if self._way == "channels_last":
            w = w.contiguous(memory_format=torch.channels_last)
            return self._bound(lambda: torch.nn.functional.conv2d(x, w, stride=stride))
        nn: Any = torch._C._nn
        packed = nn.mkldnn_reorder_conv2d_weight(w.to_mkldnn(), [0, 0], stride, [1, 1], 1, list(x.shape))
        conv: Any = torch.ops.mkldnn._convolution_pointwise
        return self._bound(lambda: conv(x, packed, None, [0, 0], stride, [1, 1], 1, "none", [], ""))

    def output(self) -> Floats:
        """NCHW, with the strides of the way."""
        assert self._out is not None
        array: Floats = self._out.numpy()
        return array

    def release(self) -> None:
        """The last output; the rest goes with the call."""
        self._out = None

    def facts(self) -> Mapping[str, Json]:
        """No workspace is stated by PyTorch."""
        return {"computes": self._way, "version": f"torch {torch.__version__}"}

    def _bound(self, conv: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def call() -> None:
            self._out = None  # before the next one, so that its memory can be used again
            with torch.inference_mode():
                self._out = conv()

        return call


def _im2col(problem: Problem, x: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    rows = w.reshape(problem.out_channels, -1)

    def conv() -> torch.Tensor:
        columns = torch.nn.functional.unfold(x, problem.kernel, stride=problem.stride)
        return torch.matmul(rows, columns).view(problem.out_shape)

    return conv


def setup(way: str) -> ConvEngine:
    """The engine for one of PyTorch's ways."""
    return ConvEngine(TorchConv(way))
