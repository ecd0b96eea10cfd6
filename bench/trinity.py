"""What each part of the tri-role coordinator gives, and the paper's own ablations, on recorded answers.

    python -m bench.trinity --data ../shared/data/recorded/pool_b --dataset kor --dataset crux --dataset math-l5

Ours: one training; its log holds the cross-fitted gain of every start (question only, answers only, both) and of every
trainer. The paper's: `train_paper` with one thing changed at a time, measured on the test split; thoughts are the
recorded answers, not the whole texts; the encoder's singular values stay as they are but in one variant, which takes
hours. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.recorded import Quiet
from torafugu.eval.evaluate import run_policy
from torafugu.eval.matrix import best_single, build_matrix
from torafugu.eval.provenance import describe_data, find_commit
from torafugu.eval.states import default_cache
from torafugu.eval.stats import paired_bootstrap
from torafugu.local import MiniLM
from torafugu.local.open import EncoderConfig, open_encoder
from torafugu.orchestrate.policies import load_policy
from torafugu.orchestrate.transcript import TranscriptConfig
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.coordinator import CoordinatorConfig, train_coordinator
from torafugu.train.evolve import EvolveConfig, train_paper

PAPER = EvolveConfig(
    svf=False,
    seed=0,
    policy=TranscriptConfig(state="parts"),
    encoder=EncoderConfig(kind="minilm"),
)
LONGER = replace(
    PAPER,
    iterations=100,
    repeats=64,
    common_questions=True,
    turns_per_episode=True,
    diversity_bonus=0.0,
    turn_bonus=0.1,
)
"""With less noise: the paper's settings rank candidates on 16 questions of their own."""
VARIANTS: dict[str, EvolveConfig] = {
    "paper's settings": PAPER,
    "paper's settings, random search": replace(PAPER, optimiser="random-search"),
    "paper's settings, singular values": replace(
        PAPER, svf=True, encoder=EncoderConfig(kind="minilm-svf", layers=(4,), reading="mean")
    ),
    "longer": LONGER,
    "longer, no Thinker": replace(LONGER, policy=replace(LONGER.policy, roles=("worker", "verifier"))),
    "longer, no roles": replace(LONGER, policy=replace(LONGER.policy, roles=("worker",), max_turns=1)),
    "longer, last token": replace(LONGER, encoder=EncoderConfig(kind="minilm", reading="last")),
    "longer, random search": replace(LONGER, optimiser="random-search", random_repeats=64),
    "longer, REINFORCE": replace(LONGER, optimiser="reinforce", common_questions=False, learning_rate=0.0001),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--only", action="append", choices=["ours", *VARIANTS])
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    recorded = read_recorded(args.data, datasets=args.dataset)
    names = args.only or ["ours", *VARIANTS]
    result: dict[str, Any] = {"command": sys.argv, "commit": find_commit(), "data": describe_data(recorded)}
    if "ours" in names:
        result["ours"] = measure_ours(recorded, args.cache)
    result["paper"] = {name: measure_paper(recorded, VARIANTS[name], args.cache) for name in names if name != "ours"}
    print(json.dumps(result, indent=1))


def measure_ours(recorded: RecordedSet, cache: Path) -> list[dict[str, Any]]:
    """The rows of the training log that judge something."""
    encoder = MiniLM()
    with tempfile.TemporaryDirectory() as name:
        train_coordinator(
            recorded,
            encoder,
            create_recorded_pool(recorded),
            Path(name),
            config=CoordinatorConfig(),
            cache=cache,
            report=Quiet(),
        )
        rows = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    encoder.close()
    return [row for row in rows if row["stage"] in ("candidate", "vote", "trainer")]


def measure_paper(recorded: RecordedSet, config: EvolveConfig, cache: Path) -> dict[str, Any]:
    started = time.time()
    encoder = open_encoder(config.encoder)
    target = build_matrix(recorded).split("test")
    train = build_matrix(recorded).split("train")
    with tempfile.TemporaryDirectory() as name:
        trained = train_paper(recorded, lambda: encoder, Path(name), config=config, cache=cache, report=Quiet())
        policy = load_policy(Path(name), encoder, recorded.models)
        episodes = asyncio.run(
            run_policy(target, policy, create_recorded_pool(recorded), known=frozenset(recorded.workers))
        )
    encoder.close()
    ours = np.array([episode.score or 0.0 for episode in episodes])
    theirs = np.nan_to_num(target.first[:, best_single(train)])
    gain = paired_bootstrap(ours, theirs, seed=0)
    row = {
        "test": float(ours.mean()),
        "best_single": float(theirs.mean()),
        "gain": [gain.mean, gain.low, gain.high],
        "calls": float(np.mean([episode.calls for episode in episodes])),
        "validation": trained.validation_score,
        "generation": trained.generation,
        "seconds": round(time.time() - started),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
