"""Block digests and the Merkle root, against the recursive definition of RFC 9162."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tensure.bundle._blocks import BLOCK_BYTES, BlockDigester, leaf_digest, merkle_root, num_blocks


def by_the_book(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = by_the_book(leaves[:split]), by_the_book(leaves[split:])
    return hashlib.sha256(b"\1" + left + right).digest()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40))
def test_root_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == by_the_book(leaves)


@given(st.lists(st.integers(0, 100_000), max_size=6), st.integers(0, 255))
def test_pieces_do_not_matter(sizes: list[int], fill: int) -> None:
    data = bytes([fill]) * sum(sizes)
    digester, at = BlockDigester(), 0
    for size in sizes:
        digester.update(data[at : at + size])
        at += size
    blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
    assert digester.leaves == [leaf_digest(block) for block in blocks]
    assert (digester.size, len(blocks)) == (len(data), num_blocks(len(data)))
    assert digester.sha256 == hashlib.sha256(data).hexdigest()
    assert digester.root == merkle_root(digester.leaves).hex()


def test_order_and_number_matter() -> None:
    a, b = leaf_digest(b"a"), leaf_digest(b"b")
    roots = {merkle_root(leaves) for leaves in ([], [a], [a, a], [a, b], [b, a], [a, b, b])}
    assert len(roots) == 6
