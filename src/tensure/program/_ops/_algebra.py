"""Matrix products. Operands share one dtype; halves multiply in f32 and round once; integers wrap.

einsum's equation is a bounded string of its own small grammar: letters and commas, `->`, letters.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np

from .._records import TensorType
from ._rules import (
    INTEGERS,
    NUMBERS,
    broadcast,
    cast,
    in_range,
    need_dtype,
    need_rank,
    operand,
    same_dtype,
    single,
    type_of,
)
from ._table import MAX_RANK, Array, Given, Number, define, refuse, room

_EQUATION: Final = re.compile(r"[A-Za-z]{0,8}(,[A-Za-z]{0,8}){0,7}->[A-Za-z]{0,8}")


def _dtype(**operands: Any) -> str:
    dtype = same_dtype(**operands)
    need_dtype("an operand", dtype, NUMBERS)
    return dtype


def _contract(a: int, b: int, what: str) -> None:
    if a != b:
        raise refuse(f"{what} of sizes {a} and {b}", "equal sizes")


def product(a: Array, b: Array) -> Array:
    """The matrix product in the arithmetic dtype of a."""
    return np.asarray(np.matmul(single(a), single(b)))


def _rounded(args: list[Any], given: Given) -> list[Array]:
    return [cast(product(args[0], args[1]), type_of(args[0]).dtype)]


def _mm_rule(args: list[Any], given: Given) -> list[TensorType]:
    a, b = args
    need_rank("self", a, 2)
    need_rank("mat2", b, 2)
    _contract(a.shape[1], b.shape[0], "columns of self and rows of mat2")
    return [TensorType((a.shape[0], b.shape[1]), _dtype(self=a, mat2=b))]


def _bmm_rule(args: list[Any], given: Given) -> list[TensorType]:
    a, b = args
    need_rank("self", a, 3)
    need_rank("mat2", b, 3)
    _contract(a.shape[0], b.shape[0], "batches")
    _contract(a.shape[2], b.shape[1], "columns of self and rows of mat2")
    return [TensorType((a.shape[0], a.shape[1], b.shape[2]), _dtype(self=a, mat2=b))]


def _matmul_rule(args: list[Any], given: Given) -> list[TensorType]:
    a, b = args
    if not a.shape or not b.shape:
        raise refuse(f"operands of types {a} and {b}", "rank at least 1")
    left = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    _contract(left[-1], right[-2], "columns of self and rows of other")
    rows = left[-2:-1] if len(a.shape) > 1 else ()
    cols = right[-1:] if len(b.shape) > 1 else ()
    return [TensorType((*broadcast(left[:-2], right[:-2]), *rows, *cols), _dtype(self=a, other=b))]


define("mm(self: Tensor, mat2: Tensor) -> 1", _mm_rule, _rounded, "The product of two matrices.")
define(
    "bmm(self: Tensor, mat2: Tensor) -> 1", _bmm_rule, _rounded, "The products of two batches of matrices."
)
define(
    "matmul(self: Tensor, other: Tensor) -> 1",
    _matmul_rule,
    _rounded,
    "The product of vectors, matrices or batches of matrices; batch dims broadcast.",
)


def _mv_rule(args: list[Any], given: Given) -> list[TensorType]:
    need_rank("self", args[0], 2)
    need_rank("vec", args[1], 1)
    return _matmul_rule(args, given)


def _dot_rule(args: list[Any], given: Given) -> list[TensorType]:
    need_rank("self", args[0], 1)
    need_rank("tensor", args[1], 1)
    return _matmul_rule(args, given)


def _outer_rule(args: list[Any], given: Given) -> list[TensorType]:
    need_rank("self", args[0], 1)
    need_rank("vec2", args[1], 1)
    return [TensorType(args[0].shape + args[1].shape, _dtype(self=args[0], vec2=args[1]))]


define("mv(self: Tensor, vec: Tensor) -> 1", _mv_rule, _rounded, "A matrix times a vector.")
define("dot(self: Tensor, tensor: Tensor) -> 1", _dot_rule, _rounded, "The sum of products of two vectors.")
define(
    "outer(self: Tensor, vec2: Tensor) -> 1",
    _outer_rule,
    lambda args, given: [
        cast(np.asarray(np.multiply.outer(single(args[0]), single(args[1]))), type_of(args[0]).dtype)
    ],
    "Every product of an element of self with one of vec2.",
)

# --- products with something added ----------------------------------------------------------------


def _added(base: TensorType, out: TensorType, given: Given) -> list[TensorType]:
    same_dtype(self=base, product=out)
    if broadcast(base.shape, out.shape) != out.shape:
        raise refuse(f"self of shape {list(base.shape)}", f"what broadcasts to {list(out.shape)}")
    for name in ("beta", "alpha"):
        value: Number = given[name]
        in_range(name, value, -math.inf)
        if isinstance(value, float) and out.dtype in INTEGERS:
            raise refuse(f"{name}={value} for dtype {out.dtype}", "an integer")
    return [out]


def _add_product(args: list[Any], given: Given) -> list[Array]:
    base, a, b = args
    dtype = type_of(a).dtype
    total = product(a, b)
    if given["alpha"] != 1:
        total = np.asarray(operand(given["alpha"], dtype) * total)
    if given["beta"] != 0:  # with beta 0 the base is not read: its NaN does not count
        total = np.asarray(operand(given["beta"], dtype) * operand(base, dtype) + total)
    return [cast(total, dtype)]


define(
    "addmm(self: Tensor, mat1: Tensor, mat2: Tensor; beta: number = 1, alpha: number = 1) -> 1",
    lambda args, given: _added(args[0], _mm_rule(args[1:], given)[0], given),
    _add_product,
    "beta * self + alpha * (mat1 @ mat2); beta = 0 leaves self out.",
)
define(
    "baddbmm(self: Tensor, batch1: Tensor, batch2: Tensor; beta: number = 1, alpha: number = 1) -> 1",
    lambda args, given: _added(args[0], _bmm_rule(args[1:], given)[0], given),
    _add_product,
    "beta * self + alpha * (batch1 @ batch2); beta = 0 leaves self out.",
)


def _linear_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    need_rank("weight", weight, 2)
    if not x.shape:
        raise refuse(f"input of type {x}", "rank at least 1")
    _contract(x.shape[-1], weight.shape[1], "last dims of input and weight")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise refuse(f"bias of shape {list(bias.shape)}", f"{list(weight.shape[:1])}")
    return [TensorType((*x.shape[:-1], weight.shape[0]), _dtype(input=x, weight=weight, bias=bias))]


def _linear(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    out = product(x, weight.T)
    return [cast(out if bias is None else np.asarray(out + single(bias)), type_of(x).dtype)]


define(
    "linear(input: Tensor, weight: Tensor, bias: Tensor?) -> 1",
    _linear_rule,
    _linear,
    "input @ weight.T + bias over the last dim; weight is [out, in].",
)

# --- einsum ---------------------------------------------------------------------------------------


def einsum_terms(equation: str) -> tuple[list[str], str]:
    """The operand terms and the result term of an equation."""
    if not _EQUATION.fullmatch(equation):
        raise refuse(
            f"equation={equation[:80]!r}",
            "terms of letters, at most 8 terms of at most 8, as in 'bqk,bkd->bqd'",
        )
    left, out = equation.split("->")
    if len(set(out)) != len(out) or not set(out) <= set(left):
        raise refuse(f"equation={equation!r}", "result letters that stand on the left, each once")
    return left.split(","), out


def _einsum_rule(args: list[Any], given: Given) -> list[TensorType]:
    terms, out = einsum_terms(given["equation"])
    if len(terms) != len(args):
        raise refuse(f"{len(args)} operands for equation={given['equation']!r}", f"{len(terms)}")
    sizes: dict[str, int] = {}
    for position, (term, arg) in enumerate(zip(terms, args, strict=True)):
        need_rank(f"tensors[{position}]", arg, len(term))
        for letter, size in zip(term, arg.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise refuse(f"letter {letter} is {sizes[letter]} and {size}", "one size for each letter")
    dtype = _dtype(**{f"tensors[{position}]": arg for position, arg in enumerate(args)})
    return [TensorType(tuple(sizes[letter] for letter in out), dtype)]


def _einsum(args: list[Any], given: Given) -> list[Array]:
    """Two operands at a time from the left; a letter is summed as soon as no later term needs it."""
    terms, out = einsum_terms(given["equation"])
    value, have = single(args[0]), terms[0]
    for position in range(1, len(terms)):
        later = set(out).union(*terms[position + 1 :])
        letters = dict.fromkeys(have + terms[position])
        keep = "".join(letter for letter in letters if letter in later)
        sizes = dict(zip(have + terms[position], value.shape + args[position].shape, strict=True))
        room(tuple(sizes[letter] for letter in keep), "an intermediate product")
        value = np.einsum(f"{have},{terms[position]}->{keep}", value, single(args[position]), optimize=True)
        have = keep
    return [cast(np.einsum(f"{have}->{out}", value), type_of(args[0]).dtype)]


define(
    "einsum(tensors: Tensor*; equation: str) -> 1",
    _einsum_rule,
    _einsum,
    "Sums of products over named letters: every letter not in the result is summed. Write the result out.",
)
assert MAX_RANK == 8, "the equation's grammar holds the rank bound"
