"""Diagnostics of episodes against numbers worked out by hand, and each alarm: when it speaks, and when it must not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outcomes import write_recorded
from torafugu.eval.baselines import rank_workers
from torafugu.eval.diagnostics import ROLES, Alarm, Thresholds, Turns, alarms, diagnose, split_evolutions
from torafugu.eval.matrix import OutcomeMatrix, build_matrix
from torafugu.eval.stats import wilson
from torafugu.pool.recorded import read_recorded
from torafugu.train.sepcma import SepCMA

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded"
ANT_BEE = (0, 1)
ANT = Turns(
    calls=(("ant", "worker"), ("bee", "verifier")),
    answered_by="ant",
    accepted=True,
    turns=2,
    agreement=2,
    asked=2,
    score=1.0,
    cost_usd=0.02,
)
BEE = replace(ANT, calls=(("bee", "worker"), ("ant", "verifier"), ("ant", "thinker")), answered_by="bee", turns=4)
SILENT = replace(ANT, calls=(("ant", "thinker"),), answered_by=None, accepted=False, agreement=None, asked=0, score=0.0)


def make_matrix(folder: Path, scores: Sequence[Sequence[float | None]], families: str = "") -> OutcomeMatrix:
    """Rows of scores of ant, bee (and cat); each answer costs 0.01. A letter of `families` names a row's family."""
    workers = ("ant", "bee", "cat")[: len(scores[0])]
    questions = [
        {"qid": f"{i:03}", "prompt": f"q {i}?", "split": "test", "family": (families or "x" * len(scores))[i]}
        for i in range(len(scores))
    ]
    outcomes = [
        {"qid": f"{i:03}", "model": worker, "correct": score, "answer": "a", "cost_usd": 0.01}
        for i, row in enumerate(scores)
        for worker, score in zip(workers, row, strict=True)
        if score is not None
    ]
    return build_matrix(read_recorded(write_recorded(folder, questions, outcomes)))


def test_regret_and_gap_by_hand(tmp_path: Path) -> None:
    """Regret is oracle minus ours, in all and by family; the gap closed is our part of the way to the oracle."""
    matrix = make_matrix(tmp_path, [(1, 0), (1, 0), (0, 1), (0, 1), (0, 0), (0, 1)], "aabbbb")
    ours = [ANT, ANT, BEE, replace(BEE, score=0.0), replace(ANT, score=0.0), BEE]
    d = diagnose(ours, matrix, ranking=ANT_BEE)
    assert (d["n"], d["best_single/worker"]) == (6, "ant")
    assert d["accuracy/mean"] == pytest.approx(4 / 6)
    assert d["best_single/accuracy"] == pytest.approx(2 / 6)
    assert d["oracle/accuracy"] == pytest.approx(5 / 6)
    assert d["oracle/gap_closed"] == pytest.approx(2 / 3)
    assert d["regret/mean"] == pytest.approx(1 / 6)
    assert d["regret/best_single"] == pytest.approx(3 / 6)
    assert d["gain/mean"] == pytest.approx(2 / 6)
    gains = np.array([0, 0, 1, 0, 0, 1])
    assert d["gain/standard_error"] == pytest.approx(gains.std(ddof=1) / math.sqrt(6))
    assert d["regret/by_family"]["a"] == {"n": 2, "regret": 0, "accuracy": 1, "best_single": 1, "oracle": 1}
    assert d["regret/by_family"]["b"] == {"n": 4, "regret": 0.25, "accuracy": 0.5, "best_single": 0, "oracle": 0.75}
    assert sum(row["n"] for row in d["regret/by_category"].values()) == 6


def test_shares_and_entropy_by_hand(tmp_path: Path) -> None:
    """Calls, answers, roles and first calls are counted apart; a run without an answer answers for nobody."""
    matrix = make_matrix(tmp_path, [(1, 1, 0)] * 4)
    d = diagnose([ANT, ANT, BEE, SILENT], matrix, ranking=(0, 1, 2))
    assert d["share/calls"] == {"ant": 5 / 8, "bee": 3 / 8, "cat": 0}
    assert d["share/answers"] == {"ant": 2 / 3, "bee": 1 / 3, "cat": 0}
    assert d["share/roles"] == {"thinker": 2 / 8, "worker": 3 / 8, "verifier": 3 / 8}
    assert d["workers/never_used"] == ["cat"]
    assert d["entropy/calls_bits"] == pytest.approx(-(5 / 8) * math.log2(5 / 8) - (3 / 8) * math.log2(3 / 8))
    assert d["entropy/answers_bits"] == pytest.approx(-(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3))
    assert d["entropy/first_calls_bits"] == pytest.approx(-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25))
    assert d["entropy/per_question_bits"] is None


