"""Keras models as Programs: each listed layer against Keras on torch, saved and live; known models."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is first imported

from tensure.api import load
from tensure.errors import FormatError, InputError, LimitError, UnsupportedError
from tensure.host import Runner, load_weights
from tensure.program import Model, Op, evaluate_program, format_program, parse_program
from tensure.program.from_keras import from_keras

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Keras and its libraries warn of their own ways while they load
    import keras
    from keras import layers as L

pytestmark = pytest.mark.filterwarnings(  # Keras' own way of making an array of a torch tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
DATA = Path(__file__).parent / "data"
BOUND = 2e-6
"""Of the largest magnitude in the output: float32 sums in another order."""


def shake(model: Any, seed: int = 0) -> None:
    """Random numbers for every variable, so that no formula hides behind zeros and ones."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if str(variable.dtype) == "float32":
            positive = "variance" in variable.path
            low, high = (0.5, 1.5) if positive else (-0.6, 0.6)
            variable.assign(rng.uniform(low, high, tuple(variable.shape)).astype(np.float32))


def leaves(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [item for key in found for item in leaves(found[key])]
    return [item for part in found for item in leaves(part)] if isinstance(found, list | tuple) else [found]


def run_keras(model: Any, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        found = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
    return [np.asarray(item.detach().numpy()) for item in leaves(found)]


def run_host(model: Model, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    names = map(str, model.program.entry().inputs)
    given = {key: torch.from_numpy(array) for key, array in zip(names, inputs, strict=True)}
    return [
        item.numpy() for item in Runner(model.program, load_weights(model.weights)).run(given)[0].values()
    ]


def run_numpy(model: Model, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    names = map(str, model.program.entry().inputs)
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    found = evaluate_program(model.program, {**weights, **dict(zip(names, inputs, strict=True))})
    return list(found.outputs.values())


def close(have: list[Any], want: list[Any], bound: float = BOUND) -> None:
    assert len(have) == len(want)
    for mine, theirs in zip(have, want, strict=True):
        assert mine.shape == theirs.shape
        scale = max(float(np.abs(theirs).max(initial=0)), 1e-3)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound * scale)


def check(model: Any, folder: Path, *inputs: np.ndarray[Any, Any], bound: float = BOUND) -> Model:
    """Saved and live, raw and normalised, in numpy and in torch: all as Keras on torch."""
    shake(model)
    want = run_keras(model, *inputs)
    path = folder / "m.keras"
    model.save(path)
    for source in (path, model):
        raw, plain = (from_keras(source, inputs, normalise=normalise) for normalise in (False, True))
        for found in (raw, plain):
            found.check_weights()
            assert parse_program(format_program(found.program)) == found.program
            close(run_host(found, *inputs), want, bound)
        close(run_numpy(plain, *inputs), want, 10 * bound)
        assert len(plain.program.entry().body) <= len(raw.program.entry().body)
    return plain


def kinds(model: Model) -> list[str]:
    return [item.op for item in model.program.entry().body if isinstance(item, Op)]


def draw(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- layer by layer ---------------------------------------------------------------------------------

IMAGE, ROWS, FLAT = (2, 7, 9, 3), (2, 6, 4), (2, 5)
FIRST = {"data_format": "channels_first"}
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "dense": (FLAT, lambda: L.Dense(4, activation="relu")),
    "dense without bias over rows": (ROWS, lambda: L.Dense(3, use_bias=False)),
    "conv1d": (ROWS, lambda: L.Conv1D(3, 2, strides=2, padding="same")),
    "conv1d causal": (ROWS, lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2)),
    "conv2d same": (IMAGE, lambda: L.Conv2D(4, 3, strides=2, padding="same", activation="relu")),
    "conv2d even kernel": (IMAGE, lambda: L.Conv2D(4, (4, 2), padding="same")),
    "conv2d dilated": (IMAGE, lambda: L.Conv2D(4, 3, dilation_rate=2, padding="same")),
    "conv2d grouped": (IMAGE, lambda: L.Conv2D(6, 3, groups=3)),
    "conv2d first": (IMAGE, lambda: L.Conv2D(4, 3, padding="same", **FIRST)),
    "conv2d transpose same": (IMAGE, lambda: L.Conv2DTranspose(4, 3, strides=2, padding="same")),
    "conv2d transpose even": (IMAGE, lambda: L.Conv2DTranspose(4, 4, strides=2, padding="same")),
    "conv2d transpose valid": (IMAGE, lambda: L.Conv2DTranspose(4, 3, strides=2)),
    "conv2d transpose wide stride": (IMAGE, lambda: L.Conv2DTranspose(2, 2, strides=3)),
    "conv2d transpose output padding": (
        IMAGE,
        lambda: L.Conv2DTranspose(2, 3, strides=2, padding="same", output_padding=1),
    ),
    "conv1d transpose": (ROWS, lambda: L.Conv1DTranspose(3, 3, strides=2, padding="same")),
    "depthwise": (IMAGE, lambda: L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)),
    "depthwise1d": (ROWS, lambda: L.DepthwiseConv1D(3, padding="same")),
    "separable": (IMAGE, lambda: L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)),
    "separable1d": (ROWS, lambda: L.SeparableConv1D(5, 3)),
    "batch norm": (IMAGE, lambda: L.BatchNormalization()),
    "batch norm bare": (IMAGE, lambda: L.BatchNormalization(scale=False, center=False)),
    "batch norm without scale": (IMAGE, lambda: L.BatchNormalization(scale=False)),
    "batch norm first": (IMAGE, lambda: L.BatchNormalization(axis=1)),
    "batch norm flat": (FLAT, lambda: L.BatchNormalization()),
    "layer norm": (ROWS, lambda: L.LayerNormalization()),
    "layer norm two axes": (IMAGE, lambda: L.LayerNormalization(axis=(2, 3))),
    "layer norm without shift": (ROWS, lambda: L.LayerNormalization(center=False)),
    "group norm": ((2, 5, 4, 6), lambda: L.GroupNormalization(groups=3)),
    "instance norm": (IMAGE, lambda: L.GroupNormalization(groups=-1)),
    "rms norm": (ROWS, lambda: L.RMSNormalization()),
    "unit norm": (ROWS, lambda: L.UnitNormalization()),
    "relu": (FLAT, lambda: L.ReLU()),
    "relu6": (FLAT, lambda: L.ReLU(max_value=0.4)),
    "relu bent": (FLAT, lambda: L.ReLU(max_value=1.5, negative_slope=0.2, threshold=0.3)),
    "leaky relu": (FLAT, lambda: L.LeakyReLU(0.2)),
    "elu layer": (FLAT, lambda: L.ELU(0.7)),
    "prelu": (IMAGE, lambda: L.PReLU(shared_axes=[1, 2])),
    "softmax": (ROWS, lambda: L.Softmax(axis=1)),
    "activation object": (FLAT, lambda: L.Dense(3, activation=L.LeakyReLU(0.1))),
    "zero padding": (IMAGE, lambda: L.ZeroPadding2D(((1, 2), (0, 3)))),
    "zero padding 1d": (ROWS, lambda: L.ZeroPadding1D((1, 2))),
    "cropping": (IMAGE, lambda: L.Cropping2D(((1, 2), (0, 3)))),
    "cropping 1d": (ROWS, lambda: L.Cropping1D((1, 2))),
    "up sampling": (IMAGE, lambda: L.UpSampling2D((2, 3))),
    "up sampling 1d": (ROWS, lambda: L.UpSampling1D(2)),
    "max pool": (IMAGE, lambda: L.MaxPooling2D(3, strides=2, padding="same")),
    "max pool uneven": ((1, 8, 8, 2), lambda: L.MaxPooling2D(3, strides=2, padding="same")),
    "max pool 1d": (ROWS, lambda: L.MaxPooling1D(2)),
    "average pool": (IMAGE, lambda: L.AveragePooling2D(3, strides=1, padding="same")),
    "average pool valid": (IMAGE, lambda: L.AveragePooling2D((2, 3))),
    "average pool 1d": (ROWS, lambda: L.AveragePooling1D(3, strides=1, padding="same")),
    "global average": (IMAGE, lambda: L.GlobalAveragePooling2D()),
    "global average kept": (IMAGE, lambda: L.GlobalAveragePooling2D(keepdims=True)),
    "global max": (IMAGE, lambda: L.GlobalMaxPooling2D()),
    "global average 1d": (ROWS, lambda: L.GlobalAveragePooling1D()),
    "global max 1d first": (ROWS, lambda: L.GlobalMaxPooling1D(**FIRST)),
    "flatten": (IMAGE, lambda: L.Flatten()),
    "flatten first": (IMAGE, lambda: L.Flatten(**FIRST)),
    "reshape": (IMAGE, lambda: L.Reshape((-1, 7))),
    "permute": (IMAGE, lambda: L.Permute((3, 1, 2))),
    "repeat": (FLAT, lambda: L.RepeatVector(3)),
    "dropout": (ROWS, lambda: L.Dropout(0.4)),
    "spatial dropout": (ROWS, lambda: L.SpatialDropout1D(0.4)),
    "gaussian noise": (ROWS, lambda: L.GaussianNoise(0.4)),
    "rescaling": (IMAGE, lambda: L.Rescaling(1 / 255.0, offset=-0.5)),
    "rescaling by channel": (IMAGE, lambda: L.Rescaling([0.1, 0.2, 0.3], offset=[0.5, 0.0, -1.0])),
    "normalization": (IMAGE, lambda: L.Normalization()),
    "normalization given": (FLAT, lambda: L.Normalization(mean=0.3, variance=2.0, axis=None)),
    "normalization inverted": (
        FLAT,
        lambda: L.Normalization(mean=[1, 2, 3, 4, 5.0], variance=[2.0] * 5, invert=True),
    ),
    "simple rnn": (ROWS, lambda: L.SimpleRNN(3, return_sequences=True)),
    "lstm": (ROWS, lambda: L.LSTM(3)),
    "lstm states": (ROWS, lambda: L.LSTM(3, return_sequences=True, return_state=True)),
    "lstm backwards": (ROWS, lambda: L.LSTM(3, go_backwards=True, use_bias=False)),
    "gru": (ROWS, lambda: L.GRU(3, return_sequences=True)),
    "gru reset before": (ROWS, lambda: L.GRU(3, reset_after=False)),
    "gru without bias": (ROWS, lambda: L.GRU(3, use_bias=False)),
    "bidirectional": (ROWS, lambda: L.Bidirectional(L.LSTM(3, return_sequences=True))),
    "bidirectional sum": (ROWS, lambda: L.Bidirectional(L.GRU(3), merge_mode="sum")),
    "time distributed": ((2, 3, 6, 6, 2), lambda: L.TimeDistributed(L.Conv2D(3, 3, activation="relu"))),
}


