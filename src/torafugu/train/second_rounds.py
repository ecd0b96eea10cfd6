"""Demonstrations of a second round: a workflow was executed, its result is shown, and what then?

    first text -> executed on the pool, graded -> right: three empty lists, so that the result stands
                                               -> wrong: another workflow

This is the paper's recursion (Conductor, section 3.2) without a conductor that has to write the first text: it is a
demonstration, too, in half the cases with all the right workers, so that there are results to let stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..episode import run_episode
from ..grade.by_task import TaskGrader
from ..orchestrate import Budget
from ..orchestrate.conductor import Conductor, ConductorConfig
from ..orchestrate.plan import PlanFormat, Workflow, write_workflow
from ..pool import Completion, Pool, open_pool
from ..pool.backend import OnDelta, Query
from ..pool.spec import PoolSpec
from ..types import Message, Sampling, Usage
from .conductor_config import WarmStartConfig
from .conductor_rollout import CONDUCTOR, Question, add_conductor, makers_around
from .demonstrations import Demonstration, make_demonstration

__all__ = ["SecondRounds"]

_RIGHT_SHARE = 0.5
"""Of first workflows that are executed with the gold workflow's workers."""
_BUDGET = Budget(seconds=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondRounds:
    """Makes them, on one pool."""

    pool: PoolSpec
    pool_folder: Path
    conductor: ConductorConfig
    effort: str

    def demonstrate(
        self, questions: Sequence[Question], rng: np.random.Generator, *, warm: WarmStartConfig
    ) -> list[Demonstration]:
        """One for each question whose first workflow could be executed and graded. Blocks.

        Raises:
            ConfigError: nobody knows a workflow for a task.
        """
        drawn = [self._draw(question, rng, warm) for question in questions]
        with ThreadPoolExecutor(1) as beside:  # whoever trains has a loop of events running in this thread
            played = beside.submit(asyncio.run, self._play(questions, [first for first, _ in drawn])).result()
        return [
            Demonstration(messages=asked, text=_to_stand(self.conductor) if is_right else second)
            for (is_right, asked), (_, second) in zip(played, drawn, strict=True)
            if is_right is not None and asked is not None
        ]

    def _draw(self, question: Question, rng: np.random.Generator, warm: WarmStartConfig) -> tuple[str, str]:
        """The texts of a first round and of one that mends it. The question stays as it is: without the sentence on the
        form of the answer nobody could be graded."""
        right = 1.0 if rng.random() < _RIGHT_SHARE else warm.gold_share
        shares = [(right, {} if right == 1.0 else warm.favourites), (warm.gold_share, warm.favourites)]
        first, second = (
            make_demonstration(
                question, self.conductor, rng, effort=self.effort, gold_share=gold, favourites=others
            ).text
            for gold, others in shares
        )
        return first, second

    async def _play(
        self, questions: Sequence[Question], firsts: Sequence[str]
    ) -> list[tuple[bool | None, tuple[Message, ...] | None]]:
        """-> is the first workflow's result right, and what the conductor is asked after it"""
        script = _Script(firsts, _to_stand(self.conductor))
        models = {worker.id: worker.model for worker in add_conductor(self.pool).worker}

        async def play(number: int, question: Question, pool: Pool) -> bool | None:
            policy = Conductor(replace(self.conductor, worker=CONDUCTOR, workers=question.workers), models)
            sampling = Sampling(seed=number, reasoning_effort=self.effort)
            episode = await run_episode(question.task, policy, pool, TaskGrader(), sampling=sampling, budget=_BUDGET)
            return episode.correct if episode.fault is None else None

        makers = makers_around(script, self.pool_folder)
        async with open_pool(add_conductor(self.pool), makers=makers) as pool:
            played = await asyncio.gather(*(play(number, question, pool) for number, question in enumerate(questions)))
        return [(is_right, script.asked.get(number)) for number, is_right in enumerate(played)]


def _to_stand(config: ConductorConfig) -> str:
    return write_workflow(Workflow(steps=()), PlanFormat(workers=1, order=config.order))


class _Script:
    """A `Backend` for the conductor: it writes the text that it was given, lets every result stand, and keeps what it
    was asked then."""

    def __init__(self, firsts: Sequence[str], stand: str) -> None:
        """`firsts`: by the seeds of the episodes, from 0; `stand`: the text that lets a result stand."""
        self._firsts = firsts
        self._stand = stand
        self.asked: dict[int, tuple[Message, ...]] = {}
        self._begun = set[int]()

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del on_delta
        number = query.sampling.seed
        assert number is not None, "every episode has one"
        if number in self._begun:
            self.asked.setdefault(number, query.messages)
            text = self._stand
        else:
            self._begun.add(number)
            text = self._firsts[number]
        return Completion(text=text, finish_reason="stop", usage=Usage(input_tokens=0, output_tokens=0))

    async def close(self) -> None:
        """Nothing is held."""
