"""The same function written otherwise is no fault, though steps pair up that hold other numbers.

Beside each, its control: one of its numbers a little off, which is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import pytest
import torch

from tensure.inspection import Difference, Recording, compare, watch

Tensor: TypeAlias = torch.Tensor
Written: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Rewritten: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]

# Name -> as it was, and otherwise: `k` is 1, or the control's number.
CASES: Final[Mapping[str, tuple[Written, Rewritten]]] = {
    "half": (lambda x, w: (x @ w / 2) @ w, lambda x, w, k: (x @ w * (0.5 * k)) @ w),
    "tanh": (
        lambda x, w: (torch.tanh(x @ w * 0.5) * 3) @ w,
        lambda x, w, k: ((2 * torch.sigmoid(2 * k * (x @ w * 0.5)) - 1) * 3) @ w,
    ),
    "tanh, two factors in one": (
        lambda x, w: (torch.tanh(x @ w * 0.5) * 3) @ w,
        lambda x, w, k: ((2 * torch.sigmoid(x @ w * k) - 1) * 3) @ w,
    ),
    "sigmoid": (
        lambda x, w: torch.sigmoid(x @ w) * 2,
        lambda x, w, k: (0.5 * torch.tanh(0.5 * k * (x @ w)) + 0.5) * 2,
    ),
    "factors side by side": (
        lambda x, w: torch.exp(x @ w * 4 * 0.25 + 1),
        lambda x, w, k: torch.exp(x @ w * 2 * (0.5 * k) + 1),
    ),
    "terms side by side": (
        lambda x, w: torch.exp(x @ w + 3 - 1),
        lambda x, w, k: torch.exp(x @ w + 4 - 2 * k),
    ),
    "factors around a product": (
        lambda x, w: torch.softmax((x * 0.125) @ w, -1),
        lambda x, w, k: torch.softmax((x * 0.25) @ w * (0.5 * k), -1),
    ),
    "a factor on either operand": (
        lambda x, w: torch.softmax((x * 0.25) @ (w * 0.25), -1),
        lambda x, w, k: torch.softmax((x * 0.125) @ (w * (0.5 * k)), -1),
    ),
    "a factor through several layers": (
        lambda x, w: torch.relu(torch.relu(x * 2 @ w) @ w) @ w * 0.5,
        lambda x, w, k: torch.relu(torch.relu(x * 4 @ w) @ w) @ w * (0.25 * k),
    ),
    "softplus": (
        lambda x, w: torch.nn.functional.softplus(x @ w * 3) * 2,
        lambda x, w, k: torch.nn.functional.softplus(x @ w * (6 * k), beta=0.5) * 1,
    ),
    "a norm by its sum": (
        lambda x, w: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * 0.25,
        lambda x, w, k: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 16e-5) * (1.0 * k),
    ),
    "two permutes": (
        lambda x, w: (x @ w).reshape(4, 4, 4).permute(0, 2, 1).permute(1, 0, 2) * 3,
        lambda x, w, k: (x @ w).reshape(4, 4, 4).permute(2, 1, 0).permute(0, 2, 1) * (3 * k),
    ),
}


def recorded(code: Callable[[Tensor, Tensor], Tensor]) -> Recording:
    torch.manual_seed(0)
    x, w = torch.randn(4, 16), torch.randn(16, 16) / 4
    with watch(inputs={"x": x, "w": w}, keep=True, digest=True) as run:
        run.output("y", code(x, w))
    return run.recording()


def differ(one: Callable[[Tensor, Tensor], Tensor], other: Callable[[Tensor, Tensor], Tensor]) -> Difference:
    return compare(recorded(one), recorded(other))


@pytest.mark.parametrize("case", CASES)
def test_the_same_written_otherwise_is_no_fault(case: str) -> None:
    was, now = CASES[case]
    found = differ(was, lambda x, w: now(x, w, 1.0))
    assert [finding.text for finding in found.findings] == []
    assert found.kind in ("identical", "within"), found.counts()


@pytest.mark.parametrize("case", CASES)
def test_a_number_that_is_off_is_seen(case: str) -> None:
    was, now = CASES[case]
    found = differ(was, lambda x, w: now(x, w, 1.01))
    assert found.kind == "divergent"


@pytest.mark.parametrize("eps", [1.5e-5, 1.0000001e-5])
def test_another_number_alone_is_named_however_little_comes_of_it(eps: float) -> None:
    """Nothing else differs that could make up for it."""

    def norm(x: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) * 1e-7 + eps) * 0.25

    found = differ(lambda x, w: norm(x, 1e-5), lambda x, w: norm(x, eps))
    assert found.first is not None and found.first.step_b is not None
    assert found.first.step_b.op == "add"
    assert found.first.arguments == (("other", "1e-05", str(eps)),)
    assert found.findings == [found.first]


def test_another_number_is_named_though_a_later_step_differs_too() -> None:
    """What comes later is another fault: it does not make up for the first."""

    def run(x: Tensor, w: Tensor, factor: float, beta: float) -> Tensor:
        y = torch.relu((x * factor) @ w)
        for _ in range(40):
            y = torch.tanh(y @ w) + y
        return torch.nn.functional.softplus(y, beta=beta)

    found = differ(lambda x, w: run(x, w, 2.0, 1.0), lambda x, w: run(x, w, 3.0, 2.0))
    assert found.first is not None and found.first.step_b is not None
    assert found.first.step_b.op == "mul"
    assert found.first.arguments == (("other", "2.0", "3.0"),)
