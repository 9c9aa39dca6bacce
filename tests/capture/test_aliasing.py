"""Tensors that share memory: programs of views and writes give in a captured Program what torch gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensure.capture import capture_model
from tensure.errors import UnsupportedError
from tensure.program import Op, evaluate_program

from .steps import Build, differences, model_differences, torch_results

F64 = torch.float64
ROWS, COLUMNS = 4, 6

# --- views ------------------------------------------------------------------------------------------


def _dim(x: Tensor, a: int) -> int:
    """A dim, counted from either end."""
    return a % x.ndim - (x.ndim if a % 2 else 0)


def _slice(x: Tensor, a: int, b: int) -> Tensor:
    dim = a % x.ndim
    size = x.shape[dim]
    start = b % size
    index: list[Any] = [slice(None)] * x.ndim
    index[dim] = slice(start - size if a % 3 == 0 else start, None if b % 2 else size, 1 + b % 3)
    return x[tuple(index)]


def _window(x: Tensor, a: int, b: int) -> Tensor:
    """A contiguous window on flat memory."""
    flat = x.view(-1)
    count = 1 + b % flat.numel()
    start = a % (flat.numel() - count + 1)
    return flat.as_strided((count,), (1,), flat.storage_offset() + start)


VIEWS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "slice": _slice,
    "select": lambda x, a, b: x.select(
        _dim(x, a), b % x.shape[_dim(x, a)] - (x.shape[_dim(x, a)] if b % 2 else 0)
    ),
    "narrow": lambda x, a, b: x.narrow(_dim(x, a), b % x.shape[_dim(x, a)], 1),
    "transpose": lambda x, a, b: x.transpose(_dim(x, a), _dim(x, b)),
    "permute": lambda x, a, b: x.permute(*(_dim(x, a + at) for at in range(x.ndim))),
    "movedim": lambda x, a, b: x.movedim(_dim(x, a), _dim(x, b)),
    "mT": lambda x, a, b: x.mT if x.ndim > 1 else x.unsqueeze(0),
    "unsqueeze": lambda x, a, b: x.unsqueeze(a % (x.ndim + 1) - (x.ndim + 1 if b % 2 else 0)),
    "squeeze": lambda x, a, b: x.squeeze() if a % 2 else x.squeeze(_dim(x, b)),
    "flat": lambda x, a, b: x.view(-1) if x.is_contiguous() else x.flatten(),
    "reshape": lambda x, a, b: x.reshape(x.shape[0], -1) if x.numel() else x,
    "halves": lambda x, a, b: x.unflatten(0, (2, -1)) if x.shape[0] % 2 == 0 else x.unflatten(0, (1, -1)),
    "chunk": lambda x, a, b: _nth(x.chunk(2, _dim(x, a)), b),
    "split": lambda x, a, b: _nth(x.split(1 + a % 2, _dim(x, b)), b),
    "split with sizes": lambda x, a, b: _nth(x.split([1, x.shape[a % x.ndim] - 1], a % x.ndim), b),
    "unbind": lambda x, a, b: _nth(x.unbind(_dim(x, a)), b),
    "detach": lambda x, a, b: x.detach(),
    "alias": lambda x, a, b: x.view_as(x) if x.is_contiguous() else x.view(x.shape),
    "contiguous": lambda x, a, b: x.contiguous(),
    "to": lambda x, a, b: x.to(F64),
    "none index": lambda x, a, b: x[..., None] if a % 2 else x[None],
}


def _nth(parts: tuple[Tensor, ...], at: int) -> Tensor:
    return parts[at % len(parts)]


# --- writes -----------------------------------------------------------------------------------------


def _number(a: int) -> float:
    return (a % 7 - 3) / 4


def _mask(x: Tensor) -> Tensor:
    return (torch.arange(x.numel()) % 3 == 0).view(x.shape)


def _places(x: Tensor, a: int) -> Tensor:
    return torch.arange(a % x.shape[0], x.shape[0])


def _assign(x: Tensor, a: int, y: Tensor) -> None:
    x[a % x.shape[0]] = y[a % x.shape[0]].clone()


def _item(x: Tensor, a: int, y: Tensor) -> None:
    x[..., a % x.shape[-1]] = _number(a)


def _accumulate(x: Tensor, a: int, y: Tensor) -> None:
    x += y


def _scale(x: Tensor, a: int, y: Tensor) -> None:
    x *= _number(a)


WRITES: dict[str, Callable[[Tensor, int, Tensor], Any]] = {
    "add_": lambda x, a, y: x.add_(y, alpha=_number(a)),
    "add number": lambda x, a, y: x.add_(_number(a)),
    "mul_": lambda x, a, y: x.mul_(_number(a)),
    "sub_": lambda x, a, y: x.sub_(y),
    "div_": lambda x, a, y: x.div_(2),
    "neg_": lambda x, a, y: x.neg_(),
    "zero_": lambda x, a, y: x.zero_(),
    "fill_": lambda x, a, y: x.fill_(_number(a)),
    "fill with a tensor": lambda x, a, y: x.fill_(y.sum()),
    "copy_": lambda x, a, y: x.copy_(y),
    "copy a row": lambda x, a, y: x.copy_(y[a % y.shape[0]] if y.ndim > 1 else y),
    "masked_fill_": lambda x, a, y: x.masked_fill_(_mask(x), _number(a)),
    "clamp_": lambda x, a, y: x.clamp_(-0.5, 0.75),
    "relu_": lambda x, a, y: x.relu_(),
    "index_put_": lambda x, a, y: x.index_put_((_places(x, a),), y[_places(x, a)]),
    "index_put_ adds": lambda x, a, y: x.index_put_((_places(x, a) // 2,), y[_places(x, a)], accumulate=True),
    "index_add_": lambda x, a, y: x.index_add_(0, _places(x, a) // 2, y[_places(x, a)]),
    "index_copy_": lambda x, a, y: x.index_copy_(0, _places(x, a), y[_places(x, a)]),
    "assign": _assign,
    "item": _item,
    "+=": _accumulate,
    "*=": _scale,
    "out=": lambda x, a, y: torch.add(y, y, out=x),
    "out= of a product": lambda x, a, y: torch.mul(y, _number(a), out=x),
    "addcmul_": lambda x, a, y: x.addcmul_(y, y, value=_number(a)),
    "lerp_": lambda x, a, y: x.lerp_(y, 0.25),
    "foreach add": lambda x, a, y: torch._foreach_add_([x], [y]),
    "foreach mul": lambda x, a, y: torch._foreach_mul_([x], _number(a)),
    "foreach of several": lambda x, a, y: torch._foreach_add_([x[0], y], [y[0], x], alpha=_number(a)),
    "foreach by tensor": lambda x, a, y: torch._foreach_mul_([x], y.reshape(-1)[0]),
    "foreach by numbers": lambda x, a, y: torch._foreach_div_([x], [2.0]),
    "foreach copy": lambda x, a, y: torch._foreach_copy_([x], [y]),
    "foreach zero": lambda x, a, y: torch._foreach_zero_([x]),
    "foreach addcmul": lambda x, a, y: torch._foreach_addcmul_([x], [y], [y], _number(a)),
    "foreach addcdiv": lambda x, a, y: torch._foreach_addcdiv_([x], [y], [y.abs() + 1], [_number(a)]),
    "foreach lerp": lambda x, a, y: torch._foreach_lerp_([x], [y], 0.5),
    "foreach and back": lambda x, a, y: x.copy_(torch._foreach_sqrt(torch._foreach_abs([y]))[0]),
    "foreach norm": lambda x, a, y: x.mul_(torch._foreach_norm([y])[0]),
    "scatter_": lambda x, a, y: x.scatter_(
        0, _places(x, a).view(-1, *[1] * (x.ndim - 1)).expand(-1, *x.shape[1:]), y
    ),
    "index_fill_": lambda x, a, y: x.index_fill_(0, _places(x, a), _number(a)),
    "addmm_": lambda x, a, y: x.addmm_(y, y.mT @ y) if x.ndim == 2 else x,
    "where out": lambda x, a, y: torch.where(_mask(x), x, y, out=x),
    "sum out": lambda x, a, y: torch.sum(y[None], 0, out=x),
    "tanh_": lambda x, a, y: x.tanh_(),
    "pow_": lambda x, a, y: x.pow_(2),
    "triu_": lambda x, a, y: x.triu_() if x.ndim > 1 else x,
    "swap": lambda x, a, y: x.copy_(x.flip(0)),
    "by mask": lambda x, a, y: x.__setitem__(_mask(x), _number(a)),
    "by mask of rows": lambda x, a, y: x.__setitem__(_mask(x[..., 0]), y.view(-1)[0]) if x.ndim > 1 else x,
    "by list": lambda x, a, y: x.__setitem__([0, -1], _number(a)),
    "baddbmm_": lambda x, a, y: x.baddbmm_(y, y.mT @ y) if x.ndim == 3 else x,
}

FRESH: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda x: x.clone(),
    "empty and copy": lambda x: torch.empty_like(x).copy_(x),
    "zeros and half": lambda x: _half(torch.zeros_like(x), x),
    "new": lambda x: x.new_empty(x.shape).copy_(x * 2),
    "expanded": lambda x: x.expand(2, *x.shape).clone(),
}


def _half(made: Tensor, x: Tensor) -> Tensor:
    made[: max(1, x.shape[0] // 2)] = x[: max(1, x.shape[0] // 2)]
    return made


Step = tuple[str, str, int, int, int]
steps = st.one_of(
    st.tuples(st.just("view"), st.sampled_from(sorted(VIEWS)), *[st.integers(0, 11)] * 3),
    st.tuples(st.just("write"), st.sampled_from(sorted(WRITES)), *[st.integers(0, 11)] * 3),
    st.tuples(st.just("fresh"), st.sampled_from(sorted(FRESH)), *[st.integers(0, 11)] * 3),
)


class Play(nn.Module):
    """Runs a program on a pool of tensors that begins with one; returns them all, and a loss of them."""

    def __init__(self, program: list[Step], graded: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(ROWS, COLUMNS, dtype=F64))
        self.program, self.graded = program, graded

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = x * self.w
        pool = [made]
        with torch.set_grad_enabled(self.graded):
            for step in self.program:
                self.act(pool, *step)
            flat = torch.cat([item.reshape(-1) for item in pool])
        weights = torch.arange(1, flat.numel() + 1, dtype=F64) / flat.numel()
        return (flat * weights).sum() + self.w.sum(), flat

    @staticmethod
    def act(pool: list[Tensor], kind: str, word: str, which: int, a: int, b: int) -> None:
        x = pool[which % len(pool)]
        if x.ndim == 0 or x.numel() == 0:
            return
        if kind == "view":
            pool.append(VIEWS[word](x, a, b))
        elif kind == "fresh":
            pool.append(FRESH[word](x))
        else:
            # something of x's shape, made of another tensor's present values
            y = pool[b % len(pool)].reshape(-1)
            y = y.repeat(-(-x.numel() // y.numel()))[: x.numel()].view(x.shape) * 0.5
            WRITES[word](x, a, y)


def played(program: list[Step], graded: bool) -> Build:
    return lambda: (Play(program, graded), (torch.randn(ROWS, COLUMNS, dtype=F64),))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=2, max_size=9))
def test_a_program_of_views_and_writes(program: list[Step]) -> None:
    assert model_differences(played(program, False)) == []


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_writes_through_each_view(view: str) -> None:
    """What is written through a view is seen by what it looks at, and by views made before and after."""
    program: list[Step] = [
        ("view", "slice", 0, 1, 3),
        ("view", view, 0, 3, 5),
        ("view", view, 1, 2, 1),
        ("write", "add_", 2, 6, 1),
        ("write", "copy_", 0, 1, 1),
        ("write", "mul_", 3, 5, 0),
        ("view", view, 0, 3, 5),
        ("write", "fill_", 1, 1, 1),
    ]
    assert model_differences(played(program, False)) == []


@pytest.mark.parametrize("write", sorted(WRITES))
def test_each_write_into_a_view_of_a_view(write: str) -> None:
    program: list[Step] = [
        ("view", "transpose", 0, 0, 1),
        ("view", "slice", 1, 1, 1),
        ("write", write, 2, 5, 0),
        ("write", write, 0, 2, 2),
    ]
    assert model_differences(played(program, False)) == []


# --- with gradients ---------------------------------------------------------------------------------

# Writes whose gradient keeps none of what they overwrite.
SMOOTH = [
    "add_",
    "sub_",
    "div_",
    "neg_",
    "zero_",
    "fill_",
    "copy_",
    "masked_fill_",
    "assign",
    "item",
    "+=",
    "mul_",
]
# Views whose result autograd lets be written.
SINGLE = [
    "slice",
    "select",
    "narrow",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "flat",
    "halves",
    "alias",
]
graded_steps = st.one_of(
    st.tuples(st.just("view"), st.sampled_from(SINGLE), *[st.integers(0, 11)] * 3),
    st.tuples(st.just("write"), st.sampled_from(SMOOTH), *[st.integers(0, 11)] * 3),
    st.tuples(st.just("fresh"), st.sampled_from(sorted(FRESH)), *[st.integers(0, 11)] * 3),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(graded_steps, min_size=2, max_size=7))
def test_gradients_through_views_and_writes(program: list[Step]) -> None:
    assert model_differences(played(program, True)) == []


def test_a_lost_write_is_seen() -> None:
    """The comparison has teeth: without its slice_scatter the Program differs."""
    build = played([("view", "slice", 0, 1, 3), ("write", "fill_", 1, 1, 0)], False)
    program = capture_model(build).program
    entry = program.entries["step"]
    (lost,) = [step for step in entry.body if isinstance(step, Op) and step.op == "slice_scatter"]
    names = {lost.outs[0]: lost.args[0]}
    body = tuple(
        dataclasses.replace(step, args=tuple(names.get(getattr(arg, "name", None), arg) for arg in step.args))  # type: ignore[type-var]
        for step in entry.body
        if step is not lost
    )
    changed = dataclasses.replace(program, entries={"step": dataclasses.replace(entry, body=body)})
    given, want = torch_results(build)
    assert differences(evaluate_program(program, given).outputs, want) == []
    assert differences(evaluate_program(changed, given).outputs, want) != []


# --- by name ----------------------------------------------------------------------------------------


class Body(nn.Module):
    """`run(module, x * w)`, whose result is the second output and, weighed, the loss."""

    def __init__(self, run: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(ROWS, COLUMNS, dtype=F64))
        self.register_buffer("cache", torch.zeros(8, COLUMNS, dtype=F64))
        self.run = run

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.run(self, x * self.w)
        weights = torch.arange(1, made.numel() + 1, dtype=F64).view(made.shape)
        return (made * weights).sum() + self.w.sum(), made


def body(run: Callable[[Body, Tensor], Tensor]) -> Build:
    return lambda: (Body(run), (torch.randn(ROWS, COLUMNS, dtype=F64),))


def _cache(net: Body, y: Tensor) -> Tensor:
    """Rows of a buffer are replaced, as a cache of keys is, then read in a wider window."""
    net.cache[2:6] = y.detach()
    return net.cache[1:7].t() @ y.repeat(2, 1)[:6]


def _cache_twice(net: Body, y: Tensor) -> Tensor:
    net.cache.index_copy_(0, torch.tensor([0, 3, 5, 7]), y.detach())
    first = net.cache.clone() * y.sum()
    net.cache[3].zero_()
    return first + net.cache


def _flat_buffer(net: Body, y: Tensor) -> Tensor:
    """Two tensors live in one flat buffer, as a sharded optimizer's do."""
    flat = torch.empty(2 * y.numel(), dtype=F64)
    one = flat.narrow(0, 0, y.numel()).view(y.shape)
    two = torch.as_strided(flat, y.shape, (COLUMNS, 1), y.numel())
    one.copy_(y.detach())
    two.copy_(y.detach() * 3)
    flat.mul_(0.5)
    two[1] += one[0]
    return flat.view(2, ROWS, COLUMNS) * y


