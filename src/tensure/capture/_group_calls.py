"""Calls among ranks as the steps of one rank: functional and in-place collectives, sends and receives.

Knows torch's two families of ops: `_c10d_functional`, which return values, and `c10d`, which write into
tensors. A broadcast is a gather of which one part is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch._C._distributed_c10d import FakeWork

from tensure.errors import InputError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, Ref

from ._collectives import Collectives, GroupCall
from ._pending import start
from ._tape import Tape

__all__ = ["call_group"]


def call_group(
    ranks: Collectives, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tape: Tape, note: Attrs
) -> Any:
    """One op that is not ATen's.

    Raises:
        UnsupportedError: an op nobody has a rule for, or a group that is no product of mesh axes.
    """
    namespace, _, word = func._schema.name.partition("::")
    bound = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    rule = RULES.get((namespace, word))
    if rule is None:
        raise UnsupportedError(
            f"op {namespace}::{word} has no rule", wanted="collectives of torch.distributed and ATen ops"
        )
    # Coalesced ones have no form without bytes in torch; they only write, so nothing need run.
    is_unrun = word.endswith("_coalesced_") or (ranks.is_live and namespace == "c10d")
    result = _unrun(func, bound) if is_unrun else func(*args, **kwargs)
    call = GroupCall(ranks, tape, note, bound, result)
    rule(call)
    if namespace == "c10d":
        start(word, call.group, bound, result, note)
    return result


def _unrun(func: Any, bound: dict[str, Any]) -> Any:
    """What a call that only writes returns: what it has written, if it says so, and work that is done."""
    work = FakeWork().boxed()
    if len(func._schema.returns) == 1:
        return work
    written = ("output_tensors", "output_tensor", "outputs", "output", "tensors")
    return next(bound[key] for key in written if key in bound), work


# --- functional collectives -------------------------------------------------------------------------


def _wait(call: GroupCall) -> None:
    (tensor,) = call.bound.values()
    if call.result is not tensor:
        call.tape.add_view(call.result, tensor, None, call.read(tensor))


def _all_reduce(call: GroupCall) -> None:
    tensor = call.bound["input"]
    made = call.reduced("all_reduce", call.read(tensor), call.bound["reduce_op"])
    call.put(call.result, made)


def _all_reduce_in_place(call: GroupCall) -> None:
    tensor = call.bound["input"]
    call.tape.write(tensor, call.reduced("all_reduce", call.read(tensor), call.bound["reduce_op"]), call.note)
    if call.result is not tensor:
        call.tape.add_view(call.result, tensor, None, call.read(tensor))


def _all_gather(call: GroupCall) -> None:
    call.put(call.result, call.gathered(call.read(call.bound["input"])))


def _reduce_scatter(call: GroupCall) -> None:
    made = call.reduced("reduce_scatter", call.read(call.bound["input"]), call.bound["reduce_op"], dim=0)
    call.put(call.result, made)


def _all_to_all(call: GroupCall) -> None:
    call.put(call.result, _exchanged(call))


def _exchanged(call: GroupCall) -> Ref:
    """An all-to-all along dim 0; splits that are given go along until all ranks are known (`_exchanges`)."""
    value = call.read(call.bound["input"])
    if not call.axes:
        return value
    splits: dict[str, Any] = {}
    if call.bound["input_split_sizes"] or call.bound["output_split_sizes"]:
        output = call.bound.get("output", call.result)
        for key, sizes, tensor in (("gives", "input", call.bound["input"]), ("takes", "output", output)):
            even = (tensor.shape[0] // call.size,) * call.size
            splits[key] = tuple(map(int, call.bound[f"{sizes}_split_sizes"])) or even
        call.brought = call.brought[0], call.brought[1][1:]  # as many rows as each likes
    return call.step("all_to_all", value, axes=call.axes, split=0, cat=0, **splits)


def _shard_dim(call: GroupCall) -> None:
    value = call.read(call.bound["input"])
    split, cat = call.bound["shard_dim"], call.bound["gather_dim"]
    made = call.step("all_to_all", value, axes=call.axes, split=split, cat=cat) if call.axes else value
    call.put(call.result, made)


def _broadcast(call: GroupCall) -> None:
    tensor = call.bound["input"]
    source = call.bound["src"]  # counted within the group
    call.put(call.result, call.picked(call.read(tensor), tuple(tensor.shape), source))


def _each(rule: Callable[[GroupCall], None]) -> Callable[[GroupCall], None]:
    """A call on a list of tensors as one call for each."""

    def calls(call: GroupCall) -> None:
        (key,) = (name for name in ("inputs", "input", "self") if name in call.bound)
        for tensor, result in zip(call.bound[key], call.result, strict=True):
            bound = {**call.bound, "input": tensor}
            rule(GroupCall(call.ranks, call.tape, call.note, bound, result))

    return calls


# --- collectives that write into tensors ------------------------------------------------------------


def _write_all_reduce(call: GroupCall) -> None:
    for tensor in call.bound["tensors"]:
        call.tape.write(
            tensor, call.reduced("all_reduce", call.read(tensor), call.bound["reduce_op"]), call.note
        )


def _write_broadcast(call: GroupCall) -> None:
    root = call.bound["root_rank"]
    for tensor in call.bound["tensors"]:
        made = call.picked(call.read(tensor), tuple(tensor.shape), root)
        call.tape.write(tensor, made, call.note)


def _of_one_dtype(call: GroupCall, source: Any, target: Any) -> None:
    """What torch itself asks for."""
    if source.dtype != target.dtype:
        raise InputError(
            f"a collective of {dtype_word(source.dtype)} into {dtype_word(target.dtype)}",
            place=str(dict(call.note).get("source", "")) or None,
            wanted="an output of the input's dtype",
        )


def _write_gather_base(call: GroupCall) -> None:
    source, target = call.bound["input_tensor"], call.bound["output_tensor"]
    _of_one_dtype(call, source, target)
    have, want = tuple(source.shape), tuple(target.shape)
    count = call.size
    value = call.read(source)
    if have and want == (count * have[0], *have[1:]):
        made = call.gathered(value)
    else:
        flat = call.view(value, have, (source.numel(),))
        made = call.view(call.gathered(flat), (target.numel(),), want)
    call.tape.write(target, made, call.note)


def _write_scatter_base(call: GroupCall) -> None:
    source, target = call.bound["input_tensor"], call.bound["output_tensor"]
    _of_one_dtype(call, source, target)
    have, want = tuple(source.shape), tuple(target.shape)
    count, reduce = call.size, call.bound["reduce_op"]
    value = call.read(source)
    if want and have == (count * want[0], *want[1:]):
        made = call.reduced("reduce_scatter", value, reduce, dim=0)
    else:
        flat = call.view(value, have, (source.numel(),))
        made = call.view(call.reduced("reduce_scatter", flat, reduce, dim=0), (target.numel(),), want)
    call.tape.write(target, made, call.note)


def _write_each(rule: Callable[[GroupCall], None], sources: str, targets: str) -> Callable[[GroupCall], None]:
    """A call on lists of tensors as one call for each pair."""

    def calls(call: GroupCall) -> None:
        for source, target in zip(call.bound[sources], call.bound[targets], strict=True):
            bound = {**call.bound, "input_tensor": source, "output_tensor": target}
            rule(GroupCall(call.ranks, call.tape, call.note, bound, None))

    return calls


def _write_gather(call: GroupCall) -> None:
    for source, targets in zip(call.bound["input_tensors"], call.bound["output_tensors"], strict=True):
        for target in targets:
            _of_one_dtype(call, source, target)
        if len({tuple(item.shape) for item in targets}) > 1 and call.axes:
            _gather_uneven(call, source, targets)
            continue
        together = call.gathered(call.step("unsqueeze", call.read(source), dim=0))
        for member, target in enumerate(targets):
            made = call.step("select", together, dim=0, index=member)
            call.tape.write(target, made, call.note)


def _gather_uneven(call: GroupCall, source: Any, targets: list[Any]) -> None:
    """Parts of several sizes, each with zeros after it, so that all bring as much; cut again by everyone.

    What a member brings must be what the others have room for: its own part is, and all make the same parts.
    """
    counts = tuple(item.numel() for item in targets)
    own = counts[call.group.index(call.ranks.rank)]
    have, most, dtype = source.numel(), max(counts), dtype_word(source.dtype)
    if have != own:
        raise InputError(
            f"an all_gather of {have} elements into a part of {own} on rank {call.ranks.rank}",
            place=str(dict(call.note).get("source", "")) or None,
            wanted="an input of the size that the list of outputs has for this rank",
        )
    if call.ranks.reads is not None:
        call.ranks.reads.note(*call.axes)  # whose part is whose
    value = call.view(call.read(source), tuple(source.shape), (have,))
    zeros = call.step("full", size=(most - have,), fill_value=0, dtype=dtype)
    call.brought = dtype, (most,)
    together = call.gathered(
        call.step("cat", value, zeros, dim=0),
        call=f"gather of {', '.join(map(str, counts))} elements",
    )
    for member, (count, target) in enumerate(zip(counts, targets, strict=True)):
        part = call.step("slice", together, dim=0, start=member * most, end=member * most + count)
        call.tape.write(target, call.view(part, (count,), tuple(target.shape)), call.note)


def _write_reduce_scatter(call: GroupCall) -> None:
    reduce = call.bound["reduce_op"]
    for sources, target in zip(call.bound["input_tensors"], call.bound["output_tensors"], strict=True):
        parts = tuple(call.step("unsqueeze", call.read(source), dim=0) for source in sources)
        made = call.reduced("reduce_scatter", call.step("cat", *parts, dim=0), reduce, dim=0)
        call.tape.write(target, call.step("squeeze", made, dim=(0,)), call.note)


def _write_all_to_all(call: GroupCall) -> None:
    sources, targets = call.bound["input_tensors"], call.bound["output_tensors"]
    if len({tuple(item.shape) for item in (*sources, *targets)}) != 1:
        _write_uneven(call, sources, targets)
        return
    parts = tuple(call.step("unsqueeze", call.read(source), dim=0) for source in sources)
    made = call.step("cat", *parts, dim=0)
    made = call.step("all_to_all", made, axes=call.axes, split=0, cat=0) if call.axes else made
    for member, target in enumerate(targets):
        call.tape.write(target, call.step("select", made, dim=0, index=member), call.note)


def _write_uneven(call: GroupCall, sources: list[Any], targets: list[Any]) -> None:
    """Parts of several shapes, end to end in one flat tensor."""
    flat = tuple(call.view(call.read(item), tuple(item.shape), (item.numel(),)) for item in sources)
    made = call.step("cat", *flat, dim=0) if len(flat) > 1 else flat[0]
    counts = tuple(item.numel() for item in targets)
    if call.axes:
        gives = tuple(item.numel() for item in sources)
        call.brought = call.brought[0], ()
        made = call.step("all_to_all", made, axes=call.axes, split=0, cat=0, gives=gives, takes=counts)
    end = 0
    for target, count in zip(targets, counts, strict=True):
        part = call.step("slice", made, dim=0, start=end, end=end + count)
        call.tape.write(target, call.view(part, (count,), tuple(target.shape)), call.note)
        end += count


def _write_all_to_all_base(call: GroupCall) -> None:
    call.tape.write(call.bound["output"], _exchanged(call), call.note)


def _write_scatter(call: GroupCall) -> None:
    root, own = call.bound["root_rank"], call.ranks.rank
    group = call.group
    if call.ranks.reads is not None:
        call.ranks.reads.note(*call.axes)  # who is the root sends, the others receive
    for at, target in enumerate(call.bound["output_tensors"]):
        if group[root] != own:
            key = call.letter(group[root], own, -1)
            call.tape.write(target, call.message("recv", target, group[root], key), call.note)
            continue
        for member, source in enumerate(call.bound["input_tensors"][at]):
            if group[member] == own:
                call.tape.write(target, call.read(source), call.note)
            else:
                key = call.letter(own, group[member], -1)
                call.message("send", source, group[member], key)


def _send(call: GroupCall) -> None:
    receiver, tag = call.group[call.bound["dst"]], call.bound["tag"]
    for tensor in call.bound["tensors"]:
        key = call.letter(call.ranks.rank, receiver, tag)
        call.message("send", tensor, receiver, key)


def _recv(call: GroupCall) -> None:
    sender, tag = call.group[call.bound["src"]], call.bound["tag"]
    for tensor in call.bound["tensors"]:
        key = call.letter(sender, call.ranks.rank, tag)
        call.tape.write(tensor, call.message("recv", tensor, sender, key), call.note)


def _barrier(call: GroupCall) -> None:
    """Only waits: a sum that nobody reads, and of which all the same must be there."""
    if call.axes:
        nothing = call.step("full", size=(), fill_value=0.0, dtype="f32")
        call.step("all_reduce", nothing, call="barrier", axes=call.axes, reduce="sum")


_FUNCTIONAL: Final = "_c10d_functional"
RULES: Final[dict[tuple[str, str], Callable[[GroupCall], None]]] = {
    **{
        (_FUNCTIONAL, word): rule
        for word, rule in {
            "wait_tensor": _wait,
            "all_reduce": _all_reduce,
            "all_reduce_": _all_reduce_in_place,
            "all_gather_into_tensor": _all_gather,
            "reduce_scatter_tensor": _reduce_scatter,
            "all_to_all_single": _all_to_all,
            "broadcast": _broadcast,
            "all_reduce_coalesced": _each(_all_reduce),
            "all_gather_into_tensor_coalesced": _each(_all_gather),
            "reduce_scatter_tensor_coalesced": _each(_reduce_scatter),
        }.items()
    },
    ("_dtensor", "shard_dim_alltoall"): _shard_dim,
    **{
        ("c10d", word): rule
        for word, rule in {
            "allreduce_": _write_all_reduce,
            "allreduce_coalesced_": _write_all_reduce,
            "allgather_into_tensor_coalesced_": _write_each(_write_gather_base, "inputs", "outputs"),
            "reduce_scatter_tensor_coalesced_": _write_each(_write_scatter_base, "inputs", "outputs"),
            "broadcast_": _write_broadcast,
            "_allgather_base_": _write_gather_base,
            "_reduce_scatter_base_": _write_scatter_base,
            "allgather_": _write_gather,
            "reduce_scatter_": _write_reduce_scatter,
            "scatter_": _write_scatter,
            "alltoall_": _write_all_to_all,
            "alltoall_base_": _write_all_to_all_base,
            "send": _send,
            "recv_": _recv,
            "barrier": _barrier,
        }.items()
    },
}
