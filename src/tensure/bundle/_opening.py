"""Opening a bundle without trusting it.

Knows: the order of trust. A trusted key signs `model.sig`; `model.sig` fixes the SHA-256 of every file,
`bundle.json` and `blocks.bin` among them; `blocks.bin` fixes every 64 KiB block, so that a tensor can be
checked without reading the rest of the weights. So: the signature first, then that exactly the signed files
are there, then the small files at once and the weights block by block as they are first touched.

Does not know: what a program, plan or proof says. Weights are mapped, so somebody who may write the files
can still change them after the check: keep bundles where only their owner may write.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensure.bundle import _manifest
from tensure.bundle._blocks import (
    BLOCK_BYTES,
    LEAF_BYTES,
    BlockDigester,
    leaf_digest,
    merkle_root,
    num_blocks,
)
from tensure.bundle._folder_files import Damage, FolderFiles, damaged_blocks
from tensure.bundle._keys import PublicKey
from tensure.bundle._manifest import (
    BLOCKS_FILE,
    MANIFEST_FILE,
    PROGRAM_FILE,
    SECTIONS,
    SUBFOLDERS,
    TABLE_FILE,
    WEIGHTS_FILE,
    Manifest,
    TensorEntry,
)
from tensure.bundle._signing import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, SignedFiles, verify_signature
from tensure.errors import DamageError, FormatError, TensureError
from tensure.program import StoredTensor

__all__ = ["Bundle", "LazyWeights", "Progress", "find_damage", "open_bundle"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_CHANGED = "the bytes are not what was signed"


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An opened bundle. Everything but the weights has been checked; those are checked as they are touched.

    `digest` (of `bundle.json`) stands for the whole content, `weights_root` for the weights alone.
    """

    name: str
    program: bytes
    plans: Mapping[str, bytes]
    fleets: Mapping[str, bytes]
    proofs: Mapping[str, bytes]
    assets: Mapping[str, bytes]
    weights: LazyWeights
    weights_root: str
    digest: str
    key: PublicKey
    _files: FolderFiles
    _signed: SignedFiles
    _signature: bytes

    def check_all(self, progress: Progress | None = None) -> list[Damage]:
        """Read every file again and name all damage, block by block; an empty list means none."""
        return _find_damage(self._files, self._signature, self._signed, progress)

    def close(self) -> None:
        """Let go of the folder. Tensors already taken stay valid; `check_all` does not work any more."""
        self._files.close()


