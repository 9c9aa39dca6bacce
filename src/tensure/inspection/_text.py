"""How a run looks in plain text: a table of its steps, one line each, or one step in full.

Knows the records of a trace and words for their fields. Computes nothing: all was found before. Knows no
terminal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from tensure.errors import InputError

from ._records import Trace
from ._summary import select_steps

if TYPE_CHECKING:
    from ._records import Step, TensorFacts
    from ._stepper import Stop
    from ._summary import Summary

__all__ = [
    "Traced", "aligned", "statistics_rows", "step_line", "step_lines", "stop_line", "summary_lines",
    "table_of", "table_rows", "where_lines", "without_empty",
]  # fmt: skip

SHORT: Final = 36
"""Characters of a module's path in the short table; the end of it tells more than its beginning."""

_HEAD: Final = (
    "step",
    "module",
    "op",
    "out",
    "marks",
    "min",
    "max",
    "mean",
    "std",
    "L2",
    "zeros",
    "NaN/Inf",
    "live",
)
_LONG: Final = (
    "name", "rank", "device", "layout", "strides", "storage", "bytes", "denormals", "scale", "saturated",
    "ms", "phase", "source", "reads", "arguments",
)  # fmt: skip


class Traced(Protocol):
    """What has a trace: a recording, an open or finished watch."""

    @property
    def trace(self) -> Trace: ...


DEFAULT: Final = ("step", "op", "out", "marks", "min", "max", "mean")


