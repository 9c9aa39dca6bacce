"""The parts of a receipt, and how each is written as JSON and read back.

Knows: one small record for each thing a receipt speaks of. Each is a *claim*: it carries its `basis`, and a
claim without content says `absent` rather than being left out. Reading is driven by the records' own field
types, refuses unknown and missing fields, and gives back exactly what was written.

Does not know: envelopes, signatures, or whether a claim is true.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar, Union, cast

from tensure.bundle._json import (
    MAX_INT,
    Json,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)
from tensure.bundle._proof import Status
from tensure.errors import FormatError, LimitError, RecordError

__all__ = [
    "Audit",
    "Audits",
    "Basis",
    "DigestClaim",
    "Exactness",
    "InputDigest",
    "Inputs",
    "Issued",
    "Kernels",
    "ChainLink",
    "Nodes",
    "Nonce",
    "OutputDigest",
    "OutputsBasis",
    "ProofClaim",
    "Protection",
    "Repair",
    "Repairs",
    "Sampling",
    "Scalar",
    "Sha256",
    "Stream",
    "WeightsClaim",
    "decode",
    "encode",
]

Basis = Literal["checked-now", "checked-at-load", "asserted", "absent"]
Scalar: TypeAlias = str | int | float | bool | None

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z\Z")
_MAX_ITEMS = 10_000
_MAX_TEXT = 4096
_MAX_RANK = 32
_MAX_DIM = 1 << 48
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sha256:
    """A SHA-256 digest in hex; written {"sha256": hex} as in-toto writes digests."""

    sha256: str

    def __post_init__(self) -> None:
        if not _HEX.match(str(self.sha256)):
            raise RecordError(f"{str(self.sha256)[:80]!r} is no SHA-256", wanted="64 hex digits")

    @classmethod
    def of(cls, text: str | Sha256) -> Sha256:
        """Take `sha256:<hex>` as other records write it."""
        return text if isinstance(text, Sha256) else cls(text.removeprefix("sha256:"))

    def __str__(self) -> str:
        return f"sha256:{self.sha256}"


@dataclass(frozen=True, slots=True)
class OutputDigest:
    """One output tensor; `digest` is `tensure.program.tensor_digest`, which covers dtype and shape too."""

    name: str
    digest: Sha256
    dtype: str
    shape: tuple[int, ...]
    layout: Literal["row-major"] = "row-major"
    endianness: Literal["little"] = "little"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 500 or not self.dtype or len(self.dtype) > 20:
            raise RecordError(f"output {self.name[:80]!r} has no name or dtype, or too long a one")
        if len(self.shape) > _MAX_RANK or any(not 0 <= dim < _MAX_DIM for dim in self.shape):
            raise RecordError(f"shape {self.shape} is out of range", place=self.name)


@dataclass(frozen=True, slots=True)
class OutputsBasis:
    """How the digests of the outputs came about; they cannot be absent."""

    basis: Basis = "checked-now"

    def __post_init__(self) -> None:
        _check_basis(self.basis, True, "outputs")


@dataclass(frozen=True, slots=True)
class DigestClaim:
    """That this program or plan ran."""

    digest: Sha256 | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_basis(self.basis, self.digest is not None, "digest")


@dataclass(frozen=True, slots=True)
class ProofClaim:
    """What a proof says of the plan: two verdicts, never merged.

    `error_probability` stands exactly when a verdict is `probable`, `error_bound` exactly when the numerics
    are `bounded`.
    """

    digest: Sha256 | None = None
    values: Status | None = None
    storage: Status | None = None
    method: str | None = None
    numerics: Literal["exact", "bounded"] | None = None
    error_bound: float | None = None
    error_probability: float | None = None
    shapes: tuple[str, ...] = ()
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        said = (self.digest, self.values, self.storage, self.method, self.numerics, self.error_bound)
        some = any(x is not None for x in (*said, self.error_probability)) or bool(self.shapes)
        _check_basis(self.basis, some, "proof")
        if (self.digest is None) != (self.values is None or self.storage is None):
            raise RecordError("a proof has a digest and both verdicts, or none of them", place="proof")
        if ("probable" in (self.values, self.storage)) != (self.error_probability is not None):
            raise RecordError(
                "an error probability goes with `probable` and with nothing else", place="proof"
            )
        # `not a < b` also refuses NaN.
        if self.error_probability is not None and not 0 < self.error_probability < 1:
            raise RecordError(
                f"error probability {self.error_probability}", place="proof", wanted="above 0 and below 1"
            )
        if (self.numerics == "bounded") != (self.error_bound is not None):
            raise RecordError("an error bound goes with `bounded` and with nothing else", place="proof")
        _check_bound(self.error_bound, "proof")


@dataclass(frozen=True, slots=True)
class WeightsClaim:
    """Which weights ran: the Merkle root of the block table, and the key that sealed them."""

    root: Sha256 | None = None
    encodings: tuple[str, ...] = ()
    key_id: str | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        some = self.root is not None or bool(self.encodings) or self.key_id is not None
        _check_basis(self.basis, some, "weights")
        if self.key_id is not None:
            Sha256(self.key_id)


@dataclass(frozen=True, slots=True)
class Protection:
    """The error-correcting code the weights were kept under while they ran."""

    scheme: str | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_basis(self.basis, self.scheme is not None, "protection")


@dataclass(frozen=True, slots=True)
class InputDigest:
    """One input: its digest, or a salted commitment to it where the input is private."""

    name: str
    digest: Sha256
    salted: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """What went in."""

    items: tuple[InputDigest, ...] = ()
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_items(self.basis, self.items, "inputs")
        if len({item.name for item in self.items}) != len(self.items):
            raise RecordError("an input appears twice", place="inputs")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens were chosen; `tokens` is how many."""

    seed: int | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tokens: int | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        some = self.seed is not None or bool(self.params) or self.tokens is not None
        _check_basis(self.basis, some, "sampling")


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which machine code ran."""

    build: str | None = None
    isa: str | None = None
    torch: str | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        some = any(x is not None for x in (self.build, self.isa, self.torch))
        _check_basis(self.basis, some, "kernels")


@dataclass(frozen=True, slots=True)
class Exactness:
    """`repeatable`: same machine, same bits. `partition`: same bits however it is split. Else a bound."""

    kind: Literal["repeatable", "partition", "bounded"] | None = None
    bound: float | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_basis(self.basis, self.kind is not None, "exactness")
        if (self.kind == "bounded") != (self.bound is not None):
            raise RecordError("a bound goes with `bounded` and with nothing else", place="exactness")
        _check_bound(self.bound, "exactness")


@dataclass(frozen=True, slots=True)
class Audit:
    """One audit: whether it passed, when, and how many tokens ago."""

    name: str
    passed: bool
    time: str
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tokens_since: int | None = None

    def __post_init__(self) -> None:
        _check_time(self.time, "audit")


@dataclass(frozen=True, slots=True)
class Audits:
    """Which audits stand behind the output."""

    items: tuple[Audit, ...] = ()
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_items(self.basis, self.items, "audits")


@dataclass(frozen=True, slots=True)
class Repair:
    """Blocks of one file or tensor that were found damaged and put right."""

    what: str
    blocks: tuple[int, ...]
    method: str


@dataclass(frozen=True, slots=True)
class Repairs:
    """What was repaired; no items and a basis other than `absent` says: watched, and nothing needed it."""

    items: tuple[Repair, ...] = ()
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_items(self.basis, self.items, "repairs")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Digests of the receipts of the machines that took part."""

    items: tuple[Sha256, ...] = ()
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_items(self.basis, self.items, "nodes")


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed output: the Merkle root over its chunks in order, signed once at the end."""

    root: Sha256 | None = None
    chunks: int | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_basis(self.basis, self.root is not None, "stream")
        if (self.root is None) != (self.chunks is None):
            raise RecordError("a root and a number of chunks go together", place="stream")


@dataclass(frozen=True, slots=True)
class ChainLink:
    """The place in the session's chain: `previous` is the digest of the statement numbered one less."""

    session: str
    number: int = 0
    previous: Sha256 | None = None
    basis: Basis = "asserted"

    def __post_init__(self) -> None:
        _check_basis(self.basis, True, "link")
        if not 0 < len(self.session) <= 200:
            raise RecordError("the session has no name, or too long a one", place="link")
        if self.number < 0 or (self.number == 0) != (self.previous is None):
            raise RecordError("the first receipt has number 0 and no previous one", place="link")


