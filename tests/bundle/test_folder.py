"""Bundles: what is sealed is what opens, and a bundle with any byte changed does not open."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensure.bundle import _folder, _manifest, _opening
from tensure.bundle._atomic import TEMPORARY_PREFIX
from tensure.bundle._blocks import BLOCK_BYTES
from tensure.bundle._folder import (
    Bundle,
    Damage,
    find_damage,
    open_bundle,
    write_bundle,
)
from tensure.bundle._json import canonical_json
from tensure.bundle._keys import SigningKey
from tensure.bundle._signing import sign_folder
from tensure.errors import DamageError, FormatError, InputError, UnsupportedError
from tensure.program._weights import StoredTensor

KEY = SigningKey.generate()
TEXTS = {
    "plans": {"host": b"plan host\n", "edge-3": b"plan edge\n"},
    "fleets": {"lab": b"fleet"},
    "proofs": {"host": b""},
    "assets": {"tokenizer.json": b"{}", "labels.json": b"[]"},
}


def tensor(num_bytes: int, seed: int = 0) -> StoredTensor:
    data = np.frombuffer(np.random.default_rng(seed).bytes(num_bytes), np.uint8)
    return StoredTensor((num_bytes,), "u8", data)


SMALL = {"a.weight": tensor(70), "b/bias": tensor(3, 1), "empty": tensor(0), "z": tensor(65, 2)}


def seal(target: Path, weights: Mapping[str, StoredTensor] = SMALL, replace: bool = False) -> Path:
    write_bundle(
        target, name="tiny", program=b"program\n", weights=weights, key=KEY, replace=replace, **TEXTS
    )
    return target


def opened(target: Path) -> Bundle:
    return open_bundle(target, [KEY.public], check_weights="now")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal(tmp_path_factory.mktemp("small") / "tiny")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blocks of weights: `a` in 0 to 2, `b` in 2 and 3, `c` in 3, `d` in 4."""
    sizes = {"a": 2 * BLOCK_BYTES + 100, "b": BLOCK_BYTES, "c": 1000, "d": BLOCK_BYTES}
    return seal(
        tmp_path_factory.mktemp("large") / "many", {n: tensor(s, i) for i, (n, s) in enumerate(sizes.items())}
    )


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


# --- round trips --------------------------------------------------------------------------------------------


def test_what_is_sealed_opens(small: Path) -> None:
    folder = opened(small)
    assert (folder.name, folder.program) == ("tiny", b"program\n")
    assert {s: dict(getattr(folder, s)) for s in TEXTS} == TEXTS
    assert sorted(folder.weights) == sorted(SMALL)
    for name, stored in SMALL.items():
        found = folder.weights[name]
        assert (found.shape, found.encoding) == (stored.shape, stored.encoding)
        assert np.array_equal(found.data, stored.data)
        assert not found.data.flags.writeable
        assert not found.data.size or found.data.ctypes.data % 64 == 0
    assert folder.key == KEY.public
    assert folder.check_all() == []
    assert find_damage(small, [KEY.public]) == []


