"""The selector's trained part: hidden state -> features -> bias-free linear head -> a probability for each worker.

Rows of the head are bound to worker identity (id and model), never to a position in the pool file. A head is a folder:
`head.safetensors` (numbers only, nothing that executes) beside `card.json` (what it was made from, and how good it is).
It loads, or it raises; nothing stands in for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import ModelError
from ..types import Json

__all__ = ["CARD_SCHEMA", "Card", "FeatureMap", "Head", "WorkerIdentity", "softmax"]

Array = npt.NDArray[np.float32]
CARD_SCHEMA = 1


class WorkerIdentity(msgspec.Struct, frozen=True):
    """Who a row of the head stands for: the pool's id and the provider's model behind it."""

    id: str
    model: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`card.json`: what stands beside the weights."""

    schema: int = CARD_SCHEMA
    kind: str = "selector"
    encoder: str
    """Identity of the encoder whose hidden states it reads."""
    workers: tuple[WorkerIdentity, ...]
    """Row order of the head."""
    weights_sha256: str = ""
    """Of `head.safetensors`; filled in by `Head.create`."""
    training: Mapping[str, Json]
    """Data, seed, commit, trainer, features, time."""
    metrics: Mapping[str, Json]
    """Held-out results of training."""
    baselines: Mapping[str, Json]
    """Best single worker and per-category bests, chosen on the training split."""
    gate: Mapping[str, Json] = {}
    """Whether it was promoted, on what interval, and whether by force."""


class _Kind(msgspec.Struct, frozen=True):
    """What every card says of itself."""

    schema: int
    kind: str


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
        return self.card.weights_sha256[:12]

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
        """`pool`: id -> model of the workers to be served.

        A worker that left the pool is masked. A worker that the head has never seen, or that another model now stands
        behind, is not guessed at.

        Raises:
            ModelError: the head does not fit the pool.
        """
        known = {worker.id: worker.model for worker in self.card.workers}
        if unknown := sorted(set(pool) - set(known)):
            raise ModelError(
                f"head {self.id} was trained for {', '.join(sorted(known))}; the pool also has {', '.join(unknown)}: "
                "train a head for this pool (fugu profile, fugu train selector) or take them out of it"
            )
        for worker, model in pool.items():
            if known[worker] != model:
                raise ModelError(
                    f"head {self.id}: worker {worker!r} was {known[worker]!r} in training and is {model!r} in the "
                    "pool: train the head anew, or declare the new model under an id of its own"
                )

    def save(self, folder: Path) -> None:
        """Write both files; the card goes last, so that a folder with a card is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "head.safetensors", _pack(self.features, self.weight))
        _replace(folder / "card.json", msgspec.json.format(msgspec.json.encode(self.card), indent=1) + b"\n")

    @staticmethod
    def create(features: FeatureMap, weight: Array, card: Card) -> Head:
        """The head that loading these weights will give; its card names their hash.

        Raises:
            ModelError: the shapes do not fit together, or a weight is not finite.
        """
        raw = _pack(features, weight)
        card = msgspec.structs.replace(card, weights_sha256=hashlib.sha256(raw).hexdigest())
        return Head(*_unpack(load_tensors(raw), card, "created head"), card)

    @staticmethod
    def load(folder: Path) -> Head:
        """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
        card_path, weights_path = folder / "card.json", folder / "head.safetensors"
        try:
            raw_card, raw = card_path.read_bytes(), weights_path.read_bytes()
            kind = msgspec.json.decode(raw_card, type=_Kind)  # first: another kind has other fields
            if (kind.schema, kind.kind) != (CARD_SCHEMA, "selector"):
                raise ModelError(
                    f"{card_path}: a {kind.kind!r} of schema {kind.schema}: expected 'selector', {CARD_SCHEMA}"
                )
            card = msgspec.json.decode(raw_card, type=Card)
            if (digest := hashlib.sha256(raw).hexdigest()) != card.weights_sha256:
                raise ModelError(
                    f"{weights_path}: damaged, or not the card's: SHA-256 {digest[:12]}, "
                    f"expected {card.weights_sha256[:12]}"
                )
            return Head(*_unpack(load_tensors(raw), card, str(folder)), card)
        except FileNotFoundError as error:
            raise ModelError(f"{folder}: no trained head here: {Path(error.filename).name} is missing") from None
        # ValueError: no JSON, no UTF-8, or of a wrong type; KeyError: a dtype that numpy lacks
        except (OSError, ValueError, SafetensorError, KeyError) as error:
            raise ModelError(f"{folder}: damaged head: {error}") from None


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Over the last axis; -inf becomes 0."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.floating] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def _pack(features: FeatureMap, weight: Array) -> bytes:
    tensors = {
        "head.weight": weight,
        "features.mean": features.mean,
        "features.projection": features.projection,
        "features.gamma": np.array([features.gamma]),
    }
    if features.landmarks is not None:
        tensors["features.landmarks"] = features.landmarks
    packed: bytes = save_tensors({name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()})
    return packed


def _unpack(tensors: Mapping[str, Array], card: Card, where: str) -> tuple[FeatureMap, Array]:
    def take(name: str, *shape: int | None) -> Array:
        """The tensor of this shape; None is any length."""
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelError(f"{where}: no tensor {name!r}: expected one of shape {shape}")
        fits = len(tensor.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ModelError(
                f"{where}: tensor {name!r} of shape {tensor.shape}, {tensor.dtype}: "
                f"expected {shape}, float32, finite numbers only"
            )
        return tensor

    mean = take("features.mean", None)
    projection = take("features.projection", len(mean), None)
    has_landmarks = "features.landmarks" in tensors
    features = FeatureMap(
        mean,
        projection,
        take("features.landmarks", None, projection.shape[1]) if has_landmarks else None,
        float(take("features.gamma", 1)[0]),
    )
    if len(ids := {worker.id for worker in card.workers}) != len(card.workers) or not ids:
        raise ModelError(f"{where}: the card names {len(card.workers)} workers, {len(ids)} of them different")
    return features, take("head.weight", len(card.workers), features.size)


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all: a folder that is being saved anew must not lose what it held."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
