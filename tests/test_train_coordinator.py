"""`train_coordinator` on made-up outcomes: what it gains, must not lose and must not look at, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from coordinators import make_evidence
from outcomes import ALIKE, SUBJECTS, Quiet, Subjects, draw, read_rows, write_recorded, write_world
from torafugu import __version__
from torafugu.episode import Episode
from torafugu.errors import ConfigError, ModelError
from torafugu.eval.baselines import rank_workers, ranked_score, vote_score
from torafugu.eval.evaluate import episodes_to_turns, run_policy
from torafugu.eval.matrix import build_matrix
from torafugu.eval.report import evaluate
from torafugu.eval.states import KnownStates
from torafugu.orchestrate.coordinator import Coordinator, CoordinatorHead
from torafugu.orchestrate.policies import load_policy
from torafugu.orchestrate.tri_head import TriHead
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.coordinator import CoordinatorConfig, TrainedCoordinator, is_gain, train_coordinator
from torafugu.train.rollout import play
from torafugu.train.starts import CANDIDATES, SINGLE
from torafugu.train.tri_trainers import Floats, RandomSearch, TriProblem
from trinity import AGREEING_CALLS, SINGLE_SCORE, VOICES, make_pattern_world, write_pattern

PLAIN = CoordinatorConfig(trainers=())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the `fugu` command does."""
    with threadpool_limits(1):
        yield


@dataclass(frozen=True)
class Silly:
    """A trainer that makes things worse: one call, to whoever is first."""

    name: str = "silly"

    def train(self, problem: TriProblem) -> Floats:
        return np.zeros(TriHead.size())


def train(data: Path, out: Path, config: CoordinatorConfig = PLAIN) -> tuple[TrainedCoordinator, Quiet]:
    recorded, report = read_recorded(data), Quiet()
    pool = create_recorded_pool(recorded)
    return train_coordinator(recorded, Subjects(), pool, out, config=config, cache=None, report=report), report


def measure(policy: Path, data: Path, split: str = "test") -> dict[str, Any]:
    return evaluate(policy, read_recorded(data), split=split, encoder=Subjects(), seed=0, cache=None, report=Quiet())


def weights_of(folder: Path) -> bytes:
    return (folder / "head.safetensors").read_bytes()


@dataclass(frozen=True)
class Made:
    data: Path
    policy: Path
    config: CoordinatorConfig
    trained: TrainedCoordinator
    report: Quiet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One training run, with trainers that cannot help, that several tests look at."""
    folder = tmp_path_factory.mktemp("made")
    data = write_pattern(folder / "data")
    config = CoordinatorConfig(seed=3, trainers=(Silly(), RandomSearch(draws=2, questions=40)))
    trained, report = train(data, folder / "policy", config)
    return Made(data, folder / "policy", config, trained, report)


@pytest.fixture(scope="module")
def measured(made: Made) -> dict[str, Any]:
    return measure(made.policy, made.data)


# What it learns


def test_agreement_of_good_workers_is_learnt(made: Made, measured: dict[str, Any]) -> None:
    """Two good independent workers that agree are believed: fewer calls than asking all, more right than either."""
    assert measured["best_single"]["accuracy"] == pytest.approx(SINGLE_SCORE)
    assert measured["accuracy"] > SINGLE_SCORE + 0.05
    assert measured["calls_mean"] == pytest.approx(AGREEING_CALLS, abs=0.1)
    assert measured["gain"]["mean"] == pytest.approx(measured["accuracy"] - SINGLE_SCORE)
    assert made.trained.start.seen_accuracy_gain > 0.05
    agreed = [row for row in measured["diagnostics"]["accuracy/by_agreement"] if row["agreement"] == 2]
    assert {row["asked"] for row in agreed} == {2, 3}
    assert all(row["accuracy"] == 1.0 for row in agreed)


def test_with_nothing_to_gain_the_best_single_worker_is_asked(tmp_path: Path) -> None:
    """Where one worker is the best at everything, it is asked, once, and nothing is lost, whichever the seed."""
    splits = {"train": 32, "validation": 8, "test": 24}
    data = write_world(tmp_path / "data", ALIKE, seed=1, subjects=SUBJECTS[:1], splits=splits)
    trained, _ = train(data, tmp_path / "policy")
    report = measure(tmp_path / "policy", data)
    assert trained.head.card.training["candidate"] == "single"
    assert (trained.trainer, trained.start.seen, trained.start.is_sure) == (None, 0.0, False)
    assert report["best_single"]["worker"] == "best"
    assert report["shares"] == {"best": 1.0}
    assert report["calls_mean"] == 1.0
    assert report["gain"]["mean"] == 0


def test_single_asks_the_best_single_worker_where_workers_tie(made: Made) -> None:
    """Of workers that are equally good, `single` asks the first, as `best_single` does, whoever's voice counts more."""
    world = make_pattern_world(40)
    evidence = make_evidence(3, ability=np.array([0.7, 0.7, 0.45]), weight=np.array([1.0, 3.0, 9.0]))
    played = play(world, evidence, SINGLE.start.to_head(), SINGLE.rules)
    assert (played.answered_by == 0).all()
    assert (played.calls == 1).all()
    rows = read_rows(made.policy / "metrics.jsonl")
    (single,) = [row for row in rows if row["stage"] == "candidate" and row["candidate"] == "single"]
    assert (single["sure"], single["seen_gain"], single["seen_calls"]) == (False, 0, 1)


