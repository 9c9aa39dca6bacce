"""The passes of the normaliser: each maps (Program, weights) to an equal pair with fewer or plainer ops.

They work on straight-line entries (property `flat`). A value an entry hands out keeps its name. Contracts
and order are in `_normalise.py`; whether a pass kept its promise is judged by `_properties.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ._lines import (
    POINTWISE,
    Arrays,
    Line,
    as_ints,
    fresh_name,
    rename_op,
    rewrite_entries,
    source_name,
    whole_name,
    with_attrs,
)
from ._records import Arg, Attr, Name, Op, Program, Ref, Value

# --- ops that do nothing ----------------------------------------------------------------------------

_VIEWS: Final = frozenset({"view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "slice"})


def drop_no_ops(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """Without copies, casts to the same dtype, views to the same shape and permutations that move nothing."""

    def rewrite(line: Line) -> None:
        same: dict[Name, Name] = {}
        for item in line.ops:
            source = source_name(item)
            if source is not None and len(item.outs) == 1 and _does_nothing(item, source, line):
                same[item.outs[0]] = source
        line.remove(same)

    return rewrite_entries(program, rewrite), weights


def _does_nothing(item: Op, source: Name, line: Line) -> bool:
    before, after = line.type(source), line.type(item.outs[0])
    if item.op == "copy":
        return True
    if item.op == "_to_copy":
        return before == after
    if item.op == "permute":
        dims = as_ints(item.attr("dims"))
        return dims is not None and [d % max(len(dims), 1) for d in dims] == list(range(len(dims)))
    return item.op in _VIEWS and line.static and before == after


# --- one form for one meaning -----------------------------------------------------------------------


def canonicalise(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With permute for transpose and t, view for reshape, and dims counted from the front."""

    def rewrite(line: Line) -> None:
        line.ops = [_canonical(item, line) for item in line.ops]

    return rewrite_entries(program, rewrite), weights


def _canonical(item: Op, line: Line) -> Op:
    if item.op == "reshape":
        return replace(item, op="view", attrs=(("size", item.attr("shape")),))
    if item.op not in ("transpose", "t", "permute"):
        return item
    order = list(range(len(line.type(item.outs[0]).shape)))
    if item.op == "permute":
        dims = as_ints(item.attr("dims"))
        return (
            item if dims is None else with_attrs(item, dims=tuple(dim % max(len(order), 1) for dim in dims))
        )
    a, b = (0, -1) if item.op == "t" else (item.attr("dim0"), item.attr("dim1"))
    if order and isinstance(a, int) and isinstance(b, int):
        order[a], order[b] = order[b], order[a]
    return replace(item, op="permute", attrs=(("dims", tuple(order)),))