@pytest.mark.parametrize("label", LAYERS)
def test_a_layer(label: str, tmp_path: Path) -> None:
    shape, make = LAYERS[label]
    source = keras.Input(shape[1:])
    check(keras.Model(source, make()(source)), tmp_path, draw(*shape))


ACTIVATIONS = (
    "relu relu6 leaky_relu elu selu celu gelu silu swish mish tanh hard_tanh tanh_shrink sigmoid "
    "hard_sigmoid hard_silu hard_swish log_sigmoid sparse_sigmoid softplus sparse_plus squareplus softsign "
    "hard_shrink soft_shrink exponential linear softmax log_softmax glu"
).split()


def test_activations(tmp_path: Path) -> None:
    source = keras.Input((6,))
    model = keras.Model(source, [L.Activation(name)(source) for name in ACTIVATIONS])
    x = 3 * draw(4, 6)
    check(model, tmp_path, x, bound=4e-6)


def test_merging_layers(tmp_path: Path) -> None:
    a, b, c = (keras.Input((4, 6)) for _ in range(3))
    merged = [kind()([a, b, c]) for kind in (L.Add, L.Multiply, L.Average, L.Maximum, L.Minimum)]
    outs = [*merged, L.Subtract()([a, b]), L.Concatenate(axis=1)([a, b]), L.Dot(axes=(2, 2))([a, b])]
    outs.append(L.Dot(axes=1)([L.Flatten()(a), L.Flatten()(b)]))
    check(keras.Model([a, b, c], outs), tmp_path, *(draw(2, 4, 6, seed=seed) for seed in range(3)))


