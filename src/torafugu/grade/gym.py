"""Reasoning-gym's own graders for the families that the home pool uses.

Only families on the list are graded: some of the others run Python that stands in the answer (`eval`, SymPy's
`parse_expr`), which no worker's text may ever reach. `import_reasoning_gym` is the one place that imports the package.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
import warnings
from typing import Any

from ..errors import ConfigError, GradeError
from ..types import Json, Reply
from .exact import extract_answer
from .grader import Verdict
from .task import Task

__all__ = ["GYM_FAMILIES", "GymGrader", "import_reasoning_gym"]

GYM_FAMILIES = frozenset(
    {
        "base_conversion",
        "caesar_cipher",
        "calendar_arithmetic",
        "chain_sum",
        "family_relationships",
        "fraction_simplification",
        "gcd",
        "group_anagrams",
        "knights_knaves",
        "leg_counting",
        "letter_counting",
        "needle_haystack",
        "number_filtering",
        "number_format",
        "palindrome_generation",
        "polynomial_equations",
        "prime_factorization",
        "products",
        "simple_equations",
        "sokoban",
        "spell_backward",
        "syllogism",
        "time_intervals",
        "word_sequence_reversal",
        "word_sorting",
    }
)
"""Their `score_answer` was read: it compares, parses numbers or JSON, or plays moves; it runs no code of the answer."""
_CORRECT = 0.999


def import_reasoning_gym() -> Any:
    """The package, imported on first use (about two seconds).

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError("the home tasks need the package reasoning-gym: pip install 'torafugu[home]'")
    _stand_in_for_pycosat()
    with warnings.catch_warnings():
        # cellpylib, which it imports, compares with `is` to a literal; seen only when it is first compiled.
        warnings.filterwarnings("ignore", message='"is" with', category=SyntaxWarning)
        import reasoning_gym
    return reasoning_gym


class GymGrader:
    """Right when reasoning-gym's score for the task's family is at least 0.999."""

    def __init__(self) -> None:
        self._score_of: dict[str, Any] = {}

    def grade(self, task: Task, reply: Reply) -> Verdict:
        entry = {"question": task.prompt, "answer": task.gold, "metadata": task.meta.get("gym")}
        if task.family not in GYM_FAMILIES or not isinstance(entry["metadata"], dict) or task.gold is None:
            raise GradeError(f"task {task.id!r}: family {task.family!r} with meta {sorted(task.meta)!r} is no gym task")
        answer = extract_answer(reply.text)
        if answer is None:
            return Verdict(score=0.0, correct=False, reason="no answer")
        try:
            score = self._score(task.family, answer, entry)
        except GradeError as error:
            # Some families raise on an answer that they cannot parse. That answer is wrong, not ungradable: dropping
            # it would flatter every worker that says "I do not know". If even the gold answer fails, we cannot tell.
            if self._score(task.family, task.gold, entry) < _CORRECT:
                raise
            return Verdict(score=0.0, correct=False, reason=f"not readable as an answer: {error.message}"[:200])
        if score >= _CORRECT:
            return Verdict(score=1.0, correct=True)
        return Verdict(score=score, correct=False, reason=f"expected {task.gold[:80]!r}, got {answer[:80]!r}")

    def _score(self, family: str, answer: str, entry: Json) -> float:
        try:
            if family not in self._score_of:
                self._score_of[family] = import_reasoning_gym().get_score_answer_fn(family)
            score = float(self._score_of[family](answer, entry))
        except ConfigError as error:
            raise GradeError(error.message) from None
        except Exception as error:  # foreign code, any of it; mapped to our one fault here
            raise GradeError(f"reasoning-gym {family}: {type(error).__name__}: {error}") from error
        if not math.isfinite(score):
            raise GradeError(f"reasoning-gym {family}: score {score!r}: expected 0..1")
        return min(max(score, 0.0), 1.0)


def _stand_in_for_pycosat() -> None:
    """An empty module in place of pycosat where that is missing.

    Reasoning-gym imports it for its zebra puzzles only, which we do not use; it is a C extension without wheels, so
    that installing it would need a compiler.
    """
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        sys.modules["pycosat"] = types.ModuleType("pycosat")
