"""Questions that need two kinds of knowledge: numbers in words, and counting followed by arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .reading import Skill, Worked, read_number_words

__all__ = ["MIXED", "add_in_words"]

_IN_WORDS = re.compile(r"what is ([a-z -]{3,200})\?", re.IGNORECASE)
_OPERATOR = re.compile(r" (plus|minus|times) ")
_COUNT_TIMES = re.compile(
    r'how often the letter "([a-z])" occurs in "([a-z ]{1,400})"[^.\n]{0,40}multiply (?:that|the) count by (\d{1,9})\b',
    re.IGNORECASE | re.ASCII,
)


def compute_in_words(question: str) -> Worked | None:
    """ "What is forty-two plus seven times three?", products first."""
    return _compute(question, ("plus", "minus", "times"))


def add_in_words(question: str) -> Worked | None:
    """The same for who knows sums and differences only."""
    return _compute(question, ("plus", "minus"))


def _compute(question: str, known: tuple[str, ...]) -> Worked | None:
    match = _IN_WORDS.search(question)
    if match is None:
        return None
    first, *rest = _OPERATOR.split(match[1].lower())
    operators, numbers = rest[::2], [read_number_words(words) for words in (first, *rest[1::2])]
    if not operators or not set(operators) <= set(known) or None in numbers:
        return None
    terms: list[int] = []
    for operator, number in zip(("plus", *operators), numbers, strict=True):
        if operator == "times":
            terms[-1] *= number or 0
        else:
            terms.append((number or 0) * (-1 if operator == "minus" else 1))
    return Worked(str(sum(terms)), f"In digits: {' + '.join(map(str, terms))}.")


def count_and_multiply(question: str) -> Worked | None:
    match = _COUNT_TIMES.search(question)
    if match is None:
        return None
    count = match[2].lower().count(match[1].lower())
    return Worked(str(count * int(match[3])), f"{count} times the letter, times {match[3]}.")


MIXED: Mapping[str, Skill] = {"compute_in_words": compute_in_words, "count_and_multiply": count_and_multiply}
