"""Hugging Face transformers' LlamaForCausalLM on the same dequantised weights, in f32 or bf16.

The module is built from its own configuration class and filled from our reader: transformers' own GGUF
route gives the same numbers and takes a minute. Its defaults are kept (sdpa attention, dynamic cache), and
its forward is called without `generate`, whose bookkeeping would only slow it down. Runs in a process of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import initialization

from tensure import host
from tensure.program.from_gguf import GgufFile, read_gguf

from ._llama_names import llama_config, reordered, their_name
from ._quality_engine import QualityEngine
from ._records import Json
from ._text_engine import Floats, TextEngine

__all__ = ["build_llama", "setup", "setup_quality"]

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class TransformersModel:
    """A Llama of transformers."""

    def __init__(self, path: str, dtype: str) -> None:
        self._dtype = dtype
        self._model = build_llama(read_gguf(path), _DTYPES[dtype])
        self._cache: Any = None

    def set_threads(self, threads: int) -> None:
        """Of torch's pool."""
        torch.set_num_threads(threads)

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """A fresh cache; only the last position meets the head, as in `generate`."""
        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._call(tokens)

    def step(self, token: int) -> torch.Tensor:
        """One token."""
        return self._call([token])

    def score(self, tokens: Sequence[int]) -> Floats:
        """All logits of one call without a cache."""
        with torch.inference_mode():
            found = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        logits: Floats = found.logits[0].float().numpy()
        return logits

    def best(self, logits: torch.Tensor) -> int:
        """Greedy."""
        return int(logits.argmax())

    def to_array(self, logits: torch.Tensor) -> Floats:
        """bf16 widened."""
        array: Floats = logits.float().numpy()
        return array

    def facts(self) -> Mapping[str, Json]:
        """Tied weights once."""
        sizes = {p.data_ptr(): p.numel() * p.element_size() for p in self._model.parameters()}
        return {
            "weight_bytes": sum(sizes.values()),
            "computes": self._dtype,
            "version": f"{transformers.__version__} (torch {torch.__version__})",
        }

    def _call(self, tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            found = self._model(
                input_ids=torch.tensor([list(tokens)]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = found.logits[0, -1]
        return logits


def build_llama(found: GgufFile, dtype: torch.dtype, *, attention: str | None = None) -> Any:
    """LlamaForCausalLM with a file's weights; `attention` names an implementation other than the default."""
    keys = llama_config(found)
    heads, kv_heads = keys["num_attention_heads"], keys["num_key_value_heads"]
    config = transformers.LlamaConfig(**keys, dtype=dtype, attn_implementation=attention)
    with initialization.no_init_weights():  # random numbers that are overwritten below
        model: Any = transformers.LlamaForCausalLM(config)
    model.tie_weights()
    model.to(dtype).eval()
    targets = dict(model.named_parameters())
    for name, stored in found.tensors.items():
        values = host.load_weights({name: stored})[name]
        with torch.no_grad():
            targets.pop(their_name(name)).copy_(reordered(name, values, heads, kv_heads))
    if targets:
        raise AssertionError(f"weights without a tensor: {sorted(targets)[:3]}")
    return model


def setup(path: str, dtype: str) -> TextEngine:
    """The engine for a GGUF file of the llama architecture and a dtype."""
    transformers.logging.set_verbosity_error()
    return TextEngine(TransformersModel(path, dtype))


def setup_quality(path: str, dtype: str) -> QualityEngine:
    """The same, for all logits of a text."""
    transformers.logging.set_verbosity_error()
    return QualityEngine(TransformersModel(path, dtype))
