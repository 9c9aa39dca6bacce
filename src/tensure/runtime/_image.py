"""A photograph to the tensor a classifier reads, as its `image.json` says.

Knows decoding (Pillow, for PNG and JPEG), the central crop, bicubic resizing with antialiasing, and
normalisation. Does not know any model. Resizing is our own numpy, so that the tensor depends on the
pixels and on nothing installed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensure.errors import FormatError, InputError, LimitError

from ._tensors import Array

__all__ = ["ImageRecipe", "load_image", "prepare_image"]

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64 << 20


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What a classifier expects.

    Args:
        size: height and width of its input, in pixels.
        crop: side of the central square that is kept, as a share of the shorter side.
        mean, std: per channel, on the 0..255 scale of the pixels: (pixel - mean) / std.
    """

    size: int
    crop: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> ImageRecipe:
        """The recipe in an `image.json`.

        Raises:
            FormatError: a field is missing, unknown or out of range.
        """
        if set(table) != {"size", "crop", "mean", "std"}:
            raise FormatError(
                f"fields {', '.join(sorted(table))[:200]}", file="image.json", wanted="size, crop, mean, std"
            )
        size, crop = table["size"], table["crop"]
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
            raise FormatError(f"size {size!r:.40}", file="image.json", wanted="1 to 4096")
        if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0.01 <= crop <= 1:
            raise FormatError(f"crop {crop!r:.40}", file="image.json", wanted="0.01 to 1")
        return cls(size, float(crop), _triple(table["mean"], "mean"), _triple(table["std"], "std"))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"size": self.size, "crop": self.crop, "mean": list(self.mean), "std": list(self.std)}


def load_image(path: str | os.PathLike[str]) -> Array:
    """The pixels of a PNG or JPEG file: u8 [H, W, 3], turned as its EXIF data say.

    Raises:
        InputError: no such file, or Pillow is not installed.
        FormatError, LimitError: not such an image, or over 64 MB or 64 megapixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise InputError(
            "images need Pillow, which is not installed", file=path, next_step="pip install pillow"
        ) from None
    try:
        if not os.path.isfile(path):
            raise InputError("is not a file", file=path, wanted="a PNG or JPEG image")
        if (size := os.path.getsize(path)) > MAX_FILE_BYTES:
            raise LimitError(f"an image file of {size} bytes", file=path, wanted=f"at most {MAX_FILE_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes; ours are checked below
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if not 0 < width * height <= MAX_PIXELS:
                    raise LimitError(
                        f"an image of {width} x {height}", file=path, wanted=f"at most {MAX_PIXELS} pixels"
                    )
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)
    except UnidentifiedImageError:
        raise FormatError("not an image we read", file=path, wanted="PNG or JPEG") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise FormatError(f"the image cannot be read: {str(error)[:120]}", file=path) from None


def prepare_image(image: Array, recipe: ImageRecipe) -> Array:
    """The network input, f32 [1, 3, size, size], of an image u8 [H, W, 3].

    Grey images ([H, W]) are taken as three equal channels; a fourth channel (alpha) is dropped.

    Raises:
        InputError: not such an array.
    """
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
    ):
        raise InputError(f"an image of {image.dtype} {list(image.shape)}", wanted="u8 [H, W, 3]")
    if not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
        raise LimitError(f"an image of shape {list(image.shape)}", wanted=f"1 to {MAX_PIXELS} pixels")
    pixels_HWC = image[:, :, None] if image.ndim == 2 else image[:, :, :3]
    if pixels_HWC.shape[2] == 1:
        pixels_HWC = np.repeat(pixels_HWC, 3, axis=2)
    cropped_HWC = _central_square(pixels_HWC, recipe.crop).astype(np.float64)
    rows = _resize_matrix(cropped_HWC.shape[0], recipe.size)
    columns = _resize_matrix(cropped_HWC.shape[1], recipe.size)
    resized_HWC = np.einsum("yh,hwc,xw->yxc", rows, cropped_HWC, columns, optimize=True)
    normal_HWC = (np.clip(resized_HWC, 0, 255) - np.asarray(recipe.mean)) / np.asarray(recipe.std)
    return np.ascontiguousarray(normal_HWC.transpose(2, 0, 1)[None].astype(np.float32))


def _central_square(image_HWC: Array, share: float) -> Array:
    height, width = image_HWC.shape[:2]
    side = max(1, round(min(height, width) * share))
    top, left = (height - side) // 2, (width - side) // 2
    return image_HWC[top : top + side, left : left + side]


def _resize_matrix(old: int, new: int) -> Array:
    """Row weights [new, old] of cubic convolution (Keys 1981, a = -1/2), widened when shrinking."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(np.arange(old)[None, :] - centres[:, None]) / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(weights / total)


def _triple(value: Any, name: str) -> tuple[float, float, float]:
    if isinstance(value, list) and len(value) == 3:
        numbers = [
            float(part) for part in value if isinstance(part, int | float) and not isinstance(part, bool)
        ]
        if len(numbers) == 3 and all(np.isfinite(numbers)) and (name == "mean" or min(numbers) > 0):
            return (numbers[0], numbers[1], numbers[2])
    raise FormatError(f"{name} {value!r:.60}", file="image.json", wanted="three numbers")
