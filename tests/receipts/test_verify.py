"""Receipts: three verifiers agree, no bit can change, and none verifies for another run."""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from tensure.bundle import _dsse
from tensure.bundle._claims import (
    ChainLink,
    DigestClaim,
    InputDigest,
    Inputs,
    Nonce,
    OutputDigest,
    Sha256,
    WeightsClaim,
)
from tensure.bundle._dsse import seal_envelope
from tensure.bundle._keys import KeyKind, PublicKey, SigningKey
from tensure.bundle._receipt import Receipt, issued_now, next_link, parse_receipt, sign_receipt
from tensure.errors import DamageError, FormatError, InputError, RecordError, TensureError
from tensure.receipts import (
    Expected,
    export_for_openssl,
    read_receipt,
    summarize,
    verify_chain,
    verify_receipt,
)

KEYS = {"p256": SigningKey.generate("p256"), "ed25519": SigningKey.generate("ed25519")}
KINDS: list[KeyKind] = ["p256", "ed25519"]


def digest(n: int) -> Sha256:
    return Sha256(f"{n:064x}")


def receipt(key: SigningKey, **changes: Any) -> Receipt:
    parts: dict[str, Any] = {
        "outputs": (OutputDigest("logits", digest(1), "f32", (1, 1000)),),
        "program": DigestClaim(digest(2), "checked-at-load"),
        "plan": DigestClaim(digest(3), "checked-at-load"),
        "weights": WeightsClaim(digest(4), ("q4_1",), "ab" * 32, "checked-at-load"),
        "inputs": Inputs((InputDigest("tokens", digest(5)),), "checked-now"),
        "nonce": Nonce("n-1", "checked-now"),
        "link": ChainLink("session"),
        "issued": issued_now(key),
    }
    return Receipt(**parts | changes)


EXPECTED = Expected(
    outputs={"logits": str(digest(1))},
    inputs={"tokens": str(digest(5))},
    program=str(digest(2)),
    plan=str(digest(3)),
    weights=str(digest(4)),
    nonce="n-1",
)


def by_ours(data: bytes, key: PublicKey) -> bool:
    try:
        verify_receipt(data, keys=[key])
    except (DamageError, FormatError):
        return False
    return True


def by_securesystemslib(data: bytes, key: PublicKey) -> bool:
    """Independent of us: their JSON, their base64, their PAE, their use of the key."""
    try:
        envelope = Envelope.from_dict(json.loads(data))
        envelope.verify([_sslib_key(key)], 1)
    except (VerificationError, ValueError, KeyError, TypeError):
        return False
    return True


_SSLIB: dict[str, SSlibKey] = {}


def _sslib_key(key: PublicKey) -> SSlibKey:
    if key.id not in _SSLIB:
        _SSLIB[key.id] = SSlibKey.from_crypto(key._key, keyid=key.id)
    return _SSLIB[key.id]


