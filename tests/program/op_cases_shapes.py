"""Calls of shape and indexing ops that the op and ATen both accept."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from .op_draws import (
    ANY,
    CASES,
    FLOATS,
    Build,
    Case,
    Draw,
    any_tensor,
    case,
    dim,
    dims,
    flag,
    index,
    number,
    one,
    partner,
    random,
    shape,
    small,
    span,
    tensor,
)

# --- shapes ---------------------------------------------------------------------------------------


def _view(key: str) -> Build:
    def build(draw: Draw) -> Case:
        x = any_tensor(draw)
        size = list(draw(st.permutations(list(x.shape))))
        if len(size) > 1 and flag(draw):
            size[:2] = [size[0] * size[1]]
        if flag(draw):
            size.insert(small(draw, 0, len(size)), 1)
        if size and x.size and flag(draw):
            size[small(draw, 0, len(size) - 1)] = -1
        return Case([x], {key: tuple(size)})

    return build


case("view")(_view("size"))
case("reshape")(_view("shape"))


@case("flatten")
def _flatten(draw: Draw) -> Case:
    x = any_tensor(draw)
    start = small(draw, 0, max(x.ndim - 1, 0))
    return Case([x], {"start_dim": start, "end_dim": small(draw, start, max(x.ndim - 1, 0))})


@case("unsqueeze")
def _unsqueeze(draw: Draw) -> Case:
    x = any_tensor(draw)
    return Case([x], {"dim": dim(draw, x.ndim + 1)})


@case("squeeze", "flip")
def _squeeze(draw: Draw) -> Case:
    x = any_tensor(draw)
    return Case([x], {"dim": dims(draw, x.ndim)})


CASES["flip"] = lambda draw: (lambda c: Case(c.args, {"dims": c.attrs["dim"]}))(_squeeze(draw))


@case("expand")
def _expand(draw: Draw) -> Case:
    size = shape(draw)
    x = tensor(draw, partner(draw, size), one(draw, ANY))
    new = len(size) - x.ndim
    want = tuple(
        -1 if at >= new and x.shape[at - new] == item and flag(draw) else item for at, item in enumerate(size)
    )
    return Case([x], {"size": want})


@case("permute")
def _permute(draw: Draw) -> Case:
    x = any_tensor(draw)
    order = draw(st.permutations(range(x.ndim)))
    return Case([x], {"dims": tuple(at - x.ndim if flag(draw) else at for at in order)})


@case("transpose")
def _transpose(draw: Draw) -> Case:
    x = any_tensor(draw)
    return Case([x], {"dim0": dim(draw, x.ndim), "dim1": dim(draw, x.ndim)})


@case("roll")
def _roll(draw: Draw) -> Case:
    x = any_tensor(draw)
    at = dims(draw, x.ndim)
    return Case([x], {"shifts": tuple(small(draw, -6, 6) for _ in at) or (small(draw, -6, 6),), "dims": at})


@case("slice")
def _slice(draw: Draw) -> Case:
    x = any_tensor(draw, 1)
    at = dim(draw, x.ndim)
    return Case([x], {"dim": at, **span(draw, x.shape[at])})


@case("slice_scatter")
def _slice_scatter(draw: Draw) -> Case:
    x = any_tensor(draw, 1)
    at = dim(draw, x.ndim) % x.ndim
    attrs = span(draw, x.shape[at])
    part = x[(slice(None),) * at + (slice(attrs["start"], attrs["end"], attrs["step"]),)]
    return Case([x, np.flip(part).copy()], {"dim": at, **attrs})


@case("select")
def _select(draw: Draw) -> Case:
    x = any_tensor(draw, 1, side=1)
    at = dim(draw, x.ndim)
    return Case([x], {"dim": at, "index": small(draw, -x.shape[at], x.shape[at] - 1)})


@case("select_scatter")
def _select_scatter(draw: Draw) -> Case:
    found = _select(draw)
    (x,) = found.args
    return Case(
        [x, np.array(np.flip(np.take(x, found.attrs["index"], axis=found.attrs["dim"])))], found.attrs
    )


@case("cat")
def _cat(draw: Draw) -> Case:
    size = shape(draw, 1)
    at = dim(draw, len(size)) % len(size)
    parts = [
        tensor(draw, (*size[:at], small(draw, 0, 3), *size[at + 1 :]), one(draw, ANY))
        for _ in range(small(draw, 1, 3))
    ]
    if len(size) == 1:  # ATen skips an empty vector's dtype no more than ours does, but warns about nothing
        parts = [part if part.size else tensor(draw, (1,), "f32") for part in parts]
    return Case(parts, {"dim": at})


@case("stack")
def _stack(draw: Draw) -> Case:
    size = shape(draw)
    parts = [tensor(draw, size, one(draw, ANY)) for _ in range(small(draw, 1, 3))]
    return Case(parts, {"dim": dim(draw, len(size) + 1)})


@case("repeat")
def _repeat(draw: Draw) -> Case:
    x = any_tensor(draw, 0, 3)
    count = x.ndim + small(draw, 0, 1)
    return Case([x], {"repeats": tuple(small(draw, 0, 3) for _ in range(count))})


@case("constant_pad_nd")
def _pad(draw: Draw) -> Case:
    x = any_tensor(draw, 1, 3, side=2)
    count = small(draw, 0, x.ndim)
    pad = tuple(small(draw, -1, 2) for _ in range(2 * count))
    return Case([x], {"pad": pad, "value": number(draw, "u8" if x.dtype.kind in "iu" else None)})


@case("tril", "triu")
def _tril(draw: Draw) -> Case:
    return Case([any_tensor(draw, 2)], {"diagonal": small(draw, -5, 5)})


@case("arange")
def _arange(draw: Draw) -> Case:
    if flag(draw):
        step = one(draw, [1, 2, -1, 3])
        start = small(draw, -5, 5)
        end = start + step * small(draw, 0, 6) + (1 if step > 0 else -1) * small(draw, 0, 1)
        return Case(
            [],
            {
                "start": start,
                "end": end,
                "step": step,
                "dtype": one(draw, [None, "i64", "i32", "f32", "f16"]),
            },
        )
    first = small(draw, -5, 5) / 4
    step = one(draw, [0.25, 1.5, -0.5])
    end = first + step * small(draw, 0, 6)
    return Case([], {"start": first, "end": end, "step": step, "dtype": one(draw, [None, "f32", "f64"])})


@case("full")
def _full(draw: Draw) -> Case:
    dtype = one(draw, [*ANY, None])
    return Case([], {"size": shape(draw), "fill_value": number(draw, dtype), "dtype": dtype})


# --- indexing -------------------------------------------------------------------------------------


@case("one_hot")
def _one_hot(draw: Draw) -> Case:
    count = small(draw, 1, 5)
    return Case([index(draw, shape(draw, 0, 3, side=1), count)], {"num_classes": count})


@case("embedding")
def _embedding(draw: Draw) -> Case:
    weight = tensor(draw, (small(draw, 1, 6), small(draw, 0, 4)), one(draw, FLOATS), specials=True)
    found = index(draw, shape(draw, 0, 3), weight.shape[0])
    return Case([weight, found.astype(one(draw, [np.int64, np.int32]))])


@case("index_select")
def _index_select(draw: Draw) -> Case:
    x = any_tensor(draw, 1, side=1)
    at = dim(draw, x.ndim)
    return Case([x, index(draw, (small(draw, 0, 5),), x.shape[at])], {"dim": at})


@case("gather")
def _gather(draw: Draw) -> Case:
    x = any_tensor(draw, 1, side=1)
    at = dim(draw, x.ndim) % x.ndim
    size = tuple(small(draw, 0, 5) if d == at else small(draw, 0, n) for d, n in enumerate(x.shape))
    return Case([x, index(draw, size, x.shape[at])], {"dim": at})


@case("scatter")
def _scatter(draw: Draw) -> Case:
    x = any_tensor(draw, 1, side=1)
    at = dim(draw, x.ndim) % x.ndim
    places = np.argsort(random(draw).random(x.shape), axis=at)  # every line a permutation: no place twice
    cut = tuple(slice(small(draw, 0, n)) for n in x.shape)
    src = np.flip(x).copy()
    return Case([x, places[cut].astype(np.int64).copy(), src], {"dim": at})


@case("scatter_add")
def _scatter_add(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, 1, side=1), one(draw, ["f32", "f64", "i64", "i32"]))
    at = dim(draw, x.ndim) % x.ndim
    return Case([x, index(draw, x.shape, x.shape[at]), np.flip(x).copy()], {"dim": at}, slack=4)


@case("scatter_reduce")
def _scatter_reduce(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, 1, side=1), one(draw, ["f32", "f64", "i64", "i32"]))
    at = dim(draw, x.ndim) % x.ndim
    attrs = {"dim": at, "reduce": one(draw, ["sum", "prod", "amax", "amin"])}
    return Case([x, index(draw, x.shape, x.shape[at]), np.flip(x).copy()], attrs, slack=16)


@case("index_add")
def _index_add(draw: Draw) -> Case:
    x = tensor(draw, shape(draw, 1, side=1), one(draw, ["f32", "f64", "i64", "i32"]))
    at = dim(draw, x.ndim) % x.ndim
    count = small(draw, 0, 5)
    source = tensor(draw, (*x.shape[:at], count, *x.shape[at + 1 :]), "f32").astype(x.dtype)
    return Case(
        [x, index(draw, (count,), x.shape[at]), source], {"dim": at, "alpha": small(draw, 1, 3)}, slack=4
    )


def indices(draw: Draw, size: tuple[int, ...]) -> list[Any]:
    block = shape(draw, 0, 2, side=1)
    found: list[Any] = [
        index(draw, partner(draw, block), n, negative=True) if flag(draw) else None
        for n in size[: small(draw, 1, len(size))]
    ]
    if all(item is None for item in found):
        found[-1] = index(draw, block, size[len(found) - 1])
    return found


@case("index")
def _index(draw: Draw) -> Case:
    x = any_tensor(draw, 1, side=1)
    return Case([x, *indices(draw, x.shape)])


@case("index_put")
def _index_put(draw: Draw) -> Case:
    dtype = one(draw, ["f32", "f64", "i64"])
    x = tensor(draw, shape(draw, 1, side=1), dtype)
    if flag(draw):
        found = indices(draw, x.shape)
        block = x[tuple(slice(None) if item is None else item for item in found)]
        return Case(
            [x, tensor(draw, partner(draw, block.shape), dtype), *found], {"accumulate": True}, slack=4
        )
    at = small(draw, 0, x.ndim - 1)
    rows = random(draw).permutation(x.shape[at])[: small(draw, 0, x.shape[at])]
    values = tensor(draw, (*x.shape[:at], len(rows), *x.shape[at + 1 :]), dtype)
    return Case([x, values, *[None] * at, rows], {"accumulate": False})
