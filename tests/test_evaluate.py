"""What evaluation says, against numbers computed by hand, and what it does where answers are missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recorded_set import outcome, question, write_rows
from torafugu.episode import Episode
from torafugu.errors import ConfigError, PlanError
from torafugu.eval.baselines import (
    choose_per_category,
    oracle_score,
    random_score,
    rank_workers,
    ranked_score,
    score_of_choice,
    vote_score,
)
from torafugu.eval.evaluate import measure_baselines, run_policy, summarise
from torafugu.eval.matrix import OutcomeMatrix, best_single, build_matrix
from torafugu.orchestrate import Run
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.types import Answer, Plan, Step

NOT_ASKED = None
WORKERS = ("ant", "bee", "cat")
Row = tuple[str, str, str, list[Any]]
# qid, split, category, then (score, answer) of ant, bee and cat
TRAIN: list[Row] = [
    ("t1", "train", "maths", [(1, "1"), (1, "1"), (0, "2")]),
    ("t2", "train", "maths", [(1, "1"), (0, "2"), (0, "3")]),
    ("t3", "train", "text", [(0, "1"), (0, "2"), (1, "3")]),
    ("t4", "train", "text", [(1, "1"), (0, "2"), (1, "1")]),
]
TEST: list[Row] = [
    ("m1", "test", "maths", [(1, "a"), (1, "a"), (0, "x")]),
    ("m2", "test", "maths", [(0, "y"), (1, "b"), (0, "y")]),  # the wrong ones agree
    ("x1", "test", "text", [(0, "p"), (1, "q"), (1, "q")]),
    ("x2", "test", "text", [(0, ""), NOT_ASKED, (1, "z")]),
    ("n1", "test", "new", [(1, "k"), (0, "l"), (0, "m")]),  # all disagree; a category that training never saw
]


def write_table(folder: Path, rows: list[Row], workers: tuple[str, ...] = WORKERS, **fields: Any) -> Path:
    write_rows(folder, "questions", [question(q, split, category=category) for q, split, category, _ in rows])
    fields = {"in_tokens": 10, "out_tokens": 5, "latency_s": 2.0} | fields
    outcomes = [
        outcome(qid, worker, cell[0], answer=cell[1], **fields)
        for qid, _, _, cells in rows
        for worker, cell in zip(workers, cells, strict=True)
        if cell is not NOT_ASKED
    ]
    write_rows(folder, "outcomes", outcomes)
    price = {"price_usd_per_million": {"input": 1, "output": 2}}  # 0.00002 a call
    (folder / "models.json").write_text(json.dumps({"models": dict.fromkeys(workers, price)}))
    return folder


def read_table(folder: Path, rows: list[Row], **fields: Any) -> OutcomeMatrix:
    return build_matrix(read_recorded(write_table(folder, rows, **fields)))


@pytest.fixture
def matrix(tmp_path: Path) -> OutcomeMatrix:
    return read_table(tmp_path, TRAIN + TEST)


class Choosing:
    """A policy that knows whom it asks which question."""

    id = "choosing"

    def __init__(self, worker_of: Mapping[str, str]) -> None:
        self._worker_of = worker_of

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        task = run.request.task
        if task not in self._worker_of:
            raise PlanError(f"no idea whom to ask {task!r}")
        return Plan(steps=(Step(id=0, worker=self._worker_of[task], is_final=True),))


CHOICE = {"m1": "ant", "m2": "bee", "x1": "cat", "x2": "cat", "n1": "bee"}


def run(matrix: OutcomeMatrix, choice: Mapping[str, str], known: tuple[str, ...] = WORKERS) -> list[Episode]:
    pool = create_recorded_pool(matrix.recorded)
    return asyncio.run(run_policy(matrix, Choosing(choice), pool, known=frozenset(known)))


# --- the matrix ---


def test_matrix(tmp_path: Path) -> None:
    """A cell is the mean over samples, its first sample's score, answer, cost and seconds; unknown is NaN, never 0."""
    write_rows(tmp_path, "questions", [question("q", category="maths"), question("r", family="f")])
    rows = [
        outcome("q", "ant", 0, k=1, answer="late", cost_usd=9),
        outcome("q", "ant", 1, k=0, answer="early", in_tokens=10, out_tokens=5, latency_s=2),
        outcome("q", "bee", 1, out_tokens=5),
        outcome("r", "bee", 0, cost_usd=0.5),
    ]
    write_rows(tmp_path, "outcomes", rows)
    price = {"price_usd_per_million": {"input": 1, "output": 2}}
    (tmp_path / "models.json").write_text(json.dumps({"models": {"ant": price, "bee": price}}))
    matrix = build_matrix(read_recorded(tmp_path))
    np.testing.assert_array_equal(matrix.mean, [[0.5, 1], [np.nan, 0]])
    np.testing.assert_array_equal(matrix.first, [[1, 1], [np.nan, 0]])
    np.testing.assert_array_equal(matrix.latency_s, [[2, np.nan], [np.nan, np.nan]])
    assert matrix.answers == (("early", ""), ("", ""))
    # bee's input tokens are an estimate: "question q" is 10 characters, so 3 tokens
    np.testing.assert_allclose(matrix.cost_usd, [[20e-6, 13e-6], [np.nan, 0.5]])
    assert matrix.is_cost_estimated
    assert matrix.categories.tolist() == ["maths", "d"]
    assert matrix.families.tolist() == ["maths", "f"]


