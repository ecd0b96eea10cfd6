"""Outcome matrices: what every worker of a recorded set scored on every question. Baselines and targets are read here.

NaN means that a worker was never asked a question. Axes: n questions, L workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..pool.recorded import Question, RecordedSet, Sample

__all__ = ["MIN_COVERAGE", "OutcomeMatrix", "best_single", "build_matrix"]

Floats = npt.NDArray[np.float64]
MIN_COVERAGE = 0.95
"""A worker must have answered this share of the questions to count as a single worker one could have used instead."""
_CHARS_PER_TOKEN = 4
"""For recorded sets without input token counts: an estimate, and said to be one wherever a cost is printed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeMatrix:
    """Rows are questions in the set's order, columns its workers in alphabetical order."""

    recorded: RecordedSet
    questions: tuple[Question, ...]
    workers: tuple[str, ...]
    mean: Floats  # (n, L) mean score over samples
    first: Floats  # (n, L) score of sample 0: what a replay gives
    answers: tuple[tuple[str, ...], ...]  # (n, L) of sample 0
    cost_usd: Floats  # (n, L) of sample 0; NaN when the price is unknown
    latency_s: Floats  # (n, L) of sample 0; NaN when not measured
    out_tokens: Floats  # (n, L) of sample 0; NaN when not counted
    is_cost_estimated: bool
    """Input tokens were not recorded and stand in as characters / 4."""

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> OutcomeMatrix:
        """The same workers on some of the questions."""
        chosen = [int(i) for i in indices]
        return OutcomeMatrix(
            recorded=self.recorded,
            questions=tuple(self.questions[i] for i in chosen),
            workers=self.workers,
            mean=self.mean[chosen],
            first=self.first[chosen],
            answers=tuple(self.answers[i] for i in chosen),
            cost_usd=self.cost_usd[chosen],
            latency_s=self.latency_s[chosen],
            out_tokens=self.out_tokens[chosen],
            is_cost_estimated=self.is_cost_estimated,
        )

    def columns(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> OutcomeMatrix:
        """The same questions, some of the workers."""
        chosen = [int(j) for j in indices]
        return replace(
            self,
            workers=tuple(self.workers[j] for j in chosen),
            mean=self.mean[:, chosen],
            first=self.first[:, chosen],
            answers=tuple(tuple(row[j] for j in chosen) for row in self.answers),
            cost_usd=self.cost_usd[:, chosen],
            latency_s=self.latency_s[:, chosen],
            out_tokens=self.out_tokens[:, chosen],
        )

    def split(self, *names: str) -> OutcomeMatrix:
        """The questions of these splits; may be none."""
        return self.rows([i for i, q in enumerate(self.questions) if q.split in names])

    @staticmethod
    def join(first: OutcomeMatrix, second: OutcomeMatrix) -> OutcomeMatrix:
        """Both parts of one matrix, in this order."""
        return OutcomeMatrix(
            recorded=first.recorded,
            questions=first.questions + second.questions,
            workers=first.workers,
            mean=np.concatenate([first.mean, second.mean]),
            first=np.concatenate([first.first, second.first]),
            answers=first.answers + second.answers,
            cost_usd=np.concatenate([first.cost_usd, second.cost_usd]),
            latency_s=np.concatenate([first.latency_s, second.latency_s]),
            out_tokens=np.concatenate([first.out_tokens, second.out_tokens]),
            is_cost_estimated=first.is_cost_estimated,
        )

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def families(self) -> npt.NDArray[np.str_]:
        return np.array([q.family or q.category or q.dataset for q in self.questions])

    @cached_property
    def categories(self) -> npt.NDArray[np.str_]:
        return np.array([q.category or q.dataset for q in self.questions])


def build_matrix(recorded: RecordedSet) -> OutcomeMatrix:
    shape = (len(recorded.questions), len(recorded.workers))
    mean, first, cost, latency, tokens = (np.full(shape, np.nan) for _ in range(5))
    answers = [[""] * shape[1] for _ in range(shape[0])]
    is_estimated = False
    for j, worker in enumerate(recorded.workers):
        price = recorded.prices.get(worker)
        rate = (float(price.input) / 1e6, float(price.output) / 1e6) if price else None
        for i, question in enumerate(recorded.questions):
            rows = recorded.samples.get((question.qid, worker))
            if rows is None:
                continue
            sample = rows[0]
            mean[i, j] = sum(s.correct for s in rows) / len(rows)
            first[i, j], answers[i][j] = sample.correct, sample.answer
            if sample.latency_s is not None:
                latency[i, j] = sample.latency_s
            if sample.out_tokens is not None:
                tokens[i, j] = sample.out_tokens
            cost[i, j], estimated = _cost(sample, question, rate)
            is_estimated |= estimated
    return OutcomeMatrix(
        recorded=recorded,
        questions=recorded.questions,
        workers=recorded.workers,
        mean=mean,
        first=first,
        answers=tuple(tuple(row) for row in answers),
        cost_usd=cost,
        latency_s=latency,
        out_tokens=tokens,
        is_cost_estimated=is_estimated,
    )


def best_single(matrix: OutcomeMatrix) -> int:
    """Column of the worker with the highest mean score among those that answered nearly everything; ties: the first.

    Raises:
        ConfigError: there are no questions to choose on.
    """
    if len(matrix) == 0:
        raise ConfigError(f"{matrix.recorded.path}: no question to choose the best single worker on")
    asked = np.isfinite(matrix.mean)
    coverage = asked.mean(0)  # (L,)
    eligible = coverage >= min(MIN_COVERAGE, coverage.max())
    score = np.where(asked, matrix.mean, 0).sum(0) / np.maximum(asked.sum(0), 1)
    return int(np.argmax(np.where(eligible, score, -np.inf)))


def _cost(sample: Sample, question: Question, rate: tuple[float, float] | None) -> tuple[float, bool]:
    """(USD or NaN, whether the input tokens are an estimate)."""
    if sample.cost_usd is not None:
        return sample.cost_usd, False
    if rate is None or sample.out_tokens is None:
        return float("nan"), False
    tokens = sample.in_tokens
    estimated = tokens is None
    if tokens is None:
        tokens = -(-len(question.text) // _CHARS_PER_TOKEN)
    return tokens * rate[0] + sample.out_tokens * rate[1], estimated
