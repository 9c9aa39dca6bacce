"""Whole or not at all: what `_atomic` refuses, what it cleans, and what it leaves alone."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tensure.bundle import _atomic
from tensure.bundle._atomic import TEMPORARY_PREFIX, write_directory, write_file_atomic, write_files_atomic
from tensure.errors import InputError

STALE = TEMPORARY_PREFIX + "0123456789abcdef"


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(target: Path, data: bytes = b"x", replace: bool = False) -> None:
    with write_directory(target, replace=replace) as writer:
        writer.write("sub/file", [data])


def test_folder_appears_complete(tmp_path: Path) -> None:
    with write_directory(tmp_path / "out") as writer:
        writer.write("a", [b"1", memoryview(b"2")])
        writer.write("sub/b", [])
        assert not (tmp_path / "out").exists()
        assert writer.path.name == "out"
    assert (tmp_path / "out" / "a").read_bytes() == b"12"
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b""
    assert entries(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises((error, InputError)), write_directory(tmp_path / "out") as writer:
        writer.write("sub/a", [b"1"])
        raise error
    assert entries(tmp_path) == []


def test_existing_target_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", b"old")
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "out", b"new")
    assert (tmp_path / "out/sub/file").read_bytes() == b"old"
    write(tmp_path / "out", b"new", replace=True)
    assert (tmp_path / "out/sub/file").read_bytes() == b"new"
    assert entries(tmp_path) == ["out"]


def test_target_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"), write_directory(tmp_path / "out") as writer:
        writer.write("a", [b"ours"])
        (tmp_path / "out").mkdir()
    assert entries(tmp_path / "out") == []


def test_replacing_asks_first(tmp_path: Path) -> None:
    write(tmp_path / "out", b"precious")
    with (
        pytest.raises(InputError, match="not what it would be replaced by"),
        write_directory(tmp_path / "out", replace=True, may_replace=lambda fd: "bundle" in os.listdir(fd)),
    ):
        pass
    assert (tmp_path / "out/sub/file").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_only_a_folder_is_replaced(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "keep").write_bytes(b"keep")
    if kind == "file":
        (tmp_path / "out").write_bytes(b"keep")
    else:
        (tmp_path / "out").symlink_to("real" if kind == "link" else "nowhere")
    with pytest.raises(InputError, match="not a folder"):
        write(tmp_path / "out", replace=True)
    assert entries(tmp_path / "real") == ["keep"]


def test_no_exchange_means_no_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", b"old")

    def refuse(*args: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(_atomic, "_renameat2", refuse)
    with pytest.raises(InputError, match="cannot exchange two folders"):
        write(tmp_path / "out", b"new", replace=True)
    assert (tmp_path / "out/sub/file").read_bytes() == b"old"
    write(tmp_path / "other")  # a new folder needs no exchange
    assert entries(tmp_path) == ["other", "out"]


@pytest.mark.parametrize(
    "bad", ["/etc/x", "../x", "a//b", "", ".", ".hidden", "a/..", "a\0b", "a" * 200, "x/" * 9 + "x"]
)
def test_paths_stay_inside(tmp_path: Path, bad: str) -> None:
    with (
        pytest.raises(InputError, match="no plain relative path"),
        write_directory(tmp_path / "out") as writer,
    ):
        writer.write(bad, [b""])
    assert entries(tmp_path) == []


@pytest.mark.parametrize("target", ["/", ".", "..", "a/.."])
def test_target_needs_a_name(target: str) -> None:
    with pytest.raises(InputError, match="no last part"), write_directory(target):
        pass


def test_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file"):
        write(tmp_path / "no" / "out")


def test_stale_entries_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / STALE / "out" / "sub").mkdir(parents=True)
    (tmp_path / STALE / "out" / "sub" / "half").write_bytes(b"half")
    (tmp_path / (STALE[:-1] + "0")).write_bytes(b"half a key")
    (tmp_path / (TEMPORARY_PREFIX + "not-ours")).mkdir()
    (tmp_path / (STALE[:-1] + "1")).symlink_to(tmp_path)
    write(tmp_path / "out")
    assert entries(tmp_path) == sorted([STALE[:-1] + "1", TEMPORARY_PREFIX + "not-ours", "out"])


def test_cleaning_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep").write_bytes(b"keep")
    (tmp_path / STALE).mkdir()
    (tmp_path / STALE / "link").symlink_to(tmp_path / "precious")
    write(tmp_path / "out")
    assert entries(tmp_path) == ["out", "precious"]
    assert entries(tmp_path / "precious") == ["keep"]


def test_living_writers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / STALE).mkdir()
    fd = os.open(tmp_path / STALE, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        write(tmp_path / "one")
        assert entries(tmp_path) == [STALE, "one"]
    finally:
        os.close(fd)
    write(tmp_path / "two")
    assert entries(tmp_path) == ["one", "two"]


def test_a_killed_writer_is_cleaned_up_after(tmp_path: Path) -> None:
    """A process that dies inside the block holds its lock no more."""
    code = (
        "import os, sys\nfrom tensure.bundle._atomic import write_directory\n"
        "with write_directory(sys.argv[1]) as w:\n    w.write('a', [b'1']); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == 9
    assert len(entries(tmp_path)) == 1
    write(tmp_path / "out")
    assert entries(tmp_path) == ["out"]


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Of writers to one name exactly one wins; writers to other names do not disturb each other."""
    outcomes: list[str] = []

    def work(name: str) -> None:
        try:
            write(tmp_path / name, name.encode())
            outcomes.append(name)
        except InputError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work, args=(name,)) for name in ["same"] * 4 + ["a", "b", "c"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["a", "b", "c", "refused", "refused", "refused", "same"]
    assert entries(tmp_path) == ["a", "b", "c", "same"]


def test_a_cleaner_between_making_and_holding_costs_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may take the temporary folder before its maker can open it: the maker makes another."""
    real = os.mkdir
    taken: list[str] = []

    def make(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        if path.startswith(TEMPORARY_PREFIX) and not taken:
            taken.append(path)
            os.rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr("os.mkdir", make)
    write(tmp_path / "out")
    assert len(taken) == 1 and entries(tmp_path) == ["out"]


def test_one_file(tmp_path: Path) -> None:
    write_file_atomic(tmp_path / "f", b"1", mode=0o600)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "f").stat().st_nlink == 1
    with pytest.raises(InputError, match="exists already"):
        write_file_atomic(tmp_path / "f", b"2")
    write_file_atomic(tmp_path / "f", b"2", replace=True)
    assert (tmp_path / "f").read_bytes() == b"2"
    assert entries(tmp_path) == ["f"]


def test_one_file_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"keep")
    (tmp_path / "link").symlink_to("real")
    for replace in (False, True):
        with pytest.raises(InputError, match="exists"):
            write_file_atomic(tmp_path / "link", b"2", replace=replace)
    assert (tmp_path / "real").read_bytes() == b"keep"


def test_files_that_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_files_atomic([(one, b"1"), (two, b"2")])
    with pytest.raises(InputError, match="two: exists already"):
        write_files_atomic([(tmp_path / "new", b"1"), (two, b"3")])
    assert entries(tmp_path) == ["one", "two"]
    calls: list[int] = []

    def full_disk(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(InputError, match="No space"):
            write_files_atomic([(one, b"5"), (two, b"6")], replace=True)
    assert (one.read_bytes(), two.read_bytes(), entries(tmp_path)) == (b"1", b"2", ["one", "two"])
    write_files_atomic([(one, b"5"), (two, b"6")], replace=True)
    assert (one.read_bytes(), two.read_bytes(), entries(tmp_path)) == (b"5", b"6", ["one", "two"])


def test_a_pair_is_undone_when_its_second_name_is_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def taken(source: str, target: str, **options: int) -> None:
        if target == "two":
            (tmp_path / "two").write_bytes(b"theirs")
        real(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("os.link", taken)
    with pytest.raises(InputError, match="exists already"):
        write_files_atomic([(tmp_path / "one", b"1"), (tmp_path / "two", b"2")])
    assert entries(tmp_path) == ["two"] and (tmp_path / "two").read_bytes() == b"theirs"
