"""Random decoders for the engine's acceptance tests, sealed once a session, and what is served from them.

The models are transformers' own, larger than `tiny_decoders`' so that products have whole tiles and rests:
width 96, hidden 224, heads of 24, 131 tokens, 3 layers. Legend: N prompt tokens, V vocabulary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.program import tiny_decoders

import tensure
from tensure.runtime import Engine, Stream
from tensure.text import SamplingParams

CONTEXT, VOCAB = 96, 131
SIZES: Any = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
}
QUANTISED = ("q4_0", "q4_1", "q8_0")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Sealed:
    """A bundle, the key that signed it, and transformers' model of the same weights in float32."""

    bundle: Path
    key: Path
    reference: Any

    def open(self) -> tensure.Session:
        return tensure.open(self.bundle, key=self.key)


@contextmanager
def key_of(home: Path) -> Iterator[Path]:
    """The public half of a key of `home`'s own, which seals while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        patch.delenv("TENSURE_KEY", raising=False)
        yield home / "config" / "tensure" / "keys" / "signing-key.pub.pem"


def save_source(home: Path, family: str, encoding: str) -> tuple[Path, Any]:
    """A folder or GGUF file with weights in `encoding`, and the reference that has exactly those weights."""
    narrow = DTYPES.get(encoding, torch.float32)
    model = tiny_decoders.reference(family, dtype=narrow, **SIZES)
    reference = tiny_decoders.reference(family, dtype=narrow, **SIZES)
    if encoding in DTYPES:
        return tiny_decoders.save_folder(model, home / f"{family}-{encoding}", narrow), reference
    config = model.config
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": CONTEXT,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.key_length": config.hidden_size // config.num_attention_heads,
        "attention.value_length": config.hidden_size // config.num_attention_heads,
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": VOCAB,
    }
    kind = gguf.GGMLQuantizationType[encoding.upper()]
    with torch.no_grad():
        for weight in reference.parameters():
            if weight.ndim == 2:
                blocks = gguf.quants.quantize(weight.numpy(), kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy()))
    path = home / f"{family}-{encoding}.gguf"
    return tiny_decoders.write_gguf(path, family, model, encoding=encoding, extra=sizes), reference


def seal_model(home: Path, name: str) -> Sealed:
    """The model that a name such as `granite-bf16` or `llama-q4_0` stands for."""
    family, _, encoding = name.partition("-")
    source, reference = save_source(home, family, encoding)
    with key_of(home) as key:
        return Sealed(tensure.seal(tensure.load(source), home / f"{name}.bundle"), key, reference)


def reference_logits(model: Any, tokens: Sequence[int], *, half_cache: bool = False) -> np.ndarray:
    """Logits f32[N, V] by transformers; with `half_cache`, keys and values pass through float16."""
    from transformers import DynamicCache

    class HalfCache(DynamicCache):
        def update(self, keys: Any, values: Any, *rest: Any, **more: Any) -> Any:
            return super().update(keys.half().float(), values.half().float(), *rest, **more)

    past = HalfCache(config=model.config) if half_cache else None
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([list(tokens)]), past_key_values=past).logits[0].numpy()
    return found


# --- what is asked, and what came ----------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One submission."""

    prompt: tuple[int, ...]
    max_tokens: int = 12
    temperature: float = 0.0
    seed: int = 0
    n: int = 1
    eos_ids: frozenset[int] = frozenset()

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens)

    def submit(self, engine: Engine) -> list[Stream]:
        return engine.submit(self.prompt, self.params, n=self.n, eos_ids=self.eos_ids, keep_logits=True)

    def singles(self) -> list[Ask]:
        """The asks that its streams must equal, each for itself."""
        return [replace(self, n=1, seed=self.seed + index) for index in range(self.n)]


@dataclass(frozen=True)
class Answer:
    """Tokens, every bit of their logits, and why it ended."""

    tokens: tuple[int, ...]
    logits: tuple[bytes, ...] = field(repr=False)
    reason: str | None

    @classmethod
    def of(cls, stream: Stream) -> Answer:
        assert stream.error is None, stream.error
        assert len(stream.logits) == len(stream.tokens)
        assert all(row.dtype == np.float32 for row in stream.logits)
        return cls(tuple(stream.tokens), tuple(row.tobytes() for row in stream.logits), stream.finish_reason)

    def first(self, count: int) -> Answer:
        return Answer(self.tokens[:count], self.logits[:count], None)


def random_prompt(seed: int, size: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCAB), k=size))


def serve(session: tensure.Session, asks: Sequence[Ask], **settings: Any) -> list[Answer]:
    """All asks at once in a fresh engine, run to their end; every page is free or cached afterwards."""
    engine = session.engine(**{"threads": 1} | settings)
    streams = [stream for ask in asks for stream in ask.submit(engine)]
    engine.run()
    assert (engine.stats.running, engine.stats.waiting, engine.stats.pages_used) == (0, 0, 0)
    return [Answer.of(stream) for stream in streams]


class Alone:
    """What each ask answers when nobody else is served: one thread, whole prompts, no page to be found."""

    def __init__(self, session: tensure.Session, **settings: Any) -> None:
        self._one = cache(lambda ask: serve(session, [ask], max_sequences=1, **settings)[0])

    def __call__(self, ask: Ask) -> list[Answer]:
        return [self._one(single) for single in ask.singles()]


BASES = random_prompt(1, CONTEXT), random_prompt(2, CONTEXT)
# Lengths below, at and above a page (16) and a row tile; two prompts within each other, one that fills all.
EIGHT: tuple[Ask, ...] = (
    Ask(BASES[0][:40], 14),
    Ask(BASES[0][:1], 20, temperature=1.0, seed=5),
    Ask(BASES[1][:17], 9),
    Ask((*BASES[0][:33], *BASES[1][:9]), 7, temperature=0.7, seed=3),
    Ask(BASES[1][:64], 32),
    Ask(BASES[0][:16], 5, temperature=1.3, seed=9),
    Ask(BASES[1][:15], 18),
    Ask(BASES[0][:32], 11),
)


def numbers_in(said: BaseException | str) -> set[int]:
    """The whole numbers a message says, thousands separators or not."""
    return {int(word.replace(",", "")) for word in re.findall(r"\d[\d,]*", str(said))}
