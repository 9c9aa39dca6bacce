"""Steps in half floats: policies of FSDP2, autocast, scaled losses, master weights; and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import tensure
from tensure.capture import ParallelStep
from tensure.proving import ProofResult

HALF = torch.bfloat16
ROWS = {"dp": Shard(0)}
MEAN = {"dp": Partial("avg")}


class Block(nn.Module):
    """Attention and feed-forward around residuals."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(8), norm(8)
        self.q, self.k, self.v, self.o, self.down = (nn.Linear(8, 8, bias=False) for _ in range(5))
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (w(h).unflatten(-1, (-1, 4)).transpose(1, 2) for w in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Model(nn.Module):
    """Tokens and targets in, mean cross entropy out."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.block, self.norm = nn.Embedding(10, 8), Block(norm), norm(8)
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.head(self.norm(self.block(self.embedding(tokens))))
        return F.cross_entropy(x.flatten(0, 1), targets.flatten())


def model(
    norm: Callable[[int], nn.Module] = nn.RMSNorm, dtype: torch.dtype | None = None, autocast: bool = False
) -> Callable[[], Any]:
    def made() -> Any:
        net = Model(norm).to(dtype)
        forward = net.forward

        def cast(*inputs: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=HALF):
                return forward(*inputs)

        if autocast:
            net.forward = cast  # type: ignore[method-assign]
        return net, tuple(torch.randint(0, 10, (4, 4)) for _ in range(2))

    return made


def sharded(
    policy: MixedPrecisionPolicy | None = None, factor: float | None = None, scale: float = 1.0
) -> Any:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        for module in (net.block, net):
            fully_shard(module, mesh=mesh["dp"], mp_policy=policy or MixedPrecisionPolicy())
            if factor is not None:
                module.set_gradient_divide_factor(factor)

        def step(*inputs: Tensor) -> Tensor:
            loss: Tensor = net(*inputs)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=(MEAN,))

    return parallel


def replicas(
    scale: float = 1.0, undone: int = 1, dtype: torch.dtype | None = None
) -> Callable[[Any, Any], ParallelStep]:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        net.to(dtype)

        def step(*inputs: Tensor) -> Tensor:
            loss: Tensor = net(*inputs)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
                weight.grad /= mesh.size() * scale**undone
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=(MEAN,))

    return parallel


def wrapped(net: Any, mesh: Any) -> ParallelStep:
    outer = DistributedDataParallel(net, process_group=mesh.get_group("dp"))

    def step(*inputs: Tensor) -> Tensor:
        loss: Tensor = outer(*inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return ParallelStep(step, module=outer, inputs=(ROWS, ROWS), outputs=(MEAN,))


COLUMNS = ("block.q", "block.k", "block.v", "block.up")


def columns_and_rows(net: Any, mesh: Any) -> None:
    styles: dict[str, Any] = dict.fromkeys(COLUMNS, ColwiseParallel())
    parallelize_module(net, mesh["tp"], styles | dict.fromkeys(("block.o", "block.down"), RowwiseParallel()))


def cut_sequences(net: Any, mesh: Any) -> None:
    cut, whole = Shard(1), Replicate()
    styles: dict[str, Any] = dict.fromkeys(COLUMNS, ColwiseParallel(input_layouts=whole))
    styles |= {
        "embedding": RowwiseParallel(input_layouts=whole, output_layouts=cut),
        "block.norm1": SequenceParallel(),
        "block.norm2": SequenceParallel(),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=cut, output_layouts=whole),
    }
    styles |= dict.fromkeys(("block.o", "block.down"), RowwiseParallel(output_layouts=cut))
    for name in COLUMNS:
        styles[name] = ColwiseParallel(input_layouts=cut)
    parallelize_module(net, mesh["tp"], styles)


def proved(parallel: Any, given: Any, mesh: dict[str, int], **rest: Any) -> ProofResult:
    """Proved, by a certificate that the checker accepts."""
    found = tensure.prove(parallel, given, mesh=mesh, **rest)
    assert found.proof.values.status == "proved", found.proof.values
    assert found.certificate is not None
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted
    assert found.numerics
    return found


def refuted(parallel: Any, given: Any, mesh: dict[str, int], **rest: Any) -> str:
    """Refuted; where, in words."""
    verdict = tensure.prove(parallel, given, mesh=mesh, replay=False, **rest).proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None, verdict
    return f"{verdict.counterexample.local}: {verdict.counterexample.step}"


WIDE = MixedPrecisionPolicy(param_dtype=HALF, reduce_dtype=torch.float32)
NARROW = MixedPrecisionPolicy(param_dtype=HALF, reduce_dtype=HALF)
FLOAT16 = MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float16)


# --- policies of FSDP2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm], ids=["layer", "rms"])
def test_a_policy_is_proved_and_what_it_rounds_is_said(norm: Any) -> None:
    (rounded,) = proved(sharded(WIDE), model(norm), {"dp": 2}).numerics
    assert rounded.startswith("rounded to bfloat16 on the ranks and not in the model: ")


def test_a_policy_that_reduces_in_halves_says_so() -> None:
    summed, rounded = proved(sharded(NARROW), model(), {"dp": 2}).numerics
    assert summed.startswith("summed over ranks in bfloat16: 12 tensors, first ")
    assert "reduce_scatter" in summed and rounded.startswith("rounded to bfloat16")


def test_a_divide_factor_is_proved_where_the_loss_makes_up_for_it() -> None:
    assert proved(sharded(WIDE, 6.0, 3.0), model(), {"dp": 2})


@pytest.mark.parametrize("policy", [WIDE, FLOAT16], ids=["wide", "float16"])
def test_a_wrong_divide_factor_is_refuted_at_a_gradient(policy: MixedPrecisionPolicy) -> None:
    where = refuted(sharded(policy, 0.5), model(), {"dp": 2})
    assert where.startswith("grad.") and "makes 4 * grad." in where


# --- autocast and half parameters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "axis", "norm", "given"),
    [
        (columns_and_rows, "tp", nn.LayerNorm, {"autocast": True}),
        (columns_and_rows, "tp", nn.RMSNorm, {"dtype": torch.float16}),
        (cut_sequences, "tp", nn.RMSNorm, {"autocast": True}),
        (cut_sequences, "tp", nn.LayerNorm, {"dtype": HALF}),
        (wrapped, "dp", nn.LayerNorm, {"autocast": True}),
        (wrapped, "dp", nn.RMSNorm, {"dtype": HALF}),
        (sharded(), "dp", nn.RMSNorm, {"autocast": True}),
        (sharded(), "dp", nn.LayerNorm, {"dtype": HALF}),
    ],
    ids=["tp-cast", "tp-half", "cut-cast", "cut-half", "ddp-cast", "ddp-half", "fsdp-cast", "fsdp-half"],
)
def test_the_same_precision_on_both_sides(norm: Any, parallel: Any, axis: str, given: Any) -> None:
    numerics = proved(parallel, model(norm, **given), {axis: 2}).numerics
    assert not any(words.startswith("rounded") for words in numerics)


class Sums(torch.autograd.Function):
    """The same on every rank; gradients are summed, or (the mistake) are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, is_right: bool) -> Tensor:
        ctx.group, ctx.is_right = group, is_right
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        found = funcol.wait_tensor(funcol.all_reduce(grad, "sum", ctx.group)) if ctx.is_right else grad  # type: ignore[no-untyped-call]
        return found, None, None


class Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Any:
        return funcol.wait_tensor(funcol.all_reduce(x, "sum", group))  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=HALF):
            y = self.down(F.gelu(self.up(self.norm(x))))
        return (x + y - target).pow(2).mean()


def by_hand(is_right: bool) -> Any:
    def parallel(net: Any, mesh: Any) -> Any:
        group, rank = mesh.get_group("tp"), mesh.get_local_rank("tp")
        net.up.weight = nn.Parameter(net.up.weight.chunk(2)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(2)[rank])
        net.down.weight = nn.Parameter(net.down.weight.chunk(2, 1)[rank])

        def step(x: Tensor, target: Tensor) -> Any:
            with torch.autocast("cpu", dtype=HALF):
                h = Sums.apply(net.norm(x), group, is_right)  # type: ignore[no-untyped-call]
                y = Reduced.apply(net.down(F.gelu(net.up(h))), group)  # type: ignore[no-untyped-call]
            loss = (x + y - target).pow(2).mean()
            loss.backward()
            return loss

        return step

    return parallel


def test_a_sum_missing_under_autocast_is_refuted_at_the_norm() -> None:
    def layers() -> Any:
        return Layers(), (torch.randn(4, 8), torch.randn(4, 8))

    assert "summed over ranks in bfloat16: 1 tensor," in proved(by_hand(True), layers, {"tp": 2}).numerics[0]
    assert refuted(by_hand(False), layers, {"tp": 2}).startswith("grad.norm.")


def test_norms_that_stay_in_float32() -> None:
    def made() -> Any:
        net, inputs = model(nn.LayerNorm, HALF)()
        for norm in (net.block.norm1, net.block.norm2, net.norm):
            norm.float()
        return net, inputs

    assert proved(columns_and_rows, made, {"tp": 2})


# --- scaled losses and master weights ------------------------------------------------------------------


def test_a_scaled_loss() -> None:
    summed, rounded = proved(replicas(1024.0, 1, torch.float16), model(), {"dp": 2}).numerics
    assert "float16" in summed and "float16" in rounded
    where = refuted(replicas(1024.0, 2, torch.float16), model(), {"dp": 2})
    assert where.startswith("grad.") and "1/1024 * " in where


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def masters(axis: str, back: bool = True, narrow: bool = False) -> Any:
    """An optimizer on float32 copies of half parameters, which are written back."""

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        if narrow:
            net.to(HALF)
        if axis == "tp":
            columns_and_rows(net, mesh)
        own = list(net.parameters())
        wide = [nn.Parameter(weight.detach().clone().float()) for weight in own]
        optimizer = adamw(wide)

        def step(*inputs: Tensor) -> Tensor:
            loss: Tensor = net(*inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            for weight, master in zip(own, wide, strict=True):
                master.grad = weight.grad.float()
                if axis == "dp":
                    dist.all_reduce(master.grad, group=mesh.get_group("dp"))
                    master.grad /= mesh.size()
            optimizer.step()
            for weight, master in zip(own, wide, strict=True):
                if back:
                    weight.data.copy_(master.data)
            return loss

        cut = {"inputs": (ROWS, ROWS), "outputs": (MEAN,)} if axis == "dp" else {}
        return ParallelStep(step, optimizer=optimizer, **cut)  # type: ignore[arg-type]

    return parallel


@pytest.mark.parametrize(("axis", "narrow"), [("dp", False), ("tp", False), ("tp", True)])
def test_master_weights(axis: str, narrow: bool) -> None:
    given = model() if narrow else model(dtype=HALF)
    found = proved(masters(axis, narrow=narrow), given, {axis: 2}, optimizer=adamw)
    assert any(words.startswith("rounded") for words in found.numerics) == narrow


def test_master_weights_that_are_not_written_back_are_refuted() -> None:
    where = refuted(masters("dp", back=False), model(dtype=HALF), {"dp": 2}, optimizer=adamw)
    assert where.startswith("new.")
