"""`train_selector` on made-up worlds: what it gains, what it must not lose or look at, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from outcomes import ALIKE, SPECIALISTS, SUBJECTS, Quiet, Subjects, draw, forget, read_rows, write_recorded, write_world
from torafugu import __version__
from torafugu.errors import ConfigError, ModelError
from torafugu.eval.matrix import build_matrix
from torafugu.eval.provenance import find_commit
from torafugu.eval.report import evaluate
from torafugu.orchestrate.head import Head
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.fitness import EpisodeReward
from torafugu.train.selection import choose_columns
from torafugu.train.selector import CANDIDATES, SelectorConfig, Trained, train_selector
from torafugu.train.trainers import SepCMATrainer

WIDE = tuple(f"matter {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWX")
"""Many subjects, so that families left out of training are not half of the world."""
MANY_SPECIALISTS = {
    **{name: dict.fromkeys(WIDE[i::3], 0.9) for i, name in enumerate(("miller", "player", "scholar"))},
    "handyman": dict.fromkeys(WIDE, 0.65),
}
SMALL = {"train": 48, "validation": 24, "test": 24}
SHORT_EVOLUTION = SepCMATrainer(generations=3, popsize=4, questions=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the `fugu` command does: on a busy machine, more threads make small matrices ten times slower."""
    with threadpool_limits(1):
        yield


def train(
    data: Path, out: Path, *, seed: int = 0, evolution: SepCMATrainer | None = None, encoder: Subjects | None = None
) -> tuple[Trained, Quiet]:
    recorded, report = read_recorded(data), Quiet()
    trained = train_selector(
        recorded,
        encoder or Subjects(),
        create_recorded_pool(recorded),
        out,
        config=SelectorConfig(seed=seed, evolution=evolution),
        cache=None,
        report=report,
    )
    return trained, report


def measure(policy: Path, data: Path, split: str = "test") -> dict[str, Any]:
    return evaluate(policy, read_recorded(data), split=split, encoder=Subjects(), seed=0, cache=None, report=Quiet())


def weights_of(folder: Path) -> bytes:
    return (folder / "head.safetensors").read_bytes()


def choices(folder: Path, texts: Sequence[str]) -> list[str]:
    """Whom the head asks."""
    head = Head.load(folder)
    allowed = {worker.id for worker in head.card.workers}
    return [next(iter(head.scores(state, allowed))) for state in Subjects().encode_texts(texts)]


