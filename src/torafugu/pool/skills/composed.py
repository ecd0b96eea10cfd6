"""Questions of several parts, each for another skill: how they are worded, and what their parts are.

Both directions rest on these templates: `torafugu.envs.composed` fills in the slots to make a question, `read_parts`
reads them off its text. A part is a question that one area understands by itself; the whole is understood by no skill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import NamedTuple, TypeAlias

from .plain import drop_format

__all__ = ["COMPOSED", "Composed", "Part", "Slots", "read_parts", "wording_patterns"]

Slots: TypeAlias = Mapping[str, str]

_MAX_CHARS = 2000
_NUMBER, _NAME, _ROMAN = r"\d{1,9}", r"[a-z]{1,60}", r"[MDCLXVI]{1,15}"
_SLOTS: Slots = {
    "a": _NUMBER,
    "b": _NUMBER,
    "c": _NUMBER,
    "letter": "[a-z]",
    "word": _NAME,
    "phrase": "[a-z ]{1,400}",
    "animals": "[0-9a-z, ]{1,200}",
    "animal": _NAME,
    "amount": "[0-9a-z ]{1,80}",
    "small": _NAME,
    "large": _NAME,
    "date": r"[A-Z][a-z]{2,8} \d{1,2}, \d{4}",
    "year": r"\d{4}",
    "reversed_month": "[A-Za-z]{3,9}",
    "roman": _ROMAN,
    "other_roman": _ROMAN,
    "base": "binary|octal|hexadecimal",
}
"""What may stand in a slot, by its name."""


class Part(NamedTuple):
    """One part of a question."""

    area: str
    """Which of `AREAS` understands it."""
    subtask: str
    """With {slots}, until they are filled in; earlier parts are "the result of step K"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """One kind of question."""

    parts: tuple[Part, ...]
    wordings: tuple[str, ...]
    """Of the whole question, each with all the {slots} of the parts."""

    def fill(self, slots: Slots) -> tuple[Part, ...]:
        return tuple(Part(part.area, part.subtask.format(**slots)) for part in self.parts)


def read_parts(question: str) -> tuple[Part, ...] | None:
    """The parts of a question, in an order in which they can be answered; None for what follows no template."""
    text = drop_format(question)
    if len(text) > _MAX_CHARS:
        return None
    for composed, pattern in wording_patterns():
        if match := pattern.fullmatch(text):
            return composed.fill(match.groupdict())
    return None


@cache
def wording_patterns() -> tuple[tuple[Composed, re.Pattern[str]], ...]:
    """What a question of each wording looks like; a slot is a group of its name."""
    return tuple((c, _wording_to_pattern(wording)) for c in COMPOSED.values() for wording in c.wordings)


def _wording_to_pattern(wording: str) -> re.Pattern[str]:
    seen: set[str] = set()
    out = ""
    for literal, slot, _, _ in Formatter().parse(wording):
        out += re.escape(literal)
        if slot is not None:
            out += f"(?P={slot})" if slot in seen else f"(?P<{slot}>{_SLOTS[slot]})"
            seen.add(slot)
    return re.compile(out, re.ASCII)


def _text(subtask: str) -> Part:
    return Part("text", subtask)


def _arithmetic(subtask: str) -> Part:
    return Part("arithmetic", subtask)


def _facts(subtask: str) -> Part:
    return Part("facts", subtask)


_COUNT = _text('Count the letter "{letter}" in "{phrase}".')
_VALUE = _text('Find the alphabet value of "{word}".')
_LEGS = _facts("Count the legs of {animals}.")
_UNITS = _facts("Convert {amount} to {small}s.")
_ROMANS = _facts("Add the Roman numerals {roman} and {other_roman}.")