@dataclass(frozen=True, slots=True)
class Nonce:
    """What the client asked to have in the receipt, so that an old one cannot be played back."""

    value: str | None = None
    basis: Basis = "absent"

    def __post_init__(self) -> None:
        _check_basis(self.basis, self.value is not None, "nonce")


@dataclass(frozen=True, slots=True)
class Issued:
    """Who signed (key id) and when (UTC, by the issuer's own clock)."""

    time: str
    key_id: str
    basis: Basis = "asserted"

    def __post_init__(self) -> None:
        _check_basis(self.basis, True, "issued")
        _check_time(self.time, "issued")
        Sha256(self.key_id)


def _check_basis(basis: Basis, some: bool, place: str) -> None:
    if basis not in typing.get_args(Basis):
        raise RecordError(f"basis {basis!r}", place=place, wanted=", ".join(typing.get_args(Basis)))
    if (basis == "absent") == some:
        found = (
            "a claim marked absent has content" if some else f"nothing is claimed, yet its basis is {basis}"
        )
        raise RecordError(found, place=place)


def _check_items(basis: Basis, items: tuple[object, ...], place: str) -> None:
    """A list may be empty on any basis (looked, and found none); an absent one must be."""
    _check_basis(basis, bool(items) or basis != "absent", place)


def _check_bound(bound: float | None, place: str) -> None:
    if bound is not None and not (bound >= 0 and math.isfinite(bound)):
        raise RecordError(f"an error of at most {bound}", place=place, wanted="a finite bound of at least 0")


