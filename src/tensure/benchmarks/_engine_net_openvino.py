"""OpenVINO on the exported network: latency hint, one stream, f32 by hint (it would take bf16 otherwise).

Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from ._export_net import onnx_file
from ._net_engine import NetEngine
from ._records import Json
from ._text_engine import Floats

__all__ = ["setup"]


class OpenvinoNet:
    """A network as a compiled model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = Path()
        self._core: Any = openvino.Core()
        self._model: Any = None
        self._request: Any = None
        self._x: Floats = np.empty(0, np.float32)

    def load(self, network: str) -> None:
        """Read the file; it is compiled for a number of threads."""
        self._request = self._model = None
        self._path = onnx_file(network, self._folder)
        self._model = self._core.read_model(str(self._path))

    def set_input(self, x: Floats, threads: int) -> None:
        """Compile for this many threads."""
        self._request = None
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self._request = self._core.compile_model(self._model, "CPU", config).create_infer_request()
        self._x = x

    def infer(self) -> None:
        """One call; neither input nor output is copied."""
        self._request.infer([self._x], share_inputs=True, share_outputs=True)

    def output(self) -> Floats:
        """A copy of the request's output."""
        return np.array(self._request.get_output_tensor(0).data, np.float32)

    def facts(self) -> Mapping[str, Json]:
        """Weights as in the file; compiling packs them on top of that."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        return {"weight_bytes": size, "computes": "f32", "version": openvino.__version__}


def setup(folder: str) -> NetEngine:
    """The engine; exported networks lie in `folder`."""
    return NetEngine(OpenvinoNet(Path(folder)))
