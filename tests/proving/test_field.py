"""The finite field: exact where ops are rational, congruent elsewhere, honest about its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensure.errors import LimitError, UnsupportedError
from tensure.program import TensorType, evaluate_op, op
from tensure.proving._field import MAX_PRODUCTS, F, Field
from tensure.proving._field_numbers import P

Array = np.ndarray[Any, np.dtype[Any]]


def lifted(array: Array) -> F:
    flat = np.empty(array.size, object)
    flat[:] = [int(x) % P for x in array.reshape(-1)]
    return F(flat.reshape(array.shape))


EXACT: list[tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = [
    ("add", {"alpha": 3}, ((2, 3), (3,))),
    ("sub", {}, ((2, 3), (2, 1))),
    ("rsub", {"alpha": 2}, ((4,), (4,))),
    ("mul", {}, ((2, 3), (3,))),
    ("neg", {}, ((3,),)),
    ("square", {}, ((3,),)),
    ("add_n", {}, ((3,), (3,), (3,))),
    ("mm", {}, ((2, 3), (3, 4))),
    ("bmm", {}, ((2, 2, 3), (2, 3, 2))),
    ("matmul", {}, ((2, 2, 3), (3, 2))),
    ("linear", {}, ((2, 3), (4, 3), (4,))),
    ("einsum", {"equation": "ab,bc,cd->ad"}, ((2, 3), (3, 2), (2, 2))),
    ("sum", {"dim": (0,), "keepdim": True}, ((3, 2),)),
    (
        "convolution",
        {"stride": (2, 1), "padding": (1, 0, 1, 1), "groups": 2},
        ((1, 4, 5, 4), (2, 2, 3, 2), (2,)),
    ),
    ("view", {"size": (3, -1)}, ((2, 3),)),
    ("permute", {"dims": (1, 0)}, ((2, 3),)),
    ("cat", {"dim": 1}, ((2, 3), (2, 1))),
    ("slice_scatter", {"dim": 0, "start": 1, "end": 2}, ((3, 2), (1, 2))),
    ("expand", {"size": (4, 3)}, ((1, 3),)),
    ("select", {"dim": 1, "index": -1}, ((2, 3),)),
    ("addmm", {"beta": 2, "alpha": 3}, ((4,), (2, 3), (3, 4))),
    ("baddbmm", {"beta": -1}, ((2, 2, 4), (2, 2, 3), (2, 3, 4))),
    ("addcmul", {"value": 3}, ((2, 3), (3,), (2, 1))),
    ("sigmoid_backward", {}, ((2, 3), (2, 3))),
    ("tanh_backward", {}, ((2, 3), (2, 3))),
    ("_softmax_backward_data", {"dim": 1, "input_dtype": "f64"}, ((2, 3), (2, 3))),
    ("constant_pad_nd", {"pad": (1, 2, -1, 0), "value": 7}, ((3, 2),)),
    ("slice_backward", {"input_sizes": (4, 3), "dim": 0, "start": 1, "end": 4, "step": 2}, ((2, 3),)),
    ("select_backward", {"input_sizes": (4, 3), "dim": 1, "index": 2}, ((4,),)),
    ("tril", {"diagonal": -1}, ((3, 3),)),
    ("_to_copy", {"dtype": "f32"}, ((2,),)),
]


@pytest.mark.parametrize(("name", "attrs", "shapes"), EXACT, ids=[row[0] for row in EXACT])
def test_rational_ops_agree_with_integers(
    name: str, attrs: dict[str, Any], shapes: tuple[tuple[int, ...], ...]
) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-5, 6, shape).astype(np.float64) for shape in shapes]
    want = lifted(evaluate_op(name, arrays, attrs)[0])
    step = op(name, *(f"v{i}" for i in range(len(arrays))), out="y", **attrs)
    (have,) = Field(1).run(step, [lifted(array) for array in arrays])
    assert have.array.shape == want.array.shape
    assert (have.array == want.array).all()


INDEX = np.array([[2, 0], [1, 1]])
LOOKED_UP: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("embedding", {}, [np.arange(12.0).reshape(4, 3), INDEX]),
    ("index_select", {"dim": 1}, [np.arange(24.0).reshape(2, 4, 3), np.array([3, 0])]),
    ("gather", {"dim": 1}, [np.arange(12.0).reshape(3, 4), INDEX]),
    ("scatter", {"dim": 1}, [np.arange(12.0).reshape(3, 4), INDEX[:, :1], np.arange(6.0).reshape(2, 3) - 9]),
    ("scatter", {"dim": -2}, [np.arange(12.0).reshape(3, 4), INDEX[:1], np.arange(6.0).reshape(2, 3) - 9]),
    ("scatter_add", {"dim": 1}, [np.arange(12.0).reshape(3, 4), INDEX, np.arange(6.0).reshape(2, 3)]),
    (
        "embedding_dense_backward",
        {"num_weights": 4, "padding_idx": 1, "scale_grad_by_freq": False},
        [np.arange(12.0).reshape(2, 2, 3), INDEX],
    ),
    *(
        ("nll_loss_forward", {"reduction": how, "ignore_index": 1}, [-np.arange(12.0).reshape(4, 3), at, by])
        for how in (0, 1, 2)
        for at in (np.array([2, 1, 0, 2]),)
        for by in (None, np.array([1.0, 2.0, 3.0]))
    ),
    *(
        (
            "nll_loss_backward",
            {"reduction": how, "ignore_index": 1},
            [
                np.arange(1.0, 5.0) if how == 0 else np.array(6.0),
                np.zeros((4, 3)),
                np.array([2, 1, 0, 2]),
                None,
                np.array(3.0),
            ],
        )
        for how in (0, 1, 2)
    ),
    ("full", {"size": (2, 2), "fill_value": 3}, []),
    ("arange", {"start": 1, "end": 7, "step": 2}, []),
]


@pytest.mark.parametrize(("name", "attrs", "arrays"), LOOKED_UP)
def test_lookups_are_exact_where_an_index_is_what_it_is(
    name: str, attrs: dict[str, Any], arrays: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the true indicator for the oracle, the numbers are those of the op."""

    def indicator(self: Field, indices: Array, count: int) -> Array:
        return np.asarray(np.equal.outer(np.asarray(indices) % P, np.arange(count)), dtype=np.int64).astype(
            object
        )

    monkeypatch.setattr(Field, "indicator", indicator)
    step = op(name, *(None if a is None else f"v{i}" for i, a in enumerate(arrays)), out="y", **attrs)
    made = Field(1).run(step, [None if array is None else lifted(array) for array in arrays])
    for have, want in zip(made, evaluate_op(name, arrays, attrs), strict=True):
        assert have.array.shape == want.shape
        whole = lifted(np.round(want * 21))  # a mean loss is over 3 of 4 samples, or over 7 of their weights
        assert (have.array * 21 % P == whole.array).all()


