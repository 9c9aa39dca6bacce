"""What is left of memory, read from folders like the system's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensure.runtime._free_memory import free_memory

MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path) -> tuple[Path, Path]:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 4194304 kB\n")
    return proc, groups


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_what_the_system_says_without_groups(system: tuple[Path, Path]) -> None:
    assert free_memory(*system) == 4096 * MIB


def test_a_group_above_limits_too_and_files_in_memory_are_free(system: tuple[Path, Path]) -> None:
    proc, groups = system
    (proc / "self/cgroup").write_text("0::/outer/inner\n")
    stat = f"anon 5\ninactive_file {300 * MIB}\nactive_file {20 * MIB}"
    inner, outer = groups / "outer/inner", groups / "outer"
    group(inner, memory__max="max", memory__current=900 * MIB, memory__stat=stat)
    group(outer, memory__max=1000 * MIB, memory__current=900 * MIB, memory__stat=stat)
    assert free_memory(proc, groups) == 420 * MIB
    group(inner, memory__max=930 * MIB)
    assert free_memory(proc, groups) == 350 * MIB


def test_the_first_version_of_groups(system: tuple[Path, Path]) -> None:
    proc, groups = system
    (proc / "self/cgroup").write_text("3:cpu:/\n7:memory,hugetlb:/job\n")
    group(
        groups / "memory/job",
        memory__limit_in_bytes=600 * MIB,
        memory__usage_in_bytes=500 * MIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {50 * MIB}",
    )
    assert free_memory(proc, groups) == 150 * MIB


@pytest.mark.parametrize("broken", ["", "0::", "x", "0::/a\n\n"])
def test_what_cannot_be_read_limits_nothing(system: tuple[Path, Path], broken: str) -> None:
    proc, groups = system
    group(groups, memory__max="?", memory__current="")
    (proc / "self/cgroup").write_text(broken)
    assert free_memory(proc, groups) == 4096 * MIB
