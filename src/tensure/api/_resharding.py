"""`prove_resharding`: does a checkpoint that is loaded on another mesh hand every rank what it should?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

    from tensure.bundle import Counterexample
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

    from tensure.capture import capture_resharding, compacted
    from tensure.proving import prove_plan

    program, plan = capture_resharding(
        saved,
        loaded,
        saved_mesh,
        mesh,
        save_planner=save_planner or DefaultSavePlanner,
        load_planner=load_planner or DefaultLoadPlanner,
    )
    found = prove_plan(plan, program)
    if found.proof.values.status != "unknown":
        return found
    # Too large to be replayed, perhaps, and not so in units in which all that is moved is whole.
    small, less, units = compacted(program, plan)
    shown = prove_plan(less, small).proof.values.counterexample
    return found if shown is None else _refuted(found, shown, units)


def _refuted(found: ProofResult, shown: Counterexample, units: Sequence[int]) -> ProofResult:
    """The difference that shows in units, in elements."""
    doubt = next((item for item in found.tensors if item.name == shown.local), None)
    step, source = (shown.step, shown.source) if doubt is None else (doubt.step or doubt.why, doubt.source)
    example = replace(
        shown,
        claim=shown.local,
        step=step,
        source=source,
        index=tuple(at * unit for at, unit in zip(shown.index, units, strict=False)),
    )
    from tensure.bundle import Verdict

    values = Verdict("refuted", "relations and a replay in units", counterexample=example)
    tensors = tuple(
        replace(item, status="refuted") if item.name == shown.local else item for item in found.tensors
    )
    return replace(found, proof=replace(found.proof, values=values), tensors=tensors)
