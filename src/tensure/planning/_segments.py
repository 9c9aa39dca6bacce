"""From one entry of a Program to fused steps over one arena: what a single C++ call can run.

Made for straight bodies of convolutions, pools and linears; whatever else stands there becomes a HostStep
that says why, never something approximate. First ops are grouped into the steps that compute them (a
convolution with its batch norm, residual and activation), then layouts are settled and moves put in where
two meet, last the buffers are placed (`_arena.py`). Knows shapes and names only: no torch, no kernel, no
weight's values.

A fused step stands where its last op stood, since its residual may be made after its convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from tensure.errors import UnsupportedError
from tensure.program import (
    Program,
    TensorType,
    bind_entry,
    expand,
    infer_program,
    leaves,
    state_pairs,
)

from ._arena import place_buffers
from ._grouping import Alias, Group, Reordered, group_ops
from ._steps import (
    ORDERS,
    ActivationStep,
    AdaptivePoolStep,
    ConvStep,
    HostStep,
    Layout,
    LinearStep,
    MeanStep,
    MoveStep,
    PointwiseStep,
    PoolStep,
    Segment,
    SoftmaxStep,
    Step,
    Stored,
    as_layouts,
)

__all__ = ["ACTIVATIONS", "plan_segment"]

ACTIVATIONS: Final = frozenset({"relu", "relu6", "silu", "clamp"})


def plan_segment(
    program: Program,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    *,
    layout: Layout = "NHWC",
    layouts: Mapping[str, Layout] | None = None,
    activations: frozenset[str] = ACTIVATIONS,
) -> Segment:
    """The segment that computes one entry.

    Args:
        program: validated by the caller.
        entry: which; the first when left out.
        params: the integers of the invocation.
        layout: of images between steps. Inputs and outputs are row-major (NCHW); moves are put in.
        layouts: exceptions to `layout`, by the name of the value that a step makes.
        activations: those the kernels have; others are left to the host.

    Raises:
        RecordError: the entry is malformed at these parameters.
        UnsupportedError: an unknown layout, or one for a value that no step makes.
        LimitError: too many buffers or steps.
    """
    special = dict(layouts or {})
    for asked in (layout, *special.values()):
        if asked not in ORDERS:
            raise UnsupportedError(f"layout {asked!r:.40}", wanted=", ".join(ORDERS))
    found = program.entry(entry)
    env = bind_entry(program, entry, params)
    types = infer_program(program, entry=entry, params=params)
    ops = list(expand(program.blocks, found.body, env))
    roles = {key: role for key, _, role in leaves(program, entry, env)}
    outputs = [str(name.ground(env)) for name in found.outputs]
    outputs += [str(after) for _, after in state_pairs(found, env)]
    groups, folds = group_ops(ops, types, roles, outputs, activations)
    laying = _Laying(types, roles, layout, special)
    if unknown := special.keys() - {out for group in groups for out in group.outs()}:
        raise UnsupportedError(
            f"a layout for {min(unknown)!r:.80}", wanted="the name of a value that a step makes"
        )
    for group in groups:
        laying.add(group)
    held = tuple((name, laying.want(name, "NCHW")) for name in dict.fromkeys(outputs))
    inputs = tuple(key for key, role in roles.items() if role in ("input", "state"))
    for key in inputs:
        laying.want(key, "NCHW")
    arena = place_buffers(laying.steps, laying.values, [value for _, value in held])
    return Segment(tuple(laying.steps), laying.values, inputs, held, tuple(folds), arena, len(ops))


class _Laying:
    """Groups into steps, with every operand in the layout its step wants."""

    def __init__(
        self,
        types: Mapping[str, TensorType],
        roles: Mapping[str, str],
        layout: Layout,
        layouts: Mapping[str, Layout],
    ) -> None:
        self._types, self._roles, self._layout, self._layouts = types, roles, layout, layouts
        self.steps: list[Step] = []
        self.values: dict[str, Stored] = {}
        self._in_layout: dict[tuple[str, Layout], str] = {}

    def add(self, group: Group) -> None:
        """The group's step, with moves before it where they are needed."""
        step = group.draft
        if step is None:
            self._host(group)
        elif isinstance(step, Alias):
            self._alias(step)
        elif isinstance(step, Reordered):
            self._reorder(step)
        elif isinstance(step, ConvStep):
            layout = self._layouts.get(step.out, self._layout)
            residual = None if step.residual is None else self.want(step.residual, layout)
            self._emit(replace(step, x=self.want(step.x, layout), residual=residual), layout)
        elif isinstance(step, PoolStep | AdaptivePoolStep):
            layout = self._layouts.get(step.out, self._layout)
            self._emit(replace(step, x=self.want(step.x, layout)), layout)
        elif isinstance(step, MeanStep):
            # Row-major [N, C] however the image lies, unless the batch is the innermost dim.
            lies = self._lying(step.x)
            self._emit(replace(step, x=self.want(step.x, "NHWC" if lies == "CHWN" else lies)), "NCHW")
        elif isinstance(step, PointwiseStep):
            layout = self._layouts.get(step.out, self._lying(step.a))
            self._emit(replace(step, a=self.want(step.a, layout), b=self.want(step.b, layout)), layout)
        elif isinstance(step, ActivationStep):
            layout = self._layouts.get(step.out, self._lying(step.x))
            self._emit(replace(step, x=self.want(step.x, layout)), layout)
        elif isinstance(step, LinearStep | SoftmaxStep):
            self._emit(replace(step, x=self.want(step.x, "NCHW")), "NCHW")

    def want(self, name: str, layout: Layout) -> str:
        """The name of a value with the same elements as `name` that lies in `layout`; moved if need be."""
        lies = self._lying(name)
        stored = self.values[name]
        if len(stored.shape) != 4 or lies == layout:
            return name
        known = self._in_layout.get((name, layout))
        if known is not None:
            return known
        moved = self._in_layout[name, layout] = f"{name}@{layout}"
        if _same_bytes(stored.shape, lies, layout):
            self.values[moved] = replace(stored, layout=layout)
        else:
            self.values[moved] = Stored(stored.shape, stored.dtype, layout, moved, "arena")
            self.steps.append(MoveStep(moved, name, lies, layout))
        return moved

    def _lying(self, name: str) -> Layout:
        """The layout of a value as it was made; what no step made is an input, a state or a weight."""
        if name not in self.values:
            found = self._types[name]
            self.values[name] = Stored(
                found.shape, found.dtype, "NCHW", name, "weight" if self._roles[name] == "weight" else "input"
            )
        return self.values[name].layout

    def _emit(self, step: Step, layout: Layout) -> None:
        self._made(step.out, layout)
        self.steps.append(step)

    def _made(self, out: str, layout: Layout) -> None:
        found = self._types[out]
        lies: Layout = layout if len(found.shape) == 4 else "NCHW"
        self.values[out] = Stored(found.shape, found.dtype, lies, out, "arena")

    def _alias(self, step: Alias) -> None:
        found = self._types[step.out]
        lies = self._lying(step.x) if found.shape == self._types[step.x].shape else "NCHW"
        source = self.values[self.want(step.x, lies)]
        self.values[step.out] = replace(source, shape=found.shape, layout=lies)

    def _reorder(self, step: Reordered) -> None:
        """Give the bytes another reading where they already lie right; else move them first."""
        lies = self._lying(step.x)
        pairs = as_layouts(step.dims)
        source, target = min(pairs, key=lambda pair: (pair[0] != lies, pair[1] != "NCHW"))
        held = self.values[self.want(step.x, source)]
        self.values[step.out] = replace(held, shape=self._types[step.out].shape, layout=target)

    def _host(self, group: Group) -> None:
        inputs = tuple(self.want(str(ref.name), "NCHW") for ref in group.op.reads())
        for out in group.outs():
            self._made(out, "NCHW")
        self.steps.append(HostStep(group.outs(), inputs, group.op, group.reason))


def _same_bytes(shape: Sequence[int], a: Layout, b: Layout) -> bool:
    """Whether a value of this shape has the same bytes in both layouts."""
    orders = [[dim for dim in ORDERS[layout] if shape[dim] != 1] for layout in (a, b)]
    return orders[0] == orders[1] or 0 in shape
