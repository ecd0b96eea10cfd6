"""Where tasks come from: generated for the home pool, or recorded."""

from .home import HOME_FAMILIES, home_tasks, prompt_to_split
from .recorded import question_to_task, recorded_tasks

__all__ = ["HOME_FAMILIES", "home_tasks", "prompt_to_split", "question_to_task", "recorded_tasks"]
