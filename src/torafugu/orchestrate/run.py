"""`Run`: one request's append-only record while it happens, and `Recorder`, where the record goes.

Everything a policy may know of a run is here. Only the loop writes to it.
"""

from __future__ import annotations

import secrets
import time
from decimal import Decimal
from typing import Protocol

from ..errors import FuguError
from ..events import Called, Event, Failed, Planned, Replied, Stopped
from ..types import Message, Pending, Reply, Request, Step, Trajectory, Usage, sum_cost
from .budget import Budget, RunBudget
from .pending import error_to_loss, loss_to_error

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

    def __init__(
        self, request: Request, *, run_id: str, recorder: Recorder = NO_RECORD, budget: RunBudget | None = None
    ) -> None:
        self.id = run_id
        self.request = request
        self.budget = RunBudget(Budget()) if budget is None else budget
        """What may still be spent."""
        self.events: list[Event] = []
        self.replies: dict[int, Reply] = {}
        """By step id, in the order of arrival."""
        self.failed: dict[int, FuguError] = {}
        """Why steps have no reply, by step id."""
        self.answer: Reply | None = None
        self.stopped: Stopped | None = None
        self.has_streamed = False
        """A token of the answer has left: no other answer may follow."""
        self.trajectories: dict[int, Trajectory] = {}
        """Of the steps that have called the client's tools."""
        self.suspended: dict[int, Reply] = {}
        """Steps that wait for their results, with the reply that calls them."""
        self._earlier: tuple[Planned, ...] = ()
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

    def suspend(self, step: int, reply: Reply) -> None:
        """The reply is no result yet: it calls the client's tools."""
        del self.replies[step]
        self.suspended[step] = reply
        called = Message(role="assistant", content=reply.text or None, tool_calls=reply.tool_calls)
        before = self.trajectories[step].turns if step in self.trajectories else ()
        self.trajectories[step] = Trajectory(worker=reply.worker, turns=(*before, called))

    def to_pending(self, policy: str) -> Pending:
        """What goes on when the results come."""
        return Pending(
            run_id=self.id,
            policy=policy,
            request=self.request,
            plans=tuple(planned.plan for planned in self.plans),
            replies=dict(self.replies),
            failed={step: error_to_loss(error) for step, error in self.failed.items()},
            trajectories=dict(self.trajectories),
            waiting=tuple(self.suspended),
            calls=self.budget.calls,
            tokens=self.budget.tokens,
            usd=self.budget.usd,
        )

    def restore(self, pending: Pending) -> None:
        """Go on where another run had to wait; its events stay its own."""
        self._earlier = tuple(Planned(plan=plan, decision_ms=0.0) for plan in pending.plans)
        self.replies = dict(pending.replies)
        self.failed = {step: loss_to_error(loss) for step, loss in pending.failed.items()}
        self.trajectories = dict(pending.trajectories)
        self.budget.calls, self.budget.tokens, self.budget.usd = pending.calls, pending.tokens, pending.usd

    @property
    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3

    @property
    def calls(self) -> int:
        """Attempts that left for a worker."""
        return sum(isinstance(event, Called) for event in self.events)

    @property
    def plans(self) -> list[Planned]:
        """Of all that the run goes on with, oldest first."""
        return [*self._earlier, *(event for event in self.events if isinstance(event, Planned))]

    @property
    def steps(self) -> list[Step]:
        """All that were planned, in the order of planning."""
        return [step for planned in self.plans for step in planned.plan.steps]

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
