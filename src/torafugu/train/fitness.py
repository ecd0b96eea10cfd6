"""The reward of a head's weights: the mean score of episodes run through the loop that serves, on recorded answers.

Hidden states do not change while a head is trained, so they are computed once, reduced to features once, and handed to
the serving policy through an `Encoder` that looks them up by the task's id.
"""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from ..envs.recorded import question_to_task
from ..episode import run_episode
from ..eval.matrix import OutcomeMatrix
from ..eval.states import KnownStates
from ..grade.recorded import RecordedGrader
from ..orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from ..orchestrate.loop import Caller
from ..orchestrate.selector import Selector

__all__ = ["EpisodeReward"]

Floats = npt.NDArray[np.float64]


class EpisodeReward:
    """Mean episode score of candidate weights on chosen questions of a matrix. Built once per training run."""

    def __init__(self, matrix: OutcomeMatrix, features: npt.NDArray[np.float32], pool: Caller) -> None:
        """`features`: (n, F) of the matrix's questions, the constant included."""
        size = features.shape[1] - 1  # the head's feature map appends the constant itself
        self._features = FeatureMap(np.zeros(size, np.float32), np.eye(size, dtype=np.float32))
        self._encoder = KnownStates(
            "features", {q.text: features[i, :-1] for i, q in enumerate(matrix.questions)}, size
        )
        self._models = dict(matrix.recorded.models)
        self._card = Card(
            encoder="features",
            workers=tuple(WorkerIdentity(w, self._models[w]) for w in matrix.workers),
            training={},
            metrics={},
            baselines={},
        )
        self._tasks = [question_to_task(q) for q in matrix.questions]
        self._allowed = [
            frozenset(w for j, w in enumerate(matrix.workers) if np.isfinite(matrix.first[i, j]))
            for i in range(len(matrix))
        ]
        self._grader = RecordedGrader(matrix.recorded)
        self._pool = pool

    def __call__(self, weights: Floats, questions: npt.NDArray[np.int64]) -> Floats:
        """(P, L, F) candidates, (m,) rows of the matrix -> (P,). Episodes that could not be scored do not count."""
        return asyncio.run(self._evaluate(weights, questions))

    async def _evaluate(self, weights: Floats, questions: npt.NDArray[np.int64]) -> Floats:
        rewards = np.empty(len(weights))
        for p, weight in enumerate(weights):
            head = Head(self._features, weight.astype(np.float32), self._card)
            policy = Selector(head, self._encoder, self._models)
            scores = []
            for i in questions:
                episode = await run_episode(self._tasks[i], policy, self._pool, self._grader, allowed=self._allowed[i])
                if episode.score is not None:
                    scores.append(episode.score)
            rewards[p] = np.mean(scores)
        return rewards
