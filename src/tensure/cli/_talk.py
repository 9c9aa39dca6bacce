"""How the command line speaks: data on stdout, talk on stderr, colour and progress only for people.

Knows terminals, NO_COLOR, --quiet and --json. Does not know any verb. rich is imported only where a
terminal looks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["Talk", "printable"]


def printable(text: str) -> str:
    """Text with control characters shown as codes: names from files must not drive a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


class Talk:
    """One command's voice."""

    def __init__(self, *, json_only: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json_only = json_only
        self.quiet = quiet
        self.verbose = verbose
        self._open_line = False

    def data(self, text: str, *, end: str = "\n") -> None:
        """What was asked for, on stdout; nothing with --json, whose one object is `result`."""
        if not self.json_only:
            sys.stdout.write(printable(text) + end)
            sys.stdout.flush()
            self._open_line = not (text + end).endswith("\n")

    def say(self, text: str = "") -> None:
        """What is going on, on stderr."""
        if not self.quiet:
            if self._open_line:
                sys.stdout.write("\n")
                sys.stdout.flush()
                self._open_line = False
            print(printable(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Why the answer is no, on stderr, with --quiet too."""
        print(printable(text), file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """What is going on, for who asked with -v."""
        if self.verbose:
            self.say(text)

    def result(self, schema: str, fields: Mapping[str, Any]) -> None:
        """The one JSON object of --json."""
        if self.json_only:
            sys.stdout.write(json.dumps({"schema": schema, **fields}) + "\n")
            sys.stdout.flush()

    def rows(self, rows: Sequence[tuple[str, ...]], *, to_data: bool = False) -> None:
        """Aligned columns."""
        widths = [
            max(len(row[i]) for row in rows if len(row) > i) for i in range(max(map(len, rows), default=0))
        ]
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
            (self.data if to_data else self.say)(f"  {line}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A step that takes a while: a bar on a terminal, else one line when it is done."""
        begin = time.monotonic()
        if self.quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield lambda done, total: None
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            with bars:
                task = bars.add_task(what, total=None)
                yield lambda done, total: bars.update(task, completed=done, total=total)
        self.say(f"{what}: {time.monotonic() - begin:.1f} s")

    @contextmanager
    def stages(self) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
        """Steps that take a while, one after another: what names the next, and what is told how far it is."""
        with ExitStack() as stack:
            current: list[Callable[[int, int], None]] = [lambda done, total: None]

            def stage(what: str) -> None:
                stack.close()
                current[0] = stack.enter_context(self.progress(what))

            yield stage, lambda done, total: current[0](done, total)
