"""`prove_step`: in a running script, does this step of all its processes compute what the model says?"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tensure import errors
from tensure.errors import InputError, RefutedError, TensureError

from ._prove import must_have_gradients
from ._untied import with_untied

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from tensure.bundle import Proof
    from tensure.capture import LiveRank, ModelFunction, ParallelStep
    from tensure.proving import ProofResult

__all__ = ["ONLY_PROVE", "prove_step", "read_error"]

ONLY_PROVE: Final = "TENSURE_ONLY_PROVE"
"""Environment: the folder for a proof, after which the script ends; `tensure prove --script` sets it."""

_GRACE_S: Final = 30.0
_called: list[str] = []


def prove_step(
    step: Callable[..., Any] | ParallelStep | None,
    inputs: Sequence[torch.Tensor],
    *,
    model: ModelFunction,
    module: torch.nn.Module,
    mesh: DeviceMesh | Mapping[str, int] | None = None,
    on_refuted: Literal["raise", "warn"] = "raise",
    timeout_s: float = 600.0,
    jobs: int = 1,
    keep: str | os.PathLike[str] | None = None,
) -> Proof:
    """Prove one training step of a script, where it runs, against the step of its model on one device.

    Every process of the world calls this once, after its module is parallel. Each makes a copy of itself
    that traces the step without bytes and without talking to anybody, and ends: the script's parameters,
    gradients, random numbers and process groups are as they were. Rank 0 gathers what was traced and proves
    it; all ranks return, or raise, the same (docs/decisions/0012).

    Optimizers do nothing while the step is traced: gradients are what is compared. That ranks which hold the
    same part of a parameter hold the same numbers is checked besides.

    Args:
        step: one step of this rank as a function of its inputs, which runs backward and returns what the
            module of the single device returns; a ParallelStep says where inputs and results are cut; None
            calls the module and runs the loss backward.
        inputs: this rank's inputs of a step; only shapes and dtypes matter.
        model: returns the module as it is on a single device, and its inputs, whole.
        module: this rank's, parallel already.
        mesh: the device mesh, or sizes by axis; one axis `world` if none is given.
        on_refuted: whether a refuted step stops the script or is only said.
        timeout_s: how long to wait in all, for other ranks too.
        jobs: processes in which rank 0 proves; the result is the same for any number.
        keep: a folder for what was traced and proved, written by rank 0.

    Raises:
        RefutedError: the step computes something else; the message says on which rank, where and how.
        InputError: no process group, a mesh of another size, parameters or inputs that do not stand where
            they are said to, a second call, an optimizer to be proved.
        UnsupportedError: the step reads a value, or has an op, group or placement without a rule.
        LimitError: it took longer than `timeout_s`, or another rank did not come.
    """
    from tensure.bundle import parse_proof
    from tensure.capture import live_mesh

    folder = os.environ.get(ONLY_PROVE)
    try:
        if on_refuted not in ("raise", "warn"):
            raise InputError(f"on_refuted={on_refuted!r}", wanted="'raise' or 'warn'")
        given: Any = (inputs,) if hasattr(inputs, "untyped_storage") else inputs
        if not isinstance(given, Iterable):
            raise InputError(
                f"inputs of type {type(inputs).__name__}", wanted="this rank's tensors, in order"
            )
        kept = folder or keep
        world = live_mesh(mesh)
        if _called:
            raise InputError(
                "a second call of tensure.prove_step in this process",
                wanted="one, before the first step; it holds for all steps of these shapes",
            )
        _called.append("called")
        work = _Work(step, tuple(given), model, module, world, jobs, None if kept is None else Path(kept))
        row = json.loads(_answer(work, time.monotonic() + timeout_s))
        _raise_error(row)
    except TensureError as error:
        if folder is not None:
            _stop(error, folder)
        raise
    proof = parse_proof(row["proof"].encode())
    if work.rank == 0 and folder is None:
        print("\n  ".join([_said(proof, row["outputs"], world), *row["numerics"]]), flush=True)
    if folder is not None:
        raise SystemExit(0)
    if proof.values.status == "refuted" and on_refuted == "raise":
        raise RefutedError(
            f"the step is refuted: {_where(proof)}", next_step="on_refuted='warn' lets the script go on."
        )
    return proof


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a copy of this process does."""

    step: Any
    inputs: tuple[torch.Tensor, ...]
    model: ModelFunction
    module: torch.nn.Module
    world: Mapping[str, int]
    jobs: int
    keep: Path | None

    @property
    def rank(self) -> int:
        """Of this process."""
        import torch.distributed as dist

        return dist.get_rank()

    def __call__(self, pipe: Any) -> None:
        """In the copy: say what was traced; on rank 0 be told what the others have, and say what holds."""
        try:
            found = self._traced()
        except Exception as error:  # noqa: BLE001 - there is no caller here to raise to
            pipe.send_bytes(_written_error(error))
            return
        from tensure.capture import rank_to_bytes

        pipe.send_bytes(rank_to_bytes(found))
        if self.rank:
            return
        others = [pipe.recv_bytes() for _ in range(1, math.prod(self.world.values()))]
        try:
            answer = self._proved(found, others)
        except Exception as error:  # noqa: BLE001 - likewise
            answer = _written_error(error)
        pipe.send_bytes(answer)

    def _traced(self) -> LiveRank:
        import torch

        from tensure.capture import LiveRank, capture_model, without_bytes

        torch.set_num_threads(1)  # a copy has none of its pool
        captured = capture_model(without_bytes(self.model))
        if captured.states is not None or getattr(self.step, "optimizer", None) is not None:
            raise InputError(
                "an optimizer in the proof of a live step, where optimizers rest",
                wanted="a TrainingStep and a ParallelStep without one: gradients are what is compared",
                next_step="Use tensure.prove(parallel, model, mesh=..., optimizer=...) for those.",
            )
        if len(self.inputs) != len(captured.inputs) or not all(
            isinstance(item, torch.Tensor) for item in self.inputs
        ):
            raise InputError(
                f"{len(self.inputs)} inputs of the step",
                wanted=f"{len(captured.inputs)} tensors, as the model function returns",
            )
        found = LiveRank(self.world, self.rank, captured)
        found.observe(self.module, self.step, self.inputs)
        return found

    def _proved(self, own: LiveRank, others: Sequence[bytes]) -> bytes:
        from tensure.bundle import format_proof
        from tensure.capture import one_state_a_seed, plan_of, rank_from_bytes, same_contents
        from tensure.proving import prove_plan

        ranks = [own, *(rank_from_bytes(data, own.captured) for data in others)]
        same_contents(ranks)
        one_state_a_seed(ranks)
        traced = plan_of(own.captured, ranks)
        must_have_gradients(traced, own.captured)
        result = prove_plan(traced, own.captured.program, jobs=self.jobs)
        result = with_untied(result, own.captured)
        if own.clips and result.proof.values.status != "proved":
            result = _clipped(result, own.clips)
        if self.keep is not None:
            _write(self.keep, result)
        return json.dumps(
            {
                "proof": format_proof(result.proof).decode(),
                "outputs": len(result.tensors),
                "numerics": result.numerics,
            }
        ).encode()