def _window(net: Body, y: Tensor) -> Tensor:
    """Overlapping windows on one memory: a write through one is seen through the other."""
    flat = y.detach().clone().view(-1)
    one, two = flat.as_strided((2, 5), (5, 1), 3), flat.as_strided((9,), (1,), 7)
    two.mul_(3)
    one.add_(1)
    again = one.as_strided((4,), (1,), 9)
    again.neg_()
    return torch.cat([flat * y.view(-1), one.view(-1), two, again])


def _data(net: Body, y: Tensor) -> Tensor:
    """A name is given other memory; whoever had that memory still sees writes to it."""
    one, two = y.detach().clone(), y.detach() * 3
    row = one[1]
    one.data = two
    two.add_(1)
    row.add_(5)
    one[0] = 2.0
    return one * y + two + row


def _set(net: Body, y: Tensor) -> Tensor:
    """The same by `set_`, as FSDP1 has it: writes go to whoever has the memory now."""
    one, two = y.detach().clone(), y.detach() * 3
    row = one[1]
    one.set_(two)
    two.add_(1)
    row.add_(5)
    one[0] = 2.0
    return one * y + two + row


def _data_slice(net: Body, y: Tensor) -> Tensor:
    one = y.detach().clone()
    one.data = one.data[1:3]
    one.data.mul_(2)
    return one * y[:2]


