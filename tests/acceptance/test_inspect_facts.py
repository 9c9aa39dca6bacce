"""What is told of each step and tensor, held against numpy and against torch's own word for it.

Legend: N rows, D columns.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.acceptance.inspect_models import exported_kind, inputs_of, line_of, made
from torch import nn

import tensure

HERE = Path(__file__)


def run_of(code: Any, **options: Any) -> Any:
    """The trace of a function without arguments."""
    with tensure.watch(**options) as run:
        code()
    return run.trace


def last(trace: Any, op: str) -> tuple[Any, Any]:
    """The last step of an op, and the facts of its first result."""
    step = [step for step in trace.steps if step.op == op][-1]
    return step, trace.tensors[step.outs[0]]


# --- steps ---------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.head = nn.ModuleDict({"out": nn.Linear(6, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        z = torch.tanh(y) * 3  # scaled
        return self.head["out"](z)


def test_index_module_op_line_and_reads() -> None:
    model, x = Net(), torch.randn(3, 4)
    trace = tensure.inspect(model, x).trace
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    ops = [(step.op, step.module) for step in trace.steps if step.op not in {"t", "detach"}]
    assert ops == [
        ("addmm", "body.0"),
        ("relu", "body.1"),
        ("tanh", ""),
        ("mul", ""),
        ("addmm", "head.out"),
    ]
    tanh, mul = (next(step for step in trace.steps if step.op == op) for op in ("tanh", "mul"))
    assert tanh.source.endswith(line_of("scaled", HERE))
    assert mul.source.endswith(line_of("scaled", HERE))
    assert mul.reads == tanh.outs
    assert ("other", 3) in mul.arguments
    first = next(step for step in trace.steps if step.op == "addmm")
    assert {"x", "body.0.bias"} <= set(first.reads)
    assert trace.outputs and set(trace.outputs.values()) == set(trace.steps[-1].outs)
    assert all(step.phase == "forward" and step.seconds >= 0 for step in trace.steps)


def test_every_value_is_what_torch_computes() -> None:
    model, x = Net(), torch.randn(3, 4)
    recording = tensure.inspect(model, x, keep=True)
    trace = recording.trace
    y = torch.relu(x @ model.body[0].weight.T + model.body[0].bias)
    (relu,) = [step for step in trace.steps if step.op == "relu"]
    assert torch.allclose(recording[relu.outs[0]], y, atol=1e-6)
    (out,) = trace.outputs
    assert torch.equal(recording[out], model(x))
    assert torch.equal(recording["x"], x)
    assert torch.equal(recording["body.0.weight"], model.body[0].weight)
    assert recording.step_of(relu.outs[0]) is relu


def test_leaves_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(3, 4)
    constant = torch.ones(4)
    trace = tensure.inspect(lambda x: model(x) * constant, x).trace
    assert trace.tensors["x"].origin == "input"
    with tensure.watch(model, inputs={"x": x}) as run:
        model(x) * constant
    leaves = {facts.name: facts.origin for facts in run.trace.leaves()}
    assert leaves["x"] == "input"
    assert leaves["0.weight"] == leaves["0.bias"] == "weight"
    assert {"1.running_mean", "1.running_var"} <= set(leaves)
    others = {
        name: origin for name, origin in leaves.items() if not name.startswith(("0.", "1.")) and name != "x"
    }
    assert list(others.values()) == ["constant"]
    assert all(facts.step == -1 for facts in run.trace.leaves())


@pytest.mark.parametrize("kind", ["cnn", "decoder"])
def test_a_program_tells_the_same_facts(kind: str) -> None:
    model, inputs = exported_kind(kind, normalise=False), inputs_of(kind)
    recording = tensure.inspect(model, inputs, digest=True, keep=True)
    trace = recording.trace
    eager = made(kind)(*inputs.values())
    (out,) = trace.outputs
    assert torch.allclose(recording[out], eager, atol=1e-5)
    assert {step.module for step in trace.steps} >= {"", "norm1", "norm2"}
    sources = {step.source.partition(":")[0] for step in trace.steps if step.module}
    assert sources == {"inspect_models.py"}
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    for name, facts in trace.tensors.items():
        assert_facts(facts, recording[name])


def test_a_program_names_a_line_of_forward() -> None:
    """A helper that `forward` calls: torch.export notes the line in `forward`, and that is all there is."""
    steps = tensure.inspect(exported_kind("decoder", normalise=False), inputs_of("decoder")).trace.steps
    (softmax,) = [step for step in steps if step.op == "softmax"]
    assert softmax.source == line_of("attended")


@pytest.mark.parametrize("by", ["torch", "reference", "kernels"])
def test_every_way_of_running_tells_facts(by: Any) -> None:
    model, inputs = exported_kind("cnn", "whole"), inputs_of("cnn")
    recording = tensure.inspect(model, inputs, by=by, digest=True, keep=True)
    trace = recording.trace
    wanted = made("cnn", "whole")(*inputs.values())
    (out,) = trace.outputs
    assert torch.allclose(recording[out], wanted, atol=1e-4)
    assert any("conv" in step.op for step in trace.steps)
    for name, facts in trace.tensors.items():
        assert facts.digest is not None and len(facts.digest) == 32
        assert_statistics(facts.statistics, recording[name])
        assert facts.shape == tuple(recording[name].shape)


# --- shapes, dtypes, memory ----------------------------------------------------------------------------

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def assert_statistics(found: Any, value: torch.Tensor) -> None:
    """Against numpy, in float64."""
    array = value.detach().contiguous()
    wide = array.to(torch.float64 if not value.is_complex() else torch.complex128).numpy().reshape(-1)
    if value.is_complex():
        wide = wide.view(np.float64)
    finite = wide[np.isfinite(wide)]
    assert found.count == wide.size
    assert (found.nans, found.infinities) == (np.isnan(wide).sum(), np.isinf(wide).sum())
    assert found.zeros == (wide == 0).sum()
    bad = np.flatnonzero(~np.isfinite(wide))
    assert found.first_nonfinite == (int(bad[0]) if bad.size else None)
    if value.dtype.is_floating_point:
        tiny = torch.finfo(value.dtype).tiny
        assert found.denormals == ((finite != 0) & (abs(finite) < tiny)).sum()
    if not finite.size:
        assert found.minimum is found.maximum is found.mean is found.std is None and found.l2 == 0
        return
    scale = abs(finite).max() * 1e-9 + 1e-300
    assert found.minimum == finite.min() and found.maximum == finite.max()
    assert found.mean == pytest.approx(finite.mean(), rel=1e-9, abs=scale)
    assert found.std == pytest.approx(finite.std(), rel=1e-6, abs=scale)
    assert found.l2 == pytest.approx(math.sqrt(math.fsum(finite * finite)), rel=1e-9)


def assert_facts(facts: Any, value: torch.Tensor) -> None:
    assert facts.shape == tuple(value.shape)
    assert facts.rank == value.dim() and facts.size == value.numel()
    assert facts.dtype == {dtype: name for name, dtype in DTYPES.items()}[value.dtype]
    assert facts.device == "cpu" and facts.layout == "strided"
    assert facts.nbytes == value.numel() * value.element_size()
    assert_statistics(facts.statistics, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 4), (1, 1, 1, 1, 5)])
def test_every_dtype_and_rank(dtype: str, shape: tuple[int, ...]) -> None:
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3).to(DTYPES[dtype])
    recording = tensure.inspect(lambda x: x.clone(), value, digest=True, keep=True)
    (step,) = recording.trace.steps
    for name in ("x", *step.outs):
        assert_facts(recording.trace.tensors[name], value)
        assert torch.equal(recording[name], value)
        assert recording.trace.tensors[name].type.startswith(f"{dtype}[")
    assert recording.trace.tensors["x"].digest == recording.trace.tensors[step.outs[0]].digest


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_values(dtype: torch.dtype) -> None:
    value = torch.randn(3, 4, dtype=dtype)
    value[1, 2] = complex(float("nan"), 1)
    value[0, 0] = 0
    trace = tensure.inspect(lambda x: x.conj().resolve_conj() * 2, value, digest=True).trace
    facts = trace.tensors["x"]
    assert facts.nbytes == value.numel() * value.element_size()
    assert_statistics(facts.statistics, value)
    _, product = last(trace, "mul")
    assert_statistics(product.statistics, value.conj().resolve_conj() * 2)


LAYOUTS: dict[str, tuple[Any, str]] = {
    "contiguous": (lambda x: x * 1, "contiguous"),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), "channels_last"),
    "transpose": (lambda x: x.transpose(1, 2), "permuted"),
    "expand": (lambda x: x[:, :1].expand(2, 6, 4, 5), "broadcast"),
    "step": (lambda x: x[:, ::2, ::2], "gapped"),
    "narrow": (lambda x: x[:, 1:2, :, 1:4], "gapped"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_strides_contiguity_and_layout(name: str) -> None:
    code, memory = LAYOUTS[name]
    x = torch.randn(2, 3, 4, 5)
    recording = tensure.inspect(code, {"x": x}, keep=True, digest=True)
    wanted = code(x)
    facts = recording.trace.tensors[recording.trace.steps[-1].outs[0]]
    assert facts.strides == wanted.stride()
    assert facts.offset == wanted.storage_offset()
    assert facts.memory == memory
    assert (facts.memory == "contiguous") == wanted.is_contiguous()
    assert torch.equal(recording[facts.name], wanted)
    assert_facts(facts, wanted)


def test_a_view_shares_its_storage_and_a_copy_does_not() -> None:
    x = torch.randn(4, 6)
    trace = run_of(lambda: (x.t(), x[1:], x.view(24), x.clone(), x + 1), inputs={"x": x})
    root = trace.tensors["x"]
    by_op = {step.op: trace.tensors[step.outs[0]] for step in trace.steps}
    assert root.alias_of is None and not root.in_place
    for op in ("t", "slice", "view"):
        assert by_op[op].storage == root.storage
        assert by_op[op].alias_of == "x"
        assert not by_op[op].in_place
    assert by_op["slice"].offset == 6
    for op in ("clone", "add"):
        assert by_op[op].storage != root.storage
        assert by_op[op].alias_of is None
    assert by_op["clone"].storage != by_op["add"].storage


def test_a_write_through_an_alias_makes_new_names() -> None:
    """Every later reader reads a new name, whichever of the aliases it goes through."""
    x = torch.zeros(4, 6)

    def code() -> None:
        view = x.view(24)
        x.sum()
        view.add_(1)  # the write
        view.prod()
        x.mean()

    recording_of = tensure.watch(inputs={"x": x}, keep=True)
    with recording_of as run:
        code()
    trace, recording = run.trace, run.recording()
    steps = {step.op: step for step in trace.steps}
    write = steps["add_"]
    assert write.source.endswith(line_of("the write", HERE))
    assert write.wrote
    written = trace.tensors[write.outs[0]]
    assert written.in_place and written.storage == trace.tensors["x"].storage
    assert steps["sum"].reads == ("x",)
    assert steps["prod"].reads == write.outs
    (late,) = steps["mean"].reads
    assert late != "x"
    assert trace.tensors[late].step == write.index and trace.tensors[late].in_place
    assert trace.maker(late) is write
    assert recording["x"].eq(0).all() and recording[late].eq(1).all()
    assert trace.tensors["x"].statistics.maximum == 0 and trace.tensors[late].statistics.minimum == 1


def test_out_arguments_and_indexed_writes_are_in_place() -> None:
    x, y = torch.randn(3, 3), torch.zeros(3, 3)

    def code() -> None:
        torch.matmul(x, x, out=y)
        y[0] = 5.0
        y[:, 1].mul_(2)
        y.relu()

    trace = run_of(code, inputs={"x": x, "y": y})
    writers = [step for step in trace.steps if step.wrote]
    assert len(writers) == 3
    names = {name for step in writers for name in step.outs}
    assert all(trace.tensors[name].in_place for name in names)
    relu = trace.steps[-1]
    assert relu.op == "relu" and relu.reads != ("y",)
    assert trace.tensors[relu.reads[0]].statistics.maximum == pytest.approx(float(y.max()))


# --- memory that is alive ------------------------------------------------------------------------------


def test_live_memory_counts_inputs_weights_and_what_is_alive() -> None:
    model = nn.Linear(1000, 1000, bias=False)
    x = torch.randn(10, 1000)
    weight, row = 4_000_000, 40_000

    def code(x: torch.Tensor) -> torch.Tensor:
        y = model(x)
        z = y + 1
        del y
        z = z * 2  # the sum goes when this is done
        return z.sum()

    with torch.no_grad(), tensure.watch(model, inputs={"x": x}) as run:
        code(x)
    live = {step.op: step.live_bytes for step in run.trace.steps}
    base = weight + row
    assert live["mm"] == base + row
    assert live["add"] == base + 2 * row
    assert live["mul"] == base + 2 * row  # y is gone, z and z * 2 live
    assert live["sum"] == base + row + 4
    assert run.trace.peak_bytes == base + 2 * row


def test_a_view_takes_no_memory_and_a_broadcast_none() -> None:
    x = torch.randn(100)
    trace = run_of(lambda: x.view(10, 10).t()[:5].unsqueeze(0).expand(50, 5, 10), inputs={"x": x})
    assert {step.live_bytes for step in trace.steps} == {400}
    assert last(trace, "expand")[1].nbytes == 50 * 5 * 10 * 4


def test_many_temporaries_do_not_pile_up() -> None:
    x = torch.randn(1000)

    def code() -> None:
        y = x
        for _ in range(50):
            y = y * 1.01

    trace = run_of(code, inputs={"x": x})
    assert len(trace.steps) == 50
    assert trace.peak_bytes == 3 * 4000
    assert trace.steps[-1].live_bytes <= 3 * 4000


# --- the contract --------------------------------------------------------------------------------------


def test_json_is_complete_strict_and_named() -> None:
    value = torch.tensor([[math.nan, math.inf, -0.0], [1.0, 2.0, 3e38]])
    trace = tensure.inspect(lambda x: (x * 10).t(), value, digest=True).trace
    found = json.loads(trace.dumps(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found["schema"] == "tensure.inspect/1"
    assert [step["op"] for step in found["steps"]] == [step.op for step in trace.steps]
    keys = {"index", "op", "module", "source", "reads", "outs", "wrote", "arguments", "live_bytes", "phase"}
    assert all(keys <= set(step) for step in found["steps"])
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert set(by_name) == set(trace.tensors)
    wanted = {
        *("name", "shape", "rank", "dtype", "device", "layout", "strides", "memory", "storage", "offset"),
        *("alias_of", "in_place", "nbytes", "statistics", "digest", "quantised", "origin", "step"),
    }
    assert all(wanted <= set(tensor) for tensor in by_name.values())
    x = by_name["x"]["statistics"]
    assert (x["nans"], x["infinities"], x["zeros"], x["first_nonfinite"]) == (1, 1, 1, 0)
    assert x["maximum"] == struct.unpack("f", struct.pack("f", 3e38))[0]
    assert found["outputs"]


def test_without_statistics_and_digests_nothing_is_looked_at() -> None:
    trace = tensure.inspect(lambda x: x + 1, torch.randn(3), statistics=False).trace
    assert all(facts.statistics is None and facts.digest is None for facts in trace.tensors.values())
    assert trace.steps[0].live_bytes > 0