def table_of(
    run: Trace | Traced,
    columns: str | Sequence[str] = DEFAULT,
    *,
    only: Sequence[str] = (),
    leaves: bool = False,
) -> str:
    """A run as lines of text: one for each tensor that a step made, in aligned columns.

    Args:
        run: a trace, or what has one.
        columns: their names, as a sequence or as words in one text; one in which nothing stands is left out.
        only: patterns of an op, a module or a tensor, as in file names; the steps that fit none are left out.
        leaves: the tensors that were there before the first step too, first.

    Raises:
        InputError: a column that there is not, or a pattern that fits nothing.
    """
    trace = run if isinstance(run, Trace) else run.trace
    wanted = columns.split() if isinstance(columns, str) else list(columns)
    rows = table_rows(trace, select_steps(trace, only), long=True, digest=True, over=True, leaves=leaves)
    for name in wanted:
        if name not in rows[0]:
            near = difflib.get_close_matches(name[:40], rows[0], n=1)
            raise InputError(
                f"no column {name[:40]!r}",
                wanted=", ".join(rows[0]),
                next_step=f"Did you mean {near[0]!r}?" if near else None,
            )
    places = [rows[0].index(name) for name in wanted]
    return "\n".join(aligned(without_empty([tuple(row[at] for at in places) for row in rows])))


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines whose cells stand below each other."""
    widths = [
        max(len(row[at]) for row in rows if len(row) > at) for at in range(max(map(len, rows), default=0))
    ]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def table_rows(
    trace: Trace,
    steps: Iterable[Step],
    *,
    long: bool = False,
    digest: bool = False,
    over: bool = False,
    leaves: bool | None = None,
) -> list[tuple[str, ...]]:
    """A head, then one row for each tensor that a step made; with `leaves` (if not said: with `long`) also
    the leaves, first.
    """
    extra = (*(("over",) if over else ()), *(("digest",) if digest else ()))
    rows = [(*_HEAD, *extra, *(_LONG if long else ()))]

    def row(step: Step | None, facts: TensorFacts | None) -> None:
        where = (str(step.index), step.module, step.op) if step else ("-", "", facts.origin if facts else "")
        if not long:
            where = (where[0], _tail(where[1]), where[2])
        cells = _cells(facts) if facts else ("",) * 9
        live = _human_bytes(step.live_bytes) if step else ""
        more = (*((_over(facts),) if over else ()), *(((facts and facts.digest) or "",) if digest else ()))
        rows.append((*where, *cells, live, *more, *(_more(step, facts) if long else ())))

    if long if leaves is None else leaves:
        for facts in trace.leaves():
            row(None, facts)
    for step in steps:
        for facts in trace.made(step):
            row(step, facts)
        if not step.outs:
            row(step, None)
    return rows


def without_empty(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """Rows without the columns in which none but the head has anything."""
    kept = [at for at in range(len(rows[0])) if any(row[at] for row in rows[1:])] if len(rows) > 1 else []
    return [tuple(row[at] for at in kept) for row in rows] if kept else rows


def step_line(trace: Trace, step: Step) -> str:
    """A step in one line: index, op, module, source, types, range and mean, marks, live memory."""
    place = "  ".join(word for word in (step.module, step.source) if word)
    made = "; ".join(_short(facts) for facts in trace.made(step)) or "makes nothing"
    back = " (backward)" if step.phase == "backward" else ""
    return f"[{step.index}] {step.op}{back}  {place}  {made}  live {_human_bytes(step.live_bytes)}"


def step_lines(trace: Trace, step: Step) -> list[str]:
    """A step in full: what it was given, what it made, what it wrote over."""
    lines = [step_line(trace, step)]
    lines += [
        f"  reads  {name}  {trace.tensors[name].type}{_bad(trace.tensors[name])}" for name in step.reads
    ]
    lines += [f"  with   {key} = {value}" for key, value in step.arguments]
    lines += [f"  wrote over {name}" for name in step.wrote]
    for facts in trace.made(step):
        lines.append(f"  makes  {facts.name}  {facts.type}  {_marks(facts)}".rstrip())
        lines += [f"         {key}: {value}" for key, value in statistics_rows(facts)]
    return lines


def where_lines(trace: Trace, step: Step) -> list[str]:
    """Where a step stands in the code, and where its operands come from."""
    lines = [f"step {step.index} {step.op}", f"  module  {step.module or '(none)'}"]
    lines += [f"  source  {step.source or '(not known)'}", f"  phase   {step.phase}"]
    for name in step.reads:
        maker = trace.maker(name)
        come = f"step {maker.index} {maker.op}  {maker.module}" if maker else trace.tensors[name].origin
        lines.append(f"  {name}  {trace.tensors[name].type}  from {come}".rstrip())
    return lines


def statistics_rows(facts: TensorFacts) -> list[tuple[str, str]]:
    """All that is known of a tensor's values, as (what, value)."""
    found, rows = facts.statistics, list[tuple[str, str]]()
    if found is not None:
        figures = (("min", found.minimum), ("max", found.maximum), ("mean", found.mean), ("std", found.std))
        rows += [(key, _figure(value)) for key, value in (*figures, ("L2", found.l2)) if value is not None]
        rows += [("zeros", f"{found.zeros} of {found.count}")] if found.zeros else []
        rows += [("denormals", str(found.denormals))] if found.denormals else []
        rows += [("NaN/Inf", _nonfinite(facts))] if found.nans or found.infinities else []
        rows += [("over the limit", _over(facts))] if found.over_limit else []
    if facts.quantised is not None:
        rows.append(("scale", _scale(facts)))
        if facts.quantised.saturated is not None:
            rows.append(("saturated", f"{facts.quantised.saturated:.2%}"))
    if facts.digest is not None:
        rows.append(("digest", facts.digest))
    return rows


def summary_lines(trace: Trace, found: Summary) -> list[str]:
    """The figures of a run, with what is wrong in it."""
    when = f" after step {found.peak_step}" if found.num_steps else ", no step ran"
    lines = [
        f"{trace.name}: {found.num_steps} steps made {found.num_made} tensors; {trace.how}",
        f"peak live memory: {_human_bytes(found.peak_bytes)}{when}",
    ]
    bad = found.nonfinite
    if bad is None:
        lines.append("NaN/Inf: none")
    else:
        at = f"{bad.origin} {bad.name}" if bad.step < 0 else f"step {bad.step}, {bad.name}"
        lines.append(f"NaN/Inf: first in {at} ({_nonfinite(bad)}); {found.num_nonfinite} tensors in all")
    if found.over:
        lines.append(f"over the limit: {found.over} tensors")
    if found.denormal:
        lines.append(f"denormals: in {found.denormal} tensors")
    if found.in_place:
        lines.append(f"written in place: by {found.in_place} steps")
    if found.saturated:
        worst = found.saturated[0]
        share = worst.quantised.saturated if worst.quantised else 0.0
        lines.append(f"saturated: {len(found.saturated)} tensors, most {worst.name} ({share:.2%})")
    return [*lines, *(f"note: {note}" for note in trace.notes)]


