"""Seal a model once and find it again: the bundles behind `tensure run NAME` and the demo.

Knows where bundles are kept (`$XDG_CACHE_HOME/tensure/bundles`) and when one may be used again: the
source's bytes, this version of the reading code and the options are all the same, and it verifies. Does
not know any format.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tensure.errors import DamageError, InputError, NotYetError, TensureError

from ._known import KNOWN
from ._load import is_bundle, load, unknown_model
from ._open import open_verified
from ._paths import as_path
from ._seal import bundle_name, seal

__all__ = ["SealedOnce", "default_output", "plan_in_bundle", "seal_once"]

MAX_SOURCE_FILES = 1000
_ROOMS = ("program", "planning", "api")


@dataclass(frozen=True, slots=True)
class SealedOnce:
    """A sealed bundle for a model.

    Args:
        path: the bundle.
        reused: whether it was there already.
        note: what a person should know of it: why it was sealed anew, or why it lies somewhere unusual.
    """

    path: Path
    reused: bool
    note: str = ""


def seal_once(
    model: str | os.PathLike[str],
    *,
    context: int | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SealedOnce:
    """The bundle of a model: itself if it is one, the one sealed before, or a new one.

    `context` and `sizes` are as for `load`; a bundle's are sealed, so it takes neither.

    Raises:
        as `load` and `seal`.
    """
    if is_bundle(as_path(model, "a model's file or folder, or a known name")):
        for option, given in (("context", context), ("sizes (--size)", sizes)):
            if given is not None:
                raise InputError(
                    f"{option} for a sealed bundle", file=model, wanted="the source it was sealed from"
                )
        return SealedOnce(Path(model), True)
    label, files = _source(model)
    folder, note = _bundles_folder()
    target = folder / f"{label}-{_identity(files, context, sizes or {})[:16]}"
    if is_bundle(target):
        why = _why_not_again(target)
        if why is None:
            return SealedOnce(target, True, note)
        note = f"the bundle kept from before was replaced by a new one, which is used now ({why})"
    found = load(model, context=context, sizes=sizes)
    seal(found, target, replace=is_bundle(target), progress=progress)
    return SealedOnce(target, False, note)


def _why_not_again(target: Path) -> str | None:
    """Why a bundle in the cache cannot be used as it is; None when it can."""
    from tensure.bundle import load_trusted_keys

    if not load_trusted_keys():
        return "this machine no longer has the key it was sealed with"
    try:
        open_verified(target).close()
    except DamageError as error:
        return f"{error.file or target.name}: {error.found}"
    return None


def _source(model: str | os.PathLike[str]) -> tuple[str, Mapping[str, Path]]:
    """A label for people, and every file the model is read from, by name."""
    path = Path(model)
    if path.is_file():
        return bundle_name(path.stem), {path.name: path}
    if path.is_dir():
        files = {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_file()}
        if len(files) > MAX_SOURCE_FILES:
            raise InputError(
                f"{len(files)} files in a model folder", file=path, wanted=f"at most {MAX_SOURCE_FILES}"
            )
        return bundle_name(path.resolve().name), files
    if isinstance(model, str) and model in KNOWN:
        found = KNOWN[model].path()
        return model, {found.name: found}
    raise unknown_model(os.fspath(model))


def _identity(files: Mapping[str, Path], context: int | None, sizes: Mapping[str, int]) -> str:
    """Digest of everything that the bundle follows from."""
    options = f"{context}" + "".join(f"\0{name}={sizes[name]}" for name in sorted(sizes))
    state = hashlib.sha256(f"tensure/cache/1\0{options}\0{_code_digest()}".encode())
    for name, path in files.items():
        state.update(f"\0{name}\0{_file_digest(path)}".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


@cache
def _code_digest() -> str:
    """Digest of the code that reads and plans: a changed reader makes another bundle."""
    state = hashlib.sha256()
    for path in _code_files():
        state.update(f"{path.name}\0{_file_digest(path)}\0".encode())
    return state.hexdigest()


def _code_files() -> Iterator[Path]:
    package = Path(__file__).parents[1]
    for room in _ROOMS:
        yield from sorted((package / room).rglob("*.py"))


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None


def _bundles_folder() -> tuple[Path, str]:
    """Where sealed models are kept; a temporary folder, with a word about it, where that cannot be made."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        # The XDG rules say a relative path must be ignored.
        base = Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache"
        folder = base / "tensure" / "bundles"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        folder = Path(tempfile.mkdtemp(prefix="tensure-bundles-"))
        return folder, f"kept in {folder}, because the cache cannot be used ({reason}); set XDG_CACHE_HOME"
    return folder, ""


def default_output(model: str | os.PathLike[str], stamp: str) -> tuple[Path, Path]:
    """Where a run without a named output writes: the tensors and the receipt, in ./tensure-out.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = Path("tensure-out")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=folder, next_step="Name an output with -o"
        ) from None
    path = as_path(model, "a model's file or folder, or a known name")
    base = f"{bundle_name(path.stem if path.exists() else os.fspath(model))}-{stamp}"
    return folder / f"{base}.npz", folder / f"{base}.receipt.json"


def plan_in_bundle(bundle: Path, plan_file: Path, *, key: Path | None = None) -> str:
    """The name under which a bundle holds the plan in a file.

    Raises:
        NotYetError: the bundle does not hold it; running a plan from outside is coming.
    """
    from tensure.bundle import parse_plan, plan_digest

    try:
        wanted = plan_digest(parse_plan(plan_file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=plan_file) from None
    except TensureError as error:
        raise error.at(plan_file) from None
    folder = open_verified(bundle, key=key)
    try:
        for label, data in folder.plans.items():
            if plan_digest(parse_plan(data.decode())) == wanted:
                return label
    finally:
        folder.close()
    raise NotYetError(
        "the bundle does not hold this plan",
        file=plan_file,
        wanted="a plan that was sealed in, which the signature covers",
        next_step="Seal the model with this plan: tensure.seal(model, directory, plans={...})",
    )
