"""What is Ray's own about a fleet on Ray: processes that are killed, pickles, a cluster that others use.

What every fleet does is in test_fleet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torafugu.cluster import Fleet, FleetLimits, JobFailed, Lost, RayOptions, on_ray
from torafugu.errors import ConfigError, FuguError

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from torafugu.cluster import RayOptions, on_ray
from torafugu.errors import ConfigError
try:
    on_ray(list, RayOptions(size=1))
except ConfigError as error:
    print(error)
"""
JOIN = """
import asyncio, sys
from torafugu.cluster import RayOptions, on_ray

async def main():
    async with on_ray(lambda: abs, RayOptions(size=1, address=sys.argv[1], cpus_per_member=0.5)) as fleet:
        print(await fleet.map([-1, -2]))

asyncio.run(main())
"""


def test_ray_is_missing() -> None:
    """Without Ray the fleet is refused at once, and the error says what to install."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'torafugu[ray]'" in done.stdout


def test_ray_is_imported_late() -> None:
    """Importing the package does not import Ray."""
    command = [
        sys.executable,
        "-c",
        "import sys, torafugu.cluster; print('ray' in sys.modules, 'numpy' in sys.modules)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 1, "cpus_per_member": -1.0},
        {"size": 1, "start_timeout_s": float("nan")},
        {"size": 1, "address": "ray://127.0.0.1:10001"},
        {"size": 1, "address": "cluster"},
    ],
)
def test_options_make_sense(options: dict[str, Any]) -> None:
    """Options that nothing could run with are refused."""
    with pytest.raises(ConfigError, match="expected"):
        RayOptions(**options)


# --- workers ---


def make_pid() -> Callable[[Any], int]:
    return lambda job: os.getpid()


def make_victim(folder: Path) -> Callable[[int], int]:
    """Job 1 tells its process, then waits to be killed; run again, it ends."""

    def work(job: int) -> int:
        if job == 1 and not (folder / "pid").exists():
            (folder / "pid.part").write_text(str(os.getpid()))
            (folder / "pid.part").rename(folder / "pid")
            time.sleep(60)
        return job * 10

    return work


def make_environment() -> Callable[[str], str | None]:
    return os.environ.get


def make_sum(array: Any) -> Callable[[float], float]:
    def work(job: float) -> float:
        if job < 0:
            array[0] = job
        return float(array.sum() + job)

    return work


class Unreadable(Exception):
    """Can be pickled, but not read: the default for an exception with arguments of its own."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def make_awkward() -> Callable[[str], Any]:
    def work(job: str) -> Any:
        if job == "unreadable":
            raise Unreadable(1, 2)
        return threading.Lock() if job == "lock" else job

    return work


async def wait_pid(path: Path) -> int:
    """The process id in a file that another process makes."""
    await wait_true(path.exists)
    return int(path.read_text())  # noqa: ASYNC240  # a few bytes


async def wait_end(pid: int) -> None:
    await wait_true(lambda: not is_running(pid))


async def wait_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # other processes make it true
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not if only its exit status is left."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- Ray of the fleet's own ---


@pytest.fixture(scope="module")
def ray() -> Any:
    module = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it
    return module


def test_starts_and_ends_ray(ray: Any) -> None:
    """With the first jobs a Ray of its own starts, its members are other processes, and closing ends it all.

    The program's handler of SIGTERM stays.
    """
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> set[int]:
        fleet = on_ray(make_pid, RayOptions(size=2))
        assert not ray.is_initialized()
        pids = set(await fleet.map(range(20)))
        assert ray.is_initialized()
        await fleet.close()
        await fleet.close()
        for pid in pids:
            await wait_end(pid)
        return pids

    pids = asyncio.run(main())
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before


