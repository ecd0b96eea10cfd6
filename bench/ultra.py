"""`fugu-ultra` beside everything else, live on the home pool's tasks of several steps, with cost.

    python -m bench.ultra --seeds 3

For each seed: generated tasks are profiled, `fugu` and `fugu-trinity` are trained on the profile, and fresh test tasks
are run through the loop that serves. The scripted conductor reads the right workflow off the question's template: what
the best conductor could reach. `--small-model` adds a prompted language model in this process (needs the extra
`local`). Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from bench.home import gain, run_all, train
from torafugu.envs.composed import composed_tasks, find_workflow
from torafugu.episode import Episode
from torafugu.eval.matrix import best_single, build_matrix
from torafugu.eval.provenance import find_commit
from torafugu.eval.states import default_cache
from torafugu.grade.by_task import TaskGrader
from torafugu.local import MiniLM
from torafugu.orchestrate import Direct, Policy
from torafugu.orchestrate.conductor import Conductor, ConductorConfig
from torafugu.orchestrate.panel import Panel, PanelConfig
from torafugu.orchestrate.plan import PlanFormat, Workflow, WorkflowStep, write_workflow
from torafugu.orchestrate.policies import load_policy
from torafugu.pool import (
    Backend,
    Completion,
    Member,
    Pool,
    Prices,
    Query,
    Scripted,
    open_pool,
    read_pool,
    resolve_price,
)
from torafugu.pool.home import CHARS_PER_TOKEN, home_pool_path
from torafugu.pool.recorded import read_recorded
from torafugu.pool.spec import WorkerSpec
from torafugu.train.profile import find_rates, open_profile, plan_jobs, profile
from torafugu.types import Usage

CONDUCTOR_PRICES = Prices(input=Decimal(2), output=Decimal(8))
"""The generalist's, so that planning is not free."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=600, help="profiled tasks, of which train and validation are used")
    parser.add_argument("--fresh", type=int, default=1500, help="fresh tasks, of which those of the split test are run")
    parser.add_argument("--small-model", help="folder or hub id of a language model that conducts, prompted")
    parser.add_argument("--gguf", help="GGUF file of it")
    parser.add_argument("--small-n", type=int, default=40, help="test tasks for the small model")
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    rows = [asyncio.run(measure(seed, args)) for seed in range(args.seeds)]
    print(json.dumps({"command": sys.argv, "commit": find_commit(), "seeds": rows}, indent=1))


async def measure(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    started = time.time()
    spec = read_pool(home_pool_path())
    known = composed_tasks(n=args.tasks, seed=seed)
    prompts = {task.prompt for task in known}
    fresh = composed_tasks(n=args.fresh, seed=seed + 1000)
    tests = [task for task in fresh if task.split == "test" and task.prompt not in prompts]
    encoder = MiniLM()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with open_pool(spec) as pool:
            done = open_profile(folder / "profile", known, spec, find_rates(spec.worker))
            await profile(plan_jobs(known, list(pool.specs), 1, done), pool, TaskGrader(), folder / "profile")
            await asyncio.to_thread(train, folder, seed, encoder, args.cache)
            matrix = build_matrix(read_recorded(folder / "profile")).split("train", "validation")
            models = {worker.id: worker.model for worker in spec.worker}
            policies: dict[str, Policy] = {
                "best single worker": Direct(matrix.workers[best_single(matrix)]),
                "fugu": load_policy(folder / "selector", encoder, models),
                "fugu-trinity": load_policy(folder / "trinity", encoder, models),
                "fugu-panel (vote of all)": Panel(PanelConfig(workers=tuple(models), mode="vote"), models),
            }
            played = {what: await run_all(tests, policy, pool) for what, policy in policies.items()}
            ultra = Conductor(ConductorConfig(worker="conductor"), {**models, "conductor": "scripted"})
            conducted = add_worker(pool, spec.worker, Scripted(conduct, worker="conductor"))
            played["fugu-ultra, scripted optimal conductor"] = await run_all(tests, ultra, conducted)
            if args.small_model:
                played["fugu-ultra, prompted small model"] = await conduct_small(args, tests, models, spec.worker)
    encoder.close()
    best, fugu = played["best single worker"], played["fugu"]
    row = {
        "seed": seed,
        "n": len(tests),
        "policies": {what: describe(episodes, best, fugu) for what, episodes in played.items()},
        "seconds": round(time.time() - started),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def conduct(query: Query) -> Completion:
    """The right workflow of a generated question, in the numbers of the home pool."""
    numbers = {worker.id: i for i, worker in enumerate(read_pool(home_pool_path()).worker)}
    gold = find_workflow(query.question or "")
    if gold is None:
        steps: tuple[WorkflowStep, ...] = (
            WorkflowStep(worker=numbers["generalist"], subtask=query.question or "", access=()),
        )
    else:
        rows = zip(gold.workers, gold.subtasks, gold.access, strict=True)
        steps = tuple(
            WorkflowStep(worker=numbers[worker], subtask=subtask, access=tuple(access))
            for worker, subtask, access in rows
        )
    text = write_workflow(Workflow(steps=steps), PlanFormat(workers=len(numbers), access="position"))
    asked = sum(len(message.text) for message in query.messages)
    usage = Usage(input_tokens=asked // CHARS_PER_TOKEN, output_tokens=len(text) // CHARS_PER_TOKEN)
    return Completion(text=text, finish_reason="stop", usage=usage)


def add_worker(pool: Pool, workers: tuple[WorkerSpec, ...], backend: Backend) -> Pool:
    """The home pool with a conductor. Its workers hold nothing, so they can be made twice."""
    from torafugu.pool.home import make_home

    members = [Member(spec=w, backend=make_home(w), price=resolve_price(w)) for w in workers]
    spec = WorkerSpec(id="conductor", dialect="scripted", model="scripted", prices=CONDUCTOR_PRICES)
    return Pool([*members, Member(spec=spec, backend=backend, price=resolve_price(spec))])


async def conduct_small(
    args: argparse.Namespace, tests: list[Any], models: dict[str, str], workers: tuple[WorkerSpec, ...]
) -> list[Episode]:
    from torafugu.local.generator import make_generator

    extra = {"gguf_file": args.gguf} if args.gguf else {}
    spec = WorkerSpec(id="conductor", dialect="local", model=args.small_model, tools=False, extra_body=extra)
    backend = make_generator(spec)
    config = ConductorConfig(worker="conductor", max_output_tokens=400, attempts=2)
    pool = add_worker(Pool([]), workers, backend)
    try:
        return await run_all(tests[: args.small_n], Conductor(config, {**models, "conductor": "small"}), pool)
    finally:
        await backend.close()


def describe(episodes: list[Episode], best: list[Episode], fugu: list[Episode]) -> dict[str, Any]:
    """Beside `best` and `fugu`, on the tasks that all ran."""
    ours, theirs, one_call = (
        np.array([episode.score or 0.0 for episode in each[: len(episodes)]]) for each in (episodes, best, fugu)
    )
    costs = [episode.cost_usd for episode in episodes]
    return {
        "n": len(episodes),
        "accuracy": float(ours.mean()),
        "gain": gain(ours, theirs),
        "over_fugu": gain(ours, one_call),
        "calls": float(np.mean([episode.calls for episode in episodes])),
        "usd_per_1000": None if None in costs else float(1000 * sum(c or 0 for c in costs) / len(costs)),
        "faults": {code: sum(e.code == code for e in episodes) for code in {e.code for e in episodes if e.code}},
    }


if __name__ == "__main__":
    main()
