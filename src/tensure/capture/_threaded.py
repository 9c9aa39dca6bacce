"""All ranks of a step in one process, a thread each, over torch's multi-threaded process group.

Sends and receives, which that group lacks, and sums with a factor are added here.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed import multi_threaded_pg

from tensure.errors import EvaluationError

from ._collectives import Collectives
from ._given import local_of
from ._ranks_run import EndlessError, Found, cut_input, run_step
from ._step import ParallelFunction, Placements

threaded: Any = multi_threaded_pg

LOOK_S: Final = 0.1
IDLE: Final = 0.2
"""Of all patience: once every rank that is left has waited that long in one call, nobody will end it."""

__all__ = ["in_threads", "run_threads"]


def run_threads(
    net: nn.Module,
    inputs: Sequence[Tensor],
    parallel: ParallelFunction,
    sizes: Mapping[str, int],
    patience_s: float,
) -> list[Found]:
    """What every rank holds at the end, in the order of ranks and their micro-batches.

    Raises:
        EvaluationError: a rank raised.
        EndlessError: ranks did not finish.
    """
    world = Collectives(sizes, 0)
    count = world.size_of(tuple(sizes))
    found: list[list[Found]] = [[] for _ in range(count)]
    copies = [copy.deepcopy(net) for _ in found]

    def run(rank: int) -> None:
        mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        place = dict(zip(sizes, world.place(rank), strict=True))

        def cut(
            whole: Tensor, placements: Placements, more: Mapping[str, int], at: Mapping[str, int]
        ) -> Tensor:
            return cut_input(whole, placements, {**sizes, **more}, {**place, **at})

        rounds = run_step(copies[rank], parallel(copies[rank], mesh), inputs, cut)
        found[rank] = [
            {label: local_of(value).detach() for label, value in results.items()} for results in rounds
        ]

    failures, hung = in_threads(run, count, patience_s)
    if failures:
        rank, error = failures[0]
        raise EvaluationError(f"rank {rank} raises {type(error).__name__}: {error}") from error
    if hung:
        raise EndlessError(f"ranks {', '.join(map(str, hung))} come to no end")
    return [results for ranks in found for results in ranks]


def in_threads(
    run: Callable[[int], None], world_size: int, patience_s: float
) -> tuple[list[tuple[int, BaseException]], list[int]]:
    """Call `run` with every rank at once, each in a thread with a process group of its own.

    Returns:
        The ranks that raised, with what; and those that had not finished when patience was over.
    """
    failures: list[tuple[int, BaseException]] = []
    store = dist.HashStore()  # type: ignore[attr-defined]

    def rank_main(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=world_size, store=store)
            try:
                run(rank)
            finally:
                dist.destroy_process_group()
        except BaseException as error:  # noqa: BLE001 - a thread has no caller to raise to
            if not isinstance(error, SystemExit):  # that one is how the others are told to stop
                failures.append((rank, error))
            threaded.ProcessLocalGroup.exception_handle(error)

    with _threaded_groups():
        threads = [
            threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(world_size)
        ]
        for thread in threads:
            thread.start()
        _join(threads, patience_s)
        hung = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if hung:
            threaded.ProcessLocalGroup.exception_handle(TimeoutError())  # frees those that wait for others
            for thread in threads:
                thread.join(1.0)
    return failures, hung


def _join(threads: Sequence[threading.Thread], patience_s: float) -> None:
    """Wait for threads to end, until patience is over or each that lives has long waited for the others."""
    begun = time.monotonic()
    before, since = frozenset[FrameType](), begun
    while any(thread.is_alive() for thread in threads) and time.monotonic() < begun + patience_s:
        next(thread for thread in threads if thread.is_alive()).join(LOOK_S)
        waits = _waits([thread for thread in threads if thread.is_alive()])
        if not waits or waits != before:
            before, since = waits, time.monotonic()
        elif time.monotonic() - since > IDLE * patience_s:
            return


def _waits(threads: Sequence[threading.Thread]) -> frozenset[FrameType]:
    """The calls in which all wait for other ranks; none if one does not."""
    frames, found = sys._current_frames(), set[FrameType]()
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        while frame is not None and not _is_waiting(frame.f_code):
            frame = frame.f_back
        if frame is None:
            return frozenset()
        found.add(frame)
    return frozenset(found)


def _is_waiting(code: CodeType) -> bool:
    """Whether a call waits: for a collective in torch's group, or for a message in ours."""
    if code.co_filename == __file__:
        return code.co_name == "recv"
    return code is threading.Condition.wait_for.__code__


_Scatter: Any = threaded.ReduceScatter


class _ScaledScatter(_Scatter):  # type: ignore[misc]
    """A reduce-scatter that knows sums with a factor as well (`PREMUL_SUM`), as gradients are divided."""

    def __init__(self, op: Any) -> None:
        self.factor = op.factor if op == dist.ReduceOp.PREMUL_SUM else None
        super().__init__(op if self.factor is None else dist.ReduceOp.SUM)

    @torch.no_grad()
    def work(self, data: Any) -> None:
        super().work(data)
        for (held,), _ in data if self.factor is not None else ():
            held.detach().mul_(self.factor)


@contextmanager
def _threaded_groups() -> Iterator[None]:
    """Torch's threaded process group, with sends and receives, in the place of the usual one."""
    mailboxes: dict[tuple[str, int, int, int], queue.Queue[Tensor]] = {}
    lock = threading.Lock()
    group_type: Any = threaded.ProcessLocalGroup

    def mailbox(group: Any, source: int, target: int, tag: int) -> queue.Queue[Tensor]:
        with lock:
            return mailboxes.setdefault((group.pg_name, source, target, tag), queue.Queue())

    def send(group: Any, tensors: list[Tensor], target: int, tag: int) -> Any:
        mailbox(group, group.rank(), target, tag).put(tensors[0].detach().clone())
        return threaded.ret_work(tensors)

    def recv(group: Any, tensors: list[Tensor], source: int, tag: int) -> Any:
        box = mailbox(group, source, group.rank(), tag)
        while True:
            try:
                tensors[0].detach().copy_(box.get(timeout=0.05))
                break
            except queue.Empty:
                if group_type._terminate.is_set():
                    raise SystemExit("another rank failed") from None
        return threaded.ret_work(tensors)

    isolate: Any = torch._C._distributed_c10d._set_thread_isolation_mode  # type: ignore[attr-defined]
    isolate(True)
    threaded._install_threaded_pg()
    group_type.send, group_type.recv = send, recv
    threaded.ReduceScatter = _ScaledScatter
    try:
        yield
    finally:
        del group_type.send, group_type.recv
        threaded.ReduceScatter = _Scatter
        group_type.reset()
        threaded._uninstall_threaded_pg()
        isolate(False)
