"""`conv`, `conv-winograd`, `conv-avx2`: our convolution on the papers' twelve layers, beside every peer.

Every engine's output is compared with sums in double precision before it is timed. Declares cases, peers,
tolerances and bars; does not know how an engine works, nor how anything is timed.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ._child import ChildEngine, child_environment, engine_command
from ._conv_cases import LAYERS, conv_cases
from ._declare import Bars, benchmark
from ._onednn import PACKAGE, library_path
from ._pace import Pace
from ._records import OURS, Bar, Case, Engine, Json, Limit, Measured, NotMeasured, Peer, Row, Scope

__all__ = [
    "PEERS",
    "agreement",
    "cases_of",
    "conv",
    "conv_avx2",
    "conv_child",
    "conv_winograd",
    "oracle",
    "peak_limits",
    "ratio_bars",
    "share_bars",
]

#: Largest error over the largest magnitude of the output. f32 engines differ in the order of sums only.
STRICT: Final = 1e-5
#: The accuracy class of Winograd, which nobody gets without asking for it.
LOOSE: Final = 1e-4

#: Shares of the measured peak that one thread is asked for, by batch and layer.
SHARES: Final[Mapping[int, Mapping[str, float]]] = {
    1: {
        **dict.fromkeys(("conv4", "conv5", "conv8", "conv9", "conv10"), 0.92),
        **dict.fromkeys(("conv1", "conv2", "conv3"), 0.85),
        "conv6": 0.80,
        "conv7": 0.70,
        "conv11": 0.88,
        "conv12": 0.65,
    },
    8: {
        **dict.fromkeys(("conv4", "conv5", "conv6", "conv8", "conv9", "conv10", "conv11"), 0.80),
        "conv12": 0.70,
    },
}
AVX2_LAYERS: Final = ("conv5", "conv9", "conv10", "conv11")
WINOGRAD_LAYERS: Final = ("conv8", "conv9", "conv10", "conv11")
QUICK_LAYERS: Final = ("conv9", "conv12")
QUICK_BATCHES: Final = (1,)
INSTALL: Final = "`make bench` installs it, as does pip install 'tensure[bench]'"

#: glibc hands large blocks back to the kernel at every free, and PyTorch allocates each output anew: without
#: these, half the time of a large output is page faults. Its tuning guide asks for such an allocator.
_KEEP_MEMORY: Final = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
_AVX2: Final = {
    "TENSURE_ISA": "v3",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def conv_child(scope: Scope, *words: str, env: Mapping[str, str] | None = None) -> ChildEngine:
    """One of the engines of `_serve.py` in a process of its own."""
    return ChildEngine(engine_command(*words), {**child_environment(scope), **(env or {})})


def _peer(name: str, needs: Sequence[str], *words: str, env: Mapping[str, str] | None = None) -> Peer:
    def missing() -> str | None:
        absent = [module for module in needs if find_spec(module) is None]
        return f"{absent[0]} is not installed ({INSTALL})" if absent else None

    return Peer(name, missing, lambda scope: conv_child(scope, *words, env=env))


def _onednn_missing() -> str | None:
    return None if library_path() else f"{PACKAGE} is not installed ({INSTALL})"


PEERS: Final = (
    _peer("PyTorch", ("torch",), "conv-torch", "nchw", env=_KEEP_MEMORY),
    _peer("PyTorch channels_last", ("torch",), "conv-torch", "channels_last", env=_KEEP_MEMORY),
    _peer("PyTorch prepacked", ("torch",), "conv-torch", "prepacked", env=_KEEP_MEMORY),
    _peer("ONNX Runtime", ("onnxruntime", "onnx"), "conv-onnxruntime"),
    _peer("OpenVINO", ("openvino",), "conv-openvino"),
    Peer("oneDNN any", _onednn_missing, lambda scope: conv_child(scope, "conv-onednn", "any")),
    Peer("oneDNN NHWC", _onednn_missing, lambda scope: conv_child(scope, "conv-onednn", "nhwc")),
    _peer("XNNPACK", ("ai_edge_litert", "flatbuffers"), "conv-xnnpack"),
)
PEER_NAMES: Final = tuple(peer.name for peer in PEERS)


def cases_of(layers: Sequence[str], quick: Sequence[str] | None = None) -> Callable[[Scope], Sequence[Case]]:
    """Cases of these layers; of `quick` at N=1 in a quick run. They name the file of the right output."""

    def cases(scope: Scope) -> Sequence[Case]:
        if scope.quick:
            scope = Scope(True, scope.threads, scope.cpu_time, QUICK_BATCHES, scope.only)
        chosen = layers if not scope.quick or quick is None else quick
        return conv_cases(scope, chosen, expected=str(_expected_path()))

    return cases


def oracle(scope: Scope) -> Engine:
    """Writes the right output, in double precision, to the file that every case names."""
    return conv_child(Scope(scope.quick, _all_threads(scope)), "conv-reference")


def agreement(tolerances: Mapping[str, float]) -> Callable[[Case, str, Json, Json], str | None]:
    """Compare an engine's difference with its tolerance; STRICT for whom `tolerances` does not name."""

    def agree(case: Case, engine: str, expected: Json, found: Json) -> str | None:
        if found["shape"] != expected["shape"] or found["dtype"] != "float32":
            return f"{found['dtype']} {found['shape']}, not float32 {expected['shape']}"
        tolerance = tolerances.get(engine, STRICT)
        error = found["difference"] / max(expected["max"], 1e-300)
        if not error <= tolerance:
            return f"off by {error:.2g} of the largest output, over {tolerance:g}"
        return None

    return agree


