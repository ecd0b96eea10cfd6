"""Adds workers to a trained coordinator from a short profile. The others, and the head, stay as they are.

The head's numbers belong to no worker: they read features of one (its expected score, the weight of its voice), which
are estimated here for the new one alone, the more cautiously the fewer questions it has answered. Agreement is learnt
where the profile holds other workers' answers to the same questions. Removing a worker needs nothing: it is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..eval.matrix import OutcomeMatrix
from ..orchestrate.artefact import WorkerIdentity
from ..orchestrate.coordinator import CoordinatorHead
from ..orchestrate.situation import Evidence, Lengths
from .evidence import alternatives, coefficients, measure_lengths, shared_errors
from .trainers import Problem, Ridge
from .worlds import matrix_to_world

__all__ = ["MIN_QUESTIONS", "add_workers"]

Floats = npt.NDArray[np.float64]
MIN_QUESTIONS = 20
_PRIOR_QUESTIONS = 8.0
"""How many answers the pool's mean ability counts for, against the new worker's own."""
_L2 = 3e-2
"""Of the new worker's row over question features, which a short profile hardly determines."""
_MIN_SPREAD = 0.3
"""Log-odds: a worker's weight is never taken to follow from its ability more closely than this."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Profile:
    """The outcomes in the head's column order, the new workers last."""

    score: Floats  # (n, L + M); NaN where not asked
    same: npt.NDArray[np.bool_]  # (n, L + M, L + M)
    cost: Floats  # (n, L + M) USD; NaN where unknown
    deviation: Floats  # (n, L + M)
    length: Floats  # (n, L + M); NaN where unknown
    features: Floats  # (n, F)


