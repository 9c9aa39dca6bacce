"""Layers over sequences: attention, recurrent layers written out step by step, and their wrappers.

Knows the gates' order in Keras' kernels and where an inner layer's variables are. Recurrent layers start
from zeros or from the states they are called with; nothing is carried from one invocation to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tensure.errors import FormatError, UnsupportedError

from ._activations import activation_of
from ._build import Builder, Tensor
from ._document import class_of
from ._options import Options
from ._table import Call, Layer, Result, call_layer, layer, make_layer

# --- attention --------------------------------------------------------------------------------------


@layer("MultiHeadAttention")
def _attention(found: Layer, options: Options, call: Call) -> Tensor:
    build = found.build
    query, value, key = _operands(call)
    heads, size = options.integer("num_heads"), options.integer("key_dim")
    width = options.raw("value_dim", None)
    width = size if width is None else options.integer("value_dim")
    given = options.raw("output_shape", None)
    (out,) = (query.shape[-1],) if given is None else options.integers("output_shape", 1)
    biased = options.flag("use_bias", True)
    options.ignore("dropout")
    for name in ("use_gate", "sliding_window", "flash_attention", "attention_axes"):
        options.off(name, *([[1], 1] if name == "attention_axes" else []))
    if {query.rank, value.rank, key.rank} != {3}:
        raise UnsupportedError(
            "inputs of another rank", place=options.place, wanted="[batch, length, size] each"
        )
    causal = call.take("use_causal_mask") is True
    mask = call.take("attention_mask")

    def project(label: str, x: Tensor, each: int) -> Tensor:
        y = _projected(found, label, x, (x.shape[-1],), (heads, each), biased)
        return build.permute(build.view(y, (*x.shape[:2], heads, each)), (0, 2, 1, 3))

    y = build.op(
        "scaled_dot_product_attention",
        project("query", query, size),
        project("key", key, size),
        project("value", value, width),
        _mask(build, mask, options, causal),
        is_causal=causal,
        scale=size**-0.5,
    )
    joined = build.view(build.permute(y, (0, 2, 1, 3)), (*query.shape[:2], heads * width))
    return _projected(found, "output", joined, (heads, width), (out,), biased)


def _operands(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Query, value and key, however they are given."""
    names = ("query", "value", "key")
    found = dict(zip(names, call.args, strict=False))
    found |= {name: call.kwargs.pop(name) for name in names if name in call.kwargs}
    key = found.get("key") if found.get("key") is not None else found.get("value")
    query, value = found.get("query"), found.get("value")
    if len(call.args) > 3 or not all(isinstance(item, Tensor) for item in (query, value, key)):
        raise FormatError("called with something else", wanted="query, value and perhaps key")
    assert isinstance(query, Tensor) and isinstance(value, Tensor) and isinstance(key, Tensor)
    return query, value, key


def _projected(
    found: Layer, label: str, x: Tensor, shape: tuple[int, ...], into: tuple[int, ...], biased: bool
) -> Tensor:
    """The input by a kernel [*shape, *into], as one linear."""
    inner, outer = x.shape[-1], 1
    for size in into:
        outer *= size
    within, rank = (f"{label}_dense",), len(shape)
    order = (*range(rank, rank + len(into)), *range(rank))
    weight = found.weight(f"{label}.kernel", 0, (*shape, *into), order, (outer, inner), within=within)
    bias = found.weight(f"{label}.bias", 1, into, None, (outer,), within=within) if biased else None
    return found.build.op("linear", x, weight, bias)


def _mask(build: Builder, mask: Any, options: Options, causal: bool) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or causal or mask.rank not in (3, 4):
        raise UnsupportedError(
            "this attention_mask", place=options.place, wanted="[batch, query, key], alone"
        )
    mask = mask if mask.type.dtype == "bool" else build.op("ne", mask, 0)
    return mask if mask.rank == 4 else build.op("unsqueeze", mask, dim=1)


# --- recurrent layers -------------------------------------------------------------------------------

Step = Callable[[Tensor, list[Tensor]], list[Tensor]]
"""(what the input gives at one step, states) -> new states, the output first."""


def _parts(build: Builder, x: Tensor, count: int) -> list[Tensor]:
    size = x.shape[-1] // count
    return [build.op("slice", x, dim=1, start=at * size, end=(at + 1) * size) for at in range(count)]


