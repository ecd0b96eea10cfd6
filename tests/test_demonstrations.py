"""What a conductor is shown before reward: valid workflows, every kind, workers by lot."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from torafugu.envs.composed import composed_tasks, find_workflow
from torafugu.errors import ConfigError
from torafugu.grade.task import Task
from torafugu.orchestrate.conductor import ConductorConfig
from torafugu.orchestrate.plan import PlanFormat, Workflow, parse_workflow
from torafugu.pool.skills.composed import COMPOSED
from torafugu.pool.skills.plain import drop_format
from torafugu.train.conductor_config import ConductorTraining, WarmStartConfig
from torafugu.train.conductor_rollout import CONDUCTOR, Question
from torafugu.train.demonstrations import make_demonstration, render_question, show_plainly
from torafugu.train.questions import draw_question
from torafugu.train.warm_start import Pair, draw_pairs, read_pairs, scale_lr, write_pairs

HOME = ("exact-math", "text-ops", "facts", "generalist", "hasty")
BRIEF = ConductorTraining(warm_start=WarmStartConfig(steps=1)).conductor
NUMBERS = ConductorConfig(worker=CONDUCTOR, prompt="full", order="models_first")
TASKS = composed_tasks(n=20 * len(COMPOSED), seed=3)


def parse(text: str, question: Question, config: ConductorConfig) -> Workflow:
    """As the policy that serves reads it."""
    return parse_workflow(
        text,
        PlanFormat(
            workers=question.workers if config.names else len(question.workers), access="position", order=config.order
        ),
    )


def wording_of(task: Task) -> tuple[str, int]:
    """Which of its family's wordings: the one whose fixed words are all in it."""
    (found,) = [
        i
        for i, wording in enumerate(COMPOSED[task.family].wordings)
        if all(piece in task.prompt for piece in _fixed_words(wording))
    ]
    return task.family, found


def _fixed_words(wording: str) -> list[str]:
    return [piece.partition("}")[2] if i else piece for i, piece in enumerate(wording.split("{"))]


@pytest.mark.parametrize("config", [BRIEF, NUMBERS], ids=["brief", "full"])
def test_all_are_valid(config: ConductorConfig) -> None:
    """Of every family and wording each demonstration is a workflow in the format that is served, split as the gold one
    is, on workers that were offered."""
    rng = np.random.default_rng(0)
    seen, marked = set(), 0
    for task in TASKS:
        question = draw_question(task, HOME, rng, sizes=(1, 3, 5))
        shown = make_demonstration(show_plainly(question, rng), config, rng)
        workflow, gold = parse(shown.text, question, config), find_workflow(task.prompt)
        assert gold is not None
        assert tuple(step.subtask for step in workflow.steps) == gold.subtasks
        assert tuple(step.access for step in workflow.steps) == gold.access
        assert all(0 <= step.worker < len(question.workers) for step in workflow.steps)
        assert drop_format(task.prompt) in shown.messages[-1].text
        marked += task.prompt in shown.messages[-1].text
        seen.add(wording_of(task))
    assert 0.7 < marked / len(TASKS) < 0.9  # the others do not say how the answer is to be marked, as people do not
    assert seen == {(family, i) for family, composed in COMPOSED.items() for i in range(len(composed.wordings))}


def test_own_questions_are_shown_as_they_are() -> None:
    """Only of generated questions the sentence on the form of the answer is left out, and the lines made one: in a
    task of one's own both may matter."""
    own = Task(id="own-1", family="f", category="", dataset="", prompt="", gold="", split="train")
    for prompt, shown in (
        ("Sort:\n\tb\n\ta\n\nPut it between <answer> and </answer>.", 1),
        (TASKS[0].prompt, 2),
    ):
        question, rng = (
            Question(task=msgspec.structs.replace(own, prompt=prompt), workers=HOME),
            np.random.default_rng(0),
        )
        assert len({show_plainly(question, rng).task.prompt for _ in range(100)}) == shown


def test_no_worker_is_favoured() -> None:
    """Whoever would be right, each worker that is offered is shown as often in each place, with no regard to skill."""
    rng = np.random.default_rng(1)
    by_place, by_name, by_skill = Counter[int](), Counter[str](), Counter[bool]()
    for task in TASKS * 4:
        question = draw_question(task, HOME, rng, sizes=(5,))
        gold = find_workflow(task.prompt)
        assert gold is not None
        workflow = parse(make_demonstration(question, BRIEF, rng).text, question, BRIEF)
        for step, right in zip(workflow.steps, gold.workers, strict=True):
            by_place[step.worker] += 1
            by_name[question.workers[step.worker]] += 1
            by_skill[question.workers[step.worker] == right] += 1
    total = by_place.total()
    assert total > 2000
    for counts in (by_place, by_name):
        assert len(counts) == 5
        assert all(abs(count / total - 0.2) < 0.035 for count in counts.values())  # four standard errors
    assert abs(by_skill[True] / total - 0.2) < 0.035


