"""`fugu train demonstrations`: what a trained conductor shows others, what is left out, and what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from commands import Fugu, Said
from llamas import random_lora, random_weights, tiny, write_adapter, write_folder
from torafugu.conductors import CARD, HOME_CONDUCTOR, find_folder, write_conductor_card
from torafugu.envs.composed import composed_tasks
from torafugu.grade.task import Task
from torafugu.local.generator import make_generator
from torafugu.local.llama_build import build_folder, read_source
from torafugu.orchestrate.conductor import ConductorConfig
from torafugu.pool.backend import Query
from torafugu.pool.home import home_pool_path
from torafugu.pool.skills.plain import drop_format
from torafugu.pool.spec import WorkerSpec, read_pool
from torafugu.train import teach
from torafugu.train.conductor_config import ConductorTraining
from torafugu.train.conductor_rollout import Question
from torafugu.train.conductor_score import Text, score_texts
from torafugu.train.demonstrations import render_question
from torafugu.train.teach import Teacher, draw_questions
from torafugu.train.warm_start import Pair, read_pairs
from torafugu.types import Sampling

POOL = read_pool(home_pool_path())
HOME = {worker.id: worker.model for worker in POOL.worker}
TASKS = [task for task in composed_tasks(n=300, seed=5) if task.split == "train"]
BRIEF = ConductorConfig(
    worker="conductor", prompt="brief", names=True, attempts=1, on_error="fail", recursion=False, max_output_tokens=24
)
"""As conductors are trained."""
SILENT = """
[[worker]]
id = "facts"
dialect = "scripted"
model = "facts"
prices = { input = 0, output = 0 }
extra_body = { text = "" }
"""
PAID = """
[[worker]]
id = "facts"
dialect = "openai"
model = "facts"
base_url = "http://127.0.0.1:9/v1"
prices = { input = 1, output = 2 }
"""
NEWCOMER = '[[worker]]\nid = "newcomer"\ndialect = "home"\nmodel = "hasty"\nprices = { input = 0, output = 0 }\n'
TEACH = "train demonstrations --tasks own.jsonl --out d.jsonl"


@pytest.fixture
def fugu(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fugu:
    monkeypatch.chdir(tmp_path)
    write_tasks(Path("own.jsonl"), TASKS)
    return Fugu(capsys)


def write_tasks(path: Path, tasks: list[Task]) -> None:
    """With the graders of generated tasks, as lines of one's own."""
    lines = []
    for task in tasks:
        meta = {key: value for key, value in task.meta.items() if key != "grader"}
        row = {"id": task.id, "prompt": task.prompt, "gold": task.gold, "split": task.split, "family": task.family}
        lines.append(json.dumps({**row, "grader": task.meta["grader"], "meta": meta}))
    path.write_text("".join(f"{line}\n" for line in lines))


def swap_facts(table: str) -> str:
    """The home pool with another worker behind the same name and model."""
    before, _, rest = home_pool_path().read_text().partition('[[worker]]\nid = "facts"')
    return before + "[[worker]]" + rest.partition("[[worker]]")[2] + table


def read_question(pair: Pair) -> Question:
    """Whom a demonstration offers, and for which task."""
    models, _, text = pair.prompt.split("\n", 2)
    (task,) = [task for task in TASKS if text.rstrip("\n") in (task.prompt, drop_format(task.prompt))]
    return Question(task=task, workers=tuple(models.removeprefix("models: ").split(", ")))


# --- what is kept ---


