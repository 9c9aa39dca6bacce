"""Small models of our own making: a llama that speaks bytes (a GGUF file), and a classifier of colours."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

from tensure.program import Entry, Model, Program, StoredTensor, Value, name, op

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, CONTEXT = 2, 32, 4, 2, 48, 64
VOCAB = 260
BOS, EOS = 256, 257
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(extra)) for byte in range(256)]


def write_small_gguf(path: Path, seed: int = 1, template: str | None = TEMPLATE) -> Path:
    """A random llama with a byte tokenizer, written by the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": WIDTH // HEADS,
        "vocab_size": VOCAB,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", [*byte_alphabet(), "<s>", "</s>", "th", "he"])
    writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3, 3, 1, 1])
    writer.add_array("tokenizer.ggml.merges", ["t h", "h e"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", BOS)
    writer.add_uint32("tokenizer.ggml.eos_token_id", EOS)
    if template is not None:
        writer.add_string("tokenizer.chat_template", template)
    draw = np.random.default_rng(seed)
    head = WIDTH // HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_HEADS * head, WIDTH),
        "attn_v": (KV_HEADS * head, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    tensors = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{key}.weight": shape for key, shape in shapes.items()}
        tensors |= {f"blk.{layer}.{key}_norm.weight": (WIDTH,) for key in ("attn", "ffn")}
    for key, shape in tensors.items():
        noise = draw.standard_normal(shape).astype(np.float32)
        writer.add_tensor(key, noise if len(shape) == 2 else 1 + 0.1 * noise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def classifier(num_classes: int = 4, size: int = 8) -> Model:
    """Logits of the mean colour of an image: linear(mean(x)), with labels and an image recipe."""
    program = Program(
        {},
        {
            "x": Value((1, 3, size, size)),
            "w": Value((num_classes, 3), role="weight"),
            "b": Value((num_classes,), role="weight"),
        },
        {},
        {
            "run": Entry(
                (name("x"),),
                (
                    op("mean", "x", out="m", dim=[2, 3], keepdim=False),
                    op("linear", "m", "w", "b", out="out"),
                ),
                (name("out"),),
            )
        },
    )
    draw = np.random.default_rng(5)
    weights = {
        "w": StoredTensor.from_array(draw.standard_normal((num_classes, 3)).astype(np.float32), "f32"),
        "b": StoredTensor.from_array(draw.standard_normal(num_classes).astype(np.float32), "f32"),
    }
    image = {"size": size, "crop": 1.0, "mean": [127.0] * 3, "std": [128.0] * 3}
    assets = {
        "image.json": json.dumps(image).encode(),
        "labels.json": json.dumps([f"colour {index}" for index in range(num_classes)]).encode(),
    }
    return Model("colours", program, weights, assets, "made by a test")
