"""What every fleet does, in this process and on Ray; and what it decides when its members die as a script says."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.cluster import Fleet, FleetLimits, JobFailed, Lost, RayOptions, in_process, on_ray, take_results
from torafugu.cluster.fleet import MemberDied, Raised
from torafugu.errors import ConfigError, FuguError, WorkerError

OpenFleet = Callable[..., Fleet[Any, Any]]
SIZE_ON_RAY = 2


@pytest.fixture(scope="module", params=["in_process", "ray"])
def open_fleet(request: pytest.FixtureRequest) -> Iterator[OpenFleet]:
    if request.param == "in_process":
        yield in_process
        return
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it
    ray.init(
        address="local", num_cpus=SIZE_ON_RAY, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield open_on_ray
    ray.shutdown()


def open_on_ray(make_worker: Callable[[], Any], *limits: FleetLimits) -> Fleet[Any, Any]:
    return on_ray(make_worker, RayOptions(size=SIZE_ON_RAY), *limits)


# --- workers; on Ray they run in other processes, so they tell through files ---


def tell(folder: Path, what: str) -> None:
    """One line, whole, whoever else writes."""
    file = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what}\n".encode())
    os.close(file)


def told(folder: Path) -> list[str]:
    path = folder / "told"
    return path.read_text().splitlines() if path.exists() else []


def is_first(folder: Path, what: object) -> bool:
    """Whether nobody has asked this before."""
    try:
        (folder / f"first-{what}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make_square() -> Callable[[int], int]:
    return lambda job: job * job


def make_echo() -> Callable[[Any], Any]:
    return lambda job: job


def make_counted(folder: Path) -> Callable[[int], int]:
    tell(folder, "made")
    return lambda job: job


def fail(job: Any) -> Any:
    if isinstance(job, BaseException):
        raise job
    return job


def make_failing() -> Callable[[Any], Any]:
    return fail


def make_mortal(folder: Path, times: int) -> Callable[[int], int]:
    """Negative jobs end their member that often."""

    def work(job: int) -> int:
        if job < 0 and any(is_first(folder, f"{job}-{time}") for time in range(times)):
            sys.exit(f"job {job}")
        return job

    return work


def make_stillborn(folder: Path) -> Callable[[int], int]:
    tell(folder, "made")
    sys.exit("no memory")


def make_when_mended(folder: Path) -> Callable[[int], int]:
    if not (folder / "mended").exists():
        raise ConfigError("no such data: 'x'")
    return lambda job: job


def make_ticking(folder: Path, ticks: int) -> Callable[[int], int]:
    """A job tells that it began, every tick, and that it ended."""

    def work(job: int) -> int:
        tell(folder, f"+{job}")
        for _ in range(ticks):
            time.sleep(0.02)
            tell(folder, f".{job}")
        tell(folder, f"-{job}")
        return job

    return work


async def wait_told(folder: Path, what: str) -> None:
    async with asyncio.timeout(30):
        while what not in told(folder):  # noqa: ASYNC110  # another process tells it
            await asyncio.sleep(0.01)


async def map_once(fleet: Fleet[Any, Any], jobs: Sequence[Any]) -> list[Any]:
    async with fleet, asyncio.timeout(60):
        return await fleet.map(jobs)


# --- the contract ---


def test_order(open_fleet: OpenFleet) -> None:
    """Outcomes stand where their jobs stood, though jobs outnumber members."""
    assert asyncio.run(map_once(open_fleet(make_square), range(40))) == [job * job for job in range(40)]


def test_no_jobs(open_fleet: OpenFleet) -> None:
    """No jobs, no outcomes, and nothing is started for them."""
    assert asyncio.run(map_once(open_fleet(sys.exit), [])) == []


def test_values_cross_whole(open_fleet: OpenFleet) -> None:
    """Arrays, None and nested values come back as they were, and can be written to."""
    jobs = [np.arange(30_000.0).reshape(100, 300), None, {"a": [1, 2.5, ("x", b"y")]}]
    array, nothing, nested = asyncio.run(map_once(open_fleet(make_echo), jobs))
    np.testing.assert_array_equal(array, jobs[0])
    array[0, 0] = -1.0
    assert nothing is None
    assert nested == jobs[2]


def test_rows_of_an_array_are_jobs(open_fleet: OpenFleet) -> None:
    """An array of candidates is a sequence of jobs."""
    rows = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(asyncio.run(map_once(open_fleet(make_echo), rows)), rows)


def test_context_is_made_once_per_member(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """Each member makes its worker once, however many jobs and maps there are; each map may have a loop of its own."""
    fleet = open_fleet(partial(make_counted, tmp_path))
    for _ in range(3):
        assert asyncio.run(fleet.map(range(10))) == list(range(10))
    asyncio.run(fleet.close())
    assert 1 <= len(told(tmp_path)) <= fleet.size
    assert (fleet.deaths, fleet.restarts) == (0, 0)


def test_failure_is_an_outcome(open_fleet: OpenFleet) -> None:
    """A job that raises has its error as its outcome, whole and with its traceback; the others have their results."""
    error = WorkerError("slow down", worker="gpt-x", code="rate_limited", retry_after_s=2.5)
    error.add_note("in step 3")
    first, failed, broken, last = asyncio.run(map_once(open_fleet(make_failing), [1, error, KeyError("k"), 4]))
    assert (first, last) == (1, 4)
    assert isinstance(failed, JobFailed)
    assert isinstance(failed.error, WorkerError)
    assert (failed.index, str(failed.error), vars(failed.error)) == (1, "slow down", vars(error))
    assert "in fail" in failed.traceback
    assert isinstance(broken, JobFailed)
    assert (broken.index, repr(broken.error)) == (2, "KeyError('k')")


@pytest.mark.parametrize("error", [asyncio.CancelledError("inner"), GeneratorExit(), StopIteration(3)], ids=repr)
def test_any_exception_is_the_jobs(open_fleet: OpenFleet, error: BaseException) -> None:
    """An exception that means something to the event loop is the job's failure, too, and ends nobody else."""
    one, failed, two = asyncio.run(map_once(open_fleet(make_failing), [1, error, 2]))
    assert (one, two) == (1, 2)
    assert isinstance(failed, JobFailed)
    assert type(failed.error) is type(error)


