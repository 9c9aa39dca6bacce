"""A GGUF file -> Model: llama (SmolLM2 too), granite, qwen2 and qwen3.

Knows: the metadata keys that describe a decoder, which tensor is which weight, and that the "llama" and
"granite" conversions reorder query and key rows so that a rotary pair lies side by side. The Program then
rotates adjacent elements and the blocks stay as they lie in the file: reordering quantised rows is never
needed. Does not know the container (`_gguf.py`), the tokenizer's rebuilding (`_gguf_tokenizer.py`) nor the
arithmetic (`_decoder.py`). No torch.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `llama-arch.cpp`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, TensureError, UnsupportedError

from ._decoder import (
    DecoderConfig,
    RopeLayout,
    RopeScaling,
    choose_context,
    decoder_program,
    rope_frequencies,
)
from ._decoder_weights import place_weights
from ._gguf import GgufFile, MetadataValue, read_gguf
from ._gguf_tokenizer import chat_template, text_config, tokenizer_json
from ._model import Model
from ._weights import StoredTensor

__all__ = ["GgufFile", "from_gguf", "read_gguf"]

_EMBED, _HEAD, _FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_PATTERNS: Final[Mapping[str, str]] = {
    "embed": _EMBED,
    "norm": "output_norm.weight",
    "head": _HEAD,
    "attn_norm": "blk.{}.attn_norm.weight",
    **{key: f"blk.{{}}.attn_{key}.weight" for key in "qkv"},
    "o": "blk.{}.attn_output.weight",
    **{f"{key}_bias": f"blk.{{}}.attn_{key}.bias" for key in "qkv"},
    **{f"{key}_norm": f"blk.{{}}.attn_{key}_norm.weight" for key in "qk"},
    "ffn_norm": "blk.{}.ffn_norm.weight",
    **{key: f"blk.{{}}.ffn_{key}.weight" for key in ("gate", "up", "down")},
}

#: Keys every architecture may have, behind its name.
_KEYS: Final = frozenset(
    {
        "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.layer_norm_rms_epsilon", "attention.value_length", "block_count", "context_length",
        "embedding_length", "feed_forward_length", "rope.dimension_count", "rope.freq_base",
        "rope.scale_linear", "rope.scaling.factor", "rope.scaling.finetuned",
        "rope.scaling.original_context_length", "rope.scaling.type", "vocab_size",
    }
)  # fmt: skip
#: Granite's four multipliers: configuration field by key.
_MULTIPLIERS: Final[Mapping[str, str]] = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
#: Keys that may be there only with a value that turns their feature off.
_OFF: Final = frozenset({"attention.sliding_window", "expert_count", "expert_used_count"})


@dataclass(frozen=True, slots=True)
class _Architecture:
    rope_layout: RopeLayout
    multipliers: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = MappingProxyType(
    {
        "llama": _Architecture("adjacent"),
        "granite": _Architecture("adjacent", multipliers=True),
        "qwen2": _Architecture("half", qkv_bias=True),
        "qwen3": _Architecture("half", qk_norm=True),
    }
)


def from_gguf(path: str | os.PathLike[str], *, context: int | None = None, name: str | None = None) -> Model:
    """The model in a GGUF file, its weights the file's own mapped bytes.

    f16 and bf16 tensors stand in the Program as f32 and decode to it, exactly, from bytes kept narrow
    (`_decoder_weights.py`); everything else is used in place.

    Args:
        path: the file.
        context: positions of the KV cache; at most what the model was made for, 2,048 at most by default.
        name: what to call the model; the file's name without its ending by default.

    Raises:
        UnsupportedError: an architecture, key or setting we do not implement, by name.
        FormatError: the file breaks its format; a tensor is missing, misshapen or left over.
        LimitError, InputError: as `read_gguf`. All name file and place.
    """
    found = read_gguf(path)
    try:
        return _model(found, context, name or Path(found.path).stem)
    except TensureError as error:
        raise error.at(found.path) from None


def _model(found: GgufFile, context: int | None, name: str) -> Model:
    config = _config(found)
    length = choose_context(context, config.context)
    program = decoder_program(config, length)
    frequencies = rope_frequencies(config)
    factors = found.tensors.get(_FACTORS)
    if factors is not None:
        frequencies = _stretched(frequencies, factors)
    weights = place_weights(
        program,
        found.tensors,
        _PATTERNS,
        generated={"inv_freq": StoredTensor.from_array(frequencies, "f32")},
        used=(_FACTORS,),
        file=found.path,
    )
    return Model(name, program, weights, _assets(found.metadata, config, length), found.path)


def _config(found: GgufFile) -> DecoderConfig:
    keys = _Keys(found.metadata)
    kind = _ARCHITECTURES[keys.architecture]
    keys.check(kind)
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    embed = found.tensors.get(_EMBED)
    if embed is None or len(embed.shape) != 2:
        raise FormatError(
            "missing or no matrix", place=f"tensor {_EMBED!r}", wanted=f"vocabulary by {width} values"
        )
    head_dim = keys.whole("attention.key_length", width // heads if width % heads == 0 else None)
    keys.agree("attention.value_length", head_dim)
    keys.agree("rope.dimension_count", head_dim)
    keys.agree("vocab_size", embed.shape[0])
    return DecoderConfig(
        layers=keys.whole("block_count"),
        width=width,
        heads=heads,
        kv_heads=keys.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=keys.whole("feed_forward_length"),
        vocab=embed.shape[0],
        context=keys.whole("context_length"),
        rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_layout=kind.rope_layout,
        rope_scaling=_scaling(keys),
        tied=_HEAD not in found.tensors,
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        # All four must be stated: one overlooked leaves a model that babbles plausibly.
        **{field: keys.number(key) for key, field in _MULTIPLIERS.items() if kind.multipliers},
    )


def _scaling(keys: _Keys) -> RopeScaling | None:
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        # An old spelling of linear scaling.
        factor = keys.number("rope.scale_linear", 1.0)
        return None if factor == 1.0 else RopeScaling("linear", factor)
    if kind != "linear":
        raise UnsupportedError(
            f"rope scaling {kind[:40]!r}", place=keys.place("rope.scaling.type"), wanted="none or linear"
        )
    return RopeScaling("linear", keys.number("rope.scaling.factor"))


def _stretched(freq: npt.NDArray[np.float32], factors: StoredTensor) -> npt.NDArray[np.float32]:
    """Frequencies over the file's own factors: how Llama 3's scaling is stored."""
    place = f"tensor {_FACTORS!r}"
    if factors.encoding != "f32" or factors.shape != freq.shape:
        raise FormatError(
            f"{factors.encoding}{list(factors.shape)}", place=place, wanted=f"f32{list(freq.shape)}"
        )
    divisors = np.asarray(factors.decode(), dtype=np.float32)
    if not bool(((divisors >= 1e-6) & (divisors <= 1e6)).all()):
        raise FormatError("a factor outside 1e-6 to 1e6", place=place)
    return np.asarray(freq / divisors, dtype=np.float32)


def _assets(metadata: Mapping[str, MetadataValue], config: DecoderConfig, length: int) -> dict[str, bytes]:
    """The text side's files; none where the file carries no tokenizer."""
    kind = metadata.get("tokenizer.ggml.model", "none")
    if isinstance(kind, str) and kind in ("none", "no_vocab"):
        return {}
    text = text_config(metadata)
    if text["vocab_size"] > config.vocab:
        raise FormatError(
            f"{text['vocab_size']} tokens for an embedding of {config.vocab} rows",
            place="key 'tokenizer.ggml.tokens'",
            wanted="a row for each token",
        )
    assets = {
        "tokenizer.json": tokenizer_json(metadata),
        "text.json": json.dumps({**text, "context_length": length}, sort_keys=True).encode(),
    }
    template = chat_template(metadata)
    return assets if template is None else {**assets, "chat_template.jinja": template.encode()}


