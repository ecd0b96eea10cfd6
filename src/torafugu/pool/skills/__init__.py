"""What the workers of the home pool can do: pure functions from a question's text to a worked answer, or None.

A skill reads nothing but the text. It parses with its own code, never evaluates it, bounds what it computes, and
returns None for what it does not understand; it never raises. `AREAS` groups them as the workers know them; "mixed"
comes first because its questions hold a simpler one that another area would answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from .arithmetic import ARITHMETIC
from .facts import FACTS
from .mixed import MIXED
from .reading import Skill, Worked
from .reasoning import REASONING
from .text import TEXT

__all__ = ["AREAS", "Skill", "Worked"]

AREAS: Mapping[str, Mapping[str, Skill]] = {
    "mixed": MIXED,
    "arithmetic": ARITHMETIC,
    "text": TEXT,
    "facts": FACTS,
    "reasoning": REASONING,
}
