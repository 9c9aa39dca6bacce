"""What some values are as sums of others: log-softmax, losses, sums and gathers of what partly repeats.

log_softmax(x) is x less logsumexp(x); a gather from, or a sum over, values of which some only repeat along
the dim leaves those as they are, once or as often as there are members; the loss of a sample is less the
gathered log-probability of its target, and its gradient puts a number at that place. Such a value keeps its
own name and has this sum as its form, so that sums find it. Knows no rules and no plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.program import Op, TensorType

from ._index import shape_of, whole_region
from ._relation import ONE, Relation, Term, scaled, total
from ._steps import Call, Held, Operand, bound
from ._sums import Sums
from ._values import FLOATS, Part, Value, is_part

MAX_PARTS: Final = 8
"""Parts of a sum that a step is told of one by one."""
Rule: TypeAlias = "Callable[[Sums, Value], Relation | None]"


def equation(values: Sums, node: int) -> Relation | None:
    """All of a value as a sum of whole values of its shape; None where nothing is known."""
    value = values.values[node]
    rule = EQUATIONS.get(value.op)
    if rule is None or value.out or value.type.dtype not in FLOATS or not math.prod(value.type.shape):
        return None
    return rule(values, value)


def do(values: Sums, op: str, given: dict[str, Any], operands: Sequence[Operand], found: TensorType) -> Held:
    """What a step on wholes makes, told as simply as it is known."""
    step = Op(op, (), (), tuple(given.items()))
    (made, *_) = values.made(Call(step, bound(step, list(operands)), list(operands), [found], None, True))
    return Held(made.type, values.renamed(made.relation))


def held_of(values: Sums, part: object) -> Held | None:
    """An operand as a tensor."""
    if not isinstance(part, tuple) or not is_part(part):
        return None
    node, region, coef = part
    found = TensorType(shape_of(region), values.values[node].type.dtype)
    return Held(found, Relation((Term(node, values.spelled(node, region), coef),)))


def parts_of(values: Sums, part: Part) -> list[Part]:
    """A part of a value as parts of what it is a sum of, or as it is."""
    node, region, coef = part
    form = values.values[node].form
    if form is None or len(form) > MAX_PARTS:
        return [part]
    return [(inner, values.spelled(inner, region), coef * by) for inner, by in form.items()]


def narrowed(values: Sums, part: Part, dims: Sequence[int]) -> Held | None:
    """One member of each of these dims, along which a value only repeats; None where it cannot be told."""
    node, region, coef = part
    value = values.values[node]
    shape = tuple(1 if dim in dims else size for dim, size in enumerate(shape_of(region)))
    found = TensorType(shape, value.type.dtype)
    if value.op == "full":
        return Held(found, scaled(values.filled(value.given["fill_value"], found), coef))
    if value.op != "expand" or not values.is_whole(node, region):
        return None
    inner = held_of(values, value.operands[0])
    if inner is None:
        return None
    lead = len(shape) - len(inner.type.shape)
    thin = (*(1 for _ in range(lead)), *inner.type.shape)
    inner = do(values, "view", {"size": thin}, [inner], TensorType(thin, found.dtype))
    if any(thin[dim] != 1 for dim in dims):
        return None
    made = do(values, "expand", {"size": shape}, [inner], found)
    return Held(found, scaled(made.relation, coef))


def _log_softmax(values: Sums, value: Value) -> Relation | None:
    x = held_of(values, value.operands[0])
    if x is None or x.type != value.type:
        return None
    dim = value.given["dim"] % max(len(x.type.shape), 1)
    wide = _spread_sum_of_exps(values, x, dim)
    return total([(ONE, x.relation), (-ONE, wide.relation)])


def _spread_sum_of_exps(values: Sums, x: Held, dim: int) -> Held:
    """log(sum(exp(x))) along a dim, again as wide as x."""
    thin = TensorType(tuple(1 if at == dim else n for at, n in enumerate(x.type.shape)), x.type.dtype)
    least = do(values, "logsumexp", {"dim": (dim,), "keepdim": True}, [x], thin)
    return do(values, "expand", {"size": x.type.shape}, [least], x.type)


def log_softmax_of(values: Sums, value: Value) -> Relation | None:
    """What a softmax is the exponential of."""
    return _log_softmax(values, value)


def _log_softmax_backward(values: Sums, value: Value) -> Relation | None:
    """Makes g - exp(y) sum(g), of y = log_softmax(x)."""
    grad, y = (held_of(values, part) for part in value.operands)
    if grad is None or y is None or grad.type != value.type or y.type != value.type:
        return None
    shape, kind = value.type.shape, value.type.dtype
    dim = value.given["dim"] % max(len(shape), 1)
    thin = TensorType(tuple(1 if at == dim else n for at, n in enumerate(shape)), kind)
    summed = do(values, "sum", {"dim": (dim,), "keepdim": True}, [grad], thin)
    wide = do(values, "expand", {"size": shape}, [summed], value.type)
    softmax = do(values, "exp", {}, [y], value.type)
    product = do(values, "mul", {}, [wide, softmax], value.type)
    return total([(ONE, grad.relation), (-ONE, product.relation)])


def _gather(values: Sums, value: Value) -> Relation | None:
    """Of a sum, term by term, if one of its terms only repeats along the gathered dim."""
    table, index = value.operands[0], held_of(values, value.operands[1])
    if not isinstance(table, tuple) or not is_part(table) or index is None:
        return None
    dim, shape = value.given["dim"], shape_of(table[1])
    if (*shape[:dim], 0, *shape[dim + 1 :]) != (*index.type.shape[:dim], 0, *index.type.shape[dim + 1 :]):
        return None
    parts = parts_of(values, table)
    if not any(dim in values.values[node].free for node, _, _ in parts):
        return None
    made: list[tuple[Fraction, Relation]] = []
    for part in parts:
        held = held_of(values, part)
        if held is None:
            return None
        if dim in values.values[part[0]].free:
            one = narrowed(values, part, (dim,))
            if one is None:
                return None
            held = do(values, "expand", {"size": value.type.shape}, [one], value.type)
        else:
            held = do(values, "gather", dict(value.given), [held, index], value.type)
        made.append((ONE, held.relation))
    return total(made)


def _sum(values: Sums, value: Value) -> Relation | None:
    """Of a sum, term by term; of what only repeats, as often as there are members."""
    given, whole = value.given, value.operands[0]
    if given["dtype"] is not None or not isinstance(whole, tuple) or not is_part(whole):
        return None
    parts, dims = parts_of(values, whole), given["dim"]
    made: list[tuple[Fraction, Relation]] = []
    for part in parts:
        one = _summed(values, part, dims, given, value.type)
        if one is None:
            if len(parts) == 1:
                return None
            held = held_of(values, part)
            if held is None:
                return None
            one = do(values, "sum", dict(given), [held], value.type).relation
        made.append((ONE, one))
    return total(made)


def _summed(values: Sums, part: Part, dims: Sequence[int], given: Any, found: TensorType) -> Relation | None:
    node, region, coef = part
    value = values.values[node]
    shape = shape_of(region)
    free = tuple(dim for dim in dims if dim in value.free or (shape[dim] == 1 and value.op != "full"))
    if value.op == "scatter_add" and len(dims) == 1 and value.given["dim"] % len(shape) == dims[0]:
        source = held_of(values, value.operands[2])  # whatever place each was put at
        if source is None or not is_zero(values, value.operands[0]) or not values.is_whole(node, region):
            return None
        if not values.in_range(value.operands[1], shape[dims[0]]):
            return None
        size = tuple(1 if dim == dims[0] else n for dim, n in enumerate(source.type.shape))
        if source.type.shape != size:
            more = TensorType(size, found.dtype)
            source = do(values, "sum", {"dim": tuple(dims), "keepdim": True}, [source], more)
        made = do(values, "view", {"size": found.shape}, [source], found)
        return scaled(made.relation, coef)
    if not any(dim in value.free for dim in free):
        return None
    one = narrowed(values, part, free)
    if one is None:
        return None
    rest = tuple(dim for dim in dims if dim not in free)
    if rest:
        thin = tuple(1 if dim in rest else n for dim, n in enumerate(one.type.shape))
        more = TensorType(thin, found.dtype)
        one = do(values, "sum", {"dim": rest, "keepdim": True}, [one], more)
    made = do(values, "view", {"size": found.shape}, [one], found)
    return scaled(made.relation, Fraction(math.prod(shape[dim] for dim in free)))


def is_zero(values: Sums, part: object) -> bool:
    """Whether an operand is zero everywhere."""
    if not isinstance(part, tuple) or not is_part(part):
        return False
    value = values.values[part[0]]
    return value.op == "full" and value.given["fill_value"] == 0


def _loss(values: Sums, value: Value) -> Relation | None:
    """A sample's loss, where no target is the class to be ignored: less what stands at the target."""
    x, target = (held_of(values, part) for part in value.operands[:2])
    if x is None or target is None or not _counts(values, value) or len(x.type.shape) != 2:
        return None
    thin = (*target.type.shape, 1)
    index = do(values, "view", {"size": thin}, [target], TensorType(thin, target.type.dtype))
    picked = do(values, "gather", {"dim": 1}, [x, index], TensorType(thin, x.type.dtype))
    made = do(values, "view", {"size": target.type.shape}, [picked], value.type)
    return scaled(made.relation, -ONE)


