"""Verifying one receipt.

Knows: the order in which a receipt is believed. Is it a receipt at all; is it spelled in the one way; is its
key one of ours; does the signature fit; does the statement hold together; and is it about the outputs,
program, plan, weights, inputs and nonce that the caller has in hand.

A file that is no receipt is bad input (exit 2). A receipt with anything wrong is damage (exit 1), also when
its signer is merely unknown: a key inside the file is never believed.

Does not know: whether what was signed is true. A signature proves who said it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensure.bundle import MAX_RECEIPT_BYTES, PublicKey, Receipt, Sha256, open_envelope, parse_statement
from tensure.errors import DamageError, FormatError, InputError, TensureError, UntrustedError

__all__ = ["Expected", "read_receipt", "verify_receipt"]

_OPENING = b'{"payload":"'
_MARKS = (
    b'"payload"',
    b'"payloadType"',
    b"application/vnd.in-toto+json",
    b'"signatures"',
    b'"keyid"',
    b'"sig"',
)
_RUN_AGAIN = "Ask whoever ran it for the receipt of this run; do not rely on this one."


@dataclass(frozen=True, slots=True)
class Expected:
    """What the receipt must be about, as far as the caller knows it; digests are `sha256:<hex>`.

    `outputs` and `inputs` name every one: a receipt for more or fewer tensors is for another run.

    Raises:
        RecordError: something that is no digest.
    """

    outputs: Mapping[str, str] | None = None
    inputs: Mapping[str, str] | None = None
    program: str | None = None
    plan: str | None = None
    weights: str | None = None
    nonce: str | None = None

    def __post_init__(self) -> None:
        # Checked here, so that the caller's own slip is bad input and not damage found in the receipt.
        named = {**(self.outputs or {}), **(self.inputs or {})}
        for what, text in (
            *named.items(),
            ("program", self.program),
            ("plan", self.plan),
            ("weights", self.weights),
        ):
            try:
                Sha256.of("0" * 64 if text is None else text)
            except TensureError as error:
                raise error.at(place=f"expected {what}") from None


def verify_receipt(
    data: bytes, *, keys: Sequence[PublicKey], expected: Expected | None = None, file: str | None = None
) -> Receipt:
    """The receipt in `data`, if one of `keys` signed it and it is about what is expected.

    `file` is the name to use in messages.

    Raises:
        FormatError: no receipt at all.
        DamageError: a receipt, but changed, signed by an unknown key, or about something else.
    """
    if not _looks_like_receipt(data):
        raise FormatError(
            "this is no receipt",
            file=file,
            wanted="a DSSE envelope as `tensure run` writes it",
            next_step="Name the .receipt.json file that lies beside the output",
        )
    try:
        envelope = open_envelope(data, max_bytes=MAX_RECEIPT_BYTES)
        key = next((key for key in keys if key.id == envelope.key_id), None)
        if key is None:
            raise UntrustedError(
                f"signed by the key {envelope.key_id[:16]}..., which this machine does not trust",
                place="keyid",
                next_step="If you trust whoever ran it, pass their public key with --key.",
            )
        if not envelope.is_signed_by(key):
            raise DamageError("the signature does not fit what it signs", place="sig", next_step=_RUN_AGAIN)
        receipt = parse_statement(envelope)
        if expected is not None:
            _check_expected(receipt, expected)
    except DamageError as error:
        raise error.at(file) from None
    except TensureError as error:
        raise DamageError(
            error.found, file=file, place=error.place, wanted=error.wanted, next_step=_RUN_AGAIN
        ) from None
    return receipt


def read_receipt(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a receipt file, within a receipt's size.

    Raises:
        InputError: there is no such regular file. FormatError: it is too large to be a receipt.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a ValueError is Python's, for a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot be read: {reason}", file=path, wanted="a receipt") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError("is not a regular file", file=path, wanted="a receipt")
        with os.fdopen(fd, "rb", closefd=False) as stream:
            data = stream.read(MAX_RECEIPT_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_RECEIPT_BYTES:
        raise FormatError("too large to be a receipt", file=path, wanted=f"at most {MAX_RECEIPT_BYTES} bytes")
    return data


def _looks_like_receipt(data: bytes) -> bool:
    """Whether `data` was meant as a receipt: a few damaged bytes must not turn damage into bad input."""
    return data.startswith(_OPENING) or sum(mark in data for mark in _MARKS) >= 2


def _check_expected(receipt: Receipt, expected: Expected) -> None:
    if expected.outputs is not None:
        found = {output.name: output.digest for output in receipt.outputs}
        _check_named("output", found, expected.outputs)
    if expected.inputs is not None:
        # A salted commitment cannot be compared with a plain digest, so it never passes for one.
        plain = {item.name: item.digest for item in receipt.inputs.items if not item.salted}
        if len(plain) != len(receipt.inputs.items):
            raise _mismatch("inputs", "the receipt only commits to some inputs", "plain digests")
        _check_named("input", plain, expected.inputs)
    for what, digest, wanted in (
        ("program", receipt.program.digest, expected.program),
        ("plan", receipt.plan.digest, expected.plan),
        ("weights", receipt.weights.root, expected.weights),
    ):
        if wanted is not None and digest != Sha256.of(wanted):
            raise _mismatch(what, f"the receipt is for the {what} {digest or 'absent'}", wanted)
    if expected.nonce is not None and receipt.nonce.value != expected.nonce:
        raise _mismatch(
            "nonce", f"the receipt carries the nonce {receipt.nonce.value!r}", repr(expected.nonce)
        )


def _check_named(what: str, found: Mapping[str, Sha256], wanted: Mapping[str, str]) -> None:
    if set(found) != set(wanted):
        names = ", ".join(sorted(found)) or "none"
        raise _mismatch(
            f"{what}s", f"the receipt is for the {what}s {names}", ", ".join(sorted(wanted)) or "none"
        )
    for name, digest in wanted.items():
        if found[name] != Sha256.of(digest):
            raise _mismatch(f"{what} {name!r}", f"the receipt is for another tensor, {found[name]}", digest)


def _mismatch(place: str, found: str, wanted: str) -> DamageError:
    return DamageError(found, place=place, wanted=wanted, next_step=_RUN_AGAIN)