def test_attention(tmp_path: Path) -> None:
    q, v = keras.Input((5, 6)), keras.Input((4, 6))
    outs = [
        L.MultiHeadAttention(2, 3)(q, v),
        L.MultiHeadAttention(2, 3, value_dim=5, output_shape=7, use_bias=False)(q, v, key=v),
        L.MultiHeadAttention(3, 2)(q, q, use_causal_mask=True),
    ]
    check(keras.Model([q, v], outs), tmp_path, draw(2, 5, 6), draw(2, 4, 6))


def test_embedding(tmp_path: Path) -> None:
    source = keras.Input((4,), dtype="int32")
    model = keras.Model(source, L.Dense(2)(L.Embedding(9, 5)(source)))
    check(model, tmp_path, np.array([[1, 8, 0, 3], [2, 2, 7, 5]], np.int32))


def test_lstm_with_states_of_another(tmp_path: Path) -> None:
    source = keras.Input((4, 3))
    _, hidden, carry = L.LSTM(5, return_state=True)(source)
    out = L.LSTM(5, return_sequences=True)(source, initial_state=[hidden, carry])
    check(keras.Model(source, out), tmp_path, draw(2, 4, 3))


# --- graphs -----------------------------------------------------------------------------------------


def test_shared_layers_and_nested_models(tmp_path: Path) -> None:
    image = keras.Input((8, 8, 3), name="image")
    inner = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(3, 3, padding="same", activation="relu")])
    source = keras.Input((8, 8, 3))
    conv = L.Conv2D(3, 1)
    twice = keras.Model(source, [conv(conv(source)), L.ReLU()(source)])
    x = inner(inner(image))
    a, b = twice(x)
    a, b = twice(a + 2.0 * b)
    model = keras.Model({"image": image}, {"sum": a - b, "raw": b})
    found = check_dict(model, tmp_path, draw(2, 8, 8, 3))
    assert [str(name) for name in found.program.entry().outputs] == ["sum", "raw"]
    assert sum(key.endswith("kernel") for key in found.weights) == 2


