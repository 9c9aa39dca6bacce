"""Where the buffers of a segment lie in one block of memory, and an independent check of that.

`place_buffers` knows when each buffer is live; `arena_faults` does not trust it: it replays the steps over
byte ranges and reports every read of bytes that something else has overwritten. Knows nothing of what a step
computes.

Source: Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference" (greedy by size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensure.errors import LimitError

from ._steps import Arena, Segment, Step, Stored, writes

__all__ = ["ALIGNMENT", "apart", "arena_faults", "place_buffers"]

ALIGNMENT: Final = 64
"""Bytes: a cache line, and the widest vector register."""
MAX_BUFFERS: Final = 1 << 14


def apart(segment: Segment) -> Segment:
    """The same segment with no buffer over another, so that every value is still there after a run."""
    held = [name for name, stored in segment.values.items() if stored.place == "arena"]
    return replace(segment, arena=place_buffers(segment.steps, segment.values, held))


@dataclass(frozen=True, slots=True)
class _Life:
    """A buffer from the step that makes it to the last that reads it, both included."""

    buffer: str
    nbytes: int
    first: int
    last: int


def place_buffers(steps: Sequence[Step], values: Mapping[str, Stored], outputs: Sequence[str]) -> Arena:
    """Offsets by size, the largest buffer first, each into the tightest gap that is free while it lives.

    Buffers of `outputs` live to the end. A step's result never shares bytes with what the step reads.

    Raises:
        LimitError: over 2^14 buffers.
    """
    lives = _lives(steps, values, outputs)
    if len(lives) > MAX_BUFFERS:
        raise LimitError(f"{len(lives)} buffers in one arena", wanted=f"at most {MAX_BUFFERS}")
    placed: list[tuple[int, int, _Life]] = []
    offsets: dict[str, int] = {}
    for life in sorted(lives, key=lambda item: (-item.nbytes, item.first, item.buffer)):
        beside = sorted(
            (lo, hi) for lo, hi, other in placed if other.first <= life.last and life.first <= other.last
        )
        lo = _tightest_gap(beside, life.nbytes)
        offsets[life.buffer] = lo
        placed.append((lo, lo + life.nbytes, life))
    total = max((hi for _, hi, _ in placed), default=0)
    bound = max(
        (sum(_aligned(a.nbytes) for a in lives if a.first <= t <= a.last) for t in _times(lives)), default=0
    )
    return Arena(offsets, _aligned(total), bound)


def arena_faults(segment: Segment) -> tuple[str, ...]:
    """What is wrong with a segment's arena; empty when every read finds the bytes its writer left.

    Also: offsets that are not multiples of ALIGNMENT, buffers that leave the arena or have no place, a step
    that writes over its own operand, an output that is gone at the end.
    """
    faults: list[str] = []
    ranges: dict[str, tuple[int, int]] = {}
    for stored in segment.values.values():
        if stored.place != "arena" or stored.buffer in ranges:
            continue
        lo = segment.arena.offsets.get(stored.buffer)
        if lo is None:
            faults.append(f"{stored.buffer} has no place")
            continue
        nbytes = segment.values[stored.buffer].nbytes
        ranges[stored.buffer] = (lo, lo + nbytes)
        if lo % ALIGNMENT:
            faults.append(f"{stored.buffer} begins at {lo}, no multiple of {ALIGNMENT}")
        if lo < 0 or lo + nbytes > segment.arena.arena_bytes:
            faults.append(f"{stored.buffer} takes bytes {lo} to {lo + nbytes} of {segment.arena.arena_bytes}")
    whole: set[str] = set()

    def need(value: str, reader: str) -> None:
        stored = segment.values[value]
        if stored.place == "arena" and stored.buffer not in whole and stored.buffer in ranges:
            faults.append(f"{reader} reads {value}, which is not there or overwritten")

    for at, step in enumerate(segment.steps):
        for value in step.reads():
            need(value, f"step {at}")
        made: list[str] = []
        for value in writes(step):
            buffer = segment.values[value].buffer
            if buffer not in ranges:
                continue
            for other in (*step.reads(), *made):
                theirs = segment.values[other].buffer
                if theirs in ranges and _overlap(ranges[buffer], ranges[theirs]):
                    faults.append(f"step {at} writes {value} over {other}")
            whole -= {name for name in whole if _overlap(ranges[name], ranges[buffer])}
            whole.add(buffer)
            made.append(value)
    for _, value in segment.outputs:
        need(value, "the caller")
    return tuple(faults)


def _lives(steps: Sequence[Step], values: Mapping[str, Stored], outputs: Sequence[str]) -> list[_Life]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, step in enumerate(steps):
        for value in (*step.reads(), *writes(step)):
            last[values[value].buffer] = at
        for value in writes(step):
            first.setdefault(values[value].buffer, at)
    last.update((values[value].buffer, len(steps)) for value in outputs)
    return [_Life(buffer, values[buffer].nbytes, at, last[buffer]) for buffer, at in first.items()]


def _tightest_gap(taken: Sequence[tuple[int, int]], nbytes: int) -> int:
    """The start of the smallest gap between sorted ranges that holds `nbytes`, or behind all of them."""
    best: tuple[int, int] | None = None
    end = 0
    for lo, hi in taken:
        room = lo - end
        if room >= nbytes and (best is None or room < best[0]):
            best = (room, end)
        end = max(end, _aligned(hi))
    return end if best is None else best[1]


def _times(lives: Sequence[_Life]) -> set[int]:
    """When most can be live: only where one begins."""
    return {life.first for life in lives}


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two half-open ranges share a byte; an empty one never does."""
    return max(a[0], b[0]) < min(a[1], b[1])


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
