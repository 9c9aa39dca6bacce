"""RNN, GRU and LSTM, unrolled over time.

The input's share of every gate is one product for all steps; what a step adds is the hidden state's.

    T steps   B batch   I input size   H hidden size   D directions   G gates, in turn in dim 0 of a weight
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tensure.errors import FormatError, LimitError

from . import _elementwise
from ._builder import Builder, Tensor
from ._indexing import reversed_in_time
from ._table import Attributes, onnx_op

MAX_STEPS: Final = 1 << 13
_Activation = Callable[[Builder, Tensor], Tensor]
_COMMON: Final = (
    "activation_alpha: floats?, activation_beta: floats?, activations: strs?, clip: float?, "
    'direction: str = "forward", hidden_size: int?, layout: int = 0'
)


def _row(fn: Any, **fixed: Any) -> _Activation:
    return lambda b, x: fn(b, [x], fixed)


def _activation(name: str, alpha: float | None, beta: float | None) -> _Activation:
    """An activation by its ONNX name; names count in any case."""

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    plain = {"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "softplus": "softplus"}
    key = name.lower()
    if key in plain:
        return lambda b, x: b.op(plain[key], x)
    if key == "affine":
        return lambda b, x: b.op("add", b.op("mul", x, given(alpha, 1.0)), given(beta, 0.0))
    if key == "scaledtanh":
        return lambda b, x: b.op("mul", b.op("tanh", b.op("mul", x, given(beta, 1.0))), given(alpha, 1.0))
    found = {
        "leakyrelu": _row(_elementwise.leaky_relu, alpha=given(alpha, 0.01)),
        "thresholdedrelu": _row(_elementwise.thresholded_relu, alpha=given(alpha, 1.0)),
        "hardsigmoid": _row(_elementwise.hard_sigmoid, alpha=given(alpha, 0.2), beta=given(beta, 0.5)),
        "elu": _row(_elementwise.elu, alpha=given(alpha, 1.0)),
        "softsign": _row(_elementwise.softsign),
    }.get(key)
    if found is None:
        raise FormatError(f"activation {name!r}", wanted="one of ONNX's")
    return found


_USES_ALPHA: Final = frozenset({"affine", "scaledtanh", "leakyrelu", "thresholdedrelu", "hardsigmoid", "elu"})
_USES_BETA: Final = frozenset({"affine", "scaledtanh", "hardsigmoid"})


@dataclass(slots=True)
class _Cell:
    """One recurrent node: sizes, and the weights of the direction in hand."""

    b: Builder
    gates: int
    num_directions: int
    hidden: int
    steps: int
    batch: int
    clip: float | None
    lengths: Tensor | None
    activations: list[list[_Activation]]

    def bounded(self, x: Tensor) -> Tensor:
        """What goes into an activation, held to -clip..clip."""
        return x if self.clip is None else self.b.op("clamp", x, -self.clip, self.clip)

    def act(self, direction: int, which: int, x: Tensor) -> Tensor:
        """Activation number `which`."""
        return self.activations[direction][which](self.b, self.bounded(x))

    def gate(self, x: Tensor, at: int) -> Tensor:
        """Gate `at` of a tensor that holds all of them in its last dim."""
        return self.b.slice(x, x.rank - 1, at * self.hidden, (at + 1) * self.hidden)


def _cell(b: Builder, x: list[Any], a: Attributes, gates: int, defaults: str) -> tuple[_Cell, Tensor]:
    """The node's sizes, every weight checked; and the input with time first."""
    data, w, r = x[0], x[1], x[2]
    if data.rank != 3 or w.rank != 3 or r.rank != 3:
        raise FormatError(f"X, W, R of shapes {data.shape}, {w.shape}, {r.shape}", wanted="rank 3")
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(a["direction"])
    if directions is None or a["layout"] not in (0, 1):
        raise FormatError(
            f"direction={a['direction']!r}, layout={a['layout']}",
            wanted="forward, reverse, bidirectional; 0 or 1",
        )
    if a["layout"]:
        data = b.permute(data, (1, 0, 2))
    steps, batch, size = data.shape
    hidden = r.shape[2]
    if a["hidden_size"] not in (None, hidden) or not hidden:
        raise FormatError(f"hidden_size={a['hidden_size']}", wanted=f"{hidden}, as R has it")
    if steps > MAX_STEPS:
        raise LimitError(f"{steps} steps", wanted=f"at most {MAX_STEPS}")
    wanted = {
        1: (directions, gates * hidden, size),
        2: (directions, gates * hidden, hidden),
        3: (directions, 2 * gates * hidden),
    }
    for at, shape in wanted.items():
        if x[at] is not None and x[at].shape != shape:
            raise FormatError(f"input {at} of shape {list(x[at].shape)}", wanted=f"{list(shape)}")
    lengths = x[4]
    if lengths is not None and lengths.is_known and (lengths.values() == steps).all():
        lengths = None
    if lengths is not None:
        if lengths.shape != (batch,):
            raise FormatError(f"sequence_lens of shape {list(lengths.shape)}", wanted=f"[{batch}]")
        lengths = b.cast(lengths, "i64")
    return (
        _Cell(
            b,
            gates,
            directions,
            hidden,
            steps,
            batch,
            a["clip"],
            lengths,
            _activations(a, directions, defaults.split()),
        ),
        data,
    )


