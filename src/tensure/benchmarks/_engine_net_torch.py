"""PyTorch as it comes: the eager module in inference mode, weights and image in channels_last.

Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._net_engine import NetEngine
from ._networks import build_network
from ._records import Json
from ._text_engine import Floats

__all__ = ["setup"]


class TorchNet:
    """A network as a torch module."""

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._x = torch.empty(0)
        self._out = torch.empty(0)

    def load(self, network: str) -> None:
        """The module, its convolutions' weights in channels_last."""
        self._module = None
        self._module = build_network(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def set_input(self, x: Floats, threads: int) -> None:
        """In the layout of the weights."""
        torch.set_num_threads(threads)
        self._x = torch.from_numpy(x).to(memory_format=torch.channels_last)

    def infer(self) -> None:
        """One call of the module."""
        assert self._module is not None
        with torch.inference_mode():
            self._out = self._module(self._x)

    def output(self) -> Floats:
        """As torch made it."""
        array: Floats = self._out.numpy()
        return array

    def facts(self) -> Mapping[str, Json]:
        """Parameters and statistics."""
        tensors = [] if self._module is None else [*self._module.parameters(), *self._module.buffers()]
        return {
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "computes": "f32",
            "version": torch.__version__,
        }


def setup() -> NetEngine:
    """The engine; it takes no arguments."""
    return NetEngine(TorchNet())
