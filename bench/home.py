"""`fugu-trinity`, `fugu` and the best single worker, live on the home pool: no recorded answers at test time.

    python -m bench.home --seeds 3

For each seed: generated tasks are profiled (train and validation), both policies are trained on the profile, and fresh
test tasks are run through the loop that serves, with the real home workers and graders. Prints JSON: each seed, and all
their tasks together, one that several seeds drew counting once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.recorded import Quiet
from torafugu.envs.home import HOME_FAMILIES, home_tasks
from torafugu.episode import Episode, run_episode
from torafugu.eval.matrix import best_single, build_matrix
from torafugu.eval.provenance import find_commit
from torafugu.eval.states import default_cache
from torafugu.eval.stats import paired_bootstrap
from torafugu.grade.by_task import TaskGrader
from torafugu.grade.task import Task
from torafugu.local import MiniLM
from torafugu.orchestrate import Direct, Policy
from torafugu.orchestrate.policies import load_policy
from torafugu.pool import open_pool, read_pool
from torafugu.pool.home import home_pool_path
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.coordinator import CoordinatorConfig, train_coordinator
from torafugu.train.profile import find_rates, open_profile, plan_jobs, profile
from torafugu.train.selector import SelectorConfig, train_selector


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=600, help="profiled tasks, of which train and validation are used")
    parser.add_argument(
        "--fresh", type=int, default=12000, help="fresh tasks, of which those of the split test are run"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="test on a fifth of the families, left out of the profile"
    )
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    rows, prompts, parts = [], [], []
    for seed in range(args.seeds):
        row, asked, scores = asyncio.run(measure(seed, args.tasks, args.fresh, args.cache, is_unseen=args.unseen))
        rows.append(row)
        prompts += asked
        parts.append(scores)
    _, of, count = np.unique(prompts, return_inverse=True, return_counts=True)
    drawn = {name: np.concatenate([scores[name] for scores in parts]) for name in parts[0]}
    together = {name: np.bincount(of, weights=scores) / count for name, scores in drawn.items()}
    result = {"command": sys.argv, "commit": find_commit(), "seeds": rows, "all": compare(together)}
    print(json.dumps(result, indent=1))


async def measure(
    seed: int, count: int, fresh: int, cache: Path, *, is_unseen: bool
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """A seed's row, and its test tasks: their prompts, and (n,) the score of each policy on them."""
    started = time.time()
    spec = read_pool(home_pool_path())
    families = sorted(HOME_FAMILIES)
    held = set(np.random.default_rng(seed).choice(families, len(families) // 5, replace=False)) if is_unseen else set()
    known = [task for task in home_tasks(n=count, seed=seed) if task.family not in held]
    prompts = {task.prompt for task in known}
    tests = [t for t in home_tasks(n=fresh, seed=seed + 1000) if t.split == "test" and t.prompt not in prompts]
    if is_unseen:
        tests = [task for task in tests if task.family in held]
    encoder = MiniLM()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with open_pool(spec) as pool:
            done = open_profile(folder / "profile", known, spec, find_rates(spec.worker))
            jobs = plan_jobs(known, [worker.id for worker in spec.worker], 1, done)
            await profile(jobs, pool, TaskGrader(), folder / "profile")
            await asyncio.to_thread(train, folder, seed, encoder, cache)
            matrix = build_matrix(read_recorded(folder / "profile")).split("train", "validation")
            models = {worker.id: worker.model for worker in spec.worker}
            policies: dict[str, Policy] = {
                "best_single": Direct(matrix.workers[best_single(matrix)]),
                "fugu": load_policy(folder / "selector", encoder, models),
                "fugu-trinity": load_policy(folder / "trinity", encoder, models),
            }
            played = {name: await run_all(tests, policy, pool) for name, policy in policies.items()}
            workers = {worker: await run_all(tests, Direct(worker), pool) for worker in models}
    encoder.close()
    scores = {name: np.array([e.score or 0.0 for e in episodes]) for name, episodes in played.items()}
    scores["oracle"] = np.array([[e.score or 0.0 for e in episodes] for episodes in workers.values()]).max(0)
    row = {
        "seed": seed,
        "unseen_families": sorted(held),
        **compare(scores),
        "best_single": policies["best_single"].id,
        "calls": {name: float(np.mean([e.calls for e in episodes])) for name, episodes in played.items()},
        "cost_usd": {name: float(sum(e.cost_usd or 0 for e in episodes)) for name, episodes in played.items()},
        "seconds": round(time.time() - started),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row, [task.prompt for task in tests], scores


def compare(scores: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": len(scores["fugu"]),
        "accuracy": {name: float(s.mean()) for name, s in scores.items()},
        "fugu_over_best_single": gain(scores["fugu"], scores["best_single"]),
        "trinity_over_best_single": gain(scores["fugu-trinity"], scores["best_single"]),
        "trinity_over_fugu": gain(scores["fugu-trinity"], scores["fugu"]),
    }


def train(folder: Path, seed: int, encoder: MiniLM, cache: Path) -> None:
    recorded = read_recorded(folder / "profile")
    pool = create_recorded_pool(recorded)
    common: dict[str, Any] = {"cache": cache, "report": Quiet()}
    train_selector(recorded, encoder, pool, folder / "selector", config=SelectorConfig(seed=seed), **common)
    train_coordinator(recorded, encoder, pool, folder / "trinity", config=CoordinatorConfig(seed=seed), **common)


async def run_all(tasks: list[Task], policy: Policy, pool: Any) -> list[Episode]:
    return [await run_episode(task, policy, pool, TaskGrader()) for task in tasks]


def gain(ours: Any, theirs: Any) -> list[float]:
    interval = paired_bootstrap(ours, theirs, seed=0)
    return [interval.mean, interval.low, interval.high]


if __name__ == "__main__":
    main()
