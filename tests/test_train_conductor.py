"""The conductor's own trainer from end to end, with a llama so small that it learns in seconds, on the home pool.

It learns its few tasks by heart in the warm start, so that reward is about whom to call (small_conductor.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outcomes import Quiet
from small_conductor import CONFIG, POOL, TASKS, WORKERS, Work, rows_of, show_hasty, train, weights_of
from torafugu.cluster.fleet import Fleet, in_process
from torafugu.conductors import read_conductor_card
from torafugu.errors import ConfigError, ModelError
from torafugu.grade.task import Task
from torafugu.local.generator import make_generator
from torafugu.local.llama_build import build_folder, read_source
from torafugu.pool.backend import Query
from torafugu.pool.spec import WorkerSpec
from torafugu.train.conductor import TrainedConductor
from torafugu.train.conductor_config import ConductorTraining, GrpoConfig, WarmStartConfig
from torafugu.train.conductor_metrics import AlarmConfig
from torafugu.train.conductor_model import LoraConfig
from torafugu.train.conductor_player import Job
from torafugu.train.conductor_rollout import Attempt
from torafugu.train.demonstrations import render_question
from torafugu.types import Sampling

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the `fugu` command does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Spy:
    """A fleet in this process, and all that it was given and gave back."""

    def __init__(self) -> None:
        self.played: list[tuple[Job, list[Attempt]]] = []

    def __call__(self, make_worker: Callable[[], Work]) -> Fleet[Job, list[Attempt]]:
        def make() -> Work:
            work = make_worker()

            def watched(job: Job) -> list[Attempt]:
                attempts = work(job)
                self.played.append((job, attempts))
                return attempts

            return watched

        return in_process(make)


@dataclass(frozen=True)
class Learned:
    """A run, and what was seen of it."""

    out: Path
    trained: TrainedConductor
    spy: Spy
    report: Quiet


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder, spy, report = tmp_path_factory.mktemp("run"), Spy(), Quiet()
    trained = train(folder / "out", show_hasty(folder), report, make_fleet=spy)
    return Learned(folder / "out", trained, spy, report)


def mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


# --- it learns ---


def test_reward_rises(learned: Learned) -> None:
    """Warm-started, then trained on reward for seconds, it gets more of it on fixed tasks, because it asks workers who
    can do them: accuracy of valid workflows rises, too, not only their form."""
    before, after = learned.trained.before, learned.trained.after
    assert after["reward/mean"] > before["reward/mean"] + 0.2
    assert after["accuracy_if_valid"] > before["accuracy_if_valid"] + 0.4
    steps = rows_of(learned.out, "step")
    assert mean(steps[-5:], "reward/mean") > mean(steps[:5], "reward/mean") + 0.1
    assert mean(steps[-5:], "accuracy_if_valid") > mean(steps[:5], "accuracy_if_valid") + 0.1


def test_warm_start_teaches_the_form(learned: Learned) -> None:
    """After the demonstrations most texts are workflows, and none is cut off."""
    assert rows_of(learned.out, "warm")[-1]["loss"] < 0.3
    assert learned.trained.before["valid"] >= 0.7
    assert rows_of(learned.out, "step")[0]["valid"] >= 0.6


def test_what_a_run_leaves(learned: Learned) -> None:
    """Model, model before reward, metrics of every step and evaluation, and what it takes to repeat the run."""
    assert learned.trained.folder == learned.out / "model"
    assert (learned.trained.step, learned.trained.stopped_by) == (40, None)
    assert [row["step"] for row in rows_of(learned.out, "step")] == list(range(1, 41))
    assert [row["step"] for row in rows_of(learned.out, "held_out")] == [0, 20, 40]
    assert {row["episodes"] for row in rows_of(learned.out, "step")} == {96}
    assert learned.report.stages == [("warm start", 120), ("GRPO", 40)]
    assert learned.report.advanced == 160
    for folder in ("model", "start"):
        names = {path.name for path in (learned.out / folder).iterdir()}
        served = {"config.json", "generation.json", "graph.onnx", "model.safetensors", "tokenizer.json"}
        assert names == {*served, "conductor.json"}
    run = json.loads((learned.out / "run.json").read_text())
    assert run["config"]["grpo"]["attempts"] == 8
    assert {"command", "commit", "packages", "pool", "python", "tasks"} <= run.keys()


def test_sampler_has_the_trainers_weights(learned: Learned) -> None:
    """Log-probabilities of sampler and trainer differ by rounding only, in every step that learned."""
    drifts = [row["sampler/drift"] for row in rows_of(learned.out, "step") if "sampler/drift" in row]
    assert len(drifts) > 30
    assert max(drifts) < 1e-3


def test_served_as_evaluated(learned: Learned) -> None:
    """The folder, served as a worker, writes the texts that training evaluated last, for the prompt that the policy
    sends."""
    evaluated = [a for job, attempts in learned.spy.played[-2:] if job.temperature == 0 for a in attempts]
    assert len(evaluated) == 12
    assert write_all(learned.trained.folder, evaluated) == [attempt.texts[0].text for attempt in evaluated]


def write_all(model: Path, attempts: Sequence[Attempt]) -> list[str]:
    """What a worker that serves the folder writes for the attempts' questions."""
    spec = WorkerSpec(id="conductor", dialect="local", model=str(model), tools=False)

    async def write() -> list[str]:
        generator = make_generator(spec)
        texts = []
        for attempt in attempts:
            messages = render_question(attempt.question, CONFIG.conductor)
            query = Query(messages=messages, sampling=Sampling(max_output_tokens=64))
            texts.append((await generator.complete(query, None)).text)
        await generator.close()
        return texts

    return asyncio.run(write())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_adapter(learned: Learned, tmp_path: Path) -> None:
    """With `lora` the model stays as it is and an adapter is trained: in full precision to go on from, in half to be
    served, beside the model as `fugu models add` lays it."""
    pytest.importorskip("peft")
    spy, base = Spy(), learned.out / "start"
    grpo = replace(CONFIG.grpo, steps=12, questions=6, attempts=8, lr=1e-2, form_batch=2, eval_every=12)
    config = replace(
        CONFIG,
        model=str(base),
        lora=LoraConfig(rank=4, alpha=8),
        sampler_bits=32,
        warm_start=WarmStartConfig(),
        grpo=grpo,
    )
    trained = train(tmp_path / "out", config, make_fleet=spy)
    assert trained.after["reward/mean"] != trained.before["reward/mean"]
    for name, dtype in (("start", "F32"), ("model", "F16")):
        folder = tmp_path / "out" / name
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "conductor.json",
            "generation.json",
        }
        content = (folder / "adapter_model.safetensors").read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} == {dtype}
        assert read_conductor_card(folder).conductor["prompt"] == "brief"
    build_folder(read_source(base), tmp_path / "served", bits=32, adapter=trained.folder)
    evaluated = [a for job, attempts in spy.played[-2:] if job.temperature == 0 for a in attempts]
    assert write_all(tmp_path / "served", evaluated) == [attempt.texts[0].text for attempt in evaluated]
    again = replace(config, adapter=str(trained.folder), grpo=replace(grpo, steps=0))
    assert train(tmp_path / "again", again).before["reward/mean"] == trained.after["reward/mean"]