def test_sealing_twice_gives_the_same_digest(small: Path, tmp_path: Path) -> None:
    again = seal(tmp_path / "other-name", dict(reversed(SMALL.items())))
    assert opened(again).digest == opened(small).digest


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20),
        st.tuples(
            st.sampled_from(["f32", "f16", "bf16", "i8", "u8", "i64"]),
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
        ),
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_any_weights_round_trip(
    tmp_path: Path, kinds: dict[str, tuple[str, tuple[int, ...]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (encoding, shape) in kinds.items():
        size = _manifest.encoded_nbytes(encoding, shape)
        weights[name] = StoredTensor(shape, encoding, np.frombuffer(rng.bytes(size), np.uint8))
    target = seal(tmp_path / "out", weights, replace=True)
    folder = opened(target)
    assert {n: (t.shape, t.encoding, t.data.tobytes()) for n, t in folder.weights.items()} == {
        n: (t.shape, t.encoding, t.data.tobytes()) for n, t in weights.items()
    }


def test_the_weights_root_covers_name_shape_encoding_and_bytes(tmp_path: Path) -> None:
    data = np.arange(16, dtype=np.uint8)
    roots = {
        opened(
            seal(tmp_path / "out", {name: StoredTensor(shape, encoding, values)}, replace=True)
        ).weights_root
        for name, shape, encoding, values in [
            ("a", (16,), "u8", data),
            ("b", (16,), "u8", data),
            ("a", (4, 4), "u8", data),
            ("a", (16,), "i8", data),
            ("a", (16,), "u8", data[::-1].copy()),
            ("a", (16,), "u8", data.copy()),
        ]
    }
    assert len(roots) == 5


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_bundle(
        tmp_path / "o",
        name="o",
        program=b"",
        weights=SMALL,
        key=KEY,
        progress=lambda d, t: seen.append((d, t)),
    )
    assert seen[-1][0] == seen[-1][1] == (tmp_path / "o/weights/weights.bin").stat().st_size
    seen.clear()
    folder = open_bundle(tmp_path / "o", [KEY.public])
    folder.check_all(lambda d, t: seen.append((d, t)))
    assert seen[-1][0] == seen[-1][1]


# --- one flipped byte ---------------------------------------------------------------------------------------


def flips(folder: Path, skip: frozenset[str] = frozenset()) -> Iterator[tuple[Path, int]]:
    """Every byte of every file, one bit flipped (a different one from byte to byte), and put back after."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in skip):
        data = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for at, byte in enumerate(data):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << at % 8]), at)
                yield path, at
                os.pwrite(file.fileno(), bytes([byte]), at)


def survivors(folder: Path, skip: frozenset[str] = frozenset()) -> list[tuple[str, int]]:
    """Flips that open, or whose refusal does not name the file and its block."""
    found = []
    for path, at in flips(folder, skip):
        try:
            opened(folder)
        except DamageError as error:
            assert error.exit_code == 1
            if (
                error.file == str(path)
                and error.place is not None
                and f"block {at // BLOCK_BYTES}" in error.place
            ):
                continue
        found.append((str(path.relative_to(folder)), at))
    return found


def test_every_flipped_byte_is_refused_by_file_and_block(copy: Path) -> None:
    assert survivors(copy) == []
    assert opened(copy).check_all() == []


def test_flips_survive_a_reader_that_trusts_the_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the block check, flips in the weights go unseen, and only those."""
    monkeypatch.setattr(_opening.LazyWeights, "_check_blocks", lambda self, blocks: None)
    found = survivors(copy, skip=frozenset(["model.sig", "bundle.json", "blocks.bin", "weights.json"]))
    assert {path for path, _ in found} == {"weights/weights.bin"}
    tensors_only = sum(t.data.size for t in SMALL.values())
    assert len(found) == tensors_only  # padding is caught by its own check


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


def test_all_damaged_blocks_are_named_with_their_tensors(large: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(large, tmp_path / "copy"))
    before = open_bundle(folder, [KEY.public])
    weights = folder / "weights/weights.bin"
    for at in (0, 5, 3 * BLOCK_BYTES + 200, weights.stat().st_size - 1):
        flip(weights, at)
    flip(folder / "plans/host.txt", 2)
    wanted = [
        ("plans/host.txt", 0, ()),
        ("weights/weights.bin", 0, ("a",)),
        ("weights/weights.bin", 3, ("b", "c", "d")),
        ("weights/weights.bin", 4, ("d",)),
    ]
    assert [(d.file, d.block, d.tensors) for d in before.check_all()] == wanted
    assert [(d.file, d.block, d.tensors) for d in find_damage(folder, [KEY.public])] == wanted
    assert "block 3 (bytes 196608 to 262144), tensor b, c, d" in before.check_all()[2].place


def test_damage_shows_when_the_tensor_is_touched(large: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(large, tmp_path / "copy"))
    flip(folder / "weights/weights.bin", BLOCK_BYTES + 3)
    weights = open_bundle(folder, [KEY.public]).weights
    assert weights["d"].data.size == BLOCK_BYTES
    for _ in range(2):
        with pytest.raises(
            DamageError, match=r"weights\.bin, block 1 .*tensor a: the bytes are not what was signed"
        ):
            _ = weights["a"]
    with pytest.raises(DamageError, match="block 1"):
        open_bundle(folder, [KEY.public], check_weights="now")
    with pytest.raises(KeyError):
        _ = weights["nothing"]


def test_a_damaged_block_table_names_its_block(tmp_path: Path) -> None:
    """More than 2,048 blocks, so that the table has two blocks of its own."""
    folder = seal(
        tmp_path / "big",
        {"w": StoredTensor((2100 * BLOCK_BYTES,), "u8", np.zeros(2100 * BLOCK_BYTES, np.uint8))},
    )
    flip(folder / "blocks.bin", BLOCK_BYTES + 40)
    with pytest.raises(DamageError, match=r"blocks\.bin, block 1 "):
        open_bundle(folder, [KEY.public])
    assert [(d.file, d.block) for d in find_damage(folder, [KEY.public])] == [("blocks.bin", None)]


def test_many_threads_read_one_bundle(large: Path) -> None:
    weights = open_bundle(large, [KEY.public]).weights
    sums: list[int] = []

    def work() -> None:
        sums.append(sum(int(weights[name].data.sum()) for name in weights))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sums)) == 1
    assert len(sums) == 4


# --- other damage -------------------------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    os.truncate(folder / "weights/weights.bin", 100)


def _extend(folder: Path) -> None:
    with (folder / "program.txt").open("ab") as file:
        file.write(b" ")


def _swap_for_link(folder: Path) -> None:
    shutil.copy(folder / "program.txt", folder.parent / "outside")
    (folder / "program.txt").unlink()
    (folder / "program.txt").symlink_to(folder.parent / "outside")


def _swap_folder_for_link(folder: Path) -> None:
    shutil.move(folder / "weights", folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def _fifo(folder: Path) -> None:
    (folder / "model.sig").unlink()
    os.mkfifo(folder / "model.sig")


def _folder_for_file(folder: Path) -> None:
    (folder / "assets/labels.json").unlink()
    (folder / "assets/labels.json").mkdir()


OTHER_DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda f: (f / "plans/host.txt").unlink(), "plans/host.txt", "is missing"),
    "no signature": (lambda f: (f / "model.sig").unlink(), "model.sig", "cannot be opened"),
    "no manifest": (lambda f: (f / "bundle.json").unlink(), "bundle.json", "is missing"),
    "extra": (
        lambda f: (f / "plans/evil.txt").write_bytes(b""),
        "plans/evil.txt",
        "a file that was not signed",
    ),
    "extra at the top": (lambda f: (f / ".gitignore").write_bytes(b"*"), ".gitignore", "was not signed"),
    "extra, no UTF-8": (
        lambda f: Path(os.fsdecode(os.fsencode(f) + b"/plans/\xff")).write_bytes(b""),
        r"plans/\xff",
        "a file that was not signed",
    ),
    "extra folder": (lambda f: (f / "empty").mkdir(), "empty", "a folder that was not signed"),
    "short": (_truncate, "weights/weights.bin", "has 100 bytes where"),
    "long": (_extend, "program.txt", "has 9 bytes where 8 belong"),
    "link": (_swap_for_link, "program.txt", "is a symbolic link"),
    "linked folder": (_swap_folder_for_link, "weights/weights.bin", "is missing"),
    "pipe": (_fifo, "model.sig", "is not a regular file"),
    "folder for file": (_folder_for_file, "assets/labels.json", "is missing|is a folder|a folder"),
}


