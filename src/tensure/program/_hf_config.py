"""A model folder's JSON files, read through allow-lists: the decoder's numbers and the text side's ids.

Knows: the config.json keys of Llama, Granite, Qwen2 and Qwen3, old and new spellings, what each may hold, and
which keys mean nothing to arithmetic. A key that stands on no list is refused by name, because a number we
overlook changes every logit. A key that asks for code to be run, or that sets an option of a library's
insides, is refused at any depth: no file decides what is trusted (CVE-2026-4372, CVE-2026-5241,
CVE-2026-22807, CVE-2025-66448). Does not know weights, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tensure.errors import FormatError, UnsupportedError

from ._decoder import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, DecoderConfig, RopeScaling

__all__ = ["chat_template", "decoder_config", "refuse_code", "text_config"]

Json = Mapping[str, Any]

_KEY, _NEXT = "key {!r}", "Delete the key from a copy of the file if it is not needed"

#: Keys that ask for code or for a library's insides.
_CODE: Final = frozenset(
    {
        "auto_map", "trust_remote_code", "code_revision", "custom_pipelines", "attn_implementation",
        "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
        "_experts_implementation_internal", "use_kernels", "kernel_config", "allow_all_kernels",
    }
)  # fmt: skip

#: Read elsewhere or by nobody: they change no logit.
_HARMLESS: Final = frozenset(
    {
        "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
        "eos_token_id", "id2label", "initializer_range", "is_llama_config", "label2id", "max_window_layers",
        "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type",
        "return_dict", "torch_dtype", "transformers.js_config", "transformers_version", "use_cache",
    }
)  # fmt: skip

#: Keys that may stand there with exactly these values: others would be another model.
_FIXED: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1, None),
        "sliding_window": (None,),
        "use_sliding_window": (False,),
        "use_mrope": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    }
)

_SIZES: Final = frozenset(
    {
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
        "rope_theta", "rope_scaling", "rope_parameters", "layer_types",
    }
)  # fmt: skip
_MULTIPLIERS: Final = frozenset(
    {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"}
)


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture adds to the common keys, and what it is by itself."""

    keys: frozenset[str] = frozenset()
    qkv_bias: bool = False
    qk_norm: bool = False
    needs_head_dim: bool = False


_FAMILIES: Final[Mapping[str, _Family]] = MappingProxyType(
    {
        "LlamaForCausalLM": _Family(),
        "GraniteForCausalLM": _Family(_MULTIPLIERS),
        "Qwen2ForCausalLM": _Family(qkv_bias=True),
        # Its class default is 128 whatever the width: an unstated size would be a guess.
        "Qwen3ForCausalLM": _Family(qk_norm=True, needs_head_dim=True),
    }
)


def refuse_code(found: Any, *, underscores: bool = True) -> None:
    """Refuse a document that asks for code to be run or sets a library's insides, at any depth.

    Args:
        found: parsed JSON, its depth already bounded.
        underscores: whether keys that begin with an underscore are let through.

    Raises:
        UnsupportedError: such a key, by its path.
    """
    stack: list[tuple[str, Any]] = [("", found)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, dict):
            for key, value in item.items():
                inner = f"{path}.{key}" if path else str(key)
                if key in _CODE or (key.startswith("_") and not underscores):
                    raise UnsupportedError(
                        "the file asks for code or sets a library's insides",
                        place=_KEY.format(inner[:120]),
                        wanted="a model that is data only",
                        next_step=_NEXT,
                    )
                stack.append((inner, value))
        elif isinstance(item, list):
            stack.extend((f"{path}[{at}]", value) for at, value in enumerate(item))


