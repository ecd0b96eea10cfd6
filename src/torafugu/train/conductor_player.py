"""A member of the fleet that plays a conductor's episodes: a pool, graders, and the network in onnxruntime.

A job brings its weights along, so members hold nothing that could be out of date, and one that dies is replaced by any.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..episode import run_episode
from ..errors import ConfigError
from ..grade.by_task import TaskGrader
from ..grade.task import Task
from ..local.llama import LlamaConfig
from ..local.llama_onnx import LlamaOnnx
from ..orchestrate.policy import Direct
from ..pool import open_pool
from ..pool.spec import PoolSpec
from .conductor_config import ConductorTraining
from .conductor_model import render_bare
from .conductor_rollout import (
    Asked,
    Attempt,
    Desk,
    Question,
    RolloutConfig,
    Rollouts,
    Written,
    add_conductor,
    makers_around,
)

__all__ = ["Job", "OnnxWriter", "Player", "PlayerSetup", "play_singles"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """Questions that one member plays at once."""

    weights: Mapping[str, npt.NDArray[Any]]
    """As `ConductorModel.weights`."""
    lora_scale: float
    rollouts: tuple[tuple[Question, tuple[int, ...]], ...]
    """Each question, and a seed for each attempt at it."""
    temperature: float
    rounds: int | None = None
    """Workflows that an episode may have; None: as many as the config's effort allows."""


class OnnxWriter:
    """A `Writer` around a llama's graph."""

    def __init__(self, llama: LlamaOnnx, tokeniser: str, *, end: int, max_tokens: int) -> None:
        """`tokeniser`: as its JSON."""
        from tokenizers import Tokenizer

        self._llama = llama
        self._tokeniser = Tokenizer.from_str(tokeniser)
        self._tokeniser.encode_special_tokens = True  # as `ConductorModel` does
        self._end = end
        self._max_tokens = max_tokens

    def write(self, asked: Sequence[Asked], *, temperature: float) -> list[Written]:
        """Those that are asked the same share their prompt's computation."""
        texts = [render_bare(one.messages) for one in asked]
        groups: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            groups.setdefault(text, []).append(i)
        written: dict[int, Written] = {}
        by_size: dict[int, list[str]] = {}
        for text, members in groups.items():
            by_size.setdefault(len(members), []).append(text)
        for size, prompts in by_size.items():
            encoded = [self._tokeniser.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
            samples = self._llama.sample(
                encoded,
                per_prompt=size,
                temperature=temperature,
                max_new_tokens=self._max_tokens,
                ends=frozenset({self._end}),
                seeds=[[asked[i].seed for i in groups[prompt]] for prompt in prompts],
            )
            for prompt, tokens, group in zip(prompts, encoded, samples, strict=True):
                for i, sample in zip(groups[prompt], group, strict=True):
                    kept = sample.tokens[:-1] if sample.ended else sample.tokens
                    written[i] = Written(
                        text=self._tokeniser.decode(kept.tolist()),
                        prompt=np.asarray(tokens, np.int32),
                        tokens=sample.tokens,
                        logprobs=sample.logprobs,
                        has_ended=sample.ended,
                    )
        return [written[i] for i in range(len(asked))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlayerSetup:
    """What a member is made from. Calling it makes one."""

    graph: bytes
    llama: LlamaConfig
    tokeniser: str
    end: int
    pool: PoolSpec
    pool_folder: Path
    config: ConductorTraining

    def __call__(self) -> Player:
        return Player(self)


class Player:
    """job -> attempts, in the order of its questions and seeds."""

    def __init__(self, setup: PlayerSetup) -> None:
        self._setup = setup
        limit = setup.config.conductor.max_output_tokens
        if limit is None:
            raise ConfigError("conductor.max_output_tokens: expected a number: it bounds every text that is sampled")
        self._llama = LlamaOnnx(setup.graph, setup.llama, max_rows=128)
        self._writer = OnnxWriter(self._llama, setup.tokeniser, end=setup.end, max_tokens=limit)

    def __call__(self, job: Job) -> list[Attempt]:
        self._llama.set_inputs(job.weights, lora_scale=job.lora_scale)
        return asyncio.run(self._play(job))

    async def _play(self, job: Job) -> list[Attempt]:
        setup, desk = self._setup, Desk(self._writer)
        async with open_pool(add_conductor(setup.pool), makers=makers_around(desk, setup.pool_folder)) as pool:
            rollouts = Rollouts(pool, desk, TaskGrader(), to_rollout_config(setup.config))
            jobs = [(question, seed) for question, seeds in job.rollouts for seed in seeds]
            return await rollouts.play(jobs, temperature=job.temperature, rounds=job.rounds)


async def play_singles(pool: PoolSpec, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Each worker asked alone: mean scores, by family and worker. What could not be scored is left out."""
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    grader = TaskGrader()
    async with open_pool(pool) as workers:
        for task in tasks:
            for worker in pool.worker:
                episode = await run_episode(task, Direct(worker.id), workers, grader)
                if episode.score is not None:
                    scores[task.family][worker.id].append(episode.score)
    return {
        family: {worker: sum(found) / len(found) for worker, found in by_worker.items()}
        for family, by_worker in scores.items()
    }


def to_rollout_config(config: ConductorTraining) -> RolloutConfig:
    return RolloutConfig(
        conductor=config.conductor,
        reward=config.reward,
        temperature=config.grpo.temperature,
        effort=config.effort,
        discount=config.rounds_discount,
    )
