"""Layers over spatial dims: convolutions, pools, padding, cropping, up-sampling.

Knows: Keras' two data formats, its kernels (spatial dims first, output channels last), and "same" padding,
which puts the odd element behind, as TensorFlow does. The ops want channels first, so a channels-last
tensor is permuted on the way in and out; the normaliser cancels the permutations between layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensure.errors import FormatError, UnsupportedError

from ._activations import activate
from ._build import Builder, Tensor
from ._options import Options
from ._table import Call, Layer, layer

Pairs = list[tuple[int, int]]


def first(build: Builder, x: Tensor, channels_last: bool) -> Tensor:
    """A tensor with its channels in dim 1."""
    return build.permute(x, [0, x.rank - 1, *range(1, x.rank - 1)]) if channels_last else x


def last(build: Builder, x: Tensor, channels_last: bool) -> Tensor:
    """A tensor with its channels where the layer has them."""
    return build.permute(x, [0, *range(2, x.rank), 1]) if channels_last else x


def _spatial(x: Tensor, count: int, options: Options) -> None:
    if x.rank != count + 2:
        raise FormatError(
            f"an input of shape {list(x.shape)}", place=options.place, wanted=f"rank {count + 2}"
        )


def same_padding(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pairs:
    """(before, after) for each dim, so that ceil(size / stride) windows fit, the odd element behind."""
    pairs: Pairs = []
    for size, side, step, gap in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // step) - 1) * step + (side - 1) * gap + 1 - size, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs


def padding_attr(pairs: Pairs) -> tuple[int, ...]:
    """Padding as the ops write it."""
    if all(before == after for before, after in pairs):
        return tuple(before for before, _ in pairs)
    return tuple(side for pair in pairs for side in pair)


def _pads(
    options: Options,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    choices = ("valid", "same", "causal") if len(kernel) == 1 else ("valid", "same")
    padding = options.word("padding", choices, "valid")
    if padding == "same":
        return same_padding(sizes, kernel, stride, dilation)
    if padding == "causal":
        return [(dilation[0] * (kernel[0] - 1), 0)]
    return [(0, 0)] * len(kernel)


# --- convolution ------------------------------------------------------------------------------------


def _convolve(found: Layer, options: Options, call: Call, count: int) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    options.off("rank", count)
    channels_last = options.channels_last()
    filters, groups = options.integer("filters"), options.integer("groups", 1)
    kernel = options.integers("kernel_size", count)
    stride = options.integers("strides", count, 1)
    dilation = options.integers("dilation_rate", count, 1)
    x = first(build, x, channels_last)
    inner = x.shape[1] // groups
    weight = found.weight("kernel", 0, (*kernel, inner, filters), (count + 1, count, *range(count)))
    bias = found.weight("bias", 1, (filters,)) if options.flag("use_bias", True) else None
    y = build.op(
        "convolution",
        x,
        weight,
        bias,
        stride=stride,
        padding=padding_attr(_pads(options, x.shape[2:], kernel, stride, dilation)),
        dilation=dilation,
        groups=groups,
    )
    return activate(found, options, last(build, y, channels_last))


@layer("Conv1D")
def _conv1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _convolve(found, options, call, 1)


@layer("Conv2D")
def _conv2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _convolve(found, options, call, 2)


def _depthwise(
    found: Layer, options: Options, x: Tensor, count: int, bias: Tensor | None, label: str = "kernel"
) -> Tensor:
    """Every channel by kernels of its own; x has its channels first."""
    multiplier = options.integer("depth_multiplier", 1)
    kernel = options.integers("kernel_size", count)
    stride = options.integers("strides", count, 1)
    dilation = options.integers("dilation_rate", count, 1)
    channels = x.shape[1]
    weight = found.weight(
        label,
        0,
        (*kernel, channels, multiplier),
        (count, count + 1, *range(count)),
        (channels * multiplier, 1, *kernel),
    )
    return found.build.op(
        "convolution",
        x,
        weight,
        bias,
        stride=stride,
        padding=padding_attr(_pads(options, x.shape[2:], kernel, stride, dilation)),
        dilation=dilation,
        groups=channels,
    )


def _depthwise_layer(found: Layer, options: Options, call: Call, count: int) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    options.off("rank", count)
    channels_last = options.channels_last()
    x = first(build, x, channels_last)
    width = x.shape[1] * options.integer("depth_multiplier", 1)
    bias = found.weight("bias", 1, (width,)) if options.flag("use_bias", True) else None
    y = _depthwise(found, options, x, count, bias)
    return activate(found, options, last(build, y, channels_last))


@layer("DepthwiseConv1D")
def _depthwise1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _depthwise_layer(found, options, call, 1)


@layer("DepthwiseConv2D")
def _depthwise2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _depthwise_layer(found, options, call, 2)


def _separable(found: Layer, options: Options, call: Call, count: int) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    options.off("rank", count)
    channels_last = options.channels_last()
    filters = options.integer("filters")
    deep = _depthwise(found, options, first(build, x, channels_last), count, None, "depthwise_kernel")
    ones = (1,) * count
    point = found.weight(
        "pointwise_kernel", 1, (*ones, deep.shape[1], filters), (count + 1, count, *range(count))
    )
    bias = found.weight("bias", 2, (filters,)) if options.flag("use_bias", True) else None
    y = build.op("convolution", deep, point, bias, stride=ones, padding=(0,) * count, dilation=ones)
    return activate(found, options, last(build, y, channels_last))


@layer("SeparableConv1D")
def _separable1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _separable(found, options, call, 1)


@layer("SeparableConv2D")
def _separable2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _separable(found, options, call, 2)


def _transposed_crops(side: int, step: int, gap: int, same: bool, extra: int | None) -> tuple[int, int]:
    """What to cut before and behind the full transposed convolution of one dim; below 0, zeros to add.

    Keras fixes the size of the output and splits the rest with the odd element in front.
    """
    reach = (side - 1) * gap + 1
    if same:
        total = step + reach - 2 if extra is None else reach + reach % 2 - 2 + extra
        before = min(total // 2 + total % 2, reach - 1)
        return reach - 1 - before, reach - 1 - (total - before)
    return 0, -(max(reach, step) - reach if extra is None else extra)


def _transposed(found: Layer, options: Options, call: Call, count: int) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    options.off("rank", count)
    options.off("groups", 1)
    channels_last = options.channels_last()
    filters = options.integer("filters")
    kernel = options.integers("kernel_size", count)
    stride = options.integers("strides", count, 1)
    dilation = options.integers("dilation_rate", count, 1)
    same = options.word("padding", ("valid", "same"), "valid") == "same"
    given = options.raw("output_padding", None)
    extra = [None] * count if given is None else options.integers("output_padding", count, least=0)
    crops = [
        _transposed_crops(side, step, gap, same, more)
        for side, step, gap, more in zip(kernel, stride, dilation, extra, strict=True)
    ]
    x = first(build, x, channels_last)
    weight = found.weight("kernel", 0, (*kernel, filters, x.shape[1]), (count + 1, count, *range(count)))
    bias = found.weight("bias", 1, (filters,)) if options.flag("use_bias", True) else None
    # Where zeros are added behind, the bias is added to them too: it comes last.
    grows = any(side < 0 for pair in crops for side in pair)
    cut = [(max(before, 0), max(after, 0)) for before, after in crops]
    y = build.op(
        "convolution",
        x,
        weight,
        None if grows else bias,
        stride=stride,
        padding=padding_attr(cut),
        dilation=dilation,
        transposed=True,
    )
    if grows:
        y = build.op("constant_pad_nd", y, pad=_pad_attr([(-min(a, 0), -min(b, 0)) for a, b in crops]))
        if bias is not None:
            y = build.op("add", y, build.view(bias, (1, filters, *(1,) * count)))
    return activate(found, options, last(build, y, channels_last))


@layer("Conv1DTranspose")
def _transposed1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _transposed(found, options, call, 1)


@layer("Conv2DTranspose")
def _transposed2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _transposed(found, options, call, 2)


# --- pools ------------------------------------------------------------------------------------------


def _pool(found: Layer, options: Options, call: Call, count: int, kind: str) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    channels_last = options.channels_last()
    kernel = options.integers("pool_size", count, 2)
    given = options.raw("strides", None)
    stride = kernel if given is None else options.integers("strides", count)
    padding = options.word("padding", ("valid", "same"), "valid")
    x = first(build, x, channels_last)
    ones = (1,) * count
    pairs = same_padding(x.shape[2:], kernel, stride, ones) if padding == "same" else [(0, 0)] * count
    if count == 1:  # the ops pool over two dims
        x = build.op("unsqueeze", x, dim=2)
        kernel, stride, pairs = (1, *kernel), (1, *stride), [(0, 0), *pairs]
    extra = {"count_include_pad": False} if kind == "avg_pool2d" else {}
    y = build.op(kind, x, kernel_size=kernel, stride=stride, padding=padding_attr(pairs), **extra)
    if count == 1:
        y = build.op("squeeze", y, dim=(2,))
    return last(build, y, channels_last)


def _global(found: Layer, options: Options, call: Call, count: int, kind: str) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    channels_last, keep = options.channels_last(), options.flag("keepdims", False)
    x = first(build, x, channels_last)
    y = build.op(kind, x, dim=tuple(range(2, count + 2)), keepdim=keep)
    return last(build, y, channels_last) if keep else y


def _pools(kind: str, count: int, rule: Callable[..., Tensor]) -> Callable[[Layer, Options, Call], Tensor]:
    return lambda found, options, call: rule(found, options, call, count, kind)


for _count in (1, 2):
    layer(f"MaxPooling{_count}D")(_pools("max_pool2d", _count, _pool))
    layer(f"AveragePooling{_count}D")(_pools("avg_pool2d", _count, _pool))
    layer(f"GlobalMaxPooling{_count}D")(_pools("amax", _count, _global))
    layer(f"GlobalAveragePooling{_count}D")(_pools("mean", _count, _global))


# --- padding, cropping, up-sampling -----------------------------------------------------------------


def _pad_attr(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Pairs as constant_pad_nd lists them: the last dim first."""
    return tuple(side for pair in reversed(pairs) for side in pair)


