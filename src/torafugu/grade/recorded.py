"""Verdicts that were recorded with the answers: looked up by the replayed completion's id, never recomputed."""

from __future__ import annotations

from ..errors import GradeError
from ..pool.recorded import RecordedSet, completion_id
from ..types import Reply
from .grader import Verdict
from .task import Task

__all__ = ["RecordedGrader"]


class RecordedGrader:
    """The verdict that the collection holds for this very answer."""

    def __init__(self, recorded: RecordedSet) -> None:
        self._samples = {completion_id(sample): sample for rows in recorded.samples.values() for sample in rows}

    def grade(self, task: Task, reply: Reply) -> Verdict:
        sample = self._samples.get(reply.provider_id or "")
        if sample is None or sample.qid != task.id:
            raise GradeError(f"task {task.id!r}: no recorded verdict for completion {reply.provider_id!r}")
        return Verdict(score=sample.correct, correct=sample.correct >= 0.999)
