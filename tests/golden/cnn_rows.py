"""(a) A small CNN cut by rows over three unequal devices: row claims, halo transfers, padding at the ends."""

from __future__ import annotations

from dataclasses import replace

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import Cat, Entry, Name, Op, Program, Ref, Value, digest, name, op

from .case import Golden, edit

HEIGHT, WIDTH = 44, 16
SHARES = (0.5, 0.3, 0.2)
# name, op, operands, rows geometry (kernel, stride, pad), attributes without row padding
LAYERS = (
    ("y1", "convolution", ("x", "w1"), (3, 2, 1)),
    ("y2", "relu", ("y1",), (1, 1, 0)),
    ("y3", "convolution", ("y2", "w2"), (3, 1, 1)),
    ("y4", "add", ("y3", "y2"), (1, 1, 0)),
    ("y5", "relu", ("y4",), (1, 1, 0)),
    ("y6", "max_pool2d", ("y5",), (2, 2, 0)),
)


def attributes(kind: str, stride: int, rows: tuple[int, int]) -> dict[str, object]:
    """Attributes of a layer with its row padding given."""
    if kind == "convolution":
        return {"stride": [stride, stride], "padding": [*rows, 1, 1], "dilation": [1, 1]}
    if kind == "max_pool2d":
        return {"kernel_size": [2, 2], "stride": [2, 2]}
    return {}


def program() -> Program:
    """The whole network."""
    values = {
        "x": Value((1, 3, HEIGHT, WIDTH), "f64"),
        "w1": Value((4, 3, 3, 3), "f64", "weight"),
        "w2": Value((4, 4, 3, 3), "f64", "weight"),
    }
    body = [
        op(kind, *args, *_no_bias(kind), out=out, **attributes(kind, stride, (pad, pad)))
        for out, kind, args, (_, stride, pad) in LAYERS
    ]
    return Program({}, values, {}, {"run": Entry((name("x"),), tuple(body), (name("y6"),))})


def plan() -> Plan:
    """Each device computes its rows of every layer and is sent the halo rows it lacks."""
    heights = {"x": HEIGHT}
    for out, _, args, (kernel, stride, pad) in LAYERS:
        heights[out] = (heights[args[0]] + 2 * pad - kernel) // stride + 1
    cuts = {key: _cut(height) for key, height in heights.items()}
    cuts["y6"] = [edge // 2 for edge in cuts["y5"]]
    bodies: list[list[Op]] = [[], [], []]
    locals_: list[dict[str, Local]] = [
        {
            "x": _rows("x", *cuts["x"][device : device + 2]),
            "w1": Local((), Place(Name("w1"))),
            "w2": Local((), Place(Name("w2"))),
        }
        for device in range(3)
    ]
    for out, kind, args, (kernel, stride, pad) in LAYERS:
        source = args[0]
        for device in range(3):
            first, last = cuts[out][device], cuts[out][device + 1]
            low, high = first * stride - pad, (last - 1) * stride - pad + kernel
            parts: list[Ref] = []
            for owner in range(3):
                begin = max(low, 0, cuts[source][owner])
                end = min(high, heights[source], cuts[source][owner + 1])
                if begin >= end:
                    continue
                box = ((2, begin - cuts[source][owner], end - cuts[source][owner]),)
                if owner == device:
                    parts.append(Ref(Name(source), box))
                    continue
                halo = f"{source}_{out}_from{owner}"
                key = f"{halo}_to{device}"
                bodies[owner].append(
                    Op("send", (Ref(Name(source), box),), (), (("key", key), ("to", f"dev{device}")))
                )
                bodies[device].append(Op("recv", (), (Name(halo),), (("key", key),)))
                locals_[device][halo] = _rows(source, begin, end)
                parts.append(Ref(Name(halo)))
            padding = (max(0, -low), max(0, high - heights[source]))
            rest = [Ref(Name(arg)) for arg in args[1:]]
            bodies[device].append(
                op(
                    kind,
                    Cat(2, tuple(parts)),
                    *rest,
                    *_no_bias(kind),
                    out=out,
                    **attributes(kind, stride, padding),
                )
            )
            locals_[device][out] = _rows(out, first, last)
    tracks = {
        f"dev{device}": Track((), (), Name(f"d{device}"), locals_[device], {"run": tuple(bodies[device])})
        for device in range(3)
    }
    return Plan(digest(program()), tracks=tracks)


def golden() -> Golden:
    """The case; a halo row taken one too high, a halo never sent, zeros padded on an inner edge."""
    good = plan()

    def one_up(item: Op) -> Op:
        if item.op != "send" or item.attr("key") != "x_y1_from1_to2":
            return item
        (read,) = item.reads()
        ((dim, lo, hi),) = read.box
        assert isinstance(lo, int) and isinstance(hi, int)
        return replace(item, args=(Ref(read.name, ((dim, lo - 1, hi - 1),)),))

    def padded(item: Op) -> Op:
        if item.op != "convolution" or item.outs[0].base != "y3" or item.attr("padding") != (0, 0, 1, 1):
            return item
        cat = item.args[0]  # the halo row above, the own rows, the halo row below
        assert isinstance(cat, Cat) and len(cat.parts) == 3
        attrs = tuple((key, (1, 0, 1, 1) if key == "padding" else value) for key, value in item.attrs)
        return replace(item, args=(Cat(2, cat.parts[1:]), *item.args[1:]), attrs=attrs)

    lost = edit(
        good, lambda item: None if item.op == "send" and item.attr("key") == "y2_y3_from1_to0" else item
    )
    return Golden(
        "cnn_rows",
        program(),
        good,
        {
            "halo row one too high": edit(good, one_up),
            "halo never sent": lost,
            "zeros for a halo": edit(good, padded),
        },
        places={
            "halo row one too high": "dev2: x_y1_from1 is not x at its place",
            "halo never sent": "deadlock: dev0 waits at recv of y2_y3_from1",
            "zeros for a halo": r"dev1: y3 is not y3 at its place, first at \[0, 0, 0, 0\]",
        },
    )


def _no_bias(kind: str) -> tuple[None, ...]:
    return (None,) if kind == "convolution" else ()


def _rows(of: str, begin: int, end: int) -> Local:
    return Local((), Place(Name(of), ((2, ((begin, end, 1),)),)))


def _cut(height: int) -> list[int]:
    edges = [round(sum(SHARES[:i]) * height / 2) * 2 for i in range(3)]
    return [*edges, height]
