"""Faults for plans and certificates of ranks that are taken together: false at some place, true at others.

A plan's fault changes one integer at one coordinate, or one step of a track that stands at few places. A
certificate's fault changes what is said of a cell; that it is false is seen by numbers, place by place.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from tensure.bundle import Plan, PlanRun, Track, canonical_json
from tensure.errors import TensureError
from tensure.program import Expr, Int, Op, combine, evaluate, evaluate_op, expr

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
ENTRY = "step"
NAME = re.compile(r"[A-Za-z_]\w*")


# --- plans ------------------------------------------------------------------------------------------------


def spanned(plan: Plan, along: str, at: int) -> Plan | None:
    """The same Plan with tracks of their own for the places from `at` on along an axis, or None."""
    steps = [item for track in plan.tracks.values() for item in track.bodies.get(ENTRY, ())]
    sent = {item.attr("to") for item in steps if isinstance(item, Op) and item.op == "send"}
    tracks: dict[str, Track] = {}
    for label, track in plan.tracks.items():
        if along not in track.axes or label in sent or any(key == along for key, _, _ in track.spans):
            tracks[label] = track
            continue
        for part, lo, hi in (("low", 0, at), ("high", at, plan.mesh[along])):
            tracks[f"{label}_{part}"] = replace(track, spans=(*track.spans, (along, lo, hi)))
    return None if len(tracks) == len(plan.tracks) else replace(plan, tracks=tracks)


def at_one_place(plan: Plan, rng: np.random.Generator) -> tuple[str, Plan] | None:
    """One slice, or one loaded part, is moved by one at a single coordinate along one axis."""
    axes = [key for key, size in plan.mesh.items() if size > 1]
    along = str(rng.choice(axes))
    place, by = int(rng.integers(plan.mesh[along])), int(rng.choice([-1, 1]))
    moved: Int = expr(f"pick({along},{','.join(str(by * (at == place)) for at in range(plan.mesh[along]))})")
    sites: list[tuple[str, Any]] = []
    for label, track in plan.tracks.items():
        if along not in track.axes:
            continue
        for at, item in enumerate(track.bodies.get(ENTRY, ())):
            if isinstance(item, Op) and item.op == "slice" and item.attr("end") is not None:
                sites.append((label, at))
        steps = [item for item in track.bodies.get(ENTRY, ()) if isinstance(item, Op)]
        made = {out.base for item in steps for out in item.outs}
        for base, local in track.locals.items():
            if base not in made and local.place is not None and any(runs for _, runs in local.place.dims):
                sites.append((label, base))
    if not sites:
        return None
    label, site = sites[int(rng.integers(len(sites)))]
    track = plan.tracks[label]
    if isinstance(site, int):
        body = list(track.bodies[ENTRY])
        step: Any = body[site]
        attrs = dict(step.attrs)
        attrs.update({key: combine("+", attrs.get(key, 0), moved) for key in ("start", "end")})
        body[site] = replace(step, attrs=tuple(sorted(attrs.items())))
        changed = replace(track, bodies={**track.bodies, ENTRY: tuple(body)})
    else:
        local = track.locals[site]
        assert local.place is not None
        dims = tuple(
            (dim, tuple((combine("+", lo, moved), combine("+", hi, moved), step) for lo, hi, step in runs))
            for dim, runs in local.place.dims
        )
        place_of = replace(local.place, dims=dims)
        changed = replace(track, locals={**track.locals, site: replace(local, place=place_of)})
    return f"{label}: {site} by {moved}", replace(plan, tracks={**plan.tracks, label: changed})


# --- certificates -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A certificate beside what its locals and the Program's values are on one draw."""

    read: Any
    locals: Mapping[tuple[str, str], Array]
    logical: Mapping[str, Array]

    @property
    def rows(self) -> list[list[Any]]:
        return list(self.read["invocations"][0]["locals"])

    @property
    def folded(self) -> list[str]:
        return list(self.read["invocations"][0]["folded"])


def seen(certificate: bytes, run: PlanRun, logical: Mapping[str, Array]) -> Seen:
    made = {(str(rank), str(key)): value for rank, table in run.made.items() for key, value in table.items()}
    return Seen(json.loads(certificate), made, logical)


def places(plan: Plan, cell: str) -> Iterator[tuple[str, dict[str, int]]]:
    """The ranks of a cell: what each is called, and the environment of its expressions."""
    label, _, inside = cell.partition("[")
    track = plan.tracks[label]
    spans: list[range] = []
    for text in inside.rstrip("]").split(",") if inside else ():
        lo, _, hi = text.partition(":")
        spans.append(range(int(lo), int(hi) if hi else int(lo) + 1))
    for at in itertools.product(*spans):
        name = f"{label}[{','.join(map(str, at))}]" if at else label
        env = {**{f"n_{key}": size for key, size in plan.mesh.items()}, **dict(track.fixed)}
        yield name, {**env, **dict(zip(track.axes, at, strict=True))}


