"""Baselines that learn from hidden states which worker a question should go to: nearest neighbours, support vectors.

They see what the coordinator sees, so they show what its training is worth. Everything is learned from training rows
and chosen on validation rows; the same rows give the same choices. Outcomes are (n, L) mean scores in 0..1, NaN where a
worker was never asked; unfit rows are a `ConfigError`. scikit-learn is imported when the support vectors are fitted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError
from .matrix import MIN_COVERAGE

__all__ = ["KNearest", "SupportVectors"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

NEIGHBOURS = (5, 10, 20, 40, 80)
COSTS = (0.01, 0.1, 1.0, 10.0)
CLASS_WEIGHTS = (None, "balanced")  # the best worker overall takes most labels; which is right depends on the pool
SOLVED = 0.5  # a mean score from here on counts as solved
ROWS_PER_CHUNK = 512  # of questions whose neighbours are sought at once: 16 MB of similarities to 4,000 rows


class KNearest:
    """The worker with the best mean score on the k most similar training questions (cosine)."""

    def __init__(self, candidates: Sequence[int] = NEIGHBOURS) -> None:
        self.candidates = tuple(sorted(candidates))
        self.k: int | None = None
        """Chosen by `fit`; None before."""

    def fit(
        self, hidden: ArrayLike, outcomes: ArrayLike, hidden_validation: ArrayLike, outcomes_validation: ArrayLike
    ) -> None:
        """Keep the training rows (n, d), (n, L); take the k that earns most on the validation rows (m, d), (m, L).

        Of equally good ones the largest k is taken. Candidates above n are left out; with none left k is n.

        Raises:
            ConfigError: the rows do not fit together, or no worker was ever asked.
        """
        rows, self._outcomes = _checked(hidden, outcomes, "training")
        validation, earned = _checked(hidden_validation, outcomes_validation, "validation", like=(rows, self._outcomes))
        self._directions, self._ranking = _directions(rows), _rank(self._outcomes)
        ks = [k for k in self.candidates if k <= len(rows)] or [len(rows)]
        choices = self._choose(validation, ks)  # (K, m)
        rewards = [_reward(choice, earned) for choice in choices]
        self.k = max(k for k, reward in zip(ks, rewards, strict=True) if reward == max(rewards))

    def choose(self, hidden: ArrayLike) -> Ints:
        """(n,) A worker's column for each row of `hidden` (n, d); of equals the best on all training questions."""
        if self.k is None:
            raise RuntimeError("nearest neighbours are not fitted: call fit() before choose()")
        choice: Ints = self._choose(_checked_hidden(hidden, self._directions.shape[1]), [self.k])[0]
        return choice

    def _choose(self, hidden: Floats, ks: Sequence[int]) -> Ints:
        parts = [self._scores(chunk, ks) for chunk in _chunks(_directions(hidden))]
        scores = np.concatenate(parts, axis=1)  # (K, n, L)
        # rounded: equal means must tie in whatever order they were summed; argmax takes the first of the ranking
        choices: Ints = self._ranking[np.argmax(np.round(scores, 9)[:, :, self._ranking], axis=2)]  # (K, n)
        return choices

    def _scores(self, directions: Floats, ks: Sequence[int]) -> Floats:
        """(K, c, L) Each worker's mean score on the k nearest questions *that it was asked*; -inf: it never was."""
        # rounded: repeated questions must tie, whatever order a dot product was summed in
        similarities = np.round(directions @ self._directions.T, 12)  # (c, n)
        scores = np.full((len(ks), len(directions), self._outcomes.shape[1]), -np.inf)
        asked = np.isfinite(self._outcomes)  # (n, L)
        patterns, pattern_of = np.unique(asked, axis=1, return_inverse=True)  # (n, Q), (L,): most pools have one
        for q, pattern in enumerate(patterns.T):
            rows, columns = np.flatnonzero(pattern), np.flatnonzero(pattern_of == q)
            if not rows.size:
                continue
            nearest = rows[_nearest(similarities[:, rows], max(ks))]  # (c, up to max k)
            sums = np.cumsum(self._outcomes[nearest][:, :, columns], axis=1)  # (c, up to max k, l)
            for i, k in enumerate(ks):
                count = min(k, rows.size)
                scores[i][:, columns] = sums[:, count - 1] / count
        return scores


