"""Bytes among the processes of a job, by the store they met at; process groups are not used."""

from __future__ import annotations

import itertools
import time
from typing import Any, Final

import torch.distributed as dist

from tensure.errors import LimitError

__all__ = ["Exchange"]

_PIECE: Final = 1 << 20
"""Bytes in one message: stores bound it."""
_LAST_S: Final = 10.0
_PAUSE_S: Final = 0.02
_TURNS: Final = itertools.count()


class Exchange:
    """One round of messages. Every process of the world must make as many, in the same order.

    Args:
        until: when they must be there, by `time.monotonic`.
    """

    def __init__(self, until: float) -> None:
        c10d: Any = dist.distributed_c10d
        self._store: Any = c10d.PrefixStore(f"tensure_{next(_TURNS)}", c10d._get_default_store())
        self.until = until

    def put(self, name: str, data: bytes) -> None:
        """Leave something for the others."""
        pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)] or [b""]
        for at, piece in enumerate(pieces):
            self._store.set(f"{name}/{at}", piece)
        self._store.set(name, str(len(pieces)))

    def get(self, name: str, what: str) -> bytes:
        """What another left.

        Raises:
            LimitError: it was not there in time, or who keeps the store is gone.
        """
        begun = time.monotonic()
        if not self._comes(name, self.until):
            raise LimitError(
                f"{what} in {time.monotonic() - begun:.0f} seconds",
                wanted="every rank to call tensure.prove_step once, and a timeout_s that suffices",
            )
        count = int(self._store.get(name))
        return b"".join(bytes(self._store.get(f"{name}/{at}")) for at in range(count))

    def has(self, name: str) -> bool:
        """Whether another left it."""
        return self._comes(name, 0.0)

    def seen(self, name: str) -> None:
        """Wait until another left it, but not for long: who is gone needs nothing."""
        self._comes(name, time.monotonic() + _LAST_S)

    def _comes(self, name: str, until: float) -> bool:
        """Whether it is there in time; asked again and again: a wait that is cut off spoils a store."""
        while True:
            try:
                if self._store.check([name]):
                    return True
            except Exception:  # noqa: BLE001 - each store raises what it likes
                return False
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE_S)
