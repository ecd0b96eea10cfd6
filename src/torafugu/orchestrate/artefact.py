"""A trained policy as a folder: `head.safetensors` (numbers only, nothing that executes) beside `card.json` (what it
was made from, and how good it is). It loads, or it raises; nothing stands in for it.
Rows and columns that belong to a worker are bound to its identity (id and model), never to a position in a pool file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import ModelError
from ..files import write_whole
from ..types import Json

__all__ = [
    "CARD_SCHEMA",
    "Card",
    "Tensors",
    "WorkerIdentity",
    "check_pool",
    "check_workers",
    "load_artefact",
    "pack",
    "read_card",
    "save_artefact",
    "seal",
    "write_card",
]

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
    """selector | coordinator | transcript"""
    encoder: str
    """Identity of the encoder whose hidden states it reads."""
    workers: tuple[WorkerIdentity, ...]
    """Row order of the head."""
    weights_sha256: str = ""
    """Of `head.safetensors`; filled in when the policy is created."""
    rules: Mapping[str, Json] = {}
    """Of a coordinator: what its runs may do. Of one that reads transcripts also how it reads them."""
    training: Mapping[str, Json]
    """Data, seed, commit, trainer, features, time."""
    metrics: Mapping[str, Json]
    """Held-out results of training."""
    baselines: Mapping[str, Json]
    """Best single worker and per-category bests, chosen on the training split."""
    gate: Mapping[str, Json] = {}
    """Whether it was promoted, on what interval, and whether by force."""

    @property
    def short_hash(self) -> str:
        """First 12 hex digits of the weights' SHA-256: the policy's version."""
        return self.weights_sha256[:12]


class _Kind(msgspec.Struct, frozen=True):
    """What every card says of itself."""

    schema: int
    kind: str


class Tensors:
    """The tensors of an artefact, taken out by name and shape."""

    def __init__(self, tensors: Mapping[str, Array], where: str) -> None:
        self._tensors = tensors
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int | None) -> Array:
        """The tensor of this shape; None is any length.

        Raises:
            ModelError: it is missing, of another shape or type, or holds what is not a number.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.where}: no tensor {name!r}: expected one of shape {shape}")
        fits = len(tensor.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ModelError(
                f"{self.where}: tensor {name!r} of shape {tensor.shape}, {tensor.dtype}: "
                f"expected {shape}, float32, finite numbers only"
            )
        return tensor


def check_workers(card: Card, where: str) -> int:
    """How many there are. Raises ModelError: none, or one twice."""
    if len(ids := {worker.id for worker in card.workers}) != len(card.workers) or not ids:
        raise ModelError(f"{where}: the card names {len(card.workers)} workers, {len(ids)} of them different")
    return len(ids)


def pack(tensors: Mapping[str, npt.NDArray[np.floating]]) -> bytes:
    """As float32."""
    packed: bytes = save_tensors({name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()})
    return packed


def seal(raw: bytes, card: Card) -> tuple[Tensors, Card]:
    """What loading these weights will give, and the card that names their hash."""
    card = msgspec.structs.replace(card, weights_sha256=hashlib.sha256(raw).hexdigest())
    return Tensors(load_tensors(raw), f"created {card.kind}"), card


def save_artefact(folder: Path, raw: bytes, card: Card) -> None:
    """Write both files; the card goes last, so that a folder with a card is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "head.safetensors", raw)
    write_card(folder, card)


def write_card(folder: Path, card: Card) -> None:
    """The card alone: what is said of the weights has changed, not they."""
    write_whole(folder / "card.json", msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")


def read_card(folder: Path, *kinds: str) -> Card:
    """Raises ModelError: there is none, or it is damaged or of another kind."""
    path = folder / "card.json"
    try:
        raw = path.read_bytes()
        kind = msgspec.json.decode(raw, type=_Kind)  # first: another kind has other fields
        if kind.schema != CARD_SCHEMA or kind.kind not in kinds:
            wanted = " or ".join(map(repr, kinds))
            raise ModelError(f"{path}: a {kind.kind!r} of schema {kind.schema}: expected {wanted}, {CARD_SCHEMA}")
        card = msgspec.json.decode(raw, type=Card)
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no trained head here: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: no JSON, no UTF-8, or of a wrong type
        raise ModelError(f"{path}: damaged head: {error}") from None
    return card


def load_artefact(folder: Path, kind: str) -> tuple[Tensors, Card]:
    """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
    card, path = read_card(folder, kind), folder / "head.safetensors"
    try:
        raw = path.read_bytes()
        if (digest := hashlib.sha256(raw).hexdigest()) != card.weights_sha256:
            raise ModelError(
                f"{path}: damaged, or not the card's: SHA-256 {digest[:12]}, expected {card.weights_sha256[:12]}"
            )
        return Tensors(load_tensors(raw), str(folder)), card
    except FileNotFoundError:
        raise ModelError(f"{folder}: no trained head here: {path.name} is missing") from None
    except (OSError, ValueError, SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy lacks
        raise ModelError(f"{path}: damaged head: {error}") from None


def check_pool(card: Card, pool: Mapping[str, str]) -> None:
    """`pool`: id -> model of the workers to be served.

    A worker that left the pool is masked. A worker that the head has never seen, or that another model now stands
    behind, is not guessed at.

    Raises:
        ModelError: the head does not fit the pool.
    """
    known = {worker.id: worker.model for worker in card.workers}
    if unknown := sorted(set(pool) - set(known)):
        add = {"selector": "fugu train selector", "coordinator": "fugu train add"}.get(card.kind, "fugu train trinity")
        raise ModelError(
            f"head {card.short_hash} was trained for {', '.join(sorted(known))}; the pool also has "
            f"{', '.join(unknown)}: train a head for this pool (fugu profile, then {add}) or take them out of it"
        )
    for worker, model in pool.items():
        if known[worker] != model:
            raise ModelError(
                f"head {card.short_hash}: worker {worker!r} was {known[worker]!r} in training and is {model!r} in the "
                "pool: train the head anew, or declare the new model under an id of its own"
            )
