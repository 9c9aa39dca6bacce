"""What `bench net` compares, times and sums up: fakes for engines; the networks themselves, untimed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tensure.benchmarks._declare import register
from tensure.benchmarks._export_net import onnx_file
from tensure.benchmarks._net import (
    ONNX_RUNTIME,
    OPENVINO,
    REPEATS,
    RIVALS,
    TOLERANCE,
    _cases,
    difference,
    mean_bars,
    same_output,
)
from tensure.benchmarks._net_engine import INPUT_SHAPE, NetEngine, make_input
from tensure.benchmarks._networks import NETWORKS, build_network
from tensure.benchmarks._records import Bar, Case, EngineError, Measured, NotMeasured, Row, Scope
from tensure.benchmarks._serve import ENGINES
from tensure.benchmarks._statistics import spread
from tensure.benchmarks._text_engine import Floats, pack, unpack
from tensure.errors import InputError

FULL = Scope(False, (1, 2))
LOGITS = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)


# --- outputs -----------------------------------------------------------------------------------------


def test_the_same_output_is_the_same() -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, LOGITS.shape).astype(np.float32)
    most = np.abs(LOGITS).max()
    assert difference(LOGITS, LOGITS) is None
    assert difference(LOGITS, LOGITS + np.float32(0.9 * TOLERANCE) * most * noise) is None
    assert same_output(Case("c", 1), "any", pack(LOGITS), pack(LOGITS)) is None


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x + 2 * TOLERANCE * np.abs(x).max(),
        lambda x: x[:, ::-1],
        lambda x: -x,
        lambda x: x * np.float32(1.001),
        lambda x: np.where(np.arange(1000) == 7, np.float32(np.nan), x),
        lambda x: np.zeros_like(x),
        lambda x: x[:, :999],
    ],
)
def test_another_output_is_not(fault: object) -> None:
    wrong = np.asarray(fault(LOGITS), np.float32)  # type: ignore[operator]
    assert difference(LOGITS, wrong) is not None
    assert same_output(Case("c", 1), "any", pack(LOGITS), pack(wrong)) is not None


def test_a_reference_of_nan_is_not_matched() -> None:
    nan = np.full_like(LOGITS, np.nan)
    assert difference(nan, nan) is not None


# --- summary -----------------------------------------------------------------------------------------


def cases() -> list[Case]:
    return _cases(FULL)


def rows(ours: float, theirs: Mapping[str, float], engine: str = "tensure") -> list[Row]:
    """A row of ours for each case: our milliseconds over each peer's."""
    ratios = {name: ours / value for name, value in theirs.items()}
    return [
        Row(case.name, engine, case.threads, "ms", spread([ours]), 0.0, ratios, None, {}) for case in cases()
    ]


def summed(found: Sequence[Row], some: Sequence[Case]) -> tuple[list[Bar], list[NotMeasured]]:
    items = mean_bars(some, Measured(rows=list(found)))
    return [i for i in items if isinstance(i, Bar)], [i for i in items if isinstance(i, NotMeasured)]


def test_cases_are_every_network_at_every_number_of_threads() -> None:
    assert [(case.params["network"], case.threads) for case in cases()] == [
        (network, threads) for network in REPEATS for threads in (1, 2)
    ]
    assert set(REPEATS) == set(NETWORKS)
    assert all(case.work == case.params["repeats"] for case in cases())
    assert [case.params["network"] for case in _cases(Scope(True, (2,)))] == ["mobilenet-v2"]


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_mean_is_of_the_best_rival_over_ours(ours: float, ort: float, ov: float) -> None:
    bars, missing = summed(rows(ours, {ONNX_RUNTIME: ort, OPENVINO: ov, "other": 1e-3}), cases())
    assert not missing and len(bars) == 2
    for bar in bars:
        assert math.isclose(bar.value, min(ort, ov) / ours, rel_tol=1e-9)
        assert bar.met == (bar.value >= 1.0)


def test_the_mean_is_geometric_and_by_threads() -> None:
    found = rows(1.0, {ONNX_RUNTIME: 1.0, OPENVINO: 1.0})
    scaled = [
        Row(
            row.case, row.engine, row.threads, "ms", row.spread, 0.0,
            dict.fromkeys(RIVALS, 1 / (place + 1)) if row.threads == 2 else dict.fromkeys(RIVALS, 2.0),
            None, {},
        )
        for place, row in enumerate(found)
    ]  # fmt: skip
    one, two = summed(scaled, cases())[0]
    assert math.isclose(one.value, 0.5) and not one.met
    assert math.isclose(two.value, (2 * 4 * 6 * 8) ** 0.25) and two.met


