"""Tasks of several steps for the home pool, each step for another worker; a few of one step are among them.

How they are worded and what their parts are stands in `pool/skills/composed.py`. Here are the numbers and words that
fill them in, and the gold answers, computed independently of the workers. `find_workflow` is the way back: the best
workflow, read off a question's text alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import TypeAlias

from ..errors import ConfigError
from ..grade.task import Task
from ..pool.skills.composed import COMPOSED, Part, read_parts
from ..pool.skills.references import find_references
from ..types import Json, Value
from .home import ANSWER_FORMAT, prompt_to_split

__all__ = ["COMPOSED_FAMILIES", "ComposedFamily", "GoldWorkflow", "composed_tasks", "find_workflow"]

_DATASET = "home-multi"
_MAX_REPEATS = 300
"""Questions in a row that were seen before, after which a family counts as exhausted."""
_WORKERS: Mapping[str, str] = {"arithmetic": "exact-math", "text": "text-ops", "facts": "facts"}
"""Who of the home pool is right wherever it understands, by area."""

_Made: TypeAlias = tuple[dict[str, str | int], str | int]
"""What goes into the slots of one question, and its gold answer."""


class GoldWorkflow(Value, frozen=True, kw_only=True):
    """The workflow that answers a question without a mistake, in terms of the home pool."""

    subtasks: tuple[str, ...]
    workers: tuple[str, ...]
    """Home worker ids, one for each subtask."""
    access: tuple[tuple[int, ...], ...]
    """Positions of the earlier steps that each has to see, and no others."""

    @property
    def steps(self) -> int:
        return len(self.subtasks)

    @property
    def shape(self) -> str:
        """one step | chain of 2 | chain of 3 | join | diamond"""
        if self.steps == 1:
            return "one step"
        if self.access == ((), *((position,) for position in range(self.steps - 1))):
            return f"chain of {self.steps}"
        return "join" if self.steps == 3 else "diamond"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedFamily:
    """One kind of question."""

    category: str
    """The shape of its workflow, as `GoldWorkflow.shape` says."""
    steps: int
    make: Callable[[Random], _Made]


def composed_tasks(*, n: int, seed: int, families: Sequence[str] | None = None) -> list[Task]:
    """`n` different tasks, the families taking turns.

    Raises:
        ConfigError: an unknown family, or too few different questions in one.
    """
    names = list(COMPOSED_FAMILIES) if families is None else list(families)
    if n < 0 or not names or len(set(names)) != len(names):
        raise ConfigError(
            f"composed tasks: n {n!r}, families {names!r}: expected n >= 0 and at least one family, each once"
        )
    for name in names:
        if name not in COMPOSED_FAMILIES:
            raise ConfigError(f"composed tasks: family {name!r} is not one of {', '.join(sorted(COMPOSED_FAMILIES))}")
    sources = [_tasks_of(name, seed) for name in names]
    return [next(sources[i % len(sources)]) for i in range(n)]


def find_workflow(question: str) -> GoldWorkflow | None:
    """The gold workflow of a composed question, read off its text; None for every other text."""
    parts = read_parts(question)
    return _parts_to_workflow(parts) if parts else None


def _parts_to_workflow(parts: Sequence[Part]) -> GoldWorkflow:
    return GoldWorkflow(
        subtasks=tuple(part.subtask for part in parts),
        workers=tuple(_WORKERS[part.area] for part in parts),
        access=tuple(find_references(part.subtask) for part in parts),
    )


def _tasks_of(name: str, seed: int) -> Iterator[Task]:
    family, composed = COMPOSED_FAMILIES[name], COMPOSED[name]
    random = Random(int.from_bytes(hashlib.sha256(f"{seed}/{_DATASET}/{name}".encode()).digest()[:4], "big"))
    seen, repeats = set[str](), 0
    while True:
        values, gold = family.make(random)
        slots = {slot: str(value) for slot, value in values.items()}
        prompt = f"{random.choice(composed.wordings).format(**slots)}\n\n{ANSWER_FORMAT}"
        if prompt in seen:
            repeats += 1
            if repeats > _MAX_REPEATS:
                raise ConfigError(
                    f"composed tasks: family {name!r} has only {len(seen)} different questions: ask for fewer"
                )
            continue
        seen.add(prompt)
        repeats = 0
        yield Task(
            id=f"{_DATASET}/{name}/{hashlib.sha256(prompt.encode()).hexdigest()[:12]}",
            family=name,
            category=family.category,
            dataset=_DATASET,
            prompt=prompt,
            gold=str(gold),
            split=prompt_to_split(prompt),
            meta={
                "grader": "exact",
                "steps": family.steps,
                "workflow": _workflow_to_json(_parts_to_workflow(composed.fill(slots))),
            },
        )


def _workflow_to_json(workflow: GoldWorkflow) -> Json:
    return {
        "subtasks": list(workflow.subtasks),
        "skills": list(workflow.workers),
        "access": [list(seen) for seen in workflow.access],
    }


# --- what fills in the slots

_WORDS_TEXT = """
almond badger bakery banana barrel beacon bellows blanket blossom bottle bramble breeze brook bucket cabin cactus
camel canyon castle cellar chapel chimney cliff clover cobble comet coral cradle cricket crystal curtain daisy desert
donkey drawer dune eagle ember falcon fiddle flute fountain galaxy garlic gravel grove hazel hedge heron hollow honey
horizon inkwell ivory jasmine jungle juniper kernel kiosk lagoon lavender ledger lilac lizard lobby magnet mango maple
market mason medal melon mint mosaic moss mountain mustard nectar nettle noodle oasis oboe olive onion otter oven
paddle pasture peach pelican pigeon pillar plum pottery prairie pumpkin quarry quill raisin raven reef ribbon ridge
rubber saffron sail sandal satchel shelter shovel signal sketch sparrow spruce stable statue summit sunset syrup
tablet tavern thistle timber tobacco trumpet tulip turnip vanilla vessel vineyard wagon weaver wharf whistle wicker
wombat zephyr
"""
_WORDS = tuple(_WORDS_TEXT.split())
_LEGS: Mapping[str, int] = {
    "chickens": 2,
    "ducks": 2,
    "penguins": 2,
    "cows": 4,
    "horses": 4,
    "goats": 4,
    "lions": 4,
    "ants": 6,
    "beetles": 6,
    "wasps": 6,
    "spiders": 8,
    "scorpions": 8,
    "crabs": 10,
    "lobsters": 10,
}
_DURATIONS = (("minute", "second", 60), ("hour", "minute", 60), ("day", "hour", 24), ("week", "day", 7))
"""Large unit, small unit, how many make one."""
_MEASURES = (("kilometre", "metre", 1000), ("metre", "centimetre", 100), ("kilogram", "gram", 1000), *_DURATIONS)
_BASES: Mapping[str, str] = {"binary": "b", "octal": "o", "hexadecimal": "x"}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS_TEXT = "January February March April May June July August September October November December"
_MONTHS = tuple(_MONTHS_TEXT.split())  # not from `calendar`, whose names follow the locale


def _take_phrase(random: Random) -> tuple[str, str, int]:
    """Some words, a letter, and how often it is in them: more than once."""
    while True:
        phrase = " ".join(random.sample(_WORDS, random.randint(4, 8)))
        letters = sorted({letter for letter in phrase if letter != " " and phrase.count(letter) > 1})
        if letters:
            letter = random.choice(letters)
            return phrase, letter, phrase.count(letter)


def _take_word(random: Random) -> tuple[str, int]:
    """One word or two in one, and the sum of its letters' places in the alphabet."""
    word = random.choice(_WORDS) + random.choice(("", random.choice(_WORDS)))
    return word, sum(ord(letter) - ord("a") + 1 for letter in word)


