"""Small models for the inspector's acceptance tests, with faults that can be planted and the place of each.

A fault is either a change of one weight (`damage_...`) or a name given to a model, whose `forward` then does
the wrong thing on the line that bears the comment `fault: NAME`. Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__)
Tensor = torch.Tensor


def line_of(mark: str, path: Path = HERE) -> str:
    """`name.py:12` of the one line that ends in the comment `# mark`."""
    found = [at for at, line in enumerate(path.read_text().splitlines(), 1) if line.endswith(f"# {mark}")]
    assert len(found) == 1, (mark, found)
    return f"{path.name}:{found[0]}"


# --- models --------------------------------------------------------------------------------------------


class Cnn(nn.Module):
    """Convolutions with norms, a residual, a depthwise one, a square linear; f32[B,3,8,8] -> f32[B,5]."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.square = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        z = self.norm2(self.conv2(y))
        if self.fault == "alias":
            total = y.add_(z)  # fault: alias
        else:
            total = y + z  # right: alias
        if self.fault == "bf16":
            total = total.bfloat16().float()  # fault: bf16
        total = functional.relu6(self.depth(total))
        if self.fault == "crop":
            side = y[:, :, 1:, :]  # fault: crop
        elif self.fault == "whole":  # no fault: without the slice, which no kernel computes
            side = y
        else:
            side = y[:, :, :-1, :]  # side
        if self.fault == "mean":
            pooled = total.mean((1, 2)) + side.mean((2, 3))  # fault: mean
        else:
            pooled = total.mean((2, 3)) + side.mean((2, 3))  # reads y again
        if self.fault == "transposed":
            hidden = functional.linear(pooled, self.square.weight.t(), self.square.bias)  # fault: transposed
        elif self.fault == "no bias":
            hidden = functional.linear(pooled, self.square.weight)  # fault: no bias
        else:
            hidden = functional.linear(pooled, self.square.weight, self.square.bias)
        return self.head(functional.relu(hidden))


class Decoder(nn.Module):
    """One layer of attention over a cache of 8 rows, T new tokens at row 3; i64[1,T] -> f32[1,T,11]."""

    START = 3

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm1 = nn.LayerNorm(16)
        self.q = nn.Linear(16, 16)
        self.k = nn.Linear(16, 16)
        self.v = nn.Linear(16, 16)
        self.o = nn.Linear(16, 16, bias=False)
        self.norm2 = nn.LayerNorm(16)
        self.up = nn.Linear(16, 24)
        self.gate = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.logits = nn.Linear(16, 11, bias=False)
        self.register_buffer("keys", torch.zeros(1, 8, 16))
        self.register_buffer("values", torch.zeros(1, 8, 16))
        self.keys: Tensor
        self.values: Tensor
        self.fault = fault

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.o(self.attend(self.norm1(x)))  # attended
        n = self.norm2(x)
        if self.fault == "relu":
            h = functional.relu(self.gate(n)) * self.up(n)  # fault: relu
        else:
            h = functional.silu(self.gate(n)) * self.up(n)
        return self.logits(x + self.down(h))

    def attend(self, n: Tensor) -> Tensor:
        new, end = n.shape[1], self.START + n.shape[1]
        q, k, v = self.q(n), self.k(n), self.v(n)
        before = self.values.clone()
        self.keys[:, self.START : end] = k
        if self.fault != "not written":
            self.values[:, self.START : end] = v
        keys, values = self.keys[:, :end], self.values[:, :end]  # slices of the cache
        if self.fault == "stale":
            values = before[:, :end]  # fault: stale
        q = q.view(1, new, 2, 8).transpose(1, 2)
        keys = keys.view(1, end, 2, 8).transpose(1, 2)
        scale = 4.0 if self.fault == "scale" else 8.0**0.5
        scores = q @ keys.transpose(-1, -2) / scale  # fault: scale
        mask = torch.ones(new, end, dtype=torch.bool).tril(self.START)
        scores = scores.masked_fill(~mask, -1e9)
        dim = -2 if self.fault == "axis" else -1
        p = scores.softmax(dim)  # fault: axis
        mixed = p @ values.reshape(1, end, 2, 8).transpose(1, 2)  # reads the cache
        return mixed.transpose(1, 2).reshape(1, new, 16)


