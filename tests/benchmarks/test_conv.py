"""The convolution benchmarks: sizes, comparison, what is timed, bars; each peer that is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks.fakes import FULL, QUICK

from tensure import kernels
from tensure.benchmarks import _conv, _conv_engine, _conv_paper, _engine_conv_tensure, _onednn
from tensure.benchmarks._conv import LOOSE, PEER_NAMES, PEERS, STRICT, agreement, cases_of
from tensure.benchmarks._conv_cases import LAYERS, LAYOUTS, Floats, Problem, layer, problem_of
from tensure.benchmarks._conv_engine import ConvEngine, poisoned
from tensure.benchmarks._declare import register
from tensure.benchmarks._engine_conv_reference import Reference
from tensure.benchmarks._records import Bar, Case, EngineError, Limit, Measured, NotMeasured, Peer, Row
from tensure.benchmarks._statistics import spread
from tensure.errors import InputError

SMALL = Problem("small", 2, 3, 9, 8, 5, 3, 2)
CASE = Case("conv9, N=1", 1)


def plain(problem: Problem, x: Floats, w: Floats) -> np.ndarray[Any, Any]:
    """Seven loops' worth, by slices, in double precision."""
    out = np.zeros(problem.out_shape)
    for u in range(problem.kernel):
        for v in range(problem.kernel):
            rows = slice(u, u + problem.stride * problem.out_height, problem.stride)
            columns = slice(v, v + problem.stride * problem.out_width, problem.stride)
            window = x[:, :, rows, columns][:, :, : problem.out_height, : problem.out_width]
            out += np.einsum("nchw,oc->nohw", window.astype(np.float64), w[:, :, u, v].astype(np.float64))
    return out


def as_json(problem: Problem, path: Path, threads: int = 1) -> dict[str, Any]:
    return {"threads": threads, "params": {"problem": asdict(problem), "expected": str(path)}}


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "input_mb", "im2win_mb", "im2col_mb"),
    [("conv1", 0.62, 1.65, 4.39), ("conv4", 12.85, 43.75, 149.0), ("conv8", 3.21, 9.46, 27.9),
     ("conv12", 0.10, 0.22, 0.46)],
)  # fmt: skip
def test_sizes_are_those_of_the_papers(
    name: str, input_mb: float, im2win_mb: float, im2col_mb: float
) -> None:
    problem = layer(name, 1)
    assert 4 * np.prod(problem.in_shape) / 1e6 == pytest.approx(input_mb, abs=0.005)
    assert problem.im2win_bytes / 1e6 == pytest.approx(im2win_mb, abs=0.006)
    assert problem.im2col_bytes / 1e6 == pytest.approx(im2col_mb, rel=0.01)
    assert layer(name, 8).im2win_bytes == 8 * problem.im2win_bytes


def test_flops_and_shapes() -> None:
    assert SMALL.out_shape == (2, 5, 4, 3)
    assert SMALL.flops == 2 * (2 * 5 * 4 * 3) * (3 * 3 * 3)
    assert layer("conv9", 1).flops == 2 * 64 * 54 * 54 * 64 * 9


def test_inputs_are_the_same_in_every_process_and_differ_between_layers() -> None:
    first, again, other = SMALL.inputs(), SMALL.inputs(), replace(SMALL, height=10).inputs()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    assert first[0].dtype == np.float32 and -0.5 <= first[0].min() < 0 < first[0].max() < 0.5


def test_cases_cover_layers_batches_and_threads() -> None:
    scope = replace(FULL, threads=(1, 2), batches=(1, 8))
    names = [case.name for case in cases_of(LAYERS)(scope)]
    assert len(names) == len(set(names)) == 48
    assert names[0] == "conv1, N=1" and names[-1] == "conv12, N=8, 2 threads"
    quick = cases_of(LAYERS, ("conv9",))(replace(QUICK, batches=(1, 8)))
    assert [case.name for case in quick] == ["conv9, N=1"]
    assert problem_of(asdict(quick[0])) == layer("conv9", 1)
    with pytest.raises(InputError, match="parameters of a convolution"):
        problem_of({"params": {"problem": {"n": 1}}})


