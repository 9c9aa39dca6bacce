"""`prove_resharding`: does a checkpoint that is loaded on another mesh hand every rank what it should?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

    from tensure.capture import StateFunction
    from tensure.proving import ProofResult

__all__ = ["prove_resharding"]


def prove_resharding(
    saved: StateFunction | Metadata,
    loaded: StateFunction,
    *,
    mesh: Mapping[str, int],
    saved_mesh: Mapping[str, int] | None = None,
    save_planner: Callable[[], Any] | None = None,
    load_planner: Callable[[], Any] | None = None,
) -> ProofResult:
    """A verdict on a checkpoint saved under one mesh and loaded under another, and the certificate.

    Each rank's state dict is made at full size on a process group that does not exist, with no bytes. What
    torch.distributed.checkpoint plans to write and to read is the plan; it must give each rank the elements
    that its placements say, of every tensor. A hole, a wrong offset or another tensor's bytes are told with
    rank, element and read.

    Args:
        saved: given the mesh, the state dict that a rank saves; or the metadata of a checkpoint, as
            `FileSystemReader(path).read_metadata()` reads it in your own process.
        loaded: given the mesh, the state dict that a rank loads into.
        mesh: sizes of the axes of the mesh that loads, outermost first.
        saved_mesh: of the one that saved, if `saved` is a function.
        save_planner, load_planner: make the planners; torch's own by default.

    Raises:
        InputError: state dicts that do not go together; whatever functions and planners raise.
        UnsupportedError: tensors of other kinds than plain ones and DTensor.
    """
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

    from tensure.capture import capture_resharding
    from tensure.proving import prove_plan

    def proved(only: str | None = None) -> ProofResult:
        program, plan = capture_resharding(
            saved,
            loaded,
            saved_mesh,
            mesh,
            save_planner=save_planner or DefaultSavePlanner,
            load_planner=load_planner or DefaultLoadPlanner,
            only=only,
        )
        return prove_plan(plan, program)

    found = proved()
    if found.proof.values.status == "unknown" and len(found.tensors) > 1:
        doubted = next((item.name for item in found.tensors if item.status == "unknown"), None)
        if doubted is not None:  # alone it is small enough to be replayed, perhaps
            alone = proved(doubted.removeprefix("loaded."))
            if alone.proof.values.status == "refuted":
                return alone
    return found
