"""A file's tensors in the places of a decoder's weights: all used, every shape compared, none left over.

Knows: how logical weight names (`q[3]`) pair with a file's tensor names (`blk.3.attn_q.weight`), given the
patterns of that file format. Does not know where the tensors came from.

Weights stored as f16 or bf16 stand in the Program as f32, because the decoder computes in f32 and every
such value is an f32 exactly. Their bytes stay the file's own, under the wide encodings that decode to f32, so
that the Program does not depend on how its weights are stored and a bundle is no larger than its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tensure.errors import FormatError, UnsupportedError

from ._evaluate import bind_entry, concrete
from ._records import Program, TensorType, family
from ._validate import corner_params
from ._weights import ENCODINGS, StoredTensor

__all__ = ["place_weights", "widen"]


def place_weights(
    program: Program,
    tensors: Mapping[str, StoredTensor],
    patterns: Mapping[str, str],
    *,
    generated: Mapping[str, StoredTensor],
    used: Iterable[str] = (),
    file: str,
) -> dict[str, StoredTensor]:
    """Every weight of `program` by printed name.

    Args:
        program: whose weights to fill.
        tensors: what the file holds.
        patterns: file tensor name by weight family, with `{}` for the layer.
        generated: weights that come from the configuration instead of the file.
        used: names of tensors that have been used otherwise.
        file: what errors call the file.

    Raises:
        FormatError: a tensor is missing, has another shape, or belongs to no weight; each by name.
        UnsupportedError: a tensor's encoding is neither a float nor a block code.
    """
    label = next(iter(program.entries))
    env = bind_entry(program, label, next(corner_params(program, label)))
    placed: dict[str, StoredTensor] = {}
    left = dict.fromkeys(tensors)
    for taken in used:
        left.pop(taken, None)
    for base, value in program.weights().items():
        for member, letters in family(base, value.params, env):
            want = concrete(value, {**env, **letters})
            if base in generated:
                placed[str(member)] = generated[base]
                continue
            source = patterns[base].format(*member.members())
            placed[str(member)] = _fitting(tensors.get(source), source, str(member), want, file)
            left.pop(source, None)
    if left:
        raise FormatError(
            f"{len(left)} tensors belong to no weight of this model",
            file=file,
            place=f"tensor {next(iter(left))!r}",
            wanted="only the tensors its configuration calls for",
        )
    return placed


def widen(stored: StoredTensor) -> StoredTensor:
    """The same bytes, decoding to f32: f16 and bf16 under their wide encodings, anything else as it is."""
    if stored.encoding not in ("f16", "bf16"):
        return stored
    return StoredTensor(stored.shape, f"wide_{stored.encoding}", stored.data)


def _fitting(
    stored: StoredTensor | None, source: str, weight: str, want: TensorType, file: str
) -> StoredTensor:
    place = f"tensor {source!r}"
    if stored is None:
        raise FormatError("the tensor is missing", file=file, place=place, wanted=f"{want} for {weight}")
    if stored.shape != want.shape:
        raise FormatError(
            f"shape {list(stored.shape)}", file=file, place=place, wanted=f"{list(want.shape)} for {weight}"
        )
    if stored.encoding not in ("f32", "f16", "bf16") and not ENCODINGS[stored.encoding].is_block:
        raise UnsupportedError(
            f"encoding {stored.encoding}", file=file, place=place, wanted="f32, f16, bf16 or a block code"
        )
    return widen(stored)