class _Keys:
    """An architecture's own metadata keys, typed."""

    __slots__ = ("architecture", "metadata")

    def __init__(self, metadata: Mapping[str, MetadataValue]) -> None:
        found = metadata.get("general.architecture")
        if not isinstance(found, str) or found not in _ARCHITECTURES:
            raise UnsupportedError(
                f"architecture {str(found)[:80]!r}",
                place="key 'general.architecture'",
                wanted=" ".join(_ARCHITECTURES),
            )
        self.architecture = found
        self.metadata = metadata

    def check(self, kind: _Architecture) -> None:
        """Every key behind the architecture's name is one we read."""
        known = _KEYS | (_MULTIPLIERS.keys() if kind.multipliers else frozenset[str]())
        for key, value in self.metadata.items():
            own = key.removeprefix(f"{self.architecture}.")
            if own == key or own in known:
                continue
            if own not in _OFF:
                raise UnsupportedError(
                    "a key we do not know, which might change the model", place=f"key {key[:120]!r}"
                )
            if type(value) not in (int, bool) or value != 0:
                raise UnsupportedError(f"{str(value)[:40]}", place=f"key {key!r}", wanted="0: not in use")

    def place(self, key: str) -> str:
        return f"key '{self.architecture}.{key}'"

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if type(value) is not int or value < 1:
            raise self._bad(key, value, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A float as its writer meant it: 1e-05 where the file's float32 is 9.99999975e-06."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if type(value) not in (int, float) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise self._bad(key, value, "a positive finite number")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, str):
            raise self._bad(key, value, "a text")
        return value

    def agree(self, key: str, want: int) -> None:
        """A number that only says again what is known."""
        if self.whole(key, want) != want:
            raise self._bad(key, self.metadata.get(f"{self.architecture}.{key}"), str(want))

    def _bad(self, key: str, value: object, wanted: str) -> FormatError:
        found = f"{str(value)[:40]}" if value is not None else "the key is missing"
        return FormatError(found, place=self.place(key), wanted=wanted)
