"""Several sequences at once: what is timed and compared, on small cores; vLLM's script on a vLLM of ours."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.runtime.paged_core import PagedCore
from tests.runtime.small_models import write_small_gguf

from tensure.benchmarks import _decode_batch, _engine_batch, _engine_float, _peer_vllm
from tensure.benchmarks._decode_batch import BATCH, VLLM_VARIABLE, VllmProcesses, batch_bars, vllm_missing
from tensure.benchmarks._engine_batch import BatchEngine
from tensure.benchmarks._hf_folder import write_hf_folder
from tensure.benchmarks._records import Bar, Case, EngineError, Measured, NotMeasured, Row, Scope
from tensure.benchmarks._statistics import spread
from tensure.benchmarks._text_cases import same_logits
from tensure.benchmarks._text_engine import unpack
from tensure.errors import InputError

PROMPTS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def case(**params: object) -> dict[str, Any]:
    base = {"prompts": PROMPTS, "forced": [20, 21, 22], "tokens": 5}
    return {"name": "c", "threads": 1, "params": {**base, **params}}


class Counting(PagedCore):
    """Writes down the rows of each step."""

    def __init__(self) -> None:
        super().__init__(num_pages=12, page_tokens=4)
        self.sizes: list[int] = []

    def step(self, rows: Any) -> Any:
        self.sizes.append(rows.num_rows)
        return super().step(rows)


def test_times_tokens_of_all_sequences_after_their_first() -> None:
    core = Counting()
    made: list[tuple[int, int]] = []

    def make_core(batch: int, threads: int) -> PagedCore:
        made.append((batch, threads))
        return core

    engine = BatchEngine(make_core, {"computes": "links"}, clock=lambda: float(len(core.sizes)))
    assert engine.run(case())["wall_s"] == 5.0  # steps between the two readings of the clock
    assert core.sizes == [12, 3, 3, 3, 3, 3]
    again = engine.run(case())
    assert core.sizes[6:] == [12, 3, 3, 3, 3, 3], "a prompt was found in a cache"
    assert again["wall_s"] == 5.0 and made == [(3, 1)]
    assert engine.facts()["computes"] == "links" and engine.facts()["peak_rss_bytes"] > 0


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_small_model_through_the_engine_is_the_float_model(tmp_path: Path, mode: str) -> None:
    """Each sequence's logits after its prompt and after its own forced token; and faults are seen.

    A model of random weights blows up what a cache of halves rounds away: fast's tolerance for both modes.
    """
    path = str(write_small_gguf(tmp_path / "small.gguf"))
    name = "tensure fast"
    wanted = _engine_float.setup(path).check(case())
    engine = _engine_batch.setup(path, mode)
    found = engine.check(case())
    assert len(found) == 6 and same_logits(Case("c", 1), name, wanted, found) is None
    assert same_logits(Case("c", 1), name, wanted, engine.check(case(forced=[22, 21, 20]))) is not None
    swapped = [PROMPTS[1], PROMPTS[0], PROMPTS[2]]
    assert same_logits(Case("c", 1), name, wanted, engine.check(case(prompts=swapped))) is not None
    assert engine.run(case())["wall_s"] > 0
    with pytest.raises(InputError, match="mode is 'quick'"):
        _engine_batch.setup(path, "quick")


# --- vLLM ---------------------------------------------------------------------------------------------------

VOCAB = 30


class FakeEngine:
    """vLLM's engine: a step gives each request a token and a row of log-probabilities."""

    model_config = SimpleNamespace(get_vocab_size=lambda: VOCAB)

    def __init__(self) -> None:
        self.requests: dict[str, tuple[list[int], Any, list[int], list[Any]]] = {}

    def add_request(self, name: str, prompt: Mapping[str, Any], params: Any) -> None:
        self.requests[name] = (prompt["prompt_token_ids"], params, [], [])

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        outputs = []
        for name, (prompt, params, made, rows) in list(self.requests.items()):
            token = params.allowed_token_ids[0] if params.allowed_token_ids else len(made)
            total = sum(prompt) + sum(made)
            rows.append({i: SimpleNamespace(logprob=float(total + i)) for i in reversed(range(VOCAB))})
            made.append(token)
            finished = len(made) == params.max_tokens
            if finished:
                del self.requests[name]
            output = SimpleNamespace(token_ids=list(made), logprobs=list(rows))
            outputs.append(SimpleNamespace(request_id=name, outputs=[output], finished=finished))
        return outputs[::-1]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module: Any = ModuleType("vllm")
    module.__version__ = "0"
    module.SamplingParams = lambda **given: SimpleNamespace(**given)
    module.LLM = lambda **given: SimpleNamespace(llm_engine=FakeEngine())
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    return tmp_path