def decoder_config(found: Any) -> DecoderConfig:
    """The decoder a config.json describes.

    Raises:
        UnsupportedError: an unknown key or architecture, or a setting we do not implement; by name.
        FormatError: a value of the wrong type. RecordError: a number out of range.
    """
    if not isinstance(found, dict):
        raise FormatError("the configuration is no object", wanted="an object")
    refuse_code(found, underscores=False)
    family = _family(found)
    _check_keys(found, family)
    width = _whole(found, "hidden_size", MAX_WIDTH)
    heads = _whole(found, "num_attention_heads", MAX_WIDTH)
    layers = _whole(found, "num_hidden_layers", MAX_LAYERS)
    _check_layer_types(found, layers)
    theta, scaling = _rope(found)
    return DecoderConfig(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=_whole(found, "num_key_value_heads", MAX_WIDTH, heads),
        head_dim=_head_dim(found, family, width, heads),
        ffn=_whole(found, "intermediate_size", MAX_WIDTH),
        vocab=_whole(found, "vocab_size", MAX_VOCAB),
        context=_whole(found, "max_position_embeddings", MAX_CONTEXT),
        rms_eps=_number(found, "rms_norm_eps"),
        rope_theta=theta,
        rope_layout="half",
        rope_scaling=scaling,
        tied=_flag(found, "tie_word_embeddings", False),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        **{key: _number(found, key) for key in sorted(family.keys & _MULTIPLIERS)},
    )


def text_config(config: Json, generation: Json, tokenizer: Json, *, context: int) -> dict[str, Any]:
    """What text.json holds, from config.json, generation_config.json and tokenizer_config.json.

    `eos_ids` are generation_config.json's where it names any. `add_bos` stays out unless
    tokenizer_config.json sets it: tokenizer.json's own post-processor decides then.
    """
    vocab = _whole(config, "vocab_size", MAX_VOCAB)
    found: dict[str, Any] = {}
    for out, key in (("bos_id", "bos_token_id"), ("pad_id", "pad_token_id")):
        ids = _ids(generation, key, vocab) or _ids(config, key, vocab)
        found[out] = ids[0] if ids else None
    found["eos_ids"] = _ids(generation, "eos_token_id", vocab) or _ids(config, "eos_token_id", vocab)
    if "add_bos_token" in tokenizer and tokenizer["add_bos_token"] is not None:
        found["add_bos"] = _flag(tokenizer, "add_bos_token", False) and found["bos_id"] is not None
    return found | {"context_length": context, "vocab_size": vocab}


def chat_template(tokenizer: Json) -> str | None:
    """tokenizer_config.json's chat template, the one called "default" of several, or None."""
    template: Any = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[0].get("template") if len(named) == 1 else template
    if template is not None and not isinstance(template, str):
        raise FormatError(
            f"a {type(template).__name__}", place=_KEY.format("chat_template"), wanted="a text, or a default"
        )
    return template or None


def _family(found: Json) -> _Family:
    named: Any = found.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or str(named[0]) not in _FAMILIES:
        raise UnsupportedError(
            f"architecture {str(named)[:80]}",
            place=_KEY.format("architectures"),
            wanted=f"one of {', '.join(_FAMILIES)}",
        )
    model_type = named[0].removesuffix("ForCausalLM").lower()
    if found.get("model_type") != model_type:
        raise UnsupportedError(
            f"model type {str(found.get('model_type'))[:80]!r}",
            place=_KEY.format("model_type"),
            wanted=f"{model_type!r}, as {named[0]} has",
        )
    return _FAMILIES[named[0]]


def _check_keys(found: Json, family: _Family) -> None:
    for key, value in found.items():
        if key in _FIXED:
            _check_fixed(found, key, value)
        elif key not in _SIZES and key not in _HARMLESS and key not in family.keys:
            raise UnsupportedError(
                "a key we do not know, which might change the model",
                place=_KEY.format(key[:120]),
                next_step=_NEXT,
            )


def _check_fixed(found: Json, key: str, value: Any) -> None:
    if key == "sliding_window" and found.get("use_sliding_window") is False:
        return  # Qwen2 states a window that it does not use
    # `type` too: JSON's 1 would pass for true.
    if not any(value == want and type(value) in (type(want), float) for want in _FIXED[key]):
        wanted = " or ".join(str(want) for want in _FIXED[key])
        raise UnsupportedError(f"{str(value)[:80]!r}", place=_KEY.format(key), wanted=wanted)


