"""onnx's own node tests, in numpy and torch: enough pass, docs/onnx.md names every one that does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tensure.program._onnx_ops import _table, onnx_rows
from tensure.program._onnx_ops._builder import Tensor

<<<<<<< HEAD
from tensure.benchmarks._onnx_nodes import IN_PART, NodeTest, Verdict, counts, judge, judge_all, listed_tests
=======
from . import onnx_nodes
from .onnx_nodes import IN_PART, NodeTest, Verdict, counts, judge, judge_all, listed_tests
>>>>>>> onnx

pytest.importorskip("onnx")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "onnx_table.py"
MUST_PASS: Final = 0.95
MUST_LIST: Final = 90


@pytest.fixture(scope="module")
def tests() -> list[NodeTest]:
    return listed_tests()


@pytest.fixture(scope="module")
def verdicts(tests: list[NodeTest]) -> dict[str, Verdict]:
    return judge_all(tests)


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("onnx_table", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_every_test_that_does_not_pass(
    tests: list[NodeTest], verdicts: dict[str, Verdict]
) -> None:
    page = tool().PAGE.read_text(encoding="utf-8")
    assert page == tool().page(onnx_nodes, tests, verdicts), "run python tools/onnx_table.py"
    _, _, tail = page.partition("## Tests that do not pass")
    for test in tests:
        assert (f"`{test.name.removeprefix('test_')}`" in tail) == (verdicts[test.name].kind != "passed")


def test_enough_op_types_are_listed_and_enough_of_their_tests_pass(
    tests: list[NodeTest], verdicts: dict[str, Verdict]
) -> None:
    tested = {test.group for test in tests} - IN_PART - {"(expanded)"}
    assert len(tested) >= MUST_LIST
    for kind in ("whole", "expanded"):
        passed, every = counts(tests, verdicts, kind)
        assert passed >= MUST_PASS * every, kind


def test_nothing_comes_out_wrong_but_where_the_wanted_values_are(verdicts: dict[str, Verdict]) -> None:
    """A refusal is an answer; a wrong value is not. numpy's own complex64 transform is off at its zeros."""
    wrong = {name for name, verdict in verdicts.items() if verdict.kind == "wrong"}
    assert wrong == {"test_dft_inverse", "test_dft_inverse_opset19"}


def test_most_tests_run_on_inputs_that_are_not_known_at_import(verdicts: dict[str, Verdict]) -> None:
    """A graph all of whose inputs are known is folded: that shows the numpy semantics and little else."""
    assert sum(v.kind == "passed" and v.given == 0 for v in verdicts.values()) >= 1000


# --- the harness sees faults ----------------------------------------------------------------------


Change = Callable[[list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]]

FAULTS: Final[dict[str, Change]] = {
    "Sub": lambda x, a: (x[::-1], a),
    "Conv": lambda x, a: (x, {**a, "strides": None}),
    "Softmax": lambda x, a: (x, {**a, "axis": 0}),
    "LSTM": lambda x, a: ([*x[:3], None, *x[4:]], a),
    "LayerNormalization": lambda x, a: (x, {**a, "epsilon": 1.0}),
    "Resize": lambda x, a: (x, {**a, "coordinate_transformation_mode": "asymmetric"}),
    "ReduceSum": lambda x, a: (x, {**a, "keepdims": 1 - a["keepdims"]}),
    "Slice": lambda x, a: ([*x[:4], None], a),
    "Gemm": lambda x, a: (x, {**a, "transB": 1 - a["transB"]}),
    "QuantizeLinear": lambda x, a: ([x[0], x[1], None], a),
    "TopK": lambda x, a: (x, {**a, "largest": 1 - a["largest"]}),
    "GatherElements": lambda x, a: (x, {**a, "axis": 0}),
    "AveragePool": lambda x, a: (x, {**a, "count_include_pad": 1 - a["count_include_pad"]}),
}


@pytest.mark.parametrize("op_type", FAULTS)
def test_a_wrong_translation_is_seen(
    op_type: str, tests: list[NodeTest], verdicts: dict[str, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = onnx_rows()["", op_type]

    def changed(b: Any, x: list[Any], a: dict[str, Any]) -> Any:
        return row.translate(b, *FAULTS[op_type](x, a))

    monkeypatch.setitem(_table._ROWS, ("", op_type), replace(row, translate=changed))
    own = [test for test in tests if test.group == op_type]
    assert any(judge(test) != verdicts[test.name] for test in own)
    assert any(verdicts[test.name].kind == "passed" for test in own)


def test_a_value_slightly_off_is_seen(tests: list[NodeTest], monkeypatch: pytest.MonkeyPatch) -> None:
    row = onnx_rows()["", "Sigmoid"]

    def changed(b: Any, x: list[Tensor], a: dict[str, Any]) -> Any:
        return b.op("mul", row.translate(b, x, a), 1.002)

    monkeypatch.setitem(_table._ROWS, ("", "Sigmoid"), replace(row, translate=changed))
    found = [judge(test) for test in tests if test.group == "Sigmoid"]
    assert found and all(verdict.kind == "wrong" for verdict in found)