def test_only_what_came_out_right_is_kept(fugu: Fugu) -> None:
    """Each demonstration, executed again, leads to a right answer; what is not there is told, by what was wrong."""
    said = fugu(f"{TEACH} --n 60")
    assert said.status == 0, said.err
    pairs = read_pairs(Path("d.jsonl"))
    assert said.out == f"d.jsonl: {len(pairs)} demonstrations, of 60 questions\n"
    (told,) = [line for line in said.err.splitlines() if line.startswith("not kept: ")]
    wrong, invalid = (int(word) for word in told.split() if word.isdigit())
    assert (len(pairs) + wrong + invalid, 30 < len(pairs) < 60) == (60, True)
    assert "not scored" not in said.err
    questions = [read_question(pair) for pair in pairs]
    texts = [Text(question=q, text=p.reply, seed=i) for i, (q, p) in enumerate(zip(questions, pairs, strict=True))]
    config = ConductorTraining(model="-", conductor=BRIEF)
    assert {attempt.episode.score for attempt in score_texts(texts, POOL, config)} == {1.0}


def test_what_a_pupil_reads(fugu: Fugu) -> None:
    """Parts of half the pool or more in random order, in the conductor's own prompt; a fifth of the questions without
    the sentence on the form of the answer."""
    assert fugu(f"{TEACH} --n 150").status == 0
    pairs = read_pairs(Path("d.jsonl"))
    questions = [read_question(pair) for pair in pairs]
    assert {len(question.workers) for question in questions} == {3, 4, 5}
    assert {question.workers[0] for question in questions} == set(HOME)
    plain = 0
    for pair, question in zip(pairs, questions, strict=True):
        (message,) = render_question(question, BRIEF)
        is_plain = pair.prompt != f"{message.text}\n"
        assert is_plain == ("<answer>" not in pair.prompt)
        plain += is_plain
    assert 0.1 < plain / len(pairs) < 0.3


def test_sizes_of_parts(fugu: Fugu) -> None:
    """Those that are asked for, as far as the pool has workers."""
    assert fugu(f"{TEACH} --n 40 --pool-sizes 2 4").status == 0
    assert {len(read_question(pair).workers) for pair in read_pairs(Path("d.jsonl"))} == {2, 4}
    said = fugu(f"{TEACH} --n 40 --pool-sizes 6 --force")
    assert said.status == 2
    assert "the pool has 5 workers" in said.err


