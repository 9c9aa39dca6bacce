"""Sequential and Functional models: layers by name, nodes in the order of their tensors.

Knows: how Keras writes a graph (`inbound_nodes`, `keras_history`), that an entry of `output_layers` counts
the calls of a nested Functional from 1, and the names variables have on disk (`layers/<class>[_n]`).
Models nest: a model is a layer whose rule is this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tensure.errors import FormatError, InputError, TensureError, UnsupportedError

from .._dtypes import DTYPES
from ._build import Tensor
from ._document import class_of
from ._options import Options
from ._table import ASK_EXPORT, Call, Layer, Result, call_layer, layer, make_layer, snake
from ._tensor_ops import TENSOR_OPS, is_tensor_op

__all__ = ["Socket", "run_model", "sockets"]

Node = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Socket:
    """One input of a model: its name, its sizes (None where open) and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def sockets(model: Layer) -> list[Socket]:
    """The inputs of the outermost model, in the order it takes them.

    Raises:
        InputError: a Sequential that was never built, so that nothing says what goes in.
    """
    layers = _configs(model)
    by_name = {config.get("name"): (config, place) for _, config, place in layers}
    if model.kind == "Sequential":
        _, kind, config = class_of(layers[0][0], layers[0][2])
        if kind == "InputLayer":
            return [_socket(config, layers[0][2])]
        shape = model.config.get("build_input_shape")
        if shape is None:
            raise InputError(
                "the model was never built: nothing says what its input is",
                place=model.place,
                wanted="an Input layer in front",
                next_step="Call model.build(input_shape) and save it again.",
            )
        return [_socket({"name": "input", "batch_shape": shape}, model.place)]
    found: list[Socket] = []
    for name, _, _ in _leaves(model.config.get("input_layers"), model.place):
        if name not in by_name:
            raise FormatError(f"no layer {name[:80]!r}", place=model.place, wanted="an input of the model")
        found.append(_socket(*by_name[name]))
    return found


