"""A fleet maps jobs to outcomes; here in this process, in `ray_fleet` on many.

A fleet has members, each with what its own call of `make_worker` built: heavy context is made once per member, not per
job. (A member is no worker: that word means a model behind an endpoint.) Order, retries, counts and cancellation are
decided here for every host; a `Host` only knows where its members run.

Every job has exactly one outcome, at the job's place: its result, `JobFailed` when it raised, `Lost` when members kept
dying with it. A member has one job at a time, so no more than `size` jobs are in flight, a death is blamed on one job
only, and the jobs that wait stay with the caller: there is no queue that could fill up.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ..errors import ConfigError, FuguError

__all__ = [
    "Fleet",
    "FleetLimits",
    "Host",
    "JobFailed",
    "Lost",
    "Member",
    "MemberDied",
    "Raised",
    "attempt",
    "in_process",
    "take_results",
]

log = logging.getLogger(__name__)

Job = TypeVar("Job")
R = TypeVar("R")
T = TypeVar("T")
J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed:
    """A job raised. It is not run again: it would raise again."""

    index: int
    error: BaseException
    traceback: str
    """As text, because a traceback cannot cross processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A job that has no outcome: every member that had it died."""

    index: int
    attempts: int
    reason: str
    """How the last one died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    """When a fleet gives up."""

    max_attempts: int = 3
    """Members that may die with the same job before it is `Lost`."""
    restarts_per_member: int = 5
    """Times `size`: deaths in a row, without a job that ended in between, before `map` raises."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.restarts_per_member < 0:
            raise ConfigError(f"{self!r}: expected at least 1 attempt and no negative number of restarts")


class MemberDied(Exception):
    """Between a host and its fleet: the member is gone; says how."""


@dataclass(frozen=True, slots=True)
class Raised:
    """Between a host and its fleet: what a worker, or the making of one, raised."""

    error: BaseException
    traceback: str


class Member(Protocol[J_contra, R_co]):
    """One process or thread with its own worker."""

    async def wait_ready(self) -> None:
        """Until the worker is made; may be cancelled and awaited again.

        Raises:
            MemberDied: before it was made.
            Exception: what `make_worker` raised.
        """

    async def run(self, job: J_contra) -> R_co | Raised:
        """One job at a time. When this is cancelled, the job ends before `CancelledError` goes on, or by `stop`.

        Raises:
            MemberDied: while the job ran, or before.
        """

    def stop(self) -> None:
        """End it now, and the job that it has if that is possible. Idempotent."""


class Host(Protocol[J_contra, R_co]):
    """Where members run."""

    async def open(self) -> None:
        """Before the first member; idempotent."""

    def add(self) -> Member[J_contra, R_co]:
        """A member that begins to make its worker."""

    async def close(self) -> None:
        """After the last member has been stopped; idempotent."""


class Fleet(Generic[Job, R]):
    """Members on a host. It belongs to no event loop: each `map` may run in one of its own."""

    def __init__(self, host: Host[Job, R], size: int, limits: FleetLimits = FleetLimits()) -> None:
        self.deaths = 0
        """Members that died, those that were stopped not counted."""
        self.restarts = 0
        """Members that were started in place of one that died."""
        self._host = host
        self._limits = limits
        self._members: list[Member[Job, R] | None] = [None] * size
        self._dead: set[int] = set()
        self._work: _Work[Job, R] | None = None
        """Of the map that runs."""
        self._is_closed = False

    @property
    def size(self) -> int:
        """Jobs that can run at once."""
        return len(self._members)

    async def __aenter__(self) -> Fleet[Job, R]:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def map(self, jobs: Sequence[Job]) -> list[R | JobFailed | Lost]:
        """The outcome of each job, in the jobs' order. A worker may be given its job itself, or a copy of it.

        Cancelled, it lets no job run on: those that wait never start; those that run are ended with their members on
        Ray, and waited for in this process, because a thread cannot be ended.

        Raises:
            FuguError: members died again and again and no job ended; the fleet is closed; or another `map` is running.
            Exception: what `make_worker` raised.
        """
        if self._is_closed:
            raise FuguError("map of a fleet that is closed")
        if self._work is not None:
            raise FuguError("map of a fleet that is mapping already: give it all jobs as one list")
        work = self._work = _Work(tuple(jobs))
        try:
            if work.jobs:
                await self._host.open()
                await self._finish(work)
        except ExceptionGroup as several:  # of the task group: members often fail in the same way
            raise several.exceptions[0] from several.exceptions[0].__cause__
        finally:
            self._work = None
            work.has_ended.set()
        return [work.outcomes[index] for index in range(len(work.jobs))]

    async def close(self) -> None:
        """Ends a `map` that runs in the same event loop, which raises; then all members. Idempotent."""
        self._is_closed = True
        if self._work is not None:
            self._work.may_end.set()
            await self._work.has_ended.wait()  # before the host is gone that its members are waiting for
        members, self._members = self._members, [None] * self.size
        for member in members:
            if member is not None:
                member.stop()
        await self._host.close()

    async def _finish(self, work: _Work[Job, R]) -> None:
        async with asyncio.TaskGroup() as group:
            servers = [group.create_task(self._serve(slot, work)) for slot in range(self.size)]
            await work.may_end.wait()
            for server in servers:  # they wait for a job, or for a member that is no longer needed in this map
                server.cancel()
        if self._is_closed:
            raise FuguError("the fleet was closed while it had jobs")

    async def _serve(self, slot: int, work: _Work[Job, R]) -> None:
        while True:
            member = await self._wait_member(slot, work)
            index = await work.waiting.get()
            try:
                outcome = await member.run(work.jobs[index])
            except MemberDied as death:
                self._bury(slot, death, work)
                work.count_death(index, str(death), self._limits.max_attempts)
            except BaseException:  # cancelled: the next map needs a member that has nothing to do
                self._drop(slot, member)
                raise
            else:
                work.end(index, outcome)

    async def _wait_member(self, slot: int, work: _Work[Job, R]) -> Member[Job, R]:
        while True:
            member = self._members[slot]
            if member is None:
                member = self._members[slot] = self._host.add()
                self.restarts += slot in self._dead
                self._dead.discard(slot)
            try:
                await member.wait_ready()
            except MemberDied as death:
                self._bury(slot, death, work)
            except Exception:
                self._drop(slot, member)
                raise
            else:
                return member

    def _bury(self, slot: int, death: MemberDied, work: _Work[Job, R]) -> None:
        self._members[slot] = None
        self._dead.add(slot)
        self.deaths += 1
        work.deaths_in_a_row += 1
        log.warning("member %d of %d died: %s", slot, self.size, death)
        if work.deaths_in_a_row > self._limits.restarts_per_member * self.size:
            raise FuguError(
                f"{work.deaths_in_a_row} members of a fleet of {self.size} died and no job ended in between, "
                f"the last one so: {death}"
            )

    def _drop(self, slot: int, member: Member[Job, R]) -> None:
        member.stop()
        self._members[slot] = None


@dataclass(slots=True)
class _Work(Generic[Job, R]):
    """One `map`: which jobs wait, what has come of the others."""

    jobs: tuple[Job, ...]
    outcomes: dict[int, R | JobFailed | Lost] = field(default_factory=dict)
    waiting: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Every index at most once, so it holds no more than there are jobs."""
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    """All jobs have their outcomes, or the fleet is to close."""
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: dict[int, int] = field(default_factory=dict)
    """By job."""
    deaths_in_a_row: int = 0

    def __post_init__(self) -> None:
        for index in range(len(self.jobs)):
            self.waiting.put_nowait(index)

    def end(self, index: int, outcome: R | Raised) -> None:
        self.deaths_in_a_row = 0
        if isinstance(outcome, Raised):
            self._put(index, JobFailed(index=index, error=outcome.error, traceback=outcome.traceback))
        else:
            self._put(index, outcome)

    def count_death(self, index: int, reason: str, max_attempts: int) -> None:
        self.deaths[index] = self.deaths.get(index, 0) + 1
        if self.deaths[index] < max_attempts:
            self.waiting.put_nowait(index)  # behind the others: it must not hold them up
        else:
            log.error("job %d is lost: %d members died with it", index, self.deaths[index])
            self._put(index, Lost(index=index, attempts=self.deaths[index], reason=reason))

    def _put(self, index: int, outcome: R | JobFailed | Lost) -> None:
        self.outcomes[index] = outcome
        if len(self.outcomes) == len(self.jobs):
            self.may_end.set()


