"""`--size NAME=N`: an ONNX file with open sizes on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tensure
from tensure.errors import InputError

from .conftest import Call

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402


@pytest.fixture
def model(here: Path) -> str:
    """y = relu(x + x), x of shape [batch, seq, ?]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["s"]), helper.make_node("Relu", ["s"], ["y"])],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (here / "open.onnx").write_bytes(made.SerializeToString())
    return "open.onnx"


SIZES = ("--size", "seq=3", "--size", "x.2=2")


def test_inspect(call: Call, model: str) -> None:
    done = call("inspect", model, "--seed", "0", *SIZES)
    assert done.code == 0, done.err
    assert "f32[1,3,2]" in done.out
    other = call("inspect", model, "--seed", "0", *SIZES, "--size", "batch=4")
    assert "f32[4,3,2]" in other.out


def test_run_seals_one_bundle_for_each_size(call: Call, model: str) -> None:
    bundles = []
    for batch in (1, 2, 1):
        x = np.linspace(-1, 1, batch * 6, dtype=np.float32).reshape(batch, 3, 2)
        np.save("open.npy", x)
        words = ("run", model, *SIZES, "--size", f"batch={batch}", "--input", "open.npy")
        done = call(*words, "-o", "open.npz", "--force", "--json")
        assert done.code == 0, done.err
        bundles.append(done.json["bundle"])
        with np.load("open.npz") as found:
            assert np.array_equal(found["y"], np.maximum(2 * x, 0))
    assert bundles[0] == bundles[2] != bundles[1]


def test_diff(call: Call, model: str) -> None:
    same = call("diff", model, model, "--seed", "0", *SIZES, "--other-by", "reference")
    assert same.code == 0, same.err
    assert call("inspect", model, "--seed", "0", *SIZES, "-o", "open.trace").code == 0
    x = tensure.inspect(model, seed=0, sizes={"seq": 3, "x.2": 2}, keep=True)["x"]
    np.save("open.npy", np.asarray(x))
    done = call("diff", "open.trace", model, "--input", "open.npy", *SIZES)
    assert done.code == 0, done.err + done.out


def test_what_is_missing_is_named_with_its_option(call: Call, model: str) -> None:
    for words in (("run", model, "--input", "x.npy"), ("inspect", model, "--seed", "0")):
        done = call(*words)
        assert done.code == 2
        assert "--size seq=N" in done.err
        assert "--size x.2=N" in call(*words, "--size", "seq=3").err


@pytest.mark.parametrize(
    "word", ["seq", "=3", "seq=", "seq=-1", "seq=3.5", "seq=x", "seq=9999999999999999999"]
)
def test_what_is_no_size(call: Call, model: str, word: str) -> None:
    for words in (("run", model, "--input", "x.npy"), ("inspect", model), ("diff", model, model)):
        done = call(*words, "--size", word)
        assert done.code == 2
        assert "wanted NAME=N, such as batch=1" in done.err


def test_a_size_given_twice(call: Call, model: str) -> None:
    done = call("inspect", model, "--seed", "0", *SIZES, "--size", "seq=4")
    assert done.code == 2
    assert "gives a size twice" in done.err


def test_a_size_that_the_file_does_not_have(call: Call, model: str) -> None:
    done = call("inspect", model, "--seed", "0", "--size", "sequence=3")
    assert done.code == 2
    assert "one of batch, seq, x.2" in done.err


def test_what_has_no_open_sizes_refuses_them(call: Call, here: Path) -> None:
    for words in (
        ("run", "image.bundle", "--input", "x.npy"),
        ("run", "model.gguf", "--prompt", "Why?"),
        ("inspect", "image.bundle", "--seed", "0"),
        ("inspect", "model.gguf", "--seed", "0"),
        ("inspect", "old.trace"),
        ("diff", "old.trace", "old.trace"),
        ("diff", "image.bundle", "image.bundle", "--seed", "0"),
    ):
        done = call(*words, "--size", "seq=3")
        assert done.code == 2, words
        assert "--size" in done.err, words


def test_a_missing_file_is_said_first(call: Call, here: Path) -> None:
    assert "is no file" in call("inspect", "none.onnx", "--size", "seq=3").err


def test_eager_code_and_models_that_were_read_refuse_them(here: Path) -> None:
    with pytest.raises(InputError, match="for eager code"):
        tensure.inspect(lambda x: x, np.ones(3, np.float32), sizes={"n": 3})
    with pytest.raises(InputError, match="read already"):
        tensure.inspect(tensure.load("image.bundle"), seed=0, sizes={"n": 3})


@pytest.mark.parametrize("verb", ["run", "inspect"])
def test_help_shows_one(call: Call, verb: str) -> None:
    assert f"tensure {verb} model.onnx --size batch=1 --size seq=128" in call(verb, "--help").out
