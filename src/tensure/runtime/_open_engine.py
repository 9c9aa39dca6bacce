"""An engine over a bundle's weights: how many pages, which mode, what a receipt says of it.

Knows the modes and what each promises on this processor. Does not know bundles' files or text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import PAGE_TOKENS, Arithmetic, check_threads, exact_is_fused
from tensure.program import DecoderConfig, Weights

from ._engine import Engine
from ._machine import Ran, num_threads, ran_through_kernels
from ._paged_decoder import CACHE_BITS, PagedDecoder

__all__ = [
    "MODES",
    "MODE_ARITHMETIC",
    "Mode",
    "best_mode",
    "check_engine",
    "open_engine",
    "ran_through_engine",
]

Mode: TypeAlias = Literal["exact", "fast"]

MODES: Final = ("exact", "fast")
# Activations of 15 bits stay close to the float model (KL 1e-6) and cost little where memory is the limit.
MODE_ARITHMETIC: Final[Mapping[Mode, Arithmetic]] = {"exact": "fine", "fast": "fast"}
MAX_SEQUENCES: Final = 4096


def open_engine(
    config: DecoderConfig,
    weights: Weights,
    *,
    salt: str,
    max_sequences: int = 8,
    cache_bits: int = 16,
    mode: Mode = "exact",
    threads: int | None = None,
    max_rows_per_step: int = 128,
    in_place: bool = False,
) -> Engine:
    """See `Session.engine`; `salt` is what the cache's contents depend on beside tokens."""
    check_engine(mode, cache_bits)
    if (
        isinstance(max_sequences, bool)
        or not isinstance(max_sequences, int)
        or not 1 <= max_sequences <= MAX_SEQUENCES
    ):
        raise InputError(f"max_sequences is {max_sequences!r:.40}", wanted=f"1 to {MAX_SEQUENCES}")
    if isinstance(max_rows_per_step, bool) or not isinstance(max_rows_per_step, int) or max_rows_per_step < 1:
        raise InputError(f"max_rows_per_step is {max_rows_per_step!r:.40}", wanted="an integer of at least 1")
    threads = num_threads() if threads is None else threads
    check_threads(threads)
    if mode == "exact" and not exact_is_fused():
        raise UnsupportedError(
            "this instruction set has no fused multiply-add: its sums differ from those of all others",
            wanted="x86-64-v3, v4 or NEON for exact results",
            next_step="Use mode='fast'",
        )
    pages = max_sequences * -(-config.context // PAGE_TOKENS)
    core = PagedDecoder(
        config,
        weights,
        num_pages=pages,
        cache_bits=cache_bits,
        threads=threads,
        in_place=in_place,
        arithmetic=MODE_ARITHMETIC[mode],
    )
    return Engine(
        core,
        salt=f"{salt} {cache_bits} {mode} {in_place}".encode(),
        max_rows_per_step=max_rows_per_step,
        max_running=max(64, max_sequences),
    )


def check_engine(mode: str, cache_bits: int) -> None:
    """Refuse what is no mode or no width of the cache."""
    if mode not in MODES:
        raise InputError(f"mode is {mode!r:.40}", wanted=" or ".join(MODES))
    if cache_bits not in CACHE_BITS:
        raise InputError(f"cache_bits is {cache_bits!r:.40}", wanted="16, 8 or 4")


def best_mode() -> Mode:
    """Exact where this processor can; every one that fuses multiply and add can."""
    return "exact" if exact_is_fused() else "fast"


def ran_through_engine(mode: Mode, cache_bits: int) -> Ran:
    """What a receipt says of an engine's output."""
    bits = "15 bits" if MODE_ARITHMETIC[mode] == "fine" else "8 bits, the head's in 15"
    which = f"decoder kernels ({mode}: activations of quantised matrices in {bits}, cache in {cache_bits})"
    return ran_through_kernels(which, "partition" if mode == "exact" else "repeatable")