def test_rows_and_splits(matrix: OutcomeMatrix) -> None:
    """Splits and rows keep each question with its cells; joining two splits puts one after the other."""
    train, test = matrix.split("train"), matrix.split("test")
    assert [q.qid for q in train.questions] == ["t1", "t2", "t3", "t4"]
    assert len(matrix.split("nothing")) == 0
    joined = OutcomeMatrix.join(test, train)
    assert [q.qid for q in joined.questions] == ["m1", "m2", "x1", "x2", "n1", "t1", "t2", "t3", "t4"]
    np.testing.assert_array_equal(joined.rows([1, 8]).first, [[0, 1, 0], [1, 0, 1]])
    assert joined.rows([1]).answers == (("y", "b", "y"),)


def test_best_single_needs_coverage(tmp_path: Path) -> None:
    """A worker that was asked little is not the best single worker, however right it was; of equals it is the first."""
    rows: list[Row] = [(f"q{i}", "train", "c", [(i % 2, "a"), (i % 2, "a"), NOT_ASKED]) for i in range(20)]
    rows[0] = ("q0", "train", "c", [(0, "a"), (0, "a"), (1, "b")])
    matrix = read_table(tmp_path, rows)
    assert matrix.workers[best_single(matrix)] == "ant"
    assert [matrix.workers[j] for j in rank_workers(matrix)] == ["ant", "cat", "bee"]
    with pytest.raises(ConfigError, match="no question to choose the best single worker on"):
        best_single(matrix.rows([]))


# --- baselines, by hand ---


def test_baselines_by_hand(matrix: OutcomeMatrix) -> None:
    """Every baseline's score on every question is what one computes by hand."""
    train, test = matrix.split("train"), matrix.split("test")
    assert [train.workers[j] for j in rank_workers(train)] == ["ant", "cat", "bee"]
    ant, bee, cat = range(3)
    assert ranked_score(test, np.array([ant, bee, cat])).tolist() == [1, 0, 0, 0, 1]
    assert ranked_score(test, np.array([bee, cat, ant])).tolist() == [1, 1, 1, 1, 0]  # never asked x2: cat stands in
    assert random_score(test) == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 2, 1 / 3])
    assert oracle_score(test).tolist() == [1, 1, 1, 1, 1]
    chosen = choose_per_category(train, test)
    assert chosen.tolist() == [ant, ant, cat, cat, ant]  # the new category gets the best single worker
    assert score_of_choice(test, chosen).tolist() == [1, 0, 1, 1, 1]
    # a; y, for two agree; q; z, for an empty answer is no vote; k, for of three different the best voter's counts
    assert vote_score(test, [ant, cat, bee]).tolist() == [1, 0, 1, 1, 1]
    assert vote_score(test, [bee]).tolist() == [1, 1, 1, 0, 0]  # x2: bee was not asked, ant stands in


