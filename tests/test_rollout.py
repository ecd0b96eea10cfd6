"""The batched twin: it plays exactly the runs that the loop serves, and its gradients are those of what it draws."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from coordinators import RULES, Ran, draw_evidence, make_evidence, make_head, run_recorded, to_world, write_answers
from heads import Texts, models
from runs import Record, make_pool
from torafugu.errors import PlanError
from torafugu.events import Called, Planned
from torafugu.orchestrate import orchestrate
from torafugu.orchestrate.coordinator import Coordinator
from torafugu.orchestrate.situation import Evidence, Prospect, Situation, look
from torafugu.orchestrate.tri_head import ROLES, VERIFIER, Rules, TriHead
from torafugu.pool import Query, Scripted
from torafugu.train.rollout import World, play, sample, trace
from torafugu.train.tri_trainers import Start
from torafugu.types import Message, Request
from trinity import make_pattern_world


def count_calls(ran: Ran, workers: tuple[str, ...]) -> list[list[int]]:
    """(3, L)"""
    return [[ran.called.count((role, worker)) for worker in workers] for role in ROLES]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_loop_and_batch_play_the_same_runs(tmp_path: Path, rules: Rules) -> None:
    """Whatever the head, the loop and its batched twin make the same calls and turns and give the same answer."""
    reworded = 0
    for seed in range(40):
        recorded = write_answers(tmp_path / str(seed), workers="abcde"[: 2 + seed % 4], seed=seed)
        head = make_head(recorded.workers, rules=rules, seed=seed)
        world = to_world(recorded, head)
        played = play(world, head.evidence, head.head, rules)
        for i, ran in enumerate(run_recorded(recorded, head)):
            where = f"seed {seed}, question {i}: {ran.turns_taken}"
            by = recorded.workers[played.answered_by[i]] if played.answered_by[i] >= 0 else None
            assert (by, played.score[i]) == (ran.answered_by, ran.score), where
            assert played.called[i].tolist() == count_calls(ran, recorded.workers), where
            assert played.calls[i] == len(ran.called), where
            paid = sum(world.cost[i, recorded.workers.index(worker)] for _, worker in ran.called)
            assert played.cost[i] == pytest.approx(paid)
            if ran.turns is not None:
                assert played.turns[i] == ran.turns == len(ran.turns_taken), where
                assert played.accepted[i] == (ran.stopped == "accepted"), where
            reworded += ran.worded_by is not None
    assert (reworded > 0) == (rules.recall and rules != RULES["few turns"] and rules != RULES["few calls"])


@pytest.mark.parametrize("order", [{"weight": 1.0, "deviation": 2.0}, {"weight": 0.0, "ability": 10.0}])
def test_a_trace_tells_every_way_of_stopping(tmp_path: Path, order: dict[str, float]) -> None:
    """Runs that ask on to their end, stopped afterwards by a start of the same order, end as if they were played."""
    stopped = set()
    for seed in range(30):
        recorded = write_answers(tmp_path / str(seed), workers="abcde"[: 2 + seed % 4], seed=seed)
        head = make_head(recorded.workers, rules=_start_rules(4), seed=seed)
        world = to_world(recorded, head)
        world.score[::3, 0] = np.nan  # who was never asked cannot be
        traced = trace(world, head.evidence, Start(**order).to_head(), _start_rules(4))
        for calls in (1, 2, 4):
            for threshold in (0.2, 0.5, 0.9):
                start = Start(threshold=threshold, per_asked=0.2, of_familiarity=-0.1, **order).to_head()
                played = play(world, head.evidence, start, _start_rules(calls))
                ended = traced.stop(start, calls)
                assert ended.calls.tolist() == played.calls.tolist()
                assert ended.score.tolist() == played.score.tolist()
                assert ended.cost == pytest.approx(played.cost)
                stopped |= set(ended.calls.tolist())
    assert stopped == {0, 1, 2, 3, 4}  # 0: nobody could be asked


def test_a_trace_of_runs_that_nobody_can_answer() -> None:
    """They have made no call, and score nothing."""
    world = make_pattern_world(3)
    world.score[1] = np.nan
    traced = trace(world, make_evidence(3), Start().to_head(), _start_rules(2))
    ended = traced.stop(Start(threshold=0.0).to_head(), 2)
    assert (traced.calls.tolist(), ended.calls.tolist()) == ([2, 0, 2], [1, 0, 1])
    assert (ended.score[1], ended.cost[1]) == (0, 0)


def _start_rules(calls: int) -> Rules:
    return Rules(max_turns=2 * calls + 2, max_calls=calls, roles=("worker", "verifier"))


# --- answers that cannot be compared ---

LONG = "A long essay, number {}.\nIt has two lines, and says nothing that could be compared."
REQUEST = Request(model="fugu-trinity", messages=(Message(role="user", content="Write me an essay."),))


def essayists(same: npt.NDArray[np.bool_]) -> dict[str, Scripted]:
    """Workers whose essays differ in words; as Verifiers they accept whose answer is the same. Each names its own."""

    def make(j: int) -> Scripted:
        def answer(query: Query) -> str:
            if query.role != "verifier":
                return LONG.format(j)
            current = query.messages[-1].text.partition("<current_answer>")[2]
            k = next(k for k in range(len(same)) if LONG.format(k) in current)
            return f"<answer>essay {j}</answer>\n<verdict>{'ACCEPT' if same[k, j] else 'REJECT'}</verdict>"

        return Scripted(answer)

    return {f"w{j}": make(j) for j in range(len(same))}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_loop_and_batch_agree_on_essays(rules: Rules) -> None:
    """Where only Verifiers can tell, both make the same calls and turns, and give the same answer, too."""
    for seed in range(15):
        answers = np.random.default_rng(seed).integers(0, 3, 4)
        same = (answers[:, None] == answers[None]) & (answers > 0)  # of some, nobody is content with what they wrote
        backends = essayists(same)
        head = make_head(list(backends), rules=rules, seed=seed)
        prospect = head.prospect(Texts().states([REQUEST.messages[-1].text]))
        world = World(
            score=np.ones((1, 4)),
            same=same[None],
            alike=same[None],
            cost=np.zeros((1, 4)),
            length=np.full((1, 4), np.nan),
            prospect=prospect,
            unreadable=np.array([True]),
        )
        played = play(world, head.evidence, head.head, rules)
        policy = Coordinator(head, Texts(), models(list(backends)))
        record = Record()
        try:
            run = asyncio.run(orchestrate(REQUEST, policy, make_pool(backends), recorder=record))
            answer, notes = run.answer, run.events[-2].notes  # type: ignore[union-attr]
        except PlanError:
            answer, notes = None, {}
        by = int(played.answered_by[0])
        assert (f"w{by}" if by >= 0 else None) == (answer and answer.worker)
        roles = {s.id: s.role for e in record.events if isinstance(e, Planned) for s in e.plan.steps}
        called = [(roles[e.step], e.worker) for e in record.events if isinstance(e, Called)]
        assert played.called[0].tolist() == [[called.count((role, w)) for w in backends] for role in ROLES]
        if answer is not None:
            assert (played.turns[0], played.accepted[0]) == (notes["turns"], notes["stopped"] == "accepted")


# --- worlds ---


def draw_world(count: int, size: int, *, seed: int) -> World:
    draw = np.random.default_rng([seed, 4])
    answers = draw.integers(0, 3, (count, size))
    wordings = 2 * answers + draw.integers(0, 2, (count, size))
    score = np.where(draw.random((count, size)) < 0.15, np.nan, answers == 1)
    score[np.arange(count), np.arange(count) % size] = 1.0
    return World(
        score=score,
        same=(answers[:, :, None] == answers[:, None, :]) & (answers > 0)[:, :, None],
        alike=(wordings[:, :, None] == wordings[:, None, :]) & (answers > 0)[:, :, None],
        cost=draw.random((count, size)),
        length=np.where(draw.random((count, size)) < 0.2, np.nan, draw.normal(4, 2, (count, size))),
        prospect=Prospect(deviation=draw.normal(0, 0.2, (count, size)), familiarity=draw.random(count)),
        unreadable=draw.random(count) < 0.2,
    )


def draw_head(seed: int, scale: float = 1.0) -> TriHead:
    return TriHead.from_vector(scale * np.random.default_rng([seed, 6]).standard_normal(TriHead.size()))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_one_question_or_many(rules: Rules) -> None:
    """A question is played alike alone and among others: no run knows of its neighbours."""
    world, evidence, head = draw_world(40, 5, seed=1), draw_evidence(5, 1), draw_head(1)
    played = play(world, evidence, head, rules)
    for i in range(40):
        one = play(world.rows(np.array([i])), evidence, head, rules)
        for name in ("score", "answered_by", "calls", "turns", "cost", "accepted", "called"):
            assert (getattr(one, name)[0] == getattr(played, name)[i]).all(), (i, name)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("drawn", [False, True])
def test_runs_keep_to_the_rules(rules: Rules, drawn: bool) -> None:
    """Played or sampled: no call of a worker without an outcome, none too many, no role that is not there."""
    world, evidence = draw_world(200, 4, seed=2), draw_evidence(4, 2)
    if drawn:
        played, _ = sample(world, evidence, draw_head(2), rules, np.random.default_rng(0))
    else:
        played = play(world, evidence, draw_head(2), rules)
    assert not played.called.sum(1)[~np.isfinite(world.score)].any()
    assert (played.calls == played.called.sum((1, 2))).all()
    assert (played.calls <= rules.max_calls).all()
    assert (played.calls <= played.turns).all()
    assert (played.turns <= rules.max_turns).all()
    for k, role in enumerate(ROLES):
        assert role in rules.roles or not played.called[:, k].any()
    answered = played.answered_by >= 0
    assert answered[played.accepted].all()
    assert (played.score[~answered] == 0).all()
    rows = np.arange(200)[answered]
    assert (played.score[answered] == world.score[rows, played.answered_by[answered]]).all()
    assert (played.called[rows, 0, played.answered_by[answered]] > 0).all()  # it has worked


def test_playing_leaves_the_world_as_it_is() -> None:
    """A world is played again and again: nothing in it changes, and it gives the same runs."""
    world, evidence, head = draw_world(50, 4, seed=3), draw_evidence(4, 3), draw_head(3)
    before = [world.score.copy(), world.same.copy(), world.cost.copy()]
    one, other = play(world, evidence, head, Rules()), play(world, evidence, head, Rules())
    assert (one.called == other.called).all()
    for kept, now in zip(before, (world.score, world.same, world.cost), strict=True):
        assert np.array_equal(kept, now, equal_nan=True)


def test_no_questions() -> None:
    """A world without questions is played to no runs."""
    world = draw_world(5, 3, seed=1).rows(np.zeros(0, np.int64))
    played, turns = sample(world, draw_evidence(3, 1), draw_head(1), Rules(), np.random.default_rng(0))
    assert (len(world), len(played.score), turns) == (0, 0, [])
    assert len(play(world, draw_evidence(3, 1), draw_head(1), Rules()).score) == 0


# --- sampling ---


def first_choice(
    world: World, evidence: Evidence, head: TriHead, rules: Rules
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Log-probabilities of the first turn's roles (n, 3) and of its workers by role (n, 3, L), written out anew."""
    n, size = world.score.shape
    nobody = np.zeros((n, size), bool)
    situation = Situation(
        known=nobody,
        worked=nobody,
        current=np.full(n, -1),
        same=world.same,
        alike=world.alike,
        empty=nobody,
        length=np.full((n, size), np.nan),
        unreadable=world.unreadable,
        thought=np.zeros(n, bool),
        exhausted=np.zeros(n, bool),
    )
    view = look(situation, world.prospect, evidence)
    role = view.run @ head.role.T
    worker = np.einsum("nlp,rp->nrl", view.workers, head.worker)
    role[:, VERIFIER] = -np.inf
    worker = np.where(np.isfinite(world.score)[:, None], worker, -np.inf)
    return role - np.logaddexp.reduce(role, 1)[:, None], worker - np.logaddexp.reduce(worker, 2)[:, :, None]


