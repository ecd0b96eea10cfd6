"""Trainers of a selector's head, against closed forms, against SciPy, and on toys whose best answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import check_grad, minimize

from torafugu.train.trainers import Gradient, Problem, Ridge, SepCMATrainer, Soft, Trainer

Floats = NDArray[np.float64]


def make_problem(seed: int, *, n: int = 60, size: int = 4, workers: int = 3, holes: float = 0.0, **rest) -> Problem:
    """Random features with the constant, random 0/1 rewards; worker 0 was always asked."""
    rng = np.random.default_rng(seed)
    features = np.column_stack([rng.standard_normal((n, size)), np.ones(n)])
    rewards = (rng.random((n, workers)) < 0.5).astype(float)
    rewards[:, 1:][rng.random((n, workers - 1)) < holes] = np.nan
    return Problem(features=features, rewards=rewards, seed=seed, **rest)


def make_toy(n: int = 90) -> Problem:
    """Three topics, three workers, each right on its own topic only: one worker gets a third, a choice gets all."""
    topic = np.arange(n) % 3
    features = np.column_stack([np.eye(3)[topic], np.ones(n)])
    rewards = np.eye(3)[topic]

    def episode_reward(weights: Floats, questions: NDArray[np.int64]) -> Floats:
        chosen = (features[questions] @ weights.transpose(0, 2, 1)).argmax(2)  # (P, m)
        return rewards[questions, chosen].mean(1)

    return Problem(features=features, rewards=rewards, episode_reward=episode_reward)


def probabilities(weight: Floats, problem: Problem) -> Floats:
    logits = np.where(np.isfinite(problem.rewards), problem.features @ weight.T, -np.inf)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def expected_reward(weight: Floats, problem: Problem) -> float:
    return float((probabilities(weight, problem) * np.nan_to_num(problem.rewards)).sum(1).mean())


def soft_loss(weight: Floats, problem: Problem, trainer: Soft) -> float:
    """Mean cross entropy from the soft targets, which differs from the KL divergence by a constant, and the penalty."""
    asked = np.isfinite(problem.rewards)
    odds = np.where(asked, np.exp(np.nan_to_num(problem.rewards) / trainer.tau), 0)
    targets = odds / odds.sum(1, keepdims=True)
    logs = np.log(np.where(asked, probabilities(weight, problem), 1))
    return float(-(targets * logs).sum(1).mean() + trainer.l2 / 2 * (weight**2).sum())


def chosen(weight: Floats, problem: Problem) -> NDArray[np.int64]:
    return (problem.features @ weight.T).argmax(1)


EVERY: list[Trainer] = [Soft(), Ridge(), Gradient(), SepCMATrainer(generations=3, questions=20)]
every_trainer = pytest.mark.parametrize("trainer", EVERY, ids=lambda trainer: type(trainer).__name__)


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_soft_finds_the_minimum(tau: float, holes: float) -> None:
    """The soft stage's loss is SciPy's minimum of the same loss, and flat there, with unasked workers masked too."""
    problem, trainer = make_problem(1, holes=holes), Soft(tau=tau, l2=1e-2)
    weight = trainer.train(problem)

    def loss(flat: Floats) -> float:
        return soft_loss(flat.reshape(weight.shape), problem, trainer)

    best = minimize(loss, np.zeros(weight.size), method="BFGS", options={"gtol": 1e-7})
    assert loss(weight.ravel()) == pytest.approx(best.fun, abs=1e-8)
    assert check_grad(loss, lambda flat: np.zeros_like(flat), weight.ravel()) < 1e-4
    assert np.allclose(weight.ravel(), best.x, atol=1e-3)


def test_a_small_temperature_asks_for_the_best_only() -> None:
    """Towards temperature 0 the soft head gives the best worker nearly all probability; at a high one nearly even."""
    toy = make_toy()
    assert expected_reward(Soft(tau=0.05, l2=1e-5).train(toy), toy) > 0.97
    assert expected_reward(Soft(tau=20, l2=1e-5).train(toy), toy) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("holes", [0.0, 0.5])
def test_ridge_is_the_closed_form(holes: float) -> None:
    """Each worker's row is the least squares of its known rewards with the penalty as further equations."""
    problem, l2 = make_problem(2, holes=holes), 0.01
    weight = Ridge(l2=l2).train(problem)
    for row, reward in zip(weight, problem.rewards.T, strict=True):
        asked = np.isfinite(reward)
        penalty = np.sqrt(l2 * asked.sum()) * np.eye(problem.features.shape[1])
        equations = np.vstack([problem.features[asked], penalty])
        expected = np.linalg.lstsq(equations, np.concatenate([reward[asked], np.zeros(len(penalty))]), rcond=None)[0]
        assert np.allclose(row, expected)


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_gradient_never_falls_below_its_start(holes: float) -> None:
    """From any start the penalised expected reward ends no lower; the reward falls by the old penalty at most."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        plain = make_problem(seed, n=int(rng.integers(2, 50)), holes=holes)
        start = rng.standard_normal((3, 5)) * rng.choice([0.1, 1, 5])
        problem = make_problem(seed, n=len(plain.features), holes=holes, start=start)
        trainer = Gradient(l2=1e-4)
        weight = trainer.train(problem)
        before, after = expected_reward(start, problem), expected_reward(weight, problem)
        penalty_before, penalty_after = (trainer.l2 / 2 * (w**2).sum() for w in (start, weight))
        assert after - penalty_after >= before - penalty_before - 1e-9
        assert after >= before - penalty_before


def test_gradient_ends_where_it_is_flat() -> None:
    """At the solution the numerical slope of the penalised expected reward is nearly nothing."""
    problem, trainer = make_problem(3, holes=0.2), Gradient(l2=1e-2)
    weight = trainer.train(problem)

    def loss(flat: Floats) -> float:
        return trainer.l2 / 2 * (flat**2).sum() - expected_reward(flat.reshape(weight.shape), problem)

    assert check_grad(loss, lambda flat: np.zeros_like(flat), weight.ravel()) < 2e-3


def test_gradient_improves_on_the_soft_stage() -> None:
    """Where soft targets leave reward on the table, ascent on the reward itself takes it."""
    problem = make_problem(4, n=40, size=3)
    soft, better = Soft(tau=1.0).train(problem), Gradient().train(problem)
    assert expected_reward(better, problem) > expected_reward(soft, problem) + 0.05


@every_trainer
def test_every_trainer_is_deterministic(trainer: Trainer) -> None:
    """Trained twice on the same problem the weights are equal bit for bit, and nothing handed in is changed."""
    toy = make_toy(30)
    start = np.full((3, 4), 0.1)
    problem = Problem(
        features=toy.features, rewards=toy.rewards, start=start, seed=7, episode_reward=toy.episode_reward
    )
    before = (problem.features.copy(), problem.rewards.copy(), start.copy())
    assert np.array_equal(trainer.train(problem), trainer.train(problem))
    for now, then in zip((problem.features, problem.rewards, start), before, strict=True):
        assert np.array_equal(now, then)


@pytest.mark.parametrize("trainer", [Soft(), Ridge(), Gradient()], ids=["Soft", "Ridge", "Gradient"])
def test_known_topics_get_their_worker(trainer: Trainer) -> None:
    """Where each topic has one right worker, each trainer's head asks it, on every question."""
    toy = make_toy()
    assert (chosen(trainer.train(toy), toy) == np.arange(90) % 3).all()


