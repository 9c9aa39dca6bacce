"""Signing keys: where they live, who may read them, which ones this machine trusts.

The key file is `$TENSURE_KEY`, else `$XDG_CONFIG_HOME/tensure/keys/signing-key.pem`, else
`~/.config/tensure/keys/signing-key.pem`. It is made on first use: P-256, unencrypted PKCS #8 PEM, mode 0600,
and it is refused when anyone else may read it, when somebody else owns it, or when it is a link. Beside it
lie `signing-key.pub.pem` (the public half, for OpenSSL and model-signing) and `trusted/`, a folder of public
keys that this machine believes: those you copy there, and its own former ones. It is refused when anyone
but you and root may write the folder or a file in it. `rotate` makes a new key and
moves the old public half into `trusted/` with the date, so that what it signed still verifies. To stop
believing a key, delete its file. docs/keys.md says this for users.

A key's id is the SHA-256 of its DER SubjectPublicKeyInfo.

Knows: P-256 (ECDSA with SHA-256, low-S form only) and Ed25519 (receipts only: model-signing has no Ed25519).
Does not know: what is signed. A signature proves who said it, not that it is true.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tensure.bundle._atomic import write_file_atomic
from tensure.errors import FormatError, InputError, UnsupportedError

__all__ = [
    "KeyKind",
    "PublicKey",
    "SigningKey",
    "default_key_path",
    "load_signing_key",
    "load_trusted_keys",
    "read_public_key",
    "rotate",
    "trust",
]

KeyKind = Literal["p256", "ed25519"]

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_MAX_PEM_BYTES = 8192
_MAX_TRUSTED = 1000
_PUBLIC_PEM = re.compile(
    rb"(?P<notes>(?:[A-Z][A-Za-z-]*: [ -~]*\n)*)"
    rb"(?P<pem>-----BEGIN PUBLIC KEY-----\r?\n[A-Za-z0-9+/=\r\n]+-----END PUBLIC KEY-----\s*)\Z"
)
_MAKE_ANOTHER = "Keep the key in a file of your own with mode 0600, or set TENSURE_KEY to another path."
_COPY_YOURSELF = "Check the keys, then put a copy of your own in its place."


@dataclass(frozen=True, eq=False)
class PublicKey:
    """A key that can say who signed; `notes` are the dates its file carries and mean nothing to `verify`."""

    der: bytes
    notes: tuple[tuple[str, str], ...] = ()

    @cached_property
    def id(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo, in hex."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def kind(self) -> KeyKind:
        """Which signature scheme it is for."""
        return "p256" if isinstance(self._key, ec.EllipticCurvePublicKey) else "ed25519"

    @cached_property
    def pem(self) -> bytes:
        """The PEM form that OpenSSL, model-signing and others read."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @cached_property
    def signing_hint(self) -> str:
        """The name model-signing gives this key: SHA-256 of its PEM, in hex."""
        return hashlib.sha256(self.pem).hexdigest()

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over `message`, in its one accepted encoding."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, message)
                return True
            # ECDSA signatures come in pairs (s and n - s); taking one only leaves a file no second spelling.
            r, s = decode_dss_signature(signature)
            if s > _P256_ORDER // 2 or encode_dss_signature(r, s) != signature:
                return False
            self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            return True
        except (InvalidSignature, ValueError):
            return False

    @cached_property
    def _key(self) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        key = serialization.load_der_public_key(self.der)
        if isinstance(key, ed25519.Ed25519PublicKey):
            return key
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
        raise UnsupportedError("this kind of public key is not used here", wanted="P-256 or Ed25519")

    @classmethod
    def from_pem(cls, data: bytes, file: str | os.PathLike[str] | None = None) -> PublicKey:
        """Read a public key; `Name: value` lines before it become notes.

        Raises:
            FormatError, UnsupportedError: not one PEM public key, or of a kind not used here.
        """
        match = _PUBLIC_PEM.match(data) if len(data) <= _MAX_PEM_BYTES else None
        if match is None:
            raise FormatError("not one PEM public key", file=file, wanted="a BEGIN PUBLIC KEY block")
        try:
            loaded = serialization.load_pem_public_key(match["pem"])
        except (ValueError, UnsupportedAlgorithm):
            raise FormatError("the PEM block holds no public key", file=file) from None
        der = loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        lines = match["notes"].decode("ascii").splitlines()
        notes = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
        key = cls(der, notes)
        try:
            _ = key.kind
        except UnsupportedError as error:
            raise error.at(file) from None
        return key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.der == self.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"PublicKey({self.kind}, {self.id[:16]})"


