"""From one row of logits to the next token, repeatably.

Knows the order of the filters and a counter-based random stream: the draw at step n depends on the seed and
n alone, so batching, chunking and restarts change nothing. Does not know the model or the tokenizer.

Filters act in this order, each on what the one before left, renormalised: temperature, top-k, top-p, min-p.
That is the order of transformers' generate. Ties go to the lowest id everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tensure.errors import EvaluationError, InputError, LimitError

from ._stop import check_stops

__all__ = ["Sampled", "Sampler", "SamplingParams", "sample"]

MAX_VOCABULARY = 1 << 22
MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. The default is greedy.

    Args:
        temperature: 0 takes the largest logit; otherwise logits are divided by it.
        top_p: keep the fewest most likely tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 keeps all.
        seed: key of the random stream, 0 to 2**64 - 1.
        max_tokens: most tokens to make.
        stop: strings that end the text before themselves.

    Raises:
        InputError: a value is outside its range or not finite.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0.0, 100.0)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InputError(
                "top_p is 0", wanted="more than 0", next_step="For greedy decoding set temperature=0"
            )
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_int("top_k", self.top_k, 0, MAX_VOCABULARY)
        _check_int("seed", self.seed, 0, (1 << 64) - 1)
        _check_int("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        object.__setattr__(self, "stop", check_stops(self.stop))


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token and its natural log-probability under the model's own distribution, good to 2e-7."""

    token_id: int
    logprob: float


class Sampler:
    """`sample` with the step counted."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.step = 0
        self.last: Sampled | None = None

    def next(self, logits: np.ndarray) -> int:
        """Give the next token id; its log-probability is then in `last`."""
        self.last = sample(logits, self.params, self.step)
        self.step += 1
        return self.last.token_id


def sample(logits: np.ndarray, params: SamplingParams, step: int) -> Sampled:
    """Choose a token from `logits` (float [V]; -inf rules a token out) for the `step`-th time.

    Raises:
        EvaluationError: a logit is NaN or +inf, or all are -inf.
    """
    if logits.ndim != 1 or not 0 < logits.size <= MAX_VOCABULARY or logits.dtype.kind != "f":
        raise InputError(f"logits are {logits.dtype} {list(logits.shape)}", wanted="floats of shape [V]")
    best = int(np.argmax(logits))  # NaN counts as largest, and of equals the first is taken
    peak = float(logits[best])
    if not math.isfinite(peak):
        what = {math.inf: "+inf", -math.inf: "-inf throughout"}.get(peak, "NaN")
        raise EvaluationError(
            f"a logit is {what} (first at token {best})", place=f"step {step}", wanted="finite logits"
        )
    # The sum only serves the log-probability: seven digits of each term are enough, in a quarter of the time.
    terms_V = np.exp((logits - logits.dtype.type(peak)).astype(np.float32, copy=False))
    log_total = math.log(float(terms_V.sum(dtype=np.float64)))
    chosen = best
    if params.temperature > 0.0:
        logits_V = (logits.astype(np.float64) - peak) / params.temperature
        chosen = _draw(_filtered(logits_V, params), _uniform(params.seed, step))
    return Sampled(chosen, float(logits[chosen]) - peak - log_total)


def _filtered(logits_V: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Unnormalised probabilities in id order, zero where filtered; the likeliest token is always left."""
    weights_V: np.ndarray = np.exp(logits_V - logits_V.max())
    if 0 < params.top_k < weights_V.size:
        # Compared as logits: two that differ may round to one weight.
        threshold = _kth_largest(logits_V, params.top_k)
        ties = np.flatnonzero(logits_V == threshold)
        spare = params.top_k - int(np.count_nonzero(logits_V > threshold))
        weights_V[logits_V < threshold] = 0.0
        weights_V[ties[spare:]] = 0.0
    if params.top_p < 1.0:
        kept = _nucleus(weights_V, params.top_p * float(weights_V.sum()))
        inside = np.zeros(weights_V.size, dtype=bool)
        inside[kept] = True
        weights_V[~inside] = 0.0
    if params.min_p > 0.0:
        weights_V[weights_V < params.min_p * weights_V.max()] = 0.0
    return weights_V


def _nucleus(weights_V: np.ndarray, target: float) -> np.ndarray:
    """Ids of the fewest heaviest tokens whose weights reach `target`; of equals the lower id first."""
    ids = np.arange(0)
    for count in (256, 8192, weights_V.size):  # sorting everything costs more than the rest of a step
        enough = min(count, weights_V.size)
        ids = np.flatnonzero(weights_V >= _kth_largest(weights_V, enough))
        ids = ids[np.argsort(-weights_V[ids], kind="stable")]
        cumulative = np.cumsum(weights_V[ids])
        if cumulative[-1] >= target:
            return ids[: int(np.searchsorted(cumulative, target, side="left")) + 1]
    return ids[weights_V[ids] > 0]  # rounding alone kept the sum below the target


def _kth_largest(values: np.ndarray, count: int) -> float:
    at = values.size - count
    return float(np.partition(values, at)[at])


def _draw(weights_V: np.ndarray, uniform: float) -> int:
    """The token under `uniform` in [0, 1) of the cumulative weights, in id order."""
    cumulative = np.cumsum(weights_V)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding may carry the product up to the total itself: then the last token that has weight.
    return min(index, int(np.flatnonzero(weights_V)[-1]))


def _uniform(seed: int, step: int) -> float:
    """A double in [0, 1) from Philox4x64 (Salmon et al., SC 2011), keyed by seed, counted by step."""
    bits = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def _check_real(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} is {_shown(value)}", wanted=f"a number from {low:g} to {high:g}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {_shown(value)}", wanted=f"an integer from {low} to {high}")
    if not low <= value <= high:
        raise LimitError(f"{name} is {_shown(value)}", wanted=f"an integer from {low} to {high}")


def _shown(value: object) -> str:
    # A huge integer would take long to print, or be refused by Python's own limit.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.40}"