def _take_animals(random: Random) -> tuple[str, int]:
    """Two to four kinds, and their legs."""
    kinds = random.sample(sorted(_LEGS), random.randint(2, 4))
    counts = [random.randint(2, 30) for _ in kinds]
    listed = [f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True)]
    legs = sum(count * _LEGS[kind] for count, kind in zip(counts, kinds, strict=True))
    return f"{', '.join(listed[:-1])} and {listed[-1]}", legs


def _take_amount(random: Random, measures: Sequence[tuple[str, str, int]]) -> tuple[str, str, int]:
    """ "3 hours and 20 minutes", the smaller unit, and how many of it that is."""
    large, small, ratio = random.choice(measures)
    many, few = random.randint(2, 180), random.randint(2, ratio - 1)
    return f"{many} {large}s and {few} {small}s", small, many * ratio + few


def _take_date(random: Random) -> tuple[str, date]:
    day = date(1900, 1, 1) + timedelta(days=random.randrange(365 * 199))
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}", day


def _day_name(day: date) -> str:
    return _DAYS[day.weekday()]


def _make_sum(random: Random) -> _Made:
    a, b, c = random.randint(201, 999), random.randint(101, 999), random.randint(11, 999)
    return {"a": a, "b": b, "c": c}, a * b - c


def _make_letters(random: Random) -> _Made:
    phrase, letter, count = _take_phrase(random)
    return {"letter": letter, "phrase": phrase}, count


