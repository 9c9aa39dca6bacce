"""A receipt: what one run says about one set of output tensors, signed.

Knows: the record, its one form as an in-toto Statement v1 (outputs are the subjects, everything else the
predicate), and how to sign it into a DSSE envelope and take it out again. Nothing is left out: what a run
cannot claim yet (a proof, audits, repairs, a code on the weights) is written with basis `absent`.

    checked-now       computed or compared during this very run
    checked-at-load   checked when the bundle was opened, and relied on since
    asserted          said by the issuer, checked by nobody
    absent            not claimed

Does not know: whom to believe. `tensure.receipts` verifies. A signature proves who said it, not that it is
true: a receipt from a machine you do not trust is that machine's word.

Source: in-toto attestation Statement v1; reference for the claims: docs/decisions/0003.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from tensure.bundle._blocks import leaf_digest, merkle_root
from tensure.bundle._claims import (
    Audits,
    Basis,
    ChainLink,
    DigestClaim,
    Exactness,
    Inputs,
    Issued,
    Kernels,
    Nodes,
    Nonce,
    OutputDigest,
    OutputsBasis,
    ProofClaim,
    Protection,
    Repairs,
    Sampling,
    Sha256,
    Stream,
    WeightsClaim,
    decode,
    encode,
)
from tensure.bundle._dsse import Envelope, open_envelope, seal_envelope
from tensure.bundle._json import (
    Json,
    canonical_json,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_canonical,
)
from tensure.bundle._keys import SigningKey
from tensure.errors import FormatError, LimitError, RecordError

__all__ = [
    "MAX_RECEIPT_BYTES",
    "PREDICATE_TYPE",
    "Receipt",
    "issued_now",
    "next_link",
    "parse_receipt",
    "parse_statement",
    "receipt_digest",
    "sign_receipt",
    "stream_claim",
]

# A name, not an address: `.example` is reserved (RFC 2606), so nobody can ever own it.
PREDICATE_TYPE = "https://tensure.example/receipt/v1"
MAX_RECEIPT_BYTES = 4 << 20

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_VERSION = 1
_MAX_OUTPUTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One run's statement about its output tensors; `issued.key_id` must be the key it is signed with."""

    outputs: tuple[OutputDigest, ...]
    link: ChainLink
    issued: Issued
    outputs_basis: Basis = "checked-now"
    program: DigestClaim = field(default_factory=DigestClaim)
    plan: DigestClaim = field(default_factory=DigestClaim)
    proof: ProofClaim = field(default_factory=ProofClaim)
    weights: WeightsClaim = field(default_factory=WeightsClaim)
    protection: Protection = field(default_factory=Protection)
    inputs: Inputs = field(default_factory=Inputs)
    sampling: Sampling = field(default_factory=Sampling)
    kernels: Kernels = field(default_factory=Kernels)
    exactness: Exactness = field(default_factory=Exactness)
    audits: Audits = field(default_factory=Audits)
    repairs: Repairs = field(default_factory=Repairs)
    nodes: Nodes = field(default_factory=Nodes)
    stream: Stream = field(default_factory=Stream)
    nonce: Nonce = field(default_factory=Nonce)

    def __post_init__(self) -> None:
        if not self.outputs:
            raise RecordError("a receipt is for at least one output tensor", place="outputs")
        if len({output.name for output in self.outputs}) != len(self.outputs):
            raise RecordError("an output appears twice", place="outputs")
        if self.outputs_basis == "absent":
            raise RecordError("the outputs cannot be absent", place="outputs")


_CLAIMS = tuple(f.name for f in fields(Receipt) if f.name not in ("outputs", "outputs_basis"))


def sign_receipt(receipt: Receipt, key: SigningKey) -> bytes:
    """The receipt file's bytes: a DSSE envelope with one signature, in its one spelling.

    Raises:
        RecordError: the receipt names another issuer than `key`, or a field holds a value of a wrong type.
        FormatError, LimitError: a value is not finite, not text, or too long for a receipt.
    """
    if receipt.issued.key_id != key.public.id:
        raise RecordError(
            "the receipt names another key than the one that signs", place="issued", wanted=key.public.id
        )
    statement = _statement(receipt)
    payload = canonical_json(statement)
    # A reader must get back what was meant: a record built with a wrong type inside must not get out.
    if _read_statement(statement) != receipt:
        raise RecordError("a field of the receipt holds a value of another type than it is declared with")
    data = seal_envelope(payload, key)
    if len(data) > MAX_RECEIPT_BYTES:
        raise LimitError(f"a receipt of {len(data)} bytes", wanted=f"at most {MAX_RECEIPT_BYTES}")
    return data


def parse_receipt(data: bytes) -> tuple[Receipt, Envelope]:
    """The receipt in a file and the envelope around it; nothing is verified.

    Raises:
        FormatError, LimitError, RecordError: not exactly what `sign_receipt` could have written.
    """
    envelope = open_envelope(data, max_bytes=MAX_RECEIPT_BYTES)
    return parse_statement(envelope), envelope