def test_dear_calls_are_not_made(made: Made, tmp_path: Path) -> None:
    """A call that has to bring more than it can is not made, though the same data gives some at a low price."""
    trained, _ = train(made.data, tmp_path / "policy", CoordinatorConfig(trainers=(), call_price=0.3))
    assert trained.start.seen_calls == 1
    assert made.trained.start.seen_calls > 2
    assert trained.head.card.training["call_price"] == 0.3


def test_mean_calls_are_kept_to(made: Made, tmp_path: Path) -> None:
    """Starts that need more calls than the limit are passed over, even when calls cost nothing."""
    config = CoordinatorConfig(trainers=(), call_price=0.0, mean_calls=1.5)
    trained, _ = train(made.data, tmp_path / "policy", config)
    assert trained.start.seen_calls <= 1.5 < made.trained.start.seen_calls
    judged = [row for row in read_rows(tmp_path / "policy" / "metrics.jsonl") if row["stage"] == "candidate"]
    assert any(float(str(row["seen_gain"])) > trained.start.seen for row in judged)
    assert trained.head.card.training["mean_calls"] == 1.5


def test_votes_are_judged_on_the_same_folds(made: Made) -> None:
    """A majority of the best 3 workers, as many as there are, stands beside, with what the start gains over it."""
    rows = read_rows(made.policy / "metrics.jsonl")
    (row,) = [row for row in rows if row["stage"] == "vote"]
    assert row["workers"] == 3
    gain, over = float(str(row["seen_accuracy_gain"])), float(str(row["seen_accuracy_gain_over_vote"]))
    assert gain + over == pytest.approx(made.trained.start.seen_accuracy_gain)
    assert float(str(row["seen_accuracy_gain_over_vote_error"])) > 0
    assert "unseen_accuracy_gain" not in row  # its questions are of one family
    matrix = build_matrix(read_recorded(made.data)).split("train", "validation")
    ranking = rank_workers(matrix)
    whole = np.mean(vote_score(matrix, ranking.tolist()) - ranked_score(matrix, ranking))
    assert gain == pytest.approx(whole, abs=0.05)  # each fold ranks the workers by the others


