"""The right output of a network: the torch module in float64, rounded to f32 once.

Shares no f32 sum with anybody. Runs in a process of its own; never timed.
"""

from __future__ import annotations

import torch

from ._net_engine import make_input
from ._networks import build_network
from ._records import Json
from ._text_engine import pack

__all__ = ["setup"]


class Reference:
    """Gives what every engine is compared with; computed once for each network."""

    def __init__(self) -> None:
        self._packed: dict[str, str] = {}

    def check(self, case: Json) -> Json:
        """The output: packed f32."""
        network = case["params"]["network"]
        if network not in self._packed:
            with torch.inference_mode():
                out = build_network(network).double()(torch.from_numpy(make_input()).double())
            self._packed[network] = pack(out.float().numpy())
        return self._packed[network]

    def facts(self) -> Json:
        """Nothing is measured here."""
        return {}


def setup() -> Reference:
    """The oracle; it takes no arguments."""
    return Reference()
