"""HTML that cannot be broken by what it shows.

Every text goes through `el` or `text`, which escape it; only what they return is taken as markup. Names
come from strangers' model files, so there is no other way in. Knows tags; knows no record.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Markup", "el", "join", "lines", "page", "table", "text"]

MAX_ROWS = 2000


class Markup(str):
    """HTML that was made here, by escaping."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text, escaped; control characters and direction marks are shown as codes."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(value)[:4000])
    return Markup(html.escape(shown, quote=True))


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """One element; children that are not Markup are escaped, `class_` stands for `class`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>{join(children)}</{tag}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else text(part) for part in parts))


def lines(texts: Iterable[str]) -> Markup:
    """Preformatted text, line by line."""
    return Markup(f"<pre>{chr(10).join(text(line) for line in texts)}</pre>")


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: frozenset[int] = frozenset()
) -> Markup:
    """A table; columns in `numbers` are set right. Beyond 2,000 rows it says how many are left out."""

    def row(cells: Sequence[object], tag: str) -> Markup:
        return el("tr", *(el(tag, c, class_="num" if i in numbers else None) for i, c in enumerate(cells)))

    body = [row(cells, "td") for cells in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        body.append(row([f"{len(rows) - MAX_ROWS} more rows are left out"], "td"))
    inner = el("table", el("thead", row(head, "th")), el("tbody", *body))
    return el("div", inner, class_="scroll")


def page(title: str, kind: str, *body: object) -> str:
    """A whole document. Its policy allows its own style and nothing else: no script, no request."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = Markup(
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{_STYLE}</style>"
    )
    heading = el("header", el("p", kind, class_="kind"), el("h1", title))
    footer = el("footer", "Made by Tensure. A signature proves who said it, not that it is true.")
    document = el("html", el("head", head), el("body", el("main", heading, *body, footer)), lang="en")
    return f"<!doctype html>\n{document}\n"


_STYLE = """
:root{--ink:#1c2733;--soft:#5b6b7b;--line:#dde4ea;--page:#f6f8fa;--card:#fff;--accent:#0b6e72;
--good:#1a7f4b;--bad:#b3261e;--mute:#6f7c89;--bar:#2a9d9a}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9fb0c0;--line:#2b3743;--page:#0f151b;
--card:#161e26;--accent:#5cc9c5;--good:#5fce95;--bad:#ff8a80;--mute:#8895a2;--bar:#3fb5b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 20px 56px}
header{margin-bottom:24px}
.kind{margin:0;color:var(--accent);font-weight:600;letter-spacing:.06em;text-transform:uppercase;
font-size:13px}
h1{margin:4px 0 0;font-size:30px;line-height:1.2;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 12px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;margin:16px 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.fact b{display:block;font-size:22px;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.fact span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:7px 14px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}
tr:last-child td{border-bottom:0}
.num{text-align:right;font-variant-numeric:tabular-nums}
code,.code{font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{margin:0;overflow-x:auto;white-space:pre;font:13px/1.55 ui-monospace,Menlo,Consolas,monospace}
.verdict{border-left:5px solid var(--good)}
.verdict.bad{border-left-color:var(--bad)}
.verdict h2{margin:0;color:var(--good)}
.verdict.bad h2{color:var(--bad)}
.verdict p{margin:6px 0 0;overflow-wrap:anywhere}
.basis{white-space:nowrap;font-size:13px;padding:1px 9px;border-radius:999px;border:1px solid currentColor}
.checked-now{color:var(--good)}
.basis.bad{color:var(--bad)}
.checked-at-load{color:var(--accent)}
.asserted{color:var(--soft)}
.absent{color:var(--mute);border-style:dashed}
svg{display:block;width:100%;height:auto}
svg text{font:15px system-ui,sans-serif;fill:var(--ink)}
svg .soft{fill:var(--soft)}
svg .bar{fill:var(--bar)}
.note{color:var(--soft);font-size:14px;overflow-wrap:anywhere}
footer{color:var(--mute);font-size:13px;margin-top:28px}
"""