def _swapped(net: Body, y: Tensor) -> Tensor:
    one, two = y.detach().clone(), y.detach() * 3
    torch.utils.swap_tensors(one, two)
    one.add_(1)
    two.mul_(2)
    return one * y + two


def _reshaped_in_place(net: Body, y: Tensor) -> Tensor:
    """Forms that change the shape of a name and not the memory."""
    one = y.detach().clone()
    row = one[1]
    one.unsqueeze_(0)
    row.add_(1)
    one.mul_(2).squeeze_(0).t_()
    one[1] = 3.0
    one.transpose_(0, 1)
    return one * y + row


def _constants(net: Body, y: Tensor) -> Tensor:
    """Small tensors that the code writes down, also such as are then changed."""
    table = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], dtype=F64)
    other = table.clone()
    other[0, 2] = y[1, 1].detach()
    same = torch.full((2,), 7, dtype=torch.int64)
    return y * table + other + same.sum()


def _outside(net: Body, y: Tensor) -> Tensor:
    return y * OUTSIDE[1] + OUTSIDE.t().reshape(ROWS, COLUMNS)


def _outside_copied(net: Body, y: Tensor) -> Tensor:
    """A copy of what was there before takes values of the step, through a view of it."""
    made = OUTSIDE.clone()
    made[0] = y[0].detach()
    made.t()[1].add_(y.detach()[:, 2])
    return y * made