def stop_line(stop: Stop) -> str:
    """Why one is where one is; "" where one asked to be there."""
    if stop.why == "end":
        return "the run is over"
    if stop.why == "interrupted":
        return "interrupted"
    return "; ".join(f"break {hit.number} ({hit.condition.text}): {hit.reason}" for hit in stop.hits)


# --- cells ---


def _human_bytes(count: int) -> str:
    """As `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    size = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _cells(facts: TensorFacts) -> tuple[str, ...]:
    found = facts.statistics
    start = (facts.type, _marks(facts))
    if found is None:
        return (*start, *("",) * 7)
    share = f"{found.zeros / found.count:.1%}" if found.zeros and found.count else ""
    figures = (found.minimum, found.maximum, found.mean, found.std, found.l2)
    return (*start, *(_figure(value) for value in figures), share, _nonfinite(facts))


def _more(step: Step | None, facts: TensorFacts | None) -> tuple[str, ...]:
    about: tuple[str, ...] = ("",) * 10
    if facts is not None:
        saturated = facts.quantised.saturated if facts.quantised else None
        about = (
            facts.name,
            str(facts.rank),
            facts.device,
            facts.layout,
            "" if facts.strides is None else ",".join(map(str, facts.strides)),
            f"{facts.storage}+{facts.offset}",
            str(facts.nbytes),
            str(facts.statistics.denormals or "") if facts.statistics else "",
            _scale(facts),
            "" if saturated is None else f"{saturated:.2%}",
        )
    if step is None:
        return (*about, "", "", "", "", "")
    given = ", ".join(f"{key}={value}" for key, value in step.arguments)
    phase = step.phase if step.phase != "forward" else ""
    return (*about, f"{step.seconds * 1e3:.3f}", phase, step.source, ", ".join(step.reads), given[:200])


def _marks(facts: TensorFacts) -> str:
    marks = [facts.layout] if facts.layout != "strided" else []
    marks += [facts.memory] if facts.memory not in ("contiguous", "none") else []
    marks += ["in-place"] if facts.in_place else []
    marks += [f"alias of {_tail(facts.alias_of)}"] if facts.alias_of and not facts.in_place else []
    marks += ["quantised"] if facts.quantised else []
    return ", ".join(marks)


def _short(facts: TensorFacts) -> str:
    found = facts.statistics
    text = facts.type
    if found is not None and found.minimum is not None:
        text += f" min {_figure(found.minimum)} max {_figure(found.maximum)} mean {_figure(found.mean)}"
    return text + _bad(facts)


def _bad(facts: TensorFacts) -> str:
    found = facts.statistics
    return f"  {_nonfinite(facts)}" if found is not None and (found.nans or found.infinities) else ""


def _nonfinite(facts: TensorFacts) -> str:
    found = facts.statistics
    if found is None or not (found.nans or found.infinities):
        return ""
    counts = ((found.nans, "NaN"), (found.infinities, "Inf"))
    return ", ".join(f"{count} {word}" for count, word in counts if count) + f" @{found.first_nonfinite}"


def _over(facts: TensorFacts | None) -> str:
    found = facts.statistics if facts else None
    return f"{found.over_limit} @{found.first_over}" if found and found.over_limit else ""


def _scale(facts: TensorFacts) -> str:
    if facts.quantised is None:
        return ""
    low, high = facts.quantised.scale
    axis = "" if facts.quantised.axis is None else f" along {facts.quantised.axis}"
    zero = facts.quantised.zero_point
    return f"{_range(low, high)}{axis}, zero at {_range(*zero)}"


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _tail(text: str) -> str:
    return text if len(text) <= SHORT else "…" + text[1 - SHORT :]
