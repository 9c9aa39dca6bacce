"""Open sizes of an ONNX graph: what they are called, and what is said to who calls them otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tensure.errors import InputError
from tensure.program import infer_program
from tensure.program._onnx import OnnxGraph, OnnxModel, OnnxNode, OnnxType
from tensure.program._onnx_sizes import settle_sizes
from tensure.program.from_onnx import import_onnx

GRAPH = OnnxGraph(
    "two inputs",
    (OnnxNode("Add", ("x", "y"), ("z",)),),
    (
        OnnxType("x", "f32", ("batch", "seq", None, 3)),
        OnnxType("y", "f32", (None, "?", 5, 3)),
    ),
    (OnnxType("z", "f32", None),),
)


def shape_of(**how: Any) -> str:
    program = import_onnx(OnnxModel(GRAPH, {"": 17}, 8), **how).program
    return str(infer_program(program)["z"])


def test_sizes_by_name_and_by_place() -> None:
    sizes = {"batch": 2, "seq": 4, "x.2": 5, "y.0": 2, "y.1": 4}
    assert shape_of(sizes=sizes) == "f32[2,4,5,3]"
    found = settle_sizes(GRAPH, sizes)
    assert found.by_name == {"batch": 2, "seq": 4}
    assert found.by_place == {("x", 2): 5, ("y", 0): 2, ("y", 1): 4}


def test_a_named_size_may_be_told_by_its_place() -> None:
    assert settle_sizes(GRAPH, {"x.1": 4}).by_name == {"seq": 4}
    assert settle_sizes(GRAPH, {"x.1": 4, "seq": 4}).by_name == {"seq": 4}


def test_sizes_go_with_a_shape_of_another_input() -> None:
    sizes = {"seq": 4, "x.2": 5}
    assert shape_of(sizes=sizes, inputs={"y": (1, 1, 5, 3)}) == "f32[1,4,5,3]"


def test_a_first_dim_that_is_left_open_stays_one() -> None:
    assert shape_of(sizes={"seq": 4, "x.2": 5, "y.1": 4}) == "f32[1,4,5,3]"


def test_a_name_of_the_file_comes_before_a_place() -> None:
    graph = OnnxGraph("odd", (), (OnnxType("x", "f32", ("x.1", None)),), ())
    found = settle_sizes(graph, {"x.1": 7})
    assert (found.by_name, found.by_place) == ({"x.1": 7}, {})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sizes": {"batch": 2}}, r"dim 1 of input 'x' is open \(seq\).*--size seq=N"),
        ({"sizes": {"seq": 2}}, r"dim 2 of input 'x' is open.*--size x\.2=N"),
        ({"sizes": {"sequence": 2}}, r"called 'sequence'.*one of batch, seq, x\.2, y\.0, y\.1"),
        ({"sizes": {"x.3": 2}}, r"called 'x\.3'"),  # it is fixed
        ({"sizes": {"x.4": 2}}, r"called 'x\.4'"),
        ({"sizes": {"x.-1": 2}}, r"called 'x\.-1'"),
        ({"sizes": {"x.²": 2}}, "called"),
        ({"sizes": {"z.0": 2}}, r"called 'z\.0'"),
        ({"sizes": {"seq": 2, "x.1": 3}}, "size 'seq' is 2 and 3.*one size for one name"),
        ({"sizes": {"seq": -1}}, "size 'seq' is -1"),
        ({"sizes": {"seq": True}}, "size 'seq' is True"),
        ({"sizes": {"seq": 1 << 48}}, "size 'seq' is"),
        ({"sizes": {"seq": 4}, "inputs": {"x": (1, 5, 5, 3)}}, "one size for one name"),
        ({"sizes": {"x.2": 4}, "inputs": {"x": (1, 4, 5, 3)}}, "dim 2 of input 'x' is 5 and 4"),
    ],
)
def test_what_is_no_size(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        shape_of(**how)


def test_a_graph_without_open_sizes_says_so() -> None:
    graph = OnnxGraph("fixed", (), (OnnxType("x", "f32", (2, 3)),), ())
    with pytest.raises(InputError, match="every size of the file is fixed"):
        settle_sizes(graph, {"n": 1})