def cancel_permutes(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With a permutation of a permutation made one, also across pointwise ops that nothing else reads."""
    return rewrite_entries(program, _cancel), weights


def _cancel(line: Line) -> None:
    while True:
        makers, uses = line.makers(), line.uses()
        found = next((chain for item in line.ops if (chain := _chain(item, makers, uses))), None)
        if found is None:
            return
        first, *between, last = found
        inner, outer = as_ints(first.attr("dims")) or (), as_ints(last.attr("dims")) or ()
        dims = tuple(inner[dim] for dim in outer)
        through = source_name(first)
        assert through is not None
        swaps: dict[Name, Op] = {}
        # The ops between now see the value before the first permutation: new values, so new names.
        for item in between:
            fresh = fresh_name(f"{item.outs[0].base}_unpermuted", line)
            swaps[item.outs[0]] = replace(item, args=(Ref(through), *item.args[1:]), outs=(fresh,))
            through = fresh
        still = dims == tuple(range(len(dims)))
        end = replace(last, args=(Ref(through),))
        swaps[last.outs[0]] = replace(end, op="copy", attrs=()) if still else with_attrs(end, dims=dims)
        line.ops = [swaps.get(item.outs[0], item) if item.outs else item for item in line.ops]
        if still:
            line.remove({last.outs[0]: through})


def _chain(last: Op, makers: Mapping[Name, Op], uses: Counter[Name]) -> list[Op] | None:
    """permute, pointwise ops read only here, permute; in order."""
    if last.op != "permute":
        return None
    chain = [last]
    while True:
        source = source_name(chain[0])
        maker = None if source is None else makers.get(source)
        if maker is None or source is None:
            return None
        if maker.op == "permute":
            return [maker, *chain] if source_name(maker) is not None else None
        if maker.op not in POINTWISE or uses[source] != 1:
            return None
        chain.insert(0, maker)


def fuse_linear(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With mm and addmm by a transposed matrix as linear, which takes the matrix as it lies."""

    def rewrite(line: Line) -> None:
        makers = line.makers()
        line.ops = [_linear(item, makers, line) for item in line.ops]

    return rewrite_entries(program, rewrite), weights


def _linear(item: Op, makers: Mapping[Name, Op], line: Line) -> Op:
    if item.op not in ("mm", "addmm") or item.attrs:
        return item
    bias, (x, matrix) = (item.args[0], item.args[1:]) if item.op == "addmm" else (None, item.args)
    source = whole_name(matrix)
    maker = makers.get(source) if source is not None else None
    if maker is None or maker.op != "permute" or as_ints(maker.attr("dims")) != (1, 0):
        return item
    if bias is not None:
        vector = whole_name(bias)
        if vector is None or str(vector) not in line.types or len(line.type(vector).shape) != 1:
            return item
        out = line.types.get(str(item.outs[0]))
        if out is None or line.type(vector).shape != out.shape[1:]:
            return item
    return replace(item, op="linear", args=(x, maker.args[0], bias), attrs=())


# --- padding ----------------------------------------------------------------------------------------


def fold_padding(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With padding before a convolution or pool as its own (before, after) pairs, where that is the same."""

    def rewrite(line: Line) -> None:
        makers = line.makers()
        for at, item in enumerate(line.ops):
            while (source := source_name(item)) is not None and (maker := makers.get(source)) is not None:
                folded = _padded(item, maker, line) if maker.op == "constant_pad_nd" else item
                if folded is item:
                    break
                line.ops[at] = item = folded
                makers.update(dict.fromkeys(item.outs, item))

    return rewrite_entries(program, rewrite), weights


def _padded(item: Op, pad: Op, line: Line) -> Op:
    sides, value = as_ints(pad.attr("pad")), pad.attr("value", 0)
    rank = len(line.type(pad.outs[0]).shape)
    count = rank - 2
    spatial = {"convolution": count, "avg_pool2d": 2, "max_pool2d": 2}.get(item.op)
    own = as_ints(item.attr("padding", (0,)))
    if (
        spatial is None
        or sides is None
        or own is None
        or min(sides, default=0) < 0
        or len(sides) > 2 * spatial
    ):
        return item
    pairs = _pairs(own, spatial)
    for at in range(len(sides) // 2):  # ATen lists the last dim first
        before, after = pairs[spatial - 1 - at]
        pairs[spatial - 1 - at] = (before + sides[2 * at], after + sides[2 * at + 1])
    if not _may_pad(item, value, pairs):
        return item
    same = all(before == after for before, after in pairs)
    padding = tuple(before for before, _ in pairs) if same else tuple(side for pair in pairs for side in pair)
    return with_attrs(
        replace(item, args=(pad.args[0], *item.args[1:])), padding=padding if any(padding) else None
    )


def _pairs(padding: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    if len(padding) == 2 * count:
        return [(padding[at], padding[at + 1]) for at in range(0, 2 * count, 2)]
    return [(side, side) for side in (padding if len(padding) == count else padding * count)]


def _may_pad(item: Op, value: Attr, pairs: list[tuple[int, int]]) -> bool:
    """Whether padding with `value` is what the op's own padding means."""
    if item.op == "convolution":
        return value == 0 and not item.attr("transposed", False)
    kernel, dilation = as_ints(item.attr("kernel_size")), as_ints(item.attr("dilation", (1,)))
    if kernel is None or dilation is None or item.attr("ceil_mode", False):
        return False
    reach = [(k - 1) * d + 1 for k, d in zip(_two(kernel), _two(dilation), strict=True)]
    if any(max(pair) > size // 2 for pair, size in zip(pairs, reach, strict=True)):
        return False
    if item.op == "max_pool2d":
        return value == float("-inf")
    return value == 0 and item.attr("count_include_pad", True) is True


def _two(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return sizes * 2 if len(sizes) == 1 else sizes


# --- batch norm -------------------------------------------------------------------------------------


def fold_batch_norm(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With a batch norm as part of the convolution or linear before it, if nothing else reads that.

    weight' = weight * s and bias' = (bias - mean) * s + shift by output channel, s = scale / sqrt(var + eps),
    in float64, rounded once to the weight's dtype.
    """
    weights, values = dict(weights), dict(program.values)
    folded: dict[tuple[Any, ...], tuple[Name, Name]] = {}

    def constant(arg: Arg) -> bool:
        found = whole_name(arg)
        declared = values.get(found.base) if found is not None else None
        return declared is not None and declared.role == "weight" and declared.dtype in ("f32", "f64")

    def fold(norm: Op, maker: Op) -> Op:
        key = (norm.args[1:], maker.args[1:], norm.attr("eps"))
        if key not in folded:
            folded[key] = _fold_weights(norm, maker, weights, values)
        weight, bias = folded[key]
        return replace(maker, args=(maker.args[0], Ref(weight), Ref(bias)), outs=norm.outs)

    def rewrite(line: Line) -> None:
        makers, uses = line.makers(), line.uses()
        gone: set[Name] = set()
        ops: list[Op] = []
        for item in line.ops:
            source = source_name(item)
            maker = makers.get(source) if source is not None else None
            if (
                item.op == "batch_norm"
                and source is not None
                and maker is not None
                and _folds(maker, line)
                and uses[source] == 1
                and all(arg is None or constant(arg) for arg in (*item.args[1:], *maker.args[1:]))
            ):
                gone.add(source)
                item = fold(item, maker)
                makers[item.outs[0]] = item
            ops.append(item)
        line.ops = [item for item in ops if not gone & set(item.outs)]

    program = rewrite_entries(program, rewrite)
    return replace(program, values=values), weights


def _folds(maker: Op, line: Line) -> bool:
    if maker.op == "convolution":
        return not maker.attr("transposed", False)
    return maker.op == "linear" and len(line.type(maker.outs[0]).shape) == 2


def _fold_weights(norm: Op, maker: Op, weights: Arrays, values: dict[str, Value]) -> tuple[Name, Name]:
    """Make the folded weight and bias; their names."""

    def array(arg: Arg, missing: float) -> Any:
        found = whole_name(arg)
        return missing if found is None else weights[str(found)].astype(np.float64)

    matrix = whole_name(maker.args[1])
    assert matrix is not None
    eps = norm.attr("eps", 1e-05)
    assert isinstance(eps, float | int)
    w, bias = array(maker.args[1], 0.0), array(maker.args[2] if len(maker.args) > 2 else None, 0.0)
    scale, shift, mean, var = (
        array(arg, fill) for arg, fill in zip(norm.args[1:], (1.0, 0.0, 0.0, 1.0), strict=True)
    )
    by = np.broadcast_to(scale / np.sqrt(var + eps), w.shape[:1])
    dtype, target = values[matrix.base].dtype, weights[str(matrix)].dtype
    names: list[Name] = []
    for label, result in (
        ("folded", w * by.reshape(-1, *[1] * (w.ndim - 1))),
        ("folded_bias", (bias - mean) * by + shift),
    ):
        fresh, count = f"{matrix.base}.{label}", 1
        while fresh in values:
            fresh, count = f"{matrix.base}.{label}_{count}", count + 1
        values[fresh] = Value(tuple(result.shape), dtype, "weight")
        weights[fresh] = np.ascontiguousarray(result.astype(target))
        names.append(Name(fresh))
    return names[0], names[1]


# --- means ------------------------------------------------------------------------------------------


def merge_mean_flatten(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With a mean over both spatial dims, then flattened to [N, C], as one mean without them."""

    def rewrite(line: Line) -> None:
        makers, uses = line.makers(), line.uses()
        for at, item in enumerate(line.ops):
            source = source_name(item)
            maker = makers.get(source) if source is not None else None
            if maker is None or source is None or uses[source] != 1 or not _to_matrix(item, source, line):
                continue
            if _is_mean(maker, line):
                attrs: tuple[tuple[str, Attr], ...] = (("dim", (2, 3)),)
                line.ops[at] = replace(item, op="mean", args=maker.args, attrs=attrs)

    return rewrite_entries(program, rewrite), weights


def _is_mean(maker: Op, line: Line) -> bool:
    source = source_name(maker)
    if source is None or str(source) not in line.types or len(line.type(source).shape) != 4:
        return False
    if maker.op == "adaptive_avg_pool2d":
        return set(as_ints(maker.attr("output_size")) or ()) == {1}
    dims = as_ints(maker.attr("dim")) or ()
    return (
        maker.op == "mean"
        and {dim % 4 for dim in dims} == {2, 3}
        and maker.attr("keepdim") is True
        and maker.attr("dtype") is None
    )


def _to_matrix(item: Op, source: Name, line: Line) -> bool:
    """Whether [N, C, 1, 1] becomes [N, C]."""
    have, got = line.types.get(str(source)), line.types.get(str(item.outs[0]))
    if have is None or got is None or len(have.shape) != 4 or len(got.shape) != 2 or not line.static:
        # With open sizes only the forms that cannot mean anything else.
        return item.op == "flatten" and item.attr("start_dim", 0) == 1 and item.attr("end_dim", -1) in (-1, 3)
    return item.op in _VIEWS and item.op != "expand" and got.shape == have.shape[:2]


# --- repeated and dead ------------------------------------------------------------------------------


def merge_common(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """With equal ops of equal operands computed once (no listed op draws at random)."""

    def rewrite(line: Line) -> None:
        first: dict[str, Op] = {}
        same: dict[Name, Name] = {}
        ops: list[Op] = []
        for found in line.ops:
            item = rename_op(found, same)
            key = f"{item.op}{item.args!r}{item.attrs!r}"  # repr, for 1 == True == 1.0
            if key in first and not line.kept & set(item.outs):
                same.update(zip(item.outs, first[key].outs, strict=True))
                continue
            first.setdefault(key, item)
            ops.append(item)
        line.ops = ops

    return rewrite_entries(program, rewrite), weights


def drop_dead(program: Program, weights: Arrays) -> tuple[Program, Arrays]:
    """Without ops nothing reads and weights no entry reads."""
    read: set[str] = set()
    made: set[str] = set()

    def rewrite(line: Line) -> None:
        live, ops = line.kept, list[Op]()
        for item in reversed(line.ops):
            if live & set(item.outs):
                live |= {ref.name for ref in item.reads()}
                ops.append(item)
        line.ops = ops[::-1]
        read.update(name.base for name in live)
        made.update(name.base for item in line.ops for name in item.outs)

    program = rewrite_entries(program, rewrite)
    leaves = {name.base for entry in program.entries.values() for name in entry.inputs}
    leaves |= {state.before.base for entry in program.entries.values() for state in entry.states}
    keep = {
        base: value
        for base, value in program.values.items()
        if base in leaves or base in made or (value.role == "weight" and base in read)
    }
    gone = {base for base, value in program.values.items() if value.role == "weight" and base not in keep}
    kept = {key: array for key, array in weights.items() if key.partition("[")[0] not in gone}
    return replace(program, values=keep), kept