def test_close_ends_a_map_and_ray(ray: Any, tmp_path: Path) -> None:
    """Closing while jobs run ends them, the map and the Ray that the fleet started; nobody waits for ever."""

    async def main() -> None:
        fleet = on_ray(partial(make_victim, tmp_path), RayOptions(size=1))
        mapping = asyncio.create_task(fleet.map([1, 2]))
        pid = await wait_pid(tmp_path / "pid")
        async with asyncio.timeout(30):
            await fleet.close()
            with pytest.raises(FuguError, match="closed while it had jobs"):
                await mapping
        await wait_end(pid)

    asyncio.run(main())
    assert not ray.is_initialized()


@pytest.mark.usefixtures("ray")
def test_no_cluster_at_the_address() -> None:
    """An address where nothing answers is an error within seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        with pytest.raises(ConfigError, match=rf"Ray at '{address}' cannot be joined: .*refused"):
            asyncio.run(map_once(on_ray(make_pid, RayOptions(size=1, address=address)), [1]))


# --- a Ray that is there already ---


@pytest.fixture(scope="module")
def cluster(ray: Any) -> Iterator[str]:
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def open_fleet(make_worker: Callable[[], Any], *limits: FleetLimits) -> Fleet[Any, Any]:
    return on_ray(make_worker, RayOptions(size=2), *limits)


@pytest.mark.usefixtures("cluster")
def test_kill_in_the_middle_of_a_job(tmp_path: Path) -> None:
    """A member's process is killed while it works: its job is done by another process, and the death is counted."""

    async def main() -> None:
        async with open_fleet(partial(make_victim, tmp_path)) as fleet:
            mapping = asyncio.create_task(fleet.map(range(6)))
            pid = await wait_pid(tmp_path / "pid")
            os.kill(pid, signal.SIGKILL)
            assert await mapping == [0, 10, 20, 30, 40, 50]
            assert (fleet.deaths, fleet.restarts) == (1, 1)

    asyncio.run(main())


@pytest.mark.usefixtures("cluster")
def test_sigterm_in_the_middle_of_a_job(tmp_path: Path) -> None:
    """A member that is told to go, as when its machine is taken away, is a death and not a failure of its job."""

    async def main() -> None:
        async with open_fleet(partial(make_victim, tmp_path)) as fleet:
            mapping = asyncio.create_task(fleet.map(range(3)))
            os.kill(await wait_pid(tmp_path / "pid"), signal.SIGTERM)
            assert await mapping == [0, 10, 20]
            assert fleet.deaths == 1

    asyncio.run(main())


@pytest.mark.usefixtures("cluster")
def test_all_members_die_between_maps() -> None:
    """Members that die while they have nothing to do are replaced by the next map."""

    async def main() -> None:
        async with open_fleet(make_pid) as fleet:
            pids = set(await fleet.map(range(50)))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                await wait_end(pid)
            again = await fleet.map(range(50))
            assert all(isinstance(pid, int) for pid in again)
            assert not pids & set(again)
            assert 1 <= fleet.deaths <= 2
            assert fleet.restarts == fleet.deaths

    asyncio.run(main())


@pytest.mark.usefixtures("cluster")
def test_killer_is_lost_with_the_reason(tmp_path: Path) -> None:
    """What Ray knows of a death is the reason of the loss."""

    async def main() -> None:
        async with open_fleet(lambda: lambda job: os.kill(os.getpid(), job), FleetLimits(max_attempts=1)) as fleet:
            (lost,) = await fleet.map([signal.SIGKILL])
            assert isinstance(lost, Lost)
            assert "worker process has died" in lost.reason
            assert "\n" not in lost.reason

    asyncio.run(main())


@pytest.mark.usefixtures("cluster")
def test_cancelling_kills(tmp_path: Path) -> None:
    """A job that runs when `map` is cancelled is ended with its process."""

    async def main() -> None:
        async with open_fleet(partial(make_victim, tmp_path)) as fleet:
            mapping = asyncio.create_task(fleet.map([1]))
            pid = await wait_pid(tmp_path / "pid")
            mapping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mapping
            await wait_end(pid)
            assert fleet.deaths == 0

    asyncio.run(main())


