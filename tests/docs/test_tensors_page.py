"""docs/tensors.md prints what it says it prints, and the tool that says so has been seen to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tensors.md"
TOPICS = (
    "rank", "shape", "size", "axis", "dtype", "zeros(", "ones(", "full(", "arange(", "from_numpy", "slice",
    "reshape", ".T", "contiguous", "channels_last", "strides", "flatten", "broadcast", "bfloat16", "int8",
    "argmax", "softmax", "@", "Parameter", "buffer", "in-place", "alias", "jagged", "to_sparse()",
    "to_sparse_csr", "string", "Stepper", "nan", "backward", "Sequential", "keras.Model", "from_keras",
    "tensure.diff",
)  # fmt: skip


def run_tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own: Keras chooses its backend when it is first imported."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "run_page.py"), *map(str, words)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_every_example_prints_what_the_page_says() -> None:
    found = run_tool("--check", PAGE)
    assert found.returncode == 0, found.stderr


def test_the_page_treats_every_topic_and_shows_it_through_the_inspector() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [topic for topic in TOPICS if topic not in text] == []
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:-1]  # the last one names the sources
    bare = [
        section.splitlines()[0]
        for section in sections
        if "table_of(" not in section and "_lines(" not in section
    ]
    assert bare == []


def test_nothing_that_depends_on_the_machine_is_printed() -> None:
    outputs = "\n".join(re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert not re.search(r"0x[0-9a-f]{6}|/tmp|/home|\bms\b", outputs)


GOOD = """\
# One

Some words.

```python
x = 3
print(x + 1)
```

```text
4
```

```python
y = x
```

## Two

```python
print(y,   "")
print(y)
```

```text
3
3
```

```sh
never run
```
"""


def test_a_good_page_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert run_page.judged(page, write=False) == []
    assert run_page.judged(page, write=True) == []
    assert page.read_text() == GOOD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("4\n```", "5\n```"),  # another value
        ("x + 1", "x + 2"),  # another example
        ("\n```text\n4\n```\n", ""),  # no output
        ("y = x\n```\n", "y = x\n```\n\n```text\n3\n```\n"),  # an output of nothing
        ("3\n3\n", "3\n"),  # a line too few
        ("4\n```", "4 \n```"),  # a space at the end
    ],
)
def test_a_stale_page_is_found_and_put_right(tmp_path: Path, old: str, new: str) -> None:
    page = tmp_path / "page.md"
    stale = GOOD.replace(old, new)
    assert stale != GOOD
    page.write_text(stale)
    assert "out of date" in run_page.judged(page, write=False)[-1]
    assert page.read_text() == stale
    assert run_page.judged(page, write=True) == []
    assert run_page.judged(page, write=False) == []
    if "x + 2" not in stale:
        assert page.read_text() == GOOD


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("print(y)", "print(y)\nprint(1 // 0)", "page.md:23: ZeroDivisionError"),
        ("y = x", "y = = x", "page.md:15: SyntaxError"),
        ("never run\n```\n", "never run\n", "page.md:30: the block has no end"),
    ],
)
def test_an_example_that_fails_is_named_by_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    page = tmp_path / "page.md"
    broken = GOOD.replace(old, new)
    page.write_text(broken)
    assert run_page.judged(page, write=True)[0].startswith(said)
    assert page.read_text() == broken


def test_the_exit_code_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD.replace("4\n```", "5\n```"))
    assert run_page.main([str(page)]) == 1
    assert "-5\n+4" in capsys.readouterr().err
    assert run_page.main(["--write", str(page)]) == 0
    assert run_page.main(["--check", str(page)]) == 0


def test_source_lines_count_within_their_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    code = "```python\nimport sys\nf = sys._getframe()\nprint(f.f_code.co_filename, f.f_lineno)\n```\n"
    page.write_text(f"# A b: *c*!\n\n{code}\n{code}\n## D\n\n{code}")
    assert run_page.judged(page, write=True) == []
    assert re.findall(r"```text\n(.*)\n", page.read_text()) == ["a-b-c.py 3", "a-b-c.py 6", "d.py 3"]
