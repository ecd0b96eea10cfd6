"""What a conductor's text comes to, and its training with TRL."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from torafugu.cli.train_conductor import read_training
from torafugu.envs.composed import composed_tasks
from torafugu.errors import ConfigError
from torafugu.grade import Task
from torafugu.pool import read_pool
from torafugu.pool.home import home_pool_path
from torafugu.pool.spec import PoolSpec, WorkerSpec
from torafugu.train.conductor_config import ConductorTraining, GrpoConfig, TrlConfig, WarmStartConfig
from torafugu.train.conductor_metrics import AlarmConfig
from torafugu.train.conductor_model import LoraConfig
from torafugu.train.conductor_rollout import Question
from torafugu.train.conductor_score import Text, open_scorer, score_texts
from torafugu.train.conductor_trl import deepspeed_table, drop_groups, grpo_arguments, train_with_trl
from torafugu.train.demonstrations import render_question

CONFIGS = Path(__file__).parents[1] / "src" / "torafugu" / "train" / "configs"
WORKERS = ("exact-math", "text-ops", "hasty")
CONFIG = ConductorTraining(model="nowhere")
BRIEF = replace(CONFIG.conductor, max_output_tokens=96)
CONFIG = replace(CONFIG, conductor=BRIEF)
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs torafugu[train]")


def home(*workers: str) -> PoolSpec:
    spec = read_pool(home_pool_path())
    return replace(spec, worker=tuple(worker for worker in spec.worker if worker.id in (workers or WORKERS)))


def sums(n: int, *, grader: str | None = None) -> list[Task]:
    """Tasks of one step, half of them held out."""
    found = [task for task in composed_tasks(n=40 * n, seed=0) if task.meta.get("steps") == 1]
    family = [task for task in found if task.family == found[0].family][: 2 * n]
    assert len(family) == 2 * n
    splits = ["train", "validation"] * n
    tasks = [with_fields(task, split=split) for task, split in zip(family, splits, strict=True)]
    if grader is None:
        return tasks
    return [with_fields(task, meta={**task.meta, "grader": grader}) for task in tasks]


def write(task: Task, worker: int, access: str = "[]") -> str:
    return f"subtasks: {json.dumps([task.prompt])}\nmodel_id: [{worker}]\naccess_list: [{access}]"


def score(texts: Sequence[str], task: Task, spec: PoolSpec, config: ConductorTraining = CONFIG) -> list[Any]:
    question = Question(task=task, workers=tuple(worker.id for worker in spec.worker))
    given = [Text(question=question, text=text, seed=seed) for seed, text in enumerate(texts)]
    return score_texts(given, spec, config)


# --- scores


def test_texts_are_worth_what_their_workflows_come_to() -> None:
    """The right worker gets 1, a workflow that comes to a wrong answer 0.5, and what is no workflow 0."""
    (task, *_), spec = sums(1), home()
    exact, ops, hasty = range(3)
    right = {"exact-math": exact, "text-ops": ops, "hasty": hasty}
    texts = [write(task, number) for number in right.values()]
    attempts = score([*texts, "I would rather not.", write(task, 9), ""], task, spec)
    rewards = [attempt.rewards[0] for attempt in attempts]
    assert max(rewards[:3]) == 1.0
    assert min(rewards[:3]) == 0.5
    assert [(a.rewards, a.is_valid, a.episode.score, a.episode.fault) for a in attempts[3:]] == [
        ((0.0,), False, 0.0, "policy")
    ] * 3


def test_a_failing_worker_is_not_the_conductors_fault() -> None:
    """A worker that fails, and a grader that can reach no verdict, give no reward: None, not 0."""
    (task, *_) = sums(1)
    dead = WorkerSpec(id="dead", dialect="scripted", model="m", extra_body={"text": ""})  # its replies are empty
    (attempt,) = score([write(task, 0)], task, PoolSpec(worker=(dead,), max_attempts=1))
    assert (attempt.rewards, attempt.episode.score, attempt.episode.fault) == ((None,), None, "worker")
    (ungraded, *_) = sums(1, grader="nobody")
    (attempt,) = score([write(ungraded, 0)], ungraded, home())
    assert (attempt.rewards, attempt.episode.fault) == ((None,), "grader")


def test_a_text_that_was_cut_off_is_no_workflow() -> None:
    """A text that reached the limit of tokens gets 0, even if what is there could be executed."""
    (task, *_), spec = sums(1), home()
    question = Question(task=task, workers=WORKERS)
    cut = Text(question=question, text=write(task, 0), seed=0, tokens=(5, 6), has_ended=False)
    (attempt,) = score_texts([cut], spec, CONFIG)
    assert attempt.rewards == (0.0,)
    assert attempt.texts[0].tokens.tolist() == [5, 6]


def test_scores_at_the_same_time() -> None:
    """Callers share one scorer; two texts with one seed are told apart from nobody, and refused."""
    (task, *_), spec = sums(1), home()
    question = Question(task=task, workers=WORKERS)
    texts = [Text(question=question, text=write(task, number), seed=number) for number in range(3)]

    async def both() -> list[Any]:
        async with open_scorer(spec, CONFIG) as scorer:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(scorer.score([text])) for text in texts]
            with pytest.raises(ConfigError, match="expected another one for each"):
                await scorer.score([texts[0], texts[0]])
            return [task.result()[0].rewards for task in tasks]

    assert asyncio.run(both()) == [attempt.rewards for attempt in score_texts(texts, spec, CONFIG)]


@pytest.mark.parametrize(
    "changed",
    [{"attempts": 2}, {"again": 1}, {"on_error": "replan"}],
    ids=["attempts", "again", "replan"],
)
def test_one_text_is_all_there_is(changed: dict[str, Any]) -> None:
    """A conductor that might be asked a second time is refused before anything is scored."""
    config = replace(CONFIG, conductor=replace(BRIEF, **changed))
    with pytest.raises(ConfigError, match=f"conductor.{next(iter(changed))}: .* a second time"):
        score([""], sums(1)[0], home(), config)


# --- groups


def test_groups_that_could_not_be_scored_are_dropped_whole() -> None:
    """One attempt without a reward takes those of its group along; others keep theirs, and flat ones are counted."""
    rewards, counts = drop_groups([0.0, 1.0, None, 0.5, 0.5, 0.5], 2)
    assert rewards == [0.0, 1.0, None, None, 0.5, 0.5]
    assert counts == {"groups/kept": 1, "groups/flat": pytest.approx(1 / 3), "groups/dropped": 1}


# --- configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("conductor-*.toml")), ids=lambda path: path.stem)
def test_configs_that_ship_can_be_read(path: Path) -> None:
    """Every config of a conductor is read without an error, and a model of the hub is pinned to a commit."""
    config = read_training(path.stem)
    if config.trainer == "trl":
        assert config.revision is not None
        assert len(config.revision) == 40
        int(config.revision, 16)


def test_numbers_of_the_paper() -> None:
    """`conductor-7b` is the paper's run: 200 steps of 4 x 64 texts, reward 0, 0.5 or 1, no KL, AdamW at 1e-6."""
    config = read_training("conductor-7b")
    grpo, reward = config.grpo, config.reward
    assert (grpo.steps, grpo.questions * grpo.attempts, grpo.lr, grpo.schedule, grpo.warmup) == (
        200,
        256,
        1e-6,
        "cosine",
        0.03,
    )
    assert (grpo.temperature, grpo.clip_low, grpo.clip_high, grpo.max_grad_norm, grpo.save_every) == (
        1,
        0.2,
        0.2,
        1,
        20,
    )
    assert [
        reward.reward(score=score, is_valid=is_valid, calls=5, cost_usd=1.0)
        for score, is_valid in ((None, False), (0.0, True), (1.0, True))
    ] == [0.0, 0.5, 1.0]
    told = grpo_arguments(config, Path("run"))
    assert told.pop("deepspeed") == deepspeed_table(3, offload=True)
    assert told["gradient_accumulation_steps"] * told["per_device_train_batch_size"] * 2 == 256
    assert {key: told[key] for key in ("num_generations", "max_completion_length", "beta", "num_iterations")} == {
        "num_generations": 64,
        "max_completion_length": 1024,
        "beta": 0.0,
        "num_iterations": 1,
    }
    assert {key: told[key] for key in ("loss_type", "scale_rewards", "vllm_mode", "vllm_gpu_memory_utilization")} == {
        "loss_type": "bnpo",
        "scale_rewards": "group",
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.5,
    }


