"""One grader for tasks of mixed origin: each task says in `meta["grader"]` who grades it."""

from __future__ import annotations

from ..errors import GradeError
from ..types import Reply
from .code import CodeGrader
from .exact import ExactGrader
from .grader import Grader, Verdict
from .gym import GymGrader
from .task import Task

__all__ = ["TaskGrader"]


class TaskGrader:
    """Grades with the grader that the task names: `exact`, `gym` or `code`."""

    def __init__(self) -> None:
        self._graders: dict[str, Grader] = {"code": CodeGrader(), "exact": ExactGrader(), "gym": GymGrader()}

    def grade(self, task: Task, reply: Reply) -> Verdict:
        name = task.meta.get("grader")
        if name not in self._graders:
            choices = ", ".join(sorted(self._graders))
            raise GradeError(f"task {task.id!r}: meta names grader {name!r}: expected one of {choices}")
        return self._graders[name].grade(task, reply)
