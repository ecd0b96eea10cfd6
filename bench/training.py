"""A training run on a recorded folder from end to end, with nothing in the cache: read, encode, train, evaluate.

    python -m bench.training --data ../shared/data/recorded/pool_b

Prints JSON: seconds of each stage as the commands themselves go through them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from torafugu.eval.report import evaluate
from torafugu.local import MiniLM
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.selector import SelectorConfig, train_selector


class Stopwatch:
    """A reporter that notes when each stage began."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._name: str | None = None
        self._began = time.perf_counter()

    def stage(self, name: str, total: int) -> None:
        self.end()
        self._name = f"{name} ({total})"

    def advance(self, units: int) -> None: ...

    def say(self, line: str) -> None: ...

    def end(self) -> None:
        now = time.perf_counter()
        if self._name is not None:
            self.stages[self._name] = round(now - self._began, 2)
        self._name, self._began = None, now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/recorded/pool_b"))
    args = parser.parse_args()
    started = time.perf_counter()
    recorded = read_recorded(args.data)
    read_s = time.perf_counter() - started
    encoder = MiniLM()
    training, evaluation = Stopwatch(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "head", Path(folder) / "states"
        pool = create_recorded_pool(recorded)
        trained = train_selector(recorded, encoder, pool, out, config=SelectorConfig(), cache=cache, report=training)
        training.end()
        report = evaluate(out, recorded, split="test", encoder=encoder, seed=0, cache=cache, report=evaluation)
        evaluation.end()
    encoder.close()
    result = {
        "data": args.data.name,
        "questions": len(recorded.questions),
        "workers": len(recorded.workers),
        "read_s": round(read_s, 2),
        "train_s": training.stages,
        "evaluate_s": evaluation.stages,
        "total_s": round(time.perf_counter() - started, 1),
        "candidate": trained.winner.candidate.name,
        "gain": report["gain"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
