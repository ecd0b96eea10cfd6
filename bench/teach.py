"""Demonstrations for a conductor, written by one that is trained: the warm start of a larger model.

    python -m bench.teach --n 1200 --out demonstrations.jsonl                  by the conductor that ships
    fugu train conductor --config mine.toml --out run                          warm_start.demonstrations names the file

Each question of the split `train` is offered a random part of the home pool in random order; the conductor's likeliest
workflow is executed, and kept only if the answer was right. A fifth of the questions are shown without the sentence on
the form of the answer. Prints how many were kept, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from torafugu.conductors import HOME_CONDUCTOR, complete_config, find_folder, read_conductor_card
from torafugu.envs.composed import composed_tasks
from torafugu.eval.provenance import find_commit
from torafugu.local.llama import read_llama_config
from torafugu.local.llama_folder import read_safetensors
from torafugu.pool.home import home_pool_path
from torafugu.pool.skills.plain import drop_format
from torafugu.pool.spec import read_pool
from torafugu.train.conductor_config import ConductorTraining, WarmStartConfig
from torafugu.train.conductor_model import read_tokeniser, render_bare
from torafugu.train.conductor_player import Job, Player, PlayerSetup
from torafugu.train.conductor_rollout import Attempt, Question
from torafugu.train.demonstrations import render_question
from torafugu.train.questions import QuestionSource

SIZES = (3, 4, 5)
PLAIN_SHARE = 0.2
BATCH = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of the teacher (default: the conductor that ships)")
    parser.add_argument("--n", type=int, default=1200, help="questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folder = args.model or find_folder(HOME_CONDUCTOR, Path())
    pool = read_pool(home_pool_path())
    conductor = complete_config({"worker": "-"}, read_conductor_card(folder), where=str(folder))
    config = ConductorTraining(conductor=conductor, warm_start=WarmStartConfig(steps=1))
    tokeniser, end = read_tokeniser(folder)
    setup = PlayerSetup(
        graph=(folder / "graph.onnx").read_bytes(),
        llama=read_llama_config(folder / "config.json"),
        tokeniser=tokeniser.to_str(),
        end=end,
        pool=pool,
        pool_folder=home_pool_path().parent,
        config=config,
    )
    player, weights = Player(setup), read_safetensors(folder / "model.safetensors")
    rng = np.random.default_rng(args.seed)
    tasks = composed_tasks(n=30_000, seed=args.seed)
    source = QuestionSource(tasks, [worker.id for worker in pool.worker], sizes=SIZES, held_out=1)
    questions = source.draw(args.n, rng)
    kept = 0
    with args.out.open("w") as file:
        for first in range(0, args.n, BATCH):
            batch = tuple((question, (number,)) for number, question in enumerate(questions[first : first + BATCH]))
            for attempt in player(Job(weights=weights, lora_scale=1.0, rollouts=batch, temperature=0.0)):
                if attempt.episode.score == 1:
                    file.write(json.dumps(to_line(attempt, config, is_plain=rng.random() < PLAIN_SHARE)) + "\n")
                    kept += 1
    print(json.dumps({"command": sys.argv, "commit": find_commit(), "questions": args.n, "kept": kept}))


def to_line(attempt: Attempt, config: ConductorTraining, *, is_plain: bool) -> dict[str, str]:
    question = attempt.question
    if is_plain:
        plain = msgspec.structs.replace(question.task, prompt=drop_format(question.task.prompt))
        question = Question(task=plain, workers=question.workers)
    messages = render_question(question, config.conductor, effort=config.effort)
    return {"prompt": render_bare(messages), "completion": attempt.texts[0].text}


if __name__ == "__main__":
    main()
