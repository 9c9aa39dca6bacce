"""Model folders: logits equal transformers', and whatever could run code or pass unnoticed is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, InputError, LimitError, RecordError, TensureError, UnsupportedError
from tensure.program import Model, _files, digest, validate_program
from tensure.program import from_hf as from_hf_file
from tensure.program._hf_config import decoder_config, text_config
from tensure.program.from_hf import from_hf

from .tiny_decoders import (
    CONTEXT,
    FAMILIES,
    LAYERS,
    MULTIPLIERS,
    TOKENS,
    edit_json,
    error_of,
    reference,
    reference_logits,
    save_folder,
    score,
)

BOUND = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each family, never written to by a test."""
    root = tmp_path_factory.mktemp("families")
    return {family: save_folder(reference(family), root / family) for family in FAMILIES}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A llama folder to spoil."""
    return Path(shutil.copytree(folders["llama"], tmp_path / "llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, folders: dict[str, Path]) -> None:
    model = from_hf(folders[family])
    model.check_weights()
    validate_program(model.program)
    assert error_of(score(model), reference_logits(reference(family))) < BOUND


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"tie_word_embeddings": False, "head_dim": 12}),
        ("llama", {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
                }
            },
        ),
        ("qwen2", {"tie_word_embeddings": True}),
        ("granite", {"tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_variants_equal_transformers(family: str, more: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(family, seed=4, **more)
    want = reference_logits(theirs)
    assert error_of(score(from_hf(save_folder(theirs, tmp_path / "model"))), want) < BOUND


def test_older_rope_spelling_is_the_same_model(folder: Path) -> None:
    before = digest(from_hf(folder).program)
    edit_json(folder / "config.json", {"rope_parameters": ..., "rope_theta": 10000, "rope_scaling": None})
    assert digest(from_hf(folder).program) == before
    scaled = {"type": "linear", "factor": 2.0}
    edit_json(folder / "config.json", {"rope_scaling": scaled})
    halved = from_hf(folder).weights["inv_freq"].decode()[0]
    assert float(halved) == 0.5


@pytest.mark.parametrize("key", MULTIPLIERS)
def test_each_granite_multiplier_matters(key: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: one multiplier a tenth off, and the comparison is red."""
    spoilt = Path(shutil.copytree(folders["granite"], tmp_path / "granite"))
    edit_json(spoilt / "config.json", {key: MULTIPLIERS[key] * 1.1})
    assert error_of(score(from_hf(spoilt)), reference_logits(reference("granite"))) > 100 * BOUND
    edit_json(spoilt / "config.json", {key: ...})
    with pytest.raises(FormatError, match=key):
        from_hf(spoilt)


@pytest.mark.parametrize(
    ("family", "tensor"),
    [
        ("qwen2", "self_attn.q_proj.bias"),
        ("qwen2", "self_attn.v_proj.bias"),
        ("qwen3", "self_attn.q_norm.weight"),
        ("qwen3", "self_attn.k_norm.weight"),
        ("llama", "input_layernorm.weight"),
    ],
)
def test_each_tensor_matters(family: str, tensor: str, folders: dict[str, Path]) -> None:
    """Negative control: the reference without one tensor's values is another model."""
    theirs = reference(family)
    with torch.no_grad():
        theirs.get_parameter(f"model.layers.0.{tensor}").mul_(0.5)
    assert error_of(score(from_hf(folders[family])), reference_logits(theirs)) > 100 * BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_stand_as_f32_and_stay_narrow_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = reference("llama", dtype=dtype)
    want = reference_logits(theirs)
    narrow = from_hf(save_folder(theirs, tmp_path / "narrow", dtype))
    narrow.check_weights()
    assert error_of(score(narrow), want) < BOUND
    wide = from_hf(save_folder(reference("llama", dtype=dtype), tmp_path / "wide"))
    assert digest(narrow.program) == digest(wide.program)
    for key, stored in wide.weights.items():
        assert narrow.weights[key].dtype == "f32"
        assert key == "inv_freq" or narrow.weights[key].data.size == stored.data.size // 2
        np.testing.assert_array_equal(narrow.weights[key].decode(), stored.decode())
    size = os.path.getsize(tmp_path / "narrow/model.safetensors")
    assert size < 0.6 * os.path.getsize(tmp_path / "wide/model.safetensors")


