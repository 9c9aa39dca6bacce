"""Passes that give back what a framework took apart: batch norms, biases, weights as the ops want them.

Keras on torch spells a batch norm as sub, rsqrt, mul and add, a bias as an add behind the product, and
permutes a kernel at every call. Knows these spellings; the frame is `_lines.py`, the contracts
`_normalise.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ._fresh_names import FreshNames
from ._lines import (
    Array,
    Arrays,
    Line,
    as_ints,
    fresh_name,
    rename_op,
    rewrite_entries,
    source_name,
    whole_name,
)
from ._records import Arg, Name, Op, Program, Ref, Value

__all__ = ["fold_weight_views", "fuse_bias", "refold_batch_norm"]

_FLOATS: Final = ("f32", "f64")


def _is_weight(name: Name | None, values: Mapping[str, Value]) -> bool:
    found = values.get(name.base) if name is not None and not name.index else None
    return found is not None and found.role == "weight" and not found.params


# --- batch norm -------------------------------------------------------------------------------------


def refold_batch_norm(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With (x - mean) * (rsqrt(var + eps) * scale) + shift, all by channel, as one batch_norm."""

    def rewrite(line: Line) -> None:
        makers = line.makers()
        ops: list[Op] = []
        for item in line.ops:
            found = _spelled(item, makers, line, program.values)
            ops += [item] if found is None else _norm(item, found, line)
        line.ops = ops

    return rewrite_entries(program, rewrite), weights


@dataclass(frozen=True, slots=True)
class _Spelled:
    """The parts of a batch norm that was taken apart; the vectors lie along `axis` of `x`."""

    x: Name
    scale: Ref | None
    shift: Ref | None
    mean: Ref
    var: Ref
    eps: float
    axis: int


def _pairs(item: Op | None, kind: str) -> Iterator[tuple[Name, Name]]:
    """Both operands of a commuting op, either way round."""
    if item is None or item.op != kind or item.attrs or len(item.args) != 2:
        return
    a, b = whole_name(item.args[0]), whole_name(item.args[1])
    if a is not None and b is not None:
        yield a, b
        yield b, a


def _spelled(item: Op, makers: Mapping[Name, Op], line: Line, values: Mapping[str, Value]) -> _Spelled | None:
    for product, shift in _pairs(item, "add"):
        for centred, factor in _pairs(makers.get(product), "mul"):
            sub = makers.get(centred)
            if sub is None or sub.op != "sub" or sub.attrs:
                continue
            x, mean = whole_name(sub.args[0]), whole_name(sub.args[1])
            spread = makers.get(factor)
            choices = [*_pairs(spread, "mul")] if spread is None or spread.op != "rsqrt" else [(factor, None)]
            for root, scale in choices:
                found = _parts(x, mean, root, scale, shift, makers, line, values)
                if found is not None:
                    return found
    return None


def _parts(
    x: Name | None,
    mean: Name | None,
    root: Name,
    scale: Name | None,
    shift: Name,
    makers: Mapping[Name, Op],
    line: Line,
    values: Mapping[str, Value],
) -> _Spelled | None:
    rsqrt = makers.get(root)
    inner = source_name(rsqrt) if rsqrt is not None and rsqrt.op == "rsqrt" else None
    total = makers.get(inner) if inner is not None else None
    if x is None or mean is None or total is None or total.op != "add" or total.attrs:
        return None
    var, eps = whole_name(total.args[0]), total.args[1]
    if var is None or isinstance(eps, bool) or not isinstance(eps, int | float):
        return None
    shape = line.type(x).shape
    vectors = [_vector(name, shape, makers, line, values) for name in (mean, var)]
    for name, neutral in ((scale, 1), (shift, 0)):
        constant = name is None or _is_full(makers.get(name), neutral)
        vectors.append((None, -1) if constant else _vector(name, shape, makers, line, values))
    if any(vector is None for vector in vectors):
        return None
    (mean_, axis), (var_, _), (scale_, _), (shift_, _) = (vector for vector in vectors if vector is not None)
    axes = {vector[1] for vector in vectors if vector is not None and vector[0] is not None}
    dtypes = {line.type(x).dtype} | {
        values[ref.name.base].dtype for ref in (mean_, var_, scale_, shift_) if ref
    }
    if mean_ is None or var_ is None or axes != {axis} or axis < 1 or len(dtypes) > 1 or dtypes - {*_FLOATS}:
        return None
    return _Spelled(x, scale_, shift_, mean_, var_, float(eps), axis)


def _is_full(maker: Op | None, value: int) -> bool:
    return maker is not None and maker.op == "full" and maker.attr("fill_value") == value


def _vector(
    name: Name | None,
    shape: tuple[int, ...],
    makers: Mapping[Name, Op],
    line: Line,
    values: Mapping[str, Value],
) -> tuple[Ref | None, int] | None:
    """A weight of one dim that broadcasts along one dim of `shape`, and which."""
    if name is None:
        return None
    maker = makers.get(name)
    source = source_name(maker) if maker is not None and maker.op == "view" else name
    if source is None or not _is_weight(source, values) or len(values[source.base].shape) != 1:
        return None
    wide = line.type(name).shape
    wide = (1,) * (len(shape) - len(wide)) + wide
    along = [at for at, size in enumerate(wide) if size != 1]
    if len(wide) != len(shape) or len(along) != 1 or wide[along[0]] != shape[along[0]]:
        return None
    return Ref(source), along[0]


def _norm(item: Op, found: _Spelled, line: Line) -> list[Op]:
    rank = len(line.type(found.x).shape)
    order = (0, found.axis, *(at for at in range(1, rank) if at != found.axis))
    vectors = (found.scale, found.shift, found.mean, found.var)
    attrs = (("eps", found.eps),)
    if found.axis == 1:
        return [Op("batch_norm", (Ref(found.x), *vectors), item.outs, attrs, item.note)]
    ahead, normed = (fresh_name(f"{item.outs[0].base}_{part}", line) for part in ("first", "norm"))
    back = tuple(order.index(at) for at in range(rank))
    return [
        Op("permute", (Ref(found.x),), (ahead,), (("dims", order),), item.note),
        Op("batch_norm", (Ref(ahead), *vectors), (normed,), attrs, item.note),
        Op("permute", (Ref(normed),), item.outs, (("dims", back),), item.note),
    ]


# --- weights ----------------------------------------------------------------------------------------


def _new_weight(
    base: str, label: str, array: Array, names: FreshNames, values: dict[str, Value], weights: Arrays
) -> Ref:
    key = names.take(f"{base}.{label}")
    values[key] = Value(tuple(array.shape), values[base].dtype, "weight")
    weights[key] = np.ascontiguousarray(array).reshape(array.shape)
    return Ref(Name(key))


def _names(program: Program) -> FreshNames:
    made = (
        name.base
        for entry in program.entries.values()
        for item in entry.body
        if isinstance(item, Op)
        for name in item.outs
    )
    return FreshNames({*program.values, *made})


def fold_weight_views(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With a weight that is only read permuted, or under another shape, stored that way."""
    weights, values, names = dict(weights), dict(program.values), _names(program)
    reads: dict[str, int] = {}
    for entry in program.entries.values():
        for item in entry.body:
            for ref in item.reads() if isinstance(item, Op) else ():
                reads[ref.name.base] = reads.get(ref.name.base, 0) + 1

    def rewrite(line: Line) -> None:
        swaps: dict[Name, Name] = {}
        uses, ops = line.uses(), list[Op]()
        for found in line.ops:
            item = rename_op(found, swaps)
            source = source_name(item)
            wanted = as_ints(item.attr("dims" if item.op == "permute" else "size"))
            if (
                item.op not in ("permute", "view")
                or source is None
                or wanted is None
                or not _is_weight(source, values)
                or reads[source.base] != 1
                or item.outs[0] in line.kept
            ):
                ops.append(item)
                continue
            array = weights[source.base]
            moved = array.transpose(wanted) if item.op == "permute" else array.reshape(wanted)
            label = "permuted" if item.op == "permute" else "viewed"
            made = _new_weight(source.base, label, moved, names, values, weights).name
            swaps[item.outs[0]], reads[made.base] = made, uses[item.outs[0]]
        line.ops = ops

    program = rewrite_entries(program, rewrite)
    return replace(program, values=values), weights


# --- biases -----------------------------------------------------------------------------------------


def fuse_bias(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With a vector of weights added to a convolution or product by channel as its bias.

    A product with a matrix of weights [in, out] becomes a linear on the way, its matrix stored [out, in].
    """
    weights, values, names = dict(weights), dict(program.values), _names(program)

    def rewrite(line: Line) -> None:
        makers, uses = line.makers(), line.uses()
        gone: set[Name] = set()
        ops: list[Op] = []
        for item in line.ops:
            for made, shift in _pairs(item, "add"):
                maker = makers.get(made)
                if maker is None or uses[made] != 1 or made in line.kept or not _is_weight(shift, values):
                    continue
                args = _with_bias(maker, shift, line, names, values, weights)
                if args is not None:
                    gone.add(made)
                    kind = "linear" if maker.op == "matmul" else maker.op
                    item = replace(maker, op=kind, args=args, outs=item.outs)
                    break
            ops.append(item)
            makers.update(dict.fromkeys(item.outs, item))
        line.ops = [item for item in ops if not gone & set(item.outs)]

    program = rewrite_entries(program, rewrite)
    return replace(program, values=values), weights


def _with_bias(
    maker: Op,
    shift: Name,
    line: Line,
    names: FreshNames,
    values: dict[str, Value],
    weights: Arrays,
) -> tuple[Arg, ...] | None:
    """The operands of a product with the shift as its bias; None if that is not the same."""
    made = line.types.get(str(maker.outs[0]))
    if made is None or maker.op not in ("convolution", "linear", "matmul"):
        return None
    if maker.op != "matmul" and len(maker.args) > 2 and maker.args[2] is not None:
        return None
    channel = 1 if maker.op == "convolution" else len(made.shape) - 1
    array = weights[shift.base]
    wide = (1,) * (len(made.shape) - array.ndim) + array.shape
    size = made.shape[channel]
    if wide != tuple(size if at == channel else 1 for at in range(len(made.shape))):
        return None
    if values[shift.base].dtype != made.dtype:
        return None
    matrix = maker.args[1]
    if maker.op == "matmul":
        source = whole_name(matrix)
        if (
            source is None
            or not _is_weight(source, values)
            or len(values[source.base].shape) != 2
            or len(made.shape) < 2
        ):
            return None
        matrix = _new_weight(source.base, "transposed", weights[source.base].T, names, values, weights)
    bias = (
        Ref(shift)
        if array.ndim == 1
        else _new_weight(shift.base, "bias", array.reshape(size), names, values, weights)
    )
    return (maker.args[0], matrix, bias)