def _loss_backward(values: Sums, value: Value) -> Relation | None:
    """Less the gradient of the sample's loss at its target, and 0 elsewhere."""
    grad, _, target = (held_of(values, part) for part in value.operands[:3])
    if grad is None or target is None or not _counts(values, value) or len(value.type.shape) != 2:
        return None
    thin = (*target.type.shape, 1)
    index = do(values, "view", {"size": thin}, [target], TensorType(thin, target.type.dtype))
    source = do(values, "view", {"size": thin}, [grad], TensorType(thin, grad.type.dtype))
    zero = Held(value.type, values.filled(0.0, value.type))
    made = scattered(values, zero, index, source, 1)
    return None if made is None else scaled(made.relation, -ONE)


def _counts(values: Sums, value: Value) -> bool:
    """Whether every sample counts, and counts once."""
    at = 1 if value.op == "nll_loss_forward" else 2
    target, weight = value.operands[at : at + 2]
    plain = value.given["reduction"] == 0 and not (isinstance(weight, tuple) and is_part(weight))
    return plain and values.counted(target, value.given["ignore_index"])


def scattered(values: Sums, zero: Held, index: Held, source: Held, dim: int) -> Held | None:
    """Numbers put among zeros: a multiple of what their direction makes."""
    term = source.relation.single
    if term is None or term.limit is not None:
        return None
    plain = Held(source.type, Relation((Term(term.node, term.region),)))
    made = do(values, "scatter_add", {"dim": dim}, [zero, index, plain], zero.type)
    return Held(made.type, scaled(made.relation, term.coef))


