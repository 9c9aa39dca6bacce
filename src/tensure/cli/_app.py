"""Which verbs there are. This imports typer and nothing heavier: a verb imports its rooms when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    _bench,
    _demo,
    _diff,
    _doctor,
    _inspect,
    _not_yet,
    _plan,
    _prove,
    _receipt,
    _run,
    _seal,
    _verify,
    _view,
)  # fmt: skip

__all__ = ["make_app"]

ABOUT = f"""Output tensors you can trust: run a model and get a signed receipt for every output.

\b
Examples:
  tensure run smollm2-135m --prompt "Why is the sky blue?"
  tensure run efficientnet-lite0 --input photo.png -o photo.npz
  tensure receipt verify out.receipt.json --output out.npz

MODEL is a path (a GGUF, ONNX or .keras file, a model folder, a sealed bundle) or a known name, as listed by
`tensure doctor`.

Coming, not built yet: {", ".join(_not_yet.COMING)}.

\b
Exit codes:
  0 yes                       3 undecided
  1 no: refuted, damaged      4 our own failure
  2 bad usage or bad input    130 interrupted
"""


def make_app() -> typer.Typer:
    """The application, made anew."""
    app = typer.Typer(
        help=ABOUT,
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback(invoke_without_command=True)(_root)
    for verb in (_run, _inspect, _diff, _seal, _verify, _plan, _view, _doctor, _bench, _demo):
        app.command(verb.NAME, help=verb.HELP)(verb.command)
    app.command("prove", help=_prove.PROVE_HELP)(_prove.prove_command)
    app.command("check", help=_prove.CHECK_HELP)(_prove.check_command)
    for name in _not_yet.COMING:
        settings = dict(_not_yet.SETTINGS)
        make = app.command(name, hidden=True, add_help_option=False, context_settings=settings)
        make(_not_yet.make_command(name))
    receipt = typer.Typer(help=_receipt.ABOUT, rich_markup_mode=None, no_args_is_help=False)
    receipt.command("verify", help=_receipt.VERIFY_HELP)(_receipt.verify_command)
    receipt.command("export", help=_receipt.EXPORT_HELP)(_receipt.export_command)
    app.add_typer(receipt, name="receipt")
    return app


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as package_version

        print(f"tensure {package_version('tensure')}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(0)
