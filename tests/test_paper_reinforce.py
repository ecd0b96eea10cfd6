"""REINFORCE in the paper's mode: its gradient is the likelihood's, its rewards are the evolution's, and it learns."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from outcomes import Quiet, Subjects, read_rows, write_world
from runs import make_pool
from torafugu.envs.recorded import question_to_task
from torafugu.errors import ConfigError
from torafugu.eval.matrix import build_matrix
from torafugu.orchestrate import Encoding, orchestrate
from torafugu.orchestrate.artefact import Card, WorkerIdentity
from torafugu.orchestrate.transcript import Draw, TranscriptConfig, TranscriptCoordinator, TranscriptHead
from torafugu.orchestrate.tri_head import ROLES, THINKER, VERIFIER, WORKER
from torafugu.pool import Scripted
from torafugu.pool.recorded import RecordedSet, read_recorded
from torafugu.train.candidate import Job, Player, Sample, Setup, Tally
from torafugu.train.evolve import EvolveConfig, credit_samples, shape_reward, train_paper
from torafugu.train.paper_reinforce import PolicyGradient, estimate_gradient, normalise, score_of_turns
from torafugu.types import Message, Request

OPPOSITE = {"north": {"rivers": 1.0, "chess": 0.0}, "south": {"rivers": 0.0, "chess": 1.0}}
ONE_IS_RIGHT = {"wise": {"rivers": 1.0, "chess": 1.0}, "fool": {"rivers": 0.0, "chess": 0.0}}
POLICY = TranscriptConfig(state="parts", state_norm=30.0)
REINFORCE = EvolveConfig(optimiser="reinforce", svf=False, learning_rate=0.01, turns_per_episode=True, policy=POLICY)
SIZE = Subjects.dim * (2 + len(ROLES))


class Topics(Subjects):
    """An encoder of the subject that a text names."""

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        return Encoding(hidden=self.encode_texts([messages[-1].text])[0], tokens_read=1, tokens_total=1)


def make_world(folder: Path, skills: Mapping[str, Mapping[str, float]] = OPPOSITE) -> RecordedSet:
    splits = {"train": 30, "validation": 20, "test": 0}
    return read_recorded(write_world(folder / "data", skills, subjects=("rivers", "chess"), splits=splits))


def make_player(recorded: RecordedSet, policy: TranscriptConfig) -> Player:
    """Every fifth question may be given to the first worker alone."""
    matrix = build_matrix(recorded).split("train")
    workers = tuple(WorkerIdentity(worker, recorded.models[worker]) for worker in matrix.workers)
    everyone = frozenset(matrix.workers)
    setup = Setup(
        recorded=recorded,
        make_encoder=Topics,
        known={},
        config=policy,
        offsets=0,
        tasks=tuple(question_to_task(question) for question in matrix.questions),
        allowed=tuple(everyone if i % 5 else frozenset(matrix.workers[:1]) for i in range(len(matrix))),
        card=Card(encoder=Topics.name, workers=workers, training={}, metrics={}, baselines={}),
        keeps_draws=True,
    )
    return Player(setup)


def draw_vector(scale: float = 0.02) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(7).standard_normal(SIZE)).astype(np.float32)


def play(folder: Path, *, repeats: int = 1, policy: TranscriptConfig = POLICY, seed: int = 1) -> Tally:
    job = Job(vector=draw_vector(), questions=np.tile(np.arange(30), repeats), seed=(seed,))
    return make_player(make_world(folder), policy)(job)


def log_likelihood(vector: NDArray[np.float64], draws: Sequence[Draw], weights: Sequence[float]) -> float:
    """The weighted sum of the turns' log-probabilities, from states, choices and masks alone."""
    total = 0.0
    for draw, weight in zip(draws, weights, strict=True):
        logits = vector.reshape(-1, Subjects.dim) @ (draw.hidden.astype(np.float64) * POLICY.state_norm)
        parts = [(logits[:2], draw.workers, draw.worker)]
        if draw.role is not None:
            parts.append((logits[2:], draw.roles, draw.role))
        for numbers, shares, chosen in parts:
            total += weight * (numbers[chosen] - np.log(np.exp(numbers[shares > 0]).sum()))
    return float(total)


def test_the_gradient_is_that_of_the_likelihood(tmp_path: Path) -> None:
    """For runs of several turns, with masked roles and workers, it is the finite difference of the runs'
    log-probabilities, each times how far its reward is from the batch's mean, in standard deviations."""
    credited = credit_samples(play(tmp_path), REINFORCE)
    draws = [draw for sample, _ in credited for draw in sample.draws]
    assert len(draws) > 40
    assert any(draw.roles[VERIFIER] == 0 for draw in draws)
    assert any(draw.workers[1] == 0 for draw in draws)
    rewards = [reward for _, reward in credited]
    advantages = [(reward - np.mean(rewards)) / np.std(rewards) / len(rewards) for reward in rewards]
    weights = [a for (sample, _), a in zip(credited, advantages, strict=True) for _ in sample.draws]
    gradient = estimate_gradient(credited, size=SIZE, state_norm=POLICY.state_norm)
    vector, step = draw_vector().astype(np.float64), 1e-5
    differences = np.empty(SIZE)
    for i in range(SIZE):
        up, down = vector.copy(), vector.copy()
        up[i], down[i] = up[i] + step, down[i] - step
        differences[i] = (log_likelihood(up, draws, weights) - log_likelihood(down, draws, weights)) / (2 * step)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient, differences, atol=1e-6)


