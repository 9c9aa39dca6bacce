"""A layer's config, read key by key: every option is checked, and none is dropped unread.

Knows: what kinds of value Keras writes, and which keys say nothing about inference. A key nobody asked for is
refused unless it is off (none or false), so that an option of a later Keras never passes as if it were not
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tensure.errors import FormatError, UnsupportedError

__all__ = ["Options"]

_SILENT: Final = frozenset(
    {"name", "trainable", "seed", "momentum", "renorm_momentum", "synchronized", "autocast"}
)
_TRAINING: Final = ("_initializer", "_regularizer", "_constraint", "_spec")
_LARGEST: Final = 1 << 40
_FLOAT32_MAX: Final = 3.4028234663852886e38


class Options:
    """The config of one layer.

    Every method takes a key and gives its checked value; one left out means `default`, or an error without
    one.

    Raises:
        FormatError: a value of another kind or out of range. UnsupportedError: one we do not read.
    """

    def __init__(self, config: Mapping[str, Any], place: str) -> None:
        self._config = config
        self._asked: set[str] = set()
        self.place = place

    def raw(self, key: str, default: Any = ...) -> Any:
        """The value as it stands."""
        self._asked.add(key)
        if key in self._config:
            return self._config[key]
        if default is ...:
            raise FormatError(f"the option {key} is missing", place=self.place)
        return default

    def integer(self, key: str, default: Any = ..., *, least: int = 1) -> int:
        """An integer of at least `least`."""
        value = self.raw(key, default)
        if not _is_int(value) or not least <= value <= _LARGEST:
            raise self._bad(key, value, f"an integer of at least {least}")
        return int(value)

    def number(self, key: str, default: Any = ...) -> float:
        """A number within float32."""
        value = self.raw(key, default)
        if not _is_number(value):
            raise self._bad(key, value, "a float32 number")
        return float(value)

    def flag(self, key: str, default: Any = ...) -> bool:
        """True or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def word(self, key: str, choices: tuple[str, ...], default: Any = ...) -> str:
        """One of `choices`."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self._bad(key, value, f"one of {', '.join(choices)}")
        if value not in choices:
            raise UnsupportedError(
                f"{key}={value[:80]!r}", place=self.place, wanted=f"one of {', '.join(choices)}"
            )
        return value

    def integers(self, key: str, count: int | None, default: Any = ..., *, least: int = 1) -> tuple[int, ...]:
        """`count` integers, or any number for None; a single one stands for all of them."""
        value = self.raw(key, default)
        found = [value] * (count or 1) if _is_int(value) else value
        if (
            not isinstance(found, list | tuple)
            or (count is not None and len(found) != count)
            or len(found) > 8
        ):
            raise self._bad(key, value, f"{count or 'a few'} integers")
        if not all(_is_int(item) and least <= item <= _LARGEST for item in found):
            raise self._bad(key, value, f"integers of at least {least}")
        return tuple(found)

    def pairs(self, key: str, count: int) -> list[tuple[int, int]]:
        """(before, after) for each of `count` dims, from one number, a pair of them or pairs of pairs."""
        value = self.raw(key)
        found = [value] * count if _is_int(value) else value
        if not isinstance(found, list | tuple) or len(found) != count:
            if count == 1 and isinstance(found, list | tuple) and len(found) == 2:
                found = [found]
            else:
                raise self._bad(key, value, f"{count} pairs")
        out: list[tuple[int, int]] = []
        for item in found:
            pair = [item, item] if _is_int(item) else item
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_int, pair)):
                raise self._bad(key, value, f"{count} pairs")
            if min(pair) < 0 or max(pair) > _LARGEST:
                raise self._bad(key, value, "sizes of at least 0")
            out.append((pair[0], pair[1]))
        return out

    def numbers(self, key: str, default: Any = ...) -> float | tuple[float, ...]:
        """A number, or a list of them."""
        value = self.raw(key, default)
        many = value if isinstance(value, list | tuple) else [value]
        for item in many:
            if not _is_number(item):
                raise self._bad(key, value, "float32 numbers")
        return tuple(map(float, value)) if isinstance(value, list | tuple) else float(many[0])

    def channels_last(self) -> bool:
        """Whether the channels are the last dim: what `data_format` says, true where it is none."""
        value = self.raw("data_format", None)
        if value is None:
            return True
        return self.word("data_format", ("channels_last", "channels_first")) == "channels_last"

    def dtype(self) -> str:
        """The dtype a layer computes in: float32, the only one read."""
        value = self.raw("dtype", "float32")
        if isinstance(value, dict):
            config = value.get("config")
            value = config.get("name") if isinstance(config, dict) and set(config) <= {"name"} else value
        if value not in ("float32", None):
            raise UnsupportedError(f"dtype {str(value)[:80]}", place=self.place, wanted="float32")
        return "f32"

    def off(self, key: str, *values: Any) -> None:
        """Refuse an option we do not read unless it is none, false or one of `values`."""
        value = self.raw(key, None)
        if value is not None and value is not False and value not in values:
            raise UnsupportedError(f"{key}={str(value)[:80]}", place=self.place, wanted="that option off")

    def ignore(self, *keys: str) -> None:
        """Options that say nothing about inference."""
        self._asked.update(keys)

    def done(self) -> None:
        """Refuse what nobody asked for."""
        for key, value in self._config.items():
            silent = key in self._asked or key in _SILENT or key.endswith(_TRAINING)
            if not silent and value is not None and value is not False:
                raise UnsupportedError(
                    f"the option {key[:80]}={str(value)[:80]}", place=self.place, wanted="options we know"
                )

    def _bad(self, key: str, value: Any, wanted: str) -> FormatError:
        return FormatError(f"{key}={str(value)[:80]}", place=self.place, wanted=wanted)


def _is_number(value: Any) -> bool:
    """A number that float32 holds; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT32_MAX


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
