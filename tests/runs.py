"""What tests of the loop share: a pool of fakes, policies that plan what they are told, a request, a record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from torafugu.errors import StoreError
from torafugu.events import Event
from torafugu.orchestrate import Run
from torafugu.pool import Backend, Completion, Member, OnDelta, Pool, Prices, Query, WorkerSpec, resolve_price
from torafugu.types import Answer, Message, Plan, Request, Step, Usage

REQUEST = Request(model="m", messages=(Message(role="user", content="hi"),))
USAGE = Usage(input_tokens=1000, cached_input_tokens=0, cache_write_tokens=0, output_tokens=100, reasoning_tokens=0)
PRICES = Prices(input=Decimal(1), output=Decimal(10))  # USAGE costs 0.002


def make_pool(backends: Mapping[str, Backend], *, prices: Prices | None = PRICES, max_attempts: int = 4) -> Pool:
    """A pool of fakes that waits for nothing between attempts."""

    async def sleep(seconds: float) -> None:
        del seconds
        await asyncio.sleep(0)

    specs = {id: WorkerSpec(id=id, dialect="scripted", model=f"{id}-1", prices=prices) for id in backends}
    members = [Member(spec=spec, backend=backends[id], price=resolve_price(spec)) for id, spec in specs.items()]
    return Pool(members, max_attempts=max_attempts, sleep=sleep)


class Planned:
    """A policy that plans these in turn, and then answers with a step."""

    id = "planned"

    def __init__(self, *plans: Plan, answer: int = 0) -> None:
        self._decisions: list[Plan | Answer] = [*plans, Answer(step=answer)]

    async def decide(self, run: Run) -> Plan | Answer:
        return self._decisions[len(run.plans)]


class Endless:
    """A policy that asks a worker again and again."""

    id = "endless"

    def __init__(self, worker: str, *, is_final: bool = False) -> None:
        self._worker, self._is_final = worker, is_final

    async def decide(self, run: Run) -> Plan | Answer:
        return plan(Step(id=len(run.plans), worker=self._worker, is_final=self._is_final))


class Deciding:
    """A policy that is a function."""

    id = "deciding"

    def __init__(self, decide: Callable[[], Plan | Answer]) -> None:
        self._decide = decide

    async def decide(self, run: Run) -> Plan | Answer:
        del run
        return self._decide()


class Waiting:
    """A worker that never answers; tells when it was called and when that call was cancelled."""

    def __init__(self) -> None:
        self.called, self.cancelled = asyncio.Event(), asyncio.Event()

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del query, on_delta
        self.called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def close(self) -> None:
        return


class Meeting:
    """A worker that answers when `size` calls are in flight at once."""

    def __init__(self, size: int) -> None:
        self._barrier = asyncio.Barrier(size)

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del query, on_delta
        await self._barrier.wait()
        return Completion(text="met", finish_reason="stop", usage=USAGE)

    async def close(self) -> None:
        return


class Record:
    """A recorder that keeps what it is told, and says it is durable when `durable` is set."""

    def __init__(self, *, durable: bool = True) -> None:
        self.events: list[Event] = []
        self.durable = asyncio.Event()
        if durable:
            self.durable.set()
        self.asked = asyncio.Event()
        self.waits: list[int] = []
        """How many events there were when somebody waited."""

    def write(self, event: Event) -> None:
        self.events.append(event)

    async def wait_durable(self) -> None:
        self.waits.append(len(self.events))
        self.asked.set()
        await self.durable.wait()


class Refusing(Record):
    """A recorder that can keep nothing."""

    async def wait_durable(self) -> None:
        raise StoreError("the disk is full")


def plan(*steps: Step, **fields: Any) -> Plan:
    return Plan(steps=steps, **fields)


def kinds(events: list[Event]) -> list[str]:
    """Names of the events, in order."""
    return [type(event).__name__.lower() for event in events]