def value_of(what: Seen, terms: Any, env: Mapping[str, int]) -> Array | None:
    """What terms say at one place; None where numbers do not tell (addends, results of odd ops)."""
    total: Any = None
    for coef, label, region, limit in terms:
        whole = None if limit is not None else _named(what, label, env)
        if whole is None:
            return None
        part = _part(whole, region, env)
        if part is None:
            return None
        part = part * float(Fraction(coef)) if part.dtype.kind == "f" else part
        total = part if total is None else total + part
    return total


def _part(whole: Array, region: Any, env: Mapping[str, int]) -> Array | None:
    if len(region) != whole.ndim:
        return None
    index: list[list[int]] = []
    for size, runs in zip(whole.shape, region, strict=True):
        ends = [tuple(evaluate(expr(str(end)), env) for end in run) for run in runs]
        members = [at for lo, hi in ends for at in range(lo, hi)]
        if any(not 0 <= at < size for at in members):
            return None
        index.append(members)
    return np.asarray(whole[np.ix_(*index)])


def _named(what: Seen, label: str, env: Mapping[str, int]) -> Array | None:
    if not label.startswith("$"):
        return what.logical.get(label)
    found = next(item for item in what.read["invocations"][0]["values"] if item[0] == label)
    _, op, given, operands, out, shape, _, where = found
    if any(not lo <= env[axis] < hi for axis, lo, hi in where):
        return None
    args: list[Any] = []
    for operand in operands:
        if operand is None:
            args.append(None)
        elif len(operand) == 2:
            kind, text = operand
            args.append({"int": int, "float": float}.get(kind, lambda at: at == "True")(text))
        else:
            args.append(value_of(what, [operand], env))
            if args[-1] is None:
                return None
    attrs = {key: _attr(value) for key, value in given}
    try:
        if op == "+":
            return np.asarray(sum(args[1:], args[0]))
        if op == "full":
            return np.full(shape, attrs["fill_value"], np.float64)
        return evaluate_op(op, args, attrs)[out]
    except (TensureError, KeyError, TypeError, ValueError, IndexError):
        return None


def _attr(value: Any) -> Any:
    if value is None:
        return None
    kind, text = value
    if kind == "tuple":
        return tuple(map(_attr, text))
    return {"int": int, "float": float, "str": str, "bool": lambda at: at == "True"}[kind](text)


def is_false(what: Seen, plan: Plan, cell: str, name: str, terms: Any) -> bool:
    """Whether terms differ plainly from the local at some place of a cell."""
    for rank, env in places(plan, cell):
        here = next(
            (
                what.locals[rank, spelled]
                for spelled in (name, grounded(name, env))
                if (rank, spelled) in what.locals
            ),
            None,
        )
        try:
            said = value_of(what, terms, env)
        except (TensureError, KeyError):
            continue
        if here is None or said is None or here.dtype.kind != "f" or not np.isfinite(here).all():
            continue
        if here.shape != said.shape or not np.allclose(here, said, rtol=1e-6, atol=1e-6):
            return True
    return False


def grounded(name: str, env: Mapping[str, int]) -> str:
    """What a local of a cell is called at one place."""
    return re.sub(
        r"\[(.*)\]", lambda at: f"[{','.join(str(evaluate(expr(e), env)) for e in at[1].split(','))}]", name
    )


def _moved_end(end: Any, axes: list[str], kind: str, by: int) -> Any:
    """An end of a run moved, taken one place on, along another axis, or with other multiples."""
    text = str(end)
    if kind == "constant":
        return _end(combine("+", expr(text), by))
    if kind == "place":
        text = NAME.sub(lambda at: f"({at[0]}{by:+d})", text)
    elif kind == "axis":
        text = NAME.sub(lambda at: axes[(axes.index(at[0]) + by) % len(axes)], text)
    else:
        text = re.sub(r"(\d+)\*", lambda at: f"{int(at[1]) + by}*", text)
    return _end(expr(text))


def _end(value: Int) -> Any:
    return str(value) if isinstance(value, Expr) else value


def _changed_terms(terms: Any, rng: np.random.Generator, axes: list[str]) -> Any:
    """Terms with the expressions of one dim of one term changed."""
    made = copy.deepcopy(terms)
    sites = [
        (at, dim)
        for at, term in enumerate(made)
        for dim, runs in enumerate(term[2])
        if any(isinstance(end, str) for run in runs for end in run)
    ]
    if not sites or rng.random() < 0.15:
        sites = [(at, dim) for at, term in enumerate(made) for dim, runs in enumerate(term[2]) if runs]
    if not sites:
        return None
    at, dim = sites[int(rng.integers(len(sites)))]
    kind, by = str(rng.choice(["constant", "place", "axis", "multiple"])), int(rng.choice([-1, 1]))
    runs = made[at][2][dim]
    if kind == "constant" and rng.random() < 0.5:
        by *= 4
    if rng.random() < 0.1:  # as it is at one place, for all of them
        made[at][2][dim] = [[_still(end, axes) for end in run] for run in runs]
    else:
        made[at][2][dim] = [[_moved_end(end, axes, kind, by) for end in run] for run in runs]
    return made


def _still(end: Any, axes: list[str]) -> Any:
    return evaluate(expr(str(end)), dict.fromkeys(axes, 1)) if isinstance(end, str) else end