@pytest.mark.parametrize("case", OTHER_DAMAGE)
def test_other_damage_is_named(copy: Path, case: str) -> None:
    spoil, file, message = OTHER_DAMAGE[case]
    spoil(copy)
    with pytest.raises(DamageError, match=message) as caught:
        opened(copy)
    assert caught.value.file == str(copy / file)


def test_unknown_key_is_refused_with_the_way_out(small: Path) -> None:
    for trusted in ([], [SigningKey.generate().public], [SigningKey.generate("ed25519").public]):
        with pytest.raises(DamageError, match=r"does not trust.*--key"):
            open_bundle(small, trusted)


def test_a_bundle_of_somebody_else_does_not_pass_for_ours(small: Path, tmp_path: Path) -> None:
    other = SigningKey.generate()
    write_bundle(tmp_path / "b", name="b", program=b"evil", weights={}, key=other)
    shutil.copy(small / "model.sig", tmp_path / "b/model.sig")
    with pytest.raises(DamageError):
        opened(tmp_path / "b")


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder"])
def test_what_is_no_bundle_is_bad_input(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_bytes(b"x")
    elif kind == "empty folder":
        path.mkdir()
    with pytest.raises(FormatError) as caught:
        opened(path)
    assert caught.value.exit_code == 2


SIGNED_NONSENSE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "version": ("bundle.json", lambda d: d.replace(b'"version":1', b'"version":2')),
    "true version": ("bundle.json", lambda d: d.replace(b'"version":1', b'"version":true')),
    "spelling": ("bundle.json", lambda d: d.replace(b'"version":1', b'"version": 1')),
    "twice": ("bundle.json", lambda d: d.replace(b'{"assets"', b'{"version":1,"assets"')),
    "path": ("bundle.json", lambda d: d.replace(b'["lab"]', b'["../x"]')),
    "unlisted": ("bundle.json", lambda d: d.replace(b'["lab"]', b'["lob"]')),
    "root": ("bundle.json", lambda d: d.replace(b'"root":"sha256:', b'"root":"sha512:')),
    "size": ("bundle.json", lambda d: d.replace(b'"size":8', b'"size":-8')),
    "not json": ("bundle.json", lambda d: d[:-3]),
    "deep": ("bundle.json", lambda d: b"[" * 5000 + b"]" * 5000 + b"\n"),
    "huge": ("bundle.json", lambda d: b'"' + b"x" * (5 << 20) + b'"\n'),
    "shape": ("weights.json", lambda d: d.replace(b'"shape":[70]', b'"shape":[71]')),
    "huge shape": ("weights.json", lambda d: d.replace(b"[70]", b"[281474976710656,281474976710656]")),
    "offset": ("weights.json", lambda d: d.replace(b'"offset":0', b'"offset":64')),
    "encoding": ("weights.json", lambda d: d.replace(b'"encoding":"u8"', b'"encoding":"q9"', 1)),
    "name": ("weights.json", lambda d: d.replace(b"a.weight", b"z")),
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNED_NONSENSE)
def test_signed_nonsense_is_refused(copy: Path, case: str) -> None:
    """A trusted key is no licence: a well-signed bundle that breaks the format still does not open."""
    file, change = SIGNED_NONSENSE[case]
    before = (copy / file).read_bytes()
    (copy / file).write_bytes(change(before))
    assert (copy / file).read_bytes() != before
    if file == "weights.json":  # make block table and manifest agree with it, so that only the table is wrong
        _rebuild(copy)
    (copy / "model.sig").write_bytes(sign_folder(copy, KEY))
    with pytest.raises(DamageError) as caught:
        opened(copy)
    assert caught.value.file is not None
    assert caught.value.file.startswith(str(copy))


