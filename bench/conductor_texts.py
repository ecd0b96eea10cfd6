"""What a conductor for the home pool writes, before anything is executed: is the question divided, and who gets what?

    python -m bench.conductor_texts --model RUN/start
    python -m bench.conductor_texts --model models/smollm2-home --tasks 2

Sampled at temperature 1, as in training, for test tasks of each family: the share of texts that are workflows, whose
subtasks are the gold workflow's word by word, whose steps all have the gold workflow's worker; and over all of these
whom the steps of each kind were given to. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torafugu.conductors import complete_config, read_conductor_card
from torafugu.envs.composed import COMPOSED_FAMILIES, GoldWorkflow, composed_tasks, find_workflow
from torafugu.errors import PlanError
from torafugu.eval.provenance import find_commit
from torafugu.grade.task import Task
from torafugu.local.llama_folder import open_llama
from torafugu.orchestrate.plan import PlanFormat, Workflow, parse_workflow
from torafugu.pool.home import home_pool_path
from torafugu.pool.spec import read_pool
from torafugu.train.conductor_model import read_tokeniser
from torafugu.train.conductor_player import OnnxWriter
from torafugu.train.conductor_rollout import Asked, Question
from torafugu.train.demonstrations import render_question


@dataclass
class Seen:
    """Of one family."""

    texts: int = 0
    workflows: int = 0
    divided: int = 0
    assigned: int = 0
    given: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, gold: GoldWorkflow, workflow: Workflow | None, workers: tuple[str, ...]) -> None:
        self.texts += 1
        if workflow is None:
            return
        self.workflows += 1
        self.divided += tuple(step.subtask for step in workflow.steps) == gold.subtasks
        if len(workflow.steps) != gold.steps:
            return
        called = tuple(workers[step.worker] for step in workflow.steps)
        self.assigned += called == gold.workers
        for worker, right in zip(called, gold.workers, strict=True):
            self.given[right][worker] += 1

    def row(self) -> dict[str, float]:
        return {
            "valid": self.workflows / self.texts,
            "subtasks_exact": self.divided / self.texts,
            "workers_right": self.assigned / self.texts,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a conductor, as it is served")
    parser.add_argument("--tasks", type=int, default=6, help="of each family")
    parser.add_argument("--attempts", type=int, default=16, help="at each task")
    parser.add_argument("--seed", type=int, default=78, help="of the tasks; training has 0 and following")
    args = parser.parse_args()
    workers = tuple(worker.id for worker in read_pool(home_pool_path()).worker)
    config = complete_config({"worker": "-"}, read_conductor_card(args.model), where=str(args.model))
    assert config.max_output_tokens is not None
    tokeniser, end = read_tokeniser(args.model)
    writer = OnnxWriter(open_llama(args.model), tokeniser.to_str(), end=end, max_tokens=config.max_output_tokens)
    plan = PlanFormat(workers=workers, access="position", order=config.order)
    families: dict[str, Seen] = {}
    for family, tasks in draw(args.tasks, args.seed).items():
        seen = families[family] = Seen()
        for task in tasks:
            gold = find_workflow(task.prompt)
            assert gold is not None
            messages = render_question(Question(task=task, workers=workers), config)
            asked = [Asked(messages=messages, seed=seed) for seed in range(args.attempts)]
            for written in writer.write(asked, temperature=1.0):
                seen.add(gold, parse(written.text, plan), workers)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for seen in families.values():
        for right, counts in seen.given.items():
            given[right].update(counts)
    result: dict[str, Any] = {
        "command": sys.argv,
        "commit": find_commit(),
        "families": {family: seen.row() for family, seen in families.items()},
        "mean": {
            key: sum(seen.row()[key] for seen in families.values()) / len(families)
            for key in ("valid", "subtasks_exact", "workers_right")
        },
        "steps_for_given_to": {
            right: {worker: count / counts.total() for worker, count in counts.most_common()}
            for right, counts in sorted(given.items())
        },
    }
    print(json.dumps(result, indent=1))


def draw(n: int, seed: int) -> dict[str, list[Task]]:
    """`n` test tasks of each family."""
    size = 8 * n * len(COMPOSED_FAMILIES)
    while True:  # the same tasks, and more
        found = [task for task in composed_tasks(n=size, seed=seed) if task.split == "test"]
        by_family = {family: [task for task in found if task.family == family][:n] for family in COMPOSED_FAMILIES}
        if all(len(tasks) == n for tasks in by_family.values()):
            return by_family
        size *= 2


def parse(text: str, plan: PlanFormat) -> Workflow | None:
    try:
        return parse_workflow(text, plan)
    except PlanError:
        return None


if __name__ == "__main__":
    main()