COMPOSED: Mapping[str, Composed] = {
    # --- one step: what a specialist understands as it stands
    "sum_alone": Composed(
        parts=(_arithmetic("Calculate {a} * {b} - {c}."),),
        wordings=(
            "Calculate {a} * {b} - {c}.",
            "What is {a} * {b} - {c}?",
            "How much is {a} * {b} - {c}?",
            "Compute {a} * {b} - {c}.",
        ),
    ),
    "letters_alone": Composed(
        parts=(_COUNT,),
        wordings=(
            'Count the letter "{letter}" in "{phrase}".',
            'How many times does the letter "{letter}" appear in the text "{phrase}"?',
            'How often does the letter "{letter}" occur in the phrase "{phrase}"?',
        ),
    ),
    "day_alone": Composed(
        parts=(_facts("What day of the week was {date}?"),),
        wordings=(
            "What day of the week was {date}?",
            "On which day did {date} fall?",
            "On which day of the week does {date} fall?",
        ),
    ),
    # --- chains of two
    "letters_scaled": Composed(
        parts=(_COUNT, _arithmetic("Multiply the result of step 0 by {a} and add {b}.")),
        wordings=(
            'Count the letter "{letter}" in "{phrase}". Multiply what you get by {a} and add {b}. Which number is it?',
            'Each "{letter}" in the phrase "{phrase}" is worth {a} points, and {b} points are given for free. '
            "How many points are that in all?",
            'My score begins at {b} and grows by {a} with every letter "{letter}" in "{phrase}". What is it then?',
        ),
    ),
    "legs_paid": Composed(
        parts=(_LEGS, _arithmetic("Multiply the result of step 0 by {a} and subtract {b}.")),
        wordings=(
            "A cobbler makes one shoe for every leg of {animals}. Each shoe brings {a} coins, and the leather cost "
            "{b} coins in all. How many coins has he earned?",
            "Count the legs of {animals}. Then multiply that by {a} and subtract {b}.",
            "On a farm live {animals}. Each of their legs needs {a} drops of oil, and {b} drops are there already. "
            "How many drops are missing?",
        ),
    ),
    "units_factorised": Composed(
        parts=(_UNITS, _arithmetic("Find the prime factorization of the result of step 0.")),
        wordings=(
            'Express {amount} in {small}s and split that number into its prime factors, the smallest first, with " × " '
            "between them.",
            "Which primes give, multiplied together, the number of {small}s in {amount}? Repeat a prime as often as it "
            'is needed, begin with the smallest, and write " × " between them.',
            "Take {amount} as a number of {small}s. Write this number as a product of primes in ascending order, "
            'joined by " × ".',
        ),
    ),
    "roman_converted": Composed(
        parts=(_ROMANS, _arithmetic("Convert the decimal number the result of step 0 to {base}.")),
        wordings=(
            "Add the Roman numerals {roman} and {other_roman}, then write the total in {base}.",
            "One stone says {roman}, another one {other_roman}. What do they make together, in {base} notation?",
            "A clerk of Rome counted {roman} jars of oil and {other_roman} of wine. Give the number of all jars as a "
            "{base} number.",
        ),
    ),
    "day_valued": Composed(
        parts=(_facts("What day of the week was {date}?"), _text('Find the alphabet value of "the result of step 0".')),
        wordings=(
            "On which day did {date} fall? Add up the letters of its English name, with a = 1, b = 2, up to z = 26.",
            "She was born on {date}. Name that day, Monday to Sunday, and find the alphabet value of the name "
            "(a is 1, z is 26).",
            "Take the day, Monday to Sunday, on which {date} falls. What is the sum of its letters if a counts 1, b "
            "counts 2, and z counts 26?",
        ),
    ),
    "value_timed": Composed(
        parts=(_VALUE, _facts("Convert the result of step 0 {large}s and {a} {small}s to {small}s.")),
        wordings=(
            'Let a be 1, b be 2, up to z, which is 26. Add up the letters of "{word}" and read the sum as {large}s. '
            "How much is that in {small}s, with {a} {small}s more?",
            'A journey takes as many {large}s as the alphabet value of "{word}" says (a is 1, z is 26), and {a} '
            "{small}s. Give its length in {small}s.",
            'One {large} passes for each point of the alphabet value of "{word}", where a counts 1 and z counts 26, '
            "and then {a} {small}s. How many {small}s pass altogether?",
        ),
    ),
    # --- chains of three
    "letters_walking": Composed(
        parts=(
            _COUNT,
            _facts("Count the legs of the result of step 0 {animal} and {animals}."),
            _arithmetic("Multiply the result of step 1 by {a} and subtract {b}."),
        ),
        wordings=(
            'There are as many {animal} as there are letters "{letter}" in "{phrase}", and besides {animals}. Each of '
            "their legs gets {a} rings, but {b} rings break. How many rings are left?",
            'Count the letter "{letter}" in "{phrase}". Imagine so many {animal}, together with {animals}. Multiply '
            "the number of all their legs by {a}, then subtract {b}.",
            'A shelter keeps {animals}, and as many {animal} as "{phrase}" has letters "{letter}". Every leg has to be '
            "checked {a} times, and {b} checks are done. How many checks remain?",
        ),
    ),
    "value_to_day": Composed(
        parts=(
            _VALUE,
            _arithmetic("Multiply the result of step 0 by {a}."),
            _facts("What day of the week is the result of step 1 days after {date}?"),
        ),
        wordings=(
            'Starting on {date}, a machine runs for {a} times as many days as the alphabet value of "{word}" (a is 1, '
            "z is 26). On which day, Monday to Sunday, does it stop?",
            'Add up the letters of "{word}", with a = 1 up to z = 26, and multiply the sum by {a}. Which day, Monday '
            "to Sunday, is it so many days after {date}?",
            'A letter is worth its place in the alphabet: a is 1 and z is 26. Multiply the worth of "{word}" by {a}, '
            "and go on that many days after {date}. Which day, Monday to Sunday, do you reach?",
        ),
    ),
    "legs_mirrored": Composed(
        parts=(
            _LEGS,
            _arithmetic("Multiply the result of step 0 by {a} and add {b}."),
            _text("Reverse the digits of the result of step 1."),
        ),
        wordings=(
            "Multiply the number of legs of {animals} by {a}, add {b}, and write the digits of the result in reverse "
            "order.",
            "The code of a safe is the number of legs of {animals}, times {a}, plus {b}, with its digits read from "
            "right to left. Which code is it?",
            "Count the legs of {animals}. Take {a} times as many and {b} more. Which digits do you read there, "
            "the last one first?",
        ),
    ),
    "cycles_to_day": Composed(
        parts=(
            _arithmetic("Find the least common multiple of {a} and {b}."),
            _facts("What day of the week is the result of step 0 days after {date}?"),
            _text("Spell the result of step 1 backwards."),
        ),
        wordings=(
            "One lamp flashes every {a} days, another every {b} days, and on {date} both flashed. On which day, Monday "
            "to Sunday, do they next flash together? Write its name from the last letter to the first.",
            "Find the smallest number of days that both {a} and {b} divide, and go so many days on after {date}. Write "
            "the name of the day that you reach (Monday to Sunday) from right to left.",
            "Ships sail every {a} days, caravans leave every {b} days; on {date} both did. Which day is it, Monday to "
            "Sunday, when both do so again for the first time? Give the letters of its name in reverse order.",
        ),
    ),
    # --- two at the same time, then one
    "value_times_legs": Composed(
        parts=(_VALUE, _LEGS, _arithmetic("Multiply the result of step 0 by the result of step 1.")),
        wordings=(
            'Multiply the alphabet value of "{word}" (a is 1, z is 26) by the number of legs of {animals}.',
            'Each leg of {animals} carries as many bells as the letters of "{word}" are worth together, with a = 1 up '
            "to z = 26. How many bells are there?",
            'Count the legs of {animals}, and add up the letters of "{word}", where a is 1, b is 2 and z is 26. What '
            "do you get when you multiply the two numbers?",
        ),
    ),
    "romans_per_unit": Composed(
        parts=(_UNITS, _ROMANS, _arithmetic("Multiply the result of step 0 by the result of step 1.")),
        wordings=(
            "In every {small}, {roman} bricks arrive by river and {other_roman} by road. What is the number of bricks "
            "that arrive in {amount}?",
            "Write {amount} in {small}s, add up the Roman numerals {roman} and {other_roman}, and multiply the two "
            "numbers that you get.",
            "A mill fills as many sacks in a {small} as {roman} and {other_roman} make together. How many sacks are "
            "full after {amount}?",
        ),
    ),
    "hidden_date": Composed(
        parts=(
            _text('Spell "{reversed_month}" backwards.'),
            _arithmetic("Find the greatest common divisor of {a} and {b}."),
            _facts("What day of the week was the result of step 0 the result of step 1, {year}?"),
        ),
        wordings=(
            'The month of a feast is "{reversed_month}", read from right to left; its day is the largest number that '
            "divides both {a} and {b}; its year is {year}. On which day, Monday to Sunday, was the feast?",
            'In {year} a letter was dated with a month that reads "{reversed_month}" in a mirror, and with a day: the '
            "largest number by which both {a} and {b} can be divided. Was it a Monday, a Tuesday, or which day?",
            'Turn "{reversed_month}" around to get a month. The day is the largest common factor of {a} and {b}. Which '
            "day, Monday to Sunday, was that in {year}?",
        ),
    ),
    # --- diamonds: one, two that use it, one that joins them
    "value_belled": Composed(
        parts=(
            _VALUE,
            _arithmetic("Multiply the result of step 0 by {a} and add {b}."),
            _facts("Count the legs of the result of step 0 {animal}."),
            _arithmetic("Add the result of step 1 to the result of step 2."),
        ),
        wordings=(
            'Let n be the alphabet value of "{word}" (a is 1, z is 26). Which number do you get when you add {b} to '
            "{a} times n, and then the number of legs of n {animal}?",
            'A farmer owns as many {animal} as the letters of "{word}" are worth together, with a = 1 up to z = 26. '
            "Each of them gets {a} bells, and one more on every leg; {b} bells hang at the gate. How many bells are "
            "there?",
            'Add up the letters of "{word}", where a is 1, b is 2 and z is 26. Multiply the sum by {a} and add {b}; to '
            "this add the number of legs of as many {animal} as the sum says.",
        ),
    ),
    "legs_and_mirror": Composed(
        parts=(
            _LEGS,
            _text("Reverse the digits of the result of step 0."),
            _arithmetic("Multiply the result of step 0 by {a}."),
            _arithmetic("Add the result of step 1 to the result of step 2."),
        ),
        wordings=(
            "Count the legs of {animals}. Read that number from right to left, multiply the number itself by {a}, and "
            "add up these two results.",
            "The number of legs of {animals} is written on a card. Multiply it by {a}, and add what the card shows "
            "when its digits are read from the last to the first.",
            "Take the number of legs of {animals}, once with its digits in reverse order and once {a} times as large. "
            "What is the sum of the two?",
        ),
    ),
}
"""By family, the easy ones first."""
