"""A training step of a gated block at the level of ATen, on one device and on a mesh dp x tp.

x [B, S, D] is scaled by a gain, goes through two products with a SiLU between, a bias and a residual; the
loss is the mean square to a target. The backward pass is written out as autograd would trace it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import Entry, Op, Program, Value, digest, expr, name, op

B, S, D, F = 4, 4, 3, 8
SHAPES = {"x": (B, S, D), "target": (B, S, D), "w1": (F, D), "w2": (D, F), "gain": (D,), "bias": (D,)}
WEIGHTS = ("w1", "w2", "gain", "bias")
OUTPUTS = ("loss", "dx", "dw1", "dw2", "dgain", "dbias")


def forward(rows: int, width: int) -> list[Op]:
    """Rows of the batch and columns of the hidden layer as held; `y_` is not reduced yet."""
    flat = rows * S
    return [
        op("view", "x", out="xf", size=[flat, D]),
        op("mul", "xf", "gain", out="n"),
        op("t", "w1", out="w1t"),
        op("mm", "n", "w1t", out="h"),
        op("view", "h", out="hv", size=[rows, S, width]),
        op("silu", "hv", out="a"),
        op("view", "a", out="af", size=[flat, width]),
        op("t", "w2", out="w2t"),
        op("mm", "af", "w2t", out="y_"),
        op("view", "y_", out="yv_", size=[rows, S, D]),
    ]


def loss(rows: int) -> list[Op]:
    """From the reduced `yv` to the loss and its gradient."""
    return [
        op("add", "yv", "bias", out="yb"),
        op("add", "x", "yb", out="z"),
        op("mse_loss", "z", "target", out="loss_"),
        op("sub", "z", "target", out="gap"),
        op("mul", "gap", 2 / (rows * S * D), out="dz"),
    ]


def backward(rows: int, width: int) -> list[Op]:
    """To the gradients, none of them reduced: names end in `_`."""
    flat = rows * S
    return [
        op("view", "dz", out="dzf", size=[flat, D]),
        op("sum", "dzf", out="dbias_", dim=[0]),
        op("t", "af", out="aft"),
        op("mm", "aft", "dzf", out="dw2t"),
        op("t", "dw2t", out="dw2_"),
        op("t", "w2t", out="w2tt"),
        op("mm", "dzf", "w2tt", out="da"),
        op("view", "da", out="dav", size=[rows, S, width]),
        op("silu_backward", "dav", "hv", out="dh"),
        op("view", "dh", out="dhf", size=[flat, width]),
        op("t", "n", out="nt"),
        op("mm", "nt", "dhf", out="dw1t"),
        op("t", "dw1t", out="dw1_"),
        op("t", "w1t", out="w1tt"),
        op("mm", "dhf", "w1tt", out="dn_"),
    ]


def gain_and_input(rows: int) -> list[Op]:
    """From `dn`, reduced or not, to the gradients of the gain and of what came through it."""
    return [
        op("mul", "dn", "xf", out="dng"),
        op("sum", "dng", out="dgain_", dim=[0]),
        op("mul", "dn", "gain", out="dxf"),
        op("view", "dxf", out="dxv_", size=[rows, S, D]),
    ]


def _same(*names: str) -> list[Op]:
    return [op("copy", f"{base}_", out=base) for base in names]


def program() -> Program:
    """One device."""
    body = [*forward(B, F), *_same("yv"), *loss(B), *backward(B, F), *_same("dn"), *gain_and_input(B)]
    body += _same("loss", "dbias", "dw2", "dw1", "dgain", "dxv")
    body.append(op("add", "dz", "dxv", out="dx"))
    values = {
        base: Value(shape, "f64", "weight" if base in WEIGHTS else "value") for base, shape in SHAPES.items()
    }
    entry = Entry((name("x"), name("target")), tuple(body), tuple(map(name, OUTPUTS)))
    return Program({}, values, {}, {"run": entry})


def reduced(base: str, *axes: str, mean: int = 1) -> list[Op]:
    """A sum over axes, divided by a number of ranks."""
    own = f"{base}_"
    summed = op("all_reduce", own, out=f"{base}s", axes=list(axes))
    return [summed, op("div", f"{base}s", mean, out=base)]


def scattered() -> list[Op]:
    """That sum over tp as a reduce-scatter along the sequence, spelled along dim 0, and gathered again."""
    half = S // 2
    return [
        op("slice", "yv_", out="p0", dim=1, start=0, end=half),
        op("slice", "yv_", out="p1", dim=1, start=half, end=S),
        op("cat", "p0", "p1", out="pc"),
        op("reduce_scatter", "pc", out="ys", axes=["tp"], dim=0),
        op("all_gather", "ys", out="yg", axes=["tp"], dim=0),
        op("slice", "yg", out="g0", dim=0, start=0, end=expr(f"{B}//n_dp")),
        op("slice", "yg", out="g1", dim=0, start=expr(f"{B}//n_dp"), end=expr(f"2*({B}//n_dp)")),
        op("cat", "g0", "g1", out="yv", dim=1),
    ]


def body(dp: int, tp: int, *, lazy: bool = False, sequence: bool = False) -> list[Op]:
    """A rank's step: `lazy` leaves the input's gradient an addend over tp through all ops to the end."""
    rows, width = B // dp, F // tp
    made = [*forward(rows, width), *(scattered() if sequence else reduced("yv", "tp"))]
    made += [*loss(rows), *backward(rows, width)]
    made += _same("dn") if lazy else reduced("dn", "tp")
    made += gain_and_input(rows)
    made += reduced("loss", "dp", mean=dp) + reduced("dbias", "dp", mean=dp)
    made += reduced("dw1", "dp", mean=dp) + reduced("dw2", "dp", mean=dp)
    if lazy:
        made += reduced("dgain", "dp", "tp", mean=dp) + reduced("dxv", "tp")
    else:
        made += reduced("dgain", "dp", mean=dp) + _same("dxv")
    return [*made, op("add", "dz", "dxv", out="dxs"), op("div", "dxs", dp, out="dx")]


def plan(steps: list[Op], dp: int, tp: int) -> Plan:
    """Batch over dp, hidden columns over tp; claims at the ends only."""
    rows, cut = (0, ((expr(f"dp*({B}//n_dp)"), expr(f"(dp+1)*({B}//n_dp)"), 1),)), expr(f"tp*({F}//n_tp)")
    columns = ((cut, expr(f"(tp+1)*({F}//n_tp)"), 1),)
    dims = {"x": (rows,), "target": (rows,), "dx": (rows,)}
    dims |= {"w1": ((0, columns),), "w2": ((1, columns),)}
    locals_ = {}
    for base in (*SHAPES, *OUTPUTS):
        locals_[base] = Local(
            (), Place(name(base), dims.get(base.removeprefix("d") if base != "dx" else base, ()))
        )
    track = Track(("dp", "tp"), (), None, {}, {"run": tuple(steps)})
    return Plan(digest(program()), None, {"dp": dp, "tp": tp}, {}, locals_, {}, {"t": track})


def edited(steps: list[Op], out: str, change: Callable[[Op], Op]) -> list[Op]:
    """The steps with the one that makes `out` changed."""
    assert any(step.outs and step.outs[0].base == out for step in steps), out
    return [change(step) if step.outs and step.outs[0].base == out else step for step in steps]


def unreduced(step: Op) -> Op:
    """The rank's own part instead of the sum."""
    return replace(step, op="copy", attrs=())
