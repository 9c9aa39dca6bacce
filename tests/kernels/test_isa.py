"""Features beyond the instruction set: found, taken away by the environment, refused when not understood."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensure.kernels import available_isas, features, isa

CODE = """
import sys
from tensure.errors import TensureError
from tensure.kernels import features, isa
try:
    print(isa(), *features())
except TensureError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run_with(**environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    command = [sys.executable, "-c", CODE]
    return subprocess.run(
        command, env=plain | environment, capture_output=True, text=True, check=False, timeout=60
    )


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(words.split())
    return set()


def test_features_are_those_of_the_kernel_s_own_list() -> None:
    """An independent reading of cpuid: /proc/cpuinfo."""
    by_isa = {
        "v4": {"vnni": "avx512_vnni", "bf16": "avx512_bf16"},
        "v3": {"vnni": "avx_vnni"},
        "neon": {"vnni": "asimddp", "bf16": "bf16"},
    }
    for name in available_isas():
        flags = cpu_flags()
        wanted = [feature for feature, flag in by_isa.get(name, {}).items() if flag in flags]
        assert run_with(TENSURE_ISA=name).stdout.split() == [name, *wanted]


@pytest.mark.parametrize("text", ["-vnni", "-bf16", "-vnni,-bf16", "-bf16,-vnni", ""])
def test_features_can_be_taken_away(text: str) -> None:
    widest = available_isas()[-1]
    all_of_them = run_with().stdout.split()[1:]
    wanted = [name for name in all_of_them if f"-{name}" not in text.split(",")]
    assert run_with(TENSURE_FEATURES=text).stdout.split() == [widest, *wanted]


@pytest.mark.parametrize("text", ["vnni", "+vnni", "-VNNI", "-vnni -bf16", "-amx", ",", "-vnni,,-bf16"])
def test_a_word_that_is_no_feature_is_refused(text: str) -> None:
    done = run_with(TENSURE_FEATURES=text)
    assert done.returncode == 2, done
    assert text in done.stdout
    assert "wanted -vnni" in done.stdout


def test_this_process_answers_too() -> None:
    assert set(features()) <= {"vnni", "bf16"}
    assert isa() in available_isas()