class Recurrent(nn.Module):
    """A cell written out and torch's own GRU or LSTM after it; f32[B,3,6] -> f32[B,3]."""

    def __init__(self, kind: str = "GRU", fault: str = "") -> None:
        super().__init__()
        self.w = nn.Linear(6, 5)
        self.u = nn.Linear(5, 5)
        self.rnn = getattr(nn, kind)(5, 5, batch_first=True)
        self.head = nn.Linear(5, 3)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 5)
        seen = []
        for t in range(3):
            last = seen[0] if self.fault == "stale" and t == 2 else h
            if self.fault == "no bias" and t == 1:
                carried = functional.linear(last, self.u.weight)  # fault: no bias of u
            else:
                carried = self.u(last)  # reads the state
            h = torch.tanh(self.w(x[:, t]) + carried)
            if self.fault == "sign" and t == 1:
                h = -h  # fault: sign
            seen.append(h)
        y, _ = self.rnn(torch.stack(seen, 1))
        return self.head(y[:, -1])


def made(kind: str, fault: str = "") -> nn.Module:
    """A model in eval mode, the same weights for every fault; norms have statistics of their own.

    Some faults are in how it is made: `eps` of the second norm, `no head bias`, `no depth bias`.
    """
    torch.manual_seed(11)
    model = {
        "cnn": lambda: Cnn(fault),
        "decoder": lambda: Decoder(fault),
        "gru": lambda: Recurrent("GRU", fault),
        "lstm": lambda: Recurrent("LSTM", fault),
    }[kind]()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.add_(torch.randn_like(weight) * 0.2)
    if fault == "eps":
        model.get_submodule("norm2").eps = 1e-3  # type: ignore[assignment]
    if fault in {"no head bias", "no depth bias"}:
        model.get_submodule(fault.split()[1]).bias = None  # type: ignore[assignment]
    return model.eval()


KINDS = ("cnn", "decoder", "gru", "lstm")


def inputs_of(kind: str) -> dict[str, Tensor]:
    """Inputs by their name in `forward`."""
    draw = torch.Generator().manual_seed(5)
    if kind == "cnn":
        return {"x": torch.randn(2, 3, 8, 8, generator=draw)}
    if kind == "decoder":
        return {"ids": torch.randint(0, 11, (1, 4), generator=draw)}
    return {"x": torch.randn(2, 3, 6, generator=draw)}


def exported(module: nn.Module, kind: str, *, normalise: bool = True) -> Any:
    """The module as a Model, through the public adapter."""
    from tensure.program.from_torch import from_torch

    copied = copy.deepcopy(module)  # export may run code that writes to buffers
    return from_torch(copied, tuple(inputs_of(kind).values()), name=kind, normalise=normalise)


@cache
def exported_kind(kind: str, fault: str = "", *, normalise: bool = True) -> Any:
    """What `made` gives, exported once."""
    return exported(made(kind, fault), kind, normalise=normalise)


# --- damage to one weight ------------------------------------------------------------------------------


def flip_bit(weight: Tensor, flat: int, bit: int) -> None:
    """Flip one bit of one float32 element of a contiguous tensor, unseen by torch."""
    words = weight.detach().numpy().reshape(-1).view("u4")
    words[flat] ^= 1 << bit


