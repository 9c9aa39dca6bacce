"""Every rule against numpy: what it derives is what the op gives, over many small shapes and parts.

For each drawn local op on parts of logical operands the rule may refuse; where it answers, the op on the
parts must equal the answered region of the op on the wholes (or its addend: the op on the wholes with all
but the slice set to zero). Unsound rules are planted to see that this is able to fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tensure.errors import TensureError
from tensure.program import TensorType, evaluate_op, infer_op, lookup
from tensure.program._ops import bind_op
from tensure.proving import _check_index, _check_ops, _rules, _windows
from tensure.proving._index import Index, Region, index_of, length, members, whole_region

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """A local op beside a logical one: attributes of both, logical operand shapes, the parts held."""

    op: str
    mine: Mapping[str, Any]
    theirs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...] | None, ...]
    parts: tuple[Region | None, ...]
    dtype: str = "f64"
    classes: Mapping[int, int] = field(default_factory=dict[int, int])
    """Operands that are indices, and below what."""


def holds(case: Case, derive: Callable[..., Any] = _rules.derive) -> bool | None:
    """Whether the rule's answer is right; None where it refuses or numpy does."""
    rng = np.random.default_rng(0)
    wholes: list[Any] = [_drawn(rng, shape, case, at) for at, shape in enumerate(case.shapes)]
    parts = [_taken(array, part) for array, part in zip(wholes, case.parts, strict=True)]
    try:
        every = evaluate_op(case.op, wholes, dict(case.theirs))
        have = evaluate_op(case.op, parts, dict(case.mine))
    except TensureError:
        return None
    definition = lookup(case.op)
    given = [
        bind_op(definition, [_typed(array) for array in arrays], dict(attrs))
        for arrays, attrs in ((parts, case.mine), (wholes, case.theirs))
    ]
    answer = derive(case.op, *given, case.shapes, case.parts, [array.shape for array in every])
    if answer is None:
        return None
    for out, (found, array) in enumerate(zip(answer, have, strict=True)):
        want = _addend(case, wholes, found.shares) if found.shares else every
        if any(
            hi > size for index, size in zip(found.region, want[out].shape, strict=True) for _, hi in index
        ):
            return False
        region = want[out][np.ix_(*(members(index) for index in found.region))] * float(found.coef)
        if region.shape != array.shape or not np.allclose(region, array, rtol=1e-9, atol=1e-9):
            return False
    return True


def checker_holds(case: Case) -> bool:
    """Where the prover's rule answers, the checker's agrees, and refuses the region next to it."""
    definition = lookup(case.op)
    dtypes = ["i64" if at in case.classes else case.dtype for at in range(len(case.shapes))]
    types = [None if s is None else TensorType(s, d) for s, d in zip(case.shapes, dtypes, strict=True)]
    held = [
        None if p is None else TensorType(tuple(map(length, p)), d)
        for p, d in zip(case.parts, dtypes, strict=True)
    ]
    try:
        outs = infer_op(case.op, types, dict(case.theirs))
        infer_op(case.op, held, dict(case.mine))
    except TensureError:
        return True
    given = [
        bind_op(definition, args, dict(attrs)) for args, attrs in ((held, case.mine), (types, case.theirs))
    ]
    mine, theirs = given
    answer = _rules.derive(case.op, mine, theirs, case.shapes, case.parts, [found.shape for found in outs])
    parts = [None if p is None else tuple(map(_check_index.Index, p)) for p in case.parts]
    return answer is None or all(
        _checker_agrees(case, parts, outs[at].shape, found, at) for at, found in enumerate(answer)
    )


def _checker_agrees(case: Case, parts: Any, shape: tuple[int, ...], found: Any, at: int) -> bool:
    shares = {share.letter: _check_index.Index(share.index) for share in found.shares}
    region = tuple(map(_check_index.Index, found.region))

    def follows(reg: Any, addend: Any) -> Any:
        attrs = dict(case.mine), dict(case.theirs)
        return _check_ops.follows(
            _check_ops.Piece(case.op, *attrs, case.shapes, parts, shape, reg, addend, at)
        )

    shifted = [
        (*region[:dim], region[dim].shifted(by), *region[dim + 1 :])
        for dim, by in itertools.product(range(len(region)), (-1, 1))
        if region[dim]
        and region[dim].start + by >= 0
        and region[dim].stop + by <= shape[dim]
        and not (case.op == "expand" and case.shapes[0] is not None and case.shapes[0][dim] == 1)
    ]
    other = [{**shares, letter: index[1:]} for letter, index in shares.items()]
    other += [{key: index for key, index in shares.items() if key != letter} for letter in shares]
    agrees = follows(region, shares) == found.coef
    return (
        agrees
        and all(follows(reg, shares) is None for reg in shifted)
        and all(follows(region, addend) is None for addend in other)
    )