def _clipped(result: ProofResult, line: str) -> ProofResult:
    """A step that clips gradients and is not proved: that this may be why."""
    hint = (
        f"the step clips gradients at {line}: in a live step they are compared as the step leaves them, with "
        "those of the model, which are not clipped; clip outside of the step, or prove it with its optimizer "
        "by tensure.prove(parallel, model, mesh=..., optimizer=...)"
    )
    values = result.proof.values
    if values.counterexample is not None:
        example = values.counterexample
        values = dataclasses.replace(
            values, counterexample=dataclasses.replace(example, step=f"{example.step}; {hint}")
        )
    else:
        values = dataclasses.replace(values, reason=f"{hint}; {values.reason}" if values.reason else hint)
    return dataclasses.replace(result, proof=dataclasses.replace(result.proof, values=values))


def _answer(work: _Work, until: float) -> bytes:
    """What all ranks are told."""
    from tensure.capture import Beside, Exchange

    exchange = Exchange(until if work.rank == 0 else until + _GRACE_S)
    try:
        beside = Beside(work, until)
        try:
            answer = _round(work, beside, exchange)
        finally:
            beside.end()
    except TensureError as error:
        answer = _written_error(error)
        if work.rank:
            exchange.put(f"trace/{work.rank}", answer)
            return answer
    if work.rank == 0:
        exchange.put("answer", answer)
        for rank in range(1, math.prod(work.world.values())):
            if exchange.has(f"trace/{rank}"):
                exchange.seen(f"seen/{rank}")
    else:
        exchange.put(f"seen/{work.rank}", b"")
    return answer


