"""What was established about a Plan: two verdicts that are never merged and never rounded up.

Knows the record and its one spelling as canonical JSON; knows nothing of how a verdict is reached.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from tensure.errors import FormatError

from ._json import (
    Json,
    canonical_json,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_canonical,
)

Status: TypeAlias = Literal["proved", "probable", "refuted", "unknown"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
FORMAT: Final = "tensure-proof"
MAX_PROOF: Final = 64 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Counterexample:
    """Where a Plan computes something else: what a person needs to find the bug.

    Args:
        rank: printed rank.
        local: the local tensor that is wrong.
        claim: what it was to be.
        index: first differing element.
        step: the op that made it.
        source: source line, when known.
        confirmed: whether a concrete float64 replay showed the difference.
    """

    rank: str
    local: str
    claim: str
    index: tuple[int, ...]
    step: str
    source: str = ""
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer: status, how it was reached, and what its status calls for.

    `error` is the chance of a wrong acceptance and stands exactly when `probable`; `counterexample`
    stands exactly when `refuted`; `reason` says why when `unknown`, and never stays empty then.
    """

    status: Status
    method: str
    error: float | None = None
    counterexample: Counterexample | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise FormatError(f"status {str(self.status)[:80]!r}", wanted=", ".join(STATUSES))
        if self.status == "unknown" and not self.reason:
            raise FormatError("an unknown verdict without a reason", wanted="why it is not known")
        if (self.error is not None) != (self.status == "probable"):
            raise FormatError(
                f"error={self.error} with {self.status}", wanted="an error bound exactly when probable"
            )
        if self.error is not None and not (math.isfinite(self.error) and 0 < self.error < 1):
            raise FormatError(f"error={self.error}", wanted="a probability above 0 and below 1")
        if (self.counterexample is not None) != (self.status == "refuted"):
            raise FormatError(f"a {self.status} verdict", wanted="a counterexample exactly when refuted")


@dataclass(frozen=True, slots=True)
class Proof:
    """Verdicts on values and on storage for one Plan of one Program, with the certificate's digest."""

    program: str
    plan: str
    values: Verdict
    storage: Verdict
    certificate: str | None = None


def format_proof(proof: Proof) -> bytes:
    """The Proof as canonical JSON; `parse_proof(format_proof(p)) == p`."""
    return canonical_json(
        {
            "format": FORMAT,
            "version": 1,
            "program": proof.program,
            "plan": proof.plan,
            "values": _verdict(proof.values),
            "storage": _verdict(proof.storage),
            "certificate": proof.certificate,
        }
    )


def parse_proof(data: bytes) -> Proof:
    """The Proof behind its bytes.

    Raises:
        FormatError: not this format, or a verdict that contradicts itself.
        LimitError: too large.
    """
    row = expect_object(parse_canonical(data, max_bytes=MAX_PROOF), "proof")
    expect_keys(row, "proof", ("format", "version", "program", "plan", "values", "storage", "certificate"))
    if row["format"] != FORMAT:
        raise FormatError(f"format {str(row['format'])[:80]!r}", wanted=FORMAT)
    # Not `!=`: 1.0 and true equal 1, and would be a second spelling.
    expect_int(row["version"], "version", least=1, most=1)
    certificate = row["certificate"]
    return Proof(
        _digest(row["program"], "program"),
        _digest(row["plan"], "plan"),
        _read_verdict(row["values"], "values"),
        _read_verdict(row["storage"], "storage"),
        None if certificate is None else _digest(certificate, "certificate"),
    )


def proof_digest(proof: Proof) -> str:
    """`sha256:<hex>` of the Proof's bytes."""
    return f"sha256:{hashlib.sha256(format_proof(proof)).hexdigest()}"


def _verdict(verdict: Verdict) -> Json:
    example = verdict.counterexample
    return {
        "status": verdict.status,
        "method": verdict.method,
        "error": verdict.error,
        "reason": verdict.reason,
        "counterexample": None
        if example is None
        else {
            "rank": example.rank,
            "local": example.local,
            "claim": example.claim,
            "index": list(example.index),
            "step": example.step,
            "source": example.source,
            "confirmed": example.confirmed,
        },
    }


def _read_verdict(value: Json, place: str) -> Verdict:
    row = expect_object(value, place)
    expect_keys(row, place, ("status", "method", "error", "reason", "counterexample"))
    status, error = expect_str(row["status"], place), row["error"]
    if error is not None and not isinstance(error, float):
        raise FormatError(f"error {error!r}", place=place, wanted="a probability or null")
    method, reason = expect_str(row["method"], place), expect_str(row["reason"], place)
    example = _read_example(row["counterexample"], place)
    try:
        return Verdict(cast(Status, status), method, error, example, reason)
    except FormatError as found:
        raise found.at(place=place) from None


def _read_example(value: Json, place: str) -> Counterexample | None:
    if value is None:
        return None
    row = expect_object(value, place)
    expect_keys(row, place, ("rank", "local", "claim", "index", "step", "source", "confirmed"))
    index = expect_list(row["index"], place, max_items=16)
    confirmed = row["confirmed"]
    if not isinstance(confirmed, bool):
        raise FormatError(f"confirmed {confirmed!r}", place=place, wanted="true or false")
    words = {key: expect_str(row[key], place) for key in ("rank", "local", "claim", "step", "source")}
    numbers = tuple(part for part in index if isinstance(part, int) and not isinstance(part, bool))
    if len(numbers) != len(index):
        raise FormatError(f"index {index!r}", place=place, wanted="integers")
    return Counterexample(index=numbers, confirmed=confirmed, **words)


def _digest(value: Json, place: str) -> str:
    text = expect_str(value, place)
    if not _DIGEST.fullmatch(text):
        raise FormatError(f"{place} {text[:80]!r}", wanted="sha256: and 64 hex digits")
    return text