def peak_limits(env: Mapping[str, str] | None = None) -> Callable[[Scope, Sequence[Case]], Sequence[Limit]]:
    """f32 arithmetic, measured for each number of threads in a process with this environment."""

    def limits(scope: Scope, cases: Sequence[Case]) -> Sequence[Limit]:
        with conv_child(scope, "limits", env=env) as child:
            found = [
                (threads, child.ask("peak", {"kind": "f32", "threads": threads, "seconds": 0.5}))
                for threads in scope.threads
            ]
        return [
            Limit("f32 arithmetic", threads, row["value"], row["unit"], row["value"] / 1e9, row["how"])
            for threads, row in found
        ]

    return limits


def share_bars(shares: Mapping[int, Mapping[str, float]]) -> Bars:
    """Our share of the measured peak, one thread, for the layers and batches that ask for one."""

    def bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
        ours = {row.case: row for row in found.rows if row.engine == OURS}
        made: list[Bar | NotMeasured] = []
        for case in cases:
            problem = case.params["problem"]
            target = shares.get(problem["n"], {}).get(problem["layer"])
            if target is None or case.threads != 1 or case.name not in ours:
                continue
            share = ours[case.name].of_limit
            if share is None:
                made.append(NotMeasured(f"{case.name}: share of the peak", "no limit was measured"))
            else:
                made.append(Bar(case.name, share, "of the limit", target, "higher"))
        return made

    return bars


def ratio_bars(
    layers: Sequence[str], means: Mapping[int, float], counts: Mapping[int, int] | None = None
) -> Bars:
    """Our ratio to the best peer, one thread: its geometric mean over these layers, by batch.

    Args:
        layers: all of them are needed, with every peer.
        means: the geometric mean that is asked for.
        counts: on how many layers the ratio must reach 1.
    """

    def bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
        made: list[Bar | NotMeasured] = []
        for n, mean in means.items():
            name = f"ratio to the best peer, N={n}"
            ratios, lacking = _best_ratios(cases, found.rows, layers, n)
            if lacking:
                made.append(NotMeasured(name, lacking))
                continue
            value = math.exp(math.fsum(math.log(ratio) for ratio in ratios) / len(ratios))
            made.append(Bar(f"{name}: geometric mean", value, "x", mean, "higher"))
            if counts and n in counts:
                reached = float(sum(ratio >= 1.0 for ratio in ratios))
                made.append(Bar(f"{name}: layers at 1 or above", reached, "layers", counts[n], "higher"))
        return made

    return bars


