"""The receipt record: every receipt is read back as it was written, and nothing else is a receipt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.bundle import _claims
from tensure.bundle._blocks import leaf_digest, merkle_root
from tensure.bundle._claims import (
    Audit,
    Audits,
    Basis,
    ChainLink,
    DigestClaim,
    Exactness,
    InputDigest,
    Inputs,
    Issued,
    Kernels,
    Nodes,
    Nonce,
    OutputDigest,
    ProofClaim,
    Protection,
    Repair,
    Repairs,
    Sampling,
    Sha256,
    Stream,
    WeightsClaim,
)
from tensure.bundle._dsse import seal_envelope
from tensure.bundle._json import canonical_json
from tensure.bundle._keys import SigningKey
from tensure.bundle._proof import STATUSES, Status
from tensure.bundle._receipt import (
    Receipt,
    issued_now,
    next_link,
    parse_receipt,
    receipt_digest,
    sign_receipt,
    stream_claim,
)
from tensure.errors import RecordError, TensureError

KEY = SigningKey.generate("ed25519")
HEX = "ab" * 32

digests = st.integers(0, 2**256 - 1).map(lambda n: Sha256(f"{n:064x}"))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
real = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), real, names)
bases: st.SearchStrategy[Basis] = st.sampled_from(["checked-now", "checked-at-load", "asserted"])
times = st.datetimes().map(lambda t: t.replace(year=max(t.year, 1000)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def listed(
    kind: Callable[..., Any], items: st.SearchStrategy[Any], unique_by: Any = None
) -> st.SearchStrategy[Any]:
    some = st.lists(items, max_size=3, unique_by=unique_by).map(tuple)
    return st.just(kind()) | st.builds(kind, some, bases)


bounds = st.floats(0, 1e300)


def proof_claim(data: st.DataObject) -> ProofClaim:
    values, storage = data.draw(st.sampled_from(STATUSES)), data.draw(st.sampled_from(STATUSES))
    numerics = data.draw(st.sampled_from(["exact", "bounded", None]))
    return ProofClaim(
        data.draw(digests),
        values,
        storage,
        data.draw(names | st.none()),
        numerics,
        data.draw(bounds) if numerics == "bounded" else None,
        data.draw(st.floats(1e-300, 0.99)) if "probable" in (values, storage) else None,
        data.draw(st.lists(names, max_size=2).map(tuple)),
        data.draw(bases),
    )


receipts = st.builds(
    Receipt,
    outputs=st.lists(
        st.builds(
            OutputDigest,
            names,
            digests,
            st.sampled_from(["f32", "bf16", "i64"]),
            st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda o: o.name,
    ).map(tuple),
    outputs_basis=bases,
    link=st.builds(ChainLink, names) | st.builds(ChainLink, names, st.integers(1, 2**60), digests),
    issued=st.builds(Issued, times, st.just(KEY.public.id)),
    program=st.just(DigestClaim()) | st.builds(DigestClaim, digests, bases),
    plan=st.just(DigestClaim()) | st.builds(DigestClaim, digests, bases),
    proof=st.just(ProofClaim()) | st.builds(proof_claim, st.data()),
    weights=st.just(WeightsClaim())
    | st.builds(
        WeightsClaim, digests, st.lists(names, max_size=2).map(tuple), st.just(HEX) | st.none(), bases
    ),
    protection=st.just(Protection()) | st.builds(Protection, names, bases),
    inputs=listed(Inputs, st.builds(InputDigest, names, digests, st.booleans()), lambda i: i.name),
    sampling=st.just(Sampling())
    | st.builds(
        Sampling,
        st.integers(-(2**62), 2**62),
        st.dictionaries(names, scalars, max_size=3),
        st.none() | st.integers(0, 99),
        bases,
    ),
    kernels=st.just(Kernels()) | st.builds(Kernels, names, names | st.none(), names | st.none(), bases),
    exactness=st.just(Exactness())
    | st.builds(Exactness, st.sampled_from(["repeatable", "partition"]), st.none(), bases)
    | st.builds(Exactness, st.just("bounded"), bounds, bases),
    audits=listed(
        Audits,
        st.builds(
            Audit,
            names,
            st.booleans(),
            times,
            st.dictionaries(names, scalars, max_size=2),
            st.none() | st.integers(0, 9),
        ),
    ),
    repairs=listed(
        Repairs, st.builds(Repair, names, st.lists(st.integers(0, 99), max_size=3).map(tuple), names)
    ),
    nodes=listed(Nodes, digests),
    stream=st.just(Stream()) | st.builds(Stream, digests, st.integers(0, 99), bases),
    nonce=st.just(Nonce()) | st.builds(Nonce, st.text(st.characters(codec="utf-8"), max_size=20), bases),
)


@settings(max_examples=100)
@given(receipts)
def test_round_trip(receipt: Receipt) -> None:
    data = sign_receipt(receipt, KEY)
    again, envelope = parse_receipt(data)
    assert again == receipt
    assert envelope.is_signed_by(KEY.public)
    statement = json.loads(envelope.payload)
    assert canonical_json(statement) == envelope.payload


def simple(**changes: Any) -> Receipt:
    parts: dict[str, Any] = {
        "outputs": (OutputDigest("y", Sha256(HEX), "f32", (2, 3)),),
        "link": ChainLink("s"),
        "issued": issued_now(KEY),
    }
    return Receipt(**parts | changes)


def proved(values: Status, **claims: Any) -> ProofClaim:
    return ProofClaim(Sha256(HEX), values, "proved", basis="asserted", **claims)


BROKEN: dict[str, Callable[[], object]] = {
    "no outputs": lambda: simple(outputs=()),
    "output twice": lambda: simple(outputs=simple().outputs * 2),
    "outputs absent": lambda: simple(outputs_basis="absent"),
    "no digest": lambda: Sha256("AB" * 32),
    "short digest": lambda: Sha256("ab"),
    "digest, absent": lambda: DigestClaim(Sha256(HEX)),
    "no digest, checked": lambda: DigestClaim(None, "checked-now"),
    "unknown basis": lambda: DigestClaim(Sha256(HEX), "believed"),  # type: ignore[arg-type]
    "items, absent": lambda: Nodes((Sha256(HEX),)),
    "bound without kind": lambda: Exactness(None, 1.0, "asserted"),
    "bounded without bound": lambda: Exactness("bounded", None, "asserted"),
    "proof without verdict": lambda: ProofClaim(Sha256(HEX), "proved", basis="asserted"),
    "verdict without proof": lambda: ProofClaim(None, "proved", "proved", basis="asserted"),
    "probable without a bound": lambda: proved("probable"),
    "a bound without probable": lambda: proved("proved", error_probability=0.5),
    "certainly wrong": lambda: proved("probable", error_probability=1.0),
    "more than certainly wrong": lambda: proved("probable", error_probability=2.0),
    "never wrong": lambda: proved("probable", error_probability=0.0),
    "no chance": lambda: proved("probable", error_probability=float("nan")),
    "exact with a bound": lambda: proved("proved", numerics="exact", error_bound=0.0),
    "a bound of nothing": lambda: proved("proved", error_bound=1.0),
    "bounded by nothing": lambda: proved("proved", numerics="bounded"),
    "bounded below zero": lambda: proved("proved", numerics="bounded", error_bound=-5.0),
    "bounded by NaN": lambda: proved("proved", numerics="bounded", error_bound=float("nan")),
    "negative bound": lambda: Exactness("bounded", -5.0, "asserted"),
    "infinite bound": lambda: Exactness("bounded", float("inf"), "asserted"),
    "first with previous": lambda: ChainLink("s", 0, Sha256(HEX)),
    "second without": lambda: ChainLink("s", 1),
    "link absent": lambda: ChainLink("s", basis="absent"),
    "no session": lambda: ChainLink(""),
    "time zone": lambda: Issued("2026-01-01T00:00:00+01:00", HEX),
    "time": lambda: Issued("2026-02-30T00:00:00Z", HEX),
    "key id": lambda: Issued("2026-01-01T00:00:00Z", "me"),
    "negative dim": lambda: OutputDigest("y", Sha256(HEX), "f32", (-1,)),
    "huge dim": lambda: OutputDigest("y", Sha256(HEX), "f32", (2**50,)),
    "stream": lambda: Stream(Sha256(HEX), None, "asserted"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_records_are_refused(case: str) -> None:
    with pytest.raises(RecordError):
        BROKEN[case]()


UNSIGNABLE: dict[str, Callable[[], Receipt]] = {
    "another issuer": lambda: simple(issued=Issued("2026-01-01T00:00:00Z", HEX)),
    "not finite": lambda: simple(sampling=Sampling(1, {"t": float("nan")}, None, "asserted")),
    "int for float": lambda: simple(exactness=Exactness("bounded", 1, "asserted")),
    "list for tuple": lambda: simple(outputs=list(simple().outputs)),
    "nested": lambda: simple(sampling=Sampling(1, {"t": {"a": 1}}, None, "asserted")),  # type: ignore[dict-item]
    "surrogate": lambda: simple(nonce=Nonce("\ud800", "checked-now")),
    "surrogate key": lambda: simple(sampling=Sampling(1, {"\ud800": 1}, None, "asserted")),
    "huge": lambda: simple(sampling=Sampling(2**70, {}, None, "asserted")),
    "long": lambda: simple(nonce=Nonce("x" * 5000, "checked-now")),
    "object": lambda: simple(nonce=Nonce(b"x", "checked-now")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", UNSIGNABLE)
def test_what_cannot_be_read_back_is_not_signed(case: str) -> None:
    receipt = UNSIGNABLE[case]()
    with pytest.raises(TensureError):
        sign_receipt(receipt, KEY)


def test_every_claim_has_a_basis_or_is_part_of_one() -> None:
    hints = get_type_hints(Receipt)
    for name, kind in hints.items():
        if name in ("outputs", "outputs_basis"):
            continue
        assert "basis" in {f.name for f in dataclasses.fields(kind)}, name


def altered(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A signed statement that `sign_receipt` would never write."""
    statement = json.loads(parse_receipt(sign_receipt(simple(), KEY))[1].payload)
    change(statement)
    return seal_envelope(canonical_json(statement), KEY)


ALTERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "other type": lambda s: s.update(_type="x"),
    "other predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "version": lambda s: s["predicate"].update(version=2),
    "true version": lambda s: s["predicate"].update(version=True),
    "claim left out": lambda s: s["predicate"].pop("audits"),
    "claim added": lambda s: s["predicate"].update(trust="me"),
    "field left out": lambda s: s["predicate"]["proof"].pop("values"),
    "field added": lambda s: s["predicate"]["proof"].update(x=1),
    "basis": lambda s: s["predicate"]["plan"].update(basis="checked"),
    "basis null": lambda s: s["predicate"]["plan"].update(basis=None),
    "no subject": lambda s: s.update(subject=[]),
    "subject twice": lambda s: s.update(subject=s["subject"] * 2),
    "annotation repeats name": lambda s: s["subject"][0]["annotations"].update(name="z"),
    "annotation left out": lambda s: s["subject"][0]["annotations"].pop("dtype"),
    "two digests": lambda s: s["subject"][0]["digest"].update(sha512="00"),
    "shape": lambda s: s["subject"][0]["annotations"].update(shape=[2.0]),
    "shape true": lambda s: s["subject"][0]["annotations"].update(shape=[True]),
    "layout": lambda s: s["subject"][0]["annotations"].update(layout="column-major"),
    "list": lambda s: s.update(predicate=[]),
    "many": lambda s: s["predicate"]["nodes"].update(items=[{"sha256": HEX}] * 10_001, basis="asserted"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_only_receipts_parse(case: str) -> None:
    assert parse_receipt(altered(lambda s: None))
    with pytest.raises(TensureError):
        parse_receipt(altered(ALTERED[case]))


def test_links_continue() -> None:
    first = sign_receipt(simple(link=next_link("s")), KEY)
    link = next_link("s", first)
    assert (link.number, link.previous) == (1, receipt_digest(first))
    with pytest.raises(RecordError, match="another session"):
        next_link("t", first)


def test_stream_root_is_that_of_its_chunks() -> None:
    claim = stream_claim([b"Hel", b"lo"])
    assert claim.root == Sha256(merkle_root([leaf_digest(b"Hel"), leaf_digest(b"lo")]).hex())
    assert claim != stream_claim([b"Hello"])
    assert claim.chunks == 2


def test_names_are_exported() -> None:
    assert all(hasattr(_claims, name) for name in _claims.__all__)
