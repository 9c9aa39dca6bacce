"""What `DecoderStage` refuses, naming the place, with nothing written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from tests.kernels.decoder_cases import plain, random_matrix, random_model

from tensure.errors import InputError
from tensure.kernels import DecoderSizes, DecoderStage, PlainMatrix, StepRows

MODEL = random_model(1, kinds=("f32", "q8_0"), width=32, heads=(2, 2), head_dim=6)
LAYER = MODEL.layers[0]
WHOLE = MODEL.stages()[0]
LATER = MODEL.stages((1,))[1]
NUM_PAGES = 6


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def rows(**changes: np.ndarray) -> StepRows:
    """Two rows of one sequence, with changes."""
    right = {
        "tokens": ints(1, 2),
        "positions": ints(0, 1),
        "slots": ints(0, 0),
        "tables": np.array([[2, 3, -1, -1, -1]], np.int32),
        "wanted": ints(0, 1),
    }
    return StepRows(**(right | changes))


def misaligned(array: np.ndarray) -> np.ndarray:
    there = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    there[:] = array.reshape(-1)
    return there.reshape(array.shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


PAGES = np.full((NUM_PAGES, WHOLE.page_bytes), 0x5A, np.uint8)
LATER_PAGES = np.full((NUM_PAGES, LATER.page_bytes), 0x5A, np.uint8)
HIDDEN = np.ones((2, 32), np.float32)


def run(pages: object = PAGES, threads: object = 1, **changes: np.ndarray) -> object:
    return WHOLE.run(rows(**changes), pages, threads=threads)


def run_later(hidden: object, pages: np.ndarray = LATER_PAGES) -> object:
    return LATER.run(rows(), pages, hidden=hidden)


def table(*ids: int) -> np.ndarray:
    return np.array([ids], np.int32)


def sizes(**changes: object) -> DecoderSizes:
    return dataclasses.replace(MODEL.sizes, **changes)


def build(**changes: object) -> DecoderStage:
    arguments = {
        "sizes": MODEL.sizes,
        "cosine": MODEL.cosine,
        "sine": MODEL.sine,
        "layers": MODEL.layers,
        "embed": MODEL.embed,
        "head": MODEL.head,
    }
    return DecoderStage(**(arguments | changes))


def layer(**changes: object) -> DecoderStage:
    return build(layers=[MODEL.layers[1], dataclasses.replace(LAYER, **changes)])


RNG = np.random.default_rng(0)
FOUR_BYTES = np.zeros(4, np.uint8)
TWO_BEYOND = np.array([[2, 3, -1, -1, -1], [2, 4, -1, -1, -1]], np.int32)

BAD_STEPS: dict[str, Callable[[], object]] = {
    "tokens dtype": lambda: run(tokens=np.array([1, 2])),
    "tokens a list": lambda: run(tokens=[1, 2]),
    "tokens dims": lambda: run(tokens=np.zeros((2, 1), np.int32)),
    "tokens strided": lambda: run(tokens=np.zeros(4, np.int32)[::2]),
    "tokens misaligned": lambda: run(tokens=misaligned(ints(1, 2))),
    "tables misaligned": lambda: run(tables=misaligned(table(2, 3))),
    "tables in columns": lambda: run(tables=np.array([[2, 3], [4, 5]], np.int32).T),
    "tables of one dim": lambda: run(tables=ints(2, 3)),
    "token below": lambda: run(tokens=ints(-1, 2)),
    "token beyond": lambda: run(tokens=ints(1, MODEL.sizes.vocab)),
    "more positions": lambda: run(positions=ints(0, 1, 2)),
    "fewer slots": lambda: run(slots=ints(0)),
    "position below": lambda: run(positions=ints(-1, 0)),
    "position least": lambda: run(positions=ints(0, -(2**31))),
    "position beyond": lambda: run(positions=ints(0, 70), tables=table(0, 1, 2, 3, 4, 5)),
    "position beyond the table": lambda: run(positions=ints(0, 32), tables=table(2, 3)),
    "slot below": lambda: run(slots=ints(0, -1)),
    "slot beyond": lambda: run(slots=ints(0, 1)),
    "no page yet": lambda: run(tables=table(-1, 3)),
    "no page before": lambda: run(positions=ints(15, 16), tables=table(-1, 3)),
    "page beyond": lambda: run(tables=table(NUM_PAGES, 3)),
    "page far beyond": lambda: run(tables=table(2**31 - 1, 3)),
    "two rows, one place": lambda: run(positions=ints(1, 1)),
    "two sequences, one place": lambda: run(slots=ints(0, 1), positions=ints(3, 3), tables=TWO_BEYOND),
    "wanted beyond": lambda: run(wanted=ints(0, 2)),
    "wanted below": lambda: run(wanted=ints(-1)),
    "wanted more than rows": lambda: run(wanted=ints(0, 0, 1)),
    "no slots": lambda: run(tables=np.zeros((0, 2), np.int32)),
    "tables without pages": lambda: run(tables=np.zeros((1, 0), np.int32)),
    "too many rows": lambda: run(**dict.fromkeys(("tokens", "positions", "slots"), MANY)),
    "rows a dict": lambda: WHOLE.run({}, PAGES),
    "pages read-only": lambda: run(read_only(PAGES.copy())),
    "pages of one dim": lambda: run(PAGES.reshape(-1)),
    "pages too small": lambda: run(PAGES[:, :-1].copy()),
    "pages strided": lambda: run(PAGES[::2]),
    "pages signed": lambda: run(PAGES.view(np.int8)),
    "pages a list": lambda: run([]),
    "pages of another stage": lambda: run(LATER_PAGES),
    "no threads": lambda: run(threads=0),
    "threads a bool": lambda: run(threads=True),
    "threads beyond": lambda: run(threads=1025),
    "hidden where tokens are": lambda: WHOLE.run(rows(), PAGES, hidden=HIDDEN),
    "hidden missing": lambda: run_later(None),
    "hidden read-only": lambda: run_later(read_only(HIDDEN.copy())),
    "hidden shape": lambda: run_later(HIDDEN[:1]),
    "hidden dtype": lambda: run_later(HIDDEN.astype(np.float64)),
    "hidden misaligned": lambda: run_later(misaligned(HIDDEN)),
    "hidden strided": lambda: run_later(np.ones((2, 64), np.float32)[:, ::2]),
    "hidden in the pages": lambda: run_later(
        LATER_PAGES.reshape(-1)[-256:].view(np.float32).reshape(2, 32), LATER_PAGES
    ),
    "rows of a workspace below": lambda: WHOLE.workspace_bytes(-1, 1),
    "rows of a workspace beyond": lambda: WHOLE.workspace_bytes((1 << 20) + 1, 1),
    "rows of a workspace half": lambda: WHOLE.workspace_bytes(1.5, 1),
    "threads of a workspace": lambda: WHOLE.workspace_bytes(1, 0),
}
MANY = np.zeros((1 << 20) + 1, np.int32)

BAD_STAGES: dict[str, Callable[[], object]] = {
    "eps NaN": lambda: build(sizes=sizes(rms_eps=float("nan"))),
    "eps below": lambda: build(sizes=sizes(rms_eps=-1e-6)),
    "eps a word": lambda: build(sizes=sizes(rms_eps="1e-6")),
    "eps beyond float32": lambda: build(sizes=sizes(rms_eps=1e39)),
    "scale infinite": lambda: build(sizes=sizes(attention_scale=float("inf"))),
    "divisor zero": lambda: build(sizes=sizes(logits_divisor=0.0)),
    "divisor zero as float32": lambda: build(sizes=sizes(logits_divisor=1e-50)),
    "multiplier a bool": lambda: build(sizes=sizes(residual_multiplier=True)),
    "adjacent a number": lambda: build(sizes=sizes(adjacent=1)),
    "width zero": lambda: sizes(width=0),
    "width a float": lambda: sizes(width=32.0),
    "context a bool": lambda: sizes(context=True),
    "vocab beyond": lambda: sizes(vocab=(1 << 24) + 1),
    "heads uneven": lambda: sizes(heads=3),
    "head size odd": lambda: sizes(head_dim=3),
    "heads beyond": lambda: sizes(heads=1 << 20, kv_heads=1, head_dim=1 << 10),
    "sizes missing": lambda: build(sizes=None),
    "cosine short": lambda: build(cosine=MODEL.cosine[:-1]),
    "sine dtype": lambda: build(sine=MODEL.sine.astype(np.float64)),
    "sine misaligned": lambda: build(sine=misaligned(MODEL.sine)),
    "cache format": lambda: build(kv_format="f32"),
    "cache format a list": lambda: build(kv_format=[]),
    "arithmetic": lambda: build(arithmetic="quick"),
    "layers a number": lambda: build(layers=3),
    "layer missing": lambda: build(layers=[LAYER, None]),
    "matrix shape": lambda: layer(k=LAYER.q),
    "matrix an array": lambda: layer(q=np.zeros((24, 32), np.float32)),
    "norm missing": lambda: layer(attn_norm=None),
    "norm short": lambda: layer(ffn_norm=np.ones(31, np.float32)),
    "norm misaligned": lambda: layer(ffn_norm=misaligned(np.ones(32, np.float32))),
    "one bias of three": lambda: layer(q_bias=np.ones(24, np.float32)),
    "one head norm of two": lambda: layer(q_norm=np.ones(6, np.float32)),
    "bias dtype": lambda: layer(q_bias=np.ones(24), k_bias=np.ones(12), v_bias=np.ones(12)),
    "embedding shape": lambda: build(embed=random_matrix(RNG, "f32", 20, 32)),
    "head without its norm": lambda: build(head=MODEL.head[0]),
    "head's norm short": lambda: build(head=(MODEL.head[0], MODEL.head[1][:-1])),
    "plain kind": lambda: PlainMatrix("f64", 1, 1, np.zeros(8, np.uint8)),
    "plain kind a list": lambda: PlainMatrix([], 1, 1, FOUR_BYTES),
    "plain bytes": lambda: PlainMatrix("f32", 1, 2, FOUR_BYTES),
    "plain rows below": lambda: PlainMatrix("f32", -1, -1, FOUR_BYTES),
    "plain rows a float": lambda: PlainMatrix("f32", 1.0, 1, FOUR_BYTES),
    "plain strided": lambda: PlainMatrix("f32", 1, 1, np.zeros(8, np.uint8)[::2]),
    "plain floats": lambda: PlainMatrix("f32", 1, 1, np.zeros(1, np.float32)),
    "plain a list": lambda: PlainMatrix("f32", 1, 1, [0, 0, 0, 0]),
}


def named(call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.place
    assert caught.value.found
    assert caught.value.wanted


@pytest.mark.parametrize("what", sorted(BAD_STEPS))
def test_a_bad_step_is_refused_and_writes_nothing(what: str) -> None:
    named(BAD_STEPS[what])
    assert (PAGES == 0x5A).all() and (LATER_PAGES == 0x5A).all() and (HIDDEN == 1).all()


@pytest.mark.parametrize("what", sorted(BAD_STAGES))
def test_a_bad_stage_is_refused(what: str) -> None:
    named(BAD_STAGES[what])


def test_the_step_that_the_bad_ones_are_made_of_is_taken() -> None:
    """Negative control: it runs, and writes."""
    pages, hidden = PAGES.copy(), HIDDEN.copy()
    assert run(pages).shape == (2, MODEL.sizes.vocab)
    assert (pages != PAGES).any()
    assert run_later(hidden, LATER_PAGES.copy()).shape == (2, MODEL.sizes.vocab)
    assert (hidden != HIDDEN).any()
    assert build().page_bytes == WHOLE.page_bytes
    assert layer(q=plain("f16", np.zeros((24, 32)))).num_layers == 2


def test_messages_carry_the_numbers() -> None:
    with pytest.raises(InputError, match=r"layer 1, k: got 24 x 32; wanted 12 x 32"):
        layer(k=LAYER.q)
    with pytest.raises(InputError, match=r"rows: two rows write one place of the cache"):
        run(positions=ints(1, 1))
    with pytest.raises(InputError, match=rf"pages: got shape \[6, {LATER.page_bytes}\]; wanted pages of"):
        run(LATER_PAGES)
