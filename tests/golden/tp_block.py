"""(b) Attention and SwiGLU, forward and backward, over two ranks: shards, partial sums, all-reduces."""

from __future__ import annotations

from dataclasses import replace

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import Block, Call, Entry, For, Name, Op, Program, Value, axis, digest, expr, name, op

from .case import Golden, edit

SIZES = {"L": 2, "B": 2, "S": 3, "D": 5, "H": 4, "K": 2, "F": 6}
# einsum letters of each weight, the sharded letter being h or f
WEIGHTS = {"Wq": "dhk", "Wk": "dhk", "Wv": "dhk", "Wo": "hkd", "Wg": "df", "Wu": "df", "Wd": "fd"}
AXIS_OF = {"d": "D", "h": "H", "k": "K", "f": "F"}
# dim of the heads (or of F) in every sharded activation
SHARDED = dict.fromkeys("q k v o g u sg gs h dh dgs du om t1 t2 dg do dv dq dk".split(), 2)
SHARDED |= dict.fromkeys("s m sm e z a da t3 t4 t5 ds".split(), 1)
PARTIAL = ("i1", "i2", "jq", "jk", "jv", "j1")
REDUCED = ("y", "y2", "i3", "j2")


def forward() -> list[Op]:
    """One layer."""
    return [
        *[_ein("bsd,dhk->bshk", "x", f"W{c}", c) for c in "qkv"],
        _ein("bqhk,bthk->bhqt", "q", "k", "s"),
        op("amax", "s", out="m", dim=[-1], keepdim=True),
        op("sub", "s", "m", out="sm"),
        op("exp", "sm", out="e"),
        op("sum", "e", out="z", dim=[-1], keepdim=True),
        op("div", "e", "z", out="a"),
        _ein("bhqt,bthk->bqhk", "a", "v", "o"),
        _ein("bqhk,hkd->bqd", "o", "Wo", "y"),
        op("add", "x", "y", out="x1"),
        _ein("bsd,df->bsf", "x1", "Wg", "g"),
        _ein("bsd,df->bsf", "x1", "Wu", "u"),
        op("sigmoid", "g", out="sg"),
        op("mul", "g", "sg", out="gs"),
        op("mul", "gs", "u", out="h"),
        _ein("bsf,fd->bsd", "h", "Wd", "y2"),
        op("add", "x1", "y2", out="xn"),
    ]


def backward() -> list[Op]:
    """Its gradient, by hand."""
    return [
        _ein("bsf,bsd->fd", "h", "dxn", "dWd"),
        _ein("bsd,fd->bsf", "dxn", "Wd", "dh"),
        op("mul", "dh", "u", out="dgs"),
        op("mul", "dh", "gs", out="du"),
        op("rsub", "sg", 1, out="om"),
        op("mul", "gs", "om", out="t1"),
        op("add", "sg", "t1", out="t2"),
        op("mul", "dgs", "t2", out="dg"),
        _ein("bsd,bsf->df", "x1", "dg", "dWg"),
        _ein("bsd,bsf->df", "x1", "du", "dWu"),
        _ein("bsf,df->bsd", "dg", "Wg", "i1"),
        _ein("bsf,df->bsd", "du", "Wu", "i2"),
        op("add", "i1", "i2", out="i3"),
        op("add", "dxn", "i3", out="dx1"),
        _ein("bqhk,bqd->hkd", "o", "dx1", "dWo"),
        _ein("bqd,hkd->bqhk", "dx1", "Wo", "do"),
        _ein("bqhk,bthk->bhqt", "do", "v", "da"),
        _ein("bhqt,bqhk->bthk", "a", "do", "dv"),
        op("mul", "da", "a", out="t3"),
        op("sum", "t3", out="t4", dim=[-1], keepdim=True),
        op("sub", "da", "t4", out="t5"),
        op("mul", "a", "t5", out="ds"),
        _ein("bhqt,bthk->bqhk", "ds", "k", "dq"),
        _ein("bhqt,bqhk->bthk", "ds", "q", "dk"),
        *[_ein("bsd,bshk->dhk", "x", f"d{c}", f"dW{c}") for c in "qkv"],
        *[_ein("bshk,dhk->bsd", f"d{c}", f"W{c}", f"j{c}") for c in "qkv"],
        op("add", "jq", "jk", out="j1"),
        op("add", "j1", "jv", out="j2"),
        op("add", "dx1", "j2", out="dx"),
    ]


