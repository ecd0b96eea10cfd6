"""Which questions a conductor is trained on: how often each family comes, and when more of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from torafugu.envs.composed import composed_tasks
from torafugu.errors import ConfigError
from torafugu.train.questions import QuestionSource
from torafugu.types import Json

FAMILIES = ("sum_alone", "letters_alone", "day_alone", "legs_paid")
WORKERS = ("one", "two", "three")
TASKS = composed_tasks(n=80, seed=3, families=FAMILIES)


def count(source: QuestionSource, n: int, seed: int, weights: list[float] | None = None) -> Counter[str]:
    given = None if weights is None else np.array(weights)
    questions = source.draw(n, np.random.default_rng(seed), weights=given)
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
    """A family of weight 3 comes three times as often as one of weight 1; other weights may stand in for a step."""
    source = make(letters_alone=3)
    assert count(source, 12, seed) == {"letters_alone": 6, "sum_alone": 2, "day_alone": 2, "legs_paid": 2}
    others = dict.fromkeys(FAMILIES, 1.0) | {"day_alone": 0.0, "legs_paid": 2.0}
    drawn = count(source, 8, seed, [others[family] for family in source.families])
    assert drawn == {"letters_alone": 2, "sum_alone": 2, "legs_paid": 4}


def test_orders_differ() -> None:
    """Families do not come in blocks, nor in the same order each time."""
    source = make()
    orders = {tuple(q.task.family for q in source.draw(8, np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) == 20


def test_unknown_family() -> None:
    """A weight for a family that has no tasks is a mistake, told with those that have."""
    with pytest.raises(ConfigError, match=r"no tasks of 'legs' to draw from, but of .*legs_paid"):
        make(legs=2)


RATES = {"sum_alone": 1.0, "letters_alone": 0.0, "day_alone": 0.5}
HISTORY = [{f"accuracy/{family}": rate for family, rate in RATES.items()} | {"accuracy": 0.5}] * 3


def shares(source: QuestionSource, history: Sequence[Mapping[str, Json]], focus: float) -> dict[str, float]:
    weights = source.focus_weights(history, focus)
    return dict(zip(source.families, weights / weights.sum(), strict=True))


def test_focus() -> None:
    """Of a half of the questions families that always succeed get none, that always fail a few, and most go to those in
    between, or not met of late. The other half is everybody's."""
    found = shares(make(), HISTORY, 0.5)
    assert found["sum_alone"] == pytest.approx(0.5 / 4)
    assert found["sum_alone"] < found["letters_alone"] < found["day_alone"] == found["legs_paid"]
    assert set(shares(make(), HISTORY, 0.0).values()) == {0.25}
    assert shares(make(), HISTORY, 1.0)["sum_alone"] == 0
    assert set(shares(make(), [], 0.7).values()) == {0.25}
    assert set(shares(make(), [dict.fromkeys((f"accuracy/{f}" for f in FAMILIES), 1.0)], 1.0).values()) == {0.25}


def test_focus_and_weights() -> None:
    """The share that is moved is as large with weights: of families that are alike it goes by their weights."""
    source = make(letters_alone=3)
    solved = [{f"accuracy/{family}": float(family != "letters_alone") for family in FAMILIES}]
    assert shares(source, solved, 0.5)["letters_alone"] == pytest.approx(0.5 * 0.5 + 0.5)
    assert shares(source, [], 0.5) == pytest.approx(dict.fromkeys(FAMILIES, 1 / 6) | {"letters_alone": 0.5})


def test_only_recent_steps_count() -> None:
    """What a family was like more than ten steps ago does not, nor do steps that have not met it."""
    old, new = {"accuracy/sum_alone": 0.0}, {"accuracy/sum_alone": 1.0}
    assert shares(make(), [old] * 5 + [new] + [{"accuracy/sum_alone": None}] * 9, 1.0)["sum_alone"] == 0
    assert shares(make(), [new, *([{"accuracy/day_alone": 0.5}] * 10)], 1.0)["sum_alone"] == 0.25