# --- comparing ----------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3),
       st.integers(0, 4), st.integers(0, 4))  # fmt: skip
def test_reference_is_the_sum_it_claims(
    n: int, channels: int, out: int, kernel: int, stride: int, tall: int, wide: int
) -> None:
    problem = Problem("p", n, channels, kernel + tall, kernel + wide, out, kernel, stride)
    right = plain(problem, *problem.inputs())
    path = Path(_conv._folder().name) / "test.npy"
    found = Reference().check(as_json(problem, path))
    assert np.allclose(np.load(path), right, rtol=1e-6, atol=1e-6)
    assert found == {"max": pytest.approx(np.abs(right).max()), "shape": list(problem.out_shape)}


class FakeConv:
    """Right but for `fault`; writes down what happens to it."""

    def __init__(self, fault: Callable[[Any], Any] = lambda y: y) -> None:
        self.fault, self.log, self.now = fault, [], 0.0
        self.log: list[str] = []
        self.seconds = 0.001
        self.out: Any = None

    def prepare(self, problem: Problem, x: Floats, w: Floats, threads: int) -> Callable[[], object]:
        self.log.append(f"prepare {threads}")
        self.out = poisoned(problem.out_shape)
        right = self.fault(plain(problem, x, w))

        def call() -> None:
            self.log.append("call")
            self.now += self.seconds
            self.out = np.asarray(right, np.float32)

        return call

    def output(self) -> Any:
        return self.out

    def release(self) -> None:
        self.log.append("release")

    def facts(self) -> Mapping[str, Any]:
        return {"computes": "fake", "workspace_bytes": 7}


@pytest.fixture
def expected(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "expected.npy"
    return path, Reference().check(as_json(SMALL, path))


def one_nan(y: Any) -> Any:
    y[1, 2, 3, 1] = np.nan
    return y


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (lambda y: y + 3e-5 * np.abs(y).max(), "off by 3e-05"),
        (lambda y: np.roll(y, 1, axis=1), "off by"),
        (lambda y: -y, "off by 2"),
        (one_nan, "off by nan"),
        (lambda y: y[..., :2], "float32"),
        (lambda y: np.zeros_like(y), "off by 1"),
    ],
)
def test_wrong_output_is_seen(
    fault: Callable[[Any], Any], word: str, expected: tuple[Path, dict[str, Any]]
) -> None:
    """Planted faults, and the same output without them."""
    path, wanted = expected
    agree = agreement({"loose": 1e-4})
    right = ConvEngine(FakeConv()).check(as_json(SMALL, path))
    assert agree(CASE, "x", wanted, right) is None and right["difference"] < STRICT
    found = ConvEngine(FakeConv(fault)).check(as_json(SMALL, path))
    assert word in str(agree(CASE, "x", wanted, found))


def test_only_who_is_in_another_class_may_be_further_off(expected: tuple[Path, dict[str, Any]]) -> None:
    path, wanted = expected
    found = ConvEngine(FakeConv(lambda y: y + 5e-5 * np.abs(y).max())).check(as_json(SMALL, path))
    agree = agreement({"tensure": LOOSE})
    assert agree(CASE, "tensure", wanted, found) is None
    assert agree(CASE, "peer", wanted, found) is not None
    assert agree(CASE, "tensure", wanted, {**found, "dtype": "float64"}) is not None


def test_output_that_was_never_written_is_seen(expected: tuple[Path, dict[str, Any]]) -> None:
    path, wanted = expected
    model = FakeConv()
    model.output = lambda: poisoned(SMALL.out_shape)  # type: ignore[method-assign]
    assert agreement({})(CASE, "x", wanted, ConvEngine(model).check(as_json(SMALL, path))) is not None


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.npy"):
        ConvEngine(FakeConv()).check(as_json(SMALL, tmp_path / "nothing.npy"))


# --- timing -------------------------------------------------------------------------------------------------


