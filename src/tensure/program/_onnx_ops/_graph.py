"""Walks the nodes of a graph: scopes of names, subgraphs, functions, and the row of each node.

Knows ONNX's scoping and versions, not what an op means (the families) nor where the graph came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, LimitError, RecordError, TensureError, UnsupportedError

from .._dtypes import dtype_name, numpy_dtype
from .._onnx import OnnxAttr, OnnxFunction, OnnxGraph, OnnxModel, OnnxNode, OnnxRef
from .._records import TensorType
from .._weights import StoredTensor
from ._builder import CARRIERS, Builder, Held, Tensor
from ._table import NEWEST, bind_node, onnx_rows, row_of

MAX_NODES: Final = 1 << 18
"""Steps of reading one file: nodes visited and graphs entered, those of unrolled loops each time."""
_NAMES_A_STEP: Final = 16
"""Names bound or looked up at the cost of one step more."""
MAX_DEPTH: Final = 32
"""Subgraphs and functions inside one another."""
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")


@dataclass(slots=True)
class Scope:
    """Names of one graph; a subgraph sees those of the graphs around it."""

    parent: Scope | None = None
    held: dict[str, Held] = field(default_factory=dict[str, Held])
    attrs: Mapping[str, OnnxAttr] = field(default_factory=dict[str, OnnxAttr])
    """What the call of a function gives for its attributes."""

    def get(self, name: str) -> Held:
        """What a name stands for here.

        Raises:
            FormatError: nothing made it.
        """
        scope: Scope | None = self
        while scope is not None:
            if name in scope.held:
                return scope.held[name]
            scope = scope.parent
        raise FormatError(f"{name!r} is read and never made", wanted="a value made before it is read")


@dataclass(slots=True)
class Walk:
    """One file being walked."""

    builder: Builder
    model: OnnxModel
    visited: int = 0
    depth: int = 0

    def count(self, names: int) -> None:
        """One step that touches so many names.

        Raises:
            LimitError: the file has had all its steps.
        """
        self.visited += 1 + names // _NAMES_A_STEP
        if self.visited > MAX_NODES:
            raise LimitError(f"over {MAX_NODES} nodes", wanted="a smaller model or fewer repetitions")

    def graph(self, graph: OnnxGraph, inputs: Sequence[Held], parent: Scope | None = None) -> list[Held]:
        """The outputs of a graph for these inputs, which stand for its inputs in order.

        Raises:
            FormatError: another number of inputs.
            LimitError: the file has had all its steps; a graph without nodes is one too.
        """
        self.count(len(graph.initializers) + len(graph.inputs) + len(graph.outputs))
        if len(inputs) != len(graph.inputs):
            raise FormatError(
                f"graph {graph.name!r} of {len(graph.inputs)} inputs", wanted=f"{len(inputs)} inputs"
            )
        scope = Scope(parent, attrs={} if parent is None else parent.attrs)
        for name, stored in graph.initializers.items():
            scope.held[name] = weight_of(name, stored)
        for spec, item in zip(graph.inputs, inputs, strict=True):
            scope.held[spec.name] = item
        self.nodes(graph.nodes, scope, self.model.opsets)
        return [scope.get(spec.name) for spec in graph.outputs]

    def nodes(self, nodes: Sequence[OnnxNode], scope: Scope, opsets: Mapping[str, int]) -> None:
        """Every node in order; what each makes goes into the scope."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LimitError(f"subgraphs over {MAX_DEPTH} deep", wanted=f"at most {MAX_DEPTH}")
        for at, node in enumerate(nodes):
            self.count(len(node.inputs) + len(node.outputs) + len(node.attrs))
            place = f"node {node.name or at!r} ({node.op_type})"
            try:
                self._node(node, scope, opsets)
            except TensureError as error:
                raise error.at(place=place) from None
            except (ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
                raise RecordError(f"cannot take its inputs: {error}", place=place) from error
            except MemoryError as error:
                # The last resort: what a file can make large is held against Builder.room before it is made.
                raise LimitError("arrays this machine has no memory for", place=place) from error
        self.depth -= 1

    def _node(self, node: OnnxNode, scope: Scope, opsets: Mapping[str, int]) -> None:
        given = [scope.get(name) if name else None for name in node.inputs]
        made = self._made(node, given, scope, opsets)
        for name, item in zip(node.outputs, made, strict=False):
            if name:
                scope.held[name] = item
                if isinstance(item, Tensor) and item.is_known and not item.label:
                    item.label = name
        for name in node.outputs[len(made) :]:
            if name:
                raise UnsupportedError(f"output {name!r} of {node.op_type}", wanted=f"{len(made)} outputs")

    def _made(
        self, node: OnnxNode, given: list[Held], scope: Scope, opsets: Mapping[str, int]
    ) -> Sequence[Held]:
        domain = "" if node.domain in _DEFAULT_DOMAINS else node.domain
        function = self.model.functions.get((node.domain, node.op_type))
        row = row_of(node, domain)
        version = opsets.get(domain, opsets.get("ai.onnx", 0) if not domain else 1)
        if function is not None:
            return self._function(function, _resolved(node.attrs, scope), given)
        if row is None:
            raise UnsupportedError(
                f"op {f'{domain}.' if domain else ''}{node.op_type}",
                wanted=f"one of the {len(onnx_rows())} op types of docs/onnx.md",
                next_step="Export the model with other ops, or ask for the op in an issue",
            )
        if not domain and not row.since <= version <= NEWEST:
            raise UnsupportedError(
                f"{node.op_type} of opset {version}", wanted=f"opset {row.since} to {NEWEST}"
            )
        inputs, attrs = bind_node(row, node.op_type, given, _resolved(node.attrs, scope))
        used = [at for at, name in enumerate(node.outputs) if name]
        builder = self.builder
        before = (builder.version, builder.num_outs, builder.wanted, builder.note, builder.run_graph)
        builder.version, builder.num_outs = version, max(used, default=0) + 1
        builder.wanted = next((name for name in node.outputs if name), node.op_type)
        builder.note = (("source", node.name[:200]),) if node.name.isprintable() and node.name else ()
        builder.run_graph = lambda graph, inputs: self.graph(graph, inputs, scope)
        made = row.translate(builder, inputs, attrs)
        builder.version, builder.num_outs, builder.wanted, builder.note, builder.run_graph = before
        return [made] if isinstance(made, Tensor) or made is None else list(made)

    def _function(
        self, function: OnnxFunction, attrs: Mapping[str, OnnxAttr], given: list[Held]
    ) -> list[Held]:
        """A model-local function in place of the node that calls it."""
        if len(given) > len(function.inputs):
            raise FormatError(f"{function.name} of {len(given)} inputs", wanted=f"{len(function.inputs)}")
        for key in function.attrs:
            if key not in attrs:
                raise FormatError(f"{function.name} lacks attribute {key!r}", wanted="every required one")
        scope = Scope(attrs={**function.defaults, **attrs})
        padded = [*given, *[None] * (len(function.inputs) - len(given))]
        scope.held.update(zip(function.inputs, padded, strict=True))
        self.nodes(function.nodes, scope, {**self.model.opsets, **function.opsets})
        return [scope.get(name) for name in function.outputs]


def _resolved(attrs: Mapping[str, OnnxAttr], scope: Scope) -> dict[str, OnnxAttr]:
    """Attributes with a function's own put in; one the call leaves out stays out."""
    found: dict[str, OnnxAttr] = {}
    for key, value in attrs.items():
        if not isinstance(value, OnnxRef):
            found[key] = value
        elif value.name in scope.attrs:
            found[key] = scope.attrs[value.name]
    return found


def weight_of(name: str, stored: StoredTensor) -> Tensor:
    """An initializer as a known tensor."""
    return Tensor(TensorType(stored.shape, stored.dtype), stored=stored, label=name)


def known_input(name: str, values: Any) -> Tensor:
    """A graph input whose value is given."""
    array = np.asarray(values)
    bits, carrier = CARRIERS.get(str(array.dtype).replace("uint", "u"), (0, ""))
    if bits:
        found = known_input(name, array.astype(numpy_dtype(carrier)))
        found.bits = bits
        return found
    return weight_of(name, StoredTensor.from_array(array, dtype_name(array.dtype)))
