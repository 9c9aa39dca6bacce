"""`verify`: is this bundle, or this receipt, what was signed, and is it about what the caller has in hand?

Knows the two kinds of sealed things and how a finding becomes a verdict. Does not know cryptography.
Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from tensure.errors import DamageError, FormatError, InputError, TensureError, UntrustedError

from ._open import open_verified, trusted_keys
from ._paths import as_path

if TYPE_CHECKING:
    import numpy as np

    from tensure.bundle import PublicKey, Receipt

__all__ = ["Reason", "Verification", "trusted_key_of", "verify"]

Reason: TypeAlias = Literal[
    "tampered", "untrusted", "other output", "other bundle", "other nonce", "bad bundle"
]
_OTHER: Final[dict[str, Reason]] = {
    "output": "other output",
    "outputs": "other output",
    "program": "other bundle",
    "plan": "other bundle",
    "weights": "other bundle",
    "nonce": "other nonce",
}


@dataclass(frozen=True, slots=True)
class Verification:
    """A verdict on a bundle or a receipt.

    Args:
        kind: which of the two it is.
        path: where it lies.
        ok: whether everything checked out.
        damage: what did not, one line each; empty exactly when `ok`.
        reason: which kind of no: `tampered` (not what was signed), `untrusted` (whole or not, its signer is
            not trusted here), or a receipt that is whole but for an `other output`, `other bundle` or
            `other nonce`, or that had to be held against a `bad bundle`; None exactly when `ok`.
        compared: what a receipt was held against: some of `outputs`, `bundle`, `nonce`.
        facts: what was established, as (what, value); of a damaged thing, nothing.
        receipt: the receipt's record, when it is one and `ok`.
    """

    kind: Literal["bundle", "receipt"]
    path: str
    ok: bool
    damage: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    receipt: Receipt | None = None
    reason: Reason | None = None
    compared: tuple[str, ...] = ()


def verify(
    path: str | os.PathLike[str],
    *,
    key: str | os.PathLike[str] | None = None,
    outputs: str | os.PathLike[str] | Mapping[str, np.ndarray[Any, Any]] | None = None,
    bundle: str | os.PathLike[str] | None = None,
    nonce: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """The verdict on a bundle folder (every byte is read) or a receipt file.

    Damage is a verdict, not an error: `ok` is false and `damage` names file and block.

    Args:
        path: a bundle folder or a receipt file.
        key: a public key (PEM) to trust instead of the keys this machine trusts; a key inside a file
            never counts.
        outputs: for a receipt: the tensors it must be for, as an `.npz` file or by name.
        bundle: for a receipt: the bundle whose program, plan and weights it must name.
        nonce: for a receipt: the nonce it must carry.
        progress: for a bundle: called with the bytes read so far, and in all.

    Raises:
        FormatError, InputError: neither a bundle nor a receipt, or an argument that does not go with it.
    """
    place = as_path(path, "a bundle folder or a receipt file")
    if not place.exists():
        raise InputError(
            "there is nothing here",
            file=path,
            wanted="a bundle folder or a receipt file",
            next_step="Check the path",
        )
    if not place.is_dir():
        return _verify_receipt(place, key, outputs, bundle, nonce)
    if outputs is not None or bundle is not None or nonce is not None:
        raise InputError("outputs, bundle and nonce are for receipts", file=path, wanted="a receipt file")
    return _verify_bundle(place, key, progress)


def trusted_key_of(path: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> PublicKey:
    """The trusted key that a receipt file names; the signature itself is for the caller to check.

    Raises:
        DamageError: it names a key that is not trusted.
    """
    from tensure.bundle import parse_receipt
    from tensure.receipts import read_receipt

    try:
        _, envelope = parse_receipt(read_receipt(path))
    except TensureError as error:
        raise error.at(path) from None
    for trusted in trusted_keys(key):
        if trusted.id == envelope.key_id:
            return trusted
    raise UntrustedError(
        f"signed by the key {envelope.key_id[:16]}..., which this machine does not trust",
        file=path,
        next_step="If you trust whoever ran it, pass their public key with --key FILE",
    )


def _verify_bundle(
    path: Path, key: str | os.PathLike[str] | None, progress: Callable[[int, int], None] | None
) -> Verification:
    from tensure.bundle import find_damage, parse_plan, plan_digest
    from tensure.program import digest, parse_program

    trusted = trusted_keys(key)
    try:
        damage = find_damage(path, trusted, progress)
        if damage:
            return _no("bundle", path, *(found.error(path) for found in damage))
        folder = open_verified(path, key=key)
        program = parse_program(folder.program.decode())
        plans = {label: parse_plan(data.decode()) for label, data in folder.plans.items()}
        for label, plan in plans.items():
            if plan.program != digest(program):
                raise DamageError(f"plan {label!r} is for another program", file=path, wanted=digest(program))
    except FormatError:
        raise
    except (TensureError, UnicodeDecodeError) as error:
        return _no("bundle", path, error)
    facts = [
        ("name", folder.name),
        ("bundle", folder.digest),
        ("program", digest(program)),
        *((f"plan {label}", plan_digest(plan)) for label, plan in plans.items()),
        ("weights", folder.weights_root),
        ("tensors", f"{len(folder.weights)} in {folder.weights.nbytes} bytes"),
        ("signed by", folder.key.id),
    ]
    folder.close()
    return Verification("bundle", os.fspath(path), True, (), tuple(facts))


def _verify_receipt(
    path: Path,
    key: str | os.PathLike[str] | None,
    outputs: str | os.PathLike[str] | Mapping[str, np.ndarray[Any, Any]] | None,
    bundle: str | os.PathLike[str] | None,
    nonce: str | None,
) -> Verification:
    from tensure.receipts import read_receipt, summarize, verify_receipt

    data = read_receipt(path)
    trusted = trusted_keys(key)
    try:
        receipt = verify_receipt(data, keys=trusted, file=os.fspath(path))
    except DamageError as error:
        return _no("receipt", path, error)
    try:
        expected = _expected(receipt, outputs, bundle, nonce, key)
    except DamageError as error:
        return _no("receipt", path, error, reason=_OTHER.get(error.place or "", "bad bundle"))
    try:
        verify_receipt(data, keys=trusted, expected=expected, file=os.fspath(path))
    except DamageError as error:
        return _no("receipt", path, error, reason=_other(error))
    facts = tuple((what, f"{said} ({basis})") for what, said, basis in summarize(receipt))
    given = {"outputs": outputs, "bundle": bundle, "nonce": nonce}
    compared = tuple(what for what, value in given.items() if value is not None)
    return Verification("receipt", os.fspath(path), True, (), facts, receipt, None, compared)


def _other(error: DamageError) -> Reason:
    """Which thing in hand a receipt is not for: the place of the mismatch starts with its name."""
    return _OTHER.get((error.place or "").partition(" ")[0], "tampered")


def _no(
    kind: Literal["bundle", "receipt"],
    path: Path,
    *errors: TensureError | UnicodeDecodeError,
    reason: Reason | None = None,
) -> Verification:
    if reason is None:
        reason = "untrusted" if any(isinstance(error, UntrustedError) for error in errors) else "tampered"
    return Verification(kind, os.fspath(path), False, tuple(map(str, errors)), reason=reason)


def _expected(
    receipt: Receipt,
    outputs: str | os.PathLike[str] | Mapping[str, np.ndarray[Any, Any]] | None,
    bundle: str | os.PathLike[str] | None,
    nonce: str | None,
    key: str | os.PathLike[str] | None,
) -> Any:
    from tensure.receipts import Expected

    program = plan = weights = None
    if bundle is not None:
        program, plan, weights = _bundle_digests(receipt, bundle, key)
    return Expected(
        outputs=None if outputs is None else _output_digests(receipt, outputs),
        program=program,
        plan=plan,
        weights=weights,
        nonce=nonce,
    )


def _output_digests(
    receipt: Receipt, outputs: str | os.PathLike[str] | Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, str]:
    from tensure.program import numpy_dtype, tensor_digest
    from tensure.runtime import load_inputs

    if not isinstance(outputs, Mapping):
        outputs = _named(load_inputs(outputs, check=lambda found: _check_size(receipt, found)), receipt)
    tensors = outputs
    dtypes = {output.name: output.dtype for output in receipt.outputs}
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        # .npz has no bf16: such outputs are stored as f32, which holds them exactly.
        is_widened = dtypes.get(name) == "bf16" and tensor.dtype == numpy_dtype("f32")
        narrow = tensor.astype(numpy_dtype("bf16")) if is_widened else tensor
        exact = narrow if is_widened and (narrow.astype(tensor.dtype) == tensor).all() else tensor
        found[name] = tensor_digest(exact)
    return found


def _check_size(receipt: Receipt, found: dict[str, np.ndarray[Any, Any]] | np.ndarray[Any, Any]) -> None:
    """Whatever unpacks to far more than the receipt is about is not read to find that out."""
    num_bytes = sum(array.nbytes for array in _named(found, receipt).values())
    most = 8 * sum(math.prod(output.shape) for output in receipt.outputs)  # no dtype is wider
    if num_bytes > most:
        raise DamageError(
            f"{num_bytes} bytes of tensors, more than the receipt's outputs have",
            place="outputs",
            wanted=f"at most {most}",
        )


def _named(
    tensors: dict[str, np.ndarray[Any, Any]] | np.ndarray[Any, Any], receipt: Receipt
) -> dict[str, np.ndarray[Any, Any]]:
    """A bare tensor from an .npy file stands for the first output."""
    return tensors if isinstance(tensors, dict) else {receipt.outputs[0].name: tensors}


def _bundle_digests(
    receipt: Receipt, bundle: str | os.PathLike[str], key: str | os.PathLike[str] | None
) -> tuple[str, str, str]:
    """Digests of the program, of the plan that the receipt names (or else the first), and of the weights."""
    from tensure.bundle import parse_plan, plan_digest
    from tensure.program import digest, parse_program

    folder = open_verified(bundle, key=key)
    try:
        program = digest(parse_program(folder.program.decode()))
        plans = [plan_digest(parse_plan(data.decode())) for data in folder.plans.values()]
        named = str(receipt.plan.digest)
        return program, named if named in plans else plans[0], folder.weights_root
    finally:
        folder.close()
