"""Recordings in files: what is written comes back, and no file of a stranger's does harm."""

from __future__ import annotations

import io
import json
import math
import os
import random
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tensure
from tensure.errors import FormatError, InputError, LimitError, TensureError
from tensure.inspection import (
    Recording,
    compare,
    load_recording,
    save_recording,
    trace_from_json,
    watch,
)

from ..runtime.small_models import classifier

MEMBERS = ("trace.json", "recording.json", "values.bin")


def everything() -> Recording:
    """A run with every kind of thing a trace can hold."""
    with watch(name="all of it", digest=True, keep=True, limit=2.0) as seen:
        x = torch.tensor([[1.0, math.nan, -0.0], [math.inf, 1e-40, -3.0]])
        y = x.t().expand(2, 3, 2)
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.complex64):
            y.nan_to_num().to(dtype)
        (x > 0).any()
        x.masked_fill(x > 0, -math.inf)
        torch.empty(0, 5).sum(0)
        x.to_sparse()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old quantised tensors are still about
            q = torch.quantize_per_tensor(torch.linspace(-1, 1, 8), 0.01, 3, torch.qint8)
        x.add_(1)
        seen.output("q", q)
        seen.output("x", x)
    recording = seen.recording()
    recording.trace.notes = ("a note", "Ünïcode")
    return recording


@pytest.fixture(scope="module")
def recording() -> Recording:
    return everything()


