"""What the selector gains on recorded answers of real models: on families it knows, and on families it has never seen.

    python -m bench.recorded --root ../shared/data/recorded --only pool_b

For each pool and seed: train on train+validation, evaluate on `test`. Then, for each draw, a fifth of the families is
taken out of all splits and becomes the split `unseen`; train on the rest, evaluate there. Prints JSON. The numbers in
README.md are made by this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from torafugu.eval.provenance import describe_data, find_commit
from torafugu.eval.report import evaluate
from torafugu.eval.states import default_cache
from torafugu.local import MiniLM
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.selector import SelectorConfig, train_selector

POOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rg-hard": ("pool_a", ("rg-hard",)),
    "rg-easy": ("pool_a", ("rg-easy",)),
    "pool_b": ("pool_b", ("kor", "crux", "math-l5")),
    "pool_c": ("pool_c", ()),
    "pool_e": ("pool_e", ()),
}
HELD_SHARE = 0.2


class Quiet:
    """Reports nothing: this prints JSON."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, units: int) -> None: ...

    def say(self, line: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/recorded"))
    parser.add_argument("--only", action="append", choices=sorted(POOLS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds for the seen families")
    parser.add_argument("--draws", type=int, default=3, help="draws of unseen families")
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    encoder = MiniLM()
    rows = []
    for name in args.only or POOLS:
        folder, datasets = POOLS[name]
        started = time.time()
        recorded = read_recorded(args.root / folder, datasets=datasets)
        seen = [measure(recorded, "test", seed, encoder, args.cache) for seed in range(args.seeds)]
        unseen = [
            measure(hold_out_families(recorded, draw), "unseen", draw, encoder, args.cache)
            for draw in range(args.draws)
        ]
        rows.append(
            {
                "pool": name,
                "data": describe_data(recorded),
                "seen": summarise(seen),
                "unseen": summarise(unseen),
                "seconds": round(time.time() - started),
            }
        )
        print(f"{name}: {rows[-1]['seconds']} s", file=sys.stderr)
    print(json.dumps({"command": sys.argv, "commit": find_commit(), "pools": rows}, indent=1))


def hold_out_families(recorded: RecordedSet, draw: int) -> RecordedSet:
    """A fifth of the families, at least one, as the split `unseen`; the other questions keep their splits."""
    families = sorted({q.family for q in recorded.questions})
    count = max(1, round(HELD_SHARE * len(families)))
    held = set(np.random.default_rng(draw).choice(families, size=count, replace=False))
    questions = tuple(msgspec.structs.replace(q, split="unseen") if q.family in held else q for q in recorded.questions)
    return dataclasses.replace(recorded, questions=questions)


def measure(recorded: RecordedSet, split: str, seed: int, encoder: MiniLM, cache: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trained = train_selector(
            recorded,
            encoder,
            create_recorded_pool(recorded),
            Path(folder),
            config=SelectorConfig(seed=seed),
            cache=cache,
            report=Quiet(),
        )
        report = evaluate(Path(folder), recorded, split=split, seed=seed, cache=cache, encoder=encoder, report=Quiet())
    report["candidate"], report["evolved"] = trained.winner.candidate.name, trained.evolved
    return report


def summarise(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gains = [report["gain"]["mean"] for report in reports]
    return {
        "n": [report["n"] for report in reports],
        "candidate": [report["candidate"] for report in reports],
        "evolved": [report["evolved"] for report in reports],
        "best_single": [report["best_single"] for report in reports],
        "accuracy": [report["accuracy"] for report in reports],
        "gain": [report["gain"] for report in reports],
        "gain_mean": statistics.mean(gains) if gains else None,
        "gain_spread": statistics.stdev(gains) if len(gains) > 1 else None,
        "baselines": [report["baselines"] for report in reports],
        "oracle": [report["oracle"] for report in reports],
        "cost_usd": [report["cost_usd"] for report in reports],
        "best_single_cost_usd": [report["best_single_cost_usd"] for report in reports],
    }


if __name__ == "__main__":
    main()
