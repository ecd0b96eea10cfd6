"""Run policies live on tasks, through the loop that serves, and keep every episode as soon as it is known.

The file is the state: an episode whose row is there and scored is not run again, so an interrupted evaluation goes on
where it stopped. One that failed by a worker's or a grader's fault keeps its row, is never scored, and is run again. A
file belongs to one set of settings, which its first line holds. What the numbers mean is `live_report`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO

import msgspec

from ..episode import Episode, run_episode
from ..errors import ConfigError
from ..events import Event
from ..files import drop_torn_line, read_first_line
from ..grade.grader import Grader
from ..grade.task import Task
from ..orchestrate import Budget, Caller, Policy, Recorder, create_run_id
from ..types import Json, Sampling, Value
from .workflows import WorkflowTrace, trace_workflows

__all__ = ["Contestant", "Job", "LiveLog", "LiveRow", "LiveTally", "open_live_log", "plan_live", "run_live"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A policy, under the name that the tables give it."""

    name: str
    policy: Policy
    effort: str | None = None
    """As a request's `reasoning_effort`; None: it says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One episode still to be run."""

    contestant: Contestant
    task: Task


class LiveRow(Value, frozen=True, kw_only=True):
    """One episode, as it is kept."""

    name: str
    """Of the contestant."""
    episode: Episode
    run_id: str
    trace: WorkflowTrace | None = None
    """None: it asked no conductor."""


@dataclass(slots=True, kw_only=True)
class LiveTally:
    """What was done so far, by this process."""

    done: int = 0
    cost_usd: Decimal = Decimal(0)
    unknown_cost: int = 0
    """Episodes whose cost is not known; they are not in `cost_usd`."""
    faults: Counter[str] = field(default_factory=Counter)
    """`name owner:code` -> episodes that were not scored."""
    stopped_by: str | None = None


class LiveLog:
    """The rows of one evaluation, and the file that holds them."""

    def __init__(self, file: IO[bytes], path: Path, rows: Sequence[LiveRow]) -> None:
        self._file = file
        self.path = path
        self.rows = {(row.name, row.episode.task): row for row in rows}
        """The latest by contestant and task."""

    def add(self, row: LiveRow) -> None:
        """On its way to the disk when this returns."""
        self._file.write(msgspec.json.encode(row) + b"\n")
        self.rows[row.name, row.episode.task] = row

    def close(self) -> None:
        self._file.close()


def open_live_log(path: Path, settings: Mapping[str, Json]) -> LiveLog:
    """Create the file, or take it up again.

    Raises:
        ConfigError: it holds episodes of other settings, or is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = msgspec.json.decode(msgspec.json.encode(settings))
    first = read_first_line(path)
    if first is not None:
        _check_settings(path, first, wanted)
    lines = drop_torn_line(path)
    rows = [_read_row(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    file = path.open("ab", buffering=0)
    if not lines:
        file.write(msgspec.json.encode({"settings": wanted}) + b"\n")
    return LiveLog(file, path, rows)


def _check_settings(path: Path, line: bytes, wanted: Mapping[str, Json]) -> None:
    try:
        held = msgspec.json.decode(line, type=dict[str, dict[str, Json]])["settings"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise ConfigError(f"{path}: line 1: {error!s}: expected the settings of an evaluation: name another") from None
    differing = [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)]
    if differing:
        raise ConfigError(
            f"{path}: these episodes are of another evaluation ({', '.join(sorted(differing))}: not as then): remove "
            "the file, or name another"
        )


def _read_row(path: Path, number: int, line: bytes) -> LiveRow:
    try:
        return msgspec.json.decode(line, type=LiveRow)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: line {number}: {error}: remove the line, and it is run again") from None


def plan_live(contestants: Sequence[Contestant], tasks: Sequence[Task], log: LiveLog) -> list[Job]:
    """All contestants of a task in a row, so that an evaluation cut short is even over contestants."""

    def is_done(name: str, task: str) -> bool:
        row = log.rows.get((name, task))
        return row is not None and row.episode.score is not None

    return [
        Job(contestant=contestant, task=task)
        for task in tasks
        for contestant in contestants
        if not is_done(contestant.name, task.id)
    ]


async def run_live(
    jobs: Sequence[Job],
    pool: Caller,
    grader: Grader,
    log: LiveLog,
    *,
    limits: LiveLimits,
    record: Callable[[str], Recorder] | None = None,
    progress: Callable[[LiveTally], None] | None = None,
) -> LiveTally:
    """Every episode goes to the log as it ends. `record` gives the recorder of a run id; None: runs are not recorded.

    Once `limits.max_usd` is spent by these jobs none is begun any more; those in flight end. An episode of unknown cost
    adds nothing to what is spent, so the caller sees to it that prices are known.
    """
    tally = LiveTally()
    waiting: Iterator[Job] = iter(jobs)

    async def work() -> None:
        for job in waiting:
            if limits.max_usd is not None and tally.cost_usd >= limits.max_usd:
                tally.stopped_by = "max_usd"
                return
            row = await _run_one(job, pool, grader, limits.budget, record)
            log.add(row)
            _count(tally, row)
            if progress:
                progress(tally)
            await asyncio.sleep(0)  # workers in this process never wait: let others, and Ctrl-C, have a turn

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(limits.concurrency, len(jobs))):
                group.create_task(work(), name=f"episodes {number}")
    except BaseExceptionGroup as failures:  # one is enough to say, such as a full disk
        raise failures.exceptions[0] from None
    return tally


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLimits:
    """How hard to go, and how far."""

    budget: Budget = field(default_factory=Budget)
    """Of each run."""
    concurrency: int = 8
    """Episodes at one time."""
    max_usd: Decimal | None = None


async def _run_one(
    job: Job, pool: Caller, grader: Grader, budget: Budget, record: Callable[[str], Recorder] | None
) -> LiveRow:
    run_id = create_run_id()
    seen = _Seen(None if record is None else record(run_id))
    contestant = job.contestant
    episode = await run_episode(
        job.task,
        contestant.policy,
        pool,
        grader,
        sampling=Sampling(reasoning_effort=contestant.effort),
        budget=budget,
        recorder=seen,
        run_id=run_id,
    )
    trace = trace_workflows(seen.events, is_policy_fault=episode.fault == "policy")
    return LiveRow(name=job.contestant.name, episode=episode, run_id=run_id, trace=trace)


class _Seen:
    """Keeps the events of a run until its trace is made; passes them on."""

    def __init__(self, behind: Recorder | None) -> None:
        self.events: list[Event] = []
        self._behind = behind

    def write(self, event: Event) -> None:
        self.events.append(event)
        if self._behind is not None:
            self._behind.write(event)

    async def wait_durable(self) -> None:
        if self._behind is not None:
            await self._behind.wait_durable()


def _count(tally: LiveTally, row: LiveRow) -> None:
    episode = row.episode
    tally.done += 1
    if episode.score is None:
        tally.faults[f"{row.name} {episode.fault}:{episode.code}"] += 1
    if episode.cost_usd is None:
        tally.unknown_cost += 1
    else:
        tally.cost_usd += episode.cost_usd
