"""What moves values between ranks: attributes of every op, and collectives as functions of all members.

A collective is one function of its members' operands, in group order. Sums run in that order and
round once, so a group's order is part of its meaning. `send` and `recv` have no semantics here: the
walk matches them by (receiver, key). Knows no mesh: who the members are is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tensure.errors import RecordError

from .._records import TensorType
from ._rules import NUMBERS as _NUMBERS
from ._rules import cast, need_dtype, operand, type_of, wrap
from ._table import Array, Given, bind_op, define, lookup, refuse, room

_REDUCE: Final[dict[str, Callable[..., Any]]] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def _not_local(args: list[Any], given: Given) -> Any:
    raise refuse(
        "a communication op has no meaning on one rank alone", "the walk, or collective() over all members"
    )


for _signature, _doc in (
    (
        "send(value: Tensor; to: str, at: int[]? = none, key: key) -> 0",
        "Puts value under (receiver, key): the rank of track `to` at mesh coordinates `at`.",
    ),
    ("recv(; key: key) -> 1", "Waits for the value sent under this rank and key."),
    (
        'all_reduce(value: Tensor; axes: str[], reduce: str = "sum") -> 1',
        "Every member gets the sum (or max, min) of all, in group order, rounded once.",
    ),
    (
        "all_gather(value: Tensor; axes: str[], dim: int) -> 1",
        "Every member gets all values joined along dim.",
    ),
    (
        'reduce_scatter(value: Tensor; axes: str[], dim: int, reduce: str = "sum") -> 1',
        "Member i gets the i-th equal part along dim of what all_reduce would give.",
    ),
    (
        "all_to_all(value: Tensor; axes: str[], split: int, cat: int) -> 1",
        "Each value is split along `split` in equal parts; member j gets all j-th parts, joined along `cat`.",
    ),
):
    define(_signature, _not_local, _not_local, _doc, aten=False, communication=True)


def infer_collective(name: str, members: Sequence[TensorType], attrs: Mapping[str, Any]) -> list[TensorType]:
    """Each member's result type from all members' operand types, in group order.

    Raises:
        RecordError: not a collective, no member, types that do not go together, bad attributes.
    """
    definition = lookup(name)
    rule = _RULES.get(name)
    if rule is None or not members:
        raise RecordError(f"collective {name!r} of {len(members)} members", wanted=" or ".join(_RULES))
    given = bind_op(definition, [members[0]], attrs)
    try:
        return rule(list(members), given)
    except RecordError as error:
        raise RecordError(f"{name}: {error.found}", wanted=error.wanted) from error


def collective(name: str, members: Sequence[Array], attrs: Mapping[str, Any]) -> list[Array]:
    """Each member's result from all members' operands, in group order.

    Raises:
        RecordError: as `infer_collective`.
        LimitError: a result too large to hold.
    """
    types = infer_collective(name, [type_of(member) for member in members], attrs)
    for want in types:
        room(want.shape, f"{name}: a result")
    given = bind_op(lookup(name), [members[0]], attrs)
    with np.errstate(all="ignore"):
        results = _SEMANTICS[name](list(members), given)
    assert [type_of(result) for result in results] == types, name
    return results


# --- shape rules ----------------------------------------------------------------------------------


def _alike(members: list[TensorType]) -> TensorType:
    if len(set(members)) != 1:
        raise refuse(f"members of types {', '.join(sorted(set(map(str, members))))}", "one type for all")
    return members[0]


def _check_reduce(members: list[TensorType], given: Given) -> None:
    if given["reduce"] not in _REDUCE:
        raise refuse(f"reduce={given['reduce']!r}", " or ".join(_REDUCE))
    need_dtype("value", members[0].dtype, _NUMBERS)


def _part(shape: tuple[int, ...], dim: int, count: int) -> tuple[int, ...]:
    if not shape or shape[dim] % count:
        raise refuse(f"shape {list(shape)} split along dim {dim} among {count}", "equal parts")
    return (*shape[:dim], shape[dim] // count, *shape[dim + 1 :])


def _all_reduce_rule(members: list[TensorType], given: Given) -> list[TensorType]:
    _check_reduce(members, given)
    return [_alike(members)] * len(members)


def _all_gather_rule(members: list[TensorType], given: Given) -> list[TensorType]:
    shape = members[0].shape
    dim = wrap(given["dim"], len(shape))
    if not shape or len({(m.dtype, m.shape[:dim], m.shape[dim + 1 :], len(m.shape)) for m in members}) != 1:
        raise refuse(f"members of types {', '.join(map(str, members))}", f"one type but for dim {dim}")
    joined = (*shape[:dim], sum(member.shape[dim] for member in members), *shape[dim + 1 :])
    return [TensorType(joined, members[0].dtype)] * len(members)


def _reduce_scatter_rule(members: list[TensorType], given: Given) -> list[TensorType]:
    _check_reduce(members, given)
    value = _alike(members)
    part = _part(value.shape, wrap(given["dim"], len(value.shape)), len(members))
    return [TensorType(part, value.dtype)] * len(members)


def _all_to_all_rule(members: list[TensorType], given: Given) -> list[TensorType]:
    value = _alike(members)
    split, join = (wrap(given[key], len(value.shape), key) for key in ("split", "cat"))
    part = list(_part(value.shape, split, len(members)))
    part[join] *= len(members)
    return [TensorType(tuple(part), value.dtype)] * len(members)


# --- semantics ------------------------------------------------------------------------------------


def _reduced(members: list[Array], given: Given) -> Array:
    dtype = type_of(members[0]).dtype
    total = operand(members[0], dtype).copy()
    for member in members[1:]:
        total = np.asarray(_REDUCE[given["reduce"]](total, operand(member, dtype)))
    return cast(total, dtype)


def _all_reduce(members: list[Array], given: Given) -> list[Array]:
    return [_reduced(members, given)] * len(members)


def _all_gather(members: list[Array], given: Given) -> list[Array]:
    return [np.concatenate(members, axis=given["dim"])] * len(members)


def _reduce_scatter(members: list[Array], given: Given) -> list[Array]:
    return list(np.split(_reduced(members, given), len(members), axis=given["dim"]))


def _all_to_all(members: list[Array], given: Given) -> list[Array]:
    parts = [np.split(member, len(members), axis=given["split"]) for member in members]
    return [np.concatenate([part[to] for part in parts], axis=given["cat"]) for to in range(len(members))]


_RULES: Final[dict[str, Callable[[list[TensorType], Given], list[TensorType]]]] = {
    "all_reduce": _all_reduce_rule,
    "all_gather": _all_gather_rule,
    "reduce_scatter": _reduce_scatter_rule,
    "all_to_all": _all_to_all_rule,
}
_SEMANTICS: Final[dict[str, Callable[[list[Array], Given], list[Array]]]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
}
