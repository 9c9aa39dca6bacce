"""Random numbers: a function of where they come from, and of nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensure.errors import RecordError
from tensure.program import TensorType, evaluate_op, infer_op

GIVEN: dict[str, Any] = {"law": "uniform", "seed": 7, "start": 0, "size": (4096,), "extent": 4096}


def numbers(**changed: Any) -> Any:
    (found,) = evaluate_op("draw", [None], {**GIVEN, **changed})
    return found


@pytest.mark.parametrize(("law", "moments"), [("uniform", (1 / 2, 1 / 3, 1 / 4)), ("normal", (0, 1, 0))])
def test_numbers_follow_their_law(law: str, moments: tuple[float, ...]) -> None:
    found = numbers(law=law, dtype="f64")
    assert np.allclose([(found**power).mean() for power in (1, 2, 3)], moments, atol=0.25)
    assert (found.min() >= 0 and found.max() < 1) == (law == "uniform")


@pytest.mark.parametrize(
    "changed", [{"seed": 8}, {"start": 4096}, {"after": "5ee7a1b0c2d3"}, {"offset": 64}, {"extent": 8192}]
)
def test_other_places_give_other_numbers(changed: dict[str, Any]) -> None:
    assert np.array_equal(numbers(), numbers())
    assert abs(np.corrcoef(numbers(), numbers(**changed))[0, 1]) < 0.1


def test_the_operand_gives_its_shape_and_no_numbers() -> None:
    like = np.full((64, 64), np.nan, np.float32)
    (found,) = evaluate_op("draw", [like], {**GIVEN, "size": (64, 64)})
    assert np.array_equal(found.reshape(-1), numbers())
    with pytest.raises(RecordError, match="like the operand"):
        infer_op("draw", [TensorType((64, 63), "f32")], {**GIVEN, "size": (64, 64)})


@pytest.mark.parametrize("changed", [{"law": "cauchy"}, {"dtype": "i32"}, {"size": (-1,)}])
def test_no_such_numbers(changed: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="draw"):
        infer_op("draw", [None], {**GIVEN, **changed})
