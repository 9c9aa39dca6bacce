"""Verifying the receipts of one session together.

Knows: that they are numbered from 0 without a gap, that each names the digest of the one before, and that
all belong to one session. A receipt that was dropped, repeated, reordered or slipped in breaks the chain;
receipts missing at the very end do not show, because nothing after them refers to them.

Does not know: how a single receipt is verified (`_verify.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tensure.bundle import PublicKey, Receipt, receipt_digest
from tensure.errors import DamageError, InputError
from tensure.receipts._verify import verify_receipt

__all__ = ["verify_chain"]


def verify_chain(
    files: Sequence[bytes], *, keys: Sequence[PublicKey], from_start: bool = True
) -> tuple[Receipt, ...]:
    """The receipts in `files`, in order, if each verifies and continues the one before.

    `from_start` also asks that the first is the session's first.

    Raises:
        FormatError: one is no receipt. DamageError: one does not verify or does not continue the chain.
        InputError: there are none.
    """
    if not files:
        raise InputError("there are no receipts to verify", wanted="at least one")
    receipts: list[Receipt] = []
    for index, data in enumerate(files):
        name = f"receipt {index}"
        receipt = verify_receipt(data, keys=keys, file=name)
        if not receipts:
            if from_start and receipt.link.number:
                raise DamageError(
                    f"the session's first {receipt.link.number} receipts are missing", file=name, place="link"
                )
        else:
            before = receipts[-1]
            if receipt.link.session != before.link.session:
                raise DamageError("belongs to another session", file=name, place="link")
            if receipt.link.number != before.link.number + 1:
                raise DamageError(
                    f"has number {receipt.link.number}",
                    file=name,
                    place="link",
                    wanted=f"{before.link.number + 1}",
                )
            if receipt.link.previous != receipt_digest(files[index - 1]):
                raise DamageError("does not continue the receipt before it", file=name, place="link")
        receipts.append(receipt)
    return tuple(receipts)
