"""`tensure diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ._options import (
    Entry,
    InputFile,
    Json,
    Param,
    PlanFile,
    Prompt,
    Quiet,
    Seed,
    Size,
    Verbose,
    Way,
    help_text,
    parse_params,
    parse_sizes,
)
from ._talk import Talk

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "diff"
EXAMPLES = (
    "tensure diff efficientnet-lite0 efficientnet-lite0 --input photo.png --other-by kernels",
    'tensure diff old.trace smollm2-135m --prompt "Why is the sky blue?"',
    "tensure diff model.bundle model.bundle --seed 0 --rtol 1e-5 --all",
)
HELP = help_text(
    "Find the first tensor in which two runs part.",
    EXAMPLES,
    "A and B are aligned by the flow of data: float and integer, fused and unfused, whole and split runs can "
    "be compared. Each pair of tensors is bit-identical, within what rounding allows, or divergent. Exit "
    "code 0 when none diverges, 1 when one does, 3 when some pair could not be judged.",
)
CODES = {"identical": 0, "within": 0, "divergent": 1, "unjudged": 3}
_WHAT = "what load takes, a recording (.trace), or package.module:name."


def command(
    one: Annotated[str, typer.Argument(metavar="A", help=f"The run to go by: {_WHAT}")],
    other: Annotated[str, typer.Argument(metavar="B", help="The run to check, likewise.")],
    input_file: InputFile = None,
    prompt: Prompt = None,
    seed: Seed = None,
    entry: Entry = None,
    param: Param = None,
    size: Size = None,
    by: Annotated[Way, typer.Option("--by", help="What runs A, and B unless --other-by says so.")] = "torch",
    other_by: Annotated[Way | None, typer.Option("--other-by", help="What runs B.")] = None,
    plan: PlanFile = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename", metavar="A=B", help="A's tensor that is B's under another name; repeatable."
        ),
    ] = None,
    rtol: Annotated[float, typer.Option("--rtol", min=0, help="Allowed on top, as a share.")] = 0.0,
    atol: Annotated[float, typer.Option("--atol", min=0, help="Allowed on top, absolute.")] = 0.0,
    show_all: Annotated[
        bool, typer.Option("--all", help="Every finding, and every pair that is not identical.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Compare A with B."""
    from ._inspect import check_inputs_of

    check_inputs_of(input_file, prompt)
    renamed = _renamed(rename or [])
    from tensure import api
    from tensure.inspection import difference_lines

    from ._code import of_their_code

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    with talk.progress("comparing") as report, of_their_code(one, other, verbose=verbose):
        found = api.diff(
            one,
            other,
            input_file if prompt is None else prompt,
            entry=entry,
            params=parse_params(param or []) or None,
            sizes=parse_sizes(size),
            by=by,
            other_by=other_by,
            plan=plan,
            seed=seed,
            rename=renamed,
            rtol=rtol,
            atol=atol,
            progress=report,
        )
    for line in difference_lines(found, show_all=show_all):
        talk.data(line)
    result = found.to_json()
    talk.result(str(result.pop("schema")), result)
    return CODES[found.kind]


def _renamed(words: Sequence[str]) -> dict[str, str] | None:
    from tensure.errors import InputError

    found: dict[str, str] = {}
    for word in words:
        name, sep, other = word.partition("=")
        if not sep or not name or not other or name in found:
            raise InputError(f"--rename {word[:60]!r}", wanted="A=B, two tensors' names, each A once")
        found[name] = other
    return found or None
