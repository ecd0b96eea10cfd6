"""What any coordinator has to beat, read off outcome matrices. All choices are made on the training rows only.

Each function returns a score per question of the target (n,), NaN where it cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .matrix import OutcomeMatrix, best_single
from .stats import majority_vote

__all__ = [
    "choose_per_category",
    "oracle_score",
    "random_score",
    "rank_workers",
    "score_of_choice",
    "single_score",
    "vote_score",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def rank_workers(train: OutcomeMatrix) -> Ints:
    """Columns, the best single worker first, then by mean score on what each was asked."""
    asked = np.isfinite(train.mean)
    score = np.where(asked, train.mean, 0).sum(0) / np.maximum(asked.sum(0), 1)
    first = best_single(train)
    order = [first, *(int(j) for j in np.argsort(-score, kind="stable") if j != first)]
    return np.array(order, dtype=np.int64)


def score_of_choice(target: OutcomeMatrix, columns: Ints) -> Floats:
    """The score when question i is given to worker `columns[i]`."""
    picked: Floats = target.first[np.arange(len(target)), columns]
    return picked


def single_score(target: OutcomeMatrix, column: int) -> Floats:
    """One worker on everything; a question it was never asked counts as wrong, as it gave no answer."""
    return np.nan_to_num(target.first[:, column], nan=0.0)


def random_score(target: OutcomeMatrix) -> Floats:
    """Expected score of a worker drawn evenly among those that were asked."""
    mean: Floats = np.nanmean(target.first, axis=1)
    return mean


def oracle_score(target: OutcomeMatrix) -> Floats:
    """The best that any choice of one worker per question could reach."""
    best: Floats = np.nanmax(target.first, axis=1)
    return best


def choose_per_category(train: OutcomeMatrix, target: OutcomeMatrix) -> Ints:
    """The best worker of each category in training; an unknown category gets the best single worker."""
    overall = best_single(train)
    of_category = {
        category: best_single(train.rows(np.flatnonzero(train.categories == category)))
        for category in np.unique(train.categories)
    }
    return np.array([of_category.get(category, overall) for category in target.categories], dtype=np.int64)


def vote_score(target: OutcomeMatrix, voters: Sequence[int]) -> Floats:
    """Majority of the voters' answers, best voter first: ties go to the answer that the better voter gave.

    On each question the first `len(voters)` workers that were asked vote. If none gave an answer, the first one's
    verdict counts.
    """
    size = len(voters)
    scores = np.full(len(target), np.nan)
    order = [*voters, *(j for j in range(len(target.workers)) if j not in set(voters))]
    for i, answers in enumerate(target.answers):
        panel = [j for j in order if np.isfinite(target.first[i, j])][:size]
        if panel:
            scores[i] = target.first[i, panel[majority_vote([answers[j] for j in panel])]]
    return scores
