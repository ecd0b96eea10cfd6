"""The home pool's tasks: generated, verifiable, and the same for a seed on every machine.

Most families are reasoning-gym's, some are ours (`mixed`). The split hangs on the prompt alone, so that no prompt ever
stands in two splits, whatever the seed. Which workers can do a family is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from ..errors import ConfigError
from ..grade.gym import import_reasoning_gym
from ..grade.task import Task
from ..types import Json
from .mixed import OWN_FAMILIES

__all__ = ["HOME_FAMILIES", "home_tasks", "prompt_to_split"]

ANSWER_FORMAT = "Put your final answer between <answer> and </answer>."
_MAX_REPEATS = 300
"""Questions in a row that were seen before or cannot be used, after which a family counts as exhausted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of question."""

    category: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Reasoning-gym's configuration where its defaults do not serve; empty for our own families."""
    is_sound: Callable[[str], bool] = bool
    """Whether a gold answer can be trusted. An empty one never is: no answer must not be a right answer."""


def _is_sound_relation(gold: str) -> bool:
    """Reasoning-gym names these relations from the other person's side."""
    return gold not in {"mother-in-law", "father-in-law", "niece", "nephew"}


HOME_FAMILIES: Mapping[str, Family] = {
    "chain_sum": Family(category="arithmetic"),
    "products": Family(category="arithmetic"),
    "gcd": Family(category="arithmetic"),
    "prime_factorization": Family(category="arithmetic", settings={"max_value": 5000}),
    "fraction_simplification": Family(category="arithmetic"),
    "simple_equations": Family(category="arithmetic"),
    # Of three real roots of an irreducible cubic reasoning-gym's gold answer lacks some: degree 2 at most.
    "polynomial_equations": Family(category="arithmetic", settings={"max_degree": 2}),
    "base_conversion": Family(category="arithmetic"),
    "letter_counting": Family(category="text"),
    "spell_backward": Family(category="text"),
    "word_sorting": Family(category="text"),
    "caesar_cipher": Family(category="text"),
    "word_sequence_reversal": Family(category="text"),
    "palindrome_generation": Family(category="text"),
    "group_anagrams": Family(category="text", settings={"max_anagram_groups": 5}),
    # Without count_business_days, whose questions name the wrong year when the range crosses New Year.
    "calendar_arithmetic": Family(
        category="facts",
        settings={
            "tasks": [
                "weekday_offset",
                "weekday_of_date",
                "weekday_of_date_from_first_date",
                "recurring_event_day",
                "count_days",
                "is_leap_year",
            ]
        },
    ),
    # Without date and time together, where its gold answer sometimes loses the time of day.
    "time_intervals": Family(category="facts", settings={"task_types": ["time", "time_seconds", "date"]}),
    "leg_counting": Family(category="facts"),
    "family_relationships": Family(category="facts", is_sound=_is_sound_relation),
    "number_format": Family(category="facts"),
    "unit_conversion": Family(category="facts"),
    # Inversions of one statement only: its rules for two premises overlook the undistributed middle.
    "syllogism": Family(category="logic", settings={"inversion_probability": 1.0}),
    "needle_haystack": Family(category="logic", settings={"max_num_statements": 30}),
    "knights_knaves": Family(category="logic"),
    "sokoban": Family(category="logic", settings={"max_w": 7, "max_h": 7}),
    "number_filtering": Family(category="mixed"),
    "word_sums": Family(category="mixed"),
    "letter_product": Family(category="mixed"),
    "letter_values": Family(category="mixed"),
    "roman_sums": Family(category="mixed"),
}

_Item: TypeAlias = tuple[str, str, dict[str, Json]]
"""Question, gold answer, what the grader needs."""


def home_tasks(*, n: int, seed: int, families: Sequence[str] | None = None) -> list[Task]:
    """`n` different tasks, the families taking turns.

    Raises:
        ConfigError: an unknown family, too few different questions in one, or reasoning-gym is not installed.
    """
    names = list(HOME_FAMILIES) if families is None else list(families)
    if n < 0 or not names or len(set(names)) != len(names):
        raise ConfigError(
            f"home tasks: n {n!r}, families {names!r}: expected n >= 0 and at least one family, each once"
        )
    for name in names:
        if name not in HOME_FAMILIES:
            raise ConfigError(f"home tasks: family {name!r} is not one of {', '.join(sorted(HOME_FAMILIES))}")
    sources = [_tasks_of(name, seed) for name in names]
    return [next(sources[i % len(sources)]) for i in range(n)]


def prompt_to_split(prompt: str) -> str:
    """train, validation or test in 60 : 20 : 20, by the SHA-256 of the prompt's words."""
    digest = hashlib.sha256(" ".join(prompt.split()).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.6 else "validation" if share < 0.8 else "test"


def _tasks_of(name: str, seed: int) -> Iterator[Task]:
    family, seen, repeats = HOME_FAMILIES[name], set[str](), 0
    for question, gold, meta in _own_items(name, seed) if name in OWN_FAMILIES else _gym_items(name, seed):
        prompt = f"{question.strip()}\n\n{ANSWER_FORMAT}"
        words = " ".join(prompt.split())
        if words in seen or not gold.strip() or not family.is_sound(gold):
            repeats += 1
            if repeats > _MAX_REPEATS:
                raise ConfigError(
                    f"home tasks: family {name!r} has only {len(seen)} different questions: ask for fewer"
                )
            continue
        seen.add(words)
        repeats = 0
        yield Task(
            id=f"home/{name}/{hashlib.sha256(words.encode()).hexdigest()[:12]}",
            family=name,
            category=family.category,
            dataset="home",
            prompt=prompt,
            gold=gold,
            split=prompt_to_split(prompt),
            meta=meta,
        )


def _own_items(name: str, seed: int) -> Iterator[_Item]:
    random = Random(_seed_of(name, seed))
    while True:
        question, gold = OWN_FAMILIES[name](random)
        yield question, gold, {"grader": "exact"}


def _gym_items(name: str, seed: int) -> Iterator[_Item]:
    # One item is seeded with seed + index over there: neighbouring seeds would share nearly all items, hashes do not.
    dataset = import_reasoning_gym().create_dataset(name, seed=_seed_of(name, seed), **HOME_FAMILIES[name].settings)
    index = 0
    while True:
        entry = dataset[index]
        metadata = {key: value for key, value in entry["metadata"].items() if key != "difficulty"}
        yield entry["question"], str(entry["answer"]), {"grader": "gym", "gym": _to_json(metadata)}
        index += 1


def _to_json(value: Any) -> Json:
    """As it will be read back from a file: tuples are lists, NumPy's strings and numbers are plain."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Json:
    return value.item() if hasattr(value, "item") else str(value)


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
