"""Trains the head that `orchestrate/selector.py` serves: recorded outcomes in, a folder with weights and card out.

    encode -> judge candidates by cross-fitted reward -> fit the winner -> evolve it on episodes -> keep what held out

What is kept is refitted on train and validation together. The test split and every other split are never looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..eval.baselines import rank_workers, ranked_score
from ..eval.matrix import OutcomeMatrix, best_single
from ..eval.provenance import describe_data, find_commit
from ..eval.report import Reporter
from ..eval.states import BulkEncoder, encode_questions
from ..orchestrate.head import Card, FeatureMap, Head, WorkerIdentity, softmax
from ..orchestrate.loop import Caller
from ..orchestrate.selector import SCALE_METRIC, advantage
from ..pool.recorded import RecordedSet
from ..types import Json
from .features import FeatureConfig, fit_features
from .fitness import EpisodeReward
from .outcomes import describe_best_single, keep_log, read_outcomes
from .selection import SINGLE, Candidate, Judged, choose_columns, count_fits, judge
from .trainers import Floats, Gradient, Problem, Ridge, SepCMATrainer, Soft

__all__ = ["CANDIDATES", "SelectorConfig", "Trained", "measure_scale", "train_selector"]

_FEATURES = (
    FeatureConfig(kind="pca", components=16),
    FeatureConfig(kind="landmarks", components=64, landmarks=128, sharpness=0.25),
    FeatureConfig(kind="landmarks", components=64, landmarks=256, sharpness=0.5),
    FeatureConfig(kind="landmarks", components=64, landmarks=256, sharpness=1.0),
)
_TRAINERS = (Soft(), Ridge(l2=1e-3), Ridge(l2=1e-2), Gradient())
CANDIDATES: tuple[Candidate, ...] = (
    SINGLE,
    *(Candidate(features=features, trainer=trainer) for features in _FEATURES for trainer in _TRAINERS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorConfig:
    """What `fugu train selector` does."""

    seed: int = 0
    evolution: SepCMATrainer | None = field(default_factory=SepCMATrainer)
    """None: no second stage."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A training run's result."""

    head: Head
    winner: Judged
    evolved: bool
    validation_gain: float


def train_selector(
    recorded: RecordedSet,
    encoder: BulkEncoder,
    pool: Caller,
    out: Path,
    *,
    config: SelectorConfig,
    cache: Path | None,
    report: Reporter,
) -> Trained:
    """Writes `out/head.safetensors`, `card.json`, `metrics.jsonl` and `run.json`. `pool` replays `recorded`.

    Raises:
        ConfigError: there are no training questions, or fewer than two workers.
    """
    started = time.time()
    train, validation = read_outcomes(recorded, report.say)
    both = OutcomeMatrix.join(train, validation)
    with keep_log(out, recorded, asdict(config)) as log:
        report.stage("encode questions", len(both))
        hidden = encode_questions(encoder, both.questions, cache=cache, progress=report.advance)
        report.stage("judge candidates", count_fits(CANDIDATES, both))
        judged = judge(CANDIDATES, hidden, both, seed=config.seed, progress=report.advance)
        for entry in judged:
            log(stage="judge", **_judged_row(entry))
        winner = judged[0]
        report.say(f"best candidate: {winner.candidate.name} ({_gains(winner)})")
        features, weight, evolved, gain, scale = _fit(
            winner.candidate, hidden, train, both, pool, config=config, report=report, log=log
        )
        metrics = _judged_row(winner) | {"validation_gain": gain, "evolved": evolved, SCALE_METRIC: scale}
        log(stage="final", **metrics)
    head = Head.create(
        features,
        weight.astype(np.float32),
        Card(
            encoder=encoder.name,
            workers=tuple(WorkerIdentity(w, recorded.models[w]) for w in both.workers),
            training={
                "data": describe_data(recorded),
                "questions": {"train": len(train), "validation": len(validation)},
                "candidate": winner.candidate.name,
                "evolution": config.evolution.name if evolved and config.evolution else None,
                "seed": config.seed,
                "commit": find_commit(),
                "version": __version__,
                "seconds": round(time.time() - started, 1),
            },
            metrics=metrics,
            baselines=describe_best_single(both),
        ),
    )
    head.save(out)
    return Trained(head=head, winner=winner, evolved=evolved, validation_gain=gain)