def _with_row(what: Seen, at: int, terms: Any) -> bytes:
    made = copy.copy(what.read)
    row = what.rows[at]
    made["invocations"] = [
        {**made["invocations"][0], "locals": [*what.rows[:at], [*row[:2], terms], *what.rows[at + 1 :]]}
    ]
    return canonical_json(made)


def _expression(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """An end of a run is another expression."""
    at = int(rng.integers(len(what.rows)))
    cell, name, terms = what.rows[at]
    changed = _changed_terms(terms, rng, list(plan.mesh))
    if changed in (None, terms) or not is_false(what, plan, cell, name, changed):
        return None
    return _with_row(what, at, changed)


def _other_row(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """What another local is, perhaps of other places."""
    at, other = (int(rng.integers(len(what.rows))) for _ in range(2))
    cell, name, terms = what.rows[at]
    changed = what.rows[other][2]
    if changed == terms or not is_false(what, plan, cell, name, changed):
        return None
    return _with_row(what, at, changed)


def _definition(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """A value that each place makes for itself is made of other parts, and is named as before."""
    values = what.read["invocations"][0]["values"]
    sites = [at for at, item in enumerate(values) if item[7]]
    if not sites:
        return None
    at = sites[int(rng.integers(len(sites)))]
    item = copy.deepcopy(values[at])
    spots = [k for k, operand in enumerate(item[3]) if operand is not None and len(operand) == 4]
    spot = spots[int(rng.integers(len(spots)))]
    changed = _changed_terms([item[3][spot]], rng, list(plan.mesh))
    if changed is None:
        return None
    item[3][spot] = changed[0]
    made = copy.copy(what.read)
    made["invocations"] = [{**made["invocations"][0], "values": [*values[:at], item, *values[at + 1 :]]}]
    other = replace(what, read=made)
    users = [row for row in what.rows if any(term[1] == item[0] for term in row[2])]
    return canonical_json(made) if any(is_false(other, plan, *row) for row in users) else None


def _where(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """A value is said to be of places where none of its users stands."""
    values = what.read["invocations"][0]["values"]
    sites = [at for at, item in enumerate(values) if item[7]]
    if not sites:
        return None
    at = sites[int(rng.integers(len(sites)))]
    item = copy.deepcopy(values[at])
    spot = int(rng.integers(len(item[7])))
    along, lo, hi = item[7][spot]
    by = int(rng.choice([-1, 1]))
    item[7][spot] = [[along, lo, hi - 1], [along, lo + 1, hi], [along, lo + by, hi + by]][
        int(rng.integers(3))
    ]
    _, low, high = item[7][spot]
    if not 0 <= low < high or (low <= lo and hi <= high):
        return None
    if not any(term[1] == item[0] for row in what.rows for term in row[2]):
        return None
    made = copy.copy(what.read)
    made["invocations"] = [{**made["invocations"][0], "values": [*values[:at], item, *values[at + 1 :]]}]
    return canonical_json(made)


def _cell(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """The rows of a cell are said of other places."""
    cells = sorted({row[0] for row in what.rows if ":" in row[0]})
    if not cells:
        return None
    cell = str(rng.choice(cells))
    spans = list(re.finditer(r"(\d+):(\d+)", cell))
    at = spans[int(rng.integers(len(spans)))]
    lo, hi = int(at[1]), int(at[2])
    text = [f"{lo + 1}:{hi}", f"{lo}:{hi - 1}", f"{lo}", f"{lo + 1}:{hi + 1}"][int(rng.integers(4))]
    renamed = cell[: at.start()] + text + cell[at.end() :]
    made = copy.copy(what.read)
    rows = [[renamed if row[0] == cell else row[0], *row[1:]] for row in what.rows]
    made["invocations"] = [{**made["invocations"][0], "locals": rows}]
    return canonical_json(made)


def _together(plan: Plan, cell: str) -> list[str]:
    """The axes along which a cell has several places."""
    label, _, inside = cell.partition("[")
    spans = inside.rstrip("]").split(",") if inside else []
    return [key for key, text in zip(plan.tracks[label].axes, spans, strict=True) if ":" in text]


def _folded(what: Seen, plan: Plan, rng: np.random.Generator) -> bytes | None:
    """Axes along which ranks are said to be taken together, one more or one less."""
    together = {key for row in what.rows for key in _together(plan, row[0])}
    if rng.random() < 0.5 and together:
        chosen = str(rng.choice(sorted(together)))
        changed = [key for key in what.folded if key != chosen]
    else:
        changed = [*what.folded, str(rng.choice(["xp", *what.folded]))]
    made = copy.copy(what.read)
    made["invocations"] = [{**made["invocations"][0], "folded": changed}]
    return canonical_json(made)


CERTIFICATE_FAULTS: Mapping[str, Callable[[Seen, Plan, np.random.Generator], bytes | None]] = {
    "expression": _expression,
    "other row": _other_row,
    "definition": _definition,
    "where": _where,
    "cell": _cell,
    "folded": _folded,
}
