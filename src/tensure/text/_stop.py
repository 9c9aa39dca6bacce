"""Stop strings that may span tokens and are never shown.

Knows text as it arrives in pieces. Does not know tokens, models or why a stop string was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensure.errors import InputError, LimitError

__all__ = ["MAX_STOPS", "MAX_STOP_CHARS", "StopMatcher", "check_stops"]

MAX_STOPS = 16
MAX_STOP_CHARS = 1024


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Give the stop strings as a tuple; refuse empty, over-long or too many."""
    if isinstance(stops, str):
        raise InputError(f"stop is one string, {stops[:40]!r}", wanted="a sequence of strings")
    for number, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop:
            raise InputError(f"stop[{number}] is {stop!r:.40}", wanted="a non-empty string")
        if len(stop) > MAX_STOP_CHARS:
            raise LimitError(f"stop[{number}] has {len(stop)} characters", wanted=f"at most {MAX_STOP_CHARS}")
    if len(stops) > MAX_STOPS:
        raise LimitError(f"{len(stops)} stop strings", wanted=f"at most {MAX_STOPS}")
    return tuple(stops)


class StopMatcher:
    """Passes text through up to the first stop string, holding back whatever may still become one.

    The text ends before the stop string that is complete first; of two that are complete at the same
    character, the longer. So the answer depends on the text alone, never on how it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = check_stops(stops)
        self._held = ""
        self._stopped_by: str | None = None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, or None while none has."""
        return self._stopped_by

    def feed(self, piece: str) -> str:
        """Give what is safe to show now that `piece` has arrived; nothing once stopped."""
        if self._stopped_by is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, _, self._stopped_by = min(ends)
            self._held = ""
            return text[: end - len(self._stopped_by)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Give what was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
