"""Layers over the last dim, merging, reshaping, preprocessing by numbers, and those that do nothing at
inference.

Knows their formulas; a Dense kernel [in, out] becomes the [out, in] of a linear.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from functools import partial

import numpy as np

from tensure.errors import FormatError, UnsupportedError

from ._activations import activate
from ._build import Builder, Tensor
from ._options import Options
from ._spatial import last
from ._table import Call, Layer, layer

# --- weights over the last dim ----------------------------------------------------------------------


@layer("Dense")
def _dense(found: Layer, options: Options, call: Call) -> Tensor:
    x = call.one()
    units = options.integer("units")
    _ranked(x, 2, options)
    weight = found.weight("kernel", 0, (x.shape[-1], units), (1, 0))
    bias = found.weight("bias", 1, (units,)) if options.flag("use_bias", True) else None
    return activate(found, options, found.build.op("linear", x, weight, bias))


@layer("Embedding")
def _embedding(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    rows, width = options.integer("input_dim"), options.integer("output_dim")
    options.off("mask_zero")
    options.off("weights")
    options.ignore("input_length")
    if x.type.dtype not in ("i64", "i32"):
        x = build.op("_to_copy", x, dtype="i64")
    return build.op("embedding", found.weight("embeddings", 0, (rows, width)), x)


def _trailing(found: Layer, options: Options, x: Tensor) -> tuple[Tensor, list[int], tuple[int, ...]]:
    """The input with the dims of `axis` moved to the end, the order that takes, and their sizes."""
    axes = _dims(options.integers("axis", None, -1, least=-8), x, options)
    order = [at for at in range(x.rank) if at not in axes] + axes
    return found.build.permute(x, order), order, tuple(x.shape[at] for at in axes)


def _dims(axes: tuple[int, ...], x: Tensor, options: Options) -> list[int]:
    """Dims counted from the front, in rising order."""
    found = sorted({axis % max(x.rank, 1) for axis in axes if -x.rank <= axis < x.rank})
    if len(found) != len(axes):
        raise FormatError(f"axis={list(axes)} of an input of rank {x.rank}", place=options.place)
    return found


@layer("LayerNormalization")
def _layer_norm(found: Layer, options: Options, call: Call) -> Tensor:
    build = found.build
    x, order, sizes = _trailing(found, options, call.one())
    options.off("rms_scaling")
    scaled, centred = options.flag("scale", True), options.flag("center", True)
    gamma = found.weight("gamma", 0, sizes) if scaled else None
    beta = found.weight("beta", int(scaled), sizes) if centred else None
    y = build.op("layer_norm", x, gamma, beta, normalized_shape=sizes, eps=options.number("epsilon", 0.001))
    return build.permute(y, [order.index(at) for at in range(x.rank)])


@layer("RMSNormalization")
def _rms_norm(found: Layer, options: Options, call: Call) -> Tensor:
    build = found.build
    x, order, sizes = _trailing(found, options, call.one())
    scale = found.weight("scale", 0, sizes)
    y = build.op("rms_norm", x, scale, normalized_shape=sizes, eps=options.number("epsilon", 1e-6))
    return build.permute(y, [order.index(at) for at in range(x.rank)])


@layer("UnitNormalization")
def _unit_norm(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    axes = _dims(options.integers("axis", None, -1, least=-8), x, options)
    total = build.op("sum", build.op("square", x), dim=tuple(axes), keepdim=True)
    return build.op("mul", x, build.op("clamp", build.op("rsqrt", total), None, 1e12))


# --- several inputs ---------------------------------------------------------------------------------


def _folded(kind: str) -> Callable[[Layer, Options, Call], Tensor]:
    def rule(found: Layer, options: Options, call: Call) -> Tensor:
        items = call.many()
        if len({item.rank for item in items}) > 1:
            raise UnsupportedError("inputs of several ranks", place=options.place, wanted="one rank")
        total = items[0]
        for item in items[1:]:
            total = found.build.op(kind, total, item)
        return total

    return rule


for _name, _kind in (("Add", "add"), ("Multiply", "mul"), ("Maximum", "maximum"), ("Minimum", "minimum")):
    layer(_name)(_folded(_kind))


@layer("Subtract")
def _subtract(found: Layer, options: Options, call: Call) -> Tensor:
    if len(call.many()) != 2:
        raise FormatError(f"{len(call.many())} inputs", place=options.place, wanted="two")
    return _folded("sub")(found, options, call)


@layer("Average")
def _average(found: Layer, options: Options, call: Call) -> Tensor:
    total = _folded("add")(found, options, call)
    return found.build.op("div", total, float(len(call.many())))


@layer("Concatenate")
def _concatenate(found: Layer, options: Options, call: Call) -> Tensor:
    (axis,) = options.integers("axis", 1, -1, least=-8)
    return found.build.op("cat", *call.many(), dim=axis)


@layer("Dot")
def _dot(found: Layer, options: Options, call: Call) -> Tensor:
    build, items = found.build, call.many()
    if len(items) != 2 or min(item.rank for item in items) < 2:
        raise FormatError(f"{len(items)} inputs", place=options.place, wanted="two with a batch dim each")
    axes = options.integers("axes", 2, least=-8)
    if options.flag("normalize", False):
        raise UnsupportedError("normalize=True", place=options.place, wanted="UnitNormalization before Dot")
    letters, names = iter(string.ascii_lowercase[1:]), list[list[str]]()
    for item, axis in zip(items, axes, strict=True):
        if not -item.rank < axis < item.rank or axis % item.rank == 0:
            raise FormatError(f"axes={list(axes)}", place=options.place, wanted="a dim of each input")
        names.append(["a", *("z" if at == axis % item.rank else next(letters) for at in range(1, item.rank))])
    kept = [letter for part in names for letter in part if letter not in "az"]
    equation = f"{''.join(names[0])},{''.join(names[1])}->a{''.join(kept)}"
    y = build.op("einsum", *items, equation=equation)
    return y if kept else build.op("unsqueeze", y, dim=1)


# --- other shapes -----------------------------------------------------------------------------------


@layer("Flatten")
def _flatten(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    if not options.channels_last() and x.rank > 1:
        x = last(build, x, True)
    return build.view(x, (x.shape[0], math.prod(x.shape[1:])))


@layer("Reshape")
def _reshape(found: Layer, options: Options, call: Call) -> Tensor:
    x = call.one()
    target = options.integers("target_shape", None, least=-1)
    open_dims, rest = target.count(-1), math.prod(size for size in target if size != -1)
    whole = math.prod(x.shape[1:])
    if open_dims > 1 or rest == 0 or (whole % rest if open_dims else rest != whole):
        raise FormatError(
            f"{list(x.shape[1:])} as {list(target)}", place=options.place, wanted="as many elements"
        )
    return found.build.view(x, (x.shape[0], *(whole // rest if size == -1 else size for size in target)))


@layer("Permute")
def _permute(found: Layer, options: Options, call: Call) -> Tensor:
    x = call.one()
    dims = options.integers("dims", None)
    if sorted(dims) != list(range(1, x.rank)):
        raise FormatError(f"dims={list(dims)} of an input of rank {x.rank}", place=options.place)
    return found.build.permute(x, [0, *dims])


@layer("RepeatVector")
def _repeat_vector(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    _ranked(x, 2, options, 2)
    wide = build.op("unsqueeze", x, dim=1)
    return build.op("expand", wide, size=(x.shape[0], options.integer("n"), x.shape[1]))


def _ranked(x: Tensor, least: int, options: Options, most: int = 8) -> None:
    if not least <= x.rank <= most:
        raise FormatError(
            f"an input of shape {list(x.shape)}", place=options.place, wanted=f"rank {least} or more"
        )


# --- numbers put right ------------------------------------------------------------------------------


def _float(build: Builder, x: Tensor) -> Tensor:
    return x if x.type.dtype == "f32" else build.op("_to_copy", x, dtype="f32")


@layer("Rescaling")
def _rescaling(found: Layer, options: Options, call: Call) -> Tensor:
    build = found.build
    x = _float(build, call.one())
    for label, key, kind, neutral in (("scale", "scale", "mul", 1.0), ("offset", "offset", "add", 0.0)):
        value = options.numbers(key, neutral)
        if isinstance(value, tuple):
            make = partial(build.weight, label, np.array(value, np.float32))
            x = build.op(kind, x, found.once(label, make))
        elif value != neutral:
            x = build.op(kind, x, float(np.float32(value)))
    return x


@layer("Normalization")
def _normalization(found: Layer, options: Options, call: Call) -> Tensor:
    build = found.build
    x = _float(build, call.one())
    axis = options.raw("axis", -1)
    axes = () if axis is None else options.integers("axis", None, least=-8)
    keep = _dims(axes, x, options)
    given = options.raw("mean", None), options.raw("variance", None)
    shape = tuple(x.shape[at] for at in keep)
    wide = tuple(size if at in keep else 1 for at, size in enumerate(x.shape))
    invert = options.flag("invert", False)

    def constants() -> tuple[Tensor, Tensor]:
        if given[0] is None:
            mean, var = found.variable(0, shape), found.variable(1, shape)
            found.source.read(found.path, 2)
        else:
            mean, var = (np.array(options.numbers(key), np.float32) for key in ("mean", "variance"))
        fit = [np.broadcast_to(item, shape).reshape(wide) for item in (mean, var)]
        spread = np.maximum(np.sqrt(fit[1]), np.float32(1e-7))
        return build.weight("mean", fit[0]), build.weight("deviation", spread)

    try:
        mean, spread = found.once("constants", constants)
    except ValueError:
        raise FormatError(
            "mean or variance of another shape", place=options.place, wanted=str(shape)
        ) from None
    if given[0] is None:
        found.used[found.path] = 3  # mean, variance and how many samples they are of
    if invert:
        return build.op("add", build.op("mul", x, spread), mean)
    return build.op("div", build.op("sub", x, mean), spread)


# --- nothing at inference ---------------------------------------------------------------------------


@layer(
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianDropout",
    "GaussianNoise",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
)
def _identity(found: Layer, options: Options, call: Call) -> Tensor:
    options.ignore("rate", "stddev", "noise_shape", "l1", "l2", "data_format")
    return call.one()
