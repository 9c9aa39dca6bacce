"""Our own engine as `bench net` times it: the module through from_torch, run by the host Runner.

Reading and simplifying the Program is outside the figure. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import torch

from tensure import host, kernels
from tensure.program.from_torch import from_torch

from ._net_engine import NetEngine, make_input
from ._networks import build_network
from ._records import Json
from ._text_engine import Floats

__all__ = ["setup"]


class RunnerNet:
    """A network on `host.Runner`."""

    def __init__(self) -> None:
        self._runner: host.Runner | None = None
        self._inputs: dict[str, torch.Tensor] = {}
        self._input_name = ""
        self._outputs: dict[str, torch.Tensor] = {}
        self._bytes = 0

    def load(self, network: str) -> None:
        """Batch norm is folded by from_torch."""
        self._runner = None
        model = from_torch(build_network(network), (torch.from_numpy(make_input()),), name=network)
        weights = host.load_weights(model.weights)
        self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        self._input_name = str(model.program.entry().inputs[0])
        self._runner = host.Runner(model.program, weights)

    def set_input(self, x: Floats, threads: int) -> None:
        """NCHW, as the Program has it."""
        assert self._runner is not None
        self._runner.threads = threads
        torch.set_num_threads(threads)
        self._inputs = {self._input_name: torch.from_numpy(x)}

    def infer(self) -> None:
        """One call of the Runner."""
        assert self._runner is not None
        with torch.inference_mode():
            self._outputs, _ = self._runner.run(self._inputs)

    def output(self) -> Floats:
        """The only output."""
        (out,) = self._outputs.values()
        array: Floats = out.numpy()
        return array

    def facts(self) -> Mapping[str, Json]:
        """f32 throughout."""
        return {
            "weight_bytes": self._bytes,
            "computes": "f32",
            "version": f"{version('tensure')} (torch {torch.__version__}, kernels {kernels.isa()})",
            "through": "host.Runner",
        }


def setup() -> NetEngine:
    """The engine; it takes no arguments."""
    return NetEngine(RunnerNet())