def test_votes_by_meaning(tmp_path: Path) -> None:
    """Answers that say the same are one; of their wordings the most common is scored, else the better voter's."""
    given = {"a": ("0.5", 0.0), "b": ("1/2", 1.0), "c": ("1/2", 1.0), "d": ("3", 0.0), "e": ("3", 0.0)}
    rows = [outcome("q", worker, score, answer=answer) for worker, (answer, score) in given.items()]
    write_rows(tmp_path, "questions", [question("q")])
    write_rows(tmp_path, "outcomes", rows)
    matrix = build_matrix(read_recorded(tmp_path))
    d, e, a, b, c = 3, 4, 0, 1, 2
    assert vote_score(matrix, [d, e, a, b, c]).tolist() == [1.0]
    assert vote_score(matrix, [a, b, d]).tolist() == [0.0]


def test_measured_baselines(matrix: OutcomeMatrix) -> None:
    """What could be measured has scores and calls; what could not says why, and is not zero."""
    train, test = matrix.split("train"), matrix.split("test")
    found = {m.name: m for m in measure_baselines(train, train.rows([]), test, None)}
    votes = ["vote_3", "vote_5"]
    assert list(found) == ["random", "best_per_category", *votes, "knn", "svm_linear", "svm_rbf"]
    means = {name: None if m.scores is None else m.scores.mean() for name, m in found.items()}
    assert means["random"] == pytest.approx(0.5)
    assert (means["best_per_category"], means["vote_3"], means["vote_5"]) == (
        pytest.approx(0.8),
        pytest.approx(0.8),
        None,
    )
    assert (found["random"].calls, found["vote_3"].calls, found["vote_5"].calls) == (1, 3, None)
    assert found["vote_5"].why_not == "the pool has 3 workers"
    assert found["knn"].why_not == "no training and validation questions to learn from"


def test_baselines_choose_on_validation_too(tmp_path: Path) -> None:
    """Policies learn from both splits, so baselines choose on both: here the second turns the first around."""
    rows: list[Row] = [
        ("t1", "train", "maths", [(1, "a"), (0, "x"), (0, "y")]),
        *((f"v{i}", "validation", "maths", [(0, "x"), (1, "a"), (0, "y")]) for i in range(2)),
        ("m1", "test", "maths", [(0, "x"), (1, "a"), (0, "y")]),
    ]
    matrix = read_table(tmp_path, rows)
    train, validation, test = matrix.split("train"), matrix.split("validation"), matrix.split("test")
    for known, wanted in ((validation, 1.0), (validation.rows([]), 0.0)):
        found = {m.name: m.scores for m in measure_baselines(train, known, test, None)}
        for name in ("best_per_category", "vote_3"):  # of three different answers the best voter's counts
            scores = found[name]
            assert scores is not None
            assert scores.tolist() == [wanted], name


def test_no_training_split(matrix: OutcomeMatrix) -> None:
    """Where there is nothing to choose on, the baselines that choose are not measured, and say so."""
    test = matrix.split("test")
    found = measure_baselines(test.rows([]), test.rows([]), test, None)
    assert [m.name for m in found if m.scores is not None] == ["random"]
    assert {m.why_not for m in found if m.scores is None} == {"no training questions to choose on"}
    assert len(found) == 7


def test_stand_in_for_an_unasked_worker(tmp_path: Path) -> None:
    """Where a baseline's choice was never asked, the best one in training that was stands in."""
    rows: list[Row] = [
        ("t", "train", "maths", [(0, "a"), (1, "b"), (0, "c")]),
        ("q", "test", "maths", [(0, "a"), NOT_ASKED, (1, "c")]),
        ("n", "test", "new", [(0, "a"), (1, "b"), (0, "c")]),
    ]
    matrix = read_table(tmp_path, rows)
    found = {m.name: m for m in measure_baselines(matrix.split("train"), matrix.rows([]), matrix.split("test"), None)}
    scores = found["best_per_category"].scores
    assert scores is not None
    assert scores.tolist() == [0, 1]  # bee is chosen for both; ant is next in training


