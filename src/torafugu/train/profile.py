"""`fugu profile`: every worker answers every task n times; the outcomes become a folder of the recorded format.

The folder is the state: a (task, worker, k) whose row is there is not asked again, so an interrupted profile goes on
where it stopped. A call that failed by the worker's or the grader's fault leaves no row; it is counted, and asked again
next time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import msgspec

from ..episode import Episode, run_episode
from ..errors import ConfigError
from ..grade.exact import extract_answer
from ..grade.grader import Grader
from ..grade.task import Task
from ..orchestrate import Caller, Direct
from ..pool.recorded import Question, Sample
from ..pool.spec import PoolSpec

__all__ = ["Job", "Tally", "estimate_cost_usd", "open_profile", "plan_jobs", "profile"]

ASSUMED_OUTPUT_TOKENS = 600
"""For the estimate before anything was called; the running tally replaces it by what was measured."""
_CHARS_PER_TOKEN = 4
_IN_FLIGHT = 32


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


def open_profile(folder: Path, tasks: Sequence[Task], spec: PoolSpec) -> set[tuple[str, str, int]]:
    """Create the folder, or take it up again. Returns the (task, worker, k) that it already holds.

    Raises:
        ConfigError: the folder holds a profile of other tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions = b"".join(msgspec.json.encode(_to_question(task)) + b"\n" for task in tasks)
    path = folder / "questions.jsonl"
    if path.exists() and path.read_bytes() != questions:
        raise ConfigError(
            f"{path}: another set of tasks was profiled here: choose another --out, or the same tasks and seed"
        )
    path.write_bytes(questions)
    (folder / "models.json").write_bytes(msgspec.json.format(msgspec.json.encode(_models(spec)), indent=1) + b"\n")
    outcomes = folder / "outcomes.jsonl"
    for path in (outcomes, folder / "answers.jsonl"):
        path.touch()
        _drop_torn_line(path)
    decoder = msgspec.json.Decoder(Sample)
    rows = (decoder.decode(line) for line in outcomes.read_bytes().splitlines())
    return {(row.qid, row.model, row.k) for row in rows}


def plan_jobs(
    tasks: Sequence[Task], workers: Sequence[str], repeats: int, done: set[tuple[str, str, int]]
) -> list[Job]:
    """Task by task, so that a profile cut short is even over workers."""
    return [
        Job(task=task, worker=worker, k=k)
        for k in range(repeats)
        for task in tasks
        for worker in workers
        if (task.id, worker, k) not in done
    ]


def estimate_cost_usd(jobs: Sequence[Job], rates: Mapping[str, tuple[Decimal, Decimal] | None]) -> Decimal | None:
    """`rates`: USD per million input and output tokens, by worker. None when a price is unknown."""
    total = Decimal(0)
    for job in jobs:
        rate = rates.get(job.worker)
        if rate is None:
            return None
        tokens_in = -(-len(job.task.prompt) // _CHARS_PER_TOKEN)
        total += (rate[0] * tokens_in + rate[1] * ASSUMED_OUTPUT_TOKENS) / 1_000_000
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
    """Run the jobs; each row is written as soon as it is known. Stops before the next call once `max_usd` is spent."""
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
                else:
                    rows.write(msgspec.json.encode(_to_sample(job, episode)) + b"\n")
                    row = {"qid": job.task.id, "model": job.worker, "k": job.k, "text": episode.text}
                    answers.write(msgspec.json.encode(row) + b"\n")
                _count(tally, job, episode)
                if progress:
                    progress(tally)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(min(_IN_FLIGHT, len(jobs))):
                group.create_task(work(), name=f"profile {number}")
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
        answer=(extract_answer(episode.text) or "").strip(),
        in_tokens=episode.usage.input_tokens,
        out_tokens=episode.usage.output_tokens,
        latency_s=None if episode.latency_ms is None else round(episode.latency_ms / 1e3, 6),
        cost_usd=None if episode.cost_usd is None else float(episode.cost_usd),
    )


def _models(spec: PoolSpec) -> dict[str, object]:
    """`models.json`: the pool as profiled, so that a head made from it knows the model behind each worker."""
    return {
        "models": {
            worker.id: {
                "model": worker.model,
                "price_usd_per_million": (
                    {"input": worker.prices.input, "output": worker.prices.output} if worker.prices else None
                ),
            }
            for worker in spec.worker
        }
    }


class _AnswerRow(msgspec.Struct, frozen=True):
    qid: str
    model: str
    k: int
    text: str


def _write_texts(folder: Path) -> None:
    """`texts.jsonl` (qid, texts of sample 0) out of the append-only `answers.jsonl`."""
    texts: dict[str, dict[str, str]] = {}
    decoder = msgspec.json.Decoder(_AnswerRow)
    for line in (folder / "answers.jsonl").read_bytes().splitlines():
        row = decoder.decode(line)
        if row.k == 0:
            texts.setdefault(row.qid, {})[row.model] = row.text
    lines = (msgspec.json.encode({"qid": qid, "texts": by_worker}) for qid, by_worker in texts.items())
    (folder / "texts.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def _drop_torn_line(path: Path) -> None:
    """A profile that was killed may have left half a row at the end."""
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        path.write_bytes(raw[: raw.rfind(b"\n") + 1])
