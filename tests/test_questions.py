"""Which questions a conductor is trained on: how often each family comes, and when more of one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from torafugu.envs.composed import composed_tasks
from torafugu.errors import ConfigError
from torafugu.train.questions import QuestionSource, find_open

FAMILIES = ("sum_alone", "letters_alone", "day_alone", "legs_paid")
WORKERS = ("one", "two", "three")
TASKS = composed_tasks(n=80, seed=3, families=FAMILIES)


def count(source: QuestionSource, n: int, seed: int, factors: list[float] | None = None) -> Counter[str]:
    given = None if factors is None else np.array(factors)
    questions = source.draw(n, np.random.default_rng(seed), factors=given)
    assert {question.task.split for question in questions} == {"train"}
    return Counter(question.task.family for question in questions)


def make(**weights: float) -> QuestionSource:
    return QuestionSource(TASKS, WORKERS, sizes=None, held_out=4, weights=weights)


@pytest.mark.parametrize("seed", range(20))
def test_families_take_turns(seed: int) -> None:
    """Each family comes as often as the others, give or take one; which come once more is by lot."""
    source = make()
    assert count(source, 8, seed) == dict.fromkeys(FAMILIES, 2)
    assert set(count(source, 10, seed).values()) == {2, 3}
    assert count(source, 1, seed).total() == 1


@pytest.mark.parametrize("seed", range(20))
def test_weights(seed: int) -> None:
    """A family of weight 3 comes three times as often as one of weight 1; factors are multiplied with weights."""
    source = make(letters_alone=3)
    assert count(source, 12, seed) == {"letters_alone": 6, "sum_alone": 2, "day_alone": 2, "legs_paid": 2}
    factors = dict.fromkeys(FAMILIES, 1.0) | {"letters_alone": 1 / 3, "day_alone": 0.0, "legs_paid": 2.0}
    drawn = count(source, 8, seed, [factors[family] for family in source.families])
    assert drawn == {"letters_alone": 2, "sum_alone": 2, "legs_paid": 4}


def test_orders_differ() -> None:
    """Families do not come in blocks, nor in the same order each time."""
    source = make()
    orders = {
        tuple(q.task.family for q in source.draw(8, np.random.default_rng(seed), factors=None)) for seed in range(20)
    }
    assert len(orders) == 20


def test_unknown_family() -> None:
    """A weight for a family that has no tasks is a mistake, told with those that have."""
    with pytest.raises(ConfigError, match=r"no tasks of 'legs'.*legs_paid"):
        make(legs=2)


def test_open_families_come_more_often() -> None:
    """Neither solved nor hopeless: most; never right: some; always right: none of the share. The mean stays."""
    history = [{"accuracy/solved": 1.0, "accuracy/hopeless": 0.0, "accuracy/half": 0.5, "accuracy": 0.5}] * 3
    families = ("solved", "hopeless", "half", "unmet")
    solved, hopeless, half, unmet = find_open(history, families, 0.5)
    assert solved == 0.5
    assert 0.5 < hopeless < half == unmet
    assert np.mean([solved, hopeless, half, unmet]) == pytest.approx(1)
    assert find_open(history, families, 0.0).tolist() == [1, 1, 1, 1]
    assert find_open(history, families, 1.0)[0] == 0
    assert find_open([], ("a", "b"), 0.7).tolist() == [1, 1]
    assert find_open([{"accuracy/a": 1.0}], ("a",), 1.0).tolist() == [1]


def test_only_recent_steps_count() -> None:
    """What a family was like more than ten steps ago does not, nor do steps that have not met it."""
    history = [{"accuracy/a": 0.0}] * 5 + [{"accuracy/a": 1.0}] + [{"accuracy/a": None}] * 9
    assert find_open(history, ("a", "b"), 1.0)[0] == 0
    assert find_open(history + [{"accuracy/b": 0.5}] * 10, ("a", "b"), 1.0).tolist() == [1, 1]
