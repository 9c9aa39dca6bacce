"""A weight as it lies in its file: named bytes with an encoding and a shape, decoded only on request.

Knows: the record every reader returns and every adapter consumes. Does not know any file format
(`_gguf.py`, `_safetensors.py`) nor the layout of a block (`_encodings.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError

from . import _encodings
from ._encodings import ENCODINGS, Encoding, encoded_nbytes

__all__ = ["ENCODINGS", "Encoding", "StoredTensor", "Weights", "encoded_nbytes"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor's stored bytes: never decoded until asked, and never copied from a mapped file.

    `shape` is logical, row-major, outermost first. `data` is 1-D, read-only and exactly
    `encoded_nbytes(encoding, shape)` long.

    Raises:
        FormatError: `data` has another length or form than the shape and encoding ask for.
    """

    shape: tuple[int, ...]
    encoding: str
    data: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        expected = encoded_nbytes(self.encoding, self.shape)
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.size != expected:
            raise FormatError(
                f"{self.data.dtype} data of shape {list(self.data.shape)} for a tensor of shape "
                f"{list(self.shape)} as {self.encoding}",
                wanted=f"{expected} bytes",
            )
        if self.data.flags.writeable:
            frozen = self.data.view()
            frozen.flags.writeable = False
            object.__setattr__(self, "data", frozen)

    @classmethod
    def from_array(cls, values: npt.NDArray[np.generic], encoding: str) -> StoredTensor:
        """`values` rounded to `encoding` (the plain ones, q8_0, q4_0, q4_1) and stored."""
        return cls(tuple(values.shape), encoding, _encodings.encode(encoding, values))

    @property
    def dtype(self) -> str:
        """The dtype of the decoded values: f32 for block and wide encodings."""
        return ENCODINGS[self.encoding].dtype

    def decode(self) -> npt.NDArray[np.generic]:
        """The values: float32 from block and wide encodings, else the stored type.

        Plain encodings give a read-only view of the stored bytes where alignment allows; copy before writing.

        Raises:
            FormatError: a stored bool is neither 0 nor 1.
        """
        return _encodings.decode(self.encoding, self.data, self.shape)


Weights = Mapping[str, StoredTensor]
