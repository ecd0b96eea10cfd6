"""Our own families of generated questions: those that need two kinds of knowledge, and plain look-ups.

Each is a function from a random generator to (question, gold answer); the answer is computed here, independently of
the workers that will be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TypeAlias

__all__ = ["OWN_FAMILIES", "Maker"]

Maker: TypeAlias = Callable[[Random], tuple[str, str]]

_ONES_TEXT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ONES = _ONES_TEXT.split()
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS_TEXT = (
    "apple anchor autumn balloon basket bridge butter candle carpet cherry circle copper cotton dragon engine feather "
    "finger forest garden ginger guitar hammer harbour island jacket kettle ladder lantern lemon marble meadow mirror "
    "needle orange orchard oyster paper parrot pebble pepper pillow planet pocket puzzle rabbit river rocket saddle "
    "school shadow silver spider summer sweater teapot thunder ticket tunnel turtle umbrella valley velvet village "
    "violin walnut whisper willow window winter yellow zebra"
)
_WORDS = _WORDS_TEXT.split()


def _in_words(number: int) -> str:
    """Below one thousand."""
    if number >= 100:
        rest = f" and {_in_words(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")


def make_word_sum(random: Random) -> tuple[str, str]:
    """ "What is forty-two plus seventeen?"; every other one holds a product."""
    first, second, third = random.randint(10, 999), random.randint(10, 999), random.randint(2, 99)
    sign = random.choice(("plus", "minus"))
    signed = second if sign == "plus" else -second
    if random.random() < 0.5:
        third = third % 11 + 2
        text, value = f"{_in_words(second)} times {_in_words(third)}", first + signed * third
    else:
        text, value = f"{_in_words(second)} plus {_in_words(third)}", first + signed + third
    ask = random.choice(("Give the result as a number.", "Answer in digits.", "Write the result in digits."))
    return f"What is {_in_words(first)} {sign} {text}? {ask}", str(value)


def make_letter_product(random: Random) -> tuple[str, str]:
    """Count a letter, then multiply."""
    words = random.sample(_WORDS, random.randint(4, 8))
    letter, factor = random.choice(random.choice(words)), random.randint(3, 40)
    count = sum(word.count(letter) for word in words)
    question = (
        f'Find how often the letter "{letter}" occurs in "{" ".join(words)}", then multiply that count by {factor}. '
        "What number do you get?"
    )
    return question, str(count * factor)


def make_letter_values(random: Random) -> tuple[str, str]:
    word = random.choice(_WORDS) + random.choice(("", random.choice(_WORDS)))
    question = f"If a = 1, b = 2, and so on up to z = 26, what is the sum of the letters of the word {word}?"
    return question, str(sum("abcdefghijklmnopqrstuvwxyz".index(letter) + 1 for letter in word))


def make_roman_sum(random: Random) -> tuple[str, str]:
    large, small = random.randint(50, 1900), random.randint(1, 49)
    sign = random.choice(("plus", "minus"))
    value = large + small if sign == "plus" else large - small
    question = f"What is {_to_roman(large)} {sign} {_to_roman(small)}?"
    if random.random() < 0.5:
        return f"{question} Write the result as a Roman numeral.", _to_roman(value)
    return f"{question} Write the result in ordinary digits.", str(value)


_ROMAN_PLACES = (
    ("", "M", "MM", "MMM"),
    ("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"),
    ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"),
    ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"),
)


def _to_roman(number: int) -> str:
    """Below four thousand."""
    return "".join(names[int(digit)] for names, digit in zip(_ROMAN_PLACES, f"{number:04d}", strict=True))


def make_units(random: Random) -> tuple[str, str]:
    """ "How many minutes are there in 3 hours and 20 minutes?" """
    large, small, ratio = random.choice(
        (
            ("hour", "minute", 60),
            ("minute", "second", 60),
            ("day", "hour", 24),
            ("week", "day", 7),
            ("kilometre", "metre", 1000),
            ("metre", "centimetre", 100),
            ("kilogram", "gram", 1000),
        )
    )
    many, few = random.randint(2, 60), random.randint(2, ratio - 1)
    question = f"How many {small}s are there in {many} {large}s and {few} {small}s? Answer with a number."
    return question, str(many * ratio + few)


OWN_FAMILIES: Mapping[str, Maker] = {
    "word_sums": make_word_sum,
    "letter_product": make_letter_product,
    "letter_values": make_letter_values,
    "roman_sums": make_roman_sum,
    "unit_conversion": make_units,
}
