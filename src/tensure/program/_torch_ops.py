"""From calls of ATen to listed ops: one table of the names and forms that differ.

Knows ATen's names and argument names as an exported graph uses them, and the op table. Has no torch: a
call arrives as plain data (`AtenCall`), its tensors already Refs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tensure.errors import UnsupportedError

from ._expr import Int
from ._ops import OpDef, is_listed, lookup
from ._records import Attr, Attrs, Name, Op, Ref

Shape = tuple[Int, ...]


@dataclass(frozen=True, slots=True)
class AtenCall:
    """One call of an exported graph.

    `given` maps ATen's argument names to Refs, numbers, expressions, strings, dtype names, None and tuples of
    these; `defaults` holds what the schema supplies for the others. `outs` has one name for each result, None
    where nobody reads it; `shapes` the result shapes, `in_shapes` those of operands by argument name.
    """

    op: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    outs: tuple[Name | None, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    in_shapes: Mapping[str, Shape]
    note: Attrs

    def value(self, name: str, default: Any = None) -> Any:
        """One argument, as given or by default."""
        return self.given[name] if name in self.given else self.defaults.get(name, default)

    def first(self) -> Name:
        """The only result anybody may read."""
        if any(out is not None for out in self.outs[1:]):
            raise UnsupportedError(f"result {self.used()} of {self.op} is read", wanted="result 0 alone")
        out = self.outs[0]
        assert out is not None, self.op
        return out

    def used(self) -> int:
        """The position of the last result somebody reads."""
        return max(at for at, out in enumerate(self.outs) if out is not None)


def translate(call: AtenCall) -> list[Op]:
    """The listed ops one ATen call stands for.

    Raises:
        UnsupportedError: no listed op does what the call asks.
    """
    special = _SPECIAL.get(call.op)
    if special is not None:
        return special(call)
    kind = _RENAMED.get(call.op, call.op)
    if not is_listed(kind):
        raise UnsupportedError(
            f"op aten.{call.op}",
            wanted="an op of the op table (tensure.program.listed())",
            next_step="Rewrite the module with listed ops, or ask for the op in an issue.",
        )
    definition = lookup(kind)
    if len(call.outs) != definition.num_outs:
        raise UnsupportedError(
            f"aten.{call.op} with {len(call.outs)} results", wanted=f"{definition.num_outs}"
        )
    outs = tuple(
        Name(f"{_base(call)}_unread_{at}") if out is None else out for at, out in enumerate(call.outs)
    )
    return [_bind(definition, call, outs)]


def translates(name: str) -> bool:
    """Whether some listed op, or several, does what ATen's op of this name does."""
    return name in _SPECIAL or is_listed(_RENAMED.get(name, name))


def attributes(definition: OpDef, values: Mapping[str, Any]) -> Attrs:
    """Attributes in the form the op table wants, those that equal their default left out."""
    found: dict[str, Attr] = {}
    for key, value in values.items():
        spec = definition.attrs[key]
        if spec.many and value is not None and not isinstance(value, tuple):
            value = (value,)
        if (
            isinstance(value, tuple)
            and isinstance(spec.default, tuple)
            and value == spec.default * len(value)
        ):
            value = spec.default  # one entry serves all dims
        if spec.required or value != spec.default:
            found[key] = value
    return tuple(sorted(found.items()))


# --- calls that map name by name -------------------------------------------------------------------

_RENAMED: Final = {
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_reshape_alias": "view",
    "_unsafe_view": "view",
    "clone": "copy",
    "alias": "copy",
    "contiguous": "copy",
    "detach": "copy",
    "lift_fresh": "copy",
    "dropout": "copy",
    "lift_fresh_copy": "copy",
    "to": "_to_copy",
    "_unsafe_index": "index",
    "_unsafe_index_put": "index_put",
}
_PLACEMENT: Final = frozenset(
    {"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator", "copy", "requires_grad"}
)
"""Where and how a tensor lies in memory: no part of what it means."""


def _base(call: AtenCall) -> str:
    named = next((str(out) for out in call.outs if out is not None), None)
    return named or f"unread_{call.op}"


