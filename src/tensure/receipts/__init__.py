"""Verify what a run claims: one receipt, or the chain of a session's receipts.

No torch, no kernels, no network, and no key out of the file itself.
"""

from tensure.receipts._chain import verify_chain
from tensure.receipts._openssl import export_for_openssl
from tensure.receipts._summary import summarize
from tensure.receipts._verify import Expected, read_receipt, verify_receipt

__all__ = [
    "Expected",
    "export_for_openssl",
    "read_receipt",
    "summarize",
    "verify_chain",
    "verify_receipt",
]
