"""Run the examples of a page and hold what they print against what the page says they print.

    python tools/run_page.py [--check | --write] [PAGE ...]

Every fenced `python` block of a page is run, in order, in one namespace. What it prints stands in a `text`
block right after it; a block that prints nothing has none. --check (what happens if nothing is said) exits
with 1 and shows the difference when the page says anything else; --write puts it right. A block is compiled
as a line of a file named after its heading, so that a source line in an output does not move when another
section grows. Knows Markdown fences; does not know what the examples are about.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import linecache
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/tensors.md", "docs/proving.md")
FENCE = re.compile(r"(`{3,})(\w*)\s*")


class Problem(Exception):
    """Something a person must change; the text says what."""


@dataclass(frozen=True)
class Piece:
    """Lines of a page: prose, or one fenced block with its language, without its fences."""

    language: str | None
    lines: tuple[str, ...]
    at: int
    """Number of its first line, from 1."""


def pieces(text: str, page: str) -> Iterator[Piece]:
    """A page taken apart."""
    lines = text.splitlines()
    prose: list[str] = []
    at = 0
    while at < len(lines):
        fence = FENCE.fullmatch(lines[at])
        if fence is None:
            prose.append(lines[at])
            at += 1
            continue
        try:
            end = lines.index(fence[1], at + 1)
        except ValueError:
            raise Problem(f"{page}:{at + 1}: the block has no end") from None
        yield Piece(None, tuple(prose), at - len(prose) + 1)
        yield Piece(fence[2], tuple(lines[at + 1 : end]), at + 2)
        prose, at = [], end + 1
    yield Piece(None, tuple(prose), at - len(prose) + 1)


def executed(text: str, page: str) -> str:
    """The page as it ought to be: every example followed by what it prints when it is run now."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    heading, lines_before = "page", 0
    written: list[str] = []
    output: str | None = None  # of the example that was run last, until it has been written
    for piece in pieces(text, page):
        if piece.language is None:
            if output is not None and not any(line.strip() for line in piece.lines):
                continue  # what follows may be the old output
            if output is not None:
                written += block("text", output)
                output = None
            for line in piece.lines:
                if line.startswith("#"):
                    heading, lines_before = slug(line), 0
            written += piece.lines
        elif piece.language == "python":
            if output is not None:
                written += [*block("text", output), ""]
            written += ["```python", *piece.lines, "```"]
            output = run(piece, namespace, f"{heading}.py", lines_before, page)
            lines_before += len(piece.lines)
        elif output is not None and piece.language == "text":
            written += block("text", output)
            output = None
        else:
            if output is not None:
                written += [*block("text", output), ""]
                output = None
            written += [f"```{piece.language}", *piece.lines, "```"]
    if output is not None:
        written += block("text", output)
    return "\n".join(written).rstrip() + "\n"


def block(language: str, text: str) -> list[str]:
    """A fenced block after an empty line; nothing for an empty text."""
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    return ["", f"```{language}", *lines, "```"] if lines else []


def slug(heading: str) -> str:
    """A heading as a file's name."""
    return "-".join(re.findall(r"[a-z0-9]+", heading.lower())) or "page"


def run(piece: Piece, namespace: dict[str, Any], name: str, lines_before: int, page: str) -> str:
    """What an example prints."""
    code = "\n" * lines_before + "\n".join(piece.lines) + "\n"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            exec(compile(code, name, "exec"), namespace)  # noqa: S102 - the page's own examples
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == name and frame.lineno]
        if isinstance(error, SyntaxError) and error.lineno:
            lines = [error.lineno]
        at = piece.at + (lines[-1] - lines_before - 1 if lines else 0)
        raise Problem(f"{page}:{at}: {type(error).__name__}: {error}") from error
    return told.getvalue()


def judged(path: Path, write: bool) -> list[str]:
    """What is wrong with a page, after writing what can be written."""
    text = path.read_text(encoding="utf-8")
    try:
        wanted = executed(text, path.name)
    except Problem as problem:
        return [str(problem)]
    if wanted == text:
        return []
    if write:
        path.write_text(wanted, encoding="utf-8")
        return []
    change = difflib.unified_diff(
        text.splitlines(), wanted.splitlines(), "the page", "what is printed", n=1, lineterm=""
    )
    return [*change, f"{path.name} is out of date; run python tools/run_page.py --write"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every page says what its examples print, 1 otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    how.add_argument("--write", action="store_true", help="put the outputs right")
    parser.add_argument("pages", nargs="*", type=Path, default=[ROOT / page for page in PAGES])
    asked = parser.parse_args(argv)
    problems = [line for path in asked.pages for line in judged(path, asked.write)]
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