def by_openssl(pae: bytes, signature: bytes, command: str, folder: Path) -> bool:
    (folder / "pae.bin").write_bytes(pae)
    (folder / "sig.der").write_bytes(signature)
    return subprocess.run(shlex.split(command), capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_three_verifiers_accept(kind: KeyKind, tmp_path: Path) -> None:
    key = KEYS[kind]
    data = sign_receipt(receipt(key), key)
    assert verify_receipt(data, keys=[key.public], expected=EXPECTED) == parse_receipt(data)[0]
    assert by_securesystemslib(data, key.public)
    done = subprocess.run(
        shlex.split(export_for_openssl(data, key.public, tmp_path)), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for verifier in (by_ours, by_securesystemslib):
        assert not verifier(data, SigningKey.generate(kind).public)


def test_the_statement_is_in_toto() -> None:
    statement = json.loads(parse_receipt(sign_receipt(receipt(KEYS["p256"]), KEYS["p256"]))[1].payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"][0]["digest"] == {"sha256": digest(1).sha256}
    assert statement["subject"][0]["annotations"] == {
        "dtype": "f32",
        "shape": [1, 1000],
        "layout": "row-major",
        "endianness": "little",
    }
    claims = statement["predicate"]
    for name in ("proof", "protection", "audits", "repairs", "nodes", "stream", "sampling"):
        assert claims[name]["basis"] == "absent", name
    assert all("basis" in claim for name, claim in claims.items() if name != "version")


# --- single bits --------------------------------------------------------------------------------------------


def surviving_bits(data: bytes, accepts: Callable[[bytes], bool], places: Iterable[int] | None = None) -> int:
    changed = bytearray(data)
    found = 0
    for place in range(len(data) * 8) if places is None else places:
        changed[place // 8] ^= 1 << place % 8
        found += accepts(bytes(changed))
        changed[place // 8] ^= 1 << place % 8
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_the_file_can_change(kind: KeyKind) -> None:
    """100 % of single-bit changes, and each is damage (exit 1), never "no receipt" (exit 2)."""
    key = KEYS[kind]
    data = sign_receipt(receipt(key), key)

    def accepts(changed: bytes) -> bool:
        try:
            verify_receipt(changed, keys=[key.public])
        except DamageError:
            return False
        return True

    assert accepts(data)
    # The payload's spelling does not depend on the kind of key: once in full, once by samples.
    step, end = (1, 0) if kind == "p256" else (11, data.index(b'"payloadType"') * 8)
    assert surviving_bits(data, accepts, [*range(0, end, step), *range(end, len(data) * 8)]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_payload_and_signature_passes_any_verifier(kind: KeyKind, tmp_path: Path) -> None:
    """Of P-256 every bit; of Ed25519 every bit of the signature and every seventh of the payload."""
    key = KEYS[kind]
    data = sign_receipt(receipt(key), key)
    _, envelope = parse_receipt(data)

    def either(payload: bytes, signature: bytes) -> bool:
        changed = dataclasses.replace(envelope, payload=payload, signature=signature)
        return changed.is_signed_by(key.public) or by_securesystemslib(
            _dsse._spell(payload, envelope.payload_type, envelope.key_id, signature), key.public
        )

    payload, signature, pae = envelope.payload, envelope.signature, envelope.signed_bytes
    assert either(payload, signature)
    places = range(0, len(payload) * 8, 1 if kind == "p256" else 7)
    assert surviving_bits(payload, lambda changed: either(changed, signature), places) == 0
    assert surviving_bits(signature, lambda changed: either(payload, changed)) == 0

    command = export_for_openssl(data, key.public, tmp_path)
    assert by_openssl(pae, signature, command, tmp_path)
    # Each run of OpenSSL takes milliseconds: every 499th bit of what is signed, every 29th of the signature.
    places = range(0, len(pae) * 8, 499)
    assert surviving_bits(pae, lambda changed: by_openssl(changed, signature, command, tmp_path), places) == 0
    places = range(0, len(signature) * 8, 29)
    assert surviving_bits(signature, lambda changed: by_openssl(pae, changed, command, tmp_path), places) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_payload_and_signature_passes_openssl(kind: KeyKind, tmp_path: Path) -> None:
    """Every bit of the signed bytes and of the signature, a process each: minutes."""
    key = KEYS[kind]
    data = sign_receipt(receipt(key), key)
    _, envelope = parse_receipt(data)
    signature, pae = envelope.signature, envelope.signed_bytes
    command = export_for_openssl(data, key.public, tmp_path)
    assert by_openssl(pae, signature, command, tmp_path)
    assert surviving_bits(pae, lambda changed: by_openssl(changed, signature, command, tmp_path)) == 0
    assert surviving_bits(signature, lambda changed: by_openssl(pae, changed, command, tmp_path)) == 0


def test_a_lenient_verifier_lets_bits_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: base64 as Python reads it by default, and any spelling of JSON."""
    monkeypatch.setattr(
        _dsse, "decode_base64", lambda value, place, max_bytes: base64.b64decode(value + "===")
    )
    monkeypatch.setattr(_dsse, "parse_canonical", lambda data, max_bytes: json.loads(data))
    monkeypatch.setattr(_dsse, "expect_keys", lambda value, place, keys: None)
    key = KEYS["p256"]
    data = sign_receipt(receipt(key), key)

    def accepts(changed: bytes) -> bool:
        try:
            verify_receipt(changed, keys=[key.public])
        except (TensureError, ValueError, KeyError):
            return False
        return True

    assert surviving_bits(data, accepts, range(data.index(b'"signatures"') * 8, len(data) * 8)) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d + b"\n",
        lambda d: d[:-1],
        lambda d: b" " + d,
        lambda d: d.replace(b'":', b'": ', 1),
        lambda d: d[: len(d) // 2],
        lambda d: d.replace(b'"payloadType"', b'"payload":"","payloadType"'),
        lambda d: d.replace(b'"signatures":[', b'"signatures":[{"keyid":"","sig":""},'),
        lambda d: json.dumps(json.loads(d), indent=1).encode(),
        lambda d: d.replace(b"in-toto+json", b"text"),
        lambda d: b"[" * 100_000 + d,
    ],
)
def test_other_spellings_are_damage(change: Callable[[bytes], bytes]) -> None:
    key = KEYS["p256"]
    with pytest.raises(DamageError) as caught:
        verify_receipt(change(sign_receipt(receipt(key), key)), keys=[key.public], file="r.json")
    assert caught.value.exit_code == 1
    assert caught.value.file == "r.json"


@pytest.mark.parametrize("data", [b"", b"{}", b"hello", b"\0" * 100, b'{"payload":1}', b"[" * 100_000])
def test_no_receipt_is_bad_input(data: bytes) -> None:
    with pytest.raises(FormatError, match="this is no receipt") as caught:
        verify_receipt(data, keys=[KEYS["p256"].public])
    assert caught.value.exit_code == 2


# --- whom and what ------------------------------------------------------------------------------------------


def test_a_key_inside_the_file_is_never_believed() -> None:
    mallory = SigningKey.generate()
    forged = sign_receipt(receipt(mallory), mallory)
    assert by_ours(forged, mallory.public)
    with pytest.raises(DamageError, match=r"does not trust.*--key"):
        verify_receipt(forged, keys=[KEYS["p256"].public])
    with pytest.raises(DamageError, match="does not trust"):
        verify_receipt(forged, keys=[])


def test_claiming_another_issuer_is_refused() -> None:
    honest, mallory = KEYS["p256"], SigningKey.generate()
    _, envelope = parse_receipt(sign_receipt(receipt(honest), honest))
    stolen = seal_envelope(envelope.payload, mallory)  # the honest statement under Mallory's signature
    with pytest.raises(DamageError, match="names another key"):
        verify_receipt(stolen, keys=[mallory.public, honest.public])
    renamed = stolen.replace(mallory.public.id.encode(), honest.public.id.encode())
    with pytest.raises(DamageError, match="does not fit"):
        verify_receipt(renamed, keys=[mallory.public, honest.public])


WRONG: dict[str, Expected] = {
    "output": Expected(outputs={"logits": str(digest(9))}),
    "output name": Expected(outputs={"probabilities": str(digest(1))}),
    "fewer outputs": Expected(outputs={}),
    "more outputs": Expected(outputs={"logits": str(digest(1)), "more": str(digest(1))}),
    "input": Expected(inputs={"tokens": str(digest(9))}),
    "no inputs": Expected(inputs={}),
    "program": Expected(program=str(digest(9))),
    "plan": Expected(plan=str(digest(9))),
    "weights": Expected(weights=str(digest(9))),
    "nonce": Expected(nonce="n-2"),
    "empty nonce": Expected(nonce=""),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_never_for_another_run(wrong: str) -> None:
    key = KEYS["p256"]
    data = sign_receipt(receipt(key), key)
    with pytest.raises(DamageError) as caught:
        verify_receipt(data, keys=[key.public], expected=WRONG[wrong])
    assert caught.value.place is not None
    assert caught.value.wanted is not None


def test_a_malformed_expectation_is_the_callers_slip() -> None:
    for slip in ({"program": ""}, {"outputs": {"y": "sha256:12"}}, {"inputs": {"x": "AB" * 32}}):
        with pytest.raises(RecordError, match="expected"):
            Expected(**slip)  # type: ignore[arg-type]


def test_absent_claims_never_meet_an_expectation() -> None:
    key = KEYS["p256"]
    bare = {"program": DigestClaim(), "plan": DigestClaim(), "weights": WeightsClaim(), "nonce": Nonce()}
    data = sign_receipt(receipt(key, inputs=Inputs(), **bare), key)
    verify_receipt(data, keys=[key.public])
    for name in ("program", "plan", "weights", "nonce", "inputs"):
        expected = Expected(**{name: getattr(EXPECTED, name)})
        with pytest.raises(DamageError):
            verify_receipt(data, keys=[key.public], expected=expected)


def test_a_salted_commitment_is_no_digest() -> None:
    key = KEYS["p256"]
    salted = Inputs((InputDigest("tokens", digest(5), salted=True),), "checked-now")
    data = sign_receipt(receipt(key, inputs=salted), key)
    with pytest.raises(DamageError, match="only commits"):
        verify_receipt(data, keys=[key.public], expected=Expected(inputs=EXPECTED.inputs))


# --- chains -------------------------------------------------------------------------------------------------


def chain(key: SigningKey, length: int, session: str = "session") -> list[bytes]:
    files: list[bytes] = []
    for _ in range(length):
        link = next_link(session, files[-1] if files else None)
        files.append(sign_receipt(receipt(key, link=link), key))
    return files


def test_a_chain_verifies() -> None:
    key = KEYS["p256"]
    files = chain(key, 5)
    assert [r.link.number for r in verify_chain(files, keys=[key.public])] == [0, 1, 2, 3, 4]
    assert len(verify_chain(files[2:], keys=[key.public], from_start=False)) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c, other: c[1:],
        lambda c, other: [c[0], c[2]],
        lambda c, other: [c[0], c[2], c[1]],
        lambda c, other: [c[0], c[0]],
        lambda c, other: [c[0], other[1], c[2]],
        lambda c, other: [other[0], c[1]],
        lambda c, other: [c[0], c[1].replace(b"a", b"b", 1)],
    ],
    ids=["no start", "gap", "order", "twice", "slipped in", "other start", "damaged"],
)
def test_a_broken_chain_is_damage(spoil: Callable[[list[bytes], list[bytes]], list[bytes]]) -> None:
    key = KEYS["p256"]
    with pytest.raises(DamageError):
        verify_chain(spoil(chain(key, 3), chain(key, 3)), keys=[key.public])
    with pytest.raises(DamageError):
        verify_chain(spoil(chain(key, 3), chain(key, 3, "other")), keys=[key.public])
    with pytest.raises(InputError):
        verify_chain([], keys=[key.public])


# --- files and people ---------------------------------------------------------------------------------------


def test_read_receipt(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"x")
    assert read_receipt(tmp_path / "r") == b"x"
    (tmp_path / "big").write_bytes(bytes(5 << 20))
    for path, error in (("none", InputError), (".", InputError), ("big", FormatError)):
        with pytest.raises(error):
            read_receipt(tmp_path / path)


def test_a_path_with_a_nul_is_bad_input() -> None:
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read_receipt("a\0b")


def test_export_needs_a_folder(tmp_path: Path) -> None:
    key = KEYS["p256"]
    with pytest.raises(InputError, match="not a folder"):
        export_for_openssl(sign_receipt(receipt(key), key), key.public, tmp_path / "none")


def test_summary_names_every_claim() -> None:
    rows = summarize(receipt(KEYS["p256"]))
    names = {name.split()[0] for name, _, _ in rows}
    for field in dataclasses.fields(Receipt):
        if field.name != "outputs_basis":
            assert field.name.rstrip("s") in {name.rstrip("s") for name in names}, field.name
    bases = [basis for _, _, basis in rows]
    assert bases.index("absent") == len(bases) - bases.count("absent")


def test_verifying_needs_no_torch(tmp_path: Path) -> None:
    key = KEYS["p256"]
    (tmp_path / "r").write_bytes(sign_receipt(receipt(key), key))
    (tmp_path / "k.pem").write_bytes(key.public.pem)
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['model_signing'] = None\n"
        "from tensure.bundle._keys import read_public_key\n"
        "from tensure.receipts import read_receipt, verify_receipt\n"
        "verify_receipt(read_receipt(sys.argv[1]), keys=[read_public_key(sys.argv[2])])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r"), str(tmp_path / "k.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_summary_holds_whole_digests() -> None:
    record = receipt(KEYS["p256"])
    short, full = (dict(row[:2] for row in summarize(record, full=full)) for full in (False, True))
    assert full["program"] == str(record.program.digest) and full["program"] != short["program"]
    assert record.issued.key_id in full["issued"] and record.issued.key_id not in short["issued"]


def test_export_replaces_only_when_asked(tmp_path: Path) -> None:
    key = KEYS["p256"]
    data = sign_receipt(receipt(key), key)
    export_for_openssl(data, key.public, tmp_path)
    with pytest.raises(InputError, match="exists already"):
        export_for_openssl(data, key.public, tmp_path)
    export_for_openssl(data, key.public, tmp_path, replace=True)
