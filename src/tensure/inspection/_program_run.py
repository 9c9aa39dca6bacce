"""Record a Program as torch runs it on this machine, op by op: names, modules and lines are the Program's
own.

Knows Programs and the host's runner. Does not know where a model comes from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import torch

from tensure.host import Runner, run_op, zero_states
from tensure.program import Cat, Op, Program, Ref, bind_entry, digest, leaves, state_pairs

from ._recorder import Made, Recorder
from ._recording import Read, Recording, Replay
from ._records import Argument, Quantised

__all__ = ["ProgramRun", "describe_op"]

_QUANTISERS: Final = frozenset({"quantize", "dequantize"})
"""Ops that say how integers stand for numbers."""


class ProgramRun:
    """Calls of one Program's entries, recorded one after the other; states carry over.

    Args:
        program: validated.
        weights: as the host's runner wants them.
        recorder: fills the trace.
        threads: for the runner.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, torch.Tensor],
        recorder: Recorder,
        *,
        threads: int | None = None,
    ) -> None:
        self._program = program
        self._runner = Runner(program, weights, threads=threads)
        self._recorder = recorder
        self._weights = weights
        self._states: dict[str, torch.Tensor] = {}
        self._state_names: dict[str, str] = {}
        self._calls = 0
        self._known: dict[str, str] = {}
        self._clock = 0.0
        self._prefix = ""
        self._replays: dict[int, Replay] = {}

    def recording(self) -> Recording:
        """The calls so far."""
        return Recording(
            self._recorder.trace, self._recorder.store, self._replays, str(digest(self._program))
        )

    def call(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        entry: str | None = None,
        params: Mapping[str, int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The outputs of one call, by name.

        The tensors of a second call and later ones bear its number: `1/logits`.

        Raises:
            RecordError, EvaluationError: as the runner.
        """
        label = entry if entry is not None else next(iter(self._program.entries))
        self._prefix = f"{self._calls}/" if self._calls else ""
        self._calls += 1
        env = bind_entry(self._program, label, params)
        states = self._begin(label, params, env, inputs)
        self._clock = time.perf_counter()
        with torch.inference_mode():
            outputs, after = self._runner.run(
                inputs, entry=label, params=params, states=states, in_place=True, observe=self._observe
            )
        self._states.update(after)
        for before, end in state_pairs(self._program.entry(label), env):
            self._state_names[str(before)] = self._known[str(end)]
        trace = self._recorder.trace
        trace.outputs = {
            **trace.outputs,
            **{f"{self._prefix}{name}": self._known[name] for name in outputs},
        }
        return outputs

    def _begin(
        self,
        label: str,
        params: Mapping[str, int] | None,
        env: Mapping[str, int],
        inputs: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Name the leaves of a call; the before-states of it."""
        self._known = {}
        fresh = zero_states(self._program, label, params)
        found: dict[str, torch.Tensor] = {}
        trace = self._recorder.trace
        for key, _, role in leaves(self._program, label, env):
            if role == "weight":
                if key not in trace.tensors:
                    self._recorder.leaf(key, self._weights[key], "weight")
                self._known[key] = key
            elif role == "state":
                tensor = found[key] = self._states.get(key, fresh[key])
                self._known[key] = self._state_names.get(key, key)
                if self._known[key] not in trace.tensors:
                    self._recorder.leaf(key, tensor, "state")
            else:
                name = f"{self._prefix}{key}"
                self._known[key] = name
                if key in inputs:
                    self._recorder.leaf(name, inputs[key], "input")
        return found

    def _observe(self, item: Op, made: list[torch.Tensor]) -> None:
        seconds = time.perf_counter() - self._clock
        reads, wrote = [self._known[name] for name in _reads(item)], list[str]()
        given = dict(zip(_reads(item), reads, strict=True))
        results: list[Made] = []
        quantised = self._quantised(item, made)
        for at, (out, tensor) in enumerate(zip(item.outs, made, strict=True)):
            name = f"{self._prefix}{out}"
            over = item.op == "slice_scatter" and self._shares(tensor, reads[0])
            if over:
                wrote.append(reads[0])
            results.append(Made(name, tensor, over, quantised if at == 0 else None))
            self._known[str(out)] = name
        note = dict(item.note)
        self._replays[len(self._recorder.trace.steps)] = partial(_replay, item, given)
        self._recorder.step(
            item.op,
            reads,
            results,
            module=str(note.get("module", "")),
            source=str(note.get("source", "")),
            arguments=describe_op(item),
            wrote=tuple(wrote),
            seconds=seconds,
        )
        self._clock = time.perf_counter()

    def _shares(self, tensor: torch.Tensor, name: str) -> bool:
        known = self._recorder.trace.tensors[name]
        return self._recorder.storages.number(tensor) == known.storage

    def _quantised(self, item: Op, made: list[torch.Tensor]) -> Quantised | None:
        """How the integers of a quantiser stand for numbers, and how many are at the end of their range."""
        if item.op not in _QUANTISERS:
            return None
        scale, zero = _span(item.attr("scale")), _span(item.attr("zero_point"))
        axis = item.attr("axis")
        saturated: float | None = None
        if item.op == "quantize":
            ends = (item.attr("qmin"), item.attr("qmax"))
            at_end = made[0].eq(ends[0]) | made[0].eq(ends[1])  # type: ignore[arg-type]
            saturated = float(at_end.float().mean()) if made[0].numel() else 0.0
        return Quantised(
            scale, (int(zero[0]), int(zero[1])), axis if isinstance(axis, int) else None, saturated
        )


def _replay(item: Op, names: Mapping[str, str], read: Read) -> list[torch.Tensor]:
    return run_op(item, lambda name: read(names[name]))


def _span(value: object) -> tuple[float, float]:
    """Least and greatest of a number or a list of them."""
    found = [float(item) for item in (value if isinstance(value, tuple) else (value,))]
    return min(found), max(found)


def _reads(item: Op) -> list[str]:
    return [str(ref.name) for ref in item.reads()]


def describe_op(item: Op) -> tuple[tuple[str, Argument], ...]:
    """Numbers among the operands by position, boxes that are read, then the attributes."""
    return tuple(_arguments(item))


def _arguments(item: Op) -> Iterator[tuple[str, Argument]]:
    for at, arg in enumerate(item.args):
        if isinstance(arg, Ref):
            if arg.box:
                yield f"box {at}", ", ".join(f"dim {dim}: {lo}..{hi}" for dim, lo, hi in arg.box)
        elif isinstance(arg, Cat):
            yield f"joined {at}", f"{len(arg.parts)} along dim {arg.dim}"
        elif arg is not None:
            yield f"operand {at}", _plain(arg)
    for key, value in item.attrs:
        yield key, _plain(value)


def _plain(value: object) -> Argument:
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
