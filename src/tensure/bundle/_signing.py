"""The signature of a whole folder, in OpenSSF Model Signing form.

Knows: how to have the `model-signing` library sign a folder with a P-256 key, and how to check the result
with our own code: the sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement that lists
the SHA-256 of every file. Only `model.sig` itself is left out. Anyone can check the folder without us:

    model_signing verify key DIR --signature DIR/model.sig --public_key KEY.pub.pem

The file is spelled in exactly one way, and what is spelled is either signed or fixed, so that no bit of it
can change unnoticed.

Does not know: what the files mean, or how to read them.

Source: OpenSSF Model Signing 1.0 (predicate https://model_signing/signature/v1.0); sigstore bundle 0.3.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tensure.bundle._dsse import IN_TOTO_TYPE, decode_base64, pae
from tensure.bundle._json import Json, expect_keys, expect_list, expect_object, expect_str, parse_strict
from tensure.bundle._keys import PublicKey, SigningKey, low_s
from tensure.errors import DamageError, FormatError, TensureError, UnsupportedError, UntrustedError

__all__ = ["SIGNATURE_FILE", "SignedFiles", "sign_folder", "verify_signature"]

SIGNATURE_FILE = "model.sig"
MAX_SIGNATURE_BYTES = 16 << 20

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MAX_FILES = 10_000
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,119}){0,3}\Z")


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """What a valid `model.sig` says: the SHA-256 (hex) of each file by its path, and who signed."""

    digests: Mapping[str, str]
    key: PublicKey


def sign_folder(folder: Path, key: SigningKey) -> bytes:
    """The bytes of `model.sig` for the files now in `folder`.

    Raises:
        UnsupportedError: the key is not P-256 (model-signing has no Ed25519).
    """
    if key.kind != "p256":
        raise UnsupportedError(
            "an Ed25519 key cannot sign a bundle", wanted="a P-256 key", next_step="Make a key with rotate."
        )
    # Only sealing needs the library, and importing it takes longer than everything else we do here.
    from model_signing import hashing, signing

    files = hashing.Config()  # type: ignore[no-untyped-call]
    files.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    with _private_file(key.private_pem()) as key_path, _private_file(b"") as signature_path:
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.set_hashing_config(files)
        config.use_elliptic_key_signer(private_key=key_path).sign(folder, signature_path)
        written = Path(signature_path).read_bytes()
    hint, payload, signature = _take_apart(written)
    return _spell(hint, payload, low_s(signature))


def verify_signature(data: bytes, trusted: Sequence[PublicKey]) -> SignedFiles:
    """What `model.sig` says, if one of the trusted keys signed it.

    Raises:
        DamageError: not exactly what a signer writes, signed by a key that is not trusted, or not valid.
    """
    try:
        hint, payload, signature = _take_apart(data)
        if _spell(hint, payload, signature) != data:
            raise FormatError("the signature file is not in its canonical spelling")
    except TensureError as error:
        raise _damage(error) from None
    key = next((k for k in trusted if k.kind == "p256" and k.signing_hint == hint), None)
    if key is None:
        # model-signing writes its own hint and not the key's id, which nobody can tell without the key.
        raise UntrustedError(
            f"signed by a key that this machine does not trust (model-signing hint {hint[:16]}...)",
            file=SIGNATURE_FILE,
            place="block 0",
            next_step="If you trust whoever sealed it, pass their public key with --key FILE; the hint of a "
            "key is what sha256sum prints for its public PEM file.",
        )
    if not key.verify(signature, pae(IN_TOTO_TYPE, payload)):
        raise DamageError("the signature does not fit what it signs", file=SIGNATURE_FILE, place="block 0")
    try:
        return SignedFiles(_read_statement(payload), key)
    except TensureError as error:
        raise _damage(error) from None


def _damage(error: TensureError) -> DamageError:
    place = f"block 0, {error.place}" if error.place else "block 0"
    return DamageError(error.found, file=SIGNATURE_FILE, place=place, wanted=error.wanted)


def _take_apart(data: bytes) -> tuple[str, bytes, bytes]:
    """The signer's key hint, the signed payload and the signature."""
    root = expect_object(parse_strict(data, max_bytes=MAX_SIGNATURE_BYTES), "sigstore bundle")
    expect_keys(root, "sigstore bundle", ("mediaType", "verificationMaterial", "dsseEnvelope"))
    _expect_equal(root["mediaType"], _MEDIA_TYPE, "mediaType")
    material = expect_object(root["verificationMaterial"], "verificationMaterial")
    expect_keys(material, "verificationMaterial", ("publicKey", "tlogEntries"))
    expect_list(material["tlogEntries"], "tlogEntries", max_items=0)
    public = expect_object(material["publicKey"], "publicKey")
    expect_keys(public, "publicKey", ("hint",))
    hint = _expect_hex(public["hint"], "publicKey.hint")
    envelope = expect_object(root["dsseEnvelope"], "dsseEnvelope")
    expect_keys(envelope, "dsseEnvelope", ("payload", "payloadType", "signatures"))
    _expect_equal(envelope["payloadType"], IN_TOTO_TYPE, "payloadType")
    signatures = expect_list(envelope["signatures"], "signatures", max_items=1)
    if not signatures:
        raise FormatError("no signature", place="signatures", wanted="exactly one")
    one = expect_object(signatures[0], "signatures[0]")
    expect_keys(one, "signatures[0]", ("sig", "keyid"))
    _expect_equal(one["keyid"], "", "keyid")
    payload = decode_base64(envelope["payload"], "payload", max_bytes=MAX_SIGNATURE_BYTES)
    return hint, payload, decode_base64(one["sig"], "sig", max_bytes=256)