OUTSIDE = torch.arange(24.0, dtype=F64).view(ROWS, COLUMNS)


def _saved_for_later(net: Body, y: Tensor) -> Tensor:
    """Recomputed in the backward pass."""
    return torch.utils.checkpoint.checkpoint(lambda z: z.sin().exp() * net.w, y, use_reentrant=False)  # type: ignore[no-any-return]


def _weight_changed(net: Body, y: Tensor) -> Tensor:
    with torch.no_grad():
        net.cache.copy_(torch.cat([y, y]))
        net.cache[0] += net.cache[5]
    return net.cache.clone() * torch.cat([y, y])


def _accumulated(net: Body, y: Tensor) -> Tensor:
    """A gradient added up over several backward passes, then scaled, as micro-batches do it."""
    for part in y.detach().chunk(2):
        (part * net.w[:2]).pow(2).sum().backward()
    assert net.w.grad is not None
    net.w.grad.div_(2)
    return y * y


NAMED = [
    _cache, _cache_twice, _flat_buffer, _window, _data, _set, _data_slice, _swapped, _reshaped_in_place,
    _constants, _outside, _outside_copied, _saved_for_later, _weight_changed, _accumulated,
]  # fmt: skip


@pytest.mark.parametrize("run", NAMED, ids=lambda run: run.__name__)
def test_shared_memory(run: Callable[[Body, Tensor], Tensor]) -> None:
    assert model_differences(body(run)) == []


