"""Every listed op in torch against its numpy semantics, and whole Programs too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from tests.program.op_cases import CASES
from tests.program.op_draws import Case, flag, number, one, shape, small, tensor
from tests.program.random_programs import Drawn, programs

from tensure.errors import TensureError
from tensure.host import Runner, _resolve
from tensure.program import (
    Entry,
    Name,
    Op,
    Program,
    Ref,
    Value,
    dtype_name,
    evaluate_op,
    evaluate_program,
    listed,
    lookup,
)

EXAMPLES = 100 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 10
TOLERANCE = {"f64": 1e-13, "f32": 5e-7, "f16": 1e-3, "bf16": 8e-3}
"""As in tests/program/test_ops.py: |difference| over 1 + |value|, times the case's slack."""


def to_torch(array: Any) -> torch.Tensor:
    array = np.array(array, order="C")
    if dtype_name(array.dtype) == "bf16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(value: torch.Tensor) -> Any:
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()


def run_host(name: str, found: Case) -> list[torch.Tensor]:
    """One op as a Program of its own."""
    inputs: dict[str, torch.Tensor] = {}
    values: dict[str, Value] = {}
    args: list[Any] = []
    for at, arg in enumerate(found.args):
        if isinstance(arg, np.ndarray):
            key = f"x{at}"
            values[key] = Value(tuple(arg.shape), dtype_name(arg.dtype))
            inputs[key] = to_torch(arg)
            args.append(Ref(Name(key)))
        else:
            args.append(arg)
    outs = tuple(Name(f"y{at}") for at in range(lookup(name).num_outs))
    step = Op(name, tuple(args), outs, tuple(sorted(found.attrs.items())))
    entry = Entry(tuple(map(Name, inputs)), (step,), outs)
    outputs, _ = Runner(Program(values=values, entries={"run": entry}), {}).run(inputs)
    return list(outputs.values())


def disagreement(name: str, found: Case) -> str | None:
    want = evaluate_op(name, found.args, found.attrs)
    have = run_host(name, found)
    masked = found.attrs.get("output_mask")
    for at, (mine, theirs) in enumerate(zip(have, want, strict=True)):
        if masked is not None and not masked[at]:
            continue
        dtype = dtype_name(theirs.dtype)
        if tuple(mine.shape) != theirs.shape or str(mine.dtype) != str(
            to_torch(theirs[:0] if theirs.ndim else theirs).dtype
        ):
            return f"{mine.dtype}{list(mine.shape)}, semantics has {dtype}{list(theirs.shape)}"
        if not close(to_numpy(mine), theirs, TOLERANCE.get(dtype, 0) * found.slack):
            return f"{mine!r}, semantics has {theirs!r}"
    return None


def close(have: Any, want: Any, tolerance: float) -> bool:
    if not tolerance:
        return bool(np.array_equal(have, want))
    have, want = have.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(have - want) <= tolerance * (1 + np.abs(want))
    return bool(np.all(np.where(np.isfinite(want), near, (have == want) | (np.isnan(have) & np.isnan(want)))))


# --- strategies for what op_cases leaves to other oracles -------------------------------------------


def _per_channel(draw: Any, size: tuple[int, ...]) -> tuple[int | None, int]:
    if size and flag(draw):
        axis = small(draw, -len(size), len(size) - 1)
        return axis, size[axis]
    return None, 1


def _quantize(draw: Any) -> Case:
    size = shape(draw, 1, 3, side=1)
    axis, count = _per_channel(draw, size)
    attrs = {
        "scale": tuple(one(draw, [0.1, 0.25, 0.013]) for _ in range(count)),
        "zero_point": tuple(small(draw, -5, 5) for _ in range(count)),
        "axis": axis,
        "qmin": -128,
        "qmax": 127,
        "dtype": "i8",
    }
    return Case([tensor(draw, size, one(draw, ["f32", "f64", "f16", "bf16"]), specials=True)], attrs)