def _spell(hint: str, payload: bytes, signature: bytes) -> bytes:
    """The one spelling we write and accept: the library's own, key order included."""
    value = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": IN_TOTO_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _read_statement(payload: bytes) -> dict[str, str]:
    """The digest of each signed file; a trusted signer may still have signed nonsense."""
    statement = expect_object(parse_strict(payload, max_bytes=MAX_SIGNATURE_BYTES), "statement")
    expect_keys(statement, "statement", ("_type", "subject", "predicateType", "predicate"))
    _expect_equal(statement["_type"], _STATEMENT_TYPE, "_type")
    _expect_equal(statement["predicateType"], _PREDICATE_TYPE, "predicateType")
    predicate = expect_object(statement["predicate"], "predicate")
    expect_keys(predicate, "predicate", ("resources", "serialization"))
    _check_serialization(predicate["serialization"])
    digests: dict[str, str] = {}
    together = hashlib.sha256()
    for index, item in enumerate(expect_list(predicate["resources"], "resources", max_items=_MAX_FILES)):
        place = f"resources[{index}]"
        resource = expect_object(item, place)
        expect_keys(resource, place, ("name", "algorithm", "digest"))
        _expect_equal(resource["algorithm"], "sha256", place)
        path = expect_str(resource["name"], place, max_chars=500)
        if not _PATH.match(path) or path in digests:
            raise FormatError(f"the path {path[:120]!r} is not plain, or appears twice", place=place)
        digests[path] = _expect_hex(resource["digest"], place)
        together.update(bytes.fromhex(digests[path]))
    subjects = expect_list(statement["subject"], "subject", max_items=1)
    subject = expect_object(subjects[0] if subjects else None, "subject[0]")
    expect_keys(subject, "subject[0]", ("name", "digest"))
    expect_str(subject["name"], "subject[0].name")
    digest = expect_object(subject["digest"], "subject[0].digest")
    expect_keys(digest, "subject[0].digest", ("sha256",))
    _expect_equal(digest["sha256"], together.hexdigest(), "subject[0].digest")
    return digests


def _check_serialization(value: Json) -> None:
    found = expect_object(value, "serialization")
    wanted: dict[str, Json] = {
        "allow_symlinks": False,
        "hash_type": "sha256",
        "ignore_paths": [SIGNATURE_FILE],
        "method": "files",
    }
    expect_keys(found, "serialization", wanted)
    for name, right in wanted.items():
        _expect_equal(found[name], right, f"serialization.{name}")


def _expect_equal(value: Json, wanted: Json, place: str) -> None:
    if type(value) is not type(wanted) or value != wanted:
        raise FormatError(f"found {str(value)[:80]!r}", place=place, wanted=repr(wanted))


def _expect_hex(value: Json, place: str) -> str:
    text = expect_str(value, place, max_chars=64)
    if not _HEX.match(text):
        raise FormatError("found no SHA-256", place=place, wanted="64 hex digits")
    return text


@contextmanager
def _private_file(data: bytes) -> Iterator[str]:
    """A path to a file only this process sees: the library takes paths where we hold bytes.

    On Linux the file is in memory, so that the key is never on disk twice.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("tensure", os.MFD_CLOEXEC)
        try:
            os.write(fd, data)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.TemporaryDirectory(prefix="tensure-") as folder:
            path = Path(folder) / "file"
            path.touch(mode=0o600)
            path.write_bytes(data)
            yield str(path)
