"""Sweeps for cyclic garbage rest inside, and are afterwards as they were."""

from __future__ import annotations

import gc

import pytest

from tensure.program import unswept


def test_sweeps_rest_inside_and_go_on_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), unswept():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_one_inside_another_leaves_the_outer_at_rest() -> None:
    with unswept():
        with unswept():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