class SupportVectors:
    """A support vector machine that names the best worker of a question, as TRINITY's baseline does.

    The label of a training question is the best worker overall if it solved it, else the best of those who did;
    questions nobody solved teach nothing. Cost and class weights are those that earn most on the validation rows.
    """

    def __init__(self, kernel: Literal["linear", "rbf"] = "rbf", costs: Sequence[float] = COSTS) -> None:
        self.kernel = kernel
        self.costs = tuple(costs)
        self.cost: float | None = None
        """Chosen by `fit`; None before, and when every label is the same worker."""
        self.class_weight: str | None = None
        self._machine: Any = None
        self._columns: Ints | None = None

    def fit(
        self, hidden: ArrayLike, outcomes: ArrayLike, hidden_validation: ArrayLike, outcomes_validation: ArrayLike
    ) -> None:
        """Learn from training rows (n, d), (n, L); choose cost and class weights on validation rows (m, d), (m, L).

        Raises:
            ConfigError: scikit-learn is missing, the rows do not fit together, or nobody solved anything.
        """
        new_machine = _import_machine()
        rows, scores = _checked(hidden, outcomes, "training")
        validation, earned = _checked(hidden_validation, outcomes_validation, "validation", like=(rows, scores))
        labels, solved = _labels(scores)
        self._mean, self._scale = rows.mean(axis=0), rows.std(axis=0)  # (d,), (d,)
        self._scale[self._scale == 0] = 1  # a constant column says nothing; it must not divide by zero
        self._rows = self._standardise(rows[solved])  # (s, d)
        self._columns, self._machine, self.cost, self.class_weight = np.unique(labels), None, None, None
        if len(self._columns) == 1:
            return
        kernel, validation_kernel = self._similarity(self._rows), self._similarity(self._standardise(validation))
        best = -np.inf
        for cost, class_weight in itertools.product(self.costs, CLASS_WEIGHTS):
            machine = new_machine(kernel="precomputed", C=cost, class_weight=class_weight, cache_size=500)
            machine.fit(kernel, labels)
            reward = _reward(machine.predict(validation_kernel), earned)
            if reward > best:  # of equals the lowest cost: the widest margin
                best, self._machine, self.cost, self.class_weight = reward, machine, cost, class_weight

    def choose(self, hidden: ArrayLike) -> Ints:
        """(n,) A worker's column for each row of `hidden` (n, d)."""
        if self._columns is None:
            raise RuntimeError("support vectors are not fitted: call fit() before choose()")
        rows = _checked_hidden(hidden, len(self._mean))
        if self._machine is None or not len(rows):  # scikit-learn refuses to predict nothing
            return np.full(len(rows), self._columns[0], dtype=np.int64)
        found = [self._machine.predict(self._similarity(chunk)) for chunk in _chunks(self._standardise(rows))]
        return np.concatenate(found).astype(np.int64)

    def _standardise(self, hidden: Floats) -> Floats:
        standardised: Floats = (hidden - self._mean) / self._scale
        return standardised

    def _similarity(self, rows: Floats) -> Floats:
        """(n, s) The kernel with the training rows; divided by d, so that the costs mean the same at any width."""
        products: Floats = rows @ self._rows.T / rows.shape[1]
        if self.kernel == "linear":
            return products
        squares, own = (self._rows**2).mean(axis=1), (rows**2).mean(axis=1)  # (s,), (n,)
        similarity: Floats = np.exp(2 * products - own[:, None] - squares)  # exp(-|a - b|² / d)
        return similarity