def _bordered(found: Layer, options: Options, call: Call, count: int, key: str) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, count, options)
    channels_last = options.channels_last() if count > 1 else True
    options.off("data_format", "channels_last", "channels_first")
    pairs = options.pairs(key, count)
    x = first(build, x, channels_last)
    if key == "cropping":
        for size, pair in zip(x.shape[2:], pairs, strict=True):
            if sum(pair) >= size:
                raise FormatError(f"{pair} cut from {size}", place=options.place, wanted="something left")
        pairs = [(-before, -after) for before, after in pairs]
    return last(build, build.op("constant_pad_nd", x, pad=_pad_attr(pairs)), channels_last)


@layer("ZeroPadding1D")
def _zero_padding1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _bordered(found, options, call, 1, "padding")


@layer("ZeroPadding2D")
def _zero_padding2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _bordered(found, options, call, 2, "padding")


@layer("Cropping1D")
def _cropping1d(found: Layer, options: Options, call: Call) -> Tensor:
    return _bordered(found, options, call, 1, "cropping")


@layer("Cropping2D")
def _cropping2d(found: Layer, options: Options, call: Call) -> Tensor:
    return _bordered(found, options, call, 2, "cropping")


def _repeated(build: Builder, x: Tensor, factors: Sequence[int]) -> Tensor:
    """Every element of the spatial dims (from dim 2 on) repeated in place."""
    lead, sizes = x.shape[:2], x.shape[2:]
    if all(factor == 1 for factor in factors):
        return x
    apart = build.view(x, (*lead, *(part for size in sizes for part in (size, 1))))
    wide = [part for pair in zip(sizes, factors, strict=True) for part in pair]
    spread = build.op("expand", apart, size=(*lead, *wide))
    return build.view(spread, (*lead, *(a * b for a, b in zip(sizes, factors, strict=True))))


