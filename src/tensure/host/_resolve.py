"""One listed op as one torch callable and the order of what it is called with.

ATen's own overload is found by name and by the kinds of what is given (tensor, number, nothing), once, when
an entry is compiled; a call then goes straight to it. Ops ATen lacks, and padding in pairs, are in
`_own_ops.py`. Knows schemas, not shapes or values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from tensure.errors import UnsupportedError
from tensure.program import OpDef, lookup

from ._dtypes import TORCH_DTYPES
from ._own_ops import (
    OWN_OPS,
    clamp,
    padded_avg_pool2d,
    padded_convolution,
    padded_max_pool2d,
    padded_transposed,
)


@dataclass(frozen=True, slots=True)
class Take:
    """Operand number `at` of the step."""

    at: int


@dataclass(frozen=True, slots=True)
class TakeAll:
    """Operands `at` and all after, as one list."""

    at: int


@dataclass(frozen=True, slots=True)
class Give:
    """An attribute's value, an expression perhaps."""

    value: Any


Slot = Take | TakeAll | Give


@dataclass(frozen=True, slots=True)
class Resolved:
    """A callable and its positional arguments."""

    call: Callable[..., Any]
    slots: tuple[Slot, ...]
    aliases: bool
    """Whether a result may share memory with an operand."""
    keywords: tuple[str, ...] = ()
    """Names of the last slots, where the callable takes them by name only."""


ORDER_MATTERS: Final = frozenset(
    {"index_put", "index_add", "scatter_add", "scatter_reduce", "embedding_dense_backward"}
)
"""Ops that add to the same place from several threads unless torch is told to be deterministic."""

_ALIASING: Final = frozenset({"copy", "add_n", "einsum", "matmul", "slice_scatter_in_place"})
"""Composites that may hand back their operand though their schema does not say so."""


def resolve(
    name: str, kinds: Sequence[str], attrs: Mapping[str, Any], ranks: Sequence[int | None]
) -> Resolved:
    """How torch runs one step.

    Args:
        name: a listed op.
        kinds: "tensor", "number" or "none" for each operand.
        attrs: as given in the step; expressions may stand among integers.
        ranks: the rank of each tensor operand.

    Raises:
        UnsupportedError: torch has no such op, or none that takes these operands together.
    """
    definition = lookup(name)
    given = {spec.name: attrs.get(spec.name, spec.default) for spec in definition.attrs.values()}
    takes: list[Slot] = [Take(at) for at in range(len(kinds))]
    if name in OWN_OPS:
        return Resolved(OWN_OPS[name], (*takes, *map(Give, given.values())), name in _ALIASING)
    special = _special(name, kinds, given, ranks)
    if special is not None:
        call, keys = special
        return Resolved(call, (*takes, *(Give(given[key]) for key in keys)), False)
    return _overload(definition, kinds, given)


def _special(
    name: str, kinds: Sequence[str], given: Mapping[str, Any], ranks: Sequence[int | None]
) -> tuple[Callable[..., Any], list[str]] | None:
    """A function of our own and the attributes it takes, where ATen's form does not cover ours."""
    padding = given.get("padding")
    if name in ("max_pool2d", "avg_pool2d") and padding is not None and len(padding) == 4:
        return (padded_max_pool2d if name == "max_pool2d" else padded_avg_pool2d), list(given)
    if name == "convolution" and padding is not None and ranks[1] is not None:
        if len(padding) == 2 * (ranks[1] - 2):
            if given["transposed"]:
                return padded_transposed, ["stride", "padding", "dilation", "output_padding", "groups"]
            return padded_convolution, ["stride", "padding", "dilation", "groups"]
    if name == "clamp" and {"tensor", "number"} <= set(kinds[1:]):
        return clamp, []
    return None


def _overload(definition: OpDef, kinds: Sequence[str], given: Mapping[str, Any]) -> Resolved:
    packet = getattr(torch.ops.aten, definition.name, None)
    best: tuple[int, Resolved] | None = None
    for label in packet.overloads() if packet is not None else ():
        found = _match(definition, kinds, given, getattr(packet, label))
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    if best is None:
        raise UnsupportedError(
            f"torch has no {definition.name} of {', '.join(kinds) or 'nothing'}",
            wanted=definition.signature,
        )
    return best[1]


