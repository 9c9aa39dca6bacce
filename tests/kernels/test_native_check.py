"""native/check, a program without Python, for what this process cannot be: watched, or another processor.

It holds conv, dotconv, segment, dequantize, survey and decoder (with gemv in it) against plain loops in
double or 64-bit integers; here it is built twice. For x86-64 the sanitizers watch addresses and undefined
behaviour; for aarch64 it is static, without OpenMP, and runs under qemu. A build is kept in build/check
until a source changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tensure.kernels import available_isas

ROOT = Path(__file__).resolve().parents[2]
NATIVE, KEPT = ROOT / "native", ROOT / "build" / "check"
FAMILIES = ("conv", "dotconv", "segment", "dequantize", "gemv", "decoder", "survey")
ROUNDS = 15

#: The first to ask for a program compiles it, the others wait: minutes on two cores that do other work too.
pytestmark = pytest.mark.timeout(1500)

COMMON = ["-std=gnu++20", "-O1", "-ffp-contract=off", f"-I{NATIVE}"]
WATCHED = [
    "-fopenmp",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-sanitize=null,object-size,pointer-overflow",  # AddressSanitizer sees what these see
    "--param=asan-instrumentation-with-call-threshold=0",
]


def flags_of(isa: str) -> list[str]:
    """How family.cmake compiles a target.cc for an instruction set."""
    text = (NATIVE / "family.cmake").read_text()
    flags = re.search(rf"set\(TENSURE_ISA_{isa}_FLAGS ?([^)]*)\)", text)
    width = re.search(rf"set\(TENSURE_ISA_{isa}_BYTES (\d+)\)", text)
    assert flags and width, f"family.cmake knows no {isa}"
    defines = [f"-DTENSURE_ISA={isa}", f"-DTENSURE_VECTOR_BYTES={width[1]}"]
    return [*flags[1].split(), *defines, "-fno-exceptions", "-fno-rtti"]


def build(name: str, compiler: str, isas: tuple[str, ...], flags: list[str]) -> Path:
    """The program, compiled unless one of the same sources, flags and compiler is there."""
    if shutil.which(compiler) is None:
        pytest.fail(f"{compiler} is not installed: `make setup`, or see debian-packages.txt")
    units: list[tuple[Path, list[str]]] = [(NATIVE / "common" / "isa.cc", [])]
    units += [(path, []) for path in sorted((NATIVE / "check").glob("*.cc"))]
    for family in FAMILIES:
        plain = [path for path in sorted((NATIVE / family).glob("*.cc")) if path.name != "target.cc"]
        units += [(path, []) for path in plain]
        units += [(NATIVE / family / "target.cc", flags_of(isa)) for isa in isas]
    jobs = [[compiler, *COMMON, *flags, *more, "-c", str(path)] for path, more in units]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((jobs, version)).encode())
    for folder in ("common", "check", *FAMILIES):
        for path in sorted((NATIVE / folder).iterdir()):
            key.update(path.read_bytes())
    KEPT.mkdir(parents=True, exist_ok=True)
    program = KEPT / f"{name}-{key.hexdigest()[:16]}"
    with open(KEPT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for old in KEPT.glob(f"{name}-*"):
                old.unlink()
            objects = KEPT / f"{name}.objects"
            objects.mkdir(exist_ok=True)
            files = [str(objects / f"{i}.o") for i in range(len(jobs))]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(succeed, [[*job, "-o", file] for job, file in zip(jobs, files, strict=True)]))
            succeed([compiler, *flags, *files, "-o", str(objects / "program")])
            (objects / "program").rename(program)
            shutil.rmtree(objects)
    return program


def succeed(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"


def watched_program() -> Path:
    return build("watched", "g++", ("v2", "v3", "v4"), WATCHED)


def aarch64_program() -> Path:
    return build("aarch64", "aarch64-linux-gnu-g++", ("neon",), ["-static"])


def run(program: Path, *words: str, isa: str = "", emulator: str = "") -> subprocess.CompletedProcess[str]:
    if emulator and shutil.which(emulator) is None:
        pytest.fail(f"{emulator} is not installed: `make setup`, or see debian-packages.txt")
    command = [*([emulator] if emulator else []), str(program), *words]
    env = {key: value for key, value in os.environ.items() if key != "TENSURE_ISA"}
    if isa:
        env["TENSURE_ISA"] = isa
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def bits_of(done: subprocess.CompletedProcess[str], isa: str, rounds: int) -> dict[str, str]:
    """What each geometry and decoder gave, once the run is seen to have compared all and found nothing."""
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    *lines, last = done.stdout.splitlines()
    counts = re.fullmatch(
        rf"{isa}: (\d+) convolutions, (\d+) moves, (\d+) steps of segments, (\d+) runs of blocks, "
        r"(\d+) of bytes, (\d+) cuts, (\d+) rows of decoders, (\d+) surveys agree",
        last,
    )
    assert counts, last
    each = (2 * 21 * rounds, 30 * (rounds // 4 + 1), 9 * 2 * rounds, 3 * rounds, 4 * rounds, 2 * rounds)
    least = (*each, rounds, 4 * rounds)
    assert all(int(found) >= wanted for found, wanted in zip(counts.groups(), least, strict=True)), last
    assert len(lines) == 2 * rounds + 1
    return {f"{words[0]} {words[1]}": words[3] for words in (line.split() for line in lines)}


@cache
def watched_bits(isa: str) -> dict[str, str]:
    return bits_of(run(watched_program(), str(ROUNDS), isa=isa), isa, ROUNDS)


X86 = [name for name in available_isas() if name.startswith("v")]


@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
def test_sanitizers_find_nothing_on_any_instruction_set_here() -> None:
    bits = {name: watched_bits(name) for name in available_isas()}
    if "v4" in bits:
        assert bits["v3"] == bits["v4"], "strict results differ between sets that have fused multiply-add"
    if "v3" in bits:
        assert bits["v2"] != bits["v3"], "the bits of v2, which rounds twice, must differ somewhere"


@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
def test_sanitizers_find_nothing_without_byte_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSURE_FEATURES", "-vnni")
    bits_of(run(watched_program(), "4"), available_isas()[-1], 4)


def test_aarch64_agrees_and_gives_the_bits_of_x86() -> None:
    done = run(aarch64_program(), str(ROUNDS), emulator="qemu-aarch64-static")
    bits = bits_of(done, "neon", ROUNDS)
    if "v3" in available_isas():
        assert bits == watched_bits("v3")


@pytest.mark.nightly
@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
def test_sanitizers_find_nothing_widely() -> None:
    for name in available_isas():
        bits_of(run(watched_program(), "1000", isa=name), name, 1000)


@pytest.mark.nightly
def test_aarch64_agrees_widely() -> None:
    bits_of(run(aarch64_program(), "300", emulator="qemu-aarch64-static"), "neon", 300)


PLANTED = {
    "weight": "plain loops give",
    "guard": "was overwritten",
    "step": "segment, convolution: element",
    "block": "encoding 0, element",
    "byte": "bytes, round 0: element",
    "share": "of its share",
    "key": "decoder, key at position 0: element",
    "layer": "decoder, position 0: logit",
    "figure": "survey, digest: round 0",
}


@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_fault_is_seen(plant: str) -> None:
    done = run(watched_program(), "2", f"--plant={plant}")
    assert done.returncode == 1
    assert PLANTED[plant] in done.stdout.splitlines()[-1]


def test_a_planted_fault_is_seen_under_emulation() -> None:
    done = run(aarch64_program(), "2", "--plant=weight", emulator="qemu-aarch64-static")
    assert done.returncode == 1
    assert PLANTED["weight"] in done.stdout.splitlines()[-1]


@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
def test_one_float_read_behind_an_input_is_seen() -> None:
    """The value goes nowhere: only the sanitizer can see this one."""
    done = run(watched_program(), "2", "--plant=read")
    assert done.returncode == 1
    assert "use-after-poison" in done.stderr


@pytest.mark.skipif(not X86, reason="not an x86-64 processor")
def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    done = run(watched_program(), "1", isa="v9")
    assert done.returncode == 2
    assert "v9" in done.stdout
