"""One signed message: the DSSE envelope, in one spelling.

Knows: the pre-authentication encoding of DSSE 1.0 (what is signed is `DSSEv1`, the type and the payload with
their lengths), and the envelope file: canonical JSON, canonical base64, exactly one signature. Every bit of
the file is either signed or fixed, so each single changed bit is refused.

Does not know: what the payload says, or whom to believe.

Source: DSSE protocol 1.0.0 (secure-systems-lab/dsse).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from tensure.bundle._json import (
    Json,
    canonical_json,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_canonical,
)
from tensure.bundle._keys import PublicKey, SigningKey
from tensure.errors import FormatError

__all__ = ["IN_TOTO_TYPE", "Envelope", "decode_base64", "open_envelope", "pae", "seal_envelope"]

IN_TOTO_TYPE = "application/vnd.in-toto+json"

_KEY_ID = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and the one signature over it; nothing is verified yet."""

    payload: bytes
    payload_type: str
    key_id: str
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return pae(self.payload_type, self.payload)

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether `key` made the signature and the envelope names it."""
        return key.id == self.key_id and key.verify(self.signature, self.signed_bytes)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal_envelope(payload: bytes, key: SigningKey, payload_type: str = IN_TOTO_TYPE) -> bytes:
    """The envelope file's bytes: `payload` signed by `key`."""
    return _spell(payload, payload_type, key.public.id, key.sign(pae(payload_type, payload)))


def open_envelope(data: bytes, *, max_bytes: int, payload_type: str = IN_TOTO_TYPE) -> Envelope:
    """Take an envelope apart without believing it.

    Raises:
        FormatError, LimitError: not exactly what `seal_envelope` could have written.
    """
    root = expect_object(parse_canonical(data, max_bytes=max_bytes), "envelope")
    expect_keys(root, "envelope", ("payload", "payloadType", "signatures"))
    found_type = expect_str(root["payloadType"], "payloadType", max_chars=100)
    if found_type != payload_type:
        raise FormatError(f"payload type {found_type!r}", place="payloadType", wanted=repr(payload_type))
    signatures = expect_list(root["signatures"], "signatures", max_items=1)
    if not signatures:
        raise FormatError("no signature", place="signatures", wanted="exactly one")
    one = expect_object(signatures[0], "signatures[0]")
    expect_keys(one, "signatures[0]", ("keyid", "sig"))
    key_id = expect_str(one["keyid"], "keyid", max_chars=64)
    if not _KEY_ID.match(key_id):
        raise FormatError("the key id is no SHA-256", place="keyid", wanted="64 hex digits")
    return Envelope(
        payload=decode_base64(root["payload"], "payload", max_bytes=max_bytes),
        payload_type=found_type,
        key_id=key_id,
        signature=decode_base64(one["sig"], "sig", max_bytes=256),
    )


def decode_base64(value: Json, place: str, *, max_bytes: int) -> bytes:
    """Standard base64 in its one canonical spelling: padded, no stray bits, no line breaks."""
    text = expect_str(value, place, max_chars=max_bytes * 4 // 3 + 4)
    try:
        data = base64.b64decode(text.encode("ascii", "strict"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FormatError("not base64", place=place) from None
    # Two spellings of the unused last bits decode alike; only the one we would write is taken.
    if base64.b64encode(data).decode("ascii") != text:
        raise FormatError("base64 not in its canonical spelling", place=place)
    return data


def _spell(payload: bytes, payload_type: str, key_id: str, signature: bytes) -> bytes:
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": payload_type,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode("ascii")}],
        }
    )