def test_turns_calls_and_stops_by_hand(tmp_path: Path) -> None:
    """Histograms, means, one-call runs, how runs end, and how right they are by how they end."""
    matrix = make_matrix(tmp_path, [(1, 1)] * 5)
    full = replace(BEE, turns=5, accepted=False, score=0.0)
    d = diagnose([ANT, ANT, BEE, SILENT, full], matrix, ranking=ANT_BEE, turn_limit=5)
    assert d["turns/histogram"] == {"2": 3, "4": 1, "5": 1}
    assert d["turns/mean"] == pytest.approx(15 / 5)
    assert d["turns/at_limit_share"] == pytest.approx(1 / 5)
    assert d["calls/histogram"] == {"1": 1, "2": 2, "3": 2}
    assert d["calls/mean"] == pytest.approx(11 / 5)
    assert d["calls/one_call_share"] == pytest.approx(1 / 5)
    assert (d["stop/accepted"], d["stop/limit"]) == (3, 2)
    assert d["stop/no_answer_share"] == d["stop/thinker_only_share"] == pytest.approx(1 / 5)
    assert (d["accuracy/accepted"], d["accuracy/not_accepted"]) == (1.0, 0.0)
    assert diagnose([ANT], matrix.rows([0]), ranking=ANT_BEE)["accuracy/not_accepted"] is None
    assert diagnose([ANT], matrix.rows([0]), ranking=ANT_BEE)["turns/at_limit_share"] is None


def test_accepted_at_once(tmp_path: Path) -> None:
    """The first answer passed the first verdict: thoughts do not count, a verdict that was there does."""
    matrix = make_matrix(tmp_path, [(1, 1)])
    think = ("bee", "thinker")
    at_once = [ANT, replace(ANT, calls=ANT.calls[:1]), replace(ANT, calls=(think, *ANT.calls), turns=3)]
    later = [replace(ANT, turns=4), replace(ANT, accepted=False), replace(ANT, calls=ANT.calls[:1], turns=3)]
    for turns, share in [(t, 1) for t in at_once] + [(t, 0) for t in later]:
        assert diagnose([turns], matrix, ranking=ANT_BEE)["stop/accepted_at_once_share"] == share, turns


def test_accuracy_by_agreement(tmp_path: Path) -> None:
    """A row for each (asked, agreement) with Wilson's interval, none where agreement is unknown."""
    matrix = make_matrix(tmp_path, [(1, 1)] * 6)
    apart = replace(ANT, agreement=1)
    ours = [ANT, ANT, replace(ANT, score=0.0), apart, replace(apart, asked=3, score=0.5), SILENT]
    table = diagnose(ours, matrix, ranking=ANT_BEE)["accuracy/by_agreement"]
    assert [(row["asked"], row["agreement"], row["n"]) for row in table] == [(2, 1, 1), (2, 2, 3), (3, 1, 1)]
    both = wilson(2, 3)
    assert (table[1]["accuracy"], table[1]["low"], table[1]["high"]) == (both.mean, both.low, both.high)
    assert (table[2]["accuracy"], table[2]["low"], table[2]["high"]) == (0.5, None, None), "half right is no proportion"


def test_costs(tmp_path: Path) -> None:
    """One unknown cost makes the total unknown, and is counted; the ratio is over the questions that have both."""
    matrix = make_matrix(tmp_path, [(1, 1)] * 3)
    d = diagnose([ANT, ANT, ANT], matrix, ranking=ANT_BEE)
    assert d["cost/usd_total"] == pytest.approx(0.06)
    assert d["cost/usd_per_question"] == pytest.approx(0.02)
    assert d["cost/best_single_usd_per_question"] == pytest.approx(0.01)
    assert d["cost/ratio_to_best_single"] == pytest.approx(2)
    d = diagnose([ANT, replace(ANT, cost_usd=None), replace(ANT, cost_usd=0.04)], matrix, ranking=ANT_BEE)
    assert (d["cost/usd_total"], d["cost/usd_per_question"], d["cost/unknown"]) == (None, None, 1)
    assert d["cost/usd_known"] == pytest.approx(0.06)
    assert d["cost/ratio_to_best_single"] == pytest.approx(3)


