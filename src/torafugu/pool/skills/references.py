"""How a subtask of a workflow refers to earlier results: "the result of step 0", counted from 0.

Also read: "step 0's result", either of them in square brackets, without "the", in any case. What is filled in is the
earlier reply's answer, and is not searched for references again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["fill_in", "find_references", "read_result", "read_results"]

_OF = r"(?:\bthe\s{1,9})?\bresult\s{1,9}of\s{1,9}step\s{1,9}(\d{1,3})\b"
_BY = r"\bstep\s{1,9}(\d{1,3})['’]s\s{1,9}result\b"
_REFERENCE = re.compile(
    rf"\[\s{{0,9}}(?:{_OF}|{_BY})\s{{0,9}}\]|{_OF}|{_BY}",  # in brackets first: they belong to it
    re.IGNORECASE | re.ASCII,
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


def find_references(subtask: str) -> tuple[int, ...]:
    """The steps that a subtask refers to, ascending, each once."""
    return tuple(sorted({_position(match) for match in _REFERENCE.finditer(subtask)}))


def read_results(subtask: str, replies: Mapping[int, str]) -> dict[int, str] | None:
    """The answers that a subtask refers to, out of replies by position; None when one is not there or has no text."""
    answers = {position: read_result(replies.get(position, "")) for position in find_references(subtask)}
    return answers if all(answers.values()) else None


def fill_in(subtask: str, answers: Mapping[int, str], *, limit_chars: int) -> str | None:
    """The subtask with an answer in the place of each reference; None when that were longer than `limit_chars`."""
    added = sum(len(answers[_position(match)]) for match in _REFERENCE.finditer(subtask))
    if len(subtask) + added > limit_chars:
        return None
    return _REFERENCE.sub(lambda match: answers[_position(match)], subtask)


def read_result(reply: str) -> str:
    """What stands between the last pair of answer tags, else the last line that is not blank; "" when there is none."""
    tags = list(_TAG.finditer(reply))
    for opening, closing in zip(reversed(tags[:-1]), reversed(tags), strict=False):
        if not opening[1] and closing[1]:
            return reply[opening.end() : closing.start()].strip()
    lines = reply.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _position(match: re.Match[str]) -> int:
    return int(next(digits for digits in match.groups() if digits is not None))