class SigningKey:
    """A private key; never printed, written only by `load_signing_key` and `rotate`."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(
            key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    @classmethod
    def generate(cls, kind: KeyKind = "p256") -> SigningKey:
        """A new key from the system's randomness."""
        if kind == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, data: bytes, file: str | os.PathLike[str] | None = None) -> SigningKey:
        """Read an unencrypted PEM private key.

        Raises:
            FormatError, UnsupportedError: not such a key, or of a kind not used here.
        """
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError(
                "not an unencrypted PEM private key", file=file, wanted="PKCS #8 as OpenSSL writes it"
            ) from None
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls(key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        raise UnsupportedError("this kind of key is not used here", file=file, wanted="P-256 or Ed25519")

    @property
    def kind(self) -> KeyKind:
        """Which signature scheme it is for."""
        return self.public.kind

    def sign(self, message: bytes) -> bytes:
        """A signature: 64 bytes for Ed25519; DER with low S for P-256."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        return low_s(self._key.sign(message, ec.ECDSA(hashes.SHA256())))

    def private_pem(self) -> bytes:
        """The secret itself, unencrypted PKCS #8 PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def __repr__(self) -> str:
        return f"SigningKey({self.kind}, {self.public.id[:16]})"


def low_s(signature: bytes) -> bytes:
    """The same P-256 signature with the smaller of its two S values."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, _P256_ORDER - s))


def default_key_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where this user's signing key lives; see the module docstring."""
    environment = os.environ if environment is None else environment
    if explicit := environment.get("TENSURE_KEY"):
        return Path(explicit)
    config = environment.get("XDG_CONFIG_HOME")
    # The XDG rules say a relative XDG_CONFIG_HOME must be ignored.
    base = Path(config) if config and Path(config).is_absolute() else Path.home() / ".config"
    return base / "tensure" / "keys" / "signing-key.pem"


def load_signing_key(path: str | os.PathLike[str] | None = None, *, create: bool = True) -> SigningKey:
    """The key in `path` (default: `default_key_path()`), made there on first use.

    Two processes that come first at once end with one key: the later finds the earlier's.

    Raises:
        InputError: others may read the file, somebody else owns it, or it is missing and `create` is false.
        FormatError, UnsupportedError: it holds no key, or of a kind not used here.
    """
    key_path = default_key_path() if path is None else Path(path)
    data = _read_private(key_path)
    if data is None:
        if not create:
            raise InputError("there is no signing key", file=key_path, next_step="Seal a bundle to make one.")
        _make_folder(key_path.parent)
        with suppress(InputError):  # another process may have come first; its key counts
            write_file_atomic(key_path, SigningKey.generate().private_pem(), mode=0o600)
        data = _read_private(key_path)
        if data is None:
            raise InputError("the signing key could not be written", file=key_path, next_step=_MAKE_ANOTHER)
    key = SigningKey.from_pem(data, key_path)
    _export_public(key_path, key.public)
    return key


def load_trusted_keys(path: str | os.PathLike[str] | None = None) -> tuple[PublicKey, ...]:
    """The keys this machine believes: its own (if it has one) and those in `trusted/` beside it.

    Raises: as `load_signing_key` and `read_public_key`; InputError also if others may write `trusted/` or a
        file in it.
    """
    key_path = default_key_path() if path is None else Path(path)
    own = _read_private(key_path)
    keys = [] if own is None else [SigningKey.from_pem(own, key_path).public]
    folder = key_path.parent / "trusted"
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return tuple(keys)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=folder) from None
    try:
        _check_writers(os.fstat(fd), folder)
        names = sorted(name for name in os.listdir(fd) if name.endswith(".pem"))
        if len(names) > _MAX_TRUSTED:
            raise InputError(f"{len(names)} files of trusted keys", file=folder, wanted=f"{_MAX_TRUSTED}")
        for name in names:
            data, found = _read_pem(name, folder / name, fd)
            _check_writers(found, folder / name)
            keys.append(PublicKey.from_pem(data, folder / name))
    finally:
        os.close(fd)
    return tuple(dict.fromkeys(keys))


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """The public key in a PEM file.

    Raises:
        InputError: there is no such regular file. FormatError, UnsupportedError: it holds no usable key.
    """
    return PublicKey.from_pem(_read_pem(path, path)[0], path)


