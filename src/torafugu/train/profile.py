"""`fugu profile`: every worker answers every task n times; the outcomes become a folder of the recorded format.

The folder is the state: a (task, worker, k) whose row is there is not asked again, so an interrupted profile goes on
where it stopped. A call that failed by the worker's or the grader's fault leaves no row; it is counted, and asked again
next time. One folder holds one set of tasks, and one model behind each worker id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from ..episode import Episode, run_episode
from ..errors import ConfigError
from ..files import drop_torn_line, write_whole
from ..grade.exact import given_answer
from ..grade.grader import Grader
from ..grade.task import Task
from ..orchestrate import Caller, Direct
from ..pool.prices import resolve_price
from ..pool.recorded import Question, Sample
from ..pool.spec import PoolSpec, WorkerSpec
from ..types import Usage

__all__ = ["Job", "Rate", "Tally", "estimate_cost_usd", "find_rates", "open_profile", "plan_jobs", "profile"]

ASSUMED_OUTPUT_TOKENS = 600
"""For the estimate before anything was called; the running tally replaces it by what was measured."""
_CHARS_PER_TOKEN = 4
_IN_FLIGHT = 32
_PRICED_TOKENS = 1000
"""What a rate is read off: some providers charge more per token of a long prompt."""


class Rate(msgspec.Struct, frozen=True):
    """USD per million tokens."""

    input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One answer still to be asked for."""

    task: Task
    worker: str
    k: int


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a profile has done so far."""

    done: int = 0
    correct: dict[str, list[float]] = field(default_factory=dict)
    """Worker -> 1 or 0 for each scored answer."""
    cost_usd: Decimal = Decimal(0)
    unknown_cost: int = 0
    """Calls whose cost is not known; they are not in `cost_usd`."""
    failures: Counter[str] = field(default_factory=Counter)
    """`worker code` -> count."""
    stopped_by: str | None = None


def find_rates(workers: Sequence[WorkerSpec]) -> dict[str, Rate | None]:
    """What each worker's tokens cost, declared or listed; None when nobody knows."""
    return {worker.id: _rate(worker) for worker in workers}


def open_profile(
    folder: Path, tasks: Sequence[Task], spec: PoolSpec, rates: Mapping[str, Rate | None]
) -> set[tuple[str, str, int]]:
    """Create the folder, or take it up again. Returns the (task, worker, k) that it already holds.

    Raises:
        ConfigError: the folder holds a profile of other tasks or models, or is damaged; or there are no tasks.
    """
    if not tasks:
        raise ConfigError("there are no tasks to profile: expected at least one")
    path = folder / "questions.jsonl"
    questions = b"".join(msgspec.json.encode(_to_question(task)) + b"\n" for task in tasks)
    outcomes = folder / "outcomes.jsonl"
    has_answers = outcomes.exists() and outcomes.stat().st_size > 0  # a profile that was declined has none
    if has_answers and path.exists() and path.read_bytes() != questions:
        raise ConfigError(
            f"{path}: another set of tasks was profiled here: choose another --out, or the same tasks and seed"
        )
    models = _join_models(folder / "models.json", spec, rates)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, questions)
    write_whole(folder / "models.json", msgspec.json.format(msgspec.json.encode(models), indent=1) + b"\n")
    for path in (folder / "outcomes.jsonl", folder / "answers.jsonl"):
        path.touch()
        drop_torn_line(path)
    return {(row.qid, row.model, row.k) for row in _read_rows(folder / "outcomes.jsonl", Sample)}


def plan_jobs(
    tasks: Sequence[Task], workers: Sequence[str], repeats: int, done: set[tuple[str, str, int]]
) -> list[Job]:
    """All workers of a task in a row, so that a profile cut short is even over workers."""
    return [
        Job(task=task, worker=worker, k=k)
        for k in range(repeats)
        for task in tasks
        for worker in workers
        if (task.id, worker, k) not in done
    ]


