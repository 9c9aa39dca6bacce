"""DistributedDataParallel where nothing has bytes: its reducer works, its reductions are made visible.

The reducer in C++ buckets gradients and calls back when a bucket is full. What it does with a full bucket by
default (divide by the group's size, sum) is registered here as a hook in Python, so that it can be traced; a
hook that the caller registered stays. Its comparison of shapes across ranks needs bytes and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import distributed

__all__ = ["bucketed_reductions"]


@contextmanager
def bucketed_reductions() -> Iterator[None]:
    """Let DistributedDataParallel be traced."""
    wrapped: Any = distributed.DistributedDataParallel
    module: Any = distributed
    verify, before = module._verify_param_shape_across_processes, wrapped._pre_forward

    def pre_forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        if not self._comm_hooks:
            self.register_comm_hook(self.process_group, _averaged)
        reducer = self.reducer
        self.reducer = _AsItIs(reducer)
        try:
            return before(self, *inputs, **kwargs)
        finally:
            self.reducer = reducer

    module._verify_param_shape_across_processes = lambda *_, **__: True
    wrapped._pre_forward = pre_forward
    try:
        yield
    finally:
        module._verify_param_shape_across_processes, wrapped._pre_forward = verify, before


class _AsItIs:
    """A reducer that keeps its buckets: others would be of memory that has no bytes, and hold the same."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _averaged(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    tensor = bucket.buffer()
    tensor.div_(dist.get_world_size(group))
    dist.all_reduce(tensor, group=group)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(tensor)
    return done


_averaged.__annotations__.clear()  # torch compares them with classes, and here they are strings
