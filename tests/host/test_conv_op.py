"""torch.ops.tensure.conv2d beside torch's own: values, opcheck, export, refusals."""

from __future__ import annotations

import pytest
import torch

from tensure.errors import InputError, TensureError, UnsupportedError
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
    with pytest.raises(TensureError, match="7 channels"):
        bad = torch.randn(1, 7, 8, 8).contiguous(memory_format=torch.channels_last)
        call(bad, module.packed, None, None, *rest, module.isa)
    with pytest.raises(UnsupportedError, match="same"):
        PackedConv2d.of(torch.nn.Conv2d(3, 4, 3, padding="same"))
