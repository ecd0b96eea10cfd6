"""REINFORCE for the linear head of `orchestrate/transcript.py`: the paper's baseline under the budget of its evolution.

One head plays all episodes of a generation, each turn drawn from its two softmaxes, and takes one step of Adam along

    mean over episodes of  A * sum over turns of  grad log p(worker) + grad log p(role)

A is the episode's reward less the batch's mean, over the batch's standard deviation. The gradient of a linear head is
(what was drawn - the probabilities) times the state, so nothing is differentiated by a library. What an episode's
reward is stands in `evolve.py`. Not the natural gradient of `tri_trainers.py`, which is the other coordinator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..orchestrate.transcript import Draw
from .candidate import Sample

__all__ = ["PolicyGradient", "estimate_gradient", "normalise", "score_of_turns"]

Floats: TypeAlias = npt.NDArray[np.float64]

DECAYS = (0.9, 0.999)  # Adam's usual ones
EPSILON = 1e-8


def estimate_gradient(credited: Sequence[tuple[Sample, float]], *, size: int, state_norm: float) -> Floats:
    """(N,) of the expected reward, by the head's vector; zeros when all episodes were worth the same, or none played.

    `credited`: each episode and its reward.
    """
    advantages = normalise(np.array([reward for _, reward in credited]))
    draws = [draw for sample, _ in credited for draw in sample.draws]
    if not draws or not advantages.any():
        return np.zeros(size)
    weights = np.repeat(advantages, [len(sample.draws) for sample, _ in credited])
    return score_of_turns(draws, weights, state_norm=state_norm) / len(credited)


def normalise(rewards: Floats) -> Floats:
    """(n,) -> (n,) of mean 0 and standard deviation 1; zeros where all are the same."""
    if not len(rewards) or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    return np.asarray((rewards - rewards.mean()) / rewards.std())


def score_of_turns(draws: Sequence[Draw], weights: Floats, *, state_norm: float) -> Floats:
    """(N,): the gradient of the turns' log-probabilities, times `weights` (T,), by a linear head's vector."""
    residuals = np.stack([_residual(draw) for draw in draws])  # (T, L + 3)
    states = np.stack([draw.hidden for draw in draws]).astype(np.float64) * state_norm  # (T, d)
    return np.asarray((residuals * weights[:, None]).T @ states).ravel()


def _residual(draw: Draw) -> Floats:
    """(L + 3,) by the logits. A role that was suggested, not drawn, has no part in the likelihood."""
    residual = -np.concatenate([draw.workers, draw.roles])
    residual[draw.worker] += 1
    if draw.role is None:
        residual[len(draw.workers) :] = 0
    else:
        residual[len(draw.workers) + draw.role] += 1
    return residual


class PolicyGradient:
    """Adam (arXiv 1412.6980), uphill. Ask and tell as `SepCMA`, but it is told a gradient."""

    def __init__(self, start: Floats, learning_rate: float, *, count: int) -> None:
        """`count`: jobs that a generation's episodes are divided among."""
        self.generation = 0
        self._mean = start.copy()  # (N,)
        self._first, self._second = np.zeros_like(start), np.zeros_like(start)  # moments
        self._rate, self._count = learning_rate, count

    @property
    def mean(self) -> Floats:
        return self._mean.copy()

    def ask(self) -> Floats:
        """(count, N): the same head for each job."""
        return np.tile(self._mean, (self._count, 1))

    def tell(self, gradient: Floats) -> None:
        self.generation += 1
        fast, slow = DECAYS
        self._first = fast * self._first + (1 - fast) * gradient
        self._second = slow * self._second + (1 - slow) * gradient**2
        first, second = self._first / (1 - fast**self.generation), self._second / (1 - slow**self.generation)
        self._mean = self._mean + self._rate * first / (np.sqrt(second) + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        moments = {"first": self._first.copy(), "second": self._second.copy()}
        return {"mean": self._mean.copy(), **moments, "generation": self.generation}

    def load(self, state: Mapping[str, Any]) -> PolicyGradient:
        self._mean, self._first, self._second = state["mean"], state["first"], state["second"]
        self.generation = int(state["generation"])
        return self
