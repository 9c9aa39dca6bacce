"""`tensure demo`: the main job, end to end, on real models. What `make run` shows."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Json, Quiet, Verbose, help_text
from ._run import show_receipt
from ._talk import Talk

if TYPE_CHECKING:
    from tensure.runtime import Session

NAME = "demo"
EXAMPLES = ("tensure demo", "tensure demo --out demo-out --max-tokens 16")
HELP = help_text(
    "Run two real models: seal, open, verify, run, and check a receipt with OpenSSL.",
    EXAMPLES,
    "Uses models and photographs from installed packages; downloads nothing.",
)
PROMPT = "Why is the sky blue? Answer in two sentences."
PHOTOGRAPHS = (("chelsea", "a cat", "Egyptian cat"), ("coffee", "a cup of coffee", "espresso"))


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where outputs and receipts go.")] = Path(
        "tensure-out"
    ),
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to make.")] = 96,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Show the main job."""
    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    begin = time.monotonic()
    photographs = _photographs()
    _make_folder(out)
    results: list[dict[str, Any]] = []

    talk.say("1. SmolLM2-135M-Instruct: a GGUF file, read by our own reader")
    with _opened(talk, "smollm2-135m") as session:
        results.append(_ask(talk, session, prompt, max_tokens, out / "answer"))
        bundle = session.folder

    talk.say(
        "\n2. EfficientNet-Lite0: a checkpoint that only a confined child process opens, then torch.export"
    )
    with _opened(talk, "efficientnet-lite0") as session:
        for name, pixels, about, expected in photographs:
            _save_photograph(out / f"{name}.png", pixels)
            results.append(_look(talk, session, pixels, about, expected, out / name))

    talk.say("\n3. One receipt, verified without torch and without us")
    checks = _check(talk, out / "answer", bundle.name)
    seconds = time.monotonic() - begin
    _next_steps(talk, out, seconds)
    ok = all(checks.values()) and all(result["as_expected"] for result in results)
    fields = {"seconds": seconds, "results": results, "checks": checks, "ok": ok, "folder": str(out)}
    talk.result("tensure.demo/1", fields)
    return 0 if ok else 1


def _opened(talk: Talk, model: str) -> Session:
    """Sealed, or found sealed; then opened again and verified, every byte."""
    from tensure import api
    from tensure.errors import DamageError

    with talk.progress(f"   reading and sealing {model}") as report:
        sealed = api.seal_once(model, progress=report)
    if sealed.note:
        talk.say(f"   {sealed.note}")
    talk.say(f"   {'sealed before' if sealed.reused else 'sealed'}: {sealed.path}")
    with talk.progress("   verifying every byte of the bundle") as report:
        verdict = api.verify(sealed.path, progress=report)
    if not verdict.ok:
        raise DamageError(
            verdict.damage[0],
            next_step=f"Remove {sealed.path} and run this again; check the disk if it comes back",
        )
    facts = dict(verdict.facts)
    talk.say(
        f"   program {facts['program'][:23]}..., {facts['tensors']} of weights, "
        f"signed by {facts['signed by'][:16]}"
    )
    session = api.open(sealed.path)
    with talk.progress("   loading the weights"):
        session.load()
    return session


def _ask(talk: Talk, session: Session, prompt: str, max_tokens: int, target: Path) -> dict[str, Any]:
    from tensure.runtime import save_outputs

    talk.say(f"\n   > {prompt}\n")
    generation = session.generate(prompt, max_tokens=max_tokens)
    for piece in generation:
        talk.data(piece, end="")
    talk.data("")
    speed = generation.timing.tokens_per_s
    talk.say(
        f"\n   {len(generation.prompt_tokens)} tokens in, {len(generation.tokens)} out, "
        f"prompt in {generation.timing.prefill_s:.2f} s" + (f", then {speed:.1f} tokens/s" if speed else "")
    )
    show_receipt(talk, generation.receipt)
    save_outputs(target.with_suffix(".npz"), generation.outputs, replace=True)
    generation.receipt.save(target.with_suffix(".receipt.json"), replace=True)
    return {"name": target.name, "output": generation.text, "as_expected": bool(generation.tokens)}


