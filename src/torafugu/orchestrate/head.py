"""The selector's trained part: hidden state -> features -> bias-free linear head -> a probability for each worker.

The folder that it is kept in, and how rows are bound to worker identity, is `artefact.py`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .artefact import (
    CARD_SCHEMA,
    Card,
    Tensors,
    WorkerIdentity,
    check_pool,
    check_workers,
    load_artefact,
    pack,
    save_artefact,
    seal,
)

__all__ = [
    "CARD_SCHEMA",
    "Card",
    "FeatureMap",
    "Head",
    "WorkerIdentity",
    "check_encoder",
    "pack_features",
    "softmax",
    "unpack_features",
]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """Fixed before the head is trained: z = (h - mean) @ projection, then z or its nearness to landmarks; last a 1.

    The constant lets the head say "whatever the question, this worker": with landmarks, all other features vanish far
    from what was seen in training, so an unfamiliar question gets the worker that is best overall.
    """

    mean: Array  # (d,)
    projection: Array  # (d, k)
    landmarks: Array | None = None  # (m, k)
    gamma: float = 0.0
    """exp(-gamma * squared distance to a landmark)."""

    @property
    def size(self) -> int:
        return int(self.projection.shape[1] if self.landmarks is None else self.landmarks.shape[0]) + 1

    def __call__(self, hidden: Array) -> Array:
        """(n, d) -> (n, size)."""
        z = (hidden - self.mean) @ self.projection  # (n, k)
        if self.landmarks is not None:
            squared = (z**2).sum(1)[:, None] + (self.landmarks**2).sum(1)[None] - 2 * z @ self.landmarks.T  # (n, m)
            z = np.exp(-self.gamma * np.maximum(squared, 0))
        return np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained selector head."""

    features: FeatureMap
    weight: Array  # (L, size)
    card: Card

    @property
    def id(self) -> str:
        """First 12 hex digits of the weights' SHA-256."""
        return self.card.short_hash

    def scores(self, hidden: Array, allowed: Collection[str]) -> dict[str, float]:
        """Probability of each allowed worker, best first. Others get -inf before the softmax, that is, no probability.

        Raises:
            ModelError: none of the head's workers is allowed, or the hidden state is not one of numbers.
        """
        logits = (self.weight @ self.features(hidden[None])[0]).astype(np.float64)  # (L,)
        if not np.isfinite(logits).all():
            raise ModelError(f"head {self.id}: scores are not finite: {logits}")
        mask = np.array([worker.id in allowed for worker in self.card.workers])
        if not mask.any():
            raise ModelError(f"head {self.id}: none of its workers is allowed: {', '.join(sorted(allowed)) or 'none'}")
        probabilities = softmax(np.where(mask, logits, -np.inf))
        order = np.argsort(-logits, kind="stable")  # of the logits: far below the best, probabilities tie at 0
        return {self.card.workers[i].id: float(probabilities[i]) for i in order if mask[i]}

    def check_pool(self, pool: Mapping[str, str]) -> None:
        """Raises ModelError: the head does not fit the pool (id -> model); see `artefact.check_pool`."""
        check_pool(self.card, pool)

    def save(self, folder: Path) -> None:
        save_artefact(folder, _pack(self.features, self.weight), self.card)

    @staticmethod
    def create(features: FeatureMap, weight: Array, card: Card) -> Head:
        """The head that loading these weights will give; its card names their hash.

        Raises:
            ModelError: the shapes do not fit together, or a weight is not finite.
        """
        tensors, card = seal(_pack(features, weight), card)
        return Head(*_unpack(tensors, card), card)

    @staticmethod
    def load(folder: Path) -> Head:
        """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
        tensors, card = load_artefact(folder, "selector")
        return Head(*_unpack(tensors, card), card)


def check_encoder(card: Card, features: FeatureMap, *, name: str, dim: int) -> None:
    """Raises ModelError: the head was trained on the states of another encoder."""
    if card.encoder != name:
        raise ModelError(
            f"head {card.short_hash} reads hidden states of {card.encoder!r}; this is {name!r}: "
            "train a head for this encoder"
        )
    if features.mean.shape != (dim,):
        raise ModelError(
            f"head {card.short_hash} reads hidden states of {len(features.mean)} numbers; "
            f"{name!r} gives {dim}: train a head for this encoder"
        )


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Over the last axis; -inf becomes 0."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.floating] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def pack_features(features: FeatureMap) -> dict[str, Array]:
    """The map as named tensors."""
    tensors = {
        "features.mean": features.mean,
        "features.projection": features.projection,
        "features.gamma": np.array([features.gamma], np.float32),
    }
    return tensors if features.landmarks is None else tensors | {"features.landmarks": features.landmarks}


def unpack_features(tensors: Tensors) -> FeatureMap:
    """Raises ModelError: a tensor is missing, or does not fit the others."""
    mean = tensors.take("features.mean", None)
    projection = tensors.take("features.projection", len(mean), None)
    has_landmarks = "features.landmarks" in tensors
    return FeatureMap(
        mean,
        projection,
        tensors.take("features.landmarks", None, projection.shape[1]) if has_landmarks else None,
        float(tensors.take("features.gamma", 1)[0]),
    )


def _pack(features: FeatureMap, weight: Array) -> bytes:
    return pack({"head.weight": weight} | pack_features(features))


def _unpack(tensors: Tensors, card: Card) -> tuple[FeatureMap, Array]:
    features = unpack_features(tensors)
    return features, tensors.take("head.weight", check_workers(card, tensors.where), features.size)
