"""Names as a stranger may put them into a model: each would break a page that does not escape it."""

from __future__ import annotations

import torch

from tensure.inspection import Looking, Made, Recorder, Trace

HOSTILE = (
    "</script><script>window.broken=1</script>",
    "<img src=x onerror=window.broken=1>",
    "\"' onmouseover='window.broken=1",
    "line\u2028break\u2029end",
    "right\u202eto\u202cleft\u0000null",
    "<!--<script>",
    "]]>&lt;b&gt;&amp;</noscript><svg onload=window.broken=1>",
    "__proto__",
    "constructor",
    "a\ud800b",
    "${window.broken=1}`",
    "</title></style></textarea><iframe srcdoc=x>",
)


def hostile_trace() -> Trace:
    """A run in which every text is hostile."""
    recorder = Recorder(Trace(HOSTILE[1], HOSTILE[6]), Looking(True, True))
    recorder.trace.notes = HOSTILE
    last = f"in {HOSTILE[0]}"
    recorder.leaf(last, torch.ones(1, 3, 8, 8), "input")
    for name in HOSTILE:
        recorder.step(
            name,
            [last],
            [Made(name, torch.ones(2, 2))],
            module=f"{name}.part.{name}",
            source=name,
            arguments=((name, name), ("list", (name, 1.5))),
        )
        last = name
    recorder.trace.outputs = dict(zip(HOSTILE, HOSTILE, strict=True))
    return recorder.trace
