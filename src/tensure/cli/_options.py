"""Options that several verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["Json", "Key", "ModelArgument", "Quiet", "Verbose", "help_text"]

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A GGUF file, a model folder, a sealed bundle, or a known name."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr but errors.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more; show the trace of an internal error.")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="PEM", help="Trust this public key instead of those this machine trusts."),
]

PARAGRAPH: Final = "\n\n\b\n"


def help_text(summary: str, examples: tuple[str, ...], more: str = "") -> str:
    """A verb's help: one line, its examples, then what else there is to say."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{summary}{PARAGRAPH}Examples:\n{lines}" + (f"\n\n{more}" if more else "")
