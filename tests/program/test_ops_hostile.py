"""Hostile operands and attributes: a TensureError that names the op, before anything is allocated."""

from __future__ import annotations

import math
import os
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import LimitError, RecordError, TensureError, UnsupportedError
from tensure.program._dtypes import numpy_dtype
from tensure.program._ops import evaluate_op, infer_op, listed, lookup
from tensure.program._ops._table import MAX_ELEMENTS, MAX_RANK, AttrSpec, OperandSpec
from tensure.program._records import TensorType

EXAMPLES = 300 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 8


def f32(*shape: int) -> TensorType:
    return TensorType(shape, "f32")


def i64(*shape: int) -> TensorType:
    return TensorType(shape, "i64")


IMAGE, KERNEL = f32(1, 4, 8, 8), f32(6, 4, 3, 3)
POOL: dict[str, Any] = {"kernel_size": (2, 2)}
SCALE: dict[str, Any] = {"zero_point": (0,), "qmin": 0, "qmax": 255, "dtype": "u8"}
REFUSED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    # ORT #28731: a weight of higher rank than the input
    ("convolution", [f32(1, 4, 8), KERNEL, None], {}, "rank 4"),
    ("convolution", [IMAGE, f32(6, 4), None], {}, "rank 3 or 4 or 5"),
    ("convolution", [IMAGE, KERNEL, f32(5)], {}, "[6]"),
    ("convolution", [IMAGE, KERNEL, None], {"stride": (0,)}, "stride"),
    ("convolution", [IMAGE, KERNEL, None], {"stride": (1, 1, 1)}, "stride"),
    ("convolution", [IMAGE, KERNEL, None], {"dilation": (0, 1)}, "dilation"),
    ("convolution", [IMAGE, KERNEL, None], {"padding": (-1,)}, "padding"),
    ("convolution", [IMAGE, KERNEL, None], {"padding": (1, 1, 1)}, "padding"),
    ("convolution", [IMAGE, KERNEL, None], {"groups": 0}, "groups"),
    ("convolution", [IMAGE, KERNEL, None], {"groups": 4}, "whole groups"),
    ("convolution", [IMAGE, f32(0, 4, 3, 3), None], {}, "at least one channel"),
    ("convolution", [IMAGE, f32(6, 4, 0, 3), None], {}, "at least 1"),
    ("convolution", [IMAGE, KERNEL, None], {"dilation": (9,)}, "a fit"),
    ("convolution", [IMAGE, KERNEL, None], {"output_padding": (1,)}, "transposed"),
    ("convolution", [f32(1 << 20, 4, 8, 8), f32(1 << 20, 4, 1, 1), None], {}, "elements"),
    ("max_pool2d", [IMAGE], {"kernel_size": (0, 2)}, "kernel_size"),
    ("max_pool2d", [IMAGE], {**POOL, "padding": (2,)}, "half"),
    ("max_pool2d", [f32(1, 1, 1, 1)], {"kernel_size": (1 << 30, 1), "padding": (1 << 29, 0)}, "window"),
    ("avg_pool2d", [IMAGE], {**POOL, "divisor_override": 0}, "divisor_override"),
    ("adaptive_avg_pool2d", [IMAGE], {"output_size": (1 << 30, 1)}, "output_size"),
    ("group_norm", [IMAGE, None, None], {"num_groups": 0}, "num_groups"),
    ("group_norm", [IMAGE, None, None], {"num_groups": 3}, "whole groups"),
    ("layer_norm", [IMAGE, None, None], {"normalized_shape": (8,), "eps": -1.0}, "eps"),
    ("layer_norm", [IMAGE, None, None], {"normalized_shape": (8,), "eps": math.nan}, "eps"),
    ("layer_norm", [IMAGE, f32(4), None], {"normalized_shape": (8,)}, "[8]"),
    ("rms_norm", [IMAGE, None], {"normalized_shape": (7,)}, "last dims"),
    ("batch_norm", [IMAGE, None, None, f32(4), f32(4)], {"training": True}, "training"),
    ("slice", [IMAGE], {"step": 0}, "step"),
    ("slice", [IMAGE], {"step": -1}, "step"),
    ("slice", [IMAGE], {"dim": 4}, "dim=4"),
    ("select", [IMAGE], {"dim": 2, "index": 8}, "-8 to 7"),
    ("select", [IMAGE], {"dim": 2, "index": -9}, "-8 to 7"),
    ("arange", [], {"end": 1 << 62}, "elements"),
    ("arange", [], {"end": 4, "step": 0}, "step"),
    ("arange", [], {"end": math.inf}, "step"),
    ("arange", [], {"end": 300, "dtype": "u8"}, "fits u8"),
    ("full", [], {"size": (1 << 23, 1 << 23), "fill_value": 0}, "elements"),
    ("full", [], {"size": (-1,), "fill_value": 0}, "at least 0"),
    ("full", [], {"size": (2,), "fill_value": math.nan, "dtype": "i32"}, "fits i32"),
    ("view", [IMAGE], {"size": (-1, -1)}, "one -1"),
    ("view", [f32(0, 2)], {"size": (-1, 0)}, "ambiguous"),
    ("view", [IMAGE], {"size": (1,) * 9 + (256,)}, "rank at most 8"),
    ("expand", [f32(2, 1)], {"size": (3, 4)}, "grown from 1"),
    ("expand", [f32(1)], {"size": (1 << 45,)}, "elements"),
    ("repeat", [f32(2)], {"repeats": (1 << 62,)}, "elements"),
    ("permute", [f32(2, 2)], {"dims": (0, 0)}, "twice"),
    ("topk", [f32(3)], {"k": 4}, "k=4"),
    ("topk", [f32(3)], {"k": -1}, "k=-1"),
    ("one_hot", [i64(3)], {"num_classes": 0}, "num_classes"),
    ("constant_pad_nd", [f32(3)], {"pad": (-2, -2)}, "cut off"),
    ("constant_pad_nd", [f32(3)], {"pad": (1,)}, "pairs"),
    ("constant_pad_nd", [f32(3)], {"pad": (1 << 62, 0)}, "pairs"),
    ("mm", [f32(2, 3), f32(4, 2)], {}, "equal sizes"),
    ("mm", [f32(1 << 24, 0), f32(0, 1 << 24)], {}, "elements"),
    ("linear", [f32(2, 3), TensorType((4, 3), "bf16"), None], {}, "one dtype"),
    ("einsum", [f32(2), f32(2)], {"equation": "a,b->ab;import os"}, "letters"),
    ("einsum", [f32(2)], {"equation": "a" * 10_000 + "->a"}, "letters"),
    ("einsum", [f32(2)], {"equation": "a->b"}, "on the left"),
    ("einsum", [f32(2), f32(3)], {"equation": "a,a->a"}, "one size"),
    ("embedding", [f32(4, 2), f32(3)], {}, "i32 i64"),
    ("index", [f32(4), TensorType((4,), "bool")], {}, "i32 i64"),
    ("quantize", [f32(3)], {**SCALE, "scale": (0.0,)}, "scale"),
    ("quantize", [f32(3)], {**SCALE, "scale": (math.inf,)}, "scale"),
    ("quantize", [f32(3)], {**SCALE, "scale": (1.0, 1.0)}, "entries"),
    ("quantize", [f32(3)], {**SCALE, "scale": (1.0,), "qmax": 256}, "qmax"),
    ("requantize", [TensorType((3,), "i32")], {"multiplier": (1,), "shift": (31,)}, "shift"),
    ("requantize", [TensorType((3,), "i32")], {"multiplier": (-1,), "shift": (0,)}, "multiplier"),
    (
        "scaled_dot_product_attention",
        [f32(1, 2, 3), f32(1, 2, 3), f32(1, 2, 3), None],
        {"dropout_p": 0.5},
        "dropout",
    ),
    (
        "scaled_dot_product_attention",
        [f32(3, 2, 3), f32(2, 2, 3), f32(2, 2, 3), None],
        {"enable_gqa": True},
        "heads",
    ),
    ("nll_loss_forward", [f32(2, 3), i64(2), None], {"reduction": 3, "ignore_index": 0}, "reduction"),
    ("add", [i64(2), 1], {"alpha": 0.5}, "integer"),
    ("add", [f32(2), f32(3)], {}, "broadcast"),
    ("add", [f32(2), 1 << 64], {}, "operand other"),
    ("add", [f32(2)], {}, "1 operands"),
    ("add", [f32(*[1] * 9), 1], {}, "rank at most 8"),
    ("add", [f32(2), 1], {"beta": 1}, "no attribute 'beta'"),
    ("sum", [f32(2)], {"dim": (0, 0)}, "twice"),
    ("amax", [f32(0)], {}, "at least one element"),
    ("send", [f32(2)], {"to": "a", "key": 1}, "communication"),
]