def test_unscored_episodes_are_left_out_and_counted(tmp_path: Path) -> None:
    """An episode without a score, or whose question nobody was asked, changes nothing but its count."""
    matrix = make_matrix(tmp_path, [(1, 0), (0, 1), (1, 1), (1, 0)])
    matrix.first[3] = np.nan
    wild = replace(BEE, calls=(("bee", "thinker"),) * 9, turns=99, cost_usd=None)
    d = diagnose([ANT, BEE, replace(wild, score=None), wild], matrix, ranking=ANT_BEE)
    assert (d.pop("left_out/unscored"), d.pop("left_out/no_outcome")) == (1, 1)
    alone = diagnose([ANT, BEE], matrix.rows([0, 1]), ranking=ANT_BEE)
    assert d == {key: value for key, value in alone.items() if not key.startswith("left_out")}
    none = diagnose([replace(ANT, score=None)], matrix.rows([0]), ranking=ANT_BEE)
    assert none == {"n": 0, "left_out/unscored": 1, "left_out/no_outcome": 0}
    assert [alarm.code for alarm in alarms(none)] == ["nothing_scored"]


def test_the_next_worker_stands_in_for_the_best(tmp_path: Path) -> None:
    """Where the best single worker was never asked, the next of the ranking gives score and cost."""
    matrix = make_matrix(tmp_path, [(1, 0, 0), (None, 0, 1)])
    assert diagnose([ANT, ANT], matrix, ranking=(0, 1, 2))["best_single/accuracy"] == 0.5
    d = diagnose([ANT, ANT], matrix, ranking=(0, 2, 1))
    assert d["best_single/accuracy"] == 1
    assert d["cost/best_single_usd_per_question"] == pytest.approx(0.01)
    assert d["oracle/gap_closed"] is None, "no way to go"


