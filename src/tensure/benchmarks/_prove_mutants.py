"""Faults for Plans: one change of one step of a captured Plan, as a slip of the hand would make it.

A mutant is again a Plan, claims and all; whether it is wrong is not known here. Claims of results are never
changed: what they say is what the step was asked for. Where a leaf is cut from is a step of the program
(each rank loads its part), so that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import Name, Op, Ref, combine, expr

__all__ = ["KINDS", "Mutant", "Shapes", "mutant", "with_track_split"]

Shapes: TypeAlias = Mapping[str, Mapping[Name, tuple[int, ...]]]
"""Shapes of locals, by track."""
Change: TypeAlias = "list[Op]"
_ENTRY: Final = "step"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed Plan: what kind of change, and where, in words."""

    kind: str
    where: str
    plan: Plan


@dataclass(frozen=True)
class _Site:
    """One step of one track, and what stands around it."""

    plan: Plan
    track: str
    body: tuple[Op, ...]
    at: int
    shapes: Mapping[Name, tuple[int, ...]]
    rng: np.random.Generator

    @property
    def step(self) -> Op:
        return self.body[self.at]

    def shape(self, arg: Any) -> tuple[int, ...] | None:
        return self.shapes.get(arg.name) if isinstance(arg, Ref) and not arg.box else None

    def out(self) -> tuple[int, ...]:
        return self.shapes.get(self.step.outs[0], ()) if self.step.outs else ()


_Rule: TypeAlias = "Callable[[_Site], Change | tuple[Op, ...] | None]"
"""What stands in the place of the step, as a list; or the whole new text, as a tuple; or None."""


# --- collectives ---------------------------------------------------------------------------------------


def _dropped(site: _Site) -> Change | None:
    """A collective that is not there."""
    step = site.step
    if step.op == "all_reduce":
        return [Op("copy", step.args, step.outs)]
    if step.op == "all_gather" and _dim(step) is not None:
        return [Op("cat", step.args * _times(site), step.outs, (("dim", _dim(step)),))]
    if step.op == "reduce_scatter" and _dim(step) is not None:
        dim: Any = _dim(step)
        size = site.out()[dim]
        return [Op("slice", step.args, step.outs, (("dim", dim), ("end", size), ("start", 0)))]
    if step.op == "all_to_all":
        return [Op("copy", step.args, step.outs)] if site.shape(step.args[0]) == site.out() else None
    return None


def _other_reduction(site: _Site) -> Change | None:
    step = site.step
    if step.attr("reduce") is None:
        return None
    others = [word for word in ("sum", "avg", "max", "min") if word != step.attr("reduce")]
    return [_set(step, "reduce", str(site.rng.choice(others)))]


def _other_axes(site: _Site) -> Change | None:
    step, mesh = site.step, site.plan.mesh
    axes = step.attr("axes")
    if not isinstance(axes, tuple) or step.op != "all_reduce":
        return None
    choices = [(axis,) for axis in mesh] + ([tuple(mesh)] if len(mesh) > 1 else [])
    choices = [choice for choice in choices if choice != axes]
    return [_set(step, "axes", choices[int(site.rng.integers(len(choices)))])] if choices else None


def _reduced_early(site: _Site) -> Change | None:
    """The last addend comes after the reduction, not before it."""
    step = site.step
    if step.op not in ("all_reduce", "reduce_scatter") or not isinstance(step.args[0], Ref):
        return None
    made = next((item for item in site.body if step.args[0].name in item.outs), None)
    if made is None or made.op != "add" or len(made.args) != 2 or made.attrs or step.op != "all_reduce":
        return None
    one, other = made.args
    if site.shape(one) != site.shape(other) or site.shape(one) is None:
        return None
    early = Name(f"{step.outs[0].base}_early")
    return [replace(step, args=(one,), outs=(early,)), Op("add", (Ref(early), other), step.outs)]


