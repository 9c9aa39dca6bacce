"""Install the Debian packages that tests call (debian-packages.txt), or print the line that does.

apt-get runs only as root or with passwordless sudo. On a system without apt-get, or without the right, this
says what is missing and carries on: a test that needs the command then fails by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).resolve().parents[1] / "debian-packages.txt"


def missing_packages(listing: str) -> list[str]:
    """The packages of the list whose command is not on this machine's PATH."""
    rows = [line.split() for line in listing.splitlines() if line.strip() and not line.startswith("#")]
    return [package for package, command in rows if shutil.which(command) is None]


def root_prefix() -> list[str] | None:
    """What to put before apt-get: nothing as root, sudo when it asks no password, None when we may not."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return None


def main() -> int:
    """Exit code 0 unless apt-get itself failed."""
    missing = missing_packages(LIST.read_text())
    if not missing:
        return 0
    line = f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(missing)}"
    prefix = root_prefix()
    apt = shutil.which("apt-get")
    if apt is None or prefix is None:
        print(f"Tests need {', '.join(missing)}. As root: {line}", file=sys.stderr)
        return 0
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run([*prefix, apt, *arguments], check=False)
        if done.returncode != 0:
            print(f"apt-get failed. As root: {line}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
