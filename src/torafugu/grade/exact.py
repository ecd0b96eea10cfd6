"""Answers that are right when they say the same as the gold answer: as text, as a number, or as an option's letter.

`extract_answer` looks for the answer within a reply to a task that asked for tags; other ways to mark one: `marked.py`.
Nothing here computes with what a reply says beyond comparing two finite numbers.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from ..errors import GradeError
from ..types import Reply
from .grader import Verdict, right, undecided, wrong
from .task import Task

__all__ = ["ExactGrader", "extract_answer", "find_tagged", "given_answer", "is_echo", "normalise_text"]

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_FRACTION = re.compile(r"([+-]?\d{1,50})\s*/\s*([+-]?\d{1,50})", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d{1,6})?", re.ASCII)
_MAX_NUMBER_CHARS = 400
_LETTER = re.compile(r"\(?([a-z])\)?(?=$|[\s.:,)])", re.IGNORECASE)


def extract_answer(text: str) -> str | None:
    """What a reply gives as its answer: inside the last `<answer>...</answer>`, else its last line that is not blank.

    None when that is blank: an empty answer is no answer.
    """
    tagged = find_tagged(text)
    if tagged is not None:
        return tagged or None
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def given_answer(prompt: str, text: str) -> str:
    """The answer of a reply, as it is written there. What two of them must have in common to agree: `agreement.py`.

    "" agrees with nothing: there is no answer, or none where the question asked for it (an "I do not know" is no vote).
    """
    if "<answer>" in prompt and find_tagged(text) is None:
        return ""
    return extract_answer(text) or ""


def is_echo(task: Task, text: str) -> bool:
    """Whether it only repeats the question, be it between tags: no grader may read an answer off that."""
    said = find_tagged(text)
    return task.prompt.split() in (text.split(), (said or "").split()) and bool(task.prompt.strip())


def find_tagged(text: str) -> str | None:
    """What stands between the last pair of tags; None without one."""
    tags = list(_TAG.finditer(text))
    for opening, closing in zip(reversed(tags[:-1]), reversed(tags), strict=False):
        if not opening[1] and closing[1]:
            return text[opening.end() : closing.start()].strip()
    return None


class ExactGrader:
    """Right when the extracted answer and the gold answer are the same text, number or option."""

    def grade(self, task: Task, reply: Reply) -> Verdict:
        if task.gold is None or not task.gold.strip():
            raise GradeError(f"task {task.id!r}: no gold answer to compare with")
        answer = extract_answer(reply.text)
        if answer is None or is_echo(task, reply.text):
            return wrong("no answer")
        if _is_same(answer, task.gold) or (task.options and _is_same_option(answer, task.gold, task.options)):
            return right()
        say = wrong if _are_numbers(answer, task.gold) else undecided
        return say(f"expected {task.gold[:80]!r}, got {answer[:80]!r}")


def _is_same(answer: str, gold: str) -> bool:
    a, b = normalise_text(answer), normalise_text(gold)
    if a == b:
        return True
    number = _to_number(a)
    return number is not None and number == _to_number(b)


def _are_numbers(*texts: str) -> bool:
    """Two numbers differ or do not; two texts may still mean the same."""
    return all(_to_number(normalise_text(text)) is not None for text in texts)


def normalise_text(text: str) -> str:
    """Case, runs of blanks, one layer of quotes or dollar signs and a final full stop do not count."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = text.removesuffix(".")
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'`$":
        text = text[1:-1].strip()
    return text


def _to_number(text: str) -> Decimal | Fraction | None:
    """Compared as Decimal: it does not write out a huge exponent as `Fraction` would."""
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    if fraction := _FRACTION.fullmatch(text):
        below = int(fraction[2])
        return _plain(Fraction(int(fraction[1]), below)) if below else None
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _plain(value: Fraction) -> Decimal | Fraction:
    """A whole number as Decimal, so that 6/2 equals 3."""
    return Decimal(value.numerator) if value.denominator == 1 else value


def _is_same_option(answer: str, gold: str, options: tuple[str, ...]) -> bool:
    """Gold and answer may each be the option's letter or its text."""
    wanted, given = _to_option(gold, options), _to_option(answer, options)
    return wanted is not None and wanted == given


def _to_option(text: str, options: tuple[str, ...]) -> int | None:
    for index, option in enumerate(options):
        if normalise_text(option) == normalise_text(text):
            return index
    letter = _LETTER.match(text.strip())
    index = ord(letter[1].upper()) - ord("A") if letter else -1
    return index if 0 <= index < len(options) else None
