"""A parallel step run for real: the caller's own functions, all ranks in one process, drawn numbers, float64.

It is run in two ways that share nothing but the comparison: by torch's LocalTensorMode (`_local_ranks`), and
with a thread for each rank (`_threaded`); each in a copy of this process, bounded in time and memory. Only
where no way says otherwise is a step said to agree or to differ. Knows where a Plan says that results stand;
knows no op.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.bundle import Placed, Plan, Replay, placed
from tensure.errors import TensureError, UnsupportedError
from tensure.program import Name, Op, Program

from ._beside import Beside, Talk
from ._given import built, gradients, output_names, returned_by, run_backward
from ._microbatch import MICROBATCH
from ._model import ENTRY
from ._places import number_of
from ._ranks_run import EndlessError, Found
from ._step import ModelFunction, ParallelFunction, TrainingStep

__all__ = ["MAX_REPLAYED", "replay_step"]

MAX_REPLAYED: Final = 16
"""Ranks of a replay."""
MAX_BYTES: Final = 1 << 30
"""Of all ranks' parameters and inputs, and as much again for gradients and what is between."""
MAX_GROWTH: Final = 4 << 30
"""Of the address space of the process that replays."""
ATTEMPTS: Final = 3
"""To run it a way, when the copy of the process crashes."""

SAME: Final = 1e-9
OTHER: Final = 1e-6
"""Differences, relative to the largest value of a result, up to which results are the same, and from which
they are not."""
LEAST: Final = 1e-6
"""A result's largest value counts as at least this much of the largest of all: a gradient that is zero but
for rounding is no larger than its rounding."""
ROUGH: Final = (1e-5, 1e-2, 1e-3)
"""The three where the step itself computes with less than double precision."""
HALF: Final = (1e-5, 0.4, 1e-3)
"""Where half floats are named: a factor of two is off by a half. Where a proof says that it is right,
rounding may be why, however far off it is."""

HANG_S: Final = 10.0
"""Patience with ranks that are said to hang."""
SEED: Final = 20
RANK_IN_ENVIRONMENT: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

Runner: TypeAlias = Callable[
    [nn.Module, Sequence[Tensor], ParallelFunction, Mapping[str, int], float], list[Found]
]
WAYS: Final = ("LocalTensorMode", "threads")


def replay_step(
    model: ModelFunction,
    parallel: ParallelFunction,
    plan: Plan,
    program: Program,
    *,
    timeout_s: float = 60.0,
    is_stuck: bool = False,
    is_proved: bool = False,
    ways: Sequence[str] = WAYS,
) -> Replay:
    """Run it, and say whether every result is where the Plan says, and what the single device has.

    Args:
        model, parallel: as for `capture_parallel`.
        plan, program: what was captured of them; claims of results are taken from there, and sizes.
        timeout_s: for each way.
        is_stuck: it is said to hang; that ranks come to no end is then an answer.
        is_proved: it is said not to: that they come to no end is then a doubt, and else no answer.
        ways: to run it.
    """
    too_much = _too_much(plan, program)
    if too_much:
        return Replay("none", reason=too_much)
    rows = dict[str, Mapping[str, Any]]()
    if not hasattr(os, "fork"):
        return Replay("none", reason="this system has no fork")
    half = (HALF[0], math.inf if is_proved else HALF[1], HALF[2]) if _names_half(plan, program) else None
    patience = HANG_S if is_stuck else timeout_s / 2
    for way in ways[-1:] if is_stuck else ways:  # one program for all ranks has nobody to wait for

        def work(pipe: Talk, way: str = way) -> None:
            row = _run(way, model, parallel, plan, patience, is_stuck, half)
            pipe.send_bytes(json.dumps(row).encode())

        for _ in range(ATTEMPTS):
            beside = Beside(work, time.monotonic() + timeout_s, purpose="a replay", wanted=None)
            try:
                rows[way] = json.loads(beside.get("it"))
            except TensureError as error:
                rows[way] = {"error": str(error)}
            finally:
                beside.end()
            if beside.signal is None:
                break  # torch's own threads do not always stand being copied: a crash may be ours
    return _joined(rows, is_proved)


