"""The child's end: set up the engine named on the command line, then answer requests until told to close.

    python -m tensure.benchmarks._serve NAME ARGS...

Whatever a library prints goes to stderr: the pipe to the parent is moved out of its reach first. A
TensureError becomes an error answer; anything else ends the process, and the parent reports its last line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import IO, Final

from tensure.errors import InputError, TensureError

from ._records import Json

__all__ = ["ENGINES", "serve"]

#: Engine by name: a function in this room, from command-line arguments to an object with the methods.
ENGINES: Final[Mapping[str, str]] = {
    "tensure": "_engine_tensure:setup",
    "transformers": "_engine_transformers:setup",
    "llama.cpp": "_engine_llama_cpp:setup",
    "float": "_engine_float:setup",
    "batch-tensure": "_engine_batch:setup",
    "quality-tensure": "_engine_tensure:setup_quality",
    "quality-transformers": "_engine_transformers:setup_quality",
    "quality-llama.cpp": "_engine_llama_cpp:setup_quality",
    "gemm": "_engine_gemm:setup",
    "gemm torch": "_engine_gemm:setup_torch",
    "gemv": "_engine_gemv:setup",
    "gemv torch": "_engine_gemv:setup_torch",
    "limits": "_limits:setup",
    "conv-reference": "_engine_conv_reference:setup",
    "conv-tensure": "_engine_conv_tensure:setup",
    "conv-torch": "_engine_conv_torch:setup",
    "conv-onnxruntime": "_engine_conv_onnxruntime:setup",
    "conv-openvino": "_engine_conv_openvino:setup",
    "conv-onednn": "_engine_conv_onednn:setup",
    "conv-xnnpack": "_engine_conv_xnnpack:setup",
    "inspect": "_engine_inspect:setup",
    "net-reference": "_engine_net_reference:setup",
    "net-tensure": "_engine_net_tensure:setup",
    "net-onnxruntime": "_engine_net_onnxruntime:setup",
    "net-openvino": "_engine_net_openvino:setup",
    "net-torch": "_engine_net_torch:setup",
}
_REQUESTS: Final = frozenset({"check", "run", "facts", "limits", "peak"})


def serve(setup: Callable[[], object], requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer line by line until `close` or the end of the requests."""
    try:
        engine = setup()
    except TensureError as error:
        _say(answers, {"error": str(error)})
        return
    _say(answers, {"ok": "ready"})
    for line in requests:
        message = json.loads(line)
        do, value = message["do"], message["case"]
        if do == "close":
            return
        try:
            if do not in _REQUESTS:
                raise InputError(f"request {do!r}", wanted=", ".join(sorted(_REQUESTS)))
            method = getattr(engine, do)
            _say(answers, {"ok": method() if value is None else method(value)})
        except TensureError as error:
            _say(answers, {"error": str(error)})


def _say(answers: IO[bytes], message: Json) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def main(argv: Sequence[str]) -> None:
    """Serve one of ENGINES over this process's own stdin and stdout."""
    module, _, function = ENGINES[argv[0]].partition(":")
    with os.fdopen(os.dup(1), "wb") as answers, os.fdopen(os.dup(0), "rb") as requests:
        os.dup2(2, 1)
        setup = getattr(import_module(f"tensure.benchmarks.{module}"), function)
        serve(lambda: setup(*argv[1:]), requests, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