def _match(
    definition: OpDef, kinds: Sequence[str], given: Mapping[str, Any], overload: Any
) -> tuple[int, Resolved] | None:
    """How many of our arguments the overload takes, and the call; None if it does not fit."""
    values: dict[str, tuple[str, Slot]] = {}
    for at, spec in enumerate(definition.operands):
        if spec.variadic:
            values[spec.name] = ("tensors", TakeAll(at))
        else:
            values[spec.name] = (kinds[at], Take(at))
    for key, value in given.items():
        values[key] = ("attr", Give(_plain(definition, key, value)))
    positional: list[Slot] = []
    named: list[tuple[str, Slot]] = []
    taken = 0
    for argument in overload._schema.arguments:
        entry = values.pop(argument.name, None)
        if argument.is_out:
            return None
        if entry is None:
            if not argument.has_default_value():
                return None
            entry = ("attr", Give(argument.default_value))
        else:
            taken += 1
        kind, slot = entry
        if not _takes(str(argument.type), kind, slot):
            return None
        if not argument.kwarg_only:
            positional.append(slot)
        elif not (
            isinstance(slot, Give) and argument.has_default_value() and slot.value == argument.default_value
        ):
            named.append((argument.name, slot))
    for key, (kind, slot) in values.items():
        attr = definition.attrs.get(key)
        if attr is None:
            left_out = kind == "none"
        else:
            value = slot.value if isinstance(slot, Give) else None
            left_out = (
                not attr.required and (tuple(value) if isinstance(value, list) else value) == attr.default
            )
        if not left_out:
            return None
    aliases = definition.name in _ALIASING or any(r.alias_info is not None for r in overload._schema.returns)
    slots = (*positional, *(slot for _, slot in named))
    call = _FASTER.get(str(overload), overload) if len(positional) > 0 else overload
    return taken, Resolved(call, slots, aliases, tuple(key for key, _ in named))


def _plain(definition: OpDef, key: str, value: Any) -> Any:
    if definition.attrs[key].type == "dtype" and isinstance(value, str):
        return TORCH_DTYPES[value]
    return list(value) if isinstance(value, tuple) else value


def _takes(wanted: str, kind: str, slot: Slot) -> bool:
    """Whether a schema type admits what is given."""
    optional = wanted.startswith("Optional[")
    if optional:
        wanted = wanted.removeprefix("Optional[")[:-1]
    if kind == "tensors":
        return wanted in ("List[Tensor]", "List[Optional[Tensor]]")
    if kind == "tensor":
        return wanted == "Tensor"
    if kind == "none":
        return optional
    if kind == "number":
        return wanted == "number"
    assert isinstance(slot, Give)
    value = slot.value
    if value is None:
        return optional
    if isinstance(value, list | tuple):
        return wanted.startswith("List[")
    if isinstance(value, bool):
        return wanted in ("bool", "number")
    if isinstance(value, float):
        return wanted in ("float", "number")
    if isinstance(value, str):
        return wanted == "str"
    return wanted in ("int", "number", "float", "SymInt", "Device", "Layout")  # dtypes are int to a schema


def by_name(call: Callable[..., Any], keywords: tuple[str, ...]) -> Callable[..., Any]:
    """A callable that takes its last arguments by these names, given all by position."""
    return functools.partial(_split_call, call, keywords, -len(keywords))


def _split_call(call: Callable[..., Any], keywords: tuple[str, ...], at: int, *values: Any) -> Any:
    return call(*values[:at], **dict(zip(keywords, values[at:], strict=True)))


_FASTER: Final[dict[str, Callable[..., Any]]] = {
    "aten.add.Tensor": torch.add,
    "aten.sub.Tensor": torch.sub,
    "aten.mul.Tensor": torch.mul,
    "aten.div.Tensor": torch.div,
    "aten.mm.default": torch.mm,
    "aten.bmm.default": torch.bmm,
    "aten.matmul.default": torch.matmul,
    "aten.linear.default": torch.nn.functional.linear,
    "aten.silu.default": torch.silu if hasattr(torch, "silu") else torch._C._nn.silu,
    "aten.permute.default": torch.permute,
    "aten.transpose.int": torch.transpose,
    "aten.view.default": torch.reshape,
    "aten.unsqueeze.default": torch.unsqueeze,
    "aten.neg.default": torch.neg,
    "aten.cos.default": torch.cos,
    "aten.sin.default": torch.sin,
    "aten.rsqrt.default": torch.rsqrt,
    "aten.embedding.default": torch.embedding,
    "aten.convolution.default": torch.convolution,
}
"""The same kernels behind a cheaper door: the generic one costs several microseconds more a call.

`view` is reshape here because a Program's view asks for no particular memory layout.
"""
