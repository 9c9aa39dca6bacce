"""A fault of one unit in the last place, in an op that has one right result and in one that has several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.inspection import Difference, Recording, compare, watch

Code = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

ONCE: dict[str, Code] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "sqrt": lambda x, y: torch.sqrt(x),
    "add a number": lambda x, y: x + 1e-5,
    "rsub": lambda x, y: 0.1 - x,
    "in place": lambda x, y: (x * 1.0).add_(y),
    "rows": lambda x, y: x * y[0],
}
SEVERAL: dict[str, Code] = {
    "exp": lambda x, y: torch.exp(x),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "a sum of three": lambda x, y: torch.add(x, y, alpha=0.3),
    "mean": lambda x, y: x.mean(0),
}


class Ulp(TorchDispatchMode):
    """Moves one element of the last op's result to the next number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left == -1:
            flat = made.reshape(-1)
            flat[3] = torch.nextafter(flat[3], torch.tensor(torch.inf, dtype=made.dtype))
        return made


def recorded(code: Code, dtype: torch.dtype, fault_at: int = -1) -> Recording:
    torch.manual_seed(0)
    x, y = torch.rand(4, 7, dtype=dtype) + 0.5, torch.rand(4, 7, dtype=dtype) + 0.5
    with Ulp(fault_at), watch(inputs={"x": x, "y": y}, keep=True, digest=True) as run:
        run.output("z", code(x, y))
    return run.recording()


def with_fault(code: Code, dtype: torch.dtype) -> Difference:
    """Clean against one whose last step is off by a unit."""
    clean = recorded(code, dtype)
    return compare(clean, recorded(code, dtype, len(clean.trace.steps) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ONCE)
def test_one_unit_off_where_one_result_is_right(case: str, dtype: torch.dtype) -> None:
    found = with_fault(ONCE[case], dtype)
    assert found.first is not None, found.counts()
    assert found.first.step_b is not None
    assert found.first.step_b.index == len(found.b.steps) - 1
    element = found.first.element
    assert element is not None and element.count == 1


@pytest.mark.parametrize("case", [*ONCE, *SEVERAL])
def test_without_the_fault_nothing_is_said(case: str) -> None:
    code = (ONCE | SEVERAL)[case]
    assert compare(recorded(code, torch.float32), recorded(code, torch.float32)).kind == "identical"


@pytest.mark.parametrize("case", SEVERAL)
def test_one_unit_off_is_rounding_where_several_results_are_right(case: str) -> None:
    found = with_fault(SEVERAL[case], torch.float32)
    assert (found.kind, found.first) == ("within", None)


def test_the_fault_may_be_in_either_run() -> None:
    code = ONCE["mul"]
    found = compare(recorded(code, torch.float32, 0), recorded(code, torch.float32))
    assert found.kind == "divergent"


def test_half_precision_may_be_rounded_twice() -> None:
    found = with_fault(ONCE["add"], torch.float16)
    assert (found.kind, found.first) == ("within", None)


def test_numbers_too_small_to_be_normal_may_be_taken_for_zero() -> None:
    def tiny(zeros: bool) -> Recording:
        x = torch.full((3,), 1.5e-38)
        torch.set_flush_denormal(zeros)
        try:
            with watch(inputs={"x": x}, keep=True, digest=True) as run:
                run.output("y", (x * 0.5).to(torch.float64) + 1.0)
        finally:
            torch.set_flush_denormal(False)
        return run.recording()

    assert all("rounds once" not in item.basis for item in compare(tiny(False), tiny(True)).verdicts)


def test_a_quotient_written_as_a_product_is_rounded_otherwise() -> None:
    """Each keeps to its own op: two right results, a unit apart."""
    a = recorded(lambda x, y: x / 3.0, torch.float32)
    b = recorded(lambda x, y: x * (1.0 / 3.0), torch.float32)
    found = compare(a, b)
    assert (found.kind, found.first) == ("within", None)
