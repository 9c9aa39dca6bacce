"""Our own engine on several sequences at once: `Engine.step` from the first tokens to the last.

A fresh engine each time, so that no prompt is found in its cache. Runs in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from tensure.errors import EvaluationError
from tensure.kernels import PAGE_TOKENS
from tensure.runtime import DecoderCore, Engine, PagedDecoder, Stream
from tensure.text import SamplingParams

from ._engine_tensure import arithmetic_of, decoder_facts, read_model
from ._records import Json
from ._text_engine import Floats, memory_facts, pack

__all__ = ["BatchEngine", "setup"]

MakeCore: TypeAlias = Callable[[int, int], DecoderCore]


class BatchEngine:
    """`check`, `run` and `facts` of decode-batch, over the core that `make_core(batch, threads)` gives."""

    def __init__(
        self,
        make_core: MakeCore,
        facts: Mapping[str, Json],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._make_core = make_core
        self._facts = facts
        self._clock = clock
        self._core: DecoderCore | None = None
        self._made_for = (0, 0)

    def check(self, case: Json) -> Json:
        """Logits after each prompt and after its forced token, through the engine itself: packed f32."""
        params = case["params"]
        engine, streams = _submit(self._core_for(case), params["prompts"], 2, keep_logits=True)
        for stream, token in zip(streams, params["forced"], strict=True):
            _force(stream, token)
        engine.run()
        return [pack(logits) for stream in streams for logits in stream.logits]

    def run(self, case: Json) -> Json:
        """Time the tokens after each sequence's first: greedy, all sequences in every step."""
        params = case["params"]
        engine, streams = _submit(self._core_for(case), params["prompts"], params["tokens"] + 1)
        while not all(stream.tokens for stream in streams):
            engine.step()
        before = engine.stats.made_tokens
        begin, cpu = self._clock(), time.process_time()
        engine.run()
        wall_s, cpu_s = self._clock() - begin, time.process_time() - cpu
        made, wanted = engine.stats.made_tokens - before, params["tokens"] * len(streams)
        if made != wanted:
            raise EvaluationError(f"{made} tokens were timed", wanted=f"{wanted}")
        return {"wall_s": wall_s, "cpu_s": cpu_s}

    def facts(self) -> Json:
        """Peak memory too."""
        return {**self._facts, **memory_facts()}

    def _core_for(self, case: Json) -> DecoderCore:
        wanted = (len(case["params"]["prompts"]), int(case["threads"]))
        if self._core is None or wanted != self._made_for:
            self._core = None  # its memory first
            self._core, self._made_for = self._make_core(*wanted), wanted
        return self._core


def _submit(
    core: DecoderCore, prompts: Sequence[Sequence[int]], tokens: int, keep_logits: bool = False
) -> tuple[Engine, list[Stream]]:
    """A fresh engine with one greedy stream for each prompt; nothing ends one early."""
    rows = max(256, sum(map(len, prompts)))  # all prompts in the first step, as for peers
    engine = Engine(core, salt=b"bench", max_rows_per_step=rows, max_running=len(prompts))
    params = SamplingParams(max_tokens=tokens)
    return engine, [engine.submit(prompt, params, keep_logits=keep_logits)[0] for prompt in prompts]


def _force(stream: Stream, token: int) -> None:
    """Let a stream go on with this token, whatever its logits say; it keeps them."""
    choose = stream.choose

    def forced(logits_V: Floats) -> int:
        choose(logits_V)
        return token

    setattr(stream, "choose", forced)  # noqa: B010 - a method of one object


def setup(path: str, mode: str) -> BatchEngine:
    """The engine for a GGUF file, in mode exact or fast, with a full context for each sequence."""
    config, weights = read_model(path)
    arithmetic = arithmetic_of(mode)

    def make_core(batch: int, threads: int) -> DecoderCore:
        pages = batch * -(-config.context // PAGE_TOKENS)
        return PagedDecoder(config, weights, num_pages=pages, threads=threads, arithmetic=arithmetic)

    facts = {**decoder_facts(weights, arithmetic), "through": "Engine"}
    return BatchEngine(make_core, facts)
