"""Every fixed twin of the zoo computes what the single device does, and no buggy one does: run for real."""

from __future__ import annotations

import pytest

from tests.proving.zoo import ENTRIES, Entry
from tests.proving.zoo._threads import AGREE, DIFFER, run_twin

EACH = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


@EACH
def test_fixed_twin_agrees(entry: Entry) -> None:
    distances = run_twin(entry.model, entry.fixed, entry.mesh)
    assert {name: far for name, far in distances.items() if not far <= AGREE} == {}


@EACH
def test_buggy_twin_differs_where_the_entry_says(entry: Entry) -> None:
    distances = run_twin(entry.model, entry.buggy, entry.mesh)
    wrong = {name for name, far in distances.items() if far >= DIFFER}
    assert wrong
    assert set(entry.at.wrong) <= wrong
    assert all(far <= AGREE for name, far in distances.items() if name not in wrong), "neither same nor other"
