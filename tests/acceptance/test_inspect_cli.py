"""`tensure inspect` and `tensure diff` on the command line: exit codes, one JSON object, one offline page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.acceptance.conftest import Said, Tiny, shell

CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(4, 8)
        self.b = torch.nn.Linear(8, 3)
        self.scale = scale

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) * self.scale)

def good():
    return Net(), torch.ones(2, 4)

def bad():
    return Net(3.0), torch.ones(2, 4)

def nan():
    return Net(float("nan")), torch.ones(2, 4)

def breaks():
    return Net(), torch.ones(2, 5)
"""


@pytest.fixture
def x(tiny: Tiny, tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", tiny.x)
    return tmp_path / "x.npy"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"code_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


Cli = Callable[..., Said]


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, which are no JSON."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_inspect_json_is_the_contract(cli: Cli, tiny: Tiny, x: Path) -> None:
    said = cli("inspect", tiny.bundle, "--input", x, "--digest", "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    assert found["schema"] == "tensure.inspect/1"
    ops = [step["op"] for step in found["steps"]]
    assert ops.count("linear") == 2 and ops.count("relu") == 1
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    (out,) = found["outputs"].values()
    assert by_name[out]["shape"] == [2, 3] and by_name[out]["dtype"] == "f32"
    assert by_name[out]["statistics"]["maximum"] == pytest.approx(float(tiny.wanted.max()), rel=1e-5)
    assert all(re.fullmatch("[0-9a-f]{32}", tensor["digest"]) for tensor in found["tensors"])


def test_inspect_as_text_shows_every_step(cli: Cli, tiny: Tiny, x: Path) -> None:
    said = cli("inspect", tiny.bundle, "--input", x)
    assert said.code == 0, said.err
    for word in ("linear", "relu", "2,3", "f32"):
        assert word in said.out
    assert "\x1b" not in said.out


def test_inspect_of_torch_code(cli: Cli, code: str) -> None:
    said = cli("inspect", f"{code}:good", "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    assert {"addmm", "relu", "mul"} <= {step["op"] for step in found["steps"]}
    (mul,) = [step for step in found["steps"] if step["op"] == "mul"]
    line = 1 + CODE.split("\n").index(next(line for line in CODE.split("\n") if "self.scale)" in line))
    assert mul["source"].endswith(f"{code}.py:{line}")


def test_break_on_nan(cli: Cli, code: str) -> None:
    assert cli("inspect", f"{code}:good", "--break", "nan").code == 0
    said = cli("inspect", f"{code}:nan", "--break", "nan")
    assert said.code == 1 and "mul" in said.out
    said = cli("inspect", f"{code}:nan", "--break", "nan", "--json")
    assert said.code == 1
    assert strict(said.out)["steps"][-1]["op"] == "mul"


@pytest.mark.parametrize(
    ("condition", "stops"),
    [
        ("|x|>1e4", False),
        ("|x|>0.5", True),
        ("shape=2,8", True),
        ("shape=7,7", False),
        ("name=*nothing*", False),
    ],
)
def test_break_on_size_shape_and_name(cli: Cli, code: str, condition: str, stops: bool) -> None:
    assert cli("inspect", f"{code}:good", "--break", condition).code == int(stops)


def test_stepping_from_a_script(code: str, tmp_path: Path) -> None:
    said = shell("inspect", f"{code}:good", "--step", input="n\nn\nb\nc\n", cwd=tmp_path, env=_env(tmp_path))
    assert said.code == 0, said.err
    assert "addmm" in said.out


def _env(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def test_html_is_one_offline_page(cli: Cli, tiny: Tiny, x: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = cli("inspect", tiny.bundle, "--input", x, "--html", page)
    assert said.code == 0, said.err
    text = page.read_text()
    assert text.lstrip().lower().startswith("<!doctype html")
    assert "relu" in text and "linear" in text
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]+|@import|fetch\(""", text)
    assert outside == []
    again = cli("inspect", tiny.bundle, "--input", x, "--html", page)
    assert again.code == 2 and page.read_text() == text  # not replaced unasked


def test_diff_says_equal_divergent_and_within_by_exit_code(cli: Cli, tiny: Tiny, x: Path, code: str) -> None:
    said = cli("diff", tiny.bundle, tiny.bundle, "--input", x, "--json")
    assert (said.code, strict(said.out)["kind"]) == (0, "identical")
    said = cli("diff", tiny.bundle, tiny.bundle, "--input", x, "--other-by", "reference", "--json")
    assert said.code == 0 and strict(said.out)["kind"] in {"within", "identical"}
    said = cli("diff", f"{code}:good", f"{code}:bad", "--json")
    found = strict(said.out)
    assert (said.code, found["schema"], found["kind"]) == (1, "tensure.diff/1", "divergent")
    assert found["findings"][0]["step_b"]["op"] == "mul"
    assert (found["a"], found["b"]) and found["counts"]["identical"] >= 2
    text = cli("diff", f"{code}:good", f"{code}:bad")
    assert text.code == 1 and "mul" in text.out


def test_diff_of_other_weights_names_the_weight(cli: Cli, tiny: Tiny, other_tiny: Tiny, x: Path) -> None:
    said = cli("diff", tiny.bundle, other_tiny.bundle, "--input", x)
    assert said.code == 1, (said.out, said.err)
    assert "a.weight" in said.out


def test_a_saved_recording_is_compared(cli: Cli, tiny: Tiny, x: Path, tmp_path: Path) -> None:
    saved = tmp_path / "run.trace"
    assert cli("inspect", tiny.bundle, "--input", x, "-o", saved).code == 0
    said = cli("diff", saved, tiny.bundle, "--input", x, "--json")
    assert (said.code, strict(said.out)["kind"]) == (0, "identical")
    np.save(x, tiny.x[::-1].copy())
    said = cli("diff", saved, tiny.bundle, "--input", x, "--json")
    assert said.code == 1 and strict(said.out)["findings"][0]["a"] == "x"


@pytest.mark.parametrize("verb", ["inspect", "diff"])
def test_bad_input_is_two_and_one_line(cli: Cli, verb: str, tiny: Tiny, x: Path, tmp_path: Path) -> None:
    models = [tiny.bundle] * (2 if verb == "diff" else 1)
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5), np.float32))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "cut.npy").write_bytes(x.read_bytes()[:40])
    (tmp_path / "pickle.npy").write_bytes(_pickled(tmp_path))
    nothing = tmp_path / "nothing.bundle"
    cases = [
        [*models, "--input", tmp_path / "wrong.npy"],
        [*models, "--input", tmp_path / "text.npy"],
        [*models, "--input", tmp_path / "cut.npy"],
        [*models, "--input", tmp_path / "pickle.npy"],
        [*models, "--input", tmp_path / "absent.npy"],
        [*models],
        [*models, "--input", x, "--by", "magic"],
        [*models, "--input", x, "--entry", "nothing"],
        [*models, "--input", x, "--prompt", "both"],
        [*models, "--input", x, "--plan", tmp_path / "wrong.npy"],
        [*[nothing] * len(models), "--input", x],
        [*["no.such.module:name"] * len(models), "--input", x],
    ]
    for words in cases:
        said = cli(verb, *words)
        assert said.code == 2, (words, said)
        assert said.err.strip() and "Traceback" not in said.err, (words, said.err)
    assert not (tmp_path / "ran").exists()


def _pickled(folder: Path) -> bytes:
    """A .npy of objects that makes a file when it is unpickled."""
    import io
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(folder / "ran"), "w"))

    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return held.getvalue() + pickle.dumps([Bomb()])


def test_code_that_raises_is_bad_input_and_says_where(cli: Cli, code: str) -> None:
    said = cli("inspect", f"{code}:breaks")
    assert said.code == 2, (said.out, said.err)
    assert "Traceback" not in said.err
    assert "mat1 and mat2" in said.err


def test_help_has_examples(cli: Cli) -> None:
    for verb in ("inspect", "diff"):
        said = cli(verb, "--help")
        assert said.code == 0 and f"tensure {verb} " in said.out and "Example" in said.out
