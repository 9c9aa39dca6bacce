"""The receipts of one session: what each says, how they are chained, and their signature.

Knows which claims a run on one machine can make today and on what basis. Does not compute anything itself
and does not verify; what nothing can claim yet (a proof, a code on the weights, audits, repairs, other
nodes) is written as absent.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tensure.bundle import (
    DigestClaim,
    Exactness,
    InputDigest,
    Inputs,
    Nonce,
    OutputDigest,
    Receipt,
    Sampling,
    Sha256,
    SigningKey,
    Stream,
    WeightsClaim,
    issued_now,
    next_link,
    sign_receipt,
    write_file_atomic,
)
from tensure.errors import InputError
from tensure.program import dtype_name, tensor_digest

from ._machine import Ran
from ._tensors import Array

__all__ = ["ReceiptBook", "SignedReceipt", "Subject", "check_nonce"]

MAX_NONCE_CHARS = 1000


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt as a record, and the signed bytes that stand for it."""

    record: Receipt
    data: bytes

    def save(self, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Write the receipt file, whole or not at all; returns its path.

        Raises:
            InputError: the file exists and `replace` is false, or it cannot be written.
        """
        write_file_atomic(path, self.data, replace=replace)
        return Path(path)


@dataclass(frozen=True, slots=True)
class Subject:
    """What every receipt of a session is about, all of it checked when the bundle was opened."""

    program: str
    plan: str
    weights_root: str
    encodings: tuple[str, ...]
    sealed_by: str


class ReceiptBook:
    """Issues the receipts of one session, each naming the one before."""

    def __init__(self, subject: Callable[[], Subject], signing_key: Callable[[], SigningKey]) -> None:
        self._subject = cache(subject)
        self._signing_key = signing_key
        self._session = secrets.token_hex(16)
        self._last: bytes | None = None
        self._lock = threading.Lock()

    def issue(
        self,
        *,
        outputs: Mapping[str, Array],
        inputs: Mapping[str, Array],
        ran: Ran,
        sampling: Sampling | None = None,
        stream: Stream | None = None,
        nonce: str | None = None,
    ) -> SignedReceipt:
        """The signed receipt for these outputs."""
        key, subject = self._signing_key(), self._subject()
        with self._lock:
            record = Receipt(
                outputs=tuple(_output(name, array) for name, array in outputs.items()),
                link=next_link(self._session, self._last),
                issued=issued_now(key),
                program=DigestClaim(Sha256.of(subject.program), "checked-at-load"),
                plan=DigestClaim(Sha256.of(subject.plan), "checked-at-load"),
                weights=WeightsClaim(
                    Sha256.of(subject.weights_root),
                    subject.encodings,
                    subject.sealed_by,
                    "checked-at-load",
                ),
                inputs=Inputs(tuple(_input(name, array) for name, array in inputs.items()), "checked-now"),
                sampling=sampling or Sampling(),
                kernels=ran.kernels,
                exactness=Exactness(ran.exactness, basis="asserted"),
                stream=stream or Stream(),
                nonce=Nonce() if nonce is None else Nonce(nonce, "asserted"),
            )
            self._last = sign_receipt(record, key)
            return SignedReceipt(record, self._last)


def check_nonce(nonce: str | None) -> str | None:
    """`nonce` if a receipt can carry it.

    Raises:
        InputError: it is empty, too long or no text.
    """
    if nonce is None:
        return None
    if not isinstance(nonce, str) or not 0 < len(nonce) <= MAX_NONCE_CHARS or not nonce.isprintable():
        raise InputError("the nonce cannot be used", wanted=f"1 to {MAX_NONCE_CHARS} printable characters")
    return nonce


def _output(name: str, array: Array) -> OutputDigest:
    shape = tuple(int(size) for size in array.shape)
    return OutputDigest(name, Sha256.of(tensor_digest(array)), dtype_name(array.dtype), shape)


def _input(name: str, array: Array) -> InputDigest:
    return InputDigest(name, Sha256.of(tensor_digest(array)))
