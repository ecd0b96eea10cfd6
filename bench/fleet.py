"""What does a fleet cost per job? `python -m bench.fleet [--seconds S] [--members N]` prints JSON.

`per_job_us`: wall time of a map of jobs that do next to nothing, by the job's content: a number, or a vector of
`VECTOR_SIZE` float64, the weights of the largest trained coordinator. On Ray the members' processes share the machine's
cores with this one. `first_map_s` includes the start of Ray and its members; `replace_s` is a map of one job that finds
its member dead. `ray` is null where Ray is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from torafugu.cluster import Fleet, RayOptions, in_process, on_ray, take_results

VECTOR_SIZE = 19_456
JOBS_PER_MAP = 64
WARM_UP_MAPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--members", type=int, default=2, help="of the fleet on Ray")
    options = parser.parse_args()
    report = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "jobs_per_map": JOBS_PER_MAP,
        "vector_bytes": VECTOR_SIZE * 8,
        "in_process": asyncio.run(measure_fleet(in_process(make_pid), options.seconds)),
        "ray": None,
    }
    if importlib.util.find_spec("ray") is not None:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray prints that a member died
            report["ray"] = asyncio.run(measure_ray(options.members, options.seconds))
    print(json.dumps(report, indent=2))


def make_pid() -> Callable[[Any], int]:
    return lambda job: os.getpid()


async def measure_fleet(fleet: Fleet[Any, int], seconds: float) -> dict[str, Any]:
    async with fleet:
        return {"per_job_us": await measure_contents(fleet, seconds)}


async def measure_ray(members: int, seconds: float) -> dict[str, Any]:
    async with on_ray(make_pid, RayOptions(size=members)) as fleet:
        first_map_s = await time_map(fleet, [0])
        per_job_us = await measure_contents(fleet, seconds)
    async with on_ray(make_pid, RayOptions(size=1)) as fleet:
        (pid,) = take_results(await fleet.map([0]))
        os.kill(pid, signal.SIGKILL)
        replace_s = await time_map(fleet, [0])
        assert fleet.restarts == 1, f"expected one member to be replaced, not {fleet.restarts}"
    return {
        "ray": version("ray"),
        "members": members,
        "first_map_s": round(first_map_s, 2),
        "replace_s": round(replace_s, 2),
        "per_job_us": per_job_us,
    }


async def measure_contents(fleet: Fleet[Any, int], seconds: float) -> dict[str, dict[str, float]]:
    vector = np.random.default_rng(1).standard_normal(VECTOR_SIZE)
    return {
        "number": await measure(fleet, list(range(JOBS_PER_MAP)), seconds),
        "vector": await measure(fleet, [vector + n for n in range(JOBS_PER_MAP)], seconds),
    }


async def measure(fleet: Fleet[Any, int], jobs: list[Any], seconds: float) -> dict[str, float]:
    for _ in range(WARM_UP_MAPS):
        await time_map(fleet, jobs)
    per_job_us: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not per_job_us:
        per_job_us.append(await time_map(fleet, jobs) / len(jobs) * 1e6)
    return {
        "median": round(statistics.median(per_job_us), 1),
        "fastest": round(min(per_job_us), 1),
        "slowest": round(max(per_job_us), 1),
        "maps": len(per_job_us),
    }


async def time_map(fleet: Fleet[Any, int], jobs: list[Any]) -> float:
    started = time.perf_counter()
    take_results(await fleet.map(jobs))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