def _make_day(random: Random) -> _Made:
    text, day = _take_date(random)
    return {"date": text}, _day_name(day)


def _make_letters_scaled(random: Random) -> _Made:
    phrase, letter, count = _take_phrase(random)
    a, b = random.randint(12, 99), random.randint(101, 999)
    return {"letter": letter, "phrase": phrase, "a": a, "b": b}, count * a + b


def _make_legs_paid(random: Random) -> _Made:
    animals, legs = _take_animals(random)
    a, b = random.randint(12, 99), random.randint(2, 90)
    return {"animals": animals, "a": a, "b": b}, legs * a - b


def _make_units_factorised(random: Random) -> _Made:
    amount, small, total = _take_amount(random, _MEASURES)
    return {"amount": amount, "small": small}, " × ".join(map(str, _factorise(total)))


def _factorise(number: int) -> list[int]:
    factors, divisor = [], 2
    while divisor * divisor <= number:
        if number % divisor:
            divisor += 1
        else:
            factors.append(divisor)
            number //= divisor
    return [*factors, number]


def _make_roman_converted(random: Random) -> _Made:
    first, second = random.randint(50, 1900), random.randint(11, 999)
    base = random.choice(sorted(_BASES))
    gold = format(first + second, _BASES[base])
    return {"roman": _to_roman(first), "other_roman": _to_roman(second), "base": base}, gold


_ROMAN_PLACES = (("M", ""), ("C", "D"), ("X", "L"), ("I", "V"))
"""What one and five of a place are called, thousands first."""


def _to_roman(number: int) -> str:
    """Below four thousand."""
    out, ten = "", ""
    for (one, five), digit in zip(_ROMAN_PLACES, map(int, f"{number:04d}"), strict=True):
        if digit == 9:
            out += one + ten
        elif digit == 4:
            out += one + five
        else:
            out += five * (digit >= 5) + one * (digit % 5)
        ten = one
    return out


def _make_day_valued(random: Random) -> _Made:
    text, day = _take_date(random)
    return {"date": text}, sum(ord(letter) - ord("a") + 1 for letter in _day_name(day).lower())


def _make_value_timed(random: Random) -> _Made:
    word, value = _take_word(random)
    large, small, ratio = random.choice(_DURATIONS)
    few = random.randint(2, ratio - 1)
    return {"word": word, "large": large, "small": small, "a": few}, value * ratio + few


