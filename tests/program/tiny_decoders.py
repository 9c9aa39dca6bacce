"""Small random decoders made by transformers, and the same weights as folders and GGUF files.

The reference of the decoder tests: transformers computes it, the `gguf` package writes it; nothing here is
ours. Weights are large enough that every part of a block moves the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tensure.program import Model, StoredTensor, evaluate_program

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 2, 32, 4, 2, 64, 61, 48
SIZES: Any = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.21,
    "logits_scaling": 4.0,
}
CONFIGS: Mapping[str, Callable[..., Any]] = {
    "llama": lambda **more: transformers.LlamaConfig(**SIZES | more),
    "granite": lambda **more: transformers.GraniteConfig(**SIZES | MULTIPLIERS | more),
    "qwen2": lambda **more: transformers.Qwen2Config(**SIZES | {"tie_word_embeddings": False} | more),
    # A head size that is not width / heads, as the small Qwen3 models have.
    "qwen3": lambda **more: transformers.Qwen3Config(**SIZES | {"head_dim": 16} | more),
}
FAMILIES = tuple(CONFIGS)
TOKENS = np.array([5, 60, 0, 17, 17, 33, 8, 41, 2, 26, 59], dtype=np.int64)


def reference(family: str, seed: int = 3, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A transformers model with seeded weights that are exact in `dtype`, computing in float32."""
    config = CONFIGS[family](**more)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if "norm" in key:
                weight.copy_(1 + 0.3 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5)
            weight.copy_(weight.to(dtype).float())
    return model


def reference_logits(model: Any, tokens: np.ndarray[Any, Any] = TOKENS) -> np.ndarray[Any, Any]:
    """Logits f32[n, vocab] by transformers."""
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return found


def save_folder(
    model: Any, folder: Path, dtype: torch.dtype = torch.float32, shard: str | None = None
) -> Path:
    """The folder transformers itself writes, with a tokenizer beside it. Leaves `model` in `dtype`."""
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    vocab = {f"t{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages }}", "bos_token": "t1", "eos_token": "t2"})
    )
    return folder


def edit_json(path: Path, change: Mapping[str, Any]) -> None:
    """The JSON object in a file with keys set; a value of `...` takes its key out."""
    found = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def fresh_states(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    axes = model.program.axes
    shape = (axes["G"], axes["C"], axes["E"])
    # Not zeros: whatever lies in an unwritten row must not matter.
    return {f"{base}[{layer}]": np.full(shape, 7, np.float32) for base in "KV" for layer in range(axes["L"])}


def decoded(model: Model) -> dict[str, Any]:
    return {key: stored.decode() for key, stored in model.weights.items()}


def score(model: Model, tokens: np.ndarray[Any, Any] = TOKENS) -> np.ndarray[Any, Any]:
    """Logits f32[n, vocab] by our evaluator."""
    given = {**decoded(model), **fresh_states(model), "tokens": tokens}
    found = evaluate_program(model.program, given, entry="score", params={"n": len(tokens), "pos": 0})
    return found.outputs["logits"]


def error_of(found: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """Greatest difference over the greatest magnitude."""
    assert found.shape == want.shape
    return float(np.abs(found - want).max() / np.abs(want).max())


# --- GGUF -----------------------------------------------------------------------------------------

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def pair_up(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head reordered so that i and i + half become neighbours, as llama conversions do."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def part(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The inverse of `pair_up`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(family: str, model: Any, *, permute: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """The model's float32 tensors under their GGUF names, in the order and layout of a conversion."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        label = _NAMES.get(key)
        if label is None:
            _, _, layer, rest = key.split(".", 3)
            stem, _, kind = rest.rpartition(".")
            label = f"blk.{layer}.{_NAMES[stem]}.{kind}"
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(stem)
            if heads and permute and family in ("llama", "granite"):
                array = pair_up(array, heads)
        found[label] = np.ascontiguousarray(array)
    return found


def write_gguf(
    path: Path,
    family: str,
    model: Any,
    *,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    encoding: str = "f32",
    omit: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """The model as a GGUF file by the `gguf` package; `omit` leaves metadata keys out, `extra` sets them."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or WIDTH // HEADS
    metadata: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": head_dim,
        "vocab_size": VOCAB,
    }
    if family == "granite":
        metadata |= {
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "attention.scale": config.attention_multiplier,
            "logit_scale": config.logits_scaling,
        }
    writer = gguf.GGUFWriter(path, family)
    for key, value in (metadata | dict(extra or {})).items():
        if key in omit:
            continue
        full = key if key.startswith("tokenizer.") else f"{family}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        else:
            writer.add_uint32(full, value)
    for key, array in (gguf_tensors(family, model) if tensors is None else tensors).items():
        if array.ndim == 2 and encoding in ("q4_0", "q4_1", "q8_0"):
            kind = gguf.GGMLQuantizationType[encoding.upper()]
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(
                key, array.astype(np.float16) if array.ndim == 2 and encoding == "f16" else array
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(tensors: Mapping[str, np.ndarray[Any, Any]], encoding: str) -> dict[str, np.ndarray[Any, Any]]:
    """Every matrix as it comes back from `encoding`."""
    return {
        key: np.asarray(StoredTensor.from_array(array, encoding).decode(), dtype=np.float32)
        if array.ndim == 2
        else array
        for key, array in tensors.items()
    }