def test_run_is_the_mean_of_enough_calls_prepared_once(expected: tuple[Path, dict[str, Any]]) -> None:
    path, _ = expected
    model = FakeConv()
    engine = ConvEngine(model, clock=lambda: model.now)
    engine.check(as_json(SMALL, path))
    calls = model.log.count("call")
    timing = engine.run(as_json(SMALL, path))
    assert timing["wall_s"] == pytest.approx(0.001)
    assert model.log.count("call") - calls == 1 + 30  # one before the clock starts, 30 ms of them after
    assert model.log.count("prepare 1") == 1
    engine.run(as_json(SMALL, path, threads=2))
    assert model.log.count("prepare 2") == 1
    facts = engine.facts()
    assert facts["workspace_bytes"] == 7 and facts["max_error"] < STRICT
    assert facts["im2win_bytes"] == SMALL.im2win_bytes and facts["peak_rss_bytes"] > 1e6


def test_long_call_is_timed_once(expected: tuple[Path, dict[str, Any]]) -> None:
    path, _ = expected
    model = FakeConv()
    model.seconds = 2.0
    engine = ConvEngine(model, clock=lambda: model.now)
    engine.check(as_json(SMALL, path))
    engine.run(as_json(SMALL, path))
    assert model.log.count("call") == 2


