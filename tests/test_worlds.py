"""`train/worlds.py`: what is known of a training question comes from models that have not seen it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from outcomes import SUBJECTS, Subjects, write_recorded, write_world
from torafugu.eval.matrix import OutcomeMatrix, build_matrix
from torafugu.pool.recorded import read_recorded
from torafugu.train.features import FeatureConfig
from torafugu.train.rollout import World
from torafugu.train.worlds import (
    Fitted,
    QuestionMap,
    fit_reading,
    fold_by_family,
    fold_by_question,
    mask_workers,
    matrix_to_world,
    mix_worlds,
)
from trinity import make_pattern_world

Hidden = npt.NDArray[np.float32]
PCA = QuestionMap(features=FeatureConfig(kind="pca", components=8), l2=1e-2)
LANDMARKS = QuestionMap(features=FeatureConfig(kind="landmarks", components=16, landmarks=20, sharpness=1.0))
UNREAD = QuestionMap(features=None)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> OutcomeMatrix:
    """Of 60 questions, ten of each of six subjects."""
    folder = tmp_path_factory.mktemp("worlds") / "data"
    return build_matrix(read_recorded(write_world(folder, splits={"train": 60, "test": 0})))


@pytest.fixture(scope="module")
def hidden(matrix: OutcomeMatrix) -> Hidden:
    return Subjects().encode_texts([question.text for question in matrix.questions])


def flip(matrix: OutcomeMatrix, rows: npt.NDArray[np.bool_]) -> OutcomeMatrix:
    """The same with these rows' verdicts turned round."""
    return replace(
        matrix,
        mean=np.where(rows[:, None], 1 - matrix.mean, matrix.mean),
        first=np.where(rows[:, None], 1 - matrix.first, matrix.first),
    )


def deviations(fitted: Fitted) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(n, L) of both copies."""
    assert fitted.unfamiliar is not None
    return fitted.familiar.prospect.deviation, fitted.unfamiliar.prospect.deviation


@pytest.mark.parametrize("question_map", [PCA, LANDMARKS], ids=["pca", "landmarks"])
def test_what_is_known_of_a_question_is_not_learnt_from_it(
    question_map: QuestionMap, matrix: OutcomeMatrix, hidden: Hidden
) -> None:
    """Turning a question's own verdicts round changes nothing of its prospects, in neither copy, but some of others."""
    familiar, unfamiliar = deviations(fit_reading(matrix, hidden, question_map, seed=0))
    assert np.abs(familiar).max() > 0.1
    for i in (0, 17, 59):
        changed = fit_reading(flip(matrix, np.arange(60) == i), hidden, question_map, seed=0)
        for before, after in zip((familiar, unfamiliar), deviations(changed), strict=True):
            assert (before[i] == after[i]).all()
            assert (before != after).any()
        assert (changed.reading.prospect(hidden).deviation[i] != familiar[i]).any()


@pytest.mark.parametrize("question_map", [PCA, LANDMARKS], ids=["pca", "landmarks"])
def test_the_second_copy_knows_nothing_of_a_family_from_that_family(
    question_map: QuestionMap, matrix: OutcomeMatrix, hidden: Hidden
) -> None:
    """Turning a whole family's verdicts round changes its prospects in the first copy, and none in the second."""
    familiar, unfamiliar = deviations(fit_reading(matrix, hidden, question_map, seed=0))
    for family in SUBJECTS[:3]:
        own = matrix.families == family
        changed, changed_unfamiliar = deviations(fit_reading(flip(matrix, own), hidden, question_map, seed=0))
        assert (changed[own] != familiar[own]).any(1).all()
        assert (changed_unfamiliar[own] == unfamiliar[own]).all()
        assert (changed_unfamiliar[~own] != unfamiliar[~own]).any()


