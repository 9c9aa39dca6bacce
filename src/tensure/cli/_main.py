"""The one door: arguments in, an exit code out, and no error without a word a person can use.

    0    yes
    1    no: refuted, damaged, slower than asked
    2    bad usage or bad input
    3    undecided
    4    our own failure
    130  interrupted (Ctrl-C); 141 when whoever read our output went away

Knows how every kind of error becomes a message and a code. Does not know any verb.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer
from typer.exceptions import Abort, TyperException

from tensure.errors import TensureError

from ._app import make_app
from ._talk import printable

__all__ = ["main"]

OURS, INTERRUPTED, READER_GONE = 4, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Before torch is loaded: see tensure.runtime._execution, which says why. Not for measurements: peers
    # would inherit it, and llama.cpp on two threads is then three times as slow as its makers have it.
    if words[:1] != ["bench"]:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return READER_GONE
    except OSError as error:
        # Not even the error object of --json can be written, so stderr and the code must do.
        _let_go_of_stdout()
        with suppress(OSError):
            print(f"tensure: the answer cannot be written: {error.strerror or error}", file=sys.stderr)
        return OURS
    return code


def _run(words: list[str]) -> int:
    try:
        found = typer.main.get_command(make_app())(words, prog_name="tensure", standalone_mode=False)
        # The command-line library turns Ctrl-C inside a command into this code, without a word.
        return _say_interrupted() if found == INTERRUPTED else found if isinstance(found, int) else 0
    except TensureError as error:
        return _say_no(words, error)
    except TyperException as error:
        return _say_usage(words, error)
    except (Abort, KeyboardInterrupt):
        return _say_interrupted()
    except BrokenPipeError:
        raise
    except SystemExit as error:
        # The command-line library turns a broken pipe into exit code 1, which means "no" here.
        return READER_GONE if error.code == 1 else OURS
    except Exception as error:  # noqa: BLE001 - the last door: an unforeseen error must exit 4, never 1
        return _say_ours(words, error)


def _say_interrupted() -> int:
    print("\ntensure: interrupted; nothing half-written remains", file=sys.stderr)
    return INTERRUPTED


def _say_no(words: list[str], error: TensureError) -> int:
    print(f"tensure: {error}", file=sys.stderr)
    if _wants_json(words):
        parts = {key: getattr(error, key) for key in ("found", "file", "place", "wanted", "next_step")}
        _print_json(type(error).__name__, str(error), error.exit_code, parts)
    return error.exit_code


def _say_usage(words: list[str], error: TyperException) -> int:
    message = printable(error.format_message())
    print(f"tensure: {message}\nTry 'tensure --help' or 'tensure VERB --help'.", file=sys.stderr)
    if _wants_json(words):
        _print_json("UsageError", message, 2, {})
    return 2


def _say_ours(words: list[str], error: Exception) -> int:
    message = printable(f"internal error: {type(error).__name__}: {error}")
    if "-v" in words or "--verbose" in words or "-vv" in words:
        traceback.print_exception(error)
    print(f"tensure: {message}\nThis is our fault. With -v the whole trace is shown.", file=sys.stderr)
    if _wants_json(words):
        _print_json("InternalError", message, OURS, {})
    return OURS


def _wants_json(words: list[str]) -> bool:
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _print_json(kind: str, message: str, code: int, parts: dict[str, str | None]) -> None:
    error = {"kind": kind, "message": message, "exit_code": code, **parts}
    print(json.dumps({"schema": "tensure.error/1", "error": error}))


def _let_go_of_stdout() -> None:
    """Python flushes stdout once more when it ends; give it somewhere to flush to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
