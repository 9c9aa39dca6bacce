"""See every ATen call of one rank's step, below autograd and distributed tensors, and put it on the tape.

Calls that no listed op does are taken apart by torch's own decompositions. What depends on a value is
refused: there are none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, translates

from ._apart import CUSTOM, SPELLED, decompositions, put_by_mask
from ._collectives import Collectives
from ._generators import Generators
from ._group_calls import call_group
from ._literal import written_down
from ._pending import tensors_in, use
from ._random import drawn
from ._shadows import Shadows
from ._sources import OPTIMIZER_WANTED, Sources, asked_by_distributed, only_shapes_asked, optimizer_line
from ._tape import ALIASES, Tape, View

__all__ = ["Tracer"]

_WRAPPERS: Final = (DTensor, AsyncCollectiveTensor)
_UNSET: Final = frozenset(
    {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}
)
_LIKE: Final = frozenset({"empty_like", "zeros_like", "ones_like", "full_like"})
"""Makes memory for each element of another tensor."""
_KNOWN: Final = _UNSET | {"as_strided"}
_SILENT: Final = frozenset({"prim::device", "aten::_assert_async", "aten::_assert_scalar", "aten::sym_size"})
_ARITHMETIC: Final = frozenset({"add", "sub", "rsub", "mul", "div"})
_FILLS: Final = {"zero": 0, "fill": None}


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is called while it is entered, as steps.

    Args:
        tape: where the steps go.
        sources: says where a call comes from.
        collectives: what a call among ranks is; None where there is one device.
        generators: where random numbers come from.
        building: modules are being made: random numbers are drawn for parameters, and told apart by nothing.
        shadows: in a live process, what stands for tensors that have bytes.
    """

    def __init__(
        self,
        tape: Tape,
        sources: Sources,
        collectives: Collectives | None,
        generators: Generators,
        *,
        building: bool = False,
        shadows: Shadows | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape, self.sources, self.collectives, self.building = tape, sources, collectives, building
        self.generators, self.shadows = generators, shadows

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call."""
        given = dict(kwargs or {})
        if any(issubclass(kind, _WRAPPERS) for kind in types):
            return NotImplemented  # it comes again, for the local tensors
        name = func._schema.name
        namespace, _, word = name.partition("::")
        if name in _SILENT or namespace == "profiler":
            return func(*args, **given)
        if self._is_aside(args, given):
            with torch._subclasses.fake_tensor.unset_fake_temporarily():
                return func(*args, **given)  # the numbers of a mesh, say: no part of the step
        note = self.sources.note()
        try:
            if self.shadows is not None:
                args, given = self.shadows.of_call(func, args, given, note)
            if name in CUSTOM:
                with self:
                    return CUSTOM[name](*args, **given)
            if namespace != "aten":
                if self.collectives is None:
                    raise UnsupportedError(f"op {name}", wanted="ATen ops on the single device")
                return call_group(self.collectives, func, args, given, self.tape, note)
            return self._aten(func, word, args, given, note)
        except UnsupportedError as error:
            raise error.at(place=_place(note)) from None
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise _reads(str(error.func), note).at(place=_place(note)) from None
        except (UnsupportedOperatorException, UnsupportedFakeTensorException) as error:
            raise UnsupportedError(
                f"op {name}: {error}", place=_place(note), wanted="an op that torch can trace without values"
            ) from None

    def _is_aside(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether torch.distributed computes with numbers of its own."""
        tensors = _real(args, kwargs)
        if self.shadows is not None and any(
            item.is_floating_point() or self.shadows.knows(item) for item in tensors
        ):
            return False
        return bool(tensors) and asked_by_distributed()

    def _aten(self, func: Any, word: str, args: tuple[Any, ...], kwargs: dict[str, Any], note: Attrs) -> Any:
        schema = func._schema
        is_random = torch.Tag.nondeterministic_seeded in func.tags and not _is_quiet(word, args, kwargs)
        if self.building and is_random:
            result = func(*args, **kwargs)
            for item in result if isinstance(result, (tuple, list)) else (result,):
                self.tape.draw(item, note)
                self.generators.take(word, item.numel(), item.dtype, kwargs.get("generator"))
            return result
        if is_random and only_shapes_asked():
            return func(*args, **kwargs)
        if is_random:
            return drawn(self, func, args, kwargs, note)
        if word == "_local_scalar_dense":
            raise _reads("item", note)
        writes = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        plain = word.removesuffix("_") if writes else word
        if plain in ("index_put", "_unsafe_index_put") and _has_mask(args[1]):
            with self:
                made = put_by_mask(*args, **kwargs)
                return args[0].copy_(made) if writes else made
        if plain in SPELLED and "out" not in kwargs:
            with self:
                made = SPELLED[plain](*args, **kwargs)
                if made is not NotImplemented:
                    return args[0].copy_(made) if writes else made
        if plain.startswith("_foreach"):
            return self._foreach(func, plain, args, kwargs, bool(writes))
        if word == "set_" and len(args) == 2 and isinstance(args[1], torch.Tensor):
            return func(*args, **kwargs)  # another one's memory, as by `.data`: the tape looks where it is
        if not (translates(plain) or word in _KNOWN or plain in _FILLS or word in ALIASES):
            taken = self._apart(func, plain, writes, args, kwargs)
            if taken is not NotImplemented:
                return taken
            raise UnsupportedError(
                f"aten.{word} has no rule",
                wanted="an op of the op table (docs/ops.md), or one that torch takes apart into them",
            )
        if torch.Tag.inplace_view in func.tags:
            with self:
                view = getattr(torch.ops.aten, plain)(*args, **kwargs)
            result = func(*args, **kwargs)
            self.tape.add_view(args[0], view, None, self.tape.read(view, note))
            return result
        result = func(*args, **kwargs)
        self._record(func, word, plain, writes, args, kwargs, result, note)
        return result

    # one call ----------------------------------------------------------------------------------------

    def _record(
        self, func: Any, word: str, plain: str, writes: list[str], args: tuple[Any, ...],
        kwargs: dict[str, Any], result: Any, note: Attrs,
    ) -> None:  # fmt: skip
        tape, schema = self.tape, func._schema
        bound = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
        if word in _UNSET:
            tape.unset(result, note)
            if word in _LIKE:
                tape.liken(result, bound["self"], note)
            return
        if word == "as_strided":
            tape.add_window(result, bound["self"], note)
            return
        viewed = None if writes else _viewed(schema, bound, result)
        if viewed is None:
            use(
                [item for key, value in bound.items() if key not in writes for item in tensors_in(value)],
                [item for key in writes for item in tensors_in(bound[key])],
                note,
            )
        if len(writes) == 1 and plain in _FILLS:
            target = bound[writes[0]]
            number = _FILLS[plain] if _FILLS[plain] is not None else bound["value"]
            if not isinstance(number, torch.Tensor):
                given = {"fill_value": number, "size": tuple(target.shape)}
                made = tape.emit("full", given, (tuple(target.shape),), (dtype_word(target.dtype),), {}, note)
                tape.write(target, made[0], note)
                return
            plain, bound = "copy", {"self": target, "src": number}
        if viewed is not None and plain in ALIASES:
            if not tape.knows(viewed) and not isinstance(viewed, FakeTensor):
                tape.add(viewed, written_down(self.tape, viewed, note))
            tape.add_view(result, viewed, None, tape.read(viewed, note))
            return
        given = {key: self._argument(value, note) for key, value in bound.items()}
        for key in writes:
            if key == "out":
                del given[key]
        if plain in _ARITHMETIC and isinstance(result, torch.Tensor):
            self._promote(bound, given, result, note)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        tensors = [item for item in results if isinstance(item, torch.Tensor)]
        if not tensors:
            results = []
        there = frozenset(
            at for at, item in enumerate(results) if item is not None
        )  # a backward may omit some
        in_shapes = {k: tuple(v.shape) for k, v in bound.items() if isinstance(v, torch.Tensor)}
        shapes = tuple(() if item is None else tuple(item.shape) for item in results)
        dtypes = tuple(dtype_word((tensors[0] if item is None else item).dtype) for item in results)
        defaults = {
            a.name: self._argument(a.default_value, note)
            for a in schema.arguments
            if a.has_default_value() and a.name not in given
        }
        made = tape.emit(plain, given, shapes, dtypes, in_shapes, note, defaults, there)
        made = [value for at, value in enumerate(made) if at in there]
        if writes:
            for key, value in zip(writes, made, strict=True):
                tape.write(bound[key], value, note)
        elif viewed is not None:
            (source,) = [key for key, value in bound.items() if value is viewed][:1]
            static = {k: v for k, v in given.items() if k != source} | {}
            for at, (tensor, value) in enumerate(zip(tensors, made, strict=True)):  # views omit none
                view = View(
                    plain, {**defaults, **static}, source, at, tuple(viewed.shape), shapes, dtypes[at]
                )
                tape.add_view(tensor, viewed, view, value)
        else:
            for tensor, value in zip(tensors, made, strict=True):
                tape.add(tensor, value)
            if word in _LIKE:
                tape.liken(result, bound["self"], note)

    def _promote(
        self, bound: Mapping[str, Any], given: dict[str, Any], result: torch.Tensor, note: Attrs
    ) -> None:
        """Cast a factor of another precision first, as ATen does: operands of a step have one dtype."""
        for key in ("self", "other"):
            item = bound.get(key)
            if isinstance(item, torch.Tensor) and item.ndim == 0 and item.dtype != result.dtype:
                if item.is_floating_point() and result.is_floating_point():
                    dtype = dtype_word(result.dtype)
                    given[key] = self.tape.step("_to_copy", (given[key],), note, dtype=dtype)

    def _foreach(
        self, func: Any, plain: str, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """A call on lists as calls on their items."""
        word = plain.removeprefix("_foreach_")
        count = len(next(item for item in args if isinstance(item, (list, tuple))))
        each = [isinstance(item, (list, tuple)) and len(item) == count for item in args]
        has_values = len(args) > 3 and plain in ("_foreach_addcmul", "_foreach_addcdiv")
        if has_values and isinstance(args[3], torch.Tensor) and args[3].ndim == 1:
            args, each = (*args[:3], args[3].unbind()), [True] * 4  # a tensor of factors
        in_place = getattr(torch.ops.aten, f"{word}_", None) if writes else None
        packet = torch.linalg.vector_norm if word == "norm" else in_place or getattr(torch.ops.aten, word)
        made = []
        with self:
            for at in range(count):
                given = [arg[at] if is_list else arg for is_list, arg in zip(each, args, strict=True)]
                named = dict(kwargs)
                if has_values:
                    named["value"] = given.pop()  # by name only, for one tensor
                made.append(packet(*given, **named))
                if writes and in_place is None:
                    given[0].copy_(made[-1])
        return None if writes else made

    def _apart(
        self, func: Any, plain: str, writes: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The call in smaller ones, each of which comes here again."""
        table = decompositions()
        with self:
            if writes in (["self"], ["out"]) and hasattr(torch.ops.aten, plain):
                given = {key: value for key, value in kwargs.items() if key != "out"}
                target = kwargs["out"] if writes == ["out"] else args[0]
                return target.copy_(getattr(torch.ops.aten, plain)(*args, **given))
            if func in table:
                return table[func](*args, **kwargs)
            return func.decompose(*args, **kwargs)

    def _argument(self, value: Any, note: Attrs) -> Any:
        if isinstance(value, torch.Tensor):
            known = getattr(value, "constant", None) if isinstance(value, FakeTensor) else value
            if known is not None and not self.tape.knows(value):
                self.tape.add(value, written_down(self.tape, known, note))
            return self.tape.read(value, note)
        if isinstance(value, (list, tuple)):
            return tuple(self._argument(item, note) for item in value)
        if isinstance(value, torch.dtype):
            return dtype_word(value)
        if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
            return str(value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise UnsupportedError(f"an argument of type {type(value).__name__}", wanted="tensors and numbers")


def _reads(what: str, note: Attrs) -> UnsupportedError:
    """That a value is read: by the step, or by an optimizer of torch's and where."""
    line = optimizer_line()
    if line:
        name = dict(note).get("module", "the optimizer")
        return UnsupportedError(f"{name} reads a value ({what})", place=line, wanted=OPTIMIZER_WANTED)
    return UnsupportedError(
        f"the step reads a value ({what})", wanted="a step whose course and shapes do not depend on values"
    )


def _real(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call that is about none but those that have bytes, which were there before."""
    tensors = [
        item for item in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)
    ]
    return [] if any(isinstance(item, (FakeTensor, *_WRAPPERS)) for item in tensors) else tensors


def _viewed(schema: Any, bound: Mapping[str, Any], result: Any) -> torch.Tensor | None:
    """The argument whose memory the result looks at."""
    tensors = result if isinstance(result, (tuple, list)) else (result,)
    first = next((item for item in tensors if isinstance(item, torch.Tensor)), None)
    for argument in schema.arguments:
        value = bound.get(argument.name)
        if argument.alias_info is not None and isinstance(value, torch.Tensor) and first is not None:
            if first.untyped_storage()._cdata == value.untyped_storage()._cdata:
                return value
    return None


def _is_quiet(word: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """A dropout that drops nothing."""
    if word not in ("native_dropout", "dropout", "_safe_softmax"):
        return word.startswith("_scaled_dot_product")
    values = [*args[1:], *kwargs.values()]
    return 0 in values[:1] or False in values


def _has_mask(indices: Any) -> bool:
    return any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in indices)


def _place(note: Attrs) -> str:
    found = dict(note)
    parts = [str(found[key]) for key in ("module", "source") if key in found]
    return ", ".join(parts)