# --- the summary ---

PROMISED = {"n", "accuracy", "best_single", "gain", "calls_mean", "cost_usd", "baselines", "oracle"}


def test_summary_by_hand(matrix: OutcomeMatrix) -> None:
    """The summary's numbers are those one computes by hand, and it is JSON without NaN."""
    train, test = matrix.split("train"), matrix.split("test")
    episodes = run(test, CHOICE)
    assert [e.score for e in episodes] == [1, 1, 1, 1, 0]
    report = summarise(
        test, episodes, rank_workers(train), measure_baselines(train, train.rows([]), test, None), seed=0
    )
    assert set(report) >= PROMISED
    assert (report["n"], report["accuracy"], report["oracle"]) == (5, 0.8, 1)
    assert report["best_single"] == {"worker": "ant", "accuracy": 0.4, "asked_share": 1}
    assert report["gain"]["mean"] == pytest.approx(0.4)
    assert -0.4 <= report["gain"]["low"] < 0.4 < report["gain"]["high"] <= 1
    assert report["gap_closed"] == pytest.approx((0.8 - 0.4) / (1 - 0.4))
    assert report["calls_mean"] == 1
    assert (report["cost_usd"], report["best_single_cost_usd"]) == (pytest.approx(5 * 20e-6), pytest.approx(5 * 20e-6))
    assert (report["cost_known_share"], report["cost_basis"]) == (1, "recorded tokens")
    assert report["latency_s_mean"] == 2
    assert report["shares"] == {"bee": 0.4, "cat": 0.4, "ant": 0.2}
    assert report["routing_entropy_bits"] == pytest.approx(-(0.8 * np.log2(0.4) + 0.2 * np.log2(0.2)))
    assert report["workers"] == {"ant": 0.4, "bee": pytest.approx(3 / 4), "cat": pytest.approx(2 / 5)}
    assert report["by_category"]["text"] == {"n": 2, "accuracy": 1, "best_single": 0, "oracle": 1}
    assert report["baselines"]["vote_3"] == pytest.approx(0.8)
    assert report["baselines"]["vote_5"] is None
    assert report["unscored"] == {"count": 0, "why": {}}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_same_seed_same_interval(matrix: OutcomeMatrix) -> None:
    """The interval hangs on the seed alone, and holds its mean."""
    test = matrix.split("test")
    one, again, other = (summarise(test, run(test, CHOICE), np.arange(3), [], seed=seed)["gain"] for seed in (1, 1, 2))
    assert one == again
    assert one["low"] <= one["mean"] <= one["high"]
    assert one["mean"] == other["mean"]


def test_question_that_nobody_was_asked(tmp_path: Path) -> None:
    """A question without a single answer is left out and counted: it is neither the policy's fault nor the oracle's."""
    extra: Row = ("z", "test", "text", [NOT_ASKED] * 3)
    matrix = read_table(tmp_path, [*TRAIN, *TEST, extra])
    train, test = matrix.split("train"), matrix.split("test")
    assert np.isnan(random_score(test)[-1])
    assert np.isnan(oracle_score(test)[-1])
    report = summarise(
        test, run(test, CHOICE), np.arange(3), measure_baselines(train, train.rows([]), test, None), seed=0
    )
    assert (report["n"], report["accuracy"], report["oracle"]) == (5, 0.8, 1)
    assert report["unscored"] == {"count": 1, "why": {"grader:no_outcome": 1}}
    assert report["baselines"]["random"] == pytest.approx(0.5)
    json.dumps(report, allow_nan=False)


