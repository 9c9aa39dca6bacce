"""The two tables of a bundle: `bundle.json` and `weights.json`.

Knows: which files a bundle has and what they are called, how the tables are spelled, and where each tensor
lies in `weights/weights.bin`: sorted by name, each start a multiple of 64 bytes, zeros between. The layout
follows from names, shapes and encodings alone, so a table that says anything else is refused.

Does not know: the files' bytes, keys, or how to write to a disk.

    DIR/bundle.json            this table: format, version, name, sections, and each file with size and root
    DIR/blocks.bin             32 bytes for each 64 KiB block of every other file, in path order
    DIR/model.sig              OpenSSF Model Signing signature over the SHA-256 of every other file
    DIR/program.txt
    DIR/plans/<name>.txt       DIR/fleets/<name>.txt     DIR/proofs/<name>.txt     DIR/assets/<file>
    DIR/weights.json           name, shape, encoding, offset and size of each tensor
    DIR/weights/weights.bin    the tensors' encoded bytes
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tensure.bundle._blocks import num_blocks
from tensure.bundle._json import (
    Json,
    canonical_json,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_canonical,
)
from tensure.errors import FormatError, InputError, LimitError
from tensure.program import encoded_nbytes

__all__ = [
    "BLOCKS_FILE",
    "MANIFEST_FILE",
    "PROGRAM_FILE",
    "SECTIONS",
    "SUBFOLDERS",
    "TABLE_FILE",
    "WEIGHTS_FILE",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "check_name",
    "count_blocks",
    "lay_out",
    "manifest_bytes",
    "parse_manifest",
    "parse_table",
    "section_path",
    "table_bytes",
    "weights_root",
]

FORMAT = "tensure-bundle"
VERSION = 1

MANIFEST_FILE = "bundle.json"
BLOCKS_FILE = "blocks.bin"
PROGRAM_FILE = "program.txt"
TABLE_FILE = "weights.json"
WEIGHTS_FILE = "weights/weights.bin"
SECTIONS: Mapping[str, str] = {"plans": ".txt", "fleets": ".txt", "proofs": ".txt", "assets": ""}
SUBFOLDERS = frozenset([*SECTIONS, "weights"])

ALIGNMENT = 64
MAX_MANIFEST_BYTES = 4 << 20
MAX_TABLE_BYTES = 64 << 20
MAX_FILE_BYTES = 256 << 20  # each file that is read whole
MAX_WEIGHTS_BYTES = 1 << 42
_MAX_ENTRIES = 2000
_MAX_TENSORS = 200_000
_MAX_RANK = 8
_MAX_DIM = 1 << 48

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_ROOT = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its path, its size in bytes, and the Merkle root over its blocks (hex)."""

    path: str
    size: int
    root: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `bundle.json` says."""

    name: str
    sections: Mapping[str, tuple[str, ...]]
    files: tuple[FileEntry, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file of the folder but `model.sig`, sorted."""
        return tuple(sorted([*(f.path for f in self.files), MANIFEST_FILE, BLOCKS_FILE]))

    def file(self, path: str) -> FileEntry:
        """The entry of a file that must be there."""
        return next(f for f in self.files if f.path == path)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the weights file; offset and size in bytes."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    offset: int
    num_bytes: int


def check_name(name: str, what: str) -> str:
    """`name` if it can be part of a file name in a bundle.

    Raises:
        InputError: it could be a path, or hide, or be too long.
    """
    if not _NAME.match(name):
        raise InputError(
            f"the name {name[:120]!r} cannot name {what}", wanted="up to 100 letters, digits, . _ and -"
        )
    return name


def section_path(section: str, name: str) -> str:
    """The path of one plan, fleet, proof or asset."""
    return f"{section}/{name}{SECTIONS[section]}"


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> tuple[tuple[TensorEntry, ...], int]:
    """Where (name, shape, encoding) each lie, sorted by name, and the size of the whole file.

    Raises:
        FormatError, LimitError: a name, shape or encoding outside the bounds, a name twice, or too much.
    """
    entries: list[TensorEntry] = []
    end = 0
    for name, shape, encoding in sorted(tensors, key=lambda t: t[0].encode("utf-8", "surrogatepass")):
        if not 0 < len(name) <= 500 or not name.isprintable():
            raise FormatError(f"the tensor name {name[:80]!r} is empty, too long or not printable")
        if entries and entries[-1].name == name:
            raise FormatError(f"the tensor {name!r} appears twice")
        if len(shape) > _MAX_RANK or any(not 0 <= dim < _MAX_DIM for dim in shape):
            raise LimitError(f"shape {shape}", place=name, wanted="at most 8 dims, each below 2^48")
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        size = encoded_nbytes(encoding, shape)
        end = offset + size
        if end > MAX_WEIGHTS_BYTES:
            raise LimitError(f"{end} bytes of weights", place=name, wanted=f"at most {MAX_WEIGHTS_BYTES}")
        entries.append(TensorEntry(name, shape, encoding, offset, size))
    return tuple(entries), end


def table_bytes(entries: Sequence[TensorEntry]) -> bytes:
    """`weights.json`."""
    tensors = [
        {
            "name": e.name,
            "shape": list(e.shape),
            "encoding": e.encoding,
            "offset": e.offset,
            "nbytes": e.num_bytes,
        }
        for e in entries
    ]
    return canonical_json({"alignment": ALIGNMENT, "file": WEIGHTS_FILE, "tensors": tensors})