# --- it goes on ---


class Ended(Exception):
    """As if the machine had gone down."""


class Ending(Quiet):
    """Ends the run after so many steps of a stage."""

    def __init__(self, stage: str, steps: int) -> None:
        super().__init__()
        self._stage, self._left = stage, steps

    def advance(self, units: int) -> None:
        super().advance(units)
        if self.stages[-1][0] == self._stage:
            self._left -= units
            if self._left <= 0:
                raise Ended


@pytest.fixture(scope="module")
def short(learned: Learned) -> ConductorTraining:
    """A few steps of both stages, from a model that knows the form."""
    return replace(
        CONFIG,
        model=str(learned.out / "start"),
        warm_start=WarmStartConfig(steps=5, batch=4, lr=1e-4, warmup=2, save_every=2),
        grpo=replace(
            CONFIG.grpo,
            steps=6,
            questions=3,
            attempts=6,
            eval_every=2,
            save_every=3,
            warmup=0.5,
            updates=2,
            form_batch=2,
            focus=0.5,
        ),
        weights={"day_alone": 2.0},
        validate=3,
        pool_sizes=(4, 5),
    )


@pytest.fixture(scope="module")
def whole(short: ConductorTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never ended."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(out, short)
    return out


@pytest.mark.parametrize(
    "ends",
    [
        [("warm start", 1)],  # nothing is saved yet
        [("warm start", 3)],
        [("GRPO", 2)],  # from the end of the warm start
        [("GRPO", 5)],
        [("warm start", 4), ("GRPO", 1), ("GRPO", 4), ("GRPO", 6)],
    ],
)
def test_ended_and_resumed(ends: list[tuple[str, int]], whole: Path, short: ConductorTraining, tmp_path: Path) -> None:
    """Wherever it is ended, a run that goes on has the metrics and the weights of one that was never ended."""
    for stage, steps in ends:
        with pytest.raises(Ended):
            train(tmp_path, short, Ending(stage, steps))
    train(tmp_path, short)
    assert rows_of(tmp_path) == rows_of(whole)
    assert weights_of(tmp_path) == weights_of(whole)
    assert weights_of(tmp_path) != (tmp_path / "start" / "model.safetensors").read_bytes()


def test_run_that_is_over(whole: Path, short: ConductorTraining) -> None:
    """Started again, a run that is over changes nothing and tells the same."""
    rows, weights = rows_of(whole), weights_of(whole)
    again = train(whole, short)
    assert (again.step, again.after["step"], again.before["step"]) == (6, 6, 0)
    assert (rows_of(whole), weights_of(whole)) == (rows, weights)


def test_other_seed(whole: Path, short: ConductorTraining, tmp_path: Path) -> None:
    """Another seed is another run."""
    train(tmp_path, replace(short, seed=1))
    assert rows_of(tmp_path, "step") != rows_of(whole, "step")


def test_settings_changed(whole: Path, short: ConductorTraining) -> None:
    """A run does not go on with other settings or other tasks; the error names them, and its files stay."""
    rows = rows_of(whole)
    with pytest.raises(ConfigError, match=r"grpo\.lr: 0\.001 in the checkpoint, 0\.5 now"):
        train(whole, replace(short, grpo=replace(short.grpo, lr=0.5)))
    with pytest.raises(ConfigError, match="tasks: "):
        train(whole, short, tasks=TASKS[:-2])
    assert rows_of(whole) == rows


# --- it stops, it refuses ---


def test_alarm_stops(short: ConductorTraining, tmp_path: Path) -> None:
    """When an alarm is raised the run ends early and says why; its model is written, and it stays ended."""
    alarms = AlarmConfig(patience=2, valid_below=None, one_step_above=0.9)
    config = replace(short, warm_start=WarmStartConfig(), alarms=alarms)
    for _ in range(2):
        stopped = train(tmp_path, config)
        assert stopped.step == 2
        assert stopped.stopped_by is not None
        assert stopped.stopped_by.startswith("steps/one 1 for 2 steps")
        assert [row["alarm"] for row in rows_of(tmp_path, "alarm")] == [stopped.stopped_by]
        assert stopped.after["step"] == 2
        assert (tmp_path / "model" / "graph.onnx").exists()
        assert len(rows_of(tmp_path, "step")) == 2


def test_all_questions_have_their_turn(short: ConductorTraining, tmp_path: Path) -> None:
    """Every step has all families, held-out numbers are of the whole pool in its own order, and jobs bring the weights
    of their step."""
    spy = Spy()
    grpo = replace(short.grpo, steps=2, questions_per_job=2, focus=0.0)
    config = replace(short, warm_start=WarmStartConfig(), weights={}, grpo=grpo)
    train(tmp_path, config, make_fleet=spy)
    sampled = [(job, attempts) for job, attempts in spy.played if job.temperature == 1]
    judged = [(job, attempts) for job, attempts in spy.played if job.temperature == 0]
    assert [len(job.rollouts) for job, _ in sampled] == [2, 1, 2, 1]
    for first in (0, 2):
        step = [a for _, attempts in sampled[first : first + 2] for a in attempts]
        assert {a.question.task.family for a in step} == {"sum_alone", "letters_alone", "day_alone"}
        assert {len(a.question.workers) for a in step} <= {4, 5}
    assert {a.question.workers for _, attempts in judged for a in attempts} == {tuple(w.id for w in POOL.worker)}
    name = "model.embed_tokens.weight"
    same = [np.array_equal(sampled[0][0].weights[name], job.weights[name]) for job, _ in sampled]
    assert same == [True, True, False, False]


def test_settling(short: ConductorTraining, tmp_path: Path) -> None:
    """The first steps have the whole pool in its own order and one round; those after have parts of it, and a share of
    their questions as many rounds as the effort allows."""
    spy = Spy()
    config = replace(
        short,
        effort="xhigh",
        conductor=replace(short.conductor, again=1),
        warm_start=WarmStartConfig(),
        grpo=replace(short.grpo, steps=2, settle=1, rounds=1 / 3, questions_per_job=100),
    )
    train(tmp_path, config, make_fleet=spy)
    first, second, third = [(job, attempts) for job, attempts in spy.played if job.temperature == 1]
    assert [(job.rounds, len(job.rollouts)) for job, _ in (first, second, third)] == [(1, 3), (None, 1), (1, 2)]
    assert {len(attempt.texts) for _, attempts in (first, third) for attempt in attempts} == {1}
    assert {attempt.question.workers for attempt in first[1]} == {WORKERS}
    assert len({attempt.question.workers for attempt in (*second[1], *third[1])}) > 1


def test_weights_of_families(short: ConductorTraining, tmp_path: Path) -> None:
    """A family that weighs nearly all is nearly all that is drawn; what is measured has all families."""
    spy = Spy()
    grpo = replace(short.grpo, steps=2, focus=0.0)
    config = replace(short, warm_start=WarmStartConfig(), weights={"day_alone": 1e9}, grpo=grpo)
    train(tmp_path, config, make_fleet=spy)
    drawn = {a.question.task.family for job, attempts in spy.played if job.temperature == 1 for a in attempts}
    judged = {a.question.task.family for job, attempts in spy.played if job.temperature == 0 for a in attempts}
    assert (drawn, len(judged)) == ({"day_alone"}, 3)


def test_demonstrations_that_cannot_be_made(short: ConductorTraining, tmp_path: Path) -> None:
    """Tasks without a known workflow, and demonstrations that name nobody, are refused before anybody is asked."""
    unknown = [msgspec.structs.replace(task, prompt="Who was it?") for task in TASKS]
    config = replace(short, warm_start=WarmStartConfig())
    with pytest.raises(ConfigError, match=r"no workflow is known .* grpo\.form_batch to 0"):
        train(tmp_path / "tasks", config, tasks=unknown)
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "completion": "subtasks: [] model_id = [0]"}\n')
    warm = replace(config.warm_start, demonstrations=tmp_path / "own.jsonl")
    with pytest.raises(ConfigError, match="demonstration 1: nobody is named in it"):
        train(tmp_path / "own", replace(config, warm_start=warm), tasks=unknown)


