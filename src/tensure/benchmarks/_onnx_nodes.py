"""onnx's own node tests as cases: import each, run it in numpy and in torch, say what came of it.

A test's model is read from its bytes by our reader. Inputs that a translation must know (shapes, axes) are
given as values: first none is, then all but the first input, then all; what is not given goes in when the
Program runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from tensure.errors import TensureError
from tensure.host import Runner, load_weights
from tensure.program import DTYPES, Model, evaluate_program
from tensure.program.from_onnx import OPSETS, OnnxModel, import_onnx, onnx_rows, read_onnx_bytes

HALVES: Final = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Relative tolerance of the half types: a few units in the last place, since sums round elsewhere."""


IN_PART: Final = frozenset(
    "BitCast Cast CastLike DequantizeLinear QuantizeLinear ConcatFromSequence OptionalGetElement "
    "OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert "
    "SequenceLength SplitToSequence".split()
)
"""Op types listed only in the dtypes and kinds a Program has, which most of their tests are not about."""


@dataclass(frozen=True)
class NodeTest:
    """One of onnx's tests: a graph of one node, or of the nodes a function op stands for (`_expanded`)."""

    name: str
    op_types: tuple[str, ...]
    model: bytes
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rtol: float
    atol: float

    @property
    def group(self) -> str:
        """The op type of a graph of one node; `(expanded)` for others."""
        return self.op_types[0] if len(self.op_types) == 1 and "_expanded" not in self.name else "(expanded)"


@dataclass(frozen=True)
class Verdict:
    """What came of one test: `passed`, `refused` (a TensureError said no) or `wrong`."""

    kind: str
    why: str = ""
    given: int = 0
    """How many inputs were given as values."""


def listed_tests() -> list[NodeTest]:
    """Every node test of onnx whose op types all stand in our table."""
    rows = onnx_rows()
    return [test for test in _collect() if all(("", op) in rows for op in test.op_types)]


def _collect() -> Iterator[NodeTest]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        for case in collect_testcases(None):
            graph = case.model.graph
            if any(node.domain not in ("", "ai.onnx") for node in graph.node):
                continue
            given, wanted = case.data_sets[0]
            yield NodeTest(
                case.name,
                tuple(node.op_type for node in graph.node),
                case.model.SerializeToString(),
                dict(zip((item.name for item in graph.input), map(_array, given), strict=False)),
                dict(zip((item.name for item in graph.output), map(_array, wanted), strict=False)),
                case.rtol,
                case.atol,
            )


def _array(value: Any) -> Any:
    """Scalars and TensorProtos as arrays; sequences and absent optionals as they are."""
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "raw_data"):
        from onnx import numpy_helper

        return numpy_helper.to_array(value)
    return value


def judge_all(tests: Sequence[NodeTest]) -> dict[str, Verdict]:
    """The verdict of each test by name."""
    return {test.name: judge(test) for test in tests}


def counts(tests: Sequence[NodeTest], verdicts: Mapping[str, Verdict], kind: str) -> tuple[int, int]:
    """(passed, all) of the tests of op types listed `whole`, in `part`, or of `expanded` graphs."""

    def kind_of(test: NodeTest) -> str:
        if IN_PART.issuperset(test.op_types):
            return "part"
        return "expanded" if test.group == "(expanded)" else "whole"

    chosen = [test for test in tests if kind_of(test) == kind]
    return sum(verdicts[test.name].kind == "passed" for test in chosen), len(chosen)


def judge(test: NodeTest, *, in_torch: bool = True) -> Verdict:
    """Import and run one test."""
    values = [*test.inputs.values(), *test.outputs.values()]
    foreign = sorted({_dtype_word(value) for value in values} - set(DTYPES))
    try:
        model = read_onnx_bytes(test.model, opsets=OPSETS)
        program, fixed = _imported(model, test.inputs)
    except TensureError as error:
        return Verdict("refused", f"no Program holds {', '.join(foreign)}" if foreign else _reason(error))
    entered = [_carried(value) for key, value in test.inputs.items() if key not in fixed]
    inputs = dict(zip(map(str, program.program.entry().inputs), entered, strict=True))
    weights = {key: stored.decode() for key, stored in program.weights.items()}
    try:
        found = [evaluate_program(program.program, {**inputs, **weights}).outputs]
        if in_torch:
            found.append(run_in_torch(program, inputs))
    except TensureError as error:
        return Verdict("wrong", f"raises {error}", len(fixed))
    for where, results in zip(("numpy", "torch"), found, strict=False):
        if (difference := _difference(test, list(results.values()))) is not None:
            return Verdict("wrong", f"{where}: {difference}", len(fixed))
    return Verdict("passed", given=len(fixed))


def _carried(value: Any) -> Any:
    """Of uint16 and uint32 the values in the dtype that a Program holds them in."""
    carrier = {"uint16": np.int32, "uint32": np.int64}.get(str(value.dtype))
    return value if carrier is None else value.astype(carrier)


def _dtype_word(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return "a sequence or optional"
    by_dtype = {dtype: name for name, dtype in DTYPES.items()}
    return by_dtype.get(value.dtype, "strings" if value.dtype.kind in "OUS" else str(value.dtype))


def _reason(error: TensureError) -> str:
    return error.found.removeprefix("Dropout: ")


def _imported(model: OnnxModel, inputs: dict[str, Any]) -> tuple[Model, Sequence[str]]:
    keys = list(inputs)
    for fixed in ([], keys[1:], keys):
        arrays = {key: value for key, value in inputs.items() if isinstance(value, np.ndarray)}
        given = {key: value if key in fixed else value.shape for key, value in arrays.items()}
        try:
            return import_onnx(model, inputs=given), fixed
        except TensureError:
            if fixed == keys:
                raise
    raise AssertionError("the last try either returns or raises")


def run_in_torch(model: Model, inputs: dict[str, Any]) -> dict[str, Any]:
    """The Program's outputs by the torch host, as arrays; bf16 by way of float32."""
    runner = Runner(model.program, load_weights(model.weights))
    outputs, _ = runner.run({key: _to_torch(value) for key, value in inputs.items()})
    return {key: _from_torch(value) for key, value in outputs.items()}


def _to_torch(value: Any) -> torch.Tensor:
    copied = np.array(value, order="C")
    if copied.dtype == DTYPES["bf16"]:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def _from_torch(value: torch.Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        return value.float().numpy().astype(DTYPES["bf16"])
    return value.numpy()


def _difference(test: NodeTest, results: list[Any]) -> str | None:
    for have, (name, want) in zip(results, test.outputs.items(), strict=False):
        want = _carried(want)
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"{name} is {have.dtype}{list(have.shape)}, not {want.dtype}{list(want.shape)}"
        if have.dtype.kind in "iub":
            same = np.array_equal(have, want)
        else:
            rtol = max(test.rtol, HALVES.get(have.dtype.name, 0.0))
            a, b = have.astype(np.float64), want.astype(np.float64)
            same = np.allclose(a, b, rtol=rtol, atol=test.atol, equal_nan=True)
        if not same:
            worst = np.abs(have.astype(np.float64) - want.astype(np.float64)).max()
            return f"{name} is off by up to {worst:.1e}"
    return None