def _dequantize(draw: Any) -> Case:
    found = _quantize(draw)
    attrs = {key: found.attrs[key] for key in ("scale", "zero_point", "axis")}
    x = tensor(draw, found.args[0].shape, one(draw, ["i8", "u8", "i16", "i32"]), low=-100, high=100)
    return Case([x], {**attrs, "dtype": one(draw, ["f32", "f64", "f16", "bf16"])})


def _drawn(draw: Any) -> Case:
    size = shape(draw)
    like = tensor(draw, size, one(draw, ["f32", "bf16", "i64"])) if flag(draw) else None
    attrs = {
        "law": one(draw, ["uniform", "normal"]),
        "seed": small(draw, -3, 3),
        "start": small(draw, 0, 9),
        "size": size,
        "extent": small(draw, 0, 64),
        "offset": small(draw, 0, 8),
        "after": one(draw, ["", "5ee7a1b0c2d3"]),
        "dtype": one(draw, ["f32", "f64"]),
    }
    return Case([like], attrs)


def _requantize(draw: Any) -> Case:
    size = shape(draw, 1, 3, side=1)
    axis, count = _per_channel(draw, size)
    attrs = {
        "multiplier": tuple(draw(st.integers(1 << 30, (1 << 31) - 1)) for _ in range(count)),
        "shift": tuple(small(draw, -12, 2) for _ in range(count)),
        "zero_point": small(draw, -5, 5),
        "axis": axis,
    }
    return Case([tensor(draw, size, "i32", low=-100_000, high=100_000)], attrs)


def _linear(draw: Any) -> Case:
    width, depth = small(draw, 1, 4), small(draw, 1, 5)
    x = tensor(draw, (*shape(draw, 0, 2, side=1), depth), one(draw, ["i8", "u8"]), low=-100, high=100)
    bias = tensor(draw, (width,), "i32", low=-1000, high=1000) if flag(draw) else None
    weight = tensor(draw, (width, depth), "i8", low=-100, high=100)
    return Case([x, weight, bias], {"input_zero_point": small(draw, 0, 9)})


def _integer_convolution(draw: Any) -> Case:
    groups, per = small(draw, 1, 2), small(draw, 1, 2)
    x = tensor(draw, (1, groups * per, 4, 5), "i8", low=-100, high=100)
    weight = tensor(draw, (groups * 2, per, 2, 3), "i8", low=-100, high=100)
    bias = tensor(draw, (groups * 2,), "i32", low=-1000, high=1000) if flag(draw) else None
    padding = one(draw, [(0,), (1, 1), (1, 0, 0, 2)])
    attrs = {
        "groups": groups,
        "padding": padding,
        "stride": one(draw, [(1,), (2, 1)]),
        "input_zero_point": small(draw, -9, 9),
    }
    return Case([x, weight, bias], attrs)


def _integer_add(draw: Any) -> Case:
    attrs = {
        **{f"multiplier{s}": draw(st.integers(1 << 30, (1 << 31) - 1)) for s in ("", "1", "2")},
        **{f"shift{s}": small(draw, -19, -1) for s in ("", "1", "2")},
        **{f"zero_point{s}": small(draw, -9, 9) for s in ("", "1", "2")},
    }
    size = shape(draw, 1, 3)
    return Case([tensor(draw, size, "i8", low=-100, high=100) for _ in "ab"], attrs)


def _integer_pool(draw: Any) -> Case:
    x = tensor(draw, (1, 2, 4, 5), "i8", low=-100, high=100)
    attrs = {
        "kernel_size": (2, 3),
        "stride": one(draw, [(), (1,)]),
        "padding": one(draw, [(0,), (1, 0, 0, 1)]),
    }
    return Case([x], attrs)


def _padded_pool(kind: str) -> Callable[[Any], Case]:
    def build(draw: Any) -> Case:
        x = tensor(draw, (1, 2, small(draw, 3, 6), small(draw, 3, 6)), "f32")
        attrs = {
            "kernel_size": (2, 3),
            "stride": one(draw, [(), (2, 2), (3, 1)]),
            "padding": tuple(small(draw, 0, 1) for _ in range(4)),
            "ceil_mode": flag(draw),
        }
        if kind == "avg_pool2d":
            attrs |= {"count_include_pad": flag(draw), "divisor_override": one(draw, [None, 3])}
        return Case([x], attrs, slack=4)

    return build


