"""How much memory this process may still take. Knows /proc, control groups and limits of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory"]


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the least of what the system, this process's control groups and its own limit leave.

    Files that a group holds in memory are counted as free: they go when somebody needs the room.
    """
    found = [*_of_system(proc), *_of_group(proc, groups), *_of_process(proc)]
    return min(found) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _of_system(proc: Path) -> Iterator[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10


def _of_group(proc: Path, groups: Path) -> Iterator[int]:
    """Every group from this process's own up to the root, version 2; its own, version 1."""
    for line in _lines(proc / "self/cgroup"):
        number, _, rest = line.strip().partition(":")
        controllers, _, path = rest.partition(":")
        inner = path.lstrip("/")
        if number == "0":
            folder = groups / inner
            for place in (folder, *folder.parents):
                yield from _left(place / "memory.max", place / "memory.current", place / "memory.stat", "")
                if place == groups:
                    break
        elif "memory" in controllers.split(","):
            for place in (groups / "memory" / inner, groups / "memory"):
                usage, stat = place / "memory.usage_in_bytes", place / "memory.stat"
                yield from _left(place / "memory.limit_in_bytes", usage, stat, "total_")


def _left(most: Path, used: Path, stat: Path, prefix: str) -> Iterator[int]:
    try:
        limit, now = int(most.read_text("ascii")), int(used.read_text("ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return
    files = {f"{prefix}inactive_file", f"{prefix}active_file"}
    cached = sum(int(words[1]) for words in map(str.split, _lines(stat)) if words and words[0] in files)
    yield max(limit - now + cached, 0)


def _of_process(proc: Path) -> Iterator[int]:
    try:
        import resource  # no such module outside Unix
    except ImportError:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        for line in _lines(proc / "self/statm"):
            yield max(limit - int(line.split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
