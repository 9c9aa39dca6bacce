"""`tensure seal`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, ModelArgument, Quiet, Verbose, help_text
from ._talk import Talk

NAME = "seal"
EXAMPLES = (
    "tensure seal smollm2-135m -o smollm2.bundle",
    "tensure seal model.gguf -o model.bundle --context 1024",
    "tensure seal smollm2-135m -o smollm2.bundle --dry-run",
)
HELP = help_text(
    "Seal a model into a signed bundle: program, plan, weights, every byte under a digest.", EXAMPLES
)


def command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.")],
    context: Annotated[
        int | None, typer.Option(min=1, help="Positions of a text model's key-value cache.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the model.")] = None,
    signing_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Sign with this private key instead of this machine's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sealed; write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Read MODEL and seal it."""
    from tensure import api
    from tensure.bundle import plan_digest
    from tensure.errors import InputError
    from tensure.program import digest

    from ._targets import check_target

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if not dry_run:
        check_target(output, force=force, is_folder=True)
    if signing_key is not None and not signing_key.exists():
        raise InputError("no such key", file=signing_key, wanted="a private key (PEM) that exists")
    with talk.progress(f"reading {model}"):
        found = api.load(model, context=context, name=name)
    plan = api.plan(found)
    num_bytes = sum(found.weights[key].data.nbytes for key in found.weights)
    facts = {
        "bundle": str(output),
        "name": found.name,
        "program": digest(found.program),
        "plans": {"host": plan_digest(plan)},
        "tensors": len(found.weights),
        "weight_bytes": num_bytes,
        "assets": sorted(found.assets),
        "written": not dry_run,
    }
    if dry_run:
        talk.say(
            f"would seal {found.name} into {output}: {len(found.weights)} tensors, "
            f"{num_bytes} bytes of weights"
        )
    else:
        with talk.progress(f"sealing {found.name}") as report:
            api.seal(found, output, plans={"host": plan}, key=signing_key, replace=force, progress=report)
        talk.data(str(output))
    talk.result("tensure.seal/1", facts)
    return 0
