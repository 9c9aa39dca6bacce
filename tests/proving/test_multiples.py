"""One number by which an output is off: found where it is so everywhere, and nowhere else."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tensure.proving import multiple_words
from tensure.proving._multiples import Multiple, common_multiple, multiple_of

WANT = np.array([[1.0, -2.0], [0.0, 0.3]])


def found(*factors: float, want: np.ndarray = WANT) -> Fraction | None:  # type: ignore[type-arg]
    parts = [multiple_of(factor * want, want) for factor in factors]
    return common_multiple([part for part in parts if part is not None])


def test_one_factor_of_all_parts_is_found() -> None:
    assert found(2.0, 2.0) == 2 and found(1 / 3) == Fraction(1, 3) and found(-0.5) == Fraction(-1, 2)
    irrational = found(2**0.5)
    assert irrational is not None and abs(float(irrational) - 2**0.5) < 1e-12


def test_parts_that_differ_have_none() -> None:
    assert found(2.0, 1.0) is None and found(1.0, 1.0) is None and found(0.0) is None
    near = multiple_of(2 * WANT + np.array([[0, 0], [0, 1e-7]]), WANT)
    assert near is not None and common_multiple([near]) is None
    longer = multiple_of(np.ones(3), np.ones(2))
    assert longer is not None and common_multiple([longer]) is None
    from_nothing = multiple_of(np.ones(2), np.zeros(2))
    assert from_nothing is not None and common_multiple([from_nothing]) is None


def test_zeros_fit_any_factor_and_tell_nothing() -> None:
    assert multiple_of(np.zeros(3), np.full(3, 1e-17)) is None
    assert common_multiple([]) is None


def test_of_one_number_only_a_simple_fraction_is_no_accident() -> None:
    one = np.array(0.7)
    assert found(4.0, want=one) == 4
    assert found(1.2345678901234, want=one) is None
    assert common_multiple([Multiple(1.2345678901234, 2)]) is not None


def test_the_fact_that_all_outputs_share_comes_in_one_sentence() -> None:
    all_of = {"loss": "2", "grad.a": "2", "grad.b": "2"}
    assert multiple_words(all_of) == "loss and all gradients are 2 times the model's"
    assert multiple_words({**all_of, "loss": ""}) == "all gradients are 2 times the model's"
    assert multiple_words({**all_of, "grad.b": ""}) == "loss, grad.a are 2 times the model's"
    assert multiple_words({"new.a": "1/4", "new.b": "1/4"}) == "all outputs are 1/4 times the model's"
    assert multiple_words({**all_of, "loss": "4"}) == "" and multiple_words({"loss": "2"}) == ""
