"""Where ranks round and the Program does not, and sums over ranks in half floats: no part of the reals.

Locals and values of the Program are taken through one walk's relations, in which casts are the identity, and
through the dtypes that records say. A local in a half float that is made of the same values as one of the
Program's, none of which has that dtype, is rounded on the ranks alone. Says nothing of by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tensure.bundle import Plan, Rank
from tensure.program import Name, Op, Program, evaluate_op, expand, numpy_dtype

from ._doubt import step_words
from ._field_lookups import CONSTANTS
from ._flow import Flow
from ._reals import HALVES, SAID
from ._relation import Relation
from ._values import FLOATS

_WORDS: Final = {"bf16": "bfloat16", "f16": "float16"}
_MOVES: Final = frozenset(
    "copy view reshape flatten permute transpose t unsqueeze squeeze select expand slice flip roll repeat "
    "cat stack tril triu gather index index_select slice_scatter select_scatter all_gather all_to_all "
    "recv constant_pad_nd".split()
)
"""Steps that round nothing: what they make was in the dtype before."""
_SUMS: Final = frozenset({"all_reduce", "reduce_scatter"})


@dataclass(slots=True)
class _Seen:
    """Values of one kind, by what tells them apart; and the first of them, in words."""

    first: str
    keys: set[object]


def numerics(
    found: Flow, plan: Plan, program: Program, entry: str, env: Mapping[str, int], floats: Mapping[str, str]
) -> tuple[str, ...]:
    """Sentences about rounding, the most weighty first; empty where ranks round as the Program does.

    Args:
        found: a walk without doubts, of records over the reals.
        plan, program: over the reals.
        floats: the float dtypes that the Program declares, by base.
    """
    own = _of_program(found, program, entry, env, floats)
    summed, rounded, integers = dict[str, _Seen](), dict[str, _Seen](), dict[str, _Seen]()
    said = dict[tuple[Rank, Name], str]()
    types = found.types()
    for rank, name in found.trail.in_order():
        step = found.trail.made_by(rank, name)
        held = types[rank][name]
        reads = found.trail.reads_of(rank, name)
        if step is None:
            local = plan.local(rank.track, name.base)
            of = "" if local is None or local.place is None else local.place.of.base
            said[rank, name] = floats.get(of, held.dtype)
            continue
        operands = [(said[read], len(types[read[0]][read[1]].shape)) for read in reads]
        dtype = said[rank, name] = _dtype(step, held.dtype, operands)
        if dtype not in HALVES:
            continue
        if step.op in _SUMS and step.attr("reduce") == "sum":
            _add(summed, dtype, (rank.track, name), rank, step)
        if step.op in CONSTANTS:
            key = _key(found.relations[rank][name])
            if dtype not in own.get(key, ()) and not _is_held(step, dtype):
                _add(rounded, dtype, key, rank, step)
            continue
        if step.op in _MOVES or {kind for kind, _ in operands} == {"bool"}:
            continue
        key = _key(found.relations[rank][name])
        kinds = own.get(key)
        if kinds is None or dtype in kinds:
            continue
        is_integer = step.op == "_to_copy" and not any(kind in FLOATS for kind, _ in operands)
        _add(integers if is_integer else rounded, dtype, key, rank, step)
    return (
        *_words(summed, "summed over ranks in {}"),
        *_words(integers, "integers held in {} on the ranks and not in the model"),
        *_words(rounded, "rounded to {} on the ranks and not in the model"),
    )


def _of_program(
    found: Flow, program: Program, entry: str, env: Mapping[str, int], floats: Mapping[str, str]
) -> dict[object, set[str]]:
    """The dtypes that the Program has a value in, and casts of it; by what it is made of."""
    names, said = found.logical.names, dict[str, str]()
    own: dict[object, set[str]] = {}

    def dtype_of(name: Name) -> str:
        label = str(name)
        if label not in said:  # a leaf
            said[label] = floats.get(name.base, names[label].type.dtype)
            own.setdefault(_key(names[label].relation), set()).add(said[label])
        return said[label]

    for step in expand(program.blocks, program.entry(entry).body, env):
        operands = [(dtype_of(ref.name), len(names[str(ref.name)].type.shape)) for ref in step.reads()]
        for out in step.outs:
            label = str(out)
            said[label] = _dtype(step, names[label].type.dtype, operands)
            own.setdefault(_key(names[label].relation), set()).add(said[label])
    return own


def _is_held(step: Op, dtype: str) -> bool:
    """Whether a half float has the numbers that are written down."""
    (made,) = evaluate_op(step.op, [], {key: value for key, value in step.attrs if value is not None})
    wide = made.astype(np.float64)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(wide, wide.astype(numpy_dtype(dtype)).astype(np.float64), equal_nan=True))


def _dtype(step: Op, found: str, operands: Sequence[tuple[str, int]]) -> str:
    """What a step makes, as torch promotes: tensors without dims change nothing beside others.

    Args:
        found: over the reals.
        operands: dtypes and numbers of dims.
    """
    if found not in FLOATS:
        return found
    said = next((value for key, value in step.note if key == SAID), None)
    if said is not None:
        return str(said)
    floats = [(kind, rank) for kind, rank in operands if kind in FLOATS]
    kinds = {kind for kind, rank in floats if rank} or {kind for kind, _ in floats}
    return kinds.pop() if len(kinds) == 1 else "f64" if "f64" in kinds else "f32"


def _key(relation: Relation) -> object:
    """What tells a local's values: parts, addends and multiples of one count as that one."""
    return frozenset(term.node for term in relation.terms)


def _add(table: dict[str, _Seen], dtype: str, key: object, rank: Rank, step: Op) -> None:
    if dtype not in table:
        words, source = step_words(step)
        table[dtype] = _Seen(f"{words} on {rank}{f' ({source})' if source else ''}", set())
    table[dtype].keys.add(key)


def _words(table: Mapping[str, _Seen], form: str) -> Iterator[str]:
    for dtype, seen in sorted(table.items()):
        count = len(seen.keys)
        yield f"{form.format(_WORDS[dtype])}: {count} tensor{'s' if count > 1 else ''}, first {seen.first}"
