"""Runs and differences as plain text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tensure
from tensure.errors import InputError, LimitError
from tensure.inspection import Recording, ValueStore, Watch, difference_lines, table_of


@pytest.fixture
def run() -> Watch:
    x_HW = torch.arange(6.0).reshape(2, 3)
    with tensure.watch(inputs={"x": x_HW}) as found:
        x_HW.t().add_(1)
    return found


def test_a_table_has_the_columns_asked_for_in_that_order(run: Watch) -> None:
    lines = table_of(run, "out step op").splitlines()
    assert [line.split() for line in lines] == [
        ["out", "step", "op"],
        ["f32[3,2]", "0", "t"],
        ["f32[3,2]", "1", "add_"],
    ]
    assert {line.index(word) for line, word in zip(lines, ("step", "0", "1"), strict=True)} == {10}
    assert table_of(run, ["out", "step", "op"]) == table_of(run.trace, "out step op")


def test_leaves_come_first_and_only_if_asked_for(run: Watch) -> None:
    assert "input" not in table_of(run)
    assert table_of(run, "op name", leaves=True).splitlines()[1].split() == ["input", "x"]


def test_a_column_with_nothing_in_it_is_left_out(run: Watch) -> None:
    assert table_of(run, "op NaN/Inf denormals scale phase").splitlines()[0] == "op"


def test_steps_are_chosen_by_pattern(run: Watch) -> None:
    assert table_of(run, "op", only=["add*"]) == "op\nadd_"
    with pytest.raises(InputError, match="fits 'mul'"):
        table_of(run, only=["mul"])


def test_a_column_that_there_is_not_is_refused_with_the_nearest_name(run: Watch) -> None:
    with pytest.raises(InputError, match="Did you mean 'strides'"):
        table_of(run, "op stride")


def test_the_way_back_is_marked(run: Watch) -> None:
    w = torch.ones(2, requires_grad=True)
    with tensure.watch() as training:
        (w * 3).sum().backward()
    rows = [line.split() for line in table_of(training, "phase op").splitlines()]
    assert ["backward", "mul"] in rows
    assert ["mul"] in rows


def test_an_optimizers_marks_for_a_profiler_are_no_steps() -> None:
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    w.grad = torch.ones(2)
    with tensure.watch() as training:
        optimizer.step()
    assert [step.op for step in training.trace.steps] == ["add_"]
    assert w.tolist() == [0.5, 0.5]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda x: x.to_sparse(), 2 * 4 + 2 * 2 * 8),
        (lambda x: x.to_sparse_csr(), 2 * 4 + (100 + 1) * 8 + 2 * 8),
        (lambda x: x.to_sparse_csc(), 2 * 4 + (50 + 1) * 8 + 2 * 8),
        (lambda x: x.to_sparse_bsr((2, 1)), 2 * 2 * 4 + (50 + 1) * 8 + 2 * 8),
        (lambda x: x.t(), 100 * 50 * 4),
    ],
)
def test_bytes_of_a_sparse_tensor_are_those_that_are_stored(make: object, wanted: int) -> None:
    x = torch.zeros(100, 50)
    x[3, 7], x[60, 2] = 1.0, 2.0
    assert callable(make)
    with tensure.watch() as found:
        made = make(x)
    assert made.shape == (100, 50) or made.shape == (50, 100)
    assert found.trace.made(found.trace.steps[-1])[0].nbytes == wanted


def test_bytes_of_a_nested_tensor_are_its_numbers_and_offsets() -> None:
    with tensure.watch() as found:
        torch.nested.nested_tensor([torch.ones(3), torch.ones(1)], layout=torch.jagged)
    assert found.trace.made(found.trace.steps[-1])[0].nbytes == 4 * 4 + 3 * 8


def test_a_difference_names_the_first_tensor_and_both_lines() -> None:
    def by_row(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).cumsum(dim=1)

    def by_column(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).cumsum(dim=0)

    x = torch.ones(2, 3)
    lines = list(difference_lines(tensure.diff(by_row, by_column, x)))
    assert lines[0] == "A by_row (torch, eager); B by_column (torch, eager)"
    assert any(line.startswith("  cumsum_1 f32[2,3] parts at step 1 cumsum") for line in lines)
    assert "  argument dim: 1 in A, 0 in B" in lines
    assert "    [1]  cumsum  test_text.py:" in "\n".join(lines)
    same = list(difference_lines(tensure.diff(by_row, by_row, x), show_all=True))
    assert same[1].startswith("bit-identical: ")
    assert len(same) == 3


def test_a_difference_has_the_notes_of_both_runs() -> None:
    def run(note: str) -> Recording:
        with tensure.watch(keep=True, digest=True) as seen:
            torch.ones(2) * 2
        seen.trace.notes = (note,)
        return seen.recording()

    found = tensure.diff(run("one rank"), run("not looked at"))
    wanted = ["A: one rank", "B: not looked at"]
    assert found.to_json()["notes"] == wanted
    assert list(difference_lines(found))[-2:] == [f"note: {note}" for note in wanted]


def test_a_recording_is_gone_through_for_who_asks() -> None:
    with tensure.watch(keep=True, digest=True) as seen:
        torch.ones(2) * 2
    recording = seen.recording()
    told: list[tuple[str, list[str]]] = []
    found = tensure.inspect(recording, on_step=lambda step, made: told.append((step.op, [*made])))
    assert found is recording
    assert told == [("ones", ["ones_0"]), ("mul", ["mul_1"])]


@pytest.mark.parametrize(
    "options", [{"entry": "run"}, {"params": {"n": 3}}, {"limit": 2.0}, {"seed": 0}, {"by": "kernels"}]
)
def test_options_that_cannot_apply_to_a_recording_are_refused(options: dict[str, Any]) -> None:
    with tensure.watch(keep=True, digest=True) as seen:
        torch.ones(2) * 2
    with pytest.raises(InputError, match=next(iter(options))):
        tensure.inspect(seen.recording(), **options)


@pytest.mark.parametrize("options", [{"entry": "run"}, {"params": {"n": 3}}])
def test_eager_code_has_no_entries(options: dict[str, Any]) -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(InputError, match=f"{next(iter(options))} .*eager code"):
        tensure.inspect(double, torch.ones(2), **options)
    with pytest.raises(InputError, match="eager code"):
        tensure.diff(double, double, torch.ones(2), **options)


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf])
def test_bounds_are_finite_and_at_least_0(bound: float) -> None:
    for call in (
        lambda: tensure.inspect(lambda: torch.ones(2), limit=bound),
        lambda: tensure.watch(limit=bound),
        lambda: tensure.diff(lambda: torch.ones(2), lambda: torch.ones(2), rtol=bound),
        lambda: tensure.diff(lambda: torch.ones(2), lambda: torch.ones(2), atol=bound),
    ):
        with pytest.raises(InputError, match="at least 0"):
            call()


def test_too_many_values_are_refused_with_what_helps() -> None:
    with pytest.raises(LimitError, match=r"keep=ValueStore\(max_bytes=N\)") as caught:
        tensure.inspect(lambda: torch.ones(99), keep=ValueStore(max_bytes=64))
    assert "keep_bytes" not in str(caught.value)
    tensure.inspect(lambda: torch.ones(99), keep=ValueStore(max_bytes=1 << 20))  # the advice holds
