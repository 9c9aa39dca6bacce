"""What this machine has for Tensure, what is missing, and how to get it.

Knows where to look; imports neither torch nor any model's package. Does not judge.
"""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any, Final

from tensure.errors import TensureError

from ._known import KNOWN

__all__ = ["examine"]

_PACKAGES: Final = ("torch", "numpy", "tokenizers", "cryptography", "model-signing", "pillow", "scikit-image")
_INSTALL: Final = {"torch": "pip install torch==2.13.0"}


def examine(*, measure: bool = False) -> dict[str, dict[str, Any]]:
    """Facts by section: machine, kernels, packages, models, keys, tools.

    With `measure`, arithmetic and bandwidth too, in about a second.
    """
    found = {
        "machine": _machine(),
        "kernels": _kernels(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "models": {name: _known(name) for name in KNOWN},
        "keys": _keys(),
        "tools": {"openssl": shutil.which("openssl") or "missing: apt install openssl"},
    }
    if measure:
        found["measured"] = _measured()
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tensure": _version("tensure"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _kernels() -> dict[str, Any]:
    from tensure import kernels

    try:
        return {"isa": kernels.isa(), "available": kernels.available_isas(), "built": kernels.built_isas()}
    except TensureError as error:
        return {"isa": None, "problem": str(error)}


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # it loads a mail parser

    try:
        return version(package)
    except PackageNotFoundError:
        return f"missing: {_INSTALL.get(package, f'pip install {package}')}"


def _known(name: str) -> str:
    model = KNOWN[name]
    return f"missing: {model.install_line}" if model.missing() else f"installed ({model.about})"


def _keys() -> dict[str, Any]:
    from tensure.bundle import default_key_path, load_trusted_keys

    path = default_key_path()
    facts: dict[str, Any] = {"signing key": str(path), "exists": path.exists()}
    try:
        facts["trusted"] = tuple(key.id[:16] for key in load_trusted_keys())
    except TensureError as error:
        facts["problem"] = str(error)
    return facts


def _measured() -> dict[str, Any]:
    from tensure.runtime import host_fleet

    device = host_fleet().devices["host"]
    return {"f32_flops": device.flops["f32"], "read_bytes_per_s": device.bandwidth}