def test_a_mean_that_lacks_a_figure_is_not_given() -> None:
    found = rows(1.0, {ONNX_RUNTIME: 2.0, OPENVINO: 2.0})
    bars, missing = summed(found[1:], cases())
    assert [bar.name.split(":")[0] for bar in bars] == ["2 threads"]
    assert "efficientnet-lite0 without tensure" in missing[0].reason
    bars, missing = summed(rows(1.0, {ONNX_RUNTIME: 2.0}), cases())
    assert not bars and all("vgg16 without OpenVINO f32" in item.reason for item in missing)
    quick = _cases(Scope(True, (1,)))
    assert not summed(found, quick)[0]


# --- engines -----------------------------------------------------------------------------------------


class Ticking:
    """A model that takes a second a call and writes down what it is asked."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def load(self, network: str) -> None:
        self.log.append(network)

    def set_input(self, x: Floats, threads: int) -> None:
        assert np.array_equal(x, make_input())
        self.log.append(f"{threads}")

    def infer(self) -> None:
        self.log.append("infer")
        self.now += 1.0

    def output(self) -> Floats:
        return LOGITS

    def facts(self) -> Mapping[str, int]:
        return {"weight_bytes": 12}


def request(network: str, threads: int, repeats: object = 3) -> dict[str, object]:
    return {"threads": threads, "params": {"network": network, "repeats": repeats}}


def test_the_first_call_is_not_timed_and_a_network_is_set_up_once() -> None:
    model = Ticking()
    engine = NetEngine(model, clock=lambda: model.now)
    assert np.array_equal(unpack(engine.check(request("a", 1))), LOGITS.reshape(-1))
    assert engine.run(request("a", 1))["wall_s"] == 3.0
    assert model.log == ["a", "1", *["infer"] * 5]
    model.log.clear()
    engine.run(request("a", 2, 1))
    engine.run(request("b", 2, 1))
    assert model.log == ["a", "2", "infer", "infer", "b", "2", "infer", "infer"][1:]
    assert engine.facts()["weight_bytes"] == 12


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "3", None, 1 << 40])
def test_repeats_are_bounded(repeats: object) -> None:
    with pytest.raises(InputError, match="repeats"):
        NetEngine(Ticking()).run(request("a", 1, repeats))


def test_every_engine_of_net_is_served() -> None:
    declared = register()["net"]
    assert [peer.name for peer in declared.peers][:2] == list(RIVALS)
    assert {name for name in ENGINES if name.startswith("net-")} == {
        "net-reference", "net-tensure", "net-onnxruntime", "net-openvino", "net-torch",
    }  # fmt: skip


def test_an_exported_file_is_used_again_and_a_failure_says_why(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"x")
    assert onnx_file("there", tmp_path) == tmp_path / "there.onnx"
    with pytest.raises(EngineError, match=r"exporting lenet failed: .*network 'lenet'"):
        onnx_file("lenet", tmp_path)
    assert not (tmp_path / "lenet.onnx").exists()


# --- networks ----------------------------------------------------------------------------------------


def logits(module: nn.Module) -> Floats:
    with torch.inference_mode():
        array: Floats = module(torch.from_numpy(make_input())).numpy()
    return array


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    return build_network("mobilenet-v2")


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"network 'lenet'.*vgg16"):
        build_network("lenet")


def test_weights_are_the_same_in_every_process(mobilenet: nn.Module) -> None:
    again = build_network("mobilenet-v2").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in mobilenet.state_dict().items())
    assert make_input().shape == INPUT_SHAPE


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mobilenet-v2", 3.5),
        ("efficientnet-lite0", 4.65),
        ("resnet50", 25.6),
        pytest.param("vgg16", 138.4, marks=pytest.mark.nightly),
    ],
)
def test_activations_neither_vanish_nor_explode(name: str, millions: float) -> None:
    module = build_network(name)
    assert not module.training
    assert math.isclose(sum(p.numel() for p in module.parameters()) / 1e6, millions, rel_tol=0.02)
    found: list[float] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            part.register_forward_hook(lambda _part, _inputs, out: found.append(float(out.std())))
    out = logits(module)
    assert out.shape == (1, 1000)
    assert len(found) > 15 and min(found) > 0.05 and max(found) < 30


@pytest.mark.parametrize("fault", ["six", "bias", "variance", "residual"])
def test_a_fault_in_one_layer_shows_in_the_output(mobilenet: nn.Module, fault: str) -> None:
    """Negative control of the comparison: what an engine could get wrong moves the logits by over 1e-4."""
    right = logits(mobilenet)
    module = build_network("mobilenet-v2")
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if fault == "six":
        for part in module.modules():
            if isinstance(part, nn.ReLU6):
                part.max_val = 1e9
    elif fault == "bias":
        norms[20].bias.zero_()
    elif fault == "variance":
        norms[20].eps = 1e-2
    else:
        next(part for part in module.modules() if getattr(part, "adds", False)).adds = False
    assert difference(right, logits(mobilenet)) is None
    assert difference(right, logits(module)) is not None
