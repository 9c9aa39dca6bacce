"""The machine a figure belongs to: processor, instruction set, memory, load, versions, commit.

Reads /proc and asks git. Knows nothing about what is measured.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from tensure.errors import TensureError

from ._records import Json

__all__ = ["commit", "describe_machine", "hardware_slug", "versions"]

_PACKAGES: Final = ("tensure", "torch", "transformers", "numpy", "cryptography")
_POOL_SETTINGS: Final = re.compile(
    r"(?:OMP|GOMP|KMP|MKL|OPENBLAS|GGML)_[A-Z_]{1,40}\Z|TENSURE_(?:ISA|FEATURES)\Z"
)


def describe_machine() -> dict[str, Json]:
    """What a reader needs to judge a figure; `load_average` is that of the last minute, before the run."""
    cpu = _cpu()
    cores = len(os.sched_getaffinity(0))
    return {
        "hardware": hardware_slug(
            cpu.get("model name", platform.machine()), cores, cpu.get("cpu family"), cpu.get("model")
        ),
        "cpu": cpu.get("model name", "unknown"),
        "cpu_family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cores": cores,
        "isa": _isa(),
        "l3": cpu.get("cache size", "unknown"),
        "virtual": "hypervisor" in cpu.get("flags", "").split(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "settings": {key: value for key, value in sorted(os.environ.items()) if _POOL_SETTINGS.match(key)},
    }


def hardware_slug(cpu: str, cores: int, family: str | None = None, model: str | None = None) -> str:
    """A short name for file names: `amd-epyc-9575f-2c`.

    A virtual machine may hide which one it is behind a name without digits, that of processors of several
    generations; family and model tell them apart: `amd-epyc-f26m2-2c`.
    """
    plain = re.sub(r"\((?:r|tm|c)\)|@.*|\b\d+-core\b|\bprocessor\b|\bcpu\b", " ", cpu.lower())
    words = re.findall(r"[a-z0-9.]+", plain)[:5]
    if family and model and not any(char.isdigit() for word in words for char in word):
        words.append(f"f{family}m{model}")
    return "-".join([*words, f"{cores}c"])


def versions() -> dict[str, str]:
    """Of Python and the packages in play; peers say their own in their rows."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit(folder: Path | None = None) -> str | None:
    """The commit this package runs from, with `+changes` if files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[3] if folder is None else folder
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _git(root, "status", "--porcelain", "--", "src", "native") else "")


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> Mapping[str, str]:
    """The first processor's keys in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _isa() -> str:
    from tensure import kernels

    try:
        return kernels.isa()
    except TensureError as error:
        return f"none: {error.found}"
