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
    Verbose,
    Way,
    help_text,
    parse_params,
)
from ._talk import Talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensure.inspection import Difference, Finding, Trace

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

    from ._code import of_their_code

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    with talk.progress("comparing") as report, of_their_code(one, other, verbose=verbose):
        found = api.diff(
            one,
            other,
            input_file if prompt is None else prompt,
            entry=entry,
            params=parse_params(param or []) or None,
            by=by,
            other_by=other_by,
            plan=plan,
            seed=seed,
            rename=renamed,
            rtol=rtol,
            atol=atol,
            progress=report,
        )
    _show(talk, found, show_all)
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


def _show(talk: Talk, found: Difference, show_all: bool) -> None:
    counts = ", ".join(f"{count} {_words(kind)}" for kind, count in found.counts().most_common())
    talk.data(f"A {found.a.name} ({found.a.how}); B {found.b.name} ({found.b.how})")
    talk.data(f"{_words(found.kind)}: {counts or 'no tensors in common'}")
    alone = [
        (run, len(names)) for run, names in (("A", found.alignment.only_a), ("B", found.alignment.only_b))
    ]
    talk.data(
        "; ".join(f"{count} tensors only in {run}" for run, count in alone if count)
        or "every tensor has a pair"
    )
    shown = found.findings if show_all else found.findings[:1]
    for at, finding in enumerate(shown):
        talk.data("first divergent tensor:" if at == 0 else f"finding {at + 1}:")
        _show_finding(talk, found, finding)
    if len(shown) < len(found.findings):
        talk.data(f"{len(found.findings) - len(shown)} more findings (--all shows them)")
    if show_all:
        _show_pairs(talk, found)
    for note in found.notes:
        talk.data(f"note: {note}")


def _show_finding(talk: Talk, found: Difference, finding: Finding) -> None:
    talk.data(f"  {finding.text}")
    for run, trace, region in (("A", found.a, finding.region_a), ("B", found.b, finding.region_b)):
        if region:
            talk.data(f"  smallest subgraph in {run}:")
            talk.rows([_row(trace, index) for index in region], to_data=True)
    if (element := finding.element) is not None:
        at = ", ".join(map(str, element.index))
        bit = "" if element.bit is None else f"; bit {element.bit} ({element.bit_role})"
        talk.data(f"  element [{at}]: {element.a!r} in A, {element.b!r} in B{bit}; {element.count} differ")
    for name, ours, theirs in finding.arguments:
        talk.data(f"  argument {name}: {ours} in A, {theirs} in B")


def _row(trace: Trace, index: int) -> tuple[str, ...]:
    step = trace.steps[index]
    made = ", ".join(f"{facts.name} {facts.type}" for facts in trace.made(step))
    return f"  [{index}]", step.op, step.module, step.source, made


def _show_pairs(talk: Talk, found: Difference) -> None:
    rows = [
        (
            _words(verdict.kind),
            verdict.pair.a if verdict.pair.a == verdict.pair.b else f"{verdict.pair.a} = {verdict.pair.b}",
            f"|a-b| {verdict.gap:.3g}",
            "" if verdict.excess is None else f"{verdict.excess:.3g} of its bound",
            verdict.basis,
        )
        for verdict in found.verdicts
        if verdict.kind != "identical"
    ]
    talk.rows(rows, to_data=True)


def _words(kind: str) -> str:
    return {"identical": "bit-identical", "within": "within rounding", "by_design": "other by design"}.get(
        kind, kind
    )