def _check_time(text: str, place: str) -> None:
    try:
        if _TIME.match(text):
            datetime.fromisoformat(text)
            return
    except ValueError:
        pass
    raise RecordError(f"{text[:40]!r} is no time", place=place, wanted="2026-01-31T12:00:00Z (UTC)")


# --- JSON ---------------------------------------------------------------------------------------------------


def encode(value: object) -> Json:
    """A record as plain JSON values, field by field."""
    if value is None or isinstance(value, (str, int, float)):  # bool is an int; the commonest come first
        return value
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _field_names(type(value))}
    raise RecordError(f"a {type(value).__name__} cannot stand in a receipt")


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def decode(kind: type[_T], value: Json, place: str) -> _T:
    """Read a record of the given type back.

    Raises:
        FormatError, LimitError, RecordError: another form than `encode` gives, or a broken invariant.
    """
    found: _T = _reader(cast(Any, kind))(value, place)
    return found


_Reader: TypeAlias = Callable[[Json, str], Any]


@cache
def _reader(kind: Any) -> _Reader:
    """The function that reads one field type; built once for each, since signing has a millisecond in all."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record_reader(kind)
    if origin is tuple:
        return _list_reader(_reader(args[0]))
    if origin is Literal:
        return _choice_reader(args)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        read = _reader(inner)
        return lambda value, place: None if value is None else read(value, place)
    return _READERS[origin or kind]


def _record_reader(kind: Any) -> _Reader:
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(kind).items()}

    def read(value: Json, place: str) -> Any:
        found = expect_object(value, place)
        if found.keys() != readers.keys():
            expect_keys(found, place, readers)
        return kind(**{name: inner(found[name], f"{place}.{name}") for name, inner in readers.items()})

    return read


def _list_reader(inner: _Reader) -> _Reader:
    def read(value: Json, place: str) -> tuple[Any, ...]:
        items = expect_list(value, place, max_items=_MAX_ITEMS)
        return tuple(inner(item, f"{place}[{i}]") for i, item in enumerate(items))

    return read


def _choice_reader(choices: tuple[Any, ...]) -> _Reader:
    def read(value: Json, place: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise FormatError(f"found {str(value)[:40]!r}", place=place, wanted=" or ".join(choices))
        return value

    return read


def _read_text(value: Json, place: str) -> str:
    return expect_str(value, place, max_chars=_MAX_TEXT)


def _read_int(value: Json, place: str) -> int:
    return expect_int(value, place, least=-MAX_INT)


def _read_bool(value: Json, place: str) -> bool:
    if not isinstance(value, bool):
        raise FormatError(f"found {str(value)[:40]!r}", place=place, wanted="true or false")
    return value


def _read_float(value: Json, place: str) -> float:
    # 1 and 1.0 are two spellings of one number; a field takes the one that its type writes.
    if not isinstance(value, float):
        raise FormatError(f"found {str(value)[:40]!r}", place=place, wanted="a number with a decimal point")
    return value


def _read_scalars(value: Json, place: str) -> dict[str, Scalar]:
    found = expect_object(value, place)
    if len(found) > _MAX_ITEMS:
        raise LimitError(f"{len(found)} entries", place=place, wanted=f"at most {_MAX_ITEMS}")
    return {expect_str(key, place): _read_scalar(item, place) for key, item in found.items()}


def _read_scalar(value: Json, place: str) -> Scalar:
    if isinstance(value, str):
        return expect_str(value, place, max_chars=_MAX_TEXT)
    if isinstance(value, list | dict):
        raise FormatError("found a nested value", place=place, wanted="a text, number, true, false or null")
    return value


_READERS: dict[Any, _Reader] = {
    str: _read_text,
    int: _read_int,
    bool: _read_bool,
    float: _read_float,
    Mapping: _read_scalars,
}
