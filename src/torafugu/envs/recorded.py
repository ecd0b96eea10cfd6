"""Tasks out of a recorded set."""

from __future__ import annotations

from ..grade.task import Task
from ..pool.recorded import Question, RecordedSet

__all__ = ["question_to_task", "recorded_tasks"]


def question_to_task(question: Question) -> Task:
    return Task(
        id=question.qid,
        family=question.family,
        category=question.category,
        dataset=question.dataset,
        prompt=question.text,
        gold=question.gold,
        split=question.split,
    )


def recorded_tasks(recorded: RecordedSet, *splits: str) -> list[Task]:
    """The questions of these splits, or of all."""
    return [question_to_task(q) for q in recorded.questions if not splits or q.split in splits]