@pytest.fixture(scope="module")
def data(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_recording(recording, tmp_path_factory.mktemp("trace") / "a.trace").read_bytes()


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with watch(keep=True, digest=True) as seen:
        torch.ones(3) * 2
    return save_recording(seen.recording(), tmp_path_factory.mktemp("trace") / "b.trace").read_bytes()


def stored(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- there and back ---


def test_what_is_written_comes_back(recording: Recording, tmp_path: Path) -> None:
    path = save_recording(recording, tmp_path / "a.trace")
    found = load_recording(path)
    path.unlink()  # what was read does not need its file
    assert found.trace.dumps() == recording.trace.dumps()
    for step, other in zip(found.trace.steps, recording.trace.steps, strict=True):
        assert step == other  # -inf among the arguments is a number again
    assert any(-math.inf in (value for _, value in step.arguments) for step in found.trace.steps)
    assert found.values is not None
    assert recording.values is not None
    for name in recording.trace.tensors:
        assert (name in found.values) == (name in recording.values)
        if name in found.values:
            mine, theirs = found.values.get(name), recording.values.get(name)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert stored(mine) == stored(theirs)
    assert not found.replays
    assert compare(found, recording).kind == "identical"


def test_any_zip_tool_can_open_it(data: bytes, recording: Recording) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert tuple(archive.namelist()) == MEMBERS
        assert archive.testzip() is None
        assert json.loads(archive.read("trace.json")) == json.loads(recording.trace.dumps())


def test_equal_recordings_make_equal_files(recording: Recording, data: bytes, tmp_path: Path) -> None:
    assert save_recording(load_recording(write(tmp_path, data)), tmp_path / "b.trace").read_bytes() == data


def test_a_recording_of_a_program_compares_as_it_did(tmp_path: Path) -> None:
    torch_run = tensure.inspect(classifier(), seed=0, keep=True, digest=True)
    saved = load_recording(save_recording(torch_run, tmp_path / "a.trace"))
    assert saved.program == torch_run.program != ""
    same = tensure.diff(tmp_path / "a.trace", classifier(), seed=0)
    assert same.kind == "identical"
    other = tensure.diff(str(tmp_path / "a.trace"), classifier(), seed=1)
    assert other.kind == "divergent"
    assert other.first is not None
    assert other.first.kind == "leaf"
    assert tensure.inspect(tmp_path / "a.trace").trace.dumps() == torch_run.trace.dumps()


def test_without_values_a_trace_is_a_trace(tmp_path: Path) -> None:
    run = tensure.inspect(classifier(), seed=0)
    found = load_recording(save_recording(run, tmp_path / "a.trace"))
    assert found.values is None
    assert found.trace.dumps() == run.trace.dumps()
    with pytest.raises(InputError, match="were not kept"):
        compare(found, run)


def test_a_recording_is_not_run_again(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    for options in ({"seed": 0}, {"by": "kernels"}, {"plan": "x"}):
        with pytest.raises(InputError, match="not run again"):
            tensure.inspect(path, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not run again"):
        tensure.diff(path, path, other_by="kernels")


def renamed(data: bytes, old: str, new: str) -> bytes:
    members = {}
    for name, text in good_members(data).items():
        if name.endswith(".json"):
            text = text.replace(json.dumps(old).encode(), json.dumps(new).encode())
        members[name] = text
    return zipped(members)


@pytest.mark.parametrize("name", ["a@7", "x@99999999", "@3", "mul_1@1@2"])
def test_a_version_of_a_tensor_that_is_not_there_is_refused(
    doubled: bytes, tmp_path: Path, name: str
) -> None:
    with pytest.raises(FormatError, match="written over"):
        load_recording(write(tmp_path, renamed(doubled, "mul_1", name)))


@pytest.mark.parametrize("name", ["a@" + "9" * 5000, "a@²", "a@٣", "a@07", "a@", "a@-1", "a@9999999999"])
def test_other_names_with_at_are_names(doubled: bytes, tmp_path: Path, name: str) -> None:
    run = load_recording(write(tmp_path, renamed(doubled, "mul_1", name)))
    assert name in run.trace.tensors
    assert compare(run, run).kind == "identical"


def test_a_leaf_may_be_called_like_a_version(tmp_path: Path) -> None:
    w = torch.ones(2)
    with watch(keep=True, digest=True, inputs={"w@1": w}) as seen:
        y = w.view(2, 1) * 2
        w.add_(y.reshape(2))
        w * 3
    assert "w_at_1" in seen.trace.tensors  # the mark is ours
    run = load_recording(save_recording(seen.recording(), tmp_path / "a.trace"))
    assert compare(seen.recording(), run).kind == "identical"


def test_versions_of_memory_that_was_written_over_come_back(tmp_path: Path) -> None:
    with watch(keep=True, digest=True) as seen:
        x = torch.zeros(4)
        y = x.view(2, 2)
        x.add_(1)
        y.t()
    run = load_recording(save_recording(seen.recording(), tmp_path / "a.trace"))
    assert "view_1@2" in run.trace.tensors
    assert compare(run, run).kind == "identical"


def test_nothing_is_overwritten_unasked(recording: Recording, tmp_path: Path) -> None:
    path = write(tmp_path, b"mine")
    with pytest.raises(InputError, match="exists"):
        save_recording(recording, path)
    assert path.read_bytes() == b"mine"
    save_recording(recording, path, replace=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("replace", [False, True])
def test_what_a_link_names_is_never_written(recording: Recording, tmp_path: Path, replace: bool) -> None:
    """Rows 23 and 24: who plants a link where a file will be saved does not choose what is overwritten."""
    precious, link = tmp_path / "precious", tmp_path / "a.trace"
    precious.write_bytes(b"mine")
    link.symlink_to(precious)
    with pytest.raises(InputError, match="exists"):
        save_recording(recording, link, replace=replace)
    assert link.is_symlink()
    assert precious.read_bytes() == b"mine"


def test_a_dangling_link_is_no_free_name(recording: Recording, tmp_path: Path) -> None:
    (tmp_path / "a.trace").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="exists"):
        save_recording(recording, tmp_path / "a.trace")
    assert not (tmp_path / "elsewhere").exists()


# --- a stranger's ---


def write(folder: Path, data: bytes) -> Path:
    path = folder / "x.trace"
    path.write_bytes(data)
    return path


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def changed(
    data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], Any], values: bytes | None = None
) -> bytes:
    """A file whose two documents were changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        trace, head = (json.loads(archive.read(name)) for name in MEMBERS[:2])
        rest = archive.read(MEMBERS[2])
    change(trace, head)
    texts = (json.dumps(trace).encode(), json.dumps(head).encode(), rest if values is None else values)
    return zipped(dict(zip(MEMBERS, texts, strict=True)))


def test_the_changer_changes_nothing_by_itself(data: bytes, tmp_path: Path) -> None:
    load_recording(write(tmp_path, changed(data, lambda trace, head: None)))


def put(*path: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Set one field, deep inside; the first key says in which document."""

    def change(trace: dict[str, Any], head: dict[str, Any]) -> None:
        at: Any = {"trace": trace, "head": head}
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def forget(*path: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(trace: dict[str, Any], head: dict[str, Any]) -> None:
        at: Any = {"trace": trace, "head": head}
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


TENSOR = ("trace", "tensors", 0)
STEP = ("trace", "steps", 1)
WRONG = [
    (put("trace", "schema", value="tensure.inspect/9"), "wanted tensure.inspect/1"),
    (put("head", "schema", value="tensure.recording/9"), "wanted tensure.recording/1"),
    (forget("trace", "steps"), "the field steps is missing"),
    (forget(*TENSOR, "digest"), "tensors\\[0\\]: the field digest is missing"),
    (put("trace", "more", value=1), "unknown field 'more'"),
    (put(*TENSOR, "more", value=1), "unknown field 'more'"),
    (put(*STEP, "more", value=1), "unknown field 'more'"),
    (put("trace", "tensors", value={}), "is no list"),
    (put("trace", "tensors", 0, value=3), "is no object"),
    (put(*TENSOR, "name", value=3), "is no text"),
    (put(*TENSOR, "name", value="x" * 100_000), "characters"),
    (put(*TENSOR, "origin", value="sky"), "wanted input, weight"),
    (put(*TENSOR, "memory", value=[]), "wanted contiguous"),
    (put(*TENSOR, "step", value=10**6), "tensors\\[0\\].step"),
    (put(*TENSOR, "step", value=True), "is no whole number"),
    (put(*TENSOR, "shape", value=[2**40, 2**40]), "a shape that no tensor has"),
    (put(*TENSOR, "shape", value=[-5, 3]), "wanted -1"),
    (put(*TENSOR, "shape", value=[1] * 1000), "a shape that no tensor has"),
    (put(*TENSOR, "rank", value=7), "a shape that no tensor has"),
    (put(*TENSOR, "nbytes", value=-1), "wanted 0"),
    (put(*TENSOR, "nbytes", value=1.5), "is no whole number"),
    (put(*TENSOR, "in_place", value=0), "neither true nor false"),
    (put(*TENSOR, "statistics", value=[]), "is no object"),
    (put(*TENSOR, "statistics", "mean", value="many"), "no number"),
    (put(*TENSOR, "statistics", "nans", value=None), "is no whole number"),
    (put(*STEP, "index", value=0), "its index is not its place"),
    (put(*STEP, "reads", value=["nobody"]), "no tensor 'nobody'"),
    (put(*STEP, "outs", value=["constant_0"]), "another step made it"),
    (put(*STEP, "phase", value="sideways"), "wanted forward, backward"),
    (put(*STEP, "arguments", value=[1]), "no name with its value"),
    (put(*STEP, "arguments", value=[["a", {}]]), "an argument of another kind"),
    (put(*STEP, "arguments", value=[["a", deep(60)]]), "deep"),
    (put(*STEP, "arguments", value=[["a", deep(18)]]), "deep"),
    (put(*STEP, "seconds", value=None), "no number"),
    (put("trace", "outputs", value={"out": "nobody"}), "is no tensor"),
    (put("trace", "outputs", value={"out": ["x"]}), "is no tensor"),
    (put("trace", "notes", value=[1]), "list of texts"),
    (put("trace", "name", value="\ud800"), "no Unicode text"),
    (put("head", "program", value=1), "of another kind"),
    (put("head", "program", value="x" * 9999), "a digest of 9999"),
    (put("head", "kept", value=False), "values that were not kept"),
    (put("head", "values", value={}), "of another kind"),
    (put("head", "more", value=1), "no head"),
    (put("head", "values", 0, "name", value="nobody"), "no tensor 'nobody'"),
    (put("head", "values", 0, "name", value={}), "no tensor"),
    (put("head", "values", 0, "dtype", value="object"), "wanted f64"),
    (put("head", "values", 0, "dtype", value=[]), "wanted f64"),
    (put("head", "values", 0, "shape", value=[-1]), "a shape that no tensor has"),
    (put("head", "values", 0, "shape", value=[True]), "a shape that no tensor has"),
    (put("head", "values", 0, "shape", value="6"), "a shape that no tensor has"),
    (put("head", "values", 0, "shape", value=[2**60]), "a shape that no tensor has"),
    (put("head", "values", 0, "shape", value=[0, 2**47, 2**47]), "shape"),
    (put("head", "values", 0, "shape", value=[6]), "another shape than in the trace"),
    (put("head", "values", 0, "more", value=1), "no tensor's name"),
    (lambda trace, head: head["values"].append(head["values"][0]), "stands there twice"),
    (lambda trace, head: trace["tensors"].append(trace["tensors"][0]), "stands there twice"),
    (lambda trace, head: head["values"].pop(), "values.bin"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_field_is_named(data: bytes, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recording(write(tmp_path, changed(data, change)))
    assert isinstance(caught.value, FormatError | LimitError)
    assert caught.value.file is not None
    assert len(str(caught.value)) < 1200
    assert "\n" not in str(caught.value)


def test_values_must_be_as_many_bytes_as_is_said(data: bytes, tmp_path: Path) -> None:
    for values in (b"", b"\0" * 10**6):
        with pytest.raises(FormatError, match=r"values\.bin"):
            load_recording(write(tmp_path, changed(data, lambda trace, head: None, values)))


def test_a_truth_value_is_0_or_1(tmp_path: Path) -> None:
    with watch(keep=True) as seen:
        torch.tensor([True, False]).logical_not()
    path = save_recording(seen.recording(), tmp_path / "a.trace")
    load_recording(path)
    bad = changed(path.read_bytes(), lambda trace, head: None, b"\x01\x00\x07\x01\x00\x00")
    with pytest.raises(FormatError, match="truth value"):
        load_recording(write(tmp_path, bad))


def good_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in MEMBERS}


def test_other_zips_are_refused(data: bytes, tmp_path: Path) -> None:
    good = good_members(data)
    wrong: dict[str, bytes] = {
        "compressed": zipped(good, compression=zipfile.ZIP_DEFLATED),
        "members": zipped({**good, "more.bin": b""}),
        "2 members": zipped({name: good[name] for name in MEMBERS[:2]}),
        "a zip of": zipped({"trace.json": b"", "recording.json": b"", "../values.bin": b""}),
        "JSON": zipped({**good, "trace.json": b"{"}),
        "trace.json": zipped({**good, "trace.json": b'{"a": NaN}'}),
        "twice": zipped({**good, "trace.json": b'{"schema": 1, "schema": 2}'}),
        "nested": zipped({**good, "trace.json": b"[" * 100_000}),
        "no recording": b"",
        "no recording, ": b"PK\x05\x06",
        "a file that tensure inspect -o wrote": os.urandom(4096),
    }
    for message, text in wrong.items():
        with pytest.raises(InputError, match=message.removesuffix(", ")):
            load_recording(write(tmp_path, text))
    with pytest.raises(InputError, match="no such file"):
        load_recording(tmp_path / "missing.trace")
    with pytest.raises(InputError, match="is not a file"):
        load_recording(tmp_path)


def test_a_bomb_costs_nothing(data: bytes, tmp_path: Path) -> None:
    """Claims of much memory: a long list of members, huge sizes, many items, a compressed nothing."""
    good = good_members(data)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, 0xFFFFFFF0, 0, 0)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 1000, 1)
    wild = struct.pack("<4sLQL", b"PK\x06\x07", 0, 1 << 62, 1)
    inflated = bytearray(zipped(good))
    for mark, offset in ((b"PK\x01\x02", 20), (b"PK\x03\x04", 18)):  # values.bin says it has 4 GiB
        at = inflated.rfind(mark)
        inflated[at + offset : at + offset + 8] = struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0)
    bombs = [
        b"\0" * 10_000 + end,
        b"\0" * 1000 + end64 + locator + end,
        b"\0" * 1000 + wild + end,
        bytes(inflated),
        zipped({**good, "values.bin": b"\0" * (50 << 20)}, compression=zipfile.ZIP_DEFLATED),
        zipped({**good, "trace.json": b"[" + b"[]," * 9_000_000 + b"[]]"}),
        zipped({str(at): b"" for at in range(20_000)}),
    ]
    for bomb in bombs:
        path = write(tmp_path, bomb)
        del bomb
        tracemalloc.start()
        begin = time.perf_counter()
        with pytest.raises(InputError):
            load_recording(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.perf_counter() - begin < 5
        assert peak < 64 << 20, peak


def test_no_byte_of_it_can_be_changed_into_another_error(data: bytes, tmp_path: Path) -> None:
    """Flipped bytes, cuts and insertions: a typed error, or a recording."""
    draw = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        text = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text))
            kind = draw.randrange(3)
            if kind == 0:
                text[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del text[at : at + draw.randint(1, 40)]
            else:
                text[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        try:
            load_recording(write(tmp_path, bytes(text)))
            outcomes["read"] += 1
        except TensureError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 150


def test_no_field_can_be_changed_into_another_error(data: bytes, tmp_path: Path) -> None:
    """Any value anywhere in the two documents, exchanged for one of another kind."""
    draw = random.Random(1)
    values = [None, True, -1, 0, 1 << 63, 1.5, "", "NaN", "x", [], [[]], {}, {"a": 1}, [None], -(1 << 63)]
    refused = 0
    for _ in range(200):

        def change(trace: dict[str, Any], head: dict[str, Any]) -> None:
            at: Any = draw.choice([trace, head, trace])
            while True:
                keys = list(at) if isinstance(at, dict) else list(range(len(at)))
                key = draw.choice(keys)
                inner = at[key]
                if not isinstance(inner, dict | list) or not inner or draw.random() < 0.1:
                    at[key] = draw.choice(values)
                    return
                at = inner

        try:
            load_recording(write(tmp_path, changed(data, change)))
        except TensureError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("document", [None, 3, "x", [], {}, {"schema": []}, {"schema": "tensure.inspect/1"}])
def test_what_is_no_trace(document: Any) -> None:
    with pytest.raises(FormatError):
        trace_from_json(document)