def _message_swapped(site: _Site) -> tuple[Op, ...] | None:
    """The message of another micro-batch is taken, and this one there; the whole text is given."""
    step = site.step
    if step.op != "recv":
        return None
    others = [
        at
        for at, item in enumerate(site.body)
        if item.op == "recv" and at != site.at and site.shapes.get(item.outs[0]) == site.out()
    ]
    if not others:
        return None
    at = int(site.rng.choice(others))
    body = list(site.body)
    body[site.at], body[at] = _set(step, "key", body[at].attr("key")), _set(body[at], "key", step.attr("key"))
    return tuple(body)


# --- indices ---------------------------------------------------------------------------------------------


def _slice_shifted(site: _Site) -> Change | None:
    step = site.step
    start, end = step.attr("start"), step.attr("end")
    if step.op != "slice" or start is None or end is None:
        return None
    by = int(site.rng.choice([-1, 1]))
    moved = {"start": combine("+", start, by), "end": combine("+", end, by)}  # type: ignore[arg-type]
    return [replace(step, attrs=tuple((key, moved.get(key, value)) for key, value in step.attrs))]


def _rank_reversed(site: _Site) -> Change | None:
    """A rank takes what the rank opposite to it should."""
    step = site.step
    changed = tuple((key, _reversed(value, site.plan.mesh)) for key, value in step.attrs)
    if step.op in ("send", "recv") or changed == step.attrs:
        return None
    return [replace(step, attrs=changed)]


def _dim_changed(site: _Site) -> Change | None:
    step = site.step
    if step.op in ("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data", "cat"):
        dim: Any = step.attr("dim") or 0
        rank = len(site.out())
        others = [other for other in range(rank) if other != dim % max(rank, 1)]
        return [_set(step, "dim", int(site.rng.choice(others)))] if others else None
    if step.op in ("sum", "mean", "amax") and isinstance(step.attr("dim"), tuple):
        dims: Any = step.attr("dim")
        shape = site.shape(step.args[0])
        if shape is None or len(dims) != 1:
            return None
        others = [d for d in range(len(shape)) if d != dims[0] % len(shape) and shape[d] == shape[dims[0]]]
        return [_set(step, "dim", (int(site.rng.choice(others)),))] if others else None
    return None


def _cat_turned(site: _Site) -> Change | None:
    step = site.step
    return [replace(step, args=step.args[::-1])] if step.op == "cat" and len(step.args) > 1 else None


def _mask_moved(site: _Site) -> Change | None:
    """A mask that is off by one."""
    step = site.step
    shape = site.shape(step.args[1]) if step.op == "masked_fill" else None
    if not shape or shape[-1] < 2:
        return None
    first, rest, moved = (Name(f"moved_{word}_{site.at}") for word in ("first", "rest", "mask"))
    dim = len(shape) - 1
    return [
        Op("slice", (step.args[1],), (rest,), (("dim", dim), ("end", shape[-1]), ("start", 1))),
        Op("slice", (step.args[1],), (first,), (("dim", dim), ("end", 1), ("start", 0))),
        Op("cat", (Ref(rest), Ref(first)), (moved,), (("dim", dim),)),
        replace(step, args=(step.args[0], Ref(moved), *step.args[2:])),
    ]


# --- arithmetic --------------------------------------------------------------------------------------------


def _operand_replaced(site: _Site) -> Change | None:
    """One operand is another value of the same shape that is there already."""
    step = site.step
    places = [at for at, arg in enumerate(step.args) if site.shape(arg)]
    if not places:
        return None
    at = int(site.rng.choice(places))
    mine: Any = step.args[at]
    known = {out for item in site.body[: site.at] for out in item.outs}
    known |= {ref.name for item in site.body for ref in item.reads() if _is_leaf(ref.name, site.body)}
    others = sorted(
        (name for name in known if name != mine.name and site.shapes.get(name) == site.shape(mine)), key=str
    )
    if not others:
        return None
    other = others[int(site.rng.integers(len(others)))]
    return [replace(step, args=(*step.args[:at], Ref(other), *step.args[at + 1 :]))]