def test_one_seed_one_file(fugu: Fugu) -> None:
    """The same command writes the same bytes; another seed draws others."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert fugu(f"train demonstrations --tasks own.jsonl --n 30 --seed {seed} --out new/{name}").status == 0
    assert Path("new/a").read_bytes() == Path("new/b").read_bytes()
    assert Path("new/a").read_bytes() != Path("new/c").read_bytes()
    assert {path.name for path in Path("new").iterdir()} == {"a", "b", "c"}


@pytest.fixture
def cut(fugu: Fugu, monkeypatch: pytest.MonkeyPatch) -> Said:
    """A run of 30 questions, ten at a time, interrupted from the keyboard before the third ten."""
    monkeypatch.setattr(teach, "_BATCH", 10)
    play, turns = Teacher.play, []

    def interrupt(self: Teacher, questions: Any) -> Any:
        turns.append(len(questions))
        if len(turns) == 3:
            raise KeyboardInterrupt
        return play(self, questions)

    monkeypatch.setattr(Teacher, "play", interrupt)
    return fugu(f"{TEACH} --n 30")


def test_an_interrupted_run_goes_on(cut: Said, fugu: Fugu) -> None:
    """What was asked is not asked again, but for half a line; the file is that of a run that was never interrupted."""
    assert cut.status == 130
    assert "d.jsonl.asked: 20 of 30 questions are done: the same command goes on" in cut.err
    assert not Path("d.jsonl").exists()
    kept = Path("d.jsonl.asked").read_bytes()
    Path("d.jsonl.asked").write_bytes(kept[:-7])
    said = fugu(f"{TEACH} --n 30")
    assert said.status == 0, said.err
    assert "d.jsonl.asked: 19 of 30 questions are done" in said.err
    assert "demonstrations: 11 done" in said.err
    assert not Path("d.jsonl.asked").exists()
    assert fugu("train demonstrations --tasks own.jsonl --n 30 --out whole.jsonl").status == 0
    assert Path("d.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_who_could_not_be_scored_is_asked_again(fugu: Fugu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a provider let down stays to be asked, though the rest is written; in the end the file is the same."""
    play = Teacher.play

    def without_credit(self: Teacher, questions: Any) -> Any:
        lost = {"score": None, "fault": "worker", "code": "unavailable"}
        played = play(self, questions)
        return [*played[:25], *(replace(a, episode=msgspec.structs.replace(a.episode, **lost)) for a in played[25:])]

    with monkeypatch.context() as outage:
        outage.setattr(Teacher, "play", without_credit)
        said = fugu(f"{TEACH} --n 30")
    assert said.status == 0, said.err
    assert "not scored: worker:unavailable (5 times)" in said.err
    assert "d.jsonl.asked: 25 of 30 questions are done: the same command with --force asks the rest again" in said.err
    said = fugu(f"{TEACH} --n 30 --force")
    assert (said.status, "demonstrations: 5 done" in said.err) == (0, True), said.err
    assert not Path("d.jsonl.asked").exists()
    assert fugu("train demonstrations --tasks own.jsonl --n 30 --out whole.jsonl").status == 0
    assert Path("d.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda raw: b"my notes", "damaged: "),
        (lambda raw: b"my notes\nand more", "damaged: "),
        (lambda raw: raw.replace(b'"question"', b'"questions"', 1), "damaged: Object"),
        (lambda raw: raw.replace(b'"question":3', b'"question":30', 1), "damaged: there are 30 questions"),
        (lambda raw: raw.replace(b"right", b"r\xffght", 1), "damaged: "),
    ],
)
def test_what_is_no_ledger_stays(spoil: Any, told: str, cut: Said, fugu: Fugu) -> None:
    """A damaged file, and one that is not ours, are refused and left as they are."""
    path = Path("d.jsonl.asked")
    path.write_bytes(before := spoil(path.read_bytes()))
    said = fugu(f"{TEACH} --n 30 --force")
    assert (said.status, told in said.err, "remove the file to begin anew" in said.err) == (2, True, True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", ["--seed 1", "--pool-sizes 3", "--pool pool.toml", "--teacher wild"])
def test_another_run_is_not_mixed_in(other: str, cut: Said, fugu: Fugu) -> None:
    """Rows that come of other questions, another pool or another teacher are refused, and stay."""
    write_teacher(Path("wild"))
    Path("pool.toml").write_text(swap_facts(SILENT))
    before = Path("d.jsonl.asked").read_bytes()
    said = fugu(f"{TEACH} --n 30 {other} --force")
    assert (said.status, "of a run with another teacher, pool, tasks or options" in said.err) == (2, True), said.err
    assert Path("d.jsonl.asked").read_bytes() == before


def test_the_same_teacher_elsewhere(cut: Said, fugu: Fugu) -> None:
    """Another path to the same folder, and other limits for the workers, are the same run."""
    shutil.copytree(find_folder(HOME_CONDUCTOR, Path()), "copied")
    Path("pool.toml").write_text(
        home_pool_path().read_text().replace("[[worker]]", "[[worker]]\ntimeouts = { total_s = 99 }", 1)
    )
    said = fugu(f"{TEACH} --n 30 --teacher copied --pool pool.toml")
    assert said.status == 0, said.err
    assert "demonstrations: 10 done" in said.err


def test_by_default_and_without_torch(tmp_path: Path) -> None:
    """By default the conductor that ships teaches on generated tasks, in an installation without torch, transformers
    and onnx."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'onnx', 'peft', 'gguf'));"
        "from torafugu.cli import main;"
        "sys.exit(main(['train', 'demonstrations', '--n', '8', '--out', 'd.jsonl']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 1 <= len(read_pairs(tmp_path / "d.jsonl")) <= 8


# --- what is not ---


def test_what_nobody_could_score_is_told_apart(fugu: Fugu) -> None:
    """An episode that a worker let down is neither a demonstration nor wrong: nobody takes the lost step over, and it
    is counted by what failed."""
    assert fugu(f"{TEACH} --n 60").status == 0
    before = read_pairs(Path("d.jsonl"))
    Path("pool.toml").write_text(swap_facts(SILENT))
    said = fugu(f"{TEACH} --n 60 --pool pool.toml --force")
    assert said.status == 0, said.err
    after = read_pairs(Path("d.jsonl"))
    (told,) = [line for line in said.err.splitlines() if line.startswith("not scored: ")]
    assert told.startswith("not scored: worker:empty (")
    assert 5 < len(after) < len(before)
    called = [pair.reply.partition("model_id: ")[2].partition("\n")[0] for pair in after]
    assert not any('"facts"' in workers for workers in called)


def test_nothing_was_right(fugu: Fugu, tmp_path: Path) -> None:
    """Without a right answer no file is written, and the command has failed."""
    write_teacher(tmp_path / "wild")
    said = fugu(f"{TEACH} --n 5 --teacher wild")
    assert said.status == 1
    assert "not kept: 0 whose answer was wrong, 5 that were no workflow" in said.err
    assert "d.jsonl: not written: none of 5 workflows led to a right answer" in said.err
    assert not Path("d.jsonl").exists()


def test_files_that_are_there_stay(fugu: Fugu) -> None:
    """A file is overwritten when that is asked for; a folder, and a path below a file, are refused at once."""
    Path("d.jsonl").write_text("mine")
    said = fugu(f"{TEACH} --n 5")
    assert (said.status, said.err) == (2, "fugu: d.jsonl exists: --force overwrites it\n")
    assert Path("d.jsonl").read_text() == "mine"
    assert fugu(f"{TEACH} --n 5 --force").status == 0
    assert read_pairs(Path("d.jsonl"))
    Path("folder").mkdir()
    assert "a folder: expected the name of a file" in fugu("train demonstrations --force --out folder").err
    said = fugu("train demonstrations --out own.jsonl/d.jsonl")
    assert (said.status, said.err.startswith("fugu: own.jsonl")) == (1, True)


def test_who_never_learnt_a_worker_does_not_teach_it(fugu: Fugu) -> None:
    """A worker that the teacher was not trained for, or another model behind a known name, is an error that names it;
    one that is gone is none."""
    for pool, told in (
        (home_pool_path().read_text() + NEWCOMER, "it never learnt to call newcomer"),
        (swap_facts(SILENT.replace('model = "facts"', 'model = "better"')), "'facts' was 'facts' in training and is"),
    ):
        Path("pool.toml").write_text(pool)
        said = fugu(f"{TEACH} --n 5 --pool pool.toml")
        assert said.status == 2
        assert told in said.err
        assert "let it teach for a pool of those that it knows" in said.err
        assert not Path("d.jsonl").exists()
    Path("pool.toml").write_text(swap_facts(""))
    assert fugu(f"{TEACH} --n 20 --pool pool.toml").status == 0
    assert {len(read_question(pair).workers) for pair in read_pairs(Path("d.jsonl"))} == {2, 3, 4}


def test_nobody_is_paid_unasked(fugu: Fugu) -> None:
    """Before workers behind endpoints are called it says what that may cost, and asks or wants --yes."""
    Path("pool.toml").write_text(swap_facts(PAID))
    said = fugu(f"{TEACH} --n 10 --pool pool.toml")
    assert said.status == 2
    assert "10 episodes: about $" in said.err
    assert "every call is real" in said.err
    assert "--yes goes on without asking" in said.err
    said = fugu(f"{TEACH} --n 10 --pool pool.toml --yes")
    assert said.status == 0, said.err
    assert "\ncost " in said.err


def test_a_task_that_is_too_long_is_found_before_anybody_is_asked(fugu: Fugu) -> None:
    """What the teacher could not read is named, with how much it reads."""
    Path("own.jsonl").write_text(json.dumps({"id": "long", "prompt": "What? " * 400, "gold": "1", "split": "train"}))
    said = fugu(f"{TEACH} --n 5")
    assert said.status == 2
    assert "task 'long': " in said.err
    assert "the teacher reads 448 at most" in said.err
    assert "done" not in said.err


def test_tasks_to_learn_from_are_missing(fugu: Fugu) -> None:
    """Tasks that are measured with are not taught."""
    write_tasks(Path("own.jsonl"), [msgspec.structs.replace(task, split="test") for task in TASKS])
    said = fugu(f"{TEACH} --n 5")
    assert said.status == 2
    assert "no tasks of the split 'train'" in said.err


# --- teachers ---


def write_teacher(folder: Path) -> Path:
    """A conductor that knows the home pool, and writes whatever its random weights say."""
    config = tiny(max_positions=400)
    write_folder(folder, config, random_weights(config), format="bare")
    write_conductor_card(folder, BRIEF, HOME)
    return folder


def write_adapted(folder: Path) -> Path:
    """The same one packed, with an adapter beside it, as `fugu models add --adapter` lays it."""
    base = write_teacher(folder / "base")
    lora = random_lora({"model.layers.1.self_attn.q_proj": (64, 64)}, rank=2)
    adapter = write_adapter(folder / "adapter", lora, rank=2, alpha=4)
    build_folder(read_source(base), folder / "model", bits=8, adapter=adapter, format="bare")
    write_conductor_card(folder / "model", BRIEF, HOME)
    return folder / "model"


@pytest.mark.parametrize("kind", ["shipped", "adapted"])
def test_a_teacher_writes_what_it_would_serve(kind: str, tmp_path: Path) -> None:
    """Its texts are those of a worker that is served from the same folder, with its adapter if it has one."""
    folder = find_folder(HOME_CONDUCTOR, Path()) if kind == "shipped" else write_adapted(tmp_path)
    teacher = Teacher(folder, POOL)
    questions = draw_questions(TASKS, POOL, n=4, sizes=None, rng=np.random.default_rng(0))
    played = [attempt.texts[0].text for attempt in teacher.play(dict(enumerate(questions)))]
    assert played == asyncio.run(serve(folder, questions, teacher.config.conductor))
    assert len(set(played)) == 4


async def serve(folder: Path, questions: list[Question], config: ConductorConfig) -> list[str]:
    generator = make_generator(WorkerSpec(id="conductor", dialect="local", model=str(folder), tools=False))
    texts = []
    for question in questions:
        sampling = Sampling(max_output_tokens=config.max_output_tokens)
        query = Query(messages=render_question(question, config), sampling=sampling)
        texts.append((await generator.complete(query, None)).text)
    await generator.close()
    return texts


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / CARD).unlink(), f"no trained conductor here: {CARD} is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors: damaged"),
        (lambda f: spoil_graph(f), "an adapter is laid beside its model first (fugu models add)"),
        (lambda f: (f / "generation.json").write_text('{"format": "plain"}'), "format 'plain': expected 'bare'"),
        (lambda f: shutil.rmtree(f), "no trained conductor here"),
    ],
)
def test_who_cannot_teach(spoil: Any, told: str, fugu: Fugu, tmp_path: Path) -> None:
    """A folder without a trained conductor, a damaged one, an adapter alone, one that is asked in another form."""
    spoil(write_teacher(tmp_path / "wild"))
    said = fugu(f"{TEACH} --n 5 --teacher wild")
    assert said.status == 2
    assert told in said.err


def spoil_graph(folder: Path) -> None:
    """What a run that trained an adapter leaves: no graph, and a card that knows of none."""
    (folder / "graph.onnx").unlink()
    write_conductor_card(folder, BRIEF, HOME)