def _activations(a: Attributes, directions: int, defaults: list[str]) -> list[list[_Activation]]:
    names = a["activations"] or defaults * directions
    if len(names) != len(defaults) * directions:
        raise FormatError(f"activations={list(names)}", wanted=f"{len(defaults)} for each direction")
    alphas, betas = iter(a["activation_alpha"] or ()), iter(a["activation_beta"] or ())
    found = [
        _activation(
            name,
            next(alphas, None) if name.lower() in _USES_ALPHA else None,
            next(betas, None) if name.lower() in _USES_BETA else None,
        )
        for name in names
    ]
    return [found[at : at + len(defaults)] for at in range(0, len(found), len(defaults))]


Step = Callable[[int, Tensor, list[Tensor]], list[Tensor]]
"""(direction, the input's share of the gates, states) -> new states; the first is the hidden state."""


def _unroll(
    cell: _Cell,
    data: Tensor,
    a: Attributes,
    starts: list[Tensor | None],
    w: Tensor,
    bias: list[Tensor | None],
    step: Step,
) -> tuple[Tensor, list[Tensor]]:
    """Every direction over every step: all hidden states [T, D, B, H], and the last states [D, B, H]."""
    b = cell.b
    every: list[Tensor] = []
    lasts: list[list[Tensor]] = []
    for direction in range(cell.num_directions):
        backward = a["direction"] == "reverse" or direction == 1
        series = _turned(cell, data) if backward else data
        states = [_start(cell, start, direction, a["layout"], data.dtype) for start in starts]
        weight = b.op("select", w, dim=0, index=direction)
        share = b.op("linear", series, weight, bias[direction])
        made: list[Tensor] = []
        for t in range(cell.steps):
            new = step(direction, b.op("select", share, dim=0, index=t), states)
            if cell.lengths is not None:
                going = b.op("gt", b.reshape(cell.lengths, (-1, 1)), t)
                made.append(b.op("where", going, new[0], b.full(new[0].shape, 0, new[0].dtype)))
                new = [b.op("where", going, now, old) for now, old in zip(new, states, strict=True)]
            else:
                made.append(new[0])
            states = new
        whole = b.op("stack", *made, dim=0) if made else b.full((0, cell.batch, cell.hidden), 0, data.dtype)
        every.append(_turned(cell, whole) if backward else whole)
        lasts.append(states)
    outs = b.op("stack", *every, dim=1)
    ends = [b.op("stack", *(states[at] for states in lasts), dim=0) for at in range(len(starts))]
    if a["layout"]:
        outs = b.permute(outs, (2, 0, 1, 3))
        ends = [b.permute(end, (1, 0, 2)) for end in ends]
    return outs, ends


def _turned(cell: _Cell, series: Tensor) -> Tensor:
    """Steps in reverse order, each sample's own."""
    if cell.lengths is None:
        return cell.b.op("flip", series, dims=(0,))
    return reversed_in_time(cell.b, series, cell.lengths, 1, 0)


def _start(cell: _Cell, start: Tensor | None, direction: int, layout: int, dtype: str) -> Tensor:
    if start is None:
        return cell.b.full((cell.batch, cell.hidden), 0, dtype)
    shape = (cell.batch, cell.num_directions) if layout else (cell.num_directions, cell.batch)
    if start.shape != (*shape, cell.hidden):
        raise FormatError(f"a first state of shape {list(start.shape)}", wanted=f"{[*shape, cell.hidden]}")
    return cell.b.op("select", start, dim=1 if layout else 0, index=direction)