def test_what_is_large_is_not_kept(
    expected: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = expected
    monkeypatch.setattr(_conv_engine, "KEEP_BYTES", SMALL.tensor_bytes - 1)
    model = FakeConv()
    engine = ConvEngine(model, clock=lambda: model.now)
    engine.check(as_json(SMALL, path))
    engine.run(as_json(SMALL, path))
    assert model.log.count("prepare 1") == 2 and model.log[-1] == "release"


def test_growth_is_the_memory_that_a_call_takes() -> None:
    # In a process of its own: this one may hold freed memory, or let go of some meanwhile.
    code = (
        "import numpy as np\nfrom tensure.benchmarks._conv_engine import growth_of\n"
        "print(growth_of(lambda: np.ones(64 << 20, np.uint8)), growth_of(lambda: None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, slack = 64 << 20, 1 << 20  # the kernel counts pages in batches
    growth, nothing = done.stdout.split()
    assert growth == "None" or size - slack <= int(growth) < size + slack
    assert nothing == "None" or int(nothing) < slack


# --- bars ---------------------------------------------------------------------------------------------------


def row(case: Case, ratios: Mapping[str, float], of_limit: float | None = 0.9, **facts: Any) -> Row:
    return Row(case.name, "tensure", case.threads, "GFLOP/s", spread([1.0]), 1.0, ratios, of_limit, facts)


def conv_rows(ratio: Callable[[str], float], skip: str = "") -> tuple[Sequence[Case], Measured]:
    cases = cases_of(LAYERS)(replace(FULL, batches=(1, 8)))
    found = Measured()
    found.limits = [Limit("f32 arithmetic", 1, 1e11, "FLOP/s", 100.0, "x")]
    for case in cases:
        if case.name != skip:
            name = case.params["problem"]["layer"]
            others = {peer: ratio(name) * (1.0 if i == 3 else 1.5) for i, peer in enumerate(PEER_NAMES)}
            found.rows.append(row(case, others))
    return cases, found


def by_name(items: Sequence[Bar | NotMeasured]) -> Iterator[tuple[str, float, bool]]:
    for item in items:
        assert isinstance(item, Bar)
        yield item.name, round(item.value, 4), item.met


def test_ratio_bars_take_the_best_peer_of_each_layer() -> None:
    bars = _conv.ratio_bars(LAYERS, {1: 1.05}, {1: 11})
    cases, found = conv_rows(lambda name: 0.9 if name == "conv12" else 1.1)
    mean = (1.1**11 * 0.9) ** (1 / 12)
    assert list(by_name(bars(cases, found))) == [
        ("ratio to the best peer, N=1: geometric mean", round(mean, 4), True),
        ("ratio to the best peer, N=1: layers at 1 or above", 11.0, True),
    ]
    cases, found = conv_rows(lambda name: 0.99 if name in ("conv1", "conv12") else 1.0)
    assert [met for _, _, met in by_name(bars(cases, found))] == [False, False]


@pytest.mark.parametrize("lacking", ["peer", "layer"])
def test_ratio_bars_need_every_peer_and_every_layer(lacking: str) -> None:
    cases, found = conv_rows(lambda name: 2.0, skip="conv7, N=1" if lacking == "layer" else "")
    if lacking == "peer":
        found.rows[2] = replace(found.rows[2], ratios={"PyTorch": 2.0})
    (item,) = _conv.ratio_bars(LAYERS, {1: 1.05})(cases, found)
    assert isinstance(item, NotMeasured)
    assert ("conv7" if lacking == "layer" else "conv3 without") in item.reason
    assert (
        len(_conv.ratio_bars(LAYERS, {8: 1.05})(cases, found)) == 1
    )  # of the other batch nothing is lacking


def test_share_bars_are_those_of_one_thread() -> None:
    bars = _conv.share_bars(_conv.SHARES)
    cases, found = conv_rows(lambda name: 1.0)
    made = {name: met for name, _, met in by_name(bars(cases, found))}
    assert len(made) == 12 + 8
    assert not made["conv9, N=1"] and made["conv11, N=1"] and made["conv9, N=8"]
    two = cases_of(LAYERS)(replace(FULL, threads=(2,), batches=(1,)))
    assert not bars(two, Measured(rows=[row(case, {}) for case in two]))
    found.rows = [replace(found.rows[0], of_limit=None)]
    assert isinstance(bars(cases, found)[0], NotMeasured)


@pytest.mark.parametrize(
    ("growth", "full", "met"), [(100_000, 50e6, [True, True]), (3 << 20, 60e6, [False, False])]
)
def test_memory_bars(growth: int, full: float, met: list[bool]) -> None:
    facts = [
        {"algorithm": "direct", "growth_bytes": 4096, "formula_bytes": 0},
        {"algorithm": "im2win", "growth_bytes": growth},
        {"algorithm": "im2win_full", "growth_bytes": full, "formula_bytes": 50_000_000},
        {"algorithm": "im2win_full", "growth_bytes": 9, "formula_bytes": 50_000},  # pages, not a buffer
        {"algorithm": "im2col", "growth_bytes": 1 << 30, "formula_bytes": 1},
        {"version": "torch"},
    ]
    made = _conv_paper.memory_bars([CASE], Measured(rows=[row(CASE, {}, **fact) for fact in facts]))
    assert [bar.met for bar in made if isinstance(bar, Bar)] == met
    none = _conv_paper.memory_bars([CASE], Measured())
    assert [type(item) for item in none] == [NotMeasured, NotMeasured]


# --- peers --------------------------------------------------------------------------------------------------


def test_declared_bars_are_those_that_were_asked_for() -> None:
    cases, found = conv_rows(lambda name: 1.1)
    made = {
        name: bars(cases, found)
        for name in ("conv", "conv-winograd", "conv-avx2")
        if (bars := register()[name].bars) is not None
    }
    assert len(made["conv"]) == 12 + 8 + 2 and len(made["conv-avx2"]) == 4
    assert [(item.name, item.target) for item in made["conv-winograd"] if isinstance(item, Bar)] == [
        ("ratio to the best peer, N=1: geometric mean", 1.8),
        ("ratio to the best peer, N=8: geometric mean", 1.6),
    ]


def test_peer_that_is_absent_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_conv, "find_spec", lambda name: None)
    monkeypatch.setattr(_onednn, "distribution", none)
    reasons = {peer.name: str(peer.available()) for peer in PEERS}
    assert all("is not installed (`make bench` installs it" in reason for reason in reasons.values())
    assert reasons["oneDNN any"].startswith("onednn-cpu-gomp")
    with pytest.raises(EngineError, match="onednn-cpu-gomp is not installed"):
        _onednn.OneDnn(_onednn.ANY)


class Packed:
    """What `pack_conv2d` gives, as far as the engine looks."""

    nbytes = 99

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return SMALL.out_shape

    def workspace_bytes(self, shape: Sequence[int], threads: int) -> int:
        return 40


def test_our_engine_reuses_output_and_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []
    packs: list[dict[str, Any]] = []

    def pack(w: Any, conv: Any, **how: Any) -> Packed:
        packs.append(how)
        return Packed()

    fakes = {
        "Conv": lambda *words, **named: (words, named),
        "pack_conv2d": pack,
        "convert_layout": lambda x, source, target, **more: x,
        "conv2d": lambda x, packed, out, workspace, threads: calls.append((out, workspace)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(kernels, name, fake)
    model = _engine_conv_tensure.TensureConv("im2win_full", "NCHW", frozenset({"hoist"}))
    call = model.prepare(SMALL, *SMALL.inputs(), 1)
    for _ in range(3):
        call()
    on = set(kernels.SWITCHES) - {"hoist"}
    assert packs == [{"algorithm": "im2win_full", "layout": "NCHW", "switches": on}]
    (first, none), (second, workspace), (_, again) = calls
    assert first is second and none is None and workspace is again and workspace.nbytes == 40
    assert workspace.ctypes.data % 64 == 0
    facts = model.facts()
    assert facts["computes"] == "im2win_full NCHW, without hoist" and facts["workspace_bytes"] == 40
    assert facts["formula_bytes"] == SMALL.im2win_bytes
    eight = _engine_conv_tensure.TensureConv("im2win_full", "CHWN8", frozenset())
    eight.prepare(SMALL, *SMALL.inputs(), 1)
    assert eight.facts()["formula_bytes"] == 4 * SMALL.im2win_bytes  # two images take the room of eight
    with pytest.raises(InputError, match="switch 'hoists'"):
        _engine_conv_tensure.setup("direct", "NHWC", "hoists")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", ["direct", "im2win", "im2win_full", "im2col"])
def test_our_own_variants_are_judged_and_timed(
    algorithm: str, layout: str, expected: tuple[Path, dict[str, Any]]
) -> None:
    path, wanted = expected
    engine = _engine_conv_tensure.setup(algorithm, layout)
    assert agreement({})(CASE, "tensure", wanted, engine.check(as_json(SMALL, path))) is None
    assert engine.run(as_json(SMALL, path))["wall_s"] > 0
    facts = engine.facts()
    if algorithm == "im2win_full":
        assert 0.5 < facts["workspace_bytes"] / facts["formula_bytes"] < 4  # tiny: mostly padding


def test_switches_of_the_ablation_leave_the_result_alone(expected: tuple[Path, dict[str, Any]]) -> None:
    path, wanted = expected
    for switch in kernels.SWITCHES:
        engine = _engine_conv_tensure.setup("direct", "NHWC", switch)
        assert agreement({})(CASE, "tensure", wanted, engine.check(as_json(SMALL, path))) is None
        assert engine.facts()["computes"] == f"direct NHWC, without {switch}"


def test_every_named_peer_is_declared_once() -> None:
    assert len(set(PEER_NAMES)) == len(PEERS) == 8
    for word in (
        "PyTorch channels_last",
        "PyTorch prepacked",
        "ONNX Runtime",
        "OpenVINO",
        "oneDNN",
        "XNNPACK",
    ):
        assert any(name.startswith(word) for name in PEER_NAMES)


@pytest.mark.parametrize("peer", [p for p in PEERS if p.available() is None], ids=lambda peer: peer.name)
def test_installed_peer_gives_the_right_output(peer: Peer, tmp_path: Path) -> None:
    """In a process of its own, as it is measured; PyTorch is always installed."""
    path = tmp_path / "expected.npy"
    engine = peer.setup(FULL)
    try:
        for problem in (SMALL, replace(SMALL, n=1, kernel=1, stride=1)):
            wanted = Reference().check(as_json(problem, path))
            case = Case("c", 1, float(problem.flops), as_json(problem, path)["params"])
            assert agreement({})(case, peer.name, wanted, engine.check(case)) is None
            assert engine.run(case).wall_s > 0
            assert engine.facts()["version"]
    finally:
        engine.close()
