"""Adding a worker to a trained coordinator from a short profile, beside training with it from the start.

    python -m bench.adding --data ../shared/data/recorded/pool_a --dataset rg-hard --worker deepseek-r1

For each worker: a coordinator is trained without it; then it is added from the first N training questions; accuracy on
the test split before, after, and of a training that knew it. No trainers: the supervised start. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.recorded import Quiet
from torafugu.eval.evaluate import run_policy
from torafugu.eval.matrix import build_matrix
from torafugu.eval.provenance import describe_data, find_commit
from torafugu.eval.states import KnownStates, default_cache, encode_questions
from torafugu.local import MiniLM
from torafugu.orchestrate.coordinator import Coordinator, CoordinatorHead
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.add import add_workers
from torafugu.train.coordinator import CoordinatorConfig, train_coordinator


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--worker", action="append", required=True, help="to be left out and added (repeatable)")
    parser.add_argument("--questions", type=int, action="append", help="of the short profile (default 50 and 200)")
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    recorded = read_recorded(args.data, datasets=args.dataset)
    bench = Bench(recorded, MiniLM(), args.cache)
    whole = bench.train(recorded)
    rows = [
        {
            "worker": worker,
            "without": bench.measure(without := bench.train(leave_out(recorded, worker))),
            **{f"added from {n}": bench.measure(bench.add(without, n)) for n in args.questions or (50, 200)},
            "trained with it": bench.measure(whole),
        }
        for worker in args.worker
    ]
    result = {"command": sys.argv, "commit": find_commit(), "data": describe_data(recorded), "rows": rows}
    print(json.dumps(result, indent=1))


def leave_out(recorded: RecordedSet, worker: str) -> RecordedSet:
    return dataclasses.replace(
        recorded,
        workers=tuple(w for w in recorded.workers if w != worker),
        samples={key: rows for key, rows in recorded.samples.items() if key[1] != worker},
    )


class Bench:
    def __init__(self, recorded: RecordedSet, encoder: MiniLM, cache: Path) -> None:
        self.recorded, self.encoder, self.cache = recorded, encoder, cache
        matrix = build_matrix(recorded)
        self.test, self.train_rows = matrix.split("test"), matrix.split("train")
        self.hidden = encode_questions(encoder, self.test.questions, cache=cache)
        self.train_hidden = encode_questions(encoder, self.train_rows.questions, cache=cache)

    def train(self, recorded: RecordedSet) -> CoordinatorHead:
        with tempfile.TemporaryDirectory() as folder:
            return train_coordinator(
                recorded,
                self.encoder,
                create_recorded_pool(recorded),
                Path(folder),
                config=CoordinatorConfig(trainers=()),
                cache=self.cache,
                report=Quiet(),
            ).head

    def add(self, head: CoordinatorHead, count: int) -> CoordinatorHead:
        draw = np.random.default_rng(0).permutation(len(self.train_rows))[:count]
        return add_workers(head, self.train_rows.rows(draw), self.train_hidden[draw])

    def measure(self, head: CoordinatorHead) -> dict[str, Any]:
        known = {q.text: self.hidden[i] for i, q in enumerate(self.test.questions)}
        models = {worker.id: worker.model for worker in head.card.workers}
        policy = Coordinator(head, KnownStates(head.card.encoder, known, self.encoder.dim), models)
        pool = create_recorded_pool(self.recorded)
        episodes = asyncio.run(run_policy(self.test, policy, pool, known=frozenset(models)))
        return {
            "accuracy": float(np.mean([episode.score or 0.0 for episode in episodes])),
            "calls": float(np.mean([episode.calls for episode in episodes])),
        }


if __name__ == "__main__":
    main()
