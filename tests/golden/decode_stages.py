"""(c) A decoder with a KV cache in three pipeline stages: one track a stage, states where they are used."""

from __future__ import annotations

from dataclasses import replace

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import (
    Block,
    Call,
    Entry,
    For,
    Op,
    Program,
    Ref,
    State,
    Value,
    axis,
    digest,
    expr,
    name,
    op,
    ref,
)

from .case import Golden, edit

STAGES = 3


def program() -> Program:
    """Three layers of single-head attention over a cache of C rows, one token an invocation."""
    layers, rows = (("l", axis("L")),), ref("K2[l]", (0, 0, "pos+1"))
    values = {w: Value((axis("D"), axis("K")), "f64", "weight", layers) for w in ("Wq", "Wk", "Wv")}
    values["Wo"] = Value((axis("K"), axis("D")), "f64", "weight", layers)
    values["x"] = Value((1, axis("D")), "f64", params=(("l", axis("L") + 1),))
    for cache in ("K", "V"):
        values[cache] = Value((axis("C"), axis("K")), "f64", "state", layers)
        values[f"{cache}2"] = Value((axis("C"), axis("K")), "f64", params=layers)
    at = {"dim": 0, "start": expr("pos"), "end": expr("pos+1")}
    stage = (
        op("mm", "x[l]", "Wq[l]", out="q[l]"),
        op("mm", "x[l]", "Wk[l]", out="k[l]"),
        op("mm", "x[l]", "Wv[l]", out="v[l]"),
        op("slice_scatter", "K[l]", "k[l]", out="K2[l]", **at),
        op("slice_scatter", "V[l]", "v[l]", out="V2[l]", **at),
        op("einsum", "q[l]", rows, out="s[l]", equation="bk,tk->bt"),
        op("amax", "s[l]", out="m[l]", dim=[-1], keepdim=True),
        op("sub", "s[l]", "m[l]", out="sm[l]"),
        op("exp", "sm[l]", out="e[l]"),
        op("sum", "e[l]", out="z[l]", dim=[-1], keepdim=True),
        op("div", "e[l]", "z[l]", out="a[l]"),
        op("mm", "a[l]", ref("V2[l]", (0, 0, "pos+1")), out="o[l]"),
        op("mm", "o[l]", "Wo[l]", out="y[l]"),
        op("add", "x[l]", "y[l]", out="x[l+1]"),
    )
    entry = Entry(
        (name("x[0]"),),
        (For("i", 0, axis("L"), (Call("stage", (axis("i"),)),)),),
        (name(f"x[{STAGES}]"),),
        tuple(State(name(f"{c}[l]"), name(f"{c}2[l]"), layers) for c in ("K", "V")),
        (("pos", 0, axis("C")),),
    )
    return Program(
        {"L": STAGES, "C": 6, "D": 4, "K": 4}, values, {"stage": Block(("l",), stage)}, {"decode": entry}
    )


def plan() -> Plan:
    """Stage p runs layer p on card p and hands x on."""
    source = program()
    locals_ = {
        base: Local(("l",), Place(name(f"{base}[l]")))
        for base in ["Wq", "Wk", "Wv", "Wo", "K", "V", "K2", "V2", "q", "k", "v", "s", "o", "y", "x"]
    }
    tracks = {}
    for p in range(STAGES):
        body: list[Op | Call] = [op("recv", out="x[p]", key=["x", expr("p")])] if p else []
        body.append(Call("stage", (axis("p"),)))
        if p < STAGES - 1:
            body.append(op("send", "x[p+1]", to=f"s{p + 1}", key=["x", expr("p+1")]))
        tracks[f"s{p}"] = Track((), (("p", p),), name(f"card{p}"), {}, {"decode": tuple(body)})
    return Plan(digest(source), locals=locals_, blocks=source.blocks, tracks=tracks)


def golden() -> Golden:
    """The case; the cache written one row late, and attention over one row too few."""
    good = plan()

    def late(item: Op) -> Op:
        if item.op != "slice_scatter" or item.outs[0].base != "K2":
            return item
        shifted = {"start": expr("max(pos-1,0)"), "end": expr("max(pos-1,0)+1")}
        return replace(item, attrs=tuple((key, shifted.get(key, value)) for key, value in item.attrs))

    def short(item: Op) -> Op:
        args = tuple(
            Ref(arg.name, ((0, 0, expr("max(pos,1)")),))
            if isinstance(arg, Ref) and arg.box and arg.name.base == "V2"
            else arg
            for arg in item.args
        )
        narrowed = tuple(
            Ref(arg.name, ((1, 0, expr("max(pos,1)")),))
            if isinstance(arg, Ref) and arg.name.base == "a"
            else arg
            for arg in args
        )
        return replace(item, args=narrowed) if item.outs and item.outs[0].base == "o" else item

    def stale(item: Op) -> Op:
        args = tuple(
            Ref(name("K[l]"), arg.box) if isinstance(arg, Ref) and arg.name.base == "K2" else arg
            for arg in item.args
        )
        return replace(item, args=args)

    return Golden(
        "decode_stages",
        program(),
        good,
        {
            "cache written a row early": edit(good, late),
            "attention misses the last row": edit(good, short),
            "attention reads the old cache": edit(good, stale),
        },
        entry="decode",
        params=tuple({"pos": pos} for pos in range(4)),
        places={
            "cache written a row early": r"s0: K2\[0\] is not K2\[0\]",
            "attention misses the last row": r"s0: o\[0\] is not o\[0\]",
            "attention reads the old cache": r"s0: s\[0\] is not s\[0\]",
        },
    )
