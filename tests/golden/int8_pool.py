"""(d) An int8 inverted bottleneck fused by rows in one pool: a ring of rows, output over input, NHWC."""

from __future__ import annotations

import math
from dataclasses import replace

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import (
    Arg,
    Block,
    Call,
    Cat,
    Each,
    Entry,
    For,
    Int,
    Op,
    Program,
    Value,
    axis,
    digest,
    expr,
    name,
    op,
    ref,
)

from .case import Golden, edit

HEIGHT, WIDTH, CHANNELS, MIDDLE = 8, 6, 4, 6
NHWC = (0, 2, 3, 1)
ROW_IN, ROW_MIDDLE = CHANNELS * WIDTH, MIDDLE * WIDTH
SCALES = {"b": 3 / 512, "c": 5 / 512, "d": 7 / 512}
"""Scale of each int32 sum on its way to int8."""


def program() -> Program:
    """Expand 1x1, depthwise 3x3, project 1x1, add the input; int8 in and out, int32 sums."""
    values = {
        "A": Value((1, CHANNELS, axis("H"), WIDTH), "i8", order=NHWC),
        "w1": Value((MIDDLE, CHANNELS, 1, 1), "i8", "weight"),
        "w2": Value((MIDDLE, 1, 3, 3), "i8", "weight"),
        "w3": Value((CHANNELS, MIDDLE, 1, 1), "i8", "weight"),
    }
    body = (
        *_convolution("A", "w1", "b", "B"),
        *_convolution("B", "w2", "c", "Cc", padding=(1, 1, 1, 1), groups=MIDDLE),
        *_convolution("Cc", "w3", "d", "Dq"),
        _add("Dq", "A", "E"),
    )
    return Program({"H": HEIGHT}, values, {}, {"run": Entry((name("A"),), body, (name("E"),))})


def plan(*, ring: int = 3, shift: int = 0) -> Plan:
    """One row at a time: B in a ring of rows, E over A. `ring` and `shift` are for planting faults."""
    above = HEIGHT * ROW_IN

    def row(of: str) -> Place:
        return Place(name(of), ((2, ((axis("r"), axis("r") + 1, 1),)),))

    def pooled(of: str, offset: Int) -> Local:
        return Local(("r",), row(of), "i8", "ram", offset, NHWC)

    locals_ = {
        "A": Local((), Place(name("A")), "i8", "ram", 0, NHWC),
        **{w: Local((), Place(name(w))) for w in ("w1", "w2", "w3")},
        **{sums: Local(("r",), row(sums)) for sums in ("b", "c", "d", "Dq")},
        "B": pooled("B", expr(f"{above - shift}+r%{ring}*{ROW_MIDDLE}")),
        "Cc": pooled("Cc", above + ring * ROW_MIDDLE - shift),
        "E": pooled("E", expr(f"r*{ROW_IN}")),
    }
    here = ref("A", (2, "r", "r+1"))
    rows = Cat(2, (Each("i", expr("max(r-1,0)"), expr("min(r+2,H)"), ref("B[i]")),))
    edges: tuple[Int, ...] = (expr("max(1-r,0)"), expr("max(r+2-H,0)"), 1, 1)
    blocks = {
        "up": Block(("r",), _convolution(here, "w1", "b[r]", "B[r]")),
        "down": Block(
            ("r",),
            (
                *_convolution(rows, "w2", "c[r]", "Cc[r]", padding=edges, groups=MIDDLE),
                *_convolution("Cc[r]", "w3", "d[r]", "Dq[r]"),
                _add("Dq[r]", here, "E[r]"),
            ),
        ),
    }
    up, down = (lambda r: Call("up", (r,))), (lambda r: Call("down", (r,)))
    body = (up(0), For("t", 1, axis("H"), (up(axis("t")), down(axis("t") - 1))), down(axis("H") - 1))
    pool = above + (ring + 1) * ROW_MIDDLE - shift
    tracks = {"mcu": Track((), (), name("m4"), {}, {"run": body})}
    return Plan(digest(program()), None, {}, {"ram": pool}, locals_, blocks, tracks)


def golden() -> Golden:
    """The case; faults of storage (seen only in real bytes) and of value (a ring row read too early)."""
    good = plan()

    def early(item: Op) -> Op:
        if not isinstance(item, Op) or item.outs[0].base != "c":
            return item
        (cat, *rest) = item.args
        assert isinstance(cat, Cat) and isinstance(cat.parts[0], Each)
        moved = replace(cat.parts[0], lo=expr("max(r-2,0)"), hi=expr("max(r-2,0)+min(r+2,H)-max(r-1,0)"))
        return replace(item, args=(Cat(2, (moved,)), *rest))

    return Golden(
        "int8_pool",
        program(),
        good,
        {"depthwise reads a row too high": edit(good, early)},
        storage=True,
        places={
            "depthwise reads a row too high": r"mcu: c\[\d\] is not c at its place",
            "ring one byte low": "mcu: b\\[7\\] is not b at its place",
            "ring of two rows": "mcu: c\\[1\\] is not c at its place",
        },
        storage_faults={"ring one byte low": plan(shift=1), "ring of two rows": plan(ring=2)},
    )


def _convolution(
    x: str | Arg,
    weight: str,
    sums: str,
    out: str,
    *,
    padding: tuple[Int, ...] = (0, 0, 0, 0),
    groups: int = 1,
) -> tuple[Op, Op]:
    attrs = {"stride": [1, 1], "padding": list(padding), "dilation": [1, 1], "groups": groups}
    fraction, exponent = math.frexp(SCALES[sums[0]])  # scale = fraction * 2^exponent, as TFLM wants it
    multiplier = int(fraction * (1 << 31))
    return (
        op("integer_convolution", x, weight, None, out=sums, **attrs),
        op("requantize", sums, out=out, multiplier=[multiplier], shift=[exponent], zero_point=0),
    )


def _add(one: str, other: str | Arg, out: str) -> Op:
    return op(
        "integer_add",
        one,
        other,
        out=out,
        left_shift=20,
        multiplier1=1 << 30,
        shift1=0,
        zero_point1=0,
        multiplier2=1 << 30,
        shift2=0,
        zero_point2=0,
        multiplier=1 << 30,
        shift=-18,
        zero_point=0,
    )
