"""PyTorch as it comes: the eager module in inference mode, weights and image in channels_last.

It is also what everybody's output is held against: its `check` gives the module's output in float64, after
its own f32 output agreed with it. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ._net_engine import NetEngine, make_input
from ._networks import build_network
from ._records import EngineError, Json
from ._text_engine import Floats, pack

__all__ = ["setup"]


class TorchNet:
    """A network as a torch module."""

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._x = torch.empty(0)
        self._out = torch.empty(0)
        self.network = ""

    def load(self, network: str) -> None:
        """The module, its convolutions' weights in channels_last."""
        self._module = None
        self._module = build_network(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network

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


class TorchEngine(NetEngine):
    """The engine whose output is the reference."""

    def __init__(self, model: TorchNet) -> None:
        super().__init__(model)
        self._torch = model
        self._reference: tuple[str, Floats] = ("", np.empty(0, np.float32))

    def check(self, case: Json) -> Json:
        """The float64 output, rounded to f32 once.

        Raises:
            EngineError: the f32 module, which is what is timed, gives another output.
        """
        from ._net import difference

        super().check(case)
        network = self._torch.network
        if self._reference[0] != network:
            with torch.inference_mode():
                wide = build_network(network).double()
                out = wide(torch.from_numpy(make_input()).double())
            self._reference = (network, out.float().numpy())
        wrong = difference(self._reference[1], self._torch.output())
        if wrong is not None:
            raise EngineError(f"the f32 module differs from the float64 one: {wrong}")
        return pack(self._reference[1])


def setup() -> TorchEngine:
    """The engine; it takes no arguments."""
    return TorchEngine(TorchNet())