def _biases(
    cell: _Cell, bias: Tensor | None, *, apart: bool = False
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """By direction: what is added with the input's share, and (`apart`) with the hidden state's."""
    ours: list[Tensor | None] = []
    theirs: list[Tensor | None] = []
    for direction in range(cell.num_directions):
        if bias is None:
            ours.append(None)
            theirs.append(None)
            continue
        row = cell.b.op("select", bias, dim=0, index=direction)
        half = cell.gates * cell.hidden
        first, second = (cell.b.slice(row, 0, at * half, (at + 1) * half) for at in range(2))
        ours.append(first if apart else cell.b.op("add", first, second))
        theirs.append(second if apart else None)
    return ours, theirs


def _directions(b: Builder, x: Tensor | None, count: int) -> list[Any]:
    return [None if x is None else b.op("select", x, dim=0, index=at) for at in range(count)]


@onnx_op(f"RNN(X, W, R, B?, sequence_lens?, initial_h?; {_COMMON})")
def _rnn(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    cell, data = _cell(b, x, a, 1, "Tanh")
    r = _directions(b, x[2], cell.num_directions)
    ours, _ = _biases(cell, x[3])

    def step(direction: int, share: Tensor, states: list[Tensor]) -> list[Tensor]:
        return [cell.act(direction, 0, b.op("add", share, b.op("linear", states[0], r[direction], None)))]

    outs, ends = _unroll(cell, data, a, [x[5]], x[1], ours, step)
    return [outs, *ends]


@onnx_op(f"GRU(X, W, R, B?, sequence_lens?, initial_h?; {_COMMON}, linear_before_reset: int = 0)")
def _gru(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """Gates in the order update, reset, hidden."""
    cell, data = _cell(b, x, a, 3, "Sigmoid Tanh")
    r = _directions(b, x[2], cell.num_directions)
    before = bool(a["linear_before_reset"])
    ours, theirs = _biases(cell, x[3], apart=before)
    size = cell.hidden

    def step(direction: int, share: Tensor, states: list[Tensor]) -> list[Tensor]:
        (h,) = states
        held = b.op("linear", h, r[direction], theirs[direction]) if before else None
        if held is not None:
            pair = b.op("add", b.slice(share, 1, 0, 2 * size), b.slice(held, 1, 0, 2 * size))
        else:
            pair = b.slice(r[direction], 0, 0, 2 * size)
            pair = b.op("add", b.slice(share, 1, 0, 2 * size), b.op("linear", h, pair, None))
        both = cell.act(direction, 0, pair)
        z, reset = cell.gate(both, 0), cell.gate(both, 1)
        if held is not None:
            inner = b.op("mul", reset, cell.gate(held, 2))
        else:
            last = b.slice(r[direction], 0, 2 * size, 3 * size)
            inner = b.op("linear", b.op("mul", reset, h), last, None)
        new = cell.act(direction, 1, b.op("add", cell.gate(share, 2), inner))
        return [b.op("add", b.op("mul", b.op("rsub", z, 1.0), new), b.op("mul", z, h))]

    outs, ends = _unroll(cell, data, a, [x[5]], x[1], ours, step)
    return [outs, *ends]


@onnx_op(f"LSTM(X, W, R, B?, sequence_lens?, initial_h?, initial_c?, P?; {_COMMON}, input_forget: int = 0)")
def _lstm(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """Gates in the order input, output, forget, cell; P holds peepholes of input, output, forget."""
    cell, data = _cell(b, x, a, 4, "Sigmoid Tanh Tanh")
    r = _directions(b, x[2], cell.num_directions)
    if x[7] is not None and x[7].shape != (cell.num_directions, 3 * cell.hidden):
        raise FormatError(
            f"P of shape {list(x[7].shape)}", wanted=f"{[cell.num_directions, 3 * cell.hidden]}"
        )
    holes = _directions(b, x[7], cell.num_directions)
    ours, _ = _biases(cell, x[3])

    def seen(direction: int, gate: Tensor, c: Tensor, at: int) -> Tensor:
        if holes[direction] is None:
            return gate
        return b.op("add", gate, b.op("mul", c, cell.gate(holes[direction], at)))

    def step(direction: int, share: Tensor, states: list[Tensor]) -> list[Tensor]:
        h, c = states
        gates = b.op("add", share, b.op("linear", h, r[direction], None))
        i = cell.act(direction, 0, seen(direction, cell.gate(gates, 0), c, 0))
        f = (
            b.op("rsub", i, 1.0)
            if a["input_forget"]
            else cell.act(direction, 0, seen(direction, cell.gate(gates, 2), c, 2))
        )
        new = cell.act(direction, 1, cell.gate(gates, 3))
        c = b.op("add", b.op("mul", f, c), b.op("mul", i, new))
        o = cell.act(direction, 0, seen(direction, cell.gate(gates, 1), c, 1))
        return [b.op("mul", o, cell.activations[direction][2](b, c)), c]

    outs, ends = _unroll(cell, data, a, [x[5], x[6]], x[1], ours, step)
    return [outs, *ends]
