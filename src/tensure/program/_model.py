"""A Program with the weights and side files it came with: what readers return and bundles seal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tensure.errors import RecordError

from ._evaluate import bind_entry, leaves
from ._records import Program
from ._validate import corner_params
from ._weights import StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model.

    Args:
        name: short, for people and file names.
        program: what it computes.
        weights: every weight of the program by printed name (`"W[3]"`), as stored in the source file.
        assets: small side files a bundle carries verbatim: `tokenizer.json`, `chat_template.jinja`,
            `text.json`, `labels.json`, `image.json`.
        origin: where it came from, in words.
    """

    name: str
    program: Program
    weights: Mapping[str, StoredTensor]
    assets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    origin: str = ""

    def check_weights(self) -> None:
        """Raise RecordError unless every declared weight is there with its shape and dtype, and no other."""
        entry = next(iter(self.program.entries))
        env = bind_entry(self.program, entry, next(corner_params(self.program, entry)))
        wanted = {key: want for key, want, role in leaves(self.program, entry, env) if role == "weight"}
        for key, want in wanted.items():
            stored = self.weights.get(key)
            if stored is None:
                raise RecordError(f"weight {key} is missing", file=self.origin, wanted=str(want))
            if stored.shape != want.shape or stored.dtype != want.dtype:
                raise RecordError(
                    f"weight {key} is {stored.dtype}{list(stored.shape)}", file=self.origin, wanted=str(want)
                )
        for key in self.weights:
            if key not in wanted:
                raise RecordError(f"weight {key} belongs to no value of the program", file=self.origin)
