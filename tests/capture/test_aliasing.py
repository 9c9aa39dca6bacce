"""Tensors that share memory: random programs of views and writes give in a captured Program what they give in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .steps import Build, model_differences

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
    "by mask of rows": lambda x, a, y: x.__setitem__(_mask(x[..., 0]), y.reshape(-1)[0]) if x.ndim > 1 else x,
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
    """Runs a program on a pool of tensors that begins with one; returns them all, and a loss of all of them."""

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
    """What is written through a view is seen by what it looks at, and by its neighbours made before and after."""
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
