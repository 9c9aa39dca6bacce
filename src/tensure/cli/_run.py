"""`tensure run`."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Json, Key, ModelArgument, Quiet, Size, Verbose, help_text, parse_params, parse_sizes
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.runtime import Array, Session, SignedReceipt

NAME = "run"
EXAMPLES = (
    'tensure run smollm2-135m --prompt "Why is the sky blue?" --max-tokens 24',
    "tensure run efficientnet-lite0 --input photo.png -o photo.npz --force",
    "tensure run model.bundle --input x.npy --json",
    "tensure run model.onnx --size batch=1 --size seq=128 --input ids.npy",
)
HELP = help_text(
    "Run a model: the output, and a signed receipt for it.",
    EXAMPLES,
    "Outputs go to --output and the receipt beside it, or both into ./tensure-out. A model that is not a "
    "bundle yet is sealed first, once, into the cache ($XDG_CACHE_HOME/tensure).",
)
IMAGES = (".png", ".jpg", ".jpeg")


_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "system",
    "raw",
    "mode",
    "cache_bits",
)
UNUSED = {"--prompt": ("entry", "param"), "an image": ("entry", "param", *_SAMPLING), "tensors": _SAMPLING}


def command(
    context: typer.Context,
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Option(help="A prompt, for a model that generates text.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="A tensor (.npy), tensors (.npz) or an image."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="NPZ", help="Write the output tensors here.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="Which plan: its name in the bundle, or a plan file.")
    ] = None,
    entry: Annotated[
        str | None, typer.Option(help="Which entry of the program; the first when left out.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="An entry's parameter.")] = None,
    size: Size = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to make.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the random stream.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt without the chat template.")] = False,
    mode: Annotated[
        str | None, typer.Option(help="exact (tokens depend on nothing else that runs) or fast.")
    ] = None,
    cache_bits: Annotated[int, typer.Option(help="Of a key or value in the cache: 16, 8 or 4.")] = 16,
    nonce: Annotated[str | None, typer.Option(help="A text of yours for the receipt to repeat.")] = None,
    key: Key = None,
    force: Annotated[bool, typer.Option("--force", help="Replace output files that are there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run MODEL."""
    from tensure import api
    from tensure.errors import InputError

    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    if (prompt is None) == (input_file is None):
        raise InputError("run needs one of --prompt and --input", next_step="See tensure run --help")
    if prompt == "":
        raise InputError("the prompt is empty", wanted="at least one character")
    _refuse_unused(context, "--prompt" if prompt is not None else _kind(input_file))
    if input_file is not None and not os.path.isfile(input_file):
        raise InputError(
            "no such file" if not os.path.exists(input_file) else "is not a file",
            file=input_file,
            wanted="a tensor (.npy), tensors (.npz) or an image (.png, .jpg)",
            next_step="tensure demo leaves two photographs to try, such as tensure-out/chelsea.png",
        )
    files = _Files(model, output, force)
    with talk.progress(f"preparing {model}") as report:
        sealed = api.seal_once(model, sizes=parse_sizes(size), progress=report)
    if sealed.note:
        talk.say(sealed.note)
    talk.detail(f"bundle: {sealed.path}{' (sealed before)' if sealed.reused else ''}")
    with api.open(sealed.path, key=key, plan=_plan_name(sealed.path, plan, key)) as session:
        if prompt is not None:
            options: dict[str, Any] = {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
            }
            options |= {"min_p": min_p, "seed": seed, "stop": stop or [], "system": system, "raw": raw}
            options |= {"mode": mode, "cache_bits": cache_bits}
            shown, outputs, receipt = _answer(talk, session, prompt, {**options, "nonce": nonce})
        elif input_file is not None and _kind(input_file) == "an image":
            shown, outputs, receipt = _classify(talk, session, input_file, nonce)
        else:
            assert input_file is not None
            shown, outputs, receipt = _compute(
                talk, session, input_file, entry, parse_params(param or []), nonce
            )
        files.write(outputs, receipt)
    show_receipt(talk, receipt)
    talk.say(f"output:  {files.output}\nreceipt: {files.receipt}")
    paths = {"bundle": str(sealed.path), "output_file": str(files.output), "receipt": str(files.receipt)}
    talk.result("tensure.run/1", {"model": session.name, "output": shown, **paths})
    return 0