def run_model(model: Layer, given: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """The outermost model's outputs: `out`, or `out_0` ... or the keys of a dict.

    Raises:
        FormatError, UnsupportedError: as the layers do; each names its layer.
    """
    try:
        if model.kind == "Sequential":
            found = _flat(_sequential(model, list(given)))
            keys = None
        else:
            found = _functional(model, list(given), sorted_keys=False)
            structure = model.config.get("output_layers")
            keys = list(structure) if isinstance(structure, dict) else None
        if keys is not None and len(keys) != len(found):
            raise FormatError("output_layers nested deeper than one dict")
    except TensureError as error:
        raise error.at(place=model.place) from None
    if keys is not None:
        return [(str(key), tensor) for key, tensor in zip(keys, found, strict=True)]
    if len(found) == 1:
        return [("out", found[0])]
    return [(f"out_{at}", tensor) for at, tensor in enumerate(found)]


@layer("Sequential", "Functional", "Model")
def _nested(found: Layer, options: Options, call: Call) -> Result:
    options.ignore("layers", "input_layers", "output_layers", "build_input_shape", "dtype")
    given = call.args[0] if len(call.args) == 1 else call.args
    if isinstance(given, dict):
        names = [name for name, _, _ in _leaves(found.config.get("input_layers"), found.place)]
        keys = list(given) if set(given) != set(names) else names
        given = [given[key] for key in keys]
    tensors = given if isinstance(given, list) else [given]
    if not tensors or not all(isinstance(item, Tensor) for item in tensors):
        raise FormatError("called with something else", wanted="tensors")
    if found.kind == "Sequential":
        return _sequential(found, tensors)
    results = _functional(found, tensors, sorted_keys=True)
    return results[0] if len(results) == 1 else results


# --- layers of a model ------------------------------------------------------------------------------


def _configs(model: Layer) -> list[tuple[Any, Mapping[str, Any], str]]:
    """(object, its config, its place) of every layer."""
    found = model.config.get("layers")
    if not isinstance(found, list) or not found:
        raise FormatError("a model without layers", place=model.place)
    out: list[tuple[Any, Mapping[str, Any], str]] = []
    for item in found:
        _, _, config = class_of(item, model.place)
        # In a graph a layer is known by the name beside its config.
        named = {"name": item["name"]} if isinstance(item.get("name"), str) else {}
        out.append((item, {**config, **named}, f"{model.place}/{str(config.get('name', '?'))[:80]}"))
    return out


def _layers(model: Layer) -> list[tuple[str, Layer | Any]]:
    """(name, layer) in order, made once; an input layer or an op on tensors stays its object."""

    def make() -> list[tuple[str, Layer | Any]]:
        counts: dict[str, int] = {}
        out: list[tuple[str, Layer | Any]] = []
        for item, config, _ in _configs(model):
            module, kind, _ = class_of(item, model.place)
            name = config.get("name", kind)
            if not isinstance(name, str):
                raise FormatError(f"a layer's name is {str(name)[:80]}", place=model.place, wanted="a string")
            if is_tensor_op(module):
                out.append((name, item))
                continue
            if kind == "InputLayer":
                if model.kind != "Sequential":
                    _numbered("input_layer", counts)
                out.append((name, item))
                continue
            path = (*model.path, "layers", _numbered(snake(kind), counts))
            out.append((name, make_layer(item, path, model.source, model.build, model.place)))
        return out

    found: list[tuple[str, Layer | Any]] = model.once("layers", make)
    return found


def _numbered(name: str, counts: dict[str, int]) -> str:
    counts[name] = counts.get(name, -1) + 1
    return f"{name}_{counts[name]}" if counts[name] else name


def _socket(config: Mapping[str, Any], place: str) -> Socket:
    options = Options(config, place)
    for key in ("sparse", "ragged", "optional"):
        options.off(key)
    shape = options.raw("batch_shape", options.raw("batch_input_shape", None))
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        raise FormatError(f"an input of shape {str(shape)[:80]}", place=place, wanted="a batch and its sizes")
    for size in shape:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise FormatError(f"an input of shape {str(shape)[:80]}", place=place, wanted="sizes or none")
    dtype = options.raw("dtype", "float32")
    dtype = dtype.get("config", {}).get("name") if isinstance(dtype, dict) else dtype
    by_numpy = {str(item): name for name, item in DTYPES.items()}
    if not isinstance(dtype, str) or dtype not in by_numpy:
        raise UnsupportedError(f"an input of dtype {str(dtype)[:80]}", place=place, wanted=" ".join(by_numpy))
    return Socket(str(config.get("name", "input")), tuple(shape), by_numpy[dtype])


# --- running ----------------------------------------------------------------------------------------


def _flat(result: Result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _fits(model: Layer, item: Any, tensor: Tensor) -> None:
    """Hold a tensor against the input layer it is for."""
    socket = _socket(class_of(item, model.place)[2], model.place)
    sizes = zip(socket.shape, tensor.shape, strict=False)
    if len(socket.shape) != tensor.rank or any(want not in (None, have) for want, have in sizes):
        raise FormatError(f"{tensor.type} for input {socket.name[:80]}", wanted=str(list(socket.shape)))


def _sequential(model: Layer, given: list[Tensor]) -> Result:
    found: Result = given[0] if len(given) == 1 else given
    for _, item in _layers(model):
        if isinstance(item, Layer):
            found = call_layer(item, Call([found], {}))
        elif isinstance(found, Tensor) and class_of(item, model.place)[1] == "InputLayer":
            _fits(model, item, found)
        else:
            raise FormatError("an op on tensors in a Sequential", place=model.place, wanted="layers")
    return found


@dataclass(slots=True)
class _Graph:
    """A Functional model's nodes and what is known of them."""

    model: Layer
    layers: Mapping[str, Layer | Any]
    results: dict[Node, list[Tensor]] = field(default_factory=dict[Node, list[Tensor]])

    def tensor(self, name: str, node: int, index: int) -> Tensor:
        """One result."""
        found = self.results.get((name, node))
        if found is None or not 0 <= index < len(found):
            raise FormatError(
                f"no tensor {index} of call {node} of layer {name[:80]!r}", place=self.model.place
            )
        return found[index]

    def resolved(self, value: Any) -> Any:
        """A call's argument with tensors in place of their histories."""
        if isinstance(value, list):
            return [self.resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("class_name") == "__keras_tensor__":
            return self.tensor(*_history(value, self.model.place))
        if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
            return [self.resolved(item) for item in value["items"]]
        if "class_name" in value:
            raise UnsupportedError(
                f"an argument of class {str(value['class_name'])[:80]}",
                place=self.model.place,
                wanted="tensors",
            )
        return {key: self.resolved(item) for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class _Plan:
    """The calls of a Functional model in an order in which every tensor is there when it is read."""

    layers: Mapping[str, Layer | Any]
    inputs: list[tuple[str, int, int]]
    calls: list[tuple[Node, Mapping[str, Any]]]


def _functional(model: Layer, given: list[Tensor], *, sorted_keys: bool) -> list[Tensor]:
    plan: _Plan = model.once("plan", lambda: _plan(model))
    graph = _Graph(model, plan.layers)
    if len(plan.inputs) != len(given):
        raise FormatError(f"{len(given)} inputs", place=model.place, wanted=str(len(plan.inputs)))
    for (name, node, _), tensor in zip(plan.inputs, given, strict=True):
        _fits(model, plan.layers[name], tensor)
        graph.results[name, node] = [tensor]
    for called, call in plan.calls:
        graph.results[called] = _run_node(graph, called[0], call)
    return [
        graph.tensor(name, node - _first_call(graph, name), index)
        for name, node, index in _leaves(model.config.get("output_layers"), model.place, sorted_keys)
    ]


def _first_call(graph: _Graph, name: str) -> int:
    """1 where `output_layers` counts a nested graph's own making as its call 0."""
    found = graph.layers.get(name)
    return int(isinstance(found, Layer) and found.kind in ("Functional", "Model"))


def _plan(model: Layer) -> _Plan:
    layers: dict[str, Layer | Any] = {}
    for name, item in _layers(model):
        if name in layers:
            raise FormatError(f"two layers named {name[:80]!r}", place=model.place, wanted="each name once")
        layers[name] = item
    inputs = list(_leaves(model.config.get("input_layers"), model.place))
    for name, _, _ in inputs:
        if name not in layers or isinstance(layers[name], Layer):
            raise FormatError(f"no input layer {name[:80]!r}", place=model.place)
    there = {(name, node) for name, node, _ in inputs}
    calls: dict[Node, Mapping[str, Any]] = {}
    waiting: dict[Node, set[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for name, (item, _, _) in zip(layers, _configs(model), strict=True):
        for at, call in enumerate(_calls(item, name, model)):
            node = (name, at)
            if node in there:
                raise FormatError(f"input layer {name[:80]!r} is called", place=model.place)
            needs = {(label, index) for label, index, _ in _histories(call, model.place)}
            calls[node], waiting[node] = call, needs - there
            for need in waiting[node]:
                readers.setdefault(need, []).append(node)
    ready, order = deque(node for node in calls if not waiting[node]), list[Node]()
    while ready:
        node = ready.popleft()
        order.append(node)
        for reader in readers.get(node, ()):
            waiting[reader].discard(node)
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(calls):
        name, at = next(node for node in calls if waiting[node])
        raise FormatError(
            f"call {at} of layer {name[:80]!r} waits for tensors nobody makes",
            place=model.place,
            wanted="a graph without cycles",
        )
    return _Plan(layers, inputs, [(node, calls[node]) for node in order])


def _calls(item: Mapping[str, Any], name: str, model: Layer) -> list[Mapping[str, Any]]:
    """The calls of a layer as Keras 3 writes them."""
    nodes = item.get("inbound_nodes", [])
    if not isinstance(nodes, list):
        raise FormatError(f"the calls of layer {name[:80]!r}", place=model.place, wanted="a list")
    if not all(isinstance(call, dict) and isinstance(call.get("args"), list) for call in nodes):
        raise UnsupportedError(
            f"the calls of layer {name[:80]!r} in an older form",
            place=model.place,
            wanted="a file written by Keras 3",
            next_step="Load it in Keras 3 and save it again.",
        )
    return nodes


def _run_node(graph: _Graph, name: str, call: Mapping[str, Any]) -> list[Tensor]:
    kwargs = call.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise FormatError(
            f"the arguments of layer {name[:80]!r}", place=graph.model.place, wanted="an object"
        )
    given = Call(graph.resolved(call["args"]), graph.resolved(kwargs))
    item = graph.layers[name]
    if isinstance(item, Layer):
        return _flat(call_layer(item, given))
    module, kind, config = class_of(item, graph.model.place)
    place = f"{graph.model.place}/{name[:80]}"
    if not is_tensor_op(module) or kind not in TENSOR_OPS:
        raise UnsupportedError(
            f"class {module[:80]}.{kind[:80]}",
            place=place,
            wanted=f"layers, or one of {', '.join(TENSOR_OPS)}",
            next_step=ASK_EXPORT,
        )
    build = graph.model.build
    build.count_call()
    try:
        with build.inside(name):
            options = Options(config, place)
            options.dtype()
            found = TENSOR_OPS[kind](build, options, given)
            options.done()
            given.done()
            return [found]
    except TensureError as error:
        raise error.at(place=place) from None


# --- histories --------------------------------------------------------------------------------------

_MAX_CALLS: Final = 1 << 20


def _history(value: Mapping[str, Any], place: str) -> tuple[str, int, int]:
    config = value.get("config")
    found = config.get("keras_history") if isinstance(config, dict) else None
    return _leaf(found, place)


def _leaf(found: Any, place: str) -> tuple[str, int, int]:
    if isinstance(found, list) and len(found) == 3 and isinstance(found[0], str):
        name, node, index = found
        numbers = (node, index)
        if all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MAX_CALLS for n in numbers):
            return name, node, index
    raise FormatError(f"a tensor's history is {str(found)[:80]}", place=place, wanted="[layer, call, index]")


def _histories(value: Any, place: str) -> Iterator[tuple[str, int, int]]:
    """Every tensor an argument mentions; the document's depth is bounded before."""
    if isinstance(value, list):
        for item in value:
            yield from _histories(item, place)
    elif isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield _history(value, place)
        else:
            for item in value.values():
                yield from _histories(item, place)


def _leaves(structure: Any, place: str, sorted_keys: bool = True) -> Iterator[tuple[str, int, int]]:
    """The tensors of `input_layers` or `output_layers`, flattened as Keras does: dicts by key."""
    if isinstance(structure, dict):
        keys = sorted(structure) if sorted_keys else list(structure)
        for key in keys:
            yield from _leaves(structure[key], place, sorted_keys)
    elif isinstance(structure, list) and structure and isinstance(structure[0], list | dict):
        for item in structure:
            yield from _leaves(item, place, sorted_keys)
    else:
        yield _leaf(structure, place)