def _best_ratios(
    cases: Sequence[Case], rows: Sequence[Row], layers: Sequence[str], n: int
) -> tuple[list[float], str]:
    """For each layer the worst of our ratios, and what is lacking for a judgement."""
    ours = {row.case: row for row in rows if row.engine == OURS}
    names = {
        case.params["problem"]["layer"]: case.name
        for case in cases
        if case.params["problem"]["n"] == n and case.threads == 1
    }
    ratios: list[float] = []
    for layer in layers:
        row = ours.get(names.get(layer, ""))
        if row is None:
            return [], f"needs {len(layers)} layers on one thread; without {layer}"
        absent = [peer for peer in PEER_NAMES if peer not in row.ratios]
        if absent:
            return [], f"needs all peers; {layer} without {', '.join(absent)}"
        ratios.append(min(row.ratios[peer] for peer in PEER_NAMES))
    return ratios, ""


def _together(*several: Bars) -> Bars:
    return lambda cases, found: [item for bars in several for item in bars(cases, found)]


def _all_threads(scope: Scope) -> tuple[int, ...]:
    return (*scope.threads, len(os.sched_getaffinity(0)))


def _expected_path() -> Path:
    """One file, written anew for each case: outputs can be large."""
    return Path(_folder().name) / "expected.npy"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="tensure-bench-")


@benchmark(
    "conv",
    about="convolution in f32, the twelve layers of the im2win papers; weights packed, outputs reused",
    metric="GFLOP/s",
    better="higher",
    cases=cases_of(LAYERS, QUICK_LAYERS),
    peers=PEERS,
    agree=agreement({}),
    reference="sums in double precision",
    oracle=oracle,
    limits=peak_limits(),
    pace=lambda scope: Pace(scope, "f32"),
    bars=_together(share_bars(SHARES), ratio_bars(LAYERS, {1: 1.05}, {1: 11})),
    threads=(1,),
    batches=(1, 8),
    settings={"table": "matrix", "tolerance": STRICT},
)
def conv(scope: Scope) -> Engine:
    """What Tensure chooses itself."""
    return conv_child(scope, "conv-tensure", "auto")


@benchmark(
    "conv-winograd",
    about="convolution in accuracy class 1e-4, Winograd F(4x4, 3x3), beside peers that are strict",
    metric="GFLOP/s",
    better="higher",
    cases=cases_of(WINOGRAD_LAYERS, ("conv9",)),
    peers=PEERS,
    agree=agreement({OURS: LOOSE}),
    reference="sums in double precision",
    oracle=oracle,
    limits=peak_limits(),
    pace=lambda scope: Pace(scope, "f32"),
    bars=ratio_bars(WINOGRAD_LAYERS, {1: 1.8, 8: 1.6}),
    threads=(1,),
    batches=(1, 8),
    settings={"table": "matrix", "tolerance": LOOSE},
)
def conv_winograd(scope: Scope) -> Engine:
    """Winograd; FLOPs are those of the direct sum, so the figure can pass the peak."""
    return conv_child(scope, "conv-tensure", "winograd", "NHWC")


@benchmark(
    "conv-avx2",
    about="convolution in f32 with the AVX2 build forced, against the AVX2 peak of the same process",
    metric="GFLOP/s",
    better="higher",
    cases=cases_of(AVX2_LAYERS),
    agree=agreement({}),
    reference="sums in double precision",
    oracle=oracle,
    limits=peak_limits(_AVX2),
    pace=lambda scope: Pace(scope, "f32", _AVX2),
    bars=share_bars({1: dict.fromkeys(AVX2_LAYERS, 0.90)}),
    threads=(1,),
    batches=(1,),
    settings={"table": "matrix", "engines_in": "a process of its own", "isa": "v3", "tolerance": STRICT},
)
def conv_avx2(scope: Scope) -> Engine:
    """What Tensure chooses itself, on x86-64-v3."""
    return conv_child(scope, "conv-tensure", "auto", env=_AVX2)
