"""Digests of a byte sequence in blocks, and the Merkle root over them.

Knows: the block size, the digest of one block, and the tree of RFC 9162 (Certificate Transparency) over the
block digests: a leaf is SHA-256(0x00 || block), a node is SHA-256(0x01 || left || right), a lone node is
carried up unchanged. The root therefore fixes every byte and their number, and one block can be checked
against the table without reading its neighbours.

Does not know: files, names or signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

__all__ = ["BLOCK_BYTES", "LEAF_BYTES", "BlockDigester", "leaf_digest", "merkle_root", "num_blocks"]

# 64 KiB: 0.05 % of the weights in table, and a single flip is named to within one block of the later scrub.
BLOCK_BYTES = 1 << 16
LEAF_BYTES = 32


def num_blocks(size: int) -> int:
    """How many blocks `size` bytes fill; the last may be short, and no bytes fill none."""
    return -(-size // BLOCK_BYTES)


def leaf_digest(block: bytes | memoryview) -> bytes:
    """32 bytes: SHA-256 of a zero byte and the block."""
    digest = hashlib.sha256(b"\0")
    digest.update(block)
    return digest.digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """32 bytes fixing all leaves and their order; SHA-256 of nothing if there are none (RFC 9162, 2.1)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


class BlockDigester:
    """Takes bytes in pieces of any size; gives their count, SHA-256 and block digests."""

    def __init__(self) -> None:
        self.size = 0
        self._whole = hashlib.sha256()
        self._leaves: list[bytes] = []
        self._open = hashlib.sha256(b"\0")
        self._room = BLOCK_BYTES

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        self._whole.update(view)
        for piece in self._split(view):
            self._open.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._leaves.append(self._open.digest())
                self._open, self._room = hashlib.sha256(b"\0"), BLOCK_BYTES

    @property
    def leaves(self) -> list[bytes]:
        """The digest of each block so far, a short last one included."""
        return [*self._leaves, self._open.digest()] if self._room < BLOCK_BYTES else list(self._leaves)

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far, in hex."""
        return self._whole.hexdigest()

    @property
    def root(self) -> str:
        """Merkle root over the blocks so far, in hex."""
        return merkle_root(self.leaves).hex()

    def _split(self, view: memoryview) -> Iterator[memoryview]:
        at = 0
        while at < len(view):
            step = min(self._room, len(view) - at)
            yield view[at : at + step]
            at += step
