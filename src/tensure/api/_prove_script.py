"""`prove_script`: run somebody's training script under torchrun as far as its `prove_step`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensure.errors import InputError, LimitError

from ._paths import as_path
from ._prove_step import ONLY_PROVE, read_error

if TYPE_CHECKING:
    from tensure.proving import ProofResult

__all__ = ["prove_script"]

_SHOWN_LINES: Final = 4
_SHOWN_TRACE: Final = 8
_ROOT_CAUSE: Final = re.compile(r"Root Cause.*?\brank\s*: (\d+)", re.DOTALL)
"""Where torchrun says which rank failed first."""
_TRACE: Final = "Traceback (most recent call last):"


def prove_script(
    script: Sequence[str], nproc: int, *, strict: bool = False, timeout_s: float = 900.0
) -> ProofResult:
    """The proof that a script's own `tensure.prove_step` comes to, on processes of this machine.

    The script runs under `torchrun --standalone` as it is, and ends where it calls `prove_step`.

    Args:
        script: its file, and what it is called with.
        nproc: how many processes; those of its mesh.
        strict: as in `prove`.
        timeout_s: how long it may take in all.

    Raises:
        InputError: no such file, or a script that ends without a proof; whatever `prove_step` raises.
        LimitError: it took too long.
    """
    from tensure.bundle import parse_plan, parse_proof
    from tensure.program import parse_program
    from tensure.proving import ProofResult, TensorVerdict, unconditional

    if not script or not as_path(script[0], "a script").is_file():
        raise InputError(f"no script {script[0] if script else ''}", wanted="a Python file and its arguments")
    if nproc < 1:
        raise InputError(f"{nproc} processes", wanted="at least one")
    with tempfile.TemporaryDirectory(prefix="tensure-") as name:
        folder = Path(name)
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        kept = (f"--log-dir={folder / 'logs'}", "--redirects=2")
        run = subprocess.Popen(
            [*launcher, f"--nproc-per-node={nproc}", *kept, *script],
            env={"OMP_NUM_THREADS": "1", **os.environ, ONLY_PROVE: name},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            output = run.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            raise LimitError(f"{script[0]} came to no end in {timeout_s:.0f} seconds") from None
        finally:
            _end(run)
        failed = folder / "error.json"
        if failed.exists():
            error = read_error(failed.read_bytes())
            assert error is not None
            raise error
        if not (folder / "proof.json").exists():
            shown = " | ".join(_last_words(output, folder / "logs"))
            raise InputError(
                f"{script[0]} ended (exit code {run.returncode}) without a proof",
                wanted="a script in which every process calls tensure.prove_step",
                next_step=f"It said: {shown}" if shown else None,
            )
        certificate = folder / "certificate"
        tensors = json.loads((folder / "tensors.json").read_bytes())
        result = ProofResult(
            parse_proof((folder / "proof.json").read_bytes()),
            certificate.read_bytes() if certificate.exists() else None,
            parse_plan((folder / "plan.txt").read_text(encoding="utf-8")),
            parse_program((folder / "program.txt").read_text(encoding="utf-8")),
            tuple(TensorVerdict(**row) for row in tensors),
            (("every rank", "traced by itself, in its own process"),),
            numerics=tuple(json.loads((folder / "numerics.json").read_bytes())),
        )
        return unconditional(result) if strict else result


def _last_words(output: str, logs: Path) -> list[str]:
    """The last traceback, or else the last lines, of the rank that failed first; else of the whole output.

    Args:
        output: what the ranks wrote to stdout, and torchrun of them.
        logs: what each rank wrote to stderr, as torchrun keeps it.
    """
    failed = _ROOT_CAUSE.search(output)
    found = list(logs.glob(f"*/attempt_0/{failed[1]}/stderr.log")) if failed is not None else []
    if failed is None or not found:
        return output.splitlines()[-_SHOWN_LINES:]
    rank, text = failed[1], found[0].read_text(errors="replace")
    # Once there is a process group, torch begins each line with the rank.
    lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in text.splitlines()]
    lines = [line for line in lines if line.strip(" ^~")]
    if _TRACE in lines:
        lines = lines[len(lines) - lines[::-1].index(_TRACE) :]
        ends = (at for at, line in enumerate(lines) if not line.startswith(" "))
        lines = lines[: next(ends, len(lines)) + 1][-_SHOWN_TRACE:]
    else:
        lines = lines[-_SHOWN_LINES:]
    if not lines:
        return output.splitlines()[-_SHOWN_LINES:]
    return [f"rank {rank}: {lines[0].strip()}", *(line.strip() for line in lines[1:])]


def _end(run: subprocess.Popen[str]) -> None:
    if run.poll() is None:
        run.terminate()  # torchrun ends its processes
        try:
            run.wait(20)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