def _make_letters_walking(random: Random) -> _Made:
    phrase, letter, count = _take_phrase(random)
    animals, legs = _take_animals(random)
    animal = random.choice(sorted(kind for kind in _LEGS if kind not in animals))
    a, b = random.randint(3, 40), random.randint(2, 19)
    slots: dict[str, str | int] = {
        "letter": letter,
        "phrase": phrase,
        "animals": animals,
        "animal": animal,
        "a": a,
        "b": b,
    }
    return slots, (count * _LEGS[animal] + legs) * a - b


def _make_value_to_day(random: Random) -> _Made:
    word, value = _take_word(random)
    text, day = _take_date(random)
    a = random.randint(2, 30)
    return {"word": word, "a": a, "date": text}, _day_name(day + timedelta(days=value * a))


def _make_legs_mirrored(random: Random) -> _Made:
    animals, legs = _take_animals(random)
    a, b = random.randint(12, 99), random.randint(11, 99)
    return {"animals": animals, "a": a, "b": b}, str(legs * a + b)[::-1]


def _make_cycles_to_day(random: Random) -> _Made:
    a, b = random.sample(range(6, 60), 2)
    text, day = _take_date(random)
    return {"a": a, "b": b, "date": text}, _day_name(day + timedelta(days=math.lcm(a, b)))[::-1]


def _make_value_times_legs(random: Random) -> _Made:
    (word, value), (animals, legs) = _take_word(random), _take_animals(random)
    return {"word": word, "animals": animals}, value * legs


def _make_romans_per_unit(random: Random) -> _Made:
    amount, small, total = _take_amount(random, _DURATIONS)
    first, second = (random.randint(11, 1900) for _ in range(2))
    romans: dict[str, str | int] = {"roman": _to_roman(first), "other_roman": _to_roman(second)}
    return {"amount": amount, "small": small, **romans}, total * (first + second)


def _make_hidden_date(random: Random) -> _Made:
    month, number, year = random.randrange(12), random.randint(2, 28), random.randint(1900, 2099)
    a, b = random.choice([(a, b) for a in range(2, 14) for b in range(2, 14) if a != b and math.gcd(a, b) == 1])
    slots: dict[str, str | int] = {
        "reversed_month": _MONTHS[month][::-1],
        "a": number * a,
        "b": number * b,
        "year": year,
    }
    return slots, _day_name(date(year, month + 1, number))


def _make_value_belled(random: Random) -> _Made:
    word, value = _take_word(random)
    animal = random.choice(sorted(_LEGS))
    a, b = random.randint(11, 60), random.randint(2, 99)
    return {"word": word, "animal": animal, "a": a, "b": b}, value * a + b + value * _LEGS[animal]


def _make_legs_and_mirror(random: Random) -> _Made:
    animals, legs = _take_animals(random)
    a = random.randint(12, 99)
    return {"animals": animals, "a": a}, int(str(legs)[::-1]) + legs * a


_MAKERS: Mapping[str, Callable[[Random], _Made]] = {
    "sum_alone": _make_sum,
    "letters_alone": _make_letters,
    "day_alone": _make_day,
    "letters_scaled": _make_letters_scaled,
    "legs_paid": _make_legs_paid,
    "units_factorised": _make_units_factorised,
    "roman_converted": _make_roman_converted,
    "day_valued": _make_day_valued,
    "value_timed": _make_value_timed,
    "letters_walking": _make_letters_walking,
    "value_to_day": _make_value_to_day,
    "legs_mirrored": _make_legs_mirrored,
    "cycles_to_day": _make_cycles_to_day,
    "value_times_legs": _make_value_times_legs,
    "romans_per_unit": _make_romans_per_unit,
    "hidden_date": _make_hidden_date,
    "value_belled": _make_value_belled,
    "legs_and_mirror": _make_legs_and_mirror,
}


def _make_family(name: str) -> ComposedFamily:
    workflow = _parts_to_workflow(COMPOSED[name].parts)
    return ComposedFamily(category=workflow.shape, steps=workflow.steps, make=_MAKERS[name])


COMPOSED_FAMILIES: Mapping[str, ComposedFamily] = {name: _make_family(name) for name in COMPOSED}