def parse_table(data: bytes, weights_size: int) -> tuple[TensorEntry, ...]:
    """Read `weights.json`; the offsets must be those that `lay_out` gives.

    Raises: FormatError, LimitError.
    """
    root = expect_object(parse_canonical(data, max_bytes=MAX_TABLE_BYTES), "table")
    expect_keys(root, "table", ("alignment", "file", "tensors"))
    # Not `!=`: 64.0 equals 64, and would be a second spelling.
    expect_int(root["alignment"], "alignment", least=ALIGNMENT, most=ALIGNMENT)
    if root["file"] != WEIGHTS_FILE:
        raise FormatError("another file", place="file", wanted=WEIGHTS_FILE)
    found: list[TensorEntry] = []
    for index, item in enumerate(expect_list(root["tensors"], "tensors", max_items=_MAX_TENSORS)):
        place = f"tensors[{index}]"
        tensor = expect_object(item, place)
        expect_keys(tensor, place, ("name", "shape", "encoding", "offset", "nbytes"))
        shape = expect_list(tensor["shape"], place, max_items=_MAX_RANK)
        found.append(
            TensorEntry(
                expect_str(tensor["name"], place, max_chars=500),
                tuple(expect_int(dim, place, most=_MAX_DIM) for dim in shape),
                expect_str(tensor["encoding"], place, max_chars=20),
                expect_int(tensor["offset"], place),
                expect_int(tensor["nbytes"], place),
            )
        )
    entries, size = lay_out((e.name, e.shape, e.encoding) for e in found)
    for right, entry in zip(entries, found, strict=True):
        if entry != right:
            raise FormatError(f"tensor {entry.name!r} is not where it belongs", wanted=f"{right}")
    if size != weights_size:
        raise FormatError(f"the weights file has {weights_size} bytes", wanted=f"{size}")
    return entries


def manifest_bytes(manifest: Manifest) -> bytes:
    """`bundle.json`."""
    return canonical_json(
        {
            "format": FORMAT,
            "version": VERSION,
            "name": manifest.name,
            "program": PROGRAM_FILE,
            "weights": TABLE_FILE,
            **{section: sorted(manifest.sections[section]) for section in SECTIONS},
            "files": [
                {"path": f.path, "size": f.size, "root": f"sha256:{f.root}"}
                for f in sorted(manifest.files, key=lambda f: f.path)
            ],
        }
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read `bundle.json`; the files listed must be exactly those its sections call for.

    Raises: FormatError, LimitError.
    """
    root = expect_object(parse_canonical(data, max_bytes=MAX_MANIFEST_BYTES), "bundle")
    if root.get("format") != FORMAT:
        raise FormatError("not a Tensure bundle", place="format", wanted=FORMAT)
    expect_int(root.get("version"), "version", least=VERSION, most=VERSION)
    expect_keys(root, "bundle", ("format", "version", "name", "program", "weights", "files", *SECTIONS))
    if root["program"] != PROGRAM_FILE or root["weights"] != TABLE_FILE:
        raise FormatError("program or weights under another name", wanted=f"{PROGRAM_FILE}, {TABLE_FILE}")
    name = check_name(expect_str(root["name"], "name", max_chars=100), "a bundle")
    sections = {section: _names(root[section], section) for section in SECTIONS}
    files = tuple(_file(item, index) for index, item in enumerate(_entries(root["files"])))
    wanted = [PROGRAM_FILE, TABLE_FILE, WEIGHTS_FILE]
    wanted += [section_path(section, name) for section in SECTIONS for name in sections[section]]
    if [f.path for f in files] != sorted(wanted):
        raise FormatError("the files listed are not those the sections call for", place="files")
    return Manifest(name, sections, files)


def weights_root(table_root: str, data_root: str) -> str:
    """One digest (hex) for all weights: a Merkle node over the roots of the table and of the data."""
    return hashlib.sha256(b"\1" + bytes.fromhex(table_root) + bytes.fromhex(data_root)).hexdigest()


def count_blocks(sizes: Iterable[int]) -> int:
    """Blocks in all of several files."""
    return sum(num_blocks(size) for size in sizes)


def _entries(value: Json) -> list[Json]:
    return expect_list(value, "files", max_items=_MAX_ENTRIES)


def _names(value: Json, section: str) -> tuple[str, ...]:
    items = expect_list(value, section, max_items=_MAX_ENTRIES)
    names = tuple(check_name(expect_str(item, section, max_chars=100), section) for item in items)
    if list(names) != sorted(names):
        raise FormatError("names not sorted", place=section)
    # Two names that differ only in case would be one file on some disks.
    if len({n.casefold() for n in names}) != len(names):
        raise FormatError("two names are the same but for case", place=section)
    return names


def _file(value: Json, index: int) -> FileEntry:
    place = f"files[{index}]"
    item = expect_object(value, place)
    expect_keys(item, place, ("path", "size", "root"))
    path = expect_str(item["path"], place, max_chars=200)
    root = expect_str(item["root"], place, max_chars=71)
    if not _ROOT.match(root):
        raise FormatError("no digest", place=place, wanted="sha256: and 64 hex digits")
    most = MAX_WEIGHTS_BYTES if path == WEIGHTS_FILE else MAX_FILE_BYTES
    return FileEntry(path, expect_int(item["size"], place, most=most), root.removeprefix("sha256:"))
