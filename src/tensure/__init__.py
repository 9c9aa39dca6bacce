"""Output tensors you can trust: plan, prove, seal and run a model, with a receipt for every output.

The public names, and nothing else. Each is looked up when first asked for, so that `import tensure` loads
no torch, no numpy and no room. Verbs live in tensure.api, records in their rooms; no name is both a verb
and a room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensure.api import (
        build,
        diff,
        guard,
        inspect,
        load,
        open,  # noqa: A004
        plan,
        prove,
        prove_resharding,
        prove_step,
        quantize,
        seal,
        verify,
        watch,
    )
    from tensure.benchmarks import bench
    from tensure.bundle import Bundle, Fleet, Plan, Proof, Receipt
    from tensure.errors import TensureError
    from tensure.program import Model, Program
    from tensure.runtime import Session

__all__ = [
    # the verbs, in the order a model meets them
    "load",
    "inspect",
    "watch",
    "diff",
    "quantize",
    "plan",
    "prove",
    "prove_step",
    "prove_resharding",
    "guard",
    "seal",
    "open",
    "verify",
    "build",
    "bench",
    # the records
    "Model",
    "Program",
    "Fleet",
    "Plan",
    "Proof",
    "Bundle",
    "Session",
    "Receipt",
    # what every error is
    "TensureError",
    "__version__",
]

_HOMES: Final[dict[str, str]] = {
    **dict.fromkeys(("load", "inspect", "watch", "diff", "quantize", "plan", "prove"), "tensure.api"),
    **dict.fromkeys(("prove_step", "prove_resharding"), "tensure.api"),
    **dict.fromkeys(("guard", "seal", "open", "verify", "build"), "tensure.api"),
    "bench": "tensure.benchmarks",
    **dict.fromkeys(("Model", "Program"), "tensure.program"),
    **dict.fromkeys(("Fleet", "Plan", "Proof", "Bundle", "Receipt"), "tensure.bundle"),
    "Session": "tensure.runtime",
    "TensureError": "tensure.errors",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("tensure")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'tensure' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
