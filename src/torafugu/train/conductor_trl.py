"""Trains a conductor with TRL's GRPOTrainer: any causal language model, on GPUs, with vLLM, DeepSpeed. Extra `[train]`.

    tasks -> rows: a prompt, and who is offered -> TRL samples, and learns <- rewards of the workflows (conductor_score)

TRL owns sampling, the optimiser and checkpoints. Ours are the questions, drawn as `conductor` draws them, the rewards,
`metrics.jsonl`, the alarms and held-out evaluations. A group with a text that nobody could score is dropped whole; its
tokens still count in TRL's normalisation, as those of groups without variance do. Every process of `accelerate launch`
runs all of this, and scores what it sampled itself; the first one writes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..conductors import write_conductor_card
from ..errors import ConfigError, ModelError
from ..eval.report import Reporter
from ..files import write_whole
from ..grade.task import Task
from ..pool.spec import PoolSpec
from ..types import Json
from .conductor import TrainedConductor
from .conductor_config import ConductorTraining
from .conductor_files import check_folder, digest_tasks, read_rows, to_json, write_run_file
from .conductor_metrics import describe_attempts, find_alarm
from .conductor_model import check_installed
from .conductor_rollout import Attempt
from .conductor_score import Scorer, Text, check_asks_once, open_scorer
from .conductor_trl_rows import Form, Questions, load_tokeniser
from .grpo import filter_groups

if TYPE_CHECKING:
    import trl

__all__ = ["deepspeed_table", "drop_groups", "grpo_arguments", "train_with_trl"]

_SAMPLE = 3
"""Stage, in seeds; as in `conductor`."""
_KEPT_CHECKPOINTS = 3
_EVAL_BATCH = 16
_TOLD = ("reward/mean", "accuracy", "valid", "accuracy_if_valid", "steps/mean")
_OF_TRL = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "lr", "entropy": "tokens/entropy"}
"""TRL's name of a measure, and ours."""


def train_with_trl(
    tasks: Sequence[Task],
    pool: PoolSpec,
    out: Path,
    *,
    config: ConductorTraining,
    report: Reporter,
    pool_folder: Path = Path(),
) -> TrainedConductor:
    """Writes the files of a run into `out`; goes on from its last checkpoint if there is one.

    Raises:
        ConfigError: a package is missing, TRL cannot do what the config says, tasks or pool do not fit it, or the
            folder holds another run.
        ModelError: the model to begin with cannot be loaded.
    """
    check_installed(lora=config.lora is not None)
    _check(config, pool)
    check_folder(out)
    import trl

    arguments = trl.GRPOConfig(**grpo_arguments(config, out))
    if arguments.world_size != config.trl.processes:
        raise ConfigError(
            f"trl.processes {config.trl.processes}: {arguments.world_size} are running: start it with "
            f"`accelerate launch --num_processes {config.trl.processes} -m torafugu.cli train conductor ...`"
        )
    is_first = arguments.process_index == 0
    bound = {"config": to_json(config), "pool": to_json(pool), "tasks": digest_tasks(tasks)}
    _check_same_run(out, bound)
    arguments.distributed_state.wait_for_everyone()  # all have read what the first one writes anew
    if is_first:
        out.mkdir(parents=True, exist_ok=True)
        write_run_file(out, bound)
    tokeniser, form = load_tokeniser(config)
    questions = Questions(tasks, pool, config, tokeniser, form)
    if questions.too_long and is_first:
        report.say(f"{questions.too_long} tasks left out: prompts of more than {config.trl.max_prompt} tokens")
    with asyncio.Runner() as runner:
        watch = _Watch(questions, config, out, report if is_first else None, runner)
        try:
            watch.open(pool, pool_folder)
            trained = _train(watch, arguments, tokeniser, form)
        finally:
            watch.close()
    if is_first:
        write_conductor_card(trained.folder, config.conductor, {worker.id: worker.model for worker in pool.worker})
    return trained