def program() -> Program:
    """L layers forward, then backward from a given gradient of the last output."""
    layers, sizes = axis("L"), ("B", "S", "D")
    hidden = tuple(axis(c) for c in sizes)
    values = {
        w: Value(tuple(axis(AXIS_OF[c]) for c in letters), "f64", "weight", (("l", layers),))
        for w, letters in WEIGHTS.items()
    }
    values["x"] = values["dX"] = Value(hidden, "f64", params=(("l", layers + 1),))
    blocks = {
        "forward": Block(("l",), tuple(_at_layer(item) for item in forward())),
        "backward": Block(("l",), tuple(_at_layer(item) for item in backward())),
    }
    body = (
        For("i", 0, layers, (Call("forward", (axis("i"),)),)),
        For("i", 0, layers, (Call("backward", (layers - 1 - axis("i"),)),)),
    )
    outputs = [name(f"x[{SIZES['L']}]"), name("dX[0]")]
    outputs += [name(f"d{w}[{layer}]") for layer in range(SIZES["L"]) for w in WEIGHTS]
    inputs = (name("x[0]"), name(f"dX[{SIZES['L']}]"))
    return Program(SIZES, values, blocks, {"run": Entry(inputs, body, tuple(outputs))})


def plan(tp: int = 2) -> Plan:
    """Heads and feed-forward columns over tp; four all-reduces a layer."""
    source = program()
    blocks = {
        key: Block(block.params, tuple(part for item in block.body for part in _reduced(item)))
        for key, block in source.blocks.items()
    }
    locals_: dict[str, Local] = {}
    for w, letters in WEIGHTS.items():
        letter = "h" if "h" in letters else "f"
        dims = (_shard(letters.index(letter), AXIS_OF[letter]),)
        locals_[w] = Local(("l",), Place(name(f"{w}[l]"), dims))
        locals_[f"d{w}"] = Local(("l",), Place(name(f"d{w}[l]"), dims))
    for item in (*forward(), *backward()):
        for out in item.outs:
            base = _renamed(out.base)
            if base in locals_:
                continue
            if out.base in PARTIAL:
                locals_[base] = Local(("l",), Place(name(f"{base}[l]"), sum=("tp",)))
            elif out.base in SHARDED:
                dims = (_shard(SHARDED[out.base], "F" if out.base in _FEED else "H"),)
                locals_[base] = Local(("l",), Place(name(f"{base}[l]"), dims))
            else:
                locals_[base] = Local(("l",), Place(name(f"{base}[l]")))
            if out.base in REDUCED:
                locals_[f"{base}_p"] = Local(("l",), Place(name(f"{base}[l]"), sum=("tp",)))
    tracks = {"s": Track(("tp",), (), name("card[tp]"), {}, {"run": source.entries["run"].body})}
    return Plan(digest(source), None, {"tp": tp}, {}, locals_, blocks, tracks)


def golden() -> Golden:
    """The case; each of the four all-reduces dropped, and one rank's addend doubled."""
    good = plan()
    faults = {}
    for target in REDUCED:

        def drop(item: Op, target: str = target) -> Op:
            if item.op == "all_reduce" and item.outs[0].base == target:
                return replace(item, op="copy", attrs=())
            return item

        faults[f"no all-reduce of {target}"] = edit(good, drop)

    def scaled(item: Op) -> Op:
        if item.outs and item.outs[0].base == "om":
            return replace(item, attrs=(("alpha", expr("1+tp")),))
        return item

    faults["one rank's sigmoid gradient is off"] = edit(good, scaled)
    places = {
        f"no all-reduce of {target}": rf"s\[\d,?\d?\]: {target}\[\d\] is not {target}" for target in REDUCED
    }
    places["one rank's sigmoid gradient is off"] = r"s\[1\]: om\[1\] is not om\[1\]"
    return Golden("tp_block", program(), good, faults, places=places)


_FEED = frozenset(["g", "u", "sg", "gs", "h", "dh", "dgs", "du", "om", "t1", "t2", "dg"])


def _ein(equation: str, one: str, other: str, out: str) -> Op:
    return op("einsum", one, other, out=out, equation=equation)


def _renamed(base: str) -> str:
    return {"dxn": "dX", "dx": "dX", "xn": "x"}.get(base, base)


def _at_layer(item: Op) -> Op:
    """Put the layer index on every name; x and dX thread from layer to layer."""

    def at(old: Name) -> Name:
        index = expr("l+1") if old.base in ("xn", "dxn") else axis("l")
        return Name(_renamed(old.base), (index,))

    args = tuple(replace(arg, name=at(arg.name)) if hasattr(arg, "name") else arg for arg in item.args)
    return replace(item, args=args, outs=tuple(at(out) for out in item.outs))


def _reduced(item: Op) -> tuple[Op, ...]:
    out = item.outs[0]
    if out.base not in REDUCED:
        return (item,)
    partial = Name(f"{out.base}_p", out.index)
    return (replace(item, outs=(partial,)), op("all_reduce", partial, out=out, axes=["tp"]))


def _shard(dim: int, size: str) -> tuple[int, tuple[tuple[object, object, int], ...]]:
    return (dim, ((expr(f"tp*({size}//n_tp)"), expr(f"(tp+1)*({size}//n_tp)"), 1),))
