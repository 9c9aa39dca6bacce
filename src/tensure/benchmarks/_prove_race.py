"""Processor time of a proof against that of TrainVerify, on Llama plans of the same sizes, same machine.

TrainVerify is the SOSP artifact of that name (microsoft/nnscaler, branch verdictAE), on plans that it has
saved; `TENSURE_BENCH_TRAINVERIFY` names a checkout with an environment in `.venv` (docs/benchmarks.md says
how to make it). Ours is a PyTorch program of ours with the sizes of the same model and mesh, captured and
proved from a cold start: *not* their saved graph, which nothing here reads. Theirs is run in a sandbox, since
it unpickles: no network, and nothing writable but a temporary folder. Knows neither prover.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from ._records import Bar, NotMeasured

__all__ = ["PLANS", "RACE_VARIABLE", "RacePlan", "Run", "race_bars", "raced", "trainverify_missing"]

RACE_VARIABLE: Final = "TENSURE_BENCH_TRAINVERIFY"
TARGET: Final = 20.0
WORKERS: Final = 2
CAP_S: Final = 1200
_GRACE_S: Final = 60
_CAPPED: Final = 3  # an exit code of _peer_trainverify.py

#: Makes all mounts read-only but "$0", gives worker processes a /dev/shm, and becomes the rest of the words.
_SANDBOX: Final = """
set -e
mount --bind "$0" "$0"
while read -r _ at _; do mount -o remount,bind,ro "$at" 2>/dev/null || true; done < /proc/mounts
mount -o remount,bind,rw "$0"
mount -t tmpfs none /dev/shm
if ( : > "$0/../tensure-probe" ) 2>/dev/null; then echo "folders are writable" >&2; exit 9; fi
export HOME="$0" TMPDIR="$0"
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class RacePlan:
    """A plan that both have: two layers, hidden 4096, 32 heads, 512 sequences of 128 tokens.

    Args:
        dp, tp, pp, micro_batches: how it is cut.
        repeats: runs of theirs.
    """

    dp: int
    tp: int
    pp: int
    micro_batches: int
    repeats: int

    @property
    def name(self) -> str:
        """How it is cut, for people."""
        return f"dp{self.dp}-tp{self.tp}-pp{self.pp}-mb{self.micro_batches}"

    @property
    def saved(self) -> str:
        """Their file of it, below Verdict/."""
        return _saved(self.dp, self.tp, self.pp, self.micro_batches)


PLANS: Final = (RacePlan(2, 2, 2, 2, repeats=5), RacePlan(16, 8, 4, 8, repeats=1))
OUR_REPEATS: Final = 5


class Run(NamedTuple):
    """What a process took: processor seconds, user and system, of it and all it waited for.

    `outcome` is `done`, `capped`, or what went wrong.
    """

    cpu_s: float
    outcome: str