def _padded_convolution(draw: Any) -> Case:
    attrs = {"padding": (0, 1, 2, 0), "stride": (2, 1), "dilation": one(draw, [(1,), (1, 2)])}
    if flag(draw):
        attrs |= {"transposed": True, "padding": (0, 1, 0, 1), "output_padding": one(draw, [(0,), (1, 0)])}
    return Case([tensor(draw, (1, 2, 5, 6), "f32"), tensor(draw, (2, 2, 2, 2), "f32"), None], attrs, slack=64)


def _mixed_clamp(draw: Any) -> Case:
    x = tensor(draw, (2, 3), one(draw, ["f32", "i32"]))
    bounds = [tensor(draw, (3,), one(draw, ["f32", "i32"])), number(draw)]
    return Case([x, *(bounds if flag(draw) else bounds[::-1])])


OWN: dict[str, Callable[[Any], Case]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "requantize": _requantize,
    "draw": _drawn,
    "integer_linear": _linear,
    "integer_convolution": _integer_convolution,
    "integer_add": _integer_add,
    "integer_avg_pool2d": _integer_pool,
}
MORE: dict[str, tuple[str, Callable[[Any], Case]]] = {
    "max_pool2d in pairs": ("max_pool2d", _padded_pool("max_pool2d")),
    "avg_pool2d in pairs": ("avg_pool2d", _padded_pool("avg_pool2d")),
    "convolution in pairs": ("convolution", _padded_convolution),
    "clamp of both kinds": ("clamp", _mixed_clamp),
}
ALL: dict[str, tuple[str, Callable[[Any], Case]]] = {
    **{name: (name, build) for name, build in {**CASES, **OWN}.items()},
    **MORE,
}


def cases(build: Callable[[Any], Case]) -> st.SearchStrategy[Case]:
    return st.composite(build)()


def test_every_op_a_program_may_hold_is_tried() -> None:
    assert {name for name, found in listed().items() if not found.communication} == set(CASES) | set(OWN)


@pytest.mark.parametrize("label", ALL)
def test_op_is_its_semantics(label: str) -> None:
    name, build = ALL[label]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(cases(build))
    def check(found: Case) -> None:
        try:
            evaluate_op(name, found.args, found.attrs)
        except TensureError:
            return  # not accepted: some drawn integer sums leave 32 bits
        assert disagreement(name, found) is None

    check()


FAULTS: dict[str, tuple[str, str, Any]] = {
    "sub swapped": ("sub", "aten.sub.Tensor", lambda a, b: torch.sub(b, a)),
    "linear without bias": (
        "linear",
        "aten.linear.default",
        lambda x, w, b: torch.nn.functional.linear(x, w),
    ),
    "permute reversed": ("permute", "aten.permute.default", lambda x, d: torch.permute(x, d[::-1])),
    "embedding one late": (
        "embedding",
        "aten.embedding.default",
        lambda w, i, *a: torch.embedding(w, i.roll(1), *a),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_harness_sees_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, overload, wrong = FAULTS[fault]
    monkeypatch.setitem(_resolve._FASTER, overload, wrong)  # type: ignore[misc]

    def red(found: Case) -> bool:
        try:
            return disagreement(name, found) is not None
        except TensureError:
            return True

    try:
        find(
            cases(CASES[name]),
            red,
            settings=settings(max_examples=500, database=None, phases=(Phase.generate,)),
        )
    except NoSuchExample:
        pytest.fail("never seen")


@settings(max_examples=40, deadline=None)
@given(programs(np.float64))
def test_whole_program(found: Drawn) -> None:
    want = evaluate_program(found.program, found.given).outputs
    weights = {key: to_torch(array) for key, array in found.weights.items()}
    have, _ = Runner(found.program, weights).run(
        {key: to_torch(array) for key, array in found.inputs.items()}
    )
    assert list(have) == list(want)
    for key, array in want.items():
        np.testing.assert_allclose(have[key].numpy(), array, rtol=1e-10, atol=1e-10)
