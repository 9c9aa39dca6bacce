"""Rules for the ops of training steps against numpy, and against the checker's, over small shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tensure.proving import _check_index, _check_ops, _rules
from tensure.proving._index import Region, length, whole_region
from tests.proving.test_rules import Case, checker_holds, few, holds, indexes, regions


def moments() -> Iterator[Case]:
    attrs = {"normalized_shape": (3,), "eps": 1e-5}
    for part, tail in itertools.product(regions((2, 4, 3)), regions((3,))):
        yield Case("native_layer_norm", attrs, attrs, ((2, 4, 3), (3,), (3,)), (part, tail, tail))


def index_tensors() -> Iterator[Case]:
    for part, places in itertools.product(regions((4, 3)), regions((2, 4))):
        yield Case("index", {}, {}, ((4, 3), (2, 4)), (part, places), classes={1: 4})
        yield Case("index", {}, {}, ((4, 3), None, (2, 4)), (part, None, places), classes={2: 3})
    for part, places in itertools.product(regions((4, 3)), regions((4,))):
        for dim in (0, 1):
            attrs = {"dim": dim}
            case = Case("index_select", attrs, attrs, ((4, 3), (4,)), (part, places), classes={1: 3})
            yield case
    for part, places in itertools.product(regions((4, 3)), regions((2, 3))):
        yield Case("gather", {"dim": 1}, {"dim": 1}, ((4, 3), (2, 3)), (part, places), classes={1: 3})
        yield Case("gather", {"dim": 0}, {"dim": 0}, ((4, 3), (2, 3)), (part, places), classes={1: 4})
    attrs = {"num_weights": 3, "padding_idx": -1, "scale_grad_by_freq": False}
    for grad in regions((2, 4, 2)):
        for places in {grad[:2], *few_regions((2, 4))}:
            shapes = ((2, 4, 2), (2, 4))
            yield Case("embedding_dense_backward", attrs, attrs, shapes, (grad, places), classes={1: 3})


def few_regions(shape: tuple[int, ...]) -> list[Region]:
    return list(regions(shape))[:6]


def put_back() -> Iterator[Case]:
    for dim, part in itertools.product((0, 1), regions((2, 3))):
        for start, end in ((0, 3), (1, 4)):
            size = [6, 3] if dim == 0 else [2, 6]
            shape = (2, 3) if dim else (3, 3)
            kept = part if dim else (whole_region((3, 3))[0], part[1])
            theirs = {"input_sizes": tuple(size), "dim": dim, "start": start, "end": end, "step": 1}
            for local in itertools.product({size[0], length(kept[0])}, {size[1], length(kept[1])}):
                mine = {**theirs, "input_sizes": local}
                yield Case("slice_backward", mine, theirs, (shape,), (kept,))
    for dim, at, part in itertools.product((0, 1, 2), (0, 1), regions((2, 3))):
        size = [2, 3]
        size.insert(dim, 4)
        held = [length(index) for index in part]
        held.insert(dim, 4)
        theirs = {"input_sizes": tuple(size), "dim": dim, "index": at}
        for other in (at, at + 1):
            mine = {**theirs, "input_sizes": tuple(held), "index": other}
            yield Case("select_backward", mine, theirs, ((2, 3),), (part,))
    for pad, part in itertools.product(((1, 0), (0, 0, 2, 1), (0, 1, 0, 0)), regions((4, 3))):
        yield Case("constant_pad_nd", {"pad": pad}, {"pad": pad}, ((4, 3),), (part,))


def masks() -> Iterator[Case]:
    for op, part in itertools.product(("tril", "triu"), regions((4, 4))):
        for mine, theirs in itertools.product(range(-3, 4), (-1, 0, 1)):
            yield Case(op, {"diagonal": mine}, {"diagonal": theirs}, ((4, 4),), (part,))
    for start, end, step in itertools.product(range(9), range(1, 10), (1, 2)):
        theirs = {"start": 1, "end": 9, "step": 1 if step == 1 else 2}
        yield Case("arange", {"start": start, "end": end, "step": step}, theirs, (), ())


def losses() -> Iterator[Case]:
    for part, reduction in itertools.product(regions((4, 3)), (0, 1, 2)):
        attrs = {"reduction": reduction}
        yield Case("mse_loss", attrs, attrs, ((4, 3), (4, 3)), (part, part))
    for part, rows, reduction in itertools.product(regions((4, 3)), indexes(4), (0, 1, 2)):
        attrs = {"reduction": reduction, "ignore_index": -100}
        shapes = ((4, 3), (4,), None)
        for target in {part[0], rows}:
            yield Case("nll_loss_forward", attrs, attrs, shapes, (part, (target,), None), classes={1: 3})
            grad: Region = (target,) if reduction == 0 else ()
            shape: tuple[int, ...] = (4,) if reduction == 0 else ()
            yield Case(
                "nll_loss_backward",
                attrs,
                attrs,
                (shape, (4, 3), (4,), None, ()),
                (grad, part, (target,), None, ()),
                classes={2: 3},
            )


def convolutions() -> Iterator[Case]:
    attrs = {
        "bias_sizes": (2,),
        "stride": (1,),
        "padding": (1,),
        "dilation": (1,),
        "transposed": False,
        "output_padding": (0,),
        "groups": 1,
    }
    shapes = ((4, 2, 5), (4, 3, 5), (2, 3, 3))
    for rows, other, mask in itertools.product(
        indexes(4), indexes(4), itertools.product((True, False), repeat=3)
    ):
        given = {**attrs, "output_mask": mask}
        for channels in indexes(2):
            grad: Region = (rows, channels, ((0, 5),))
            parts = (grad, (other, *whole_region((3, 5))), whole_region((2, 3, 3)))
            yield Case("convolution_backward", given, given, shapes, parts)


def order() -> Iterator[Case]:
    for part in regions((4, 3)):
        for dim in (0, -1):
            attrs: dict[str, Any] = {"dim": dim, "k": 2, "largest": True, "sorted": True}
            yield Case("topk", attrs, attrs, ((4, 3),), (part,))
            attrs = {"dim": dim, "descending": False, "stable": None}
            yield Case("sort", attrs, attrs, ((4, 3),), (part,))


def convolution_channels() -> Iterator[Case]:
    """One gradient at a time, samples and channels cut, the third operand of the same part or of another."""
    attrs = {
        "bias_sizes": None,
        "stride": (2,),
        "padding": (1,),
        "dilation": (1,),
        "transposed": False,
        "output_padding": (0,),
    }
    masks = ((True, False, False), (False, True, False))
    for made, read, mask in itertools.product(indexes(4), indexes(4), masks):
        given = {**attrs, "groups": 1, "output_mask": mask}
        shapes = ((2, 4, 3), (2, 4, 5), (4, 4, 3))
        for rows, other, third in itertools.product((((0, 2),), ((1, 2),)), (read, ((1, 3),)), (made, read)):
            parts = ((rows, made, ((0, 3),)), (rows, read, ((0, 5),)), (third, other, ((0, 3),)))
            yield Case("convolution_backward", given, given, shapes, parts)
        grouped = {**given, "groups": 2}
        parts = ((((0, 2),), made, ((0, 3),)), (((0, 2),), read, ((0, 5),)), (made, ((0, 2),), ((0, 3),)))
        yield Case("convolution_backward", grouped, grouped, (*shapes[:2], (4, 2, 3)), parts)


def numbers_put() -> Iterator[Case]:
    """Numbers put by an index, shifted, told by a row, or multiplied along a dim."""
    for part, dim in itertools.product(regions((4, 3)), (0, 1)):
        given: dict[str, Any] = {"dim": dim}
        size = (2, 3) if dim == 0 else (4, 2)
        for places in {tuple(part[d] if d != dim else ((0, 2),) for d in range(2)), *few_regions(size)}:
            shapes = ((4, 3), size, size)
            yield Case("scatter", given, given, shapes, (part, places, places), classes={1: 4 - dim})
        for shift in (1, -2):
            given = {"shifts": (shift,), "dims": (dim,)}
            yield Case("roll", given, given, ((4, 3),), (part,))
            yield Case("roll", {**given, "shifts": (1,)}, given, ((4, 3),), (part,))
        given = {"shifts": (1,), "dims": ()}
        yield Case("roll", given, given, ((4, 3),), (part,))
        yield Case("one_hot", {"num_classes": 5}, {"num_classes": 5}, ((4, 3),), (part,), classes={0: 5})
        for op, keep in itertools.product(("argmax", "prod"), (False, True)):
            given = {"dim": dim, "keepdim": keep}
            yield Case(op, given, given, ((4, 3),), (part,))


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "numbers put": numbers_put,
    "moments": moments,
    "index tensors": index_tensors,
    "put back": put_back,
    "masks": masks,
    "losses": losses,
    "convolutions": convolutions,
    "order": order,
    "channels of convolutions": convolution_channels,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_says_what_numpy_says(family: str) -> None:
    cases = few(FAMILIES[family](), 900)
    answers = [holds(case) for case in cases]
    wrong = [case for case, answer in zip(cases, answers, strict=True) if answer is False]
    assert not wrong, wrong[0]
    for op in {case.op for case in cases}:
        told = [answer for case, answer in zip(cases, answers, strict=True) if case.op == op]
        assert sum(answer is True for answer in told) >= 3, f"the rule for {op} never answers"


@pytest.mark.parametrize("family", FAMILIES)
def test_checker_agrees_and_refuses_neighbours(family: str) -> None:
    wrong = [case for case in few(FAMILIES[family](), 900) if not checker_holds(case)]
    assert not wrong, wrong[0]


@pytest.mark.parametrize(
    ("family", "op"),
    [
        ("index tensors", "embedding_dense_backward"),
        ("losses", "nll_loss_forward"),
        ("losses", "mse_loss"),
        ("convolutions", "convolution_backward"),
        ("channels of convolutions", "convolution_backward"),
    ],
)
def test_planted_whole_for_an_addend_is_caught(family: str, op: str) -> None:
    def careless(kind: str, *args: Any) -> Any:
        answer = _rules.derive(kind, *args) if kind == op else None
        return answer and [replace(item, shares=()) for item in answer]

    assert any(holds(case, careless) is False for case in few(FAMILIES[family](), 900))


def test_planted_diagonal_that_stays_is_caught() -> None:
    def still(kind: str, local: Any, logical: Any, shapes: Any, parts: Any, outs: Any) -> Any:
        same = local["diagonal"] == logical["diagonal"] if kind in ("tril", "triu") else False
        return [_rules.Derived(parts[0])] if same else None

    assert any(holds(case, still) is False for case in few(masks(), 900))


def test_planted_order_among_some_of_a_row_is_caught() -> None:
    """Of the prover, by numbers; of the checker, by its answer to a part cut where elements are ranked."""

    def careless(kind: str, local: Any, logical: Any, shapes: Any, parts: Any, outs: Any) -> Any:
        cut = [(parts[0][0], *whole_region(out[1:])) for out in outs]
        return [_rules.Derived(region) for region in cut] if kind == "topk" else None

    assert any(holds(case, careless) is False for case in few(order(), 900))
    attrs = {"dim": -1, "k": 2}
    whole, some = _check_index.all_of(4), _check_index.Index(((0, 2),))
    for cut, width, answer in ((whole, 2, 1), (some, 2, None), (whole, 1, None)):
        reg = (_check_index.all_of(3), _check_index.Index(((0, width),)))
        piece = _check_ops.Piece("topk", attrs, attrs, ((3, 4),), ((reg[0], cut),), (3, 2), reg, {})
        assert _check_ops.follows(piece) == answer


def test_planted_shift_of_a_cut_dim_is_caught() -> None:
    """Of the prover, by numbers; of the checker, by its answer to a part cut where numbers are shifted."""

    def careless(kind: str, local: Any, logical: Any, shapes: Any, parts: Any, outs: Any) -> Any:
        return [_rules.Derived(parts[0])] if kind == "roll" and local == logical else None

    assert any(holds(case, careless) is False for case in few(numbers_put(), 900))
    attrs = {"shifts": (1,), "dims": (0,)}
    rows, columns = _check_index.Index(((0, 2),)), _check_index.all_of(3)
    for cut, wanted in ((rows, None), (_check_index.all_of(4), 1)):
        part = (cut, columns)
        piece = _check_ops.Piece("roll", attrs, attrs, [(4, 3)], [part], (4, 3), part, {})
        assert _check_ops.follows(piece) == wanted
