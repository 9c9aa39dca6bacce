"""torch.ops.tensure.conv2d beside torch's own: values, opcheck, export, refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tensure.errors import InputError, UnsupportedError
from tensure.host import PackedConv2d

MODULES = {
    "3x3": torch.nn.Conv2d(5, 19, 3, padding=1),
    "stride": torch.nn.Conv2d(4, 16, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
    "groups": torch.nn.Conv2d(6, 9, 3, groups=3, dilation=2),
    "depthwise": torch.nn.Conv2d(20, 20, 5, padding=2, groups=20),
}


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.inference_mode(False), torch.no_grad():
        yield


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_equals_torch(name: str, layout: str) -> None:
    module = MODULES[name]
    x = torch.randn(3, module.in_channels, 9, 11, generator=torch.Generator().manual_seed(1))
    expected = torch.relu(module.double()(x.double()))
    found = PackedConv2d.of(module.float(), layout=layout, activation="relu")(x)
    assert found.is_contiguous(
        memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format
    )
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found.double().flip(1), expected, rtol=0, atol=1e-5), (
        "the comparison sees a swap"
    )


def test_residual_and_dynamic_sizes() -> None:
    module = PackedConv2d.of(MODULES["3x3"])
    for height in (4, 7):
        x, residual = torch.randn(1, 5, height, 6), torch.randn(1, 19, height, 6)
        assert torch.allclose(module(x, residual), MODULES["3x3"](x) + residual, atol=1e-5)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_opcheck(layout: str) -> None:
    module = PackedConv2d.of(MODULES["3x3"], layout=layout)
    form = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    x = torch.randn(2, 5, 8, 8).contiguous(memory_format=form)
    rest = (module.sizes, module.algorithm, layout, "relu6", module.isa)
    torch.library.opcheck(torch.ops.tensure.conv2d, (x, module.packed, module.bias, None, *rest))


def test_export_keeps_the_op() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = PackedConv2d.of(MODULES["3x3"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu()

    net, x = Net(), torch.randn(2, 5, 8, 8)
    exported = torch.export.export(net, (x,))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "tensure.conv2d.default" in targets
    assert torch.equal(exported.module()(x), net(x))


def test_threads_are_torchs_and_change_no_bit() -> None:
    module = PackedConv2d.of(MODULES["depthwise"])
    x = torch.randn(4, 20, 33, 29)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(module(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_refusals() -> None:
    module = PackedConv2d.of(MODULES["3x3"])
    x = torch.randn(1, 5, 8, 8).contiguous(memory_format=torch.channels_last)
    rest = (module.sizes, module.algorithm, module.layout, "none")
    call = torch.ops.tensure.conv2d
    with pytest.raises(UnsupportedError, match="v9"):
        call(x, module.packed, None, None, *rest, "v9")
    with pytest.raises(InputError, match="strides"):
        call(x.contiguous(), module.packed, None, None, *rest, module.isa)
    with pytest.raises(InputError, match="float64"):
        call(x.double(), module.packed, None, None, *rest, module.isa)
    with pytest.raises(InputError, match=str(module.packed.numel() - 1)):
        call(x, module.packed[:-1], None, None, *rest, module.isa)
    with pytest.raises(UnsupportedError, match="same"):
        PackedConv2d.of(torch.nn.Conv2d(3, 4, 3, padding="same"))


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    form = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=form)


# What is changed in a call that works, made by a function, so that fake tensors can be made too.
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "lower than the kernel": (lambda: {"x": image(1, 5, 1, 8)}, "height 1, 1 with padding.*reaches 3"),
    "narrower than the kernel": (lambda: {"x": image(1, 5, 8, 2)}, "width 2, 2 with padding.*reaches 3"),
    "no rows": (lambda: {"x": image(1, 5, 0, 8)}, "height 0"),
    "3 dims": (lambda: {"x": image(5, 8, 8)}, "3 dims"),
    "5 dims": (lambda: {"x": image(1, 1, 5, 8, 8)}, "5 dims"),
    "channels": (lambda: {"x": image(1, 7, 8, 8)}, r"shape \[1, 7, 8, 8\]; wanted \[N, 5, H, W\]"),
    "float64": (lambda: {"x": image(1, 5, 8, 8, dtype=torch.float64)}, "float64 with 4 dims"),
    "strides": (lambda: {"x": torch.zeros(1, 5, 8, 8)}, "strides"),
    "bias": (lambda: {"bias": torch.zeros(18)}, r"bias: got shape \[18\]; wanted \[19\]"),
    "bias of float64": (lambda: {"bias": torch.zeros(19, dtype=torch.float64)}, "bias: got torch.float64"),
    "residual": (lambda: {"residual": image(1, 19, 6, 5)}, r"\[1, 19, 6, 5\]; wanted \[1, 19, 6, 6\]"),
    "strides of residual": (lambda: {"residual": torch.zeros(1, 19, 6, 6)}, "residual: got strides"),
    "isa": (lambda: {"isa": "v9"}, "v9"),
    "layout": (lambda: {"layout": "CHWN"}, "CHWN"),
    "algorithm": (lambda: {"algorithm": "fft"}, "fft"),
    "activation": (lambda: {"activation": "tanh"}, "tanh"),
    "sizes": (lambda: {"sizes": [1, 2, 3]}, "got 3 numbers; wanted 13"),
    "packed": (lambda: {"packed": torch.zeros(7)}, r"got shape \[7\]"),
    "packed of float64": (lambda: {"packed": torch.zeros(7, dtype=torch.float64)}, "float64"),
}


def called(module: PackedConv2d, **changed: Any) -> torch.Tensor:
    given: dict[str, Any] = {
        "x": image(1, 5, 8, 8),
        "packed": torch.zeros(module.packed.shape),
        "bias": None,
        "residual": None,
        "sizes": module.sizes,
        "algorithm": module.algorithm,
        "layout": module.layout,
        "activation": "none",
        "isa": module.isa,
    }
    found: torch.Tensor = torch.ops.tensure.conv2d(**(given | changed))
    return found


@pytest.mark.parametrize("fake", [False, True])
def test_fake_and_real_refuse_alike(fake: bool) -> None:
    """With the numbers; nothing that an export lets pass is refused by the run."""
    module = PackedConv2d.of(torch.nn.Conv2d(5, 19, 3))
    with FakeTensorMode() if fake else nullcontext():
        assert called(module).shape == (1, 19, 6, 6)
        assert called(module, x=image(1, 5, 3, 3), bias=torch.zeros(19)).shape == (1, 19, 1, 1)
        assert called(module, residual=image(1, 19, 6, 6)).shape == (1, 19, 6, 6)
        for name, (changed, message) in REFUSED.items():
            with pytest.raises(InputError, match=message):
                called(module, **changed())
                pytest.fail(name)


def test_an_export_that_could_not_run_fails() -> None:
    module = PackedConv2d.of(torch.nn.Conv2d(5, 19, 3))
    with pytest.raises(Exception, match=r"shape \[2, 7, 8, 8\]; wanted \[N, 5, H, W\]"):
        torch.export.export(module, (torch.randn(2, 7, 8, 8),))


def test_sizes_that_are_symbols_export() -> None:
    """Batch and height free; the width, a number, is still checked."""
    module = PackedConv2d.of(torch.nn.Conv2d(5, 19, 3, stride=2))
    free = {"x": {0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h", min=5)}}
    exported = torch.export.export(module, (torch.randn(2, 5, 9, 8),), dynamic_shapes=free).module()
    x = torch.randn(3, 5, 14, 8)
    assert torch.equal(exported(x), module(x))
    with pytest.raises(Exception, match="width 2, 2 with padding"):
        torch.export.export(module, (torch.randn(2, 5, 9, 2),), dynamic_shapes=free)
