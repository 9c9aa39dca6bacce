"""A session computes what the Program means, in receipts that verify; bad input is refused before work."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensure
from tensure.bundle import Device, format_plan
from tensure.bundle._folder import open_bundle, write_bundle
from tensure.bundle._keys import load_signing_key, load_trusted_keys
from tensure.bundle._receipt import stream_claim
from tensure.errors import DamageError, EvaluationError, InputError, LimitError, NotYetError, UnsupportedError
from tensure.program import evaluate_program, format_program, tensor_digest
from tensure.receipts import Expected, verify_chain, verify_receipt
from tensure.runtime import Session
from tensure.runtime._decoder import DecoderRun

from .small_models import CONTEXT, EOS, classifier, write_small_gguf

IMAGE = np.full((1, 3, 8, 8), 0.25, np.float32)


def test_run_is_the_program(image_bundle: Path) -> None:
    model = classifier()
    draw = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    decoded = {name: tensor.decode() for name, tensor in model.weights.items()}
    expected = evaluate_program(model.program, {**decoded, "x": draw}).outputs["out"]
    with tensure.open(image_bundle) as session:
        outputs, _ = session.run({"x": draw})
        bare, _ = session.run(draw)
    np.testing.assert_allclose(outputs["out"], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(outputs["out"], bare["out"])


def test_receipt_is_for_this_run(image_bundle: Path) -> None:
    keys = load_trusted_keys()
    with tensure.open(image_bundle) as session:
        outputs, receipt = session.run(IMAGE, nonce="n-1")
        wanted = Expected(
            outputs={"out": tensor_digest(outputs["out"])},
            inputs={"x": tensor_digest(IMAGE)},
            program=session.program_digest,
            plan=session.plan_digest,
            weights=session.folder.weights_root,
            nonce="n-1",
        )
        record = verify_receipt(receipt.data, keys=keys, expected=wanted)
        assert record == receipt.record
        for change in (
            {"outputs": {"out": tensor_digest(outputs["out"] + 1)}},
            {"inputs": {"x": tensor_digest(IMAGE + 1)}},
            {"program": "sha256:" + "0" * 64},
            {"plan": "sha256:" + "0" * 64},
            {"weights": "sha256:" + "0" * 64},
            {"nonce": "n-2"},
        ):
            with pytest.raises(DamageError):
                verify_receipt(receipt.data, keys=keys, expected=dataclasses.replace(wanted, **change))


def test_receipt_says_what_is_absent_and_on_what_basis(image_bundle: Path) -> None:
    with tensure.open(image_bundle) as session:
        _, receipt = session.run(IMAGE)
    record = receipt.record
    for claim in (record.proof, record.protection, record.audits, record.repairs, record.nodes, record.nonce):
        assert claim.basis == "absent"
    assert record.outputs_basis == record.inputs.basis == "checked-now"
    assert {record.program.basis, record.plan.basis, record.weights.basis} == {"checked-at-load"}
    assert record.exactness.kind == "repeatable"
    assert record.exactness.basis == record.kernels.basis == "asserted"
    assert record.kernels.isa
    assert record.kernels.torch is None, "torch computed nothing"
    assert "segment of strict kernels" in str(record.kernels.build)
    assert record.weights.encodings == ("f32",)


def test_receipts_of_a_session_are_one_chain(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        receipts = [session.generate("a", max_tokens=2).receipt for _ in range(3)]
        other = tensure.open(text_bundle).generate("a", max_tokens=2).receipt
    assert all("decoder kernels" in str(receipt.record.kernels.build) for receipt in receipts)
    chain = verify_chain([receipt.data for receipt in receipts], keys=load_trusted_keys())
    assert [record.link.number for record in chain] == [0, 1, 2]
    with pytest.raises(DamageError):
        verify_chain([receipts[0].data, receipts[2].data], keys=load_trusted_keys())
    with pytest.raises(DamageError):
        verify_chain([receipts[0].data, other.data], keys=load_trusted_keys())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": IMAGE}, "no input 'y'"),
        ({}, "input 'x' of entry run is missing"),
        ({"x": IMAGE, "z": IMAGE}, "no input 'z'"),
        ({"x": IMAGE.astype(np.float64)}, r"is f64\[1,3,8,8\]; wanted f32\[1,3,8,8\].*astype"),
        ({"x": IMAGE[0]}, r"is f32\[3,8,8\]"),
        ({"x": IMAGE.astype(np.complex64)}, "complex64"),
        ({"x": np.array([object()])}, "object"),
        ({"x": [1, 2]}, "is a list"),
        ([1.0], "inputs are a list"),
    ],
)
def test_wrong_inputs_are_refused(image_bundle: Path, inputs: object, message: str) -> None:
    with tensure.open(image_bundle) as session, pytest.raises(InputError, match=message):
        session.run(inputs)  # type: ignore[arg-type]


def test_wrong_calls_are_refused(image_bundle: Path, text_bundle: Path) -> None:
    with tensure.open(image_bundle) as session:
        with pytest.raises(InputError, match=r"no entry 'rum'.*Did you mean 'run'"):
            session.run(IMAGE, entry="rum")
        with pytest.raises(InputError, match="unknown parameter"):
            session.run(IMAGE, params={"n": 1})
        with pytest.raises(InputError, match="nonce"):
            session.run(IMAGE, nonce="")
        with pytest.raises(UnsupportedError, match="does not generate text"):
            session.generate("hi")
    with tensure.open(text_bundle) as session, pytest.raises(UnsupportedError, match="how it reads images"):
        session.classify(np.zeros((4, 4, 3), np.uint8))


def test_parameters_follow_from_shapes(text_bundle: Path) -> None:
    tokens = np.arange(5, dtype=np.int64)
    with tensure.open(text_bundle) as session:
        whole, _ = session.run({"tokens": tokens}, entry="score", params={"pos": 0})
        last, _ = session.run({"tokens": tokens}, entry="prefill", params={"pos": 0})
        assert whole["logits"].shape[0] == 5
        np.testing.assert_allclose(whole["logits"][-1], last["logits"], rtol=1e-5, atol=1e-5)
        with pytest.raises(InputError, match="parameter 'pos' is missing"):
            session.run({"tokens": tokens}, entry="score")


def greedy(session: Session, prompt: tuple[int, ...], count: int) -> list[int]:
    """The same decoding without cache or loop: score the whole text again for each token."""
    ids = list(prompt)
    for _ in range(count):
        scored, _ = session.run({"tokens": np.asarray(ids, np.int64)}, entry="score", params={"pos": 0})
        ids.append(int(scored["logits"][-1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_generation_is_greedy_decoding(
    text_bundle: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("tensure.runtime._decoder.PREFILL_CHUNK", chunk)
    with tensure.open(text_bundle) as session:
        answer = session.generate("he said", max_tokens=12)
        pieces = list(answer)
        assert list(answer.tokens) == greedy(session, answer.prompt_tokens, 12)
    assert "".join(pieces) == answer.text
    assert answer.finish_reason in ("length", "eos")
    assert answer.timing.num_prompt == len(answer.prompt_tokens)


def test_generation_repeats_bit_for_bit_and_follows_its_seed(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        one, two, three = (
            session.generate("a", max_tokens=10, temperature=1.0, seed=seed) for seed in (7, 7, 8)
        )
        # Interleaved: two texts in the making share no state.
        for left, right in zip(one, two, strict=True):
            assert left == right
        assert one.tokens == two.tokens != three.tokens


def test_generation_receipt_is_for_tokens_and_text(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        answer = session.generate("the", max_tokens=6, nonce="abc")
        record = answer.receipt.record
    assert {out.name: str(out.digest) for out in record.outputs} == {
        name: tensor_digest(array) for name, array in answer.outputs.items()
    }
    assert answer.outputs["text"].tobytes().decode() == answer.text
    assert record.stream == stream_claim(token.to_bytes(8, "little") for token in answer.tokens)
    assert record.sampling.tokens == len(answer.tokens)
    assert record.nonce.value == "abc"
    assert answer.receipt is answer.receipt


def test_stop_strings_never_show(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        free = session.generate("a", max_tokens=30, raw=True, temperature=1.0, seed=3)
        text = free.text
        stop = text[4:7]  # several tokens: each makes a byte
        assert len(stop) == 3
        held = session.generate("a", max_tokens=30, raw=True, temperature=1.0, seed=3, stop=[stop])
        shown = "".join(held)
    assert held.finish_reason == "stop"
    assert shown == text[: text.index(stop)]
    assert held.tokens == free.tokens[: len(held.tokens)]
    assert len(held.tokens) < len(free.tokens)


def test_context_is_checked_before_any_work(text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(DecoderRun, "__init__", unwanted)
    with tensure.open(text_bundle) as session:
        with pytest.raises(
            LimitError, match=rf"10 prompt tokens and up to {CONTEXT} new ones make {CONTEXT + 10}"
        ):
            session.generate("0123456789", max_tokens=CONTEXT, raw=True)
        with pytest.raises(LimitError, match="Shorten the prompt"):
            session.generate("x" * (CONTEXT + 1), max_tokens=1, raw=True)


def test_the_whole_context_can_be_used(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        answer = session.generate("0123456789", max_tokens=CONTEXT - 10, raw=True, temperature=1.0, seed=1)
        assert len(answer.tokens) == CONTEXT - 10 or answer.finish_reason == "eos"


def test_chat_template_and_raw_differ(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session:
        text = session._text_side.tokenizer
        chat = session.generate("hi", max_tokens=1, system="be brief")
        listed = session.generate(
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}], max_tokens=1
        )
        assert text.decode(chat.prompt_tokens) == "<system>be brief<user>hi>"
        assert chat.prompt_tokens == listed.prompt_tokens
        assert text.decode(session.generate("hi", max_tokens=1, raw=True).prompt_tokens) == "hi"
        with pytest.raises(InputError, match="raw with"):
            session.generate("hi", raw=True, system="no")
        with pytest.raises(InputError, match="empty"):
            session.generate("", raw=True)
        with pytest.raises(InputError, match="stop is one text"):
            session.generate("hi", stop="x")
        with pytest.raises(LimitError):
            session.generate("hi", max_tokens=0)


def test_nan_logits_are_an_error_and_leave_no_receipt(home: Path) -> None:
    model = tensure.load(write_small_gguf(home / "nan.gguf"))
    weights = dict(model.weights)
    poisoned = weights["norm"].decode().copy()
    poisoned[3] = np.nan
    weights["norm"] = type(weights["norm"]).from_array(poisoned, "f32")
    bundle = tensure.seal(dataclasses.replace(model, weights=weights), home / "nan.bundle")
    with tensure.open(bundle) as session:
        answer = session.generate("a", max_tokens=4)
        with pytest.raises(EvaluationError, match="token 0"):
            list(answer)
        with pytest.raises(EvaluationError, match="failed before its end"):
            _ = answer.receipt


def test_damaged_weights_stop_the_run(home: Path) -> None:
    bundle = tensure.seal(classifier(), home / "damaged.bundle")
    with tensure.open(bundle) as session:  # opened first: weights are checked when they are loaded
        weights = bundle / "weights" / "weights.bin"
        data = bytearray(weights.read_bytes())
        data[5] ^= 1
        weights.write_bytes(data)
        with pytest.raises(DamageError, match=r"weights\.bin.*block 0"):
            session.run(IMAGE)


@pytest.mark.parametrize("kind", ["two ranks", "another op"])
def test_other_plans_are_not_yet(home: Path, kind: str) -> None:
    model = classifier()
    plan = tensure.plan(model)
    track = plan.tracks["host"]
    if kind == "two ranks":
        changed = dataclasses.replace(
            plan, mesh={"tp": 2}, tracks={"host": dataclasses.replace(track, axes=("tp",))}
        )
    else:
        body = track.bodies["run"]
        changed = dataclasses.replace(
            plan, tracks={"host": dataclasses.replace(track, bodies={"run": (*body, body[1])})}
        )
    target = home / f"{kind.replace(' ', '-')}.bundle"
    write_bundle(
        target,
        name="colours",
        program=format_program(model.program).encode(),
        weights=model.weights,
        key=load_signing_key(),
        plans={"host": format_plan(changed).encode()},
    )
    with pytest.raises(NotYetError, match="host plan"):
        Session(open_bundle(target, load_trusted_keys()))


def test_a_plan_on_a_named_device_runs(home: Path) -> None:
    model = classifier()
    fleet = tensure.Fleet({"pi": Device({"f32": 1e9}, 1 << 30)})
    bundle = tensure.seal(model, home / "pi.bundle", plans={"attic": tensure.plan(model, fleet)})
    with tensure.open(bundle) as session:
        assert session.plan_name == "attic"
        assert session.run(IMAGE)[0]["out"].shape == (1, 4)
    with pytest.raises(InputError, match=r"no plan 'atic'.*Did you mean 'attic'"):
        tensure.open(bundle, plan="atic")


def test_a_generation_that_nobody_holds_makes_no_further_token(text_bundle: Path) -> None:
    """Without waiting for the garbage collector: its stream would take a row of everybody's steps."""
    with tensure.open(text_bundle) as session:
        generation = session.generate("a", max_tokens=12)
        next(generation)
        (engine,) = session._engines.values()
        assert engine.stats.running == 1
        gc.disable()
        try:
            del generation
            engine.step()
        finally:
            gc.enable()
        assert engine.stats.running == 0 and engine.stats.pages_used == 0


def test_a_closed_generation_has_no_receipt(text_bundle: Path) -> None:
    with tensure.open(text_bundle) as session, session.generate("a", max_tokens=12) as generation:
        next(generation)
        generation.close()
        for name in ("text", "tokens", "finish_reason", "receipt", "timing", "outputs"):
            with pytest.raises(EvaluationError, match="closed"):
                getattr(generation, name)


@pytest.mark.parametrize("setting", [{"mode": "quick"}, {"cache_bits": 5}])
def test_an_engine_that_is_none_is_refused_at_once(text_bundle: Path, setting: dict[str, Any]) -> None:
    with tensure.open(text_bundle) as session, pytest.raises(InputError, match=next(iter(setting))):
        session.generate("a", **setting)
