"""No decision of a scheduler changes a bit of a row's logits or of a page: cuts, batches, threads, stages.

Compared with itself here, at sizes where threads share the work; with its reference in test_decoder.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.decoder_cases import Model, Server, Step, random_model, same_bits, scattered, whole

from tensure.kernels import KV_FORMATS, PAGE_TOKENS

formats = st.sampled_from(sorted(KV_FORMATS))
LENGTHS = (70, 33, 16, 5, 1)


def large(kv_format: str, arithmetic: str = "fast") -> Model:
    """Large enough that every phase goes to several threads, even for one row."""
    return random_model(
        6,
        width=96,
        heads=(3, 3),
        head_dim=32,
        ffn=384,
        vocab=500,
        layers=3,
        kv_format=kv_format,
        arithmetic=arithmetic,
        biases=True,
        multipliers=True,
    )


def sequences_of(model: Model, lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    return [model.tokens(n, i) for i, n in enumerate(lengths)]


def written(server: Server, stage: int = 0) -> np.ndarray:
    """The pages of all sequences, in order; and every other page is seen to be untouched."""
    ids = server.tables[server.tables >= 0]
    others = np.delete(server.pages[stage], ids, axis=0)
    assert (others == 0xFF).all(), "a page of nobody was written"
    return server.pages[stage][ids]


@settings(max_examples=60)
@given(formats, st.sampled_from(["fast", "exact"]), st.integers(0, 2**32), st.integers(1, 3), st.data())
def test_steps_threads_and_stages_change_no_bit(
    kv_format: str, arithmetic: str, seed: int, threads: int, data: st.DataObject
) -> None:
    """Any mixed batches over scattered pages, against each sequence alone in one step on one thread."""
    model = large(kv_format, arithmetic)
    sequences = sequences_of(model)
    plainly = Server(model, sequences)
    wanted = plainly.serve(whole(sequences))
    cuts = sorted(data.draw(st.sets(st.integers(0, 3))))
    mixed = Server(model, sequences, cuts=cuts, seed=seed, threads=threads)
    found = mixed.serve([*scattered(sequences, seed)])
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))
    per_layer = [pages_of_layers(server) for server in (plainly, mixed)]
    assert np.array_equal(*per_layer)


def pages_of_layers(server: Server) -> np.ndarray:
    """The written pages of every stage side by side: what one stage with all the layers would hold."""
    return np.concatenate([written(server, i) for i in range(len(server.stages))], axis=1)


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
@pytest.mark.parametrize("threads", [2, 3])
def test_one_row_at_a_time_equals_all_at_once(kv_format: str, threads: int) -> None:
    model = large(kv_format)
    tokens = model.tokens(40)
    wanted = Server(model, [tokens]).serve(whole([tokens]))[0]
    singly = Server(model, [tokens], threads=threads).serve([[(0, p)] for p in range(40)])[0]
    assert same_bits(singly, wanted)


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
def test_what_is_computed_again_after_a_preemption_has_the_same_bytes(kv_format: str) -> None:
    """Pages given up in the middle, recomputed in other steps over old bytes of others, and gone on with."""
    model = large(kv_format)
    tokens = model.tokens(60)
    kept = Server(model, [tokens], seed=1)
    wanted = kept.serve(whole([tokens]))[0]
    server = Server(model, [tokens], seed=2, threads=2)
    server.serve([[(0, p) for p in range(37)]])
    server.tables[0, :4] = server.tables[0, [3, 2, 0, 1]]
    found = server.serve([[(0, p)] for p in range(3)] + [[(0, p) for p in range(3, 60)]])[0]
    assert same_bits(found, wanted)
    assert np.array_equal(server.pages[0][server.tables[0, :3]], kept.pages[0][kept.tables[0, :3]])


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
def test_a_page_s_bytes_are_its_positions_whatever_lay_there(kv_format: str) -> None:
    """Over ones and over zeros: what differs afterwards was not written, and its size is that of the rest."""
    model = large(kv_format)
    tokens = model.tokens(21)
    servers = [Server(model, [tokens]) for _ in range(2)]
    servers[1].pages[0][:] = 0
    first, second = (server.serve(whole([tokens]))[0] for server in servers)
    assert same_bits(first, second)
    ones, zeros = (server.pages[0][server.tables[0, :2]] for server in servers)
    same = ones == zeros
    assert ((ones == 0xFF) & (zeros == 0))[~same].all()
    of_head = {"f16": 2 * (32 + 32), "int8": 32 + 32 + 8, "int4": 16 + 16 + 16}[kv_format]
    assert same.sum(axis=1).tolist() == [PAGE_TOKENS * of_head * 9, 5 * of_head * 9]


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
def test_two_sequences_share_the_pages_of_a_common_beginning(kv_format: str) -> None:
    """The second one's rows before position 32 are never computed: its table names the first one's pages."""
    model = large(kv_format)
    first = model.tokens(50)
    second = np.concatenate([first[:32], model.tokens(15, 9)])
    server = Server(model, [first, second], threads=2)
    server.tables[1, :2] = server.tables[0, :2]
    server.serve([[(0, p) for p in range(32)]])
    mixed: Step = [(0, 32), (1, 32), (1, 33), (0, 33)]
    found = server.step(mixed + [(1, p) for p in range(34, 47)])
    alone = Server(model, [first, second]).serve(whole([first, second]))
    assert same_bits(found[[0, 3]], alone[0][32:34])
    assert same_bits(found[[1, 2, *range(4, 17)]], alone[1][32:47])


def test_only_wanted_rows_give_logits() -> None:
    model = large("f16")
    sequences = sequences_of(model)
    rows = [row for step in whole(sequences) for row in step]
    every = Server(model, sequences).step(rows)
    wanted = [69, 102, 118, 123, 124]  # the last of each
    assert same_bits(Server(model, sequences, threads=3).step(rows, wanted), every[wanted])
    assert Server(model, sequences).step(rows, []).shape == (0, 500)


def test_a_step_without_rows_writes_nothing() -> None:
    model = random_model(1)
    server = Server(model, [model.tokens(3)], threads=2)
    assert server.step([]).shape == (0, 21)
    assert (server.pages[0] == 0xFF).all()


def test_hidden_rows_between_stages_are_those_of_the_whole() -> None:
    """Stages without layers too: the embedding alone, and one that hands on what it is given."""
    model = large("f16")
    tokens = model.tokens(5)
    server = Server(model, [tokens], cuts=[0, 1, 1])
    assert [stage.num_layers for stage in server.stages] == [0, 1, 0, 2]
    found = server.step([(0, p) for p in range(5)])
    assert same_bits(found, Server(model, [tokens]).step([(0, p) for p in range(5)]))


def test_the_comparison_sees_another_cut_of_layers() -> None:
    """Negative control: layers in another order give other bits and other pages."""
    model = large("int8")
    tokens = model.tokens(20)
    turned = dataclasses.replace(model, layers=model.layers[::-1])
    ours, other = Server(model, [tokens]), Server(turned, [tokens])
    assert not same_bits(ours.serve(whole([tokens]))[0], other.serve(whole([tokens]))[0])
    assert not np.array_equal(written(ours), written(other))
