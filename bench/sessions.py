"""What it costs to stay: sessions of ten held-out questions of one category, for several margins of a large warm cache.

    python -m bench.sessions HEAD... --data ../shared/data/recorded

A head's folder (`fugu train selector --out HEAD`) names the set that it was trained on; its test split is asked.
Prints JSON: for each head the reward per advantage, as its card has it and on the test split, and by margin the mean
reward and the share of turns that switch. The questions of a session are independent of each other, the worst case for
staying.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torafugu.eval.matrix import OutcomeMatrix, build_matrix
from torafugu.eval.states import default_cache, encode_questions
from torafugu.local import MiniLM
from torafugu.orchestrate.head import Head, softmax
from torafugu.orchestrate.selector import SCALE_METRIC, advantage
from torafugu.pool.recorded import read_recorded
from torafugu.train.outcomes import answered
from torafugu.train.selector import measure_scale

MARGINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 1.0)
SESSIONS = 2_000
TURNS = 10

Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, nargs="+", metavar="HEAD")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/recorded"))
    parser.add_argument("--cache", type=Path, default=None)
    args = parser.parse_args()
    encoder = MiniLM()
    try:
        rows = [measure(Head.load(folder), args.data, encoder, args.cache or default_cache()) for folder in args.heads]
    finally:
        encoder.close()
    print(json.dumps(rows, indent=1))


def measure(head: Head, data: Path, encoder: MiniLM, cache: Path) -> dict[str, Any]:
    named = head.card.training["data"]
    matrix = answered(build_matrix(read_recorded(data / named["name"], datasets=named["datasets"]))).split("test")
    columns = [matrix.workers.index(worker.id) for worker in head.card.workers]
    features = head.features(encode_questions(encoder, matrix.questions, cache=cache))
    probabilities: Floats = np.asarray(softmax((features @ head.weight.T).astype(np.float64)), np.float64)  # (n, L)
    rewards = np.nan_to_num(matrix.mean[:, columns])
    scale = head.card.metrics.get(SCALE_METRIC)
    return {
        "head": head.id,
        "datasets": named["datasets"],
        "candidate": head.card.training["candidate"],
        "questions": len(matrix),
        SCALE_METRIC: scale,
        f"{SCALE_METRIC}_test": measure_scale(probabilities, rewards),
        "by_margin": [play(matrix, probabilities, rewards, 1.0 if scale is None else scale, m) for m in MARGINS],
    }


def play(
    matrix: OutcomeMatrix, probabilities: Floats, rewards: Floats, scale: float, margin: float
) -> dict[str, float]:
    """Every turn goes to the session's worker, unless the best one's gain is more than the margin."""
    rng = np.random.default_rng(0)
    categories = np.array([question.category for question in matrix.questions])
    best = probabilities.argmax(1)
    reward, switches = 0.0, 0
    for _ in range(SESSIONS):
        category = categories[rng.integers(len(categories))]
        turns = rng.choice(np.flatnonzero(categories == category), TURNS)
        worker = best[turns[0]]
        for turn in turns:
            gain = scale * advantage(float(probabilities[turn, best[turn]]), float(probabilities[turn, worker]))
            if gain > margin:
                worker = best[turn]
                switches += 1
            reward += float(rewards[turn, worker])
    return {
        "margin": margin,
        "reward": round(reward / (SESSIONS * TURNS), 4),
        "switches": round(switches / (SESSIONS * (TURNS - 1)), 4),
    }


if __name__ == "__main__":
    main()
