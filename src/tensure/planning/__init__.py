"""Where and when: generators that turn a Program into a Plan. For now one: all of it on one machine."""

from __future__ import annotations

from ._host import host_plan

__all__ = ["host_plan"]
