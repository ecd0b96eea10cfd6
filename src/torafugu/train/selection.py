"""Choosing among feature maps and trainers by held-out reward, on questions of known *and* of unknown families.

Every candidate is cross-fitted twice: with folds over questions (more of the same) and with folds over whole families
(something new). It is judged by its gain over the best single worker of each fold's training part, less one standard
error, averaged over the two: a loss on what is new must be paid for by a gain on what is known. The candidate "single",
which gains nothing and loses nothing, is always among them, so that luck alone does not win.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..eval.baselines import rank_workers, ranked_score
from ..eval.matrix import OutcomeMatrix
from .features import FeatureConfig, fit_features
from .trainers import Floats, Ints, Problem, Trainer

__all__ = ["SINGLE", "Candidate", "Judged", "choose_columns", "count_fits", "family_error", "judge", "standard_error"]

_FOLDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A feature map and a way to train on it."""

    features: FeatureConfig
    trainer: Trainer | None
    """None: always the best single worker."""

    @property
    def name(self) -> str:
        return "single" if self.trainer is None else f"{self.features.name} {self.trainer.name}"


SINGLE = Candidate(features=FeatureConfig(kind="pca", components=1), trainer=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate's cross-fitted gains over the best single worker."""

    candidate: Candidate
    seen: float
    seen_error: float
    """Standard error."""
    unseen: float | None
    """None when there is only one family."""
    unseen_error: float | None
    """Standard error over families, not over questions."""

    @property
    def score(self) -> float:
        lower = [self.seen - self.seen_error]
        if self.unseen is not None and self.unseen_error is not None:
            lower.append(self.unseen - self.unseen_error)
        return sum(lower) / len(lower)


def count_fits(candidates: Sequence[Candidate], matrix: OutcomeMatrix) -> int:
    """How many trainings `judge` will run."""
    folds = _FOLDS + min(_FOLDS, len(np.unique(matrix.families))) * (len(np.unique(matrix.families)) > 1)
    return folds * sum(candidate.trainer is not None for candidate in candidates)


def judge(
    candidates: Sequence[Candidate],
    hidden: npt.NDArray[np.float32],
    matrix: OutcomeMatrix,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Judged]:
    """Cross-fitted gains of every candidate, best first. `hidden` (n, d) of the matrix's questions."""
    gains: dict[tuple[str, str], list[Floats]] = {}
    families: list[npt.NDArray[np.str_]] = []  # of the held questions, in the order of the unseen gains
    for scheme, folds in (("seen", _question_folds(len(matrix), seed)), ("unseen", _family_folds(matrix, seed))):
        for train_rows, held_rows in folds:
            train, held = matrix.rows(train_rows), matrix.rows(held_rows)
            base = ranked_score(held, rank_workers(train))
            if scheme == "unseen":
                families.append(held.families)
            maps: dict[str, tuple[Floats, Floats]] = {}
            for candidate in candidates:
                if candidate.trainer is None:
                    gains.setdefault((candidate.name, scheme), []).append(np.zeros(len(held)))
                    continue
                if candidate.features.name not in maps:
                    mapping = fit_features(hidden[train_rows], candidate.features, seed=seed)
                    maps[candidate.features.name] = (
                        mapping(hidden[train_rows]).astype(np.float64),
                        mapping(hidden[held_rows]).astype(np.float64),
                    )
                seen_features, held_features = maps[candidate.features.name]
                weight = candidate.trainer.train(Problem(features=seen_features, rewards=train.mean, seed=seed))
                chosen = choose_columns(weight, held_features, held)
                picked = held.first[np.arange(len(held)), chosen]
                gains.setdefault((candidate.name, scheme), []).append(picked - base)
                if progress:
                    progress(1)
    held_families = np.concatenate(families) if families else np.array([], dtype=np.str_)
    return sorted((_judged(c, gains, held_families) for c in candidates), key=lambda j: -j.score)


def choose_columns(weight: Floats, features: Floats, matrix: OutcomeMatrix) -> Ints:
    """argmax over the workers that were asked, as the serving policy does. -> (n,)"""
    logits = np.where(np.isfinite(matrix.first), features @ weight.T, -np.inf)
    columns: Ints = logits.argmax(1).astype(np.int64)
    return columns


def _judged(candidate: Candidate, gains: dict[tuple[str, str], list[Floats]], families: npt.NDArray[np.str_]) -> Judged:
    seen = np.concatenate(gains[candidate.name, "seen"])
    unseen = np.concatenate(gains[candidate.name, "unseen"]) if (candidate.name, "unseen") in gains else None
    return Judged(
        candidate=candidate,
        seen=float(seen.mean()),
        seen_error=standard_error(seen),
        unseen=None if unseen is None else float(unseen.mean()),
        unseen_error=None if unseen is None else family_error(unseen, families),
    )


def standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def family_error(values: Floats, families: npt.NDArray[np.str_]) -> float:
    """Standard error of the mean when whole families are drawn: questions of one family rise and fall together."""
    _, family = np.unique(families, return_inverse=True)
    sums = np.bincount(family, weights=values - values.mean())
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values)) if count > 1 else 0.0


def _question_folds(count: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    order = np.random.default_rng(np.random.SeedSequence([seed, 3])).permutation(count)
    for fold in range(_FOLDS):
        yield np.sort(order[np.arange(count) % _FOLDS != fold]), np.sort(order[fold::_FOLDS])


def _family_folds(matrix: OutcomeMatrix, seed: int) -> Iterator[tuple[Ints, Ints]]:
    families = np.unique(matrix.families)
    if len(families) < 2:
        return
    order = np.random.default_rng(np.random.SeedSequence([seed, 4])).permutation(families)
    folds = min(_FOLDS, len(families))
    fold_of = {family: i % folds for i, family in enumerate(order)}
    assigned = np.array([fold_of[family] for family in matrix.families])
    for fold in range(folds):
        yield np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
