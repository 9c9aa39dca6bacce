"""Checking a receipt with the OpenSSL command line instead of us.

Knows: which three files OpenSSL needs (the signed bytes, the signature, the public key) and the command over
them. Does not know: whether the receipt is genuine; that is what the command is for.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from tensure.bundle import PublicKey, parse_receipt, write_files_atomic
from tensure.errors import InputError

__all__ = ["export_for_openssl"]


def export_for_openssl(
    data: bytes, key: PublicKey, folder: str | os.PathLike[str], *, replace: bool = False
) -> str:
    """Write `pae.bin`, `sig.der` and `pub.pem` to `folder`; returns the command that verifies them.

    The key is the caller's: one taken from the file would vouch for itself.

    Raises:
        FormatError, LimitError, RecordError: not a receipt.
        InputError: the files exist and `replace` is false, or they cannot be written.
    """
    _, envelope = parse_receipt(data)
    base = Path(folder)
    if not base.is_dir():
        raise InputError("is not a folder", file=base, wanted="an existing folder to write three files to")
    pae, signature, public = base / "pae.bin", base / "sig.der", base / "pub.pem"
    files = [(pae, envelope.signed_bytes), (signature, envelope.signature), (public, key.pem)]
    write_files_atomic(files, replace=replace)
    if key.kind == "p256":
        command = [
            "openssl",
            "dgst",
            "-sha256",
            "-verify",
            str(public),
            "-signature",
            str(signature),
            str(pae),
        ]
    else:
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public)]
        command += ["-rawin", "-in", str(pae), "-sigfile", str(signature)]
    return shlex.join(command)
