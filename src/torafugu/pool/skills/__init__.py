"""What the workers of the home pool can do: pure functions from a question's text to a worked answer, or None.

A skill reads nothing but the text. It parses with its own code, never evaluates it, bounds what it computes, and
returns None for what it does not understand; it never raises. `AREAS` groups them as the workers know them; "mixed"
comes first because its questions hold a simpler one that another area would answer. Within an area the everyday
wordings of `plain` come last: they only answer what was not understood without them. Questions of several parts
(`composed`) are no skill: they are taken apart there, and answered by skills.
"""

from __future__ import annotations

from collections.abc import Mapping

from .arithmetic import ARITHMETIC
from .facts import FACTS
from .mixed import MIXED
from .plain import PLAIN_ARITHMETIC, PLAIN_FACTS, PLAIN_TEXT
from .reading import Skill, Worked
from .reasoning import REASONING
from .text import TEXT

__all__ = ["AREAS", "Skill", "Worked"]

AREAS: Mapping[str, Mapping[str, Skill]] = {
    "mixed": MIXED,
    "arithmetic": {**ARITHMETIC, **PLAIN_ARITHMETIC},
    "text": {**TEXT, **PLAIN_TEXT},
    "facts": {**FACTS, **PLAIN_FACTS},
    "reasoning": REASONING,
}