def test_trainers_that_do_not_help_are_not_kept(made: Made) -> None:
    """A trainer that makes things worse is tried, its loss written down, and the start kept."""
    tried = [row for row in read_rows(made.policy / "metrics.jsonl") if row["stage"] == "trainer"]
    assert [row["candidate"] for row in tried] == [trainer.name for trainer in made.config.trainers]
    assert float(str(tried[0]["gain_over_start"])) < 0
    assert tried[0]["kept"] is False
    assert made.trained.trainer is None
    assert made.trained.head.card.training["trainer"] is None


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        ([0.0] * 98 + [1.0] * 2, True),
        ([0.0] * 99 + [1.0], False),
        ([0.001] * 100, False),
        ([0.0] * 90 + [1.0] * 5 + [-1.0] * 5, False),
        ([-0.5] * 100, False),
    ],
)
def test_what_a_trainer_has_to_gain(better: list[float], *, expected: bool) -> None:
    """More than its standard error, and more than one question: a call spared here and there is nothing to rely on."""
    assert is_gain(np.array(better)) is expected


# What it must not look at, and what must not matter


def test_the_test_split_is_never_read(made: Made, tmp_path: Path) -> None:
    """With all outcomes, words and families of the test split changed, weights and metrics are the same bytes."""
    questions, outcomes = read_rows(made.data / "questions.jsonl"), read_rows(made.data / "outcomes.jsonl")
    tested = {row["qid"] for row in questions if row["split"] == "test"}
    for row in questions:
        if row["qid"] in tested:
            row |= {"prompt": f"About beetles: {row['qid']}", "family": "beetles", "split": "unseen"}
    for row in outcomes:
        if row["qid"] in tested:
            row |= {"correct": 1.0 - float(str(row["correct"])), "answer": "poison", "cost_usd": 99.0}
    models = json.loads((made.data / "models.json").read_text())["models"]
    data = write_recorded(tmp_path / "data", questions, outcomes, models=models)
    trained, _ = train(data, tmp_path / "policy", made.config)
    assert weights_of(tmp_path / "policy") == weights_of(made.policy)
    assert trained.head.card.weights_sha256 == made.trained.head.card.weights_sha256
    assert (tmp_path / "policy" / "metrics.jsonl").read_text() == (made.policy / "metrics.jsonl").read_text()


def test_missing_outcomes_and_empty_answers(tmp_path: Path) -> None:
    """With a quarter of the outcomes missing and some answers empty, of two families, training and loop agree."""
    data = write_pattern(tmp_path / "data", {"train": 40, "validation": 20, "test": 20}, subjects=SUBJECTS[:2])
    rows = [row for row in read_rows(data / "outcomes.jsonl") if draw("hole", row["qid"], row["model"]) > 0.25]
    for row in rows:
        if draw("empty", row["qid"], row["model"]) < 0.2:
            row |= {"answer": "", "correct": 0.0}
    write_recorded(data, read_rows(data / "questions.jsonl"), rows)
    trained, _ = train(data, tmp_path / "policy")
    assert trained.start.unseen is not None
    assert trained.start.unseen_calls is not None
    report = measure(tmp_path / "policy", data)
    assert 0 < report["accuracy"] <= report["oracle"]
    assert report["n"] + report["unscored"]["count"] == 20


@pytest.mark.parametrize("count", [2, 3])
def test_a_handful_of_questions_trains_without_a_stumble(count: int, tmp_path: Path) -> None:
    """From two or three questions a head is made that loads and answers."""
    data = write_pattern(tmp_path / "data", {"train": count, "validation": 0, "test": 6})
    train(data, tmp_path / "policy")
    assert measure(tmp_path / "policy", data)["accuracy"] is not None


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 0, "validation": 5, "test": 5}, "no questions of split 'train'.*has test"),
        ({"train": 1, "validation": 0, "test": 5}, "expected at least 2"),
    ],
)
def test_data_that_cannot_teach_is_refused(splits: dict[str, int], message: str, tmp_path: Path) -> None:
    """Without training questions, or with one, the error names the folder and nothing is written."""
    data = write_pattern(tmp_path / "data", splits)
    with pytest.raises(ConfigError, match=message) as caught:
        train(data, tmp_path / "policy")
    assert str(data) in caught.value.message
    assert not (tmp_path / "policy").exists()


# What it leaves behind


