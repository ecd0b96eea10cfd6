"""Ways to find the weights of a tri-role head, behind one signature, chosen among by held-out reward.

    start          supervised: the evidence model's trust with a threshold; what the others start from
    reinforce      natural policy gradient on sampled runs, with each turn credited for what came after it
    sepcma         separable CMA-ES on the reward of greedy runs, in a few directions of the head or in all of it
    random-search  uniform draws in the same directions, the same number of runs

Reward: score - call_price * calls - cost_price * cost. call_price = cost_price = 0 is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..orchestrate.situation import RUN_FEATURES, WORKER_FEATURES, Evidence
from ..orchestrate.tri_head import THINKER, VERIFIER, WORKER, Rules, TriHead
from .rollout import Played, Stopped, World, play, sample
from .sepcma import SepCMA

__all__ = ["Floats", "RandomSearch", "Reinforce", "SepCMASearch", "Start", "TriProblem", "TriTrainer", "net_reward"]

Floats = npt.NDArray[np.float64]
_NEVER = -100.0
_SHARP = 10.0
"""Logits per unit of trust: how sharply the start separates its choices when they are sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A head that reads the evidence model: workers are asked in an order of its own, another while trust is below
    `threshold` and calls are left; what is trusted most is the answer. The numbers are tuned, not given: by held-out
    reward (`train/starts.py`), then by the trainers below.
    """

    threshold: float = 0.8
    per_asked: float = 0.0
    """Added to the urge to stop for each four workers asked."""
    of_doubt: float = 0.0
    """... where no answer on the table may be right, so that more are not worth asking."""
    of_support: float = 0.0
    of_familiarity: float = 0.0
    weight: float = 1.0
    """What the weight of a worker's voice counts in the order of asking."""
    deviation: float = 2.0
    """... being better than usual on such questions."""
    ability: float = 0.0
    """... its mean score. With 0 for the weight, and the same here as for the deviation: its predicted score."""
    overlap: float = 0.0
    """What sharing errors with those that were asked counts against being asked."""

    def to_head(self) -> TriHead:
        role = np.zeros((3, len(RUN_FEATURES)))
        worker = np.zeros((3, len(WORKER_FEATURES)))
        run, of = RUN_FEATURES.index, WORKER_FEATURES.index
        role[THINKER, run("constant")] = _NEVER
        stop = role[VERIFIER]
        stop[run("constant")] = -_SHARP * self.threshold
        stop[run("trust")] = _SHARP
        stop[run("asked")] = _SHARP * self.per_asked
        stop[run("doubt")] = _SHARP * self.of_doubt
        stop[run("supported")] = _SHARP * self.of_support
        stop[run("familiarity")] = _SHARP * self.of_familiarity
        stop[run("trust_gap")] = -1e9  # first of all the best answer becomes the current one
        stop[run("unreadable")] = 2 * _SHARP  # another answer could not be compared
        stop[run("exhausted")] = 4 * _SHARP
        ask = worker[WORKER]
        ask[of("known")], ask[of("known_best")] = -50.0, 100.0
        ask[of("weight")] = self.weight
        ask[of("deviation")] = self.deviation
        ask[of("ability")] = self.ability
        ask[of("overlap")] = -self.overlap
        worker[VERIFIER, of("agrees")], worker[VERIFIER, of("weight")] = 50.0, 1.0
        return TriHead(role, worker)


DIRECTIONS: dict[str, float] = {
    "threshold": 0.15,
    "per_asked": 0.15,
    "of_doubt": 0.15,
    "of_support": 0.1,
    "of_familiarity": 0.1,
    "weight": 0.5,
    "deviation": 3.0,
    "ability": 3.0,
    "overlap": 1.0,
}
"""Directions of the head that are searched, and how far a unit step goes in each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TriProblem:
    """What a trainer may use."""

    world: World
    evidence: Evidence
    rules: Rules
    start: Start
    call_price: float
    cost_price: float = 0.0
    seed: int = 0
    progress: Callable[[dict[str, float]], None] | None = None

    def reward(self, played: Played) -> Floats:
        return net_reward(played, call_price=self.call_price, cost_price=self.cost_price)

    def tell(self, row: dict[str, float]) -> None:
        if self.progress:
            self.progress(row)


class TriTrainer(Protocol):
    """Finds the head's vector (N,)."""

    @property
    def name(self) -> str: ...

    def train(self, problem: TriProblem) -> Floats: ...


def net_reward(played: Played | Stopped, *, call_price: float, cost_price: float = 0.0) -> Floats:
    """(n,): the first call is free, as every policy makes it."""
    reward: Floats = played.score - call_price * np.maximum(played.calls - 1, 0) - cost_price * played.cost
    return reward


