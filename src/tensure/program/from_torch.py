"""A torch module as a Model: torch.export, ATen by ATen into listed ops, parameters into weights.

The one entry is `run`. Parameters and buffers become weights under their module path; a buffer the module
writes becomes a state; integers are specialised, apart from a dynamic batch. Knows torch.export's records;
does not know what an op means (`_torch_ops.py` names it, the op table defines it) nor how to simplify
(`_normalise.py`).
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.export

from tensure.errors import EvaluationError, InputError, TensureError, UnsupportedError

from ._evaluate import infer_program
from ._expr import Int, axis, combine
from ._lex import RESERVED
from ._model import Model
from ._normalise import normalise as simplify
from ._ops import listed
from ._records import Attrs, Entry, Name, Op, Program, Ref, State, TensorType, Value
from ._torch_ops import AtenCall, translate
from ._validate import corner_params, validate_program
from ._weights import StoredTensor

__all__ = ["from_torch"]

_DTYPES: Final = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
_LIBRARY: Final = os.path.dirname(torch.__file__) + os.sep


def from_torch(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    name: str = "model",
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    normalise: bool = True,
) -> Model:
    """The Model that computes what `module.eval()` computes.

    Inputs are named after the arguments of `forward`; one tensor returned is named `out`, several `out_0`,
    `out_1`, ..., and those of a dict after its keys. Weights bear their module path, with `_` before
    a leading digit (`_0.weight`). Every op notes its source line and module path.

    Args:
        module: exported in eval mode; its own mode is left as found.
        example_inputs: positional arguments of `forward`; shapes and Python numbers are specialised.
        name: the Model's name.
        dynamic: at most one parameter, `{"batch": (1, 64)}` with both ends included: the size of dim 0 of
            every tensor input.
        normalise: simplify the Program (fold batch norm, drop what does nothing, ...).

    Raises:
        InputError: the arguments do not fit the module, or torch.export cannot trace it.
        UnsupportedError: an op, dtype or form without a counterpart; names op, source line and module.
    """
    exported, param = _export(module, example_inputs, dynamic)
    program, weights = _Translation(exported, param).build()
    try:
        validate_program(program)
    except TensureError as error:
        raise error.at(file=name) from None
    model = Model(name, program, weights, {}, f"torch.export of {type(module).__name__}")
    return simplify(model) if normalise else model


@dataclass(frozen=True, slots=True)
class _Param:
    """The dynamic size: its name and bounds, both included."""

    name: str
    low: int
    high: int


def _export(
    module: torch.nn.Module, inputs: tuple[Any, ...], dynamic: Mapping[str, tuple[int, int]] | None
) -> tuple[torch.export.ExportedProgram, _Param | None]:
    if not isinstance(module, torch.nn.Module) or not isinstance(inputs, tuple):
        raise InputError(
            f"a {type(module).__name__} with inputs of type {type(inputs).__name__}",
            wanted="a torch.nn.Module and a tuple of example inputs",
        )
    param = _param(dynamic)
    shapes: tuple[Any, ...] | None = None
    if param is not None:
        # torch specialises a size of 1, so the example batch must be at least 2.
        inputs = tuple(_at_least_two(item, param) for item in inputs)
        size = torch.export.Dim(param.name, min=param.low, max=param.high)
        shapes = tuple({0: size} if isinstance(item, torch.Tensor) else None for item in inputs)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # export warns of its own internals (torch 2.13)
            exported = torch.export.export(
                module, inputs, dynamic_shapes=_bound(module, shapes), strict=False
            )
            return exported.run_decompositions(_decompositions()), param
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        NotImplementedError,
        AssertionError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"torch.export cannot trace {type(module).__name__}: {lines[0]}",
            wanted="a module without data-dependent control flow, called as its forward wants",
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training


def _param(dynamic: Mapping[str, tuple[int, int]] | None) -> _Param | None:
    if not dynamic:
        return None
    if len(dynamic) > 1:
        raise UnsupportedError(
            f"{len(dynamic)} dynamic sizes: {', '.join(dynamic)}",
            wanted="one, the size of dim 0 of every input",
        )
    ((label, (low, high)),) = dynamic.items()
    if not label.isidentifier() or label in RESERVED or not 1 <= low < high:
        raise InputError(
            f"dynamic={{{label!r}: ({low}, {high})}}", wanted="a name and bounds 1 <= low < high"
        )
    return _Param(label, low, high)


def _at_least_two(item: Any, param: _Param) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    if not item.dim():
        raise InputError("an input of rank 0", wanted=f"a first dim for {param.name}")
    return torch.cat([item, item]) if item.shape[0] == 1 else item


def _bound(module: torch.nn.Module, shapes: tuple[Any, ...] | None) -> Any:
    """Dynamic shapes in the form export wants: nested once more where forward takes *args."""
    if shapes is None:
        return None
    parameters = list(inspect.signature(module.forward).parameters.values())
    starred = next((at for at, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), None)
    if starred is None or starred >= len(shapes):
        return shapes
    return (*shapes[:starred], shapes[starred:])


def _decompositions() -> Any:
    """Core ATen, but what the op table lists stays whole: a linear is no permute and addmm."""
    table: Any = torch.export.default_decompositions()
    for kind in listed():
        packet = getattr(torch.ops.aten, kind, None)
        for overload in packet.overloads() if packet is not None else ():
            table.pop(getattr(packet, overload), None)
    return table


@dataclass(slots=True)
class _Translation:
    """One exported graph on its way into records."""

    exported: torch.export.ExportedProgram
    param: _Param | None
    refs: dict[torch.fx.Node, Any] = field(default_factory=dict[torch.fx.Node, Any])
    """What a node stands for: a Ref, a number, or an expression."""
    letters: dict[str, Int] = field(default_factory=dict[str, Int])
    """torch's size symbols in our words."""
    taken: set[str] = field(default_factory=set[str])
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    weights: dict[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    buffers: dict[str, Name] = field(default_factory=dict[str, Name])
    """Where each buffer went, by module path: its weight or its before-state."""
    body: list[Op] = field(default_factory=list[Op])
    expected: dict[str, TensorType] = field(default_factory=dict[str, TensorType])
    """What torch says of the values whose size is fixed."""

    def build(self) -> tuple[Program, dict[str, StoredTensor]]:
        signature = self.exported.graph_signature
        nodes = list(self.exported.graph.nodes)
        written = set(signature.buffers_to_mutate.values())
        placeholders = {node.name: node for node in nodes if node.op == "placeholder"}
        self._learn_symbols(placeholders, signature.user_inputs)
        self._take_weights(placeholders, written)
        inputs = self._take_inputs(placeholders, signature.user_inputs)
        for node in nodes:
            if node.op == "call_function" and node not in self.refs:
                try:
                    self._call(node)
                except TensureError as error:
                    raise error.at(file=_module(node) or None, place=_place(node)) from None
        entry = self._entry(nodes[-1], inputs)
        program = Program(values=self.values, entries={"run": entry})
        self._compare(program)
        return program, self.weights

    def _compare(self, program: Program) -> None:
        """Hold our shape rules against what torch said of every value, at every corner of the parameter."""
        for params in corner_params(program, "run"):
            for key, found in infer_program(program, params=params).items():
                want = self.expected.get(key, found)
                if found != want:
                    raise UnsupportedError(f"{key} comes out as {found}", wanted=f"{want}, as torch has it")

    # --- leaves ---

    def _learn_symbols(self, placeholders: Mapping[str, torch.fx.Node], users: Sequence[Any]) -> None:
        for user in users:
            shape = getattr(placeholders[user].meta.get("val"), "shape", ()) if user in placeholders else ()
            if self.param is not None and shape and isinstance(shape[0], torch.SymInt):
                self.letters[str(shape[0].node.expr)] = axis(self.param.name)

    def _take_weights(self, placeholders: Mapping[str, torch.fx.Node], written: set[str]) -> None:
        signature = self.exported.graph_signature
        sources = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        shared: dict[tuple[Any, ...], Name] = {}
        for label, path in sources.items():
            node = placeholders[label]
            tensor = self._stored(path)
            if not node.users and path not in written:
                continue
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if path in written:
                base = self._declare(path, tensor, "state")
                if tensor.any():
                    raise UnsupportedError(
                        f"buffer {path} is written and does not start at zero",
                        wanted="a state that starts at zero",
                    )
            elif tensor.numel() and key in shared:
                base = shared[key]
            else:
                base = shared[key] = self._declare(path, tensor, "weight")
                self.weights[str(base)] = _store(tensor)
            self.buffers[path] = base
            self.refs[node] = Ref(base)

    def _stored(self, path: str) -> torch.Tensor:
        found = self.exported.state_dict.get(path)
        if found is None:
            found = self.exported.constants.get(path)
        if not isinstance(found, torch.Tensor) or found.layout is not torch.strided:
            raise UnsupportedError(f"{path} is no dense tensor", wanted="dense parameters and buffers")
        return found

    def _declare(self, path: str, tensor: torch.Tensor, role: Any) -> Name:
        base = self._fresh(path)
        self.values[base] = Value(
            tuple(self._size(size) for size in tensor.shape), _dtype(tensor.dtype), role
        )
        return Name(base)

    def _take_inputs(
        self, placeholders: Mapping[str, torch.fx.Node], users: Sequence[Any]
    ) -> tuple[Name, ...]:
        inputs: list[Name] = []
        for user in users:
            node = placeholders.get(user)
            if node is None:
                continue
            found = node.meta.get("val")
            if isinstance(found, torch.Tensor):
                inputs.append(self._declare(node.name, found, "value"))
                self.refs[node] = Ref(inputs[-1])
            elif node.users:
                self.refs[node] = found if isinstance(found, bool | int | float | str) else None
        return tuple(inputs)

    def _fresh(self, wanted: str) -> str:
        """A name the text form can hold and nobody else has."""
        wanted = wanted.replace("_native_batch_norm_legit_no_training", "batch_norm")
        parts = (
            "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in p)
            for p in wanted.split(".")
        )
        base = ".".join(part or "_" for part in parts)
        if not (base[0].isalpha() or base[0] == "_"):
            base = f"_{base}"
        if base in RESERVED:
            base += "_"
        fresh, count = base, 1
        while fresh in self.taken:
            fresh, count = f"{base}_{count}", count + 1
        self.taken.add(fresh)
        return fresh

    # --- steps ---

    def _call(self, node: torch.fx.Node) -> None:
        found = node.meta.get("val")
        if isinstance(found, torch.SymInt | int) and not isinstance(found, bool):
            self.refs[node] = self._size(found)
            return
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            if _is_assertion(str(target)):
                return
            raise UnsupportedError(f"call of {getattr(target, '__name__', target)}", wanted="ATen ops")
        if target.namespace != "aten":
            raise UnsupportedError(f"op {target}", wanted="ATen ops")
        if _is_assertion(target._schema.name):
            self._assertion(node)
            return
        outs, tensors = self._results(node, found)
        if not any(outs):
            return
        given, defaults = self._arguments(node, target)
        call = AtenCall(
            target._schema.name.removeprefix("aten::"),
            given,
            defaults,
            outs,
            tuple(tuple(map(self._size, tensor.shape)) for tensor in tensors),
            tuple(_dtype(tensor.dtype) for tensor in tensors),
            {
                argument.name: tuple(map(self._size, value.meta["val"].shape))
                for argument, value in zip(target._schema.arguments, node.args, strict=False)
                if isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)
            },
            _note(node),
        )
        self.body.extend(translate(call))

    def _assertion(self, node: torch.fx.Node) -> None:
        """Check a claim about a tensor's metadata here and now: what it says is static, so it needs no op."""
        schema = node.target._schema  # type: ignore[union-attr]
        given = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)
        tensor = given.get("a")
        dtype = given.get("dtype")
        if isinstance(tensor, torch.fx.Node) and dtype is not None and tensor.meta["val"].dtype != dtype:
            raise EvaluationError(f"{tensor.name} is {tensor.meta['val'].dtype}", wanted=str(dtype))

    def _results(
        self, node: torch.fx.Node, found: Any
    ) -> tuple[tuple[Name | None, ...], tuple[torch.Tensor, ...]]:
        """A name for every result that is read, and what torch says of each."""
        if isinstance(found, torch.Tensor):
            made = Name(self._fresh(node.name))
            self._expect(made, found)
            self.refs[node] = Ref(made)
            return (made,), (found,)
        if not isinstance(found, tuple | list) or not all(isinstance(item, torch.Tensor) for item in found):
            raise UnsupportedError(f"a result of type {type(found).__name__}", wanted="tensors")
        outs: list[Name | None] = [None] * len(found)
        for user in node.users:
            at: Any = user.args[1] if len(user.args) > 1 else None
            if getattr(user.target, "__name__", "") != "getitem" or not isinstance(at, int):
                raise UnsupportedError(
                    f"a list of tensors handed to {user.target}", wanted="its items one by one"
                )
            if not user.users:
                self.refs[user] = None
                continue
            result = outs[at] or Name(self._fresh(node.name if at == 0 else user.name))
            outs[at] = result
            self._expect(result, found[at])
            self.refs[user] = Ref(result)
        return tuple(outs), tuple(found)

    def _expect(self, made: Name, found: torch.Tensor) -> None:
        """Remember what torch says a value is."""
        shape = tuple(size for size in map(self._size, found.shape) if isinstance(size, int))
        if len(shape) == found.dim():
            self.expected[str(made)] = TensorType(shape, _dtype(found.dtype))

    def _arguments(
        self, node: torch.fx.Node, target: torch._ops.OpOverload[..., Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        given: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for at, argument in enumerate(target._schema.arguments):
            if at < len(node.args):
                given[argument.name] = self._argument(node.args[at])
            elif argument.name in node.kwargs:
                given[argument.name] = self._argument(node.kwargs[argument.name])
            elif argument.has_default_value():
                defaults[argument.name] = self._argument(argument.default_value)
        return given, defaults

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.refs[value]
        if isinstance(value, list | tuple):
            return tuple(self._argument(item) for item in value)
        if isinstance(value, torch.dtype):
            return _dtype(value)
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.device | torch.layout | torch.memory_format):
            return str(value)
        raise UnsupportedError(f"an argument of type {type(value).__name__}", wanted="tensors, numbers, text")

    def _size(self, size: Any) -> Int:
        """One of torch's sizes as an integer or an expression of the dynamic parameter."""
        if isinstance(size, torch.SymInt):
            found = size.node.expr
            return int(found) if found.is_Integer else self._expression(found)
        return int(size)

    def _expression(self, found: Any) -> Int:
        head = type(found).__name__
        if found.is_Integer:
            return int(found)
        if found.is_Symbol:
            if str(found) in self.letters:
                return self.letters[str(found)]
            raise UnsupportedError(f"the size {found} depends on data", wanted="sizes known from the inputs")
        if head not in _HEADS:
            raise UnsupportedError(f"the size {found}", wanted="+ * // % min max of sizes")
        parts = [self._expression(part) for part in found.args]
        total = parts[0]
        for part in parts[1:]:
            total = combine(_HEADS[head], total, part)
        return total

    # --- the end ---

    def _entry(self, output: torch.fx.Node, inputs: tuple[Name, ...]) -> Entry:
        signature = self.exported.graph_signature
        by_name = {node.name: node for node in self.exported.graph.nodes}
        states = tuple(
            State(self.buffers[path], self._own(by_name[label], f"{path}.next"))
            for label, path in signature.buffers_to_mutate.items()
        )
        if signature.user_inputs_to_mutate:
            raise UnsupportedError(
                f"forward writes into its input {next(iter(signature.user_inputs_to_mutate.values()))}",
                wanted="inputs left as they are",
                next_step="Return the new value instead.",
            )
        users = [label for label in signature.user_outputs if label in by_name]
        if len(users) != len(signature.user_outputs) or not users:
            raise UnsupportedError("an output that is no tensor", wanted="tensors only")
        outputs = tuple(
            self._own(by_name[label], wanted)
            for label, wanted in zip(users, self._output_names(), strict=True)
        )
        params = () if self.param is None else ((self.param.name, self.param.low, self.param.high + 1),)
        return Entry(inputs, tuple(self.body), outputs, states, params)

    def _output_names(self) -> list[str]:
        """`out`, `out_0` ... or a dict's keys, as the module returns them."""
        spec = self.exported.call_spec.out_spec
        example = torch.utils._pytree.tree_unflatten(range(spec.num_leaves), spec)
        if isinstance(example, int):
            return ["out"]
        if isinstance(example, Mapping) and all(isinstance(item, int) for item in example.values()):
            by_place = {item: str(key) for key, item in example.items()}
            return [by_place[at] for at in range(spec.num_leaves)]
        return [f"out_{at}" for at in range(spec.num_leaves)]

    def _own(self, node: torch.fx.Node, wanted: str) -> Name:
        """The value of a node under a name of its own, made by one more copy."""
        found = self.refs[node]
        if not isinstance(found, Ref):
            raise UnsupportedError(f"output {wanted} is {found}", wanted="a tensor")
        made = Name(self._fresh(wanted))
        self.body.append(Op("copy", (found,), (made,)))
        return made


_HEADS: Final = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Max": "max",
    "Min": "min",
}


