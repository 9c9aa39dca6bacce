"""ONNX Runtime on a graph of one Conv: all optimisations, input and output bound to buffers that stay.

Weights are a constant, so the session packs them; the graph's ends are NCHW, as ONNX has it, and the reorders
inside belong to the figure. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine, poisoned
from ._records import Json

__all__ = ["setup"]

_IR_VERSION = 10
_OPSET = 17


class OnnxRuntimeConv:
    """A session of the CPU provider."""

    def __init__(self) -> None:
        self._x = self._out = np.empty((0,), np.float32)

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """A session and its binding."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = ort.InferenceSession(_model(problem, w_OIHW), options, providers=["CPUExecutionProvider"])
        self._out = poisoned(problem.out_shape)
        binding = session.io_binding()
        # A binding holds addresses only: the arrays are kept here.
        for bind, name, array in ((binding.bind_input, "x", x_NCHW), (binding.bind_output, "y", self._out)):
            bind(name, "cpu", 0, np.float32, list(array.shape), array.ctypes.data)
        self._x = x_NCHW
        return lambda: session.run_with_iobinding(binding)

    def output(self) -> Floats:
        """NCHW."""
        return self._out

    def release(self) -> None:
        """The session goes with the call."""
        self._x = self._out = np.empty((0,), np.float32)

    def facts(self) -> Mapping[str, Json]:
        """No workspace is stated by ONNX Runtime."""
        return {"computes": "nchw", "version": f"onnxruntime {ort.__version__} (onnx {onnx.__version__})"}


def _model(problem: Problem, w_OIHW: Floats) -> bytes:
    strides = [problem.stride, problem.stride]
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, pads=[0, 0, 0, 0])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", problem.in_shape), ("y", problem.out_shape))
    ]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(w_OIHW, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    done: bytes = model.SerializeToString()
    return done


def setup() -> ConvEngine:
    """The engine; it takes no arguments."""
    return ConvEngine(OnnxRuntimeConv())
