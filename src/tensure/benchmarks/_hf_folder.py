"""A GGUF file of the llama architecture as a Hugging Face folder in bf16, for engines that read nothing else.

    python -m tensure.benchmarks._hf_folder MODEL.gguf FOLDER

Weights are decoded by our own readers and rounded once; there is no tokenizer: who reads it is given token
ids. Knows config.json and the safetensors format. Does not know any engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from tensure import host
from tensure.program.from_gguf import read_gguf

from ._llama_names import llama_config, reordered, their_name
from ._records import Json

__all__ = ["write_hf_folder"]


def write_hf_folder(path: str, folder: Path) -> None:
    """config.json and model.safetensors into an existing folder."""
    found = read_gguf(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        **llama_config(found),
    }
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in found.tensors.items():
        values = host.load_weights({name: stored})[name]
        tensors[their_name(name)] = reordered(name, values, heads, kv_heads).to(torch.bfloat16).contiguous()
    _write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A length (u64, little-endian), a JSON header, the bytes of bf16 tensors one after another."""
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.view(torch.int16).numpy().tobytes())


if __name__ == "__main__":
    write_hf_folder(sys.argv[1], Path(sys.argv[2]))