def _kind(path: Path | None) -> str:
    return "an image" if path is not None and path.suffix.lower() in IMAGES else "tensors"


def _refuse_unused(context: typer.Context, kind: str) -> None:
    """An option that would do nothing is a misunderstanding: better said than ignored."""
    from tensure.errors import InputError

    for name in UNUSED[kind]:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} has no meaning with {kind}",
                wanted=f"no {option}, or {'--input' if kind == '--prompt' else '--prompt'}",
            )


def _answer(
    talk: Talk, session: Session, prompt: str, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Array], SignedReceipt]:
    generation = session.generate(prompt, **options)
    for piece in generation:
        talk.data(piece, end="")
    talk.data("")
    speed = generation.timing.tokens_per_s
    rate = f", {speed:.1f} tokens/s" if speed else ""
    talk.say(f"{len(generation.tokens)} tokens, finished by {generation.finish_reason}{rate}")
    return generation.text, generation.outputs, generation.receipt


def _classify(
    talk: Talk, session: Session, path: Path, nonce: str | None
) -> tuple[Any, dict[str, Array], SignedReceipt]:
    found = session.classify(path, nonce=nonce)
    talk.rows([(f"{label.probability:.3f}", label.name) for label in found.labels], to_data=True)
    shown = [{"index": x.index, "name": x.name, "probability": x.probability} for x in found.labels]
    return shown, dict(found.outputs), found.receipt


def _compute(
    talk: Talk, session: Session, path: Path, entry: str | None, params: Mapping[str, int], nonce: str | None
) -> tuple[Any, dict[str, Array], SignedReceipt]:
    from tensure.errors import InputError

    inputs = session.read_inputs(path, entry=entry, params=params)
    try:
        outputs, receipt = session.run(inputs, entry=entry, params=params, nonce=nonce)
    except InputError as error:
        raise error.at(path) from None
    rows = [(out.name, f"{out.dtype}{list(out.shape)}", str(out.digest)) for out in receipt.record.outputs]
    talk.rows(rows, to_data=True)
    shown = {
        out.name: {"dtype": out.dtype, "shape": list(out.shape), "digest": str(out.digest)}
        for out in receipt.record.outputs
    }
    return shown, outputs, receipt


def show_receipt(talk: Talk, receipt: SignedReceipt) -> None:
    """The receipt in short."""
    from tensure.receipts import summarize

    rows = summarize(receipt.record)
    said = [row for row in rows if row[2] != "absent"]
    talk.say("receipt:")
    talk.rows([(what, value, f"({basis})") for what, value, basis in said])
    absent = [what for what, _, basis in rows if basis == "absent"]
    talk.say(f"  absent: {', '.join(absent)}")


class _Files:
    """Where the output and its receipt go; refused before the run if something is in the way."""

    def __init__(self, model: str, output: Path | None, force: bool) -> None:
        from tensure.api import default_output

        from ._targets import check_target

        self.force = force
        stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        self.output, self.receipt = default_output(model, stamp) if output is None else _beside(output)
        for path in (self.output, self.receipt):
            check_target(path, force=force)

    def write(self, outputs: Mapping[str, Array], receipt: SignedReceipt) -> None:
        from tensure.runtime import save_run

        save_run(outputs, receipt, self.output, self.receipt, replace=self.force)


def _beside(output: Path) -> tuple[Path, Path]:
    from tensure.errors import InputError

    if output.suffix.lower() != ".npz" and not os.path.isdir(output):
        raise InputError(
            "outputs are written to one .npz file", file=output, wanted="a name that ends in .npz"
        )
    return output, output.with_suffix(".receipt.json")


def _plan_name(bundle: Path, plan: str | None, key: Path | None) -> str | None:
    if plan is None or not os.path.isfile(plan):
        return plan
    from tensure.api import plan_in_bundle

    return plan_in_bundle(bundle, Path(plan), key=key)
