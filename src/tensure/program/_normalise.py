"""Simplify a Program without changing what it computes: passes under contract.

A pass names the properties it requires and those it ensures (the idea of onnx/ir-py's pass contracts). The
manager refuses a pass whose requirements do not hold, and after each pass runs the checker of every property
that is claimed, so a promise not kept is an error here and not a surprise later. Values may move by rounding
where weights fold (computed in float64, rounded once) and where one op takes the place of several (a linear
of a transpose and an addmm, a mean of a pool and a flatten, a batch norm of its parts, a bias of an add, a
reduction over permuted dims); nothing else changes a bit.

The passes are in `_passes.py`, `_permutes.py` and `_refold.py`, the checkers in `_properties.py`. This file
knows neither torch nor models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tensure.errors import RecordError

from . import _passes
from ._lines import Arrays, Run
from ._model import Model
from ._permutes import sink_permutes
from ._properties import PROPERTIES
from ._records import Program
from ._refold import fold_weight_views, fuse_bias, refold_batch_norm
from ._weights import StoredTensor

MAX_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class Pass:
    """One rewriting of (Program, weights) with its contract; the properties are keys of PROPERTIES."""

    name: str
    requires: frozenset[str]
    ensures: frozenset[str]
    run: Run


@dataclass(slots=True)
class PassManager:
    """Runs passes one by one and knows which properties hold.

    `held` begins with what the Program was checked for; a property a later pass loses is dropped from it.
    """

    program: Program
    weights: Arrays
    held: set[str] = field(default_factory=set[str])

    def establish(self, *properties: str) -> None:
        """Check that these hold of the Program as it stands.

        Raises:
            RecordError: one does not; the message says where.
        """
        for name in properties:
            if (found := PROPERTIES[name](self.program)) is not None:
                raise RecordError(found, wanted=name.replace("_", " "))
            self.held.add(name)

    def apply(self, step: Pass) -> bool:
        """Run one pass; whether anything changed.

        Raises:
            RecordError: a property the pass requires is not known to hold.
            AssertionError: the pass broke its contract (a fault of ours, never the caller's).
        """
        missing = step.requires - self.held
        if missing:
            raise RecordError(
                f"pass {step.name} before {', '.join(sorted(missing))}",
                wanted="what it requires, established first",
            )
        before = self.program
        self.program, self.weights = step.run(self.program, self.weights)
        if self.program == before:
            self.held |= self._checked(step.ensures, step)
            return False
        self.held = {name for name in self.held - step.ensures if PROPERTIES[name](self.program) is None}
        self.held |= self._checked(step.ensures | {"well_formed"}, step)
        return True

    def _checked(self, properties: Iterable[str], step: Pass) -> frozenset[str]:
        for name in properties:
            found = PROPERTIES[name](self.program)
            if found is not None:
                raise AssertionError(f"pass {step.name} promised {name}, but {found}")
        return frozenset(properties)


def _pass(name: str, run: Run, ensures: str, requires: str = "") -> Pass:
    return Pass(name, frozenset(f"well_formed flat {requires}".split()), frozenset(ensures.split()), run)


PASSES: Final = (
    _pass("drop_no_ops", _passes.drop_no_ops, "no_copies no_noop_casts no_noop_views"),
    _pass("canonicalise", _passes.canonicalise, "canonical", "no_copies"),
    _pass("refold_batch_norm", refold_batch_norm, "batch_norm_whole", "canonical"),
    _pass("cancel_permutes", _passes.cancel_permutes, "permutes_cancelled", "canonical"),
    _pass("fuse_linear", _passes.fuse_linear, "linear_fused", "permutes_cancelled"),
    _pass("fold_weight_views", fold_weight_views, "weights_in_place", "linear_fused"),
    _pass("sink_permutes", sink_permutes, "canonical no_copies", "canonical no_copies"),
    _pass("fuse_bias", fuse_bias, "bias_fused", "weights_in_place"),
    _pass("fold_padding", _passes.fold_padding, "padding_folded", "no_copies"),
    _pass("fold_batch_norm", _passes.fold_batch_norm, "batch_norm_folded", "no_copies"),
    _pass("merge_mean_flatten", _passes.merge_mean_flatten, "mean_flat", "canonical"),
    _pass("merge_common", _passes.merge_common, "no_common_subexpressions"),
    _pass("drop_dead", _passes.drop_dead, "no_dead_ops"),
)
"""In order; repeated until nothing changes."""


def normalise(model: Model) -> Model:
    """The same function in fewer ops: no copies, casts or views without effect, norms and padding folded.

    Weights that do not change keep their stored bytes; a folded one is stored as f32 or f64 under
    `<weight>.folded`, and a weight nothing reads any more is gone.

    Raises:
        RecordError: the Program is not well-formed, or has loops or blocks (a reader that writes those
            writes them in normal form).
    """
    stored = {key: tensor.decode() for key, tensor in model.weights.items()}
    manager = PassManager(model.program, stored)
    manager.establish("well_formed", "flat")
    for _ in range(MAX_ROUNDS):
        changed = False
        for step in PASSES:
            changed |= manager.apply(step)
        if not changed:
            break
    wanted = frozenset[str]().union(*(step.ensures for step in PASSES))
    assert wanted <= manager.held, f"not reached: {sorted(wanted - manager.held)}"
    return Model(
        model.name,
        manager.program,
        _stored(manager.program, manager.weights, stored, model.weights),
        model.assets,
        model.origin,
    )


def _stored(
    program: Program,
    arrays: Arrays,
    before: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    weights: Mapping[str, StoredTensor],
) -> dict[str, StoredTensor]:
    """Weights ready to keep: the old records where a pass left the array alone."""
    return {
        key: weights[key]
        if array is before.get(key)
        else StoredTensor.from_array(array, program.values[key].dtype)
        for key, array in arrays.items()
    }
