"""Verbs that are coming: each answers "not built yet" and exits 2. `tensure --help` names them."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, NoReturn

__all__ = ["COMING", "SETTINGS", "make_command"]

COMING: Final = MappingProxyType(
    {
        "quantize": "integer models",
        "build": "C sources for microcontrollers",
        "serve": "the service",
        "audit": "weights that repair themselves",
        "inject": "weights that repair themselves",
        "campaign": "weights that repair themselves",
        "fleet": "plans over several machines",
        "edge": "plans over several machines",
    }
)
"""What each verb comes with."""

SETTINGS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def make_command(verb: str) -> Callable[[], None]:
    """The command of a verb that is coming, whatever is passed to it."""

    def command() -> None:
        _refuse(verb)

    return command


def _refuse(verb: str) -> NoReturn:
    from tensure.errors import NotYetError

    raise NotYetError(
        f"tensure {verb} is not built yet; it comes with {COMING[verb]}",
        next_step="What stands today: tensure --help",
    )
