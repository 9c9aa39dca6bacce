"""Tensors in files: `.npy` and `.npz` in, `.npz` out.

Knows numpy's formats without pickle, with bounds on what a file may claim before anything is allocated.
Does not know which tensors a model wants.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from tensure.bundle import write_file_atomic, write_files_atomic
from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.program import dtype_name, numpy_dtype

from ._receipt_book import SignedReceipt
from ._tensors import Array

__all__ = ["load_inputs", "save_outputs", "save_run"]

MAX_BYTES = 4 << 30
MAX_MEMBERS = 1000
MAX_HEADER_BYTES = 1 << 14  # numpy itself refuses headers of over 10,000 bytes

Check: TypeAlias = Callable[[dict[str, Array] | Array], object]


def load_inputs(path: str | os.PathLike[str], *, check: Check | None = None) -> dict[str, Array] | Array:
    """The tensor of an `.npy` file, or the tensors by name of an `.npz` file.

    Args:
        path: the file.
        check: called with arrays of the shapes and dtypes that the file's headers declare, which take no
            memory, before any tensor is read; what it raises names the file.

    Raises:
        InputError: no such file, or another kind of file.
        FormatError, LimitError: broken, holding objects, or over 4 GiB.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".npy", ".npz"):
        raise InputError(
            f"a {suffix or 'nameless kind of'} file", file=path, wanted=".npy or .npz (or .png, .jpg)"
        )
    if not os.path.isfile(path):
        raise InputError("is not a file", file=path, wanted="a file of tensors")
    if (size := os.path.getsize(path)) > MAX_BYTES:
        raise LimitError(f"{size} bytes", file=path, wanted=f"at most {MAX_BYTES}")
    try:
        return _load_npy(path, check) if suffix == ".npy" else _load_npz(path, check)
    except TensureError as error:
        raise error.at(path) from None
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        text = str(error)
        reason = (
            "holds Python objects, which are never loaded" if "pickle" in text or "Object" in text else text
        )
        raise FormatError(
            f"cannot be read as {suffix}: {reason[:160]}", file=path, wanted="plain tensors"
        ) from None


def save_outputs(
    path: str | os.PathLike[str], outputs: Mapping[str, Array], *, replace: bool = False
) -> Path:
    """Write tensors to an `.npz` file, whole or not at all; returns its path. bf16 is stored as f32.

    Raises:
        InputError: another suffix, the file exists and `replace` is false, or it cannot be written.
    """
    write_file_atomic(path, _npz(path, outputs), replace=replace)
    return Path(path)


def save_run(
    outputs: Mapping[str, Array],
    receipt: SignedReceipt,
    output_path: str | os.PathLike[str],
    receipt_path: str | os.PathLike[str],
    *,
    replace: bool = False,
) -> None:
    """Write the outputs of a run and its receipt: both, or neither.

    Raises:
        InputError: as `save_outputs`, for either file.
    """
    files: list[tuple[str | os.PathLike[str], bytes]] = [(output_path, _npz(output_path, outputs))]
    write_files_atomic([*files, (receipt_path, receipt.data)], replace=replace)


def _npz(path: str | os.PathLike[str], outputs: Mapping[str, Array]) -> bytes:
    if Path(path).suffix.lower() != ".npz":
        raise InputError("outputs are written to one .npz file", file=path, wanted="a name that ends in .npz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in outputs.items():
            plain = array.astype(np.float32) if array.dtype == numpy_dtype("bf16") else array
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(plain), allow_pickle=False)
            # A fixed date: equal outputs make equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def _load_npy(path: str | os.PathLike[str], check: Check | None) -> Array:
    with open(path, "rb") as stream:
        header = _read_header(stream, os.fstat(stream.fileno()).st_size)
        if check is not None:
            check(_checked(header.stand_in(), path))
        stream.seek(header.offset)
        flat = np.fromfile(stream, header.dtype, header.count)
        return _checked(flat.reshape(header.shape, order=header.order), path)


def _load_npz(path: str | os.PathLike[str], check: Check | None) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > MAX_MEMBERS or total > MAX_BYTES:
            raise LimitError(
                f"{len(members)} tensors of {total} bytes unpacked", file=path, wanted=f"at most {MAX_BYTES}"
            )
        declared: dict[str, tuple[zipfile.ZipInfo, _Header]] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in declared:
                raise FormatError(
                    f"member {member.filename[:80]!r}", file=path, wanted="one .npy for each tensor"
                )
            with archive.open(member) as stream:
                declared[name] = member, _read_header(stream, member.file_size)
        if check is not None:
            check({name: _checked(header.stand_in(), path) for name, (_, header) in declared.items()})
        found: dict[str, Array] = {}
        for name, (member, header) in declared.items():
            with archive.open(member) as stream:
                data = stream.read(member.file_size + 1)
            flat: Array = np.frombuffer(data, header.dtype, header.count, header.offset)
            found[name] = _checked(np.array(flat.reshape(header.shape, order=header.order)), path)
    return found


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    count: int
    offset: int

    def stand_in(self) -> Array:
        """An array of this shape and dtype over one element."""
        return np.broadcast_to(np.zeros((), self.dtype.newbyteorder("=")), self.shape)


def _read_header(file: IO[bytes], size: int) -> _Header:
    """What a header claims, which must be exactly what is there."""
    stream = io.BytesIO(file.read(MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    count, left = math.prod(shape), size - stream.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != left:
        raise ValueError(f"{left} bytes for shape {list(shape)[:8]} of {dtype}")
    return _Header(shape, "F" if fortran else "C", dtype, count, stream.tell())


def _checked(array: Array, path: str | os.PathLike[str]) -> Array:
    """The array in this machine's byte order, if its dtype is one of ours."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        dtype_name(native.dtype)
    except UnsupportedError as error:
        raise error.at(path) from None
    return native