class LazyWeights(Mapping[str, StoredTensor]):
    """Tensors by name, mapped from the weights file; the blocks of each are checked when it is first taken.

    Raises (on access):
        DamageError: a block of the tensor is not what was signed.
    """

    def __init__(
        self,
        files: FolderFiles,
        entries: Sequence[TensorEntry],
        data: npt.NDArray[np.uint8],
        leaves: Sequence[bytes],
    ) -> None:
        self._folder = files.path
        self._entries = {entry.name: entry for entry in entries}
        self._data = data
        self._leaves = leaves
        self._checked = bytearray(len(leaves))

    def __getitem__(self, name: str) -> StoredTensor:
        entry = self._entries[name]
        end = entry.offset + entry.num_bytes
        self._check_blocks(range(entry.offset // BLOCK_BYTES, num_blocks(end) if entry.num_bytes else 0))
        return StoredTensor(entry.shape, entry.encoding, self._data[entry.offset : end])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def described(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and encoding of every tensor, none of which is read or checked."""
        return {name: (entry.shape, entry.encoding) for name, entry in self._entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights file."""
        return self._data.size

    def check(self, progress: Progress | None = None) -> None:
        """Check every block now, and that there is nothing but zeros between tensors."""
        for block in range(len(self._leaves)):
            self._check_blocks(range(block, block + 1))
            if progress is not None:
                progress(min((block + 1) * BLOCK_BYTES, self._data.size), self._data.size)
        if (at := _first_nonzero_gap(self._entries.values(), self._data)) is not None:
            reason = "bytes between tensors are not zero"
            raise Damage(WEIGHTS_FILE, at // BLOCK_BYTES, reason).error(self._folder)

    def _check_blocks(self, blocks: range) -> None:
        for block in blocks:
            if not self._checked[block]:
                start = block * BLOCK_BYTES
                if leaf_digest(self._data[start : start + BLOCK_BYTES].data) != self._leaves[block]:
                    tensors = _tensors_in(self._entries.values(), block)
                    raise Damage(WEIGHTS_FILE, block, _CHANGED, tensors).error(self._folder)
                self._checked[block] = 1


def open_bundle(
    directory: str | os.PathLike[str],
    trusted: Sequence[PublicKey],
    *,
    check_weights: Literal["lazy", "now"] = "lazy",
) -> Bundle:
    """Open a bundle that one of the `trusted` keys signed.

    Raises:
        FormatError: there is no bundle at `directory`.
        DamageError: there is one, but a byte of it is not what was signed, a file is missing or surplus, or
            the signer is not trusted. The message names file and block.
    """
    files = FolderFiles(directory)
    signature, signed = _verified_signature(files, trusted)
    for damage in _check_listing(files, signed):
        raise damage.error(files.path)
    manifest_data = _read_signed(files, signed, MANIFEST_FILE, _manifest.MAX_MANIFEST_BYTES, None)
    with _as_damage(files, MANIFEST_FILE):
        manifest = _manifest.parse_manifest(manifest_data)
    if sorted(signed.digests) != list(manifest.paths):
        raise Damage(MANIFEST_FILE, None, "lists other files than were signed").error(files.path)
    _check_sizes(files, manifest)
    leaves = _read_leaves(files, signed, manifest, len(manifest_data))
    texts = {
        entry.path: _read_signed(files, signed, entry.path, entry.size, leaves[entry.path])
        for entry in manifest.files
        if entry.path != WEIGHTS_FILE
    }
    with _as_damage(files, TABLE_FILE):
        table = _manifest.parse_table(texts[TABLE_FILE], manifest.file(WEIGHTS_FILE).size)
    data = files.map(WEIGHTS_FILE)
    if data.size != manifest.file(WEIGHTS_FILE).size:
        raise Damage(WEIGHTS_FILE, None, "changed its size while it was opened").error(files.path)
    weights = LazyWeights(files, table, data, leaves[WEIGHTS_FILE])
    if check_weights == "now":
        weights.check()
    section = {
        s: {name: texts[_manifest.section_path(s, name)] for name in manifest.sections[s]} for s in SECTIONS
    }
    return Bundle(
        name=manifest.name,
        program=texts[PROGRAM_FILE],
        plans=section["plans"],
        fleets=section["fleets"],
        proofs=section["proofs"],
        assets=section["assets"],
        weights=weights,
        weights_root="sha256:"
        + _manifest.weights_root(manifest.file(TABLE_FILE).root, manifest.file(WEIGHTS_FILE).root),
        digest=f"sha256:{signed.digests[MANIFEST_FILE]}",
        key=signed.key,
        _files=files,
        _signed=signed,
        _signature=signature,
    )


def find_damage(
    directory: str | os.PathLike[str], trusted: Sequence[PublicKey], progress: Progress | None = None
) -> list[Damage]:
    """All damage in a bundle, where `open_bundle` stops at the first; an empty list means none.

    Raises:
        FormatError: there is no bundle at `directory`.
        DamageError: the signature itself is damaged, missing, or of a key that is not trusted.
    """
    files = FolderFiles(directory)
    signature, signed = _verified_signature(files, trusted)
    return _find_damage(files, signature, signed, progress)


def _verified_signature(files: FolderFiles, trusted: Sequence[PublicKey]) -> tuple[bytes, SignedFiles]:
    if not files.exists(SIGNATURE_FILE) and not files.exists(MANIFEST_FILE):
        raise FormatError(
            "this folder is no bundle",
            file=files.path,
            wanted=f"{MANIFEST_FILE} and {SIGNATURE_FILE}",
            next_step="Make a bundle with `tensure seal MODEL -o DIR`.",
        )
    data = files.read(SIGNATURE_FILE, max_bytes=MAX_SIGNATURE_BYTES)
    try:
        return data, verify_signature(data, trusted)
    except DamageError as error:
        error.file = os.path.join(files.path, SIGNATURE_FILE)
        raise


def _check_listing(files: FolderFiles, signed: SignedFiles) -> list[Damage]:
    """Exactly the signed files and `model.sig` are there, and they are files."""
    found = files.listing(SUBFOLDERS)
    wanted = set(signed.digests) | {SIGNATURE_FILE}
    damage = [Damage(path, None, "is missing") for path in sorted(wanted - set(found))]
    for path, kind in sorted(found.items()):
        if path not in wanted:
            damage.append(Damage(path, None, f"{kind if kind != 'file' else 'a file'} that was not signed"))
        elif kind != "file":
            damage.append(Damage(path, None, f"is {kind}"))
    return damage


def _check_sizes(files: FolderFiles, manifest: Manifest) -> None:
    for entry in manifest.files:
        if (size := files.size(entry.path)) != entry.size:
            block = min(size, entry.size) // BLOCK_BYTES
            raise Damage(entry.path, block, f"has {size} bytes where {entry.size} belong").error(files.path)


def _read_leaves(
    files: FolderFiles, signed: SignedFiles, manifest: Manifest, manifest_size: int
) -> dict[str, list[bytes]]:
    """The block table, file by file; its roots must be those in the manifest."""
    sizes = {MANIFEST_FILE: manifest_size, **{entry.path: entry.size for entry in manifest.files}}
    wanted = LEAF_BYTES * _manifest.count_blocks(sizes.values())
    if (size := files.size(BLOCKS_FILE)) != wanted:
        block = min(size, wanted) // BLOCK_BYTES
        raise Damage(BLOCKS_FILE, block, f"has {size} bytes where {wanted} belong").error(files.path)
    data = files.read(BLOCKS_FILE, max_bytes=wanted)
    if hashlib.sha256(data).hexdigest() != signed.digests[BLOCKS_FILE]:
        raise Damage(BLOCKS_FILE, _wrong_table_block(files, data, list(sizes)), _CHANGED).error(files.path)
    leaves = _split_leaves(data, sizes)
    for entry in manifest.files:
        if merkle_root(leaves[entry.path]).hex() != entry.root:
            raise Damage(entry.path, None, "its block table and its root disagree").error(files.path)
    return leaves


def _split_leaves(data: bytes, sizes: Mapping[str, int]) -> dict[str, list[bytes]]:
    leaves: dict[str, list[bytes]] = {}
    at = 0
    for path, size in sizes.items():
        end = at + LEAF_BYTES * num_blocks(size)
        leaves[path] = [data[i : i + LEAF_BYTES] for i in range(at, end, LEAF_BYTES)]
        at = end
    return leaves


def _wrong_table_block(files: FolderFiles, data: bytes, paths: Sequence[str]) -> int | None:
    """Which block of a damaged table is wrong: the first that the files themselves do not bear out."""
    if num_blocks(len(data)) <= 1:
        return 0
    right = b"".join(leaf for path in paths for leaf in files.digests(path)[1])
    return next((i // BLOCK_BYTES for i, (a, b) in enumerate(zip(data, right, strict=False)) if a != b), None)


def _read_signed(
    files: FolderFiles, signed: SignedFiles, path: str, max_bytes: int, leaves: Sequence[bytes] | None
) -> bytes:
    """A whole file whose SHA-256 is the signed one."""
    data = files.read(path, max_bytes=max_bytes)
    if hashlib.sha256(data).hexdigest() != signed.digests.get(path):
        found = BlockDigester()
        found.update(data)
        if leaves is None:
            leaves = _leaves_of_manifest(files, signed, len(found.leaves))
        blocks = damaged_blocks(found.leaves, leaves) if leaves else []
        block = blocks[0] if blocks else (0 if len(data) <= BLOCK_BYTES else None)
        raise Damage(path, block, _CHANGED).error(files.path)
    return data


def _leaves_of_manifest(files: FolderFiles, signed: SignedFiles, count: int) -> list[bytes]:
    """The table's entries for `bundle.json`, which come first; none if the table itself is damaged."""
    data = files.read(BLOCKS_FILE, max_bytes=_manifest.MAX_WEIGHTS_BYTES // BLOCK_BYTES)
    if hashlib.sha256(data).hexdigest() != signed.digests.get(BLOCKS_FILE):
        return []
    return [data[i : i + LEAF_BYTES] for i in range(0, min(count * LEAF_BYTES, len(data)), LEAF_BYTES)]


def _find_damage(
    files: FolderFiles, signature: bytes, signed: SignedFiles, progress: Progress | None
) -> list[Damage]:
    damage = _check_listing(files, signed)
    absent = {d.file for d in damage}
    if (
        SIGNATURE_FILE not in absent
        and files.read(SIGNATURE_FILE, max_bytes=MAX_SIGNATURE_BYTES) != signature
    ):
        damage.append(Damage(SIGNATURE_FILE, None, "changed after it was opened"))
    present = [path for path in sorted(signed.digests) if path not in absent]
    total, done = sum(files.size(path) for path in present), 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    found = {path: files.digests(path, step) for path in present}
    broken = {path for path in present if found[path][0] != signed.digests[path]}
    right, table = _tables_if_sound(files, signed, broken | absent)
    for path in present:
        blocks = damaged_blocks(found[path][1], right[path]) if path in right else []
        if path in broken and not blocks:
            blocks = [0] if found[path][2] <= BLOCK_BYTES else []
            damage.extend([Damage(path, b, _CHANGED) for b in blocks] or [Damage(path, None, _CHANGED)])
        for block in blocks if path in right else []:
            tensors = _tensors_in(table, block) if path == WEIGHTS_FILE else ()
            damage.append(Damage(path, block, _CHANGED, tensors))
    if not damage:
        at = _first_nonzero_gap(table, files.map(WEIGHTS_FILE))
        if at is not None:
            damage.append(Damage(WEIGHTS_FILE, at // BLOCK_BYTES, "bytes between tensors are not zero"))
    return damage


def _tables_if_sound(
    files: FolderFiles, signed: SignedFiles, unsound: set[str]
) -> tuple[dict[str, list[bytes]], tuple[TensorEntry, ...]]:
    """Block digests by file and the tensors' places, as far as the files that say so are whole."""
    if MANIFEST_FILE in unsound:
        return {}, ()
    manifest_data = files.read(MANIFEST_FILE, max_bytes=_manifest.MAX_MANIFEST_BYTES)
    with _as_damage(files, MANIFEST_FILE):
        manifest = _manifest.parse_manifest(manifest_data)
    sizes = {MANIFEST_FILE: len(manifest_data), **{entry.path: entry.size for entry in manifest.files}}
    right: dict[str, list[bytes]] = {}
    if BLOCKS_FILE not in unsound:
        data = files.read(BLOCKS_FILE, max_bytes=LEAF_BYTES * _manifest.count_blocks(sizes.values()))
        right = _split_leaves(data, sizes)
    table: tuple[TensorEntry, ...] = ()
    if TABLE_FILE not in unsound:
        with _as_damage(files, TABLE_FILE):
            text = files.read(TABLE_FILE, max_bytes=_manifest.MAX_TABLE_BYTES)
            table = _manifest.parse_table(text, manifest.file(WEIGHTS_FILE).size)
    return right, table


def _tensors_in(entries: Iterable[TensorEntry], block: int) -> tuple[str, ...]:
    start, end = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
    return tuple(e.name for e in entries if e.offset < end and e.offset + e.num_bytes > start)


def _first_nonzero_gap(entries: Iterable[TensorEntry], data: npt.NDArray[np.uint8]) -> int | None:
    end = 0
    for entry in entries:
        gap = data[end : entry.offset]
        if gap.any():
            return end + int(np.flatnonzero(gap)[0])
        end = entry.offset + entry.num_bytes
    return None


@contextmanager
def _as_damage(files: FolderFiles, path: str) -> Iterator[None]:
    """Inside a signed bundle a malformed table is damage: somebody trusted signed nonsense."""
    try:
        yield
    except DamageError:
        raise
    except TensureError as error:
        file = os.path.join(files.path, path)
        raise DamageError(error.found, file=file, place=error.place, wanted=error.wanted) from None
