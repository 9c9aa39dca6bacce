"""torch modules as Programs: numpy semantics of what comes out equals the eager module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensure.errors import InputError, UnsupportedError
from tensure.program import Model, Op, evaluate_program, format_program, parse_program
from tensure.program.from_torch import from_torch


def run_numpy(
    model: Model, inputs: tuple[Any, ...], states: dict[str, Any] | None = None, **params: int
) -> tuple[list[Any], dict[str, Any]]:
    names = [str(name) for name in model.program.entry().inputs]
    tensors = [item.detach().numpy() for item in inputs if isinstance(item, Tensor)]
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    given = {**weights, **dict(zip(names, tensors, strict=True)), **(states or {})}
    found = evaluate_program(model.program, given, params=params)
    return list(found.outputs.values()), dict(found.states)


def check(module: nn.Module, inputs: tuple[Any, ...], **options: Any) -> Model:
    """Convert raw and normalised; both must compute what the module computes."""
    module.eval()
    with torch.no_grad():
        want = torch.utils._pytree.tree_leaves(module(*inputs))
    for normalise in (False, True):
        model = from_torch(module, inputs, normalise=normalise, **options)
        model.check_weights()
        assert parse_program(format_program(model.program)) == model.program
        have, _ = run_numpy(model, inputs)
        assert len(have) == len(want)
        for mine, theirs in zip(have, want, strict=True):
            assert mine.shape == tuple(theirs.shape)
            scale = float(theirs.abs().max()) if theirs.numel() else 1.0
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5 * max(scale, 1e-3))
    return model


def body(model: Model) -> list[Op]:
    return [item for item in model.program.entry().body if isinstance(item, Op)]


class Net(nn.Module):
    """A module from a function of itself and its inputs."""

    def __init__(self, fn: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.fn = fn
        for key, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, key, part)
            else:
                self.register_buffer(key, part)

    def forward(self, *inputs: Any) -> Any:
        return self.fn(self, *inputs)


def cnn() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight)
    return net


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_small_cnn() -> None:
    model = check(cnn(), (image(1, 3, 8, 8),))
    kinds = [item.op for item in body(model)]
    assert kinds == ["convolution", "hardtanh", "convolution", "silu", "mean", "linear"]
    assert [str(name) for name in model.program.entry().outputs] == ["out"]
    assert body(model)[2].attr("padding") == (0, 1, 0, 1)
    folded = {f"_{at}.weight.{label}" for at in (0, 4) for label in ("folded", "folded_bias")}
    assert set(model.weights) == folded | {"_10.weight", "_10.bias"}


class Doubt(nn.Module):
    """Something with a line and a path."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x) if x.shape[0] == 2 else x * 2


DOUBT = f"test_from_torch.py:{Doubt.forward.__code__.co_firstlineno + 1}"


def test_notes_say_where_an_op_comes_from() -> None:
    model = from_torch(nn.Sequential(nn.Sequential(Doubt())), (image(3, 2),))
    (item,) = body(model)
    assert dict(item.note) == {"module": "0.0", "source": DOUBT}


def test_an_unsupported_op_is_named_with_its_place() -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_torch(nn.Sequential(nn.Sequential(Doubt())), (image(2, 2),))
    for word in ("svd", DOUBT, "0.0"):
        assert word in str(caught.value)


