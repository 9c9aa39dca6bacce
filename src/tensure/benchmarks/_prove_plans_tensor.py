"""Correct tensor-parallel steps: torch's own styles, Megatron's by hand, cut vocabularies, convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from tensure.capture import ParallelStep, Placements

from ._prove_models import CNN, MLP, SEQUENCE, VOCABULARY, Llama, RMSNorm
from ._prove_parts import (
    ColumnLinear,
    Mesh,
    ParallelPlan,
    RowLinear,
    all_reduce,
    copy_to,
    gather_from,
    part,
    reduce_from,
    run,
    scatter_to,
)

__all__ = ["llama", "megatron", "mlp", "plans", "tensor_parallel"]

TP: Placements = {"tp": Shard(0)}


def llama(
    batch: int = 2, masked: bool = False, sequence: int = SEQUENCE, **sizes: Any
) -> tuple[Llama, tuple[Tensor, ...]]:
    """The Llama-like model with its inputs."""
    tokens = [torch.randint(sizes.get("vocabulary", VOCABULARY), (batch, sequence)) for _ in range(2)]
    mask = [torch.ones(batch, sequence)] if masked else []
    return Llama(sequence=sequence, **sizes), (*tokens, *mask)


def mlp(batch: int = 4, **sizes: int) -> tuple[MLP, tuple[Tensor, ...]]:
    """The MLP with its inputs."""
    net = MLP(**sizes)
    return net, (torch.randn(batch, net.up.in_features), torch.randn(batch, net.up.in_features))


def cnn(batch: int = 2) -> tuple[CNN, tuple[Tensor, ...]]:
    """The CNN with its inputs."""
    return CNN(), (torch.randn(batch, 3, 8, 6), torch.randint(5, (batch,)))


# --- by torch's parallel styles --------------------------------------------------------------------


def _mlp_dtensor(net: Any, mesh: Mesh) -> None:
    up = ColwiseParallel(use_local_output=False)  # a local output does not say that it is cut unevenly
    parallelize_module(net, mesh["tp"], {"up": up, "down": RowwiseParallel()})


def tensor_parallel(net: Any, mesh: Mesh, sequence: bool = False) -> None:
    """Attention and feed-forward of every block by torch's styles; sequence: norms on cut sequences."""
    cut, whole = Shard(1), Replicate()
    for block in net.blocks:
        styles: dict[str, Any] = {f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")}
        styles |= {f"ffn.{name}": ColwiseParallel(use_local_output=False) for name in ("w1", "w3")}
        out = RowwiseParallel(output_layouts=cut) if sequence else RowwiseParallel()
        styles |= {"attention.wo": out, "ffn.w2": out}
        if sequence:
            enter = PrepareModuleInput(input_layouts=cut, desired_input_layouts=whole)
            styles |= {"attention": enter, "ffn": enter}
            styles |= {"attention_norm": SequenceParallel(), "ffn_norm": SequenceParallel()}
        parallelize_module(block, mesh, styles)
    if sequence:
        parallelize_module(
            net,
            mesh,
            {
                "embedding": RowwiseParallel(input_layouts=whole, output_layouts=cut),
                "norm": SequenceParallel(),
                "head": ColwiseParallel(input_layouts=cut, output_layouts=whole),
            },
        )


def _styles(net: Any, mesh: Mesh, sequence: bool = False) -> None:
    tensor_parallel(net, mesh["tp"], sequence)


def _vocabulary(net: Any, mesh: Mesh) -> ParallelStep:
    """Embedding and head cut along the vocabulary, and a loss that never joins the logits."""
    tensor_parallel(net, mesh["tp"])
    parallelize_module(
        net,
        mesh["tp"],
        {
            "embedding": RowwiseParallel(input_layouts=Replicate()),
            "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        },
    )

    def step(tokens: Tensor, targets: Tensor) -> Any:
        with loss_parallel():
            loss: Any = F.cross_entropy(net.logits(tokens).flatten(0, 1), targets.flatten())
            loss.backward()
        return loss.detach()

    return ParallelStep(step)


def _embedding_only(net: Any, mesh: Mesh) -> None:
    parallelize_module(net, mesh["tp"], {"embedding": RowwiseParallel(input_layouts=Replicate())})


def _embedding_columns(net: Any, mesh: Mesh) -> None:
    parallelize_module(net, mesh["tp"], {"embedding": ColwiseParallel(output_layouts=Replicate())})


def _head_only(net: Any, mesh: Mesh) -> None:
    parallelize_module(net, mesh["tp"], {"head": ColwiseParallel(output_layouts=Replicate())})


# --- by hand -----------------------------------------------------------------------------------------

_COLUMNS, _ROWS = ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")


def megatron(net: nn.Module, group: Any, dim: int | None = None, only: str = "") -> dict[str, Placements]:
    """Cuts linear layers, Megatron's way; dim: gathers and reduce-scatters along it, not copies."""
    cut: dict[str, Placements] = {}
    for path, owner in list(net.named_modules()):
        for name, child in list(owner.named_children()):
            if not isinstance(child, nn.Linear) or only not in path:
                continue
            if name in _COLUMNS:
                enter = None if dim is None else (lambda x: gather_from(x, dim, group))
                setattr(owner, name, ColumnLinear(child, group, enter))
                cut[f"{path}.{name}.weight"] = TP
            elif name in _ROWS:
                leave = None if dim is None else (lambda x: scatter_to(x, dim, group))
                setattr(owner, name, RowLinear(child, group, leave))
                cut[f"{path}.{name}.weight"] = {"tp": Shard(1)}
    return cut


def _by_hand(net: Any, mesh: Mesh) -> ParallelStep:
    placed = megatron(net, mesh.get_group("tp"))
    return ParallelStep(lambda *inputs: run(net, inputs), parameters=placed)


def _sequence_by_hand(net: Any, mesh: Mesh) -> ParallelStep:
    """Between layers every rank has a part of the sequence; gradients of norms are summed at the end."""
    group = mesh.get_group("tp")
    placed = megatron(net, group, dim=1)

    def logits(tokens: Tensor) -> Any:
        x = net.embedding(tokens).chunk(group.size(), 1)[group.rank()]
        for block in net.blocks:
            x = block(x)
        return net.head(net.norm(x))

    def step(tokens: Tensor, targets: Tensor) -> Any:
        own = targets.chunk(group.size(), 1)[group.rank()]
        losses = F.cross_entropy(logits(tokens).flatten(0, 1), own.flatten(), reduction="none")
        loss: Any = losses.sum() / targets.numel()
        loss.backward()
        for name, parameter in net.named_parameters():
            if name not in placed:
                dist.all_reduce(parameter.grad, group=group)
        return all_reduce(loss.detach(), group)

    return ParallelStep(step, parameters=placed)


def _fused(net: Any, mesh: Mesh) -> ParallelStep:
    """Queries, keys and values by one matrix, joined on the rank out of its cuts of the three."""
    group = mesh.get_group("tp")
    placed = megatron(net, group)
    for attention in (block.attention for block in net.blocks):
        q, k, v = attention.wq, attention.wk, attention.wv

        class Split(nn.Module):
            def __init__(self, at: int, rows: list[Any]) -> None:
                super().__init__()
                self.at, self.rows = at, rows
                self.weight = rows[at].weight

            def forward(self, x: Tensor) -> Any:
                joined = torch.cat([row.weight for row in self.rows])
                out: Any = F.linear(copy_to(x, group), joined)
                return out.split([len(row.weight) for row in self.rows], -1)[self.at]

        rows = [q, k, v]
        attention.wq, attention.wk, attention.wv = (Split(at, rows) for at in range(3))
    return ParallelStep(lambda *inputs: run(net, inputs), parameters=placed)


def _grouped_queries(net: Any, mesh: Mesh) -> ParallelStep:
    """More ranks than key heads: ranks along `copy` share a key head, and sum its gradients."""
    heads, copies = mesh.get_group("kv"), mesh.get_group("copy")
    everyone = dist.group.WORLD
    rank, ranks = dist.get_rank(), dist.get_world_size()
    placed: dict[str, Placements] = {}
    for at, block in enumerate(net.blocks):
        attention = block.attention
        attention.group = 1
        query = attention.wq.weight.detach().chunk(ranks, 0)[rank].clone()
        out = attention.wo.weight.detach().chunk(ranks, 1)[rank].clone()
        attention.wq.weight, attention.wo.weight = nn.Parameter(query), nn.Parameter(out)
        for name in ("wk", "wv"):
            layer = getattr(attention, name)
            layer.weight = part(layer.weight, 0, heads)
            placed[f"blocks.{at}.attention.{name}.weight"] = {"kv": Shard(0)}
        placed[f"blocks.{at}.attention.wq.weight"] = {"kv": Shard(0), "copy": Shard(0)}
        placed[f"blocks.{at}.attention.wo.weight"] = {"kv": Shard(1), "copy": Shard(1)}
        inner = attention.forward
        attention.forward = lambda x, inner=inner: reduce_from(inner(copy_to(x, everyone)), everyone)

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs)
        for block in net.blocks:
            for layer in (block.attention.wk, block.attention.wv):
                dist.all_reduce(layer.weight.grad, group=copies)
        return loss

    return ParallelStep(step, parameters=placed)


class _VocabularyEmbedding(nn.Module):
    """Rows of the table that this rank has; zeros for other tokens; summed over ranks."""

    def __init__(self, table: nn.Embedding, group: Any, tied: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = part(table.weight, 0, group) if tied is None else tied
        self.group = group

    def forward(self, tokens: Tensor) -> Any:
        size = len(self.weight)
        own = tokens - self.group.rank() * size
        elsewhere = (own < 0) | (own >= size)
        found = F.embedding(own.masked_fill(elsewhere, 0), self.weight)
        return reduce_from(found.masked_fill(elsewhere[..., None], 0.0), self.group)


def _own_vocabulary(net: Any, mesh: Mesh, tied: bool = False) -> ParallelStep:
    """Megatron's embedding and cross entropy over a cut vocabulary."""
    group = mesh.get_group("tp")
    placed = megatron(net, group)
    net.head = ColumnLinear(net.head, group)
    net.embedding = _VocabularyEmbedding(net.embedding, group, net.head.weight if tied else None)
    placed |= {"embedding.weight": TP} if tied else {"embedding.weight": TP, "head.weight": TP}
    size = VOCABULARY // group.size()

    def step(tokens: Tensor, targets: Tensor) -> Any:
        logits = net.logits(tokens).flatten(0, 1)
        own = targets.flatten() - group.rank() * size
        top = all_reduce(logits.detach().amax(-1), group, "max")
        logits = logits - top[:, None]
        total = reduce_from(logits.exp().sum(-1), group)
        elsewhere = (own < 0) | (own >= size)
        picked = logits.gather(-1, own.masked_fill(elsewhere, 0)[:, None])[:, 0].masked_fill(elsewhere, 0.0)
        loss = (total.log() - reduce_from(picked, group)).mean()
        loss.backward()
        return loss.detach()

    return ParallelStep(step, parameters=placed)


def _channels(net: Any, mesh: Mesh) -> ParallelStep:
    """The first convolution cut along its outputs, the second along its inputs."""
    group = mesh.get_group("tp")
    net.conv1.weight, net.conv1.bias = part(net.conv1.weight, 0, group), part(net.conv1.bias, 0, group)
    net.conv2.weight = part(net.conv2.weight, 1, group)

    def features(x: Tensor) -> Any:
        hidden = F.relu(F.conv2d(copy_to(x, group), net.conv1.weight, net.conv1.bias, padding=1))
        partial_sum = F.conv2d(hidden, net.conv2.weight, padding=1)
        bias: Any = net.conv2.bias
        return (reduce_from(partial_sum, group) + bias[:, None, None]).mean((2, 3))

    net.features = features
    placed = {"conv1.weight": TP, "conv1.bias": TP, "conv2.weight": {"tp": Shard(1)}}
    return ParallelStep(lambda *inputs: run(net, inputs), parameters=placed)


def _two_ways(net: Any, mesh: Mesh) -> ParallelStep:
    """Weights cut along both dims, over two axes: partial sums over one, columns over the other."""
    rows, columns = mesh.get_group("row"), mesh.get_group("column")
    for layer, (first, second) in ((net.up, (rows, columns)), (net.down, (columns, rows))):
        layer.weight = part(part(layer.weight, 1, first), 0, second)
        layer.bias = part(layer.bias, 0, second)

    def layer_of(layer: nn.Linear, x: Tensor, summed: Any, cut: Any) -> Any:
        own = copy_to(x, cut)
        return reduce_from(F.linear(own, layer.weight), summed) + layer.bias

    def step(x: Tensor, target: Tensor) -> Any:
        hidden = F.gelu(layer_of(net.up, x, rows, columns), approximate="tanh")
        loss = (layer_of(net.down, hidden, columns, rows) - target).pow(2).sum() / (
            target.numel() * rows.size()
        )
        loss.backward()
        return all_reduce(loss.detach(), rows)

    columns_of = {"row": Shard(1), "column": Shard(0)}
    rows_of = {"row": Shard(0), "column": Shard(1)}
    placed = {"up.weight": columns_of, "up.bias": {"column": Shard(0)}}
    placed |= {"down.weight": rows_of, "down.bias": {"row": Shard(0)}}
    inputs: list[Placements | None] = [{"row": Shard(1)}, {"row": Shard(1)}]
    return ParallelStep(step, inputs=inputs, parameters=placed)


class _Normed(nn.Module):
    """A norm and a feed-forward around a residual, on 7 positions: not a multiple of two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = RMSNorm(6), MLP()

    def forward(self, x: Tensor, target: Tensor) -> Any:
        return (x + self.mlp.output(self.norm(x)) - target).pow(2).mean()


def _normed() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Normed(), (torch.randn(2, 7, 6), torch.randn(2, 7, 6))


def _uneven_sequence(net: Any, mesh: Mesh) -> ParallelStep:
    """Positions are cut unevenly: each rank's losses are summed and divided by all of them."""
    group = mesh.get_group("tp")

    def step(x: Tensor, target: Tensor) -> Any:
        loss = (x + net.mlp.output(net.norm(x)) - target).pow(2).sum() / 84
        loss.backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=group)
        return all_reduce(loss.detach(), group)

    cut: Placements = {"tp": Shard(1)}
    return ParallelStep(step, inputs=[cut, cut])


def plans() -> Iterator[ParallelPlan]:
    """All of this file's."""
    seven = partial(llama, vocabulary=7)
    for size in (2, 4):
        yield ParallelPlan(f"TP{size} of an MLP", mlp, _mlp_dtensor, {"tp": size})
        yield ParallelPlan(f"TP{size} of Llama", llama, _styles, {"tp": size})
        sequence = partial(_styles, sequence=True)
        yield ParallelPlan(f"TP{size} with sequence parallelism", seven, sequence, {"tp": size})
        yield ParallelPlan(f"TP{size} by hand", llama, _by_hand, {"tp": size})
        yield ParallelPlan(
            f"TP{size} with sequence parallelism by hand", llama, _sequence_by_hand, {"tp": size}
        )
        yield ParallelPlan(f"TP{size} of channels", cnn, _channels, {"tp": size})
    yield ParallelPlan("TP4 of 18 inner units: 5, 5, 5, 3", partial(mlp, inner=18), _mlp_dtensor, {"tp": 4})
    yield ParallelPlan("TP3 of 20 inner units: 7, 7, 6", partial(mlp, inner=20), _mlp_dtensor, {"tp": 3})
    yield ParallelPlan("TP2 of 21 inner units in Llama: 11, 10", partial(llama, inner=21), _styles, {"tp": 2})
    yield ParallelPlan("TP2 of 2 key heads", partial(llama, kv_heads=2), _styles, {"tp": 2})
    yield ParallelPlan(
        "TP4 of 2 key heads, each on 2 ranks",
        partial(llama, kv_heads=2),
        _grouped_queries,
        {"kv": 2, "copy": 2},
    )
    yield ParallelPlan(
        "TP2 of 1 key head, on 2 ranks", partial(llama, kv_heads=1), _replicated_keys, {"tp": 2}
    )
    yield ParallelPlan("TP2 of two blocks", partial(llama, blocks=2), _styles, {"tp": 2})
    yield ParallelPlan("TP2 with one matrix for queries, keys and values", llama, _fused, {"tp": 2})
    yield ParallelPlan("TP2 with a cut vocabulary", llama, _vocabulary, {"tp": 2})
    yield ParallelPlan("TP4 with a cut vocabulary: 2, 2, 2, 1", seven, _vocabulary, {"tp": 4})
    yield ParallelPlan("TP3 of the embedding's rows", llama, _embedding_only, {"tp": 3})
    yield ParallelPlan("TP2 of the embedding's columns", llama, _embedding_columns, {"tp": 2})
    yield ParallelPlan("TP4 of the head: 2, 2, 2, 0", llama, _head_only, {"tp": 4})
    yield ParallelPlan("TP2 with a cut vocabulary by hand", llama, _own_vocabulary, {"tp": 2})
    tied = partial(_own_vocabulary, tied=True)
    yield ParallelPlan("TP2 with a cut and tied vocabulary", partial(llama, tied=True), tied, {"tp": 2})
    yield ParallelPlan("weights cut both ways over two axes", mlp, _two_ways, {"row": 2, "column": 2})
    yield ParallelPlan("7 positions over 2 ranks", _normed, _uneven_sequence, {"tp": 2})


def _replicated_keys(net: Any, mesh: Mesh) -> ParallelStep:
    """One key head for all: its weights are whole on every rank, and their gradients are summed."""
    group = mesh.get_group("tp")
    placed: dict[str, Placements] = {}
    for at, block in enumerate(net.blocks):
        attention = block.attention
        attention.group //= group.size()
        attention.wq = ColumnLinear(attention.wq, group)
        attention.wo = RowLinear(attention.wo, group)
        placed[f"blocks.{at}.attention.wq.weight"] = TP
        placed[f"blocks.{at}.attention.wo.weight"] = {"tp": Shard(1)}
        for name in ("wk", "wv"):
            layer = getattr(attention, name)
            layer.forward = lambda x, layer=layer: F.linear(copy_to(x, group), layer.weight)

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs)
        for block in net.blocks:
            for layer in (block.attention.wk, block.attention.wv):
                dist.all_reduce(layer.weight.grad, group=group)
        return loss

    return ParallelStep(step, parameters=placed)
