"""Every test of tracing leaves this process as it found it: no process group, no dispatch mode, no hooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves something behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    left = dist.is_initialized()
    if left:
        dist.destroy_process_group()
    assert not left, "a process group is left"
    assert not _get_current_dispatch_mode_stack()
    assert not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks
