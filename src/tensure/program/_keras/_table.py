"""The table of layers, and what a layer's rule is given.

Knows: how a rule is found, that a layer's variables are counted and shaped as its config says, and that a
layer called twice has its weights once. The rules register themselves; this file knows none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, TensureError, UnsupportedError

from ._build import Builder, Tensor
from ._document import class_of
from ._options import Options

__all__ = [
    "ASK_EXPORT",
    "LAYERS",
    "Call",
    "Layer",
    "Rule",
    "Variables",
    "call_layer",
    "layer",
    "make_layer",
    "snake",
]

ASK_EXPORT: Final = "Load it in Keras and hand the object to from_keras, which then asks torch.export."

Path: TypeAlias = tuple[str, ...]
Result: TypeAlias = "Tensor | list[Tensor]"


class Variables(Protocol):
    """Where variables come from: a file, or a live model."""

    def count(self, path: Path) -> int:
        """How many variables the object at a path has of its own."""

    def read(self, path: Path, index: int) -> npt.NDArray[Any]:
        """One of them."""


@dataclass(slots=True)
class Call:
    """What a layer is called with: tensors and plain values, by position and by name."""

    args: list[Any]
    kwargs: dict[str, Any]

    def one(self) -> Tensor:
        """The only tensor.

        Raises:
            FormatError: there is none, or another argument beside it.
        """
        found = self.args[0] if self.args else None
        while isinstance(found, list) and len(found) == 1:
            found = found[0]
        if not isinstance(found, Tensor) or any(arg is not None for arg in self.args[1:]):
            raise FormatError("called with something else", wanted="one tensor")
        return found

    def many(self) -> list[Tensor]:
        """A list of tensors given as one argument."""
        found = self.args[0] if len(self.args) == 1 else self.args
        if not isinstance(found, list) or not found or not all(isinstance(item, Tensor) for item in found):
            raise FormatError("called with something else", wanted="a list of tensors")
        return found

    def take(self, key: str) -> Any:
        """A keyword argument, None if it is not given."""
        return self.kwargs.pop(key, None)

    def done(self) -> None:
        """Refuse keyword arguments nobody asked for, training and masks that are off apart."""
        for key, value in self.kwargs.items():
            if value is not None and value is not False:
                raise UnsupportedError(
                    f"called with {key[:80]}={_shown(value)}", wanted="inference without masks"
                )


def _shown(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else str(value)[:80]


@dataclass(slots=True)
class Layer:
    """One layer: its config, where its variables are, and the weights made of them so far."""

    kind: str
    name: str
    config: Mapping[str, Any]
    path: Path
    source: Variables
    build: Builder
    place: str
    parts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a rule keeps from call to call: weights, inner layers."""
    used: dict[Path, int] = field(default_factory=dict[Path, int])

    def weight(
        self,
        label: str,
        index: int,
        shape: Sequence[int],
        order: Sequence[int] | None = None,
        final: Sequence[int] | None = None,
        *,
        within: Path = (),
    ) -> Tensor:
        """Variable `index` as a weight, dims in `order`, then reshaped to `final`; made once.

        Args:
            label: its name within the layer.
            index: its position among the variables of the object.
            shape: what the config says its shape is.
            order: permutation of its dims.
            final: shape in the end.
            within: the part of the layer that holds it, such as `("cell",)`.

        Raises:
            FormatError: it is missing, or of another shape or dtype.
        """
        if label not in self.parts:
            array = self.variable(index, shape, within=within)
            array = array if order is None else array.transpose(order)
            self.parts[label] = self.build.weight(label, array if final is None else array.reshape(final))
        found = self.parts[label]
        assert isinstance(found, Tensor)
        return found

    def variable(self, index: int, shape: Sequence[int], *, within: Path = ()) -> npt.NDArray[Any]:
        """Variable `index` as it is stored, after the same checks."""
        path, shown = self.path + within, "/".join((*within, "vars", str(index)))
        self.used[path] = max(self.used.get(path, 0), index + 1)
        if index >= self.source.count(path):
            raise FormatError(f"variable {shown} is missing", wanted=f"float32{list(shape)}")
        found = self.source.read(path, index)
        if found.shape != tuple(shape) or found.dtype != np.float32:
            raise FormatError(
                f"variable {shown} is {found.dtype}{list(found.shape)}", wanted=f"float32{list(shape)}"
            )
        return found

    def options(self) -> Options:
        """Its config, to be read key by key."""
        return Options(self.config, self.place)

    def once(self, label: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call."""
        if label not in self.parts:
            self.parts[label] = make()
        return self.parts[label]

    def check_count(self) -> None:
        """Refuse variables the config does not account for."""
        for path, used in ({self.path: 0} | self.used).items():
            if (held := self.source.count(path)) != used:
                raise FormatError(f"{held} variables under {'/'.join(path)}", wanted=f"{used}")


Rule: TypeAlias = Callable[[Layer, Options, Call], Result]
LAYERS: Final[dict[str, Rule]] = {}
"""By class name."""


def layer(*kinds: str) -> Callable[[Rule], Rule]:
    """Register a rule under its class names."""

    def register(rule: Rule) -> Rule:
        for kind in kinds:
            assert kind not in LAYERS, kind
            LAYERS[kind] = rule
        return rule

    return register


_MODELS: Final = frozenset({"Sequential", "Functional", "Model"})
_TEXT: Final = frozenset(
    "StringLookup IntegerLookup TextVectorization Hashing HashedCrossing Discretization CategoryEncoding "
    "FeatureSpace".split()
)


def make_layer(found: Any, path: Path, source: Variables, build: Builder, place: str) -> Layer:
    """A layer from its object in a config.

    Raises:
        UnsupportedError: a class that is not in the table.
        FormatError: no layer at all.
    """
    module, kind, config = class_of(found, place)
    name = config.get("name", kind)
    if not isinstance(name, str):
        raise FormatError(f"a layer's name is {str(name)[:80]}", place=place, wanted="a string")
    place = f"{place}/{name[:80]}"
    models = module == "keras" or module.startswith(("keras.models", "keras.src.models"))
    layers = module.startswith(("keras.layers", "keras.src.layers"))
    if kind in _TEXT:
        vocabulary = config.get("vocabulary")
        held = (
            f" with the vocabulary {vocabulary[:80]!r} outside the file"
            if isinstance(vocabulary, str)
            else ""
        )
        raise UnsupportedError(
            f"layer {kind}{held}",
            place=place,
            wanted="a model of tensors",
            next_step="Do the look-up before the model.",
        )
    if not (layers and kind in LAYERS and kind not in _MODELS) and not (models and kind in _MODELS):
        raise UnsupportedError(
            f"class {module[:80]}.{kind[:80]}",
            place=place,
            wanted="Sequential, Functional and the layers tensure.program.from_keras lists",
            next_step=ASK_EXPORT,
        )
    return Layer(kind, name, config, path, source, build, place)


def call_layer(found: Layer, call: Call) -> Result:
    """What a layer gives for one call; errors name the layer."""
    found.build.count_call()
    try:
        with found.build.inside(found.name):
            options = found.options()
            options.dtype()
            result = LAYERS[found.kind](found, options, call)
            options.done()
            call.done()
            found.check_count()
            return result
    except TensureError as error:
        raise error.at(place=found.place) from None


def snake(kind: str) -> str:
    """A class name as Keras writes it in the paths of variables."""
    found = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", found).lower()
