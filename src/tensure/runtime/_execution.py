"""A Program with its weights in memory, running on this machine.

Knows how to load weights once (each block is checked as it is read) and to run an entry. Does not know
bundles, receipts or what the numbers mean. torch is imported when the first weight is loaded, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from tensure.program import Program, Weights

from ._tensors import Array, to_array, to_tensor

if TYPE_CHECKING:
    import torch

__all__ = ["HostExecution", "States"]

States: TypeAlias = "dict[str, torch.Tensor]"


class HostExecution:
    """Runs the entries of one Program on this machine's processor.

    Raises:
        DamageError: a block of the weights is not what was signed.
    """

    def __init__(self, program: Program, weights: Weights) -> None:
        # libgomp's threads spin while they wait. Where others use the processors too, or a quota holds them
        # back, that made decoding ten times slower (0.70 s a token for 0.066, two threads on one free core).
        # It is read once, when torch is loaded; a choice of the caller's stands.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from tensure.host import Runner, load_weights

        self._program = program
        self._runner = Runner(program, load_weights(weights))

    def run(self, entry: str, params: Mapping[str, int], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of one call; states start at zero and are dropped."""
        outputs, _ = self.step(entry, params, inputs, self.zero_states(entry, params), in_place=True)
        return outputs

    def step(
        self,
        entry: str,
        params: Mapping[str, int],
        inputs: Mapping[str, Array],
        states: States,
        *,
        in_place: bool,
    ) -> tuple[dict[str, Array], States]:
        """The outputs of one call and the states after it; with `in_place` the given states are used up."""
        import torch

        with torch.inference_mode():
            tensors = {name: to_tensor(array) for name, array in inputs.items()}
            outputs, after = self._runner.run(
                tensors, entry=entry, params=params, states=states, in_place=in_place
            )
            return {name: to_array(tensor) for name, tensor in outputs.items()}, dict(after)

    def zero_states(self, entry: str, params: Mapping[str, int]) -> States:
        """Fresh states, all zero."""
        import torch

        from tensure.host import zero_states

        with torch.inference_mode():
            return dict(zero_states(self._program, entry, params))
