"""Why tensors could not be judged, in words, and what a person can do about it.

Knows verdicts. Does not judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from ._difference import Verdict

__all__ = ["BLACK_BOX", "BOTH_FROM_FILES", "TOO_FAR", "UNDECIDED", "advice"]

TOO_FAR: Final = "more steps between common tensors than are taken together"
BOTH_FROM_FILES: Final = "two recordings, neither of which can be computed again"
BLACK_BOX: Final = "a step that cannot be computed again"
UNDECIDED: Final = "it may not mean the same, and nothing after it tells"

_WHAT_TO_DO: Final = {
    TOO_FAR: "say which tensors on the way mean the same (--rename A=B), or compare the model part by part",
    BOTH_FROM_FILES: "compare a recording with the model itself (tensure diff A.trace MODEL)",
    BLACK_BOX: "have one of the two run op by op (--by torch)",
    UNDECIDED: "say what each is in the other run (--rename A=B), and name the runs' outputs",
}


def advice(verdicts: Iterable[Verdict], unmatched: Sequence[str]) -> list[str]:
    """One line for each reason that kept tensors from being judged."""
    counts = Counter(verdict.basis for verdict in verdicts if verdict.kind == "unjudged")
    found: list[str] = []
    for basis, count in counts.most_common():
        line = f"{count} {'tensor was' if count == 1 else 'tensors were'} not judged: {basis}"
        found.append(f"{line}; {_WHAT_TO_DO[basis]}" if basis in _WHAT_TO_DO else line)
    if unmatched:
        shown = ", ".join(unmatched[:4]) + ", ..." * (len(unmatched) > 4)
        found.append(f"without a counterpart in the other run: {shown}; say what it is there (--rename A=B)")
    return found
