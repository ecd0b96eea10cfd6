"""One task, one policy, one verdict. Training and evaluation are made of these; serving is the same without verdicts.

A worker's or grader's fault is never scored (`score` is None); a policy's fault is scored 0.
"""

from __future__ import annotations

from decimal import Decimal

from .errors import Fault, FuguError
from .grade.grader import Grader
from .grade.task import Task
from .orchestrate import Budget, Caller, Policy, Run, orchestrate
from .types import Message, Request, Usage, Value

__all__ = ["Episode", "run_episode", "task_to_request"]

_BUDGET = Budget()


class Episode(Value, frozen=True, kw_only=True):
    """A run with its verdict."""

    task: str
    score: float | None
    """0..1; None when it was not scored, and `fault` says whose fault that is."""
    correct: bool | None = None
    """The grader's yes or no; None when it was not scored."""
    workers: tuple[str, ...] = ()
    """Workers called, in order."""
    answered_by: str | None = None
    text: str = ""
    provider_id: str | None = None
    calls: int = 0
    cost_usd: Decimal | None = None
    latency_ms: float | None = None
    usage: Usage = Usage()
    fault: Fault | None = None
    code: str | None = None


def task_to_request(task: Task, *, allowed: frozenset[str] | None = None) -> Request:
    """The task as one user message."""
    return Request(model="", messages=(Message(role="user", content=task.prompt),), allowed=allowed, task=task.id)


async def run_episode(
    task: Task,
    policy: Policy,
    pool: Caller,
    grader: Grader,
    *,
    allowed: frozenset[str] | None = None,
    budget: Budget = _BUDGET,
) -> Episode:
    """Never raises a `FuguError`: whose fault it was is part of the result."""
    try:
        run = await orchestrate(task_to_request(task, allowed=allowed), policy, pool, budget=budget)
    except FuguError as error:
        score, correct = (0.0, False) if error.fault == "policy" else (None, None)
        return Episode(task=task.id, score=score, correct=correct, fault=error.fault, code=error.code)
    if run.answer is None:
        return _episode(task, run, score=0.0, correct=False, code=run.stopped.by if run.stopped else None)
    try:
        verdict = grader.grade(task, run.answer)
    except FuguError as error:
        return _episode(task, run, score=None, fault=error.fault, code=error.code)
    return _episode(task, run, score=verdict.score, correct=verdict.correct)


def _episode(
    task: Task,
    run: Run,
    *,
    score: float | None,
    correct: bool | None = None,
    fault: Fault | None = None,
    code: str | None = None,
) -> Episode:
    stopped, answer = run.stopped, run.answer
    return Episode(
        task=task.id,
        score=score,
        correct=correct,
        workers=run.workers,
        answered_by=answer.worker if answer else None,
        text=answer.text if answer else "",
        provider_id=answer.provider_id if answer else None,
        calls=stopped.calls if stopped else 0,
        cost_usd=stopped.cost_usd if stopped else None,
        latency_ms=stopped.latency_ms if stopped else None,
        usage=stopped.usage if stopped else Usage(),
        fault=fault,
        code=code,
    )