def _operands_swapped(site: _Site) -> Change | None:
    step = site.step
    if len(step.args) < 2 or step.op in ("add", "mul", "cat", "where"):
        return None
    one, other = step.args[:2]
    if site.shape(one) is None or site.shape(one) != site.shape(other):
        return None
    return [replace(step, args=(other, one, *step.args[2:]))]


def _constant_changed(site: _Site) -> Change | None:
    step = site.step
    places = [
        at for at, arg in enumerate(step.args) if isinstance(arg, (int, float)) and not isinstance(arg, bool)
    ]
    if places:
        at = int(site.rng.choice(places))
        old: Any = step.args[at]
        if not np.isfinite(old):
            return None
        new = old + 1 if isinstance(old, int) else float(old * site.rng.choice([0.5, 2.0])) or 1.0
        return [replace(step, args=(*step.args[:at], new, *step.args[at + 1 :]))]
    value = step.attr("fill_value")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [_set(step, "fill_value", type(value)(value + 1))]
    return None


def _addend_dropped(site: _Site) -> Change | None:
    step = site.step
    if step.op not in ("add", "sub") or len(step.args) != 2:
        return None
    which = int(site.rng.integers(2)) if step.op == "add" else 0
    return (
        [Op("copy", (step.args[which],), step.outs)] if site.shape(step.args[which]) == site.out() else None
    )


def _factor_dropped(site: _Site) -> Change | None:
    step = site.step
    if step.op not in ("mul", "div") or site.shape(step.args[0]) != site.out():
        return None
    return [Op("copy", step.args[:1], step.outs)]


_OTHER_OP: Final = {
    "add": "sub",
    "sub": "add",
    "mul": "add",
    "div": "mul",
    "sum": "mean",
    "mean": "sum",
    "exp": "sigmoid",
    "relu": "abs",
    "sigmoid": "tanh",
    "neg": "abs",
    "sqrt": "rsqrt",
    "rsqrt": "sqrt",
}


def _op_changed(site: _Site) -> Change | None:
    other = _OTHER_OP.get(site.step.op)
    return None if other is None else [replace(site.step, op=other)]


def _not_transposed(site: _Site) -> Change | None:
    """A square matrix that is not transposed, or a transposition of other dims of the same size."""
    step = site.step
    if step.op in ("t", "transpose", "permute") and step.args and site.shape(step.args[0]) == site.out():
        return [Op("copy", step.args[:1], step.outs)]
    return None


def _truncated(site: _Site) -> Change | None:
    """A cast of floats that goes by way of integers."""
    step = site.step
    if step.op != "_to_copy" or step.attr("dtype") not in ("f64", "f32", "f16", "bf16"):
        return None
    whole = Name("truncated")
    return [
        Op("_to_copy", step.args, (whole,), (("dtype", "i64"),)),
        replace(step, args=(Ref(whole),)),
    ]


KINDS: Final[Mapping[str, _Rule]] = {
    "collective dropped": _dropped,
    "other reduction": _other_reduction,
    "other axes": _other_axes,
    "reduced before the last addend": _reduced_early,
    "another micro-batch's message": _message_swapped,
    "slice shifted": _slice_shifted,
    "another rank's part": _rank_reversed,
    "other dim": _dim_changed,
    "joined in another order": _cat_turned,
    "mask off by one": _mask_moved,
    "operand replaced": _operand_replaced,
    "operands swapped": _operands_swapped,
    "constant changed": _constant_changed,
    "addend dropped": _addend_dropped,
    "factor dropped": _factor_dropped,
    "other op": _op_changed,
    "not transposed": _not_transposed,
    "cast by way of integers": _truncated,
}
LEAF: Final = "another part is loaded"


