"""The parallel step of every rank of a mesh as a Plan.

Up to 256 ranks are traced one by one, and nothing is assumed of one rank because of another. Of more ranks,
or when asked, some are traced while it is watched what code asks of its place; that says for whom each stands
(`_classes`).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from tensure.bundle import Plan, Track
from tensure.errors import InputError, LimitError, UnsupportedError
from tensure.program import Op, digest

from ._ahead import Traces, traced_in
from ._boxes import Box
from ._class_tracks import Class, alike, class_tracks, classes_agree, live_classes, token
from ._classes import MAX_TRACED, RankClass, classes_of
from ._coordinate import Reads
from ._exchanges import even_exchanges, settled_exchanges
from ._flat import agree, apart
from ._letters import check_class_letters, check_letters
from ._meets import settled_calls, unlike, unlike_classes
from ._microbatch import MICROBATCH
from ._model import Captured
from ._places import number_of
from ._rank import TracedRank
from ._spelling import spelled
from ._squares import unrooted
from ._step import ModelFunction, ParallelFunction
from ._tape import BEFORE, DRAWN
from ._tracks import live_steps, tracks_of
from ._world import MAX_WORLD, count_ranks

__all__ = ["capture_parallel", "plan_of"]

_UNKNOWN: Final = {
    DRAWN: (
        "random numbers drawn by the parallel function are read in the step",
        "random numbers for parameters alone, whose place is known",
    ),
    BEFORE: (
        "the step reads a tensor of shape {shape} that was made before it",
        "parameters, buffers, inputs, small constants, and what is made of them inside the step",
    ),
}

MAX_PLACES = 1 << 22
"""Ranks times micro-batches."""


def capture_parallel(
    model: ModelFunction,
    parallel: ParallelFunction,
    mesh: Mapping[str, int],
    captured: Captured,
    *,
    classes: bool | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[Sequence[RankClass]], None] | None = None,
) -> Plan:
    """The parallel step of every rank, with claims at its ends.

    Args:
        model: as for `capture_model`.
        parallel: makes a fresh module of the model parallel, once for each rank that is traced.
        mesh: sizes of the axes, outermost first.
        captured: what the model alone came to.
        classes: trace some ranks, and find for whom each stands; None: where there are more than 256.
        jobs: processes that trace; the Plan is the same for any number, where what the code does for one rank
            does not hang on other ranks having been traced before in the same process.
        progress: told (ranks done, ranks in all).
        told: told the classes of ranks, where there are any, with their reasons.

    Raises:
        InputError: parameters that the model does not have, tensors whose place nobody said, micro-batches
            that are not alike, or whatever the code itself raises.
        LimitError: more ranks than there can be, or too many that do something of their own.
        UnsupportedError: an op, group or placement without a rule.
    """
    world = count_ranks(mesh)
    if world > MAX_WORLD:
        raise LimitError(f"a mesh of {world} ranks", wanted=f"at most {MAX_WORLD}")
    if classes is False and world > MAX_TRACED:
        raise LimitError(
            f"a mesh of {world} ranks", wanted=f"at most {MAX_TRACED}, where each is traced by itself"
        )
    with _frozen() as collect:
        first = TracedRank(mesh, 0, captured)
        if world <= MAX_TRACED and not classes:
            first.trace(model, parallel)
            collect()
            count = world * first.mesh.get(MICROBATCH, 1)
            if count <= MAX_TRACED or classes is False:
                return _plan(captured, first.mesh, _by_rank(first, model, parallel, collect, jobs, progress))

        def trace(place: Mapping[str, int]) -> TracedRank:
            number = number_of(place, mesh)
            index = place.get(MICROBATCH, 0)
            reads = Reads(dict(mesh), {axis: place[axis] for axis in mesh})
            found = TracedRank(mesh, number, captured, index, reads)
            found.trace(model, parallel)
            collect()
            return found

        start = trace(dict.fromkeys(mesh, 0))
        places = math.prod(start.mesh.values())
        if places > MAX_PLACES:
            raise LimitError(f"{places} ranks and micro-batches", wanted=f"at most {MAX_PLACES}")
        known, traces = [start], Traces(trace, captured, jobs)

        def trace_once(place: Mapping[str, int]) -> TracedRank:
            if known and known[0].place == place:
                return known.pop()
            found = traces.at(place)
            _same_count(found, start)
            return found

        found = classes_of(trace_once, start.mesh, progress, traces.ahead if jobs > 1 else None)
    if told is not None:
        told(found)
    return _plan(captured, start.mesh, _by_class(found, start.mesh, mesh))


def _plan(captured: Captured, mesh: Mapping[str, int], tracks: Mapping[str, Track]) -> Plan:
    for track in tracks.values():
        for step in track.bodies["step"]:
            word = step.outs[0].base.partition("_")[0] if isinstance(step, Op) and step.op == "full" else ""
            if isinstance(step, Op) and word in _UNKNOWN:
                found, wanted = _UNKNOWN[word]
                place = ", ".join(str(value) for _, value in step.note)
                found = found.format(shape=step.attr("size"))
                raise UnsupportedError(found, place=place or None, wanted=wanted)
    return Plan(digest(captured.program), mesh=dict(mesh), tracks=dict(tracks))


def _by_rank(
    first: TracedRank,
    model: ModelFunction,
    parallel: ParallelFunction,
    collect: Callable[[], None],
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Track]:
    """Tracks of ranks that are all traced."""
    world, mesh = first.world, first.mesh
    microbatches = mesh.get(MICROBATCH, 1)
    count = math.prod(world.values()) * microbatches

    def trace(at: int) -> TracedRank:
        found = TracedRank(world, at // microbatches, first.captured, at % microbatches)
        found.trace(model, parallel)
        collect()
        _same_count(found, first)
        return found

    def done(ranks: int) -> None:
        if progress is not None:
            progress(ranks + 1, count)

    done(0)
    others = traced_in(jobs, [partial(trace, at) for at in range(1, count)], first.captured, done)
    return _tracks([first, *others], mesh, world)


def plan_of(captured: Captured, ranks: Sequence[TracedRank]) -> Plan:
    """The Plan of ranks that were all traced, in order.

    Raises:
        UnsupportedError: a step that rests on values nobody knows.
    """
    mesh = ranks[0].mesh
    return _plan(captured, mesh, _tracks(ranks, mesh, ranks[0].world))


def _tracks(
    ranks: Sequence[TracedRank], mesh: Mapping[str, int], world: Mapping[str, int]
) -> dict[str, Track]:
    _lack(ranks)
    _unroot(ranks)
    settled_exchanges(ranks, mesh, world)
    check_letters([rank.steps for rank in ranks])
    calls = unlike([(rank.place, rank.steps) for rank in ranks])
    for rank in ranks:
        rank.steps = settled_calls(rank.steps, calls)
    traces = [rank.traced(rank.steps) for rank in ranks]
    for padded in _orders(ranks):
        parts = [apart(rank.steps, rank.leaf_types(), mesh, rank.place if padded else None) for rank in ranks]
        if agree([(rank.place, met) for rank, (_, met) in zip(ranks, parts, strict=True)], mesh):
            traces = [rank.traced(steps) for rank, (steps, _) in zip(ranks, parts, strict=True)]
            break
    return tracks_of(live_steps(traces, calls.brought), mesh, world)


def _by_class(
    found: Sequence[RankClass], mesh: Mapping[str, int], world: Mapping[str, int]
) -> dict[str, Track]:
    """Tracks of classes of ranks."""
    boxes: list[Box] = [item.box for item in found]
    samples = [[rank.moved(rank.place) for rank in item.samples] for item in found]
    everyone = [rank for ranks in samples for rank in ranks]
    _lack(everyone)
    _unroot(everyone)
    for rank, steps in zip(everyone, even_exchanges([rank.steps for rank in everyone]), strict=True):
        rank.steps = steps
    for ranks in samples:
        for rank in ranks:
            distances = iter(rank.distances())
            rank.steps = [
                token(step, next(distances)) if step.op in ("send", "recv") else step for step in rank.steps
            ]
    check_class_letters(boxes, [[rank.steps for rank in ranks] for ranks in samples], mesh)
    calls = unlike_classes(boxes, [[(rank.place, rank.steps) for rank in ranks] for ranks in samples], mesh)
    for rank in everyone:
        rank.steps = settled_calls(rank.steps, calls)

    def live(texts: Sequence[Sequence[Sequence[Op]]]) -> list[Class]:
        made = [
            Class(box, tuple(rank.traced(spelled(text)) for rank, text in zip(ranks, each, strict=True)))
            for box, ranks, each in zip(boxes, samples, texts, strict=True)
        ]
        return live_classes(made, mesh, calls.brought)

    for padded in _orders([rank for ranks in samples for rank in ranks]):
        parts = [
            [apart(rank.steps, rank.leaf_types(), mesh, rank.place if padded else None) for rank in ranks]
            for ranks in samples
        ]
        is_one = all(met == each[0][1] for each in parts for _, met in each)
        if is_one and classes_agree(boxes, [each[0][1] for each in parts], mesh):
            made = live([[steps for steps, _ in each] for each in parts])
            if alike(made):
                return class_tracks(made, mesh, world)
    return class_tracks(live([[rank.steps for rank in ranks] for ranks in samples]), mesh, world)


def _orders(ranks: Sequence[TracedRank]) -> tuple[bool, bool]:
    """Whether to look for padding first, when flat memory is taken apart: if shards are of several sizes."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for rank in ranks:
        for label, part in rank.standing.items():
            if label not in rank.captured.inputs:
                shapes.setdefault(label, set()).add(part.shape)
    is_uneven = any(len(found) > 1 for found in shapes.values())
    return is_uneven, not is_uneven


