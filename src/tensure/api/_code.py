"""`package.module:name`: an object of the caller's own code, imported as asked."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

from tensure.errors import InputError

__all__ = ["code_named", "names_code"]


def names_code(text: str) -> bool:
    """Whether a text is `package.module:name`."""
    module, sep, name = text.partition(":")
    return bool(sep) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def code_named(text: str) -> Any:
    """The object that `package.module:name` names. This runs the caller's own code, as asked.

    Raises:
        InputError: no such module here, or no such name in it.
    """
    module, _, name = text.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"cannot import {module}: {error}", place=text, wanted="package.module:name, importable from here"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the code is theirs
        frames = traceback.extract_tb(error.__traceback__)
        at = [frame for frame in frames if not frame.filename.startswith("<")][-1]
        raise InputError(
            f"importing {module} raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            place=f"{os.path.basename(at.filename)}:{at.lineno}",
            wanted="a module that can be imported",
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{module} has no {name!r}", place=text)
        found = getattr(found, part)
    return found