def _look(
    talk: Talk, session: Session, pixels: Any, about: str, expected: str, target: Path
) -> dict[str, Any]:
    from tensure.runtime import save_outputs

    found = session.classify(pixels, top=3)
    talk.say(f"\n   a photograph of {about}:")
    talk.rows([(f"{label.probability:6.1%}", label.name) for label in found.labels], to_data=True)
    show_receipt(talk, found.receipt)
    save_outputs(target.with_suffix(".npz"), found.outputs, replace=True)
    found.receipt.save(target.with_suffix(".receipt.json"), replace=True)
    if found.top.name != expected:
        talk.say(f"   expected {expected!r}: this is not the model we know")
    return {"name": target.name, "output": found.top.name, "as_expected": found.top.name == expected}


def _check(talk: Talk, target: Path, bundle: str) -> dict[str, bool]:
    from tensure.api import trusted_key_of, verify
    from tensure.receipts import export_for_openssl, read_receipt

    receipt, output = target.with_suffix(".receipt.json"), target.with_suffix(".npz")
    verdict = verify(receipt, outputs=output)
    talk.data(f"   {_how_to_call()} receipt verify {receipt} --output {output}")
    talk.data(f"   -> {'verified' if verdict.ok else verdict.damage[0]}")
    checks = {"tensure": verdict.ok}
    folder = target.parent / "openssl"
    folder.mkdir(exist_ok=True)
    line = export_for_openssl(read_receipt(receipt), trusted_key_of(receipt), folder, replace=True)
    talk.data(f"   {line}")
    if shutil.which("openssl") is None:
        talk.data("   -> not run: there is no openssl here (apt install openssl)")
        return checks
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=30, check=False)
    talk.data(f"   -> {(done.stdout or done.stderr).strip()}")
    return {**checks, "openssl": done.returncode == 0}


def _next_steps(talk: Talk, out: Path, seconds: float) -> None:
    me, files = _how_to_call(), shlex.quote(str(out))
    talk.say(f"\nDone in {seconds:.1f} s. Try next:")
    talk.say(
        "  ask something else, look at a photograph, see a receipt as a page, see what this machine has:"
    )
    talk.say(f'  {me} run smollm2-135m --prompt "Name three rivers."')
    talk.say(f"  {me} run efficientnet-lite0 --input {files}/{PHOTOGRAPHS[0][0]}.png")
    talk.say(f"  {me} view {files}/answer.receipt.json -o receipt.html --force")
    talk.say(f"  {me} doctor")


def _how_to_call() -> str:
    """The command that is this program, as a person can type it from here."""
    if shutil.which("tensure") is not None:
        return "tensure"
    command = Path(sys.executable).with_name("tensure")
    if not command.exists():
        return f"{shlex.quote(sys.executable)} -m tensure.cli"
    near = os.path.relpath(command)
    return shlex.quote(str(command) if near.startswith("..") else near)


def _photographs() -> list[tuple[str, Any, str, str]]:
    """The two photographs out of scikit-image's wheel; whatever is missing is said before any work."""
    from tensure.api import KNOWN
    from tensure.errors import InputError

    missing = [line.install_line for line in KNOWN.values() if line.missing()]
    from importlib.util import find_spec

    if find_spec("skimage") is None:
        missing.append("pip install scikit-image")
    if missing:
        raise InputError("packages of the demo are not installed", next_step=" && ".join(missing))
    from skimage import data

    return [(name, getattr(data, name)(), about, expected) for name, about, expected in PHOTOGRAPHS]


def _save_photograph(path: Path, pixels: Any) -> None:
    """As a file, so that there is one to try `tensure run --input` with."""
    import io

    from PIL import Image

    from tensure.bundle import write_file_atomic

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    write_file_atomic(path, stream.getvalue(), replace=True)


def _make_folder(out: Path) -> None:
    from tensure.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=out, next_step="Choose another with --out"
        ) from None