def parse_statement(envelope: Envelope) -> Receipt:
    """The receipt inside an envelope.

    Raises: as `parse_receipt`.
    """
    receipt = _read_statement(parse_canonical(envelope.payload, max_bytes=MAX_RECEIPT_BYTES))
    if receipt.issued.key_id != envelope.key_id:
        raise FormatError("the envelope names another key than the statement", place="keyid")
    return receipt


def receipt_digest(data: bytes) -> Sha256:
    """What the next receipt of the session calls `previous`: SHA-256 of the statement, not of the signature.

    Raises: as `parse_receipt`.
    """
    _, envelope = parse_receipt(data)
    return Sha256(hashlib.sha256(envelope.payload).hexdigest())


def next_link(session: str, previous: bytes | None = None) -> ChainLink:
    """The place in the chain after the receipt file `previous`; the first place if there is none.

    Raises: as `parse_receipt`; RecordError if `previous` belongs to another session.
    """
    if previous is None:
        return ChainLink(session)
    before, envelope = parse_receipt(previous)
    if before.link.session != session:
        raise RecordError("the previous receipt belongs to another session", place="link", wanted=session)
    return ChainLink(session, before.link.number + 1, Sha256(hashlib.sha256(envelope.payload).hexdigest()))


def issued_now(key: SigningKey) -> Issued:
    """Signed by `key`, now."""
    return Issued(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), key.public.id)


def stream_claim(chunks: Iterable[bytes]) -> Stream:
    """The claim for a streamed output: the Merkle root over its chunks (RFC 9162 hashing)."""
    leaves = [leaf_digest(chunk) for chunk in chunks]
    return Stream(Sha256(merkle_root(leaves).hex()), len(leaves), "checked-now")


def _statement(receipt: Receipt) -> dict[str, Json]:
    predicate: dict[str, Json] = {name: encode(getattr(receipt, name)) for name in _CLAIMS}
    predicate["outputs"] = encode(OutputsBasis(receipt.outputs_basis))
    predicate["version"] = _VERSION
    subjects: list[Json] = [
        {
            "name": output.name,
            "digest": encode(output.digest),
            "annotations": {
                "dtype": output.dtype,
                "shape": list(output.shape),
                "layout": output.layout,
                "endianness": output.endianness,
            },
        }
        for output in receipt.outputs
    ]
    return {
        "_type": _STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _read_statement(statement: Json) -> Receipt:
    root = expect_object(statement, "statement")
    expect_keys(root, "statement", ("_type", "subject", "predicateType", "predicate"))
    for name, wanted in (("_type", _STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if (found := expect_str(root[name], name)) != wanted:
            raise FormatError(f"found {found[:100]!r}", place=name, wanted=wanted)
    predicate = expect_object(root["predicate"], "predicate")
    expect_keys(predicate, "predicate", (*_CLAIMS, "outputs", "version"))
    expect_int(predicate["version"], "predicate.version", least=_VERSION, most=_VERSION)
    outputs = tuple(
        _read_subject(item, f"subject[{i}]")
        for i, item in enumerate(expect_list(root["subject"], "subject", max_items=_MAX_OUTPUTS))
    )
    return Receipt(
        outputs=outputs,
        outputs_basis=decode(OutputsBasis, predicate["outputs"], "outputs").basis,
        link=decode(ChainLink, predicate["link"], "link"),
        issued=decode(Issued, predicate["issued"], "issued"),
        program=decode(DigestClaim, predicate["program"], "program"),
        plan=decode(DigestClaim, predicate["plan"], "plan"),
        proof=decode(ProofClaim, predicate["proof"], "proof"),
        weights=decode(WeightsClaim, predicate["weights"], "weights"),
        protection=decode(Protection, predicate["protection"], "protection"),
        inputs=decode(Inputs, predicate["inputs"], "inputs"),
        sampling=decode(Sampling, predicate["sampling"], "sampling"),
        kernels=decode(Kernels, predicate["kernels"], "kernels"),
        exactness=decode(Exactness, predicate["exactness"], "exactness"),
        audits=decode(Audits, predicate["audits"], "audits"),
        repairs=decode(Repairs, predicate["repairs"], "repairs"),
        nodes=decode(Nodes, predicate["nodes"], "nodes"),
        stream=decode(Stream, predicate["stream"], "stream"),
        nonce=decode(Nonce, predicate["nonce"], "nonce"),
    )


def _read_subject(value: Json, place: str) -> OutputDigest:
    subject = expect_object(value, place)
    expect_keys(subject, place, ("name", "digest", "annotations"))
    annotations = expect_object(subject["annotations"], f"{place}.annotations")
    merged = {"name": subject["name"], "digest": subject["digest"], **annotations}
    if len(merged) != len(annotations) + 2:
        raise FormatError("annotations repeat name or digest", place=place)
    return decode(OutputDigest, merged, place)
