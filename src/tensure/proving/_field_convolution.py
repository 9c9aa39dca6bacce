"""Convolutions and their gradients in the finite field: exact, as the sums of products they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tensure.errors import UnsupportedError

from ._field_degree import CONSTANT, Degree
from ._windows import walks

if TYPE_CHECKING:
    from ._field import Field

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Made: TypeAlias = "tuple[Array, Degree]"
"""An array of integers, not yet modulo p, and its degree."""


def taps(x: Array, dims: Any, fill: int) -> Array:
    """Every output position's window: [..., *outputs, *kernel]."""
    lead = x.ndim - len(dims)
    shape = list(x.shape)
    for at, walk in enumerate(dims):
        shape[lead + at] += walk.before + walk.after
    # not np.pad: its zeros are int64 scalars, which overflow beside long integers
    full = np.full(shape, fill, dtype=object)
    inside = [slice(walk.before, walk.before + x.shape[lead + at]) for at, walk in enumerate(dims)]
    full[(slice(None),) * lead + tuple(inside)] = x
    for at, walk in enumerate(dims):
        rows = np.arange(walk.count(x.shape[lead + at]))[:, None] * walk.stride
        places = rows + np.arange(walk.kernel)[None, :] * walk.dilation
        full = full.take(places.reshape(-1), axis=lead + at)
        split = (*full.shape[: lead + at], *places.shape, *full.shape[lead + at + 1 :])
        full = np.moveaxis(full.reshape(split), lead + at + 1, -1)
    return full


def convolution(field: Field, given: dict[str, Any], operands: list[Any]) -> Made:
    """Its result."""
    x, weight = operands[0].array, operands[1].array
    zero = given.get("input_zero_point", 0)
    windows, kernels, (outs, inner) = _parts(given, x - zero, weight)
    field.work(windows.size * kernels.shape[1])
    made = np.einsum(f"ngc{outs}{inner},goc{inner}->ngo{outs}", windows, kernels)
    made = made.reshape(x.shape[0], -1, *made.shape[3:])
    degree = operands[0].degree.times(operands[1].degree).added(int(np.prod(weight.shape[1:])))
    if len(operands) > 2 and operands[2] is not None:
        made = made + operands[2].array.reshape(1, -1, *[1] * len(outs))
        degree = degree.plus(operands[2].degree)
    return made, degree


def gradients(field: Field, given: dict[str, Any], operands: list[Any]) -> list[Made]:
    """For input, weight and bias; empty where none is asked for."""
    if given["transposed"]:
        raise UnsupportedError("the gradient of a transposed convolution has no meaning in the field")
    grad, x, weight = operands
    wanted = given["output_mask"]
    windows, kernels, (outs, inner) = _parts(given, x.array, weight.array)
    groups = given["groups"]
    flow = grad.array.reshape(x.array.shape[0], groups, -1, *grad.array.shape[2:])
    field.work(windows.size * kernels.shape[1] * 2)
    made: list[Made] = [(np.zeros(0, dtype=object), CONSTANT)] * 3
    spots = int(np.prod(flow.shape[3:]))
    if wanted[0]:
        each = np.einsum(f"ngo{outs},goc{inner}->ngc{outs}{inner}", flow, kernels)
        degree = grad.degree.times(weight.degree).added(int(np.prod(kernels.shape[1:])))
        made[0] = (_put_back(given, each, x.array.shape, len(outs)), degree)
    if wanted[1]:
        summed = np.einsum(f"ngo{outs},ngc{outs}{inner}->goc{inner}", flow, windows)
        degree = grad.degree.times(x.degree).added(spots * x.array.shape[0])
        made[1] = (summed.reshape(weight.array.shape), degree)
    if wanted[2]:
        dims = (0, *range(2, grad.array.ndim))
        total = np.asarray(np.add.reduce(grad.array, axis=dims), dtype=object)
        made[2] = (total, grad.degree.added(spots * x.array.shape[0]))
    return made


def _parts(given: dict[str, Any], x: Array, weight: Array) -> tuple[Array, Array, tuple[str, str]]:
    """Windows by group and channel, kernels by group, letters for places of the output and of a kernel."""
    groups, spatial = given["groups"], weight.ndim - 2
    windows = taps(np.asarray(x, dtype=object), walks(given, weight.shape[2:]), 0)
    windows = windows.reshape(x.shape[0], groups, x.shape[1] // groups, *windows.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    return windows, kernels, ("uvwxyz"[:spatial], "uvwxyz"[3 : 3 + spatial])


def _put_back(given: dict[str, Any], each: Array, shape: tuple[int, ...], spatial: int) -> Array:
    """What every window has of every element, added up by element."""
    size = int(np.prod(shape[2:]))
    numbers = np.arange(size, dtype=object).reshape(shape[2:])
    kernel = each.shape[-spatial:]
    places = taps(numbers, walks(given, kernel), size).reshape(-1)  # `size` is the padding
    flat = each.reshape(shape[0] * shape[1], -1)
    made = np.zeros((flat.shape[0], size + 1), dtype=object)
    for at, place in enumerate(places.tolist()):
        made[:, place] += flat[:, at]
    return made[:, :size].reshape(shape)
