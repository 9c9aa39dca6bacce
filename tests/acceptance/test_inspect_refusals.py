"""What inspect and diff refuse, in one line, before anything is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.acceptance.inspect_models import exported_kind

import tensure
from tensure.errors import InputError, TensureError


@pytest.mark.parametrize(
    "inputs",
    [
        {"y": torch.zeros(2, 3, 8, 8)},
        {"x": torch.zeros(2, 4, 8, 8)},
        {"x": np.zeros((2, 3, 8, 8), np.int64)},
        {},
        {"x": torch.zeros(2, 3, 8, 8), "more": torch.zeros(1)},
        [torch.zeros(2, 3, 8, 8), torch.zeros(1)],
        {"x": "text"},
        {"x": None},
        {"x": [[1.0, 2.0], [3.0]]},
    ],
    ids=["name", "shape", "dtype", "none", "extra", "too many", "text", "null", "ragged"],
)
def test_inputs_that_a_program_does_not_take_are_refused(inputs: Any) -> None:
    model = exported_kind("cnn")
    for call in (
        lambda: tensure.inspect(model, inputs),
        lambda: tensure.diff(model, model, inputs),
    ):
        with pytest.raises(TensureError) as caught:
            call()
        assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["no/such/model", "no.such.module:name", "json:nothing", 7, None, [1]])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TensureError) as caught:
        tensure.inspect(model, np.zeros(3, np.float32))
    assert "\n" not in str(caught.value)


def test_diff_refuses_recordings_without_values() -> None:
    x = torch.randn(3)
    one = tensure.inspect(lambda x: x + 1, x)
    with pytest.raises(InputError):
        tensure.diff(one, one)


def test_values_that_were_not_kept_are_refused() -> None:
    recording = tensure.inspect(lambda x: x + 1, torch.randn(3))
    with pytest.raises(InputError):
        recording["x"]
    kept = tensure.inspect(lambda x: x + 1, torch.randn(3), keep=True)
    with pytest.raises(InputError):
        kept["nothing"]


def test_rename_of_what_is_not_there_is_refused() -> None:
    x = torch.randn(3)
    with pytest.raises(InputError):
        tensure.diff(lambda x: x + 1, lambda x: x + 1, x, rename={"nothing": "x"})
