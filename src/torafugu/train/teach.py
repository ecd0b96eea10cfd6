"""Demonstrations by a conductor that is trained already, for one that is not: its workflows that came out right.

    questions -> the likeliest text for each -> executed, graded -> right: kept; wrong, or not scored: counted

The teacher is a folder as it is served, with its card. It writes in onnxruntime, in large batches: no torch is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conductors import complete_config, read_conductor_card, say_unknown
from ..errors import ConfigError, ModelError
from ..eval.report import Reporter
from ..grade.task import Task
from ..local.llama import read_llama_config
from ..local.llama_folder import ADAPTER_FILES, GRAPH, read_adapter, read_generation, read_safetensors
from ..pool.spec import PoolSpec
from ..types import sum_cost
from .conductor_config import ConductorTraining
from .conductor_model import read_tokeniser, render_bare
from .conductor_player import Job, Player, PlayerSetup
from .conductor_rollout import Attempt, Question
from .demonstrations import render_question, show_plainly
from .questions import QuestionSource
from .warm_start import Pair

__all__ = ["Taught", "Teacher", "draw_questions", "teach"]

_BATCH = 96
"""Questions that are played at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What came of all questions."""

    pairs: tuple[Pair, ...]
    """Of those whose answer was right."""
    wrong: int
    """Workflows whose answer was not."""
    invalid: int
    """Texts that were no workflow."""
    unscored: Mapping[str, int]
    """Times that somebody else failed, by `fault:code`."""
    cost_usd: Decimal | None
    """None: that of a call is unknown."""


def draw_questions(
    tasks: Sequence[Task], pool: PoolSpec, *, n: int, sizes: Sequence[int] | None, rng: np.random.Generator
) -> list[Question]:
    """Of the split `train`, each with a random part of the pool in random order. `sizes`: of the parts; None: half of
    the pool or more.

    Raises:
        ConfigError: there are no such tasks, or a part is larger than the pool.
    """
    workers = [worker.id for worker in pool.worker]
    parts = tuple(sizes or range((len(workers) + 1) // 2, len(workers) + 1))
    return QuestionSource(tasks, workers, sizes=parts, held_out=0).draw(n, rng)


class Teacher:
    """A trained conductor beside a pool. Holds the memory of its network."""

    def __init__(self, folder: Path, pool: PoolSpec, *, pool_folder: Path = Path()) -> None:
        """`pool_folder`: where relative paths in the pool start.

        Raises:
            ModelError: there is no trained conductor in the folder, or it is damaged or asked in another form.
            ConfigError: it never learnt to call a worker of the pool.
        """
        self.config = _read_config(folder, pool)
        self._tokeniser, end = read_tokeniser(folder)
        self._tokeniser.encode_special_tokens = True  # as who writes does
        self._llama = read_llama_config(folder / "config.json")
        self._weights, self._lora_scale = _read_inputs(folder)
        setup = PlayerSetup(
            graph=(folder / GRAPH).read_bytes(),
            llama=self._llama,
            tokeniser=self._tokeniser.to_str(),
            end=end,
            pool=pool,
            pool_folder=pool_folder,
            config=self.config,
        )
        self._player = Player(setup)

    def check_room(self, questions: Sequence[Question]) -> None:
        """Before anybody is asked, not when a question's turn comes.

        Raises:
            ConfigError: one is too long to be read, with room for a workflow.
        """
        limit = self.config.conductor.max_output_tokens
        assert limit is not None, "a player has one"
        room = self._llama.max_positions - limit
        for question in questions:
            tokens = len(self._tokeniser.encode(self.render(question), add_special_tokens=False).ids)
            if tokens > room:
                raise ConfigError(
                    f"task {question.task.id!r}: {tokens} tokens, with the names of {len(question.workers)} workers: "
                    f"the teacher reads {room} at most: leave it out"
                )

    def render(self, question: Question) -> str:
        """What it is asked, as text."""
        return render_bare(render_question(question, self.config.conductor, effort=self.config.effort))

    def play(self, questions: Sequence[Question]) -> list[Attempt]:
        """One attempt at each, at the same time, with the likeliest text."""
        rollouts = tuple((question, (number,)) for number, question in enumerate(questions))
        job = Job(weights=self._weights, lora_scale=self._lora_scale, rollouts=rollouts, temperature=0.0)
        return self._player(job)


def teach(teacher: Teacher, questions: Sequence[Question], rng: np.random.Generator, report: Reporter) -> Taught:
    """Asks the teacher each question, and keeps what came out right. `rng` draws which are shown plainly.

    Raises:
        ModelError: the teacher can write nothing any more.
    """
    attempts: list[Attempt] = []
    report.stage("demonstrations", len(questions))
    for first in range(0, len(questions), _BATCH):
        played = teacher.play(questions[first : first + _BATCH])
        attempts += played
        report.advance(len(played))
    right = [attempt for attempt in attempts if attempt.episode.score == 1]
    missed = [attempt for attempt in attempts if attempt.episode.score is not None and attempt.episode.score != 1]
    failed = [attempt.episode for attempt in attempts if attempt.episode.score is None]
    return Taught(
        pairs=tuple(
            Pair(prompt=teacher.render(show_plainly(attempt.question, rng)), reply=attempt.texts[0].text)
            for attempt in right
        ),
        wrong=sum(attempt.is_valid for attempt in missed),
        invalid=sum(not attempt.is_valid for attempt in missed),
        unscored=Counter(f"{episode.fault}:{episode.code}" for episode in failed),
        cost_usd=sum_cost(attempt.episode.cost_usd for attempt in attempts),
    )


def _read_config(folder: Path, pool: PoolSpec) -> ConductorTraining:
    """How it is asked: once, and a lost step is nobody's lesson, as in training. What is served asks the next worker
    instead, and then an answer may be right though the workflow was not."""
    card = read_conductor_card(folder)
    unknown = say_unknown(str(folder), card, {worker.id: worker.model for worker in pool.worker})
    if unknown is not None:
        raise ConfigError(f"{unknown}, or let it teach for a pool of those that it knows")
    if not (folder / GRAPH).is_file():
        raise ModelError(f"{folder}: no {GRAPH} in it: an adapter is laid beside its model first (fugu models add)")
    if (form := read_generation(folder).format) != "bare":
        raise ModelError(f"{folder}: format {form!r}: expected 'bare', in which conductors are trained")
    conductor = complete_config({"worker": "-"}, card, where=str(folder))
    return ConductorTraining(model=str(folder), conductor=replace(conductor, attempts=1, on_error="fail"))


def _read_inputs(folder: Path) -> tuple[Mapping[str, NDArray[Any]], float]:
    """What the graph takes: an adapter's weights and their scale, else the model's."""
    if (folder / ADAPTER_FILES[0]).is_file():
        return read_adapter(folder)
    return read_safetensors(folder / "model.safetensors"), 1.0
