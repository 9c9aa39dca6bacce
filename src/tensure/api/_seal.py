"""`seal`: a model and its plans into a signed bundle. Knows which texts it holds; not how it is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensure.errors import InputError, TensureError

from ._paths import as_path
from ._plan import plan as make_plan

if TYPE_CHECKING:
    from tensure.bundle import Plan
    from tensure.program import Model

__all__ = ["seal"]


def seal(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    plans: Mapping[str, Plan] | None = None,
    key: str | os.PathLike[str] | None = None,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a bundle: program, plans, weights and side files, all under one signature; returns its path.

    It appears complete or not at all, whatever interrupts it.

    Args:
        model: what `load` gives.
        directory: the folder to make.
        plans: by name; `{"host": plan(model)}` when left out.
        key: the private key to sign with; this machine's own, made on first use, when left out.
        replace: exchange an existing bundle for this one. What is no bundle is never replaced.
        progress: called with the bytes of weights written so far, and in all.

    Raises:
        InputError: the target exists or cannot be written, or there is no such key.
        RecordError: the weights do not fit the program, or a plan is not for it.
    """
    from tensure.bundle import format_plan, load_signing_key, write_bundle
    from tensure.program import format_program

    if key is not None and not os.path.lexists(key):
        # Only the default key is made on first use: a slip in a name must not leave a private key there.
        raise InputError("no such key", file=key, wanted="a private key (PEM) that exists")
    as_path(directory, "a folder to make")
    model.check_weights()
    chosen = {"host": make_plan(model)} if plans is None else dict(plans)
    for label, chosen_plan in chosen.items():
        _check_plan(label, chosen_plan, model)
    origin = {"origin.txt": model.origin.encode("utf-8", "replace")} if model.origin else {}
    write_bundle(
        directory,
        name=bundle_name(model.name),
        program=format_program(model.program).encode(),
        weights=model.weights,
        key=load_signing_key(key),
        plans={label: format_plan(chosen_plan).encode() for label, chosen_plan in chosen.items()},
        assets={**model.assets, **origin},
        replace=replace,
        progress=progress,
    )
    return Path(directory)


def bundle_name(name: str) -> str:
    """A model's name in the characters that a bundle's name may have."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100]
    return plain or "model"


def _check_plan(label: str, plan: Plan, model: Model) -> None:
    """The host plan is the program itself; any other is validated against it."""
    from tensure.bundle import plan_digest, validate_plan

    if plan_digest(plan) == plan_digest(make_plan(model)):
        return
    try:
        validate_plan(plan, model.program)
    except TensureError as error:
        raise error.at(file=f"plan {label!r}") from None