def test_question_for_unknown_workers_only(matrix: OutcomeMatrix) -> None:
    """Where only workers were asked that the policy does not know, nothing can be said of it: left out and counted."""
    test = matrix.split("test")
    episodes = run(test, dict.fromkeys(CHOICE, "bee"), known=("bee",))
    assert [e.score for e in episodes] == [1, 1, 1, None, 0]
    report = summarise(test, episodes, np.arange(3), [], seed=0)
    assert (report["n"], report["unscored"]["count"]) == (4, 1)
    assert report["best_single"]["accuracy"] == 0.5  # of the same four questions


def test_policy_may_only_call_who_was_asked(matrix: OutcomeMatrix) -> None:
    """Asking a worker that has no answer to this question is the policy's own fault, and scored 0."""
    test = matrix.split("test")
    episodes = run(test, CHOICE | {"x2": "bee"})
    assert (episodes[3].score, episodes[3].fault, episodes[3].code) == (0, "policy", "bad_plan")


def test_policy_that_fails(matrix: OutcomeMatrix) -> None:
    """A policy without a plan is scored 0 where it has none, for no money; its other answers count as they are."""
    test = matrix.split("test")
    episodes = run(test, {"m1": "ant", "m2": "bee"})
    assert [(e.score, e.calls, e.answered_by) for e in episodes] == [
        (1, 1, "ant"),
        (1, 1, "bee"),
        *[(0, 0, None)] * 3,
    ]
    report = summarise(test, episodes, np.arange(3), [], seed=0)
    assert (report["n"], report["accuracy"], report["calls_mean"]) == (5, 0.4, 0.4)
    assert report["cost_usd"] == pytest.approx(2 * 20e-6)
    assert report["latency_s_mean"] is None
    assert report["shares"] == {"ant": 0.2, "bee": 0.2}


def test_policy_that_always_fails(matrix: OutcomeMatrix) -> None:
    """A policy that never has a plan scores 0 everywhere, and is told so in numbers, not by an exception."""
    test = matrix.split("test")
    report = summarise(test, run(test, {}), np.arange(3), [], seed=0)
    assert (report["n"], report["accuracy"], report["shares"]) == (5, 0, {})
    assert report["routing_entropy_bits"] is None
    assert report["gain"]["mean"] == pytest.approx(-0.4)


def test_nothing_scored(matrix: OutcomeMatrix) -> None:
    """When not one question could be scored there is no report but an error with the reason."""
    test = matrix.split("test").rows([3])
    with pytest.raises(ConfigError, match="not one of 1 episodes could be scored: grader no_outcome"):
        summarise(test, run(test, {}, known=("bee",)), np.arange(3), [], seed=0)


def test_single_worker_that_was_not_asked(matrix: OutcomeMatrix) -> None:
    """Where the best single worker was not asked, the next best stands in; the report says how much it was asked."""
    test = matrix.split("test")
    report = summarise(test, run(test, CHOICE), np.array([1, 2, 0]), [], seed=0)
    assert report["best_single"] == {"worker": "bee", "accuracy": 0.8, "asked_share": 0.8}
    stood_in = np.where(np.isfinite(test.first[:, 1]), test.cost_usd[:, 1], test.cost_usd[:, 2])
    assert report["best_single_cost_usd"] == pytest.approx(stood_in.sum())


def test_unknown_costs(tmp_path: Path) -> None:
    """One answer of unknown cost makes the sum unknown, and the known share is told; estimates are said to be."""
    matrix = read_table(tmp_path / "a", TRAIN + TEST, in_tokens=None)
    report = summarise(matrix.split("test"), run(matrix.split("test"), CHOICE), np.arange(3), [], seed=0)
    assert report["cost_usd"] is not None
    assert report["cost_basis"] == "input tokens estimated as characters / 4"
    matrix = read_table(tmp_path / "b", TRAIN + TEST, out_tokens=None)
    report = summarise(matrix.split("test"), run(matrix.split("test"), CHOICE), np.arange(3), [], seed=0)
    assert (report["cost_usd"], report["cost_known_share"]) == (None, 0)