def _round(work: _Work, beside: Any, exchange: Any) -> bytes:
    own = beside.get(f"tracing the step of rank {work.rank}")
    if work.rank:
        exchange.put(f"trace/{work.rank}", own)
        return exchange.get("answer", "no answer from rank 0")  # type: ignore[no-any-return]
    others = [
        exchange.get(f"trace/{rank}", f"rank {rank} did not come to tensure.prove_step")
        for rank in range(1, math.prod(work.world.values()))
    ]
    for rank, data in enumerate([own, *others]):
        error = read_error(data)
        if error is not None:
            return _written_error(error.at(file=f"rank {rank}"))
    for data in others:
        beside.put(data)
    return beside.get("the proof")  # type: ignore[no-any-return]


# --- errors, on their way to other processes -----------------------------------------------------------


def _written_error(error: Exception) -> bytes:
    """An error as bytes; whoever reads them raises it anew."""
    if not isinstance(error, TensureError):
        error = TensureError(f"the proof failed: {type(error).__name__}: {error}")
    fields = ("found", "file", "place", "wanted", "next_step")
    return json.dumps(
        {"error": type(error).__name__, **{key: getattr(error, key) for key in fields}}
    ).encode()


def read_error(data: bytes) -> TensureError | None:
    """The error that bytes stand for, if they do."""
    if not data.startswith(b'{"error"'):
        return None
    row = json.loads(data)
    kind = getattr(errors, row.pop("error"), TensureError)  # one that is defined elsewhere comes as plain
    found: TensureError = kind(row.pop("found"), **row)
    return found


def _raise_error(row: Mapping[str, Any]) -> None:
    if "error" in row:
        error = read_error(json.dumps(row).encode())
        assert error is not None
        raise error


def _stop(error: TensureError, folder: str) -> None:
    """End a script that runs for its proof alone."""
    path = Path(folder) / "error.json"
    if not path.exists():
        path.write_bytes(_written_error(error))
    raise SystemExit(0)


# --- what is said and written --------------------------------------------------------------------------


def _said(proof: Proof, outputs: int, world: Mapping[str, int]) -> str:
    ranks = (
        f"{math.prod(world.values())} ranks ({', '.join(f'{axis} {size}' for axis, size in world.items())})"
    )
    values = proof.values
    if values.status == "proved":
        return (
            f"tensure: proved: the loss and the gradients of this step on {ranks}, {outputs} outputs, are "
            f"those of the model on one device, by {values.method}"
        )
    if values.status == "refuted":
        return (
            f"tensure: refuted: on {ranks} this step does not compute what its model says\n  {_where(proof)}"
        )
    why = values.reason or f"wrong with a chance below {values.error:.1e}"
    return f"tensure: {values.status}, not proved: this step on {ranks}: {why}"


def _where(proof: Proof) -> str:
    found = proof.values.counterexample
    assert found is not None
    source = f" ({found.source})" if found.source else ""
    source = "" if found.step.endswith(source) else source
    if not found.claim:
        return f"{found.rank}: {found.step}{source}"
    at = f" at [{', '.join(map(str, found.index))}]" if found.index else ""
    claim = "the model's" if found.claim == found.local else found.claim
    return f"{found.rank}: {found.local} is not {claim}{at}; {found.step}{source}"


def _write(folder: Path, result: ProofResult) -> None:
    from tensure.bundle import format_plan, format_proof, write_file_atomic
    from tensure.program import format_program

    folder.mkdir(parents=True, exist_ok=True)
    tensors = [dataclasses.asdict(tensor) for tensor in result.tensors]
    files = {
        "program.txt": format_program(result.program).encode(),
        "plan.txt": format_plan(result.plan).encode(),
        "tensors.json": json.dumps(tensors, indent=1).encode(),
        "numerics.json": json.dumps(result.numerics, indent=1).encode(),
        "certificate": result.certificate,
        "proof.json": format_proof(result.proof),
    }
    for name, data in files.items():
        if data is not None:
            write_file_atomic(folder / name, data, replace=True)
        else:
            (folder / name).unlink(missing_ok=True)
