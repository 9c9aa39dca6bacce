from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import EvaluationError, InputError
from tensure.text import Sampler, SamplingParams, sample
from tensure.text._sampling import _filtered

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(
    lambda v: np.array(v, np.float32)
)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 50),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)


def reference_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The filters in plain Python, token by token, from their definitions."""
    scaled = [float(v) / params.temperature for v in logits]
    alive = set(range(len(scaled)))

    def probabilities() -> dict[int, float]:
        top = max(scaled[i] for i in alive)
        weights = {i: math.exp(scaled[i] - top) for i in alive}
        total = math.fsum(weights.values())
        return {i: w / total for i, w in weights.items()}

    if params.top_k:
        alive = set(sorted(alive, key=lambda i: (-scaled[i], i))[: params.top_k])
    if params.top_p < 1:
        p, kept, total = probabilities(), set(), 0.0
        for i in sorted(alive, key=lambda i: (-p[i], i)):
            if total >= params.top_p:
                break
            kept.add(i)
            total += p[i]
        alive = kept
    if params.min_p:
        p = probabilities()
        alive = {i for i in alive if p[i] >= params.min_p * max(p.values())}
    p = probabilities()
    return np.array([p.get(i, 0.0) for i in range(len(scaled))])


@given(LOGITS)
def test_greedy_is_the_lowest_id_of_the_largest(logits: np.ndarray) -> None:
    chosen = sample(logits, SamplingParams(), 0)
    assert chosen.token_id == min(np.flatnonzero(logits == logits.max()))
    wide = logits.astype(np.float64)
    assert chosen.logprob == pytest.approx(wide[chosen.token_id] - np.logaddexp.reduce(wide), abs=2e-7)


@given(LOGITS, PARAMS, st.integers(0, 1000))
def test_a_draw_depends_on_seed_and_step_alone(logits: np.ndarray, params: SamplingParams, step: int) -> None:
    sampler = Sampler(params)
    first = [sampler.next(logits) for _ in range(3)]
    assert first == [sample(logits, params, at).token_id for at in (0, 1, 2)]
    again = sample(logits, params, step)
    assert again == sample(logits, params, step)
    assert _filtered(logits.astype(np.float64) / params.temperature, params)[again.token_id] > 0


@given(st.permutations([x / 4 for x in range(-8, 9)]), PARAMS)
def test_filters_equal_the_reference(values: list[float], params: SamplingParams) -> None:
    logits = np.array(values, np.float32)
    ours = _filtered(logits.astype(np.float64) / params.temperature, params)
    wanted = reference_probabilities(logits, params)
    # A sum that rounding leaves exactly at top_p may keep one token more or less: such draws say nothing.
    running = np.cumsum(
        np.sort(reference_probabilities(logits, SamplingParams(params.temperature, top_k=params.top_k)))[::-1]
    )
    if np.abs(running - params.top_p).min() > 1e-9:
        np.testing.assert_allclose(ours / ours.sum(), wanted, atol=1e-12)


def test_the_reference_tells_filters_apart() -> None:
    """Negative control: leaving one filter out, or two in the other order, changes the reference."""
    logits = np.array([3, 2.5, 2, 1, 0, -1], np.float32)
    full = SamplingParams(temperature=0.7, top_k=4, top_p=0.9, min_p=0.3)
    wanted = reference_probabilities(logits, full)
    for other in (
        SamplingParams(temperature=0.7, top_k=4, top_p=0.9),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.9, min_p=0.3),
        SamplingParams(temperature=0.7, top_k=4, min_p=0.05),
    ):
        assert np.abs(reference_probabilities(logits, other) - wanted).max() > 1e-3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=3),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=0.9, top_k=5, top_p=0.9, min_p=0.2),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = np.array([1.0, 0.5, -0.3, 2.0, -4.0, 0.1, 1.7], np.float32)
    wanted = reference_probabilities(logits, params)
    draws = 4000
    counts = np.bincount([sample(logits, params, step).token_id for step in range(draws)], minlength=7)
    assert counts[wanted == 0].sum() == 0
    spread = np.sqrt(wanted * (1 - wanted) / draws)
    assert (np.abs(counts / draws - wanted) <= 4.5 * spread + 1e-12).all()


def test_seeds_and_steps_give_different_streams() -> None:
    logits = np.zeros(1000, np.float32)
    streams = {
        tuple(sample(logits, SamplingParams(1.0, seed=s), t).token_id for t in range(4)) for s in range(50)
    }
    assert len(streams) == 50


def test_filters_equal_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    random = np.random.default_rng(7)
    for _ in range(40):
        logits = random.permutation(np.linspace(-4, 4, 60)).astype(np.float32)
        t, k, p, m = (
            random.uniform(0.3, 2),
            int(random.integers(1, 60)),
            random.uniform(0.1, 0.99),
            random.uniform(0, 0.5),
        )
        scores = torch.tensor(logits, dtype=torch.float64)[None]
        for warper in (
            process.TemperatureLogitsWarper(t),
            process.TopKLogitsWarper(k),
            process.TopPLogitsWarper(p),
            process.MinPLogitsWarper(m),
        ):
            scores = warper(None, scores)
        theirs = torch.softmax(scores, -1)[0].numpy()
        ours = _filtered(logits.astype(np.float64) / t, SamplingParams(t, top_k=k, top_p=p, min_p=m))
        np.testing.assert_allclose(ours / ours.sum(), theirs, atol=1e-9)


@pytest.mark.parametrize("size", [300, 9000])
@pytest.mark.parametrize(
    "params", [SamplingParams(1.0, top_k=70), SamplingParams(1.0, top_p=0.97)], ids=["k", "p"]
)
def test_a_large_vocabulary_with_ties_equals_a_full_sort(size: int, params: SamplingParams) -> None:
    logits = np.round(np.random.default_rng(3).normal(size=size), 1)
    weights = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    sums = np.cumsum(weights[order])
    kept = params.top_k or int(np.searchsorted(sums, params.top_p * weights.sum())) + 1
    weights[order[kept:]] = 0.0
    np.testing.assert_array_equal(_filtered(logits, params), weights)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_logit_names_its_step(bad: float) -> None:
    logits = np.zeros(8, np.float32)
    logits[5] = bad
    sampler = Sampler(SamplingParams(temperature=1.0))
    sampler.next(np.zeros(8, np.float32))
    with pytest.raises(EvaluationError, match=r"step 1: a logit is (NaN|\+inf) \(first at token 5\)"):
        sampler.next(logits)


def test_ruled_out_tokens_are_never_drawn_and_one_must_be_left() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert {sample(logits, SamplingParams(1.0), step).token_id for step in range(50)} == {1}
    with pytest.raises(EvaluationError, match="throughout"):
        sample(np.full(3, -np.inf, np.float32), SamplingParams(1.0), 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": math.nan},
        {"temperature": -1},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"top_k": 1.0},
        {"top_k": True},
        {"seed": 2**64},
        {"seed": -1},
        {"max_tokens": 0},
        {"max_tokens": 10**5000},
        {"stop": ("",)},
        {"stop": "x"},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingParams(**bad)


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"shape \[V\]"):
        sample(np.zeros(shape, np.float32), SamplingParams(), 0)
