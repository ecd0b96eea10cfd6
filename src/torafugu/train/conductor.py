"""Trains the language model behind `fugu-ultra`: shown workflows first, then rewarded for what its own come to.

    warm start: question -> a valid workflow, workers drawn by lot                   so that it knows the form
    GRPO: questions -> G workflows each -> executed, graded -> advantages in the group -> one step -> ...

Episodes run through the loop that serves, on a fleet: each job brings the weights of its step along, so a member that
dies loses nothing. Every draw comes from (seed, stage, step): a run that was ended goes on as if it had not been.
Left in the run's folder: `model/` (what is served), `start/` (as it was before reward), `metrics.jsonl`, `run.json`,
`checkpoints/`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cluster.fleet import Fleet, in_process, take_results
from ..conductors import write_conductor_card
from ..envs.composed import find_workflow
from ..errors import ConfigError
from ..eval.report import Reporter
from ..grade.task import Task
from ..pool.spec import NETWORK_DIALECTS, PoolSpec
from ..types import Json
from .checkpoint import Checkpoints
from .conductor_config import ConductorTraining
from .conductor_files import (
    check_folder,
    digest_tasks,
    halve_adapter,
    read_rows,
    to_json,
    write_run_file,
    write_served,
)
from .conductor_learn import learn
from .conductor_metrics import describe_attempts, find_alarm
from .conductor_model import ConductorModel, check_installed, load_model, make_model, train_tokeniser
from .conductor_player import Job, PlayerSetup, play_singles
from .conductor_rollout import Attempt, Question
from .questions import QuestionSource
from .second_rounds import SecondRounds
from .warm_start import Pair, draw_pairs, make_form_mask, read_pairs, scale_lr, to_pair, warm_step

if TYPE_CHECKING:
    import torch

__all__ = ["MakeFleet", "TrainedConductor", "train_conductor"]

MakeFleet = Callable[[Callable[[], Callable[[Job], list[Attempt]]]], Fleet[Job, list[Attempt]]]

_TOKENISER, _WARM, _DRAW, _SAMPLE, _FORM = range(5)
"""Stages, in seeds."""
_TOKENISER_TEXTS = 4000
_WARM_LOG_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedConductor:
    """What came of a run."""

    folder: Path
    """Of the model as it is served."""
    step: int
    before: Mapping[str, Json]
    """Held-out metrics after the warm start."""
    after: Mapping[str, Json]
    stopped_by: str | None
    """The alarm that ended it early."""


def train_conductor(
    tasks: Sequence[Task],
    pool: PoolSpec,
    out: Path,
    *,
    config: ConductorTraining,
    report: Reporter,
    pool_folder: Path = Path(),
    make_fleet: MakeFleet = in_process,
) -> TrainedConductor:
    """Writes the files of a run into `out`; goes on from its last checkpoint if there is one.

    Raises:
        ConfigError: a package is missing, tasks or pool do not fit the config, or the folder holds another run.
        ModelError: the model to begin with cannot be loaded.
    """
    check_installed(lora=config.lora is not None)
    run = _Run(tasks, pool, out, config=config, report=report, pool_folder=pool_folder)
    return asyncio.run(run.train(make_fleet(run.player)))


class _Run:
    def __init__(
        self,
        tasks: Sequence[Task],
        pool: PoolSpec,
        out: Path,
        *,
        config: ConductorTraining,
        report: Reporter,
        pool_folder: Path,
    ) -> None:
        self.config, self.out, self.report = config, out, report
        workers = [worker.id for worker in pool.worker]
        self.questions = QuestionSource(
            tasks, workers, sizes=config.pool_sizes, held_out=config.validate, weights=config.weights
        )
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        bound = {"config": to_json(config), "pool": to_json(pool), "tasks": digest_tasks(tasks)}
        self.metrics = out / "metrics.jsonl"
        self.checkpoints = Checkpoints(folder=out / "checkpoints", bound_to=bound, metrics=self.metrics)
        self.resumed = self.checkpoints.load_latest()
        write_run_file(out, bound)
        own = config.warm_start.demonstrations
        self.demonstrations = None if own is None else read_pairs(own)
        if self.demonstrations is None and (config.warm_start.steps or config.grpo.form_batch):
            _check_workflows_are_known(self.questions.examples)
        self.second_rounds = SecondRounds(
            pool=pool, pool_folder=pool_folder, conductor=config.conductor, effort=config.effort
        )
        self.shown_rounds = 0
        """Demonstrated by this process."""
        self.model = self._make_model()
        if self.demonstrations is not None and config.grpo.form_batch:
            _check_workers_are_found(self.model, self.demonstrations)
        self.player = _set_up(self.model, pool, pool_folder, config)
        self.history: list[dict[str, Json]] = []
        self.singles: Mapping[str, Mapping[str, float]] | None = None
        """What each worker does of the held-out tasks alone; None where asking would cost."""

    def _make_model(self) -> ConductorModel:
        config = self.config
        if config.model is not None:
            return load_model(
                Path(config.model),
                lora=config.lora,
                adapter=None if config.adapter is None else Path(config.adapter),
                seed=config.seed,
                dtype=config.dtype,
            )
        pairs = self._draw_firsts(_TOKENISER_TEXTS, np.random.default_rng([config.seed, _TOKENISER]))
        tokeniser = train_tokeniser((pair.prompt + pair.reply for pair in pairs), config.size.vocabulary)
        return make_model(config.size, tokeniser, seed=config.seed)

    # --- the two stages; `at` counts the steps of both

    async def train(self, fleet: Fleet[Job, list[Attempt]]) -> TrainedConductor:
        warm, grpo = self.config.warm_start, self.config.grpo
        at = self._resume()
        if at < warm.steps:
            at = self._warm_up(at)
        if at == warm.steps:
            self._write_served("start")
        optimiser = self.model.make_adamw(grpo.lr, betas=(0.9, 0.999), weight_decay=0.0)
        if self.resumed is not None and at > warm.steps:
            self.model.restore(self.resumed.state, [optimiser])
        if all(worker.dialect not in NETWORK_DIALECTS for worker in self.player.pool.worker):
            self.singles = await play_singles(self.player.pool, [question.task for question in self.questions.held_out])
        async with fleet:
            if not read_rows(self.metrics, "held_out"):
                await self._evaluate(fleet, 0)
            step, alarm = at - warm.steps, find_alarm(self.history, self.config.alarms)  # one that was stopped stays so
            self.report.stage("GRPO", grpo.steps)
            self.report.advance(step)
            while step < grpo.steps and alarm is None:
                step += 1
                await self._step(fleet, optimiser, step)
                self.report.advance(1)
                alarm = find_alarm(self.history, self.config.alarms)
                is_last = step == grpo.steps or alarm is not None
                if is_last or step % grpo.eval_every == 0:
                    await self._evaluate(fleet, step)
                if alarm is not None:
                    self._log("alarm", step, {"alarm": alarm})
                if is_last or step % grpo.save_every == 0:
                    self.checkpoints.save(self.model.state([optimiser]), generation=warm.steps + step)
        self._write_served("model")
        held_out, alarms = read_rows(self.metrics, "held_out"), read_rows(self.metrics, "alarm")
        return TrainedConductor(
            folder=self.out / "model",
            step=step,
            before=held_out[0],
            after=held_out[-1],
            stopped_by=str(alarms[-1]["alarm"]) if alarms else None,
        )

    def _resume(self) -> int:
        """How many steps were done before; the metrics are cut to what belongs to them."""
        if self.resumed is None:
            self.metrics.write_bytes(b"")
            return 0
        self.checkpoints.cut_metrics(self.resumed)
        for warning in self.resumed.warnings:
            self.report.say(warning)
        self.history = read_rows(self.metrics, "step")
        self.model.restore(self.resumed.state, [])
        return self.resumed.generation

    def _warm_up(self, at: int) -> int:
        warm = self.config.warm_start
        optimisers = (
            [self.model.make_adamw(warm.lr, betas=(0.9, 0.95), weight_decay=0.01)]
            if warm.muon_lr is None
            else self.model.make_muon(warm.muon_lr, warm.lr)
        )
        losses: list[float] = []
        if self.resumed is not None:
            self.model.restore(self.resumed.state, optimisers)
            losses += np.asarray(self.resumed.state.get("losses", ())).tolist()
        self.report.stage("warm start", warm.steps)
        self.report.advance(at)
        for step in range(at + 1, warm.steps + 1):
            pairs = self._draw_pairs(warm.batch, np.random.default_rng([self.config.seed, _WARM, step]))
            losses.append(warm_step(self.model, optimisers, pairs, step, warm))
            self.report.advance(1)
            if step % _WARM_LOG_EVERY == 0 or step == warm.steps:
                self._log("warm", step, {"loss": float(np.mean(losses[-_WARM_LOG_EVERY:]))})
            if step % warm.save_every == 0 and step < warm.steps:
                unlogged = {"losses": np.array(losses[-_WARM_LOG_EVERY:])}
                self.checkpoints.save({**self.model.state(optimisers), **unlogged}, generation=step)
        self.checkpoints.save(self.model.state([]), generation=warm.steps)
        return warm.steps

    async def _step(self, fleet: Fleet[Job, list[Attempt]], optimiser: torch.optim.Optimizer, step: int) -> None:
        config, grpo = self.config, self.config.grpo
        started, cpu = time.perf_counter(), time.process_time()
        settles = step <= grpo.settle
        weights = self.questions.focus_weights(self.history, grpo.focus)
        rng = np.random.default_rng([config.seed, _DRAW, step])
        questions = self.questions.draw(grpo.questions, rng, weights=weights, whole_pool=settles)
        seeds = np.random.SeedSequence([config.seed, _SAMPLE, step]).generate_state(grpo.questions * grpo.attempts)
        seeds_PG = seeds.reshape(grpo.questions, grpo.attempts).tolist()
        many = 0 if settles else round(grpo.rounds * grpo.questions)
        groups = await self._play(fleet, questions[:many], seeds_PG[:many], grpo.temperature)
        groups += await self._play(fleet, questions[many:], seeds_PG[many:], grpo.temperature, rounds=1)
        sampled = time.perf_counter()
        warmup = round(grpo.warmup * grpo.steps)
        scale = scale_lr(step, grpo.steps, warmup) if grpo.schedule == "cosine" else min(1.0, step / max(1, warmup))
        pairs = self._draw_pairs(grpo.form_batch, np.random.default_rng([config.seed, _FORM, step]))
        learned = learn(self.model, optimiser, groups, grpo, lr=grpo.lr * scale, demonstrations=pairs, settles=settles)
        row = {
            **describe_attempts([attempt for group in groups for attempt in group]),
            **learned,
            "seconds/rollout": round(sampled - started, 3),
            "seconds/update": round(time.perf_counter() - sampled, 3),
            "seconds/cpu": round(time.process_time() - cpu, 3),
        }
        self.history.append(row)
        self._log("step", step, row)

    async def _play(
        self,
        fleet: Fleet[Job, list[Attempt]],
        questions: Sequence[Question],
        seeds_PG: Sequence[Sequence[int]],
        temperature: float,
        *,
        rounds: int | None = None,
    ) -> list[list[Attempt]]:
        """-> attempts by question."""
        weights, scale = self.model.weights(), self.model.lora_scale
        size = self.config.grpo.questions_per_job
        rollouts = [(question, tuple(seeds)) for question, seeds in zip(questions, seeds_PG, strict=True)]
        jobs = [
            Job(
                weights=weights,
                lora_scale=scale,
                rollouts=tuple(rollouts[first : first + size]),
                temperature=temperature,
                rounds=rounds,
            )
            for first in range(0, len(rollouts), size)
        ]
        attempts = iter([attempt for played in take_results(await fleet.map(jobs)) for attempt in played])
        return [[next(attempts) for _ in seeds] for seeds in seeds_PG]

    async def _evaluate(self, fleet: Fleet[Job, list[Attempt]], step: int) -> None:
        """The likeliest texts, on the same held-out tasks each time, with the whole pool in its own order."""
        questions = self.questions.held_out
        groups = await self._play(fleet, questions, [[0]] * len(questions), 0.0)
        row = describe_attempts([attempt for group in groups for attempt in group], singles=self.singles)
        self._log("held_out", step, row)
        told = {key: row[key] for key in ("reward/mean", "accuracy", "valid", "accuracy_if_valid", "steps/mean")}
        shown = ", ".join(f"{key} {value:.3f}" for key, value in told.items() if isinstance(value, float))
        self.report.say(f"step {step}, held out: {shown}")

    # --- draws

    def _draw_pairs(self, n: int, rng: np.random.Generator) -> list[Pair]:
        """Demonstrations, second rounds among them; where a first workflow could not be executed, a first round.

        Raises:
            ConfigError: no second round could be demonstrated so far.
        """
        if self.demonstrations is not None or not self.config.warm_start.rounds:
            return self._draw_firsts(n, rng)
        warm = self.config.warm_start
        questions = self.questions.draw(int(rng.binomial(n, warm.rounds)), rng)
        seconds = self.second_rounds.demonstrate(questions, rng, warm=warm)
        self.shown_rounds += len(seconds)
        if questions and not self.shown_rounds:
            raise ConfigError(
                f"warm_start.rounds: none of {len(questions)} first workflows could be executed and graded: see that "
                "the workers answer (fugu doctor)"
            )
        return [*self._draw_firsts(n - len(seconds), rng), *map(to_pair, seconds)]

    def _draw_firsts(self, n: int, rng: np.random.Generator) -> list[Pair]:
        if self.demonstrations is not None:
            return [self.demonstrations[int(i)] for i in rng.integers(len(self.demonstrations), size=n)]
        config, questions = self.config, self.questions.draw(n, rng)
        return draw_pairs(questions, config.conductor, rng, effort=config.effort, warm=config.warm_start)

    def _write_served(self, name: str) -> None:
        write_served(self.out / name, self.model, self.player.graph)
        if name == "model" and self.model.is_adapter:
            halve_adapter(self.out / name)
        models = {worker.id: worker.model for worker in self.player.pool.worker}
        write_conductor_card(self.out / name, self.config.conductor, models)

    def _log(self, stage: str, step: int, row: Mapping[str, Json]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **row}) + "\n")


def _check_workflows_are_known(tasks: Sequence[Task]) -> None:
    """Before anything is paid for, not when one of them is drawn."""
    for task in tasks:
        if find_workflow(task.prompt) is None:
            raise ConfigError(
                f"task {task.id!r}: no workflow is known for it, so none can be demonstrated: give "
                "warm_start.demonstrations, or set warm_start.steps and grpo.form_batch to 0"
            )


def _check_workers_are_found(model: ConductorModel, demonstrations: Sequence[Pair]) -> None:
    """Else reward would be taught against, silently."""
    for number, pair in enumerate(demonstrations, start=1):
        if all(make_form_mask(model, pair.reply)):
            raise ConfigError(
                f"demonstration {number}: nobody is named in it, and with grpo.form_batch it must be seen who is: "
                'expected model_id: ["one", "another"], or numbers'
            )


def _set_up(model: ConductorModel, pool: PoolSpec, pool_folder: Path, config: ConductorTraining) -> PlayerSetup:
    from ..local.llama import parse_llama_config
    from ..local.llama_graph import build_open_graph, build_packed_graph

    llama = parse_llama_config(model.config_json().encode(), where="the model's config")
    graph = (
        build_packed_graph(llama, model.base_weights(), bits=config.sampler_bits)
        if model.is_adapter
        else build_open_graph(llama)
    )
    return PlayerSetup(
        graph=graph,
        llama=llama,
        tokeniser=model.tokeniser.to_str(),
        end=model.end,
        pool=pool,
        pool_folder=pool_folder,
        config=config,
    )
