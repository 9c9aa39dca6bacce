"""Numpy semantics of every listed op against torch's own, over drawn shapes, dtypes and attributes.

The harness is one function, `disagreement`; it is shown to see planted faults below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from tensure.program._dtypes import dtype_name
from tensure.program._ops import _table, evaluate_op, infer_op, listed, lookup
from tensure.program._ops._rules import type_of

from .op_cases import CASES, Case

EXAMPLES = 200 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 25

TOLERANCE: Final = {"f64": 1e-13, "f32": 5e-7, "f16": 1e-3, "bf16": 8e-3}
"""Largest |ours - torch| over 1 + |torch|, times the case's slack: about one unit in the last place."""

TORCH: Final = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}

OWN: Final[dict[str, Callable[..., torch.Tensor]]] = {
    "copy": torch.clone,
    "add_n": lambda *tensors: torch.stack([item.double() for item in tensors]).sum(0).to(tensors[0].dtype),
}
"""Ops that ATen lacks but a line of torch says."""

ELSEWHERE: Final = {
    name
    for name in listed()
    if name.startswith("integer_") or name in {"quantize", "dequantize", "requantize", "draw"}
} | {name for name, definition in listed().items() if definition.communication}
"""Held against other oracles: test_ops_integers.py, test_ops_communication.py, test_ops_random.py."""

DIFFERENTIAL: Final = sorted(set(listed()) - ELSEWHERE)


def to_torch(value: Any) -> Any:
    """A numpy operand as a torch tensor; numbers and None as they are."""
    if not isinstance(value, np.ndarray):
        return value
    value = np.array(value, order="C")
    if dtype_name(value.dtype) == "bf16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def from_torch(value: torch.Tensor) -> Any:
    """A torch tensor in numpy, bf16 as its float32 values."""
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()


def run_torch(name: str, found: Case) -> list[torch.Tensor | None]:
    """ATen's own results: every operand and attribute by its listed name."""
    tensors = [to_torch(arg) for arg in found.args]
    if name in OWN:
        return [OWN[name](*tensors)]
    definition = lookup(name)
    kwargs: dict[str, Any] = {}
    for position, spec in enumerate(definition.operands):
        kwargs[spec.name] = tensors[position:] if spec.variadic else tensors[position]
    for key, value in found.attrs.items():
        is_dtype = definition.attrs[key].type == "dtype" and value is not None
        kwargs[key] = TORCH[value] if is_dtype else list(value) if isinstance(value, tuple) else value
    results = getattr(torch.ops.aten, name)(**kwargs)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def disagreement(name: str, found: Case) -> str | None:
    """What differs between our semantics, our shape rule and ATen; None when nothing does."""
    ours = evaluate_op(name, found.args, found.attrs)
    types = infer_op(name, [type_of(arg) for arg in found.args], found.attrs)
    if [type_of(item) for item in ours] != types:
        return f"semantics gives {[str(type_of(item)) for item in ours]}, the shape rule {[*map(str, types)]}"
    theirs = run_torch(name, found)
    if len(ours) != len(theirs) or len(ours) != lookup(name).num_outs:
        return f"{len(ours)} results, ATen has {len(theirs)}"
    for position, (have, want) in enumerate(zip(ours, theirs, strict=True)):
        if position in found.unasked:
            continue
        assert want is not None
        dtype = dtype_name(have.dtype)
        if have.shape != tuple(want.shape) or TORCH[dtype] != want.dtype:
            return f"{dtype}{list(have.shape)}, ATen has {want.dtype}{list(want.shape)}"
        if not close(have, from_torch(want), TOLERANCE.get(dtype, 0) * found.slack):
            return f"{have!r}, ATen has {want!r}"
    return None


def close(have: Any, want: Any, tolerance: float) -> bool:
    """Equal, or within tolerance of 1 + |want|; NaN equals NaN, infinities only themselves."""
    if not tolerance:
        return bool(np.array_equal(have, want))
    have, want = have.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(have - want) <= tolerance * (1 + np.abs(want))
    return bool(np.all(np.where(np.isfinite(want), near, (have == want) | (np.isnan(have) & np.isnan(want)))))


def drawn(name: str) -> st.SearchStrategy[Case]:
    return st.composite(CASES[name])()


