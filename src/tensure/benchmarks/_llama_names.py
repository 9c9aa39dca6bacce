"""GGUF's Llama as a Hugging Face checkpoint has it: configuration, names of tensors, order of their rows.

Knows names and rows. Does not know files nor who reads the checkpoint.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from tensure.program.from_gguf import GgufFile

from ._records import Json

__all__ = ["llama_config", "reordered", "their_name"]


def llama_config(found: GgufFile) -> dict[str, Json]:
    """What transformers' LlamaConfig wants to know."""
    keys: dict[str, Any] = {key.removeprefix("llama."): value for key, value in found.metadata.items()}
    embed = found.tensors["token_embd.weight"]
    return {
        "vocab_size": int(embed.shape[0]),
        "hidden_size": int(keys["embedding_length"]),
        "intermediate_size": int(keys["feed_forward_length"]),
        "num_hidden_layers": int(keys["block_count"]),
        "num_attention_heads": int(keys["attention.head_count"]),
        "num_key_value_heads": int(keys["attention.head_count_kv"]),
        "max_position_embeddings": int(keys["context_length"]),
        "rms_norm_eps": float(keys["attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(keys.get("rope.freq_base", 10_000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in found.tensors,
        "bos_token_id": int(keys["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(keys["tokenizer.ggml.eos_token_id"]),
    }


_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Final = {
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


def their_name(name: str) -> str:
    """The name of a GGUF tensor in a checkpoint of transformers."""
    if name in _NAMES:
        return _NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"


def reordered(name: str, values: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """Query and key rows back from GGUF's order (rotary pairs adjacent) to halves; the rest as it is."""
    num = heads if ".attn_q." in name else kv_heads if ".attn_k." in name else 0
    if not num:
        return values
    rows, columns = values.shape
    return values.view(num, rows // num // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
