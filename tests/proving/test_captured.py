"""Steps of plain PyTorch, traced and proved, with the sizes that have gone wrong before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import tensure

HIDDEN, SIZE, LENGTH = 16, 4, 6


class Attention(nn.Module):
    def __init__(self, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(HIDDEN, heads * SIZE, bias=False)
        self.k = nn.Linear(HIDDEN, kv_heads * SIZE, bias=False)
        self.v = nn.Linear(HIDDEN, kv_heads * SIZE, bias=False)
        self.o = nn.Linear(heads * SIZE, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def split(z: torch.Tensor) -> torch.Tensor:
            return z.view(*x.shape[:2], -1, SIZE).transpose(1, 2)

        found = F.scaled_dot_product_attention(
            split(self.q(x)), split(self.k(x)), split(self.v(x)), is_causal=True, enable_gqa=True
        )
        return (self.o(found.transpose(1, 2).flatten(2)) - y).pow(2).mean()


def tensor_parallel(net: nn.Module, mesh: Any) -> None:
    plan: dict[str, Any] = dict.fromkeys("qkv", ColwiseParallel())
    parallelize_module(net, mesh["tp"], {**plan, "o": RowwiseParallel()})


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "ranks"),
    [(2, 4, 2, 2), (2, 4, 4, 4), (1, 4, 2, 2), (1, 2, 2, 2), (3, 4, 1, 1)],
    ids=lambda value: str(value),
)
def test_attention_by_heads(batch: int, heads: int, kv_heads: int, ranks: int) -> None:
    """One head on a rank looks like the features of one head; one sequence like none."""

    def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        shape = (batch, LENGTH, HIDDEN)
        return Attention(heads, kv_heads), (torch.randn(shape), torch.randn(shape))

    result = tensure.prove(tensor_parallel, model, mesh={"tp": ranks})
    assert result.proof.values.status == "proved", result.proof.values