def check_dict(model: Any, folder: Path, x: np.ndarray[Any, Any]) -> Model:
    shake(model)
    with torch.no_grad():
        want = model({"image": x}, training=False)
    model.save(folder / "m.keras")
    found = from_keras(folder / "m.keras", {"image": x})
    close(run_host(found, x), [want[key].numpy() for key in ("sum", "raw")])
    return found


def test_several_inputs_bear_their_names(tmp_path: Path) -> None:
    a, b = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    found = check(keras.Model([a, b], L.Subtract()([a, b])), tmp_path, draw(2, 3), draw(2, 3, seed=5))
    assert [str(name) for name in found.program.entry().inputs] == ["left", "right"]


def test_channels_first_model_has_no_permutation(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((3, 9, 9)),
            L.Conv2D(4, 3, **FIRST),
            L.BatchNormalization(axis=1),
            L.MaxPooling2D(2, **FIRST),
        ]
    )
    assert "permute" not in kinds(check(model, tmp_path, draw(2, 3, 9, 9)))


def test_permutations_cancel_between_channels_last_layers(tmp_path: Path) -> None:
    source = keras.Input((12, 12, 3))
    x = L.Conv2D(4, 3, padding="same")(source)
    y = L.PReLU(shared_axes=[1, 2])(L.ZeroPadding2D(1)(L.BatchNormalization()(L.Conv2D(4, 3)(x))))
    x = L.Concatenate()([L.Add()([x, y]), L.Activation("elu")(y), x])
    out = L.Dense(2)(L.GlobalAveragePooling2D()(L.MaxPooling2D()(x)))
    found = check(keras.Model(source, out), tmp_path, draw(1, 12, 12, 3))
    assert kinds(found).count("permute") == 1  # the image's own
    assert "batch_norm" not in kinds(found)


def test_without_an_example_the_batch_is_one() -> None:
    model = keras.Sequential([keras.Input((5,)), L.Dense(2)])
    (entry,) = from_keras(model).program.entries.values()
    assert from_keras(model).program.values[str(entry.inputs[0])].shape == (1, 5)


def test_open_sizes_need_an_example(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, 4)), L.Conv1D(2, 3)])
    model.save(tmp_path / "m.keras")
    for source in (model, tmp_path / "m.keras"):
        with pytest.raises(InputError, match="open sizes"):
            from_keras(source)
        assert from_keras(source, draw(2, 6, 4)).program.entry()
        with pytest.raises(InputError, match="an example of shape"):
            from_keras(source, draw(2, 6, 5))


def test_uneven_average_pools_leave_padding_out() -> None:
    """As TensorFlow does; Keras' torch backend repeats the edge instead."""
    model = keras.Sequential([keras.Input((3, 3, 1)), L.AveragePooling2D(2, strides=2, padding="same")])
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    (have,) = run_host(from_keras(model), x)
    np.testing.assert_array_equal(have[0, :, :, 0], [[2.0, 3.5], [6.5, 8.0]])


# --- live models outside the table ------------------------------------------------------------------


class Gate(L.Layer):  # type: ignore[misc]
    """A layer of somebody's own: the table cannot know it, torch.export can."""

    def call(self, x: Any) -> Any:
        return x * keras.ops.sigmoid(2.0 * x)


def gated() -> Any:
    source = keras.Input((9, 9, 3), name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, strides=2, padding="same")(source)))
    x = L.Add()([x, L.Conv2D(4, 1)(Gate()(x))])
    return keras.Model(source, L.Dense(2, activation="softmax")(L.GlobalAveragePooling2D()(x)))


def test_a_layer_outside_the_table_goes_through_export(tmp_path: Path) -> None:
    model = gated()
    shake(model)
    x = draw(1, 9, 9, 3)
    want = run_keras(model, x)
    raw, found = (from_keras(model, normalise=normalise) for normalise in (False, True))
    close(run_host(raw, x), want, 0.0)
    close(run_host(found, x), want)
    assert {"batch_norm", "sub", "rsqrt", "view", "matmul"}.isdisjoint(kinds(found))
    assert kinds(found).count("permute") == 1 and kinds(found).count("convolution") == 2
    assert len(kinds(found)) < len(kinds(raw)) / 3
    model.save(tmp_path / "m.keras")
    with pytest.raises(UnsupportedError, match="Gate"):
        from_keras(tmp_path / "m.keras")


def test_a_lambda_is_code_of_ones_own_only_while_it_is_live(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Lambda(lambda x: 2.0 * x)])
    x = draw(1, 3)
    close(run_host(from_keras(model), x), [2.0 * x])
    model.save(tmp_path / "m.keras")
    with pytest.raises(UnsupportedError, match="Lambda"):
        from_keras(tmp_path / "m.keras")