def _transposed_window(net: Body, y: Tensor) -> Tensor:
    """Memory that lies in another order than it is counted."""
    made = torch.empty_like(y.t())
    made.copy_(y.t().detach())
    return made.as_strided((4,), (1,), 0) * 2


REFUSED: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "a window on transposed memory": _transposed_window,
    "a strided window": lambda net, y: y.detach().clone().as_strided((3,), (2,), 0) * y.sum(),
    "a write into an expanded tensor": lambda net, y: (y.detach()[:1].expand(ROWS, COLUMNS).zero_(), y)[1],
    "a diagonal": lambda net, y: (y.detach().diagonal().zero_(), y)[1],
    "other bytes": lambda net, y: y.detach().view(torch.int64).sum() + y,
    "other memory": lambda net, y: y.detach().clone().set_((y * 3).detach().untyped_storage()) + y,
    "another size": lambda net, y: y.detach().clone().resize_(2, COLUMNS) + y[:2],
    "values by mask": lambda net, y: (y.detach().__setitem__(y.detach() > 0, torch.ones(3, dtype=F64)), y)[1],
    "a large constant": lambda net, y: y * torch.from_numpy(LARGE).sum(),
}
LARGE = np.random.default_rng(0).standard_normal(5000)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_line(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        capture_model(body(REFUSED[name]))
    assert "test_aliasing.py:" in str(caught.value.place) and caught.value.wanted
