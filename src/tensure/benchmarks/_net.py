"""`net`: whole image networks, one image at a time, beside ONNX Runtime, OpenVINO and PyTorch.

Outputs are held against PyTorch in float64 first. Each engine gets the network as its users would give it:
ONNX Runtime and OpenVINO the file that PyTorch exports. Does not know how an engine works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from ._child import ChildEngine, child_environment, engine_command
from ._declare import benchmark
from ._records import OURS, Bar, Case, Engine, Json, Measured, NotMeasured, Peer, Scope
from ._text_engine import Floats, unpack

__all__ = ["RIVALS", "TOLERANCE", "difference", "mean_bars", "net", "same_output"]

#: By name: how many calls one run makes, in a full run and a quick one; each about a third of a second.
REPEATS: Final = {
    "efficientnet-lite0": (30, 10),
    "mobilenet-v2": (30, 10),
    "resnet50": (5, 2),
    "vgg16": (2, 1),
}
#: Setting up one network in four processes takes half of a quick run's time.
_QUICK: Final = frozenset({"mobilenet-v2"})

TOLERANCE: Final = 1e-4
"""On the largest difference over the largest value of the reference. f32 engines are within 1e-5."""

ONNX_RUNTIME: Final = "ONNX Runtime"
OPENVINO: Final = "OpenVINO f32"
PYTORCH: Final = "PyTorch channels_last"
RIVALS: Final = (ONNX_RUNTIME, OPENVINO)
"""The bar is set against the better of these."""
TARGET: Final = 1.0


def difference(reference: Floats, output: Floats) -> str | None:
    """How two outputs differ, or None when they are the same within TOLERANCE."""
    if reference.size != output.size:
        return f"{output.size} values, not {reference.size}"
    wanted, found = (array.astype(np.float64).reshape(-1) for array in (reference, output))
    most = float(np.abs(wanted).max(initial=0.0))
    error = float(np.abs(wanted - found).max(initial=0.0)) / max(most, 1e-300)
    # Written so that a NaN on either side differs.
    return (
        None
        if error <= TOLERANCE
        else f"largest difference {error:.2g} of the largest value, over {TOLERANCE:g}"
    )


def same_output(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """`difference` of what two engines' checks gave."""
    return difference(unpack(reference), unpack(output))


def mean_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """For each number of threads: the geometric mean over the networks of best rival / ours; wanted >= 1.

    A mean is only given when every network has a figure of ours and of every rival: the absent one may be
    the best. Otherwise it is said what is missing.
    """
    ours = {row.case: row for row in found.rows if row.engine == OURS}
    made: list[Bar | NotMeasured] = []
    for threads in dict.fromkeys(case.threads for case in cases):
        name = f"{_plural(threads)}: best of {' and '.join(RIVALS)} over ours, geometric mean"
        by_network = {case.params["network"]: case.name for case in cases if case.threads == threads}
        lacking: list[str] = []
        logs: list[float] = []
        for network in REPEATS:
            row = ours.get(by_network.get(network, ""))
            gone = [OURS] if row is None else [rival for rival in RIVALS if rival not in row.ratios]
            if row is None or gone:
                lacking.append(f"{network} without {', '.join(gone)}")
            else:
                # A row's ratio is ours over theirs, in time: the best rival has the largest.
                logs.append(-math.log(max(row.ratios[rival] for rival in RIVALS)))
        if lacking:
            made.append(NotMeasured(name, f"needs every figure; {'; '.join(lacking)}"))
        else:
            made.append(Bar(name, math.exp(math.fsum(logs) / len(logs)), "x", TARGET, "higher"))
    return made


def _cases(scope: Scope) -> list[Case]:
    """One case for each network and number of threads; engines hold one network at a time."""
    return [
        Case(
            f"{network}, {_plural(threads)}",
            threads,
            float(repeats[scope.quick]),
            {"network": network, "repeats": repeats[scope.quick]},
        )
        for network, repeats in REPEATS.items()
        if not scope.quick or network in _QUICK
        for threads in scope.threads
    ]


def _setup(scope: Scope, *words: str) -> Engine:
    return ChildEngine(engine_command(*words), child_environment(scope))


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where exported networks lie until this process ends."""
    return TemporaryDirectory(prefix="tensure-net-")


def _missing(*packages: str) -> str | None:
    absent = [package for package in packages if find_spec(package) is None]
    return f"{' and '.join(absent)} not installed (make bench installs all peers)" if absent else None


PEERS: Final = (
    Peer(
        ONNX_RUNTIME,
        lambda: _missing("onnxruntime", "onnx", "onnxscript"),
        lambda scope: _setup(scope, "net-onnxruntime", str(Path(_folder().name))),
    ),
    Peer(
        OPENVINO,
        lambda: _missing("openvino", "onnx", "onnxscript"),
        lambda scope: _setup(scope, "net-openvino", str(Path(_folder().name))),
    ),
    Peer(PYTORCH, lambda: None, lambda scope: _setup(scope, "net-torch")),
)


@benchmark(
    "net",
    about="whole image networks in f32, one image of 224 x 224 at a time",
    metric="ms",
    better="lower",
    cases=_cases,
    peers=PEERS,
    agree=same_output,
    reference="PyTorch in float64",
    oracle=lambda scope: _setup(scope, "net-reference"),
    bars=mean_bars,
    settings={"tolerance": TOLERANCE},
)
def net(scope: Scope) -> Engine:
    """Our engine; the cases tell it what to do."""
    return _setup(scope, "net-tensure")


def _plural(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
