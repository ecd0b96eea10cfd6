"""Demonstrations by a conductor that is trained already, for one that is not: its workflows that came out right.

    questions -> the likeliest text for each -> executed, graded -> right: kept; wrong, or not scored: counted

The teacher is a folder as it is served, with its card. It writes in onnxruntime, in large batches: no torch is needed.
What came of a batch is on the disk before the next one begins, so that a run that is interrupted goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..conductors import complete_config, read_conductor_card, say_unknown
from ..errors import ConfigError, ModelError
from ..eval.report import Reporter
from ..files import drop_torn_line, write_whole
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

__all__ = ["Ledger", "Taught", "Teacher", "draw_questions", "teach"]

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
    """Of what was asked now, not in a run before. None: that of a call is unknown."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a question. There is none for one that somebody else failed: it is asked again."""

    question: int
    text: str
    came: Literal["right", "wrong", "invalid"]


class _Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line: whose rows these are."""

    run: str


class Ledger:
    """What came of the questions so far, a line each in a file that is there until all were asked."""

    def __init__(self, path: Path, *, run: str, force: bool = False) -> None:
        """`run`: what tells this run from others, as `Teacher.identify` says it. `force`: forget another run's.

        Raises:
            ConfigError: the file is another run's, or damaged.
        """
        self.path = path
        self.asked: dict[int, _Asked] = {}
        self._run = _Run(run=run)
        self._is_begun = False
        lines = drop_torn_line(path)
        try:
            if lines and msgspec.json.decode(lines[0], type=_Run).run == run:
                rows = [msgspec.json.decode(line, type=_Asked) for line in lines[1:]]
                self.asked = {row.question: row for row in rows}
            elif lines and not force:
                raise ConfigError(
                    f"{path}: of a run with another teacher, pool, tasks or options: repeat that command to go on with "
                    "it; --force begins anew"
                )
        except msgspec.MsgspecError as error:
            if not force:
                raise ConfigError(f"{path}: damaged: {error}: --force begins anew") from None

    def add(self, rows: Sequence[_Asked]) -> None:
        """On the disk when this returns."""
        self.asked |= {row.question: row for row in rows}
        if not self._is_begun:  # nothing is written before there is something, nor over what is there
            write_whole(self.path, _to_lines([self._run, *self.asked.values()]))
            self._is_begun = True
            return
        with self.path.open("ab") as file:
            file.write(_to_lines(rows))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _to_lines(rows: Sequence[msgspec.Struct]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


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
        self._digest = hashlib.sha256(setup.graph)
        for name, values in sorted(self._weights.items()):
            self._digest.update(name.encode() + np.ascontiguousarray(values).data)
        self._digest.update(repr((self._lora_scale, setup.tokeniser, self.config)).encode() + msgspec.json.encode(pool))

    def identify(self, questions: Sequence[Question], *, seed: int) -> str:
        """SHA-256 of all that the outcome depends on: the same for the same teacher, pool, questions and seed."""
        digest = self._digest.copy()
        for question in questions:
            digest.update(msgspec.json.encode((question.task, question.workers)))
        digest.update(str(seed).encode())
        return digest.hexdigest()

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


def teach(
    teacher: Teacher, questions: Sequence[Question], rng: np.random.Generator, ledger: Ledger, report: Reporter
) -> Taught:
    """Asks the teacher each question that is not in the ledger, and keeps what came out right. `rng` draws which are
    shown plainly.

    Raises:
        ModelError: the teacher can write nothing any more.
    """
    waiting = [number for number in range(len(questions)) if number not in ledger.asked]
    failed: Counter[str] = Counter()
    costs: list[Decimal | None] = []
    report.stage("demonstrations", len(waiting))
    for first in range(0, len(waiting), _BATCH):
        numbers = waiting[first : first + _BATCH]
        played = dict(zip(numbers, teacher.play([questions[number] for number in numbers]), strict=True))
        ledger.add([_note(number, attempt) for number, attempt in played.items() if attempt.episode.score is not None])
        episodes = [attempt.episode for attempt in played.values()]
        failed.update(f"{episode.fault}:{episode.code}" for episode in episodes if episode.score is None)
        costs += [episode.cost_usd for episode in episodes]
        report.advance(len(numbers))
    rows = [ledger.asked[number] for number in sorted(ledger.asked)]
    came = Counter(row.came for row in rows)
    return Taught(
        pairs=tuple(
            Pair(prompt=teacher.render(show_plainly(questions[row.question], rng)), reply=row.text)
            for row in rows
            if row.came == "right"
        ),
        wrong=came["wrong"],
        invalid=came["invalid"],
        unscored=failed,
        cost_usd=sum_cost(costs),
    )


def _note(number: int, attempt: Attempt) -> _Asked:
    is_right = attempt.episode.score == 1
    came: Literal["right", "wrong", "invalid"] = "right" if is_right else "wrong" if attempt.is_valid else "invalid"
    return _Asked(question=number, text=attempt.texts[0].text, came=came)


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
