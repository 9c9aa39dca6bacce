"""Install torch under the user's own pip settings, and stop before gigabytes of GPU libraries arrive unasked.

Asks pip what it would install (a dry run), refuses if that holds CUDA libraries unless
TENSURE_ALLOW_CUDA=1, then installs. Chooses no source itself: which builds pip sees is the user's setting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements" / "torch.lock"
GPU_PREFIXES = ("nvidia-", "cuda-")
REFUSAL = """\
pip would bring {count} CUDA packages with torch ({names}, ...): gigabytes that Tensure's CPU path never uses.
Stopped before downloading them. Choose one, then repeat your make command:
  1. the CPU build: on pytorch.org, "Get Started", choose pip and CPU; the page names an index. Hand it to
  pip:
         PIP_EXTRA_INDEX_URL=<that index> make run
  2. a folder that holds a torch {version} CPU wheel:
         PIP_FIND_LINKS=<that folder> make run
  3. the CUDA libraries after all:
         TENSURE_ALLOW_CUDA=1 make run"""


def would_install(lock: Path) -> list[str]:
    """Names of the packages that pip would bring for this lock file; empty when it is satisfied."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        subprocess.run([*command, "-r", str(lock)], check=True)
        return sorted(item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"])


def gpu_packages(names: list[str]) -> list[str]:
    """Those of the names that hold CUDA libraries."""
    return [name for name in names if name.replace("_", "-").startswith(GPU_PREFIXES)]


def main(lock: Path = LOCK) -> int:
    """Exit code 0 when torch is there, 1 when the user must choose or pip failed."""
    version = next(line for line in lock.read_text().splitlines() if line.startswith("torch==")).split("==")[
        1
    ]
    try:
        names = would_install(lock)
        gpu = gpu_packages(names)
        if gpu and os.environ.get("TENSURE_ALLOW_CUDA") != "1":
            print(REFUSAL.format(count=len(gpu), names=", ".join(gpu[:3]), version=version), file=sys.stderr)
            return 1
        if names:
            subprocess.run([sys.executable, "-m", "pip", "install", "-r", str(lock)], check=True)
    except subprocess.CalledProcessError as error:
        print(f"pip stopped with exit code {error.returncode}: see its message above.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
