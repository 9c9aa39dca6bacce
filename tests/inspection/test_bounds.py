"""What rounding may do, and no more: bounds hold for honest kernels, and a planted error breaks them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensure.inspection import Recording, compare, watch

Net = Callable[[torch.Tensor], torch.Tensor]


def record(run: Net, x: torch.Tensor) -> Recording:
    with watch(inputs={"x": x}, digest=True, keep=True) as seen:
        seen.output("out", run(x))
    return seen.recording()


WEIGHT = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))


def forwards(x: torch.Tensor) -> torch.Tensor:
    return x @ WEIGHT.t()


def backwards(x: torch.Tensor) -> torch.Tensor:
    """The same sums, last term first."""
    return x.flip(-1) @ WEIGHT.flip(-1).t()


@given(seed=st.integers(0, 1 << 20), scale=st.sampled_from([1e-6, 1.0, 1e6]), cancel=st.booleans())
def test_another_order_of_summation_is_within(seed: int, scale: float, cancel: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 96, generator=generator) * scale
    if cancel:
        x[:, 48:] = -x[:, :48]  # sums of large terms that nearly cancel

    def permuted(value: torch.Tensor) -> torch.Tensor:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(96))
        return value[:, order] @ WEIGHT[:, order].t()

    found = compare(record(forwards, x), record(permuted, x), rename={"mm_1": last(record(permuted, x))})
    assert found.kind in ("identical", "within"), found.findings


def last(recording: Recording) -> str:
    return recording.trace.outputs["out"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize(
    "op",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.nn.functional.layer_norm(x, (x.shape[-1],)),
        lambda x: torch.nn.functional.gelu(x),
        lambda x: torch.exp(x),
        lambda x: x.mean(-1),
        lambda x: x.var(-1),
        lambda x: torch.tanh(x) * x + 1,
        lambda x: torch.cumsum(x, -1),
    ],
    ids=["softmax", "layer_norm", "gelu", "exp", "mean", "var", "chain", "cumsum"],
)
def test_torch_keeps_its_own_bounds(op: Net, dtype: torch.dtype) -> None:
    """Each dtype against the same in float64: what torch computes lies within what the bound allows."""
    x = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) + 3).to(dtype)
    narrow, wide = record(op, x), record(op, x.double())
    found = compare(wide, narrow)
    assert found.kind in ("identical", "within"), [finding.text for finding in found.findings]


@pytest.mark.parametrize("error", [1e-3, -1e-3])
def test_an_error_beyond_rounding_is_divergent(error: float) -> None:
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))

    def wrong(value: torch.Tensor) -> torch.Tensor:
        made = forwards(value)
        made.view(torch.int32)  # a look, no change
        return made + error * made.abs().mean() * (torch.arange(48) == 7)

    clean, faulty = record(forwards, x), record(wrong, x)
    found = compare(clean, faulty, rename={last(clean): last(faulty)})
    assert found.kind == "divergent"
    assert found.first is not None
    assert found.first.element is not None
    assert found.first.element.index[1] == 7
    assert compare(clean, record(forwards, x)).kind == "identical"


def test_what_only_moves_values_has_no_allowance() -> None:
    x = torch.randn(6, 5)

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.nextafter(value, torch.tensor(9.0)).t()).contiguous()

    clean, faulty = record(lambda v: torch.relu(v.t()).contiguous(), x), record(rounded, x)
    found = compare(clean, faulty, rename={last(clean): last(faulty)})
    assert found.kind == "divergent"


def test_an_allowance_of_the_callers_is_added() -> None:
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    clean, faulty = record(forwards, x), record(lambda v: forwards(v) * 1.001, x)
    names = {last(clean): last(faulty)}
    assert compare(clean, faulty, rename=names).kind == "divergent"
    assert compare(clean, faulty, rename=names, rtol=2e-3).kind == "within"


def test_a_permutation_of_one_row_is_told() -> None:
    """Its columns are single elements of a long stride: contiguous, yet torch will not view their bytes."""
    row, order = torch.arange(640.0).reshape(1, 640), torch.arange(640).roll(1)
    found = compare(record(lambda x: x * 2.0, row), record(lambda x: (x * 2.0)[:, order], row))
    assert found.kind == "divergent"
