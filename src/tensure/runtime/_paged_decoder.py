"""A decoder with its cache in memory: what an engine's steps compute on.

Knows how much memory weights and cache take, and refuses before it takes any. Does not know requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError, LimitError
from tensure.kernels import PAGE_TOKENS, Arithmetic, DecoderStage, StepRows
from tensure.program import DecoderConfig, Weights

from ._decoder_stage import build_stage, stage_bytes
from ._free_memory import free_memory

__all__ = ["CACHE_BITS", "PagedDecoder", "cache_page_bytes"]

CACHE_BITS: Mapping[int, str] = MappingProxyType({16: "f16", 8: "int8", 4: "int4"})
"""Bits of a key or value in the cache, and what the kernels call it."""

_SPARE: Final = 64 << 20  # for everything that is neither weights nor cache


class PagedDecoder:
    """Steps of one model over one cache. Not for several threads at once.

    Args:
        config: what `read_decoder` found.
        weights: by printed name.
        num_pages: of the cache, `PAGE_TOKENS` positions each; as many as one full context takes when None.
        cache_bits: 16, 8 or 4.
        threads: to compute with.
        in_place: see `build_stage`.

    Raises:
        LimitError: weights and cache together exceed the memory that is free; the message has the numbers.
        DamageError: a block of the weights is not what was signed.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        *,
        num_pages: int | None = None,
        cache_bits: int = 16,
        threads: int = 1,
        arithmetic: Arithmetic = "fine",
        in_place: bool = False,
    ) -> None:
        if cache_bits not in CACHE_BITS:
            raise InputError(f"cache_bits is {cache_bits!r:.40}", wanted="16, 8 or 4")
        pages = -(-config.context // PAGE_TOKENS) if num_pages is None else num_pages
        if isinstance(pages, bool) or not isinstance(pages, int) or pages < 1:
            raise InputError(f"num_pages is {pages!r:.40}", wanted="1 or more")
        kv_format = CACHE_BITS[cache_bits]
        cache_bytes = pages * cache_page_bytes(config, cache_bits)
        weight_bytes = stage_bytes(config, weights, in_place=in_place)
        _check_memory(weight_bytes, cache_bytes, pages)
        self.vocab = config.vocab
        self.context = config.context
        self.page_tokens = PAGE_TOKENS
        self.num_pages = pages
        self.threads = threads
        self._stage: DecoderStage = build_stage(
            config, weights, kv_format=kv_format, arithmetic=arithmetic, in_place=in_place, threads=threads
        )
        try:
            # Untouched pages take no memory.
            self._pages = np.empty((pages, self._stage.page_bytes), np.uint8)
        except MemoryError:  # a limit that no file of the system tells
            raise _does_not_fit(weight_bytes, cache_bytes, pages, "what this process may take") from None

    @property
    def cache_pages(self) -> NDArray[np.uint8]:
        """u8 [num_pages, page bytes]: the cache itself, for whoever hashes or protects its pages."""
        return self._pages

    def step(self, rows: StepRows) -> NDArray[np.float32]:
        """The logits [Q, V] of the wanted rows; keys and values of all rows are in the cache afterwards."""
        return self._stage.run(rows, self._pages, threads=self.threads)


def cache_page_bytes(config: DecoderConfig, cache_bits: int) -> int:
    """About the bytes of a page: keys and values of all layers, with the scales of 8 and 4 bits."""
    width = -(-config.head_dim // 32) * 32
    scales = 0 if cache_bits == 16 else 2 * PAGE_TOKENS * (4 if cache_bits == 8 else 8)
    head = PAGE_TOKENS * (config.head_dim + width) * cache_bits // 8 + scales
    return config.layers * config.kv_heads * head


def _check_memory(weight_bytes: int, cache_bytes: int, num_pages: int) -> None:
    free = free_memory()
    if weight_bytes + cache_bytes + _SPARE > free:
        raise _does_not_fit(weight_bytes, cache_bytes, num_pages, f"{_mib(free)} of free memory")


def _does_not_fit(weight_bytes: int, cache_bytes: int, num_pages: int, room: str) -> LimitError:
    return LimitError(
        f"weights of {_mib(weight_bytes)} and a cache of {_mib(cache_bytes)} ({num_pages} pages) "
        f"do not fit into {room}",
        wanted=f"{_mib(weight_bytes + cache_bytes + _SPARE)} free",
        next_step="Use a shorter context, fewer sequences, or a cache of 8 or 4 bits",
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"
