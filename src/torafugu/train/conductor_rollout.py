"""Episodes to learn from: a conductor that is being trained writes, the pool works, a grader judges, all through the
loop that serves.

    questions -> G attempts at each, at the same time -> whatever their conductors are asked is written in one batch
    -> workflows executed -> verdicts -> rewards, one for each text

The conductor is a worker of the pool like any other; only its backend is ours, which waits until every episode waits
for it, or is over. So texts are made in large batches, and rounds of recursion, which are questions of their own, too.
Axes: P questions, G attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..episode import Episode, run_episode
from ..errors import ConfigError, FuguError
from ..events import Answered, Event, Planned, Replied
from ..grade.grader import Grader
from ..grade.task import Task
from ..orchestrate import Budget
from ..orchestrate.conductor import RESULT_STANDS, Conductor, ConductorConfig
from ..pool import Completion, Pool, Prices
from ..pool.backend import Backend, OnDelta, Query
from ..pool.open import Maker
from ..pool.spec import Dialect, Limits, PoolSpec, Timeouts, WorkerSpec
from ..types import Message, Plan, Reply, Sampling, Usage
from .credit import assign_credit
from .grpo import RewardConfig

__all__ = [
    "CONDUCTOR",
    "Asked",
    "Attempt",
    "Desk",
    "Question",
    "RolloutConfig",
    "Rollouts",
    "Writer",
    "Written",
    "add_conductor",
    "makers_around",
]

CONDUCTOR = "conductor"
"""Its id among the workers, while it is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One text that is wanted."""

    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """One text, as its writer's network saw it."""

    text: str
    prompt: npt.NDArray[np.int32]  # (S,)
    tokens: npt.NDArray[np.int32]  # (T,) the token that ended it included
    logprobs: npt.NDArray[np.float32]  # (T,) at the temperature of sampling
    has_ended: bool
    """False: it was cut off at the limit."""


class Writer(Protocol):
    """The language model that is trained."""

    def write(self, asked: Sequence[Asked], *, temperature: float) -> list[Written]:
        """In one batch; blocks. The text of one depends on its own seed, not on who else is asked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A task, and who is there to do it."""

    task: Task
    workers: tuple[str, ...]
    """In the order in which they are offered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How episodes are run."""

    conductor: ConductorConfig
    reward: RewardConfig = field(default_factory=RewardConfig)
    temperature: float = 1.0
    effort: str = "high"
    """As a request's `reasoning_effort`: how many steps and rounds there may be."""
    discount: float | None = None
    """Of the credit that a round gets for what the next one made of it; None: as in `credit`, the paper's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One episode, for the trainer."""

    question: Question
    episode: Episode
    texts: tuple[Written, ...]
    """One for each time that the conductor was asked."""
    rewards: tuple[float | None, ...]
    """Of each text. None: somebody other than the conductor failed."""
    values: tuple[float | None, ...]
    """What the result after each text is worth, prices apart: of its workflow, of the one that it let stand; 0 where
    it was neither; None as of the rewards."""
    before: tuple[float | None, ...]
    """The same of the result that each text was shown; None: there was none yet, or as of the rewards."""
    scores: tuple[float | None, ...]
    """Of the workflows that were executed, each as if the run had ended with it."""
    plans: tuple[Plan, ...]
    """The workflows that were executed."""
    cost_usd: float | None
    """Of the workers."""

    @property
    def is_valid(self) -> bool:
        """A workflow came of it."""
        return bool(self.plans)

    @property
    def called(self) -> tuple[str, ...]:
        """Workers, one for each planned step."""
        return tuple(step.worker for plan in self.plans for step in plan.steps)


_NOTHING = "(nothing was written)"
"""An empty reply would be the fault of a worker, and nothing would be learnt from it."""
_OfTexts: TypeAlias = tuple[float | None, ...]
"""A number for each text."""
_MANY = 1_000_000
_DAY_S = 86_400.0
_BUDGET = Budget(seconds=None)
"""An episode spends its time waiting for others."""