def _joined(rows: Mapping[str, Mapping[str, Any]], is_proved: bool = False) -> Replay:
    """What the ways say together."""
    endless = {way: row["error"] for way, row in rows.items() if row.get("is_endless")}
    if endless and is_proved:
        return Replay("unclear", " and ".join(endless), "; ".join(endless.values()))
    ran = {way: row for way, row in rows.items() if "error" not in row}
    reasons = "; ".join(f"not by {way}: {row['error']}" for way, row in rows.items() if "error" in row)
    if not ran:
        return Replay("none", reason=reasons.replace("not by ", ""))
    how = " and ".join(ran)
    statuses = {row["status"] for row in ran.values()}
    outputs = next(
        (row["outputs"] for row in ran.values() if row["status"] != "agrees"), ran[next(iter(ran))]["outputs"]
    )
    found = tuple((name, rank, far) for name, rank, far in outputs)
    if len(statuses) > 1:
        said = ", ".join(f"{way}: {row['status']}" for way, row in ran.items())
        return Replay("unclear", how, f"the ways of running it do not agree: {said}", found)
    (status,) = statuses
    said = "; ".join(row["reason"] for row in ran.values() if row["reason"])
    return Replay(status, how, "; ".join(part for part in (said, reasons) if part), found)


def _too_much(plan: Plan, program: Program) -> str:
    """Why it is not run, if so."""
    bodies = [*(track.bodies for track in plan.tracks.values()), {"": program.entries[ENTRY].body}]
    if any(getattr(step, "op", "") == "draw" for each in bodies for body in each.values() for step in body):
        return "it draws random numbers, and ranks in one process would draw from one generator"
    ranks = math.prod(size for axis, size in plan.mesh.items() if axis != MICROBATCH)
    if ranks > MAX_REPLAYED:
        return f"{ranks} ranks, and {MAX_REPLAYED} are run at most"
    shapes = [[size for size in value.shape if isinstance(size, int)] for value in program.values.values()]
    size = 16 * ranks * sum(map(math.prod, shapes))
    if size > MAX_BYTES:
        return f"at its own sizes it would hold {size / 2**30:.1f} GiB, and {MAX_BYTES >> 30} is the limit"
    return ""


def _names_half(plan: Plan, program: Program) -> bool:
    """Whether anything is held in less than float32, by ranks or by the single device."""
    halves = {"f16", "bf16"}
    bodies = [*(track.bodies.get(ENTRY, ()) for track in plan.tracks.values()), program.entries[ENTRY].body]
    bodies += [block.body for block in (*plan.blocks.values(), *program.blocks.values())]
    return any(value.dtype in halves for value in program.values.values()) or any(
        value in halves for body in bodies for step in body if isinstance(step, Op) for _, value in step.attrs
    )


# --- in a copy of this process -------------------------------------------------------------------------


def _run(
    way: str,
    model: ModelFunction,
    parallel: ParallelFunction,
    plan: Plan,
    patience_s: float,
    is_stuck: bool,
    half: tuple[float, float, float] | None,
) -> dict[str, Any]:
    for key in RANK_IN_ENVIRONMENT:
        os.environ.pop(key, None)  # one process has not one rank
    _bound_memory()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        given = _drawn(model)
        world = {axis: size for axis, size in plan.mesh.items() if axis != MICROBATCH}
        found = _runner(way)(given.module, given.inputs, parallel, world, patience_s)
        expected, is_rough = _single(_drawn(model))
        bounds = half or (ROUGH if is_rough else (SAME, OTHER, LEAST))
        return _compared(plan, expected, found, *bounds)
    except EndlessError as error:
        if is_stuck:
            return {"status": "differs", "outputs": [], "reason": str(error)}
        return {"error": str(error), "is_endless": True}
    except Exception as error:  # noqa: BLE001 - whatever their code raises, it is a reason
        said = str(error).strip().partition("\n")[0][:300]
        return {"error": said if isinstance(error, TensureError) else f"{type(error).__name__}: {said}"}


def _runner(way: str) -> Runner:
    """What runs all ranks; both need much of torch that nobody else does."""
    if way == "threads":
        from ._threaded import run_threads

        return run_threads
    from ._local_ranks import run_local

    return run_local


def _bound_memory() -> None:
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        raise UnsupportedError("the memory of a process cannot be bounded here", wanted="Linux") from None
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + MAX_GROWTH if hard == resource.RLIM_INFINITY else min(hard, used + MAX_GROWTH)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _drawn(model: ModelFunction) -> TrainingStep:
    """The step of a module in double precision, with weights that are nowhere special."""
    torch.manual_seed(SEED)
    given = built(model)
    net, inputs = given.module, given.inputs
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.is_floating_point():
                parameter.copy_(0.5 * torch.randn(parameter.shape) + 0.25)
    wide = (
        item.detach().double().requires_grad_(item.requires_grad) if item.is_floating_point() else item
        for item in inputs
    )
    return replace(given, inputs=tuple(wide))


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is computed in less than double precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_rough = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(item, Tensor) and item.is_floating_point() and item.dtype != torch.float64:
                self.is_rough = True
        return made