def _fit(
    candidate: Candidate,
    hidden: npt.NDArray[np.float32],
    train: OutcomeMatrix,
    both: OutcomeMatrix,
    pool: Caller,
    *,
    config: SelectorConfig,
    report: Reporter,
    log: Callable[..., None],
) -> tuple[FeatureMap, Floats, bool, float, float | None]:
    """(feature map, weights, whether evolution was kept, and of what was fitted on train, on the validation split: the
    gain, the reward per advantage).
    """
    split = len(train)
    seed = config.seed
    if candidate.trainer is None:
        features = fit_features(hidden, candidate.features, seed=seed)
        return features, _constant(features, both), False, 0.0, None
    held = both.rows(range(split, len(both)))
    base = ranked_score(held, rank_workers(train)).mean()
    features = fit_features(hidden[:split], candidate.features, seed=seed)
    x, x_held = (features(part).astype(np.float64) for part in (hidden[:split], hidden[split:]))
    fitted = candidate.trainer.train(Problem(features=x, rewards=train.mean, seed=seed))
    gain = _reward(fitted, x_held, held) - base
    evolve = _evolver(config, report, log)
    better, chosen = False, fitted
    if evolve is not None:
        evolved = evolve("evolve", train, x, fitted, pool)
        evolved_gain = _reward(evolved, x_held, held) - base
        better = bool(evolved_gain > gain)
        chosen = evolved if better else fitted
        log(
            stage="evolution",
            validation_gain_before=float(gain),
            validation_gain_after=float(evolved_gain),
            kept=better,
        )
        report.say(f"evolution: validation gain {gain:+.2%} -> {evolved_gain:+.2%}, {'kept' if better else 'not kept'}")
        gain = max(gain, evolved_gain)
    scale = measure_scale(np.asarray(softmax(x_held @ chosen.T), np.float64), held.mean)
    features = fit_features(hidden, candidate.features, seed=seed)
    x = features(hidden).astype(np.float64)
    weight = candidate.trainer.train(Problem(features=x, rewards=both.mean, seed=seed))
    if better and evolve is not None:
        weight = evolve("evolve on train and validation", both, x, weight, pool)
    return features, weight, better, float(gain), scale


def measure_scale(probabilities: Floats, rewards: Floats) -> float | None:
    """(n, L), (n, L) -> what an advantage of 1 comes to in reward, by least squares through the origin; at least 0.

    Over all questions and all workers that a conversation could be with: each as often as it is the best of a question.
    None: always the same worker is.
    """
    n, size = probabilities.shape
    best = probabilities.argmax(1)
    with_worker = np.bincount(best, minlength=size) / n  # (L,)
    rows = np.arange(n)[:, None]
    advantages = advantage(probabilities[rows, best[:, None]], probabilities)  # (n, L)
    gains = rewards[rows, best[:, None]] - rewards
    weights = np.where(np.isfinite(gains), with_worker, 0.0)
    squares = (weights * advantages**2).sum()
    return max(0.0, float((weights * advantages * np.nan_to_num(gains)).sum() / squares)) if squares > 0 else None


def _evolver(
    config: SelectorConfig, report: Reporter, log: Callable[..., None]
) -> Callable[[str, OutcomeMatrix, Floats, Floats, Caller], Floats] | None:
    trainer = config.evolution
    if trainer is None:
        return None

    def evolve(stage: str, matrix: OutcomeMatrix, features: Floats, start: Floats, pool: Caller) -> Floats:
        report.stage(stage, trainer.generations)

        def show(row: dict[str, float]) -> None:
            log(stage=stage, **row)
            report.advance(1)

        return trainer.train(
            Problem(
                features=features,
                rewards=matrix.mean,
                seed=config.seed,
                start=start,
                episode_reward=EpisodeReward(matrix, features.astype(np.float32), pool),
                progress=show,
            )
        )

    return evolve


def _constant(features: FeatureMap, matrix: OutcomeMatrix) -> Floats:
    """Weights that rank the workers as they did in training, whatever the question."""
    weight = np.zeros((len(matrix.workers), features.size))
    asked = np.isfinite(matrix.mean)
    weight[:, -1] = np.where(asked, matrix.mean, 0).sum(0) / np.maximum(asked.sum(0), 1)
    weight[best_single(matrix), -1] = weight[:, -1].max() + 0.01
    return weight


def _reward(weight: Floats, features: Floats, matrix: OutcomeMatrix) -> float:
    columns = choose_columns(weight, features, matrix)
    return float(matrix.first[np.arange(len(matrix)), columns].mean())


def _judged_row(judged: Judged) -> dict[str, Json]:
    return {
        "candidate": judged.candidate.name,
        "score": judged.score,
        "seen_gain": judged.seen,
        "seen_error": judged.seen_error,
        "unseen_gain": judged.unseen,
        "unseen_error": judged.unseen_error,
    }


def _gains(judged: Judged) -> str:
    seen = f"cross-fitted gain {judged.seen:+.2%} ± {judged.seen_error:.2%}"
    if judged.unseen is None:
        return seen
    return f"{seen}, on unseen families {judged.unseen:+.2%} ± {judged.unseen_error:.2%}"