def _lack(ranks: Sequence[TracedRank]) -> None:
    """Gradients that some rank has: who has them not, and uses the parameter, says so."""
    made = {rank.claims[local][0] for rank in ranks for local in rank.outputs}
    for rank in ranks:
        for grad in sorted(rank.lacking):
            if rank.captured.of(grad) in made:
                rank.lack(grad)


def _unroot(ranks: Sequence[TracedRank]) -> None:
    for rank, steps in zip(ranks, unrooted([rank.steps for rank in ranks]), strict=True):
        rank.steps = steps


def _same_count(rank: TracedRank, first: TracedRank) -> None:
    if rank.mesh != first.mesh:
        raise InputError(
            f"{rank.mesh.get(MICROBATCH, 1)} micro-batches on rank {rank.rank}",
            wanted=f"{first.mesh.get(MICROBATCH, 1)}, as on rank {first.rank}",
        )


@contextmanager
def _frozen() -> Iterator[Callable[[], None]]:
    """Modules and tapes are cyclic, and there is one for each rank: swept after each, and then left alone."""
    was_frozen = gc.get_freeze_count()

    def collect() -> None:
        gc.collect()
        gc.freeze()  # the next sweep looks at what the next rank leaves, and at nothing else

    gc.freeze()
    try:
        yield collect
    finally:
        if not was_frozen:
            gc.unfreeze()
