"""Which questions a conductor is trained and measured on: whatever trains it draws them here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..grade.task import Task
from ..types import Json
from .conductor_rollout import Question

__all__ = ["QuestionSource", "draw_question"]

Floats = npt.NDArray[np.float64]
_NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
_RECENT = 10
"""Steps."""
_NEVER_RIGHT = 0.1
"""What a family that always failed counts for: it may still be learnt."""


class QuestionSource:
    """The tasks of a run, by family: those of the split `train` to draw from, those of `validation` to measure on."""

    def __init__(
        self,
        tasks: Sequence[Task],
        workers: Sequence[str],
        *,
        sizes: tuple[int, ...] | None,
        held_out: int,
        weights: Mapping[str, float] = _NO_WEIGHTS,
    ) -> None:
        """`sizes`, `weights`: as in `ConductorTraining`; `held_out`: how many are measured on.

        Raises:
            ConfigError: there are no tasks of a split (of `validation` only where some are measured on), or of a
                family with a weight, or fewer workers than a question is to be offered.
        """
        self.workers = tuple(workers)
        if sizes and max(sizes) > len(self.workers):
            raise ConfigError(f"pool_sizes {sizes!r}: the pool has {len(self.workers)} workers")
        self._sizes = sizes
        self._by_family = _by_family(tasks, "train")
        if unknown := set(weights) - set(self._by_family):
            raise ConfigError(
                f"weights: no tasks of {sorted(unknown)[0]!r} to draw from, but of {', '.join(self._by_family)}: the "
                "config's weights are for other tasks: leave them out"
            )
        self._weights = np.array([weights.get(family, 1.0) for family in self._by_family])
        by_turns = _take_turns(list(_by_family(tasks, "validation").values())) if held_out else []
        self.held_out = [Question(task=task, workers=self.workers) for task in by_turns[:held_out]]

    @property
    def families(self) -> tuple[str, ...]:
        """Of the tasks to draw from."""
        return tuple(self._by_family)

    @property
    def examples(self) -> list[Task]:
        """One task to draw from of each family."""
        return [tasks[0] for tasks in self._by_family.values()]

    def focus_weights(self, history: Sequence[Mapping[str, Json]], focus: float) -> Floats:
        """The families' weights, with a share `focus` of the questions moved to where there is most to learn.
        -> (families,)

        A family's part of that share is its weight times (accuracy + 0.1) (1 - accuracy), accuracy being that of its
        attempts in the last ten steps, 0.5 if it had none. Known as learnability: p (1 - p) (Rutherford et al., 2024).
        `history`: the steps' metrics, with "accuracy/FAMILY".
        """
        learnable = self._weights * [_to_learnability(history[-_RECENT:], family) for family in self._by_family]
        if not learnable.any():
            return self._weights
        weights: Floats = (1 - focus) * self._weights / self._weights.sum() + focus * learnable / learnable.sum()
        return weights

    def draw(
        self, n: int, rng: np.random.Generator, *, weights: Floats | None = None, whole_pool: bool = False
    ) -> list[Question]:
        """The families in random order, each as often as its weight says, give or take one. `weights`: (families,),
        instead of those that were given at first; `whole_pool`: in its own order, whatever the sizes."""
        families = self.families
        weights = self._weights if weights is None else weights
        order = rng.permutation(len(families))
        ends = np.cumsum(weights[order])
        picks = np.searchsorted(ends, (rng.random() + np.arange(n)) / n * ends[-1], side="right")
        drawn = [families[order[min(pick, len(families) - 1)]] for pick in rng.permutation(picks)]
        tasks = [self._by_family[family][int(rng.integers(len(self._by_family[family])))] for family in drawn]
        if self._sizes is None or whole_pool:
            return [Question(task=task, workers=self.workers) for task in tasks]
        return [draw_question(task, self.workers, rng, sizes=self._sizes) for task in tasks]


def draw_question(task: Task, workers: Sequence[str], rng: np.random.Generator, *, sizes: tuple[int, ...]) -> Question:
    """The task with `k` of the workers, in random order; `k` is one of `sizes`, all of them equally likely."""
    size = int(rng.choice(sizes))
    if not 1 <= size <= len(workers):
        raise ConfigError(f"pool sizes {sizes!r}: expected 1 to {len(workers)}, as many as there are workers")
    return Question(task=task, workers=tuple(str(worker) for worker in rng.permutation(workers)[:size]))


def _to_learnability(recent: Sequence[Mapping[str, Json]], family: str) -> float:
    seen = [row.get(f"accuracy/{family}") for row in recent]
    known = [float(value) for value in seen if isinstance(value, (int, float))]
    accuracy = float(np.mean(known)) if known else 0.5
    return (accuracy + _NEVER_RIGHT) * (1 - accuracy)


def _by_family(tasks: Sequence[Task], split: str) -> dict[str, list[Task]]:
    found: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.split == split:
            found[task.family].append(task)
    if not found:
        raise ConfigError(f"no tasks of the split {split!r} among {len(tasks)}: expected some")
    return dict(found)


def _take_turns(families: Sequence[Sequence[Task]]) -> list[Task]:
    """One of each family after the other."""
    longest = max(map(len, families))
    return [tasks[i] for i in range(longest) for tasks in families if i < len(tasks)]
