"""What each part of the selector's training gives: feature maps, trainers, and evolution from different starts.

    python -m bench.ablation --data ../shared/data/recorded/pool_a --dataset rg-hard

Cross-fitted gains over the best single worker on train+validation, with folds over questions (seen) and over families
(unseen), as `train/selection.py` judges; then evolution: fitted and evolved on train, measured on validation. The test
split is not read. Prints JSON; docs/log.md quotes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from torafugu.eval.matrix import OutcomeMatrix, best_single, build_matrix
from torafugu.eval.provenance import describe_data, find_commit
from torafugu.eval.states import default_cache, encode_questions
from torafugu.local import MiniLM
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.features import FeatureConfig, fit_features
from torafugu.train.fitness import EpisodeReward
from torafugu.train.selection import SINGLE, Candidate, choose_columns, judge
from torafugu.train.trainers import Gradient, Problem, Ridge, SepCMATrainer, Soft, Trainer

LANDMARKS = [
    FeatureConfig(kind="landmarks", components=64, landmarks=count, sharpness=sharpness)
    for count, sharpness in ((128, 0.25), (256, 0.5), (256, 1.0), (512, 0.5))
]
FEATURES = [*(FeatureConfig(kind="pca", components=k) for k in (8, 16, 64, 384)), *LANDMARKS]
TRAINERS: list[Trainer] = [Soft(), Ridge(l2=1e-3), Ridge(l2=1e-2), Gradient()]
STARTS: list[tuple[FeatureConfig, Trainer]] = [(FEATURES[1], Soft()), (LANDMARKS[2], Ridge(l2=1e-3))]
EVOLUTIONS = [
    SepCMATrainer(sigma0=sigma0, questions=questions)
    for sigma0, questions in ((0.03, 384), (0.1, 128), (0.1, 384), (0.3, 384))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    recorded = read_recorded(args.data, datasets=args.dataset)
    matrix = build_matrix(recorded)
    train, validation = matrix.split("train"), matrix.split("validation")
    both = OutcomeMatrix.join(train, validation)
    encoder = MiniLM()
    hidden = encode_questions(encoder, both.questions, cache=args.cache)
    encoder.close()
    candidates = [SINGLE, *(Candidate(features=f, trainer=t) for f in FEATURES for t in TRAINERS)]
    judged = [
        {
            "candidate": entry.candidate.name,
            "seen": entry.seen,
            "seen_error": entry.seen_error,
            "unseen": entry.unseen,
            "unseen_error": entry.unseen_error,
        }
        for entry in judge(candidates, hidden, both, seed=args.seed)
    ]
    pool = create_recorded_pool(recorded)
    evolved = [
        evolve(features, trainer, hidden, train, validation, pool, seed=args.seed) for features, trainer in STARTS
    ]
    print(
        json.dumps(
            {
                "command": sys.argv,
                "commit": find_commit(),
                "data": describe_data(recorded),
                "judged": judged,
                "evolution": evolved,
            },
            indent=1,
        )
    )


def evolve(
    config: FeatureConfig,
    trainer: Trainer,
    hidden: Any,
    train: OutcomeMatrix,
    validation: OutcomeMatrix,
    pool: Any,
    *,
    seed: int,
) -> dict[str, Any]:
    features = fit_features(hidden[: len(train)], config, seed=seed)
    x, held = (features(part).astype(np.float64) for part in (hidden[: len(train)], hidden[len(train) :]))
    start = trainer.train(Problem(features=x, rewards=train.mean, seed=seed))
    single = best_single(train)

    def gains(weight: Any) -> dict[str, float]:
        found = {}
        for name, part, rows in (("train", train, x), ("validation", validation, held)):
            columns = choose_columns(weight, rows, part)
            score = part.first[np.arange(len(part)), columns].mean()
            found[name] = float(score - np.nan_to_num(part.first[:, single]).mean())
        return found

    reward = EpisodeReward(train, x.astype(np.float32), pool)
    problem = Problem(features=x, rewards=train.mean, seed=seed, start=start, episode_reward=reward)
    return {
        "start": f"{config.name} {trainer.name}",
        "before": gains(start),
        "after": {evolution.name: gains(evolution.train(problem)) for evolution in EVOLUTIONS},
    }


if __name__ == "__main__":
    main()