def take_results(outcomes: Sequence[R | JobFailed | Lost]) -> list[R]:
    """The results, if every job has one.

    Raises:
        FuguError: a job was lost.
        Exception: the error of the first job that failed, with a note that names the job.
    """
    results = []
    for outcome in outcomes:
        if isinstance(outcome, Lost):
            raise FuguError(
                f"job {outcome.index} of {len(outcomes)} is lost: {outcome.attempts} members died with it, "
                f"the last one so: {outcome.reason}"
            )
        if isinstance(outcome, JobFailed):
            note = f"in job {outcome.index} of {len(outcomes)}"
            crossed = outcome.error.__traceback__ is None
            outcome.error.add_note(f"{note}, elsewhere:\n{outcome.traceback}" if crossed else note)
            raise outcome.error
        results.append(outcome)
    return results


def attempt(work: Callable[[], T]) -> T | Raised:
    """The boundary of jobs: what they raise is their outcome. Only what asks for the end of the process passes."""
    try:
        return work()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  # a CancelledError of the job's own loop is the job's failure, too
        return Raised(error, "".join(traceback.format_exception(error)))


def in_process(
    make_worker: Callable[[], Callable[[Job], R]],
    limits: FleetLimits = FleetLimits(),
) -> Fleet[Job, R]:
    """A fleet of one member, a thread of this process: jobs run one after another, in order.

    A job that ends its thread by `SystemExit` counts as a death; one that ends the process ends everything.
    """
    return Fleet(_ThreadHost(make_worker), 1, limits)


