"""What cannot be judged says why, and what to do about it; what can be judged says nothing of the kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tensure.inspection import (
    Difference,
    Recording,
    compare,
    difference_lines,
    load_recording,
    save_recording,
    watch,
)

Code = Callable[[torch.Tensor], torch.Tensor]


def recorded(code: Code) -> Recording:
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    with watch(inputs={"x": x}, keep=True, digest=True) as run:
        run.output("y", code(x))
    return run.recording()


def said(found: Difference) -> str:
    return "\n".join(line for line in difference_lines(found) if line.startswith("note: "))


def chain(turns: int, turn: Code) -> Code:
    def code(x: torch.Tensor) -> torch.Tensor:
        for _ in range(turns):
            x = turn(x)
        return x

    return code


def by_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def by_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x * 2) * 2 - 1


def off(x: torch.Tensor) -> torch.Tensor:
    return by_sigmoid(x) * 1.01


def test_too_many_steps_without_a_common_tensor() -> None:
    """No step of the one is like one of the other, and the outputs differ: rounding or a fault, who knows."""
    found = compare(recorded(chain(270, by_tanh)), recorded(chain(270, off)))
    assert found.findings == []
    assert found.kind == "unjudged"
    assert "more steps between common tensors than are taken together" in said(found)
    assert "--rename A=B" in said(found)


def test_outputs_that_agree_over_so_many_steps_need_no_advice() -> None:
    found = compare(recorded(chain(270, by_tanh)), recorded(chain(270, by_sigmoid)))
    assert (found.kind, said(found)) == ("within", "")


def test_a_part_at_a_time_is_judged() -> None:
    """As the message says."""
    found = compare(recorded(chain(20, by_tanh)), recorded(chain(20, by_sigmoid)))
    assert (found.kind, said(found)) == ("within", "")
    assert compare(recorded(chain(20, by_tanh)), recorded(chain(20, off))).kind == "divergent"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    codes: dict[str, Code] = {
        "a": lambda x: torch.tanh(x @ x) @ x,
        "b": lambda x: (2 * torch.sigmoid(2 * (x @ x)) - 1) @ x,
        "c": lambda x: torch.relu(x) + 1,
    }
    return {
        name: save_recording(recorded(code), tmp_path / f"{name}.trace", replace=False)
        for name, code in codes.items()
    }


def test_two_files_of_different_programs(files: dict[str, Path]) -> None:
    found = compare(load_recording(files["a"]), load_recording(files["c"]))
    assert (found.kind, found.first) == ("unjudged", None)
    assert "two recordings, neither of which can be computed again" in said(found)
    assert "tensure diff A.trace MODEL" in said(found)


def test_two_files_of_the_same_function_need_no_advice(files: dict[str, Path]) -> None:
    found = compare(load_recording(files["a"]), load_recording(files["b"]))
    assert (found.kind, said(found)) == ("within", "")


def test_a_file_against_what_is_run_is_judged(files: dict[str, Path]) -> None:
    """As the message says."""
    found = compare(recorded(lambda x: torch.relu(x) + 1), load_recording(files["a"]))
    assert found.kind == "divergent"


def test_outputs_without_a_counterpart_are_named() -> None:
    one, other = recorded(torch.tanh), recorded(torch.tanh)
    one.trace.outputs = {"first": one.trace.outputs["y"]}
    other.trace.outputs["first"] = other.trace.outputs["y"]
    found = compare(one, other)
    assert found.kind == "unjudged"
    assert "without a counterpart in the other run: output y; say what it is there" in said(found)
    assert found.to_json()["notes"] == found.notes != []
