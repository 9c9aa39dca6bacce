"""A folder as model hubs publish it -> Model: config.json, safetensors, tokenizer.json.

Knows: which files of such a folder are read, by name, and which tensor is which weight. Opens nothing else:
no pickle under any name, no Python file, no link that leads out of the folder. Does not know the decoder's
arithmetic (`_decoder.py`) nor what a configuration may say (`_hf_config.py`). No torch, no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError

from ._decoder import choose_context, decoder_program, rope_frequencies
from ._decoder_weights import place_weights
from ._files import map_file
from ._hf_config import chat_template, decoder_config, refuse_code, text_config
from ._json_door import parse_json
from ._model import Model
from ._safetensors import parse_safetensors, read_sharded
from ._weights import StoredTensor

__all__ = ["from_hf"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER, _TOKENIZER_CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

MAX_JSON_BYTES: Final = 8 << 20
MAX_TOKENIZER_BYTES: Final = 64 << 20
MAX_TEMPLATE_BYTES: Final = 1 << 20
#: Endings under which pickles are published.
_PICKLES: Final = (".bin", ".pth", ".pt", ".pt2", ".ckpt", ".pkl", ".pickle")

_LAYER: Final = "model.layers.{}."
_PATTERNS: Final[Mapping[str, str]] = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": _LAYER + "input_layernorm.weight",
    **{key: f"{_LAYER}self_attn.{key}_proj.weight" for key in "qkvo"},
    **{f"{key}_bias": f"{_LAYER}self_attn.{key}_proj.bias" for key in "qkv"},
    **{f"{key}_norm": f"{_LAYER}self_attn.{key}_norm.weight" for key in "qk"},
    "ffn_norm": _LAYER + "post_attention_layernorm.weight",
    **{key: f"{_LAYER}mlp.{key}_proj.weight" for key in ("gate", "up", "down")},
}


def from_hf(
    directory: str | os.PathLike[str], *, context: int | None = None, name: str | None = None
) -> Model:
    """The model in a folder: Llama, SmolLM2, Granite, Qwen2 or Qwen3, weights mapped where they lie.

    bf16 and f16 weights stand in the Program as f32 and decode to it, exactly, from bytes kept narrow
    (`_decoder_weights.py`). Settings of security are never taken from the folder.

    Args:
        directory: holds config.json and model.safetensors, or its shards with their index.
        context: positions of the KV cache; at most what the model was made for, 2,048 at most by default.
        name: what to call the model; the folder's name by default.

    Raises:
        UnsupportedError: an architecture, key or setting we do not implement, code, pickled weights.
        FormatError: a file breaks its format; a tensor is missing, misshapen or left over.
        LimitError, InputError: a file is too large or cannot be opened. All name file and place.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError("not a folder", file=folder, wanted="a folder with config.json")
    found = _required_config(folder)
    generation = _json(folder, _GENERATION)
    tokenizer = _json(folder, _TOKENIZER_CONFIG)
    where = folder / _CONFIG
    try:
        config = decoder_config(found)
        length = choose_context(context, config.context)
        text = text_config(found, generation, tokenizer, context=length)
    except TensureError as error:
        raise error.at(where) from None
    tensors, origin = _tensors(folder)
    program = decoder_program(config, length)
    weights = place_weights(
        program,
        tensors,
        _PATTERNS,
        generated={"inv_freq": StoredTensor.from_array(rope_frequencies(config), "f32")},
        used=_redundant(tensors, config.layers, config.tied, origin),
        file=origin,
    )
    assets = _text_assets(folder, tokenizer, text)
    return Model(name or folder.resolve().name or "model", program, weights, assets, os.fspath(folder))


def _required_config(folder: Path) -> Mapping[str, Any]:
    if not os.path.lexists(folder / _CONFIG):
        raise InputError(f"no {_CONFIG} in the folder", file=folder, wanted="a model folder")
    return _json(folder, _CONFIG)


