"""`tensure inspect` and `tensure diff` as a person and a script call them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensure.cli import _inspect, _not_yet, _stepping
from tensure.errors import InputError
from tensure.inspection import load_recording, save_recording, summarize, trace_from_json, watch

from .conftest import Call

CODE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x).relu()  # hidden
        return self.second(h)


def make(scale=1.0):
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.second.weight[0, 3] *= scale
    return net, torch.ones(3, 4)


def negated():
    return make(-1.0)


def with_nan():
    net, x = make()
    return net, x * float("nan")


def undefined():
    x = torch.ones(2, 3) - 1
    y = x / x  # NaN
    return (y + 1).sum()


def big():
    return (torch.full((2, 2), 50.0) * 3).sum()


def in_place():
    x = torch.zeros(4)
    y = x.view(2, 2)
    x.add_(1)
    return y.t()


def broken():
    torch.ones(3) * 2
    raise LookupError("nothing\\x1b[31m there")


def leaves():
    raise SystemExit(3)


NUMBER = 3
"""
RELU_LINE, NAN_LINE = (
    next(at for at, line in enumerate(CODE.splitlines(), 1) if mark in line) for mark in ("# hidden", "# NaN")
)


@pytest.fixture
def code(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own, named anew for each test so that none sees another's."""
    name = f"user_code_{os.getpid()}_{abs(hash(here)) % 10**9}"
    (here / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(here))
    return name


# --- the table, the summary, JSON ---


def test_a_table_of_steps_and_a_summary(call: Call) -> None:
    done = call("inspect", "image.bundle", "--input", "x.npy")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    head = lines[0].split()
    assert head[:4] == ["step", "module", "op", "out"] or head[:3] == ["step", "op", "out"]
    assert "min" in head
    assert "live" in head
    assert lines[1].split()[0] == "0"
    assert " f32[1,4] " in done.out
    assert "peak live memory:" in done.out
    assert "NaN/Inf: none" in done.out
    assert "running image.bundle" in done.err
    assert call("inspect", "image.bundle", "--input", "x.npy", "-q").err == ""


def test_json_is_the_trace(call: Call) -> None:
    done = call("inspect", "image.bundle", "--input", "photo.png", "--digest", "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    trace = trace_from_json(done.json)  # to the letter: no field more or less
    assert trace.steps
    assert all(facts.digest is not None for facts in trace.tensors.values())
    again = trace_from_json(
        call("inspect", "image.bundle", "--input", "photo.png", "--digest", "--json").json
    )
    assert [f.digest for f in again.tensors.values()] == [f.digest for f in trace.tensors.values()]
    other = trace_from_json(call("inspect", "image.bundle", "--input", "x.npy", "--digest", "--json").json)
    assert [f.digest for f in other.tensors.values()] != [f.digest for f in trace.tensors.values()]


def test_a_prompt_a_seed_and_ways_to_run(call: Call) -> None:
    assert trace_from_json(call("inspect", "model.gguf", "--prompt", "he said", "--json").json).outputs
    one = call("inspect", "image.bundle", "--seed", "1", "--digest", "--json").json
    two = call("inspect", "image.bundle", "--seed", "2", "--digest", "--json").json
    assert one["tensors"][-1]["digest"] != two["tensors"][-1]["digest"]
    for by, how in (("kernels", "our kernels"), ("reference", "numpy")):
        assert how in call("inspect", "image.bundle", "--seed", "1", "--by", by, "--json").json["how"]


def test_a_plan_by_its_file(call: Call) -> None:
    assert call("plan", "image.bundle", "-o", "host.plan.txt").code == 0
    done = call("inspect", "image.bundle", "--seed", "0", "--plan", "host.plan.txt", "--json")
    assert done.code == 0, done.err
    assert "a plan over 1 ranks" in done.json["how"]
    same = call("diff", "image.bundle", "image.bundle", "--seed", "0", "--plan", "host.plan.txt")
    assert same.code == 0, same.out + same.err


def test_code_of_ones_own_with_its_lines(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:make", "--long", "--digest")
    assert done.code == 0, done.err
    head, *rows = [line for line in done.out.splitlines() if line.startswith("  ")]
    for column in (
        "name",
        "rank",
        "device",
        "layout",
        "strides",
        "storage",
        "bytes",
        "source",
        "reads",
        "digest",
    ):
        assert column in head.split(), column
    relu = next(row for row in rows if " relu " in row)
    assert f"{code}.py:{RELU_LINE}" in relu
    assert "first.weight" in done.out
    assert re.search(r"\b[0-9a-f]{32}\b", relu)
    marked = call("inspect", f"{code}:in_place").out
    assert "in-place" in marked
    assert "alias of" in marked
    assert "permuted" in marked
    assert "written in place: by 1 steps" in marked


def test_only_some_steps(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:make", "--only", "second*")
    rows = [line.split() for line in done.out.splitlines() if line.startswith("  ")][1:]
    assert rows
    assert {row[1] for row in rows} == {"second"}
    assert "relu" in call("inspect", f"{code}:make", "--only", "second*", "--only", "re?u").out
    near = call("inspect", f"{code}:make", "--only", "secnd")
    assert near.code == 2
    assert "Did you mean 'second'" in near.err


def test_what_is_wrong_in_a_run_is_said(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:undefined")
    assert done.code == 0
    assert "NaN/Inf: first in step 2, div_2 (6 NaN @0); 3 tensors in all" in done.out
    over = call("inspect", f"{code}:big", "--limit", "100")
    assert "over the limit: 2 tensors" in over.out
    assert "over the limit" not in call("inspect", f"{code}:big", "--limit", "1e6").out


def test_a_summary_of_a_leaf_and_of_saturation(call: Call) -> None:
    document = call("inspect", "image.bundle", "--seed", "0", "--json").json
    document["tensors"][0]["statistics"]["nans"] = 2
    made = next(facts for facts in document["tensors"] if facts["step"] >= 0)
    made["quantised"] = {"scale": [0.1, 0.1], "zero_point": [0, 0], "axis": None, "saturated": 0.25}
    found = summarize(trace_from_json(document))
    assert found.nonfinite is not None
    assert found.nonfinite.step < 0
    assert [facts.name for facts in found.saturated] == [made["name"]]


# --- conditions without a terminal ---


def test_a_condition_that_is_met_exits_1(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:undefined", "--break", "op=never", "--break", "nan")
    assert done.code == 1
    assert done.out.startswith("[2] div")
    assert "break 2 (nan): div_2 has 6 NaN" in done.out
    assert f"{code}.py:{NAN_LINE}" in done.out
    found = call("inspect", f"{code}:undefined", "--break", "nan", "--json")
    assert found.code == 1
    assert found.json["stopped"] == {
        "step": 2,
        "hits": [{"break": "nan", "reason": "div_2 has 6 NaN, the first at element 0"}],
    }
    assert len(found.json["steps"]) == 3  # the rest never ran


def test_a_condition_that_is_not_met_exits_0(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:make", "--break", "nan", "--break", "|x|>1e9")
    assert done.code == 0
    assert "peak live memory" in done.out
    assert call("inspect", f"{code}:big", "--break", "|x|>100").code == 1
    assert call("inspect", f"{code}:big", "--break", "shape=*,2").code == 1
    assert call("inspect", f"{code}:make", "--break", "module=sec*").code == 1


# --- stepping, from a script ---


def test_stepping_by_a_script(call: Call, code: str) -> None:
    script = (
        "n\nn 2\nb\nw\nl 1\nbreak name=addmm*\nbreaks\nc\np\np addmm_1[0, :3]\ns\ndelete 1\nbreaks\nc\nq\n"
    )
    done = call("inspect", f"{code}:make", "--step", stdin=script)
    assert done.code == 0, done.err
    out = done.out
    status = [line for line in out.splitlines() if re.match(r"\[\d+\] ", line)]
    assert [int(line[1 : line.index("]")]) for line in status][:4] == [0, 1, 3, 2]
    assert re.match(rf"\[2\] relu +{code}\.py:12 +f32\[3,8\] min 0 max [\d.]+ mean [\d.]+ +live ", status[3])
    assert f"source  {code}.py:{RELU_LINE}" in out
    assert re.search(r"addmm_1 +f32\[3,8\] +from step 1 addmm +first", out)
    assert re.search(r"^  > 2 ", out, re.MULTILINE)
    assert "break 1: name=addmm*" in out
    assert "break 1 (name=addmm*): tensor addmm_" in out
    assert re.search(r"addmm_1\[0, :3\]  f32\[3\]\n\[ ?-?\d\.\d+, ", out)
    assert re.search(r"L2 +\d", out)
    assert "deleted: name=addmm*" in out
    assert "no conditions" in out
    assert out.rstrip().splitlines()[-2] == "the run is over"
    assert "\x1b" not in out


def test_every_command_is_known_and_helped(call: Call, code: str) -> None:
    words = [usage.split()[0].partition("[")[0] for usage, _ in _stepping.COMMANDS]
    done = call("inspect", f"{code}:make", "--step", stdin="h\n" + "".join(f"{w}\n" for w in words))
    assert "no command" not in done.out
    for usage, meaning in _stepping.COMMANDS:
        assert usage in done.out
        assert meaning in done.out


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("nxt", "did you mean 'next'?"),
        ("zzzz", "h lists them"),
        ("n x", "wanted a whole number"),
        ("n 99999999999", "wanted a whole number"),
        ("c now", "takes nothing"),
        ("break nam=x", "Did you mean 'name'"),
        ("delete 7", "no condition 7"),
        ("p nothing", "no tensor 'nothing'"),
        ("p t_0[99]", "t_0"),
        ("p t_0[a]", "the part [a]"),
        ("s t_1", "Did you mean 't_0'"),
        ("u", "wanted a whole number"),
        ("\x1b[31m", "no command"),
    ],
)
def test_wrong_commands_say_so_and_go_on(call: Call, code: str, line: str, answer: str) -> None:
    done = call("inspect", f"{code}:make", "--step", stdin=f"{line}\nw\n")
    assert done.code == 0
    assert answer in done.out
    assert "step 0 t" in done.out
    assert "\x1b" not in done.out


def test_an_empty_line_does_the_last_command_again(call: Call, code: str) -> None:
    out = call("inspect", f"{code}:make", "--step", stdin="n\n\n\n").out
    assert [line[:3] for line in out.splitlines()] == ["[0]", "[1]", "[2]", "[3]"]


def test_a_real_pipe(here: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tensure.cli", "inspect", f"{code}:undefined", "--step", "--break", "nan"],
        input="c\np div_2\n",
        capture_output=True,
        text=True,
        cwd=here,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "break 1 (nan)" in done.stdout
    assert done.stdout.count("nan") >= 7  # the condition, and six of them
    assert "h lists the commands" in done.stderr


def test_at_a_terminal_a_condition_begins_the_view(here: Path, code: str) -> None:
    """Through a pseudo-terminal: a prompt, and no exit with 1 at the condition."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tensure.cli", "inspect", f"{code}:undefined", "--break", "nan"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        cwd=here,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
    )
    os.close(theirs)
    os.write(ours, b"w\nq\n")
    shown = b""
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK)
    until = time.monotonic() + 90
    while time.monotonic() < until:
        try:
            shown += os.read(ours, 4096)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # the other side is gone
            break
        if process.poll() is not None and b"source" in shown:
            break
    assert process.wait(30) == 0
    os.close(ours)
    text = shown.decode()
    assert "break 1 (nan)" in text
    assert _stepping.PROMPT in text
    assert f"{code}.py:{NAN_LINE}" in text


# --- errors ---


def test_errors_of_the_users_code_are_theirs(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:broken")
    assert done.code == 2
    assert "the code raised LookupError: nothing" in done.err
    assert re.search(rf"{code}\.py:\d+", done.err)
    assert "Traceback" not in done.err
    assert "our fault" not in done.err
    assert "\x1b" not in done.err
    assert "Traceback" in call("inspect", f"{code}:broken", "-v").err
    assert "the code raised SystemExit: 3" in call("inspect", f"{code}:leaves").err
    assert call("diff", f"{code}:make", f"{code}:broken").code == 2
    stepped = call("inspect", f"{code}:make", "--step", "--break", "op=never", stdin="c\n")
    assert stepped.code == 0


def test_a_run_that_fails_while_it_is_stepped_through_can_still_be_looked_at(
    call: Call, here: Path, code: str
) -> None:
    (here / f"{code}.py").write_text(CODE + "\n\nclass Bad(Net):\n    def forward(self, x):\n"
                                     "        y = x + 1\n        return y @ y\n\n\n"
                                     "def bad():\n    return Bad(), torch.ones(2, 3)\n")  # fmt: skip
    done = call("inspect", f"{code}:bad", "--step", stdin="c\nb\nq\n")
    assert done.code == 2
    assert "the run stopped:" in done.out
    assert done.out.count("[0] add") >= 2
    assert "the code raised RuntimeError" in done.err


NO_BOUNDS = ("nan", "inf", "-inf", "-1")
NOT_FOR_RECORDINGS = (
    ["--input", "x.npy"],
    ["--prompt", "he"],
    ["--entry", "run"],
    ["--param", "n=3"],
    ["--by", "torch"],
    ["--by", "kernels"],
    ["--plan", "no.txt"],
    ["--seed", "0"],
    ["--limit", "3"],
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "MODEL"),
        (["inspect", "image.bundle"], "--input FILE or --prompt TEXT"),
        (["inspect", "image.bundel", "--seed", "0"], "no known model"),
        (["inspect", "image.bundle", "--input", "missing.npy"], "no such file"),
        (["inspect", "image.bundle", "--input", "x.npy", "--seed", "1"], "inputs and a seed"),
        (["inspect", "image.bundle", "--input", "x.npy", "--prompt", "a"], "one of them"),
        (["inspect", "image.bundle", "--prompt", "he"], "no tokenizer"),
        (["inspect", "model.gguf", "--prompt", ""], "the prompt is empty"),
        (["inspect", "image.bundle", "--seed", "0", "--by", "magic"], "'torch', 'kernels', 'reference'"),
        (["inspect", "image.bundle", "--seed", "0", "--break", "nam=x"], "Did you mean 'name'"),
        (["inspect", "image.bundle", "--seed", "0", "--entry", "rum"], "wanted one of run"),
        (["inspect", "image.bundle", "--seed", "0", "--param", "n"], "NAME=N"),
        (["inspect", "image.bundle", "--seed", "0", "--plan", "no.txt"], "no.txt"),
        (["inspect", "image.bundle", "--seed", "0", "-o", "x.npz"], "ends in .trace"),
        (["inspect", "image.bundle", "--seed", "0", "-o", "no/x.trace"], "mkdir -p"),
        (["inspect", "image.bundle", "--seed", "0", "--html", "out.npz"], "--force"),
        (["inspect", "image.bundle", "--seed", "0", "--step", "--json"], "one of them"),
        (["inspect", "image.bundle", "--seed", "0", "-o", "n.trace", "--break", "nan"], "one of them"),
        (["inspect", "old.trace", "--seed", "0"], "not run again"),
        *((["inspect", "old.trace", *words], f"{words[0]} cannot apply") for words in NOT_FOR_RECORDINGS),
        (["inspect", "old.trace", "--entry", "run", "--limit", "3"], "--entry, --limit cannot apply"),
        (["inspect", "missing.trace"], "no such file"),
        (["inspect", "missing.trace", "--step"], "no such file"),
        (["inspect", "missing.trace", "--break", "nan"], "no such file"),
        *((["inspect", "image.bundle", "--seed", "0", "--limit", x], "--limit") for x in NO_BOUNDS),
        (["inspect", "no_such_module_here:x"], "cannot import"),
        (["inspect", "image.bundle", "--sed", "0"], "--seed"),
        (["diff", "image.bundle"], "B"),
        (["diff", "image.bundle", "image.bundle"], "--input FILE or --prompt TEXT"),
        (["diff", "image.bundle", "image.bundle", "--seed", "0", "--rename", "x"], "A=B"),
        (["diff", "image.bundle", "image.bundle", "--seed", "0", "--rename", "no=no"], "no"),
        (["diff", "image.bundle", "image.bundle", "--seed", "0", "--rtol", "-1"], "rtol"),
        *(
            (["diff", "image.bundle", "image.bundle", "--seed", "0", option, x], option)
            for option in ("--rtol", "--atol")
            for x in NO_BOUNDS
        ),
        (["diff", "old.trace", "old.trace", "--seed", "0"], "not run again"),
        (["diff", "old.trace", "old.trace", "--entry", "run"], "--entry"),
        (["diff", "image.bundle", "image.bundle", "--seed", "0", "--other-by", "magic"], "'kernels'"),
        (["diff", "old.trace", "old.trace", "--other-by", "kernels"], "not run again"),
    ],
)
def test_bad_usage_and_bad_input_exit_2(call: Call, words: list[str], message: str) -> None:
    done = call(*words)
    assert done.code == 2, done.out + done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == "" or "--json" in words


def test_numbers_are_no_models(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:NUMBER")
    assert done.code == 2
    assert "cannot be inspected" in done.err
    assert "has no 'nobody'" in call("inspect", f"{code}:nobody").err


# --- files ---


def test_a_saved_run_is_shown_and_compared(call: Call) -> None:
    saved = call("inspect", "image.bundle", "--input", "x.npy", "-o", "new.trace", "--json")
    assert saved.code == 0, saved.err
    assert saved.json["files"] == {"trace": "new.trace"}
    assert load_recording("new.trace").values is not None
    again = call("inspect", "new.trace", "--json").json
    assert again == {key: value for key, value in saved.json.items() if key != "files"}
    assert call("diff", "new.trace", "image.bundle", "--input", "x.npy").code == 0
    assert call("diff", "new.trace", "new.trace").code == 0
    np.save("y.npy", np.full((1, 3, 8, 8), 2, np.float32))
    assert call("diff", "new.trace", "image.bundle", "--input", "y.npy").code == 1
    refused = call("inspect", "image.bundle", "--input", "x.npy", "-o", "new.trace")
    assert refused.code == 2
    assert "--force" in refused.err
    assert call("inspect", "image.bundle", "--input", "x.npy", "-o", "new.trace", "--force").code == 0


def without_clock(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "steps": [{**step, "seconds": 0} for step in document["steps"]]}


@pytest.mark.parametrize("subject", ["undefined", "with_nan", "in_place"])
@pytest.mark.parametrize("condition", ["nan", "|x|>0.5", "op=add*", "shape=*,2", "name=never"])
def test_conditions_are_asked_of_a_saved_run_as_of_one_that_runs(
    call: Call, code: str, subject: str, condition: str
) -> None:
    assert call("inspect", f"{code}:{subject}", "-o", "run.trace").code == 0
    limit = ["--limit", "1e300"]  # no counts over the condition's own number, which a saved run lacks
    live = call("inspect", f"{code}:{subject}", "--break", condition, "--digest", "--json", *limit)
    saved = call("inspect", "run.trace", "--break", condition, "--json")
    assert saved.code == live.code, saved.err
    assert without_clock(saved.json) == without_clock(live.json)
    text = call("inspect", "run.trace", "--break", "op=never", "--break", condition)
    assert text.code == live.code
    assert (f"break 2 ({condition})" in text.out) == (live.code == 1)
    assert "reading run.trace" in text.err


def test_a_saved_run_is_stepped_through(call: Call, code: str) -> None:
    script = "n\nn 2\nl\nb\nw\nbreak name=addmm*\nc\np\np addmm_1[0, :3]\ns\nc\np out\nq\n"
    live = call("inspect", f"{code}:make", "--step", "--keep", "--digest", stdin=script)
    assert call("inspect", f"{code}:make", "-o", "run.trace").code == 0
    saved = call("inspect", "run.trace", "--step", "--keep", "--digest", stdin=script)
    assert saved.code == live.code == 0, saved.err
    assert "addmm_1[0, :3]  f32[3]\n[" in saved.out
    assert "the run is over" in saved.out
    assert saved.out.splitlines() == live.out.splitlines()
    assert "(what follows was not reached yet)" in saved.out
    assert "no tensor 't_2' so far" in call("inspect", "run.trace", "--step", stdin="p t_2\n").out


def test_a_saved_run_without_values_digests_or_statistics_says_so(call: Call, code: str) -> None:
    with watch(statistics=False) as seen:
        torch.ones(2) * 2
    save_recording(seen.recording(), "bare.trace")
    stepped = call("inspect", "bare.trace", "--step", stdin="n\np\n")
    assert stepped.code == 0
    assert "the values of mul_1 were not kept" in stepped.out
    for words, message in (
        (["--keep"], "--keep"),
        (["--digest"], "--digest"),
        (["--break", "nan"], "--break nan: this recording has no statistics"),
        (["--step", "--break", "|x|>3"], "no statistics"),
    ):
        done = call("inspect", "bare.trace", *words)
        assert done.code == 2, done.out
        assert message in done.err
    assert call("inspect", "bare.trace", "--break", "op=mul").code == 1


def test_eager_code_has_no_entries(call: Call, code: str) -> None:
    for option, word in (("--entry", "run"), ("--param", "n=3")):
        done = call("inspect", f"{code}:make", option, word)
        assert done.code == 2
        assert option in done.err
        assert "eager code" in done.err
        assert option in call("diff", f"{code}:make", f"{code}:make", option, word).err


def test_a_run_without_steps(call: Call, here: Path, code: str) -> None:
    (here / f"{code}.py").write_text("def none():\n    pass\n")
    done = call("inspect", f"{code}:none")
    assert done.code == 0, done.err
    assert "step -1" not in done.out
    assert "no step ran" in done.out
    nothing = call("diff", f"{code}:none", f"{code}:none")
    assert nothing.code == 3
    assert "neither run has a tensor to pair" in nothing.out
    assert "every tensor" not in nothing.out


def test_a_page(call: Call, code: str) -> None:
    done = call("inspect", f"{code}:make", "--html", "page.html")
    assert done.code == 0, done.err
    page = Path("page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "second" in page
    assert "html: page.html" in done.err


# --- diff ---


def test_equal_runs_exit_0(call: Call, code: str) -> None:
    done = call("diff", f"{code}:make", f"{code}:make")
    assert done.code == 0, done.err
    assert "bit-identical" in done.out
    nans = call("diff", f"{code}:with_nan", f"{code}:with_nan", "--json")
    assert nans.code == 0
    assert nans.json["kind"] == "identical"


def test_the_first_divergent_tensor_is_named(call: Call, code: str) -> None:
    done = call("diff", f"{code}:make", f"{code}:negated")
    assert done.code == 1
    assert "first divergent tensor:\n  weight second.weight f32[2,8] differs" in done.out
    assert "element [0, 3]:" in done.out
    assert "bit 31 (sign); 1 differ" in done.out
    found = call("diff", f"{code}:make", f"{code}:negated", "--json")
    assert found.code == 1
    assert found.json["schema"] == "tensure.diff/1"
    assert found.json["findings"][0]["a"] == "second.weight"
    assert found.json["findings"][0]["element"]["index"] == [0, 3]
    assert len(found.out.splitlines()) == 1


def test_a_step_that_parts_shows_the_smallest_subgraph(call: Call, here: Path, code: str) -> None:
    text = CODE.replace("h = self.first(x).relu()  # hidden", "h = self.first(x).sigmoid()")
    other = f"{code}_other"
    (here / f"{other}.py").write_text(text)
    done = call("diff", f"{code}:make", f"{other}:make", "--all")
    assert done.code == 1, done.out + done.err
    assert "smallest subgraph in B:" in done.out
    assert f"{other}.py:{RELU_LINE}" in done.out


def test_our_kernels_are_within_rounding_of_torch(call: Call) -> None:
    done = call(
        "diff", "image.bundle", "image.bundle", "--input", "photo.png", "--other-by", "kernels", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["kind"] in ("identical", "within")


def test_what_cannot_be_judged_exits_3(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensure.inspection._difference.Difference.kind", property(lambda self: "unjudged"))
    assert call("diff", "image.bundle", "image.bundle", "--seed", "0").code == 3


# --- light, and no longer coming ---


def test_both_verbs_are_there(call: Call) -> None:
    assert not {"inspect", "diff"} & set(_not_yet.COMING)
    for verb in ("inspect", "diff"):
        assert "0 when" in call(verb, "--help").out.replace("or 0 when", "0 when")


def test_inputs_are_checked_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensure.api.inspect", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(InputError, match="no such file"):
        _inspect.check_inputs_of(Path("missing.npy"), None)


def test_help_loads_nothing(here: Path) -> None:
    program = (
        "import json, sys\nfrom tensure.cli import main\n"
        "for verb in ('inspect', 'diff'): main([verb, '--help'])\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich') if name in sys.modules]\n"
        "print(json.dumps(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=here, check=False
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []
