"""Writes tf_saved.keras and tf_saved.npz: a model saved by Keras on TensorFlow, and what it gives there.

Run where tensorflow-cpu 2.21 is installed (not in this project's environment): `python tf_saved_keras.py`.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
from keras import layers

HERE = Path(__file__).parent


def build() -> keras.Model:
    """Convolutions with uneven padding, both norms, an uneven average pool, attention and a GRU."""
    image = keras.Input((9, 11, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(max_value=6)(x)
    y = layers.DepthwiseConv2D(4, padding="same", activation="elu")(x)
    x = layers.Add()([x, y])
    x = layers.AveragePooling2D(2, padding="same")(x)
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same", activation="gelu")(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Reshape((-1, 5))(x)
    x = layers.LayerNormalization()(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x), name="tf_saved")


def pack(source: Path, target: Path) -> None:
    """The same entries deflated: HDF5 of a small model is mostly empty pages."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def main() -> None:
    """Random weights and statistics, one batch of two, outputs as TensorFlow computes them."""
    keras.utils.set_random_seed(4)
    model = build()
    rng = np.random.default_rng(4)
    for variable in model.variables:
        if variable.dtype == "float32":
            low, high = (0.5, 1.5) if "variance" in variable.path else (-0.7, 0.7)
            variable.assign(rng.uniform(low, high, variable.shape).astype(np.float32))
    image = rng.uniform(0, 255, (2, 9, 11, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "saved.keras")
        pack(Path(folder) / "saved.keras", HERE / "tf_saved.keras")
    np.savez_compressed(HERE / "tf_saved.npz", image=image, classes=model(image, training=False))


if __name__ == "__main__":
    main()