def damage_bit(weight: Tensor) -> None:
    flip_bit(weight, weight.numel() // 2, 21)


def damage_low_bit(weight: Tensor) -> None:
    flip_bit(weight, weight.numel() - 1, 0)


def damage_sign(weight: Tensor) -> None:
    flip_bit(weight, 1, 31)


def damage_negated(weight: Tensor) -> None:
    weight.data.neg_()


def damage_rows(weight: Tensor) -> None:
    weight.data.copy_(weight.data.roll(1, 0))


def damage_two_rows(weight: Tensor) -> None:
    order = list(range(weight.shape[0]))
    order[0], order[-1] = order[-1], order[0]
    weight.data.copy_(weight.data[order])


def damage_reversal(weight: Tensor) -> None:
    weight.data.copy_(weight.data.flatten().flip(0).view_as(weight))


def damage_transposed(weight: Tensor) -> None:
    weight.data.copy_(weight.data.transpose(0, 1).clone())


def damage_bf16(weight: Tensor) -> None:
    weight.data.copy_(weight.data.bfloat16().float())


def damage_pair(weight: Tensor) -> None:
    """The same bit in two elements: what a sum or an exclusive or of words does not see."""
    flip_bit(weight, 0, 20)
    flip_bit(weight, 2, 20)


def damage_zeroed(weight: Tensor) -> None:
    weight.data.zero_()


DAMAGES: dict[str, Callable[[Tensor], None]] = {
    "bit": damage_bit,
    "low bit": damage_low_bit,
    "sign": damage_sign,
    "negated": damage_negated,
    "rows": damage_rows,
    "two rows": damage_two_rows,
    "reversal": damage_reversal,
    "transposed": damage_transposed,
    "bf16": damage_bf16,
    "pair": damage_pair,
    "zeroed": damage_zeroed,
}


def damaged(module: nn.Module, weight: str, damage: Callable[[Tensor], None]) -> nn.Module:
    """A copy with one weight damaged."""
    other = copy.deepcopy(module)
    target = dict([*other.named_parameters(), *other.named_buffers()])[weight].data
    before = target.clone()
    damage(target)
    assert not torch.equal(before.view(torch.int32), target.view(torch.int32))
    return other


def damaged_model(model: Any, weight: str, damage: Callable[[Tensor], None]) -> Any:
    """A Model with one weight damaged."""
    from tensure.program import StoredTensor

    stored = model.weights[weight]
    assert stored.encoding == "f32"
    values = torch.from_numpy(stored.data.view("f4").reshape(stored.shape).copy())
    damage(values)
    other = StoredTensor.from_array(values.numpy(), "f32")
    assert other.data.tobytes() != stored.data.tobytes()
    return replace(model, weights={**model.weights, weight: other})


WAYS = ("eager", "exported", "mixed")
"""`mixed`: eager against exported, so that a fault crosses the two."""


def sides(
    way: str, kind: str, fault: str = "", weight: str = "", damage: Callable[[Tensor], None] = damage_zeroed
) -> tuple[Any, Any]:
    """The model as it should be, and with a fault; fresh copies, so that no cache is read twice."""
    one = exported_kind(kind, normalise=False) if way == "exported" else made(kind)
    other = made(kind, fault) if way == "eager" else exported_kind(kind, fault, normalise=False)
    if weight:
        other = (damaged if way == "eager" else damaged_model)(other, weight, damage)
    return one, other


# --- damage to one result ------------------------------------------------------------------------------


class Flip(TorchDispatchMode):
    """The `nth` call of an ATen op gives a wrong result: one bit of the largest element is flipped."""

    def __init__(self, op: str, nth: int = 0, bit: int = 22, out: int = 0) -> None:
        super().__init__()
        self.op, self.left, self.bit, self.out, self.done = op, nth, bit, out, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == self.op:
            if self.left == 0:
                target = result[self.out] if isinstance(result, (tuple, list)) else result
                assert target.dtype == torch.float32
                flat = target.detach().as_strided((target.numel(),), (1,))
                flip_bit(flat, int(flat.abs().argmax()), self.bit)
                self.done = True
            self.left -= 1
        return result


@contextmanager
def flipped(op: str, nth: int = 0, bit: int = 22, out: int = 0) -> Iterator[None]:
    """While this is open, one op errs; it must have run."""
    with Flip(op, nth, bit, out) as mode:
        yield
    assert mode.done, f"{op} ran no {nth + 1} times"
