"""What a normal form promises, each promise with a checker: the first place that breaks it, or None.

The checkers share no code with the passes (`_passes.py`) that establish them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tensure.errors import TensureError

from ._evaluate import infer_program, where
from ._expr import Expr
from ._records import Entry, Name, Op, Program, Ref, TensorType
from ._validate import corner_params, validate_program

Checker = Callable[[Program], str | None]


def _well_formed(program: Program) -> str | None:
    try:
        validate_program(program)
    except TensureError as error:
        return str(error)
    return None


def _flat(program: Program) -> str | None:
    for label, entry in program.entries.items():
        for item in entry.body:
            if not isinstance(item, Op):
                return f"entry {label} has a loop or a call"
            names = (*item.outs, *(ref.name for ref in item.reads()))
            if any(isinstance(part, Expr) for name in names for part in name.index):
                return f"entry {label} has an open name in {where(item)}"
    return None


def _steps(program: Program) -> Iterator[tuple[Entry, Op, dict[Name, Op]]]:
    """Every op with its entry and the makers of that entry's values."""
    for entry in program.entries.values():
        makers = {out: item for item in entry.body if isinstance(item, Op) for out in item.outs}
        for item in entry.body:
            if isinstance(item, Op):
                yield entry, item, makers


def _types(program: Program) -> Iterator[tuple[Entry, Op, dict[str, TensorType]]]:
    """Every op with the types at the least parameters."""
    for label, entry in program.entries.items():
        types = infer_program(program, entry=label, params=next(corner_params(program, label)))
        for item in entry.body:
            if isinstance(item, Op):
                yield entry, item, types


def _first(item: Op) -> Name | None:
    """The value behind the first operand, if it is read whole."""
    return item.args[0].name if item.args and isinstance(item.args[0], Ref) and not item.args[0].box else None


def _maker(item: Op, makers: Mapping[Name, Op]) -> Op | None:
    source = _first(item)
    return None if source is None else makers.get(source)


def _kept(entry: Entry) -> set[Name]:
    return {*entry.outputs, *(state.after for state in entry.states)}


def _uses(entry: Entry, name: Name) -> int:
    reads = sum(ref.name == name for item in entry.body if isinstance(item, Op) for ref in item.reads())
    return reads + (name in _kept(entry))


def _no_copies(program: Program) -> str | None:
    for entry, item, makers in _steps(program):
        source = _first(item)
        if item.op == "copy" and source is not None:
            needed = item.outs[0] in _kept(entry) and (source not in makers or source in _kept(entry))
            if not needed:
                return f"{where(item)} copies for nothing"
    return None


def _no_noop_casts(program: Program) -> str | None:
    for entry, item, types in _types(program):
        source = _first(item)
        if item.op == "_to_copy" and source is not None and item.outs[0] not in _kept(entry):
            if types[str(source)] == types[str(item.outs[0])]:
                return f"{where(item)} casts to what it was"
    return None


def _no_noop_views(program: Program) -> str | None:
    reinterpret = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "slice", "permute"}
    for entry, item, types in _types(program):
        source = _first(item)
        if entry.params or item.op not in reinterpret or source is None or item.outs[0] in _kept(entry):
            continue
        dims = item.attr("dims", ())
        moves = item.op == "permute" and dims != tuple(range(len(types[str(source)].shape)))
        if not moves and types[str(source)] == types[str(item.outs[0])]:
            return f"{where(item)} changes nothing"
    return None


def _canonical(program: Program) -> str | None:
    for _, item, _ in _steps(program):
        if item.op in ("transpose", "t", "reshape"):
            return f"{where(item)} has a canonical form"
    return None


def _permutes_cancelled(program: Program) -> str | None:
    for _, item, makers in _steps(program):
        if item.op == "permute":
            maker = _maker(item, makers)
            if maker is not None and maker.op == "permute":
                return f"{where(item)} permutes a permutation"
    return None


def _linear_fused(program: Program) -> str | None:
    for _, item, makers in _steps(program):
        weight = {"mm": 1, "addmm": 2}.get(item.op)
        if weight is None or item.attrs:
            continue
        arg = item.args[weight]
        maker = makers.get(arg.name) if isinstance(arg, Ref) and not arg.box else None
        if maker is not None and maker.op == "permute" and maker.attr("dims") in ((1, 0), (-1, -2)):
            bias = item.args[0]
            if item.op == "mm" or (isinstance(bias, Ref) and _is_vector(program, bias)):
                return f"{where(item)} is a linear"
    return None


