"""What a classifier says of an image: labels with probabilities, and the receipt of the run behind them.

Knows softmax and ranking. Does not know images, models or how a receipt is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tensure.errors import EvaluationError, FormatError, TensureError, UnsupportedError
from tensure.program import parse_json

from ._receipt_book import SignedReceipt
from ._tensors import Array

__all__ = ["Classification", "Label", "rank_labels", "read_labels"]


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its number, its name, and the probability the model gives it."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The likeliest labels, best first; `outputs` are the tensors that `receipt` is for."""

    labels: tuple[Label, ...]
    outputs: Mapping[str, Array]
    receipt: SignedReceipt

    @property
    def top(self) -> Label:
        """The likeliest label."""
        return self.labels[0]


def rank_labels(logits: Array, names: tuple[str, ...] | None, top: int) -> tuple[Label, ...]:
    """The `top` likeliest classes of logits [1, N] or [N], by softmax in float64; of equals the lower.

    Raises:
        EvaluationError: a logit is NaN or infinite.
        FormatError: there are not as many names as logits.
    """
    flat = logits.astype(np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise EvaluationError("a logit is NaN or infinite", wanted="finite logits")
    if names is not None and len(names) != flat.size:
        raise FormatError(f"{len(names)} labels for {flat.size} logits", file="labels.json")
    powers = np.exp(flat - flat.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(
        Label(int(i), f"class {i}" if names is None else names[int(i)], float(probabilities[i]))
        for i in order
    )


def read_labels(assets: Mapping[str, bytes]) -> tuple[str, ...] | None:
    """The names in `labels.json`, or None when the bundle has none."""
    if "labels.json" not in assets:
        return None
    try:
        found = parse_json(assets["labels.json"], max_bytes=16 << 20, max_depth=2, max_items=1 << 20)
    except TensureError as error:
        raise error.at("labels.json") from None
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise FormatError("not a list of names", file="labels.json")
    return tuple(found)


def no_recipe(name: str) -> UnsupportedError:
    """The bundle does not say how an image becomes its input."""
    return UnsupportedError(
        f"{name} does not say how it reads images (image.json)", next_step="Use run() with a tensor"
    )