def trainverify_missing() -> str | None:
    """Why TrainVerify cannot be run, or None."""
    folder = os.environ.get(RACE_VARIABLE)
    if not folder:
        return f"{RACE_VARIABLE} names no checkout of TrainVerify (docs/benchmarks.md says how to make it)"
    wanted = [".venv/bin/python", "Verdict/main.py", f"Verdict/{_saved(1, 1, 1, 1)}"]
    wanted += [f"Verdict/{plan.saved}" for plan in PLANS]
    for name in wanted:
        if not (Path(folder) / name).is_file():
            return f"{RACE_VARIABLE} names {folder[:200]}, which has no {name}"
    with TemporaryDirectory(prefix="tensure-race-") as out:
        try:
            done = subprocess.run(
                _boxed(out, ["true"]), capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"it unpickles and needs a sandbox: {type(error).__name__} from unshare"
    return f"it unpickles and needs a sandbox: {done.stderr.strip()[-200:]}" if done.returncode else None


def race_bars(*, quick: bool) -> Iterator[Bar | NotMeasured]:
    """How many times the processor time of ours theirs takes, for each plan."""
    missing = "takes longer than a quick run has" if quick else trainverify_missing()
    if missing:
        yield NotMeasured("race against TrainVerify", missing)
        return
    for plan in PLANS:
        yield raced(plan, theirs=_theirs, ours=_ours)


def raced(
    plan: RacePlan, *, theirs: Callable[[RacePlan], Run], ours: Callable[[RacePlan], Run]
) -> Bar | NotMeasured:
    """One plan's bar: runs take turns, and medians are compared."""
    found: dict[str, list[Run]] = {"TrainVerify": [], "ours": []}
    for turn in range(max(plan.repeats, OUR_REPEATS)):
        if turn < plan.repeats:
            found["TrainVerify"].append(theirs(plan))
        if turn < OUR_REPEATS:
            found["ours"].append(ours(plan))
    name = f"race, Llama of 2 layers, {plan.name}"
    for who, runs in found.items():
        for run in runs:
            if run.outcome not in ("done", "capped"):
                return NotMeasured(name, f"{who}: {run.outcome}", wrong=who == "ours")
    capped = any(run.outcome == "capped" for run in found["TrainVerify"])
    them, us = (statistics.median(run.cpu_s for run in runs) for runs in found.values())
    took = f"{them:.1f} s, not done by then" if capped else f"{them:.1f} s"
    bar = Bar(
        f"{name}: TrainVerify's CPU time ({took}) over that of our own program ({us:.1f} s)",
        them / us,
        "times",
        TARGET,
        "higher",
    )
    # A bound from below can meet the bar, but says nothing where it does not.
    return bar if bar.met or not capped else NotMeasured(name, f"did not end: at least {them / us:.1f} times")


def _saved(dp: int, tp: int, pp: int, micro_batches: int) -> str:
    cut = f"dp{dp}_pp{pp}_tp{tp}_nm{micro_batches}"
    return f"gen_model/mgeners/llama3_default_{cut}_gbs512_ly2_h32_hi4096_sq128.pkl"


def _theirs(plan: RacePlan) -> Run:
    folder = Path(os.environ[RACE_VARIABLE]).resolve()
    script = Path(__file__).with_name("_peer_trainverify.py")
    with TemporaryDirectory(prefix="tensure-race-") as out:
        words = [str(folder), _saved(1, 1, 1, 1), plan.saved, out, str(WORKERS), str(CAP_S)]
        # -P: this folder's files are no modules of its
        command = [str(folder / ".venv/bin/python"), "-P", str(script), *words]
        limit = ["timeout", "-s", "KILL", str(CAP_S + _GRACE_S)]
        cpu_s, code, _ = _timed([*limit, *_boxed(out, command)], {"PYTHONPATH": ""})
    return Run(cpu_s, {0: "done", _CAPPED: "capped"}.get(code, f"ended with {code}"))


def _ours(plan: RacePlan) -> Run:
    words = [str(size) for size in (plan.dp, plan.tp, plan.pp, plan.micro_batches)]
    cpu_s, code, text = _timed([sys.executable, "-m", "tensure.benchmarks._prove_race_case", *words], {})
    if code:
        return Run(cpu_s, f"ended with {code}")
    said = json.loads(text.strip().splitlines()[-1])
    return Run(cpu_s, "done" if said["status"] == "proved" else f"{said['status']}: {said['reason']}"[:300])


def _boxed(out: str, command: Sequence[str]) -> list[str]:
    """The command in namespaces of its own: root there only, no network, writing to `out` only."""
    return ["unshare", "-rnm", "--propagation", "private", "bash", "-c", _SANDBOX, out, *command]


def _timed(command: Sequence[str], variables: Mapping[str, str]) -> tuple[float, int, str]:
    """Processor seconds, exit code and stdout of a process that has no threads but one in its pools."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    with TemporaryDirectory(prefix="tensure-race-") as folder:
        path = Path(folder) / "stdout"
        with path.open("wb") as stdout:
            child = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, env=environment)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        return (
            used.ru_utime + used.ru_stime,
            child.returncode,
            path.read_text(encoding="utf-8", errors="replace"),
        )