def _is_vector(program: Program, bias: Ref) -> bool:
    declared = program.values.get(bias.name.base)
    return not bias.box and declared is not None and len(declared.shape) == 1


def _padding_folded(program: Program) -> str | None:
    for _, item, makers in _steps(program):
        maker = _maker(item, makers)
        if item.op != "convolution" or item.attr("transposed", False) or maker is None:
            continue
        pad, rank = maker.attr("pad", ()), _rank(program, item)
        if maker.op != "constant_pad_nd" or maker.attr("value", 0) != 0 or not isinstance(pad, tuple):
            continue
        inside = rank is not None and len(pad) <= 2 * (rank - 2)
        if inside and all(isinstance(side, int) and side >= 0 for side in pad):
            return f"{where(maker)} could be the padding of {where(item)}"
    return None


def _rank(program: Program, item: Op) -> int | None:
    weight = item.args[1]
    declared = program.values.get(weight.name.base) if isinstance(weight, Ref) else None
    return None if declared is None else len(declared.shape)


def _batch_norm_folded(program: Program) -> str | None:
    constant = {base for base, value in program.values.items() if value.role == "weight" and not value.params}
    exact = {base for base in constant if program.values[base].dtype in ("f32", "f64")}
    for entry, item, makers in _steps(program):
        maker = _maker(item, makers)
        if item.op != "batch_norm" or maker is None or maker.op != "convolution":
            continue
        if maker.attr("transposed", False) or _uses(entry, maker.outs[0]) != 1:
            continue
        others = [arg for arg in (*item.args[1:], *maker.args[1:]) if arg is not None]
        if all(isinstance(arg, Ref) and not arg.box and arg.name.base in exact for arg in others):
            return f"{where(item)} could be part of {where(maker)}"
    return None


def _batch_norm_whole(program: Program) -> str | None:
    for _, item, makers in _steps(program):
        product = _maker(item, makers) if item.op == "add" else None
        centred = _maker(product, makers) if product is not None and product.op == "mul" else None
        if product is None or centred is None or centred.op != "sub" or item.attrs or centred.attrs:
            continue
        spread = _made(product.args[1], makers)
        root = _maker(spread, makers) if spread is not None and spread.op == "mul" else None
        total = _maker(root, makers) if root is not None and root.op == "rsqrt" else None
        if spread is None or total is None or total.op != "add" or not isinstance(total.args[1], float):
            continue
        vectors = (item.args[1], centred.args[1], spread.args[1], total.args[0])
        sizes = {_channels_last(program, arg, makers) for arg in vectors}
        if len(sizes) == 1 and (sizes.pop() or 0) > 1 and _is_f32_image(program, centred):
            return f"{where(item)} is the end of a batch norm"
    return None


def _made(arg: object, makers: Mapping[Name, Op]) -> Op | None:
    return makers.get(arg.name) if isinstance(arg, Ref) and not arg.box else None


def _channels_last(program: Program, arg: object, makers: Mapping[Name, Op]) -> int | None:
    """The size of a float vector of weights seen as [1, 1, 1, size]."""
    view = _made(arg, makers)
    source = _first(view) if view is not None and view.op == "view" else None
    declared = program.values.get(source.base) if source is not None else None
    size = view.attr("size") if view is not None else None
    if declared is None or declared.role != "weight" or len(declared.shape) != 1 or declared.dtype != "f32":
        return None
    last = declared.shape[0]
    return last if isinstance(last, int) and size == (1, 1, 1, last) else None


def _is_f32_image(program: Program, centred: Op) -> bool:
    source = _first(centred)
    for label in program.entries:
        types = infer_program(program, entry=label, params=next(corner_params(program, label)))
        if source is not None and str(source) in types:
            found, made = types[str(source)], types[str(centred.outs[0])]
            return found == made and found.dtype == "f32" and len(found.shape) == 4
    return False


