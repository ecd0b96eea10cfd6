"""What any coordinator has to beat, read off outcome matrices. All choices are made on the training rows only.

Each function returns a score per question of the target (n,), NaN where it cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..agreement import canonical_answer
from .matrix import OutcomeMatrix, best_single
from .stats import majority_vote

__all__ = [
    "choose_per_category",
    "oracle_score",
    "random_score",
    "rank_workers",
    "ranked_columns",
    "ranked_score",
    "score_of_choice",
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


def ranked_columns(target: OutcomeMatrix, ranking: Ints) -> Ints:
    """(n,) the first worker of the ranking on everything; where it was never asked, the next one that was stands in."""
    columns: Ints = ranking[np.isfinite(target.first[:, ranking]).argmax(1)]
    return columns


def ranked_score(target: OutcomeMatrix, ranking: Ints) -> Floats:
    """Of `ranked_columns`; NaN where nobody was asked."""
    return score_of_choice(target, ranked_columns(target, ranking))


def random_score(target: OutcomeMatrix) -> Floats:
    """Expected score of a worker drawn evenly among those that were asked; NaN where nobody was."""
    asked = np.isfinite(target.first)
    count = asked.sum(1)
    mean: Floats = np.where(count > 0, np.where(asked, target.first, 0).sum(1) / np.maximum(count, 1), np.nan)
    return mean


def oracle_score(target: OutcomeMatrix) -> Floats:
    """The best that any choice of one worker per question could reach; NaN where nobody was asked."""
    best: Floats = np.fmax.reduce(target.first, axis=1)  # passes over NaN
    return best


def choose_per_category(train: OutcomeMatrix, target: OutcomeMatrix) -> Ints:
    """The best worker of each category in training; an unknown category gets the best single worker."""
    overall = best_single(train)
    of_category = {}
    for category in np.unique(train.categories):
        rows = train.rows(np.flatnonzero(train.categories == category))
        if np.isfinite(rows.mean).any():
            of_category[category] = best_single(rows)
    return np.array([of_category.get(category, overall) for category in target.categories], dtype=np.int64)


def vote_score(target: OutcomeMatrix, voters: Sequence[int]) -> Floats:
    """Majority of the voters' answers, best voter first: ties go to the answer that the better voter gave.

    Answers that say the same (`agreement.py`) are one; of their wordings the one that most chose is scored. On each
    question the first `len(voters)` workers that were asked vote. If none gave an answer, the first
    one's verdict counts.
    """
    size = len(voters)
    scores = np.full(len(target), np.nan)
    order = [*voters, *(j for j in range(len(target.workers)) if j not in set(voters))]
    for i, answers in enumerate(target.answers):
        panel = [j for j in order if np.isfinite(target.first[i, j])][:size]
        if panel:
            forms = [canonical_answer(answers[j]) for j in panel]
            won = forms[majority_vote(forms)]
            panel = [j for j, form in zip(panel, forms, strict=True) if form == won]
            scores[i] = target.first[i, panel[majority_vote([answers[j] for j in panel])]]
    return scores
