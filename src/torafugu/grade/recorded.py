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
        self._score_of = {
            completion_id(sample): sample.correct for rows in recorded.samples.values() for sample in rows
        }

    def grade(self, task: Task, reply: Reply) -> Verdict:
        score = self._score_of.get(reply.provider_id or "")
        if score is None or not (reply.provider_id or "").startswith(f"{task.id}#"):
            raise GradeError(f"task {task.id!r}: no recorded verdict for completion {reply.provider_id!r}")
        return Verdict(score=float(score), correct=score >= 0.999)