def _drawn(rng: Any, shape: tuple[int, ...] | None, case: Case, at: int) -> Any:
    if shape is None:
        return None
    if at in case.classes:
        return rng.integers(0, case.classes[at], shape)
    if case.op == "embedding" and at == 1:
        return rng.integers(0, 3, shape)
    if case.dtype == "f64":
        return np.asarray(rng.standard_normal(shape))
    return rng.integers(-90, 90, shape).astype({"i8": np.int8, "i32": np.int32}[case.dtype])


def _taken(array: Any, part: Region | None) -> Any:
    if array is None or part is None:
        return None
    return np.asarray(array[np.ix_(*(members(index) for index in part))])


def _typed(array: Any) -> Any:
    return None if array is None else TensorType(array.shape, _dtype(array))


def _dtype(array: Array) -> str:
    return {np.dtype(np.int64): "i64", np.dtype(np.float64): "f64"}.get(array.dtype, "i8")


def _addend(case: Case, wholes: Sequence[Any], shares: Sequence[Any]) -> list[Array]:
    """The logical op with everything outside the slices of contracted letters zeroed in one operand."""
    from tensure.proving._contraction import TERMS, terms_of

    operands = list(wholes)
    if case.op == "nll_loss_forward":  # a sample's own weight counts as well: take the samples themselves
        rows = members(shares[0].index)
        return evaluate_op(case.op, [wholes[0][rows], wholes[1][rows], None], dict(case.theirs))
    for share in shares:
        if case.op in TERMS:
            ranks = [array.ndim for array in wholes if array is not None]
            found = terms_of(case.op, dict(case.theirs), ranks)
            assert found is not None
            at = next(i for i, term in enumerate(found[0]) if share.letter in term)
            dim = found[0][at].index(share.letter)
        else:
            at, dim = 0, {"c": 1, "n": 0, "o": 1}.get(share.letter, -1)
            dim = int(share.letter.lstrip("dim")) if dim < 0 else dim
        for which in (0, 1) if case.op == "mse_loss" else (at,):
            masked = np.zeros_like(operands[which])
            spot = (slice(None),) * dim + (members(share.index),)
            masked[spot] = operands[which][spot]
            operands[which] = masked
    return evaluate_op(case.op, operands, dict(case.theirs))


# --- cases -------------------------------------------------------------------------------------------