def _bind(definition: OpDef, call: AtenCall, outs: tuple[Name, ...]) -> Op:
    values = {**call.defaults, **call.given}
    args: list[Any] = []
    for spec in definition.operands:
        found = values.pop(spec.name, None)
        if spec.variadic:
            args.extend(found or ())
        else:
            args.append(found)
    attrs = {key: values.pop(key) for key in definition.attrs if key in values}
    for key, value in values.items():
        dropout = call.op == "dropout" and key in ("p", "train")
        if key not in _PLACEMENT and not dropout and value not in (None, False):
            raise UnsupportedError(f"{key}={value!r} of aten.{call.op}", wanted=definition.signature)
    if call.op == "dropout" and call.value("train") is not False:
        raise UnsupportedError("dropout in training", wanted="a module in eval mode")
    return Op(definition.name, tuple(args), outs, attributes(definition, attrs), call.note)


def _make(kind: str, call: AtenCall, *args: Any, out: Name | None = None, **attrs: Any) -> Op:
    definition = lookup(kind)
    return Op(kind, args, (call.first() if out is None else out,), attributes(definition, attrs), call.note)


# --- calls that need a word more --------------------------------------------------------------------


def _batch_norm(call: AtenCall) -> list[Op]:
    operands = [call.value(key) for key in ("input", "weight", "bias", "running_mean", "running_var")]
    if call.value("training", False) or None in operands[3:]:
        raise UnsupportedError("batch norm over batch statistics", wanted="a module in eval mode")
    return [_make("batch_norm", call, *operands, eps=call.value("eps"))]


def _layer_norm(call: AtenCall) -> list[Op]:
    if any(out is not None for out in call.outs[1:]):
        return [_bind(lookup("native_layer_norm"), call, _named(call))]
    operands = [call.value(key) for key in ("input", "weight", "bias")]
    return [
        _make(
            "layer_norm",
            call,
            *operands,
            normalized_shape=call.value("normalized_shape"),
            eps=call.value("eps"),
        )
    ]


def _group_norm(call: AtenCall) -> list[Op]:
    operands = [call.value(key) for key in ("input", "weight", "bias")]
    return [_make("group_norm", call, *operands, num_groups=call.value("group"), eps=call.value("eps"))]


def _max_pool(call: AtenCall) -> list[Op]:
    keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return [_make("max_pool2d", call, call.value("self"), **{key: call.value(key) for key in keys})]


def _convolution(call: AtenCall) -> list[Op]:
    keys = ("stride", "padding", "dilation", "groups")
    operands = [call.value(key) for key in ("input", "weight", "bias")]
    if isinstance(call.value("padding"), str):
        raise UnsupportedError(f"padding={call.value('padding')!r}", wanted="sizes")
    return [_make("convolution", call, *operands, **{key: call.value(key) for key in keys})]


def _slice(call: AtenCall) -> list[Op]:
    # ATen writes "to the end" as the largest int64; records hold integers below 2^62.
    end = call.value("end")
    if isinstance(end, int) and end >= 1 << 61:
        end = None
    given = {**call.given, "end": end}
    (out,) = _named(call)
    return [_bind(lookup(call.op), replace(call, given=given), (out,))]


def _convolution_backward(call: AtenCall) -> list[Op]:
    given = dict(call.given)
    if not call.value("output_mask")[2]:
        given["bias_sizes"] = None  # autograd gives [0] for a bias that is not there
    return [_bind(lookup(call.op), replace(call, given=given), _named(call))]


def _split(call: AtenCall) -> list[Op]:
    """Every part somebody reads as a slice."""
    dim, at, ops = call.value("dim", 0), 0, list[Op]()
    rank = len(call.in_shapes["self"])
    for out, shape in zip(call.outs, call.shapes, strict=True):
        size: Any = shape[dim % rank]
        if out is not None:
            ops.append(_make("slice", call, call.value("self"), out=out, dim=dim, start=at, end=at + size))
        at += size
    return ops


def _unbind(call: AtenCall) -> list[Op]:
    return [
        _make("select", call, call.value("self"), out=out, dim=call.value("dim", 0), index=at)
        for at, out in enumerate(call.outs)
        if out is not None
    ]


def _squeeze(call: AtenCall) -> list[Op]:
    dims = call.value("dim")
    if dims is None:
        dims = tuple(at for at, size in enumerate(call.in_shapes["self"]) if size == 1)
    return [_make("squeeze", call, call.value("self"), dim=dims)]


def _filled(value: Any) -> Callable[[AtenCall], list[Op]]:
    def fill(call: AtenCall) -> list[Op]:
        number = call.value("fill_value", call.value("value", call.value("s"))) if value is None else value
        if isinstance(number, Ref):
            raise UnsupportedError(f"aten.{call.op} of a tensor", wanted="a number")
        dtype = call.dtypes[0]
        number = bool(number) if dtype == "bool" else float(number) if dtype[0] in "fb" else number
        return [_make("full", call, size=call.shapes[0], fill_value=number, dtype=dtype)]

    return fill