def test_it_offers_numbers_only() -> None:
    """`conductor-7b` and `conductor-small` tell the conductor no names, so its workers keep their numbers."""
    for name in ("conductor-7b", "conductor-small"):
        config = read_training(name)
        assert not config.conductor.names
        assert config.pool_sizes is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None, "warm_start": WarmStartConfig(steps=1)}, "model: TRL trains one that exists"),
        ({"model": "Qwen/Qwen3-0.6B"}, "expected `revision`, a commit"),
        ({"grpo": GrpoConfig(std_floor=0.1)}, "grpo.std_floor 0.1"),
        ({"grpo": GrpoConfig(updates=2)}, "grpo.updates 2"),
        ({"grpo": GrpoConfig(filter="score")}, "grpo.filter 'score'"),
        ({"grpo": GrpoConfig(steps=0)}, "grpo.steps 0"),
        ({"warm_start": WarmStartConfig(steps=5)}, "warm_start.steps 5"),
        ({"trl": TrlConfig(micro_batch=7)}, "trl.micro_batch 7"),
        ({"dtype": "bfloat16"}, "small steps vanish"),
        ({"conductor": replace(BRIEF, max_output_tokens=None)}, "max_output_tokens"),
        ({"pool_sizes": (9,)}, "the pool has 3 workers"),
        ({"trl": TrlConfig(processes=2)}, "accelerate launch --num_processes 2"),
    ],
)
@needs_trl
@pytest.mark.filterwarnings("ignore")
def test_what_trl_cannot_do_is_said(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Settings that TRL has no counterpart for are errors, before a model is loaded."""
    with pytest.raises(ConfigError, match=message):
        train_with_trl(
            [], home(), tmp_path / "run", config=replace(CONFIG, **{"model": str(tmp_path), **changed}), report=Quiet()
        )


@needs_trl
@pytest.mark.filterwarnings("ignore")
def test_trl_knows_all_that_it_is_told() -> None:
    """Every argument that any of our configs leads to is one of TRL's."""
    import trl

    known = {field.name for field in fields(trl.GRPOConfig)}
    for name in ("conductor-7b", "conductor-small"):
        assert grpo_arguments(read_training(name), Path("run")).keys() <= known


# --- training


class Quiet:
    """A `Reporter` that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, units: int) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama that writes workflows of one step for `sums`, workers by lot."""
    pytest.importorskip("trl")
    import torch

    torch.set_num_threads(1)
    from torafugu.local.llama import parse_llama_config
    from torafugu.local.llama_graph import build_open_graph
    from torafugu.train.conductor_files import write_served
    from torafugu.train.conductor_model import LlamaSize, make_model, train_tokeniser
    from torafugu.train.warm_start import draw_pairs, warm_step

    questions = [Question(task=task, workers=WORKERS) for task in sums(4)]
    rng = np.random.default_rng(0)
    warm = WarmStartConfig(steps=100, batch=8, lr=5e-3, warmup=10)
    pairs = draw_pairs(questions * 60, BRIEF, rng, effort="high", warm=warm)
    size = LlamaSize(vocabulary=400, hidden=64, intermediate=96, layers=2, heads=2)
    model = make_model(size, train_tokeniser([pair.prompt + pair.reply for pair in pairs], 400), seed=0)
    optimisers = [model.make_adamw(warm.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(1, warm.steps + 1):
        loss = warm_step(model, optimisers, [pairs[i] for i in rng.integers(len(pairs), size=8)], step, warm)
    assert loss < 0.2
    folder = tmp_path_factory.mktemp("started")
    graph = build_open_graph(parse_llama_config(model.config_json().encode(), where="test"))
    write_served(folder, model, graph)
    return folder


def short(model: Path, **grpo: Any) -> ConductorTraining:
    settings = {"steps": 2, "questions": 2, "attempts": 4, "lr": 1e-3, "eval_every": 2, "save_every": 1, **grpo}
    return ConductorTraining(
        trainer="trl",
        model=str(model),
        conductor=BRIEF,
        validate=2,
        grpo=GrpoConfig(**settings),
        trl=TrlConfig(micro_batch=4, cpu=True),
        alarms=AlarmConfig(patience=50),
    )


def train(
    config: ConductorTraining, out: Path, tasks: list[Task], reporter: Quiet | None = None, pool: PoolSpec | None = None
) -> Any:
    return train_with_trl(tasks, pool or home(), out, config=config, report=reporter or Quiet())


def rows_of(out: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def prompt_of(task: Task) -> str:
    from torafugu.train.conductor_model import render_bare

    return render_bare(render_question(Question(task=task, workers=WORKERS), BRIEF))


def write_greedily(folder: Path, task: Task) -> list[int]:
    """By the served model's runtime."""
    from torafugu.local.llama_folder import open_llama, read_generation, read_tokeniser

    assert read_generation(folder).format == "bare"
    prompt = read_tokeniser(folder).encode(prompt_of(task), add_special_tokens=False).ids
    ((sample,),) = open_llama(folder).sample(
        [prompt], per_prompt=1, temperature=0.0, max_new_tokens=20, ends=frozenset(), seeds=[[0]]
    )
    return list(map(int, sample.tokens))


def write_with_transformers(folder: Path, task: Task) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(prompt_of(task))["input_ids"]
    written = list(ids)
    for _ in range(20):
        with torch.no_grad():
            written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
    return written[len(ids) :]


@pytest.mark.filterwarnings("ignore")
def test_a_run_and_its_resumption(started: Path, tmp_path: Path) -> None:
    """A run writes the metrics of every step, evaluations and a model; ended after its first step and taken up again,
    it comes to the same weights and the same metrics. The model is served without torch as it is."""
    out, again = tmp_path / "run", tmp_path / "again"
    config, tasks = short(started), sums(4)
    trained = train(config, out, tasks)
    steps = rows_of(out, "step")
    assert [row["step"] for row in steps] == [1, 2]
    assert [row["step"] for row in rows_of(out, "held_out")] == [0, 2]
    keys = {"valid", "accuracy", "accuracy_if_valid", "steps/mean", "workers/entropy", "tokens/cut", "groups/flat"}
    assert all({*keys, "groups/dropped", "cost_usd/mean", "loss", "grad_norm", "lr"} <= row.keys() for row in steps)
    assert steps[0]["episodes"] == 8
    assert steps[0]["valid"] > 0.3
    assert trained.step == 2
    assert trained.before["episodes"] == trained.after["episodes"] == 2
    before, after = weights_of(started), weights_of(trained.folder)
    assert any(not np.array_equal(before[name], after[name]) for name in before)

    assert write_greedily(trained.folder, tasks[0]) == write_with_transformers(trained.folder, tasks[0])

    shutil.copytree(out, again)
    shutil.rmtree(again / "checkpoints" / "checkpoint-2")
    shutil.rmtree(again / "model")
    train(config, again, tasks)
    resumed = weights_of(again / "model")
    assert all(np.array_equal(after[name], resumed[name]) for name in after)
    clock = ("seconds/step", "seconds/score")
    told = [[{k: v for k, v in row.items() if k not in clock} for row in rows_of(run, "step")] for run in (out, again)]
    assert told[0] == told[1]
    with pytest.raises(ConfigError, match="another 'config'"):
        train(replace(config, seed=9), again, tasks)


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_learnt_from_what_nobody_could_score(started: Path, tmp_path: Path) -> None:
    """With tasks that no grader can judge, every group with a workflow in it is dropped, and the weights stay."""
    trained = train(short(started, steps=1), tmp_path / "run", sums(4, grader="nobody"))
    (step,) = rows_of(tmp_path / "run", "step")
    assert step["unscored"] > 0
    assert step["groups/dropped"] == 2
    before, after = weights_of(started), weights_of(trained.folder)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings("ignore")
def test_it_learns_whom_to_call(started: Path, tmp_path: Path) -> None:
    """Where one worker of three is right, whatever it is told, the conductor comes to call that one."""
    (task, *_) = sums(1)
    says = dict.fromkeys(WORKERS, "I do not know.") | {"text-ops": f"<answer>{task.gold}</answer>"}
    pool = PoolSpec(
        worker=tuple(
            WorkerSpec(id=worker, dialect="scripted", model="m", extra_body={"text": text})
            for worker, text in says.items()
        )
    )
    config = replace(short(started, steps=20, attempts=16, lr=2e-3, eval_every=20, save_every=20, schedule="constant"))
    config = replace(config, validate=1, trl=replace(config.trl, micro_batch=32))
    trained = train(config, tmp_path / "run", [task, with_fields(task, id="held out", split="validation")], pool=pool)
    steps = rows_of(tmp_path / "run", "step")
    assert 0 < steps[0]["share/text-ops"] < 0.7
    assert trained.after["reward/mean"] == 1.0
    first, last = (np.mean([row["reward/mean"] for row in rows]) for rows in (steps[:3], steps[-3:]))
    assert last > first + 0.2


@pytest.mark.filterwarnings("ignore")
def test_an_alarm_ends_the_run(started: Path, tmp_path: Path) -> None:
    """A run whose texts are never longer than one step is stopped by that alarm, with its reason in the metrics."""
    alarms = AlarmConfig(patience=1, valid_below=None, cut_above=None, largest_share_above=None, one_step_above=0.5)
    trained = train(replace(short(started, steps=3), alarms=alarms), tmp_path / "run", sums(4))
    assert trained.stopped_by is not None
    assert "steps/one" in trained.stopped_by
    assert trained.step == 1
    assert [row["step"] for row in rows_of(tmp_path / "run", "alarm")] == [1]
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1").exists()


@pytest.mark.filterwarnings("ignore")
def test_prompts_that_are_too_long_are_left_out(started: Path, tmp_path: Path) -> None:
    """Tasks whose prompts do not fit are counted, and never cut."""
    reporter = Quiet()
    tasks = sums(4)
    longest = with_fields(tasks[0], id="long", prompt=tasks[0].prompt + " and so on" * 200)
    config = short(started, steps=1)
    train(replace(config, trl=replace(config.trl, max_prompt=400)), tmp_path / "run", [*tasks, longest], reporter)
    assert "1 tasks left out: prompts of more than 400 tokens" in reporter.said


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_a_model_with_a_chat_template(started: Path, tmp_path: Path) -> None:
    """A model with a chat template is asked in it, with the prefill behind; an adapter is saved alone."""
    from transformers import AutoModelForCausalLM

    from torafugu.train.conductor_trl_rows import Questions, load_tokeniser

    config = short(started, steps=1)
    tokeniser, form = load_tokeniser(config)
    assert not form.has_template
    tokeniser.chat_template = TEMPLATE
    instruct = tmp_path / "instruct"
    tokeniser.save_pretrained(instruct)
    AutoModelForCausalLM.from_pretrained(started).save_pretrained(instruct)
    trl = replace(config.trl, prefill="Let me see. ")
    config = replace(config, model=str(instruct), lora=LoraConfig(rank=2, alpha=4.0), trl=trl, pool_sizes=(2, 3))
    questions = Questions(sums(4), home(), config, *load_tokeniser(config))
    prompts = [row["prompt"] for row in questions.rows(questions.steps, are_held_out=False)]
    assert all(prompt.startswith("[user]models: ") and prompt.endswith("[assistant]Let me see. ") for prompt in prompts)
    assert [question.workers for question in questions.held_out] == [WORKERS] * 2
    assert all(len(question.workers) in (2, 3) for question in questions.steps)

    trained = train(config, tmp_path / "run", sums(4))
    assert (trained.folder / "adapter_config.json").exists()
    assert not (trained.folder / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="has no chat template"):
        load_tokeniser(replace(config, model=str(started)))


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_has_the_tokens_of_the_served_model(started: Path) -> None:
    """What TRL's tokeniser makes of a prompt is what the served model's makes of it, at every step."""
    from torafugu.train.conductor_model import read_tokeniser
    from torafugu.train.conductor_trl_rows import Questions, load_tokeniser

    config = short(started)
    tokeniser, form = load_tokeniser(config)
    questions = Questions(sums(4), home(), config, tokeniser, form)
    served, end = read_tokeniser(started)
    for row in questions.rows(questions.steps, are_held_out=False):
        assert tokeniser(row["prompt"])["input_ids"] == served.encode(row["prompt"], add_special_tokens=False).ids
    assert tokeniser.eos_token_id == end
