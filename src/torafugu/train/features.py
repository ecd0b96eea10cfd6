"""Feature maps for a head, fitted to the hidden states of training questions.

    pca        the first k principal components, whitened: few numbers, which evolution needs
    landmarks  nearness to m typical training questions (k-means centres among the first k components)

Landmarks make a head that knows where it knows nothing: away from all of them only the constant speaks. On recorded
frontier answers that is the difference between losing several points on unseen task families and losing none
(docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..orchestrate.head import FeatureMap

__all__ = ["FeatureConfig", "fit_features", "fit_landmarks"]

Floats = npt.NDArray[np.float64]
_LLOYD_STEPS = 20
_SAME = 1e-6
"""Hidden states have length one: what is smaller than this is rounding, and must not be blown up to a feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """Which map."""

    kind: Literal["pca", "landmarks"]
    components: int
    landmarks: int = 0
    sharpness: float = 0.0
    """Of landmarks: gamma times the median squared distance of a training question to its nearest one."""

    @property
    def name(self) -> str:
        if self.kind == "pca":
            return f"pca{self.components}"
        return f"landmarks{self.landmarks}@{self.sharpness:g}"


def fit_features(hidden: npt.NDArray[np.float32], config: FeatureConfig, *, seed: int) -> FeatureMap:
    """`hidden` (n, d). No more components or landmarks than the data has."""
    states = hidden.astype(np.float64)
    mean = states.mean(0)
    _, singular, axes = np.linalg.svd(states - mean, full_matrices=False)
    spread = singular / np.sqrt(len(states))  # standard deviation along each component
    k = max(1, min(config.components, int((spread > _SAME * max(spread[0], 1)).sum())))
    if config.kind == "pca":
        scale = np.where(spread[:k] > _SAME, 1 / np.maximum(spread[:k], _SAME), 0)  # 0: all questions are the same
        return FeatureMap(mean.astype(np.float32), (axes[:k].T * scale).astype(np.float32))
    projection = axes[:k].T
    z = (states - mean) @ projection  # (n, k)
    landmarks = fit_landmarks(z, config.landmarks, seed=seed)
    gamma = config.sharpness / _typical_distance(z, landmarks)
    return FeatureMap(mean.astype(np.float32), projection.astype(np.float32), landmarks.astype(np.float32), gamma)


def fit_landmarks(points: Floats, count: int, *, seed: int) -> Floats:
    """k-means (Lloyd, k-means++ seeding) on (n, k). -> (min(count, distinct points), k)"""
    draw = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    centres = [points[draw.integers(len(points))]]
    nearest = _squared_distances(points, centres[0][None])[:, 0]
    while len(centres) < count and nearest.max() > 1e-12:
        centres.append(points[draw.choice(len(points), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, _squared_distances(points, centres[-1][None])[:, 0])
    found = np.array(centres)
    for _ in range(_LLOYD_STEPS):
        label = _squared_distances(points, found).argmin(1)
        counts = np.bincount(label, minlength=len(found))
        sums = np.zeros_like(found)
        np.add.at(sums, label, points)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], found)
        if np.allclose(moved, found):
            break
        found = moved
    return found


def _typical_distance(points: Floats, landmarks: Floats) -> float:
    """Median squared distance of a question to the nearest landmark that is not the question itself.

    With few questions most are landmarks themselves; their own distance, 0, would make every other feature vanish.
    """
    if len(landmarks) == 1:
        return float(np.median(_squared_distances(points, landmarks))) or 1.0
    nearest, second = np.partition(_squared_distances(points, landmarks), 1, axis=1)[:, :2].T
    return float(np.median(np.where(nearest > _SAME, nearest, second)))


def _squared_distances(points: Floats, centres: Floats) -> Floats:
    """(n, k), (m, k) -> (n, m)"""
    squared: Floats = (points**2).sum(1)[:, None] + (centres**2).sum(1)[None] - 2 * points @ centres.T
    return np.maximum(squared, 0)
