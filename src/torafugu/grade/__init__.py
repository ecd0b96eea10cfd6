"""Was it right? Tasks and the graders that judge replies to them."""

from .by_task import TaskGrader
from .exact import ExactGrader, extract_answer, given_answer
from .grader import Grader, Verdict
from .gym import GymGrader
from .judge import JudgedGrader, ask_worker, wait_verdict
from .task import Task

__all__ = [
    "ExactGrader",
    "Grader",
    "GymGrader",
    "JudgedGrader",
    "Task",
    "TaskGrader",
    "Verdict",
    "ask_worker",
    "extract_answer",
    "given_answer",
    "wait_verdict",
]
