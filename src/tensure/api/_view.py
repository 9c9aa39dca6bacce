"""A file to a page: which record lies in it, and what may be said of it. Does not know HTML."""

from __future__ import annotations

import os
from pathlib import Path

from tensure.errors import FormatError, InputError, TensureError

from ._load import is_bundle
from ._open import open_verified
from ._paths import as_path
from ._verify import verify

__all__ = ["page_of"]

MAX_TEXT_BYTES = 64 << 20


def page_of(path: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> str:
    """One self-contained HTML page for a bundle folder, or for a program, plan or receipt file.

    A receipt's page says whether it verifies; a bundle must verify to be shown.

    Raises:
        FormatError, InputError: none of these.
        DamageError: a bundle that is not what was signed.
    """
    place = as_path(path, "a bundle folder or a receipt file")
    try:
        if is_bundle(place):
            return _bundle_page(place, key)
        data = _read(place)
        if data.startswith(b"{"):
            return _receipt_page(place, key)
        return _record_page(data)
    except TensureError as error:
        raise error.at(path) from None


def _bundle_page(path: Path, key: str | os.PathLike[str] | None) -> str:
    from tensure.bundle import parse_plan
    from tensure.program import parse_program
    from tensure.views import BundleSummary, TensorRow, render

    folder = open_verified(path, key=key)
    try:
        tensors = tuple(
            TensorRow(name, tensor.shape, tensor.encoding, tensor.data.nbytes)
            for name, tensor in ((name, folder.weights[name]) for name in folder.weights)
        )
        summary = BundleSummary(
            name=folder.name,
            digest=folder.digest,
            weights_root=folder.weights_root,
            signed_by=folder.key.id,
            program=parse_program(folder.program.decode()),
            plans={label: parse_plan(data.decode()) for label, data in folder.plans.items()},
            assets={name: len(data) for name, data in folder.assets.items()},
            tensors=tensors,
        )
    except UnicodeDecodeError:
        raise FormatError("a text in the bundle is not UTF-8") from None
    finally:
        folder.close()
    return render(summary)


def _receipt_page(path: Path, key: str | os.PathLike[str] | None) -> str:
    from tensure.bundle import parse_receipt
    from tensure.receipts import read_receipt, summarize
    from tensure.views import ReceiptView, render

    verdict = verify(path, key=key)
    receipt = verdict.receipt
    if receipt is None:
        receipt, _ = parse_receipt(read_receipt(path))
    return render(ReceiptView(receipt, None if verdict.ok else verdict.damage[0], summarize(receipt)))


def _record_page(data: bytes) -> str:
    from tensure.bundle import parse_plan
    from tensure.program import parse_program
    from tensure.views import render

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("not UTF-8", wanted="a program, a plan or a receipt") from None
    if text.startswith("tensure program"):
        return render(parse_program(text))
    if text.startswith("tensure plan"):
        return render(parse_plan(text))
    raise FormatError("none of our records", wanted="a bundle folder, or a program, plan or receipt file")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError("is not a file", wanted="a bundle folder, or a program, plan or receipt file")
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise FormatError("too large to be one of our records", wanted=f"at most {MAX_TEXT_BYTES} bytes")
    return data
