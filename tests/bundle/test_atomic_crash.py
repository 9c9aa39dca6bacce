"""A crash at every write point of `_atomic`: afterwards a reader sees the old folder, the new one, or none.

Three ways to crash: *clean* (the call never happens), *torn* (it half happens), and *lost power*, replayed on
a model of the disk in which everything not yet fsynced may be missing, in any combination. The same on
writers with a planted fault must be red, or this test could not fail.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensure.bundle import _atomic, _folder
from tensure.bundle._atomic import write_directory, write_file_atomic
from tensure.bundle._folder import open_bundle, write_bundle
from tensure.bundle._keys import SigningKey
from tensure.errors import DamageError, FormatError
from tensure.program._weights import StoredTensor

Tree = dict[str, bytes]
Writer = Callable[[Path, Tree], None]

OLD: Tree = {"a": b"old a" * 7, "sub/b": b"old b", "sub/gone": b"only old"}
NEW: Tree = {"a": b"new a" * 9, "sub/b": b"new b" * 5, "sub2/c": b"c", "empty": b""}
ROOT = 0


class Crash(BaseException):
    """The process is gone: nothing may be written after this, not even by clean-up code."""


@dataclass
class Disk:
    """Inodes by number: a folder maps names to numbers, a file holds bytes."""

    nodes: dict[int, dict[str, int] | bytearray] = field(default_factory=lambda: {ROOT: {}})

    def folder(self, node: int) -> dict[str, int]:
        found = self.nodes[node]
        assert isinstance(found, dict)
        return found

    def tree(self, node: int | None, prefix: str = "") -> Tree | None:
        if node is None:
            return None
        found = self.nodes[node]
        if isinstance(found, bytearray):
            return {prefix: bytes(found)}
        whole: Tree = {}
        for name, inner in found.items():
            whole |= self.tree(inner, f"{prefix}/{name}" if prefix else name) or {}
        return whole

    def load(self, path: Path, node: int = ROOT) -> None:
        for entry in path.iterdir():
            number = self.add({} if entry.is_dir() else bytearray(entry.read_bytes()))
            self.folder(node)[entry.name] = number
            if entry.is_dir():
                self.load(entry, number)

    def add(self, content: dict[str, int] | bytearray) -> int:
        number = len(self.nodes)
        self.nodes[number] = content
        return number

    def apply(self, kind: str, *args: Any) -> None:
        """One step; on a disk that lost earlier steps it may find nothing to do."""
        if kind == "link":
            parent, name, node = args
            self.folder(parent)[name] = node
        elif kind == "write":
            node, at, data = args
            content = self.nodes[node]
            assert isinstance(content, bytearray)
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(data)] = data
        elif kind == "remove":
            parent, name = args
            self.folder(parent).pop(name, None)
        elif kind in ("move", "exchange"):
            source, old, target, new = args
            moved, other = self.folder(source).pop(old, None), self.folder(target).get(new)
            if moved is not None:
                self.folder(target)[new] = moved
            if kind == "exchange" and other is not None:
                self.folder(source)[old] = other


class FaultyOs:
    """Stands in for `os` inside `_atomic`: counts, records and breaks every call that writes."""

    PASSES = frozenset(
        "O_RDONLY O_WRONLY O_CREAT O_EXCL O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_NONBLOCK O_TRUNC PathLike "
        "fspath fsencode strerror stat fstat stat_result listdir geteuid close".split()
    )

    def __init__(
        self, root: Path, crash_at: int | None = None, torn: bool = False, synced: bool = True
    ) -> None:
        self.crash_at, self.torn, self.synced = crash_at, torn, synced
        self.crashed, self.count = False, 0
        self.start = Disk()
        self.start.load(root)
        self.live = copy.deepcopy(self.start)
        # (kind, the inode whose fsync makes the step last, arguments)
        self.steps: list[tuple[str, int, tuple[Any, ...]]] = []
        self.fds: dict[int, int] = {}
        self.offsets: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        # A new way of writing must be modelled here before it may be used.
        if name not in self.PASSES:
            raise AttributeError(f"os.{name} is not modelled")
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        parent = None if dir_fd is None else self.fds[dir_fd]
        known = None if parent is None else self.live.folder(parent).get(str(path))
        if flags & os.O_CREAT and known is None:
            assert parent is not None
            fd: int = self._do(lambda: os.open(path, flags, mode, dir_fd=dir_fd), tears=True)
            known = self._new(parent, str(path), bytearray())
        else:
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            if flags & os.O_TRUNC and known is not None:
                self.live.nodes[known] = bytearray()
        self.fds[fd], self.offsets[fd] = ROOT if known is None else known, 0
        return fd

    def write(self, fd: int, data: Any) -> int:
        piece = bytes(data[: len(data) // 2 + 1])  # more writes than needed: more points to crash at
        written: int = self._do(lambda: os.write(fd, piece), lambda: os.write(fd, piece[: len(piece) // 2]))
        node, at = self.fds[fd], self.offsets[fd]
        self.offsets[fd] += written
        self._record("write", node, node, at, piece)
        return written

    def fsync(self, fd: int) -> None:
        self._do(lambda: None)
        if self.synced:
            self._record("fsync", self.fds[fd])

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int) -> None:
        self._do(lambda: os.mkdir(path, mode, dir_fd=dir_fd), tears=True)
        self._new(self.fds[dir_fd], path, {})

    def unlink(self, path: str, *, dir_fd: int) -> None:
        self._do(lambda: os.unlink(path, dir_fd=dir_fd), tears=True)
        self._record("remove", self.fds[dir_fd], self.fds[dir_fd], path)

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        self._do(lambda: os.rmdir(path, dir_fd=dir_fd), tears=True)
        self._record("remove", self.fds[dir_fd], self.fds[dir_fd], path)

    def rename(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._do(lambda: os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd), tears=True)
        source, target = self.fds[src_dir_fd], self.fds[dst_dir_fd]
        self._record("move", target, source, src, target, dst)

    def link(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        self._do(
            lambda: os.link(
                src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
            ),
            tears=True,
        )
        target = self.fds[dst_dir_fd]
        self._record("link", target, target, dst, self.live.folder(self.fds[src_dir_fd])[src])

    def renameat2(self, src_fd: int, src: str, dst_fd: int, dst: str, flags: int) -> None:
        self._do(lambda: REAL_RENAMEAT2(src_fd, src, dst_fd, dst, flags), tears=True)
        source, target = self.fds[src_fd], self.fds[dst_fd]
        self._record("exchange" if flags == 2 else "move", target, source, src, target, dst)

    def _do(self, call: Callable[[], Any], tear: Callable[[], Any] | None = None, tears: bool = False) -> Any:
        if self.crashed:
            raise Crash
        if self.count == self.crash_at:
            self.crashed = True
            if self.torn and tear is not None:
                tear()
            elif self.torn and tears:
                call()
            raise Crash
        self.count += 1
        return call()

    def _record(self, kind: str, keeper: int, *args: Any) -> None:
        self.steps.append((kind, keeper, args))
        self.live.apply(kind, *args)

    def _new(self, parent: int, name: str, content: dict[str, int] | bytearray) -> int:
        node = self.live.add(copy.copy(content))
        self.start.nodes[node] = copy.copy(
            content
        )  # exists, but nothing leads to it until its link is applied
        self._record("link", parent, parent, name, node)
        return node

    def after_power_loss(self, seed: int) -> Iterator[Disk]:
        """At each point, disks that lost unsynced steps: all of them, none, each alone, and samples."""
        rng = random.Random(seed)
        for end in range(len(self.steps) + 1):
            loose = [i for i in range(end) if self.steps[i][0] != "fsync" and not self._is_kept(i, end)]
            losses = [set(loose), set[int](), *({i} for i in loose)]
            losses += [{i for i in loose if rng.random() < share} for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
            for lost in losses:
                disk = copy.deepcopy(self.start)
                for index in range(end):
                    if index not in lost:
                        disk.apply(self.steps[index][0], *self.steps[index][2])
                yield disk

    def _is_kept(self, step: int, end: int) -> bool:
        keeper = self.steps[step][1]
        return any(kind == "fsync" and node == keeper for kind, node, _ in self.steps[step:end])


REAL_RENAMEAT2 = _atomic._renameat2


def in_its_place(patch: pytest.MonkeyPatch, faulty: FaultyOs) -> None:
    patch.setattr(_atomic, "os", faulty)
    patch.setattr(_atomic, "_renameat2", faulty.renameat2)


def put(folder: Path, tree: Tree) -> None:
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def whole(target: Path, tree: Tree) -> None:
    """The writer under test."""
    with write_directory(target, replace=True) as writer:
        for path, data in tree.items():
            writer.write(path, [data])


def in_place(target: Path, tree: Tree) -> None:
    """A fault: writes where readers look, however diligently it syncs."""
    faulty = _atomic.os
    parent = faulty.open(target.parent, os.O_RDONLY)
    if not target.exists():
        faulty.mkdir(target.name, dir_fd=parent)
    root = faulty.open(target.name, os.O_RDONLY, dir_fd=parent)
    for path, data in tree.items():
        folder = root
        if "/" in path:
            head, path = path.split("/")
            if not (target / head).exists():
                faulty.mkdir(head, dir_fd=root)
            folder = faulty.open(head, os.O_RDONLY, dir_fd=root)
        file = faulty.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=folder)
        _atomic._write_all(file, data)
        faulty.fsync(file)
        faulty.fsync(folder)
    faulty.fsync(root)
    faulty.fsync(parent)


def crashes(base: Path, writer: Writer, old: Tree | None) -> tuple[int, int]:
    """(crashes tried, bad states seen) over every write point, clean and torn, in this process."""
    tried = bad = 0
    for torn in (False, True):
        point = 0
        while True:
            place = base / f"{torn}-{point}"
            place.mkdir()
            if old is not None:
                put(place / "target", old)
            with pytest.MonkeyPatch.context() as patch:
                in_its_place(patch, FaultyOs(place, point, torn))
                try:
                    writer(place / "target", NEW)
                    break  # past the last point
                except Crash:
                    pass
            disk = Disk()
            disk.load(place)
            tried += 1
            bad += disk.tree(disk.folder(ROOT).get("target")) not in (old, NEW)
            if writer is whole:
                with pytest.MonkeyPatch.context() as patch:
                    in_its_place(patch, FaultyOs(place))  # spares the real disk its fsyncs
                    whole(place / "target", NEW)
                assert [p.name for p in place.iterdir()] == ["target"], (
                    "the next writer leaves nothing behind"
                )
            point += 1
    return tried, bad


def power_losses(base: Path, writer: Writer, old: Tree | None, synced: bool = True) -> tuple[int, int]:
    """(disks tried, bad states seen) with unsynced steps missing."""
    base.mkdir()
    if old is not None:
        put(base / "target", old)
    faulty = FaultyOs(base, synced=synced)
    with pytest.MonkeyPatch.context() as patch:
        in_its_place(patch, faulty)
        writer(base / "target", NEW)
    real = Disk()
    real.load(base)
    assert faulty.live.tree(ROOT) == real.tree(ROOT), "the model saw every write"
    states = [disk.tree(disk.folder(ROOT).get("target")) for disk in faulty.after_power_loss(seed=0)]
    return len(states), sum(state not in (old, NEW) for state in states)


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replace"])
def test_no_crash_leaves_a_bad_folder(tmp_path: Path, old: Tree | None) -> None:
    tried, bad = crashes(tmp_path, whole, old)
    assert tried > 50
    assert bad == 0


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replace"])
def test_no_power_loss_leaves_a_bad_folder(tmp_path: Path, old: Tree | None) -> None:
    tried, bad = power_losses(tmp_path / "disk", whole, old)
    assert tried > 300
    assert bad == 0


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replace"])
def test_an_in_place_writer_is_caught(tmp_path: Path, old: Tree | None) -> None:
    """Negative control."""
    tried, bad = crashes(tmp_path, in_place, old)
    assert bad > tried // 2
    assert power_losses(tmp_path / "disk", in_place, old)[1] > 0


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replace"])
def test_a_writer_that_does_not_sync_is_caught(tmp_path: Path, old: Tree | None) -> None:
    """Negative control for the replay: only lost power shows a missing fsync."""
    assert power_losses(tmp_path / "disk", whole, old, synced=False)[1] > 0


def test_no_crash_leaves_a_bad_file(tmp_path: Path) -> None:
    """`write_file_atomic`, replacing: old or new bytes, never anything else."""
    for torn in (False, True):
        for point in range(100):
            place = tmp_path / f"{torn}-{point}"
            place.mkdir()
            (place / "file").write_bytes(b"old")
            with pytest.MonkeyPatch.context() as patch:
                in_its_place(patch, FaultyOs(place, point, torn))
                try:
                    write_file_atomic(place / "file", b"the new bytes", replace=True)
                    break
                except Crash:
                    pass
            assert (place / "file").read_bytes() in (b"old", b"the new bytes")
        assert point > 4


def test_no_crash_leaves_a_bad_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through `write_bundle`, read by `open_bundle`: nothing there, or all of it verifies."""
    key = SigningKey.generate()
    weights = {"w": StoredTensor((40,), "u8", np.arange(40, dtype=np.uint8))}

    def seal(place: Path) -> None:
        write_bundle(place / "b", name="b", program=b"p", weights=weights, plans={"h": b"l"}, key=key)

    # The library signs from the real disk, which no crash point changes: sign once and use it again.
    (tmp_path / "signed").mkdir()
    seal(tmp_path / "signed")
    signature = (tmp_path / "signed" / "b" / "model.sig").read_bytes()
    monkeypatch.setattr(_folder, "sign_folder", lambda folder, key: signature)
    verdicts: dict[str, int] = {"none": 0, "whole": 0, "bad": 0}
    for torn in (False, True):
        for point in range(1000):
            place = tmp_path / f"{torn}-{point}"
            place.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                in_its_place(patch, FaultyOs(place, point, torn))
                try:
                    seal(place)
                    break
                except Crash:
                    pass
            try:
                assert open_bundle(place / "b", [key.public]).check_all() == []
                verdicts["whole"] += 1
            except FormatError:
                verdicts["none"] += not (place / "b").exists()
                verdicts["bad"] += (place / "b").exists()
            except DamageError:
                verdicts["bad"] += 1
    assert verdicts["bad"] == 0
    assert verdicts["none"] > 60
    assert verdicts["whole"] > 0