def _check_layer_types(found: Json, layers: int) -> None:
    kinds: Any = found.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * layers:
        raise UnsupportedError(
            f"{str(kinds)[:80]}", place=_KEY.format("layer_types"), wanted=f"full_attention {layers} times"
        )


def _head_dim(found: Json, family: _Family, width: int, heads: int) -> int:
    if found.get("head_dim") is not None or family.needs_head_dim:
        return _whole(found, "head_dim", MAX_WIDTH)
    if width % heads:
        raise FormatError(
            f"hidden_size {width} over {heads} heads", place=_KEY.format("head_dim"), wanted="head_dim stated"
        )
    return width // heads


def _rope(found: Json) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    new: Any = found.get("rope_parameters")
    old: Any = found.get("rope_scaling")
    if new is not None and old is not None:
        raise FormatError("rope_parameters beside rope_scaling", wanted="one of them")
    label, rope = ("rope_parameters", new) if new is not None else ("rope_scaling", old)
    theta = _number(found, "rope_theta", 10000.0)  # every family's class default
    if rope is None:
        return theta, None
    if not isinstance(rope, dict):
        raise FormatError(f"a {type(rope).__name__}", place=_KEY.format(label), wanted="an object")
    if "rope_theta" in rope:
        inner = _number(rope, "rope_theta", at=f"{label}.")
        if "rope_theta" in found and inner != theta:
            raise FormatError(f"rope_theta {theta} and {inner}", place=_KEY.format(label), wanted="one base")
        theta = inner
    kind = _rope_kind(rope, label)
    reads: dict[str, tuple[str, Callable[..., Any]]] = {}
    if kind in ("linear", "llama3"):
        reads["factor"] = ("factor", _number)
    if kind == "llama3":
        reads["low_freq_factor"] = ("low_freq_factor", _number)
        reads["high_freq_factor"] = ("high_freq_factor", _number)
        reads["original_max_position_embeddings"] = ("original_context", _positive)
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value == 1:
            continue
        if key not in reads and key not in ("rope_theta", "rope_type", "type"):
            raise UnsupportedError(
                f"a key we do not know for rope type {kind!r}", place=_KEY.format(f"{label}.{key}"[:120])
            )
    if kind == "default":
        return theta, None
    numbers = {field: read(rope, key, at=f"{label}.") for key, (field, read) in reads.items()}
    return theta, RopeScaling("linear" if kind == "linear" else "llama3", **numbers)


def _rope_kind(rope: Json, label: str) -> str:
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3") or rope.get("type", kind) != kind:
        raise UnsupportedError(
            f"rope type {str(kind)[:40]!r}", place=_KEY.format(label), wanted="default, linear or llama3"
        )
    return str(kind)


def _whole(found: Json, key: str, most: int, default: int | None = None, at: str = "") -> int:
    value: Any = found.get(key)
    if value is None:
        value = default
    # `type` and not `isinstance`: JSON's true would pass for 1.
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(
            f"{str(value)[:40]}" if value is not None else "the key is missing",
            place=_KEY.format(at + key),
            wanted=f"a whole number from 1 to {most}",
        )
    return value


def _positive(found: Json, key: str, at: str = "") -> int:
    return _whole(found, key, MAX_CONTEXT, at=at)


def _number(found: Json, key: str, default: float | None = None, at: str = "") -> float:
    value: Any = found.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise FormatError(
            f"{str(value)[:40]}" if value is not None else "the key is missing",
            place=_KEY.format(at + key),
            wanted="a positive finite number",
        )
    return float(value)


def _flag(found: Json, key: str, default: bool) -> bool:
    value: Any = found.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{str(value)[:40]}", place=_KEY.format(key), wanted="true or false")
    return value


def _ids(found: Json, key: str, vocab: int) -> list[int]:
    """The token ids a key names: none, one or a list, none twice."""
    value: Any = found.get(key)
    items: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if len(items) > 64 or any(type(item) is not int or not 0 <= item < vocab for item in items):
        raise FormatError(
            f"{str(value)[:80]}", place=_KEY.format(key), wanted=f"token ids from 0 to {vocab - 1}"
        )
    return list(dict.fromkeys(items))
