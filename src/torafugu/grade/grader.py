"""The seam to graders: was this reply right? A grader that cannot tell raises; it never guesses."""

from __future__ import annotations

from typing import Protocol

from ..types import Reply, Value
from .task import Task

__all__ = ["Grader", "Verdict"]


class Verdict(Value, frozen=True, kw_only=True):
    """How good one reply to one task was."""

    score: float
    """0..1"""
    correct: bool
    reason: str = ""
    """Why it is not correct, for people."""


class Grader(Protocol):
    """Judges replies to the tasks of one source."""

    def grade(self, task: Task, reply: Reply) -> Verdict:
        """Raises:
        GradeError: no verdict can be reached; the sample is dropped, not scored.
        """
        ...
