"""Workers that are added to a trained coordinator from a short profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from heads import DIM
from recorded_set import write_set
from torafugu.errors import ConfigError
from torafugu.eval.matrix import OutcomeMatrix, build_matrix
from torafugu.orchestrate.artefact import Card, WorkerIdentity
from torafugu.orchestrate.coordinator import CoordinatorHead
from torafugu.orchestrate.tri_head import Rules
from torafugu.pool.recorded import read_recorded
from torafugu.train.add import add_workers
from torafugu.train.features import FeatureConfig
from torafugu.train.rollout import play
from torafugu.train.tri_trainers import Start
from torafugu.train.worlds import QuestionMap, fit_reading, matrix_to_world

RULES = Rules(max_turns=8, max_calls=3, roles=("worker", "verifier"))
SKILLS = {
    "able": {"easy": 0.8, "hard": 0.7},
    "best": {"easy": 0.9, "hard": 0.8},
    "fair": {"easy": 0.7, "hard": 0.6},
    "poor": {"easy": 0.3, "hard": 0.1},
    "star": {"easy": 0.95, "hard": 0.95},
}


def columns(matrix: OutcomeMatrix, *workers: str) -> OutcomeMatrix:
    """The matrix of some workers only."""
    return matrix.columns([j for j, worker in enumerate(matrix.workers) if worker in workers])


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> OutcomeMatrix:
    folder = write_set(tmp_path_factory.mktemp("add"), SKILLS, per_family=300, splits=("train",))
    return build_matrix(read_recorded(folder))


def hidden_of(matrix: OutcomeMatrix) -> np.ndarray:
    """One direction per family."""
    states = np.zeros((len(matrix), DIM), np.float32)
    states[:, 0] = np.where(matrix.families == "easy", 1, -1)
    return states


UNREAD = QuestionMap(features=None, reads_lengths=True)
READ = QuestionMap(features=FeatureConfig(kind="landmarks", components=1, landmarks=2, sharpness=1.0))


def train(matrix: OutcomeMatrix, question_map: QuestionMap = UNREAD) -> CoordinatorHead:
    fitted = fit_reading(matrix, hidden_of(matrix), question_map, seed=0)
    card = Card(
        encoder="e",
        workers=tuple(WorkerIdentity(w, f"{w}-1") for w in matrix.workers),
        training={},
        metrics={},
        baselines={},
        gate={"promoted": True},
    )
    head = Start(threshold=0.85).to_head()
    return CoordinatorHead.create(fitted.reading.features, fitted.reading.weight, fitted.evidence, head, RULES, card)


def accuracy(head: CoordinatorHead, matrix: OutcomeMatrix) -> float:
    ordered = columns(matrix, *(worker.id for worker in head.card.workers))
    at = [ordered.workers.index(worker.id) for worker in head.card.workers]
    world = matrix_to_world(ordered, head.prospect(hidden_of(matrix)))
    world = dataclasses.replace(
        world,
        score=world.score[:, at],
        same=world.same[:, at][:, :, at],
        alike=world.alike[:, at][:, :, at],
        cost=world.cost[:, at],
        length=world.length[:, at],
    )
    return float(play(world, head.evidence, head.head, head.rules).score.mean())


def test_a_good_worker_is_used(matrix: OutcomeMatrix) -> None:
    """From forty questions a better worker than all others is found to be one, and the coordinator gains by it."""
    old = train(columns(matrix, "able", "best", "fair", "poor"))
    grown = add_workers(old, matrix.rows(range(0, 600, 15)), hidden_of(matrix)[::15])
    assert [worker.id for worker in grown.card.workers] == ["able", "best", "fair", "poor", "star"]
    assert grown.evidence.ability[4] > grown.evidence.ability[:4].max()
    assert grown.evidence.weight[4] > grown.evidence.weight[:4].max()
    assert accuracy(grown, matrix) > accuracy(old, matrix) + 0.02


def test_the_others_stay_as_they_are(matrix: OutcomeMatrix) -> None:
    """What is known of the workers that were there, the head and the rules are the very same numbers."""
    old = train(columns(matrix, "able", "best", "fair"))
    grown = add_workers(old, matrix.rows(range(60)), hidden_of(matrix)[:60])
    assert np.array_equal(grown.evidence.weight[:3], old.evidence.weight)
    assert np.array_equal(grown.evidence.overlap[:3, :3], old.evidence.overlap)
    assert np.array_equal(grown.head.to_vector(), old.head.to_vector())
    assert np.array_equal(grown.question[:3], old.question)
    assert (grown.rules, grown.evidence.of_deviation) == (old.rules, old.evidence.of_deviation)


@pytest.mark.parametrize("question_map", [UNREAD, READ], ids=["unread", "read"])
def test_near_what_training_finds(matrix: OutcomeMatrix, question_map: QuestionMap) -> None:
    """With all questions, an added worker's weight and ability are near those of a training that knew it."""
    whole = train(matrix, question_map)
    old = train(columns(matrix, "able", "best", "fair", "poor"), question_map)
    grown = add_workers(old, matrix, hidden_of(matrix))
    at = [worker.id for worker in whole.card.workers].index("star")
    assert grown.evidence.weight[4] == pytest.approx(whole.evidence.weight[at], abs=0.7)
    assert grown.evidence.ability[4] == pytest.approx(whole.evidence.ability[at], abs=0.02)


