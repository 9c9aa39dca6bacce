"""Sizes of the named models, as their public configuration files give them, and of a plan's mesh.

What a configuration file does not say is not filled in: nothing here is tuned or guessed. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from tensure.errors import InputError

__all__ = ["MODELS", "DeepSeekConfig", "LlamaConfig", "PlanSizes"]


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama 3.

    Args:
        layers, hidden, heads, kv_heads, inner, vocabulary: as usual; `inner` is the feed-forward's width.
        sequence: tokens of one sequence in pre-training.
        rope_theta, eps: base of the rotary frequencies; what RMSNorm adds under the root.
        source: where the numbers come from.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    kv_heads: int = 8
    vocabulary: int = 128256
    sequence: int = 8192
    rope_theta: float = 500000.0
    eps: float = 1e-5
    source: str = ""

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    def cuts(self) -> dict[str, int]:
        """What tensor parallelism cuts, by name."""
        return {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "inner": self.inner,
            "hidden": self.hidden,
            "vocabulary": self.vocabulary,
            "sequence": self.sequence,
        }

    def replace(self, **sizes: Any) -> Self:
        """The same model with other sizes."""
        return replace(self, **sizes)


@dataclass(frozen=True)
class DeepSeekConfig:
    """A DeepSeek of the V2 and V3 families: latent attention, and experts after the first dense layers.

    Args:
        layers, hidden, heads, vocabulary, sequence, rope_theta, eps: as for LlamaConfig.
        dense_layers: how many of the first layers have a plain feed-forward, of width `inner`.
        q_rank: width of the compressed queries; 0: queries are not compressed.
        kv_rank: width of the compressed keys and values.
        nope, rope, value: widths of a head's key without and with rotary positions, and of its value.
        experts, chosen, shared, expert_inner: routed experts, how many of them a token goes to, experts
            that all tokens go to, and the width of each.
        groups, kept_groups: experts are in groups, and a token's come out of so many of them; 1 is none.
        score: "softmax", or "sigmoid" with a bias that takes part in the choice and not in the share.
        group_best: how many of its best scores a group is judged by.
        normalized: whether a token's shares are divided by their sum.
        route_scale: what shares are multiplied by.
        source: where the numbers come from.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    experts: int
    chosen: int
    shared: int
    expert_inner: int
    vocabulary: int
    dense_layers: int = 1
    q_rank: int = 0
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128
    groups: int = 1
    kept_groups: int = 1
    score: str = "softmax"
    group_best: int = 1
    normalized: bool = False
    route_scale: float = 1.0
    sequence: int = 4096
    rope_theta: float = 10000.0
    eps: float = 1e-6
    source: str = ""

    def cuts(self) -> dict[str, int]:
        """What tensor parallelism cuts, by name."""
        return {
            "heads": self.heads,
            "experts": self.experts,
            "inner": self.inner,
            "width of shared experts": self.shared * self.expert_inner,
            "hidden": self.hidden,
            "vocabulary": self.vocabulary,
            "sequence": self.sequence,
        }

    def replace(self, **sizes: Any) -> Self:
        """The same model with other sizes."""
        return replace(self, **sizes)


_LLAMA: Final = "config.json of meta-llama/"
_DEEPSEEK: Final = "config.json of deepseek-ai/"

MODELS: Final[Mapping[str, LlamaConfig | DeepSeekConfig]] = {
    "llama3-8b": LlamaConfig(
        layers=32, hidden=4096, heads=32, inner=14336, source=f"{_LLAMA}Meta-Llama-3-8B"
    ),
    "llama3-70b": LlamaConfig(
        layers=80, hidden=8192, heads=64, inner=28672, source=f"{_LLAMA}Meta-Llama-3-70B"
    ),
    "llama3-405b": LlamaConfig(
        layers=126,
        hidden=16384,
        heads=128,
        inner=53248,
        source=f"{_LLAMA}Llama-3.1-405B; sequence: The Llama 3 Herd of Models, section 3.4",
    ),
    "deepseek-v3-16b": DeepSeekConfig(
        layers=27,
        hidden=2048,
        heads=16,
        inner=10944,
        experts=64,
        chosen=6,
        shared=2,
        expert_inner=1408,
        vocabulary=102400,
        source=f"{_DEEPSEEK}DeepSeek-V2-Lite, the 16B member of the family; sequence: its report",
    ),
    "deepseek-v3-236b": DeepSeekConfig(
        layers=60,
        hidden=5120,
        heads=128,
        inner=12288,
        experts=160,
        chosen=6,
        shared=2,
        expert_inner=1536,
        vocabulary=102400,
        q_rank=1536,
        groups=8,
        kept_groups=3,
        route_scale=16.0,
        source=f"{_DEEPSEEK}DeepSeek-V2, the 236B member of the family; sequence: its report",
    ),
    "deepseek-v3-671b": DeepSeekConfig(
        layers=61,
        hidden=7168,
        heads=128,
        inner=18432,
        experts=256,
        chosen=8,
        shared=1,
        expert_inner=2048,
        vocabulary=129280,
        dense_layers=3,
        q_rank=1536,
        groups=8,
        kept_groups=4,
        score="sigmoid",
        group_best=2,
        normalized=True,
        route_scale=2.5,
        source=f"{_DEEPSEEK}DeepSeek-V3; sequence: its report",
    ),
}
"""By name; every number is of the file that `source` names, or of the paper where it says so."""


@dataclass(frozen=True)
class PlanSizes:
    """How a step is cut: replicas, tensor-parallel ranks, pipeline stages, micro-batches of a replica."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    mb: int = 1
    sequences: int = field(default=1, kw_only=True)
    """Sequences of one micro-batch of one replica."""

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh axes, outermost first; an axis of one rank is left out."""
        sizes = {"pp": self.pp, "dp": self.dp, "tp": self.tp}
        return {axis: size for axis, size in sizes.items() if size > 1} or {"dp": 1}

    @property
    def batch(self) -> int:
        """Sequences of one step, over all replicas and micro-batches."""
        return self.dp * self.mb * self.sequences

    def fit(self, name: str, config: LlamaConfig | DeepSeekConfig) -> None:
        """Refuse sizes that do not divide the model's.

        Raises:
            InputError: says which.
        """
        for what, size in config.cuts().items():
            if size % self.tp:
                raise InputError(f"{name}: {what} {size} over tp {self.tp}", wanted="a tp that divides it")
        if self.pp > config.layers:
            raise InputError(
                f"{name}: {config.layers} layers over pp {self.pp}", wanted="a layer a stage, at least"
            )
