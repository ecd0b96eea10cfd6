"""`Run`: one request's append-only record while it happens, and `Recorder`, where the record goes.

Everything a policy may know of a run is here. Only the loop writes to it.
"""

from __future__ import annotations

import secrets
import time
from decimal import Decimal
from typing import Protocol

from ..events import Called, Event, Failed, Planned, Replied, Stopped
from ..types import Reply, Request, Usage, sum_cost

__all__ = ["NO_RECORD", "Recorder", "Run", "create_run_id"]


class Recorder(Protocol):
    """Where the events of one run are kept."""

    def write(self, event: Event) -> None:
        """Append; never blocks."""
        ...

    async def wait_durable(self) -> None:
        """Return once everything written so far would survive the death of this process.

        Raises:
            StoreError: it cannot be kept; the work must be refused.
        """
        ...


class _NoRecord:
    def write(self, event: Event) -> None:
        del event

    async def wait_durable(self) -> None:
        return


NO_RECORD: Recorder = _NoRecord()
"""For training and evaluation, whose episodes keep their own results."""


def create_run_id() -> str:
    """`run_` and 26 hex digits: 12 of time in ms, so that ids sort by age, and 14 random."""
    return f"run_{int(time.time() * 1e3):012x}{secrets.token_hex(7)}"


class Run:
    """What happened so far."""

    def __init__(self, request: Request, *, run_id: str, recorder: Recorder = NO_RECORD) -> None:
        self.id = run_id
        self.request = request
        self.events: list[Event] = []
        self.replies: dict[int, Reply] = {}
        """By step id, in the order of arrival."""
        self.answer: Reply | None = None
        self.stopped: Stopped | None = None
        self.started = time.perf_counter()
        self._recorder = recorder

    def record(self, event: Event) -> None:
        """Append an event, to the run and to its recorder."""
        self.events.append(event)
        if isinstance(event, Replied):
            self.replies[event.step] = event.reply
        elif isinstance(event, Stopped):
            self.stopped = event
        self._recorder.write(event)

    async def wait_durable(self) -> None:
        await self._recorder.wait_durable()

    @property
    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3

    @property
    def calls(self) -> int:
        """Attempts that left for a worker."""
        return sum(isinstance(event, Called) for event in self.events)

    @property
    def plans(self) -> list[Planned]:
        return [event for event in self.events if isinstance(event, Planned)]

    @property
    def workers(self) -> tuple[str, ...]:
        """Workers called, in order, each once."""
        return tuple(dict.fromkeys(event.worker for event in self.events if isinstance(event, Called)))

    @property
    def cost_usd(self) -> Decimal | None:
        """What all attempts cost so far; None when one of them is unknown."""
        return sum_cost(
            event.reply.cost_usd if isinstance(event, Replied) else event.cost_usd
            for event in self.events
            if isinstance(event, (Replied, Failed))
        )

    @property
    def usage(self) -> Usage:
        """Tokens of all attempts."""
        return Usage.total(
            event.reply.usage if isinstance(event, Replied) else event.usage
            for event in self.events
            if isinstance(event, (Replied, Failed))
        )
