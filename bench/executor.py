"""What executing a plan costs beside the workers' own time: a diamond, and the overhead of a step.

    python -m bench.executor

The diamond's workers take 200 ms each: four steps on three levels. Overhead is measured with workers that answer at
once, over chains and fans, per step, pool and record in memory included. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from decimal import Decimal
from typing import Any

from torafugu.eval.provenance import find_commit
from torafugu.orchestrate import Budget, Run, orchestrate
from torafugu.pool import Member, Pool, Prices, Scripted, resolve_price
from torafugu.pool.spec import Limits, WorkerSpec
from torafugu.types import Answer, Message, Plan, Request, Step, Usage

REQUEST = Request(model="m", messages=(Message(role="user", content="What is 2 + 2?"),))
USAGE = Usage(input_tokens=100, cached_input_tokens=0, cache_write_tokens=0, output_tokens=20, reasoning_tokens=0)
REPEATS = 200


class Once:
    """Plans this, then answers with the last step."""

    id = "once"

    def __init__(self, *steps: Step) -> None:
        self._plan = Plan(steps=steps)

    async def decide(self, run: Run) -> Plan | Answer:
        return Answer(step=self._plan.steps[-1].id) if run.plans else self._plan


def step(id: int, *sees: int) -> Step:
    return Step(id=id, worker="w", instruction=f"part {id}", sees=sees)


def make_pool(latency_s: float) -> Pool:
    prices = Prices(input=Decimal(1), output=Decimal(2))
    spec = WorkerSpec(id="w", dialect="scripted", model="w", prices=prices, limits=Limits(concurrency=64))
    backend = Scripted(lambda query: "4", latency_s=latency_s, usage=USAGE)
    return Pool([Member(spec=spec, backend=backend, price=resolve_price(spec))])


async def measure() -> dict[str, Any]:
    diamond = (step(0), step(1, 0), step(2, 0), step(3, 1, 2))
    slow = make_pool(0.2)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        await orchestrate(REQUEST, Once(*diamond), slow)
        took.append((time.perf_counter() - started) * 1e3)
    shapes = {
        "one step": (step(0),),
        "chain of 8": tuple(step(i, *([i - 1] if i else [])) for i in range(8)),
        "fan of 8": tuple(step(i) for i in range(8)),
        "diamond": diamond,
    }
    fast = make_pool(0.0)
    budgets = {"without a budget in USD": Budget(), "with": Budget(usd=Decimal(1000))}
    overhead: dict[str, Any] = {}
    for what, budget in budgets.items():
        overhead[what] = {}
        for name, steps in shapes.items():
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                await orchestrate(REQUEST, Once(*steps), fast, budget=budget)
                times.append((time.perf_counter() - started) * 1e6 / len(steps))
            overhead[what][name] = round(statistics.median(times), 1)
    return {"diamond_ms": [round(ms, 1) for ms in took], "us_per_step_p50": overhead}


def main() -> None:
    print(json.dumps({"command": sys.argv, "commit": find_commit(), **asyncio.run(measure())}, indent=1))


if __name__ == "__main__":
    main()
