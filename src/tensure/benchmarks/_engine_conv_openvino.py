"""OpenVINO on a graph of one convolution: f32 demanded, latency hint, one stream, tensors that stay.

Its default precision is bf16 where the processor has it, so f32 is asked for by name. The graph takes and
gives NHWC: OpenVINO folds the two transposes, and its reorders at the ends are then cheaper than from NCHW.
Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import openvino
from openvino import opset13

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine, poisoned
from ._records import Json

__all__ = ["setup"]


class OpenVinoConv:
    """A compiled model of the CPU plugin."""

    def __init__(self) -> None:
        self._core = openvino.Core()
        self._held: list[object] = []
        self._out = np.empty((0, 0, 0, 0), np.float32)

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """An infer request on our own buffers."""
        x = np.ascontiguousarray(x_NCHW.transpose(0, 2, 3, 1))
        self._out = poisoned((problem.n, problem.out_height, problem.out_width, problem.out_channels))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        request = self._core.compile_model(_model(x, problem, w_OIHW), "CPU", settings).create_infer_request()
        tensors = [openvino.Tensor(array, shared_memory=True) for array in (x, self._out)]
        request.set_input_tensor(tensors[0])
        request.set_output_tensor(tensors[1])
        self._held = [x, *tensors]  # the request does not keep them alive
        call: Callable[[], object] = request.infer
        return call

    def output(self) -> Floats:
        """The NHWC buffer seen as NCHW."""
        return self._out.transpose(0, 3, 1, 2)

    def release(self) -> None:
        """The request goes with the call."""
        self._out, self._held = np.empty((0, 0, 0, 0), np.float32), []

    def facts(self) -> Mapping[str, Json]:
        """No workspace is stated by OpenVINO."""
        return {"computes": "nhwc", "version": f"openvino {openvino.__version__.split('-')[0]}"}


def _model(x_NHWC: Floats, problem: Problem, w_OIHW: Floats) -> openvino.Model:
    into, back = ([0, 3, 1, 2], [0, 2, 3, 1])
    given = opset13.parameter(list(x_NHWC.shape), np.float32)
    nchw = opset13.transpose(given, opset13.constant(np.array(into)))
    strides = [problem.stride, problem.stride]
    conv = opset13.convolution(nchw, opset13.constant(w_OIHW), strides, [0, 0], [0, 0], [1, 1])
    nhwc = opset13.transpose(conv, opset13.constant(np.array(back)))
    return openvino.Model([opset13.result(nhwc)], [given])


def setup() -> ConvEngine:
    """The engine; it takes no arguments."""
    return ConvEngine(OpenVinoConv())
