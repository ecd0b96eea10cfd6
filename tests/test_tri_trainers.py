"""`train/tri_trainers.py`: the reward, the start, and trainers that improve on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from torafugu.orchestrate.tri_head import VERIFIER, Rules, TriHead
from torafugu.train.evidence import fit_evidence
from torafugu.train.rollout import Played, play, sample
from torafugu.train.tri_trainers import (
    DIRECTIONS,
    RandomSearch,
    Reinforce,
    SepCMASearch,
    Start,
    TriProblem,
    TriTrainer,
    net_reward,
)
from trinity import AGREEING_CALLS, AGREEING_SCORE, SINGLE_SCORE, make_pattern_world

WORLD = make_pattern_world(100)
EVIDENCE = fit_evidence(
    WORLD.score, WORLD.same, deviation=WORLD.prospect.deviation, length=WORLD.length, cost=WORLD.cost, seed=0
)
BAD = Start(threshold=0.2, weight=-1, deviation=0)
"""Asks the worst worker and believes it."""
PROBLEM = TriProblem(
    world=WORLD,
    evidence=EVIDENCE,
    rules=Rules(max_calls=3, max_turns=8, roles=("worker", "verifier")),
    start=BAD,
    call_price=0.02,
)
TRAINERS: tuple[TriTrainer, ...] = (
    SepCMASearch(generations=10, popsize=8, questions=60),
    SepCMASearch(generations=10, popsize=8, questions=60, in_directions=False),
    RandomSearch(draws=40, questions=60),
    Reinforce(steps=25, questions=60),
    Reinforce(steps=25, questions=60, from_zero=True),
)


def played_with(problem: TriProblem, vector: npt.NDArray[np.float64]) -> Played:
    return play(problem.world, problem.evidence, TriHead.from_vector(vector), problem.rules)


def reward_of(problem: TriProblem, vector: npt.NDArray[np.float64]) -> float:
    return float(problem.reward(played_with(problem, vector)).mean())


def start_vector(start: Start) -> npt.NDArray[np.float64]:
    return start.to_head().to_vector()


# The reward


def test_reward_is_the_score_less_what_was_spent() -> None:
    """Score - call_price * (calls - 1) - cost_price * cost: the first call is free, and no call is no gain."""
    played = Played(
        score=np.array([1.0, 1.0, 0.0, 0.5, 0.0]),
        answered_by=np.array([0, 1, 2, 0, -1]),
        calls=np.array([1, 3, 2, 1, 0]),
        turns=np.array([2, 5, 3, 1, 0]),
        cost=np.array([0.0, 2.0, 0.5, 1.0, 0.0]),
        accepted=np.array([True, True, False, False, False]),
        called=np.zeros((5, 3, 3), np.int64),
    )
    assert net_reward(played, call_price=0.0) == pytest.approx(played.score)
    assert net_reward(played, call_price=0.1) == pytest.approx([1, 0.8, -0.1, 0.5, 0])
    assert net_reward(played, call_price=0.1, cost_price=0.2) == pytest.approx([1, 0.4, -0.2, 0.3, 0])
    problem = replace(PROBLEM, call_price=0.1, cost_price=0.2)
    assert (problem.reward(played) == net_reward(played, call_price=0.1, cost_price=0.2)).all()


# The start


def test_start_stops_on_agreement() -> None:
    """The supervised start asks the third worker only where the two best differ, and returns what is trusted most."""
    played = played_with(PROBLEM, start_vector(Start(threshold=0.9)))
    assert played.score.mean() == pytest.approx(AGREEING_SCORE)
    assert played.calls.mean() == pytest.approx(AGREEING_CALLS)
    agree = WORLD.same[:, 0, 1]
    assert (played.calls[agree] == 2).all()
    assert (played.calls[~agree] == 3).all()


def test_a_threshold_of_nothing_asks_once_and_one_of_everything_asks_all() -> None:
    """The threshold alone spans the range from one call to as many as the rules allow."""
    once = played_with(PROBLEM, start_vector(Start(threshold=-9)))
    assert (once.calls == 1).all()
    assert once.score.mean() == pytest.approx(SINGLE_SCORE)
    assert (played_with(PROBLEM, start_vector(Start(threshold=9))).calls == 3).all()


def test_start_never_thinks() -> None:
    """Even where the rules have Thinkers, no start calls one: recorded answers know no advice."""
    rules = Rules(max_calls=3, max_turns=8)
    for threshold in (-9.0, 0.5, 0.9, 9.0):
        played = play(WORLD, EVIDENCE, Start(threshold=threshold).to_head(), rules)
        assert not played.called[:, 1].any()


def test_verifying_a_start_costs_no_call() -> None:
    """A start ends by recalling a worker that agrees: no Verifier is called."""
    played = played_with(PROBLEM, start_vector(Start(threshold=0.9)))
    assert not played.called[:, VERIFIER].any()
    assert played.accepted.all()


def test_every_number_of_a_start_is_a_direction() -> None:
    """Searches leave no number of the start out, and forget none: a search that goes nowhere is where it began."""
    assert set(DIRECTIONS) == set(Start.__dataclass_fields__)
    odd = Start(**{name: 0.01 * (i + 1) for i, name in enumerate(DIRECTIONS)})
    stays = SepCMASearch(generations=0).train(replace(PROBLEM, start=odd))
    assert (stays == start_vector(odd)).all()


# Trainers


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_every_trainer_improves_a_bad_start(trainer: TriTrainer) -> None:
    """From a start that believes the worst worker, or from nothing, each finds at least the best single worker."""
    start = reward_of(PROBLEM, start_vector(BAD))
    assert start == pytest.approx(0.45)
    vector = trainer.train(PROBLEM)
    assert vector.shape == (TriHead.size(),)
    assert reward_of(PROBLEM, vector) >= SINGLE_SCORE - 1e-9


def test_evolution_learns_when_to_stop() -> None:
    """From a start that always asks all, evolution of the whole head saves the calls that change nothing."""
    problem = replace(PROBLEM, start=Start(threshold=1.5))
    before = played_with(problem, start_vector(problem.start))
    after = played_with(problem, TRAINERS[1].train(problem))
    assert after.calls.mean() < before.calls.mean()
    assert after.score.mean() >= before.score.mean()


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_every_trainer_is_reproducible(trainer: TriTrainer) -> None:
    """The same seed gives the same bits and another seed others; the problem is left as it was."""
    score = WORLD.score.copy()
    small = replace(PROBLEM, start=replace(BAD, weight=-0.2))
    first = trainer.train(small)
    assert (first == trainer.train(small)).all()
    assert (first != trainer.train(replace(small, seed=1))).any()
    assert (WORLD.score == score).all()


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_every_trainer_tells_how_it_goes(trainer: TriTrainer) -> None:
    """Each step or generation is told once, with finite numbers, in order."""
    rows: list[dict[str, float]] = []
    trainer.train(replace(PROBLEM, progress=rows.append))
    key = "generation" if isinstance(trainer, SepCMASearch) else "step"
    assert [row[key] for row in rows] == list(range(len(rows)))
    assert len(rows) in (10, 40, 25)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert all("reward/mean" in row or "reward/max" in row for row in rows)


@pytest.mark.parametrize("draws", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_random_search_is_never_worse_than_its_start(draws: int, seed: int) -> None:
    """On its own questions, however few draws, what it returns is no worse than what it was given."""
    good = replace(PROBLEM, start=Start(threshold=0.9), seed=seed)
    search = RandomSearch(draws=draws, questions=len(WORLD), reach=20.0)
    assert reward_of(good, search.train(good)) >= reward_of(good, start_vector(good.start))


def test_random_search_keeps_the_best_it_saw() -> None:
    """The best reward told is that of what is returned."""
    rows: list[dict[str, float]] = []
    vector = RandomSearch(draws=30, questions=len(WORLD)).train(replace(PROBLEM, progress=rows.append))
    assert rows[-1]["reward/max"] == pytest.approx(reward_of(PROBLEM, vector))
    told = [row["reward/max"] for row in rows]
    assert told == sorted(told)


def test_reinforce_credits_later_turns_only() -> None:
    """A turn is credited with the score less what was spent from it on: by hand, over the turns that were sampled."""
    problem = replace(PROBLEM, call_price=0.1, cost_price=0.05)
    head = TriHead.from_vector(np.random.default_rng(1).normal(0, 0.3, TriHead.size()))
    played, turns = sample(problem.world, problem.evidence, head, problem.rules, np.random.default_rng(5))
    to_come = []
    for turn in turns:
        for row, run in enumerate(turn.at):
            calls = played.calls[run] - max(turn.calls[row], 1)  # the first call is free, and those before are made
            cost = played.cost[run] - turn.cost[row]
            to_come.append(played.score[run] - 0.1 * max(calls, 0) - 0.05 * cost)
    credited = np.array(to_come)
    seen = np.concatenate([turn.run for turn in turns])
    ridge = np.sqrt(1e-3 * len(seen)) * np.eye(seen.shape[1])
    fitted = np.linalg.lstsq(np.vstack([seen, ridge]), np.append(credited, np.zeros(len(ridge))), rcond=None)[0]
    advantage = credited - seen @ fitted
    gradients = np.concatenate([turn.gradient for turn in turns])
    expected = (advantage[:, None] * gradients).sum(0) / len(problem.world)
    again, gradient, fisher = Reinforce()._estimate(problem, problem.world, head, np.random.default_rng(5))
    assert (again.calls == played.calls).all()
    assert played.calls.max() > 1
    assert np.abs(expected).max() > 1e-3
    assert gradient == pytest.approx(expected, abs=1e-9)
    assert fisher == pytest.approx(gradients.T @ gradients / len(problem.world))


def test_reinforce_saves_what_costs() -> None:
    """The dearer a call, the fewer calls are learnt."""
    trainer = Reinforce(steps=25, questions=60, from_zero=True)
    calls = [
        played_with(problem, trainer.train(problem)).calls.mean()
        for problem in (replace(PROBLEM, call_price=0.0), replace(PROBLEM, call_price=0.3))
    ]
    assert calls[0] > 2
    assert calls[1] == 1


def test_names_say_what_was_used() -> None:
    """Each trainer's name holds its settings, so that no two of the tried ones share one."""
    assert len({trainer.name for trainer in TRAINERS}) == len(TRAINERS)
    assert "25x60x2" in Reinforce(steps=25, questions=60).name