def _rebuild(folder: Path) -> None:
    manifest = _manifest.parse_manifest((folder / "bundle.json").read_bytes())
    digests = {}
    for entry in manifest.files:
        digests[entry.path] = _folder.BlockDigester()
        digests[entry.path].update((folder / entry.path).read_bytes())
    files = tuple(_manifest.FileEntry(p, d.size, d.root) for p, d in sorted(digests.items()))
    first = _folder.BlockDigester()
    data = _manifest.manifest_bytes(_manifest.Manifest(manifest.name, manifest.sections, files))
    first.update(data)
    (folder / "bundle.json").write_bytes(data)
    leaves = [*first.leaves, *(leaf for p in sorted(digests) for leaf in digests[p].leaves)]
    (folder / "blocks.bin").write_bytes(b"".join(leaves))


def test_signed_padding_must_be_zero(copy: Path) -> None:
    flip(copy / "weights/weights.bin", 71)
    _rebuild(copy)
    (copy / "model.sig").write_bytes(sign_folder(copy, KEY))
    with pytest.raises(DamageError, match="between tensors are not zero"):
        opened(copy)
    assert [d.reason for d in find_damage(copy, [KEY.public])] == ["bytes between tensors are not zero"]


@pytest.mark.parametrize("name", ["a\0b", "\udcff", "\ud800"])
def test_what_is_no_path_is_bad_input(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="cannot be opened as a folder") as caught:
        open_bundle(tmp_path / name, [KEY.public])
    str(caught.value).encode()