def ask(folder: Path, *messages: object) -> list[Any]:
    answers = io.BytesIO()
    requests = io.BytesIO(b"".join(json.dumps(m).encode() + b"\n" for m in messages))
    _peer_vllm.serve(str(folder), "64", "8", requests, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_vllm_script_speaks_the_lines_and_gives_rows_in_order(fake_vllm: Path) -> None:
    asked = [{"do": do, "case": c} for do, c in (("check", case()), ("run", case()), ("facts", None))]
    ready, checked, ran, facts = ask(fake_vllm, *asked, {"do": "close", "case": None}, {"do": "run"})
    assert ready == {"ok": "ready"}
    first = [float(unpack(text)[0]) for text in checked["ok"]]
    assert first == [10.0, 30.0, 26.0, 47.0, 42.0, 64.0]
    assert unpack(checked["ok"][0]).tolist() == [10.0 + i for i in range(VOCAB)]
    assert ran["ok"]["wall_s"] > 0 and ran["ok"]["cpu_s"] >= 0
    assert facts["ok"]["weight_bytes"] == 5 and facts["ok"]["version"] == "vllm 0"


def test_vllm_script_imports_nothing_of_ours() -> None:
    text = Path(_peer_vllm.__file__).read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if "import" in line.split() and "tensure" in line]
    assert "from ." not in text


def test_vllm_that_is_not_there_is_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VLLM_VARIABLE, raising=False)
    assert f"{VLLM_VARIABLE} names no environment" in str(vllm_missing())
    monkeypatch.setenv(VLLM_VARIABLE, str(tmp_path))
    assert "which has no bin/python" in str(vllm_missing())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert vllm_missing() is None
    with pytest.raises(EngineError, match="longer than a quick run"):
        VllmProcesses(Scope(True, (1,), batches=(8,)))


def test_vllm_has_a_process_for_each_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for its python says what it was started with."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "python"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "print(json.dumps({'ok': 'ready'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'close' in line: break\n"
        "    print(json.dumps({'ok': [sys.argv[1:], dict(os.environ)]}), flush=True)\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv(VLLM_VARIABLE, str(tmp_path))
    monkeypatch.setattr(_decode_batch, "_checkpoint", lambda: "/checkpoint")
    engine = VllmProcesses(Scope(False, (1, 2), batches=(4, 8)))
    assert engine.facts() == {}
    for threads in (1, 2):
        args, env = engine.check(Case("c", threads))
        assert args[0] == "-P" and args[2:] == ["/checkpoint", "2048", "8"]
        assert env["OMP_NUM_THREADS"] == str(threads) and env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    engine.close()
    engine.close()


def test_checkpoint_is_the_model_in_bf16(tmp_path: Path) -> None:
    """Read by transformers, the logits are those of the float model but for the rounding of weights."""
    transformers = pytest.importorskip("transformers")
    import torch

    path = str(write_small_gguf(tmp_path / "small.gguf"))
    folder = tmp_path / "hf"
    folder.mkdir()
    write_hf_folder(path, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPTS[0], 20]])).logits[0, -2:].numpy()
    wanted = [unpack(text) for text in _engine_float.setup(path).check(case())[:2]]
    for a, b in zip(wanted, logits, strict=True):
        assert np.abs(a - b).max() < 0.02 * np.abs(a).max()


# --- bars ---------------------------------------------------------------------------------------------------


def measured(names: Sequence[str], ratio: float) -> Measured:
    rows = [
        Row(
            "c",
            name,
            1,
            "tok/s",
            spread([1.0]),
            1.0,
            {other: ratio for other in names if other != name},
            None,
            {},
        )
        for name in names
    ]
    return Measured(rows=rows)


def test_bar_is_fast_over_vllm_for_eight_sequences() -> None:
    eight = Case("c", 1, params={"prompts": [[1]] * BATCH})
    (bar,) = batch_bars([eight], measured(["tensure", "tensure fast", "vLLM"], 1.29))
    assert isinstance(bar, Bar) and bar.name == "c: tensure fast over vLLM" and not bar.met
    (gap,) = batch_bars([eight], measured(["tensure", "tensure fast"], 1.29))
    assert isinstance(gap, NotMeasured) and gap.reason == "without vLLM" and not gap.wrong
    assert not batch_bars([Case("c", 1, params={"prompts": [[1]]})], measured(["tensure fast", "vLLM"], 2.0))