def grpo_arguments(config: ConductorTraining, out: Path) -> dict[str, Any]:
    """What `trl.GRPOConfig` is told."""
    grpo, gpus = config.grpo, config.trl
    per_pass = gpus.micro_batch * gpus.processes
    limit = config.conductor.max_output_tokens
    assert limit is not None, "_check"
    return {
        "output_dir": str(out / "checkpoints"),
        "seed": config.seed,
        "max_steps": grpo.steps,
        "learning_rate": grpo.lr,
        "lr_scheduler_type": "cosine" if grpo.schedule == "cosine" else "constant_with_warmup",
        "warmup_steps": round(grpo.warmup * grpo.steps),
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": grpo.max_grad_norm,
        "per_device_train_batch_size": gpus.micro_batch,
        "per_device_eval_batch_size": _EVAL_BATCH,
        # One step of the optimiser for each batch of texts, so that all of it is on policy.
        "gradient_accumulation_steps": grpo.questions * grpo.attempts // per_pass,
        "num_generations": grpo.attempts,
        "num_generations_eval": 1,
        "max_completion_length": limit,
        "temperature": grpo.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": 0.0,
        "entropy_coef": grpo.entropy,
        "epsilon": grpo.clip_low,
        "epsilon_high": grpo.clip_high,
        "num_iterations": 1,
        "loss_type": "bnpo" if grpo.norm == "tokens" else "grpo",
        "scale_rewards": "group" if grpo.by_std else "none",
        "shuffle_dataset": False,  # rows are in the order of the steps
        "bf16": gpus.bf16,
        "gradient_checkpointing": gpus.gradient_checkpointing,
        "use_cpu": gpus.cpu,
        "use_vllm": gpus.vllm_memory is not None,
        **({} if gpus.vllm_memory is None else _vllm_arguments(gpus.vllm_memory, gpus.max_prompt + limit)),
        **({"deepspeed": deepspeed_table(gpus.zero_stage, offload=gpus.offload)} if gpus.zero_stage else {}),
        "save_strategy": "steps",
        "save_steps": grpo.save_every,
        "save_total_limit": _KEPT_CHECKPOINTS,
        "logging_steps": 1,
        "report_to": list(gpus.report_to) or "none",
        "disable_tqdm": True,
    }