def mutant(plan: Plan, shapes: Shapes, kind: str, rng: np.random.Generator) -> Mutant | None:
    """One change of a kind, at a place that is drawn; None when the Plan has no place for it."""
    if kind == LEAF:
        return _leaf_changed(plan, rng)
    sites = [
        (label, at)
        for label, track in plan.tracks.items()
        for at, item in enumerate(track.bodies.get(_ENTRY, ()))
        if isinstance(item, Op)
    ]
    for index in rng.permutation(len(sites)):
        label, at = sites[int(index)]
        body: Any = plan.tracks[label].bodies[_ENTRY]
        site = _Site(plan, label, body, at, shapes[label], rng)
        changed = KINDS[kind](site)
        if changed is None:
            continue
        new = changed if isinstance(changed, tuple) else (*body[:at], *changed, *body[at + 1 :])
        if new != body:
            words = f"{label}: {', '.join(map(str, site.step.outs))} = {site.step.op}(...)"
            return Mutant(kind, words, _with_body(plan, label, new))
    return None


def _leaf_changed(plan: Plan, rng: np.random.Generator) -> Mutant | None:
    """A rank loads a part of a weight or an input that the rank opposite to it should."""
    places: list[tuple[str, str, Local]] = []
    for label, track in plan.tracks.items():
        made = {
            out.base for item in track.bodies.get(_ENTRY, ()) if isinstance(item, Op) for out in item.outs
        }
        for base, local in track.locals.items():
            if base in made or local.place is None:
                continue
            dims = _reversed(local.place.dims, plan.mesh)
            if dims != local.place.dims:
                place: Place = replace(local.place, dims=dims)
                places.append((label, base, replace(local, place=place)))
    if not places:
        return None
    label, base, local = places[int(rng.integers(len(places)))]
    track = plan.tracks[label]
    changed = replace(track, locals={**track.locals, base: local})
    return Mutant(LEAF, f"{label}: {base}", replace(plan, tracks={**plan.tracks, label: changed}))


def with_track_split(plan: Plan) -> Plan | None:
    """The same Plan with a text of its own for each place along the first axis of some track, or None.

    A later mutant is then one rank's alone. Tracks that are sent to stay as they are.
    """
    steps = [item for t in plan.tracks.values() for item in t.bodies.get(_ENTRY, ()) if isinstance(item, Op)]
    named = {step.attr("to") for step in steps if step.op == "send"}
    for label, track in plan.tracks.items():
        if not track.axes or label in named or any(s.op == "send" for s in _ops(track)):
            continue
        axis, *rest = track.axes
        tracks = {key: other for key, other in plan.tracks.items() if key != label}
        for at in range(plan.mesh[axis]):
            tracks[f"{label}_{axis}{at}"] = replace(track, axes=tuple(rest), fixed=(*track.fixed, (axis, at)))
        return replace(plan, tracks=tracks)
    return None


def _ops(track: Track) -> list[Op]:
    return [item for item in track.bodies.get(_ENTRY, ()) if isinstance(item, Op)]


def _with_body(plan: Plan, label: str, body: Sequence[Any]) -> Plan:
    track = replace(plan.tracks[label], bodies={_ENTRY: tuple(body)})
    return replace(plan, tracks={**plan.tracks, label: track})


def _is_leaf(name: Name, body: Sequence[Op]) -> bool:
    return not any(name in item.outs for item in body)


def _set(step: Op, key: str, value: Any) -> Op:
    attrs = dict(step.attrs)
    attrs[key] = value
    return replace(step, attrs=tuple(sorted(attrs.items())))


def _dim(step: Op) -> int | None:
    found = step.attr("dim")
    return found if isinstance(found, int) else None


def _times(site: _Site) -> int:
    axes: Any = site.step.attr("axes")
    return int(np.prod([site.plan.mesh[axis] for axis in axes]))


def _reversed(value: Any, mesh: Mapping[str, int]) -> Any:
    """Integers that depend on a rank's place, as they are at the opposite place."""
    if isinstance(value, tuple):
        return tuple(_reversed(item, mesh) for item in value)
    if isinstance(value, (int, float, str)) or value is None:
        return value
    text = str(value)
    for axis, size in mesh.items():
        text = re.sub(rf"\b{axis}\b", f"({size - 1}-{axis})", text)
    found = expr(text)
    return value if str(found) == str(value) else found