def test_the_card_says_what_the_head_was_made_from(made: Made) -> None:
    """Rules, prices, limits, seed, sizes of the splits and the candidate stand on the card that is loaded."""
    card = CoordinatorHead.load(made.policy).card
    assert card.kind == "coordinator"
    assert card.encoder == "subjects"
    assert card.rules["roles"] == ["worker", "verifier"]
    assert card.rules["max_turns"] > card.rules["max_calls"] >= 3
    training = card.training
    assert training["questions"] == {"train": 60, "validation": 20}
    assert training["candidate"] == made.trained.start.candidate.name
    assert (training["seed"], training["call_price"], training["cost_price"]) == (3, 0.001, 0.0)
    assert (training["mean_calls"], training["version"]) == (3.1, __version__)
    assert training["data"]["datasets"] == ["made-up"]
    assert card.baselines["best_single"]["worker"] == "left"
    assert card.baselines["best_single"]["accuracy"] == pytest.approx(SINGLE_SCORE)
    assert card.metrics["seen_gain"] == made.trained.start.seen
    assert [(worker.id, worker.model) for worker in card.workers] == [(w, f"maker/{w}") for w in sorted(VOICES)]
    assert card.gate == {}


def test_the_run_leaves_its_record(made: Made) -> None:
    """The folder holds head, card, metrics, the run and a report that stands alone; no number of them is NaN."""
    names = {"head.safetensors", "card.json", "metrics.jsonl", "run.json", "report.html"}
    assert {path.name for path in made.policy.iterdir()} == names

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    run = json.loads((made.policy / "run.json").read_text(), parse_constant=refuse)
    assert run["command"] == sys.argv
    assert run["config"]["seed"] == 3
    assert run["config"]["trainers"] == [trainer.name for trainer in made.config.trainers]
    lines = (made.policy / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert {row["stage"] for row in rows} == {"candidate", "vote", "trainer", "diagnostics", "alarms", "final"}
    judged = [row for row in rows if row["stage"] == "candidate"]
    mean, judged = judged[0], judged[1:]
    assert mean["mean_of"] > 1
    assert {row["candidate"] for row in judged} == {candidate.name for candidate in CANDIDATES}
    gains = [row["seen_gain"] for row in judged]
    assert gains == sorted(gains, reverse=True)
    assert rows[-1]["candidate"] == made.trained.start.candidate.name
    page = (made.policy / "report.html").read_text()
    assert "<svg" in page
    assert made.trained.start.candidate.name.split(",")[0] in page
    assert "src=" not in page


def test_progress_adds_up(made: Made) -> None:
    """Every stage that is announced is gone through to its end."""
    names = [name for name, _ in made.report.stages]
    assert names[:3] == ["encode questions", "judge candidates", "try trainers"]
    assert names[3:] == ["fit on train", "fit on train and validation"]
    assert made.report.advanced == sum(total for _, total in made.report.stages)
    assert any(line.startswith("best: ") for line in made.report.lines)


def test_the_validation_split_is_described(made: Made) -> None:
    """Validation is played by a head of the training split through the loop that serves, and diagnosed."""
    found = made.trained.validation
    assert found["n"] == 20
    (row,) = [row for row in read_rows(made.policy / "metrics.jsonl") if row["stage"] == "diagnostics"]
    assert row["n"] == 20


# How it is served and measured


def test_a_worker_that_is_masked_is_never_asked(made: Made) -> None:
    """Whoever the request does not allow is not called, whichever of them it is; the others answer all the same."""
    recorded = read_recorded(made.data)
    target = build_matrix(recorded).split("test")
    states = {q.text: Subjects().encode_texts([q.text])[0] for q in target.questions}
    models = {worker: f"maker/{worker}" for worker in VOICES}
    policy = load_policy(made.policy, KnownStates("subjects", states, Subjects.dim), models)
    assert isinstance(policy, Coordinator)
    pool = create_recorded_pool(recorded)
    for masked in VOICES:
        known = frozenset(VOICES) - {masked}
        episodes = asyncio.run(run_policy(target, policy, pool, known=known))
        assert all(episode.score is not None for episode in episodes)
        assert {worker for episode in episodes for worker in episode.workers} <= known
        assert max(episode.calls for episode in episodes) == 2


def test_the_report_holds_what_others_need_to_check_it(measured: dict[str, Any]) -> None:
    """Per question: scores of ours and the best single worker; gains over each baseline agree with the accuracies."""
    questions = measured["questions"]
    assert len(questions) == measured["n"] == 40
    assert np.mean([row["score"] for row in questions]) == pytest.approx(measured["accuracy"])
    assert np.mean([row["best_single"] for row in questions]) == pytest.approx(measured["best_single"]["accuracy"])
    assert np.mean([row["calls"] for row in questions]) == pytest.approx(measured["calls_mean"])
    assert {row["family"] for row in questions} == {SUBJECTS[0]}
    assert {row["answered_by"] for row in questions} <= set(VOICES)
    assert all(row["vote_5"] is None for row in questions)  # the pool has three
    for name, accuracy in measured["baselines"].items():
        if accuracy is not None:
            gain = measured["gain_over"][name]
            assert gain["mean"] == pytest.approx(measured["accuracy"] - accuracy)
            assert gain["low"] <= gain["mean"] <= gain["high"]
    assert set(measured["gain_over"]) == {name for name, value in measured["baselines"].items() if value is not None}
    assert "vote_3" in measured["gain_over"]
    assert measured["policy"]["id"].startswith("fugu-trinity@")


def test_the_report_is_diagnosed(made: Made, measured: dict[str, Any]) -> None:
    """Diagnostics are of the same episodes as the table, and where nothing is wrong there is no alarm."""
    assert measured["diagnostics"]["n"] == 40
    assert measured["diagnostics"]["accuracy/mean"] == pytest.approx(measured["accuracy"])
    assert measured["diagnostics"]["calls/mean"] == pytest.approx(measured["calls_mean"])
    assert measured["diagnostics"]["best_single/worker"] == "left"
    assert measured["diagnostics"]["stop/accepted"] == 40
    assert measured["diagnostics"]["turns/limit"] == CoordinatorHead.load(made.policy).rules.max_turns
    assert measured["alarms"] == []
    json.dumps(measured, allow_nan=False)


def test_episodes_become_turns(made: Made) -> None:
    """Calls with their roles, who agreed with the answer, and why the run ended, are read off an episode."""
    target = build_matrix(read_recorded(made.data)).split("test").rows([0, 12])  # all agree; left and third do
    replied = (("left", "worker"), ("right", "thinker"), ("third", "verifier"))
    stopped = {"stopped": "accepted", "turns": 4}
    episode = Episode(
        task="t", score=1.0, answered_by="left", replied=replied, stopped=stopped, workers=VOICES, calls=3
    )
    failed = Episode(task="t", score=None, fault="worker", code="timeout", replied=(("left", "worker"),))
    first, second = episodes_to_turns(target, [episode, failed])
    assert (first.calls, first.answered_by, first.accepted, first.turns) == (replied, "left", True, 4)
    assert (first.agreement, first.asked, first.score) == (2, 2, 1.0)  # a Thinker gives no answer
    assert first.cost_usd is None
    assert (second.answered_by, second.accepted, second.turns) == (None, False, 1)
    assert (second.agreement, second.asked, second.score) == (None, 1, None)


def test_an_interrupted_training_leaves_no_head(tmp_path: Path) -> None:
    """A run that dies while it reads the questions leaves a folder that is refused as a policy, with the reason."""

    class Interrupted(BaseException):
        pass

    class Dying(Subjects):
        def encode_texts(self, texts: object) -> Any:
            raise Interrupted

    data = write_pattern(tmp_path / "data", {"train": 5, "validation": 2, "test": 2})
    recorded = read_recorded(data)
    with pytest.raises(Interrupted):
        train_coordinator(
            recorded,
            Dying(),
            create_recorded_pool(recorded),
            tmp_path / "policy",
            config=PLAIN,
            cache=None,
            report=Quiet(),
        )
    with pytest.raises(ModelError, match="no trained head here"):
        CoordinatorHead.load(tmp_path / "policy")
