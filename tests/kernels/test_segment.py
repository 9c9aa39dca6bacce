"""Runs of steps over an arena, each step against torch's own op or numpy, and the whole as a chain.

Layouts, threads and sizes are drawn; a step that leaves the arena or reads what is not there is refused when
it is added.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import (
    Conv,
    ImageShape,
    Input,
    Slot,
    StepList,
    conv2d_reference,
    convert_layout,
    pack_conv2d,
)
from tensure.kernels._conv_reference import from_nchw, to_nchw

LAYOUTS = ("NCHW", "NHWC", "CHWN")
FLOATS = st.integers(0, 2**32)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lay(x_NCHW: np.ndarray, layout: str) -> np.ndarray:
    return np.ascontiguousarray(from_nchw(x_NCHW, layout))


def one_step(x: np.ndarray, out_shape: tuple[int, ...], add: object, threads: int) -> np.ndarray:
    """The result of a list of one step that writes between two canaries."""
    count = int(np.prod(out_shape))
    steps = StepList([x.shape], 4 * (count + 32))
    add(steps, Slot(64))  # type: ignore[operator]
    steps.fill(7.0)
    steps.run([x], threads)
    found = steps.view(Slot(64), out_shape).copy()
    whole = steps.view(Slot(0), (count + 32,))
    assert (whole[:16] == 7.0).all(), "wrote before its place"
    assert (whole[16 + count :] == 7.0).all(), "wrote behind its place"
    return found


@settings(max_examples=40)
@given(st.data())
def test_pools_equal_torch(data: st.DataObject) -> None:
    layout, threads = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from((1, 2)))
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (5, 19, 9, 11))
    kernel = data.draw(st.integers(1, min(h, 4))), data.draw(st.integers(1, min(w, 4)))
    stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    pad = data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2))
    kind = data.draw(st.sampled_from(("max", "avg")))
    ceil_mode, count_padding = data.draw(st.booleans()), data.draw(st.booleans())
    x = draw(data.draw(FLOATS), n, c, h, w)
    x.reshape(-1)[data.draw(st.integers(0, x.size - 1))] = np.nan
    t = torch.from_numpy(x)
    if kind == "max":
        expected = F.max_pool2d(t, kernel, stride, pad, ceil_mode=ceil_mode).numpy()
    else:
        expected = F.avg_pool2d(t, kernel, stride, pad, ceil_mode, count_padding).numpy()
    out_size = expected.shape[2:]

    def add(steps: StepList, out: Slot) -> None:
        steps.add_pool(
            ImageShape(layout, n, c, h, w), kind, out_size, Input(0), out, kernel=kernel, stride=stride,
            padding=(pad[0], pad[0], pad[1], pad[1]), count_padding=count_padding,
        )  # fmt: skip

    laid = lay(expected, layout)
    found = one_step(lay(x, layout), laid.shape, add, threads)
    np.testing.assert_allclose(found, laid, rtol=1e-6, atol=1e-6)
    other = np.roll(laid, 1, axis=-1)
    if laid.shape[-1] > 1 and not np.isnan(laid).all():
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(found, other + 1, rtol=1e-6, atol=1e-6)


@settings(max_examples=25)
@given(st.data())
def test_means_and_adaptive_pools_equal_torch(data: st.DataObject) -> None:
    layout, threads = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from((1, 2)))
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (4, 37, 12, 12))
    x = draw(data.draw(FLOATS), n, c, h, w)
    image = ImageShape(layout, n, c, h, w)
    mean = x.mean((2, 3), dtype=np.float64)
    expected = mean.T if layout == "CHWN" else mean
    found = one_step(
        lay(x, layout), expected.shape, lambda steps, out: steps.add_mean(image, Input(0), out), threads
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    size = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    pooled = lay(F.adaptive_avg_pool2d(torch.from_numpy(x), size).numpy(), layout)
    found = one_step(
        lay(x, layout),
        pooled.shape,
        lambda steps, out: steps.add_adaptive_pool(image, size, Input(0), out),
        threads,
    )
    np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(st.data())
def test_pointwise_softmax_and_activations(data: st.DataObject) -> None:
    layout, threads = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from((1, 2)))
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (4, 37, 30, 30))
    a, b = draw(data.draw(FLOATS), n, c, h, w), draw(data.draw(FLOATS), n, c, 1, 1)
    spread, kind = data.draw(st.booleans()), data.draw(st.sampled_from(("add", "mul")))
    activation = data.draw(st.sampled_from(("none", "relu", "relu6", "silu")))
    b = b if spread else draw(data.draw(FLOATS), n, c, h, w)
    whole = a.astype(np.float64) + b if kind == "add" else a.astype(np.float64) * b
    acts = {
        "none": lambda v: v,
        "relu": F.relu,
        "relu6": F.relu6,
        "silu": F.silu,
    }
    expected = lay(acts[activation](torch.from_numpy(whole)).numpy(), layout)
    steps = StepList([lay(a, layout).shape, lay(b, layout).shape], 4 * a.size)
    image = ImageShape(layout, n, c, h, w)
    steps.add_pointwise(image, kind, Input(0), Input(1), Slot(0), spread=spread, activation=activation)
    steps.run([lay(a, layout), lay(b, layout)], threads)
    np.testing.assert_allclose(steps.view(Slot(0), expected.shape), expected, rtol=1e-5, atol=1e-6)
    rows = a.reshape(n, -1) * 30
    found = one_step(rows, rows.shape, lambda s, out: s.add_softmax(*rows.shape, Input(0), out), threads)
    np.testing.assert_allclose(found, torch.softmax(torch.from_numpy(rows).double(), 1).numpy(), atol=1e-6)
    found = one_step(
        rows, rows.shape, lambda s, out: s.add_activation(rows.size, activation, Input(0), out), threads
    )
    np.testing.assert_allclose(
        found, acts[activation](torch.from_numpy(rows).double()).numpy(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_chain_with_a_residual_and_a_reused_buffer(threads: int) -> None:
    """NCHW in, moved to NHWC, two convolutions, a residual, a matrix product: equal to float64."""
    x = draw(1, 2, 3, 10, 9)
    w1, w2, w3 = draw(2, 21, 3, 3, 3), draw(3, 21, 21, 3, 3), draw(4, 5, 21, 1, 1)
    b1 = draw(5, 21)
    one, two, three = (
        Conv(3, 21, (3, 3), padding=(1, 1, 1, 1)),
        Conv(21, 21, (3, 3), padding=(1, 1, 1, 1)),
        Conv(21, 5, (1, 1)),
    )
    images, out_bytes = ImageShape("NCHW", 2, 3, 10, 9), 2 * 90 * 21 * 4
    a, b, c = Slot(0), Slot(-(-out_bytes // 64) * 64), Slot(2 * (-(-out_bytes // 64) * 64))
    steps = StepList([x.shape], c.offset + out_bytes)
    steps.add_move(images, "NHWC", Input(0), c)
    steps.add_conv(pack_conv2d(w1, one), (2, 10, 9), c, a, bias=b1, activation="relu")
    steps.add_conv(pack_conv2d(w2, two, "winograd"), (2, 10, 9), a, b, residual=a, activation="relu6")
    steps.add_conv(pack_conv2d(w3, three), (1, 1, 180), b, c)
    assert len(steps) == 4
    steps.run([x], threads)
    h = conv2d_reference(x, w1, one, bias=b1, activation="relu", layout="NCHW")
    h = conv2d_reference(h, w2, two, residual=h, activation="relu6", layout="NCHW")
    expected = from_nchw(conv2d_reference(h, w3, three, layout="NCHW"), "NHWC")
    found = steps.view(c, (2, 10, 9, 5))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    before = found.copy()
    timed = steps.time_steps([x], threads)
    assert len(timed) == 4
    assert all(seconds > 0 for seconds in timed)
    assert np.array_equal(before, steps.view(c, (2, 10, 9, 5)), equal_nan=True)


def test_threads_change_no_bit() -> None:
    x = draw(7, 1, 33, 31, 16)
    packed = pack_conv2d(draw(8, 40, 16, 3, 3), Conv(16, 40, (3, 3)))
    found = []
    for threads in (1, 2, 5):
        steps = StepList([x.shape], 31 * 29 * 40 * 4)
        steps.add_conv(packed, (1, 33, 31), Input(0), Slot(0), activation="silu")
        for _ in range(20):
            steps.run([x], threads)
        found.append(steps.view(Slot(0), (1, 31, 29, 40)).copy())
    assert all(np.array_equal(found[0], other) for other in found[1:])


PACKED = pack_conv2d(np.ones((4, 3, 3, 3), np.float32), Conv(3, 4, (3, 3)))
IMAGE = ImageShape("NHWC", 1, 6, 6, 3)
GOOD = ImageShape("NHWC", 1, 3, 6, 6)
BAD = {
    "outside the arena": lambda s: s.add_conv(PACKED, (1, 6, 6), Input(0), Slot(3900)),
    "before it": lambda s: s.add_conv(PACKED, (1, 6, 6), Input(0), Slot(-4)),
    "between floats": lambda s: s.add_conv(PACKED, (1, 6, 6), Input(0), Slot(2)),
    "another size": lambda s: s.add_conv(PACKED, (1, 7, 6), Input(0), Slot(0)),
    "no such input": lambda s: s.add_conv(PACKED, (1, 6, 6), Input(1), Slot(0)),
    "bias": lambda s: s.add_conv(PACKED, (1, 6, 6), Input(0), Slot(0), bias=np.ones(5, np.float32)),
    "small image": lambda s: s.add_conv(PACKED, (1, 2, 6), Input(0), Slot(0)),
    "empty window": lambda s: s.add_pool(
        GOOD, "max", (9, 9), Input(0), Slot(0), kernel=(2, 2), stride=(2, 2)
    ),
    "window in padding": lambda s: s.add_pool(
        GOOD, "max", (1, 1), Input(0), Slot(0), kernel=(1, 1), stride=(1, 1), padding=(1, 1, 1, 1)
    ),
    "softmax of nothing": lambda s: s.add_softmax(1, 0, Input(0), Slot(0)),
    "huge": lambda s: s.add_activation(2**62, "relu", Input(0), Slot(0)),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_a_step_that_does_not_fit_is_refused_and_not_added(what: str) -> None:
    steps = StepList([(1, 6, 6, 3)], 4000)
    with pytest.raises(InputError) as caught:
        BAD[what](steps)
    assert any(letter.isdigit() for letter in str(caught.value)), str(caught.value)
    assert len(steps) == 0


def test_runs_refuse_other_arrays() -> None:
    steps = StepList([(1, 6, 6, 3)], 4000)
    steps.add_conv(PACKED, (1, 6, 6), Input(0), Slot(0))
    good = np.ones((1, 6, 6, 3), np.float32)
    for bad in ([], [good, good], [good[:, :5]], [good.astype(np.float64)], [good[..., ::-1]]):
        with pytest.raises(InputError):
            steps.run(bad)
    with pytest.raises(InputError, match="arena"):
        steps.run([steps.view(Slot(0), (1, 6, 6, 3))])
    with pytest.raises(InputError):
        steps.run([good], 0)
    with pytest.raises(InputError, match="4000"):
        steps.view(Slot(3996), (2,))
    with pytest.raises(UnsupportedError, match="CHWN8"):
        steps.add_mean(ImageShape("CHWN8", 8, 3, 6, 6), Input(0), Slot(0))
    with pytest.raises(ValueError, match="read-only"):
        steps.view(Slot(0), (2,))[0] = 1


@settings(max_examples=20)
@given(st.data())
def test_moves_equal_convert_layout(data: st.DataObject) -> None:
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (4, 6, 7, 7))
    source, target = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(LAYOUTS))
    x = lay(draw(data.draw(FLOATS), n, c, h, w), source)
    expected = convert_layout(x, source, target)
    image = ImageShape(source, n, c, h, w)
    found = one_step(x, expected.shape, lambda s, out: s.add_move(image, target, Input(0), out), 1)
    assert np.array_equal(found, expected)
    assert np.array_equal(to_nchw(found.astype(np.float64), target), to_nchw(x.astype(np.float64), source))
