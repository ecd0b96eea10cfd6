"""What a decision costs: conversation -> hidden state -> head over 16 workers, as the selector does it.

    python -m bench.encoder

Prints one JSON object. `computed`: every text is a fresh one. `cached`: the same text again. `session`: turns of one
conversation that grows by 100 word pieces a turn. CPU time is of the whole process, all threads; p95 on a busy machine
says more of the machine than of the encoder.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from torafugu.local import MiniLM
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.types import Message

LENGTHS_TOKENS = (32, 128, 512)
WORKERS = 16
REPEATS = 60
WARM_UP = 3
SESSION_TURNS = 40
TURN_TOKENS = 100
BULK_TEXTS = 400
BULK_TOKENS = 64


def main() -> None:
    started = time.perf_counter()
    minilm = MiniLM()
    load_ms = (time.perf_counter() - started) * 1e3
    head = create_head(minilm)
    result = {
        "encoder": minilm.name,
        "workers": WORKERS,
        "repeats": REPEATS,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "load_ms": round(load_ms, 1),
        "encoder_only": asyncio.run(measure_lengths(minilm, None)),
        "encoder_and_head": asyncio.run(measure_lengths(minilm, head)),
        "session": asyncio.run(measure_session(minilm, head)),
        "bulk_texts_per_s": round(measure_bulk(minilm), 1),
    }
    minilm.close()
    print(json.dumps(result, indent=2))


@dataclass
class Clock:
    """Wall and CPU milliseconds of the spans it was around, the first WARM_UP left out."""

    wall_ms: list[float]
    cpu_ms: list[float]

    def summary(self) -> dict[str, float]:
        wall = np.array(self.wall_ms[WARM_UP:])
        return {
            "p50_ms": round(float(np.quantile(wall, 0.5)), 3),
            "p95_ms": round(float(np.quantile(wall, 0.95)), 3),
            "cpu_ms": round(float(np.mean(self.cpu_ms[WARM_UP:])), 3),
        }


async def measure_lengths(minilm: MiniLM, head: Head | None) -> dict[str, dict[str, dict[str, float]]]:
    rng = np.random.default_rng(0 if head is None else 1)  # other texts: the cache knows the first round's
    measured = {}
    for tokens in LENGTHS_TOKENS:
        fresh = [write_text(rng, tokens) for _ in range(WARM_UP + REPEATS)]
        measured[f"{tokens}_tokens"] = {
            "computed": (await time_decisions(minilm, head, [[ask(text)] for text in fresh])).summary(),
            "cached": (await time_decisions(minilm, head, [[ask(fresh[0])]] * len(fresh))).summary(),
        }
    return measured


async def measure_session(minilm: MiniLM, head: Head) -> dict[str, float]:
    """The later half of SESSION_TURNS turns of one conversation, each with a new message of TURN_TOKENS."""
    rng = np.random.default_rng(2)
    turns = [ask(write_text(rng, TURN_TOKENS)) for _ in range(SESSION_TURNS)]
    for end in range(1, SESSION_TURNS // 2):
        await minilm.encode(turns[:end])
    runs = minilm.runs
    late = [turns[:end] for end in range(SESSION_TURNS // 2, SESSION_TURNS + 1)]
    clock = await time_decisions(minilm, head, late)
    return {**clock.summary(), "runs_per_turn": round((minilm.runs - runs) / len(late), 2)}


def measure_bulk(minilm: MiniLM) -> float:
    """Texts of BULK_TOKENS encoded per second, as training does it."""
    rng = np.random.default_rng(3)
    texts = [write_text(rng, BULK_TOKENS) for _ in range(BULK_TEXTS)]
    started = time.perf_counter()
    minilm.encode_texts(texts)
    return BULK_TEXTS / (time.perf_counter() - started)


async def time_decisions(minilm: MiniLM, head: Head | None, conversations: Sequence[Sequence[Message]]) -> Clock:
    clock = Clock([], [])
    everyone = [f"worker-{i}" for i in range(WORKERS)]
    for messages in conversations:
        cpu_ns, wall_ns = time.process_time_ns(), time.perf_counter_ns()
        encoding = await minilm.encode(messages)
        if head is not None:
            head.scores(encoding.hidden, everyone)
        clock.cpu_ms.append((time.process_time_ns() - cpu_ns) / 1e6)
        clock.wall_ms.append((time.perf_counter_ns() - wall_ns) / 1e6)
    return clock


def create_head(minilm: MiniLM) -> Head:
    """A head of WORKERS rows over the raw hidden state; its numbers do not matter here."""
    rng = np.random.default_rng(0)
    workers = tuple(WorkerIdentity(f"worker-{i}", "any") for i in range(WORKERS))
    features = FeatureMap(np.zeros(minilm.dim, np.float32), np.eye(minilm.dim, dtype=np.float32))
    weight = rng.standard_normal((WORKERS, features.size)).astype(np.float32)
    return Head.create(
        features, weight, Card(encoder=minilm.name, workers=workers, training={}, metrics={}, baselines={})
    )


def write_text(rng: np.random.Generator, tokens: int) -> str:
    """Two-digit numbers, which are one word piece each; [CLS] and [SEP] of the first window count among `tokens`."""
    return " ".join(str(number) for number in rng.integers(10, 100, tokens - 2))


def ask(text: str) -> Message:
    return Message(role="user", content=text)


if __name__ == "__main__":
    main()
