"""Demonstrations of second rounds: the home pool works, and what follows hangs on whether its result was right."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outcomes import Quiet
from small_conductor import CONFIG, POOL, TASKS, WORKERS, rows_of, train
from torafugu.envs.composed import composed_tasks, find_workflow
from torafugu.errors import ConfigError
from torafugu.orchestrate.plan import PlanFormat, parse_workflow
from torafugu.train.conductor import train_conductor
from torafugu.train.conductor_config import WarmStartConfig
from torafugu.train.conductor_rollout import Question
from torafugu.train.demonstrations import Demonstration, write_plan
from torafugu.train.second_rounds import SecondRounds

AGAIN = replace(CONFIG.conductor, again=1)
ROUNDS = SecondRounds(pool=POOL, pool_folder=Path(), conductor=AGAIN, effort="xhigh")
QUESTIONS = [Question(task=task, workers=WORKERS) for task in composed_tasks(n=36, seed=4)]
NOWHERE = "http://127.0.0.1:9"
WARM = WarmStartConfig(steps=1, rounds=1.0)


def demonstrate(
    questions: list[Question] = QUESTIONS, *, seed: int = 0, warm: WarmStartConfig = WARM
) -> list[Demonstration]:
    return ROUNDS.demonstrate(questions, np.random.default_rng(seed), warm=warm)


def test_right_results_stand_and_wrong_ones_are_planned_again() -> None:
    """What is asked is the question, a workflow, and what it really came to. Right workers all: three empty lists. Else
    the question is divided once more."""
    made = demonstrate()
    assert len(made) == len(QUESTIONS)
    stood = 0
    for question, one in zip(QUESTIONS, made, strict=True):
        first, written, told = one.messages
        assert [message.role for message in one.messages] == ["user", "assistant", "user"]
        assert question.task.prompt in first.text
        assert told.text.startswith(f"models: {', '.join(WORKERS)}\nsteps: 5\nresult: ")
        is_right = f"<answer>{question.task.gold}</answer>" in told.text
        format = PlanFormat(workers=WORKERS, access="position", may_return=True, order=AGAIN.order)
        gold = find_workflow(question.task.prompt)
        assert gold is not None
        again = parse_workflow(one.text, format)
        assert [step.subtask for step in again.steps] == ([] if is_right else list(gold.subtasks))
        if written.text == write_plan(gold, [WORKERS.index(worker) for worker in gold.workers], question, AGAIN):
            assert is_right
        stood += is_right
    assert 12 < stood < 30


def test_one_seed_one_set() -> None:
    """The same draws give the same demonstrations, also from within a running loop, as in training."""

    async def within() -> list[Demonstration]:
        return demonstrate()

    assert demonstrate() == asyncio.run(within())
    assert demonstrate() != demonstrate(seed=1)


def test_workers_have_their_shares() -> None:
    """Who mends a result is drawn as in a first round."""
    texts = [one.text for one in demonstrate(warm=replace(WARM, favourites={"hasty": 1.0}))]
    again = [text for text in texts if not text.startswith("subtasks: []")]
    assert again
    assert all('"hasty"' in text and '"facts"' not in text for text in again)


def test_nobody_knows_a_workflow() -> None:
    """Tasks that cannot be divided are refused."""
    task = msgspec.structs.replace(QUESTIONS[0].task, prompt="Who was it?")
    with pytest.raises(ConfigError, match="no workflow is known"):
        demonstrate([Question(task=task, workers=WORKERS)])


def test_nobody_answers(tmp_path: Path) -> None:
    """Where no workflow can be executed there is nothing to be shown, and training says so."""
    gone = replace(POOL, worker=tuple(replace(worker, dialect="openai", base_url=NOWHERE) for worker in POOL.worker))
    assert replace(ROUNDS, pool=gone).demonstrate(QUESTIONS[:2], np.random.default_rng(0), warm=WARM) == []
    pytest.importorskip("torch")
    config = replace(CONFIG, conductor=AGAIN, effort="xhigh", warm_start=replace(CONFIG.warm_start, rounds=1.0))
    with pytest.raises(ConfigError, match="none of 8 first workflows could be executed"):
        train_conductor(TASKS, gone, tmp_path, config=config, report=Quiet())


def test_second_rounds_are_learnt(tmp_path: Path) -> None:
    """A model that was shown both rounds lets right results stand, and its metrics say what second rounds did."""
    pytest.importorskip("torch")
    config = replace(
        CONFIG,
        conductor=replace(AGAIN, max_output_tokens=64),
        effort="xhigh",
        warm_start=replace(CONFIG.warm_start, steps=160, rounds=0.5, gold_share=1.0),
        grpo=replace(CONFIG.grpo, steps=1, form_batch=2),
        size=replace(CONFIG.size, context=512),
    )
    trained = train(tmp_path, config)
    assert trained.after["rounds/first_accuracy"] > 0.5
    assert trained.after["rounds/kept"] > 0.9
    (step,) = rows_of(tmp_path, "step")
    assert step["loss/form"] < 1