def _single(given: TrainingStep) -> tuple[dict[str, Tensor], bool]:
    """What the single device's step returns and leaves, and whether it is less than double precision."""
    net, inputs, precision = given.module, given.inputs, _Precision()
    with precision:
        returned = run_backward(net, inputs) if given.step is None else returned_by(given.step(*inputs))
    found = dict(zip(output_names(len(returned)), returned, strict=True))
    known = {f"input_{at}": item for at, item in enumerate(inputs)}
    found |= {f"grad.{label}": grad for label, grad in gradients(net, known)}
    return {label: item.detach().double() for label, item in found.items()}, precision.is_rough


@dataclass(frozen=True)
class _Claimed:
    """Where a result stands on one rank.

    Args:
        rank: as it is printed.
        place: its coordinates.
    """

    rank: str
    place: Mapping[str, int]
    part: Placed


def _claims(plan: Plan, label: str, names: Sequence[str]) -> Iterator[tuple[int, str, _Claimed]]:
    for rank in plan.ranks():
        env = plan.rank_env(rank, {})
        for name in names:
            local = plan.local(rank.track, name)
            part = None if local is None else placed(local, Name(name), env)
            if local is None or local.place is None or part is None or local.place.of.base != label:
                continue
            place = {axis: env[axis] for axis in plan.mesh}
            yield number_of(place, plan.mesh), name, _Claimed(str(rank), place, part)


def _names(plan: Plan, label: str, found: Sequence[Found]) -> list[str]:
    """What ranks call a result: as the single device does, or by another name of a tied parameter."""
    claimed = {
        str(name)
        for named in (plan.locals, *(track.locals for track in plan.tracks.values()))
        for name, local in named.items()
        if local.place is not None and local.place.of.base == label
    }
    return [label, *sorted(name for name in claimed - {label} if any(name in row for row in found))]


def _compared(
    plan: Plan,
    expected: Mapping[str, Tensor],
    found: Sequence[Found],
    same: float,
    other: float,
    least: float,
) -> dict[str, Any]:
    """Every result on every rank beside its part of the single device's."""
    endless = next((label for label, whole in expected.items() if not whole.isfinite().all()), None)
    if endless is not None:
        reason = f"{endless} of the model is infinite or no number, on numbers that were drawn"
        return {"status": "unclear", "outputs": [], "reason": reason}
    worst, missing = dict[str, tuple[float, str]](), list[str]()
    floor = least * max((_largest(whole) for whole in expected.values()), default=0.0)
    for label, whole in expected.items():
        scale = max(_largest(whole), floor) or 1.0
        sums = dict[Any, tuple[_Claimed, Tensor]]()
        far, somewhere = (0.0, ""), np.zeros(whole.shape, bool)
        for number, name, claim in _claims(plan, label, _names(plan, label, found)):
            held = found[number].get(name)
            if held is None:
                missing.append(f"{name} is not on {claim.rank}")
                continue
            somewhere[_indices(whole, claim.part)] = True
            if not claim.part.sum:
                far = max(far, (_distance(_part(whole, claim.part), held, scale), claim.rank))
                continue
            rest = tuple(at for axis, at in claim.place.items() if axis not in claim.part.sum)
            before = sums.get((name, rest, claim.part.scale))
            sums[name, rest, claim.part.scale] = claim, held if before is None else before[1] + held
        for claim, total in sums.values():
            far = max(far, (_distance(_part(whole, claim.part), total, scale), claim.rank))
        worst[label] = far
        if not somewhere.all():
            missing.append(f"{label} is in part on no rank")
    off = sorted(
        ((label, rank, far) for label, (far, rank) in worst.items() if not far <= same),
        key=lambda row: -row[2],
    )
    is_other = any(far >= other for _, _, far in off) or bool(missing)
    status = "differs" if is_other else "unclear" if off else "agrees"
    reason = "; ".join(missing[:3]) or ("" if is_other or not off else "differences are too small to tell")
    return {"status": status, "outputs": off, "reason": reason}


def _part(whole: Tensor, part: Placed) -> Tensor:
    for dim, indices in part.dims.items():
        whole = whole.index_select(dim, torch.tensor(indices, dtype=torch.long))
    return whole * float(part.scale)


def _indices(whole: Tensor, part: Placed) -> Any:
    """The elements of a tensor that a part is, as numpy takes them."""
    return np.ix_(*(part.dims.get(dim, range(size)) for dim, size in enumerate(whole.shape)))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _distance(expected: Tensor, held: Tensor, scale: float) -> float:
    if expected.shape != held.shape or not held.isfinite().all():
        return math.inf
    return _largest(held.double() - expected) / scale
