"""What is measured of a conductor's attempts, and when its training is stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torafugu.episode import Episode
from torafugu.errors import ConfigError
from torafugu.grade.task import Task
from torafugu.train.conductor_metrics import AlarmConfig, describe_attempts, find_alarm
from torafugu.train.conductor_rollout import Attempt, Question, Written
from torafugu.types import Json, Plan, Step


def make_text(tokens: int = 10, *, has_ended: bool = True) -> Written:
    ids = np.zeros(tokens, np.int32)
    return Written(text="", prompt=ids, tokens=ids, logprobs=np.zeros(tokens, np.float32), has_ended=has_ended)


def attempt(
    score: float | None,
    reward: float | None,
    *plans: str,
    family: str = "f",
    steps: int | None = None,
    texts: tuple[Written, ...] = (make_text(),),
    cost_usd: float | None = 0.01,
    scores: tuple[float, ...] | None = None,
    **faults: Any,
) -> Attempt:
    """`plans`: their workers, one letter each."""
    task = Task(
        id="t",
        family=family,
        category="",
        dataset="",
        prompt="?",
        gold="",
        split="train",
        meta={} if steps is None else {"steps": steps},
    )
    return Attempt(
        question=Question(task=task, workers=("a", "b")),
        episode=Episode(task="t", score=score, **faults),
        texts=texts,
        rewards=(reward,) * len(texts),
        before=(None, *(0.5,) * (len(texts) - 1)),
        values=(reward or 0.0,) * len(texts),
        scores=(score,) * len(plans) if scores is None else scores,
        plans=tuple(Plan(steps=tuple(Step(id=i, worker=w) for i, w in enumerate(plan))) for plan in plans),
        cost_usd=cost_usd,
    )


def test_numbers_by_hand() -> None:
    """Form is told apart from what valid workflows came to, and what nobody scored is in neither."""
    row = describe_attempts(
        [
            attempt(1.0, 1.0, "aab", steps=3),
            attempt(0.0, 0.5, "a", steps=1, cost_usd=0.03),
            attempt(0.0, 0.0, fault="policy", code="plan_unparseable", texts=(make_text(20, has_ended=False),)),
            attempt(None, None, "b", fault="worker", code="timeout_total"),
        ]
    )
    assert (row["episodes"], row["unscored"]) == (4, 1)
    assert row["reward/mean"] == pytest.approx(0.5)
    assert row["accuracy"] == pytest.approx(1 / 3)
    assert row["valid"] == pytest.approx(2 / 3)
    assert row["accuracy_if_valid"] == 0.5
    assert (row["steps/mean"], row["steps/one"], row["steps/correlation"]) == (2, 0.5, pytest.approx(1))
    assert (row["share/a"], row["share/b"], row["workers/largest_share"]) == (0.75, 0.25, 0.75)
    assert row["workers/entropy"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert (row["tokens/mean"], row["tokens/cut"]) == (12.5, 0.25)
    assert row["cost_usd/mean"] == pytest.approx(0.02)
    assert (row["fault/plan_unparseable"], row["fault/timeout_total"]) == (1, 1)


def test_unknown_is_none() -> None:
    """Without a valid workflow there are no steps, workers or costs, and without verdicts no accuracy: None, not 0."""
    row = describe_attempts([attempt(0.0, 0.0, fault="policy")])
    unknown = {"accuracy_if_valid", "steps/mean", "steps/one", "workers/entropy", "workers/largest_share", "regret"}
    assert {key for key, value in row.items() if value is None} == {*unknown, "steps/correlation", "cost_usd/mean"}
    row = describe_attempts([attempt(None, None, "a", fault="worker")])
    assert [row[key] for key in ("reward/mean", "accuracy", "valid")] == [None] * 3
    row = describe_attempts([attempt(1.0, 1.0, "a"), attempt(1.0, 1.0, "b", cost_usd=None)])
    assert (row["cost_usd/mean"], row["steps/correlation"]) == (None, None)


def test_steps_always_the_same() -> None:
    """Where tasks or workflows are all of one size there is no correlation."""
    same_plans = [attempt(1.0, 1.0, "a", steps=1), attempt(1.0, 1.0, "b", steps=3)]
    same_tasks = [attempt(1.0, 1.0, "a", steps=2), attempt(1.0, 1.0, "ab", steps=2)]
    assert [describe_attempts(rows)["steps/correlation"] for rows in (same_plans, same_tasks)] == [None, None]


def test_one_worker_for_everything() -> None:
    """Its entropy is 0 and its share 1; two that are called as often have an entropy of log 2."""
    row = describe_attempts([attempt(1.0, 1.0, "aa")])
    assert (row["workers/entropy"], row["workers/largest_share"]) == (0, 1)
    assert describe_attempts([attempt(1.0, 1.0, "ab")])["workers/entropy"] == pytest.approx(np.log(2))


def test_regret_by_family() -> None:
    """It is what families lack to their best single worker; a family that is above counts as 0."""
    attempts = [
        attempt(1.0, 1.0, "a", family="good"),
        attempt(0.0, 0.5, "a", family="poor"),
        attempt(1.0, 1.0, "b", family="poor"),
        attempt(0.0, 0.5, "a", family="unknown"),
    ]
    singles = {"good": {"a": 0.2, "b": 0.4}, "poor": {"a": 0.9, "b": 0.1}}
    row = describe_attempts(attempts, singles=singles)
    assert row["regret"] == pytest.approx((0 + 0.4) / 2)
    assert {key: row[key] for key in row if key.startswith(("regret/", "accuracy/"))} == {
        "accuracy/good": 1.0,
        "accuracy/poor": 0.5,
        "accuracy/unknown": 0.0,
        "regret/good": 0.0,
        "regret/poor": pytest.approx(0.4),
    }
    assert describe_attempts(attempts, singles={})["regret"] is None


def test_rounds_count_each_workers_call() -> None:
    """Of several rounds every workflow's calls count, and the last one's steps."""
    row = describe_attempts([attempt(1.0, 1.0, "aa", "bbb")])
    assert (row["steps/mean"], row["share/a"], row["share/b"]) == (3, 0.4, 0.6)


def test_what_later_rounds_did() -> None:
    """Mended is a share of what the first round had wrong, kept of what it had right; with one text each there is
    nothing to be told."""
    two = (make_text(), make_text())
    row = describe_attempts(
        [
            attempt(1.0, 1.0, "a", texts=two),  # right, and let stand
            attempt(0.0, 0.5, "a", "b", texts=two, scores=(1.0, 0.0)),  # broken
            attempt(1.0, 1.0, "a", "b", texts=two, scores=(0.0, 1.0)),  # mended
            attempt(0.0, 0.5, "a", texts=two),  # wrong, and let stand
            attempt(0.0, 0.5, "a"),  # was never asked again
        ]
    )
    told = {key: value for key, value in row.items() if key.startswith("rounds/")}
    assert told == {
        "rounds/first_accuracy": 0.5,
        "rounds/planned_again": 0.5,
        "rounds/mended": 0.5,
        "rounds/kept": 0.5,
    }
    assert not any(key.startswith("rounds/") for key in describe_attempts([attempt(1.0, 1.0, "a")]))


# --- alarms ---

HEALTHY: dict[str, Json] = {
    "valid": 0.97,
    "accuracy": 0.6,
    "tokens/cut": 0.0,
    "workers/largest_share": 0.4,
    "steps/one": 0.2,
    "groups/flat": 0.3,
}
WATCH = AlarmConfig(patience=3)


@pytest.mark.parametrize(
    ("key", "bad", "at_the_bound", "setting"),
    [
        ("valid", 0.79, 0.8, "valid_below"),
        ("tokens/cut", 0.06, 0.05, "cut_above"),
        ("workers/largest_share", 0.91, 0.9, "largest_share_above"),
        ("steps/one", 0.91, 0.9, "one_step_above"),
        ("groups/flat", 0.96, 0.95, "flat_above"),
    ],
)
def test_each_alarm(key: str, bad: float, at_the_bound: float, setting: str) -> None:
    """Each is raised after so many bad steps in a row, and says what to do; not at its bound, nor earlier, nor after a
    good step or an unknown one, nor where it is not watched."""
    ill = HEALTHY | {key: bad}
    told = find_alarm([HEALTHY, ill, ill, ill], WATCH)
    assert told is not None
    assert told.startswith(f"{key} {bad:.3g} for 3 steps: ")
    for history in (
        [ill, ill],
        [ill, ill, ill, HEALTHY],
        [ill, HEALTHY, ill],
        [HEALTHY | {key: at_the_bound}] * 3,
        [ill, HEALTHY | {key: None}, ill],
        [{k: v for k, v in ill.items() if k != key}] * 3,
    ):
        assert find_alarm(history, WATCH) is None
    assert find_alarm([ill] * 3, AlarmConfig(patience=3, **{setting: None})) is None


def test_healthy_run() -> None:
    """A run where nothing is wrong goes on, however long."""
    assert find_alarm([], WATCH) is None
    assert find_alarm([HEALTHY] * 50, WATCH) is None


def test_flat_because_all_is_right() -> None:
    """Groups without variance are no alarm where nearly everything is answered right."""
    flat = HEALTHY | {"groups/flat": 1.0}
    assert find_alarm([flat | {"accuracy": 0.96}] * 3, WATCH) is None
    assert find_alarm([flat | {"accuracy": 0.9}] * 3, WATCH) is not None
    assert find_alarm([flat | {"accuracy": None}] * 3, WATCH) is not None


def test_patience_makes_sense() -> None:
    """An alarm after no steps at all is refused."""
    with pytest.raises(ConfigError, match="patience 0"):
        AlarmConfig(patience=0)
