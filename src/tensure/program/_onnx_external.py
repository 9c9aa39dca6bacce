"""Weights an ONNX file keeps in other files: found beneath the model's own folder or not at all.

Knows: the keys of `external_data`, which locations are plain, and how to open one without being led
elsewhere: every component is opened by itself in its parent's descriptor and may be no symbolic link, the
last must be a regular file with one name. Does not know protobuf nor what is in the bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError

from ._files import map_file

__all__ = ["External"]

MAX_FILES = 1 << 12  # mapped at once: Linux allows a process 65,530 mappings
MAX_HASHED_BYTES = 4 << 30  # of files with a checksum: a second each GiB
MAX_COMPONENTS = 16
MAX_LOCATION_BYTES = 1024

_KEYS = frozenset({"location", "offset", "length", "checksum"})
_DECIMAL = re.compile(r"[0-9]{1,19}", re.ASCII)
_SHA1 = re.compile(r"[0-9a-fA-F]{40}", re.ASCII)
#: ONNX Runtime writes an address in its own memory where a location names one of these.
_RESERVED = re.compile(r"[*]|_ORT_|MEM_ADDR", re.IGNORECASE)
_COPY = "Copy the model with its links resolved (cp -rL) and read the copy"


class External:
    """The files one model refers to, each opened once. A context: it holds the folder's descriptor."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else os.fspath(folder) or "."
        self._descriptor: int | None = None
        self._files: dict[str, npt.NDArray[np.uint8]] = {}
        self._checked: dict[str, str] = {}
        self._hash_left = MAX_HASHED_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, entries: Mapping[str, str], nbytes: int) -> npt.NDArray[np.uint8]:
        """The `nbytes` bytes that the entries of `external_data` point to, as a view of the mapped file.

        Raises:
            FormatError: a location that is no plain path, an extent outside its file or of another size.
            UnsupportedError: a key we do not read. LimitError: too many files.
            InputError: there is no folder, or the file cannot be opened. Errors name the location as place.
        """
        for key in entries:
            if key not in _KEYS:
                raise UnsupportedError(
                    f"external data has a key {key[:40]!r}", wanted=" ".join(sorted(_KEYS))
                )
        location = entries.get("location", "")
        check_location(location)
        offset = _decimal(entries, "offset", 0)
        length = _decimal(entries, "length", nbytes)
        if length != nbytes:
            raise FormatError(f"external data of {length} bytes", wanted=f"{nbytes}")
        data = self._file(location)
        if offset > data.size or nbytes > data.size - offset:
            raise FormatError(
                f"external data at {offset} of {nbytes} bytes ends past {location!r}",
                wanted=f"at most {data.size} bytes",
            )
        self._check_digest(entries.get("checksum"), location, data)
        return data[offset : offset + nbytes]

    def _file(self, location: str) -> npt.NDArray[np.uint8]:
        found = self._files.get(location)
        if found is not None:
            return found
        if len(self._files) >= MAX_FILES:
            raise LimitError("external data in too many files", wanted=f"at most {MAX_FILES}")
        if self._folder is None:
            raise InputError(
                f"weights lie in {location!r}, but the model was given as bytes",
                wanted="the model's folder",
                next_step="Read the model from its file",
            )
        if self._descriptor is None:
            self._descriptor = _open_folder(self._folder, None, self._folder)
        self._files[location] = found = open_beneath(self._descriptor, location)
        return found

    def _check_digest(self, wanted: str | None, location: str, data: npt.NDArray[np.uint8]) -> None:
        if wanted is None:
            return
        if not _SHA1.fullmatch(wanted):
            raise FormatError(f"checksum {wanted[:50]!r}", wanted="a SHA-1 digest of 40 hexadecimal digits")
        if location not in self._checked:
            self._hash_left -= data.size
            if self._hash_left < 0:
                raise LimitError(
                    "checksums of too much external data",
                    wanted=f"at most {MAX_HASHED_BYTES} bytes",
                    next_step="Save the model without checksums",
                )
            self._checked[location] = hashlib.sha1(data.data, usedforsecurity=False).hexdigest()
        if self._checked[location] != wanted.lower():
            raise FormatError(
                f"{location!r} has SHA-1 {self._checked[location]}",
                wanted=wanted,
                next_step="Copy or download the file again",
            )


def check_location(location: str) -> None:
    """A relative path of plain components, or an error.

    Raises:
        FormatError: it is absolute, empty, too long, or has dots for a name, a backslash, a drive or a
            control character.
    """
    if _RESERVED.search(location):
        raise FormatError(
            f"location {location[:80]!r} is reserved for addresses in memory",
            wanted="a file beside the model",
        )
    parts = location.split("/")
    plain = location.isprintable() and not set("\\:") & set(location) and not {"", ".", ".."} & set(parts)
    # A lone surrogate is not printable, so the path can be encoded.
    if not plain or len(parts) > MAX_COMPONENTS or len(os.fsencode(location)) > MAX_LOCATION_BYTES:
        raise FormatError(f"location {location[:80]!r}", wanted="a plain relative path beside the model")


def open_beneath(folder: int, location: str) -> npt.NDArray[np.uint8]:
    """The mapped file at a plain relative path, no component of which may be a symbolic link."""
    *folders, last = location.split("/")
    opened: list[int] = []
    try:
        for part in folders:
            opened.append(_open_folder(part, opened[-1] if opened else folder, location))
        return map_file(
            last, folder=opened[-1] if opened else folder, follow_symlinks=False, single_link=True
        )
    except TensureError as error:
        link = "link" in error.found
        raise type(error)(
            f"external data in {location!r}: {error.found}",
            wanted="a regular file with one name beneath the model's folder",
            next_step=error.next_step or (_COPY if link else None),
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open_folder(name: str, parent: int | None, shown: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if parent is not None else 0)
    try:
        return os.open(name, flags, dir_fd=parent)
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        # O_NOFOLLOW with O_DIRECTORY says "not a directory" of a link.
        link = code == errno.ELOOP or (
            code == errno.ENOTDIR and parent is not None and _is_link(name, parent)
        )
        reason = "a symbolic link" if link else getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot open {name!r} in {shown!r}: {reason}") from error


def _is_link(name: str, parent: int) -> bool:
    """For the message alone: the file was refused already."""
    try:
        os.readlink(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _decimal(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not _DECIMAL.fullmatch(text):
        raise FormatError(f"external data with {key} {text[:40]!r}", wanted="a decimal number")
    return int(text)