def test_own_demonstrations(tmp_path: Path) -> None:
    """With a file of one's own pairs the warm start learns those, of tasks that no workflow is known for."""
    task = {"family": "own", "category": "", "dataset": "own", "gold": "4", "meta": {"grader": "exact"}}
    tasks = [Task(id=split, prompt="2 + 2?", split=split, **task) for split in ("train", "validation")]
    reply = 'subtasks: ["Calculate 2 + 2."]\nmodel_id: ["exact-math"]\naccess_list: [[]]'
    prompt = f"models: {', '.join(worker.id for worker in POOL.worker)}\nsteps: 5\n2 + 2?\n"
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": prompt, "completion": reply}) + "\n")
    config = replace(
        CONFIG,
        size=replace(CONFIG.size, vocabulary=300, hidden=32, heads=1, layers=1),
        warm_start=replace(CONFIG.warm_start, steps=40, batch=2, demonstrations=tmp_path / "own.jsonl"),
        grpo=replace(CONFIG.grpo, steps=0),
    )
    trained = train(tmp_path / "out", config, tasks=tasks)
    assert (trained.step, trained.after["reward/mean"]) == (0, 1)


def test_diverged(short: ConductorTraining, tmp_path: Path) -> None:
    """When its scores are no numbers any more, the run ends with an error that says so."""
    config = replace(short, warm_start=WarmStartConfig(steps=2, batch=2, lr=1e30, warmup=0))
    with pytest.raises(ModelError, match="not numbers"):
        train(tmp_path, config)


