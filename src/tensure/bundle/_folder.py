"""Writing a bundle: one signed folder, complete or not there at all.

Knows: how to write a model's texts and weights as a folder whose every byte is under a digest, and to sign
it. `_manifest.py` draws the layout; `_opening.py` reads it back and is offered here too.

Does not know: what a program, plan or proof says; they are bytes here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tensure.bundle import _manifest
from tensure.bundle._atomic import DirectoryWriter, write_directory
from tensure.bundle._blocks import BlockDigester
from tensure.bundle._folder_files import Damage
from tensure.bundle._keys import SigningKey
from tensure.bundle._manifest import (
    BLOCKS_FILE,
    MANIFEST_FILE,
    PROGRAM_FILE,
    SUBFOLDERS,
    TABLE_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Manifest,
    TensorEntry,
)
from tensure.bundle._opening import Bundle, LazyWeights, Progress, find_damage, open_bundle
from tensure.bundle._signing import SIGNATURE_FILE, sign_folder, verify_signature
from tensure.errors import DamageError, LimitError
from tensure.program import StoredTensor

__all__ = [
    "Damage",
    "Bundle",
    "LazyWeights",
    "Progress",
    "find_damage",
    "open_bundle",
    "write_bundle",
]

_CHUNK_BYTES = 4 << 20
_TOP_LEVEL = frozenset([MANIFEST_FILE, BLOCKS_FILE, SIGNATURE_FILE, PROGRAM_FILE, TABLE_FILE, *SUBFOLDERS])


def write_bundle(
    directory: str | os.PathLike[str],
    *,
    name: str,
    program: bytes,
    weights: Mapping[str, StoredTensor],
    key: SigningKey,
    plans: Mapping[str, bytes] | None = None,
    fleets: Mapping[str, bytes] | None = None,
    proofs: Mapping[str, bytes] | None = None,
    assets: Mapping[str, bytes] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write and sign a bundle; it appears complete or not at all.

    `replace` exchanges an existing bundle for this one; what is no bundle is never replaced. `progress` is
    called with the bytes of weights written so far and in all.

    Raises:
        InputError: a name that cannot be a file's, a target that exists, or a refusal by the system.
        LimitError: a text or the weights are too large.
        UnsupportedError: the key is not P-256.
    """
    sections = {"plans": plans or {}, "fleets": fleets or {}, "proofs": proofs or {}, "assets": assets or {}}
    _manifest.check_name(name, "a bundle")
    entries, total = _manifest.lay_out((n, t.shape, t.encoding) for n, t in weights.items())
    texts = {PROGRAM_FILE: program, TABLE_FILE: _manifest.table_bytes(entries)}
    for section, items in sections.items():
        for item, data in items.items():
            _manifest.check_name(item, section)
            texts[_manifest.section_path(section, item)] = data
    for path, data in texts.items():
        if len(data) > _manifest.MAX_FILE_BYTES:
            raise LimitError(f"{len(data)} bytes", file=path, wanted=f"at most {_manifest.MAX_FILE_BYTES}")

    with write_directory(directory, replace=replace, may_replace=_is_bundle) as writer:
        digests = {path: _write(writer, path, [data]) for path, data in texts.items()}
        chunks = _reported(_weight_chunks(entries, weights), total, progress)
        digests[WEIGHTS_FILE] = _write(writer, WEIGHTS_FILE, chunks)
        files = tuple(FileEntry(path, d.size, d.root) for path, d in sorted(digests.items()))
        manifest = Manifest(name, {s: tuple(sorted(items)) for s, items in sections.items()}, files)
        data = _manifest.manifest_bytes(manifest)
        # Read it back as a stranger will: names that differ only in case, for one, are refused here.
        _manifest.parse_manifest(data)
        first = _write(writer, MANIFEST_FILE, [data])
        leaves = [*first.leaves, *(leaf for path in sorted(digests) for leaf in digests[path].leaves)]
        digests[MANIFEST_FILE] = first
        digests[BLOCKS_FILE] = _write(writer, BLOCKS_FILE, [b"".join(leaves)])
        signature = sign_folder(writer.path, key)
        _check_read_back(signature, key, {path: d.sha256 for path, d in digests.items()})
        writer.write(SIGNATURE_FILE, [signature])


def _write(writer: DirectoryWriter, path: str, chunks: Iterable[bytes | memoryview]) -> BlockDigester:
    digester = BlockDigester()

    def digested() -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            digester.update(chunk)
            yield chunk

    writer.write(path, digested())
    return digester


def _weight_chunks(
    entries: Sequence[TensorEntry], weights: Mapping[str, StoredTensor]
) -> Iterator[memoryview]:
    end = 0
    for entry in entries:
        if entry.offset > end:
            yield memoryview(bytes(entry.offset - end))
        view = np.ascontiguousarray(weights[entry.name].data).data
        for at in range(0, len(view), _CHUNK_BYTES):
            yield view[at : at + _CHUNK_BYTES]
        end = entry.offset + entry.num_bytes


def _reported(chunks: Iterable[memoryview], total: int, progress: Progress | None) -> Iterator[memoryview]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(done, total)


def _check_read_back(signature: bytes, key: SigningKey, written: Mapping[str, str]) -> None:
    """The library hashed what lies on the disk; we hashed what we meant to write."""
    signed = verify_signature(signature, [key.public]).digests
    for path in sorted(set(written) | set(signed)):
        if written.get(path) != signed.get(path):
            raise DamageError(
                "what was read back is not what was written",
                file=path,
                next_step="Check this disk and this machine's memory before you seal again.",
            )


def _is_bundle(fd: int) -> bool:
    """Whether an existing folder may be replaced: it is empty, or looks like a bundle and nothing more."""
    names = set(os.listdir(fd))
    return not names or (MANIFEST_FILE in names and SIGNATURE_FILE in names and names <= _TOP_LEVEL)