def estimate_cost_usd(jobs: Sequence[Job], rates: Mapping[str, Rate | None]) -> Decimal | None:
    """None when the price of a worker is unknown."""
    total = Decimal(0)
    for job in jobs:
        rate = rates.get(job.worker)
        if rate is None:
            return None
        tokens_in = -(-len(job.task.prompt) // _CHARS_PER_TOKEN)
        total += (rate.input * tokens_in + rate.output * ASSUMED_OUTPUT_TOKENS) / 1_000_000
    return total


async def profile(
    jobs: Sequence[Job],
    pool: Caller,
    grader: Grader,
    folder: Path,
    *,
    max_usd: Decimal | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Run the jobs; each row is written as soon as it is known.

    Once `max_usd` is spent by this run no further call is begun; those in flight, up to 32, are finished. A call of
    unknown cost adds nothing to what is spent, so the caller sees to it that prices are known.
    """
    tally = Tally()
    waiting: Iterator[Job] = iter(jobs)
    with (
        (folder / "outcomes.jsonl").open("ab", buffering=0) as rows,
        (folder / "answers.jsonl").open("ab", buffering=0) as answers,
    ):

        async def work() -> None:
            for job in waiting:
                if max_usd is not None and tally.cost_usd >= max_usd:
                    tally.stopped_by = "max_usd"
                    return
                episode = await run_episode(job.task, Direct(job.worker), pool, grader)
                if episode.score is None:
                    tally.failures[f"{job.worker} {episode.code}"] += 1
                else:  # the outcome last: it says that the job is done
                    row = _AnswerRow(job.task.id, job.worker, job.k, episode.text)
                    answers.write(msgspec.json.encode(row) + b"\n")
                    rows.write(msgspec.json.encode(_to_sample(job, episode)) + b"\n")
                _count(tally, job, episode)
                if progress:
                    progress(tally)
                await asyncio.sleep(0)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(_IN_FLIGHT, len(jobs))):
                    group.create_task(work(), name=f"profile {number}")
        except BaseExceptionGroup as failures:  # one is enough to say, such as a full disk
            raise failures.exceptions[0] from None
        finally:
            _write_texts(folder)
    return tally


def _count(tally: Tally, job: Job, episode: Episode) -> None:
    tally.done += 1
    if episode.score is not None:
        tally.correct.setdefault(job.worker, []).append(float(episode.correct or False))
    if episode.cost_usd is None:
        tally.unknown_cost += 1
    else:
        tally.cost_usd += episode.cost_usd


def _to_question(task: Task) -> Question:
    return Question(
        qid=task.id,
        prompt=task.prompt,
        split=task.split,
        gold=task.gold,
        dataset=task.dataset,
        category=task.category,
        family=task.family,
        source="profile",
    )


def _to_sample(job: Job, episode: Episode) -> Sample:
    return Sample(
        qid=job.task.id,
        model=job.worker,
        k=job.k,
        correct=float(episode.correct or False),
        answer=given_answer(job.task.prompt, episode.text),
        in_tokens=episode.usage.input_tokens,
        out_tokens=episode.usage.output_tokens,
        latency_s=None if episode.reply_latency_ms is None else round(episode.reply_latency_ms / 1e3, 6),
        cost_usd=None if episode.cost_usd is None else float(episode.cost_usd),
    )


def _rate(worker: WorkerSpec) -> Rate | None:
    price = resolve_price(worker)
    if price is None:
        return None
    of_input = price.cost_usd(Usage(input_tokens=_PRICED_TOKENS, output_tokens=0))
    of_output = price.cost_usd(Usage(input_tokens=0, output_tokens=_PRICED_TOKENS))
    if of_input is None or of_output is None:
        return None
    return Rate(of_input / _PRICED_TOKENS * 1_000_000, of_output / _PRICED_TOKENS * 1_000_000)


class _Model(msgspec.Struct, frozen=True):
    model: str
    price_usd_per_million: Rate | None = None


class _Models(msgspec.Struct, frozen=True):
    models: dict[str, _Model]


def _join_models(path: Path, spec: PoolSpec, rates: Mapping[str, Rate | None]) -> _Models:
    """`models.json`: the workers that were ever profiled here, so that a head knows the model behind each.

    Raises:
        ConfigError: a worker had another model behind it when it was profiled here.
    """
    try:
        known = msgspec.json.decode(path.read_bytes(), type=_Models).models if path.exists() else {}
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}") from None
    for worker in spec.worker:
        if worker.id in known and known[worker.id].model != worker.model:
            raise ConfigError(
                f"{path}: worker {worker.id!r} was profiled here as {known[worker.id].model!r} and is {worker.model!r} "
                "in the pool: choose another --out, or give the new model an id of its own"
            )
    return _Models(known | {worker.id: _Model(worker.model, rates[worker.id]) for worker in spec.worker})


class _AnswerRow(msgspec.Struct, frozen=True):
    qid: str
    model: str
    k: int
    text: str


_Row = TypeVar("_Row", Sample, _AnswerRow)


def _read_rows(path: Path, row_type: type[_Row]) -> list[_Row]:
    decoder = msgspec.json.Decoder(row_type)
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: line {number}: {error}: remove the line, and it is asked again") from None
    return rows


def _write_texts(folder: Path) -> None:
    """`texts.jsonl` (qid, texts of sample 0) out of the append-only `answers.jsonl`."""
    texts: dict[str, dict[str, str]] = {}
    for row in _read_rows(folder / "answers.jsonl", _AnswerRow):
        if row.k == 0:
            texts.setdefault(row.qid, {})[row.model] = row.text
    lines = (msgspec.json.encode({"qid": qid, "texts": by_worker}) for qid, by_worker in texts.items())
    write_whole(folder / "texts.jsonl", b"".join(line + b"\n" for line in lines))