@dataclass(frozen=True, slots=True, kw_only=True)
class SepCMASearch:
    """Evolve, with the same questions for all candidates of a generation."""

    generations: int = 25
    popsize: int = 12
    sigma0: float = 0.5
    questions: int = 1000
    in_directions: bool = True
    """Search the few `DIRECTIONS` of the start; else all numbers of the head."""

    @property
    def name(self) -> str:
        where = "directions" if self.in_directions else "head"
        return f"sepcma({where}, {self.generations}x{self.popsize}x{self.questions}, sigma0={self.sigma0:g})"

    def train(self, problem: TriProblem) -> Floats:
        size = len(DIRECTIONS) if self.in_directions else TriHead.size()
        origin = problem.start.to_head().to_vector()
        optimizer = SepCMA(np.zeros(size), self.sigma0, popsize=self.popsize, seed=problem.seed)
        draw = np.random.default_rng(np.random.SeedSequence([problem.seed, 9]))

        def to_vector(point: Floats) -> Floats:
            return _move(problem.start, point) if self.in_directions else origin + point

        for generation in range(self.generations):
            world = _some(problem.world, self.questions, draw)
            candidates = optimizer.ask()
            fitness = np.array([_greedy_reward(problem, world, to_vector(point)) for point in candidates])
            optimizer.tell(fitness)
            problem.tell(
                {
                    "generation": float(generation),
                    "reward/mean": float(fitness.mean()),
                    "reward/max": float(fitness.max()),
                    "reward/std": float(fitness.std()),
                    "sigma": float(optimizer.sigma),
                }
            )
        return to_vector(optimizer.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch:
    """Uniform draws around the start, the best kept: the paper's baseline at the budget of `SepCMASearch`."""

    draws: int = 300
    questions: int = 1000
    reach: float = 2.0
    """Steps of `DIRECTIONS`, to either side."""

    @property
    def name(self) -> str:
        return f"random-search({self.draws}x{self.questions})"

    def train(self, problem: TriProblem) -> Floats:
        draw = np.random.default_rng(np.random.SeedSequence([problem.seed, 10]))
        world = _some(problem.world, self.questions, draw)
        best = problem.start.to_head().to_vector()
        best_reward = _greedy_reward(problem, world, best)
        for step in range(self.draws):
            point = draw.uniform(-self.reach, self.reach, len(DIRECTIONS))
            vector = _move(problem.start, point)
            reward = _greedy_reward(problem, world, vector)
            if reward > best_reward:
                best, best_reward = vector, reward
            problem.tell({"step": float(step), "reward/max": best_reward})
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinforce:
    """Natural policy gradient: sampled runs, each turn credited with the reward less what was spent before it and less
    what its view promised (a least-squares baseline); steps of bounded Kullback-Leibler divergence.
    """

    steps: int = 60
    questions: int = 600
    runs: int = 2
    """Per question."""
    divergence: float = 0.02
    damping: float = 1e-3
    from_zero: bool = False
    """Start with every choice alike instead of from the problem's start."""

    @property
    def name(self) -> str:
        origin = "zero" if self.from_zero else "start"
        return f"reinforce(from {origin}, {self.steps}x{self.questions}x{self.runs}, kl={self.divergence:g})"

    def train(self, problem: TriProblem) -> Floats:
        draw = np.random.default_rng(np.random.SeedSequence([problem.seed, 11]))
        vector = np.zeros(TriHead.size()) if self.from_zero else problem.start.to_head().to_vector()
        for step in range(self.steps):
            world = _some(problem.world, self.questions, draw)
            world = world.rows(np.repeat(np.arange(len(world)), self.runs))
            played, gradient, fisher = self._estimate(problem, world, TriHead.from_vector(vector), draw)
            direction = np.linalg.solve(fisher + self.damping * np.eye(len(vector)), gradient)
            curvature = max(float(direction @ fisher @ direction) / 2, 1e-12)
            allowed = self.divergence * (1 - step / self.steps)
            vector = vector + min(float(np.sqrt(allowed / curvature)), 20.0) * direction
            problem.tell({"step": float(step), "reward/mean": float(problem.reward(played).mean())})
        return vector

    def _estimate(
        self, problem: TriProblem, world: World, head: TriHead, draw: np.random.Generator
    ) -> tuple[Played, Floats, Floats]:
        """What was played, (N,) the gradient, (N, N) the Fisher matrix."""
        played, turns = sample(world, problem.evidence, head, problem.rules, draw)
        reward = problem.reward(played)
        gradients = np.concatenate([turn.gradient for turn in turns])  # (T, N)
        seen = np.concatenate([turn.run for turn in turns])  # (T, G)
        spent = [problem.call_price * np.maximum(turn.calls - 1, 0) + problem.cost_price * turn.cost for turn in turns]
        to_come = np.concatenate([reward[turn.at] + before for turn, before in zip(turns, spent, strict=True)])
        ridge = 1e-3 * len(seen) * np.eye(seen.shape[1])
        promised = seen @ np.linalg.solve(seen.T @ seen + ridge, seen.T @ to_come)
        gradient = ((to_come - promised)[:, None] * gradients).sum(0) / len(world)
        return played, gradient, gradients.T @ gradients / len(world)


def _move(start: Start, point: Floats) -> Floats:
    """The head's vector, `point` steps of `DIRECTIONS` from the start."""
    moved = {
        name: getattr(start, name) + scale * float(x)
        for (name, scale), x in zip(DIRECTIONS.items(), point, strict=True)
    }
    return Start(**moved).to_head().to_vector()


def _greedy_reward(problem: TriProblem, world: World, vector: Floats) -> float:
    played = play(world, problem.evidence, TriHead.from_vector(vector), problem.rules)
    return float(problem.reward(played).mean())


def _some(world: World, count: int, draw: np.random.Generator) -> World:
    if len(world) <= count:
        return world
    return world.rows(np.sort(draw.choice(len(world), count, replace=False)))
