"""Check that no file names what belongs to one machine or one person's set-up rather than to the project.

Package-index hosts (a user's pip settings choose those), absolute paths of a work place, markers of
unfinished merges. Looks at every file that is not ignored by the usual caches. Patterns are spelled with
breaks, so that this file passes its own check.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIP = {".git", ".venv", "build", "dist", "outputs", "out", "LICENSE", "__pycache__"}
TEXT = {
    "",
    ".py",
    ".pyi",
    ".toml",
    ".md",
    ".txt",
    ".lock",
    ".cc",
    ".h",
    ".c",
    ".cmake",
    ".html",
    ".css",
    ".js",
    ".json",
    ".sh",
}
FORBIDDEN = {
    "a package-index host": r"py[p]i\.org|pythonhos[t]ed\.|download\.pyt[o]rch\.|anacond[a]\.org|npmj[s]\.",
    "a path of one work place": r"/wor[k]/(?:main|shared)\b|/tmp/te[a]m\b|/opt/py[p]i\b|/roo[t]/",
    "a merge marker": r"^(?:<{7}|>{7}) ",
}


def problems(root: Path) -> Iterator[str]:
    """One sentence for each line that holds a forbidden word."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part in SKIP or part.endswith("_cache") or part == ".hypothesis" for part in parts)
        if hidden or not path.is_file() or path.suffix not in TEXT or path.stat().st_size > 2**21:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN.items():
            for match in re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{path.relative_to(root)}:{line}: {match.group()!r} is {what}"


def main() -> int:
    """Exit code 0 when no file holds a forbidden word, 1 otherwise."""
    found = list(problems(ROOT))
    for line in found:
        print(line, file=sys.stderr)
    print("words: clean" if not found else f"words: {len(found)} to change")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