def test_it_points_where_the_expected_score_rises(tmp_path: Path) -> None:
    """Over many runs of one call, it has the direction of the exact derivative of the expected score."""
    policy = replace(POLICY, max_turns=1, roles=("worker",))
    tally = play(tmp_path, repeats=60, policy=policy)
    config = replace(REINFORCE, policy=policy, diversity_bonus=0.0, turn_bonus=0.0)
    gradient = estimate_gradient(credit_samples(tally, config), size=SIZE, state_norm=policy.state_norm)
    expected = np.zeros((2 + len(ROLES), Subjects.dim))
    for sample in tally.samples[:30]:
        (draw,) = sample.draws
        right = draw.worker if sample.episode.score else 1 - draw.worker
        share = draw.workers[right]  # the expected score of the question
        expected[right] += share * (1 - share) * draw.hidden
        expected[1 - right] -= share * (1 - share) * draw.hidden
    cosine = gradient @ expected.ravel() / np.linalg.norm(gradient) / np.linalg.norm(expected)
    assert cosine > 0.95


def test_credits_are_what_an_episode_adds_to_the_reward(tmp_path: Path) -> None:
    """One more episode among many like those played changes the reward by how far its credit is from the mean's,
    with every term that the reward has."""
    config = replace(REINFORCE, call_price=0.03, cost_bonus=0.05, turn_bonus=0.4)
    played, times, dearest = play(tmp_path), 2000, 0.001
    tally = replace(played, samples=tuple(map(price, played.samples)))
    credited = credit_samples(tally, config, dearest)
    names = sorted(OPPOSITE)
    mean = np.mean([credit for _, credit in credited])
    many = [sample.episode for sample in tally.samples] * times
    before = shape_reward(Tally.of(many, names), config, dearest)
    for sample, credit in credited[:8]:
        after = shape_reward(Tally.of([*many, sample.episode], names), config, dearest)
        assert (after - before) * len(many) == pytest.approx(credit - mean, abs=2e-3)
    assert np.ptp([credit for _, credit in credited]) > 0.5


def price(sample: Sample) -> Sample:
    """South is four times as dear as north."""
    cost = sum(Decimal("0.001") if worker == "south" else Decimal("0.00025") for worker, _ in sample.episode.replied)
    return replace(sample, episode=msgspec.structs.replace(sample.episode, cost_usd=Decimal(cost)))


def test_the_turns_of_all_episodes_cost_as_in_evolution(tmp_path: Path) -> None:
    """Where the turns of all episodes count, the credits' mean loses what the reward loses."""
    tally = play(tmp_path)
    config = replace(REINFORCE, turns_per_episode=False, diversity_bonus=0.0)
    mean = np.mean([credit for _, credit in credit_samples(tally, config)])
    of_first_turn = config.turn_bonus / 4 / POLICY.max_turns
    assert mean + of_first_turn == pytest.approx(shape_reward(tally, config))
    assert mean < np.mean(tally.scores) - 0.1


def test_unscored_episodes_teach_nothing(tmp_path: Path) -> None:
    """An episode that a worker failed has no part in the gradient, whatever was drawn in it."""
    tally = play(tmp_path)
    failed = replace(tally, samples=(*tally.samples, *map(unscored, tally.samples[:5])))
    assert [id(sample) for sample, _ in credit_samples(failed, REINFORCE)] == [id(sample) for sample in tally.samples]
    assert credit_samples(replace(tally, samples=tuple(map(unscored, tally.samples))), REINFORCE) == []
    assert not estimate_gradient([], size=SIZE, state_norm=1.0).any()


def unscored(sample: Sample) -> Sample:
    return replace(sample, episode=msgspec.structs.replace(sample.episode, score=None))


def test_advantages_have_mean_0_and_deviation_1() -> None:
    """Rewards are compared within the batch; where all are the same, there is nothing to learn and no step."""
    np.testing.assert_allclose(normalise(np.array([0.0, 1.0, 2.0, 1.0])), np.array([-1, 0, 1, 0]) * np.sqrt(2))
    assert not normalise(np.full(7, 0.1)).any()
    assert normalise(np.array([])).shape == (0,)


def test_a_choice_that_ends_the_run_is_learned_from(tmp_path: Path) -> None:
    """With dead_ends "ends", a Verifier before any answer scores 0, and its turn is among the draws."""
    ended = [sample for sample in play(tmp_path, policy=replace(POLICY, dead_ends="ends")).samples if sample.draws]
    first = [sample for sample in ended if sample.draws[0].role == VERIFIER]
    assert first
    for sample in first:
        assert (sample.episode.score, sample.episode.replied, len(sample.draws)) == (0.0, (), 1)


