"""Every twin of the zoo, traced and judged: no bug is accepted, and no right step is called wrong.

Whether the twins really are right and wrong is found out by running them (test_zoo.py), which shares nothing
with capture or prover.
"""

from __future__ import annotations

import pytest

import tensure
from tensure.proving import check_certificate

from .zoo import ENTRIES, Entry

#: Right steps that no rule derives yet. A name that is here and proved fails, so that the list stays true.
UNDECIDED: frozenset[str] = frozenset()
#: Right steps that are run for real too; wrong ones all are.
REPLAYED = ENTRIES[::4]
by_name = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def rank_number(entry: Entry, printed: str) -> int:
    """`tp1[0,2]` as a place in the mesh, row by row."""
    track, _, along = printed.partition("[")
    fixed = {}
    if track != "ranks":
        for word in track.split("_"):
            axis = word.rstrip("0123456789")
            fixed[axis] = int(word[len(axis) :])
    free = iter(along.rstrip("]").split(",") if along else [])
    number = 0
    for axis, size in entry.mesh.items():
        number = number * size + (fixed[axis] if axis in fixed else int(next(free)))
    return number


@by_name
def test_the_bug_is_refuted_at_its_place_and_the_right_step_is_not(entry: Entry) -> None:
    right = tensure.prove(entry.fixed, entry.model, mesh=entry.mesh, replay=entry in REPLAYED)
    wrong = tensure.prove(entry.buggy, entry.model, mesh=entry.mesh)
    if entry.name in UNDECIDED:
        assert right.proof.values.status == "unknown", "take the name off the list"
        assert "a replay shows no difference" in right.proof.values.reason
    else:
        assert right.proof.values.status == "proved", right.proof.values
        assert right.certificate is not None
        assert check_certificate(right.certificate, right.plan, right.program).accepted
        assert not check_certificate(right.certificate, wrong.plan, wrong.program).accepted
    assert wrong.proof.values.status == "refuted", wrong.proof.values
    assert wrong.certificate is None
    assert wrong.replay is not None and wrong.replay.confirms("refuted"), wrong.replay
    assert right.replay is None or right.replay.confirms("proved"), right.replay
    found = wrong.proof.values.counterexample
    assert found is not None
    assert found.confirmed
    assert "first astray on" in found.step or ": it " in found.step, found
    assert ".py:" in found.source, found
    if entry.at.ranks:
        # Whoever reads what the faulty rank sent is wrong too; named is where it began or where it shows.
        begun = found.step.partition("first astray on ")[2].partition(":")[0] or found.rank
        assert {rank_number(entry, found.rank), rank_number(entry, begun)} & set(entry.at.ranks), found
