"""Trains the evidence model: how much each worker's voice counts, learnt from who was right when who agreed with whom.

A conditional logit. Of a question, some workers are asked (drawn, the better ones more often); the alternatives are the
different answers on the table and "none of them"; the one that was right is the target. Convex, solved by Newton steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..orchestrate.situation import Evidence, Lengths, deviation_in_log_odds

__all__ = ["alternatives", "coefficients", "fit_evidence", "measure_lengths", "shared_errors"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_DRAWS = 3
"""Subsets of workers per question."""
_MAX_ASKED = 7
_PREFER_ABLE = 0.8
_STEPS = 25


def fit_evidence(
    score: Floats, same: Bools, *, deviation: Floats, length: Floats, cost: Floats, l2: float = 3e-4, seed: int
) -> Evidence:
    """`score` (n, L), NaN where not asked; `same` (n, L, L) with the diagonal set where there is an answer; `deviation`
    (n, L) of models that did not see the question; `length` (n, L) of the replies, `cost` (n, L) USD, both NaN where
    unknown.
    """
    size = score.shape[1]
    asked = np.isfinite(score)
    ability = np.where(asked, score, 0).sum(0) / np.maximum(asked.sum(0), 1)
    rows, known = _draw(asked, ability, seed)
    lengths = measure_lengths(length)
    longer = lengths.deviation(length)
    scaled = deviation_in_log_odds(deviation, ability)
    x, share, target = alternatives(score[rows], same[rows], scaled[rows], longer[rows], known)
    theta = _newton(x, share, target, l2)
    return Evidence(
        weight=theta[:size],
        of_deviation=float(theta[size]),
        of_easiness=float(theta[size + 1]),
        none=theta[size + 3 : size + 8],
        ability=ability,
        in_log_odds=True,
        overlap=shared_errors(score, same),
        cost=_relative_cost(cost),
        lengths=replace(lengths, of_voice=float(theta[size + 2]), of_none=float(theta[-1])),
    )


def coefficients(evidence: Evidence) -> Floats:
    """(L+9,) in the order of the features of `alternatives`."""
    lengths = evidence.lengths
    of_voice = [evidence.of_deviation, evidence.of_easiness, lengths.of_voice]
    return np.concatenate([evidence.weight, of_voice, evidence.none, [lengths.of_none]])


def measure_lengths(length: Floats) -> Lengths:
    """Usual lengths, with no weight yet. 0 and 1 for a worker whose lengths are not known, or do not differ."""
    known = np.isfinite(length)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, length, 0).sum(0) / count
    scale = np.sqrt(np.where(known, (length - mean) ** 2, 0).sum(0) / count)
    return replace(Lengths.unread(length.shape[1]), mean=mean, scale=np.where(scale > 1e-6, scale, 1.0))


def shared_errors(score: Floats, same: Bools) -> Floats:
    """(L, L): of the questions that both got wrong, the share where both gave the same wrong answer. 0 where none."""
    wrong = np.isfinite(score) & (np.nan_to_num(score, nan=1.0) < 0.5)
    both: Bools = np.asarray(wrong[:, :, None] & wrong[:, None, :])
    overlap: Floats = (both & same).sum(0) / np.maximum(both.sum(0), 1)
    np.fill_diagonal(overlap, 0.0)
    return overlap


def _relative_cost(cost: Floats) -> Floats:
    known = np.isfinite(cost)
    if not known.any(0).all():
        return np.zeros(cost.shape[1])
    mean = np.where(known, cost, 0).sum(0) / known.sum(0)
    relative: Floats = mean / mean.max() if mean.max() > 0 else np.zeros(len(mean))
    return relative


def _draw(asked: Bools, ability: Floats, seed: int) -> tuple[npt.NDArray[np.int64], Bools]:
    """Rows and who is asked on each."""
    draw = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    n, size = asked.shape
    rows = np.repeat(np.arange(n), _DRAWS)
    count = draw.integers(1, min(size, _MAX_ASKED) + 1, len(rows))
    keys = np.where(asked[rows], draw.random((len(rows), size)) - _PREFER_ABLE * ability, np.inf)
    known = (keys.argsort(1).argsort(1) < count[:, None]) & asked[rows]
    return rows[known.any(1)], known[known.any(1)]


def alternatives(
    score: Floats, same: Bools, deviation: Floats, longer: Floats, known: Bools
) -> tuple[Floats, Floats, Floats]:
    """(m, L+1, L+9) features, (m, L+1) share of its answer that a worker stands for, (m, L+1) target."""
    m, size = known.shape
    has_answer = np.diagonal(same, axis1=1, axis2=2)
    voting = known & has_answer
    votes: Bools = np.asarray(same & voting[:, None, :] & voting[:, :, None])  # (m, L, L)
    easiness = deviation.mean(1, keepdims=True)  # (m, 1)
    x = np.zeros((m, size + 1, size + 9))
    x[:, :size, :size] = votes
    x[:, :size, size] = (votes * (deviation - easiness)[:, None, :]).sum(2)
    x[:, :size, size + 1] = votes.sum(2) * easiness
    x[:, :size, size + 2] = (votes * longer[:, None, :]).sum(2)
    share = np.where(voting, 1.0 / np.maximum(votes.sum(2), 1), 0.0)
    asked = known.sum(1)
    x[:, size, size + 3 :] = np.stack(
        [
            np.ones(m),
            share.sum(1),
            (known & ~has_answer).sum(1),
            asked,
            (deviation * known).sum(1) / asked,
            (longer * known).sum(1) / asked,
        ],
        axis=1,
    )
    right: Bools = np.asarray(voting & (np.nan_to_num(score) > 0.5))
    none = 1.0 - right.max(1)
    target = np.concatenate([right * share, none[:, None]], axis=1)
    return x, np.concatenate([share, np.ones((m, 1))], axis=1), target / target.sum(1, keepdims=True)


def _newton(x: Floats, share: Floats, target: Floats, l2: float) -> Floats:
    m, _, size = x.shape
    theta = np.zeros(size)
    flat = x.reshape(-1, size)
    for _ in range(_STEPS):
        scores = np.where(share > 0, (flat @ theta).reshape(share.shape), -np.inf)
        odds = share * np.exp(scores - scores.max(1, keepdims=True))
        p = odds / odds.sum(1, keepdims=True)
        mean = (p[:, :, None] * x).sum(1)  # (m, size)
        gradient = (((target - p)[:, :, None] * x).sum((0, 1))) / m - l2 * theta
        curvature = (flat * p.reshape(-1, 1)).T @ flat / m - mean.T @ mean / m + l2 * np.eye(size)
        step = np.linalg.solve(curvature, gradient)
        theta = theta + step * min(1.0, 5.0 / np.abs(step).max())  # far from the optimum Newton overshoots
        if np.abs(step).max() < 1e-6:
            break
    return theta
