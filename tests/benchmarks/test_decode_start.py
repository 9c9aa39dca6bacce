"""From a process's start to its answer: which time a case is, the memory bar, and the real script."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.runtime.small_models import write_small_gguf

from tensure.benchmarks import _decode_start, _engine_float, _first_token
from tensure.benchmarks._decode_start import _SPANS, COLD, LOAD, MEMORY, StartOfDecode, memory_bars
from tensure.benchmarks._records import Bar, Case, EngineError, Measured, NotMeasured, Row
from tensure.benchmarks._statistics import spread
from tensure.benchmarks._text_cases import same_logits

MIB = 1 << 20


def case(span: str, **params: object) -> Case:
    return Case(span, 1, params={"span": span, "prompt": [1, 2, 3], "tokens": 2, **params})


def printing(code: str) -> StartOfDecode:
    return StartOfDecode(lambda case, logits: [sys.executable, "-S", "-c", code])


MARKS = """
import json, time
now = time.monotonic()
marks = {"imported": (now, 0.5), "loaded": (now + 1, 0.75), "first": (now + 3, 1.0), "last": (now + 7, 9.0)}
print(json.dumps({"marks": marks, "weight_bytes": 5, "cache_bytes": 3, "peak_rss_bytes": 9}))
"""


def test_a_case_is_the_time_between_two_marks() -> None:
    engine = printing(MARKS)
    wanted = {"load": (1.0, 0.25), "first token, modules imported": (3.0, 0.5)}
    for span, (wall, cpu) in wanted.items():
        timing = engine.run(case(span))
        assert (timing.wall_s, timing.cpu_s) == (pytest.approx(wall), cpu)
    cold, whole = engine.run(case(COLD)), engine.run(case(MEMORY))
    assert 3.0 < cold.wall_s < 10.0 and cold.cpu_s == 1.0
    assert whole.wall_s > 7.0 and whole.cpu_s == 9.0
    assert engine.facts() == {"weight_bytes": 5, "cache_bytes": 3, "peak_rss_bytes": 9}
    engine.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such model')", "ended with 1: no such model"),
        ("print('hello')", "printed 'hello"),
    ],
)
def test_trouble_is_an_engine_error(code: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        printing(code).run(case(LOAD))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_real_process_on_a_small_model(tmp_path: Path, mode: str) -> None:
    """Its first logits are the float model's, its marks come in order, its cache is the pages it used."""
    path = str(write_small_gguf(tmp_path / "small.gguf"))
    prompt = [5, 6, 7, 8]

    def command(case: Case, logits: bool) -> Sequence[str]:
        asked = json.dumps({"prompt": prompt, "tokens": 20, "logits": logits})
        return [sys.executable, "-P", str(_first_token.__file__), mode, path, "1", asked]

    engine = StartOfDecode(command)
    params = {"prompts": [prompt], "forced": [1]}
    wanted = _engine_float.setup(path).check({"params": params})[:1]
    name = "tensure" if mode == "exact" else "tensure fast"
    assert same_logits(Case("c", 1), name, wanted, engine.check(case(MEMORY))) is None
    times = [engine.run(case(span)).wall_s for span in _SPANS]
    assert all(0 < seconds < 60 for seconds in times)
    facts = engine.facts()
    assert facts["cache_bytes"] % 2 == 0 and facts["cache_bytes"] > 0
    assert facts["peak_rss_bytes"] > facts["weight_bytes"] + facts["cache_bytes"]


def test_the_script_loads_no_torch() -> None:
    code = (
        f"import runpy, sys; script = runpy.run_path({_first_token.__file__!r}); "
        "script['import_tensure']('fast'); sys.exit('torch' in sys.modules)"
    )
    done = _decode_start.subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_memory_bar_is_what_is_beyond_weights_and_cache() -> None:
    memory = case(MEMORY)

    def row(engine: str, peak: int) -> Row:
        facts = {"weight_bytes": 90 * MIB, "cache_bytes": 10 * MIB, "peak_rss_bytes": peak * MIB}
        return Row(MEMORY, engine, 1, "ms", spread([1.0]), 1.0, {}, None, facts)

    bars = memory_bars([case(LOAD), memory], Measured(rows=[row("tensure", 164), row("tensure fast", 165)]))
    assert [(bar.value, bar.met) for bar in bars if isinstance(bar, Bar)] == [(64.0, True), (65.0, False)]
    (_, gap) = memory_bars([memory], Measured(rows=[row("tensure", 164)]))
    assert isinstance(gap, NotMeasured) and "without tensure fast" in gap.reason