@pytest.mark.usefixtures("cluster")
def test_what_cannot_cross() -> None:
    """A job that cannot be sent, a result that cannot, an error that could not be read: each is that job's failure."""

    async def main() -> list[Any]:
        async with open_fleet(make_awkward) as fleet:
            return await fleet.map([threading.Lock(), "lock", "unreadable", "fine"])

    unsent, result, unreadable, fine = asyncio.run(main())
    assert fine == "fine"
    assert all(isinstance(failed, JobFailed) for failed in (unsent, result, unreadable))
    assert isinstance(unsent.error, TypeError)
    assert "the result cannot be sent, in words only: TypeError: cannot pickle '_thread.lock'" in str(result.error)
    assert "Unreadable: 1 and 2" in str(unreadable.error)
    assert "raise Unreadable(1, 2)" in unreadable.traceback


@pytest.mark.usefixtures("cluster")
def test_make_worker_that_cannot_be_sent() -> None:
    """A `make_worker` that holds what cannot be pickled is refused."""
    lock = threading.Lock()
    with pytest.raises(FuguError, match="make_worker cannot be sent"):
        asyncio.run(map_once(open_fleet(lambda: lambda job: lock), [1]))


@pytest.mark.usefixtures("cluster")
def test_context_crosses_once_and_is_shared() -> None:
    """An array inside `make_worker` is at hand in every member, and cannot be written to, since they share it."""
    first, failed = asyncio.run(map_once(open_fleet(partial(make_sum, np.ones(50_000))), [1.0, -1.0]))
    assert first == 50_001
    assert isinstance(failed, JobFailed)
    assert "read-only" in str(failed.error)


@pytest.mark.usefixtures("cluster")
def test_one_thread_for_each_member() -> None:
    """Members compute with one BLAS thread each."""
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    assert asyncio.run(map_once(open_fleet(make_environment), names)) == ["1", "1", "1"]


@pytest.mark.usefixtures("cluster")
def test_no_room() -> None:
    """Members for which the cluster has no room count as dead after the time given, and `map` raises."""
    options = RayOptions(size=1, cpus_per_member=1000, start_timeout_s=0.2)
    fleet = on_ray(make_pid, options, FleetLimits(restarts_per_member=1))
    with pytest.raises(FuguError, match=r"its worker was not made within 0\.2 s"):
        asyncio.run(map_once(fleet, [1]))
    assert (fleet.deaths, fleet.restarts) == (2, 1)


def test_room_for_one_of_two(cluster: str) -> None:
    """Where there is room for fewer members than asked for, those that fit do all jobs."""
    fleet = on_ray(make_pid, RayOptions(size=2, cpus_per_member=2))
    assert len(set(asyncio.run(map_once(fleet, range(5))))) == 1


def test_joined_ray_is_left_running(ray: Any, cluster: str) -> None:
    """A fleet leaves a Ray that it found: of its own process, or of another one that it joined by address."""
    asyncio.run(map_once(open_fleet(make_pid), [1]))
    assert ray.is_initialized()
    command = [sys.executable, "-c", JOIN, cluster]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[1, 2]", done.stderr
    assert asyncio.run(map_once(open_fleet(make_environment), ["OMP_NUM_THREADS"])) == ["1"]


def test_address_beside_a_connection(cluster: str) -> None:
    """An address is refused when the process is connected already: it would not be used."""
    with pytest.raises(ConfigError, match="connected to Ray already"):
        asyncio.run(map_once(on_ray(make_pid, RayOptions(size=1, address=cluster)), [1]))


async def map_once(fleet: Fleet[Any, Any], jobs: list[Any] | range) -> list[Any]:
    async with fleet, asyncio.timeout(60):
        return await fleet.map(jobs)