@pytest.mark.parametrize("trainer", [Soft(), Ridge(), Gradient()], ids=["Soft", "Ridge", "Gradient"])
@pytest.mark.parametrize("n", [1, 12])
def test_identical_questions_get_the_best_worker(trainer: Trainer, n: int) -> None:
    """From one question, or copies of one, weights are finite and the worker that was right is asked."""
    features = np.column_stack([np.full((n, 2), 0.3), np.ones(n)])
    problem = Problem(features=features, rewards=np.tile([0.0, 1.0, 0.0], (n, 1)))
    weight = trainer.train(problem)
    assert np.isfinite(weight).all()
    assert (chosen(weight, problem) == 1).all()


@pytest.mark.parametrize("trainer", [Soft(), Ridge(), Gradient()], ids=["Soft", "Ridge", "Gradient"])
def test_a_worker_that_was_never_asked_learns_nothing(trainer: Trainer) -> None:
    """A column without any outcome gives finite weights, and the row of that worker stays 0."""
    problem = make_problem(5, holes=0.0)
    problem.rewards[:, 2] = np.nan
    weight = trainer.train(problem)
    assert np.isfinite(weight).all()
    assert (weight[2] == 0).all()


@pytest.mark.parametrize("trainer", [Soft(), Ridge(), Gradient()], ids=["Soft", "Ridge", "Gradient"])
def test_unknown_outcomes_do_not_count_as_wrong(trainer: Trainer) -> None:
    """A worker that is right wherever it was asked beats one that is right half the time, asked on everything."""
    n = 60
    rewards = np.column_stack([np.arange(n) % 2, np.where(np.arange(n) % 3 == 0, 1.0, np.nan)])
    problem = Problem(features=np.ones((n, 1)), rewards=rewards)
    assert (chosen(trainer.train(problem), problem) == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_evolution_raises_the_reward_from_scratch(seed: int) -> None:
    """From weights of 0, which get a third of the toy, evolution on episodes alone gets nearly all of it."""
    toy = make_toy()
    problem = Problem(features=toy.features, rewards=toy.rewards, episode_reward=toy.episode_reward, seed=seed)
    weight = SepCMATrainer(generations=40, sigma0=1.0, questions=60).train(problem)
    assert (chosen(weight, problem) == np.arange(90) % 3).mean() > 0.95


def test_candidates_of_a_generation_answer_the_same_questions() -> None:
    """One generation is one call with all its candidates and one draw of different questions, new each generation."""
    calls: list[tuple[int, NDArray[np.int64]]] = []

    def episode_reward(weights: Floats, questions: NDArray[np.int64]) -> Floats:
        calls.append((len(weights), questions.copy()))
        return weights.sum((1, 2))

    problem = Problem(features=np.ones((50, 2)), rewards=np.ones((50, 3)), episode_reward=episode_reward)
    SepCMATrainer(generations=4, popsize=6, questions=10).train(problem)
    assert [count for count, _ in calls] == [6] * 4
    for _, questions in calls:
        assert len(set(questions)) == 10
        assert set(questions) <= set(range(50))
    assert len({tuple(questions) for _, questions in calls}) == 4


def test_evolution_takes_all_questions_where_there_are_few() -> None:
    """Asked for more questions per generation than there are, each generation takes every one."""
    seen: list[int] = []

    def episode_reward(weights: Floats, questions: NDArray[np.int64]) -> Floats:
        seen.append(len(questions))
        return np.zeros(len(weights))

    problem = Problem(features=np.ones((7, 2)), rewards=np.ones((7, 2)), episode_reward=episode_reward)
    SepCMATrainer(generations=2, popsize=4, questions=100).train(problem)
    assert seen == [7, 7]


def test_evolution_reports_each_generation() -> None:
    """Progress hears of every generation once, in numbers that JSON has."""
    rows: list[dict[str, float]] = []
    toy = make_toy()
    problem = Problem(
        features=toy.features, rewards=toy.rewards, episode_reward=toy.episode_reward, progress=rows.append
    )
    SepCMATrainer(generations=5, questions=30).train(problem)
    assert [row["generation"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        assert set(row) == {"generation", "reward/mean", "reward/max", "sigma"}
        assert 0 <= row["reward/mean"] <= row["reward/max"] <= 1
        assert type(row["sigma"]) is float


def test_evolution_without_episodes_is_refused() -> None:
    """Without a way to run episodes there is nothing to evolve on, and that is said."""
    with pytest.raises(ValueError, match="episode_reward"):
        SepCMATrainer().train(make_problem(0))


def test_names_say_what_was_used() -> None:
    """Every trainer's name holds its constants: it stands in metrics and on cards."""
    assert [trainer.name for trainer in EVERY] == [
        "soft(tau=0.1, l2=0.0001)",
        "ridge(l2=0.001)",
        "gradient(l2=0.0001)",
        "sepcma(generations=3, sigma0=0.1, questions=20)",
    ]
