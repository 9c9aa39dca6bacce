"""Public verbs that are not built yet: their signatures are settled, their answers are "not yet".

Knows what each will give and what it comes with. Computes nothing and pretends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from tensure.errors import NotYetError

if TYPE_CHECKING:
    import numpy as np

    from tensure.program import Model
    from tensure.runtime import Session

__all__ = ["build", "guard", "quantize"]


def guard(
    session: Session,
    *,
    scrub_bytes_per_s: float | None = None,
    audit_every: int | None = None,
    repair: bool = True,
) -> Session:
    """A session that checks and repairs its weights while it runs, and says so in its receipts.

    Args:
        session: an opened bundle.
        scrub_bytes_per_s: how much of the weights to check each second.
        audit_every: tokens between audits of the arithmetic.
        repair: put right what a check finds wrong, where it can be.

    Raises:
        NotYetError: always, for now.
    """
    _not_yet("guard", "weights that repair themselves")


def quantize(
    model: Model,
    *,
    bits: int = 8,
    calibration: Iterable[Mapping[str, np.ndarray[Any, Any]]] | None = None,
    distill_steps: int = 0,
) -> Model:
    """The model in integers, with the accuracy that it costs.

    Args:
        model: what `load` gives.
        bits: of the weights.
        calibration: inputs that show the ranges of the activations.
        distill_steps: training steps against the original's outputs.

    Raises:
        NotYetError: always, for now.
    """
    _not_yet("quantize", "integer models")


def build(
    model: Model | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    target: str,
    replace: bool = False,
) -> os.PathLike[str]:
    """C sources for a microcontroller, with a contract on its memory.

    Args:
        model: an integer model.
        directory: the folder to make.
        target: for example `stm32f411re`.
        replace: exchange what this function wrote there before.

    Raises:
        NotYetError: always, for now.
    """
    _not_yet("build", "C sources for microcontrollers")


def _not_yet(verb: str, what: str) -> NoReturn:
    raise NotYetError(
        f"tensure.{verb} is not built yet; it comes with {what}",
        next_step="What stands today: load, plan, seal, open, run, generate, verify",
    )