def _recurrent(found: Layer, options: Options, call: Call, gates: int, num_states: int) -> Result:
    build = found.build
    x, states = _sequence(call)
    units = options.integer("units")
    options.off("stateful")
    options.ignore(
        "unroll",
        "zero_output_for_mask",
        "dropout",
        "recurrent_dropout",
        "implementation",
        "unit_forget_bias",
        "use_cudnn",
    )
    backwards = options.flag("go_backwards", False)
    sequences, with_states = options.flag("return_sequences", False), options.flag("return_state", False)
    if x.rank != 3 or x.shape[1] < 1 or len(states) not in (0, num_states):
        raise FormatError(f"an input of shape {list(x.shape)}, {len(states)} states", place=options.place)
    if not states:
        zero = build.op("full", size=(x.shape[0], units), fill_value=0.0, dtype="f32")
        states = [zero] * num_states
    given, step = _CELLS[found.kind](found, options, x, units, gates)
    outputs: list[Tensor] = []
    for at in range(x.shape[1]):
        place = x.shape[1] - 1 - at if backwards else at
        states = step(build.op("select", given, dim=1, index=place), states)
        outputs.append(states[0])
    result = build.op("stack", *outputs, dim=1) if sequences else outputs[-1]
    return [result, *states] if with_states else result


def _sequence(call: Call) -> tuple[Tensor, list[Tensor]]:
    given = call.take("initial_state")
    states = given if isinstance(given, list) else [] if given is None else [given]
    items = [
        item for arg in call.args for item in (arg if isinstance(arg, list) else [arg]) if item is not None
    ]
    if not items or not all(isinstance(item, Tensor) for item in (*items, *states)):
        raise FormatError("called with something else", wanted="a sequence and perhaps states")
    return items[0], [*items[1:], *states]


def _kernels(found: Layer, options: Options, x: Tensor, units: int, gates: int) -> tuple[Tensor, Tensor]:
    wide = gates * units
    kernel = found.weight("kernel", 0, (x.shape[-1], wide), (1, 0), within=("cell",))
    return kernel, found.weight("recurrent_kernel", 1, (units, wide), (1, 0), within=("cell",))


def _simple_cell(found: Layer, options: Options, x: Tensor, units: int, gates: int) -> tuple[Tensor, Step]:
    build, bend = found.build, activation_of(found, options)
    kernel, recurrent = _kernels(found, options, x, units, gates)
    biased = options.flag("use_bias", True)
    bias = found.weight("bias", 2, (units,), within=("cell",)) if biased else None

    def step(now: Tensor, states: list[Tensor]) -> list[Tensor]:
        return [bend(build, build.op("add", now, build.op("linear", states[0], recurrent, None)))]

    return build.op("linear", x, kernel, bias), step


def _lstm_cell(found: Layer, options: Options, x: Tensor, units: int, gates: int) -> tuple[Tensor, Step]:
    build, bend = found.build, activation_of(found, options)
    gate = activation_of(found, options, "recurrent_activation")
    kernel, recurrent = _kernels(found, options, x, units, gates)
    biased = options.flag("use_bias", True)
    bias = found.weight("bias", 2, (4 * units,), within=("cell",)) if biased else None

    def step(now: Tensor, states: list[Tensor]) -> list[Tensor]:
        hidden, carry = states
        total = build.op("add", now, build.op("linear", hidden, recurrent, None))
        enter, forget, new, leave = _parts(build, total, 4)
        kept = build.op("mul", gate(build, forget), carry)
        carry = build.op("add", kept, build.op("mul", gate(build, enter), bend(build, new)))
        return [build.op("mul", gate(build, leave), bend(build, carry)), carry]

    return build.op("linear", x, kernel, bias), step