@pytest.mark.parametrize(
    "name,types,attrs,word", REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_refused_by_name(name: str, types: list[Any], attrs: dict[str, Any], word: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((RecordError, LimitError)) as caught:
            infer_op(name, types, attrs)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(name) and word in str(caught.value)


WRONG_DATA: list[tuple[str, list[Any], dict[str, Any], str]] = [
    *(
        ("embedding", [np.ones((4, 2), np.float32), np.array([0, bad])], {}, f"holds {bad}")
        for bad in (-1, 4, -(1 << 63), (1 << 63) - 1)
    ),
    ("gather", [np.ones(4, np.float32), np.array([-1])], {"dim": 0}, "holds -1"),
    ("gather", [np.ones(4, np.float32), np.array([4])], {"dim": 0}, "holds 4"),
    ("scatter", [np.ones(4, np.float32), np.array([4]), np.ones(4, np.float32)], {"dim": 0}, "holds 4"),
    (
        "scatter_reduce",
        [np.ones(4, np.float32), np.array([4]), np.ones(4, np.float32)],
        {"dim": 0, "reduce": "amax"},
        "holds 4",
    ),
    ("scatter_add", [np.ones(4, np.float32), np.array([-1]), np.ones(4, np.float32)], {"dim": 0}, "holds -1"),
    ("index_select", [np.ones(4, np.float32), np.array([-1])], {"dim": 0}, "holds -1"),
    ("index_add", [np.ones(4, np.float32), np.array([9]), np.ones(1, np.float32)], {"dim": 0}, "holds 9"),
    ("index", [np.ones(4, np.float32), np.array([-5])], {}, "holds -5"),
    ("index_put", [np.ones(4, np.float32), np.ones(1, np.float32), np.array([4])], {}, "holds 4"),
    ("one_hot", [np.array([3])], {"num_classes": 3}, "holds 3"),
    (
        "nll_loss_forward",
        [np.zeros((1, 3), np.float32), np.array([3]), None],
        {"reduction": 1, "ignore_index": -100},
        "holds 3",
    ),
    (
        "embedding_dense_backward",
        [np.ones((1, 2), np.float32), np.array([-1])],
        {"num_weights": 3, "padding_idx": -1, "scale_grad_by_freq": False},
        "holds -1",
    ),
    ("div", [np.array([1]), np.array([0])], {"rounding_mode": "floor"}, "division by zero"),
    ("remainder", [np.array([1]), 0], {}, "division by zero"),
    ("pow", [np.array([2]), np.array([-1])], {}, "negative"),
    ("expand", [np.ones(1, np.int8)], {"size": (1 << 32,)}, "at most"),
]


@pytest.mark.parametrize(
    "name,args,attrs,word", WRONG_DATA, ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_data_is_named(name: str, args: list[Any], attrs: dict[str, Any], word: str) -> None:
    with pytest.raises((RecordError, LimitError)) as caught:
        evaluate_op(name, args, attrs)
    assert str(caught.value).startswith(name) and word in str(caught.value)


HUGE: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("repeat", [np.ones((1, 1), np.float32)], {"repeats": (1 << 40, 0)}),
    ("one_hot", [np.zeros(0, np.int64)], {"num_classes": 1 << 40}),
    ("triu", [np.zeros((0, 1 << 20, 1 << 20), np.float32)], {}),
    (
        "nll_loss_forward",
        [np.zeros((0, 1 << 40), np.float32), np.zeros(0, np.int64), None],
        {"reduction": 1, "ignore_index": -100},
    ),
    ("full", [], {"size": (1 << 31,), "fill_value": 0.0, "dtype": "f64"}),
    ("full", [], {"size": (1 << 31,), "fill_value": 0, "dtype": "u8"}),
]


@pytest.mark.parametrize("name,args,attrs", HUGE, ids=lambda value: value if isinstance(value, str) else "")
def test_no_evaluation_lays_out_more_than_its_bound(
    name: str, args: list[Any], attrs: dict[str, Any]
) -> None:
    """An empty tensor with huge other dims, too: semantics would build a mask or an index from them."""
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match=f"^{name}: (an operand|a result) of shape"):
            evaluate_op(name, args, attrs)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_empty_tensors_are_evaluated() -> None:
    (out,) = evaluate_op("repeat", [np.ones((2, 3), np.float32)], {"repeats": (4, 0)})
    assert out.shape == (8, 0)
    (out,) = evaluate_op("one_hot", [np.zeros((0, 2), np.int64)], {"num_classes": 5})
    assert out.shape == (0, 2, 5)


def test_an_unknown_op_is_answered_with_near_names() -> None:
    with pytest.raises(UnsupportedError, match="layer_norm"):
        lookup("layernorm")


# --- anything at all ------------------------------------------------------------------------------

SIZES = [0, 1, 2, 3, 4, 1 << 16, 1 << 33]
INTS = [-(1 << 63), -(1 << 31), -2, -1, 0, 1, 2, 3, 8, 1 << 31, (1 << 63) - 1]
FLOATS = [-math.inf, -1.0, -0.0, 0.0, 1e-320, 0.5, 2.0, 1e308, math.inf, math.nan]
DTYPES = ["f32", "f16", "bf16", "i64", "i8", "u8", "bool"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.sampled_from(INTS),
    "float": st.sampled_from(FLOATS + INTS),
    "number": st.sampled_from([*FLOATS, *INTS, True]),
    "bool": st.booleans(),
    "str": st.sampled_from(["", "sum", "floor", "tanh", "ij,jk->ik", "->", "ab"]),
    "dtype": st.sampled_from(DTYPES),
    "key": st.sampled_from(["a", 1, ("a", (1, 2)), ("a",) * 99]),
}


def attr(spec: AttrSpec) -> st.SearchStrategy[Any]:
    value = VALUES[spec.type]
    if spec.many:
        value = st.lists(value, max_size=5).map(tuple)
    return value | st.none() if spec.optional else value


def operand_types(spec: OperandSpec, sizes: list[int]) -> st.SearchStrategy[Any]:
    shapes = st.lists(st.sampled_from(sizes), max_size=5).map(tuple)
    found: st.SearchStrategy[Any] = st.builds(TensorType, shapes, st.sampled_from(DTYPES))
    if spec.number:
        found |= VALUES["number"]
    return found | st.none() if spec.optional else found


@st.composite
def calls(draw: Any, name: str, sizes: list[int]) -> tuple[list[Any], dict[str, Any]]:
    definition = lookup(name)
    args: list[Any] = []
    for spec in definition.operands:
        args += [
            draw(operand_types(spec, sizes)) for _ in range(draw(st.integers(0, 3)) if spec.variadic else 1)
        ]
    attrs = {
        key: draw(attr(spec))
        for key, spec in definition.attrs.items()
        if spec.required or draw(st.booleans())
    }
    return args, attrs


@pytest.mark.parametrize("name", listed())
def test_a_shape_rule_answers_or_refuses(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(calls(name, SIZES))
    def check(call: tuple[list[Any], dict[str, Any]]) -> None:
        try:
            types = infer_op(name, *call)
        except TensureError as error:
            assert str(error).startswith(name)
            return
        for found in types:
            assert len(found.shape) <= MAX_RANK and math.prod(found.shape) <= MAX_ELEMENTS

    check()


@pytest.mark.parametrize("name", listed())
def test_semantics_answers_or_refuses(name: str) -> None:
    """Small operands, hostile attributes: the frame itself holds results against the shape rule."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(calls(name, [0, 1, 2, 3]), st.integers(0, 2**32 - 1))
    def check(call: tuple[list[Any], dict[str, Any]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        types, attrs = call
        args = [filled(item, rng) if isinstance(item, TensorType) else item for item in types]
        try:
            if sum(math.prod(found.shape) for found in infer_op(name, types, attrs)) < 1 << 20:
                evaluate_op(name, args, attrs)
        except TensureError as error:
            assert str(error).startswith(name)

    check()


def filled(found: TensorType, rng: np.random.Generator) -> Any:
    if found.dtype in ("f32", "f16", "bf16"):
        return np.asarray(rng.choice([0.0, -1.5, 2.0, math.inf, math.nan], found.shape), np.float32).astype(
            numpy_dtype(found.dtype)
        )
    return np.asarray(rng.integers(-3 if found.dtype[0] == "i" else 0, 4, found.shape)).astype(
        numpy_dtype(found.dtype)
    )
