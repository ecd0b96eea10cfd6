"""Ways to find the weights of a selector's head, behind one signature, chosen among by held-out reward.

    soft      forward KL from softmax(mean reward / tau), the technical report's first stage (arXiv 2606.21228)
    ridge     least squares of each worker's reward on the features
    gradient  ascent on the expected reward itself: REINFORCE with all workers' rewards known, so without sampling noise
    sepcma    separable CMA-ES on the reward of episodes run through the serving loop, the report's second stage

Axes: n questions, F features, L workers. NaN rewards mean that a worker was never asked; it is masked on that question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..orchestrate.head import softmax
from .sepcma import SepCMA

__all__ = ["Floats", "Gradient", "Ints", "Problem", "Ridge", "SepCMATrainer", "Soft", "Trainer"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_STEPS = 300


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What a trainer may use."""

    features: Floats  # (n, F)
    rewards: Floats  # (n, L)
    seed: int = 0
    start: Floats | None = None  # (L, F)
    """Weights to improve on; None starts from scratch."""
    episode_reward: Callable[[Floats, Ints], Floats] | None = None
    """(P, L, F) candidates, (m,) questions -> (P,) mean episode scores; None where no episodes can be run."""
    progress: Callable[[dict[str, float]], None] | None = None


class Trainer(Protocol):
    """Finds weights (L, F)."""

    @property
    def name(self) -> str: ...

    def train(self, problem: Problem) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Soft:
    """Minimise mean_t KL(p_t || pi_t) + l2/2 |W|^2 with p_t = softmax(r_t / tau). Convex: starts at 0."""

    tau: float = 0.1
    """Towards 0 only the best workers count."""
    l2: float = 1e-4

    @property
    def name(self) -> str:
        return f"soft(tau={self.tau:g}, l2={self.l2:g})"

    def train(self, problem: Problem) -> Floats:
        features, rewards = problem.features, problem.rewards
        asked = np.isfinite(rewards)
        targets = softmax(np.where(asked, np.nan_to_num(rewards) / self.tau, -np.inf))  # (n, L)

        def gradient(weight: Floats) -> Floats:
            return (_policy(features, weight, asked) - targets).T @ features / len(features) + self.l2 * weight

        return _descend(np.zeros((rewards.shape[1], features.shape[1])), gradient, features, self.l2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridge:
    """Each worker's row minimises mean_t (r_t - w phi_t)^2 + l2 |w|^2 over the questions it was asked."""

    l2: float = 1e-3

    @property
    def name(self) -> str:
        return f"ridge(l2={self.l2:g})"

    def train(self, problem: Problem) -> Floats:
        size = problem.features.shape[1]
        rows = []
        for reward in problem.rewards.T:
            asked = np.isfinite(reward)
            x = problem.features[asked]
            rows.append(np.linalg.solve(x.T @ x + self.l2 * max(len(x), 1) * np.eye(size), x.T @ reward[asked]))
        weight: Floats = np.array(rows)
        return weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """Maximise mean_t sum_w pi_t(w) r_t(w) - l2/2 |W|^2, from the soft solution."""

    l2: float = 1e-4

    @property
    def name(self) -> str:
        return f"gradient(l2={self.l2:g})"

    def train(self, problem: Problem) -> Floats:
        features, rewards = problem.features, problem.rewards
        asked = np.isfinite(rewards)
        known: Floats = np.nan_to_num(rewards)
        start = Soft().train(problem) if problem.start is None else problem.start

        def gradient(weight: Floats) -> Floats:
            policy = _policy(features, weight, asked)
            advantage = known - (policy * known).sum(1, keepdims=True)  # (n, L)
            descent: Floats = self.l2 * weight - (policy * advantage).T @ features / len(features)
            return descent

        return _descend(start, gradient, features, self.l2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SepCMATrainer:
    """Evolve the weights on the mean score of episodes, the same questions for all candidates of a generation."""

    generations: int = 40
    popsize: int | None = None
    """None: the paper's rule, ceil(4 + 3 ln N)."""
    sigma0: float = 0.1
    """Relative to the root mean square of the weights it starts from; 1 stands in where they are all 0."""
    questions: int = 384
    """Per generation. With 128, selection followed the draw more than the weights (docs/log.md)."""

    @property
    def name(self) -> str:
        return f"sepcma(generations={self.generations}, sigma0={self.sigma0:g}, questions={self.questions})"

    def train(self, problem: Problem) -> Floats:
        """Raises ValueError: the problem has no episodes to run."""
        if problem.episode_reward is None:
            raise ValueError("sepcma needs episodes to run: give the problem an episode_reward")
        n, size = problem.features.shape
        start = np.zeros((problem.rewards.shape[1], size)) if problem.start is None else problem.start
        scale = float(np.sqrt(np.mean(start**2))) or 1.0
        optimizer = SepCMA(start.ravel(), self.sigma0 * scale, popsize=self.popsize, seed=problem.seed)
        draw = np.random.default_rng(np.random.SeedSequence([problem.seed, 1]))
        for generation in range(self.generations):
            questions = draw.choice(n, size=min(self.questions, n), replace=False)
            candidates = optimizer.ask()  # (P, N)
            fitness = problem.episode_reward(candidates.reshape(-1, *start.shape), questions)
            optimizer.tell(fitness)
            if problem.progress:
                problem.progress(
                    {
                        "generation": float(generation),
                        "reward/mean": float(fitness.mean()),
                        "reward/max": float(fitness.max()),
                        "sigma": float(optimizer.sigma),
                    }
                )
        return optimizer.mean.reshape(start.shape)


def _policy(features: Floats, weight: Floats, asked: npt.NDArray[np.bool_]) -> Floats:
    """(n, L); workers that were not asked have no probability."""
    return np.asarray(softmax(np.where(asked, features @ weight.T, -np.inf)), dtype=np.float64)


def _descend(start: Floats, gradient: Callable[[Floats], Floats], features: Floats, l2: float) -> Floats:
    """Nesterov's method at the step of the softmax's Lipschitz bound, |X|^2 / (2 n) + l2."""
    lipschitz = float(np.linalg.norm(features, 2)) ** 2 / (2 * len(features)) + l2
    weight, ahead = start.copy(), start.copy()
    momentum = 1.0
    for _ in range(_STEPS):
        following = ahead - gradient(ahead) / lipschitz
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / next_momentum * (following - weight)
        weight, momentum = following, next_momentum
    return weight
