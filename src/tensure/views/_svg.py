"""Small pictures: horizontal bars. Knows numbers and labels; knows no record."""

from __future__ import annotations

from collections.abc import Sequence

from ._html import Markup, el

__all__ = ["bars"]

_ROW, _LABEL, _WIDTH, _VALUE = 26, 230, 1000, 110


def bars(items: Sequence[tuple[str, float, str]], title: str) -> Markup:
    """One bar for each (label, value, value as text), to a common scale; values stand beside them as text."""
    most = max((value for _, value, _ in items), default=0.0) or 1.0
    room = _WIDTH - _LABEL - _VALUE
    rows: list[Markup] = []
    for number, (label, value, said) in enumerate(items):
        y = number * _ROW
        length = max(2.0, value / most * room)
        rows.append(el("text", _short(label), x=_LABEL - 12, y=y + 17, text_anchor="end"))
        rows.append(el("rect", x=_LABEL, y=y + 4, width=f"{length:.1f}", height=_ROW - 9, rx=4, class_="bar"))
        rows.append(el("text", said, x=f"{_LABEL + length + 10:.1f}", y=y + 17, class_="soft"))
    height = max(1, len(items)) * _ROW
    return el(
        "svg", el("title", title), *rows, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title
    )


def _short(label: str) -> str:
    return label if len(label) <= 28 else label[:27] + "…"
