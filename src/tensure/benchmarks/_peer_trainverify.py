"""TrainVerify on one of its own saved plans: a file of its own that runs in TrainVerify's environment.

    VENV/bin/python _peer_trainverify.py CHECKOUT SINGLE PARALLEL OUT WORKERS CAP_S

CHECKOUT is microsoft/nnscaler at branch verdictAE, the artifact of the paper on TrainVerify; SINGLE and
PARALLEL are saved graphs in it, OUT is the only folder that is written to. Loading a saved graph runs what it
says: start this in a sandbox only, as `_prove_race.py` does. Exits with 0 when the plan was verified, 3 when
CAP_S seconds did not suffice, 1 when it said something else. Imports no Tensure.
"""

from __future__ import annotations

import csv
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

VERIFIED: Final = 0
FAILED: Final = 1
CAPPED: Final = 3

_MODULES: Final = ("genmodel", "genmodel.model", "genmodel.model.llama3", "genmodel.model.llama3_adpt")
_LEAVES: Final = ("genmodel.model.llama3.model", "genmodel.model.llama3_adpt.model")


class OutOfTime(BaseException):
    """Not an Exception: the verifier takes those for its own findings."""


class Names(ModuleType):
    """A module that saved graphs name functions of; none is called when they are verified.

    It spares fairscale, which the real module imports.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: Any, **given: Any) -> NoReturn:
            raise RuntimeError(f"{self.__name__}.{name} was called")

        absent.__name__ = absent.__qualname__ = name
        absent.__module__ = self.__name__
        setattr(self, name, absent)  # pickling compares by identity
        return absent


def main(argv: Sequence[str]) -> int:
    """Run its `main.py` as its scripts do, in this process and its workers."""
    checkout, single, parallel, out, workers, cap_s = argv
    for name in _MODULES:
        sys.modules[name] = ModuleType(name)
    for name in _LEAVES:
        sys.modules[name] = Names(name)
    os.chdir(Path(checkout) / "Verdict")
    sys.path[:0] = [str(Path.cwd()), str(Path(checkout))]
    folders = [word for kind in ("log", "cache", "stats") for word in (f"--{kind}_dir", f"{out}/{kind}")]
    sys.argv = ["main.py", "--sm", single, "--pm", parallel, "--seed", "0", "--time", "--loglevel", "INFO"]
    sys.argv += ["--no_cache_nodes", "--no_cache_stages", *folders]
    sys.argv += ["--max_ser_proc", workers, "--max_vrf_proc", workers]

    def stop(*_: Any) -> NoReturn:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(cap_s))
    try:
        runpy.run_path("main.py", run_name="__main__")
    except OutOfTime:
        return CAPPED
    signal.alarm(0)
    with open(f"{out}/stats/stats.csv", encoding="utf-8", newline="") as lines:
        said = [row["success"] for row in csv.DictReader(lines)]
    return VERIFIED if said == ["True"] else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