def add_conductor(pool: PoolSpec) -> PoolSpec:
    """The pool, and the conductor that is trained, for which `local` makers give a `Desk`. All episodes call at the
    same time: what a server would refuse waits here.

    Raises:
        ConfigError: a worker has the conductor's name.
    """
    if any(worker.id == CONDUCTOR for worker in pool.worker):
        raise ConfigError(f"worker {CONDUCTOR!r}: in training this is the name of the conductor: take another one")
    conductor = WorkerSpec(
        id=CONDUCTOR,
        dialect="local",
        model=CONDUCTOR,
        prices=Prices(input=Decimal(0), output=Decimal(0)),
        tools=False,
        limits=Limits(concurrency=_MANY),
        timeouts=Timeouts(total_s=_DAY_S),  # it waits for the slowest worker of all episodes
    )
    patient = [replace(worker, limits=replace(worker.limits, queue=_MANY)) for worker in pool.worker]
    return replace(pool, worker=(*patient, conductor))


def makers_around(conductor: Backend, folder: Path) -> dict[Dialect, Maker]:
    """Of local workers, for `open_pool`: the conductor's backend, and models of the pool whose paths start at
    `folder`."""

    def make_local(spec: WorkerSpec) -> Backend:
        if spec.id == CONDUCTOR:
            return conductor
        from ..local.generator import make_generator

        return make_generator(spec, folder=folder)

    return {"local": make_local}


class Rollouts:
    """Runs episodes with one desk and one pool."""

    def __init__(self, pool: Pool, desk: Desk, grader: Grader, config: RolloutConfig) -> None:
        """`pool`: of `add_conductor`, with `desk` as the conductor's backend."""
        self._pool, self._desk = pool, desk
        self._models = {id: spec.model for id, spec in pool.specs.items()}
        self._grader = grader
        self._config = config

    async def play(
        self, jobs: Sequence[tuple[Question, int]], *, temperature: float | None = None, rounds: int | None = None
    ) -> list[Attempt]:
        """One episode for each question and seed, all at the same time. `rounds`: workflows that each may have; None:
        as many as the effort allows.

        Raises:
            ModelError: nothing can be written any more.
            ConfigError: a reward that hangs on costs, of workers without a price.
        """
        desk, config = self._desk, self._config
        budget = replace(_BUDGET, depth=rounds)
        desk.open(len(jobs), config.temperature if temperature is None else temperature)
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(desk.write_until_all_are_done())
                tasks = [group.create_task(self._play_one(question, seed, budget)) for question, seed in jobs]
        except ExceptionGroup as several:  # of the task group: episodes often fail in the same way
            raise several.exceptions[0] from several.exceptions[0].__cause__
        del writing
        return [task.result() for task in tasks]

    async def _play_one(self, question: Question, seed: int, budget: Budget) -> Attempt:
        policy = Conductor(replace(self._config.conductor, worker=CONDUCTOR, workers=question.workers), self._models)
        happened = _Happened()
        try:
            episode = await run_episode(
                question.task,
                policy,
                self._pool,
                self._grader,
                sampling=Sampling(seed=seed, reasoning_effort=self._config.effort),
                budget=budget,
                recorder=happened,
            )
        finally:
            self._desk.leave()
        texts = tuple(self._desk.take(seed, question.task.id))
        scores = tuple(self._score(question.task, happened.replies.get(plan.steps[-1].id)) for plan in happened.plans)
        rewards, values, before = self._judge(episode, happened, scores, len(texts))
        return Attempt(
            question=question,
            episode=episode,
            texts=texts,
            rewards=rewards,
            values=values,
            before=before,
            scores=scores,
            plans=tuple(happened.plans),
            cost_usd=happened.cost_usd,
        )

    def _judge(
        self, episode: Episode, happened: _Happened, scores: Sequence[float | None], texts: int
    ) -> tuple[_OfTexts, _OfTexts, _OfTexts]:
        """-> rewards, values, what each text was shown

        Texts that were no workflow get nothing, the others what their workflow came to, and a share of what the next
        one made of it. One that lets a result stand costs nothing: the price is paid already.
        """
        config, unknown = self._config, (None,) * texts
        if episode.fault is not None and episode.fault != "policy":
            return unknown, unknown, unknown
        rounds: list[float] = []
        worths: list[float] = []
        for plan, score in zip(happened.plans, scores, strict=True):
            cost = happened.cost_of(plan)
            reward = config.reward.reward(score=score, is_valid=True, calls=len(plan.steps), cost_usd=cost)
            worth = config.reward.reward(score=score, is_valid=True, calls=0, cost_usd=0.0)
            if reward is None or worth is None:
                return unknown, unknown, unknown
            rounds.append(reward)
            worths.append(worth)
        credited = assign_credit(rounds) if config.discount is None else assign_credit(rounds, discount=config.discount)
        return (
            tuple(happened.share_out(credited, worths, texts)),
            tuple(happened.share_out(worths, worths, texts)),
            tuple(happened.find_before(worths, texts)),
        )

    def _score(self, task: Task, reply: Reply | None) -> float | None:
        if reply is None:
            return None
        try:
            return self._grader.grade(task, reply).score
        except FuguError:
            return None


