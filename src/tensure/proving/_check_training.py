"""The checker's rules for ops of training steps: several results, index tensors, gradients, masks.

Each rule gives shapes of logical results, what dims an op sums over (its letters), and whether a piece
follows and with which coefficient. Written apart from the prover's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from tensure.errors import LimitError

from ._check_index import EMPTY, FIRST, all_of
from ._check_piece import Piece, Shape, holds, whole

MAX_MASK: Final = 1 << 22


def _no_letters(attrs: dict[str, Any], shapes: Sequence[Any]) -> dict[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class TrainingRule:
    """One op: shapes of its results, sizes of the dims it sums over, and when a piece follows."""

    shapes: Callable[[dict[str, Any], Sequence[Any]], list[Shape] | None]
    follows: Callable[[Piece], Fraction | None]
    letters: Callable[[dict[str, Any], Sequence[Any]], dict[str, int]] = _no_letters


def _alike(p: Piece, *but: str) -> bool:
    one, other = ({k: v for k, v in attrs.items() if k not in but} for attrs in (p.mine, p.theirs))
    return repr(sorted(one.items())) == repr(sorted(other.items()))


def _full(p: Piece, at: int, *dims: int) -> bool:
    """Whole along the named dims of an operand (all of them, if none is named)."""
    part, shape = p.parts[at], p.shapes[at]
    return part is None or all(part[d].is_whole(shape[d]) for d in dims or range(len(shape)))


# --- normalisation with its moments ---------------------------------------------------------------------


def _norm_shapes(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    lead = len(shapes[0]) - len(attrs["normalized_shape"])
    moment = (*shapes[0][:lead], *(1 for _ in shapes[0][lead:]))
    return [shapes[0], moment, moment]


def _norm(p: Piece) -> Fraction | None:
    x, lead = p.parts[0], len(p.shapes[0]) - len(p.theirs["normalized_shape"])
    tail = range(lead, len(p.shapes[0]))
    wanted = x if p.at == 0 else (*x[:lead], *(FIRST for _ in tail))
    rest = all(_full(p, at) for at in range(1, len(p.parts)))
    return holds(_alike(p) and not p.shares and rest and _full(p, 0, *tail) and p.reg == wanted)


# --- index tensors ---------------------------------------------------------------------------------------


def _indexed(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape] | None:
    at = [d for d, shape in enumerate(shapes[1:]) if shape is not None]
    if not at or at != list(range(at[0], at[-1] + 1)):
        return None  # places of dims that are apart come first
    places = np.broadcast_shapes(*(shapes[1 + d] for d in at))
    return [(*shapes[0][: at[0]], *places, *shapes[0][at[-1] + 1 :])]


def _index(p: Piece) -> Fraction | None:
    at = [d for d, part in enumerate(p.parts[1:]) if part is not None]
    if len(at) != 1:
        return None  # by several, whole only
    (d,), x = at, p.parts[0]
    fits = not p.shares and len(x) > d and _full(p, 0, d)
    return holds(fits and p.reg == (*x[:d], *p.parts[1 + d], *x[d + 1 :]))


def _selected(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    d = attrs["dim"] % len(shapes[0])
    return [(*shapes[0][:d], *shapes[1], *shapes[0][d + 1 :])]


def _index_select(p: Piece) -> Fraction | None:
    d, x = p.theirs["dim"] % len(p.shapes[0]), p.parts[0]
    fits = _alike(p) and not p.shares and len(p.parts[1]) == 1 and _full(p, 0, d)
    return holds(fits and p.reg == (*x[:d], *p.parts[1], *x[d + 1 :]))


def _gather(p: Piece) -> Fraction | None:
    x, at, d = p.parts[0], p.parts[1], p.theirs["dim"] % len(p.shapes[0])
    places = all(x[k][: len(at[k])] == at[k] for k in range(len(x)) if k != d)
    return holds(_alike(p) and not p.shares and places and _full(p, 0, d) and p.reg == at)


def _scatter(p: Piece) -> Fraction | None:
    base, at, source = p.parts
    d = p.theirs["dim"] % len(p.out)
    rows = [k for k in range(len(p.out)) if k != d]
    alike = all(at[k] == source[k] == p.reg[k] == base[k] for k in rows)
    sizes = all(p.shapes[1][k] == p.shapes[2][k] == p.out[k] for k in rows)
    whole = _full(p, 1, d) and _full(p, 2, d) and p.reg[d].is_whole(p.out[d]) and _full(p, 0, d)
    return holds(_alike(p) and not p.shares and alike and sizes and whole and at == source)


def _rows_letters(attrs: dict[str, Any], shapes: Sequence[Any]) -> dict[str, int]:
    return {f"i{d}": n for d, n in enumerate(shapes[1])}


def _embedding_backward(p: Piece) -> Fraction | None:
    grad, at = p.parts
    rank = len(at)
    if not _alike(p) or p.theirs.get("scale_grad_by_freq") or grad[:rank] != at:
        return None
    shares = dict(p.shares)
    for d, index in enumerate(at):
        cut = shares.pop(f"i{d}", None)
        if not index.reorders(all_of(p.shapes[1][d]) if cut is None else cut):
            return None
    return holds(not shares and p.reg == (all_of(p.out[0]), *grad[rank:]))


# --- slices and pads -------------------------------------------------------------------------------------


def _slice_backward(p: Piece) -> Fraction | None:
    rank = len(p.out)
    dim = p.theirs["dim"] % rank
    keys = ("start", "end", "step") if p.op == "slice_backward" else ("index",)
    if p.mine["dim"] % rank != dim or any(p.mine.get(key) != p.theirs.get(key) for key in keys):
        return None
    grad = p.parts[0]
    kept = (*grad[:dim], *grad[dim + 1 :]) if p.op == "slice_backward" else grad
    around = dim < len(grad) and p.op == "slice_backward" and not _full(p, 0, dim)
    local = tuple(p.mine["input_sizes"])
    fits = p.reg[dim].is_whole(p.out[dim]) and (*p.reg[:dim], *p.reg[dim + 1 :]) == kept
    return holds(not p.shares and not around and fits and local == tuple(map(len, p.reg)))


def _padded(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    shape, pad = list(shapes[0]), attrs["pad"]
    for k in range(len(pad) // 2):
        shape[-1 - k] += pad[2 * k] + pad[2 * k + 1]
    return [tuple(shape)]


def _pad(p: Piece) -> Fraction | None:
    x, rank, pad = p.parts[0], len(p.out), p.theirs["pad"]
    touched = {rank - 1 - k for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]}
    ends = all(p.reg[d] == (all_of(p.out[d]) if d in touched else x[d]) for d in range(rank))
    return holds(_alike(p) and not p.shares and (not touched or _full(p, 0, *touched)) and ends)


def _triangle(p: Piece) -> Fraction | None:
    rows, columns = p.reg[-2:]
    if p.parts[0] != p.reg or p.shares:
        return None
    if len(rows.runs) == len(columns.runs) == 1:
        # Place (i, j) stands where j - i is at most (at least, in triu) a number: all that matters of it.
        (row, column), low = (rows.start, columns.start), 1 - len(rows)
        edges = (p.theirs.get("diagonal", 0) - (column - row), p.mine.get("diagonal", 0))
        least, most = (low - 1, len(columns) - 1) if p.op == "tril" else (low, len(columns))
        return holds(len({min(max(edge, least), most) for edge in edges}) == 1)
    if len(rows) * len(columns) > MAX_MASK:
        raise LimitError(f"{p.op} of {len(rows)} rows and {len(columns)} columns in pieces")
    there = np.subtract.outer(np.asarray(columns.members()), np.asarray(rows.members())).T
    there -= p.theirs.get("diagonal", 0)
    here = np.subtract.outer(np.arange(len(columns)), np.arange(len(rows))).T - p.mine.get("diagonal", 0)
    kept = (there <= 0, here <= 0) if p.op == "tril" else (there >= 0, here >= 0)
    return holds(bool(np.array_equal(*kept)))


def _counted(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    return [(len(_numbers(attrs)),)]


def _numbers(attrs: dict[str, Any]) -> range:
    start, end, step = attrs.get("start", 0), attrs["end"], attrs.get("step", 1)
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in (start, end, step)):
        raise ValueError("arange of numbers that are no integers")
    return range(start, end, step)


def _arange(p: Piece) -> Fraction | None:
    here, there = _numbers(p.mine), _numbers(p.theirs)
    same = p.mine.get("dtype") == p.theirs.get("dtype") and len(here) == len(p.reg[0])
    passed = 0
    for start, stop in p.reg[0].runs:
        same = same and there[start:stop] == here[passed : passed + stop - start] and stop <= len(there)
        passed += stop - start
    return holds(same and not p.shares)


# --- attention, losses, convolution ------------------------------------------------------------------------


def _attention(p: Piece) -> Fraction | None:
    if (
        not _alike(p)
        or p.shares
        or p.theirs.get("enable_gqa")
        or any(part is not None for part in p.parts[3:])
    ):
        return None
    same = len({tuple(shape[:-2]) for shape in p.shapes[:3]}) == 1
    lead = {part[:-2] for part in p.parts[:3]}
    tails = all(_full(p, at, -1, -2) for at in range(3))
    return holds(same and tails and lead == {p.reg[:-2]} and p.reg[-2:] == whole(p.out[-2:]))


def _squares_letters(attrs: dict[str, Any], shapes: Sequence[Any]) -> dict[str, int]:
    return {f"dim{d}": n for d, n in enumerate(shapes[0])} if attrs.get("reduction", 1) else {}


def _squares(p: Piece) -> Fraction | None:
    one, other = p.parts
    if not _alike(p) or one != other or p.shapes[0] != p.shapes[1]:
        return None
    if p.theirs.get("reduction", 1) == 0:
        return holds(not p.shares and p.reg == one)
    coef, shares = Fraction(1), dict(p.shares)
    for d, (index, n) in enumerate(zip(one, p.shapes[0], strict=True)):
        cut = shares.pop(f"dim{d}", None)
        if not index or not index.reorders(all_of(n) if cut is None else cut):
            return None
        coef *= Fraction(n, len(index)) if p.theirs.get("reduction", 1) == 1 else 1
    return None if shares else coef


def _nll_letters(attrs: dict[str, Any], shapes: Sequence[Any]) -> dict[str, int]:
    return {"n": shapes[1][0]} if attrs["reduction"] == 2 and len(shapes[1]) == 1 else {}


def _nll_shapes(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    return [shapes[1] if attrs["reduction"] == 0 else (), ()]


def _nll(p: Piece) -> Fraction | None:
    x, target = p.parts[:2]
    if not _alike(p) or len(x) != 2 or not _full(p, 0, 1) or x[0] != target[0] or not _full(p, 2):
        return None
    if p.theirs["reduction"] == 0:
        return holds(not p.shares and p.reg == (target if p.at == 0 else ()))
    cut = p.shares.get("n")
    rows = all_of(p.shapes[1][0]) if cut is None else cut
    return holds(p.theirs["reduction"] == 2 and p.shares.keys() <= {"n"} and target[0].reorders(rows))


def _nll_backward(p: Piece) -> Fraction | None:
    grad, x, target = p.parts[:3]
    rows = x == p.reg and _full(p, 1, 1) and target == (x[0],) and _full(p, 3) and _full(p, 4)
    wanted = (target,) if p.theirs["reduction"] == 0 else ((),)
    return holds(_alike(p) and len(x) == 2 and not p.shares and rows and grad in wanted)


def _conv_letters(attrs: dict[str, Any], shapes: Sequence[Any]) -> dict[str, int]:
    return {"n": shapes[0][0], "o": shapes[0][1]}


def _conv_shapes(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    mask, bias = attrs["output_mask"], attrs.get("bias_sizes")
    made = [shapes[1], shapes[2], tuple(bias or (0,))]
    return [shape if kept else (0,) for shape, kept in zip(made, mask, strict=True)]


def _conv_backward(p: Piece) -> Fraction | None:
    """One gradient of a convolution: of its input (0) over output channels, of its weight (1) over samples.

    dx[n, c] = sum over o of dy[n, o] * w[o, c]; dw[o, c] = sum over n of dy[n, o] * x[n, c], over all places.
    The operand that a gradient is not made of has to be of the same part all the same.
    """
    if not p.theirs["output_mask"][p.at]:
        return holds(_alike(p) and not p.shares and p.reg == (EMPTY,))
    dy, x, w = p.parts
    places = all(_full(p, at, *range(2, len(p.shapes[at]))) for at in range(3) if len(p.shapes[at]) > 2)
    channels = (dy[1], x[1]) == w[:2] and dy[0] == x[0]
    alone = sum(map(bool, p.theirs["output_mask"])) == 1 and p.at != 2
    if not alone or p.theirs.get("groups", 1) != 1 or p.theirs.get("transposed"):
        channels = dy[0] == x[0] and all(_full(p, at, 1) for at in range(2)) and _full(p, 2)
    if not _alike(p) or not places or not channels:
        return None
    samples, made = p.shapes[0][:2]
    if p.at == 0:
        rows = p.shares.get("o", all_of(made))
        return holds(p.shares.keys() <= {"o"} and dy[1].reorders(rows) and p.reg == x)
    rows = p.shares.get("n", all_of(samples))
    wanted = whole(p.out) if p.at == 2 else (*w[:2], *whole(p.out[2:]))
    return holds(p.shares.keys() <= {"n"} and dy[0].reorders(rows) and p.reg == wanted)


# --- order within rows ---------------------------------------------------------------------------------


def _ranked_shapes(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    shape, dim = list(shapes[0]), attrs.get("dim", -1)
    shape[dim] = attrs.get("k", shape[dim])
    return [tuple(shape)] * 2


def _ranked(p: Piece) -> Fraction | None:
    """A row's order, and its places, are of the whole row alone."""
    part, dim = p.parts[0], p.theirs.get("dim", -1) % len(p.out)
    rows = all(index == part[d] for d, index in enumerate(p.reg) if d != dim)
    return holds(not p.shares and _alike(p) and _full(p, 0, dim) and rows and p.reg[dim].is_whole(p.out[dim]))


