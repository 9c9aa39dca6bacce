"""A `.keras` file: its config and its variables, read in place without Keras.

Knows: the archive Keras 3 writes (metadata.json, config.json, model.weights.h5) and the paths of variables
in it. Nothing is extracted, nothing outside the archive is ever opened, and the config is data only. Does
not know layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, TensureError, UnsupportedError

from ._files import map_file
from ._hdf5 import Hdf5File
from ._json_door import parse_json
from ._zip_door import ZipEntry, read_zip

__all__ = ["FileVariables", "parse_config", "read_keras_file"]

_MAX_ENTRIES: Final = 4096
_MAX_CONFIG: Final = 16 << 20
_MAX_METADATA: Final = 1 << 16
_MAX_WEIGHTS: Final = 1 << 38
_MAX_RATIO: Final = 64
_MAX_DEPTH: Final = 96
_MAX_ITEMS: Final = 1 << 19
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@dataclass(slots=True)
class FileVariables:
    """Variables by path in model.weights.h5: group `<path>/vars` holds them as `0`, `1`, ..."""

    file: Hdf5File
    _groups: dict[tuple[str, ...], Mapping[str, int]] = field(
        default_factory=dict[tuple[str, ...], Mapping[str, int]]
    )

    def count(self, path: tuple[str, ...]) -> int:
        """How many variables the object at a path has.

        Raises:
            FormatError: they are not numbered from 0 on.
        """
        if path not in self._groups:
            found = self._walk((*path, "vars"))
            if set(found) != set(map(str, range(len(found)))):
                raise FormatError(f"{'/'.join(path)}/vars holds {', '.join(found)[:80]}", wanted="0, 1, ...")
            self._groups[path] = found
        return len(self._groups[path])

    def read(self, path: tuple[str, ...], index: int) -> npt.NDArray[Any]:
        """One of them, as it is stored."""
        return self.file.read((*path, "vars", str(index)))

    def _walk(self, path: tuple[str, ...]) -> Mapping[str, int]:
        for length in range(len(path)):
            above = self.file.group(path[:length])
            if above is None or path[length] not in above:
                return {}
        return self.file.group(path) or {}


def read_keras_file(path: str | os.PathLike[str]) -> tuple[Any, FileVariables]:
    """The config as plain data, unchecked, and where the variables are.

    Raises:
        FormatError: no `.keras` archive, or a damaged one. LimitError: a bound of size or number is passed.
        UnsupportedError: another version of Keras, or weights in several files.
    """
    try:
        entries = read_zip(map_file(path), max_entries=_MAX_ENTRIES)
        for name in entries:
            if name not in (_CONFIG, _METADATA, _WEIGHTS) and not name.startswith("assets/"):
                raise UnsupportedError(
                    f"the entry {name[:80]!r}", wanted=f"{_METADATA}, {_CONFIG} and {_WEIGHTS} alone"
                )
        _check_metadata(_parsed(entries, _METADATA, _MAX_METADATA))
        config = _parsed(entries, _CONFIG, _MAX_CONFIG)
        weights = _entry(entries, _WEIGHTS).read(max_bytes=_MAX_WEIGHTS, max_ratio=_MAX_RATIO)
        try:
            return config, FileVariables(Hdf5File(weights))
        except TensureError as error:
            raise error.at(place=_WEIGHTS) from None
    except TensureError as error:
        raise error.at(file=path) from None


def parse_config(data: bytes) -> Any:
    """A config.json within its bounds.

    Raises:
        FormatError: no strict JSON. LimitError: too large, too deep or too many items.
    """
    return parse_json(data, max_bytes=_MAX_CONFIG, max_depth=_MAX_DEPTH, max_items=_MAX_ITEMS, floats=True)


def _entry(entries: Mapping[str, ZipEntry], name: str) -> ZipEntry:
    if name not in entries:
        raise FormatError(f"no {name} in the archive", wanted="a .keras file as Keras 3 writes it")
    return entries[name]


def _parsed(entries: Mapping[str, ZipEntry], name: str, most: int) -> Any:
    data = _entry(entries, name).read(max_bytes=most, max_ratio=_MAX_RATIO)
    try:
        return parse_config(np.ascontiguousarray(data).tobytes())
    except TensureError as error:
        raise error.at(place=name) from None


def _check_metadata(found: Any) -> None:
    version = found.get("keras_version") if isinstance(found, dict) else None
    if not isinstance(version, str):
        raise FormatError(f"{_METADATA} gives no keras_version", wanted="a .keras file as Keras 3 writes it")
    if not version.startswith("3."):
        raise UnsupportedError(
            f"a file of Keras {version[:20]}",
            wanted="Keras 3",
            next_step="Load it in Keras 3 and save it again.",
        )
