"""Calls that draw random numbers as steps: numbers in 0..1, or normal ones, and what is made of them.

Which element of the model a number belongs to is told by the tensor it is drawn like, if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, Ref

if TYPE_CHECKING:
    from ._tracer import Tracer

__all__ = ["drawn"]


def drawn(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], note: Attrs) -> Any:
    """What a call that draws random numbers gives.

    Raises:
        UnsupportedError: a law that is neither uniform, normal nor an event of given probability.
    """
    schema = func._schema
    word = schema.name.partition("::")[2]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    make = _CALLS.get(word)
    if make is None or (bound.get("out") is not None):
        raise UnsupportedError(f"aten.{word} draws random numbers", wanted=", ".join(sorted(_CALLS)))
    return make(_Drawing(tracer, bound, note), bound)


class _Drawing:
    """One call."""

    def __init__(self, tracer: Tracer, bound: Mapping[str, Any], note: Attrs) -> None:
        self.tracer, self.note = tracer, note
        self.generator: torch.Generator | None = bound.get("generator")

    def like(self, law: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Numbers that share the place of a tensor's elements, in its dtype by default."""
        tape, dtype = self.tracer.tape, dtype or tensor.dtype
        if not tape.knows(tensor):
            return self.shaped(law, tuple(tensor.shape), dtype)
        return self.shaped(law, tuple(tensor.shape), dtype, tape.likeness(tensor, self.note))

    def shaped(
        self, law: str, shape: Sequence[int], dtype: torch.dtype, like: Ref | None = None
    ) -> torch.Tensor:
        """Numbers of a shape, in float32 or float64; what tells them apart says in what they were drawn."""
        shape = tuple(map(int, shape))
        found = self.tracer.generators.take(law, math.prod(shape), dtype, self.generator)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        after = found.after if wide == dtype else f"{found.after}:{dtype_word(dtype)}"
        attrs: dict[str, Any] = {
            "law": law, "seed": found.seed, "start": found.start, "size": shape, "extent": found.extent,
        }  # fmt: skip
        extra = {"offset": found.offset, "after": after, "dtype": dtype_word(wide)}
        attrs |= {key: value for key, value in extra.items() if value not in (None, "", "f32")}
        made = torch.empty(shape, dtype=wide)
        self.tracer.tape.add(made, self.tracer.tape.step("draw", (like,), self.note, **attrs))
        return made

    def event(self, numbers: torch.Tensor, probability: Any, dtype: torch.dtype) -> torch.Tensor:
        """1 with a probability, and 0."""
        with self.tracer:
            made: torch.Tensor = (numbers < probability).to(dtype)
            return made

    def into(self, target: torch.Tensor, made: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Write a value."""
        with self.tracer:
            target.copy_(made())
        return target


def _dropout(draw: _Drawing, given: Mapping[str, Any]) -> Any:
    x, keep = given["input"], 1 - given["p"]
    numbers = draw.like("uniform", x)
    with draw.tracer:
        mask = numbers < keep
        return x * mask * (1 / keep if keep else 0.0), mask


def _bernoulli(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
    x = given["self"]
    numbers, chance = draw.like("uniform", x), given.get("p")
    return draw.event(numbers, x if chance is None else chance, x.dtype)


def _bernoulli_in_place(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
    x = given["self"]
    made = draw.event(draw.like("uniform", x), given["p"], x.dtype)
    return draw.into(x, lambda: made)


def _uniform_in_place(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
    x, low, high = given["self"], given["from"], given["to"]
    numbers = draw.like("uniform", x)
    return draw.into(x, lambda: numbers if (low, high) == (0, 1) else numbers * (high - low) + low)


def _normal_in_place(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
    x, mean, std = given["self"], given["mean"], given["std"]
    numbers = draw.like("normal", x)
    return draw.into(x, lambda: numbers if (mean, std) == (0, 1) else numbers * std + mean)


def _like(law: str) -> Callable[[_Drawing, Mapping[str, Any]], torch.Tensor]:
    def make(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
        dtype = given.get("dtype") or given["self"].dtype
        numbers = draw.like(law, given["self"], dtype)
        with draw.tracer:
            return numbers.to(dtype)

    return make


def _shaped(law: str) -> Callable[[_Drawing, Mapping[str, Any]], torch.Tensor]:
    def make(draw: _Drawing, given: Mapping[str, Any]) -> torch.Tensor:
        dtype = given.get("dtype") or torch.get_default_dtype()
        numbers = draw.shaped(law, given["size"], dtype)
        with draw.tracer:
            return numbers.to(dtype)

    return make


_CALLS: Final[Mapping[str, Callable[[_Drawing, Mapping[str, Any]], Any]]] = {
    "native_dropout": _dropout,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli_in_place,
    "uniform_": _uniform_in_place,
    "normal_": _normal_in_place,
    "rand_like": _like("uniform"),
    "randn_like": _like("normal"),
    "rand": _shaped("uniform"),
    "randn": _shaped("normal"),
}
