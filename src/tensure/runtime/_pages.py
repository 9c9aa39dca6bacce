"""The pages of the key-value cache: who holds each, and which can be found again by what they hold.

Knows page numbers, reference counts, the token ids of full pages and the order of eviction. Does not know
requests, nor what a model writes into a page.

A page that is full and computed is *sealed*: it is registered under the digest of the chain of tokens up to
its end, and never written again, so that any sequence that begins with the same tokens may share it. A page
that is not sealed has one holder. The rule that keeps chains whole:

    whoever holds a sealed page holds the sealed pages before it,

because a holder takes a chain from its head, releases it whole, and swaps its own copy of a page for the one
that was sealed first. Hence nobody holds the child of a page that nobody holds; and as a chain is released
tail first, in the order of last use a child stands before its parent. Eviction takes the first in that
order: always the end of a chain, so that no chain that can be found has a hole.

A swap, like any shared prefix, changes no bit only if the core's bits depend on nothing but the tokens up to
a position: not on how a prompt was cut, nor on what else a step held.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tensure.errors import InputError

__all__ = ["PageKey", "PagePool"]

DIGEST_BYTES = 32


class PageKey(NamedTuple):
    """What a full page is found by: the digest of its chain, and its own token ids (i32 little-endian)."""

    digest: bytes
    token_bytes: bytes


@dataclass(slots=True)
class _Sealed:
    """A sealed page: its key, the sealed page before it, the sealed pages after it."""

    key: PageKey
    parent: int | None
    children: set[int] = field(default_factory=set)


class PagePool:
    """Reference-counted pages with a prefix cache.

    A page is free (no holder, not sealed), idle (no holder, sealed: found until evicted) or held.

    Args:
        num_pages: pages of the cache.
        page_tokens: positions in one page.
        salt: what the contents depend on beside the tokens: the model's digest, its mode of arithmetic.

    Raises:
        InputError: a size is below 1.
    """

    def __init__(self, num_pages: int, page_tokens: int, salt: bytes = b"") -> None:
        for name, size in (("num_pages", num_pages), ("page_tokens", page_tokens)):
            if size < 1:
                raise InputError(f"{name} is {size}", wanted="at least 1")
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.evictions = 0
        self._root = hashlib.blake2b(salt, digest_size=DIGEST_BYTES).digest()
        self._counts = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._sealed: dict[int, _Sealed] = {}
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds and that a prompt may still find."""
        return len(self._idle)

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - self.num_available

    def pages_for(self, num_tokens: int) -> int:
        """Pages that this many positions take."""
        return -(-num_tokens // self.page_tokens)

    # --- holding ----------------------------------------------------------------------------------

    def allocate(self) -> int | None:
        """A page that nobody else holds, at need evicting the least recently used; None when all are held."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            _must(not self._sealed[page].children, f"page {page} evicted before its children")
            self._unseal(page)
            self.evictions += 1
        else:
            return None
        self._counts[page] = 1
        return page

    def share(self, pages: Iterable[int]) -> None:
        """Hold sealed pages that `find` gave, from the head of their chain."""
        for page in pages:
            _must(page in self._sealed, f"page {page} shared before it is full")
            self._idle.pop(page, None)
            self._counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Let go of all pages of a sequence, given in its order; sealed ones stay findable until evicted."""
        for page in reversed(pages):
            _must(self._counts[page] > 0, f"page {page} released by nobody")
            self._counts[page] -= 1
            if not self._counts[page]:
                if page in self._sealed:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    # --- finding ----------------------------------------------------------------------------------

    def extend_keys(self, keys: list[PageKey], ids: Sequence[int], num_pages: int) -> None:
        """Append the keys of further full pages of a sequence, up to `num_pages` keys; `ids` is all of it."""
        while len(keys) < num_pages:
            start = len(keys) * self.page_tokens
            token_bytes = np.asarray(ids[start : start + self.page_tokens], "<i4").tobytes()
            keys.append(
                PageKey(chain_digest(keys[-1].digest if keys else self._root, token_bytes), token_bytes)
            )

    def find(self, keys: Sequence[PageKey]) -> list[int]:
        """The sealed pages of the longest known beginning of this chain; they are not held yet."""
        found: list[int] = []
        for key in keys:
            page = self._standing(key, found[-1] if found else None)
            if page is None:
                break
            found.append(page)
        return found

    def num_idle_of(self, pages: Iterable[int]) -> int:
        """How many of these nobody holds: sharing them makes as many fewer available."""
        return sum(page in self._idle for page in pages)

    def seal(self, page: int, key: PageKey, parent: int | None) -> int:
        """The page to hold from now on for a page that is full: itself, or the one sealed before it.

        `parent` is the caller's page before this one, None at the head. In the second case the caller's own
        page is released and the other is held instead. A page is kept, unsealed, when its parent is not
        sealed (`forget`) or its digest stands for other tokens (a collision).
        """
        if parent is not None and parent not in self._sealed:
            return page
        other = self._standing(key, parent)
        if other is not None and other != page:
            self.share([other])
            self.release([page])
            return other
        if key.digest not in self._by_digest:
            self._sealed[page] = _Sealed(key, parent)
            self._by_digest[key.digest] = page
            if parent is not None:
                self._sealed[parent].children.add(page)
        return page

    def is_sealed(self, page: int) -> bool:
        """Whether this page is full, known by its tokens, and never written until it is evicted."""
        return page in self._sealed

    def sealed_pages(self) -> dict[int, bytes]:
        """Every sealed page with the digest of its chain: what a table of page hashes is kept for."""
        return {page: entry.key.digest for page, entry in self._sealed.items()}

    def forget(self, page: int) -> None:
        """Let nobody find this page, or a page after it, any more: its contents are not to be trusted.

        Holders keep it as a page of their own; what nobody holds is free.
        """
        chain = [page] if page in self._sealed else []
        for member in chain:  # grows while it is walked: a chain may be longer than Python recurses
            chain += self._sealed[member].children
        for member in reversed(chain):
            self._unseal(member)
            if member in self._idle:
                del self._idle[member]
                self._free.append(member)

    def _standing(self, key: PageKey, parent: int | None) -> int | None:
        """The sealed page with this digest, when its tokens and its parent are the same as well."""
        page = self._by_digest.get(key.digest)
        if page is None:
            return None
        entry = self._sealed[page]
        return page if entry.key.token_bytes == key.token_bytes and entry.parent == parent else None

    def _unseal(self, page: int) -> None:
        entry = self._sealed.pop(page)
        del self._by_digest[entry.key.digest]
        if entry.parent is not None:
            self._sealed[entry.parent].children.discard(page)

    # --- for tests ----------------------------------------------------------------------------------

    def check(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Walk over everything and compare; O(pages).

        Args:
            holders: the pages of each sequence, when known: then counts must be exactly theirs.

        Raises:
            AssertionError: a page is in two states or none, a count is wrong, or a chain may get a hole.
        """
        held = {page for page in range(self.num_pages) if self._counts[page] > 0}
        _must(all(count >= 0 for count in self._counts), "a count is negative")
        parts = [*self._free, *self._idle, *held]
        _must(sorted(parts) == list(range(self.num_pages)), "a page is in two states or in none")
        _must(not self._sealed.keys() & set(self._free), "a free page is sealed")
        _must(self._idle.keys() <= self._sealed.keys(), "an idle page is not sealed")
        _must(
            {entry.key.digest: page for page, entry in self._sealed.items()} == self._by_digest,
            "digests and sealed pages differ",
        )
        order = {page: at for at, page in enumerate(self._idle)}
        for page, entry in self._sealed.items():
            if entry.parent is not None:
                _must(entry.parent in self._sealed, f"the chain of page {page} has a hole")
                _must(page in self._sealed[entry.parent].children, f"page {page} is no child of its parent")
            for child in entry.children:
                _must(
                    child in self._sealed and self._sealed[child].parent == page,
                    f"page {page} has a lost child",
                )
            holders_after = sum(self._counts[child] for child in entry.children)
            _must(self._counts[page] >= holders_after, f"page {page} has fewer holders than its children")
            if page in order:
                late = any(order[child] > order[page] for child in entry.children)
                _must(not late, f"page {page} would be evicted before its children")
        if holders is not None:
            counts = Counter(page for pages in holders for page in pages)
            _must(
                all(counts[page] == self._counts[page] for page in range(self.num_pages)),
                "counts are not those of the holders",
            )


def chain_digest(parent: bytes, token_bytes: bytes) -> bytes:
    """blake2b over the digest of the chain before a page and the page's token ids."""
    return hashlib.blake2b(parent + token_bytes, digest_size=DIGEST_BYTES).digest()


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