def _scatter(values: Sums, value: Value) -> Relation | None:
    """A factor of what is put among zeros is one of the result."""
    zero, index, source = (held_of(values, part) for part in value.operands)
    if zero is None or index is None or source is None or not is_zero(values, value.operands[0]):
        return None
    if source.relation.terms[0].coef == 1:
        return None
    made = scattered(values, zero, index, source, value.given["dim"] % len(value.type.shape))
    return None if made is None else made.relation


def _sum_of_exps(values: Sums, value: Value) -> Relation | None:
    """log(sum(exp(f + c))) is log(sum(exp(f))) + c where c only repeats along what is summed."""
    whole, dims = value.operands[0], value.given["dim"]
    if not isinstance(whole, tuple) or not is_part(whole):
        return None
    shape = shape_of(whole[1])
    parts = parts_of(values, whole)
    rest = [part for part in parts if not all(dim in values.values[part[0]].free for dim in dims)]
    if not rest or len(rest) == len(parts):
        return None
    made: list[tuple[Fraction, Relation]] = []
    for part in parts:
        if part not in rest:
            one = narrowed(values, part, dims)
            if one is None:
                return None
            made.append((ONE, do(values, "view", {"size": value.type.shape}, [one], value.type).relation))
    found = TensorType(shape, value.type.dtype)
    terms = tuple(Term(node, region, coef) for node, region, coef in rest)
    x = Held(found, values.sum_of(Relation(terms), found))
    return total([*made, (ONE, do(values, "logsumexp", dict(value.given), [x], value.type).relation)])


def _seen(values: Sums, value: Value) -> Relation | None:
    """Of what equals a sum, part by part; of a sum itself as it is."""
    part = value.operands[0]
    if not isinstance(part, tuple) or not is_part(part):
        return None
    parts = parts_of(values, part)
    if values.values[part[0]].form is None or not values.is_whole(part[0], part[1]):
        return None
    made: list[tuple[Fraction, Relation]] = []
    for inner in parts:
        held = held_of(values, inner)
        if held is None:
            return None
        given = {"size": value.type.shape}
        made.append((ONE, do(values, value.op, given, [held], value.type).relation))
    return total(made)


def _select_backward(values: Sums, value: Value) -> Relation | None:
    """The one index of a dim of size 1 is all of it."""
    grad = held_of(values, value.operands[0])
    dim = value.given["dim"] % len(value.type.shape)
    if grad is None or value.type.shape[dim] != 1 or grad.type.dtype != value.type.dtype:
        return None
    return do(values, "view", {"size": value.type.shape}, [grad], value.type).relation


EQUATIONS: Final[dict[str, Rule]] = {
    "_log_softmax": _log_softmax,
    "log_softmax": _log_softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "gather": _gather,
    "sum": _sum,
    "logsumexp": _sum_of_exps,
    "nll_loss_forward": _loss,
    "nll_loss_backward": _loss_backward,
    "scatter_add": _scatter,
    "view": _seen,
    "expand": _seen,
    "select_backward": _select_backward,
}


def whole_form(values: Sums, node: int, relation: Relation) -> dict[int, Fraction] | None:
    """The sum as a direction in values of this one's shape, all of each; None where it is none."""
    shape = values.values[node].type.shape
    for term in relation.terms:
        if term.limit is not None or not values.is_whole(term.node, term.region):
            return None
        if shape_of(term.region) != shape or term.node == node:
            return None
    if values.aligned(relation) not in (None, whole_region(shape)) and len(relation.terms) > 1:
        return None
    return {inner: coef for (inner, _), coef in values.expanded(relation).items()} or None