TRAINING: Final[dict[str, TrainingRule]] = {
    "native_layer_norm": TrainingRule(_norm_shapes, _norm),
    "index": TrainingRule(_indexed, _index),
    "index_select": TrainingRule(_selected, _index_select),
    "gather": TrainingRule(
        lambda attrs, shapes: [shapes[1]],
        _gather,
        lambda attrs, shapes: {"v": shapes[0][attrs["dim"] % len(shapes[0])]},
    ),
    "index_put": TrainingRule(lambda attrs, shapes: [shapes[0]], lambda p: None),
    "scatter_add": TrainingRule(lambda attrs, shapes: [shapes[0]], _scatter),
    "embedding_dense_backward": TrainingRule(
        lambda attrs, shapes: [(attrs["num_weights"], *shapes[0][len(shapes[1]) :])],
        _embedding_backward,
        _rows_letters,
    ),
    "slice_backward": TrainingRule(lambda attrs, shapes: [tuple(attrs["input_sizes"])], _slice_backward),
    "select_backward": TrainingRule(lambda attrs, shapes: [tuple(attrs["input_sizes"])], _slice_backward),
    "constant_pad_nd": TrainingRule(_padded, _pad),
    "tril": TrainingRule(lambda attrs, shapes: [shapes[0]], _triangle),
    "triu": TrainingRule(lambda attrs, shapes: [shapes[0]], _triangle),
    "arange": TrainingRule(_counted, _arange),
    "topk": TrainingRule(_ranked_shapes, _ranked),
    "sort": TrainingRule(_ranked_shapes, _ranked),
    "scaled_dot_product_attention": TrainingRule(
        lambda attrs, shapes: [(*shapes[0][:-1], shapes[2][-1])], _attention
    ),
    "mse_loss": TrainingRule(
        lambda attrs, shapes: [() if attrs.get("reduction", 1) else shapes[0]], _squares, _squares_letters
    ),
    "nll_loss_forward": TrainingRule(_nll_shapes, _nll, _nll_letters),
    "nll_loss_backward": TrainingRule(lambda attrs, shapes: [shapes[1]], _nll_backward),
    "convolution_backward": TrainingRule(_conv_shapes, _conv_backward, _conv_letters),
}
