"""Resize, Upsample, GridSample and RoiAlign: reading between the elements.

Where each result comes from is known while the file is read, axis by axis: a result element is a sum of a few
input elements (the taps) by known weights. Few taps are picked and added up; many become a matrix product.

    O results along an axis   T taps of each
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._dtypes import FLOATS
from ._builder import Array, Builder, Tensor, axes_of, axis_of
from ._table import Attributes, onnx_op

_MOST_SIZE: Final = 1 << 16
_MOST_WEIGHTS: Final = 1 << 24
_FEW: Final = 4
_MODES: Final = ("nearest", "linear", "cubic")


@dataclass(frozen=True, slots=True)
class _Taps:
    """What the results along one axis are made of."""

    places_OT: Array
    weights_OT: Array
    outside_O: Array


@onnx_op(
    "Resize(X, roi?, scales?, sizes?; antialias: int = 0, axes: ints?, "
    'coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75, '
    "exclude_outside: int = 0, extrapolation_value: float = 0.0, "
    'keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", '
    'nearest_mode: str = "round_prefer_floor")'
)
def _resize(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    if b.version < 11:  # Resize-10: X, scales; x / scale, rounded down
        a = {**a, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        x = [x[0], None, x[1], None]
    axes = range(data.rank) if a["axes"] is None else [axis_of(item, data.rank, "axes") for item in a["axes"]]
    axes_of(axes, data.rank)
    roi = None
    if a["coordinate_transformation_mode"] == "tf_crop_and_resize":
        if x[1] is None or x[1].size != 2 * len(axes):
            raise FormatError("tf_crop_and_resize without a roi", wanted=f"{2 * len(axes)} numbers")
        roi = b.const(x[1], "roi").reshape(2, len(axes)).astype(np.float64)
    scales, sizes = _extent(b, x, a, [data.shape[dim] for dim in axes])
    outside: Array = np.zeros((1,) * data.rank, bool)
    for at, dim in enumerate(axes):
        have, scale, size = data.shape[dim], scales[at], sizes[at]
        if scale == 1 and size == have and roi is None:
            continue
        if a["antialias"]:  # a shrunken axis has taps as far apart as its elements were
            b.room([size, math.ceil(4 / min(scale, 1.0))], "the taps of an axis")
        taps = _taps(have, size, scale, a, None if roi is None else roi[:, at])
        data = _along(b, data, dim, taps)
        shape = [1] * data.rank
        shape[dim] = size
        outside = outside | taps.outside_O.reshape(shape)
    if outside.any():
        value = b.full((), a["extrapolation_value"], data.dtype)
        data = b.op("where", b.known(outside), value, data)
    return data


@onnx_op('Upsample(X, scales?; mode: str = "nearest", scales: floats?)')
def _upsample(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    scales = a["scales"] if x[1] is None else b.const(x[1], "scales").reshape(-1).tolist()
    if scales is None or len(scales) != data.rank:
        raise FormatError(f"scales={scales}", wanted=f"{data.rank} numbers")
    how = {
        "mode": a["mode"],
        "nearest_mode": "floor",
        "coordinate_transformation_mode": "asymmetric",
        "antialias": 0,
        "exclude_outside": 0,
        "cubic_coeff_a": -0.75,
    }
    for dim, scale in enumerate(scales):
        size = _scaled(data.shape[dim], scale)
        if scale != 1:
            data = _along(b, data, dim, _taps(data.shape[dim], size, scale, how, None))
    return data


def _scaled(have: int, scale: float) -> int:
    if not 0 < scale < _MOST_SIZE or have * scale > _MOST_SIZE:
        raise LimitError(f"scale {scale} of {have} elements", wanted=f"above 0, at most {_MOST_SIZE} results")
    return math.floor(have * scale)


def _extent(b: Builder, x: list[Any], a: Attributes, have: list[int]) -> tuple[list[float], list[int]]:
    """Scale and size of each axis, from whichever of the two is given."""
    if x[2] is not None and x[2].size:
        scales = [float(item) for item in b.const(x[2], "scales").reshape(-1)]
        if len(scales) != len(have):
            raise FormatError(f"{len(scales)} scales", wanted=f"{len(have)}")
        return scales, [_scaled(size, scale) for size, scale in zip(have, scales, strict=True)]
    sizes = list(b.ints(x[3], "sizes")) if x[3] is not None else []
    if len(sizes) != len(have) or not all(0 < size <= _MOST_SIZE for size in sizes) or 0 in have:
        raise FormatError(f"sizes={sizes} of {have}", wanted=f"{len(have)} sizes from 1 to {_MOST_SIZE}")
    ratios = [size / old for size, old in zip(sizes, have, strict=True)]
    policy = a["keep_aspect_ratio_policy"]
    if policy == "stretch":
        return ratios, sizes
    if policy not in ("not_larger", "not_smaller"):
        raise FormatError(f"keep_aspect_ratio_policy={policy!r}", wanted="stretch, not_larger or not_smaller")
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [ratio] * len(have), [_scaled(1, math.floor(ratio * old + 0.5)) for old in have]


# --- where results come from ----------------------------------------------------------------------


def _origin(have: int, size: int, scale: float, mode: str, roi: Array | None) -> Array:
    """The place in the input, in elements, of every result."""
    at = np.arange(size, dtype=np.float64)
    wide = scale * have
    if mode == "asymmetric":
        return np.asarray(at / scale)
    if mode == "align_corners":
        return np.zeros(size) if wide == 1 else np.asarray(at * (have - 1) / (wide - 1))
    if mode == "tf_crop_and_resize":
        assert roi is not None
        span = (roi[1] - roi[0]) * (have - 1)
        return np.asarray(roi[0] * (have - 1) + (span / 2 + 0 * at if wide == 1 else at * span / (wide - 1)))
    centred = (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return np.asarray(have / 2 * (1 - size / wide) + centred)
    if mode == "pytorch_half_pixel" and wide == 1:
        return np.full(size, -0.5)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.asarray(centred)
    raise FormatError(f"coordinate_transformation_mode={mode!r}", wanted="a mode of Resize")


def _taps(have: int, size: int, scale: float, a: Attributes, roi: Array | None) -> _Taps:
    if have < 1:
        raise FormatError("an axis of no elements", wanted="at least 1")
    origin = _origin(have, size, scale, a["coordinate_transformation_mode"], roi)
    outside = (origin < 0) | (origin > have - 1) if roi is not None else np.zeros(size, bool)
    last = np.ceil(origin)
    ratio = origin - (last - 1)  # of the way from the element before to the one at or after; in (0, 1]
    weights, first = _weights(ratio, scale, a)
    places = (last.astype(np.int64) - 1 + first)[:, None] + np.arange(weights.shape[1])
    if a["exclude_outside"]:
        weights = np.where((places < 0) | (places >= have), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return _Taps(np.clip(places, 0, have - 1), weights, outside)


def _weights(ratio: Array, scale: float, a: Attributes) -> tuple[Array, int]:
    """Weights of the taps, and where the first one stands from the element before."""
    mode = a["mode"]
    if mode == "nearest":
        return _nearest(ratio, a["nearest_mode"]), 0
    shrink = min(scale, 1.0) if a["antialias"] else 1.0
    if mode == "linear":
        start = math.floor(-1 / shrink) + 1
        offsets = np.arange(start, 2 - start)
        weights = np.clip(1 - np.abs((offsets - ratio[:, None]) * shrink), 0, 1)
    elif mode == "cubic":
        start = math.floor(-2 / shrink) + 1
        offsets = np.arange(start, 2 - start)
        weights = cubic(np.abs((offsets - ratio[:, None]) * shrink), a["cubic_coeff_a"])
    else:
        raise FormatError(f"mode={mode!r}", wanted=", ".join(_MODES))
    if a["antialias"]:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return weights, start


def cubic(distance: Array, a: float) -> Array:
    """Keys' cubic kernel at these distances (IEEE ASSP 29, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _nearest(ratio: Array, mode: str) -> Array:
    after = {
        "round_prefer_floor": ratio > 0.5,
        "round_prefer_ceil": ratio >= 0.5,
        "floor": ratio == 1,
        "ceil": np.ones(ratio.shape, bool),
    }.get(mode)
    if after is None:
        raise FormatError(
            f"nearest_mode={mode!r}", wanted="round_prefer_floor, round_prefer_ceil, floor or ceil"
        )
    return np.stack([~after, after], axis=1).astype(np.float64)