def _import_machine() -> Callable[..., Any]:
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ConfigError("support vectors need scikit-learn: pip install 'torafugu[eval]'") from None
    return SVC  # type: ignore[no-any-return]  # scikit-learn has no types


def _rank(outcomes: Floats) -> Ints:
    """(L,) Columns: the best worker of those asked nearly everything, then the others by mean score."""
    asked = np.isfinite(outcomes)
    coverage = asked.mean(axis=0)
    means = np.where(asked, outcomes, 0).sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    is_behind = coverage < min(MIN_COVERAGE, coverage.max())
    first = np.lexsort((-means, is_behind))[0]
    order = np.argsort(-means, kind="stable")
    return np.concatenate([[first], order[order != first]]).astype(np.int64)


def _labels(outcomes: Floats) -> tuple[Ints, Ints]:
    """((s,) the first worker of the ranking that solved it, (s,) row) of each question that somebody solved."""
    ranking = _rank(outcomes)
    is_solved = np.nan_to_num(outcomes, nan=-np.inf)[:, ranking] >= SOLVED  # (n, L)
    rows = np.flatnonzero(is_solved.any(axis=1))
    if not rows.size:
        raise ConfigError("no worker solved a single training question: there is nothing to learn from")
    return ranking[np.argmax(is_solved[rows], axis=1)], rows


def _nearest(similarities: Floats, k: int) -> Ints:
    """(c, min(k, n)) Columns of the largest of each row, largest first; of equals the first column."""
    n = similarities.shape[1]
    k = min(k, n)
    # argpartition would take any of those that equal the kth; ties must not depend on its inner order
    kth = np.partition(similarities, n - k, axis=1)[:, n - k, None]  # (c, 1)
    is_above, is_equal = similarities > kth, similarities == kth
    room = k - is_above.sum(axis=1, keepdims=True)  # (c, 1)
    top = np.nonzero(is_above | (is_equal & (np.cumsum(is_equal, axis=1) <= room)))[1].reshape(-1, k)
    order = np.argsort(-np.take_along_axis(similarities, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def _reward(choice: Ints, outcomes: Floats) -> float:
    """The mean score of a choice (m,) on the rows whose chosen worker was asked; -inf when there are none."""
    scores = outcomes[np.arange(len(outcomes)), choice]
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if known.size else -np.inf


def _directions(hidden: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays, similar to nothing."""
    lengths = np.linalg.norm(hidden, axis=1, keepdims=True)
    return hidden / np.where(lengths == 0, 1, lengths)


def _chunks(rows: Floats) -> Iterator[Floats]:
    for start in range(0, max(1, len(rows)), ROWS_PER_CHUNK):  # no rows: one empty chunk
        yield rows[start : start + ROWS_PER_CHUNK]


def _checked(
    hidden: ArrayLike, outcomes: ArrayLike, part: str, like: tuple[Floats, Floats] | None = None
) -> tuple[Floats, Floats]:
    scores = np.asarray(outcomes, dtype=np.float64)
    width = None if like is None else like[0].shape[1]
    rows = _checked_hidden(hidden, width)
    if scores.ndim != 2 or len(scores) != len(rows) or (like is not None and scores.shape[1] != like[1].shape[1]):
        raise ConfigError(f"{part} outcomes of shape {scores.shape} for {len(rows)} questions: expected (n, L)")
    if not np.isfinite(scores).any():
        raise ConfigError(f"{part} part of {len(rows)} questions holds no outcome: nothing to learn from")
    return rows, scores


def _checked_hidden(hidden: ArrayLike, width: int | None) -> Floats:
    rows = np.asarray(hidden, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0 or (width is not None and rows.shape[1] != width):
        raise ConfigError(f"hidden states of shape {rows.shape}: expected (n, {width or 'd'})")
    if not np.isfinite(rows).all():
        raise ConfigError(f"hidden states hold {int(np.sum(~np.isfinite(rows)))} values that are not finite")
    return rows