def test_what_the_question_tells(tmp_path: Path) -> None:
    """A policy that reads nothing has no information, however high its entropy; one that is sure has all of it."""
    matrix = make_matrix(tmp_path, [(1, 0), (0, 1)])

    def bits(probabilities: object) -> tuple[float, float]:
        d = diagnose([ANT, BEE], matrix, ranking=ANT_BEE, probabilities=np.array(probabilities))
        return d["entropy/per_question_bits"], d["entropy/information_bits"]

    assert bits([[0.5, 0.5], [0.5, 0.5]]) == pytest.approx((1, 0))
    assert bits([[1, 0], [0, 1]]) == pytest.approx((0, 1))
    low = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert bits([[0.9, 0.1], [0.1, 0.9]]) == pytest.approx((low, 1 - low))
    unscored = [ANT, replace(BEE, score=None)]
    d = diagnose(unscored, matrix, ranking=ANT_BEE, probabilities=[[1, 0], [0.5, 0.5]])
    assert (d["entropy/per_question_bits"], d["entropy/information_bits"]) == (0, 0), "of what was scored"
    for bad in ([[1, 0]], [[0.5, 0.4], [1, 0]], [[2, -1], [1, 0]], [[math.nan, 1], [1, 0]]):
        with pytest.raises(ValueError, match="probabilities of shape"):
            bits(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": (("dog", "worker"),)}, r"\('dog', 'worker'\): expected one of ant, bee"),
        ({"calls": (("ant", "judge"),)}, "thinker, worker, verifier"),
        ({"answered_by": "dog"}, "answered_by 'dog'"),
        ({"score": math.nan}, "score nan"),
    ],
)
def test_episodes_of_something_else_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Unknown workers and roles, a score that is no number, other questions and another ranking are errors."""
    matrix = make_matrix(tmp_path, [(1, 0)])
    with pytest.raises(ValueError, match=message):
        diagnose([replace(ANT, **change)], matrix, ranking=ANT_BEE)
    with pytest.raises(ValueError, match="2 episodes for 1 questions"):
        diagnose([ANT, ANT], matrix, ranking=ANT_BEE)
    for ranking in ((0,), (0, 0), (1, 2)):
        with pytest.raises(ValueError, match="each of the 2 columns once"):
            diagnose([ANT], matrix, ranking=ranking)


@pytest.mark.parametrize("seed", range(5))
def test_any_episodes_give_json_that_adds_up(seed: int, tmp_path: Path) -> None:
    """Whatever happened: no NaN, shares of 1, histograms of n, regret that is oracle less accuracy; alarms are told."""
    rng = np.random.default_rng(seed)
    matrix = make_matrix(tmp_path, rng.integers(0, 2, (30, 3)).tolist(), "".join(rng.choice(list("abc"), 30)))
    names = (*matrix.workers, None)
    turns = [
        Turns(
            calls=tuple((str(rng.choice(matrix.workers)), str(rng.choice(ROLES))) for _ in range(rng.integers(0, 5))),
            answered_by=names[rng.integers(0, 4)],
            accepted=bool(rng.integers(0, 2)),
            turns=int(rng.integers(1, 6)),
            agreement=int(rng.integers(1, 3)) if rng.random() < 0.8 else None,
            asked=2,
            score=float(rng.integers(0, 2)) if rng.random() < 0.8 else None,
            cost_usd=float(rng.random()) if rng.random() < 0.8 else None,
        )
        for _ in range(30)
    ]
    d = diagnose(turns, matrix, ranking=(2, 0, 1), turn_limit=5)
    assert json.loads(json.dumps(d, allow_nan=False)) == d
    assert d["n"] + d["left_out/unscored"] == 30
    for key in ("share/calls", "share/answers", "share/roles"):
        assert sum(d[key].values()) == pytest.approx(1)
    for key in ("calls/histogram", "turns/histogram"):
        assert sum(d[key].values()) == d["n"] == d["stop/accepted"] + d["stop/limit"]
    assert d["regret/mean"] == pytest.approx(d["oracle/accuracy"] - d["accuracy/mean"])
    families = d["regret/by_family"].values()
    assert sum(row["n"] * row["regret"] for row in families) == pytest.approx(d["n"] * d["regret/mean"])
    assert all(isinstance(alarm, Alarm) for alarm in alarms(d))


HEALTHY: dict[str, Any] = {
    "n": 100,
    "accuracy/mean": 0.7,
    "best_single/worker": "ant",
    "best_single/accuracy": 0.6,
    "oracle/accuracy": 0.8,
    "gain/mean": 0.1,
    "gain/standard_error": 0.03,
    "share/calls": {"ant": 0.5, "bee": 0.5},
    "share/answers": {"ant": 0.6, "bee": 0.4},
    "share/roles": {"thinker": 0.2, "worker": 0.5, "verifier": 0.3},
    "entropy/calls_bits": 1.0,
    "stop/accepted_share": 0.8,
    "stop/accepted_at_once_share": 0.5,
    "stop/no_answer_share": 0.0,
    "stop/thinker_only_share": 0.0,
    "turns/at_limit_share": 0.2,
    "cost/ratio_to_best_single": 2.5,
}
COLLAPSED = {"share/calls": {"ant": 0.97, "bee": 0.03}, "share/answers": {"ant": 0.96, "bee": 0.04}}
NO_HEADROOM = {"oracle/accuracy": 0.61}


@pytest.mark.parametrize(
    ("change", "code", "value"),
    [
        (COLLAPSED, "worker_collapse", 0.96),
        ({"entropy/calls_bits": 0.28}, "low_entropy", 0.28),
        ({"share/roles": {"thinker": 0.0, "worker": 1.0, "verifier": 0.0}}, "role_collapse", 1.0),
        ({"share/roles": {"thinker": 0.0, "worker": 0.6, "verifier": 0.4}}, "role_unused", 0.0),
        ({"stop/no_answer_share": 0.04, "stop/thinker_only_share": 0.03}, "no_answer", 0.04),
        ({"stop/accepted_share": 0.0}, "verifier_never_accepts", 0.0),
        ({"stop/accepted_at_once_share": 0.99}, "verifier_always_accepts", 0.99),
        ({"turns/at_limit_share": 1.0}, "always_all_turns", 1.0),
        ({"gain/mean": -0.02}, "worse_than_best_single", -0.02),
        ({"cost/ratio_to_best_single": 6.0}, "cost", 6.0),
        ({"entropy/calls_bits": math.nan}, "non_finite", 1.0),
        ({"regret/by_family": {"a": {"regret": math.inf}}}, "non_finite", 1.0),
    ],
)
def test_each_alarm_speaks_alone(change: dict[str, Any], code: str, value: float) -> None:
    """A fault raises its own alarm and no other, with its value and threshold, in one sentence."""
    assert alarms(HEALTHY) == []
    found = alarms({**HEALTHY, **change})
    assert [(alarm.code, alarm.value) for alarm in found] == [(code, value)]
    assert found[0].threshold is not None
    assert found[0].message.endswith(".")
    assert ". " not in found[0].message


def test_a_collapse_is_one_only_of_calls_and_answers_together() -> None:
    """Always asking one worker first, and answering with others, is no collapse."""
    assert alarms({**HEALTHY, "share/calls": COLLAPSED["share/calls"]}) == []
    assert alarms({**HEALTHY, "share/answers": COLLAPSED["share/answers"]}) == []


def test_with_nothing_to_gain_one_worker_is_right() -> None:
    """Without headroom a policy that always asks one worker once, and pays for no verdict, raises no alarm."""
    one = {
        **COLLAPSED,
        "entropy/calls_bits": 0.0,
        "share/roles": {"thinker": 0.0, "worker": 1.0, "verifier": 0.0},
        "stop/accepted_at_once_share": 1.0,
    }
    codes = {"worker_collapse", "low_entropy", "role_collapse", "never_asks_twice"}
    assert {alarm.code for alarm in alarms({**HEALTHY, **one})} == codes
    assert alarms({**HEALTHY, **one, **NO_HEADROOM}) == []
    paid = {**one, "share/roles": {"thinker": 0.0, "worker": 0.5, "verifier": 0.5}}
    assert [alarm.code for alarm in alarms({**HEALTHY, **paid, **NO_HEADROOM})] == ["verifier_always_accepts"]


def test_a_role_that_does_not_exist_is_not_missed(tmp_path: Path) -> None:
    """A policy of workers and verifiers only, or of workers only, is not told that nobody thinks."""
    matrix = make_matrix(tmp_path, [(1, 0), (0, 1), (0, 1)])
    turns = [ANT, replace(ANT, turns=4), replace(ANT, turns=5, accepted=False)]
    assert [alarm.code for alarm in alarms(diagnose(turns, matrix, ranking=ANT_BEE))] == ["role_unused"]
    assert alarms(diagnose(turns, matrix, ranking=ANT_BEE, roles=("worker", "verifier"))) == []
    bare = [replace(t, calls=(("ant", "worker"), ("bee", "worker"))) for t in turns]
    assert alarms(diagnose(bare, matrix, ranking=ANT_BEE, roles=("worker",))) == []


@pytest.mark.parametrize("key", sorted(HEALTHY))
def test_what_is_unknown_raises_no_alarm(key: str) -> None:
    """A number that is None or not there at all is no reason for an alarm."""
    assert alarms({**HEALTHY, key: None}) == []
    assert alarms({k: v for k, v in HEALTHY.items() if k != key}) == []
    assert alarms({}) == []


def test_thresholds_can_be_set() -> None:
    """Other thresholds, other alarms: each is told with the one it passed."""
    strict = Thresholds(max_cost_ratio=2.0, min_gain=0.2)
    found = {alarm.code: alarm.threshold for alarm in alarms(HEALTHY, thresholds=strict)}
    assert found == {"cost": 2.0, "worse_than_best_single": 0.2}


def course(sigmas: Sequence[float], stds: Sequence[float] | None = None) -> list[dict[str, Any]]:
    return [
        {"generation": g, "reward/mean": 0.5, "reward/max": 0.6, "sigma": sigma, "reward/std": std}
        for g, (sigma, std) in enumerate(zip(sigmas, stds or [0.1] * len(sigmas), strict=True))
    ]


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        (course([0.1, 0.11, 0.08]), []),
        (course([0.1, 0.05, 0.0009]), ["sigma_collapse"]),
        (course([0.1, 0.5, 1.1]), ["sigma_explosion"]),
        (course([0.1] * 4, [0, 0, 0, 0.1]), ["flat_fitness"]),
        (course([0.1] * 4, [0, 0, 0.1, 0.1]), []),
        (course([0.1, math.nan]), ["non_finite"]),
        (course([0.1, 0.11]) + course([0.001, 0.0011]), []),
        (course([0.1, 0.0001]) + course([0.1, 0.1]), ["sigma_collapse"]),
        ([{"generation": 0, "sigma": 0.1}], []),
    ],
)
def test_the_course_of_an_evolution(rows: list[dict[str, Any]], codes: list[str]) -> None:
    """Step sizes that vanish or explode, and rewards without spread, are told; each evolution is looked at alone."""
    assert [alarm.code for alarm in alarms({}, generations=rows)] == codes


@pytest.mark.parametrize("kind", ["noise", "bowl", "flat"])
def test_our_strategy_alarms_only_where_there_is_nothing_to_rank(kind: str) -> None:
    """sep-CMA-ES itself, over 60 generations: noise and a bowl raise no alarm, a constant reward does."""
    strategy, noise, rows = SepCMA(np.full(70, 0.3), 0.03, seed=1), np.random.default_rng(0), []
    for generation in range(60):
        x = strategy.ask()
        rewards = {"noise": noise.standard_normal(len(x)), "bowl": -(x**2).sum(1), "flat": np.zeros(len(x))}[kind]
        strategy.tell(rewards)
        rows.append({"generation": generation, "reward/std": float(rewards.std()), "sigma": strategy.sigma})
    assert [alarm.code for alarm in alarms({}, generations=rows)] == (["flat_fitness"] if kind == "flat" else [])


def test_evolutions_are_told_apart_by_their_generations() -> None:
    """Where the generation does not rise, another evolution begins; a row without one belongs to the last."""
    rows = [{"generation": g} for g in (0, 1, 2, 0, 1, 1)]
    assert [len(run) for run in split_evolutions(rows)] == [3, 2, 1]
    assert [len(run) for run in split_evolutions([{"generation": 0}, {}, {"generation": 1}])] == [3]
    assert split_evolutions([]) == []


@pytest.mark.shared
@pytest.mark.skipif(not RECORDED.exists(), reason=f"no recorded answers at {RECORDED}")
def test_real_answers() -> None:
    """Of real models: always the best single worker gains nothing and alarms; the oracle has no regret; the two best
    workers are right far more often when they agree than when they differ."""
    matrix = build_matrix(read_recorded(RECORDED / "pool_b"))
    ranking, target = rank_workers(matrix.split("train")), matrix.split("validation")
    first, second = (int(j) for j in ranking[:2])

    def follow(column: int, i: int) -> Turns:
        answers, name = target.answers[i], target.workers
        return Turns(
            calls=((name[column], "worker"), (name[second], "verifier")),
            answered_by=name[column],
            accepted=True,
            turns=2,
            agreement=1 + (answers[column] == answers[second] != ""),
            asked=2,
            score=float(target.first[i, column]),
            cost_usd=float(target.cost_usd[i, column] + target.cost_usd[i, second]),
        )

    single = diagnose([follow(first, i) for i in range(len(target))], target, ranking=ranking)
    assert (single["gain/mean"], single["oracle/gap_closed"]) == (0, 0)
    assert single["regret/mean"] == single["regret/best_single"] > 0.1
    assert {alarm.code for alarm in alarms(single)} == {"role_unused", "verifier_always_accepts"}
    table = {row["agreement"]: row for row in single["accuracy/by_agreement"]}
    assert table[2]["low"] > table[1]["high"] + 0.2
    best = [int(j) for j in np.nanargmax(target.first, axis=1)]
    oracle = diagnose([follow(j, i) for i, j in enumerate(best)], target, ranking=ranking)
    assert (oracle["regret/mean"], oracle["oracle/gap_closed"]) == (0, 1)
