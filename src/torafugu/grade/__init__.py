"""Was it right? Tasks and the graders that judge replies to them."""

from .by_task import TaskGrader
from .exact import ExactGrader, comparable_answer, extract_answer
from .grader import Grader, Verdict
from .gym import GymGrader
from .task import Task

__all__ = ["ExactGrader", "Grader", "GymGrader", "Task", "TaskGrader", "Verdict", "comparable_answer", "extract_answer"]