def _gru_cell(found: Layer, options: Options, x: Tensor, units: int, gates: int) -> tuple[Tensor, Step]:
    build, bend = found.build, activation_of(found, options)
    gate = activation_of(found, options, "recurrent_activation")
    after, biased = options.flag("reset_after", True), options.flag("use_bias", True)
    wide = 3 * units
    kernel, recurrent = _kernels(found, options, x, units, gates)
    bias = inner_bias = None
    if biased:
        shape = (2, wide) if after else (wide,)
        array = found.once("bias array", lambda: found.variable(2, shape, within=("cell",)))
        rows = array.reshape(-1, wide)
        bias = found.once("bias", lambda: build.weight("bias", rows[0]))
        if after:
            inner_bias = found.once("recurrent_bias", lambda: build.weight("recurrent_bias", rows[1]))

    def blend(update: Tensor, hidden: Tensor, new: Tensor) -> list[Tensor]:
        rest = build.op("mul", build.op("rsub", update, 1.0), new)
        return [build.op("add", build.op("mul", update, hidden), rest)]

    def step_after(now: Tensor, states: list[Tensor]) -> list[Tensor]:
        hidden = states[0]
        x_z, x_r, x_h = _parts(build, now, 3)
        h_z, h_r, h_h = _parts(build, build.op("linear", hidden, recurrent, inner_bias), 3)
        update = gate(build, build.op("add", x_z, h_z))
        reset = gate(build, build.op("add", x_r, h_r))
        new = bend(build, build.op("add", x_h, build.op("mul", reset, h_h)))
        return blend(update, hidden, new)

    def cut(low: int, high: int) -> Tensor:
        return build.op("slice", recurrent, dim=0, start=low, end=high)

    def step_before(now: Tensor, states: list[Tensor]) -> list[Tensor]:
        hidden = states[0]
        x_z, x_r, x_h = _parts(build, now, 3)
        gates_part = found.once("gates part", partial(cut, 0, 2 * units))
        new_part = found.once("new part", partial(cut, 2 * units, wide))
        h_z, h_r = _parts(build, build.op("linear", hidden, gates_part, None), 2)
        update = gate(build, build.op("add", x_z, h_z))
        reset = gate(build, build.op("add", x_r, h_r))
        inner = build.op("linear", build.op("mul", reset, hidden), new_part, None)
        return blend(update, hidden, bend(build, build.op("add", x_h, inner)))

    return build.op("linear", x, kernel, bias), step_after if after else step_before


_CELLS = {"SimpleRNN": _simple_cell, "LSTM": _lstm_cell, "GRU": _gru_cell}


@layer("SimpleRNN")
def _simple_rnn(found: Layer, options: Options, call: Call) -> Result:
    return _recurrent(found, options, call, 1, 1)


@layer("LSTM")
def _lstm(found: Layer, options: Options, call: Call) -> Result:
    return _recurrent(found, options, call, 4, 2)


@layer("GRU")
def _gru(found: Layer, options: Options, call: Call) -> Result:
    options.ignore("reset_after")
    return _recurrent(found, options, call, 3, 1)


# --- wrappers ---------------------------------------------------------------------------------------


def _inner(found: Layer, value: Any, part: str) -> Layer:
    made = found.once(
        part, lambda: make_layer(value, (*found.path, part), found.source, found.build, found.place)
    )
    assert isinstance(made, Layer)
    return made


@layer("Bidirectional")
def _bidirectional(found: Layer, options: Options, call: Call) -> Result:
    build, x = found.build, call.one()
    forward = options.raw("layer")
    backward = options.raw("backward_layer", None) or forward
    mode = options.raw("merge_mode", "concat")
    if mode not in ("concat", "sum", "mul", "ave", None):
        raise UnsupportedError(
            f"merge_mode={str(mode)[:80]}", place=options.place, wanted="concat, sum, mul, ave"
        )
    results: list[Tensor] = []
    for value, part in ((forward, "forward_layer"), (backward, "backward_layer")):
        _, _, config = class_of(value, options.place)
        if config.get("return_state"):
            raise UnsupportedError("return_state=True", place=options.place, wanted="outputs alone")
        turned = part == "backward_layer"
        if turned:
            value = {**value, "config": {**config, "go_backwards": not _backwards(forward, options)}}
        y = call_layer(_inner(found, value, part), Call([x], {}))
        if not isinstance(y, Tensor):
            raise UnsupportedError("several outputs", place=options.place, wanted="one")
        results.append(build.op("flip", y, dims=(1,)) if turned and config.get("return_sequences") else y)
    a, b = results
    if mode is None:
        return results
    if mode == "concat":
        return build.op("cat", a, b, dim=-1)
    y = build.op("mul" if mode == "mul" else "add", a, b)
    return build.op("div", y, 2.0) if mode == "ave" else y


def _backwards(value: Any, options: Options) -> bool:
    """Whether a recurrent layer's config says go_backwards."""
    return bool(class_of(value, options.place)[2].get("go_backwards", False))


@layer("TimeDistributed")
def _time_distributed(found: Layer, options: Options, call: Call) -> Tensor:
    build, x = found.build, call.one()
    if x.rank < 3:
        raise FormatError(
            f"an input of shape {list(x.shape)}", place=options.place, wanted="[batch, time, ...]"
        )
    inner = _inner(found, options.raw("layer"), "layer")
    flat = build.view(x, (x.shape[0] * x.shape[1], *x.shape[2:]))
    y = call_layer(inner, Call([flat], {}))
    if not isinstance(y, Tensor):
        raise UnsupportedError("several outputs", place=options.place, wanted="one")
    return build.view(y, (*x.shape[:2], *y.shape[1:]))