class _ThreadHost(Generic[Job, R]):
    def __init__(self, make_worker: Callable[[], Callable[[Job], R]]) -> None:
        self._make_worker = make_worker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet")

    async def open(self) -> None:
        pass

    def add(self) -> _ThreadMember[Job, R]:
        return _ThreadMember(self._make_worker, self._thread)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class _ThreadMember(Generic[Job, R]):
    def __init__(self, make_worker: Callable[[], Callable[[Job], R]], thread: ThreadPoolExecutor) -> None:
        self._make_worker = make_worker
        self._thread = thread
        self._worker: Callable[[Job], R] | None = None

    async def wait_ready(self) -> None:
        if self._worker is None:
            made = await _run_in(self._thread, self._make_worker)
            if isinstance(made, Raised):
                raise made.error
            self._worker = made

    async def run(self, job: Job) -> R | Raised:
        worker = self._worker
        assert worker is not None, "run before wait_ready"
        return await _run_in(self._thread, lambda: worker(job))

    def stop(self) -> None:
        pass


async def _run_in(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T | Raised:
    """Cancelled, it waits for the work to end before it gives way."""
    future = asyncio.wrap_future(thread.submit(_attempt_in_thread, work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        with suppress(MemberDied):
            await future
        raise


def _attempt_in_thread(work: Callable[[], T]) -> T | Raised:
    try:
        return attempt(work)
    except (SystemExit, KeyboardInterrupt) as end:
        # as itself, it would end the event loop that awaits it
        raise MemberDied(f"its thread was ended by {end!r}") from end