def test_hidden_states_of_others_in_its_fold_say_nothing_of_a_question(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """The feature map is cross-fitted too: other words for others of its fold leave a question's prospects alone."""
    fold = fold_by_question(60, 0)
    others = (fold == fold[0]) & (np.arange(60) != 0)
    reworded = hidden.copy()
    reworded[others] = Subjects().encode_texts([f"About the moon: {i}?" for i in range(others.sum())])
    before = fit_reading(matrix, hidden, LANDMARKS, seed=0).familiar.prospect
    after = fit_reading(matrix, reworded, LANDMARKS, seed=0).familiar.prospect
    assert (before.deviation[0] == after.deviation[0]).all()
    assert before.familiarity[0] == after.familiarity[0]
    assert (before.deviation[others] != after.deviation[others]).any()


def test_unfamiliar_questions_look_unfamiliar(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """Without its family, a question is farther from the landmarks, and both copies hold the same outcomes."""
    fitted = fit_reading(matrix, hidden, LANDMARKS, seed=0)
    assert fitted.unfamiliar is not None
    assert fitted.unfamiliar.prospect.familiarity.mean() < fitted.familiar.prospect.familiarity.mean() / 2
    assert fitted.worlds == [fitted.familiar, fitted.unfamiliar]
    assert (fitted.familiar.score == fitted.unfamiliar.score).all()
    assert (fitted.familiar.same == fitted.unfamiliar.same).all()


def test_questions_that_are_not_read_all_look_alike(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """The map without features expects of every worker what is usual, everywhere."""
    fitted = fit_reading(matrix, hidden, UNREAD, seed=0)
    for prospect in (*(world.prospect for world in fitted.worlds), fitted.reading.prospect(hidden)):
        assert not prospect.deviation.any()
        assert not prospect.familiarity.any()


def test_one_family_makes_one_world(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """Of a single family there is no unfamiliar copy."""
    rows = np.flatnonzero(matrix.families == SUBJECTS[0])
    fitted = fit_reading(matrix.rows(rows), hidden[rows], PCA, seed=0)
    assert fitted.unfamiliar is None
    assert fitted.worlds == [fitted.familiar]


def test_of_a_single_question_nothing_is_known(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """With one question there are no others to learn from: its prospects are those of an unread one."""
    fitted = fit_reading(matrix.rows([0]), hidden[:1], PCA, seed=0)
    assert not fitted.familiar.prospect.deviation.any()


def test_a_worker_that_was_never_asked_is_expected_to_do_as_usual(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """A column of unknown outcomes gives deviations of 0, and disturbs no other column."""
    mean, first = matrix.mean.copy(), matrix.first.copy()
    mean[:, 1], first[:, 1] = np.nan, np.nan
    fitted = fit_reading(replace(matrix, mean=mean, first=first), hidden, PCA, seed=0)
    whole = fit_reading(matrix, hidden, PCA, seed=0)
    assert not fitted.familiar.prospect.deviation[:, 1].any()
    assert fitted.familiar.prospect.deviation[:, [0, 2, 3]] == pytest.approx(
        whole.familiar.prospect.deviation[:, [0, 2, 3]]
    )


# Folds


def test_folds_are_even_and_reproducible() -> None:
    """Every question is in one of four folds of equal size; the seed alone says in which."""
    fold = fold_by_question(42, 3)
    assert sorted(np.bincount(fold)) == [10, 10, 11, 11]
    assert (fold == fold_by_question(42, 3)).all()
    assert (fold != fold_by_question(42, 4)).any()
    assert sorted(fold_by_question(3, 0)) == [0, 1, 2]


@pytest.mark.parametrize(("families", "folds"), [(2, 2), (3, 3), (9, 4)])
def test_folds_are_whole_families(families: int, folds: int) -> None:
    """No family is in two folds, and no fold is empty, whatever the families' sizes."""
    names = np.array([f"family {i % families if i % 3 else 0}" for i in range(60)])
    fold = fold_by_family(names, 1)
    assert fold is not None
    assert all(len(set(fold[names == name])) == 1 for name in set(names))
    assert set(fold) == set(range(folds))
    again = fold_by_family(names, 1)
    assert again is not None
    assert (fold == again).all()


def test_one_family_has_no_folds() -> None:
    """There is nothing to hold out."""
    assert fold_by_family(np.array(["same"] * 5), 0) is None


# Masks


def test_masks_leave_at_least_two_workers() -> None:
    """On about the given share of questions between 2 and L - 1 workers are left, on the others all; scores stay."""
    world = widen(make_pattern_world(400), 5)
    masked = mask_workers(world, share=0.25, seed=0)
    left = np.isfinite(masked.score)
    assert set(left.sum(1)) == {2, 3, 4, 5}
    assert (left.sum(1) < 5).mean() == pytest.approx(0.25, abs=0.05)
    assert (masked.score[left] == world.score[left]).all()
    assert np.isfinite(world.score).all()
    assert (np.isnan(mask_workers(world, share=0.25, seed=0).score) == ~left).all()
    assert (np.isnan(mask_workers(world, share=0.25, seed=1).score) == left).any()
    assert left[left.sum(1) < 5].any(0).all()


def test_masks_count_the_workers_that_were_asked() -> None:
    """Where outcomes are missing, two workers that were asked are left, or the only one."""
    world = widen(make_pattern_world(400), 6)
    holes = np.random.default_rng(0).random(world.score.shape) < 0.6
    holes[np.arange(400), np.arange(400) % 6] = False
    sparse = replace(world, score=np.where(holes, np.nan, world.score))
    asked = np.isfinite(sparse.score).sum(1)
    left = np.isfinite(mask_workers(sparse, share=1.0, seed=0).score).sum(1)
    assert (left >= np.minimum(asked, 2)).all()
    assert (left < asked).any()


def test_of_two_workers_none_is_masked() -> None:
    """Two are the least that there is something to choose among."""
    world = widen(make_pattern_world(40), 2)
    assert (mask_workers(world, share=1.0, seed=0).score == world.score).all()


def widen(world: World, size: int) -> World:
    """The workers again and again, or fewer."""
    columns = np.arange(size) % world.score.shape[1]
    return replace(
        world,
        score=world.score[:, columns],
        same=world.same[:, columns][:, :, columns],
        alike=world.alike[:, columns][:, :, columns],
        cost=world.cost[:, columns],
        length=world.length[:, columns],
        prospect=replace(world.prospect, deviation=world.prospect.deviation[:, columns]),
    )


# Worlds


def test_costs_are_relative_to_the_dearest_worker(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """A call costs its share of the dearest worker's mean; one of unknown cost is 0 and does not count in the mean."""
    cost = np.tile([0.1, 0.2, 0.4, 0.05], (60, 1))
    cost[0] = [0.1, 0.2, np.nan, 0.6]
    cost[1:3, 2] = 0.3, 0.5
    prospect = fit_reading(matrix, hidden, UNREAD, seed=0).familiar.prospect
    world = matrix_to_world(replace(matrix, cost_usd=cost), prospect)
    assert world.cost[0] == pytest.approx([0.25, 0.5, 0.0, 1.5])
    assert world.cost[1:3, 2] == pytest.approx([0.75, 1.25])


@pytest.mark.parametrize("column", [0, slice(None)], ids=["of one worker", "of all"])
def test_unknown_costs_count_nothing(column: int | slice, matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """Where a worker's price is not known at all, no worker is called cheap: all costs are 0."""
    cost = np.full(matrix.cost_usd.shape, 0.3)
    cost[:, column] = np.nan
    prospect = fit_reading(matrix, hidden, UNREAD, seed=0).familiar.prospect
    assert not matrix_to_world(replace(matrix, cost_usd=cost), prospect).cost.any()


def test_free_workers_cost_nothing(matrix: OutcomeMatrix, hidden: Hidden) -> None:
    """Prices of 0 are costs of 0, not a division by it."""
    prospect = fit_reading(matrix, hidden, UNREAD, seed=0).familiar.prospect
    assert not matrix_to_world(replace(matrix, cost_usd=np.zeros(matrix.cost_usd.shape)), prospect).cost.any()


def test_answers_agree_by_what_they_say(tmp_path: Path) -> None:
    """However it is written; empty answers and those that were never given agree with nothing."""
    question = {"qid": "q", "prompt": "What?", "split": "train", "dataset": "d"}
    given = {"a": "42", "b": "42", "c": "42.0", "d": "", "e": ""}
    outcomes = [{"qid": "q", "model": w, "k": 0, "correct": 1.0, "answer": text} for w, text in given.items()]
    outcomes.append({"qid": "r", "model": "f", "k": 0, "correct": 1.0, "answer": "42"})
    folder = write_recorded(tmp_path / "data", [question, question | {"qid": "r", "prompt": "Who?"}], outcomes)
    matrix = build_matrix(read_recorded(folder))
    prospect = make_pattern_world(2).prospect
    world = matrix_to_world(matrix, prospect)
    same, alike = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    same[:3, :3] = True
    alike[:2, :2] = alike[2, 2] = True
    assert (world.same[0] == same).all()
    assert (world.alike[0] == alike).all()


def test_mixed_worlds_keep_their_rows() -> None:
    """One world follows the other, in every array."""
    first, second = make_pattern_world(20), make_pattern_world(13, cost=(3, 2, 1))
    mixed = mix_worlds([first, second])
    assert len(mixed) == 33
    for rows, world in ((slice(20), first), (slice(20, None), second)):
        index = np.arange(33)[rows]
        part = mixed.rows(index)
        for name in ("score", "same", "cost", "unreadable"):
            assert (getattr(part, name) == getattr(world, name)).all()
        assert (part.prospect.familiarity == world.prospect.familiarity).all()