def test_gradient_of_what_was_drawn() -> None:
    """A turn's gradient is the derivative of its log-probability: checked against differences, every coordinate."""
    world, evidence, vector = draw_world(6, 3, seed=4), draw_evidence(3, 4), draw_head(4).to_vector()
    rules = Rules(max_turns=1)
    played, (turn,) = sample(world, evidence, TriHead.from_vector(vector), rules, np.random.default_rng(1))
    role, worker = np.nonzero(played.called.reshape(6, -1))[1] // 3, np.nonzero(played.called.reshape(6, -1))[1] % 3

    def log_probability(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        roles, workers = first_choice(world, evidence, TriHead.from_vector(at), rules)
        found: npt.NDArray[np.float64] = roles[np.arange(6), role] + workers[np.arange(6), role, worker]
        return found

    assert turn.at.tolist() == list(range(6))
    steps = 1e-5 * np.eye(len(vector))
    differences = np.stack([(log_probability(vector + s) - log_probability(vector - s)) / 2e-5 for s in steps], axis=1)
    assert turn.gradient == pytest.approx(differences, abs=1e-7)


def test_draws_follow_the_probabilities() -> None:
    """Roles and workers are drawn as often as their softmax says."""
    one = draw_world(1, 4, seed=5)
    world, evidence, head = one.rows(np.zeros(20_000, np.int64)), draw_evidence(4, 5), draw_head(5, 0.3)
    played, _ = sample(world, evidence, head, Rules(max_turns=1), np.random.default_rng(2))
    roles, workers = first_choice(one, evidence, head, Rules())
    expected = np.exp(roles[0][:, None] + workers[0])  # (3, L)
    assert played.called.mean(0) == pytest.approx(expected, abs=0.015)


def test_sharp_heads_are_drawn_as_they_are_played() -> None:
    """When one choice has all the probability, sampling and playing are the same runs."""
    drawn_world = draw_world(100, 4, seed=6)
    alone = np.broadcast_to(np.eye(4, dtype=bool), (100, 4, 4))  # workers that agree may tie, and ties are drawn
    world, evidence, head = dataclasses.replace(drawn_world, same=alone), draw_evidence(4, 6), draw_head(6, 1e6)
    drawn, turns = sample(world, evidence, head, Rules(), np.random.default_rng(3))
    played = play(world, evidence, head, Rules())
    assert (drawn.called == played.called).all()
    assert (drawn.answered_by == played.answered_by).all()
    assert sum(len(turn.at) for turn in turns) == drawn.turns.sum()


def test_turns_tell_what_was_there_before() -> None:
    """Each sampled turn says which runs were live, what they had spent before it, and how undecided the role was."""
    world, evidence, head = draw_world(60, 4, seed=7), draw_evidence(4, 7), draw_head(7, 0.2)
    drawn, turns = sample(world, evidence, head, Rules(), np.random.default_rng(4))
    assert (turns[0].calls == 0).all()
    assert (turns[0].cost == 0).all()
    for k, turn in enumerate(turns):
        assert (drawn.turns[turn.at] > k).all()
        assert (turn.calls <= drawn.calls[turn.at]).all()
        assert (turn.cost <= drawn.cost[turn.at] + 1e-12).all()
        assert ((turn.entropy >= 0) & (turn.entropy <= np.log(3) + 1e-12)).all()
        assert np.isfinite(turn.gradient).all()
        assert turn.run.shape == (len(turn.at), head.role.shape[1])
    assert [len(turn.at) for turn in turns] == [int((drawn.turns > k).sum()) for k in range(len(turns))]


def test_same_generator_same_runs() -> None:
    """Sampling draws from its generator alone."""
    world, evidence, head = draw_world(60, 4, seed=8), draw_evidence(4, 8), draw_head(8)
    one, other, third = (sample(world, evidence, head, Rules(), np.random.default_rng(k))[0] for k in (1, 1, 2))
    assert (one.called == other.called).all()
    assert (one.called != third.called).any()
