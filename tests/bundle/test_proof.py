"""Verdicts that contradict themselves do not exist, and a Proof has one spelling."""

from __future__ import annotations

from typing import Any

import pytest

from tensure.bundle import Proof, Verdict, format_proof, parse_proof
from tensure.errors import FormatError

DIGEST = "sha256:" + "0" * 64
PROOF = Proof(DIGEST, DIGEST, Verdict("proved", "m"), Verdict("unknown", "m", reason="why"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("maybe", "m"),
        ("Proved", "m"),
        (None, "m"),
        ("unknown", "m"),
        ("probable", "m"),
        ("probable", "m", 1.0),
        ("probable", "m", 2.0),
        ("proved", "m", 0.5),
        ("refuted", "m"),
    ],
    ids=str,
)
def test_a_verdict_cannot_contradict_itself(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(FormatError):
        Verdict(*arguments)


@pytest.mark.parametrize("version", [b"true", b"1.0", b"2", b"0", b'"1"', b"null"])
def test_a_proof_has_one_version_in_one_spelling(version: bytes) -> None:
    data = format_proof(PROOF)
    assert parse_proof(data) == PROOF
    other = data.replace(b'"version":1}', b'"version":' + version + b"}")
    assert other != data
    with pytest.raises(FormatError, match="version"):
        parse_proof(other)


@pytest.mark.parametrize(("there", "not_there"), [(b"proved", b"maybe"), (b'"why"', b'""')])
def test_a_broken_verdict_is_named_by_its_place(there: bytes, not_there: bytes) -> None:
    with pytest.raises(FormatError, match=r"^(values|storage): "):
        parse_proof(format_proof(PROOF).replace(there, not_there))