def test_refusals(short: ConductorTraining, tmp_path: Path) -> None:
    """No tasks to learn from, none to be measured with, more workers than there are, a folder of something else."""
    with pytest.raises(ConfigError, match="no tasks of the split 'train'"):
        train(tmp_path / "out", short, tasks=[task for task in TASKS if task.split == "validation"])
    with pytest.raises(ConfigError, match="no tasks of the split 'validation'"):
        train(tmp_path / "out", short, tasks=[task for task in TASKS if task.split == "train"])
    with pytest.raises(ConfigError, match="the pool has 5 workers"):
        train(tmp_path / "out", replace(short, pool_sizes=(6,)))
    (tmp_path / "taxes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no run of ours"):
        train(tmp_path, short)
    assert [path.name for path in tmp_path.iterdir()] == ["taxes.txt"]


AGAIN = replace(CONFIG.conductor, again=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"effort": "huge"}, "effort"),
        ({"model": None, "warm_start": WarmStartConfig()}, "made from nothing"),
        ({"pool_sizes": ()}, "pool_sizes"),
        ({"pool_sizes": (0,)}, "pool_sizes"),
        ({"validate": 0}, "validate"),
        ({"weights": {"day_alone": 0.0}}, "weights"),
        ({"weights": {"day_alone": float("nan")}}, "weights"),
        ({"trainer": "trl", "grpo": GrpoConfig(focus=0.5)}, "only the trainer"),
        ({"trainer": "trl", "grpo": GrpoConfig(form_batch=1)}, "only the trainer"),
        ({"trainer": "trl", "grpo": GrpoConfig(settle=1)}, "grpo.settle: only the trainer"),
        (
            {"trainer": "trl", "effort": "max", "conductor": AGAIN, "warm_start": WarmStartConfig(steps=1, rounds=0.1)},
            "warm_start.rounds: only the trainer",
        ),
        ({"trainer": "trl", "grpo": GrpoConfig(rounds=0.5)}, "grpo.rounds: only the trainer"),
        ({"warm_start": WarmStartConfig(steps=1, rounds=0.5)}, "no second rounds"),
        (
            {
                "warm_start": WarmStartConfig(steps=1, rounds=0.5),
                "effort": "xhigh",
                "conductor": replace(AGAIN, again=0, recursion=True),
            },
            "expected conductor.again",
        ),
        ({"warm_start": WarmStartConfig(steps=1, rounds=0.5), "effort": "xhigh"}, "no second rounds"),
    ],
)
def test_config_makes_sense(change: dict[str, Any], match: str) -> None:
    """Settings with which nothing could be trained are refused before anything is made."""
    with pytest.raises(ConfigError, match=match):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    "setting",
    [
        {"attempts": 1},
        {"questions": 0},
        {"lr": 0.0},
        {"temperature": 0.0},
        {"clip_low": 1.0},
        {"std_floor": -0.1},
        {"focus": 1.1},
        {"form_batch": -1},
        {"settle": -1},
        {"rounds": 1.1},
    ],
)
def test_grpo_makes_sense(setting: dict[str, Any]) -> None:
    """So are numbers that GRPO cannot work with."""
    with pytest.raises(ConfigError, match="expected"):
        GrpoConfig(**setting)