@dataclass(frozen=True)
class World:
    data: Path
    policy: Path
    trained: Trained
    report: Quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One training run with evolution that several tests look at."""
    folder = tmp_path_factory.mktemp("world")
    data = write_world(folder / "data", splits=SMALL)
    trained, report = train(data, folder / "policy", seed=3, evolution=SHORT_EVOLUTION)
    return World(data, folder / "policy", trained, report)


@pytest.mark.parametrize("seed", range(3))
def test_complementary_workers_are_put_to_use(seed: int, tmp_path: Path) -> None:
    """Where workers know different subjects, the head beats the best single one on unseen questions, beyond chance."""
    data = write_world(tmp_path / "data", seed=seed)
    train(data, tmp_path / "policy", seed=seed)
    report = measure(tmp_path / "policy", data)
    assert report["best_single"]["worker"] == "handyman"
    assert report["gain"]["low"] > 0.05
    assert report["accuracy"] <= report["oracle"]


@pytest.mark.parametrize("seed", range(2))
def test_with_nothing_to_gain_the_best_worker_is_always_asked(seed: int, tmp_path: Path) -> None:
    """Where one worker is the best at everything, the head is "single": it asks that worker and loses nothing."""
    data = write_world(tmp_path / "data", ALIKE, seed=seed, splits=SMALL)
    trained, _ = train(data, tmp_path / "policy", seed=seed, evolution=SHORT_EVOLUTION)
    report = measure(tmp_path / "policy", data)
    assert trained.winner.candidate.name == "single"
    assert not trained.evolved
    assert report["shares"] == {"best": 1.0}
    assert report["gain"]["mean"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_unseen_families_cost_no_more_than_chance(seed: int, tmp_path: Path) -> None:
    """On subjects that training never met the head loses no more to the best worker than families differ by chance."""
    splits = {"train": 180, "validation": 72, "test": 90}
    data = write_world(
        tmp_path / "data", MANY_SPECIALISTS, seed=seed, subjects=WIDE[:18], unseen=WIDE[18:], splits=splits
    )
    train(data, tmp_path / "policy", seed=seed)
    known, unseen = measure(tmp_path / "policy", data), measure(tmp_path / "policy", data, "unseen")
    assert known["gain"]["low"] > 0.05
    assert unseen["gain_by_family"]["high"] >= 0


def test_the_order_of_rows_does_not_matter(world: World, tmp_path: Path) -> None:
    """With the rows of outcomes and the workers of models.json in another order, the weights are the same bytes."""
    outcomes = sorted(read_rows(world.data / "outcomes.jsonl"), key=lambda row: draw(row["qid"], row["model"]))
    models = json.loads((world.data / "models.json").read_text())["models"]
    data = write_recorded(
        tmp_path / "data",
        read_rows(world.data / "questions.jsonl"),
        outcomes,
        models={name: models[name] for name in reversed(models)},
    )
    train(data, tmp_path / "policy", seed=3, evolution=SHORT_EVOLUTION)
    assert weights_of(tmp_path / "policy") == weights_of(world.policy)


def test_names_of_workers_do_not_matter(tmp_path: Path) -> None:
    """With the workers renamed so that their order turns round, each question goes to the same worker."""
    names = dict(zip(sorted(SPECIALISTS), ("z", "y", "x", "w"), strict=True))
    data = write_world(tmp_path / "data", seed=1, splits=SMALL)
    skills = {names[worker]: skill for worker, skill in SPECIALISTS.items()}
    renamed = write_world(tmp_path / "renamed", skills, seed=1, splits=SMALL)
    texts = [str(row["prompt"]) for row in read_rows(data / "questions.jsonl") if row["split"] == "test"]
    for folder in (data, renamed):
        train(folder, tmp_path / f"{folder.name}-policy")
    before = choices(tmp_path / "data-policy", texts)
    assert len(set(before)) > 2
    assert choices(tmp_path / "renamed-policy", texts) == [names[worker] for worker in before]


def test_the_test_split_is_never_read(world: World, tmp_path: Path) -> None:
    """With all outcomes and words of the test split changed, the weights are the same bytes."""
    questions = read_rows(world.data / "questions.jsonl")
    outcomes = read_rows(world.data / "outcomes.jsonl")
    tested = {row["qid"] for row in questions if row["split"] == "test"}
    for row in questions:
        if row["qid"] in tested:
            row["prompt"], row["family"] = f"About beetles: {row['qid']}", "beetles"
    for row in outcomes:
        if row["qid"] in tested:
            row["correct"] = 1.0 - float(str(row["correct"]))
    models = json.loads((world.data / "models.json").read_text())["models"]
    data = write_recorded(tmp_path / "data", questions, outcomes, models=models)
    train(data, tmp_path / "policy", seed=3, evolution=SHORT_EVOLUTION)
    assert weights_of(tmp_path / "policy") == weights_of(world.policy)


def test_the_training_split_is_read(world: World, tmp_path: Path) -> None:
    """The counterpart: with the outcomes of training changed, the weights are others."""
    questions = read_rows(world.data / "questions.jsonl")
    outcomes = read_rows(world.data / "outcomes.jsonl")
    for row in outcomes[:40]:
        row["correct"] = 1.0 - float(str(row["correct"]))
    train(write_recorded(tmp_path / "data", questions, outcomes), tmp_path / "policy", seed=3)
    assert weights_of(tmp_path / "policy") != weights_of(world.policy)


def test_the_same_seed_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    """Two runs with one seed, evolution included, write identical weights and identical metrics."""
    train(world.data, tmp_path / "policy", seed=3, evolution=SHORT_EVOLUTION)
    assert weights_of(tmp_path / "policy") == weights_of(world.policy)
    assert (tmp_path / "policy" / "metrics.jsonl").read_text() == (world.policy / "metrics.jsonl").read_text()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_fitness_through_the_loop_is_the_matrix_looked_up(missing: float, tmp_path: Path) -> None:
    """Episodes run by `orchestrate` score what the matrix holds for the argmax over the workers that were asked."""
    data = write_world(tmp_path / "data", splits={"train": 40, "validation": 0, "test": 0}, repeats=2)
    outcomes = [
        row
        for row in read_rows(data / "outcomes.jsonl")
        if row["model"] == "handyman" or draw("asked", row["qid"], row["model"]) >= missing
    ]
    recorded = read_recorded(write_recorded(data, read_rows(data / "questions.jsonl"), outcomes))
    matrix = build_matrix(recorded)
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.standard_normal((40, 5)), np.ones(40)]).astype(np.float32)
    weights = rng.standard_normal((3, 4, 6))
    questions = rng.choice(40, size=25, replace=False)
    rewards = EpisodeReward(matrix, features, create_recorded_pool(recorded))(weights, questions)
    for reward, weight in zip(rewards, weights, strict=True):
        columns = choose_columns(weight, features, matrix)
        assert reward == pytest.approx(matrix.first[questions, columns[questions]].mean())
    assert len(set(rewards)) > 1


def test_validation_is_carved_out_of_training_where_there_is_none(tmp_path: Path) -> None:
    """Without a validation split every fifth training question stands in, and the card says so."""
    data = write_world(tmp_path / "data", splits={"train": 60, "validation": 0, "test": 0})
    trained, _ = train(data, tmp_path / "policy", evolution=SHORT_EVOLUTION)
    assert trained.head.card.training["questions"] == {"train": 48, "validation": 12}
    assert trained.validation_gain > 0.1


def test_questions_that_nobody_answered_are_left_out(world: World, tmp_path: Path) -> None:
    """A profile that was cut short trains as if the questions that it never came to were not there."""
    questions = read_rows(world.data / "questions.jsonl")
    outcomes = read_rows(world.data / "outcomes.jsonl")
    models = json.loads((world.data / "models.json").read_text())["models"]
    unanswered = [{**questions[0], "qid": f"late-{i}", "prompt": f"About steam: {i}?"} for i in range(30)]
    data = write_recorded(tmp_path / "data", [*questions, *unanswered], outcomes, models=models)
    train(data, tmp_path / "policy", seed=3, evolution=SHORT_EVOLUTION)
    assert weights_of(tmp_path / "policy") == weights_of(world.policy)


def test_workers_that_were_asked_only_sometimes_are_used_all_the_same(tmp_path: Path) -> None:
    """With a third of the outcomes missing, the head still beats the best single worker beyond chance."""
    data = write_world(tmp_path / "data", seed=2)
    outcomes = [
        row for row in read_rows(data / "outcomes.jsonl") if row["model"] == "handyman" or draw("hole", row) > 0.33
    ]
    write_recorded(data, read_rows(data / "questions.jsonl"), outcomes)
    train(data, tmp_path / "policy")
    assert measure(tmp_path / "policy", data)["gain"]["low"] > 0


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_handful_of_questions_trains_without_a_stumble(count: int, tmp_path: Path) -> None:
    """From a few questions a head is made that loads and chooses."""
    data = write_world(tmp_path / "data", splits={"train": count, "validation": 0, "test": 6})
    train(data, tmp_path / "policy", evolution=SHORT_EVOLUTION)
    assert choices(tmp_path / "policy", ["About chess: a question?"])[0] in SPECIALISTS


def test_copies_of_one_question_train_without_a_stumble(tmp_path: Path) -> None:
    """Questions that all read the same give a head that asks the best worker for it, and for any other."""
    questions = [{"qid": str(i), "prompt": "The same?", "split": "train", "family": "same"} for i in range(20)]
    outcomes = [
        {"qid": str(i), "model": worker, "correct": float(worker == "right" or i == 0)}
        for i in range(20)
        for worker in ("right", "wrong")
    ]
    train(write_recorded(tmp_path / "data", questions, outcomes), tmp_path / "policy", evolution=SHORT_EVOLUTION)
    assert choices(tmp_path / "policy", ["The same?", "About chess: other?"]) == ["right", "right"]


def test_a_worker_that_was_hardly_ever_asked_is_no_best_worker(tmp_path: Path) -> None:
    """One right answer of one does not beat eighteen of twenty: "single" asks whom one could have used alone."""
    questions = [{"qid": str(i), "prompt": "The same?", "split": "train", "family": "same"} for i in range(20)]
    outcomes = [{"qid": str(i), "model": "steady", "correct": float(i > 1)} for i in range(20)]
    outcomes.append({"qid": "7", "model": "rare", "correct": 1.0})
    trained, _ = train(write_recorded(tmp_path / "data", questions, outcomes), tmp_path / "policy")
    assert trained.winner.candidate.name == "single"
    assert choices(tmp_path / "policy", ["The same?"]) == ["steady"]


BAD: Mapping[str, tuple[Mapping[str, Mapping[str, float]], Mapping[str, int], str]] = {
    "one worker": ({"alone": {}}, {"train": 10, "validation": 5, "test": 5}, "one worker, 'alone'"),
    "no train split": (
        SPECIALISTS,
        {"train": 0, "validation": 5, "test": 5},
        "no questions of split 'train'.*has test",
    ),
    "one question": (SPECIALISTS, {"train": 1, "validation": 0, "test": 5}, "expected at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_teach_is_refused(case: str, tmp_path: Path) -> None:
    """One worker, no training split or a single question is an error naming the folder, before anything is written."""
    skills, splits, message = BAD[case]
    data = write_world(tmp_path / "data", skills, splits=splits)
    with pytest.raises(ConfigError, match=message) as caught:
        train(data, tmp_path / "policy")
    assert str(data) in caught.value.message
    assert not (tmp_path / "policy").exists()


def test_the_card_says_what_the_head_was_made_from(world: World) -> None:
    """Data with its hashes, sizes of the splits, seed, commit, version and the candidate stand on the card."""
    card = Head.load(world.policy).card
    training = card.training
    assert training["seed"] == 3
    assert training["version"] == __version__
    commit, found = training["commit"], find_commit()
    assert commit is None or commit.removesuffix("-dirty") == (found or "").removesuffix("-dirty")
    assert training["questions"] == {"train": 48, "validation": 24}
    assert training["candidate"] == world.trained.winner.candidate.name
    assert (training["evolution"] is not None) == world.trained.evolved
    assert training["data"]["datasets"] == ["made-up"]
    for name in ("questions.jsonl", "outcomes.jsonl"):
        assert training["data"]["sha256"][name] == hashlib.sha256((world.data / name).read_bytes()).hexdigest()
    assert [(worker.id, worker.model) for worker in card.workers] == [(w, f"maker/{w}") for w in sorted(SPECIALISTS)]
    assert card.encoder == "subjects"
    assert card.baselines["best_single"]["worker"] == "handyman"
    assert card.metrics["validation_gain"] == world.trained.validation_gain
    assert card.gate == {}


def test_the_run_is_described(world: World) -> None:
    """run.json holds command, resolved configuration, data, commit and package versions, before any work is done."""
    run = json.loads((world.policy / "run.json").read_text())
    assert run["command"] == sys.argv
    assert run["config"]["seed"] == 3
    assert run["config"]["evolution"]["generations"] == SHORT_EVOLUTION.generations
    assert run["data"]["sha256"] == Head.load(world.policy).card.training["data"]["sha256"]
    assert run["packages"]["torafugu"] == __version__
    assert run["packages"]["numpy"] == np.__version__


def test_metrics_hold_every_candidate_and_generation(world: World) -> None:
    """metrics.jsonl has a row per candidate, best first, one per generation, and the outcome, without NaN."""
    rows = read_rows(world.policy / "metrics.jsonl")
    judged = [row for row in rows if row["stage"] == "judge"]
    assert {row["candidate"] for row in judged} == {candidate.name for candidate in CANDIDATES}
    scores = [float(str(row["score"])) for row in judged]
    assert scores == sorted(scores, reverse=True)
    assert sum(row["stage"] == "evolve" for row in rows) == SHORT_EVOLUTION.generations
    assert rows[-1]["stage"] == "final"
    assert rows[-1]["evolved"] == world.trained.evolved
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert np.isfinite(numbers).all()


def test_progress_adds_up(world: World) -> None:
    """Every stage that is announced is gone through to its end: a bar that ends below its total tells a lie."""
    names = [name for name, _ in world.report.stages]
    assert names[:3] == ["encode questions", "judge candidates", "evolve"]
    assert world.report.advanced == sum(total for _, total in world.report.stages)


def test_an_interrupted_training_leaves_no_head(tmp_path: Path) -> None:
    """A run that dies while it reads the questions leaves a folder that is refused as a policy, with the reason."""

    class Interrupted(BaseException):
        pass

    class Dying(Subjects):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise Interrupted

    data = write_world(tmp_path / "data", splits={"train": 12, "validation": 6, "test": 6})
    with pytest.raises(Interrupted):
        train(data, tmp_path / "policy", encoder=Dying())
    with pytest.raises(ModelError, match="no trained head here"):
        Head.load(tmp_path / "policy")
    train(data, tmp_path / "policy")
    files = ("metrics.jsonl", "run.json", "card.json", "head.safetensors")
    before = [(tmp_path / "policy" / name).read_bytes() for name in files]
    assert all(before)
    with pytest.raises(Interrupted):  # training anew in that folder: what belongs to its head stays
        train(data, tmp_path / "policy", encoder=Dying(), seed=7)
    assert [(tmp_path / "policy" / name).read_bytes() for name in files] == before


def test_who_answered_nothing_to_learn_from_is_left_out(tmp_path: Path) -> None:
    """A worker with answers in the test split only is no member of the head, and that is said; so are few questions."""
    data = write_world(tmp_path / "data", splits={"train": 12, "validation": 6, "test": 6})
    stranger = min(SPECIALISTS)
    forget(data, stranger)
    trained, report = train(data, tmp_path / "policy")
    assert stranger not in {worker.id for worker in trained.head.card.workers}
    assert report.lines[:2] == [
        f"left out: {stranger}: answered no question of the splits 'train' and 'validation'",
        "18 questions of the splits 'train' and 'validation': better some hundred, or chance chooses",
    ]


def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(tmp_path: Path) -> None:
    """Where the output cannot be created, no question has been encoded yet."""

    class Untouched(Subjects):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise AssertionError("encoded before the output was opened")

    data = write_world(tmp_path / "data", splits={"train": 12, "validation": 6, "test": 6})
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        train(data, tmp_path / "taken" / "policy", encoder=Untouched())
    with pytest.raises(ConfigError, match="taken: a file: expected a folder"):
        train(data, tmp_path / "taken", encoder=Untouched())


def test_subjects_of_the_made_up_worlds_can_be_told_apart() -> None:
    """A check of the test's own tools: the encoder separates subjects, and noise keeps questions different."""
    states = Subjects().encode_texts([f"About {subject}: {i}?" for subject in SUBJECTS for i in range(5)])
    same = states @ states.T
    family = np.arange(30) // 5
    assert same[family[:, None] == family].min() > same[family[:, None] != family].max()
    assert len(np.unique(states, axis=0)) == 30
