"""Statistics of awkward tensors: non-finite, denormal, quantised, sparse, nested, without values."""

from __future__ import annotations

import math

import pytest
import torch
from tests.acceptance.test_inspect_facts import assert_statistics, last

import tensure


def test_nans_infinities_denormals_and_zeros() -> None:
    value = torch.tensor([0.0, -0.0, 1e-40, -1e-45, 3.0, -math.inf, math.nan, math.inf, -2.0])
    trace = tensure.inspect(lambda x: x.view(3, 3).t(), value, limit=2.5).trace
    found = trace.tensors["x"].statistics
    assert_statistics(found, value)
    assert (found.zeros, found.denormals, found.nans, found.infinities) == (2, 2, 1, 2)
    assert found.first_nonfinite == 5
    assert (found.over_limit, found.first_over) == (3, 4)
    turned = trace.tensors[trace.steps[-1].outs[0]].statistics
    assert_statistics(turned, value.view(3, 3).t())
    assert turned.first_nonfinite == 2  # in C order of the transpose: row 0 is 0, 1e-40, NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_denormals_of_every_float(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    value = torch.tensor([tiny, tiny / 2, -tiny / 4, 0, 1], dtype=torch.float64).to(dtype)
    found = tensure.inspect(lambda x: x.clone(), value).trace.tensors["x"].statistics
    assert found.denormals == 2 and found.zeros == 1


def test_a_mean_far_from_zero_keeps_its_deviation() -> None:
    value = torch.full((1000,), 1e6, dtype=torch.float64) + torch.arange(1000) % 2 * 1e-3
    found = tensure.inspect(lambda x: x.clone(), value).trace.tensors["x"].statistics
    assert found.std == pytest.approx(float(value.numpy().std()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:torch.quantize_per:UserWarning")
def test_scale_and_saturation_of_a_quantised_tensor() -> None:
    value = torch.tensor([-100.0, -1.0, 0.0, 0.5, 1.0, 100.0])
    trace = tensure.inspect(
        lambda x: torch.quantize_per_tensor(x, 0.5, 3, torch.qint8).dequantize() + 0, value
    ).trace
    _, facts = last(trace, "quantize_per_tensor")
    assert facts.quantised is not None
    assert facts.quantised.scale == (0.5, 0.5) and facts.quantised.zero_point == (3, 3)
    assert facts.quantised.axis is None
    assert facts.quantised.saturated == pytest.approx(2 / 6)
    assert facts.nbytes == 6
    per_channel = torch.quantize_per_channel(
        torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.05]), torch.tensor([0, 1, 2]), 0, torch.qint8
    )
    facts = tensure.inspect(lambda x: x.dequantize(), per_channel).trace.tensors["x"]
    assert facts.quantised.scale == pytest.approx((0.05, 0.2))
    assert facts.quantised.zero_point == (0, 2) and facts.quantised.axis == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_tensors() -> None:
    dense = torch.zeros(5, 6)
    dense[1, 2], dense[4, 0] = 3.0, -1.0
    for sparse in (dense.to_sparse(), dense.to_sparse_csr()):
        trace = tensure.inspect(lambda x: x @ torch.ones(6, 2), sparse, digest=True).trace
        facts = trace.tensors["x"]
        assert facts.shape == (5, 6) and facts.dtype == "f32"
        assert facts.layout == ("sparse_coo" if sparse.layout == torch.sparse_coo else "sparse_csr")
        assert facts.strides is None
        assert (facts.statistics.minimum, facts.statistics.maximum) == (-1, 3)
        made_ = trace.tensors[trace.steps[-1].outs[0]]
        assert_statistics(made_.statistics, dense @ torch.ones(6, 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    parts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, -6.0]])]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    trace = tensure.inspect(lambda x: x * 2, nested, digest=True).trace
    facts = trace.tensors["x"]
    assert facts.rank == 3 and facts.dtype == "f32"
    assert (facts.statistics.minimum, facts.statistics.maximum, facts.statistics.count) == (-6, 5, 6)
    assert any(step.op == "mul" for step in trace.steps)


def test_meta_tensors_are_told_without_values() -> None:
    trace = tensure.inspect(lambda x: x @ x, torch.randn(3, 3, device="meta")).trace
    facts = trace.tensors[trace.steps[-1].outs[0]]
    assert facts.device == "meta" and facts.shape == (3, 3) and facts.statistics is None
