"""What a policy gains on recorded answers of real models: on families it knows, and on families it has never seen.

    python -m bench.recorded --kind trinity --only pool_b

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
from torafugu.eval.stats import paired_bootstrap
from torafugu.local import MiniLM
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.coordinator import CoordinatorConfig, train_coordinator
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
    parser.add_argument("--kind", choices=("selector", "trinity"), default="selector")
    parser.add_argument("--no-trainers", action="store_true", help="trinity: only the supervised start")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds for the seen families")
    parser.add_argument("--draws", type=int, default=3, help="draws of unseen families")
    parser.add_argument("--first-draw", type=int, default=0, help="... from which number on")
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    bench = Bench(MiniLM(), args.cache, kind=args.kind, has_trainers=not args.no_trainers)
    rows = []
    for name in args.only or POOLS:
        folder, datasets = POOLS[name]
        started = time.time()
        recorded = read_recorded(args.root / folder, datasets=datasets)
        seen = [bench.measure(recorded, "test", seed) for seed in range(args.seeds)]
        draws = range(args.first_draw, args.first_draw + args.draws)
        unseen = [bench.measure(hold_out_families(recorded, draw), "unseen", draw) for draw in draws]
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


@dataclasses.dataclass(frozen=True)
class Bench:
    """Trains and evaluates one kind of policy."""

    encoder: MiniLM
    cache: Path
    kind: str
    has_trainers: bool

    def measure(self, recorded: RecordedSet, split: str, seed: int) -> dict[str, Any]:
        started = time.time()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = self._train_trinity(recorded, folder, seed) if self.kind == "trinity" else None
            made = made or self._train_selector(recorded, folder, seed)
            report = evaluate(
                folder, recorded, split=split, seed=seed, cache=self.cache, encoder=self.encoder, report=Quiet()
            )
        print(
            f"{self.kind} {recorded.path.name} {split} {seed}: {report['gain']['mean']:+.3f} at "
            f"{report['calls_mean']:.2f} calls, {time.time() - started:.0f} s: {made['candidate']}, {made['trained']}",
            file=sys.stderr,
            flush=True,
        )
        return report | made

    def _train_selector(self, recorded: RecordedSet, folder: Path, seed: int) -> dict[str, Any]:
        trained = train_selector(
            recorded,
            self.encoder,
            create_recorded_pool(recorded),
            folder,
            config=SelectorConfig(seed=seed),
            cache=self.cache,
            report=Quiet(),
        )
        return {"candidate": trained.winner.candidate.name, "trained": trained.evolved}

    def _train_trinity(self, recorded: RecordedSet, folder: Path, seed: int) -> dict[str, Any]:
        config = CoordinatorConfig(seed=seed)
        trained = train_coordinator(
            recorded,
            self.encoder,
            create_recorded_pool(recorded),
            folder,
            config=config if self.has_trainers else dataclasses.replace(config, trainers=()),
            cache=self.cache,
            report=Quiet(),
        )
        return {"candidate": trained.start.candidate.name, "trained": trained.trainer}


def summarise(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gains = [report["gain"]["mean"] for report in reports]
    return {
        "n": [report["n"] for report in reports],
        "candidate": [report["candidate"] for report in reports],
        "trained": [report["trained"] for report in reports],
        "calls": [report["calls_mean"] for report in reports],
        "gain_over_vote_5": [report["gain_over"].get("vote_5") for report in reports],
        "all": pool_questions(reports),
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


def pool_questions(reports: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Over all runs: a question that stands in several counts with the mean of its scores. Intervals over questions,
    and over families, whose questions are not independent.
    """
    by_qid: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for row in report["questions"]:
            by_qid.setdefault(row["qid"], []).append(row)
    if not by_qid:
        return None

    def mean(key: str) -> Any:
        return np.array([np.mean([row[key] for row in rows]) for rows in by_qid.values()])

    ours, families = mean("score"), [rows[0]["family"] for rows in by_qid.values()]
    found: dict[str, Any] = {"n": len(by_qid), "accuracy": float(ours.mean()), "calls": float(mean("calls").mean())}
    for name in ("best_single", "vote_5"):
        theirs = mean(name)
        gain = paired_bootstrap(ours, theirs, seed=0)
        by_family = paired_bootstrap(ours, theirs, groups=families, seed=0)
        found[name] = {
            "accuracy": float(theirs.mean()),
            "gain": [gain.mean, gain.low, gain.high],
            "gain_by_family": [by_family.low, by_family.high],
        }
    return found


if __name__ == "__main__":
    main()
