"""The race against TrainVerify: what stands there without it, and which bar two times make."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tensure.benchmarks import _peer_trainverify, _prove_race
from tensure.benchmarks._prove_race import PLANS, RACE_VARIABLE, RacePlan, Run, race_bars, raced
from tensure.benchmarks._prove_race_case import SIZES
from tensure.benchmarks._records import Bar, NotMeasured
from tensure.capture._named import LlamaConfig

PLAN = RacePlan(2, 2, 2, 2, repeats=3)


def each(*runs: Run) -> Callable[[RacePlan], Run]:
    """A runner that gives these in turn, the last one for ever."""
    left = list(runs)

    def run(plan: RacePlan) -> Run:
        return left.pop(0) if len(left) > 1 else left[0]

    return run


def test_without_the_artifact_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RACE_VARIABLE, raising=False)
    [found] = race_bars(quick=False)
    assert isinstance(found, NotMeasured) and RACE_VARIABLE in found.reason and not found.wrong


def test_a_folder_that_is_no_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RACE_VARIABLE, str(tmp_path))
    [found] = race_bars(quick=False)
    assert isinstance(found, NotMeasured) and ".venv/bin/python" in found.reason


def test_a_quick_run_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RACE_VARIABLE, str(tmp_path))
    [found] = race_bars(quick=True)
    assert isinstance(found, NotMeasured) and "quick" in found.reason


def test_medians_are_compared() -> None:
    theirs = each(Run(90.0, "done"), Run(400.0, "done"), Run(100.0, "done"))
    bar = raced(PLAN, theirs=theirs, ours=each(Run(99.0, "done"), Run(4.0, "done")))
    assert isinstance(bar, Bar) and bar.value == 25.0 and bar.met
    assert "our own program" in bar.name


def test_a_bar_is_missed_when_we_are_not_faster() -> None:
    bar = raced(PLAN, theirs=each(Run(7.0, "done")), ours=each(Run(7.0, "done")))
    assert isinstance(bar, Bar) and bar.value == 1.0 and not bar.met


def test_a_run_that_did_not_end_bounds_from_below() -> None:
    capped = each(Run(700.0, "capped"))
    bar = raced(PLAN, theirs=capped, ours=each(Run(5.0, "done")))
    assert isinstance(bar, Bar) and bar.met and "not done by then" in bar.name
    found = raced(PLAN, theirs=capped, ours=each(Run(70.0, "done")))
    assert isinstance(found, NotMeasured) and "at least 10.0 times" in found.reason and not found.wrong


def test_a_failure_gives_no_figure_and_ours_counts_against_us() -> None:
    good, bad = each(Run(1.0, "done")), each(Run(100.0, "ended with 1"))
    found = raced(PLAN, theirs=bad, ours=good)
    assert isinstance(found, NotMeasured) and "TrainVerify: ended with 1" in found.reason and not found.wrong
    found = raced(PLAN, theirs=good, ours=each(Run(1.0, "unknown: no rule")))
    assert isinstance(found, NotMeasured) and "unknown: no rule" in found.reason and found.wrong


def test_time_of_a_process_counts_its_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); sys.exit(5)"
    cpu_s, code, _ = _prove_race._timed([sys.executable, "-c", nested], {})
    assert cpu_s >= 0.2 and code == 5


def test_the_sandbox_has_no_network_and_writes_to_one_folder_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(_prove_race._boxed(str(out), ["true"]), capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no namespaces")
    tried = "echo 1 > in_out; (echo 1 > ../beside) 2>/dev/null; ls /sys/class/net; wc -l < /proc/net/route"
    command = _prove_race._boxed(str(out), ["bash", "-c", f"cd {out}; {tried}"])
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (out / "in_out").exists() and not (tmp_path / "beside").exists()
    assert said.split()[-1] in ("0", "1")  # no route but, where it is there, the heading


def artifact(folder: Path, main: str) -> list[str]:
    """A folder with a main.py in place of the artifact's, and the words that run it."""
    (folder / "Verdict").mkdir()
    (folder / "Verdict/main.py").write_text(main, encoding="utf-8")
    script = str(Path(_peer_trainverify.__file__))
    return [sys.executable, "-P", script, str(folder), "one.pkl", "many.pkl", str(folder), "2"]


SAYS = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--stats_dir") + 1])
out.mkdir()
(out / "stats.csv").write_text("success,t\\n{verdict},1\\n")
"""


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (SAYS.format(verdict="True"), _peer_trainverify.VERIFIED),
        (SAYS.format(verdict="False"), _peer_trainverify.FAILED),
        (SAYS.format(verdict="True") * 2, _peer_trainverify.FAILED),
        ("import signal\ntry: signal.pause()\nexcept Exception: pass", _peer_trainverify.CAPPED),
    ],
    ids=["verified", "failed", "raised", "capped"],
)
def test_what_the_artifact_says_is_its_exit_code(tmp_path: Path, main: str, code: int) -> None:
    command = [*artifact(tmp_path, main), "1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_names_in_saved_graphs_are_loaded_and_saved_but_not_called() -> None:
    names = _peer_trainverify.Names("genmodel.model.llama3.model")
    assert names.apply_mask is names.apply_mask and names.apply_mask.__qualname__ == "apply_mask"
    with pytest.raises(RuntimeError, match="apply_mask was called"):
        names.apply_mask(1)
    with pytest.raises(AttributeError):
        _ = names.__path__


def test_sizes_are_those_of_their_configuration() -> None:
    assert isinstance(SIZES, LlamaConfig)
    wide = -(-2 * 4 * SIZES.hidden // 3 // 256) * 256
    assert (SIZES.inner, SIZES.kv_heads, SIZES.head) == (wide, SIZES.heads, 128)
    assert [plan.dp * plan.tp * plan.pp for plan in PLANS] == [8, 512]
