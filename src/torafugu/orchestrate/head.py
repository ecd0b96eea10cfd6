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
            ModelError: none of the head's workers is allowed.
        """
        logits = self.weight @ self.features(hidden[None])[0]  # (L,)
        mask = np.array([worker.id in allowed for worker in self.card.workers])
        if not mask.any():
            raise ModelError(f"head {self.id}: none of its workers is allowed: {', '.join(sorted(allowed)) or 'none'}")
        probabilities = softmax(np.where(mask, logits, -np.inf))
        order = np.argsort(-probabilities, kind="stable")
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
        (folder / "head.safetensors").write_bytes(_pack(self.features, self.weight))
        (folder / "card.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.card), indent=1) + b"\n")

    @staticmethod
    def create(features: FeatureMap, weight: Array, card: Card) -> Head:
        """A head whose card names the hash of these weights."""
        digest = hashlib.sha256(_pack(features, weight)).hexdigest()
        return Head(features, weight.astype(np.float32), msgspec.structs.replace(card, weights_sha256=digest))

    @staticmethod
    def load(folder: Path) -> Head:
        """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
        card_path, weights_path = folder / "card.json", folder / "head.safetensors"
        try:
            card = msgspec.json.decode(card_path.read_bytes(), type=Card)
            raw = weights_path.read_bytes()
            tensors = load_tensors(raw)
        except FileNotFoundError as error:
            raise ModelError(f"{folder}: no trained head here: {Path(error.filename).name} is missing") from None
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            raise ModelError(f"{folder}: damaged head: {error}") from None
        if (card.schema, card.kind) != (CARD_SCHEMA, "selector"):
            raise ModelError(
                f"{card_path}: a {card.kind!r} of schema {card.schema}: expected 'selector', {CARD_SCHEMA}"
            )
        if (digest := hashlib.sha256(raw).hexdigest()) != card.weights_sha256:
            raise ModelError(f"{weights_path}: SHA-256 {digest[:12]} is not the card's {card.weights_sha256[:12]}")
        return Head(*_unpack(tensors, card, folder), card)


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


def _unpack(tensors: Mapping[str, Array], card: Card, folder: Path) -> tuple[FeatureMap, Array]:
    try:
        features = FeatureMap(
            tensors["features.mean"],
            tensors["features.projection"],
            tensors.get("features.landmarks"),
            float(tensors["features.gamma"][0]),
        )
        weight = tensors["head.weight"]
    except KeyError as error:
        raise ModelError(f"{folder}: damaged head: no tensor {error}") from None
    if weight.shape != (len(card.workers), features.size):
        raise ModelError(
            f"{folder}: head of shape {weight.shape}: expected {(len(card.workers), features.size)}, "
            "a row for each worker of the card"
        )
    return features, weight