def _along(b: Builder, x: Tensor, dim: int, taps: _Taps) -> Tensor:
    """One axis resized."""
    places, weights = taps.places_OT, taps.weights_OT
    if ((weights == 0) | (weights == 1)).all():
        return b.pick(x, dim, places[np.arange(len(places)), weights.argmax(axis=1)])
    if x.dtype not in FLOATS:
        raise UnsupportedError(f"linear or cubic resize of {x.dtype}", wanted="floats")
    if weights.shape[1] > _FEW:
        size, have = len(places), x.shape[dim]
        if size * have > _MOST_WEIGHTS:
            raise LimitError(f"{size} results of {have} elements", wanted=f"at most {_MOST_WEIGHTS} weights")
        matrix = np.zeros((size, have))
        np.add.at(matrix, (np.arange(size)[:, None], places), weights)
        last = b.op("transpose", x, dim0=dim, dim1=-1)
        return b.op("transpose", b.op("linear", last, b.known(matrix, x.dtype), None), dim0=dim, dim1=-1)
    shape = [1] * x.rank
    shape[dim] = len(places)
    total: Tensor | None = None
    for tap in range(weights.shape[1]):
        if not weights[:, tap].any():
            continue
        part = b.op("index_select", x, b.known(places[:, tap]), dim=dim)
        part = b.op("mul", part, b.known(weights[:, tap].reshape(shape), x.dtype))
        total = part if total is None else b.op("add", total, part)
    assert total is not None
    return total


