"""What tests of the head and the selector share: small heads, hidden states, an encoder that knows its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from torafugu.orchestrate import Encoding
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.types import Message

DIM = 8


def make_hidden(seed: int) -> npt.NDArray[np.float32]:
    """(DIM,) of length one, as an encoder gives it."""
    hidden = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return hidden / np.linalg.norm(hidden)


def make_head(
    workers: Sequence[str],
    *,
    seed: int = 0,
    scale: float = 1.0,
    landmarks: int = 0,
    gamma: float = 0.0,
    encoder: str = "texts",
) -> Head:
    """Random weights; worker `w` stands for the model `w-1`."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((landmarks, DIM)).astype(np.float32) if landmarks else None
    projection, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    mean = rng.standard_normal(DIM) / 10
    features = FeatureMap(mean.astype(np.float32), projection.astype(np.float32), points, gamma)
    weight = scale * rng.standard_normal((len(workers), features.size))
    card = Card(
        encoder=encoder,
        workers=tuple(WorkerIdentity(worker, f"{worker}-1") for worker in workers),
        training={"seed": seed},
        metrics={},
        baselines={},
    )
    return Head.create(features, weight.astype(np.float32), card)


class Texts:
    """An encoder that gives each text a hidden state of its own."""

    def __init__(self, name: str = "texts", dim: int = DIM) -> None:
        self.name, self.dim = name, dim
        self.read: list[str] = []

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        text = messages[-1].text
        self.read.append(text)
        return Encoding(hidden=self.states([text])[0], tokens_read=len(text), tokens_total=len(text) + 1)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.read.extend(texts)
        return self.states(texts)

    def states(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, dim): the first numbers say which kind of question it is, by its first word; the rest is noise."""
        out = np.empty((len(texts), self.dim), np.float32)
        for row, text in zip(out, texts, strict=True):
            kind = np.random.default_rng(list(text.split(" ")[0].encode())).standard_normal(self.dim)
            noise = np.random.default_rng(list(text.encode())).standard_normal(self.dim)
            row[:] = kind + 0.2 * noise
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def models(workers: Sequence[str]) -> Mapping[str, str]:
    """The models that `make_head` trains for."""
    return {worker: f"{worker}-1" for worker in workers}
