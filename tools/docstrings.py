"""Check that every file says what it knows and every public name says what it gives.

For each file under src/tensure: a module docstring. For each name in a room's `__all__` that is a function
or a class: a docstring, wherever the name is defined; for such a class also on its public methods, unless
the method overrides one of a base class. Reads source only, imports nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def problems(source: Path) -> Iterator[str]:
    """One sentence for each missing docstring under this source folder."""
    for path in sorted(source.rglob("*.py")):
        if ast.get_docstring(parse(path)) is None:
            yield f"{path.relative_to(source)}: no module docstring"
    for package in sorted(source.rglob("__init__.py")):
        stub = package.with_suffix(".pyi")  # the public list of a room that loads its names when asked
        init = stub if stub.exists() else package
        for name in exported(parse(init)):
            found = definition(source, init, name)
            if found is None:
                continue  # a constant, an alias or a lazily resolved name
            path, node = found
            where = f"{path.relative_to(source)}:{node.lineno}"
            if ast.get_docstring(node) is None:
                yield f"{where}: {name} is public and has no docstring"
            if isinstance(node, ast.ClassDef) and not node.bases:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and is_bare_public(method):
                        yield f"{where}: {name}.{method.name} is public and has no docstring"


def is_bare_public(method: ast.FunctionDef) -> bool:
    """Whether a method is public and says nothing; a one-line body may speak by its name."""
    return not method.name.startswith("_") and ast.get_docstring(method) is None and len(method.body) > 1


def exported(tree: ast.Module) -> list[str]:
    """The literal names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            items = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else []
            return [
                item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)
            ]
    return []


def definition(source: Path, path: Path, name: str, depth: int = 8) -> tuple[Path, Definition] | None:
    """Where a name seen in a file is defined, followed through `from ... import` at most `depth` times."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and depth:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    target = module_file(source, path, node)
                    return definition(source, target, alias.name, depth - 1) if target else None
    return None


def module_file(source: Path, path: Path, node: ast.ImportFrom) -> Path | None:
    """The file a `from X import` names, when it lies under source."""
    base = source if node.level == 0 else path.parents[node.level - 1]
    target = base.joinpath(*(node.module or "").split("."))
    for candidate in (target.with_suffix(".py"), target / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def parse(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def main() -> int:
    """Exit code 0 when nothing is missing, 1 otherwise."""
    found = list(problems(SOURCE))
    for line in found:
        print(line, file=sys.stderr)
    print("docstrings: whole" if not found else f"docstrings: {len(found)} missing")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
