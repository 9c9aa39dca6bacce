"""A recorded run as one HTML page that needs no network: graph, table, memory, histograms, channels.

Knows the page's frame, its policy and its budget of bytes. Does not know how a script draws
(`_page_assets/`), what a column holds (`_page_data.py`), nor how values become pictures (`_pictures.py`).
Whatever a stranger's model may name goes into the page as escaped text, or as JSON in which no tag can end;
scripts only ever set text, which the policy enforces.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from tensure.errors import LimitError
from tensure.views import Markup, el, text

from ._page_data import columns
from ._pictures import histograms, maps
from ._recording import Recording
from ._records import TensorFacts, Trace

__all__ = ["page_of"]

MAX_BYTES: Final = 5 << 20
_SCRIPTS: Final = (
    "data.js",
    "paint.js",
    "tree.js",
    "layout.js",
    "graph.js",
    "columns.js",
    "table.js",
    "timeline.js",
    "pictures.js",
    "detail.js",
    "main.js",
)
_MAX_NOTES: Final = 8
_WITHOUT_SCRIPTS: Final = (
    "The graph, the table and the pictures of this page are drawn by a script that lies in the page itself. "
    "Scripts are switched off here; the figures above are all there is to see without them."
)


def page_of(recording: Recording | Trace, *, title: str | None = None, max_bytes: int = MAX_BYTES) -> str:
    """One self-contained HTML page of a run, at most `max_bytes` long in UTF-8.

    Facts come first. Where values were kept, histograms and then images of channels take what room is left,
    as large as they fit; the page says what was left out.

    Args:
        recording: a finished run, or its trace alone.
        title: shown on top; the run's name when left out.
        max_bytes: of the page.

    Raises:
        LimitError: the facts alone take more.
    """
    trace = recording if isinstance(recording, Trace) else recording.trace
    values = None if isinstance(recording, Trace) else recording.values
    data = columns(trace)
    frame = _document(trace, title or trace.name, "")
    room = max_bytes - len(frame.encode()) - len(_json(data)) - _SLACK
    if room < 0:
        raise LimitError(
            f"a page of {len(trace.steps):,} steps takes {max_bytes - room:,} bytes",
            wanted=f"at most {max_bytes:,}",
            next_step="Record fewer steps, or pass a larger max_bytes",
        )
    without: list[str] = [] if values is not None else [_NOT_KEPT]
    for key, make in (("histograms", histograms), ("maps", maps)):
        if values is None:
            break
        found = make(trace, values, room)
        taken = 0 if found is None else len(_json({key: found}))
        if found is not None and taken <= room:
            data[key], room = found, room - taken
            if left_out := found.get("left_out"):
                without.append(f"{left_out:,} tensors have no image, to keep the page small.")
        else:
            without.append(f"There are no {_PICTURES[key]}: nothing to draw, or no room on the page.")
    return _document(trace, title or trace.name, _json({**data, "without": without}))


_NOT_KEPT: Final = "The values were not kept: there are no histograms and no images."
_PICTURES: Final = {"histograms": "histograms", "maps": "images of channels"}
_SLACK: Final = 1024
"""Bytes for the sentences on what was left out, and for what a picture's frame takes."""


def _json(data: Mapping[str, Any]) -> str:
    """JSON in ASCII that no HTML parser can take for a tag, an entity or a comment."""
    found = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- the frame -------------------------------------------------------------------------------------


def _document(trace: Trace, title: str, data: str) -> str:
    style, script = _assets()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{style}</style>"
    )
    body = (
        f'<a class="skip" href="#table">Skip to the table</a>{_summary(trace, title)}'
        f'<noscript><p class="note alone">{_WITHOUT_SCRIPTS}</p></noscript>{_frame()}'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


@cache
def _assets() -> tuple[str, str]:
    """The style and the script; the script is one closure, so that no name of it is global."""
    folder = files(__package__) / "_page_assets"
    parts = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return (folder / "page.css").read_text(encoding="utf-8"), f'(() => {{\n"use strict";\n{parts}\n}})();\n'


@cache
def _frame() -> str:
    return (files(__package__) / "_page_assets" / "frame.html").read_text(encoding="utf-8")


def _hash(inline: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}"


def _summary(trace: Trace, title: str) -> Markup:
    """What a person asks first; made here, so that it is there without scripts too."""
    notes = [el("p", note, class_="note") for note in trace.notes[:_MAX_NOTES]]
    if len(trace.notes) > _MAX_NOTES:
        notes.append(el("p", f"{len(trace.notes) - _MAX_NOTES} more notes", class_="note"))
    heading = el(
        "div", el("p", "recorded run", class_="kind"), el("h1", title), el("p", trace.how, class_="how")
    )
    return el("header", el("div", heading, el("dl", *_facts(trace), class_="facts"), class_="top"), *notes)


def _facts(trace: Trace) -> Iterator[Markup]:
    facts = list(trace.tensors.values())
    made = [item for item in facts if item.step >= 0]
    yield _fact("steps", f"{len(trace.steps):,}")
    yield _fact("tensors made", f"{len(made):,}")
    yield _fact("peak live memory", _bytes(trace.peak_bytes))
    weights = sum(item.nbytes for item in facts if item.origin == "weight")
    yield _fact("of weights", _bytes(weights))
    bad = next((item for item in facts if _not_finite(item)), None)
    if not any(item.statistics for item in facts):
        yield _fact("NaN or Inf", "not looked at")
    elif bad is None:
        yield _fact("NaN or Inf", "none", "good")
    else:
        where = f"step {bad.step}" if bad.step >= 0 else bad.name
        link = el("a", where, href=f"#step-{bad.step}") if bad.step >= 0 else where
        yield _fact("first NaN or Inf", link, "bad")
    dtypes = Counter(item.dtype for item in made).most_common(4)
    yield _fact("dtypes", ", ".join(f"{name} × {count:,}" for name, count in dtypes) or "–")
    in_place, aliases = sum(item.in_place for item in facts), sum(item.alias_of is not None for item in facts)
    yield _fact("written in place", f"{in_place:,}")
    yield _fact("share memory", f"{aliases:,}")


def _not_finite(item: TensorFacts) -> bool:
    found = item.statistics
    return found is not None and found.nans + found.infinities > 0


def _fact(what: str, value: object, class_: str | None = None) -> Markup:
    return el("div", el("dt", what), el("dd", value, class_=class_), class_="fact")


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
