"""What came of running a parallel step for real, on drawn numbers, beside the step of one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Replay", "ReplayStatus"]

ReplayStatus: TypeAlias = Literal["agrees", "differs", "unclear", "none"]


@dataclass(frozen=True, slots=True)
class Replay:
    """One answer, which stands beside a verdict and never changes it.

    Args:
        status: whether every result is that of the single device, and every part of it on some rank;
            `unclear` where ways of running it, or the sizes of differences, do not tell, or where ranks of a
            step that is proved come to no end; `none` where it could not be run.
        how: what ran it.
        reason: why it is unclear or could not be run, in full or in part.
        outputs: the results that differ: name, first rank, greatest difference over the largest value.
    """

    status: ReplayStatus
    how: str = ""
    reason: str = ""
    outputs: tuple[tuple[str, str, float], ...] = ()

    def confirms(self, verdict: str) -> bool | None:
        """Whether it bears a verdict out; None where it does not say."""
        if self.status not in ("agrees", "differs") or verdict not in ("proved", "probable", "refuted"):
            return None
        return (self.status == "differs") == (verdict == "refuted")

    def words(self, verdict: str) -> str:
        """One line for a person who has read the verdict."""
        said = {True: "confirmed", False: "not confirmed", None: "not told"}[self.confirms(verdict)]
        if self.status == "none":
            return f"could not be replayed: {self.reason}"
        if self.status == "agrees":
            found = "every result is that of the single device"
        elif self.outputs:
            name, rank, far = self.outputs[0]
            more = f", and {len(self.outputs) - 1} more" if len(self.outputs) > 1 else ""
            found = f"{name} on {rank} is off by {far:.1e} of its largest value{more}"
        else:
            found = self.reason
        reason = f" ({self.reason})" if self.reason and found != self.reason else ""
        return f"{said} by a replay of the step itself in float64, by {self.how}: {found}{reason}"
