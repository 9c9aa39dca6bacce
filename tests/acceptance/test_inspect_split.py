"""A whole Program against its golden Plans: no alarm, and each planted fault named at its tensor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.acceptance.test_inspect_equal import assert_no_alarm
from tests.golden import cnn_rows, decode_stages, int8_pool, tp_block

import tensure
from tensure.errors import EvaluationError
from tensure.program import Model, StoredTensor

GOLDEN = {
    case.name: case
    for case in (cnn_rows.golden(), tp_block.golden(), decode_stages.golden(), int8_pool.golden())
}
GOLDEN_FAULTS = [(name, label) for name, case in GOLDEN.items() for label in case.faults]


def golden_model(name: str) -> tuple[Model, dict[str, Any]]:
    """The program with seeded weights, and its inputs."""
    case = GOLDEN[name]
    program, values = case.program, case.values(0, case.params[-1])
    entry = program.entries[case.entry]
    inputs = {str(key): values[str(key)] for key in entry.inputs}
    weights = {
        key: StoredTensor.from_array(value, "i8" if value.dtype == np.int8 else "f64")
        for key, value in values.items()
        if program.values[key.partition("[")[0]].role == "weight"
    }
    model = Model(name, program, weights, {}, "a golden case")
    model.check_weights()
    return model, inputs


def split(name: str, plan: Any) -> Any:
    model, inputs = golden_model(name)
    case = GOLDEN[name]
    return tensure.diff(model, model, inputs, entry=case.entry, params=case.params[-1], plan=plan)


@pytest.mark.parametrize("name", GOLDEN)
def test_whole_and_split(name: str) -> None:
    assert_no_alarm(split(name, GOLDEN[name].plan), "identical", "within")


SEEN_AT = {
    "halo row one too high": "y1",
    "zeros for a halo": "y3",
    "one rank's sigmoid gradient is off": "om",
    **{f"no all-reduce of {target}": target for target in tp_block.REDUCED},
    "cache written a row early": "K2",
    "attention misses the last row": "o",
    "attention reads the old cache": "s",
    "depthwise reads a row too high": "c",
}


@cache
def faulty_split(name: str, label: str) -> Any:
    return split(name, GOLDEN[name].faults[label])


@pytest.mark.parametrize(("name", "label"), GOLDEN_FAULTS)
def test_a_fault_in_a_split_is_found(name: str, label: str) -> None:
    """At the tensor the golden case says, with an element that is wrong and not just rounded otherwise."""
    if label == "halo never sent":
        with pytest.raises(EvaluationError, match="deadlock"):
            faulty_split(name, label)
        return
    found = faulty_split(name, label)
    assert found.kind == "divergent", found.counts()
    assert found.first is not None
    assert found.first.a.partition("[")[0] == SEEN_AT[label], found.first.text
    element = found.first.element
    assert element is not None and abs(element.a - element.b) > 1e-6, element


@pytest.mark.parametrize(("name", "label"), [pair for pair in GOLDEN_FAULTS if pair[1] != "halo never sent"])
def test_for_one_fault_in_a_split_nothing_else_is_blamed(name: str, label: str) -> None:
    """Every layer has it, so it may be named for each."""
    named = {finding.a.partition("[")[0] for finding in faulty_split(name, label).findings}
    assert named == {SEEN_AT[label]}