def add_workers(head: CoordinatorHead, matrix: OutcomeMatrix, hidden: npt.NDArray[np.float32]) -> CoordinatorHead:
    """`matrix`: the short profile; `hidden` (n, d) of its questions. Takes every worker that the head lacks.

    Raises:
        ConfigError: there is none, one answered too few questions, or a known id has another model behind it.
    """
    known = {worker.id: worker.model for worker in head.card.workers}
    models = matrix.recorded.models
    for worker in matrix.workers:
        if worker in known and models[worker] != known[worker]:
            raise ConfigError(
                f"{matrix.recorded.path}: worker {worker!r} is {models[worker]!r} here and {known[worker]!r} in the "
                "head: give the new model an id of its own"
            )
    new = [worker for worker in matrix.workers if worker not in known]
    if not new:
        raise ConfigError(f"{matrix.recorded.path}: the head knows all of its workers: {', '.join(matrix.workers)}")
    profile = _gather(head, matrix, hidden, new)
    counts = [int(np.isfinite(profile.score[:, j]).sum()) for j in range(len(known), len(known) + len(new))]
    for worker, count in zip(new, counts, strict=True):
        if count < MIN_QUESTIONS:
            raise ConfigError(f"worker {worker!r} answered {count} questions: expected at least {MIN_QUESTIONS}")
    evidence, question, profile = _estimate(head, profile, len(new))
    card = msgspec.structs.replace(
        head.card,
        workers=(*head.card.workers, *(WorkerIdentity(worker, models[worker]) for worker in new)),
        training={
            **head.card.training,
            "added": {
                "workers": new,
                "to": head.id,
                "data": str(matrix.recorded.path.name),
                "questions": counts,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        },
        gate={},
    )
    return CoordinatorHead.create(head.features, question, evidence, head.head, head.rules, card)


def _gather(head: CoordinatorHead, matrix: OutcomeMatrix, hidden: npt.NDArray[np.float32], new: list[str]) -> _Profile:
    order = [worker.id for worker in head.card.workers] + new
    column_of = {worker: j for j, worker in enumerate(matrix.workers)}
    n, size = len(matrix), len(order)
    score, cost, length = (np.full((n, size), np.nan) for _ in range(3))
    same = np.zeros((n, size, size), bool)
    prospect = head.prospect(hidden)
    at = [j for j, worker in enumerate(order) if worker in column_of]
    columns = [column_of[order[j]] for j in at]
    score[:, at], cost[:, at] = matrix.first[:, columns], matrix.cost_usd[:, columns]
    world = matrix_to_world(matrix, prospect)
    length[:, at] = world.length[:, columns]
    same[np.ix_(range(n), at, at)] = world.same[np.ix_(range(n), columns, columns)]
    deviation = np.concatenate([prospect.deviation, np.zeros((n, len(new)))], axis=1)
    return _Profile(
        score=score,
        same=same,
        cost=cost,
        deviation=deviation,
        length=length,
        features=head.features(hidden).astype(np.float64),
    )


def _estimate(head: CoordinatorHead, profile: _Profile, count: int) -> tuple[Evidence, Floats, _Profile]:
    """One new worker after the other: the evidence, the (L + M, F) question rows, the profile with deviations."""
    old = head.evidence
    size = len(old.weight)
    usual = float(old.ability.mean())
    ability, question = list(old.ability), [*head.question]
    for j in range(size, size + count):
        asked = np.isfinite(profile.score[:, j])
        scores = profile.score[asked, j]
        ability.append(float((scores.sum() + _PRIOR_QUESTIONS * usual) / (len(scores) + _PRIOR_QUESTIONS)))
        row = Ridge(l2=_L2).train(Problem(features=profile.features[asked], rewards=(scores - ability[-1])[:, None]))[0]
        if not head.question.any():  # a head that does not read questions
            row = np.zeros_like(row)
        question.append(row)
        profile.deviation[:, j] = profile.features @ row
    evidence = Evidence(
        weight=np.concatenate([old.weight, np.zeros(count)]),
        of_deviation=old.of_deviation,
        of_easiness=old.of_easiness,
        none=old.none,
        ability=np.array(ability),
        in_log_odds=old.in_log_odds,
        overlap=_grow_overlap(old.overlap, shared_errors(profile.score, profile.same), profile.score),
        cost=np.concatenate([old.cost, [_cost_of(old, profile, j) for j in range(size, size + count)]]),
        lengths=_grow_lengths(old.lengths, profile.length),
    )
    for j in range(size, size + count):
        evidence = _weigh(evidence, profile, j, size)
    return evidence, np.array(question), profile


def _weigh(evidence: Evidence, profile: _Profile, j: int, size: int) -> Evidence:
    """The weight of worker j's voice: maximum likelihood where others answered too, drawn towards what its ability
    suggests among the `size` old workers.
    """
    slope, origin = np.polyfit(evidence.ability[:size], evidence.weight[:size], 1)
    expected = origin + slope * evidence.ability[j]
    residual = evidence.weight[:size] - origin - slope * evidence.ability[:size]
    spread = max(float(residual.std()), _MIN_SPREAD)
    known = np.isfinite(profile.score)
    rows = known[:, j] & known[:, :size].any(1)
    weight = float(expected)
    if rows.any():
        longer, deviation = evidence.lengths.deviation(profile.length), evidence.scale(profile.deviation)
        x, share, target = alternatives(
            profile.score[rows], profile.same[rows], deviation[rows], longer[rows], known[rows]
        )
        theta = coefficients(evidence)
        for _ in range(50):
            theta[j] = weight
            scores = np.where(share > 0, x @ theta, -np.inf)
            odds = share * np.exp(scores - scores.max(1, keepdims=True))
            p = odds / odds.sum(1, keepdims=True)
            mean = (p * x[:, :, j]).sum(1)
            gradient = ((target - p) * x[:, :, j]).sum() - (weight - expected) / spread**2
            curvature = (p * x[:, :, j] ** 2).sum() - (mean**2).sum() + 1 / spread**2
            step = float(np.clip(gradient / curvature, -1.0, 1.0))
            weight += step
            if abs(step) < 1e-6:
                break
    weights = evidence.weight.copy()
    weights[j] = weight
    return replace(evidence, weight=weights)


def _grow_overlap(old: Floats, measured: Floats, score: Floats) -> Floats:
    """The old workers' as it was; a new one's as measured, or the mean of all where the two share no question."""
    size, total = len(old), len(measured)
    mean = float(old[~np.eye(size, dtype=bool)].mean()) if size > 1 else 0.0
    asked = np.isfinite(score)
    shared = (asked[:, :, None] & asked[:, None, :]).any(0)
    overlap = np.where(shared, measured, mean)
    overlap[:size, :size] = old
    np.fill_diagonal(overlap, 0.0)
    assert overlap.shape == (total, total)
    return overlap


def _grow_lengths(old: Lengths, length: Floats) -> Lengths:
    """The old workers' as they were, the new ones' as measured in the profile."""
    size = len(old.mean)
    found = measure_lengths(length[:, size:])
    return replace(old, mean=np.concatenate([old.mean, found.mean]), scale=np.concatenate([old.scale, found.scale]))


def _cost_of(old: Evidence, profile: _Profile, j: int) -> float:
    """Relative to the dearest worker of the training, on the scale of the old workers that the profile holds."""
    means = [float(np.nanmean(c)) if np.isfinite(c).any() else np.nan for c in profile.cost.T]
    ratios = [means[i] / old.cost[i] for i in range(len(old.cost)) if old.cost[i] > 0 and np.isfinite(means[i])]
    if not old.cost.any():
        return 0.0
    if not ratios or not np.isfinite(means[j]):
        return float(old.cost.mean())
    return means[j] / float(np.median(ratios))