def test_neither_way_says_both_reasons() -> None:
    class Sorted(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return torch.linalg.svdvals(x)

    source = keras.Input((3, 3))
    with pytest.raises((UnsupportedError, InputError)) as found:
        from_keras(keras.Model(source, Sorted()(source)), draw(1, 3, 3))
    assert "table of layers" in str(found.value)


# --- files saved by TensorFlow; known models --------------------------------------------------------


def test_a_file_saved_by_tensorflow() -> None:
    stored = np.load(DATA / "tf_saved.npz")
    found = from_keras(DATA / "tf_saved.keras", stored["image"])
    for run in (run_host, run_numpy):
        close(run(found, stored["image"]), [stored["classes"]], 1e-6)


def test_a_file_is_read_without_keras_and_torch() -> None:
    code = (
        "import sys\nsys.modules['keras'] = sys.modules['torch'] = sys.modules['h5py'] = None\n"
        "from tensure.program.from_keras import from_keras\n"
        f"print(len(from_keras({str(DATA / 'tf_saved.keras')!r}).weights))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 10, done.stderr


def test_load_reads_a_keras_file() -> None:
    found = load(DATA / "tf_saved.keras", name="mine")
    assert found.name == "mine" and str(found.program.entry().outputs[0]) == "out"


APPLICATIONS = {"MobileNetV2": (96, 130), "ResNet50": (64, 200), "VGG16": (64, 50)}


@pytest.mark.parametrize("label", APPLICATIONS)
def test_keras_applications(label: str, tmp_path: Path) -> None:
    """Equal to Keras on torch within BOUND, with random statistics, before and after the normaliser."""
    size, most = APPLICATIONS[label]
    model = getattr(keras.applications, label)(
        weights=None, classes=10, input_shape=(size, size, 3), classifier_activation=None
    )
    lively(model)
    x = draw(1, size, size, 3)
    want = run_keras(model, x)
    model.save(tmp_path / "m.keras")
    for source in (model, tmp_path / "m.keras"):
        found = from_keras(source)
        assert len(found.program.entry().body) <= most
        close(run_host(found, x), want, 1e-5)


def lively(model: Any) -> None:
    """Random statistics of every norm, weights as initialised: values keep their size through the depth."""
    rng = np.random.default_rng(3)
    for variable in model.variables:
        kind = variable.path.rpartition("/")[2]
        low, high = {"moving_variance": (0.5, 1.5), "gamma": (0.8, 1.2)}.get(kind, (-0.2, 0.2))
        if kind in ("moving_variance", "gamma", "beta", "moving_mean", "bias"):
            variable.assign(rng.uniform(low, high, tuple(variable.shape)).astype(np.float32))


# --- what is refused --------------------------------------------------------------------------------


def test_what_is_no_keras_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keras\.Model"):
        from_keras(torch.nn.ReLU())
    with pytest.raises(InputError, match="cannot open"):
        from_keras(tmp_path / "nowhere.keras")


def test_negative_control_a_weight_moved_by_one_is_seen(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5,)), L.Dense(3)])
    shake(model)
    x = draw(2, 5)
    want = run_keras(model, x)
    close(run_host(from_keras(model, x), x), want)
    model.layers[0].kernel.assign(np.roll(model.layers[0].kernel.numpy(), 1, axis=0))
    with pytest.raises(AssertionError):
        close(run_host(from_keras(model, x), x), want)


def test_too_many_steps_are_refused() -> None:
    model = keras.Sequential([keras.Input((None, 2)), L.LSTM(2)])
    with pytest.raises(LimitError, match="8192 ops"):
        from_keras(model, draw(1, 5000, 2))


def test_masks_are_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(9, 5, mask_zero=True), L.LSTM(2)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(UnsupportedError, match="mask_zero"):
        from_keras(tmp_path / "m.keras")


def test_variables_of_another_model_are_refused(tmp_path: Path) -> None:
    import zipfile

    for name, units in (("a", 3), ("b", 4)):
        keras.Sequential([keras.Input((5,)), L.Dense(units)]).save(tmp_path / f"{name}.keras")
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as a,
        zipfile.ZipFile(tmp_path / "b.keras") as b,
        zipfile.ZipFile(tmp_path / "c.keras", "w") as c,
    ):
        for entry in a.namelist():
            c.writestr(entry, (b if entry.endswith("h5") else a).read(entry))
    with pytest.raises(FormatError, match=r"float32\[5, 4\]"):
        from_keras(tmp_path / "c.keras")
