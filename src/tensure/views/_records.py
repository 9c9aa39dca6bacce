"""What a page is made of, where no record says it: a verdict beside a receipt, a bundle in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensure.bundle import Plan, Proof, Receipt
from tensure.program import Program

__all__ = ["BundleSummary", "OutputRow", "ProofView", "ReceiptView", "TensorRow"]


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One stored weight."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ReceiptView:
    """A receipt beside the verdict on it.

    Args:
        receipt: the record.
        problem: why it does not verify; None when it does.
        claims: rows of (what, said, basis), as `tensure.receipts.summarize` gives them.
    """

    receipt: Receipt
    problem: str | None
    claims: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output of a proved program: its verdict, and in doubt where, why and since which step and line."""

    name: str
    status: str
    rank: str
    why: str
    step: str
    source: str


@dataclass(frozen=True, slots=True)
class ProofView:
    """A proof beside what it is about.

    Args:
        certificate_bytes: its size; None when there is none.
        classes: which ranks a traced text stands for, and why.
        replay: what came of running the step itself, in words.
        numerics: what ranks round and the model does not, in words.
    """

    proof: Proof
    plan: Plan
    program: Program
    outputs: tuple[OutputRow, ...]
    certificate_bytes: int | None
    classes: tuple[tuple[str, str], ...] = ()
    replay: str = ""
    numerics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """An opened, verified bundle in short."""

    name: str
    digest: str
    weights_root: str
    signed_by: str
    program: Program
    plans: Mapping[str, Plan]
    assets: Mapping[str, int]
    tensors: tuple[TensorRow, ...]