def test_a_name_that_is_no_utf8_can_be_shown(copy: Path) -> None:
    Path(os.fsdecode(os.fsencode(copy) + b"/plans/\xff")).write_bytes(b"")
    with pytest.raises(DamageError) as caught:
        open_bundle(copy, [KEY.public])
    str(caught.value).encode()
    assert [damage.file for damage in find_damage(copy, [KEY.public])] == [r"plans/\xff"]


@pytest.mark.parametrize(
    ("file", "there", "other"),
    [
        ("bundle.json", b'"version":1,', b'"version":1.0,'),
        ("bundle.json", b'"version":1,', b'"version":true,'),
        ("weights.json", b'"alignment":64,', b'"alignment":64.0,'),
    ],
)
def test_a_table_has_one_spelling(copy: Path, file: str, there: bytes, other: bytes) -> None:
    data = (copy / file).read_bytes()
    size = (copy / "weights/weights.bin").stat().st_size

    def parse(text: bytes) -> object:
        if file == "bundle.json":
            return _manifest.parse_manifest(text)
        return _manifest.parse_table(text, size)

    parse(data)
    assert there in data
    with pytest.raises(FormatError, match=r"version|alignment"):
        parse(data.replace(there, other))


def test_hard_links_are_fine(copy: Path) -> None:
    os.link(copy / "weights/weights.bin", copy.parent / "second-name")
    assert opened(copy).check_all() == []


# --- refusals when writing ----------------------------------------------------------------------------------


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "x" * 101, "a b", "a\n"])
def test_names_cannot_be_paths(tmp_path: Path, bad: str) -> None:
    for change in ({"name": bad}, {"plans": {bad: b""}}, {"assets": {bad: b""}}):
        arguments: dict[str, object] = {"name": "ok", **change}
        with pytest.raises(InputError, match="cannot name"):
            write_bundle(tmp_path / "o", program=b"", weights={}, key=KEY, **arguments)  # type: ignore[arg-type]
    assert left(tmp_path) == []


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="but for case"):
        write_bundle(tmp_path / "o", name="o", program=b"", weights={}, key=KEY, plans={"A": b"", "a": b""})
    assert left(tmp_path) == []


def test_ed25519_cannot_seal(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="P-256"):
        write_bundle(tmp_path / "o", name="o", program=b"", weights={}, key=SigningKey.generate("ed25519"))
    assert left(tmp_path) == []


def test_only_a_bundle_is_replaced(small: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_bytes(b"years")
    with pytest.raises(InputError, match="not what it would be replaced by"):
        seal(tmp_path / "home", replace=True)
    shutil.copytree(small, tmp_path / "b")
    (tmp_path / "b" / "thesis.txt").write_bytes(b"years")
    with pytest.raises(InputError, match="not what it would be replaced by"):
        seal(tmp_path / "b", replace=True)
    (tmp_path / "b" / "thesis.txt").unlink()
    with pytest.raises(InputError, match="exists already"):
        seal(tmp_path / "b")
    seal(tmp_path / "b", {"new": tensor(5)}, replace=True)
    assert list(opened(tmp_path / "b").weights) == ["new"]
    assert left(tmp_path) == ["b", "home"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert any(p.name.startswith(TEMPORARY_PREFIX) for p in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "o", name="o", program=b"", weights=SMALL, key=KEY, progress=interrupt)
    assert left(tmp_path) == []


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is signed is what was meant, not what the disk made of it."""

    def sign_after_a_flip(folder: Path, key: SigningKey) -> bytes:
        flip(folder / "weights/weights.bin", 3)
        return sign_folder(folder, key)

    monkeypatch.setattr(_folder, "sign_folder", sign_after_a_flip)
    with pytest.raises(DamageError, match="read back is not what was written"):
        seal(tmp_path / "o")
    assert left(tmp_path) == []


def test_damage_reads_well(small: Path) -> None:
    text = str(Damage("weights/weights.bin", 2, "is odd", ("a", "b", "c", "d")).error("dir"))
    assert text == (
        "dir/weights/weights.bin, block 2 (bytes 131072 to 196608), tensor a, b, c and 1 more: is odd. "
        "Take the bundle from its source again; do not use this one."
    )


def test_canonical_json_is_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é\n"}) == b'{"a":"\\u00e9\\n","b":[1,2.5]}\n'