def test_deviations_count_as_in_the_head(matrix: OutcomeMatrix) -> None:
    """A head of an earlier version, which counts points, goes on to count points, and weighs the new voice by them."""
    weights = []
    for in_log_odds in (True, False):
        old = train(columns(matrix, "able", "best", "fair", "poor"), READ)
        old.evidence = dataclasses.replace(old.evidence, in_log_odds=in_log_odds)
        grown = add_workers(old, matrix, hidden_of(matrix)).evidence
        assert grown.in_log_odds is in_log_odds
        weights.append(grown.weight[4])
    assert abs(weights[0] - weights[1]) > 0.01


def test_lengths_of_a_new_worker(matrix: OutcomeMatrix) -> None:
    """What it usually writes is measured in the profile; what length means was learnt from the others."""
    draw = np.random.default_rng(0)
    wrong = np.nan_to_num(matrix.first) < 0.5
    tokens = np.exp(draw.normal(np.linspace(3, 5, 5) + wrong, 0.2))
    tokens[:, -1][:10] = np.nan
    measured = dataclasses.replace(matrix, out_tokens=tokens)
    old = train(columns(measured, "able", "best", "fair", "poor"))
    grown = add_workers(old, measured.rows(range(60)), hidden_of(matrix)[:60])
    before, after = old.evidence.lengths, grown.evidence.lengths
    assert (after.of_voice, after.of_none) == (before.of_voice, before.of_none)
    assert after.of_voice < -0.5
    assert np.array_equal(after.mean[:4], before.mean)
    assert np.array_equal(after.scale[:4], before.scale)
    usual = np.log1p(tokens[10:60, -1])
    assert (after.mean[4], after.scale[4]) == pytest.approx((usual.mean(), usual.std()), rel=1e-6)


def test_a_profile_of_the_new_worker_alone(matrix: OutcomeMatrix) -> None:
    """Without others' answers there is no agreement to learn from: its weight is what its ability suggests."""
    old = train(columns(matrix, "able", "best", "fair", "poor"))
    alone = add_workers(old, columns(matrix, "star").rows(range(60)), hidden_of(matrix)[:60])
    order = np.argsort(alone.evidence.ability)
    assert order[-1] == 4
    assert alone.evidence.weight[4] > np.median(alone.evidence.weight[:4])


def test_a_grown_head_is_not_promoted(matrix: OutcomeMatrix) -> None:
    """What was measured of the old head says nothing of the new one; the card says what was added, and to what."""
    old = train(columns(matrix, "able", "best"))
    grown = add_workers(old, columns(matrix, "able", "star").rows(range(50)), hidden_of(matrix)[:50])
    assert (dict(old.card.gate), dict(grown.card.gate)) == ({"promoted": True}, {})
    added = grown.card.training["added"]
    assert (added["workers"], added["to"], added["questions"]) == (["star"], old.id, [50])


def test_nothing_to_add(matrix: OutcomeMatrix) -> None:
    """A profile without a worker that the head lacks is an error."""
    with pytest.raises(ConfigError, match="knows all"):
        add_workers(train(matrix), matrix, hidden_of(matrix))


def test_too_few_questions(matrix: OutcomeMatrix) -> None:
    """Nineteen answers are too few to say anything of a worker."""
    with pytest.raises(ConfigError, match="answered 19 questions: expected at least 20"):
        add_workers(train(columns(matrix, "able", "best")), matrix.rows(range(19)), hidden_of(matrix)[:19])


def test_another_model_of_a_known_id(matrix: OutcomeMatrix, tmp_path: Path) -> None:
    """A worker that the head knows with another model behind it is refused."""
    old = train(columns(matrix, "able", "best"))
    folder = write_set(tmp_path, {"able": SKILLS["able"], "star": SKILLS["star"]}, per_family=30, splits=("train",))
    text = (folder / "models.json").read_text()
    (folder / "models.json").write_text(text.replace("able-1", "able-2"))
    short = build_matrix(read_recorded(folder))
    with pytest.raises(ConfigError, match="'able-2' here and 'able-1' in the head"):
        add_workers(old, short, hidden_of(short))