def _weights_in_place(program: Program) -> str | None:
    reads = Counter(
        ref.name.base
        for entry in program.entries.values()
        for item in entry.body
        if isinstance(item, Op)
        for ref in item.reads()
    )
    for entry, item, _ in _steps(program):
        source = _first(item)
        declared = program.values.get(source.base) if source is not None else None
        if item.op not in ("permute", "view") or source is None or declared is None or declared.params:
            continue
        wanted = item.attr("dims" if item.op == "permute" else "size")
        plain = isinstance(wanted, tuple) and all(isinstance(part, int) for part in wanted)
        if (
            declared.role == "weight"
            and reads[source.base] == 1
            and plain
            and item.outs[0] not in _kept(entry)
        ):
            return f"{where(item)} could be how {source} is stored"
    return None


def _bias_fused(program: Program) -> str | None:
    for entry, item, makers in _steps(program):
        maker = _maker(item, makers)
        if item.op != "add" or item.attrs or maker is None or maker.op != "convolution":
            continue
        shift, rank = item.args[1], _rank(program, maker)
        declared = program.values.get(shift.name.base) if isinstance(shift, Ref) and not shift.box else None
        kernel = program.values.get(maker.args[1].name.base) if isinstance(maker.args[1], Ref) else None
        if declared is None or declared.role != "weight" or rank is None or kernel is None:
            continue
        by_channel = (1, kernel.shape[0], *(1,) * (rank - 2))
        bare = len(maker.args) < 3 or maker.args[2] is None
        same = declared.dtype == kernel.dtype and declared.shape == by_channel and not declared.params
        if bare and same and _uses(entry, maker.outs[0]) == 1 and not maker.attr("transposed", False):
            return f"{where(item)} could be the bias of {where(maker)}"
    return None


def _mean_flat(program: Program) -> str | None:
    for entry, item, makers in _steps(program):
        maker = _maker(item, makers)
        if maker is None or maker.op != "adaptive_avg_pool2d" or item.op != "flatten":
            continue
        if set(maker.attr("output_size", ()) or ()) != {1} or item.attr("start_dim", 0) != 1:  # type: ignore[arg-type]
            continue
        if item.attr("end_dim", -1) == -1 and _uses(entry, maker.outs[0]) == 1 and not _is_3d(program, maker):
            return f"{where(maker)} and {where(item)} are one mean"
    return None


def _is_3d(program: Program, pool: Op) -> bool:
    for label in program.entries:
        types = infer_program(program, entry=label, params=next(corner_params(program, label)))
        if str(pool.outs[0]) in types:
            return len(types[str(pool.outs[0])].shape) != 4
    return True


def _no_common_subexpressions(program: Program) -> str | None:
    for entry in program.entries.values():
        seen: dict[str, Op] = {}
        for item in entry.body:
            if isinstance(item, Op) and not _kept(entry) & set(item.outs):
                key = f"{item.op}{item.args!r}{item.attrs!r}"
                if key in seen:
                    return f"{where(item)} repeats {where(seen[key])}"
                seen[key] = item
    return None


def _no_dead_ops(program: Program) -> str | None:
    read: set[str] = set()
    for entry in program.entries.values():
        wanted = _kept(entry) | {
            ref.name for item in entry.body if isinstance(item, Op) for ref in item.reads()
        }
        for item in entry.body:
            if isinstance(item, Op) and not wanted & set(item.outs):
                return f"nothing reads {where(item)}"
        read |= {name.base for name in wanted}
    for base, value in program.values.items():
        if value.role == "weight" and base not in read:
            return f"nothing reads weight {base}"
    return None


PROPERTIES: Final[Mapping[str, Checker]] = {
    "well_formed": _well_formed,
    "flat": _flat,
    "no_copies": _no_copies,
    "no_noop_casts": _no_noop_casts,
    "no_noop_views": _no_noop_views,
    "canonical": _canonical,
    "permutes_cancelled": _permutes_cancelled,
    "linear_fused": _linear_fused,
    "padding_folded": _padding_folded,
    "batch_norm_folded": _batch_norm_folded,
    "batch_norm_whole": _batch_norm_whole,
    "weights_in_place": _weights_in_place,
    "bias_fused": _bias_fused,
    "mean_flat": _mean_flat,
    "no_common_subexpressions": _no_common_subexpressions,
    "no_dead_ops": _no_dead_ops,
}
