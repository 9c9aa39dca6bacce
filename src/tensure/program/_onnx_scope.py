"""Whether an ONNX model's names hold together: made once and before they are read, functions without cycles.

Knows: the records and the scopes of graphs, sub-graphs and functions. Does not know the file they came from
nor what an op means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tensure.errors import FormatError, LimitError, UnsupportedError

from ._onnx import OnnxAttr, OnnxFunction, OnnxGraph, OnnxModel, OnnxNode, OnnxRef

__all__ = ["check_names"]

MAX_EXPANDED_NODES = 1 << 20  # of the model with every call of a function written out


def check_names(model: OnnxModel) -> None:
    """Raise unless every name is made once, before it is read, and every function is known and finite.

    Raises:
        FormatError: a name made twice or read before it is made, an output nobody makes, a function that
            calls itself, a domain without an opset. LimitError: functions that expand without end.
        UnsupportedError: a use of an initializer whose dtype we do not read. Errors name graph and node.
    """
    _Scope(model.opsets, None).graph(model.graph, "graph")
    for function in model.functions.values():
        _check_function(function)
    _check_calls(model)


class _Scope:
    """The names visible where the walk is. One set for all levels: a level takes its own names out again."""

    def __init__(self, opsets: Mapping[str, int], attrs: frozenset[str] | None) -> None:
        self.opsets = opsets
        self.attrs = attrs  # those of the function whose body this is
        self.made: set[str] = set()
        self.unread: dict[str, str] = {}
        self.place = ""

    def graph(self, graph: OnnxGraph, place: str) -> None:
        self.place = place
        own: list[str] = []
        for name in dict.fromkeys(
            [*(value.name for value in graph.inputs), *graph.initializers, *graph.unread]
        ):
            self.make(name, own)
        self.unread |= graph.unread
        if len({value.name for value in graph.inputs}) != len(graph.inputs):
            raise self.bad("two inputs have one name")
        self.nodes(graph.nodes, place, own)
        self.place = place
        for value in graph.outputs:
            self.read(value.name, "output")
        self.leave(own)

    def nodes(self, nodes: tuple[OnnxNode, ...], place: str, own: list[str]) -> None:
        for index, node in enumerate(nodes):
            self.place = f"{place}, node {index} {(node.name or node.op_type)[:60]!r}"
            if node.domain not in self.opsets:
                raise self.bad(
                    f"op {node.op_type!r} of domain {node.domain[:60]!r}", "a domain with an opset"
                )
            for name in node.inputs:
                if name:
                    self.read(name, "input")
            for attr, value in node.attrs.items():
                self.attr(attr, value)
            for name in node.outputs:
                if name:
                    self.make(name, own)

    def attr(self, name: str, value: OnnxAttr) -> None:
        if isinstance(value, OnnxRef):
            if self.attrs is None or value.name not in self.attrs:
                raise self.bad(
                    f"attribute {name[:60]!r} refers to {value.name[:60]!r}", "an attribute of the function"
                )
        here = self.place
        for graph in _graphs(value):
            self.graph(graph, f"{_shorter(here)}, {name}")
            self.place = here

    def make(self, name: str, own: list[str]) -> None:
        if name in self.made:
            raise self.bad(f"{name[:80]!r} is made twice", "every name made once, outer graphs included")
        self.made.add(name)
        own.append(name)

    def read(self, name: str, what: str) -> None:
        if name not in self.made:
            raise self.bad(f"{what} {name[:80]!r} is not made before", "nodes in order of use")
        if name in self.unread:
            raise UnsupportedError(
                f"{what} {name[:80]!r} is an initializer of {self.unread[name]}",
                place=self.place,
                wanted="a dtype that we read",
            )

    def leave(self, own: Iterable[str]) -> None:
        for name in own:
            self.made.discard(name)
            self.unread.pop(name, None)

    def bad(self, found: str, wanted: str | None = None) -> FormatError:
        return FormatError(found, place=self.place, wanted=wanted)


def _shorter(place: str) -> str:
    """Nested places grow with depth; the outermost and the innermost part say enough."""
    parts = place.split(", ")
    return place if len(parts) <= 4 else ", ".join([parts[0], "…", *parts[-2:]])


def _graphs(value: OnnxAttr) -> tuple[OnnxGraph, ...]:
    if isinstance(value, OnnxGraph):
        return (value,)
    if isinstance(value, tuple):
        return tuple(item for item in value if isinstance(item, OnnxGraph))
    return ()


def _check_function(function: OnnxFunction) -> None:
    place = f"function {function.name[:60]!r}"
    scope = _Scope(function.opsets, frozenset({*function.attrs, *function.defaults}))
    scope.place = place
    own: list[str] = []
    for name in function.inputs:
        scope.make(name, own)
    scope.nodes(function.nodes, place, own)
    scope.place = place
    for name in function.outputs:
        scope.read(name, "output")


def _check_calls(model: OnnxModel) -> None:
    """No function reaches itself, and the model with all calls written out stays within bounds."""
    calls = {key: list(_calls(function.nodes, model)) for key, function in model.functions.items()}
    size: dict[tuple[str, str], int] = {}
    state: dict[tuple[str, str], bool] = {}  # False while its calls are being counted, True after
    for root in model.functions:
        # Not recursive: a chain of calls may be as long as there are functions.
        stack = [root]
        while stack:
            key = stack[-1]
            if state.get(key):
                stack.pop()
                continue
            if key not in state:
                state[key] = False
                for callee in calls[key]:
                    if state.get(callee) is False:
                        raise FormatError(
                            "a function that calls itself",
                            place=f"function {callee[1][:60]!r}",
                            wanted="none",
                        )
                    if callee not in state:
                        stack.append(callee)
                continue
            size[key] = _count(model.functions[key].nodes) + sum(size[callee] for callee in calls[key])
            _bound(size[key], f"function {key[1][:60]!r}")
            state[key] = True
            stack.pop()
    _bound(_count(model.graph.nodes) + sum(size[key] for key in _calls(model.graph.nodes, model)), "graph")


def _bound(size: int, place: str) -> None:
    if size > MAX_EXPANDED_NODES:
        raise LimitError(
            f"{size} nodes with every function written out",
            place=place,
            wanted=f"at most {MAX_EXPANDED_NODES}",
        )


def _walk(nodes: Iterable[OnnxNode]) -> Iterator[OnnxNode]:
    for node in nodes:
        yield node
        for value in node.attrs.values():
            for graph in _graphs(value):
                yield from _walk(graph.nodes)


def _count(nodes: tuple[OnnxNode, ...]) -> int:
    return sum(1 for _ in _walk(nodes))


def _calls(nodes: tuple[OnnxNode, ...], model: OnnxModel) -> Iterator[tuple[str, str]]:
    for node in _walk(nodes):
        if (node.domain, node.op_type) in model.functions:
            yield node.domain, node.op_type
