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

from ._records import Json
from ._text_engine import Floats, TextEngine

__all__ = ["setup"]

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class TransformersModel:
    """A Llama of transformers."""

    def __init__(self, path: str, dtype: str) -> None:
        self._dtype = dtype
        self._model = _build(read_gguf(path), _DTYPES[dtype])
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


def _build(found: GgufFile, dtype: torch.dtype) -> Any:
    keys: dict[str, Any] = {key.removeprefix("llama."): value for key, value in found.metadata.items()}
    heads, kv_heads = int(keys["attention.head_count"]), int(keys["attention.head_count_kv"])
    embed = found.tensors["token_embd.weight"]
    tied = "output.weight" not in found.tensors
    config = transformers.LlamaConfig(
        vocab_size=embed.shape[0],
        hidden_size=int(keys["embedding_length"]),
        intermediate_size=int(keys["feed_forward_length"]),
        num_hidden_layers=int(keys["block_count"]),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=int(keys["context_length"]),
        rms_norm_eps=float(keys["attention.layer_norm_rms_epsilon"]),
        rope_theta=float(keys["rope.freq_base"]),
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    with initialization.no_init_weights():  # random numbers that are overwritten below
        model: Any = transformers.LlamaForCausalLM(config)
    model.tie_weights()
    model.to(dtype).eval()
    targets = dict(model.named_parameters())
    for name, stored in found.tensors.items():
        values = host.load_weights({name: stored})[name]
        with torch.no_grad():
            targets.pop(_their_name(name)).copy_(_reordered(name, values, heads, kv_heads))
    if targets:
        raise AssertionError(f"weights without a tensor: {sorted(targets)[:3]}")
    return model


_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _their_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"


def _reordered(name: str, values: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """Query and key rows back from GGUF's order (rotary pairs adjacent) to halves; the rest as it is."""
    num = heads if ".attn_q." in name else kv_heads if ".attn_k." in name else 0
    if not num:
        return values
    rows, columns = values.shape
    return values.view(num, rows // num // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def setup(path: str, dtype: str) -> TextEngine:
    """The engine for a GGUF file of the llama architecture and a dtype."""
    transformers.logging.set_verbosity_error()
    return TextEngine(TransformersModel(path, dtype))
