"""The text form of a Plan, in the same words as a Program's.

    tensure plan 1
    program "sha256:..."
    mesh tp = 2
    local W[l] = W[l]{1 tp*2:tp*2+2}
    local y_p[l] = y[l] sum(tp)
    local B[r] : i8 = B{2 r:r+1} at ram[192+r%3*36] order [0,2,3,1]
    block layer(l):
      y_p[l] = linear(x[l], W[l])
    track s0[tp] with p=0 on card[tp]:
      entry run:
        call layer(0)

`parse_plan(format_plan(p)) == p`. The digest covers this text without notes.
"""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from typing import Final

from tensure.errors import RecordError
from tensure.program import (
    INDENT,
    MAX_TEXT,
    Block,
    Body,
    Int,
    Line,
    Lines,
    Name,
    must_be_canonical,
    parse_int,
    read_block,
    read_body,
    read_header,
    read_name,
    read_order,
    write_body,
)

from ._plan import Local, Place, Plan, Runs, Track

HEADER: Final = "tensure plan 1"
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_STAGES: Final = {"program": 0, "fleet": 1, "mesh": 2, "pool": 3, "local": 4, "block": 5, "track": 6}


def format_plan(plan: Plan, *, notes: bool = True) -> str:
    """The Plan as text."""
    lines = [HEADER, f'program "{plan.program}"']
    if plan.fleet is not None:
        lines.append(f'fleet "{plan.fleet}"')
    lines += [f"mesh {axis} = {size}" for axis, size in plan.mesh.items()]
    lines += [f"pool {pool} = {size}" for pool, size in plan.pools.items()]
    lines += [_write_local(base, local) for base, local in plan.locals.items()]
    for label, block in plan.blocks.items():
        lines.append(f"block {label}({', '.join(block.params)}):")
        write_body(block.body, INDENT, lines.append, notes=notes)
    for label, track in plan.tracks.items():
        lines.append(_write_track_head(label, track))
        pad = " " * INDENT
        lines += [pad + _write_local(base, local) for base, local in track.locals.items()]
        for entry, body in track.bodies.items():
            lines.append(f"{pad}entry {entry}:")
            write_body(body, 2 * INDENT, lines.append, notes=notes)
    return "\n".join(lines) + "\n"


def parse_plan(text: str) -> Plan:
    """The Plan a text stands for, not yet validated.

    Raises:
        RecordError: naming line and column.
        LimitError: a bound of the text form was passed.
    """
    if len(text) > MAX_TEXT:
        raise RecordError(f"a plan of {len(text)} characters", wanted=f"at most {MAX_TEXT}")
    lines = Lines(text)
    read_header(lines, HEADER)
    digests: dict[str, str] = {}
    sizes: dict[str, dict[str, int]] = {"mesh": {}, "pool": {}}
    locals_: dict[str, Local] = {}
    blocks: dict[str, Block] = {}
    tracks: dict[str, Track] = {}
    stage = 0
    for line in lines.section(0):
        kind = line.head.text
        if kind not in _STAGES:
            line.fail(f"found {kind!r}", wanted=", ".join(_STAGES))
        if _STAGES[kind] < stage:
            line.fail(f"{kind!r} after later sections", wanted=f"the order {', '.join(_STAGES)}")
        stage = _STAGES[kind]
        if kind in ("program", "fleet"):
            line.next()
            digest = line.string()
            if not DIGEST.fullmatch(digest) or kind in digests:
                line.fail(f"{kind} {digest!r}", wanted="one digest, sha256: and 64 hex digits")
            digests[kind] = digest
            line.end()
        elif kind in sizes:
            line.next()
            label = line.name()
            line.expect("=")
            size = parse_int(line)
            if label in sizes[kind] or not isinstance(size, int) or not 0 < size < 1 << 48:
                line.fail(f"{kind} {label} = {size}", wanted="one positive integer")
            sizes[kind][label] = size
            line.end()
        elif kind == "local":
            _read_local(line, locals_)
        elif kind == "block":
            label, block = read_block(lines, line)
            if label in blocks:
                line.fail(f"block {label!r} stands twice")
            blocks[label] = block
        else:
            label, track = _read_track(lines, line)
            if label in tracks:
                line.fail(f"track {label!r} stands twice")
            tracks[label] = track
    if (rest := lines.head()) is not None:
        rest.fail("a stray line")
    if "program" not in digests:
        raise RecordError("no program digest", wanted='a line program "sha256:..."')
    plan = Plan(
        digests["program"], digests.get("fleet"), sizes["mesh"], sizes["pool"], locals_, blocks, tracks
    )
    must_be_canonical(text, format_plan(plan))
    return plan


def plan_digest(plan: Plan) -> str:
    """`sha256:<hex>` of the Plan's text without notes."""
    return f"sha256:{hashlib.sha256(format_plan(plan, notes=False).encode()).hexdigest()}"


# locals and claims -----------------------------------------------------------------------------------


def _write_local(base: str, local: Local) -> str:
    text = f"local {base}[{', '.join(local.params)}]" if local.params else f"local {base}"
    if local.dtype is not None:
        text += f" : {local.dtype}"
    if local.place is not None:
        text += f" = {write_place(local.place)}"
    if local.pool is not None:
        text += f" at {local.pool}[{local.offset}]"
    if local.order is not None:
        text += f" order [{', '.join(map(str, local.order))}]"
    return text


