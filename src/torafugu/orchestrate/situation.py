"""What the tri-role coordinator sees of a run, as numbers: which answers there are, who agrees, how far trust goes.

Everything here is over n runs at once, in numpy; serving is the case n = 1 and training runs thousands, so that both
compute the same features by the same code. Axes: n runs, L workers, G features of the run, P features of a worker.
Nothing is decided here: `tri_head.py` scores these features, `coordinator.py` and `train/rollout.py` act.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "RUN_FEATURES",
    "WORKER_FEATURES",
    "Evidence",
    "Lengths",
    "Prospect",
    "Situation",
    "View",
    "choose_wording",
    "deviation_in_log_odds",
    "look",
    "measure_length",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

RUN_FEATURES = (
    "constant",
    "has_answer",
    "trust",  # probability that the current answer is right, by the evidence model
    "trust_gap",  # how much more another answer on the table is trusted
    "rival",  # trust in the best answer that is not the current one
    "doubt",  # probability that no answer on the table is right
    "asked",  # workers whose answer is known, in quarters
    "supported",  # two or more workers gave the current answer
    "familiarity",  # nearness of the question to what was seen in training
    "familiar_trust",
    "unreadable",  # answers cannot be compared on this request
    "empty",  # the current reply holds no answer
    "prospect",  # weight of the best worker not asked yet
    "asked_trust",
    "thought",  # a Thinker's advice is at hand
    "exhausted",  # nobody new can be called
)
WORKER_FEATURES = (
    "known",  # its answer is known
    "known_trust",
    "known_best",  # no answer is trusted more than its
    "agrees",  # it gave the current answer
    "agrees_trust",
    "best_gap",  # its answer is the best and the current one is not: by how much
    "deviation",  # of a worker not asked yet: how much better than usual on questions like this
    "weight",  # ... how much its answer would count
    "familiar_deviation",
    "ability",  # ... its mean score in training
    "doubtful_weight",
    "overlap",  # ... how often it shares its errors with those that were asked
    "cost",  # ... of a call, relative to the dearest worker's
)
_LONGEST = 3.0
"""Standard deviations; one runaway reply says no more than that."""
_UNSURE = 0.03
_EXPONENT = 30.0
"""Log-odds beyond this are certainty enough; exp() stays finite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lengths:
    """What the length of a worker's reply says: many write more where a question is hard. Learnt with the evidence."""

    mean: Floats  # (L,) of ln(1 + output tokens) in training
    scale: Floats  # (L,) its standard deviation; above 0
    of_voice: float
    """Log-odds that a standard deviation more adds to a worker's voice."""
    of_none: float
    """What the mean deviation of the replies adds to the score of "none of them"."""

    @staticmethod
    def unread(size: int) -> Lengths:
        return Lengths(mean=np.zeros(size), scale=np.ones(size), of_voice=0.0, of_none=0.0)

    def deviation(self, length: Floats) -> Floats:
        """(n, L) lengths, NaN where unknown -> standard deviations from the worker's usual; 0 where unknown."""
        return np.nan_to_num(np.clip((length - self.mean) / self.scale, -_LONGEST, _LONGEST))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """A learned vote: P(an answer is right | who gave it, on what question). A conditional logit over the different
    answers on the table and "none of them"; trained by `train/evidence.py`.
    """

    weight: Floats  # (L,) log-odds that a worker's voice adds to its answer
    of_deviation: float
    """What a unit adds to that by which the worker is more above its usual score on this question than the others."""
    of_easiness: float
    """... a unit by which all of them are above it, on average."""
    in_log_odds: bool
    """The unit: log-odds of the expected score, of which a voice is worth a constant share; else points, in which 0.5
    for 0.4 counts as much as 0.95 for 0.85. Heads of earlier versions count points."""
    none: Floats  # (5,) score of "none": constant, different answers, empty replies, workers asked, mean deviation
    ability: Floats  # (L,) mean score in training
    overlap: Floats  # (L, L) of the questions that both got wrong, the share with the same wrong answer
    cost: Floats  # (L,) mean cost of a call over the dearest worker's; 0 where no price is known
    lengths: Lengths

    def scale(self, deviation: Floats) -> Floats:
        """(n, L) deviations of expected scores, in the unit of `of_deviation`."""
        return deviation_in_log_odds(deviation, self.ability) if self.in_log_odds else deviation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prospect:
    """What is known before anybody is asked."""

    deviation: Floats  # (n, L) predicted score less the worker's usual one
    familiarity: Floats  # (n,) 0..1

    def rows(self, index: Ints | Bools) -> Prospect:
        return Prospect(deviation=self.deviation[index], familiarity=self.familiarity[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Situation:
    """Where n runs stand."""

    known: Bools  # (n, L) its answer is on the table, as a Worker's or within a Verifier's reply
    worked: Bools  # (n, L) it has answered as a Worker, so its reply can be returned
    current: Ints  # (n,) column of the worker whose answer is current; -1: none yet
    same: Bools  # (n, L, L) both gave the same answer; False where either is unknown or empty
    alike: Bools  # (n, L, L) ... and wrote it alike, to the letter
    empty: Bools  # (n, L) its reply holds no answer
    length: Floats  # (n, L) ln(1 + output tokens) of a Worker's reply; NaN where unknown
    unreadable: Bools  # (n,)
    thought: Bools  # (n,)
    exhausted: Bools  # (n,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A situation as the head reads it."""

    run: Floats  # (n, G)
    workers: Floats  # (n, L, P)
    trust: Floats  # (n, L) probability that a known answer is right; 0 for unknown ones
    agrees: Bools  # (n, L)


def look(situation: Situation, prospect: Prospect, evidence: Evidence) -> View:
    """The features of n situations."""
    known, current = situation.known, situation.current
    n, _ = known.shape
    rows = np.arange(n)
    at = np.maximum(current, 0)
    has_answer = current >= 0
    deviation = evidence.scale(prospect.deviation)  # (n, L)
    easiness = deviation.mean(1, keepdims=True)  # (n, 1)
    of_question = evidence.of_deviation * (deviation - easiness) + evidence.of_easiness * easiness
    weight = evidence.weight + of_question  # (n, L)
    longer = evidence.lengths.deviation(situation.length)  # (n, L)
    trust, doubt = _weigh(situation, deviation, evidence, weight + evidence.lengths.of_voice * longer, longer)
    agrees = situation.same[rows, at] & known
    agrees[rows, at] = True
    agrees &= has_answer[:, None]
    current_trust = np.where(has_answer, trust[rows, at], 0.0)
    best = trust.max(1)
    rival = np.where(known & ~agrees, trust, 0.0).max(1)
    gap = best - current_trust
    asked = known.sum(1) / 4.0
    familiarity = prospect.familiarity
    prospects = np.where(known, -np.inf, weight).max(1)
    run = np.stack(
        [
            np.ones(n),
            has_answer,
            current_trust,
            gap,
            rival,
            np.where(has_answer, doubt, 0.0),
            asked,
            agrees.sum(1) >= 2,
            familiarity,
            familiarity * current_trust,
            situation.unreadable,
            has_answer & situation.empty[rows, at],
            np.where(np.isfinite(prospects), prospects, 0.0),
            asked * current_trust,
            situation.thought,
            situation.exhausted,
        ],
        axis=1,
    ).astype(np.float64)
    new = ~known
    shared = (evidence.overlap[None] * known[:, None, :]).sum(2) / np.maximum(known.sum(1), 1)[:, None]  # (n, L)
    is_best = known & (trust > 0) & (trust >= best[:, None] - 1e-12)
    workers = np.stack(
        [
            known,
            known * trust,
            is_best,
            agrees,
            agrees * current_trust[:, None],
            is_best * gap[:, None],
            new * prospect.deviation,
            new * weight,
            new * prospect.deviation * familiarity[:, None],
            new * evidence.ability,
            new * weight * np.where(has_answer, doubt, 0.0)[:, None],
            new * shared,
            new * evidence.cost,
        ],
        axis=2,
    ).astype(np.float64)
    return View(run=run, workers=workers, trust=trust, agrees=agrees)


def deviation_in_log_odds(deviation: Floats, ability: Floats) -> Floats:
    """(n, L) expected scores less the usual ones (L,) -> the same of their log-odds."""
    return _log_odds(ability + deviation) - _log_odds(ability)


def _log_odds(score: Floats) -> Floats:
    """Of scores that are neither 0 nor 1: an expectation is never so sure, and the line that gives it may go beyond."""
    p = np.clip(score, _UNSURE, 1 - _UNSURE)
    odds: Floats = np.log(p / (1 - p))
    return odds


def measure_length(output_tokens: float | None) -> float:
    """ln(1 + output tokens); NaN where they were not counted. Everywhere this function: numpy's may differ in a bit."""
    return float("nan") if output_tokens is None else math.log1p(output_tokens)


def choose_wording(situation: Situation) -> Ints:
    """(n,) column of the reply that is returned where the current answer stands: of the Workers' replies that say the
    same, one whose answer is written as most of them write it; the current one where no other has more, else the first
    in order. -1: no answer.

    What is accepted is what an answer says, but who reads it, a grader above all, may take one notation only.
    """
    rows = np.arange(len(situation.current))
    at = np.maximum(situation.current, 0)
    says_it = situation.same[rows, at] & situation.known  # (n, L)
    votes = (situation.alike & says_it[:, None, :]).sum(2)  # (n, L)
    votes = np.where(says_it & situation.worked, 2 * votes, 0)
    votes[rows, at] += 1
    return np.where(situation.current >= 0, votes.argmax(1), -1)


def _weigh(
    situation: Situation, deviation: Floats, evidence: Evidence, weight: Floats, longer: Floats
) -> tuple[Floats, Floats]:
    """(n, L) probability that each known answer is right, (n,) that none is."""
    voting = situation.known & ~situation.empty  # (n, L)
    same = situation.same & voting[:, None, :]  # (n, L, L); sums over the last axis: the same bits for any n
    votes = same.sum(2)
    votes = np.where(voting, np.maximum(votes, 1), 0)  # an answer agrees with itself
    support = np.where(votes > 1, (same * weight[:, None, :]).sum(2), weight)
    odds = np.where(voting, np.exp(np.clip(support, -_EXPONENT, _EXPONENT)), 0.0)
    share = np.where(voting, 1.0 / np.maximum(votes, 1), 0.0)  # of an answer that several gave
    asked = situation.known.sum(1)
    mean_deviation = (deviation * situation.known).sum(1) / np.maximum(asked, 1)
    none = (
        evidence.none[0]
        + evidence.none[1] * share.sum(1)
        + evidence.none[2] * (situation.known & situation.empty).sum(1)
        + evidence.none[3] * asked
        + evidence.none[4] * mean_deviation
        + evidence.lengths.of_none * (longer * situation.known).sum(1) / np.maximum(asked, 1)
    )
    odds_none = np.exp(np.clip(none, -_EXPONENT, _EXPONENT))
    total = (odds * share).sum(1) + odds_none
    return odds / total[:, None], odds_none / total
