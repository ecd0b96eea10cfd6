"""What stands in tables: legs of animals, units, family ties, Roman numerals; with the calendar and the clock."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .dates import DATES
from .reading import Skill, Worked

__all__ = ["FACTS"]

_LEGS = {
    0: ("snake", "worm", "leech", "jellyfish", "flatworm", "snail", "sea slug", "fish", "eel"),
    2: ("human", "person", "bird", "chicken", "duck", "goose", "penguin", "ostrich", "kangaroo"),
    4: ("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe", "tiger", "deer", "sheep", "goat", "pig", "mouse"),
    5: ("starfish",),
    6: ("insect", "ant", "butterfly", "beetle", "bee", "wasp", "grasshopper", "cricket", "cockroach", "firefly", "fly"),
    8: ("spider", "scorpion", "tick"),
    10: ("crab", "lobster", "shrimp"),
    14: ("woodlouse",),
}
_LEGS_OF = {animal: legs for legs, animals in _LEGS.items() for animal in animals} | {"praying mantis": 6}
_COUNTED = re.compile(r"\b(\d{1,9}) ([a-z]+(?: [a-z]+)?)(?=,|\?|\.| and |$)", re.ASCII)


def count_legs(question: str) -> Worked | None:
    """ "how many legs are there in total if you have 3 spiders, 11 tigers?" """
    _, found, listed = question.partition("how many legs")
    if not found:
        return None
    total, kinds = 0, 0
    for count, name in _COUNTED.findall(listed):
        legs = next((_LEGS_OF[n] for n in (name, name[:-1], name[:-2]) if n in _LEGS_OF), None)  # wasps, ostriches
        if legs is None:
            return None
        total, kinds = total + int(count) * legs, kinds + 1
    return Worked(str(total), f"Legs of {kinds} kinds of animals added up.") if kinds else None


_UNITS = {
    "second": ("time", 1),
    "minute": ("time", 60),
    "hour": ("time", 3600),
    "day": ("time", 86_400),
    "week": ("time", 604_800),
    "millimetre": ("length", 1),
    "centimetre": ("length", 10),
    "metre": ("length", 1000),
    "kilometre": ("length", 1_000_000),
    "gram": ("mass", 1),
    "kilogram": ("mass", 1000),
    "tonne": ("mass", 1_000_000),
}
_UNIT = "|".join(_UNITS)
_CONVERSION = re.compile(rf"how many ({_UNIT})s are (?:there )?in ([^?\n]{{1,120}})", re.IGNORECASE)
_AMOUNT = re.compile(rf"\b(\d{{1,9}}) ({_UNIT})s?\b", re.ASCII)


def convert_units(question: str) -> Worked | None:
    """ "How many minutes are there in 3 hours and 20 minutes?" """
    match = _CONVERSION.search(question)
    amounts = _AMOUNT.findall(match[2]) if match else []
    if match is None or not amounts:
        return None
    kind, size = _UNITS[match[1].lower()]
    if any(_UNITS[unit][0] != kind for _, unit in amounts):
        return None
    total = sum(int(count) * _UNITS[unit][1] for count, unit in amounts)
    if total % size:
        return None
    return Worked(str(total // size), f"{match[2].strip()} counted in {match[1].lower()}s.")


_NAME = r"([A-Z][a-z]{1,20})"
_MARRIED = re.compile(
    rf"{_NAME} is married to {_NAME}\.(?: They have (?:a child|children) called ([A-Za-z, ]{{2,300}})\.)?"
)
_RELATION = re.compile(
    rf"(?:What is {_NAME} to {_NAME}|How is {_NAME} related to {_NAME}|What relation is {_NAME} to {_NAME})\?"
)
_WOMEN_TEXT = """
Abigail Alice Amelia Anna Aria Aurora Ava Barbara Charlotte Chloe Eleanor Elizabeth Emily Emma Grace Hannah
Isabella Jennifer Jessica Karen Lily Linda Lisa Lucy Luna Margaret Mary Mia Nova Olivia Patricia Rain River Sage
Sarah Sky Sophia Sophie Susan Victoria Willow Winter Zoe
"""
_WOMEN = frozenset(_WOMEN_TEXT.split())
"""Women's names of the stories; whoever has another name counts as a man."""


def name_relation(question: str) -> Worked | None:
    """What one person of a family is to another."""
    asked = _RELATION.search(question)
    if asked is None:
        return None
    person, other = (name for name in asked.groups() if name)
    spouse: dict[str, str] = {}
    parents: dict[str, set[str]] = {}
    for first, second, children in _MARRIED.findall(question):
        spouse[first], spouse[second] = second, first
        for child in re.split(r", | and ", children) if children else []:
            parents[child] = {first, second}
    if not {person, other} <= spouse.keys() | parents.keys():
        return None
    pair = _relation(person, other, spouse, parents)
    if pair is None:
        return None
    return Worked(pair[0] if person in _WOMEN else pair[1], f"That is what {person} is to {other}.")


def _relation(person: str, other: str, spouse: dict[str, str], parents: dict[str, set[str]]) -> tuple[str, str] | None:
    """The word for a woman and for a man."""

    def parents_of(*names: str) -> set[str]:
        return {parent for name in names for parent in parents.get(name, ())}

    if person in parents_of(other):
        return "mother", "father"
    if other in parents_of(person):
        return "daughter", "son"
    if spouse.get(person) == other:
        return "wife", "husband"
    if parents_of(person) and parents_of(person) == parents_of(other):
        return "sister", "brother"
    if person in parents_of(*parents_of(other)):
        return "grandmother", "grandfather"
    if other in parents_of(*parents_of(person)):
        return "granddaughter", "grandson"
    if parents_of(person) & parents_of(*parents_of(other)):
        return "aunt", "uncle"
    if other in parents_of(spouse.get(person, "")):
        return "daughter-in-law", "son-in-law"
    if person in parents_of(spouse.get(other, "")):
        return "mother-in-law", "father-in-law"
    return None


_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
    (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip
_ROMAN_SUM = re.compile(r"\b([MDCLXVI]{1,15}) (plus|minus) ([MDCLXVI]{1,15})\b")


def add_roman(question: str) -> Worked | None:
    """ "What is XLII plus XVII?", answered in Arabic digits or, when asked for, as a Roman numeral."""
    match = _ROMAN_SUM.search(question)
    if match is None:
        return None
    first, second = _from_roman(match[1]), _from_roman(match[3])
    if first is None or second is None:
        return None
    value = first + second if match[2] == "plus" else first - second
    if "as a Roman numeral" not in question:
        return Worked(str(value), f"{first} {match[2]} {second}.")
    return Worked(_to_roman(value), f"{first} {match[2]} {second} is {value}.") if 0 < value < 4000 else None


def _from_roman(text: str) -> int | None:
    value, rest = 0, text
    for worth, letters in _ROMAN:
        while rest.startswith(letters):
            value, rest = value + worth, rest[len(letters) :]
    return value if not rest and _to_roman(value) == text else None


def _to_roman(value: int) -> str:
    out = ""
    for worth, letters in _ROMAN:
        count, value = divmod(value, worth)
        out += letters * count
    return out


FACTS: Mapping[str, Skill] = {
    **DATES,
    "count_legs": count_legs,
    "convert_units": convert_units,
    "name_relation": name_relation,
    "add_roman": add_roman,
}