def test_several_numbers_put_at_one_place_are_no_answer() -> None:
    step = op("scatter", "x", "i", "s", out="y", dim=1)
    with pytest.raises(UnsupportedError, match="several numbers"):
        Field(1).run(step, [lifted(np.zeros((2, 3))), lifted(INDEX), lifted(np.ones((2, 2)))])


def test_a_lookup_in_shifted_rows_is_the_same_lookup() -> None:
    domain = Field(1)
    table, index = (
        domain.draw(label, TensorType(shape, dtype))
        for label, shape, dtype in (("t", (4, 2), "f64"), ("i", (3,), "i64"))
    )
    (found,) = domain.run(op("embedding", "t", "i", out="y"), [table, index])
    later = F(np.roll(table.array, -1, axis=0), dtype="f64")
    (less,) = domain.run(op("sub", "i", 1, out="j"), [index, 1])
    (rows,) = domain.run(op("embedding", "t", "j", out="y"), [domain.take(later, 0, [0, 1, 2]), less])
    first = domain.indicator(index.array, 1) * table.array[0]
    assert domain.difference(domain.add(rows, F(first)), found) is None  # rows 1 to 3 apart from row 0
    assert domain.difference(rows, found) is not None


@pytest.mark.parametrize("mask", [(True, True, True), (False, True, False), (True, False, False)])
@pytest.mark.parametrize(
    ("attrs", "x", "weight", "out"),
    [
        ({"stride": (2, 1), "padding": (1, 0), "groups": 2}, (2, 4, 5, 4), (2, 2, 3, 2), (2, 2, 3, 3)),
        ({"dilation": (2,), "padding": (2,)}, (2, 3, 6), (4, 3, 3), (2, 4, 6)),
    ],
)
def test_gradients_of_a_convolution(
    attrs: dict[str, Any],
    x: tuple[int, ...],
    weight: tuple[int, ...],
    out: tuple[int, ...],
    mask: tuple[bool, ...],
) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-5, 6, shape).astype(np.float64) for shape in (out, x, weight)]
    spatial = len(x) - 2
    given = {
        "bias_sizes": weight[:1], "stride": (1,) * spatial, "padding": (0,) * spatial, "groups": 1,
        "dilation": (1,) * spatial, "transposed": False, "output_padding": (0,) * spatial,
        "output_mask": mask, **attrs,
    }  # fmt: skip
    step = op("convolution_backward", "g", "x", "w", out=("a", "b", "c"), **given)
    made = Field(1).run(step, [lifted(array) for array in arrays])
    for have, want in zip(made, evaluate_op("convolution_backward", arrays, given), strict=True):
        assert have.array.shape == want.shape and (have.array == lifted(want).array).all()