@layer("UpSampling1D")
def _up_sampling1d(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, 1, options)
    factors = options.integers("size", 1, 2)
    return last(build, _repeated(build, first(build, x, True), factors), True)


@layer("UpSampling2D")
def _up_sampling2d(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    _spatial(x, 2, options)
    channels_last = options.channels_last()
    options.word("interpolation", ("nearest",), "nearest")
    factors = options.integers("size", 2, 2)
    return last(build, _repeated(build, first(build, x, channels_last), factors), channels_last)


# --- norms by channel -------------------------------------------------------------------------------


@layer("BatchNormalization")
def _batch_norm(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    (axis,) = options.integers("axis", 1, -1, least=-8)
    options.off("renorm")
    options.ignore("renorm_clipping")
    if not -x.rank <= axis < x.rank or axis % x.rank == 0:
        raise FormatError(f"axis={axis} of an input of rank {x.rank}", place=options.place)
    order = [0, axis % x.rank, *(at for at in range(1, x.rank) if at != axis % x.rank)]
    weights, x = _by_channel(found, options, x.shape[axis]), build.permute(x, order)
    at = sum(weight is not None for weight in weights)
    mean = found.weight("moving_mean", at, (x.shape[1],))
    var = found.weight("moving_variance", at + 1, (x.shape[1],))
    y = build.op("batch_norm", x, *weights, mean, var, eps=options.number("epsilon", 0.001))
    return build.permute(y, [order.index(at) for at in range(x.rank)])


def _by_channel(found: Layer, options: Options, size: int) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift, those the config says are there."""
    scaled, centred = options.flag("scale", True), options.flag("center", True)
    gamma = found.weight("gamma", 0, (size,)) if scaled else None
    beta = found.weight("beta", int(scaled), (size,)) if centred else None
    return gamma, beta


@layer("GroupNormalization")
def _group_norm(found: Layer, options: Options, call: Call) -> Tensor:
    x, build = call.one(), found.build
    (axis,) = options.integers("axis", 1, -1, least=-8)
    groups = options.integer("groups", 32, least=-1)
    if not -x.rank <= axis < x.rank or axis % x.rank == 0:
        raise FormatError(f"axis={axis} of an input of rank {x.rank}", place=options.place)
    if axis % x.rank not in (1, x.rank - 1):
        raise UnsupportedError(f"axis={axis}", place=options.place, wanted="channels first or last")
    order = [0, axis % x.rank, *(at for at in range(1, x.rank) if at != axis % x.rank)]
    channels = x.shape[axis]
    gamma, beta = _by_channel(found, options, channels)
    y = build.op(
        "group_norm",
        build.permute(x, order),
        gamma,
        beta,
        num_groups=channels if groups == -1 else groups,
        eps=options.number("epsilon", 0.001),
    )
    return build.permute(y, [order.index(at) for at in range(x.rank)])
