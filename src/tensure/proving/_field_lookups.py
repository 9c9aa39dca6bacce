"""Lookups in the finite field: sums over all rows, each times an oracle that says whether it is the one.

Where a row is picked by an index i, the result is the sum over rows r of h(i - r) times row r. The true h is
1 at 0 and 0 elsewhere; the field takes an oracle for it. What holds for any h holds for that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from tensure.errors import UnsupportedError
from tensure.program import evaluate_op

from ._field_degree import CONSTANT, DRAWN, Degree

if TYPE_CHECKING:
    from ._field import F, Field

__all__ = ["CONSTANTS", "LOOKUPS", "constant"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Made: TypeAlias = "list[tuple[Array, Degree]]"
"""Arrays of integers, not yet modulo p, and their degrees."""

CONSTANTS: Final = frozenset(["full", "arange"])


def constant(op: str, given: dict[str, Any]) -> Array:
    """The numbers of a constant."""
    attrs = {key: value for key, value in given.items() if value is not None}
    (made,) = evaluate_op(op, [], attrs)
    if not np.all(np.isfinite(made.astype(np.float64))):
        raise UnsupportedError(f"{op} of what is no number in the field")
    return made


def _embedding(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    table, indices = operands
    chosen = field.indicator(indices.array, table.array.shape[0])
    return [(_product("...r,rc->...c", field, chosen, table.array), _picked(table.array.shape[0], table))]


def _index_select(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, index = operands
    moved = np.moveaxis(x.array, given["dim"], 0)
    chosen = field.indicator(index.array, moved.shape[0])
    flat = _product("ir,rc->ic", field, chosen, moved.reshape(moved.shape[0], -1))
    made = flat.reshape(chosen.shape[0], *moved.shape[1:])
    return [(np.moveaxis(made, 0, given["dim"]), _picked(moved.shape[0], x))]


def _gather(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, index = operands
    dim = given["dim"] % x.array.ndim
    rows = np.moveaxis(x.array, dim, -1)
    spots = np.moveaxis(index.array, dim, -1)
    rows = rows[tuple(slice(size) for size in spots.shape[:-1])]
    chosen = field.indicator(spots, rows.shape[-1])
    made = _product("...ir,...r->...i", field, chosen, rows)
    return [(np.moveaxis(made, -1, dim), _picked(rows.shape[-1], x))]


def _scatter_add(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, index, src = operands
    dim = given["dim"] % x.array.ndim
    spots = np.moveaxis(index.array, dim, -1)
    values = np.moveaxis(src.array[tuple(slice(size) for size in index.array.shape)], dim, -1)
    made = np.moveaxis(x.array, dim, -1).copy()
    chosen = field.indicator(spots, made.shape[-1])
    made[tuple(slice(size) for size in spots.shape[:-1])] += _product(
        "...ir,...i->...r", field, chosen, values
    )
    return [(np.moveaxis(made, -1, dim), x.degree.plus(_picked(spots.shape[-1], src)))]


def _scatter(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    """One number put into each line: x + h(i - r) (src - x).

    Of several in a line, which may be at one place, nobody says which stays: no meaning.
    """
    x, index, src = operands
    dim = given["dim"] % x.array.ndim
    if index.array.shape[dim] != 1:
        raise UnsupportedError("several numbers scattered along a dim, in the field")
    spots = np.moveaxis(index.array, dim, -1)
    values = np.moveaxis(src.array[tuple(slice(size) for size in index.array.shape)], dim, -1)
    made = np.moveaxis(x.array, dim, -1).copy()
    chosen = field.indicator(spots[..., 0], made.shape[-1])
    inside = tuple(slice(size) for size in spots.shape[:-1])
    made[inside] += chosen * (values - made[inside])
    return [(np.moveaxis(made, -1, dim), x.degree.plus(_picked(1, x), _picked(1, src)))]


def _embedding_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, indices = operands
    chosen = field.indicator(indices.array.reshape(-1), given["num_weights"])
    if 0 <= given["padding_idx"] < given["num_weights"]:
        chosen[:, given["padding_idx"]] = 0
    rows = grad.array.reshape(len(chosen), grad.array.shape[-1])
    return [(_product("ir,ic->rc", field, chosen, rows), _picked(len(chosen), grad))]


def _weights(
    field: Field, given: dict[str, Any], target: F, weight: F | None, classes: int
) -> tuple[Array, Degree]:
    """What counts of every sample in every class, and its degree: h(class) times its weight, 0 if ignored."""
    chosen = field.indicator(target.array, classes)
    kept = 1 - field.indicator(target.array - given["ignore_index"], 1)
    degree = DRAWN.times(DRAWN)
    if weight is not None:
        chosen, degree = chosen * weight.array, degree.times(weight.degree)
    return np.asarray(chosen * kept, dtype=object), degree


def _loss(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    x, target, weight = operands
    counts, degree = _weights(field, given, target, weight, x.array.shape[-1])
    loss = np.asarray(-(x.array * counts).sum(-1), dtype=object)
    each = degree.times(x.degree).added(x.array.shape[-1])
    zero = np.zeros((), dtype=object)
    if given["reduction"] == 0 and x.array.ndim == 2:
        return [(loss, each), (zero, CONSTANT)]
    total = np.asarray(counts.sum(), dtype=object)
    summed = np.asarray(loss.sum(), dtype=object)
    if given["reduction"] == 1:
        summed = summed * field.quotient(total)
    sums, totals = each.added(max(loss.size, 1)), degree.added(max(counts.size, 1))
    return [(summed, sums.times(totals.inverse()) if given["reduction"] == 1 else sums), (total, totals)]


def _loss_gradient(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    grad, x, target, weight, total = operands
    counts, degree = _weights(field, given, target, weight, x.array.shape[-1])
    by = grad.array * field.quotient(total.array) if given["reduction"] == 1 else grad.array
    by = np.asarray(by, dtype=object)
    made = -counts * (by[..., None] if by.ndim else by)
    each = degree.times(grad.degree)
    return [(made, each.times(total.degree.inverse()) if given["reduction"] == 1 else each)]


LOOKUPS: Final[dict[str, Callable[[Field, dict[str, Any], list[Any]], Made]]] = {
    "embedding": _embedding,
    "index_select": _index_select,
    "gather": _gather,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "embedding_dense_backward": _embedding_gradient,
    "nll_loss_forward": _loss,
    "nll_loss_backward": _loss_gradient,
}


def _product(equation: str, field: Field, one: Array, other: Array) -> Array:
    left, out = equation.split("->")
    field.work(one.size * max(other.size // max(other.shape[0], 1), 1) if "..." not in left else one.size)
    return np.asarray(np.einsum(f"{left}->{out}", one, other), dtype=object)


def _picked(rows: int, x: F) -> Degree:
    return x.degree.times(DRAWN).added(rows)