@cache
def suggest() -> tuple[Draw, ...]:
    """The draws of a run whose Thinkers suggest a Worker each time."""
    vector = np.zeros((2 + len(ROLES), Subjects.dim), np.float32)
    workers = (WorkerIdentity("a", "a-1"), WorkerIdentity("b", "b-1"))
    card = Card(encoder=Topics.name, workers=workers, training={}, metrics={}, baselines={})
    head = TranscriptHead(vector.ravel(), None, replace(POLICY, roles=("worker", "thinker")), card)
    draws: list[Draw] = []
    rng = np.random.default_rng(3)
    pool = {"a": "a-1", "b": "b-1"}
    policy = TranscriptCoordinator(head, Topics(), pool, draw=rng, observe=draws.append)
    advice = "<suggestion>count</suggestion><suggested_role>worker</suggested_role>"
    request = Request(model="m", messages=(Message(role="user", content="rivers: how many?"),))
    backends = {id: Scripted([advice] * 5) for id in pool}
    run = asyncio.run(orchestrate(request, policy, make_pool(backends)))
    assert len(draws) == len(run.plans) == POLICY.max_turns
    return tuple(draws)


def test_a_suggested_role_was_not_drawn() -> None:
    """A turn whose role a Thinker suggested is observed without one, and the roles' rows learn nothing of it."""
    draws = suggest()
    after = [draws[i + 1].role for i in range(len(draws) - 1) if draws[i].role == THINKER]
    assert after
    assert set(after) == {None}
    assert all(draws[i + 1].role in (WORKER, THINKER) for i in range(len(draws) - 1) if draws[i].role != THINKER)
    turn = next(draw for draw in draws if draw.role is None)
    score = score_of_turns([turn], np.ones(1), state_norm=2.0).reshape(-1, Subjects.dim)
    assert not score[2:].any()
    np.testing.assert_allclose(score[turn.worker], turn.hidden)  # (1 - 1/2) * 2


def test_adam_takes_the_steps_of_its_paper() -> None:
    """Its first step is the learning rate, whatever the gradient is; after the opposite one it hardly moves."""
    search = PolicyGradient(np.zeros(2), 0.1, count=3)
    search.tell(np.array([1e-3, -50.0]))
    np.testing.assert_allclose(search.mean, [0.1, -0.1], rtol=1e-4)
    search.tell(np.array([-1e-3, 50.0]))
    np.testing.assert_allclose(search.mean, [0.1 - 0.1 * 0.01 / 0.19, -0.1 + 0.1 * 0.01 / 0.19], rtol=1e-4)
    np.testing.assert_array_equal(search.ask(), np.tile(search.mean, (3, 1)))


def test_draws_cross_processes(tmp_path: Path) -> None:
    """A tally that comes back from another process gives the same gradient; evolution's tallies hold no draws."""
    tally = play(tmp_path)
    gradients = [
        estimate_gradient(credit_samples(t, REINFORCE), size=SIZE, state_norm=30.0)
        for t in (tally, pickle.loads(pickle.dumps(tally)))
    ]
    np.testing.assert_array_equal(*gradients)
    player = make_player(make_world(tmp_path / "other"), POLICY)
    job = Job(vector=draw_vector(), questions=np.arange(3), seed=(1,))
    assert Player(replace(player.setup, keeps_draws=False))(job).samples == ()
    assert player(replace(job, seed=None)).samples == ()
    assert len(player(job).samples) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"svf": True}, "svf = false"),
        ({"policy": TranscriptConfig(head="low-rank")}, "head = 'linear'"),
        ({"common_questions": True}, "common_questions = false"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
    ],
)
def test_what_has_no_gradient_here_is_refused(fields: dict[str, Any], message: str) -> None:
    """Singular values, other heads, repeated draws and a rate that is none are errors that say what to set."""
    with pytest.raises(ConfigError, match=message):
        replace(REINFORCE, **fields)


def test_its_mean_reward_rises(tmp_path: Path) -> None:
    """Where one worker is always right and the other never, whole runs come to end with the right one's answer."""
    config = replace(REINFORCE, iterations=12, repeats=8, popsize=6, tests=20, test_interval=4, diversity_bonus=0.0)
    trained = train_paper(
        make_world(tmp_path, ONE_IS_RIGHT), Topics, tmp_path / "out", config=config, cache=None, report=Quiet()
    )
    rows = [row for row in read_rows(tmp_path / "out" / "metrics.jsonl") if row["stage"] == "evolution"]
    assert rows[0]["score"] < 0.7
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.3
    assert rows[-1]["score"] > 0.95
    assert trained.validation_score == 1.0
    assert trained.head.card.training["trainer"] == "reinforce, 12 iterations"
    assert all(row["gradient/norm"] > 0 and "sigma" not in row for row in rows[:3])