def trust(key: PublicKey, path: str | os.PathLike[str] | None = None, *, note: str = "Added") -> Path:
    """Believe `key` on this machine from now on; returns the file that says so."""
    key_path = default_key_path() if path is None else Path(path)
    folder = key_path.parent / "trusted"
    _make_folder(folder)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    file = folder / f"{key.id[:32]}.pem"
    notes = f"Key-Id: {key.id}\n{note}: {now}\n".encode("ascii")
    write_file_atomic(file, notes + key.pem, replace=True)
    return file


def rotate(path: str | os.PathLike[str] | None = None) -> tuple[PublicKey, SigningKey]:
    """Replace the signing key by a new one; returns the old public half, still trusted, and the new key.

    Raises: as `load_signing_key` with `create=False`.
    """
    key_path = default_key_path() if path is None else Path(path)
    old = load_signing_key(key_path, create=False)
    # The old half is put away first: a crash in between leaves one key too many trusted, never one too few.
    trust(old.public, key_path, note="Retired")
    new = SigningKey.generate(old.kind)
    write_file_atomic(key_path, new.private_pem(), mode=0o600, replace=True)
    _export_public(key_path, new.public)
    return old.public, new


def _export_public(key_path: Path, public: PublicKey) -> None:
    file = key_path.with_suffix(".pub.pem")
    with suppress(OSError):
        if file.read_bytes() == public.pem:
            return
    write_file_atomic(file, public.pem, replace=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", file=folder, next_step=_MAKE_ANOTHER) from None


def _read_pem(
    path: str | os.PathLike[str], file: str | os.PathLike[str], dir_fd: int | None = None
) -> tuple[bytes, os.stat_result]:
    """The bytes of a public key file (called `file` in errors) and what the system says of that same file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {_reason(error)}", file=file, wanted="a PEM public key") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InputError("is not a regular file", file=file, wanted="a PEM public key")
        return os.read(fd, _MAX_PEM_BYTES + 1), found
    finally:
        os.close(fd)


def _check_writers(found: os.stat_result, path: Path) -> None:
    """Refuse what others may change: whoever can write here decides whom this machine believes."""
    if found.st_uid not in (os.geteuid(), 0):
        raise InputError(
            f"belongs to user {found.st_uid}", file=path, wanted="yours or root's", next_step=_COPY_YOURSELF
        )
    if found.st_mode & 0o022:
        raise InputError(
            f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})",
            file=path,
            wanted="no write permission for group and others",
            next_step=f"Check the keys, then run `chmod go-w {path}`.",
        )


def _reason(error: OSError | ValueError) -> str:
    """What the system says; Python itself refuses a path with a NUL or half a surrogate pair."""
    return str(error.strerror if isinstance(error, OSError) else error)


def _read_private(path: Path) -> bytes | None:
    """The key file's bytes, or None if there is none; checks and reads the same open file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be opened: {_reason(error)}",
            file=path,
            wanted="a file, no link",
            next_step=_MAKE_ANOTHER,
        ) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InputError("is not a regular file", file=path, next_step=_MAKE_ANOTHER)
        if found.st_uid != os.geteuid():
            raise InputError(
                f"the key belongs to user {found.st_uid}", file=path, wanted="yours", next_step=_MAKE_ANOTHER
            )
        if found.st_mode & 0o077:
            raise InputError(
                f"others may read or write the key (mode {stat.S_IMODE(found.st_mode):04o})",
                file=path,
                wanted="mode 0600",
                next_step=f"Run `chmod 600 {path}`, or rotate the key if others may have read it.",
            )
        data = os.read(fd, _MAX_PEM_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MAX_PEM_BYTES:
        raise FormatError("too large for a key", file=path, wanted=f"at most {_MAX_PEM_BYTES} bytes")
    return data
