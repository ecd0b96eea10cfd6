"""Runs of the tri-role coordinator on recorded answers, thousands at once: the batched twin of `orchestrate`.

Recorded answers do not depend on what a worker is told, so a run can be played without its texts: who answers what, who
agrees, what it costs. Features, rules and head are those that serve (`orchestrate/situation.py`, `tri_head.py`); that
this gives the same calls, answer and score as the loop is tested question by question, and checked after each training.
Axes: n runs, L workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..orchestrate.situation import RUN_FEATURES, Evidence, Prospect, Situation, View, choose_wording, look
from ..orchestrate.tri_head import THINKER, VERIFIER, WORKER, Rules, TriHead, callable_workers, choices, is_free

__all__ = ["Played", "Stopped", "Trace", "Turn", "World", "play", "sample", "trace"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_GAP = RUN_FEATURES.index("trust_gap")
_EQUAL = 1e-9
"""Of trust: sums in another order differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Recorded answers to n questions."""

    score: Floats  # (n, L); NaN where never asked
    same: Bools  # (n, L, L) both gave the same answer; the diagonal is set where there is an answer
    alike: Bools  # (n, L, L) ... and wrote it alike
    cost: Floats  # (n, L) of a call, relative to the dearest worker's mean; 0 where unknown
    length: Floats  # (n, L) ln(1 + output tokens); NaN where unknown
    prospect: Prospect
    unreadable: Bools  # (n,) answers cannot be compared: only a Verifier's verdict tells

    def __len__(self) -> int:
        return len(self.score)

    def rows(self, index: Ints | Bools) -> World:
        return World(
            score=self.score[index],
            same=self.same[index],
            alike=self.alike[index],
            cost=self.cost[index],
            length=self.length[index],
            prospect=self.prospect.rows(index),
            unreadable=self.unreadable[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """What became of n runs."""

    score: Floats  # (n,) 0 without an answer
    answered_by: Ints  # (n,) -1: nobody
    calls: Ints  # (n,)
    turns: Ints  # (n,)
    cost: Floats  # (n,)
    accepted: Bools  # (n,) ended by a Verifier, not by the turns
    called: Ints  # (n, 3, L) calls by role and worker


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stopped:
    """What n runs come to under one way of stopping."""

    score: Floats  # (n,)
    calls: Ints  # (n,)
    cost: Floats  # (n,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Runs that ask on while they may; K calls at most. What is seen after each call, with the best answer current, and
    what stopping there would give. Whom a start asks does not depend on when it stops, so one trace serves them all.
    """

    run: Floats  # (n, K, G)
    score: Floats  # (n, K)
    cost: Floats  # (n, K) of the calls so far
    calls: Ints  # (n,) that could be made; 0: nobody could be asked. What lies beyond is 0

    def stop(self, head: TriHead, max_calls: int) -> Stopped:
        """As `play` does with `head` and as many calls, but for answers trusted alike to about 1e-8."""
        n, most, _ = self.run.shape
        urge = self.run @ (head.role[VERIFIER] - head.role[WORKER])  # (n, K)
        ends = (urge > 0) | (np.arange(1, most + 1) >= np.minimum(self.calls, max_calls)[:, None])
        at = ends.argmax(1)
        rows = np.arange(n)
        return Stopped(score=self.score[rows, at], calls=np.minimum(at + 1, self.calls), cost=self.cost[rows, at])


class _Runs:
    """The state of n runs while they are played."""

    def __init__(self, world: World, rules: Rules) -> None:
        n, size = world.score.shape
        self.world, self.rules = world, rules
        self.allowed = np.isfinite(world.score)
        self.known, self.worked = np.zeros((n, size), bool), np.zeros((n, size), bool)
        self.current = np.full(n, -1)
        self.thought = np.zeros(n, bool)
        self.calls, self.turns = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.cost = np.zeros(n)
        self.accepted = np.zeros(n, bool)
        self.called = np.zeros((n, 3, size), np.int64)
        diagonal = world.same[:, np.arange(size), np.arange(size)]
        self.empty = ~diagonal & ~world.unreadable[:, None]
        self.visible = world.same.copy()
        self.visible[world.unreadable] = np.eye(size, dtype=bool)
        self.live = np.arange(n)

    def situation(self) -> Situation:
        at = self.live
        return Situation(
            known=self.known[at],
            worked=self.worked[at],
            current=self.current[at],
            same=self.visible[at],
            alike=self.world.alike[at],
            empty=self.empty[at],
            length=np.where(self.worked[at], self.world.length[at], np.nan),
            unreadable=self.world.unreadable[at],
            thought=self.thought[at],
            exhausted=np.asarray(
                ~callable_workers(self.known[at], self.allowed[at], self.calls[at], self.rules).any(1)
            ),
        )

    def take(self, role: Ints, worker: Ints, free: Bools) -> None:
        """One turn of every live run."""
        at = self.live
        self.turns[at] += 1
        paid = at[~free]
        self.calls[paid] += 1
        self.cost[paid] += self.world.cost[paid, worker[~free]]
        self.called[paid, role[~free], worker[~free]] += 1
        is_worker, is_verifier = role == WORKER, role == VERIFIER
        current = self.current[at]
        accepts = is_verifier & (self.world.same[at, np.maximum(current, 0), worker] | free)
        self.known[at[~(role == THINKER)], worker[~(role == THINKER)]] = True
        self.worked[at[is_worker], worker[is_worker]] = True
        self.current[at[is_worker]] = worker[is_worker]
        self.thought[at] = (role == THINKER) | (self.thought[at] & ~(is_worker & ~free))  # a recalled reply used none
        self.accepted[at[accepts]] = True
        self.live = at[~accepts]

    def returned(self, situation: Situation) -> tuple[Ints, Floats]:
        """(m,) whose reply is the answer if the live runs end here, and its score."""
        by = choose_wording(situation) if self.rules.recall else situation.current
        return by, np.where(by >= 0, self.world.score[self.live, np.maximum(by, 0)], 0.0)

    def result(self) -> Played:
        self.live = np.arange(len(self.current))
        by, score = self.returned(self.situation())
        return Played(
            score=score,
            answered_by=by,
            calls=self.calls,
            turns=self.turns,
            cost=self.cost,
            accepted=self.accepted,
            called=self.called,
        )


