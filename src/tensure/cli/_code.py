"""Errors of code that is the user's own: said as theirs, with the line that raised them, never as ours."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["as_theirs", "of_their_code"]


@contextmanager
def of_their_code(*models: str, verbose: bool = False) -> Iterator[None]:
    """What code named by `package.module:name` raises inside leaves as an `InputError`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        theirs = as_theirs(error, *models, verbose=verbose)
        if theirs is error:
            raise
        raise theirs from None


def as_theirs(error: BaseException, *models: str, verbose: bool = False) -> BaseException:
    """The error to show for this one: itself, unless it came out of the user's code."""
    from tensure.api import names_code
    from tensure.errors import InputError, TensureError

    named = [model for model in models if names_code(model)]
    if isinstance(error, TensureError | KeyboardInterrupt) or not named:
        return error
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _framework(frame.filename)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    words = str(error).strip().splitlines()
    said = f": {words[0][:300]}" if words else ""
    return InputError(
        f"the code raised {type(error).__name__}{said}",
        file=", ".join(named),
        place=place,
        next_step=None if verbose else "With -v the whole trace is shown",
    )


def _framework(path: str) -> bool:
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    parts = path.split(os.sep)
    return path.startswith((here, "<")) or ("torch" in parts and "site-packages" in parts)
