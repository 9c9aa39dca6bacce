"""`tensure receipt verify` and `tensure receipt export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Key, Quiet, Verbose, help_text
from ._talk import Talk
from ._verify import show_verdict

ABOUT = "Verify a receipt, or hand it to OpenSSL."
VERIFY_EXAMPLES = (
    "tensure receipt verify out.receipt.json",
    "tensure receipt verify out.receipt.json --output out.npz --bundle smollm2.bundle",
    "tensure receipt verify out.receipt.json --key signing-key.pub.pem --nonce 2f9c",
)
VERIFY_HELP = help_text(
    "Check a receipt: its signature, and that it is for the output, bundle and nonce in hand.",
    VERIFY_EXAMPLES,
    "Trusted are this machine's own keys, or --key; never a key from the file. A signature proves "
    "who said it, not that it is true. Exit code 1 when anything does not fit.",
)
EXPORT_EXAMPLES = ("tensure receipt export out.receipt.json --to openssl-files",)
EXPORT_HELP = help_text(
    "Write what the OpenSSL command line needs to check a receipt, and print the command.", EXPORT_EXAMPLES
)

ReceiptFile = Annotated[Path, typer.Argument(metavar="FILE", help="A receipt, as `tensure run` writes it.")]


def verify_command(
    path: ReceiptFile,
    key: Key = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="NPZ", help="The tensors that it must be for.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="The bundle that it must name.")
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce that it must carry.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Verify FILE."""
    from tensure.api import verify
    from tensure.errors import InputError

    if path.is_dir():
        raise InputError(
            "is a folder", file=path, wanted="a receipt file", next_step="A bundle: tensure verify DIR"
        )
    talk = Talk(json_only=as_json, quiet=quiet, verbose=verbose)
    return show_verdict(talk, verify(path, key=key, outputs=output, bundle=bundle, nonce=nonce))


def export_command(
    path: ReceiptFile,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write three files to.")],
    key: Key = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of another receipt.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Export FILE for OpenSSL."""
    from tensure.api import trusted_key_of
    from tensure.errors import InputError
    from tensure.receipts import export_for_openssl, read_receipt

    talk = Talk(json_only=as_json, quiet=quiet)
    data = read_receipt(path)
    signer = trusted_key_of(path, key=key)
    try:
        to.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", file=to) from None
    line = export_for_openssl(data, signer, to, replace=force)
    talk.result("tensure.receipt-export/1", {"folder": str(to), "command": line})
    talk.data(line)
    return 0
