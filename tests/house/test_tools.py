"""The check scripts in tools/, each seen to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import debian, docstrings, words


@pytest.mark.parametrize("public_list", ["__init__.py", "__init__.pyi"])
def test_missing_docstrings_are_named(tmp_path: Path, public_list: str) -> None:
    room = tmp_path / "pkg"
    room.mkdir()
    (room / "__init__.py").write_text('"""Room."""\n')
    (room / public_list).write_text(
        '"""Room."""\nfrom pkg._a import f, C, K, g\n__all__ = ["f", "C", "K", "g"]\n'
    )
    (room / "_a.py").write_text(
        "def f(): return 1\n"
        'def g():\n    """Gives one."""\n'
        'class C:\n    """A thing."""\n    def m(self):\n        x = 1\n        return x\n'
        "K = 3\n"
    )
    found = "\n".join(docstrings.problems(tmp_path))
    assert "pkg/_a.py: no module docstring" in found
    assert "f is public" in found
    assert "C.m is public" in found
    assert "g is public" not in found
    assert found.count("\n") == 2


@pytest.mark.parametrize(
    "line", ["https://" + "pypi" + ".org/simple", "see /work" + "/shared/x", "<" * 7 + " HEAD"]
)
def test_forbidden_words_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.md").write_text(f"fine\n{line}\n")
    assert [found.split(": ")[0] for found in words.problems(tmp_path)] == ["a.md:2"]


def test_our_own_words_are_clean(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("pytorch.org and a happy framework\n")
    assert not list(words.problems(tmp_path))


def test_debian_list_names_only_what_is_missing() -> None:
    assert debian.missing_packages("# c\nbash bash\n\nno-such-package no-such-command-xyz\n") == [
        "no-such-package"
    ]