# --- places that come from data -------------------------------------------------------------------


@onnx_op(
    'GridSample(X, grid; align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros")', since=16
)
def _grid_sample(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Elements at places that `grid` gives in -1..1, the last spatial dim first."""
    data, grid = x
    count = data.rank - 2
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(a["mode"], a["mode"])
    if (
        count not in (2, 3)
        or grid.rank != data.rank
        or grid.shape[-1] != count
        or grid.shape[0] != data.shape[0]
    ):
        raise FormatError(
            f"X of shape {list(data.shape)}, grid of shape {list(grid.shape)}", wanted="2 or 3 spatial dims"
        )
    if mode not in _MODES or a["padding_mode"] not in ("zeros", "border", "reflection"):
        raise FormatError(f"mode={mode!r}, padding_mode={a['padding_mode']!r}", wanted="modes of GridSample")
    corners = bool(a["align_corners"])
    sizes = data.shape[2:]
    points = [
        _unscaled(b, b.op("select", grid, dim=-1, index=count - 1 - at), size, corners)
        for at, size in enumerate(sizes)
    ]
    if a["padding_mode"] != "zeros" and mode != "cubic":
        points = [
            _folded(b, p, size, corners, a["padding_mode"]) for p, size in zip(points, sizes, strict=True)
        ]
    axes = [_point_taps(b, point, mode) for point in points]
    n, c = data.shape[:2]
    flat = b.reshape(b.permute(data, (0, *range(2, data.rank), 1)), (n, math.prod(sizes), c))
    total: Tensor | None = None
    for spot in np.ndindex(*(len(taps) for taps in axes)):
        chosen = [taps[at] for taps, at in zip(axes, spot, strict=True)]
        part = _corner(b, flat, chosen, sizes, corners, a["padding_mode"])
        total = part if total is None else b.op("add", total, part)
    assert total is not None
    found = b.reshape(total, (n, *grid.shape[1:-1], c))
    return b.permute(found, (0, found.rank - 1, *range(1, found.rank - 1)))


def _unscaled(b: Builder, p: Tensor, size: int, corners: bool) -> Tensor:
    """From -1..1 to elements."""
    if corners:
        return b.op("mul", b.op("add", p, 1.0), (size - 1) / 2)
    return b.op("sub", b.op("mul", b.op("add", p, 1.0), size / 2), 0.5)


def _folded(b: Builder, p: Tensor, size: int, corners: bool, padding: str) -> Tensor:
    """Places outside brought inside: to the border, or mirrored at it."""
    if padding == "reflection":
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return b.op("mul", p, 0.0)
        far = b.op("remainder", b.op("abs", b.op("sub", p, low)), 2 * span)
        p = b.op("add", _mirror(b, far, span), low)
    return b.op("clamp", p, 0.0, size - 1.0)


def _mirror(b: Builder, far: Tensor, span: float) -> Tensor:
    """A place in 0..2 span, on its way out or back."""
    return b.op("rsub", b.op("abs", b.op("sub", far, span)), span)


def _point_taps(b: Builder, p: Tensor, mode: str) -> list[tuple[Tensor, Tensor | None]]:
    """(place, weight) of each tap along one axis; places are whole floats."""
    if mode == "nearest":
        return [(b.op("round", p), None)]
    base = b.op("floor", p)
    ratio = b.op("sub", p, base)
    if mode == "linear":
        return [(base, b.op("rsub", ratio, 1.0)), (b.op("add", base, 1.0), ratio)]
    found: list[tuple[Tensor, Tensor | None]] = []
    for offset in range(-1, 3):
        away = b.op("abs", b.op("sub", ratio, float(offset)))
        found.append((b.op("add", base, float(offset)), _cubic_weight(b, away, near=offset in (0, 1))))
    return found


def _cubic_weight(b: Builder, d: Tensor, *, near: bool, a: float = -0.75) -> Tensor:
    if near:
        inner = b.op("sub", b.op("mul", d, a + 2), a + 3)
        return b.op("add", b.op("mul", inner, b.op("square", d)), 1.0)
    inner = b.op("add", b.op("mul", b.op("sub", b.op("mul", d, a), 5 * a), d), 8 * a)
    return b.op("sub", b.op("mul", inner, d), 4 * a)


def _corner(
    b: Builder,
    flat: Tensor,
    chosen: list[tuple[Tensor, Tensor | None]],
    sizes: tuple[int, ...],
    corners: bool,
    padding: str,
) -> Tensor:
    """The elements at one combination of taps, times its weight: [N, points, C]."""
    n = flat.shape[0]
    place: Tensor | None = None
    weight: Tensor | None = None
    for (spot, share), size in zip(chosen, sizes, strict=True):
        if padding == "zeros":
            inside = b.op("logical_and", b.op("ge", spot, 0.0), b.op("le", spot, size - 1.0))
            share = (
                b.cast(inside, flat.dtype)
                if share is None
                else b.op("mul", share, b.cast(inside, flat.dtype))
            )
        else:
            spot = _folded(b, spot, size, corners, padding)
        whole = b.cast(b.op("clamp", spot, 0.0, size - 1.0), "i64")
        place = whole if place is None else b.op("add", b.op("mul", place, size), whole)
        weight = share if weight is None else weight if share is None else b.op("mul", weight, share)
    assert place is not None
    rows = b.reshape(place, (n, place.size // max(n, 1)))
    b.room([n], "the samples of a batch")
    picked = b.op("index", flat, b.known(np.arange(n).reshape(-1, 1)), rows)
    return picked if weight is None else b.op("mul", picked, b.reshape(weight, (*rows.shape, 1)))