def test_death_is_survived(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """A job whose member ends with it runs again on a new one; the death and the restart are counted."""
    fleet = open_fleet(partial(make_mortal, tmp_path, 1))
    jobs = [1, -2, 3, -4, 5]
    assert asyncio.run(map_once(fleet, jobs)) == jobs
    assert fleet.deaths == 2
    assert 1 <= fleet.restarts <= 2


def test_killer_is_lost(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """A job that ends every member is given up with the reason, and no other job is."""
    fleet = open_fleet(partial(make_mortal, tmp_path, 99), FleetLimits(max_attempts=2, restarts_per_member=5))
    one, lost, three = asyncio.run(map_once(fleet, [1, -2, 3]))
    assert (one, three) == (1, 3)
    assert isinstance(lost, Lost)
    assert (lost.index, lost.attempts) == (1, 2)
    assert "exit" in lost.reason.lower()
    assert fleet.deaths == 2


def test_fleet_without_members_raises(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """When every member dies before it can work, `map` raises after so many restarts; it does not wait for ever."""
    fleet = open_fleet(partial(make_stillborn, tmp_path), FleetLimits(restarts_per_member=1))
    with pytest.raises(FuguError, match=f"{fleet.size + 1} members of a fleet of {fleet.size} died"):
        asyncio.run(map_once(fleet, range(3)))
    assert fleet.size < len(told(tmp_path)) <= fleet.size * 2
    assert fleet.deaths == fleet.size + 1


def test_what_make_worker_raises(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """What `make_worker` raises, `map` raises, and the next map tries again."""

    async def main() -> None:
        async with open_fleet(partial(make_when_mended, tmp_path)) as fleet:
            with pytest.raises(ConfigError, match="no such data: 'x'"):
                await fleet.map([1, 2])
            (tmp_path / "mended").touch()
            assert await fleet.map([1, 2]) == [1, 2]
            assert (fleet.deaths, fleet.restarts) == (0, 0)

    asyncio.run(main())


def test_cancelling_leaves_no_work(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """After `map` was cancelled no job runs on and none begins; the fleet can map again."""

    async def main() -> None:
        async with open_fleet(partial(make_ticking, tmp_path, 10)) as fleet:
            mapping = asyncio.create_task(fleet.map(range(20)))
            await wait_told(tmp_path, ".0")
            mapping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mapping
            await asyncio.sleep(0.1)  # a killed process may get to say one more word
            before = told(tmp_path)
            await asyncio.sleep(0.1)
            assert told(tmp_path) == before
            assert sum(line.startswith("+") for line in before) <= fleet.size
            assert await fleet.map([99]) == [99]
            assert fleet.deaths == 0

    asyncio.run(main())


def test_in_flight_is_bounded(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """No more jobs run at once than the fleet has members."""
    fleet = open_fleet(partial(make_ticking, tmp_path, 1))
    asyncio.run(map_once(fleet, range(12)))
    running = np.cumsum([{"+": 1, "-": -1}.get(line[0], 0) for line in told(tmp_path)])
    assert 1 <= running.max() <= fleet.size
    assert running[-1] == 0


def test_close(open_fleet: OpenFleet) -> None:
    """Closing again does nothing; a closed fleet maps no more; one that never mapped can be closed."""

    async def main() -> None:
        fleet = open_fleet(make_echo)
        assert await fleet.map([1]) == [1]
        await fleet.close()
        await fleet.close()
        with pytest.raises(FuguError, match="closed"):
            await fleet.map([1])
        await open_fleet(make_echo).close()

    asyncio.run(main())


def test_close_ends_a_map(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """Closing the fleet makes the map that runs raise, without counting deaths."""

    async def main() -> None:
        fleet = open_fleet(partial(make_ticking, tmp_path, 5))
        mapping = asyncio.create_task(fleet.map(range(50)))
        await wait_told(tmp_path, "+0")
        await fleet.close()
        with pytest.raises(FuguError, match="closed while it had jobs"):
            await mapping
        assert fleet.deaths == 0

    asyncio.run(main())


def test_one_map_at_a_time(open_fleet: OpenFleet, tmp_path: Path) -> None:
    """A second map at the same time is refused, and does not disturb the first."""

    async def main() -> None:
        async with open_fleet(partial(make_ticking, tmp_path, 5)) as fleet:
            mapping = asyncio.create_task(fleet.map([0, 1]))
            await wait_told(tmp_path, "+0")
            with pytest.raises(FuguError, match="mapping already"):
                await fleet.map([2])
            assert await mapping == [0, 1]

    asyncio.run(main())


# --- results, or an error ---


def test_take_results() -> None:
    """Results are taken only if every job has one; else the first failure is raised and says which job it was."""
    assert take_results([1, None, 3]) == [1, None, 3]
    error = ValueError("bad")
    with pytest.raises(ValueError, match="bad") as caught:
        take_results([1, JobFailed(index=1, error=error, traceback="line 7\n"), 3])
    assert caught.value is error
    assert error.__notes__ == ["in job 1 of 3, elsewhere:\nline 7\n"]
    with pytest.raises(FuguError, match=r"job 0 of 1 is lost: 3 members died with it, the last one so: no memory"):
        take_results([Lost(index=0, attempts=3, reason="no memory")])


@pytest.mark.parametrize("limits", [{"max_attempts": 0}, {"restarts_per_member": -1}])
def test_limits_make_sense(limits: dict[str, int]) -> None:
    """Limits with which nothing could run are refused."""
    with pytest.raises(ConfigError, match="at least 1 attempt"):
        FleetLimits(**limits)


# --- members that die as a script says ---


@dataclass(frozen=True)
class ScriptedJob:
    name: int
    deaths: int
    """Members that die with it before it ends."""
    is_failing: bool
    turns: int
    """Of the event loop, that it takes to end."""


class ScriptedHost:
    """Members that are coroutines; of those that are started, every `stillborn`-th dies before it is ready."""

    def __init__(self, stillborn: int = 0, stuck: frozenset[int] = frozenset()) -> None:
        self.stillborn = stillborn
        self.stuck = stuck
        self.added = 0
        self.runs: Counter[int] = Counter()
        self.running = self.most_running = self.stopped = 0

    async def open(self) -> None:
        await asyncio.sleep(0)

    def add(self) -> ScriptedMember:
        self.added += 1
        return ScriptedMember(self, self.added)

    async def close(self) -> None:
        await asyncio.sleep(0)


class ScriptedMember:
    def __init__(self, host: ScriptedHost, number: int) -> None:
        self._host = host
        self._number = number
        self._is_alive = True

    async def wait_ready(self) -> None:
        await asyncio.sleep(0)
        if self._number in self._host.stuck:
            await asyncio.Event().wait()
        if self._host.stillborn and self._number % self._host.stillborn == 0:
            raise MemberDied("stillborn")

    async def run(self, job: ScriptedJob) -> int | Raised:
        host = self._host
        assert self._is_alive, "a dead member was given a job"
        host.runs[job.name] += 1
        host.running += 1
        host.most_running = max(host.most_running, host.running)
        try:
            for _ in range(job.turns if host.runs[job.name] > job.deaths else 1):
                await asyncio.sleep(0)
        finally:
            host.running -= 1
        if host.runs[job.name] <= job.deaths:
            self._is_alive = False
            raise MemberDied(f"death {host.runs[job.name]} of job {job.name}")
        return Raised(ValueError(job.name), "") if job.is_failing else job.name

    def stop(self) -> None:
        self._host.stopped += 1
        self._is_alive = False


jobs_lists = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 5)), max_size=12).map(
    lambda jobs: [ScriptedJob(name, *job) for name, job in enumerate(jobs)]
)


@settings(max_examples=150, deadline=None, database=None)
@given(jobs=jobs_lists, size=st.integers(1, 4), attempts=st.integers(1, 4), stillborn=st.sampled_from([0, 2, 3]))
def test_every_job_has_its_outcome(jobs: list[ScriptedJob], size: int, attempts: int, stillborn: int) -> None:
    """However members die, each job runs until it ended or was given up, no more often, and all deaths are counted."""
    host = ScriptedHost(stillborn)
    fleet = Fleet(host, size, FleetLimits(max_attempts=attempts, restarts_per_member=500))
    outcomes = asyncio.run(map_once(fleet, jobs))
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.deaths >= attempts:
            assert outcome == Lost(index=job.name, attempts=attempts, reason=f"death {attempts} of job {job.name}")
        elif job.is_failing:
            assert (outcome.index, outcome.error.args) == (job.name, (job.name,))
        else:
            assert outcome == job.name
        assert host.runs[job.name] == min(job.deaths + 1, attempts)
    deaths = sum(min(job.deaths, attempts) for job in jobs)
    assert host.most_running <= size
    assert deaths <= fleet.deaths <= deaths + host.added
    assert fleet.restarts <= fleet.deaths
    assert host.added <= size + fleet.restarts


def test_deaths_in_a_row_are_limited() -> None:
    """Deaths count towards the limit only while no job ends: many killers among good jobs are survived."""
    killer, good = ScriptedJob(0, 99, False, 0), ScriptedJob(1, 0, False, 0)
    limits = FleetLimits(max_attempts=1, restarts_per_member=1)
    mixed = Fleet(ScriptedHost(), 1, limits)
    outcomes = asyncio.run(map_once(mixed, [killer, good] * 5))
    assert [type(outcome) for outcome in outcomes] == [Lost, int] * 5
    assert mixed.deaths == 5
    for size in (1, 3):
        with pytest.raises(FuguError, match=f"{size + 1} members of a fleet of {size} died and no job ended"):
            asyncio.run(map_once(Fleet(ScriptedHost(), size, limits), [killer] * 9))


def test_cancelling_stops_the_busy() -> None:
    """Members that had a job when `map` was cancelled are stopped and made anew, which is no death and no restart."""
    host = ScriptedHost()
    dies_once_then_endless = ScriptedJob(0, 1, False, 10**9)

    async def main() -> None:
        fleet = Fleet(host, 1)
        mapping = asyncio.create_task(fleet.map([dies_once_then_endless]))
        while host.runs[0] < 2:  # noqa: ASYNC110  # a few turns of the loop
            await asyncio.sleep(0)
        mapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapping
        assert (host.added, host.stopped, host.running) == (2, 1, 0)
        assert await fleet.map([ScriptedJob(2, 0, False, 1)] * 4) == [2] * 4
        assert (host.added, fleet.deaths, fleet.restarts) == (3, 1, 1)

    asyncio.run(main())


def test_member_that_does_not_start_holds_nobody_up() -> None:
    """The jobs end on the members that there are; a member that still starts is waited for again by the next map."""
    host = ScriptedHost(stuck=frozenset({1}))

    async def main() -> None:
        fleet = Fleet(host, 2)
        jobs = [ScriptedJob(name, 0, False, 1) for name in range(5)]
        for _ in range(2):
            async with asyncio.timeout(10):
                assert await fleet.map(jobs) == [0, 1, 2, 3, 4]
        assert (host.added, host.stopped) == (2, 0)
        host.stuck = frozenset()
        assert await fleet.map(jobs) == [0, 1, 2, 3, 4]
        await fleet.close()
        assert (host.added, host.stopped) == (2, 2)

    asyncio.run(main())


def test_jobs_of_a_slow_death_go_to_the_living() -> None:
    """A job whose member died is taken over by a member that is idle, while the dead one's place is still empty."""
    host = ScriptedHost(stuck=frozenset({3, 4}))
    jobs = [ScriptedJob(0, 1, False, 4), ScriptedJob(1, 0, False, 1)]
    assert asyncio.run(map_once(Fleet(host, 2), jobs)) == [0, 1]
    assert host.added == 3
