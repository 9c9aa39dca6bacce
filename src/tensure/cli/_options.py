"""Options that several verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import typer

__all__ = [
    "Entry",
    "InputFile",
    "InspectArgument",
    "Json",
    "Key",
    "ModelArgument",
    "Param",
    "PlanFile",
    "Prompt",
    "Quiet",
    "Seed",
    "Size",
    "Verbose",
    "Way",
    "help_text",
    "parse_params",
    "parse_sizes",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A GGUF, ONNX or .keras file, a model folder, a sealed bundle, or a known name."
    ),
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

InspectArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="What load takes, a recording (.trace), or package.module:name for a torch module or a function "
        "of yours, which is run.",
    ),
]
InputFile = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="A tensor (.npy), tensors (.npz) or an image."),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="A prompt, for a model that generates text.")]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Draw the inputs from this seed instead.")
]
Entry = Annotated[
    str | None, typer.Option("--entry", help="Which entry of the program; the first when left out.")
]
Param = Annotated[list[str] | None, typer.Option("--param", metavar="NAME=N", help="An entry's parameter.")]
Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="NAME=N",
        help="An open size of an ONNX file, by its name there or as INPUT.DIM; repeatable.",
    ),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Run by this plan, rank by rank.")
]
Way: TypeAlias = Literal["torch", "kernels", "reference"]

PARAGRAPH: Final = "\n\n\b\n"


def help_text(summary: str, examples: tuple[str, ...], more: str = "") -> str:
    """A verb's help: one line, its examples, then what else there is to say."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{summary}{PARAGRAPH}Examples:\n{lines}" + (f"\n\n{more}" if more else "")


def parse_params(words: list[str]) -> dict[str, int]:
    """The integers of an entry, as `--param NAME=N` gives them."""
    return _named_numbers("--param", words, "NAME=N, such as n=3")


def parse_sizes(words: list[str] | None) -> dict[str, int] | None:
    """The open sizes of a model, as `--size NAME=N` gives them; None where none are given."""
    if not words:
        return None
    found = _named_numbers("--size", words, "NAME=N, such as batch=1, each name once")
    if len(found) != len(words):
        from tensure.errors import InputError

        raise InputError("--size gives a size twice", wanted="each name once")
    return found


def _named_numbers(option: str, words: list[str], wanted: str) -> dict[str, int]:
    from tensure.errors import InputError

    found: dict[str, int] = {}
    for word in words:
        name, sep, value = word.rpartition("=")
        if not sep or not name or not value.isascii() or not value.isdigit() or len(value) > 18:
            raise InputError(f"{option} {word[:60]!r}", wanted=wanted)
        found[name] = int(value)
    return found