@pytest.mark.parametrize("offered", [HOME, HOME[:2]])
def test_shares(offered: tuple[str, ...]) -> None:
    """The config's share of steps goes to who can do them, another one to a favourite; where one is not offered,
    and for all other steps, it is by lot."""
    rng, counts = np.random.default_rng(5), Counter[str]()
    for task in TASKS * 6:
        question, gold = Question(task=task, workers=offered), find_workflow(task.prompt)
        assert gold is not None
        shown = make_demonstration(question, BRIEF, rng, gold_share=0.3, favourites={"hasty": 0.4})
        for step, right in zip(parse(shown.text, question, BRIEF).steps, gold.workers, strict=True):
            if right == "exact-math":
                counts[offered[step.worker]] += 1
    by_lot = 0.3 if len(offered) == 5 else 0.7
    shares = {worker: by_lot / len(offered) for worker in offered}
    shares["exact-math"] += 0.3
    if "hasty" in offered:
        shares["hasty"] += 0.4
    assert counts.total() > 1000
    assert {worker: counts[worker] / counts.total() for worker in offered} == pytest.approx(shares, abs=0.05)


def test_pools_and_orders_vary() -> None:
    """Questions are offered k of n workers, each once; all sizes, all workers and all first places are as likely."""
    rng = np.random.default_rng(2)
    offered = [draw_question(TASKS[0], HOME, rng, sizes=(2, 3, 5)).workers for _ in range(1500)]
    assert all(len(set(workers)) == len(workers) and set(workers) <= set(HOME) for workers in offered)
    sizes, first = Counter(map(len, offered)), Counter(workers[0] for workers in offered)
    assert sorted(sizes) == [2, 3, 5]
    assert all(abs(count / 1500 - 1 / 3) < 0.05 for count in sizes.values())
    assert sorted(first) == sorted(HOME)
    assert all(abs(count / 1500 - 0.2) < 0.042 for count in first.values())
    assert len({workers for workers in offered if len(workers) == 3}) == 60  # 5 * 4 * 3


def test_one_seed_one_demonstration() -> None:
    """Draws come from the generator alone."""
    made = []
    for seed in (0, 0, 1):
        rng = np.random.default_rng(seed)
        made.append([make_demonstration(draw_question(t, HOME, rng, sizes=(3, 5)), BRIEF, rng) for t in TASKS[:20]])
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_asked_as_when_served() -> None:
    """What it reads is the policy's own prompt: the workers in the question's order, and the steps of the effort."""
    question = Question(task=TASKS[0], workers=("facts", "hasty"))
    for effort, steps in (("high", 5), ("low", 3)):
        (message,) = render_question(question, BRIEF, effort=effort)
        assert message.text == f"models: facts, hasty\nsteps: {steps}\n{TASKS[0].prompt}"


def test_nobody_knows_a_workflow() -> None:
    """Tasks of one's own have no demonstration: they are refused, by id."""
    task = Task(id="own-1", family="f", category="", dataset="", prompt="Why?", gold="", split="train")
    with pytest.raises(ConfigError, match="'own-1': no workflow is known"):
        make_demonstration(Question(task=task, workers=HOME), BRIEF, np.random.default_rng(0))


@pytest.mark.parametrize("sizes", [(0,), (6,)])
def test_sizes_of_pools(sizes: tuple[int, ...]) -> None:
    """No pool is smaller than one worker or larger than all."""
    with pytest.raises(ConfigError, match="expected 1 to 5"):
        draw_question(TASKS[0], HOME, np.random.default_rng(0), sizes=sizes)


# --- pairs of texts ---


def test_pairs_end_as_the_model_reads_them() -> None:
    """A prompt ends with a line break, as in the format `bare`; the reply is the workflow alone."""
    question = Question(task=TASKS[0], workers=HOME)
    (pair,) = draw_pairs([question], BRIEF, np.random.default_rng(0), effort="high", warm=WarmStartConfig())
    assert pair.prompt == f"models: {', '.join(HOME)}\nsteps: 5\n{TASKS[0].prompt}\n"
    assert parse(pair.reply, question, BRIEF)
    assert any(f'model_id: ["{worker}"' in pair.reply for worker in HOME)  # by name, as they are offered


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_own_pairs(tmp_path: Path) -> None:
    """One's own demonstrations are read as they are; blank lines are none."""
    path = write_lines(
        tmp_path / "d.jsonl", {"prompt": "p\n", "completion": " c"}, "", {"prompt": "", "completion": "é"}
    )
    assert read_pairs(path) == [Pair(prompt="p\n", reply=" c"), Pair(prompt="", reply="é")]


def test_written_pairs(tmp_path: Path) -> None:
    """What is written is read as it was, and nothing else is left beside it."""
    pairs = [Pair(prompt="a\nb\n", reply='["é", \u2028]'), Pair(prompt="", reply=" ")]
    write_pairs(tmp_path / "d.jsonl", pairs)
    assert read_pairs(tmp_path / "d.jsonl") == pairs
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.parametrize(
    "line", ["{", {"prompt": "p"}, {"prompt": "p", "completion": 1}, {"prompt": "", "completion": "", "x": 1}]
)
def test_malformed_pairs(line: Any, tmp_path: Path) -> None:
    """A line that is none is refused with its number."""
    with pytest.raises(ConfigError, match=r"d\.jsonl:2: .*expected"):
        read_pairs(write_lines(tmp_path / "d.jsonl", {"prompt": "p", "completion": "c"}, line))


def test_no_pairs(tmp_path: Path) -> None:
    """A file that is missing or empty is refused."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no demonstrations in it"):
        read_pairs(write_lines(tmp_path / "d.jsonl"))


def test_schedule() -> None:
    """The learning rate rises in a line, then falls along half a cosine to a twentieth."""
    assert [scale_lr(step, 100, 10) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert scale_lr(55, 100, 10) == pytest.approx(0.05 + 0.95 * 0.5)
    assert scale_lr(100, 100, 10) == pytest.approx(0.05)
    assert scale_lr(1, 10, 0) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi / 10)))
