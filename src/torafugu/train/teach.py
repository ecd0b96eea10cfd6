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

from .. import __version__
from ..conductors import complete_config, read_conductor_card, say_unknown
from ..errors import ConfigError, ModelError
from ..eval.live_settings import fingerprint
from ..eval.report import Reporter
from ..files import drop_torn_line, read_first_line, write_whole
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

__all__ = ["Asked", "Ledger", "Taught", "Teacher", "draw_questions", "teach"]

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


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a question."""

    question: int
    """Its number."""
    came: Literal["right", "wrong", "invalid", "unscored"]
    """`unscored`: somebody else failed, so that it is asked again."""
    text: str | None
    """The workflow; None unless it was right."""
    failure: str | None
    """`fault:code`; None unless it is unscored."""
    cost_usd: Decimal | None
    """None: unknown."""


class _Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line: whose rows these are."""

    run: str


class Ledger:
    """What came of the questions so far, a line each in a file that is there until all are scored. One run at a time
    writes it.
    """

    def __init__(self, path: Path, *, run: str, questions: int) -> None:
        """`run`: what tells this run from others, as `Teacher.identify` says it.

        Raises:
            ConfigError: the file is another run's, or damaged, or no ledger.
        """
        self.path = path
        self.rows: list[Asked] = []
        """As they came; a question that was asked again has several."""
        self.questions = questions
        self._run = run
        first = read_first_line(path)
        if first is None:
            return
        try:
            if msgspec.json.decode(first, type=_Run).run != run:
                raise ConfigError(
                    f"{path}: of a run with another teacher, pool, tasks or options: repeat that command to go on with "
                    "it, or remove the file to begin anew"
                )
            self.rows = [msgspec.json.decode(line, type=Asked) for line in drop_torn_line(path)[1:]]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: damaged: {error}: remove the file to begin anew") from None
        if any(not 0 <= row.question < questions for row in self.rows):
            raise ConfigError(f"{path}: damaged: there are {questions} questions: remove the file to begin anew")

    @property
    def done(self) -> dict[int, Asked]:
        """By question, of those that were scored."""
        return {row.question: row for row in self.rows if row.came != "unscored"}

    @property
    def waiting(self) -> list[int]:
        """Numbers of the other questions."""
        done = self.done
        return [number for number in range(self.questions) if number not in done]

    @property
    def cost_usd(self) -> Decimal | None:
        """Of all that was ever asked. None: that of a call is unknown."""
        return sum_cost(row.cost_usd for row in self.rows)

    def add(self, rows: Sequence[Asked]) -> None:
        """On the disk when this returns."""
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        if self.path.exists():
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        else:
            write_whole(self.path, msgspec.json.encode(_Run(run=self._run)) + b"\n" + lines)
        self.rows += rows

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


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
        self._pool = pool
        self._pool_folder = pool_folder
        self._folder = folder
        self._end = end

    def identify(self, questions: Sequence[Question], *, seed: int) -> str:
        """SHA-256 of the teacher, the workers (`live_settings.fingerprint`), the questions and the seed. Not of where
        the teacher's folder is.
        """
        digest = hashlib.sha256((self._folder / GRAPH).read_bytes())
        for name, values in sorted(self._weights.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(values).data)
        digest.update(self._tokeniser.to_str().encode())
        workers = [fingerprint(worker, self._pool_folder) for worker in self._pool.worker]
        asked = [(question.task, question.workers) for question in questions]
        way = (self._lora_scale, self._end, self.config.conductor, self.config.effort, __version__)
        digest.update(msgspec.json.encode((way, workers, asked, seed)))
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

    def play(self, questions: Mapping[int, Question]) -> list[Attempt]:
        """One attempt at each, at the same time, with the likeliest text. Their numbers are the workers' seeds."""
        rollouts = tuple((question, (number,)) for number, question in questions.items())
        job = Job(weights=self._weights, lora_scale=self._lora_scale, rollouts=rollouts, temperature=0.0)
        return self._player(job)


def teach(
    teacher: Teacher, questions: Sequence[Question], rng: np.random.Generator, ledger: Ledger, report: Reporter
) -> Taught:
    """Asks the teacher each question that is not done, and keeps what came out right. `rng` draws which are shown
    plainly.

    Raises:
        ModelError: the teacher can write nothing any more.
    """
    waiting = ledger.waiting
    failed: Counter[str] = Counter()
    report.stage("demonstrations", len(waiting))
    for first in range(0, len(waiting), _BATCH):
        batch = {number: questions[number] for number in waiting[first : first + _BATCH]}
        rows = list(map(_note, batch, teacher.play(batch)))
        ledger.add(rows)
        failed.update(row.failure for row in rows if row.failure is not None)
        report.advance(len(rows))
    done = [row for _, row in sorted(ledger.done.items())]
    came = Counter(row.came for row in done)
    return Taught(
        pairs=tuple(
            Pair(prompt=teacher.render(show_plainly(questions[row.question], rng)), reply=row.text)
            for row in done
            if row.text is not None
        ),
        wrong=came["wrong"],
        invalid=came["invalid"],
        unscored=failed,
    )


def _note(number: int, attempt: Attempt) -> Asked:
    episode = attempt.episode
    came: Literal["right", "wrong", "invalid", "unscored"]
    if episode.score is None:
        came = "unscored"
    elif episode.score == 1:
        came = "right"
    else:
        came = "wrong" if attempt.is_valid else "invalid"
    return Asked(
        question=number,
        came=came,
        text=attempt.texts[0].text if came == "right" else None,
        failure=f"{episode.fault}:{episode.code}" if came == "unscored" else None,
        cost_usd=episode.cost_usd,
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
