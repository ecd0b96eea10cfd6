"""How fast does the store acknowledge? `python -m bench.store [--dir FOLDER] [--seconds S]` prints JSON.

`accepts`: tasks that each record an accepted run (one message of `PROMPT_BYTES`) and wait until it is on disk, at
several concurrencies. `accepts_on_a_busy_loop`: one such task beside a loop that never idles. `runs`: whole runs of six
events. `write_us`: what `write` costs the event loop's thread. `disk`: append and fdatasync of as many bytes, one at a
time, in the same folder: what the disk itself takes; compare runs of this program only where that is alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

from torafugu.events import Accepted, Answered, Called, Event, Planned, Replied, Stopped
from torafugu.orchestrate import create_run_id
from torafugu.store import RunStore, open_store
from torafugu.types import Message, Plan, Reply, Request, Step, Usage

CONCURRENCIES = (1, 32, 128)
PROMPT_BYTES = 1400  # as the rows of the measurements that this is compared with
HISTORY_TURNS = 100
BUSY_CALLBACK_S = 0.0003

_WORDS = [random.Random(n).randbytes(3).hex() for n in range(2000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dir", type=Path, default=None, help="folder on the disk to measure (default: a temporary one)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        report = {
            "sqlite": sqlite3.sqlite_version,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "disk": measure_disk(Path(folder) / "raw", options.seconds),
            **asyncio.run(measure_store(Path(folder), options.seconds)),
        }
    print(json.dumps(report, indent=2))


def measure_disk(path: Path, seconds: float) -> dict[str, float]:
    block = os.urandom(PROMPT_BYTES)
    latencies_ms = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        os.write(file, block)
        os.fdatasync(file)
        latencies_ms.append((time.perf_counter() - started) * 1e3)
    os.close(file)
    return summarize(latencies_ms, seconds)


async def measure_store(folder: Path, seconds: float) -> dict[str, object]:
    report: dict[str, object] = {}
    for name, work in (("accepts", accept), ("runs", record_run)):
        report[name] = {}
        for concurrency in CONCURRENCIES:
            async with open_store(folder / f"{name}-{concurrency}.db") as store:
                result = await measure(store, work, concurrency, seconds)
            report[name][str(concurrency)] = result  # type: ignore[index]
    async with open_store(folder / "busy.db") as store:
        spinning = asyncio.create_task(spin())
        report["accepts_on_a_busy_loop"] = await measure(store, accept, 1, seconds)
        spinning.cancel()
    async with open_store(folder / "write.db") as store:
        report["write_us"] = await measure_write(store)
    return report


async def measure(
    store: RunStore, work: Callable[[RunStore], Awaitable[None]], concurrency: int, seconds: float
) -> dict[str, float]:
    latencies_ms: list[float] = []
    end = time.perf_counter() + seconds

    async def repeat() -> None:
        while (started := time.perf_counter()) < end:
            await work(store)
            latencies_ms.append((time.perf_counter() - started) * 1e3)

    cpu = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(repeat())
    cpu_us = (time.process_time() - cpu) * 1e6 / len(latencies_ms)
    per_commit = len(latencies_ms) / store.commits
    return {**summarize(latencies_ms, seconds), "per_commit": round(per_commit, 1), "cpu_us": round(cpu_us)}


async def spin() -> None:
    """As many short callbacks as the loop can run, as when every client is sent tokens."""
    while True:
        end = time.perf_counter() + BUSY_CALLBACK_S
        while time.perf_counter() < end:
            pass
        await asyncio.sleep(0)


async def accept(store: RunStore) -> None:
    recorder = store.recorder(create_run_id())
    recorder.write(accepted(prompt()))
    await recorder.wait_durable()


async def record_run(store: RunStore) -> None:
    """The accept is waited for before the call, as the loop does; the end is not."""
    recorder = store.recorder(create_run_id())
    recorder.write(accepted(prompt()))
    await recorder.wait_durable()
    for event in REST_OF_RUN:
        recorder.write(event)


async def measure_write(store: RunStore) -> dict[str, float]:
    history = tuple(Message(role="user", content=prompt()) for _ in range(HISTORY_TURNS))
    long = Accepted(request=Request(model="fugu", messages=history), policy="fugu@1")
    return {
        "accepted": await time_writes(store, lambda n: accepted("hello"), 2000),
        f"accepted_with_{HISTORY_TURNS}_messages": await time_writes(store, lambda n: long, 200),
        "called": await time_writes(store, lambda n: REST_OF_RUN[1], 2000),
        "replied": await time_writes(store, lambda n: REST_OF_RUN[2], 2000),
    }


async def time_writes(store: RunStore, event: Callable[[int], Event], count: int) -> float:
    """Median µs of `write`, while the writer's thread works: it waits for the interpreter's lock as in a server."""
    spent_us = []
    for n in range(count):
        recorder, what = store.recorder(create_run_id()), event(n)
        started = time.perf_counter_ns()
        recorder.write(what)
        spent_us.append((time.perf_counter_ns() - started) / 1e3)
        if n % 20 == 0:
            await recorder.wait_durable()
    return round(statistics.median(spent_us), 2)


def accepted(text: str) -> Accepted:
    return Accepted(request=Request(model="fugu", messages=(Message(role="user", content=text),)), policy="fugu@1")


def prompt() -> str:
    """Never the same twice, so that no content is shared."""
    return " ".join(random.choices(_WORDS, k=PROMPT_BYTES // 7))


REST_OF_RUN: tuple[Event, ...] = (
    Planned(plan=Plan(steps=(Step(id=0, worker="a"),), scores=dict.fromkeys("abcdefg", 0.1)), decision_ms=5.0),
    Called(step=0, worker="a", attempt=1, reason="planned"),
    Replied(
        step=0,
        attempt=1,
        reply=Reply(
            worker="a",
            text="word " * 200,
            finish_reason="stop",
            usage=Usage(input_tokens=300, output_tokens=200),
            cost_usd=Decimal("0.0039"),
        ),
    ),
    Answered(step=0, worker="a"),
    Stopped(by="answer", latency_ms=900.0, calls=1, usage=Usage(), cost_usd=Decimal("0.0039")),
)


def summarize(latencies_ms: list[float], seconds: float) -> dict[str, float]:
    ordered = sorted(latencies_ms)
    return {
        "per_s": round(len(ordered) / seconds),
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 2),
        "max_ms": round(ordered[-1], 2),
    }


if __name__ == "__main__":
    main()
