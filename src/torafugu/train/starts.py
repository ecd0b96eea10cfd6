"""Starts of a tri-role head: a grid of ways to read and to stop, each judged by cross-fitted reward.

The best start is not taken: of hundreds that differ little, chance says which gains most. The seventy best vote on how
questions are read, and of those that share the majority's choice the mean is taken (heads are linear, so this is the
mean of their weights). A start of one call stands for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..eval.baselines import rank_workers, ranked_columns, score_of_choice
from ..eval.matrix import OutcomeMatrix
from ..eval.report import Reporter
from ..orchestrate.tri_head import Rules
from ..types import Json
from .features import FeatureConfig
from .rollout import Played, Stopped, Trace, World, trace
from .selection import family_error, standard_error
from .tri_trainers import Start, net_reward
from .worlds import (
    Fitted,
    Hidden,
    QuestionMap,
    fit_reading,
    fold_by_family,
    fold_by_question,
    matrix_to_world,
    relative_cost,
)

__all__ = ["CANDIDATES", "SINGLE", "Candidate", "Fold", "Judged", "Result", "Trials", "choose_start", "judge"]

Floats = npt.NDArray[np.float64]

_LANDMARKS = FeatureConfig(kind="landmarks", components=64, landmarks=256, sharpness=1.0)
_WIDE = FeatureConfig(kind="landmarks", components=64, landmarks=128, sharpness=0.25)
_MAPS = (
    QuestionMap(features=None),
    QuestionMap(features=_LANDMARKS),
    QuestionMap(features=_WIDE, l2=1e-2),  # where there are few questions: each says more about others
    QuestionMap(features=_WIDE, l2=1e-2, reads_lengths=True),
)
_THRESHOLDS = (0.8, 0.9, 0.95)
"""Of trust, after one answer."""
_EASINGS = (0.0, 0.3, 0.6, 0.9)
"""By how much four more answers lower it: where many differ, one more helps little."""
_FAMILIAR = (0.0, -0.15, -0.3)
"""What is added to the urge to stop on a question as familiar as can be. What is read there raises trust, and fewer are
asked than on unknown questions, within the same limit of calls; less than 0 evens that out."""
_CALLS = (2, 3, 5, 7)
_BY_SCORE: Mapping[str, float] = {"weight": 0.0, "deviation": 10.0, "ability": 10.0}
"""Who will probably be right is asked first. By the weight of their voices, on unknown families the wrong ones are
(decision 0026)."""
_DOUBT = 2.5
"""Standard errors that a start has to gain on known families: hundreds are tried, and with two one passes where nothing
is to be gained (medicine), by chance and at twice the calls."""
_DOUBT_UNSEEN = 0.5
"""... on unknown families. They are few, so that the error is large whatever is gained: with as many as above three of
twenty draws of one pool asked one worker, with one error one draw of another did, and each lost six points."""
_VOTERS = 70
"""A seventh of them; with 25 to 90 about the same comes out."""
_TURNS_PER_CALL = 2
"""A call, and a turn that makes the best answer so far the current one."""
_ROLES = ("worker", "verifier")
"""Recorded answers do not depend on advice, so that a Thinker would only cost: it is left out, and none is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A start: how questions are read, when to stop, how many calls there may be."""

    question_map: QuestionMap
    start: Start
    rules: Rules

    @property
    def name(self) -> str:
        if self == SINGLE:
            return "single"
        if self.rules.max_calls == 1:
            return f"{self.question_map.name}, one call"
        trust = f"trust {self.start.threshold:g} - {self.start.per_asked:g} asked/4"
        if self.start.of_familiarity:
            trust += f" + {-self.start.of_familiarity:g} familiar"
        return f"{self.question_map.name}, {trust}, {self.rules.max_calls} calls"

    @staticmethod
    def mean(candidates: Sequence[Candidate]) -> Candidate:
        """Of candidates that read alike, and so ask alike."""

        def mean(name: str) -> float:
            return round(float(np.mean([getattr(candidate.start, name) for candidate in candidates])), 3)

        start = replace(
            candidates[0].start, **{name: mean(name) for name in ("threshold", "per_asked", "of_familiarity")}
        )
        calls = np.mean([candidate.rules.max_calls for candidate in candidates])
        return replace(candidates[0], start=start, rules=_rules(round(float(calls))))


def _rules(calls: int) -> Rules:
    return Rules(max_turns=_TURNS_PER_CALL * calls + 2, max_calls=calls, roles=_ROLES)


def _to_start(threshold: float, easing: float, familiar: float) -> Start:
    return Start(threshold=threshold + easing / 4, per_asked=easing, of_familiarity=familiar, **_BY_SCORE)


SINGLE = Candidate(
    question_map=QuestionMap(features=None),
    start=Start(threshold=-9, **_BY_SCORE),
    rules=_rules(1),
)
"""Always the best single worker: gains nothing, loses nothing."""
CANDIDATES: tuple[Candidate, ...] = (
    SINGLE,
    *(
        Candidate(question_map=m, start=Start(threshold=-9, **_BY_SCORE), rules=_rules(1))
        for m in _MAPS
        if m.features is not None
    ),
    *(
        Candidate(question_map=m, start=_to_start(threshold, easing, familiar), rules=_rules(calls))
        for m in _MAPS
        for familiar in _FAMILIAR[: len(_FAMILIAR) if m.has_landmarks else 1]
        for calls in _CALLS
        for threshold in _THRESHOLDS
        for easing in _EASINGS
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Cross-fitted: gains of the net reward over the best single worker, with standard errors; calls."""

    candidate: Candidate
    seen: float
    seen_error: float
    unseen: float | None
    """None when there is only one family."""
    unseen_error: float | None
    seen_accuracy_gain: float
    unseen_accuracy_gain: float | None
    seen_calls: float
    unseen_calls: float | None

    @property
    def gain(self) -> float:
        """What candidates are ranked by."""
        return self.seen if self.unseen is None else (self.seen + self.unseen) / 2

    @property
    def calls(self) -> float:
        """What is held against the limit: on known or on unknown families, whichever takes more."""
        return self.seen_calls if self.unseen_calls is None else max(self.seen_calls, self.unseen_calls)

    @property
    def is_sure(self) -> bool:
        """Whether it gains beyond doubt; else the best single worker is asked. One call has to lose nothing on unknown
        families: there it asks the best single worker itself, and further calls it does not make.
        """
        if self.seen <= _DOUBT * self.seen_error:
            return False
        if self.unseen is None or self.unseen_error is None:
            return True
        error = _DOUBT_UNSEEN * self.unseen_error
        return self.unseen >= -error if self.candidate.rules.max_calls == 1 else self.unseen > error

    def row(self) -> dict[str, Json]:
        return {
            "candidate": self.candidate.name,
            "sure": self.is_sure,
            "seen_gain": self.seen,
            "seen_error": self.seen_error,
            "unseen_gain": self.unseen,
            "unseen_error": self.unseen_error,
            "seen_accuracy_gain": self.seen_accuracy_gain,
            "unseen_accuracy_gain": self.unseen_accuracy_gain,
            "seen_calls": self.seen_calls,
            "unseen_calls": self.unseen_calls,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """One part of the questions held out from the rest."""

    scheme: str
    train: OutcomeMatrix
    train_hidden: Hidden
    held: OutcomeMatrix
    held_hidden: Hidden
    base: Floats  # (n,) score of the best single worker of the training part
    base_cost: Floats  # (n,) of its call, relative to the dearest worker's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """Of one fold: gains over the best single worker, per question."""

    scheme: str
    net: Floats
    accuracy: Floats
    calls: Floats
    families: npt.NDArray[np.str_]


class Trials:
    """Every reading fitted on all but one part of the questions, and that part played to the end of every run."""

    def __init__(
        self,
        matrix: OutcomeMatrix,
        hidden: Hidden,
        *,
        call_price: float,
        cost_price: float,
        seed: int,
        report: Reporter,
    ) -> None:
        self.folds = list(_cut(matrix, hidden, seed))
        self.fitted: dict[tuple[int, str], Fitted] = {}
        self._prices = {"call_price": call_price, "cost_price": cost_price}
        self._traces: dict[tuple[int, str], Trace] = {}
        maps = sorted({candidate.question_map for candidate in CANDIDATES}, key=lambda m: m.name)
        report.stage("judge candidates", len(self.folds) * len(maps))
        head, rules = Start(**_BY_SCORE).to_head(), _rules(max(_CALLS))
        for i, fold in enumerate(self.folds):
            for question_map in maps:
                found = fit_reading(fold.train, fold.train_hidden, question_map, seed=seed)
                self.fitted[i, question_map.name] = found
                world = self.world(i, question_map)
                self._traces[i, question_map.name] = trace(world, found.evidence, head, rules)
                report.advance(1)

    def world(self, fold: int, question_map: QuestionMap) -> World:
        """The part of the questions that was held out."""
        part = self.folds[fold]
        prospect = self.fitted[fold, question_map.name].reading.prospect(part.held_hidden)
        return matrix_to_world(part.held, prospect)

    def result(self, fold: int, played: Played | Stopped) -> Result:
        part = self.folds[fold]
        return Result(
            scheme=part.scheme,
            net=net_reward(played, **self._prices) - part.base + self._prices["cost_price"] * part.base_cost,
            accuracy=played.score - part.base,
            calls=played.calls.astype(np.float64),
            families=part.held.families,
        )

    def results(self, candidate: Candidate) -> list[Result]:
        """By fold."""
        head, calls = candidate.start.to_head(), candidate.rules.max_calls
        name = candidate.question_map.name
        return [self.result(i, self._traces[i, name].stop(head, calls)) for i in range(len(self.folds))]

    def judge(self, candidate: Candidate) -> Judged:
        return judge(candidate, self.results(candidate))


def judge(candidate: Candidate, results: Sequence[Result]) -> Judged:
    seen, unseen = _gather(results, "seen"), _gather(results, "unseen")
    assert seen is not None, "there is always a fold of questions"
    return Judged(
        candidate=candidate,
        seen=float(seen.net.mean()),
        seen_error=standard_error(seen.net),
        unseen=None if unseen is None else float(unseen.net.mean()),
        unseen_error=None if unseen is None else family_error(unseen.net, unseen.families),
        seen_accuracy_gain=float(seen.accuracy.mean()),
        unseen_accuracy_gain=None if unseen is None else float(unseen.accuracy.mean()),
        seen_calls=float(seen.calls.mean()),
        unseen_calls=None if unseen is None else float(unseen.calls.mean()),
    )


def _gather(results: Sequence[Result], scheme: str) -> Result | None:
    """All folds of one kind as one; None: there are none."""
    of = [result for result in results if result.scheme == scheme]
    if not of:
        return None
    return Result(
        scheme=scheme,
        net=np.concatenate([result.net for result in of]),
        accuracy=np.concatenate([result.accuracy for result in of]),
        calls=np.concatenate([result.calls for result in of]),
        families=np.concatenate([result.families for result in of]),
    )


def choose_start(trials: Trials, judged: Sequence[Judged], *, limit: float) -> tuple[Judged, int]:
    """The start that is used, and of how many it is the mean. `judged`: all candidates, the greatest gain first."""
    sure = [row for row in judged if row.is_sure and row.calls <= limit]
    (single,) = (row for row in judged if row.candidate == SINGLE)
    finalists = [(row, 1) for row in sure if row.candidate.rules.max_calls == 1]
    several = [row for row in sure if row.candidate.rules.max_calls > 1][:_VOTERS]
    if several:
        voters = [row.candidate for row in several]
        (reading, count), *_ = Counter(candidate.question_map for candidate in voters).most_common(1)
        mean = trials.judge(Candidate.mean([candidate for candidate in voters if candidate.question_map == reading]))
        while mean.calls > limit:  # each of them keeps to it; their mean might not
            start = mean.candidate.start
            start = replace(start, threshold=round(start.threshold - 0.01, 3))
            mean = trials.judge(replace(mean.candidate, start=start))
        finalists.append((mean, count) if mean.gain > 0 else (several[0], 1))
    return max(finalists, key=lambda finalist: finalist[0].gain, default=(single, 1))


def _cut(matrix: OutcomeMatrix, hidden: Hidden, seed: int) -> Iterator[Fold]:
    for scheme, fold in (
        ("seen", fold_by_question(len(matrix), seed + 1)),
        ("unseen", fold_by_family(matrix.families, seed + 1)),
    ):
        for k in [] if fold is None else np.unique(fold):
            rows, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            train, target = matrix.rows(rows), matrix.rows(held)
            base = ranked_columns(target, rank_workers(train))
            yield Fold(
                scheme=scheme,
                train=train,
                train_hidden=hidden[rows],
                held=target,
                held_hidden=hidden[held],
                base=score_of_choice(target, base),
                base_cost=relative_cost(target.cost_usd)[np.arange(len(held)), base],
            )
