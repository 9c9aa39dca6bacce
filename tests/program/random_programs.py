"""Random small straight-line Programs over images, rich in what the normaliser looks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensure.program import Entry, Name, Op, Program, Value, infer_op, op
from tensure.program._ops._rules import type_of

Array = np.ndarray[Any, Any]


@dataclass
class Drawn:
    """A Program and what it needs."""

    program: Program
    weights: dict[str, Array]
    inputs: dict[str, Array]

    @property
    def given(self) -> dict[str, Array]:
        return {**self.weights, **self.inputs}


@dataclass
class _Build:
    draw: Any
    rng: np.random.Generator
    dtype: Any
    values: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    types: dict[str, Any] = field(default_factory=dict)

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def weight(self, *shape: int, positive: bool = False) -> str:
        base = f"w.{len(self.weights)}"
        array = np.asarray(
            self.rng.uniform(0.5 if positive else -1, 1.5 if positive else 1, shape), self.dtype
        )
        self.weights[base] = array
        self.types[base] = type_of(array)
        self.values[base] = Value(shape, self.types[base].dtype, "weight")
        return base

    def add(self, kind: str, *args: Any, **attrs: Any) -> str:
        out = f"t{len(self.ops)}"
        made = op(kind, *args, out=out, note=(("source", f"m.py:{len(self.ops)}"),), **attrs)
        given = [self.types[str(a)] if isinstance(a, str) else a for a in args]
        (self.types[out],) = infer_op(kind, given, dict(made.attrs))
        self.ops.append(made)
        return out

    def step(self, x: str) -> str:
        shape = self.types[x].shape
        if len(shape) == 4:
            return self.image_step(x, shape)
        return self.matrix_step(x, shape)

    def image_step(self, x: str, shape: tuple[int, ...]) -> str:
        kind = self.pick(
            *"conv conv_norm conv_norm norm pad_conv pad_conv pad_pool copy cast relu permutes view".split(),
            *"pool twice add flatten slice last last spelled bias".split(),
        )
        channels = shape[1]
        if kind in ("conv", "conv_norm", "pad_conv"):
            if kind == "pad_conv":
                sides = self.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
                x = self.add("constant_pad_nd", x, pad=sides, value=self.pick(0, 0.0, 0.0, 1.0))
            return self.convolve(x, self.types[x].shape, kind == "conv_norm")
        if kind == "norm":
            return self.norm(x, channels)
        if kind == "pad_pool":
            pool = self.pick("avg_pool2d", "max_pool2d")
            value = 0.0 if pool == "avg_pool2d" else self.pick(float("-inf"), 0.0)
            x = self.add("constant_pad_nd", x, pad=self.pick([1, 0, 1, 0], [1, 1]), value=value)
            if min(self.types[x].shape[2:]) < 2:
                return x
            more = {"count_include_pad": self.pick(True, False)} if pool == "avg_pool2d" else {}
            return self.add(pool, x, kernel_size=[2, 2], stride=[1], **more)
        if kind == "permutes":
            order = self.draw(st.permutations(range(4)))
            y = self.add("permute", x, dims=order)
            if self.pick(True, False):
                y = self.add(self.pick("relu", "neg"), y)
            back = self.pick(list(np.argsort(order)), self.draw(st.permutations(range(4))))
            return self.add("permute", y, dims=[int(dim) for dim in back])
        if kind == "last":
            return self.channels_last(x)
        if kind == "spelled":
            return self.spelled_norm(x)
        if kind == "bias":
            y = self.convolve(x, shape, False)
            return self.add("add", y, self.weight(1, self.types[y].shape[1], 1, 1))
        if kind == "twice":
            a, b = self.add("neg", x), self.add("neg", x)
            return self.add("add", a, b)
        if kind == "pool":
            return self.add("mean", x, dim=self.pick([2, 3], [-1, -2]), keepdim=True)
        if kind == "flatten":
            pooled = self.pick(
                self.add("adaptive_avg_pool2d", x, output_size=[1, 1]) if min(shape) > 0 else x, x
            )
            return self.add("flatten", pooled, start_dim=1)
        return self.plain_step(kind, x, shape)

    def channels_last(self, x: str) -> str:
        """Steps over [N, H, W, C] between two permutations."""
        y = self.add("permute", x, dims=[0, 2, 3, 1])
        for _ in range(self.pick(1, 2)):
            kind = self.pick(*"relu twice weight pad cat mean softmax flip spelled where".split())
            if kind == "spelled":
                y = self.spelled_norm(y, axis=3)
            elif kind == "twice":
                y = self.add("add", y, y)
            elif kind == "weight":
                y = self.add(self.pick("mul", "sub"), y, self.weight(self.types[y].shape[3]))
            elif kind == "pad":
                y = self.add("constant_pad_nd", y, pad=self.pick([0, 0, 1, 0, 0, 2], [1, 0], [0, 0, 0, 1]))
            elif kind == "cat":
                y = self.add("cat", y, y, dim=self.pick(3, -1, 1))
            elif kind == "mean":
                y = self.add(self.pick("mean", "amax"), y, dim=self.pick([1, 2], [3], [-1, 1]), keepdim=True)
            elif kind == "softmax":
                y = self.add("softmax", y, dim=self.pick(1, -1))
            elif kind == "flip":
                y = self.add("flip", y, dims=self.pick([1], [2, 3]))
            elif kind == "where":
                y = self.add("where", self.add("gt", y, 0.1), y, self.pick(0.5, y))
            else:
                y = self.add("relu", y)
        return self.add("permute", y, dims=self.pick([0, 3, 1, 2], [0, 3, 1, 2], [3, 0, 2, 1]))

    def spelled_norm(self, x: str, axis: int = 1) -> str:
        """A batch norm by channel in its parts."""
        size = self.types[x].shape[axis]
        wide = [size if at == axis else 1 for at in range(4)]
        mean, scale, shift = (self.add("view", self.weight(size), size=wide) for _ in range(3))
        var = self.add("view", self.weight(size, positive=True), size=wide)
        root = self.add("rsqrt", self.add("add", var, self.pick(0.001, 0.1)))
        factor = self.pick(root, self.add("mul", root, scale))
        return self.add("add", self.add("mul", self.add("sub", x, mean), factor), shift)

    def matrix_step(self, x: str, shape: tuple[int, ...]) -> str:
        kind = self.pick(*"linear linear_norm mm addmm transposes copy cast relu view slice add".split())
        if kind in ("linear", "linear_norm"):
            width = self.pick(1, 2, 3)
            y = self.add("linear", x, self.weight(width, shape[1]), self.pick(None, self.weight(width)))
            return self.norm(y, width) if kind == "linear_norm" else y
        if kind in ("mm", "addmm"):
            width = self.pick(1, 2)
            turned = self.add("t", self.weight(width, shape[1]))
            return (
                self.add("mm", x, turned)
                if kind == "mm"
                else self.add("addmm", self.weight(width), x, turned)
            )
        if kind == "transposes":
            return self.add("t", self.add("transpose", x, dim0=0, dim1=1))
        return self.plain_step(kind, x, shape)

    def plain_step(self, kind: str, x: str, shape: tuple[int, ...]) -> str:
        if kind == "copy":
            return self.add("copy", x)
        if kind == "cast":
            return self.add("_to_copy", x, dtype=self.types[x].dtype)
        if kind == "view":
            return self.add(self.pick("view", "expand"), x, size=list(shape))
        if kind == "slice":
            return self.add("slice", x, dim=0, start=0, end=self.pick(None, shape[0], 1))
        if kind == "add":
            return self.add("add", x, x)
        return self.add(self.pick("relu", "hardtanh", "neg"), x)

    def convolve(self, x: str, shape: tuple[int, ...], norm: bool) -> str:
        out = self.pick(1, 2)
        kernel = self.pick(1, 2) if min(shape[2:]) >= 2 else 1
        padding = self.pick([0], [1, 1], [1, 0, 0, 1])
        y = self.add(
            "convolution",
            x,
            self.weight(out, shape[1], kernel, kernel),
            self.pick(None, self.weight(out)),
            padding=padding,
            stride=self.pick([1], [2, 1]),
        )
        return self.norm(y, out) if norm else y

    def norm(self, x: str, width: int) -> str:
        scale = self.pick(None, self.weight(width))
        shift = self.pick(None, self.weight(width))
        spread = self.weight(width, positive=True)
        return self.add("batch_norm", x, scale, shift, self.weight(width), spread, eps=self.pick(1e-5, 0.1))


@st.composite
def programs(draw: Any, dtype: Any = np.float64) -> Drawn:
    """A chain of steps with some values read twice or handed out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    build = _Build(draw, rng, dtype)
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
    )
    x = np.asarray(rng.uniform(-2, 2, shape), dtype)
    build.types["x"] = type_of(x)
    build.values["x"] = Value(shape, build.types["x"].dtype)
    at, made = "x", list[str]()
    for _ in range(draw(st.integers(1, 6))):
        if build.types[at].shape and 0 not in build.types[at].shape:
            at = build.step(at)
            made.append(at)
    outputs = [at] if at != "x" else [build.add("copy", "x")]
    every = [f"t{n}" for n in range(len(build.ops))]
    for extra in draw(st.lists(st.sampled_from(every), max_size=2, unique=True)):
        if extra not in outputs:
            outputs.append(extra)
    entry = Entry((Name("x"),), tuple(build.ops), tuple(map(Name, outputs)))
    return Drawn(Program(values=build.values, entries={"run": entry}), build.weights, {"x": x})