def test_every_listed_op_has_a_strategy() -> None:
    assert set(CASES) == set(DIFFERENTIAL)


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_op_is_atens(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(drawn(name))
    def check(found: Case) -> None:
        before = [np.array(arg) if isinstance(arg, np.ndarray) else arg for arg in found.args]
        assert disagreement(name, found) is None
        for kept, arg in zip(before, found.args, strict=True):
            assert not isinstance(arg, np.ndarray) or kept.tobytes() == arg.tobytes(), (
                "an operand was written to"
            )

    check()


# --- the harness sees faults ----------------------------------------------------------------------


SEARCH: Final = settings(max_examples=400, deadline=None, database=None, phases=[Phase.generate])


@contextmanager
def planted(name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """The table with one op's semantics changed."""
    sound = _table._TABLE[name]
    _table._TABLE[name] = replace(sound, evaluate=change(sound.evaluate))
    try:
        yield
    finally:
        _table._TABLE[name] = sound


def _attr(**changed: Any) -> Callable[[Any], Any]:
    return lambda sound: lambda args, given: sound(args, {**given, **changed})


def _result(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda sound: lambda args, given: [change(item) for item in sound(args, given)]


def _tail(sound: Any) -> Any:
    """A slice one element late where there is room."""

    def late(args: list[Any], given: dict[str, Any]) -> Any:
        (right,) = sound(args, given)
        return [np.roll(right, 1, given["dim"])]

    return late


FAULTS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "sub: operands swapped": (
        "sub",
        lambda sound: (
            lambda args, given: (
                sound([-1 * args[0], args[1]], given)
                if isinstance(args[1], np.ndarray) and args[0].dtype == args[1].dtype
                else sound(args, given)
            )
        ),
    ),
    "rms_norm: eps dropped": ("rms_norm", _attr(eps=0.0)),
    "layer_norm: eps dropped": ("layer_norm", _attr(eps=0.0)),
    "slice: one late": ("slice", _tail),
    "gelu: always erf": ("gelu", _attr(approximate="none")),
    "add: alpha dropped": ("add", _attr(alpha=1)),
    "var: correction 0": ("var", _attr(correction=0)),
    "clamp: upper bound dropped": (
        "clamp",
        lambda sound: (
            lambda args, given: sound([args[0], args[1] if args[1] is not None else args[2], None], given)
        ),
    ),
    "softmax: over the first dim": ("softmax", _attr(dim=0)),
    "convolution: bias dropped": (
        "convolution",
        lambda sound: lambda args, given: sound([args[0], args[1], None], given),
    ),
    "convolution: kernel flipped": (
        "convolution",
        lambda sound: lambda args, given: sound([args[0], np.flip(args[1], -1), args[2]], given),
    ),
    "avg_pool2d: padding always counted": ("avg_pool2d", _attr(count_include_pad=True)),
    "attention: mask dropped": (
        "scaled_dot_product_attention",
        lambda sound: lambda args, given: sound([*args[:3], None], given),
    ),
    "attention: fully masked rows NaN": (
        "scaled_dot_product_attention",
        lambda sound: (
            lambda args, given: [
                np.where((item == 0).all(-1, keepdims=True), np.nan, item).astype(item.dtype)
                for item in sound(args, given)
            ]
        ),
    ),
    "exp: one part in 50 000": ("exp", _result(lambda x: x * x.dtype.type(1.00002))),
    "cat: order reversed": ("cat", lambda sound: lambda args, given: sound(args[::-1], given)),
    "maximum: NaN lost": (
        "maximum",
        lambda sound: (
            lambda args, given: [np.fmax(*np.broadcast_arrays(*args)).astype(sound(args, given)[0].dtype)]
        ),
    ),
    "linear: weight not transposed": (
        "linear",
        lambda sound: (
            lambda args, given: sound(
                [args[0], args[1].T if args[1].shape[0] == args[1].shape[1] else args[1], args[2]], given
            )
        ),
    ),
    "topk: smallest": ("topk", _attr(largest=False)),
    "nll_loss_forward: ignored class counted": ("nll_loss_forward", _attr(ignore_index=-1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str) -> None:
    name, change = FAULTS[fault]

    def wrong(found: Case) -> bool:
        try:
            return disagreement(name, found) is not None
        except AssertionError:  # the frame saw it first: the result's type breaks the shape rule
            return True

    with planted(name, change):
        try:
            find(drawn(name), wrong, settings=SEARCH)
        except NoSuchExample:
            pytest.fail(f"{fault} went unseen")