class _Happened:
    """A `Recorder`: the workflows of one run, and what came back."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.replies: dict[int, Reply] = {}
        self._texts_of_plan: list[int] = []
        """For each workflow, how many texts had been asked for before it was one."""
        self._asked = 0
        self._has_returned = False

    def write(self, event: Event) -> None:
        if isinstance(event, Planned) and event.plan.steps[0].role == "conductor":
            self._asked += 1
        elif isinstance(event, Planned):
            self.plans.append(event.plan)
            self._texts_of_plan.append(self._asked)
        elif isinstance(event, Replied):
            self.replies[event.step] = event.reply
        elif isinstance(event, Answered):
            self._has_returned = event.notes.get("conductor") == RESULT_STANDS

    async def wait_durable(self) -> None:
        return

    def share_out(self, credited: Sequence[float], worths: Sequence[float], texts: int) -> list[float]:
        """Each text's reward: that of the workflow which it was; 0 where it was none, though the run may answer with an
        earlier result. A later round's text that returns the result as it is keeps what the result was worth."""
        rewards = [0.0] * texts
        for reward, number in zip(credited, self._texts_of_plan, strict=True):
            rewards[number - 1] = reward
        if self._has_returned:
            rewards[texts - 1] = worths[-1]
        return rewards

    def find_before(self, worths: Sequence[float], texts: int) -> list[float | None]:
        """For each text, what the latest workflow before it came to; None if there was none."""
        done = [sum(number <= text for number in self._texts_of_plan) for text in range(texts)]
        return [worths[count - 1] if count else None for count in done]

    def cost_of(self, plan: Plan) -> float | None:
        costs = [self.replies[step.id].cost_usd for step in plan.steps if step.id in self.replies]
        return None if None in costs else float(sum(cost or 0 for cost in costs))

    @property
    def cost_usd(self) -> float | None:
        costs = [self.cost_of(plan) for plan in self.plans]
        return None if None in costs else sum(cost or 0.0 for cost in costs)


class Desk:
    """A `Backend` where all conductors ask; it writes when nobody can do anything before it has."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._temperature = 1.0
        self._running = 0
        self._waiting: list[tuple[Query, asyncio.Future[Written]]] = []
        self._written: dict[tuple[int, str], list[Written]] = {}
        self._all_wait = asyncio.Event()

    def open(self, episodes: int, temperature: float) -> None:
        self._running, self._temperature = episodes, temperature
        self._waiting.clear()
        self._written.clear()
        self._all_wait = asyncio.Event()
        self._look()

    def leave(self) -> None:
        """An episode is over."""
        self._running -= 1
        self._look()

    def take(self, seed: int, task: str) -> list[Written]:
        """What was written for one episode."""
        return self._written.pop((seed, task), [])

    def _look(self) -> None:
        if len(self._waiting) == self._running:
            self._all_wait.set()

    async def write_until_all_are_done(self) -> None:
        while True:
            await self._all_wait.wait()
            self._all_wait.clear()
            if not self._running:
                return
            waiting, self._waiting = self._waiting, []
            asked = [Asked(messages=query.messages, seed=self._seed_of_next(query)) for query, _ in waiting]
            written = await asyncio.to_thread(self._writer.write, asked, temperature=self._temperature)
            for (query, future), text in zip(waiting, written, strict=True):
                self._written.setdefault(_episode_of(query), []).append(text)
                if not future.done():
                    future.set_result(text)

    def _seed_of_next(self, query: Query) -> int:
        """A second text of an episode is another one than the first."""
        seed, task = _episode_of(query)
        number = len(self._written.get((seed, task), ()))
        return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del on_delta
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, future))
        self._look()
        written = await future
        return Completion(
            text=written.text if written.text.strip() else _NOTHING,
            finish_reason="stop" if written.has_ended else "length",
            usage=Usage(input_tokens=len(written.prompt), output_tokens=len(written.tokens)),
        )

    async def close(self) -> None:
        """Nothing is held."""


def _episode_of(query: Query) -> tuple[int, str]:
    assert query.sampling.seed is not None, "every episode has one"
    return query.sampling.seed, query.task or ""