def indexes(size: int) -> list[Index]:
    """Ways to hold a part of a dim: whole, blocks, strided, two runs, turned round."""
    found = {
        tuple(range(size)),
        tuple(range(size // 2)),
        tuple(range(size // 2, size)),
        tuple(range(0, size, 2)),
    }
    found |= {
        (0, *range(size // 2 + 1, size)),
        tuple(reversed(range(size))),
        tuple(range(1, max(size - 1, 2))),
    }
    return [index_of(item) for item in sorted(found) if item and max(item) < size]


def regions(shape: Sequence[int]) -> Iterator[Region]:
    yield from itertools.product(*(indexes(size) for size in shape))


def few(cases: Iterator[Case], count: int = 250) -> list[Case]:
    """A seeded choice, the same every time."""
    every = list(itertools.islice(cases, 40_000))
    rng = np.random.default_rng(1)
    keep = rng.permutation(len(every))[:count]
    return [every[at] for at in sorted(keep)]


def elementwise() -> Iterator[Case]:
    for op, shapes in itertools.product(
        ("add", "mul", "maximum", "div"),
        (((4, 3), (4, 3)), ((4, 3), (3,)), ((4, 1), (4, 3)), ((2, 4, 3), (4, 1))),
    ):
        for parts in itertools.product(regions(shapes[0]), regions(shapes[1])):
            yield Case(op, {}, {}, shapes, parts)


def contractions() -> Iterator[Case]:
    rows: list[tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = [
        ("mm", {}, ((4, 3), (3, 4))),
        ("bmm", {}, ((2, 3, 4), (2, 4, 3))),
        ("matmul", {}, ((2, 3, 4), (4, 3))),
        ("linear", {}, ((4, 4), (3, 4))),
        ("einsum", {"equation": "bqk,btk->bqt"}, ((2, 3, 4), (2, 3, 4))),
        ("einsum", {"equation": "ab,bc,cd->ad"}, ((2, 3), (3, 4), (4, 2))),
        ("einsum", {"equation": "ii->i"}, ((4, 4),)),
        ("einsum", {"equation": "ab,c->c"}, ((3, 4), (3,))),
        ("outer", {}, ((4,), (3,))),
    ]
    for op, attrs, shapes in rows:
        kept = [few(iter(list(regions(shape))), 16) for shape in shapes]  # type: ignore[arg-type]
        for parts in itertools.product(*kept):
            yield Case(op, attrs, attrs, shapes, tuple(parts))  # type: ignore[arg-type]


def reductions() -> Iterator[Case]:
    for op, dim, keep in itertools.product(
        ("sum", "mean", "amax", "logsumexp", "var"), ((0,), (-1,), (0, 2)), (True, False)
    ):
        attrs = {"dim": dim, "keepdim": keep}
        for part in regions((4, 2, 3)):
            yield Case(op, attrs, attrs, ((4, 2, 3),), (part,))


def rows() -> Iterator[Case]:
    for op, dim in itertools.product(("softmax", "log_softmax", "cumsum", "sort"), (0, -1)):
        for part in regions((4, 4)):
            yield Case(op, {"dim": dim}, {"dim": dim}, ((4, 4),), (part,))
    for part in regions((3, 4)):
        yield Case(
            "rms_norm",
            {"normalized_shape": (4,)},
            {"normalized_shape": (4,)},
            ((3, 4), (4,)),
            (part, whole_region((4,))),
        )
        yield Case("embedding", {}, {}, ((3, 4), (5,)), (part, (((1, 4),),)))


def moves() -> Iterator[Case]:
    views: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((4, 6), (4, 3, 2)),
        ((4, 3, 2), (4, 6)),
        ((4, 6), (24,)),
        ((2, 6), (4, 3)),
        ((1, 6), (6,)),
        ((6,), (1, 2, 3, 1)),
    ]
    for shape, size in views:
        for part in regions(shape):
            held = int(np.prod([length(index) for index in part]))
            for mine in itertools.product(*({1, n // 2, n} for n in size)):
                if int(np.prod(mine)) == held:
                    yield Case("view", {"size": mine}, {"size": size}, (shape,), (part,))
    for part in regions((3, 1, 4)):
        yield Case("permute", {"dims": (2, 0, 1)}, {"dims": (2, 0, 1)}, ((3, 1, 4),), (part,))
        yield Case("transpose", {"dim0": 0, "dim1": -1}, {"dim0": 0, "dim1": -1}, ((3, 1, 4),), (part,))
        yield Case("unsqueeze", {"dim": 1}, {"dim": 1}, ((3, 1, 4),), (part,))
        yield Case("squeeze", {"dim": (0, 1)}, {"dim": (0, 1)}, ((3, 1, 4),), (part,))
        for at, to in itertools.product(range(4), range(-2, 4)):
            yield Case("select", {"dim": 2, "index": at}, {"dim": 2, "index": to}, ((3, 1, 4),), (part,))
        for n in (2, 5):
            size = (length(part[0]), n, -1)
            yield Case("expand", {"size": size}, {"size": (3, 5, 4)}, ((3, 1, 4),), (part,))
    for one, two in itertools.product(regions((2, 3)), repeat=2):
        yield Case("cat", {"dim": 1}, {"dim": 1}, ((2, 3), (2, 3)), (one, two))
    attrs = {"dim": 0, "start": 1, "end": 3}
    for one, two in itertools.product(regions((4, 3)), regions((2, 3))):
        yield Case("slice_scatter", attrs, attrs, ((4, 3), (2, 3)), (one, two))


def windows() -> Iterator[Case]:
    """All contiguous row slices, all local paddings: kernel, stride, dilation, channels, groups."""
    whole_w = whole_region((2, 2, 3, 1))
    for stride, dilation, pads in itertools.product((1, 2), (1, 2), ((0, 0), (1, 1), (2, 1))):
        theirs = {"stride": (stride, 1), "padding": (*pads, 0, 0), "dilation": (dilation, 1)}
        for lo, hi in itertools.combinations(range(8), 2):
            for mine in itertools.product(range(3), repeat=2):
                attrs = {**theirs, "padding": (*mine, 0, 0)}
                part: Region = (((0, 1),), ((0, 2),), ((lo, hi),), ((0, 1),))
                yield Case(
                    "convolution", attrs, theirs, ((1, 2, 7, 1), (2, 2, 3, 1), None), (part, whole_w, None)
                )
                pool = {"kernel_size": (3, 1), "ceil_mode": False}
                for op in ("max_pool2d", "avg_pool2d"):
                    extra = (
                        {"count_include_pad": False}
                        if op == "avg_pool2d"
                        else {"dilation": theirs["dilation"]}
                    )
                    one, other = (
                        {**pool, **extra, "stride": (stride, 1), "padding": p}
                        for p in ((*mine, 0, 0), (*pads, 0, 0))
                    )
                    yield Case(op, one, other, ((1, 2, 7, 1),), (part,))


def channels() -> Iterator[Case]:
    base = {"stride": (1,), "padding": (0,), "dilation": (1,)}
    for groups, (ins, depth) in ((1, (4, 4)), (2, (4, 2)), (4, (4, 1))):
        for c, o, d in itertools.product(indexes(ins), indexes(4), indexes(depth)):
            for local in (1, 2, 4):
                parts: tuple[Region | None, ...] = ((((0, 1),), c, ((0, 3),)), (o, d, ((0, 2),)), None)
                theirs, mine = {**base, "groups": groups}, {**base, "groups": local}
                yield Case("convolution", mine, theirs, ((1, ins, 3), (4, depth, 2), None), parts)
                yield Case(
                    "convolution", mine, theirs, ((1, ins, 3), (4, depth, 2), (4,)), (*parts[:2], (o,))
                )


def integers() -> Iterator[Case]:
    for (lo, hi), axis_ in itertools.product(itertools.combinations(range(5), 2), (None, 1)):
        lists = {"multiplier": (1 << 30, 1 << 29, 3 << 28, 1 << 28), "shift": (-1, -2, 0, -3)}
        wide = lists if axis_ == 1 else {key: value[:1] for key, value in lists.items()}
        theirs = {**wide, "axis": axis_}
        for by in (0, 1):
            mine = (
                {**{k: v[lo + by : hi + by] for k, v in lists.items()}, "axis": 1} if axis_ == 1 else theirs
            )
            part: Region = (((0, 2),), ((lo, hi),))
            yield Case("requantize", mine, theirs, ((2, 4),), (part,), "i32")


FAMILIES = {
    "elementwise": elementwise,
    "contractions": contractions,
    "reductions": reductions,
    "rows": rows,
    "moves": moves,
    "windows": windows,
    "channels": channels,
    "integers": integers,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_says_what_numpy_says(family: str) -> None:
    cases = few(FAMILIES[family](), 1200)
    answers = [holds(case) for case in cases]
    wrong = [case for case, answer in zip(cases, answers, strict=True) if answer is False]
    assert not wrong, wrong[0]
    assert sum(answer is True for answer in answers) >= 5, "the rule never answers: nothing was tested"


@pytest.mark.parametrize(
    "family", ["elementwise", "contractions", "reductions", "moves", "windows", "channels"]
)
def test_checker_agrees_with_the_prover_and_refuses_neighbours(family: str) -> None:
    skipped = {"avg_pool2d", "squeeze", "var"} if family != "reductions" else set()
    cases = [case for case in few(FAMILIES[family](), 800) if case.op not in skipped]
    wrong = [case for case in cases if not checker_holds(case)]
    assert not wrong, wrong[0]


# --- planted: unsound rules are caught -----------------------------------------------------------------


def caught(family: str, derive: Callable[..., Any]) -> bool:
    return any(holds(case, derive) is False for case in few(FAMILIES[family](), 1200))


def test_planted_padding_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(local: Any, logical: Any, index: Index, size: int, outputs: int) -> Index | None:
        ((start, stop),) = index
        first = (start - local.before + logical.before) // logical.stride
        count = local.count(stop - start)
        return ((first, first + count),) if count > 0 and first >= 0 and first + count <= outputs else None

    monkeypatch.setattr(_windows, "rows_out", blind)
    assert caught("windows", _rules.derive)


def test_planted_halo_off_by_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true = _windows.rows_out

    def late(local: Any, logical: Any, index: Index, size: int, outputs: int) -> Index | None:
        found = true(local, logical, index, size, outputs)
        return ((found[0][0] + 1, found[0][1] + 1),) if found and found[0][1] < outputs else found

    monkeypatch.setattr(_windows, "rows_out", late)
    assert caught("windows", _rules.derive)


def test_planted_reduction_over_a_cut_dim_is_caught() -> None:
    def careless(*args: Any) -> Any:
        answer = _rules.derive(*args)
        return answer and [replace(item, shares=(), coef=Fraction(1)) for item in answer]

    assert caught("reductions", careless)
    assert caught("contractions", careless)


@pytest.mark.parametrize(
    ("family", "op"),
    [("elementwise", "add"), ("moves", "view"), ("channels", "convolution"), ("rows", "softmax")],
)
def test_planted_guess_is_caught(family: str, op: str) -> None:
    """A rule that answers with the first operand's part cut to the result's shape."""

    def guess(kind: str, *args: Any) -> Any:
        _, _, _, parts, outs = args
        if kind != op or parts[0] is None or len(parts[0]) != len(outs[0]):
            return None
        return [_rules.Derived(tuple(parts[0]))]

    cases = [case for case in few(FAMILIES[family](), 1200) if case.op == op]
    results = [holds(case, guess) for case in cases]
    assert False in results