MODULES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)),
        (image(3, 4),),
    ),
    "split, chunk and unbind": lambda: (
        Net(lambda s, x: [p + 1 for p in (*x.split([1, 3], 1), *x.chunk(2), *x.unbind(0)[:2])]),
        (image(3, 4),),
    ),
    "max and topk": lambda: (
        Net(lambda s, x: (*x.max(1), x.min(0)[0], x.max(), torch.maximum(x, -x), *x.topk(2))),
        (image(3, 4),),
    ),
    "pools": lambda: (
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1, count_include_pad=False)),
        (image(1, 2, 7, 7),),
    ),
    "group norm": lambda: (nn.GroupNorm(2, 4), (image(2, 4, 3),)),
    "attention": lambda: (
        Net(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        (image(1, 2, 3, 4), image(1, 2, 3, 4), image(1, 2, 3, 4)),
    ),
    "multi-head attention": lambda: (
        Net(
            lambda s, x: s.m(x, x, x, need_weights=False)[0], m=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        (image(2, 3, 4),),
    ),
    "embedding": lambda: (nn.Embedding(5, 3), (torch.tensor([[0, 4], [2, 2]]),)),
    "gru": lambda: (Net(lambda s, x: s.g(x)[0], g=nn.GRU(3, 2)), (image(4, 1, 3),)),
    "conv1d": lambda: (nn.Conv1d(2, 3, 3, padding=1), (image(1, 2, 5),)),
    "transposed": lambda: (nn.ConvTranspose2d(2, 3, 3, 2, output_padding=1), (image(1, 2, 3, 3),)),
    "in place": lambda: (Net(lambda s, x: x.clone().add_(1).mul_(2).relu_()), (image(2, 2),)),
    "written slice": lambda: (Net(_written), (image(3, 4),)),
    "constant": lambda: (Net(lambda s, x: x + torch.tensor([1.0, 2.0])), (image(3, 2),)),
    "factories": lambda: (
        Net(lambda s, x: x + torch.ones_like(x) + torch.arange(2) + torch.full((2,), 3.0) + torch.zeros(2)),
        (image(3, 2),),
    ),
    "index": lambda: (Net(lambda s, x: (x[[0, 2]], x[:, -1], x[..., None], x[1:])), (image(3, 2),)),
    "where and mask": lambda: (
        Net(lambda s, x: torch.where(x > 0, x, 0.0) + x.masked_fill(x < 0, -1.0) + x.clamp(min=0.1)),
        (image(3, 2),),
    ),
    "casts": lambda: (Net(lambda s, x: (x.double().float() > 0).to(torch.int64).sum()), (image(3, 2),)),
    "einsum": lambda: (Net(lambda s, x, y: torch.einsum("ij,kj->ik", x, y)), (image(3, 2), image(4, 2))),
    "statistics": lambda: (
        Net(lambda s, x: (x.var(1), x.std(), x.mean((0, 1)), x.softmax(-1))),
        (image(3, 2),),
    ),
    "number": lambda: (Net(lambda s, x, n: x * n), (image(3, 2), 3)),
    "batch norm 1d": lambda: (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (image(2, 3),)),
}


def _written(self: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[1:, :2] = 7.0
    return y


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    torch.manual_seed(0)
    check(*MODULES[name]())


def test_outputs_bear_the_keys_of_a_dict() -> None:
    model = from_torch(Net(lambda s, x: {"sum": x + x, "same": x}), (image(2),))
    assert [str(name) for name in model.program.entry().outputs] == ["sum", "same"]
    assert [item.op for item in body(model)] == ["add", "copy"]


def test_tied_weights_are_one_weight() -> None:
    tied = nn.Linear(3, 3, bias=False)
    model = from_torch(nn.Sequential(tied, nn.ReLU(), tied), (image(1, 3),))
    assert len(model.weights) == 1


def test_a_written_buffer_is_a_state() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2

    module = Net(step, total=torch.zeros(2))
    model = from_torch(module, (torch.tensor([1.0, 2.0]),))
    (state,) = model.program.entry().states
    assert str(state.before) == "total"
    states = {"total": np.array([10.0, 20.0], np.float32)}
    outputs, after = run_numpy(model, (torch.tensor([1.0, 2.0]),), states)
    assert outputs[0].tolist() == [22.0, 44.0] and after["total"].tolist() == [11.0, 22.0]
    module.total += 1
    with pytest.raises(UnsupportedError, match="does not start at zero"):
        from_torch(module, (torch.ones(2),))


def test_dynamic_batch() -> None:
    net = cnn()
    model = from_torch(net, (image(1, 3, 8, 8),), dynamic={"batch": (1, 5)})
    assert model.program.entry().params == (("batch", 1, 6),)
    for batch in (1, 2, 5):
        x = image(batch, 3, 8, 8)
        (have,), _ = run_numpy(model, (x,), batch=batch)
        want = net.eval()(x).detach().numpy()
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-5)
    flat = from_torch(Net(lambda s, x: x.view(x.shape[0] * 2, -1)), (image(3, 4),), dynamic={"batch": (1, 9)})
    (have,), _ = run_numpy(flat, (image(5, 4),), batch=5)
    assert have.shape == (10, 2)


def test_weights_keep_their_dtype() -> None:
    model = from_torch(nn.Linear(2, 2).to(torch.bfloat16), (image(1, 2).to(torch.bfloat16),))
    assert {stored.encoding for stored in model.weights.values()} == {"bf16"}


def test_the_module_is_left_as_it_was_and_shares_nothing() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net[1].eval()
    model = from_torch(net, (image(1, 2),))
    assert net.training and net[0].training and not net[1].training
    before = model.weights["_0.weight"].decode().copy()
    with torch.no_grad():
        net[0].weight.add_(1)
    assert np.array_equal(model.weights["_0.weight"].decode(), before)


@pytest.mark.parametrize(
    "build",
    [
        lambda: from_torch(Net(lambda s, x: x if x.sum() > 0 else -x), (image(2),)),
        lambda: from_torch(nn.Linear(2, 2), (image(1, 3),)),
        lambda: from_torch(nn.Linear(2, 2), ()),
        lambda: from_torch(nn.Linear(2, 2), image(1, 2)),  # type: ignore[arg-type]
        lambda: from_torch(print, (image(1, 2),)),  # type: ignore[arg-type]
        lambda: from_torch(nn.Linear(2, 2), (image(1, 2),), dynamic={"in": (1, 4)}),
        lambda: from_torch(nn.Linear(2, 2), (image(1, 2),), dynamic={"a": (1, 4), "b": (1, 4)}),
        lambda: from_torch(Net(lambda s, x: x.add_(1)), (image(2),)),
        lambda: from_torch(Net(lambda s, x: x.to(torch.complex64)), (image(2),)),
        lambda: from_torch(Net(lambda s, x: 3), (image(2),)),
    ],
    ids=[
        "control flow",
        "shape",
        "none",
        "no tuple",
        "no module",
        "name",
        "two",
        "input",
        "complex",
        "number",
    ],
)
def test_bad_input_is_a_clear_error(build: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert len(str(caught.value)) < 600
