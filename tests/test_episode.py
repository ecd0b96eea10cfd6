"""Episodes: whose fault it was decides whether a task is scored, and what was spent is known either way."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from runs import USAGE, Deciding, Endless, Planned, make_pool, plan
from torafugu.episode import Episode, run_episode
from torafugu.errors import FuguError, GradeError, PlanError, RequestError, StoreError, WorkerError
from torafugu.grade import Task, Verdict
from torafugu.orchestrate import Budget, Direct
from torafugu.pool import Failing, Scripted
from torafugu.types import Plan, Reply, Step, Usage

TASK = Task(id="t", family="f", category="c", dataset="d", prompt="2 + 2?", gold="4", split="test")


class Exactly:
    """A grader that compares with the gold answer, or raises what it is told to."""

    def __init__(self, error: FuguError | None = None) -> None:
        self._error = error

    def grade(self, task: Task, reply: Reply) -> Verdict:
        if self._error is not None:
            raise self._error
        return Verdict(score=1.0 if reply.text == task.gold else 0.25, correct=reply.text == task.gold)


def run(policy: Any, backends: Any, *, grader: Any = None, **fields: Any) -> Episode:
    return asyncio.run(run_episode(TASK, policy, make_pool(backends), grader or Exactly(), **fields))


def scripted(*texts: str) -> Scripted:
    return Scripted(list(texts), usage=USAGE)


def raising(error: FuguError) -> Deciding:
    def decide() -> Plan:
        raise error

    return Deciding(decide)


@pytest.mark.parametrize(("text", "score", "is_correct"), [("4", 1.0, True), ("5", 0.25, False)])
def test_scored(text: str, score: float, is_correct: bool) -> None:
    """An answer is scored by the grader, and the episode says who gave it, for how much."""
    episode = run(Direct("a"), {"a": scripted(text)})
    assert (episode.score, episode.correct, episode.text, episode.answered_by) == (score, is_correct, text, "a")
    assert (episode.workers, episode.calls, episode.cost_usd) == (("a",), 1, Decimal("0.002"))
    assert (episode.usage, episode.fault, episode.code) == (USAGE, None, None)
    assert episode.latency_ms is not None


def test_worker_is_asked_the_prompt_alone() -> None:
    """A worker sees the prompt: not the gold answer, not the task's id."""
    worker = scripted("4")
    run(Direct("a"), {"a": worker})
    (query,) = worker.queries
    (message,) = query.messages
    assert (message.role, message.content, message.name) == ("user", "2 + 2?", None)


@pytest.mark.parametrize(
    ("error", "score"),
    [
        (PlanError("no plan"), 0.0),
        (RequestError("too long"), None),
        (WorkerError("down", worker="a"), None),
        (StoreError("full"), None),
    ],
    ids=lambda value: getattr(value, "fault", ""),
)
def test_fault_decides(error: FuguError, score: float | None) -> None:
    """Only the policy's own fault is scored, with 0; anybody else's leaves the task without a score."""
    episode = run(raising(error), {"a": scripted("4")})
    assert (episode.score, episode.correct) == (score, None if score is None else False)
    assert (episode.fault, episode.code) == (error.fault, error.code)
    assert (episode.text, episode.answered_by, episode.calls, episode.cost_usd) == ("", None, 0, Decimal(0))


def test_grader_that_cannot_tell() -> None:
    """An answer without a verdict is not scored, but its cost and its worker are known."""
    episode = run(Direct("a"), {"a": scripted("4")}, grader=Exactly(GradeError("no verdict")))
    assert (episode.score, episode.correct, episode.fault, episode.code) == (None, None, "grader", "grade_error")
    assert (episode.answered_by, episode.cost_usd) == ("a", Decimal("0.002"))


def test_money_of_a_failed_run() -> None:
    """A run that fails after a paid call still says what was called and paid."""
    policy = Planned(plan(Step(id=0, worker="a")), answer=7)
    episode = run(policy, {"a": scripted("4")})
    assert (episode.score, episode.fault) == (0, "policy")
    assert (episode.workers, episode.calls, episode.cost_usd, episode.usage) == (("a",), 1, Decimal("0.002"), USAGE)


def test_worker_that_fails() -> None:
    """A worker's failure has its code; refused before it cost anything it cost nothing, else nobody knows."""
    refused = run(Direct("a"), {"a": Failing(WorkerError("no", worker="a", code="rejected"))})
    assert (refused.score, refused.code, refused.calls, refused.cost_usd) == (None, "rejected", 1, Decimal(0))
    broken = run(Direct("a"), {"a": Failing("empty")})
    assert (broken.score, broken.code, broken.cost_usd) == (None, "empty", None)
    assert broken.usage == Usage()


def test_budget() -> None:
    """A policy that runs out of calls is graded on its best reply; without any reply it scores 0, and says why."""
    kept = run(Endless("a"), {"a": scripted("4", "5")}, budget=Budget(calls=2))
    assert (kept.score, kept.text, kept.calls) == (0.25, "5", 2)
    none = run(Direct("a"), {"a": Failing("hang")}, budget=Budget(seconds=0.02))
    assert (none.score, none.correct, none.fault, none.code) == (0, False, None, "budget:seconds")


def test_allowed() -> None:
    """Workers that are not allowed are not called: planning one is the policy's fault."""
    episode = run(Direct("b"), {"a": scripted("4"), "b": scripted("4")}, allowed=frozenset({"a"}))
    assert (episode.score, episode.fault, episode.calls) == (0, "policy", 0)


def test_bugs_are_not_episodes() -> None:
    """An exception nobody meant is not somebody's fault: it is raised."""
    with pytest.raises(ZeroDivisionError):
        run(Direct("a"), {"a": scripted("4")}, grader=Broken())


class Broken:
    def grade(self, task: Task, reply: Reply) -> Verdict:
        raise ZeroDivisionError
