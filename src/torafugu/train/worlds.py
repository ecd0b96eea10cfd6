"""Recorded outcomes as worlds to play in, with what a coordinator would know of each question beforehand.

What is known of a training question must come from models that have not seen it, or trust in it would be learnt from
hindsight. Each question is therefore predicted twice, by cross-fitting: by models that saw others of its family, and by
models that saw none of them. Both copies are trained on: one is what a familiar question looks like, the other an
unfamiliar one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..agreement import canonical_answer
from ..eval.matrix import OutcomeMatrix
from ..orchestrate.coordinator import familiarity_of
from ..orchestrate.head import FeatureMap
from ..orchestrate.situation import Evidence, Prospect, measure_length
from .evidence import fit_evidence
from .features import FeatureConfig, fit_features
from .rollout import World
from .trainers import Problem, Ridge

__all__ = [
    "QuestionMap",
    "Reading",
    "fit_reading",
    "fold_by_family",
    "fold_by_question",
    "matrix_to_world",
    "mix_worlds",
    "relative_cost",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Hidden = npt.NDArray[np.float32]
_INNER_FOLDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionMap:
    """How a question is turned into expectations of the workers."""

    features: FeatureConfig | None
    """None: questions are not read, all look alike."""
    l2: float = 1e-3
    reads_lengths: bool = False
    """Whether it counts how long the replies are. Here, as every map has evidence of its own."""

    @property
    def name(self) -> str:
        name = "unread" if self.features is None else f"{self.features.name} ridge {self.l2:g}"
        return f"{name}, lengths" if self.reads_lengths else name

    @property
    def has_landmarks(self) -> bool:
        """Whether familiarity can be told."""
        return self.features is not None and self.features.kind == "landmarks"

    def fit(self, hidden: Hidden, mean: Floats, *, seed: int) -> Reading:
        """Least squares of each worker's score, less its mean, on the features."""
        config = self.features or FeatureConfig(kind="pca", components=1)
        features = fit_features(hidden, config, seed=seed)
        asked = np.isfinite(mean)
        usual = np.where(asked, mean, 0).sum(0) / np.maximum(asked.sum(0), 1)
        if self.features is None:
            return Reading(features=features, weight=np.zeros((mean.shape[1], features.size)))
        x = features(hidden).astype(np.float64)
        weight = Ridge(l2=self.l2).train(Problem(features=x, rewards=mean - usual))
        return Reading(features=features, weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A fitted question map."""

    features: FeatureMap
    weight: Floats  # (L, F)

    def prospect(self, hidden: Hidden) -> Prospect:
        values = self.features(hidden).astype(np.float64)
        return Prospect(deviation=values @ self.weight.T, familiarity=familiarity_of(self.features, values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """All of a coordinator but its head, and the worlds to train the head in."""

    reading: Reading
    evidence: Evidence
    familiar: World
    unfamiliar: World | None
    """None: there is only one family."""

    @property
    def worlds(self) -> list[World]:
        return [self.familiar] if self.unfamiliar is None else [self.familiar, self.unfamiliar]


def fit_reading(matrix: OutcomeMatrix, hidden: Hidden, question_map: QuestionMap, *, seed: int) -> Fitted:
    """Fitted on all of the matrix; its worlds hold cross-fitted prospects."""
    reading = question_map.fit(hidden, matrix.mean, seed=seed)
    plain = matrix_to_world(matrix, reading.prospect(hidden))
    copies = []
    for fold in (fold_by_question(len(matrix), seed), fold_by_family(matrix.families, seed)):
        if fold is not None:
            prospect = _cross_fit(matrix, hidden, question_map, fold, seed=seed)
            copies.append(replace(plain, prospect=prospect))
    both = mix_worlds(copies)
    evidence = fit_evidence(
        both.score,
        both.same,
        deviation=both.prospect.deviation,
        length=both.length if question_map.reads_lengths else np.full(both.length.shape, np.nan),
        cost=matrix.cost_usd,
        seed=seed,
    )
    return Fitted(
        reading=reading, evidence=evidence, familiar=copies[0], unfamiliar=copies[1] if len(copies) > 1 else None
    )


def matrix_to_world(matrix: OutcomeMatrix, prospect: Prospect) -> World:
    """Sample 0 of every answer, as a replay gives it."""
    n, size = matrix.first.shape
    same, alike = np.zeros((n, size, size), bool), np.zeros((n, size, size), bool)
    for i, answers in enumerate(matrix.answers):
        for relation, forms in ((same, map(canonical_answer, answers)), (alike, answers)):
            texts = np.array(list(forms), dtype=object)
            relation[i] = (texts[:, None] == texts[None]) & (texts != "")[:, None]
    return World(
        score=matrix.first,
        same=same,
        alike=alike,
        cost=relative_cost(matrix.cost_usd),
        length=np.array([[measure_length(tokens) for tokens in row] for row in matrix.out_tokens]).reshape(n, size),
        prospect=prospect,
        unreadable=np.zeros(n, bool),
    )


def relative_cost(cost_usd: Floats) -> Floats:
    """Of the dearest worker's mean cost; 0 throughout where a worker's cost is not known at all."""
    known = np.isfinite(cost_usd)
    if not known.any(0).all():
        return np.zeros(cost_usd.shape)
    dearest = (np.where(known, cost_usd, 0).sum(0) / known.sum(0)).max()
    return np.nan_to_num(cost_usd) / (dearest or 1.0)


def mix_worlds(worlds: Sequence[World]) -> World:
    """One after the other."""
    return World(
        score=np.concatenate([w.score for w in worlds]),
        same=np.concatenate([w.same for w in worlds]),
        alike=np.concatenate([w.alike for w in worlds]),
        cost=np.concatenate([w.cost for w in worlds]),
        length=np.concatenate([w.length for w in worlds]),
        prospect=Prospect(
            deviation=np.concatenate([w.prospect.deviation for w in worlds]),
            familiarity=np.concatenate([w.prospect.familiarity for w in worlds]),
        ),
        unreadable=np.concatenate([w.unreadable for w in worlds]),
    )


def mask_workers(world: World, *, share: float, seed: int) -> World:
    """A copy in which, on a share of the questions, only k of the L workers may be asked, k drawn from 2 to L - 1: what
    an opt-out or a smaller pool looks like. Those that were never asked the question go first.
    """
    draw = np.random.default_rng(np.random.SeedSequence([seed, 8]))
    n, size = world.score.shape
    count = np.where(draw.random(n) < share, draw.integers(2, max(size, 3), n), size)
    keys = np.where(np.isfinite(world.score), draw.random((n, size)), np.inf)
    kept = keys.argsort(1).argsort(1) < count[:, None]
    return replace(world, score=np.where(kept, world.score, np.nan))


def fold_by_question(count: int, seed: int, folds: int = _INNER_FOLDS) -> Ints:
    """(n,) fold of each question."""
    order = np.random.default_rng(np.random.SeedSequence([seed, 5])).permutation(count)
    fold = np.empty(count, np.int64)
    fold[order] = np.arange(count) % folds
    return fold


def fold_by_family(families: npt.NDArray[np.str_], seed: int, folds: int = _INNER_FOLDS) -> Ints | None:
    """(n,) fold of each question, whole families together; None when there is only one."""
    names, of = np.unique(families, return_inverse=True)
    if len(names) < 2:
        return None
    order = np.random.default_rng(np.random.SeedSequence([seed, 6])).permutation(len(names))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % min(folds, len(names))
    return fold[of]


def _cross_fit(matrix: OutcomeMatrix, hidden: Hidden, question_map: QuestionMap, fold: Ints, *, seed: int) -> Prospect:
    deviation, familiarity = np.zeros(matrix.first.shape), np.zeros(len(matrix))
    for k in np.unique(fold):
        held = fold == k
        if held.all():  # one question: nothing to learn from, so nothing is known of it
            continue
        found = question_map.fit(hidden[~held], matrix.mean[~held], seed=seed).prospect(hidden[held])
        deviation[held], familiarity[held] = found.deviation, found.familiarity
    return Prospect(deviation=deviation, familiarity=familiarity)
