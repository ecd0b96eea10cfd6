"""What a conductor's text comes to, for trainers that write the texts themselves: TRL, prime-rl.

    question, text -> workflow -> executed by the pool -> graded -> an `Attempt`, as our own loop's

The episode is the one that serves; only its conductor is a desk where the text already lies. A text that is no
workflow gets 0. What a worker or a grader did gets no reward at all: None.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..grade.by_task import TaskGrader
from ..grade.grader import Grader
from ..orchestrate.conductor import EFFORTS
from ..pool import Completion, Pool, open_pool
from ..pool.backend import OnDelta, Query
from ..pool.spec import PoolSpec
from .conductor_config import ConductorTraining
from .conductor_player import to_rollout_config
from .conductor_rollout import (
    Asked,
    Attempt,
    Desk,
    Question,
    Rollouts,
    Written,
    add_conductor,
    makers_around,
)

__all__ = ["Scorer", "Text", "check_asks_once", "open_scorer", "score_texts"]

_NOTHING = "(nothing was written)"
"""In place of an empty text, which a pool would take for a failing worker, and ask again: here it is a text worth 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text of a conductor, as its answer to one question."""

    question: Question
    text: str
    seed: int
    """Of the episode: what workers sample with. Of the texts that are scored at the same time each has its own."""
    tokens: tuple[int, ...] = ()
    """As its writer sampled them, for the metrics; empty where they are not known."""
    has_ended: bool = True
    """False: it was cut off at the limit of tokens, and is no workflow."""


class Scorer:
    """Runs workflows in one pool, any number at once."""

    def __init__(self, pool: Pool, desks: _Desks, grader: Grader, config: ConductorTraining) -> None:
        """`pool`: of `add_conductor`, with `desks` as the conductor's backend."""
        self._pool, self._desks, self._grader = pool, desks, grader
        self._config = to_rollout_config(config)

    async def score(self, texts: Sequence[Text]) -> list[Attempt]:
        """One attempt for each text, in their order.

        Raises:
            ConfigError: two texts have one seed.
        """
        seeds = [text.seed for text in texts]
        if len(set(seeds)) < len(seeds) or self._desks.are_any_open(seeds):
            raise ConfigError(f"seeds {seeds!r}: expected another one for each text that is scored at the same time")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._score_one(text)) for text in texts]
        return [task.result() for task in tasks]

    async def _score_one(self, text: Text) -> Attempt:
        desk = Desk(_Given(text))
        rollouts = Rollouts(self._pool, desk, self._grader, self._config)
        with self._desks.open(text.seed, desk):
            (attempt,) = await rollouts.play([(text.question, text.seed)])
        return attempt


def check_asks_once(config: ConductorTraining) -> None:
    """One text is the whole answer: whatever would ask for a second one has to be off.

    Raises:
        ConfigError: the conductor may be asked again.
    """
    conductor = config.conductor
    rounds = EFFORTS[config.effort].rounds
    for name, value, expected in (
        ("attempts", conductor.attempts, 1),
        ("again", conductor.again, 0),
        ("recursion", conductor.recursion and rounds > 1, False),
        ("on_error", conductor.on_error == "replan", False),
    ):
        if value != expected:
            raise ConfigError(
                f"conductor.{name}: the conductor may be asked a second time, and there is one text only: expected "
                "attempts = 1, again = 0, recursion = false, on_error = 'fail' or 'substitute'"
            )


@asynccontextmanager
async def open_scorer(
    pool: PoolSpec, config: ConductorTraining, *, pool_folder: Path = Path(), grader: Grader | None = None
) -> AsyncIterator[Scorer]:
    """`pool_folder`: where the models of its local workers are; `grader`: None is the one that each task names.

    Raises:
        ConfigError: the conductor may be asked twice, or a worker cannot be made.
    """
    check_asks_once(config)
    desks = _Desks()
    async with open_pool(add_conductor(pool), makers=makers_around(desks, pool_folder)) as opened:
        yield Scorer(opened, desks, grader or TaskGrader(), config)


def score_texts(
    texts: Sequence[Text], pool: PoolSpec, config: ConductorTraining, *, pool_folder: Path = Path()
) -> list[Attempt]:
    """Opens the pool for these texts alone. Where a loop is running already, or more is to come: `open_scorer`.

    Raises:
        ConfigError: as of `open_scorer` and `Scorer.score`.
    """

    async def score() -> list[Attempt]:
        async with open_scorer(pool, config, pool_folder=pool_folder) as scorer:
            return await scorer.score(texts)

    return asyncio.run(score())


class _Given:
    """A `Writer` that has one text to give."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def write(self, asked: Sequence[Asked], *, temperature: float) -> list[Written]:
        del temperature
        assert len(asked) == 1, "check_asks_once"
        tokens = np.asarray(self._text.tokens, np.int32)
        return [
            Written(
                text=self._text.text if self._text.text.strip() else _NOTHING,
                prompt=np.zeros(0, np.int32),
                tokens=tokens,
                logprobs=np.zeros(len(tokens), np.float32),  # whoever trains has its own
                has_ended=self._text.has_ended,
            )
        ]


class _Desks:
    """A `Backend`: the desks of all episodes that are under way, by the seed of the episode."""

    def __init__(self) -> None:
        self._desks: dict[int, Desk] = {}

    def are_any_open(self, seeds: Sequence[int]) -> bool:
        return not self._desks.keys().isdisjoint(seeds)

    @contextmanager
    def open(self, seed: int, desk: Desk) -> Iterator[None]:
        assert seed not in self._desks, "Scorer.score"
        self._desks[seed] = desk
        try:
            yield
        finally:
            del self._desks[seed]

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        assert query.sampling.seed is not None, "every episode has one"
        return await self._desks[query.sampling.seed].complete(query, on_delta)

    async def close(self) -> None:
        """Nothing is held."""