def drawn(domain: Field, *shapes: tuple[int, ...]) -> list[F]:
    return [domain.draw(f"x{at}", TensorType(shape, "f64")) for at, shape in enumerate(shapes)]


def run(domain: Field, name: str, *operands: Any, **attrs: Any) -> F:
    names = [f"v{at}" if isinstance(item, F) else item for at, item in enumerate(operands)]
    return domain.run(op(name, *names, out="y", **attrs), list(operands))[0]


def test_softmaxes_are_what_they_are_made_of() -> None:
    domain = Field(1)
    x, grad = drawn(domain, (2, 3), (2, 3))
    powers = run(domain, "exp", x)
    total = run(domain, "sum", powers, dim=[1], keepdim=True)
    assert domain.difference(run(domain, "softmax", x, dim=1), run(domain, "div", powers, total)) is None
    less = run(domain, "sub", x, run(domain, "log", total))
    found = run(domain, "_log_softmax", x, dim=1, half_to_float=False)
    assert domain.difference(found, less) is None
    assert domain.difference(found, run(domain, "log_softmax", x, dim=0)) is not None
    by = run(domain, "mul", run(domain, "exp", less), run(domain, "sum", grad, dim=[1], keepdim=True))
    back = run(domain, "_log_softmax_backward_data", grad, less, dim=1, input_dtype="f64")
    assert domain.difference(back, run(domain, "sub", grad, by)) is None


def test_powers_and_quotients() -> None:
    domain = Field(1)
    x, one, other = drawn(domain, (3,), (3,), (3,))
    assert (
        domain.difference(run(domain, "pow", x, 3), run(domain, "mul", x, run(domain, "square", x))) is None
    )
    assert domain.difference(run(domain, "pow", x, -1), run(domain, "reciprocal", x)) is None
    assert domain.difference(run(domain, "pow", x, 0.5), run(domain, "sqrt", x)) is not None  # an oracle
    half = run(domain, "mul", run(domain, "div", one, other), 0.5)
    assert (
        domain.difference(run(domain, "addcdiv", x, one, other, value=0.5), run(domain, "add", x, half))
        is None
    )


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("silu_backward", {}),
        ("gelu_backward", {}),
        ("hardtanh_backward", {"min_val": -1, "max_val": 1}),
        ("threshold_backward", {"threshold": 0}),
    ],
)
def test_gradients_are_linear_in_what_comes_in(name: str, attrs: dict[str, Any]) -> None:
    domain = Field(1)
    one, other, x = drawn(domain, (3,), (3,), (3,))
    whole = run(domain, name, domain.add(one, other), x, **attrs)
    parts = domain.add(run(domain, name, one, x, **attrs), run(domain, name, other, x, **attrs))
    assert domain.difference(whole, parts) is None
    assert domain.difference(whole, run(domain, name, other, x, **attrs)) is not None
    assert (
        domain.difference(run(domain, name, x, one, **attrs), run(domain, name, x, other, **attrs))
        is not None
    )


