"""An engine in its own process: answers, errors, crashes, silence; nothing is left behind."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tensure.benchmarks._child import ChildEngine, child_environment
from tensure.benchmarks._records import Case, EngineError, Scope, Timing
from tensure.benchmarks._serve import serve
from tensure.errors import InputError

CASE = Case("c", 2, params={"prompt": [1, 2]})

ECHO = """
import json, sys
print(json.dumps({"ok": "ready"}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if message["do"] == "close": break
    if message["do"] == "run": print(json.dumps({"ok": {"wall_s": 1.5, "cpu_s": 3}}), flush=True)
    elif message["do"] == "facts": print(json.dumps({"ok": {"weight_bytes": 7}}), flush=True)
    else: print(json.dumps({"ok": message["case"]}), flush=True)
"""

TWO_ONES = """
import sys
print('{"ok": 1}', flush=True)
for line in sys.stdin:
    if "close" in line: break
    print('{"ok": 1}', flush=True)
"""


def child(code: str, answer_s: float = 60.0) -> ChildEngine:
    return ChildEngine([sys.executable, "-S", "-c", code], answer_s=answer_s)


def test_asks_and_closes() -> None:
    with child(ECHO) as engine:
        assert engine.check(CASE) == {"name": "c", "threads": 2, "params": {"prompt": [1, 2]}}
        assert engine.run(CASE) == Timing(1.5, 3.0)
        assert engine.facts() == {"weight_bytes": 7}
    assert engine._process.returncode == 0
    engine.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no such file: model.gguf')", "exit code 1.*no such file: model.gguf"),
        ("print('hello', flush=True); import time; time.sleep(9)", "answered b'hello'"),
        ('print(\'{"error": "out of memory"}\', flush=True); import time; time.sleep(9)', "out of memory"),
        ("print('{}', flush=True); import time; time.sleep(9)", "answered b'{}'"),
        ("import os; os._exit(3)", "exit code 3.*it wrote nothing"),
        (TWO_ONES, "timing is 1"),
    ],
)
def test_trouble_is_an_engine_error(code: str, message: str) -> None:
    with child(code) as engine, pytest.raises(EngineError, match=message):
        engine.run(CASE)
    assert engine._process.returncode is not None


def test_silence_ends() -> None:
    silent = child("import time; time.sleep(60)", answer_s=0.05)
    with silent as engine, pytest.raises(EngineError, match="no answer within"):
        engine.check(CASE)
    assert engine._process.returncode is not None


def test_command_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="cannot be started"):
        ChildEngine(["/nonexistent/python"])


def test_pools_are_equal() -> None:
    env = child_environment(Scope(False, (1, 2)))
    assert {env[key] for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"2"}


class Answering:
    """What `_serve` serves."""

    def check(self, case: object) -> object:
        if case == "bad":
            raise InputError("the case is bad")
        return case

    def facts(self) -> dict[str, int]:
        return {"n": 1}


def conversation(*messages: object) -> list[object]:
    answers = io.BytesIO()
    serve(Answering, io.BytesIO(b"".join(json.dumps(m).encode() + b"\n" for m in messages)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_serving() -> None:
    asked = [{"do": "check", "case": 5}, {"do": "check", "case": "bad"}, {"do": "facts", "case": None}]
    assert conversation(*asked, {"do": "close", "case": None}, {"do": "facts", "case": None}) == [
        {"ok": "ready"},
        {"ok": 5},
        {"error": "the case is bad"},
        {"ok": {"n": 1}},
    ]


def test_serving_refuses_other_requests() -> None:
    (_, answer) = conversation({"do": "__init__", "case": None})
    assert isinstance(answer, dict) and "request '__init__'" in answer["error"]
