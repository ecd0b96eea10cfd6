"""The learned vote: trust in what independent workers agree on, what each voice is worth, and what it cannot do."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest

from torafugu.orchestrate.situation import Evidence, Prospect, Situation, look
from torafugu.train.evidence import fit_evidence, shared_errors

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
N = 2000


def draw_answers(
    skills: list[float], *, seed: int, clone: tuple[int, int] | None = None, empty: float = 0.0
) -> tuple[Floats, Bools]:
    """(n, L) scores and (n, L, L) agreement; a wrong answer is one of four. `clone`: a worker that repeats another."""
    draw = np.random.default_rng([seed, 9])
    shape = (N, len(skills))
    answers = np.where(draw.random(shape) < skills, 0, draw.integers(1, 5, shape))
    answers[draw.random(shape) < empty] = -1
    if clone:
        answers[:, clone[0]] = answers[:, clone[1]]
    same = (answers[:, :, None] == answers[:, None, :]) & (answers >= 0)[:, :, None]
    return (answers == 0).astype(float), same


def fit(
    score: Floats,
    same: Bools,
    deviation: Floats | None = None,
    cost: Floats | None = None,
    length: Floats | None = None,
    **more: float,
) -> Evidence:
    unknown = np.full(score.shape, np.nan)
    return fit_evidence(
        score,
        same,
        deviation=np.zeros(score.shape) if deviation is None else deviation,
        length=unknown if length is None else length,
        cost=unknown if cost is None else cost,
        seed=0,
        **more,
    )


def see_trust(
    evidence: Evidence,
    score: Floats,
    same: Bools,
    asked: list[int],
    deviation: Floats | None = None,
    length: Floats | None = None,
) -> Floats:
    """(n, L) when these workers were asked."""
    n, size = score.shape
    known = np.isin(np.arange(size), asked) & np.isfinite(score)
    situation = Situation(
        known=known,
        worked=known,
        current=np.where(known.any(1), known.argmax(1), -1),
        same=same,
        alike=same,
        empty=~np.diagonal(same, axis1=1, axis2=2),
        length=np.full(score.shape, np.nan) if length is None else np.where(known, length, np.nan),
        unreadable=np.zeros(n, bool),
        thought=np.zeros(n, bool),
        exhausted=np.zeros(n, bool),
    )
    prospect = Prospect(deviation=np.zeros(score.shape) if deviation is None else deviation, familiarity=np.zeros(n))
    return look(situation, prospect, evidence).trust


def all_agree(same: Bools, asked: list[int]) -> Bools:
    agree: Bools = same[:, asked][:, :, asked].all((1, 2))
    return agree


# --- what it learns ---


@pytest.mark.parametrize("asked", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]])
def test_agreement_is_trusted_as_often_as_it_is_right(asked: list[int]) -> None:
    """Of independent workers, trust in what those asked agree on is, on new questions, how often that is right."""
    skills = [0.6] * 4
    evidence = fit(*draw_answers(skills, seed=1))
    score, same = draw_answers(skills, seed=2)
    agree = all_agree(same, asked)
    trust = see_trust(evidence, score, same, asked)[agree, asked[0]]
    assert trust.mean() == pytest.approx(score[agree, asked[0]].mean(), abs=0.06)


def test_more_voices_more_trust() -> None:
    """Every further independent voice for an answer raises the trust in it, and one against it lowers it."""
    skills = [0.6] * 4
    score, same = draw_answers(skills, seed=1)
    evidence = fit(score, same)
    together = all_agree(same, [0, 1, 2, 3])
    alone, two, three = (
        see_trust(evidence, score, same, asked)[together, 0].mean() for asked in ([0], [0, 1], [0, 1, 2])
    )
    assert alone < two < three
    against = ~same[:, 0, 1]
    assert see_trust(evidence, score, same, [0, 1])[against, 0].mean() < alone


def test_better_workers_weigh_more() -> None:
    """The order of the weights is that of the skills, and of the abilities; a worker that is always wrong subtracts."""
    evidence = fit(*draw_answers([0.9, 0.7, 0.5, 0.0], seed=1))
    assert (np.diff(evidence.weight) < 0).all()
    assert evidence.ability.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.0], abs=0.03)
    assert evidence.weight[3] < 0


def test_worker_that_is_always_wrong() -> None:
    """What only such a worker says is hardly trusted, and its voice for an answer lowers the trust in it."""
    skills = [0.7, 0.7, 0.7, 0.0]
    evidence = fit(*draw_answers(skills, seed=1))
    score, same = draw_answers(skills, seed=2)
    assert see_trust(evidence, score, same, [3])[:, 3].max() < 0.05
    agree = all_agree(same, [0, 3])
    assert agree.sum() > 20
    assert (see_trust(evidence, score, same, [0, 3])[agree, 0] < see_trust(evidence, score, same, [0])[agree, 0]).all()


def test_copies_are_trusted_less_than_colleagues() -> None:
    """A worker that repeats another adds little: their agreement is trusted much less than that of independent ones.

    It is trusted too much all the same, for voices only add up: no one weight per worker is right both when one of the
    copies speaks and when both do. What is known of such pairs, `overlap` tells the head.
    """
    skills = [0.6] * 4
    evidence = fit(*draw_answers(skills, seed=1, clone=(3, 2)))
    score, same = draw_answers(skills, seed=2, clone=(3, 2))
    one = see_trust(evidence, score, same, [2])[:, 2].mean()
    copies = see_trust(evidence, score, same, [2, 3])[:, 2].mean()
    agree = all_agree(same, [0, 1])
    colleagues = see_trust(evidence, score, same, [0, 1])[agree, 0].mean()
    right = score[:, 2].mean()
    assert one < right < copies < right + 0.2
    assert colleagues > copies + 0.1
    assert evidence.weight[2] + evidence.weight[3] < evidence.weight[0] + evidence.weight[1] - 0.5
    assert evidence.overlap[2, 3] == 1
    assert evidence.overlap[0, 1] == pytest.approx(0.25, abs=0.06)


def test_deviation_counts() -> None:
    """Where a worker was predicted to do better than usual, and does, its answer is trusted more there."""
    draw = np.random.default_rng(0)
    deviation = draw.uniform(-0.4, 0.4, (N, 3))
    answers = np.where(draw.random((N, 3)) < 0.5 + deviation, 0, draw.integers(1, 5, (N, 3)))
    score, same = (answers == 0).astype(float), answers[:, :, None] == answers[:, None, :]
    evidence = fit(score, same, deviation)
    assert evidence.of_deviation > 1
    trust = see_trust(evidence, score, same, [0], deviation)[:, 0]
    assert trust[deviation[:, 0] > 0.2].mean() > trust[deviation[:, 0] < -0.2].mean() + 0.3


def test_ease_for_all_is_not_skill_of_one() -> None:
    """That a question is easy for all raises nobody's voice against another's; that it suits one worker does, also
    where questions differ far more in how easy they are than workers in what suits them.
    """
    draw = np.random.default_rng(0)
    easiness, skill = draw.choice([-0.35, 0.35], (N, 1)), draw.choice([-0.1, 0.1], (N, 3))
    deviation = easiness + skill
    answers = np.where(draw.random((N, 3)) < 0.5 + deviation, 0, draw.integers(1, 5, (N, 3)))
    score, same = (answers == 0).astype(float), answers[:, :, None] == answers[:, None, :]
    evidence = fit(score, same, deviation)
    assert evidence.of_deviation > 0.5
    trust = see_trust(evidence, score, same, [0, 1], deviation)
    differ = ~same[:, 0, 1] & (skill[:, 0] > skill[:, 1] + 0.1)
    right = np.where(trust[:, 0] > trust[:, 1], score[:, 0], score[:, 1])[differ]
    assert right.mean() == pytest.approx(score[differ, 0].mean(), abs=0.01)


def test_a_voice_counts_by_the_odds_of_its_expected_score() -> None:
    """Log-odds of the expected score add up to about as many of the voice, so that an answer is trusted as far as it
    is right, from kinds of question that a worker fails at to those that it nearly always gets.
    """
    expected = np.array([0.1, 0.4, 0.6, 0.8, 0.95])

    def draw_kinds(seed: int) -> tuple[Floats, Bools, Floats, npt.NDArray[np.int64]]:
        draw = np.random.default_rng([seed, 11])
        kind = draw.integers(0, len(expected), (N, 3))
        p = expected[kind]
        answers = np.where(draw.random((N, 3)) < p, 0, draw.integers(1, 50, (N, 3)))
        return (answers == 0).astype(float), answers[:, :, None] == answers[:, None, :], p - p.mean(0), kind

    score, same, deviation, _ = draw_kinds(1)
    evidence = fit(score, same, deviation)
    assert evidence.of_deviation == pytest.approx(1.0, abs=0.15)
    score, same, deviation, kind = draw_kinds(2)
    trust = see_trust(evidence, score, same, [0], deviation)[:, 0]
    for k in range(len(expected)):
        at = kind[:, 0] == k
        assert trust[at].mean() == pytest.approx(score[at, 0].mean(), abs=0.045), expected[k]


def draw_lengths(seed: int) -> tuple[Floats, Bools, Floats]:
    """Half of the questions are hard, and replies to them are longer; workers differ in how much they write."""
    draw = np.random.default_rng([seed, 10])
    is_hard = draw.random((N, 1)) < 0.5
    answers = np.where(draw.random((N, 3)) < np.where(is_hard, 0.3, 0.9), 0, draw.integers(1, 9, (N, 3)))
    length = draw.normal([4.0, 5.0, 7.0], 0.3, (N, 3)) + is_hard
    return (answers == 0).astype(float), answers[:, :, None] == answers[:, None, :], length


def test_length_counts() -> None:
    """Where long replies are more often wrong, a long one is trusted less, as much as it should be, and of two that
    differ the shorter one is trusted more; each is compared with what its worker usually writes.
    """
    score, same, length = draw_lengths(1)
    evidence = fit(score, same, length=length)
    assert evidence.lengths.mean == pytest.approx([4.5, 5.5, 7.5], abs=0.05)
    assert evidence.lengths.of_voice < 0 or evidence.lengths.of_none > 0
    score, same, length = draw_lengths(2)
    for worker in range(3):
        trust = see_trust(evidence, score, same, [worker], length=length)[:, worker]
        is_long = length[:, worker] > evidence.lengths.mean[worker]
        for rows in (is_long, ~is_long):
            assert trust[rows].mean() == pytest.approx(score[rows, worker].mean(), abs=0.08)
    trust = see_trust(evidence, score, same, [0, 1], length=length)
    longer = (length[:, 0] - 4.5) - (length[:, 1] - 5.5)
    differ = ~same[:, 0, 1]
    assert trust[differ & (longer > 0.3), 0].mean() < trust[differ & (longer < -0.3), 0].mean()


def test_lengths_that_are_unknown_change_nothing() -> None:
    """A reply whose tokens nobody counted is one of usual length; where none were counted there is nothing to learn."""
    score, same, length = draw_lengths(1)
    evidence = fit(score, same, length=length)
    usual = np.tile(evidence.lengths.mean, (N, 1))
    unknown = see_trust(evidence, score, same, [0, 1])
    assert (unknown == see_trust(evidence, score, same, [0, 1], length=usual)).all()
    blind = fit(score, same)
    assert (blind.lengths.of_voice, blind.lengths.of_none) == (0, 0)
    assert (see_trust(blind, score, same, [0, 1], length=length) == see_trust(blind, score, same, [0, 1])).all()


def test_lengths_that_do_not_differ() -> None:
    """A worker that always writes the same, or was never measured, has a scale to divide by."""
    score, same = draw_answers([0.7, 0.6, 0.5], seed=1)
    length = np.full(score.shape, 3.0)
    length[:, 2] = np.nan
    lengths = fit(score, same, length=length).lengths
    assert (lengths.mean.tolist(), lengths.scale.tolist()) == ([3, 3, 0], [1, 1, 1])


def test_empty_replies_are_evidence() -> None:
    """An empty reply votes for nothing and is not an answer: asked alone, such a worker leaves all trust to "none"."""
    score, same = draw_answers([0.7] * 3, seed=1, empty=0.3)
    trust = see_trust(fit(score, same), score, same, [0, 1, 2])
    has_answer = np.diagonal(same, axis1=1, axis2=2)
    assert (trust[~has_answer] == 0).all()
    assert (trust[has_answer] > 0).all()


def test_disagreement_is_doubt() -> None:
    """Where questions are easy or hard, the more different answers there are, the likelier all of them are wrong."""

    def draw(seed: int) -> tuple[Floats, Bools]:
        draw = np.random.default_rng(seed)
        skill = np.where(draw.random((N, 1)) < 0.5, 0.95, 0.1)
        answers = np.where(draw.random((N, 4)) < skill, 0, draw.integers(1, 30, (N, 4)))
        return (answers == 0).astype(float), answers[:, :, None] == answers[:, None, :]

    evidence = fit(*draw(1))
    score, same = draw(2)
    trust = see_trust(evidence, score, same, [0, 1, 2, 3])
    share = 1 / same.sum(2)
    doubt, different = 1 - (trust * share).sum(1), share.sum(1).round()
    at = [different == count for count in (1, 2, 3, 4)]
    means = np.array([doubt[rows].mean() for rows in at])
    assert (np.diff(means) > 0).all()
    assert means == pytest.approx(np.array([(score[rows].max(1) == 0).mean() for rows in at]), abs=0.2)
    assert evidence.none[1] > 0.5


def test_two_answers_that_are_both_right() -> None:
    """Where two different answers are right the trust is divided between them, and no weight grows without end."""
    score, same = np.ones((N, 2)), np.broadcast_to(np.eye(2, dtype=bool), (N, 2, 2))
    evidence = fit(score, same)
    assert np.abs(evidence.weight).max() < 20
    assert see_trust(evidence, score, same, [0, 1]) == pytest.approx(0.5, abs=0.02)


# --- what it survives ---


def numbers(evidence: Evidence) -> Floats:
    """All of what was learnt but the usual lengths, which are measured."""
    names = [field.name for field in fields(Evidence) if field.name != "lengths"]
    of_length = [evidence.lengths.of_voice, evidence.lengths.of_none]
    return np.concatenate([*(np.ravel(getattr(evidence, name)) for name in names), of_length])


def test_worker_that_was_never_asked() -> None:
    """A column without outcomes has no weight, no ability and no overlap, and leaves the others as they are."""
    score, same = draw_answers([0.7, 0.6, 0.5], seed=1)
    nobody = np.full((N, 1), np.nan)
    wide = np.zeros((N, 4, 4), bool)
    wide[:, :3, :3] = same
    evidence = fit(np.concatenate([score, nobody], 1), wide)
    assert np.isfinite(numbers(evidence)).all()
    assert (evidence.weight[3], evidence.ability[3], evidence.overlap[3].any()) == (0, 0, False)
    assert evidence.weight[:3] == pytest.approx(fit(score, same).weight, abs=0.3)


def test_outcomes_that_are_missing() -> None:
    """Questions that a worker was not asked teach nothing about it: the weights stay about the same."""
    score, same = draw_answers([0.8, 0.6, 0.4], seed=1)
    gone = np.random.default_rng(3).random(score.shape) < 0.3
    gone[:5] = True  # questions that nobody was asked
    left = same & ~gone[:, :, None] & ~gone[:, None, :]
    evidence = fit(np.where(gone, np.nan, score), left)
    assert np.isfinite(numbers(evidence)).all()
    assert evidence.weight == pytest.approx(fit(score, same).weight, abs=0.4)


@pytest.mark.parametrize("skills", [[1.0, 1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0], [0.0]])
def test_separable_data(skills: list[float]) -> None:
    """Where the data would have weights grow without end they stay moderate, and trust in (0, 1)."""
    score, same = draw_answers(skills, seed=1)
    evidence = fit(score, same)
    assert np.abs(numbers(evidence)).max() < 20
    trust = see_trust(evidence, score, same, list(range(len(skills))))
    assert ((trust > 0) & (trust < 1)).all()
    assert (trust[score == 1] > 0.9).all()
    assert (trust[score == 0] < 0.1).all()


def test_l2_shrinks() -> None:
    """A stronger penalty gives smaller weights, down to none."""
    data = draw_answers([0.9, 0.6], seed=1)
    sizes = [np.abs(fit(*data, l2=l2).weight).sum() for l2 in (1e-4, 1e-1, 1e3)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 0.01


def test_same_seed_same_evidence() -> None:
    """Fitting draws whom to ask from its seed alone."""
    data = draw_answers([0.9, 0.6, 0.4], seed=1)
    assert (numbers(fit(*data)) == numbers(fit(*data))).all()
    nothing = np.zeros((N, 3))
    other = fit_evidence(*data, deviation=nothing, length=nothing, cost=nothing, seed=1)
    assert (other.weight != fit(*data).weight).any()


def test_one_worker_by_hand() -> None:
    """Of one worker there is one thing to learn, how often it is right: the optimum is known, and it is found."""
    score, same = draw_answers([0.7], seed=1)
    trust = see_trust(fit(score, same, l2=1e-9), score, same, [0])
    assert trust == pytest.approx(score.mean(), abs=1e-6)


# --- overlap and cost ---


def test_shared_errors_by_hand() -> None:
    """Of what both got wrong, the share with the same answer; neither right answers nor unasked questions count."""
    answers = np.array([[1, 1, 2], [1, 1, 1], [0, 0, 0], [1, 2, 1], [0, 1, 1]])
    score = np.where(answers == 0, 1.0, 0.0)
    score[3, 2] = np.nan
    same = (
        (answers[:, :, None] == answers[:, None, :]) & np.isfinite(score)[:, :, None] & np.isfinite(score)[:, None, :]
    )
    expected = np.array([[0, 2 / 3, 1 / 2], [2 / 3, 0, 2 / 3], [1 / 2, 2 / 3, 0]])
    assert shared_errors(score, same) == pytest.approx(expected)


def test_shared_errors_of_empty_replies() -> None:
    """Two replies without an answer are not the same error; workers without a common error share none."""
    score, same = np.zeros((4, 2)), np.zeros((4, 2, 2), bool)
    assert not shared_errors(score, same).any()
    assert not shared_errors(np.eye(2), np.ones((2, 2, 2), bool)).any()


def test_costs_are_relative() -> None:
    """A worker's cost is its mean over the dearest worker's; calls of unknown cost are left out."""
    score, same = draw_answers([0.7, 0.6], seed=1)
    cost = np.tile([0.01, 0.04], (N, 1))
    cost[0] = [9.0, np.nan]
    cost[0, 0] = np.nan
    assert fit(score, same, cost=cost).cost.tolist() == pytest.approx([0.25, 1.0])


@pytest.mark.parametrize("cost", [[np.nan, np.nan], [0.01, np.nan], [0.0, 0.0]])
def test_unknown_costs(cost: list[float]) -> None:
    """Where one worker's price is not known, none is compared: nobody is cheap for want of a price."""
    score, same = draw_answers([0.7, 0.6], seed=1)
    assert fit(score, same, cost=np.tile(cost, (N, 1))).cost.tolist() == [0, 0]
