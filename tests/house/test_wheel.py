"""`pip install .` gives a package that works: build the wheel, look inside, compute with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMPUTE = """
import sys
sys.path[:0] = [{wheel!r}, {packages!r}]
import numpy, tensure.kernels as k
assert k.__file__.startswith({wheel!r}), k.__file__
blocks = numpy.arange(34 * 5, dtype=numpy.uint8)
assert numpy.array_equal(k.dequantize("q8_0", blocks), k.dequantize_reference("q8_0", blocks))
print(k.isa())
"""


@pytest.mark.timeout(1500)  # it compiles every kernel, unoptimised, beside the other tests
def test_wheel_holds_the_package_and_computes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    settings = [
        "-C",
        f"build-dir={tmp_path / 'build'}",
        "-C",
        "cmake.build-type=Debug",
        "--wheel-dir",
        str(tmp_path),
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, *settings, str(ROOT)], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("tensure-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert names.count(f"tensure/kernels/_native{suffix}") == 1
    assert {
        "tensure/py.typed",
        "tensure/__init__.py",
        "tensure/errors.py",
        "tensure/kernels/_native.pyi",
    } <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    stray = [name for name in names if not name.startswith("tensure")]
    assert not stray, stray
    # -S: no site packages by themselves, so no editable install can step in.
    code = COMPUTE.format(wheel=str(tmp_path / "site"), packages=sysconfig.get_path("purelib"))
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
