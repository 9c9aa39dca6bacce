"""`open`: a sealed bundle as a Session. Knows whom this machine trusts; does not know how anything runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tensure.errors import InputError

from ._paths import as_path

if TYPE_CHECKING:
    from tensure.bundle import Bundle, PublicKey
    from tensure.runtime import Session

__all__ = ["open", "open_verified", "trusted_keys"]


def open(
    directory: str | os.PathLike[str],
    *,
    key: str | os.PathLike[str] | None = None,
    plan: str | None = None,
) -> Session:
    """A Session over a bundle: signature and small files are verified now, weights as they are loaded.

    Args:
        directory: a folder that `seal` wrote.
        key: a public key (PEM) to trust instead of the keys this machine trusts.
        plan: which of the bundle's plans to run; when left out, `host` or the only one.

    Raises:
        FormatError: no bundle.
        DamageError: a byte is not what was signed, or the signer is not trusted.
        NotYetError: the plan needs more than this machine.
    """
    from tensure.runtime import Session

    return Session(open_verified(directory, key=key), plan=plan)


def open_verified(directory: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> Bundle:
    """The opened folder of a bundle that a trusted key signed; raises as `open`."""
    from tensure.bundle import open_bundle

    return open_bundle(as_path(directory, "a bundle folder"), trusted_keys(key))


def trusted_keys(key: str | os.PathLike[str] | None = None) -> tuple[PublicKey, ...]:
    """The key in the file `key`, or else those this machine trusts: its own, and those it was told to.

    Raises:
        InputError: no key at all.
    """
    from tensure.bundle import default_key_path, load_trusted_keys, read_public_key

    if key is not None:
        return (read_public_key(as_path(key, "a public key file (PEM)")),)
    keys = load_trusted_keys()
    if not keys:
        raise InputError(
            "this machine has no key and trusts none",
            file=default_key_path(),
            next_step="Pass the signer's public key with --key FILE (key=FILE in Python)",
        )
    return keys