def _is_assertion(target: str) -> bool:
    return any(word in target for word in ("_assert", "sym_constrain_range"))


def _dtype(found: torch.dtype) -> str:
    if found not in _DTYPES:
        raise UnsupportedError(
            f"dtype {str(found).removeprefix('torch.')}", wanted=" ".join(_DTYPES.values())
        )
    return _DTYPES[found]


def _store(tensor: torch.Tensor) -> StoredTensor:
    """A tensor's bytes, copied: the module may go on training."""
    flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    data: np.ndarray[Any, np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return StoredTensor(tuple(tensor.shape), _dtype(tensor.dtype), data)


def _note(node: torch.fx.Node) -> Attrs:
    return tuple(
        (key, found) for key, found in (("module", _module(node)), ("source", _source(node))) if found
    )


def _place(node: torch.fx.Node) -> str:
    return f"op {node.target}" + (f" at {_source(node)}" if _source(node) else "")


def _module(node: torch.fx.Node) -> str:
    """The path of the innermost module, as in its state_dict."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]).removeprefix("L['self'].") if stack else ""


def _source(node: torch.fx.Node) -> str:
    """`file.py:12`: the innermost line outside torch."""
    best = ""
    for line in str(node.meta.get("stack_trace") or "").splitlines():
        head, _, rest = line.strip().partition('", line ')
        if head.startswith('File "') and rest:
            path, number = head.removeprefix('File "'), rest.partition(",")[0]
            if not best or not path.startswith(_LIBRARY):
                best = f"{os.path.basename(path)}:{number}"
    return best