def _vllm_arguments(memory: float, length: int) -> dict[str, Any]:
    return {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": memory, "vllm_max_model_length": length}


def deepspeed_table(stage: int, *, offload: bool) -> dict[str, Any]:
    """DeepSpeed's configuration; `auto` is filled in from the trainer's arguments."""
    place = {"device": "cpu", "pin_memory": True}
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if offload:
        zero["offload_optimizer"] = place
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if offload:
            zero["offload_param"] = place
    optimiser = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    return {
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": optimiser},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def drop_groups(rewards: Sequence[float | None], size: int) -> tuple[list[float | None], dict[str, Json]]:
    """TRL leaves a text without a reward out of its group, and learns from the rest, against another mean. Here the
    whole group goes without, which TRL takes for no signal. -> rewards, and what is logged of the groups"""
    groups = [list(rewards[first : first + size]) for first in range(0, len(rewards), size)]
    kept = filter_groups(groups)
    whole = [[None] * size if None in group else group for group in groups]
    counts: dict[str, Json] = {
        "groups/kept": len(kept.groups),
        "groups/flat": kept.flat / len(groups),
        "groups/dropped": kept.dropped,
    }
    return [reward for group in whole for reward in group], counts


# --- what TRL cannot do


def _check(config: ConductorTraining, pool: PoolSpec) -> None:
    grpo, gpus = config.grpo, config.trl
    check_asks_once(config)
    if config.model is None:
        raise ConfigError("model: TRL trains one that exists: expected a folder, or a name on the hub")
    if not Path(config.model).is_dir() and config.revision is None:
        raise ConfigError(
            f"model {config.model!r}: no such folder, so it is of the hub, where branches move: expected `revision`, "
            f"a commit of https://huggingface.co/{config.model}/commits/main"
        )
    for name, value, expected in (
        ("warm_start.steps", config.warm_start.steps, 0),
        ("grpo.updates", grpo.updates, 1),
        ("grpo.std_floor", grpo.std_floor, 0.0),
        ("grpo.filter", grpo.filter, "reward"),
    ):
        if value != expected:
            raise ConfigError(
                f"{name} {value!r}: with trainer 'trl' expected {expected!r}: only the own trainer has it"
            )
    if grpo.steps < 1:
        raise ConfigError(f"grpo.steps {grpo.steps}: with trainer 'trl' expected at least 1")
    if config.conductor.max_output_tokens is None:
        raise ConfigError("conductor.max_output_tokens: expected a number: it bounds every text that is sampled")
    if config.pool_sizes and max(config.pool_sizes) > len(pool.worker):
        raise ConfigError(f"pool_sizes {config.pool_sizes!r}: the pool has {len(pool.worker)} workers")
    if grpo.questions * grpo.attempts % (gpus.micro_batch * gpus.processes):
        raise ConfigError(
            f"trl.micro_batch {gpus.micro_batch} on {gpus.processes}: expected a divisor of the {grpo.questions} x "
            f"{grpo.attempts} texts of a step"
        )
    if config.dtype == "bfloat16" and config.lora is None and not gpus.zero_stage:
        raise ConfigError(
            "dtype bfloat16: small steps vanish in it: expected float32, an adapter (`lora`), or DeepSpeed "
            "(`trl.zero_stage`), which keeps weights in float32 besides"
        )
    wanted = [("trl", True), ("datasets", True), ("accelerate", True), ("vllm", gpus.vllm_memory is not None)]
    wanted += [("deepspeed", bool(gpus.zero_stage)), *((name, True) for name in gpus.report_to)]
    for package, is_wanted in wanted:
        if is_wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed, and the config needs it: pip install {package}")


def _check_same_run(out: Path, bound: Mapping[str, Json]) -> None:
    """Raises ConfigError: the folder's checkpoints are of other settings."""
    if not (out / "run.json").exists() or _last_checkpoint(out) is None:
        return
    before = json.loads((out / "run.json").read_text())
    for key, value in bound.items():
        if before.get(key) != json.loads(json.dumps(value)):
            raise ConfigError(f"{out}: its checkpoints are of a run with another {key!r}: expected a new folder")


def _last_checkpoint(out: Path) -> Path | None:
    """The newest that is whole: trainer_state.json is written last."""
    found = [path for path in (out / "checkpoints").glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


# --- the run


class _Watch:
    """Between TRL and us: rewards go in, metrics, evaluations and alarms come out."""

    def __init__(
        self,
        questions: Questions,
        config: ConductorTraining,
        out: Path,
        report: Reporter | None,
        runner: asyncio.Runner,
    ) -> None:
        """`report`: None in processes that write nothing."""
        self.questions, self.config, self.out, self.report = questions, config, out, report
        self.metrics = out / "metrics.jsonl"
        self.trainer: Any = None
        self.alarm: str | None = None
        self.history: list[dict[str, Json]] = []
        self._runner, self._stack = runner, AsyncExitStack()
        self._scorer: Scorer | None = None
        self._row: dict[str, Json] = {}
        self._held_out: dict[int, Attempt] = {}
        self._started = 0.0

    def open(self, pool: PoolSpec, folder: Path) -> None:
        opening = self._stack.enter_async_context(open_scorer(pool, self.config, pool_folder=folder))
        self._scorer = self._runner.run(opening)

    def close(self) -> None:
        self._runner.run(self._stack.aclose())

    def score(
        self, completions: Sequence[str], tokens: Sequence[Sequence[int]], rows: Sequence[int], *, are_held_out: bool
    ) -> list[float | None]:
        """Of what this process sampled; the metrics are of all processes."""
        from accelerate.utils import gather_object

        assert self._scorer is not None, "open"
        sampled = time.perf_counter()
        trainer, config = self.trainer, self.config
        step, rank = trainer.state.global_step + 1, trainer.args.process_index
        # Held-out questions meet the same workers' luck each time; the place tells a row from its repetition, with
        # which accelerate fills the last batch up.
        seeds = (
            [(row << 16) + place for place, row in enumerate(rows)]
            if are_held_out
            else _draw_seeds([config.seed, _SAMPLE, step, rank], len(rows))
        )
        questions = self.questions.held_out if are_held_out else self.questions.steps
        texts = [
            Text(
                question=questions[row],
                text=(config.trl.prefill or "") + completion,
                seed=seed,
                tokens=tuple(written),
                has_ended=bool(written) and written[-1] in trainer.eos_token_ids,
            )
            for completion, written, row, seed in zip(completions, tokens, rows, seeds, strict=True)
        ]
        mine = self._runner.run(self._scorer.score(texts))
        everyones = gather_object(list(zip(rows, mine, strict=True)))
        if are_held_out:
            self._held_out |= dict(everyones)
            return [attempt.rewards[0] if attempt.rewards else None for attempt in mine]
        attempts = [attempt for _, attempt in everyones]
        rewards, counts = drop_groups([a.rewards[0] if a.rewards else None for a in attempts], config.grpo.attempts)
        self._row = {
            **describe_attempts(attempts),
            **counts,
            "seconds/score": round(time.perf_counter() - sampled, 3),
        }
        return rewards[rank * len(mine) :][: len(mine)]

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def log_step(self, step: int, logs: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        of_trl = {ours: logs[theirs] for theirs, ours in _OF_TRL.items() if theirs in logs}
        row = {**self._row, **of_trl, "seconds/step": round(now - self._started, 3)}
        self._started = now
        self.history.append(row)
        self.write("step", step, row)
        if self.report is not None:
            self.report.advance(1)
        self.alarm = find_alarm(self.history, self.config.alarms)
        if self.alarm is not None:
            self.write("alarm", step, {"alarm": self.alarm})

    def evaluate(self, step: int) -> None:
        """The likeliest texts, on the same held-out tasks each time, with the whole pool in its own order."""
        started = time.perf_counter()
        self._held_out.clear()
        with _Greedy(self.trainer):
            self.trainer.evaluate()
        self.trainer.model.train()  # the step that is logged next is one of training
        row = describe_attempts([self._held_out[key] for key in sorted(self._held_out)])
        self.write("held_out", step, row)
        self._started += time.perf_counter() - started
        if self.report is not None:
            shown = (f"{key} {value:.3f}" for key in _TOLD if isinstance(value := row[key], float))
            self.report.say(f"step {step}, held out: {', '.join(shown)}")

    def write(self, stage: str, step: int, row: Mapping[str, Json]) -> None:
        if self.report is None:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **row}) + "\n")


def _draw_seeds(key: Sequence[int], n: int) -> list[int]:
    """Of 63 bits: each has to be another one."""
    return [int(seed) >> 1 for seed in np.random.SeedSequence(key).generate_state(n, np.uint64)]


class _Greedy:
    """While it is entered, the trainer takes the likeliest token, with vLLM and without."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._has_vllm: bool = trainer.use_vllm

    def __enter__(self) -> None:
        from transformers import GenerationConfig

        if self._has_vllm:
            self._before = self._trainer.vllm_generation.temperature
            self._trainer.vllm_generation.temperature = 0.0
            return
        self._before = self._trainer.generation_config
        kept = ("max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id")
        settings = {name: getattr(self._before, name) for name in kept}
        self._trainer.generation_config = GenerationConfig(**settings, do_sample=False, disable_compile=True)

    def __exit__(self, *_: object) -> None:
        if self._has_vllm:
            self._trainer.vllm_generation.temperature = self._before
        else:
            self._trainer.generation_config = self._before


def _train(watch: _Watch, arguments: trl.GRPOConfig, tokeniser: Any, form: Form) -> TrainedConductor:
    config, out, report = watch.config, watch.out, watch.report
    checkpoint = _last_checkpoint(out)
    done = 0 if checkpoint is None else _step_of(checkpoint)
    if report is not None:
        _cut_metrics(watch.metrics, done)
        report.stage("GRPO (TRL)", config.grpo.steps)
        report.advance(done)
    watch.history = [row for row in read_rows(watch.metrics, "step") if int(str(row["step"])) <= done]
    trainer = _make_trainer(watch, arguments, tokeniser)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(out / "model"))
    if report is not None:
        _complete_served(out / "model", config, has_template=form.has_template)
    trainer.accelerator.wait_for_everyone()
    held_out, alarms = read_rows(watch.metrics, "held_out"), read_rows(watch.metrics, "alarm")
    return TrainedConductor(
        folder=out / "model",
        step=trainer.state.global_step,
        before=held_out[0],
        after=held_out[-1],
        stopped_by=str(alarms[-1]["alarm"]) if alarms else None,
    )


def _make_trainer(watch: _Watch, arguments: trl.GRPOConfig, tokeniser: Any) -> Any:
    import datasets
    import torch
    import transformers
    import trl

    config, questions = watch.config, watch.questions
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            config.model, revision=config.revision, use_safetensors=True, dtype=getattr(torch, config.dtype)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{config.model}: cannot be loaded: {error}") from None

    def workflow(
        completions: list[str], completion_ids: list[list[int]], row: list[int], is_held_out: list[bool], **_: Any
    ) -> list[float | None]:
        return watch.score(completions, completion_ids, row, are_held_out=is_held_out[0])

    watch.trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=workflow,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(questions.rows(questions.steps, are_held_out=False)),
        eval_dataset=datasets.Dataset.from_list(questions.rows(questions.held_out, are_held_out=True)),
        processing_class=tokeniser,
        callbacks=[_make_callback(watch)],
        peft_config=_make_peft(config),
    )
    watch.trainer.remove_callback(transformers.trainer_callback.PrinterCallback)  # metrics.jsonl has all that is in it
    return watch.trainer


def _make_peft(config: ConductorTraining) -> Any:
    if config.lora is None:
        return None
    import peft

    return peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _make_callback(watch: _Watch) -> Any:
    from transformers import TrainerCallback

    grpo = watch.config.grpo

    class Told(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                watch.evaluate(0)
            watch.start_clock()

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
            if "loss" not in logs:  # of an evaluation, or of the whole run
                return
            step = state.global_step
            watch.log_step(step, logs)
            is_last = step == grpo.steps or watch.alarm is not None
            if is_last or step % grpo.eval_every == 0:
                watch.evaluate(step)
            if is_last:
                control.should_save = control.should_training_stop = True

    return Told()


def _cut_metrics(metrics: Path, done: int) -> None:
    """What was logged after the checkpoint is done again. Lines of before are kept as they are."""
    lines = metrics.read_text().splitlines(keepends=True) if done and metrics.exists() else []
    kept = "".join(line for line in lines if json.loads(line)["step"] <= done)
    write_whole(metrics, kept.encode())


def _complete_served(folder: Path, config: ConductorTraining, *, has_template: bool) -> None:
    """What a worker of dialect `local` needs beside the weights: how to ask, and the graph that the model came with."""
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of TRL's, with paths of this machine
    if config.lora is not None:
        return
    (folder / "generation.json").write_text(json.dumps({"format": "chat" if has_template else "bare"}) + "\n")
    assert config.model is not None, "_check"
    graph = Path(config.model) / "graph.onnx"
    if graph.exists():
        shutil.copyfile(graph, folder / "graph.onnx")
