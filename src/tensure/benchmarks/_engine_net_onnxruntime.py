"""ONNX Runtime on the exported network: all graph optimisations, one pool of threads, its defaults else.

Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ._export_net import onnx_file
from ._net_engine import NetEngine
from ._records import Json
from ._text_engine import Floats

__all__ = ["setup"]


class OrtNet:
    """A network in an inference session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = Path()
        self._session: Any = None
        self._feed: dict[str, Floats] = {}
        self._out: Floats = np.empty(0, np.float32)

    def load(self, network: str) -> None:
        """The file; a session is made for a number of threads."""
        self._session = None
        self._path = onnx_file(network, self._folder)

    def set_input(self, x: Floats, threads: int) -> None:
        """A session for this many threads: they are fixed when it is made."""
        self._session = None
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        self._feed = {"x": x}

    def infer(self) -> None:
        """One call of the session."""
        (self._out,) = self._session.run(None, self._feed)

    def output(self) -> Floats:
        """As the session gave it."""
        return self._out

    def facts(self) -> Mapping[str, Json]:
        """Weights as in the file; the session packs them on top of that."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        return {"weight_bytes": size, "computes": "f32", "version": onnxruntime.__version__}


def setup(folder: str) -> NetEngine:
    """The engine; exported networks lie in `folder`."""
    return NetEngine(OrtNet(Path(folder)))