def write_place(place: Place) -> str:
    """A claim as text: `y[l]{1 0:4|8:12} sum(tp) over b(0:2) scale 1/2`."""
    text = str(place.of)
    if place.dims:
        text += "{" + ", ".join(f"{dim} {_write_runs(runs)}" for dim, runs in place.dims) + "}"
    if place.sum:
        text += f" sum({', '.join(place.sum)})"
    if place.over is not None:
        text += f" over {place.over[0]}({_write_runs(place.over[1])})"
    if place.scale != 1:
        text += f" scale {place.scale.numerator}/{place.scale.denominator}"
    return text


def _write_runs(runs: Runs) -> str:
    return "|".join(f"{start}:{stop}" + (f":{step}" if step != 1 else "") for start, stop, step in runs)


def _read_local(line: Line, table: dict[str, Local]) -> None:
    line.expect("local")
    base = line.name()
    params = _read_names(line, "[", "]")
    dtype = line.name() if line.take(":") else None
    place = _read_place(line) if line.take("=") else None
    pool: str | None = None
    offset: Int | None = None
    if line.take("at"):
        pool = line.name()
        line.expect("[")
        offset = parse_int(line)
        line.expect("]")
    order = read_order(line)
    line.end()
    if base in table:
        line.fail(f"local {base!r} stands twice")
    table[base] = Local(params, place, dtype, pool, offset, order)


def _read_place(line: Line) -> Place:
    of = read_name(line)
    dims: list[tuple[int, Runs]] = []
    if line.take("{"):
        while True:
            dim = parse_int(line)
            if not isinstance(dim, int) or (dims and dim <= dims[-1][0]):
                line.fail(f"dim {dim}", wanted="rising dims, each once")
            dims.append((dim, _read_runs(line)))
            if not line.take(","):
                break
        line.expect("}")
    add = _read_names(line, "(", ")") if line.take("sum") else ()
    over: tuple[str, Runs] | None = None
    if line.take("over"):
        letter = line.name()
        line.expect("(")
        over = (letter, _read_runs(line))
        line.expect(")")
    scale = Fraction(1)
    if line.take("scale"):
        top = parse_int(line)
        line.expect("/")
        bottom = parse_int(line)
        if not isinstance(top, int) or not isinstance(bottom, int) or bottom <= 0 or top == 0:
            line.fail(f"scale {top}/{bottom}", wanted="a fraction other than 0")
        scale = Fraction(top, bottom)
        if scale == 1 or scale.denominator != bottom:
            line.fail(f"scale {top}/{bottom}", wanted="lowest terms, and nothing for 1")
    return Place(of, tuple(dims), add, over, scale)


def _read_runs(line: Line) -> Runs:
    runs: list[tuple[Int, Int, Int]] = []
    while True:
        start = parse_int(line)
        line.expect(":")
        stop = parse_int(line)
        runs.append((start, stop, parse_int(line) if line.take(":") else 1))
        if not line.take("|"):
            return tuple(runs)


def _read_names(line: Line, opening: str, closing: str) -> tuple[str, ...]:
    names: list[str] = []
    if line.take(opening):
        while not line.take(closing):
            if names:
                line.expect(",")
            names.append(line.name())
    return tuple(names)


# tracks ----------------------------------------------------------------------------------------------


def _write_track_head(label: str, track: Track) -> str:
    text = f"track {label}"
    if track.axes:
        text += f"[{track.stand}]"
    if track.fixed:
        text += " with " + ", ".join(f"{key}={value}" for key, value in track.fixed)
    if track.device is not None:
        text += f" on {track.device}"
    return text + ":"


def _read_track(lines: Lines, line: Line) -> tuple[str, Track]:
    line.expect("track")
    label = line.name()
    axes, spans = _read_axes(line)
    fixed: list[tuple[str, int]] = []
    if line.take("with"):
        while True:
            key = line.name()
            line.expect("=")
            value = parse_int(line)
            if not isinstance(value, int):
                line.fail(f"{key}={value}", wanted="an integer")
            fixed.append((key, value))
            if not line.take(","):
                break
    device: Name | None = read_name(line) if line.take("on") else None
    line.expect(":")
    line.end()
    locals_: dict[str, Local] = {}
    bodies: dict[str, Body] = {}
    for row in lines.section(INDENT):
        if row.at("local") and not bodies:
            _read_local(row, locals_)
            continue
        row.expect("entry")
        entry = row.name()
        row.expect(":")
        row.end()
        if entry in bodies:
            row.fail(f"entry {entry!r} stands twice")
        bodies[entry] = read_body(lines, 2 * INDENT)
    return label, Track(axes, tuple(fixed), device, locals_, bodies, spans)


def _read_axes(line: Line) -> tuple[tuple[str, ...], tuple[tuple[str, int, int], ...]]:
    """`[dp 0:8, tp]`: mesh axes, each with the places along it where these are not all."""
    axes: list[str] = []
    spans: list[tuple[str, int, int]] = []
    if line.take("["):
        while not line.take("]"):
            if axes:
                line.expect(",")
            axes.append(line.name())
            if line.at(",") or line.at("]"):
                continue
            lo = parse_int(line)
            line.expect(":")
            hi = parse_int(line)
            if not isinstance(lo, int) or not isinstance(hi, int):
                line.fail(f"places {lo}:{hi}", wanted="integers")
            spans.append((axes[-1], lo, hi))
    return tuple(axes), tuple(spans)