def test_shards_are_one_model(folders: dict[str, Path], tmp_path: Path) -> None:
    sharded = save_folder(reference("llama"), tmp_path / "sharded", shard="20KB")
    assert not (sharded / "model.safetensors").exists()
    one, other = from_hf(sharded), from_hf(folders["llama"])
    assert digest(one.program) == digest(other.program)
    for key, stored in other.weights.items():
        np.testing.assert_array_equal(one.weights[key].data, stored.data)


def test_weights_are_slices_of_the_mapped_file(folders: dict[str, Path]) -> None:
    model = from_hf(folders["llama"])
    assert not any(stored.data.flags.owndata for key, stored in model.weights.items() if key != "inv_freq")


def test_context_and_name(folder: Path) -> None:
    model = from_hf(folder)
    assert (model.program.axes["C"], model.name) == (CONTEXT, "llama")
    model = from_hf(folder, context=9, name="mine")
    assert (model.program.axes["C"], model.name) == (9, "mine")
    assert json.loads(model.assets["text.json"])["context_length"] == 9
    with pytest.raises(InputError, match=rf"wanted 1 to {CONTEXT}"):
        from_hf(folder, context=CONTEXT + 1)


def test_text_side(folder: Path) -> None:
    assets = from_hf(folder).assets
    assert assets["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert assets["chat_template.jinja"] == b"{{ messages }}"
    text = json.loads(assets["text.json"])
    assert (text["bos_id"], text["eos_ids"], "add_bos" in text) == (1, [2], False)
    edit_json(folder / "generation_config.json", {"eos_token_id": [7, 2, 7]})
    edit_json(folder / "tokenizer_config.json", {"add_bos_token": True})
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assets = from_hf(folder).assets
    text = json.loads(assets["text.json"])
    assert (text["eos_ids"], text["add_bos"], assets["chat_template.jinja"]) == ([7, 2], True, b"{{ 1 }}")
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    edit_json(folder / "tokenizer_config.json", {"chat_template": named})
    (folder / "chat_template.jinja").unlink()
    assert from_hf(folder).assets["chat_template.jinja"] == b"yes"
    (folder / "tokenizer.json").unlink()
    assert from_hf(folder).assets == {}


# --- what is refused: rows 4 to 10 of the catalogue -----------------------------------------------

_CODE = {"AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        # Row 6, CVE-2026-4372: an option of a library's insides.
        ("config.json", {"_attn_implementation_internal": "evil/kernels"}, "_attn_implementation_internal"),
        ("config.json", {"_attn_implementation": "evil/kernels"}, "_attn_implementation"),
        ("config.json", {"attn_implementation": "evil/kernels"}, "attn_implementation"),
        ("config.json", {"_anything": 1}, "_anything"),
        ("config.json", {"_name_or_path": "evil/model"}, "_name_or_path"),
        ("config.json", {"rope_parameters": {"rope_theta": 1e4, "_x": 1}}, "rope_parameters._x"),
        ("config.json", {"label2id": {"a": {"_x": 1}}}, "label2id.a._x"),
        # Row 7, CVE-2026-5241: a security flag.
        ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
        ("config.json", {"trust_remote_code": False}, "trust_remote_code"),
        ("tokenizer_config.json", {"trust_remote_code": True}, "trust_remote_code"),
        ("generation_config.json", {"trust_remote_code": True}, "trust_remote_code"),
        # Rows 8 and 9, CVE-2026-22807, CVE-2025-66448: code by reference, at any depth.
        ("config.json", {"auto_map": _CODE}, "auto_map"),
        ("config.json", {"auto_map": {}}, "auto_map"),
        ("config.json", {"transformers.js_config": {"a": [{"auto_map": _CODE}]}}, "js_config.a[0].auto_map"),
        ("config.json", {"rope_parameters": {"auto_map": _CODE}}, "rope_parameters.auto_map"),
        ("config.json", {"vision_config": {"auto_map": _CODE}}, "vision_config.auto_map"),
        ("tokenizer_config.json", {"auto_map": _CODE}, "auto_map"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"auto_map": _CODE}}}, "0.auto_map"),
        ("generation_config.json", {"auto_map": _CODE}, "auto_map"),
        ("generation_config.json", {"custom_pipelines": {}}, "custom_pipelines"),
        # What nobody reads might change the model.
        ("config.json", {"hidden_sizes": 5}, "hidden_sizes"),
        ("config.json", {"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "beta": 1}}, "beta"),
    ],
)
def test_code_and_unknown_keys_are_refused_by_name(
    folder: Path, file: str, change: dict[str, Any], named: str
) -> None:
    edit_json(folder / file, change)
    with pytest.raises(UnsupportedError) as caught:
        from_hf(folder)
    assert named in str(caught.value) and str(folder / file) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.04}),
        ("config.json", {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1}),
        ("config.json", {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
        ("config.json", {"head_dim": None, "sliding_window": None}),
        ("config.json", {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}),
        ("config.json", {"layer_types": ["full_attention"] * LAYERS}),
        ("generation_config.json", {"_from_model_config": True, "temperature": 0.6}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"0": {"content": "t0"}}, "model_max_length": 1e30},
        ),
    ],
)
def test_harmless_keys_are_read_past(folder: Path, file: str, change: dict[str, Any]) -> None:
    """Positive controls of the test above."""
    before = digest(from_hf(folder).program)
    edit_json(folder / file, change)
    assert digest(from_hf(folder).program) == before


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, UnsupportedError, "architectures"),
        ({"architectures": []}, UnsupportedError, "architectures"),
        ({"architectures": [["LlamaForCausalLM"]]}, UnsupportedError, "architectures"),
        ({"model_type": "mistral"}, UnsupportedError, "model_type"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"attention_bias": True}, UnsupportedError, "attention_bias"),
        ({"mlp_bias": 1}, UnsupportedError, "mlp_bias"),
        ({"sliding_window": 16}, UnsupportedError, "sliding_window"),
        ({"sliding_window": 16, "use_sliding_window": True}, UnsupportedError, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, UnsupportedError, "layer_types"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, UnsupportedError, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, FormatError, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1e9}}, RecordError, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, FormatError, "one of them"),
        ({"rope_theta": 5.0}, FormatError, "one base"),
        ({"hidden_size": 31}, FormatError, "embed_tokens"),
        ({"hidden_size": True}, FormatError, "hidden_size"),
        ({"hidden_size": -32}, FormatError, "hidden_size"),
        ({"hidden_size": 32.0}, FormatError, "hidden_size"),
        ({"hidden_size": ...}, FormatError, "hidden_size"),
        ({"num_hidden_layers": 1 << 40}, FormatError, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, FormatError, "model.layers.1."),
        ({"num_hidden_layers": 3}, FormatError, "model.layers.2."),
        ({"num_attention_heads": 3}, RecordError, "heads"),
        ({"head_dim": 4}, FormatError, "q_proj"),
        ({"vocab_size": 60}, FormatError, "embed_tokens"),
        ({"vocab_size": 1 << 60}, FormatError, "vocab_size"),
        ({"max_position_embeddings": 0}, FormatError, "max_position_embeddings"),
        ({"rms_norm_eps": 0}, FormatError, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, FormatError, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, FormatError, "tie_word_embeddings"),
        ({"tie_word_embeddings": False}, FormatError, "lm_head.weight"),
        ({"eos_token_id": 61}, FormatError, "eos_token_id"),
        ({"bos_token_id": [1, "2"]}, FormatError, "bos_token_id"),
    ],
)
def test_settings_are_checked(
    folder: Path, change: dict[str, Any], kind: type[TensureError], named: str
) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", change)
    with pytest.raises(kind) as caught:
        from_hf(folder)
    assert named in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("config.json", b"[]", FormatError),
        ("config.json", b"{", FormatError),
        ("config.json", b'{"a": 1, "a": 2}', FormatError),
        ("config.json", b'{"a": NaN}', FormatError),
        ("config.json", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", LimitError),
        ("config.json", b" " * (9 << 20), LimitError),
        ("config.json", b"\x80\x04", FormatError),
        ("generation_config.json", b"null", FormatError),
        ("tokenizer_config.json", b'{"chat_template": 5}', FormatError),
        ("chat_template.jinja", b"\xff", FormatError),
        ("model.safetensors", b"\x80\x04K\x01.", FormatError),
    ],
)
def test_broken_files_are_named(folder: Path, file: str, content: bytes, kind: type[TensureError]) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(kind) as caught:
        from_hf(folder)
    assert str(folder / file) in str(caught.value)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_stands_at_a_key_is_answered(
    family: str, folders: dict[str, Path], data: st.DataObject
) -> None:
    found = json.loads((folders[family] / "config.json").read_text())
    change = data.draw(st.dictionaries(st.sampled_from(sorted(found)), _ANYTHING, min_size=1, max_size=3))
    inner = st.sampled_from(["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "x"])
    if data.draw(st.booleans()):
        change["rope_parameters"] = data.draw(st.dictionaries(inner, _ANYTHING, max_size=4))
    try:
        config = decoder_config(found | change)
        text_config(found | change, {}, {}, context=config.context)
    except TensureError as error:
        assert error.exit_code == 2 and str(error)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(Path(os.environ["TENSURE_BOMB"])),)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pth", "model.pt", "rng_state.pth", "m.ckpt"])
def test_pickles_are_never_opened(
    folder: Path, tmp_path: Path, pickled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 4, 5 and 10: alone they are refused with the way out; beside good weights they are not touched."""
    boom = tmp_path / "boom"
    monkeypatch.setenv("TENSURE_BOMB", str(boom))
    (folder / pickled).write_bytes(pickle.dumps(_Bomb()))
    digest(from_hf(folder).program)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedError, match="pickled") as caught:
        from_hf(folder)
    assert pickled in str(caught.value) and "convert_checkpoint" in str(caught.value)
    assert not boom.exists()
    pickle.loads((folder / pickled).read_bytes())  # the control: this is what opening it would have done
    assert boom.exists()


def test_only_known_file_names_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("modeling_evil.py", "training_args.bin", "optimizer.pt", "README.md", "added_tokens.json"):
        (folder / name).write_text("{}")
    opened: list[str] = []
    real = _files.map_file

    def recording(path: Any, **options: Any) -> Any:
        opened.append(Path(path).name)
        return real(path, **options)

    monkeypatch.setattr(from_hf_file, "map_file", recording)
    with monkeypatch.context() as closed:
        # There is no second way to a file's bytes.
        closed.setattr("builtins.open", _refuse)
        closed.setattr("io.open", _refuse)
        from_hf(folder)
    assert sorted(opened) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"opened {args[0]}")


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_links_are_refused(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        from_hf(folder)


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        from_hf(folder / "config.json")
    with pytest.raises(InputError, match="not a folder"):
        from_hf(tmp_path / "nothing")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FormatError, match="wanted one of them"):
        from_hf(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        from_hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        from_hf(folder)


def test_a_stored_tied_head_must_be_the_embedding(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, weights)
    assert isinstance(from_hf(folder), Model)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, weights)
    with pytest.raises(FormatError, match="head differs"):
        from_hf(folder)
    save_file({**tensors, "model.layers.0.extra": TOKENS}, weights)
    with pytest.raises(FormatError, match=r"model\.layers\.0\.extra"):
        from_hf(folder)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].astype(np.int32)}, weights)
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight"):
        from_hf(folder)