def _arange(call: AtenCall) -> list[Op]:
    values = {key: call.value(key) for key in ("start", "end", "step") if call.value(key) is not None}
    return [_make("arange", call, **values, dtype=call.dtypes[0])]


def _clamp(call: AtenCall) -> list[Op]:
    return [_make("clamp", call, call.value("self"), call.value("min"), call.value("max"))]


def _extremum(reduce: str, position: str) -> Callable[[AtenCall], list[Op]]:
    def pick(call: AtenCall) -> list[Op]:
        x, dim = call.value("self"), call.value("dim")
        if call.value("other") is not None:
            return [_make({"amax": "maximum", "amin": "minimum"}[reduce], call, x, call.value("other"))]
        if dim is None:
            return [_make(reduce, call, x)]
        keep, ops = call.value("keepdim", False), list[Op]()
        for kind, out, over in zip((reduce, position), call.outs, ((dim,), dim), strict=True):
            if out is not None:
                ops.append(_make(kind, call, x, out=out, dim=over, keepdim=keep))
        return ops

    return pick


def _attention(call: AtenCall) -> list[Op]:
    keys = ("query", "key", "value", "attn_mask")
    flags = {key: call.value(key) for key in ("dropout_p", "is_causal", "scale")}
    operands = [call.value(key) for key in keys]
    return [_make("scaled_dot_product_attention", call, *operands, **flags)]


def _copy(call: AtenCall) -> list[Op]:
    """`src` in the shape and dtype of `self`; aten.copy gives no other heed to `self`."""
    source, made = call.value("src"), call.first()
    if call.in_shapes.get("src") != call.shapes[0]:
        wide = Name(f"{made.base}_wide")
        ops = [_make("expand", call, source, out=wide, size=call.shapes[0])]
        return [*ops, _make("_to_copy", call, Ref(wide), out=made, dtype=call.dtypes[0])]
    return [_make("_to_copy", call, source, out=made, dtype=call.dtypes[0])]


def _variance(call: AtenCall) -> list[Op]:
    unbiased, correction = call.value("unbiased"), call.value("correction")
    if unbiased is not None:
        correction = 1 if unbiased else 0
    dims = {"dim": call.value("dim"), "keepdim": call.value("keepdim", False)}
    return [_make("var", call, call.value("self"), correction=correction, **dims)]


def _scatter(call: AtenCall) -> list[Op]:
    """One number put everywhere that the index says is a tensor of it, in the index's shape."""
    number = call.value("value")
    if call.value("src") is not None or number is None:
        return [_bind(lookup("scatter"), call, _named(call))]
    if isinstance(number, Ref) or call.value("reduce") is not None:
        raise UnsupportedError(f"aten.{call.op} of a tensor's number, or with a reduction", wanted="a number")
    dtype, made = call.dtypes[0], call.first()
    number = bool(number) if dtype == "bool" else float(number) if dtype[0] in "fb" else number
    source = Name(f"{made.base}_source")
    filled = _make("full", call, out=source, size=call.in_shapes["index"], fill_value=number, dtype=dtype)
    operands = (call.value("self"), call.value("index"), Ref(source))
    return [filled, _make("scatter", call, *operands, dim=call.value("dim"))]


def _named(call: AtenCall) -> tuple[Name, ...]:
    base = _base(call)
    return tuple(Name(f"{base}_unread_{at}") if out is None else out for at, out in enumerate(call.outs))


_SPECIAL: Final[dict[str, Callable[[AtenCall], list[Op]]]] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "max_pool2d_with_indices": _max_pool,
    "copy": _copy,
    "var": _variance,
    "convolution_backward": _convolution_backward,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "scatter": _scatter,
    "slice": _slice,
    "slice_scatter": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "unbind": _unbind,
    "squeeze": _squeeze,
    "zeros": _filled(0),
    "zeros_like": _filled(0),
    "new_zeros": _filled(0),
    "ones": _filled(1),
    "ones_like": _filled(1),
    "new_ones": _filled(1),
    "full": _filled(None),
    "full_like": _filled(None),
    "new_full": _filled(None),
    "scalar_tensor": _filled(None),
    "arange": _arange,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "max": _extremum("amax", "argmax"),
    "min": _extremum("amin", "argmin"),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
}
