"""`conv-paper` and `conv-ablation`: the im2win papers' comparison, made with our own kernels.

The first sets im2win (fused, and with its whole buffer) and the direct convolution in four layouts beside
im2col and PyTorch, with the memory of each; the second switches the optimisations off one at a time. Each
variant is an engine in a process of its own. Declares; does not know how a kernel works.

Source: Shuai Lu et al., im2win convolution on CPUs (2023), and its sequel on layouts (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tensure.kernels import SWITCHES

from ._conv import PEERS, STRICT, agreement, cases_of, conv_child, oracle, peak_limits
from ._conv_cases import LAYERS, LAYOUTS
from ._declare import benchmark
from ._records import Bar, Case, Engine, Measured, NotMeasured, Peer, Row, Scope

__all__ = ["conv_ablation", "conv_paper", "memory_bars"]

ALGORITHMS: Final = {"direct": "direct", "im2win": "im2win", "im2win_full": "full im2win"}
ABLATION_LAYERS: Final = ("conv3", "conv5", "conv9", "conv12")
QUICK_LAYERS: Final = ("conv9",)
MEGABYTE: Final = 1 << 20
GROWTH_MB: Final = 1.0
FORMULA_SHARE: Final = 0.05
#: Of a smaller buffer, pages and the allocator are more than the share that is asked for.
_LARGE_BYTES: Final = 8 * MEGABYTE
#: A case of more work has one turn, without a warm-up; of an eighth of it, two.
_LONG_FLOPS: Final = 40e9
#: glibc serves what it has freed before; with a fixed threshold a buffer is always new memory, and is seen.
_FRESH_MEMORY: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}


def _variant(name: str, *words: str) -> Peer:
    return Peer(name, lambda: None, lambda scope: _ours(scope, *words))


def _ours(scope: Scope, *words: str) -> Engine:
    return conv_child(scope, "conv-tensure", *words, env=_FRESH_MEMORY)


def _variants() -> list[Peer]:
    made = [
        _variant(f"{name} {layout}", algorithm, layout)
        for algorithm, name in ALGORITHMS.items()
        for layout in LAYOUTS
    ]
    made += [_variant(f"im2col {layout}", "im2col", layout) for layout in ("NCHW", "NHWC")]
    unfold = Peer(
        "PyTorch unfold", PEERS[0].available, lambda scope: conv_child(scope, "conv-torch", "im2col")
    )
    return [*made, PEERS[0], unfold]


def _ablation() -> list[Peer]:
    return [_variant(f"direct without {switch}", "direct", "NHWC", switch) for switch in SWITCHES]


def memory_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Growth of peak memory while running: next to none for direct and fused im2win, the formula for full."""
    small = [row for row in found.rows if row.facts.get("algorithm") in ("direct", "im2win")]
    full = [
        row
        for row in found.rows
        if row.facts.get("algorithm") == "im2win_full" and row.facts["formula_bytes"] >= _LARGE_BYTES
    ]
    made: list[Bar | NotMeasured] = []
    name = "direct and im2win: growth of peak memory per thread"
    if any(_growth(row) is not None for row in small):
        most = max((_growth(row) or 0) / row.threads / MEGABYTE for row in small)
        made.append(Bar(name, most, "MB", GROWTH_MB, "lower"))
    else:
        made.append(NotMeasured(name, "no row of these algorithms, or the kernel tells no peak"))
    name = "full im2win: growth of peak memory off its formula"
    if any(_growth(row) is not None for row in full):
        off = max(abs((_growth(row) or 0) / row.facts["formula_bytes"] - 1) for row in full)
        made.append(Bar(name, off, "of the formula", FORMULA_SHARE, "lower"))
    else:
        made.append(NotMeasured(name, f"no row with a buffer of {_LARGE_BYTES // MEGABYTE} MB or more"))
    return made


def _paper_cases(scope: Scope) -> list[Case]:
    """The layers; sixteen engines make a large batch long, and long runs need fewer turns."""
    plain = cases_of(LAYERS, QUICK_LAYERS)(scope)
    return [
        replace(case, rounds=1 if case.work > _LONG_FLOPS else 2 if case.work > _LONG_FLOPS / 8 else None)
        for case in plain
    ]


def _growth(row: Row) -> int | None:
    found = row.facts.get("growth_bytes")
    return None if found is None else int(found)


@benchmark(
    "conv-paper",
    about="im2win and direct convolution in four layouts beside im2col and PyTorch, the papers' layers",
    metric="GFLOP/s",
    better="higher",
    cases=_paper_cases,
    peers=_variants(),
    agree=agreement({}),
    reference="sums in double precision",
    oracle=oracle,
    limits=peak_limits(),
    bars=memory_bars,
    threads=(1, 2),
    batches=(1, 8, 32),
    settings={"table": "paper", "tolerance": STRICT},
)
def conv_paper(scope: Scope) -> Engine:
    """What Tensure chooses itself, beside its own variants."""
    return _ours(scope, "auto")


@benchmark(
    "conv-ablation",
    about="direct convolution in NHWC, with one optimisation switched off at a time",
    metric="GFLOP/s",
    better="higher",
    cases=cases_of(ABLATION_LAYERS, QUICK_LAYERS),
    peers=_ablation(),
    agree=agreement({}),
    reference="sums in double precision",
    oracle=oracle,
    limits=peak_limits(),
    threads=(1, 2),
    batches=(1,),
    settings={"table": "ablation", "tolerance": STRICT},
)
def conv_ablation(scope: Scope) -> Engine:
    """The direct convolution with everything on."""
    return _ours(scope, "direct", "NHWC")
