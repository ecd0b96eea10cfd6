"""Numbers that say how sure we are: intervals, tests, votes, shares. Pure functions on outcome vectors.

An outcome is the reward of one task, usually 0 or 1. Vectors that are compared are paired: position i of both is the
same task. Unknown outcomes (NaN) are refused here; the caller decides what to leave out, and says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..types import Value

__all__ = [
    "Interval",
    "gap_closed",
    "majority_vote",
    "mcnemar",
    "paired_bootstrap",
    "routing_entropy_bits",
    "wilson",
]

Floats: TypeAlias = NDArray[np.float64]

CELLS_PER_CHUNK = 2_000_000  # of the resampling counts: 16 MB at a time, whatever the number of tasks


class Interval(Value, frozen=True, kw_only=True):
    """An estimate and the ends of its interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """The percentile interval of mean(ours - theirs), tasks resampled in pairs; `ours` (n,), `theirs` (n,).

    With `groups` (n,), whole groups are resampled (families of tasks that share a template are not independent).

    Raises:
        ValueError: vectors that do not pair up, are empty, or hold unknown outcomes.
    """
    gains = _outcomes(ours, "ours") - _outcomes(theirs, "theirs", like=ours)  # (n,)
    _check_level(level)
    if samples < 1:
        raise ValueError(f"samples {samples!r}: expected at least 1")
    # Units that look alike are drawn as one kind with a higher probability: the same distribution, and 0/1 outcomes
    # have three kinds however many tasks there are.
    sums_and_sizes, counts = np.unique(_unit_sums(gains, groups), axis=0, return_counts=True)  # (K, 2), (K,)
    units, kinds = int(counts.sum()), len(counts)
    rng, means = np.random.default_rng(seed), np.empty(samples)
    chunk = max(1, CELLS_PER_CHUNK // kinds)
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = rng.multinomial(units, counts / units, size=size)  # (size, K)
        totals = drawn @ sums_and_sizes  # (size, 2)
        means[start : start + size] = totals[:, 0] / totals[:, 1]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(np.sort(gains).mean()), low=float(low), high=float(high))


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; unlike the textbook's it holds near 0 and 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes!r} successes of {n!r}: expected 0 <= successes <= n and n above 0")
    _check_level(level)
    successes, n = int(successes), int(n)  # sums of numpy arrays come as numpy integers, which no record takes
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # exact at the ends, where rounding would leave 1e-17 or pass 1
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(mean=p, low=low, high=high)


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float:
    """The exact two-sided p-value that two paired 0/1 vectors (n,) have the same success rate.

    Only the tasks that one of them solved alone count: under the null each is a fair coin.
    """
    a, b = _outcomes(ours, "ours"), _outcomes(theirs, "theirs", like=ours)
    for name, values in (("ours", a), ("theirs", b)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name} holds {values[~np.isin(values, (0, 1))][0]!r}: expected outcomes 0 and 1 only")
    only_ours, only_theirs = int(np.sum(a > b)), int(np.sum(a < b))
    discordant, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    tail, term = 0, 1  # whole numbers: exact for any n
    for k in range(fewer + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    p_value: float = 2 * tail / 2**discordant  # whole numbers divide without overflow
    return min(1.0, p_value)


def majority_vote(answers: Sequence[str]) -> int:
    """The voter whose answer wins one question; `answers` holds each voter's, the most preferred voter first.

    Equal strings are one answer; an empty one is no vote. Of the voters who gave the winning answer the most preferred
    is returned, and a tie goes to the answer whose most preferred voter comes first. Where nobody votes it is voter 0:
    someone has to answer.
    """
    if isinstance(answers, str) or not answers:  # a string is a sequence of strings too, and would vote by letters
        raise ValueError(
            f"answers {answers!r}: expected a list with the answer of at least one voter, which may be empty"
        )
    votes = Counter(answer for answer in answers if answer)
    # a Counter keeps the order of first appearance and max takes the first of equals: ties go to the most preferred
    return answers.index(max(votes, key=votes.__getitem__)) if votes else 0


def gap_closed(ours: float, best_single: float, oracle: float) -> float | None:
    """The share of the way from best single worker to oracle; below 0 when ours is worse. None: no way to go."""
    if oracle < best_single:
        raise ValueError(f"oracle {oracle!r} is below the best single worker {best_single!r}: not of the same tasks")
    return None if oracle == best_single else float((ours - best_single) / (oracle - best_single))


def routing_entropy_bits(counts: ArrayLike) -> float:
    """The entropy of how often each worker was called, `counts` (L,): 0 is always the same, log2(L) all alike."""
    calls = np.asarray(counts, dtype=np.float64)
    if calls.ndim != 1 or not np.isfinite(calls).all() or (calls < 0).any() or calls.sum() == 0:
        raise ValueError(f"counts {counts!r}: expected a vector of numbers from 0, not all of them 0")
    shares = calls[calls > 0] / calls.sum()
    return float(np.abs(np.sum(shares * np.log2(shares))))  # abs: one worker gives 0.0, not -0.0


def _unit_sums(gains: Floats, groups: ArrayLike | None) -> Floats:
    """(U, 2): the summed gain and the number of tasks of each unit that is resampled."""
    if groups is None:
        return np.column_stack([gains, np.ones_like(gains)])
    labels = np.asarray(groups)
    if labels.shape != gains.shape:
        raise ValueError(f"groups of shape {labels.shape}: expected {gains.shape}, one label for each task")
    _, unit = np.unique(labels, return_inverse=True)
    return np.column_stack([np.bincount(unit, weights=gains), np.bincount(unit)])


def _outcomes(values: ArrayLike, name: str, like: ArrayLike | None = None) -> Floats:
    outcomes = np.asarray(values, dtype=np.float64)
    if outcomes.ndim != 1 or outcomes.size == 0:
        raise ValueError(f"{name} of shape {outcomes.shape}: expected a vector of at least one outcome")
    if like is not None and outcomes.shape != np.shape(like):
        raise ValueError(f"{name} of shape {outcomes.shape}: expected {np.shape(like)}, the same tasks as ours")
    if not np.isfinite(outcomes).all():
        missing = int(np.sum(~np.isfinite(outcomes)))
        raise ValueError(f"{name} holds {missing} unknown outcomes of {outcomes.size}: leave these tasks out of both")
    return outcomes


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level!r}: expected a number between 0 and 1, such as 0.95")
