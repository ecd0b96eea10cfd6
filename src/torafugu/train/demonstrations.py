"""What a conductor is shown before it is trained by reward: valid workflows, so that it knows the form, not the answer.

A demonstration splits a question as its gold workflow does, but who does a step is drawn among those that are
offered, by lot or with shares that the config sets: whom to call is left to be learned from outcomes. Each has a
random part of the pool in a random order, so that the list of workers is read at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec
import numpy as np

from ..envs.composed import GoldWorkflow, find_workflow
from ..episode import task_to_request
from ..errors import ConfigError
from ..orchestrate.conductor import Conductor, ConductorConfig
from ..orchestrate.plan import PlanFormat, Workflow, WorkflowStep, write_workflow
from ..orchestrate.run import Run
from ..pool.skills.plain import drop_format
from ..types import Message, Sampling
from .conductor_rollout import CONDUCTOR, Question

__all__ = ["Demonstration", "make_demonstration", "render_question", "show_plainly"]


_PLAIN_SHARE = 0.2
"""Of demonstrations whose question does not say how the answer is to be marked: people do not either."""
_NOBODY: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One question and a text that is a workflow for it."""

    messages: tuple[Message, ...]
    """What the conductor is asked."""
    text: str


def render_question(question: Question, config: ConductorConfig, *, effort: str = "high") -> tuple[Message, ...]:
    """What a conductor is asked first: by the policy itself, so that it trains on what it will serve."""
    policy = Conductor(
        replace(config, worker=CONDUCTOR, workers=question.workers),
        {worker: worker for worker in (*question.workers, CONDUCTOR)},
    )
    request = task_to_request(question.task, sampling=Sampling(reasoning_effort=effort))
    (step,) = policy.begin(Run(request, run_id="run_of_nobody")).steps
    assert step.messages is not None
    return step.messages


def make_demonstration(
    question: Question,
    config: ConductorConfig,
    rng: np.random.Generator,
    *,
    effort: str = "high",
    gold_share: float = 0.0,
    favourites: Mapping[str, float] = _NOBODY,
) -> Demonstration:
    """By lot, but for `gold_share` of the steps, which the gold workflow's worker gets, and `favourites`, the shares of
    single workers; where that one is not offered, by lot as well.

    Raises:
        ConfigError: nobody knows a workflow for the task: only generated tasks of several parts have one.
    """
    gold = find_workflow(question.task.prompt)
    if gold is None:
        raise ConfigError(f"task {question.task.id!r}: no workflow is known for it: expected tasks of home-multi")
    offered = {worker: number for number, worker in enumerate(question.workers)}
    workers = []
    for right in gold.workers:
        wanted = _draw_wanted(rng.random(), right, gold_share, favourites)
        by_lot = int(rng.integers(len(question.workers)))
        workers.append(offered.get(wanted, by_lot) if wanted else by_lot)
    return Demonstration(
        messages=render_question(question, config, effort=effort),
        text=write_plan(gold, workers, question, config),
    )


def show_plainly(question: Question, rng: np.random.Generator) -> Question:
    """A fifth of the generated questions in one line, without the sentence on the form of the answer. What a task of
    one's own says of that form is its own: it stays as it is."""
    if rng.random() >= _PLAIN_SHARE or find_workflow(question.task.prompt) is None:
        return question
    return replace(question, task=msgspec.structs.replace(question.task, prompt=drop_format(question.task.prompt)))


def _draw_wanted(luck: float, right: str, gold_share: float, favourites: Mapping[str, float]) -> str | None:
    """None: by lot."""
    for worker, share in ((right, gold_share), *favourites.items()):
        if luck < share:
            return worker
        luck -= share
    return None


def write_plan(gold: GoldWorkflow, workers: Sequence[int], question: Question, config: ConductorConfig) -> str:
    """The gold workflow, each step given to one of the question's workers."""
    steps = zip(workers, gold.subtasks, gold.access, strict=True)
    workflow = Workflow(steps=tuple(WorkflowStep(worker=w, subtask=s, access=tuple(a)) for w, s, a in steps))
    form = PlanFormat(workers=len(question.workers), access="position", order=config.order)
    return write_workflow(workflow, form, names=question.workers if config.names else None)