def _tensors(folder: Path) -> tuple[Mapping[str, StoredTensor], str]:
    """The weights and the file that speaks for them."""
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if os.path.lexists(whole) and os.path.lexists(index):
        raise FormatError(f"{_WEIGHTS} beside {_INDEX}", file=folder, wanted="one of them")
    if os.path.lexists(whole):
        data = map_file(whole, follow_symlinks=False)
        return parse_safetensors(data, os.fspath(whole)).tensors, os.fspath(whole)
    if os.path.lexists(index):
        _link_free(index)
        return read_sharded(index), os.fspath(index)
    pickled = sorted(entry for entry in os.listdir(folder) if entry.endswith(_PICKLES))
    if pickled:
        raise UnsupportedError(
            f"the weights are pickled: {pickled[0][:80]}",
            file=folder,
            wanted=_WEIGHTS,
            next_step="Convert them with tensure.program.from_checkpoint.convert_checkpoint(path, out), "
            "which opens them in a confined process",
        )
    raise InputError("no weights in the folder", file=folder, wanted=f"{_WEIGHTS} or {_INDEX}")


def _redundant(tensors: Mapping[str, StoredTensor], layers: int, tied: bool, file: str) -> list[str]:
    """Tensors that say again what is known: a tied head, and the frequencies that old conversions stored."""
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(layers)]
    head, embed = tensors.get(_PATTERNS["head"]), tensors.get(_PATTERNS["embed"])
    if tied and head is not None and embed is not None:
        if head.encoding != embed.encoding or head.shape != embed.shape or not _same_bytes(head, embed):
            raise FormatError(
                "the head differs from the embedding, though they are tied",
                file=file,
                place=f"tensor {_PATTERNS['head']!r}",
                wanted="equal tensors, or tie_word_embeddings false",
            )
        names.append(_PATTERNS["head"])
    return names


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    return one.data.data == other.data.data


def _text_assets(folder: Path, tokenizer: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, bytes]:
    """The text side's files; none where the folder has no tokenizer.json."""
    raw = _bytes(folder, _TOKENIZER, MAX_TOKENIZER_BYTES)
    if raw is None:
        return {}
    assets = {_TOKENIZER: raw, "text.json": json.dumps(text, sort_keys=True).encode()}
    template = _bytes(folder, _TEMPLATE, MAX_TEMPLATE_BYTES)
    if template is not None:
        try:
            template.decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                "not valid UTF-8", file=folder / _TEMPLATE, place=f"byte {error.start}"
            ) from None
    else:
        try:
            stated = chat_template(tokenizer)
        except TensureError as error:
            raise error.at(folder / _TOKENIZER_CONFIG) from None
        template = stated.encode() if stated is not None else None
    return assets if template is None else {**assets, _TEMPLATE: template}


def _json(folder: Path, name: str) -> dict[str, Any]:
    """One of the folder's small JSON files, free of code; empty where it is not there."""
    raw = _bytes(folder, name, MAX_JSON_BYTES)
    if raw is None:
        return {}
    try:
        found = parse_json(raw, max_bytes=MAX_JSON_BYTES, max_depth=12, max_items=1 << 17, floats=True)
        if not isinstance(found, dict):
            raise FormatError(f"a {type(found).__name__}", wanted="an object")
        refuse_code(found)
    except TensureError as error:
        raise error.at(folder / name) from None
    return found


def _bytes(folder: Path, name: str, most: int) -> bytes | None:
    path = folder / name
    if not os.path.lexists(path):
        return None
    data = map_file(path, follow_symlinks=False)
    if data.size > most:
        raise LimitError(f"{data.size} bytes", file=path, wanted=f"at most {most}")
    return data.tobytes()


def _link_free(path: Path) -> None:
    if path.is_symlink():
        raise InputError("cannot open: it is a symbolic link", file=path, wanted="a readable regular file")