def play(world: World, evidence: Evidence, head: TriHead, rules: Rules) -> Played:
    """Every run to its end, the best choice at each turn, as served. A tie goes to the first in order."""
    runs = _Runs(world, rules)
    for _ in range(rules.max_turns):
        situation, view, possible = _turn(runs, evidence, rules)
        if not len(runs.live):
            break
        role = np.where(possible.any(2), head.role_logits(view), -np.inf).argmax(1)
        worker = np.where(possible[np.arange(len(role)), role], head.worker_logits(view, role), -np.inf).argmax(1)
        runs.take(role, worker, is_free(situation, view, rules, role, worker))
    return runs.result()


def trace(world: World, evidence: Evidence, head: TriHead, rules: Rules) -> Trace:
    """Asks in the order of `head`, which decides nothing else, up to `rules.max_calls`. With recall only."""
    runs = _Runs(world, rules)
    n, most = len(world), rules.max_calls
    run = np.zeros((n, most, head.role.shape[1]))
    score, cost = np.zeros((n, most)), np.zeros((n, most))
    for _ in range(rules.max_turns):
        situation, view, possible = _turn(runs, evidence, rules)
        if not len(runs.live):
            break
        is_best = (situation.current >= 0) & (view.run[:, _GAP] < _EQUAL)
        at, call = runs.live[is_best], runs.calls[runs.live[is_best]] - 1
        run[at, call] = view.run[is_best]
        score[at, call] = runs.returned(situation)[1][is_best]
        cost[at, call] = runs.cost[at]
        role = np.where(is_best & situation.exhausted, VERIFIER, WORKER)
        worker = np.where(possible[np.arange(len(role)), role], head.worker_logits(view, role), -np.inf).argmax(1)
        runs.take(role, worker, is_free(situation, view, rules, role, worker))
    return Trace(run=run, score=score, cost=cost, calls=runs.calls)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One sampled turn of the runs that were live."""

    at: Ints  # (m,) which runs
    gradient: Floats  # (m, N) of the choice's log-probability with respect to the head's vector
    run: Floats  # (m, G) what was seen
    calls: Ints  # (m,) made before it
    cost: Floats  # (m,) spent before it
    entropy: Floats  # (m,) of the role's distribution, in nats


def sample(
    world: World, evidence: Evidence, head: TriHead, rules: Rules, rng: np.random.Generator
) -> tuple[Played, list[Turn]]:
    """Every turn drawn from the softmax of the logits, as in the paper's training."""
    runs = _Runs(world, rules)
    split = head.role.size
    turns = []
    for _ in range(rules.max_turns):
        situation, view, possible = _turn(runs, evidence, rules)
        if not len(runs.live):
            break
        rows = np.arange(len(runs.live))
        p_role = _softmax(np.where(possible.any(2), head.role_logits(view), -np.inf))
        role = _draw(p_role, rng)
        p_worker = _softmax(np.where(possible[rows, role], head.worker_logits(view, role), -np.inf))
        worker = _draw(p_worker, rng)
        gradient = np.zeros((len(rows), TriHead.size()))
        gradient[:, :split] = ((np.eye(3)[role] - p_role)[:, :, None] * view.run[:, None, :]).reshape(len(rows), -1)
        surprise = view.workers[rows, worker] - (p_worker[:, :, None] * view.workers).sum(1)  # (m, P)
        gradient[:, split:].reshape(len(rows), 3, -1)[rows, role] = surprise  # a view of the same numbers
        turns.append(
            Turn(
                at=runs.live,
                gradient=gradient,
                run=view.run,
                calls=runs.calls[runs.live],
                cost=runs.cost[runs.live],
                entropy=-(p_role * np.log(np.maximum(p_role, 1e-12))).sum(1),
            )
        )
        runs.take(role, worker, is_free(situation, view, rules, role, worker))
    return runs.result(), turns


def _turn(runs: _Runs, evidence: Evidence, rules: Rules) -> tuple[Situation, View, Bools]:
    """What each live run sees and may do; runs that may do nothing more are over."""
    situation = runs.situation()
    view = look(situation, runs.world.prospect.rows(runs.live), evidence)
    possible = choices(situation, view, rules, allowed=runs.allowed[runs.live], calls=runs.calls[runs.live])
    stuck = ~possible.any((1, 2))
    if stuck.any():
        runs.live = runs.live[~stuck]
        return _turn(runs, evidence, rules)
    return situation, view, possible


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    result: Floats = shifted / shifted.sum(1, keepdims=True)
    return result


def _draw(probabilities: Floats, rng: np.random.Generator) -> Ints:
    """One column per row."""
    edges = probabilities.cumsum(1)
    drawn = (edges < rng.random((len(edges), 1)) * edges[:, -1:]).sum(1)
    column: Ints = np.minimum(drawn, probabilities.shape[1] - 1)
    return column
