"""Pages: found by what they hold, evicted from the end of a chain, and counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import InputError
from tensure.runtime import _pages
from tensure.runtime._pages import PageKey, PagePool


def keys_of(pool: PagePool, ids: Sequence[int]) -> list[PageKey]:
    keys: list[PageKey] = []
    pool.extend_keys(keys, ids, len(ids) // pool.page_tokens)
    return keys


def fill(pool: PagePool, ids: Sequence[int]) -> list[int]:
    """The held pages of a sequence that has been computed, beginning with those that can be found."""
    keys = keys_of(pool, ids)
    pages = pool.find(keys)
    pool.share(pages)
    for at in range(len(pages), len(keys)):
        page = pool.allocate()
        assert page is not None
        pages.append(pool.seal(page, keys[at], pages[at - 1] if at else None))
    return pages


def test_what_was_computed_is_found_again_and_longest_first() -> None:
    pool = PagePool(8, 2, b"salt")
    pages = fill(pool, [1, 2, 3, 4, 5, 6])
    pool.release(pages)
    assert pool.num_idle == 3 and pool.num_held == 0
    assert pool.find(keys_of(pool, [1, 2, 3, 4, 5, 6, 7, 8])) == pages
    assert pool.find(keys_of(pool, [1, 2, 3, 4, 9, 9])) == pages[:2]
    assert pool.find(keys_of(pool, [3, 4])) == []  # the same page after another beginning
    assert pool.find(keys_of(PagePool(8, 2, b"another model"), [1, 2])) == []
    pool.check([])


def test_eviction_takes_the_end_of_the_chain_used_longest_ago() -> None:
    pool = PagePool(6, 1)
    old, new = fill(pool, [1, 2, 3]), fill(pool, [7, 8, 9])
    pool.release(new)
    pool.release(old)
    pool.share(new[:1])  # its head is used once more
    pool.release(new[:1])
    assert [pool.allocate() for _ in range(6)] == [new[2], new[1], old[2], old[1], old[0], new[0]]
    assert pool.allocate() is None
    assert pool.evictions == 6
    pool.check([[*old, *new]])


def test_a_page_made_twice_is_kept_once() -> None:
    pool = PagePool(8, 2)
    first = fill(pool, [1, 2, 3, 4])
    own = [pool.allocate(), pool.allocate()]
    assert None not in own
    keys = keys_of(pool, [1, 2, 3, 4])
    held: list[int] = []
    for at, page in enumerate(own):
        assert page is not None
        held.append(pool.seal(page, keys[at], held[-1] if held else None))
    assert held == first
    assert pool.num_held == 2
    pool.check([first, held])


def test_forget_takes_what_follows_along_and_leaves_holders_their_pages() -> None:
    pool = PagePool(6000, 1)
    long = fill(pool, range(5000))  # longer than Python recurses
    other = fill(pool, [0, 1, 7])
    pool.release(long)
    pool.forget(long[1])
    assert pool.find(keys_of(pool, range(10))) == long[:1]
    assert pool.num_held == 3 and pool.num_idle == 0
    pool.check([other])
    # What is computed after a forgotten page is not offered to others.
    page = pool.allocate()
    assert page is not None
    assert pool.seal(page, keys_of(pool, [0, 1, 7, 8])[3], other[-1]) == page
    assert not pool.is_sealed(page)
    pool.release([*other, page])
    assert pool.num_available == 6000
    pool.check([])


def test_a_collision_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pages, "chain_digest", lambda parent, token_bytes: b"the same for all")
    pool = PagePool(4, 1)
    first = fill(pool, [1])
    second = fill(pool, [2])
    assert pool.find(keys_of(pool, [1])) == first
    assert pool.find(keys_of(pool, [2])) == []
    assert not pool.is_sealed(second[0])
    pool.check([first, second])


def test_a_page_with_another_parent_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pages, "chain_digest", lambda parent, token_bytes: token_bytes)
    pool = PagePool(8, 1)
    first = fill(pool, [1, 2])
    assert pool.find(keys_of(pool, [3, 2])) == []
    second = fill(pool, [3, 2])
    assert pool.is_sealed(second[0]) and not pool.is_sealed(second[1])
    assert pool.find(keys_of(pool, [3, 2])) == second[:1]
    assert pool.find(keys_of(pool, [1, 2])) == first
    pool.check([first, second])


@given(st.integers(1, 12), st.integers(1, 3), st.randoms(use_true_random=False))
def test_pool_against_a_plain_model(num_pages: int, page_tokens: int, rng: random.Random) -> None:
    """The model: a set of chains with the time of their last use, and nothing clever."""
    pool = PagePool(num_pages, page_tokens)
    holders: list[tuple[list[int], list[int]]] = []  # ids, pages
    known: dict[tuple[int, ...], int] = {}  # beginnings that must be found -> the time of their last use
    clock = 0
    for _ in range(60):
        clock += 1
        if holders and rng.random() < 0.4:
            ids, pages = holders.pop(rng.randrange(len(holders)))
            pool.release(pages)
        else:
            ids = [rng.randrange(2) for _ in range(page_tokens * rng.randint(1, 5))]
            chains = [tuple(ids[: at + page_tokens]) for at in range(0, len(ids), page_tokens)]
            found = pool.find(keys_of(pool, ids))
            assert len(found) == sum(chain in known for chain in chains)
            missing = len(chains) - len(found)
            if missing > pool.num_available - pool.num_idle_of(found):
                continue
            held = {tuple(h[: at + page_tokens]) for h, _ in holders for at in range(0, len(h), page_tokens)}
            room = num_pages - len(known.keys() | held) - missing
            for _ in range(max(0, -room)):
                idle = [chain for chain in known if chain not in held and chain not in chains]
                del known[min(idle, key=lambda chain: (known[chain], -len(chain)))]
            holders.append((ids, fill(pool, ids)))
        for at in range(0, len(ids), page_tokens):
            known[tuple(ids[: at + page_tokens])] = clock
        pool.check([pages for _, pages in holders])
        for chain in known:
            assert len(pool.find(keys_of(pool, chain))) == len(chain) // page_tokens, "a chain has a hole"
        assert len(pool.sealed_pages()) == len(known)


def damaged(pool: PagePool) -> dict[str, Callable[[], None]]:
    """Ways in which the books can be wrong."""

    def twice_free() -> None:
        pool._free.append(pool._free[0])

    def lost() -> None:
        pool._free.pop()

    def miscounted() -> None:
        pool._counts[next(page for page in range(8) if pool._counts[page])] += 1

    def free_and_sealed() -> None:
        page, _ = pool._idle.popitem()
        pool._free.append(page)

    def head_first() -> None:
        pool._idle.move_to_end(next(reversed(pool._idle)), last=False)

    def wrong_digest() -> None:
        pool._by_digest.popitem()

    def hole() -> None:
        head = next(page for page, entry in pool._sealed.items() if entry.parent is None and entry.children)
        pool._unseal(head)
        pool._counts[head] = 1
        pool._idle.pop(head, None)

    return {
        f.__name__: f for f in (twice_free, lost, miscounted, free_and_sealed, head_first, wrong_digest, hole)
    }


@pytest.mark.parametrize("what", damaged(PagePool(1, 1)))
def test_check_sees_wrong_books(what: str) -> None:
    pool = PagePool(8, 1)
    held = fill(pool, [1, 2])
    pool.release(fill(pool, [3, 4, 5]))
    pool.check([held])
    damaged(pool)[what]()
    with pytest.raises(AssertionError):
        pool.check([held])


@pytest.mark.parametrize(("num_pages", "page_tokens"), [(0, 4), (4, 0), (-1, 1)])
def test_sizes_below_one_are_refused(num_pages: int, page_tokens: int) -> None:
    with pytest.raises(InputError, match="wanted at least 1"):
        PagePool(num_pages, page_tokens)


def test_misuse_is_an_error_of_ours() -> None:
    pool = PagePool(4, 1)
    page = pool.allocate()
    assert page is not None
    with pytest.raises(AssertionError, match="shared before it is full"):
        pool.share([page])
    pool.release([page])
    with pytest.raises(AssertionError, match="released by nobody"):
        pool.release([page])