def test_a_choice_takes_one_or_the_other() -> None:
    domain = Field(1)
    condition, a, b = drawn(domain, (3,), (3,), (3,))
    condition.dtype = "bool"
    ab, ba = (run(domain, "where", condition, *pair) for pair in ((a, b), (b, a)))
    assert domain.difference(domain.add(ab, ba), domain.add(a, b)) is None
    assert domain.difference(ab, ba) is not None
    assert domain.difference(run(domain, "where", condition, a, a), a) is None
    assert (
        domain.difference(
            run(domain, "masked_fill", b, condition, 0.0), run(domain, "where", condition, 0.0, b)
        )
        is None
    )
    run(domain, "masked_fill", b, condition, float("-inf"))  # no number of the field: an oracle as a whole


def test_division_and_mean_are_exact_fractions() -> None:
    domain = Field(1)
    x, y = (domain.draw(label, TensorType((4,), "f64")) for label in "xy")
    (q,) = domain.run(op("div", "x", "y", out="q"), [x, y])
    (back,) = domain.run(op("mul", "q", "y", out="x"), [q, y])
    assert domain.difference(back, x) is None
    (mean,) = domain.run(op("mean", "x", out="m", dim=[0]), [x])
    (four,) = domain.run(op("mul", "m", 4, out="s"), [mean, 4])
    (total,) = domain.run(op("sum", "x", out="s", dim=[0]), [x])
    assert domain.difference(four, total) is None
    assert domain.difference(four, mean) == ()


def test_a_zero_denominator_is_no_answer() -> None:
    with pytest.raises(UnsupportedError):
        Field(1).run(op("div", "x", "y", out="q"), [lifted(np.ones(2)), lifted(np.zeros(2))])


def test_what_the_program_does_not_divide_by_is_no_answer() -> None:
    """x b / b is x only where b is not zero."""
    for own in (False, True):
        domain = Field(1)
        x, b = (domain.draw(label, TensorType((2,), "f64")) for label in "xb")
        if own:
            domain.run(op("div", "x", "b", out="q"), [x, b])
        domain.turn()
        run(domain, "div", x, 3.0)
        run(domain, "softmax", x, dim=0)  # sums of exponentials are never zero
        if own:
            run(domain, "div", run(domain, "mul", x, b), b)
            run(domain, "reciprocal", run(domain, "neg", b))
        for name in ("reciprocal", "div"):
            with pytest.raises(UnsupportedError, match="does not divide by"):
                run(domain, name, *([x] if name == "reciprocal" else [b, x]))


def test_other_functions_are_congruences_and_nothing_more() -> None:
    domain = Field(1)
    x = domain.draw("x", TensorType((3,), "f64"))
    (a,), (b,) = (domain.run(op("exp", "x", out="e"), [x]) for _ in range(2))
    assert domain.difference(a, b) is None
    for other in (domain.run(op("sigmoid", "x", out="e"), [x]), domain.run(op("neg", "x", out="e"), [x])):
        assert domain.difference(a, other[0]) == (0,)
    (m,) = domain.run(op("amax", "x", out="m", dim=[0]), [x])
    (turned,) = domain.run(op("amax", "x", out="m", dim=[0]), [domain.take(x, 0, [2, 0, 1])])
    assert domain.difference(m, turned) is None  # the greatest of a set does not know its order


def test_softmax_does_not_see_its_neighbours_rows() -> None:
    domain = Field(1)
    x = domain.draw("x", TensorType((3, 4), "f64"))
    (whole,) = domain.run(op("softmax", "x", out="s", dim=-1), [x])
    (rows,) = domain.run(op("softmax", "x", out="s", dim=-1), [domain.take(x, 0, [1])])
    assert domain.difference(rows, domain.take(whole, 0, [1])) is None


def test_bound_grows_with_degree_and_work_is_bounded() -> None:
    domain = Field(1)
    x = domain.draw("x", TensorType((2,), "f64"))
    before = domain.error
    assert 0 < before < 1e-30
    for _ in range(20):
        (x,) = domain.run(op("mul", "x", "x", out="x"), [x, x])
    assert domain.error > before * 1e5
    with pytest.raises(LimitError):
        domain.draw("big", TensorType((MAX_PRODUCTS + 1,), "f64"))
