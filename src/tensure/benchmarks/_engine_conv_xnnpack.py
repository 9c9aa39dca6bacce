"""XNNPACK as people get it: LiteRT's interpreter on a model of one CONV_2D, handed to its XNNPACK delegate.

The model is built here, in memory, from the schema that the package brings. Refuses to be timed when the
delegate did not take the convolution. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine
from ._records import EngineError, Json

__all__ = ["setup"]


class XnnpackConv:
    """An interpreter whose only op was delegated."""

    def __init__(self) -> None:
        self._interpreter: Any = None

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """The interpreter keeps input, packed weights and output in its own arena."""
        made: Any = Interpreter(model_content=_model(problem, w_OIHW), num_threads=threads)
        made.allocate_tensors()
        if "DELEGATE" not in {op["op_name"] for op in made._get_ops_details()}:
            raise EngineError("LiteRT did not hand the convolution to XNNPACK")
        made.tensor(made.get_input_details()[0]["index"])()[...] = x_NCHW.transpose(0, 2, 3, 1)
        made.tensor(made.get_output_details()[0]["index"])()[...] = np.nan
        self._interpreter = made
        call: Callable[[], object] = made.invoke
        return call

    def output(self) -> Floats:
        """NHWC seen as NCHW."""
        found: Floats = self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])
        return found.transpose(0, 3, 1, 2)

    def release(self) -> None:
        """The interpreter."""
        self._interpreter = None

    def facts(self) -> Mapping[str, Json]:
        """No workspace is stated by LiteRT."""
        return {"computes": "nhwc", "version": f"ai-edge-litert {version('ai-edge-litert')}"}


def _model(problem: Problem, w_OIHW: Floats) -> bytes:
    """A .tflite of one CONV_2D without padding, with a bias of zeros."""
    w = np.ascontiguousarray(w_OIHW.transpose(0, 2, 3, 1))
    bias = np.zeros(problem.out_channels, np.float32)
    n, channels, height, width = problem.in_shape
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = 1
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor("x", (n, height, width, channels), 0),
        _tensor("w", w.shape, 1),
        _tensor("bias", bias.shape, 2),
        _tensor("y", (n, problem.out_height, problem.out_width, problem.out_channels), 0),
    ]
    graph.inputs, graph.outputs = [0], [3]
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = problem.stride
    options.dilationHFactor = options.dilationWFactor = 1
    op = schema.OperatorT()
    op.opcodeIndex = 0
    op.inputs, op.outputs = [0, 1, 2], [3]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
    graph.operators = [op]
    model.operatorCodes, model.subgraphs = [code], [graph]
    model.buffers = [_buffer(None), _buffer(w), _buffer(bias)]  # the first one means: no data
    builder = flatbuffers.Builder(w.nbytes + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str, shape: tuple[int, ...], buffer: int) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.buffer = name, list(shape), buffer
    made.type = schema.TensorType.FLOAT32
    return made


def _buffer(values: Floats | None) -> Any:
    made = schema.BufferT()
    if values is not None:
        made.data = np.frombuffer(values.tobytes(), np.uint8)
    return made


def setup() -> ConvEngine:
    """The engine; it takes no arguments."""
    return ConvEngine(XnnpackConv())
