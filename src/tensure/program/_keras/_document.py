"""A Keras config before anybody believes it: which classes it may name.

Knows: how Keras writes an object (module, class_name, config, registered_name) and that its own
deserialiser would import and call what such an object names. This reader never does, and a file that asks
for it is refused whole, wherever in it the object stands, because it was made to be run by somebody. What
is left are names of Keras' own classes; whether one is a layer we read is decided by `_table.py`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tensure.errors import FormatError, UnsupportedError

__all__ = ["Config", "check_document", "class_of"]

Config = dict[str, Any]

_OURS: Final = re.compile(r"keras(\.[A-Za-z_][A-Za-z0-9_]*)*")
_FORBIDDEN: Final = frozenset({"__lambda__", "Lambda", "function", "partial", "__typespec__"})
_UNSAFE: Final = "enable_unsafe_deserialization"
_PLAIN: Final = frozenset(
    {"__tensor__", "__numpy__", "__bytes__", "__tuple__", "__keras_tensor__", "__ellipsis__", "slice"}
)
_NEXT: Final = "Rebuild the model from Keras' own layers and save it again."


def check_document(document: Any) -> None:
    """Refuse a config that names anything but Keras' own classes, or that wants code run.

    Raises:
        UnsupportedError: a Lambda, a function, a module outside keras, a registered class of somebody's own,
            `enable_unsafe_deserialization`; named with its place in the document.
        FormatError: an object without a class name.
    """
    pending: list[tuple[Any, str]] = [(document, "config.json")]
    while pending:
        found, place = pending.pop()
        if isinstance(found, list):
            pending += [(item, place) for item in found]
        elif isinstance(found, dict):
            _check_object(found, place)
            pending += [(item, f"{place}.{key}"[:200]) for key, item in found.items()]
        elif isinstance(found, str) and _UNSAFE in found:
            raise UnsupportedError(f"the config names {_UNSAFE}", place=place, wanted="data, not orders")


def _check_object(found: Config, place: str) -> None:
    if any(isinstance(key, str) and _UNSAFE in key for key in found):
        raise UnsupportedError(f"the config names {_UNSAFE}", place=place, wanted="data, not orders")
    if "class_name" not in found:
        if "module" in found and "registered_name" in found:
            raise FormatError("an object without class_name", place=place)
        return
    kind, module = found["class_name"], found.get("module")
    shown = f"{module}.{kind}"[:120] if isinstance(module, str) else str(kind)[:120]
    if not isinstance(kind, str):
        raise FormatError(f"class_name {shown}", place=place, wanted="a string")
    if kind in _FORBIDDEN:
        what = "a Lambda layer, which is code" if "ambda" in kind else f"{shown}: a function by name"
        raise UnsupportedError(what, place=place, wanted="Keras' own layers", next_step=_NEXT)
    if module is None and (kind in _PLAIN or found.get("registered_name") is None):
        return
    if not isinstance(module, str) or _OURS.fullmatch(module) is None:
        raise UnsupportedError(f"class {shown}", place=place, wanted="classes of keras", next_step=_NEXT)
    registered = found.get("registered_name")
    if registered is not None and registered != kind:
        raise UnsupportedError(
            f"{str(registered)[:80]}, a registered class of its own",
            place=place,
            wanted="classes of keras",
            next_step=_NEXT,
        )


def class_of(found: Any, place: str) -> tuple[str, str, Config]:
    """Module, class name and config of an object.

    Raises:
        FormatError: it is none.
    """
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise FormatError(f"a {type(found).__name__} where a layer should stand", place=place)
    module, kind = found.get("module"), found.get("class_name")
    if not isinstance(module, str) or not isinstance(kind, str):
        raise FormatError("a layer without module and class_name", place=place, wanted="the Keras 3 format")
    return module, kind, found["config"]
