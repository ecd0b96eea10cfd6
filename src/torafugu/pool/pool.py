"""The pool: asks a worker, and another one if that fails. The one place that retries, limits, times out, prices, pays.

The rules, by the failure's code:
    rate_limited       another worker at once; the last one is waited for, once, if its Retry-After is short enough
    context_overflow   only workers with a larger window; else the client's fault
    auth               another worker; the worker is disabled and the operator told
    rejected           another worker                    content_filter   one other worker, once
    all others         another worker; the last one is asked once more after a pause
Invariants: every attempt is recorded, with what it cost if that is known; once a token was passed on, no other worker
takes over; nothing is sent to a worker that cannot take the query.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import PlanError, RequestError, WorkerCode, WorkerError
from ..events import Called, Event, Replied
from ..types import Reply
from . import attempt as attempts
from .backend import Backend, Completion, Delta, OnDelta, Query
from .limits import Breaker, Gate
from .needs import TOOLS, find_needs
from .prices import Price
from .purse import BudgetEnded, Payment, Purse, reserve
from .soundness import find_unsound, is_filtered
from .spec import WorkerSpec

__all__ = ["Member", "Pool"]

_log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
"""For a Retry-After; a client is better served by a 429 than by a longer silence."""
BACKOFF_S = (0.25, 2.0)
REST_S = 1.0
"""After a 429 that does not say how long."""

_HOPELESS = frozenset({"auth", "rejected", "content_filter", "context_overflow", "unavailable", "too_large"})
"""The same worker would only fail again."""
_HEALTHY = frozenset({"rate_limited", "rejected", "content_filter", "context_overflow"})
"""Do not count towards the breaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker and how it is called."""

    spec: WorkerSpec
    backend: Backend
    price: Price | None = None
    """None when nobody knows it; costs are then unknown."""


class Pool:
    """The workers of an installation. Lives on one event loop at a time; does not close its backends."""

    def __init__(
        self,
        members: Iterable[Member],
        *,
        max_attempts: int = 4,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._workers = {member.spec.id: _Worker(member) for member in members}
        self._max_attempts = max_attempts
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self.ids = frozenset(self._workers)
        """The workers that can be called."""
        self.specs: Mapping[str, WorkerSpec] = MappingProxyType({id: w.spec for id, w in self._workers.items()})

    async def complete(
        self,
        query: Query,
        *,
        step: int,
        workers: Sequence[str],
        record: Callable[[Event], None],
        on_delta: OnDelta | None,
        timeout_s: float | None = None,
        purse: Purse | None = None,
    ) -> Reply:
        """Ask the first of `workers`, failing over to the rest; every attempt is recorded, and paid for by `purse`.

        `timeout_s` bounds all of it: queueing, attempts and the pauses between them.

        Raises:
            WorkerError: no worker replied; `retry_after_s` is the shortest that any asked for.
            RequestError: the query fits into none of their context windows, or none can take it at all.
            PlanError: a worker is named that the pool does not have.
            BudgetEnded: the next attempt cannot be paid for; nothing of it is on record.
        """
        call = _Call(
            query=query,
            step=step,
            record=record,
            on_delta=on_delta,
            purse=purse,
            started=self._clock(),
            timeout_s=timeout_s,
        )
        call.left = self._able(call, workers)
        try:
            return await self._complete_in_time(call)
        except (WorkerError, RequestError, BudgetEnded):
            if call.held is None or call.has_streamed:
                raise
            return call.take_held()
        finally:
            call.drop_held()

    async def _complete_in_time(self, call: _Call) -> Reply:
        try:
            async with call.limit:
                return await self._complete(call)
        except TimeoutError:
            if not call.is_over_time:
                raise
            assert call.asked is not None
            raise call.over_time(call.asked) from None

    async def _complete(self, call: _Call) -> Reply:
        worker, reason = self._next(call), "planned"
        while True:
            outcome = await self._attempt(call, worker, reason)
            if isinstance(outcome, Reply):
                return outcome
            call.failures.append((worker, outcome))
            if call.has_streamed:
                outcome.partial = True
                raise outcome
            self._leave_fitting(call, worker, outcome)
            if call.attempts < self._max_attempts and call.left:
                worker, reason = self._next(call), "failover"
                continue
            again = self._again(call, worker, outcome) if call.attempts < self._max_attempts else None
            if again is None:
                raise self._final_error(call)
            worker, delay_s = again
            await self._sleep(delay_s)
            reason = "retry"

    # --- who is asked ---

    def _able(self, call: _Call, workers: Sequence[str]) -> list[_Worker]:
        """Those who can take the query, in the given order."""
        try:
            named = [self._workers[worker] for worker in dict.fromkeys(workers)]
        except KeyError as error:
            raise PlanError(f"worker {error.args[0]!r}: the pool has {', '.join(sorted(self.ids))}") from None
        if not named:
            raise PlanError("no worker is named")
        needs = find_needs(call.query)
        able = []
        for worker in named:
            lack = next((need.lack for need in needs if not need.is_met_by(worker.spec)), None)
            if lack is None:
                able.append(worker)
            else:
                call.record_skip(worker, lack)
        if not able:
            raise RequestError(
                f"none of the workers {', '.join(workers)} takes {' and '.join(need.what for need in needs)}",
                code="unsupported",
                param="tools" if needs[0] is TOOLS else "messages",
            )
        return able

    def _next(self, call: _Call) -> _Worker:
        """Takes the first that may be asked off the list; if none may, the first: nobody else is left to ask."""
        now = self._clock()
        first_refusal: dict[_Worker, str] = {}
        chosen = call.left[0]
        for worker in call.left:
            refusal = worker.breaker.refusal(now)
            if refusal is None:
                chosen = worker
                for skipped, why in first_refusal.items():
                    call.record_skip(skipped, why)
                break
            first_refusal[worker] = refusal
        call.left.remove(chosen)
        return chosen

    def _leave_fitting(self, call: _Call, worker: _Worker, error: WorkerError) -> None:
        """Strikes off those who would fail for the same reason."""
        if error.code == "content_filter":
            call.left = [] if call.has_met_filter else call.left[:1]
            call.has_met_filter = True
        elif call.has_met_filter:
            call.left = []
        elif error.code == "context_overflow" and worker.spec.context_tokens is not None:
            too_small = worker.spec.context_tokens
            call.left = [w for w in call.left if w.spec.context_tokens is None or w.spec.context_tokens > too_small]

    def _again(self, call: _Call, worker: _Worker, error: WorkerError) -> tuple[_Worker, float] | None:
        """Whom to ask once more after how many seconds, when nobody new is left; None: enough."""
        if call.was_refused_here or call.has_met_filter or error.code in _HOPELESS:
            return None
        if error.code == "rate_limited":
            waits = [
                (e.retry_after_s, w) for w, e in call.failures if e.code == error.code and e.retry_after_s is not None
            ]
            has_tried, call.has_waited = call.has_waited, True
            delay_s, worker = min(waits, key=lambda wait: wait[0]) if waits else (self._backoff_s(), worker)
        else:
            has_tried, call.has_retried = call.has_retried, True
            delay_s = max(self._backoff_s(), error.retry_after_s or 0.0)
        total_s = worker.spec.timeouts.total_s
        limit_s = total_s if call.timeout_s is None else min(total_s, call.timeout_s)
        left_s = limit_s - (self._clock() - call.started)
        return None if has_tried or delay_s >= min(LONGEST_WAIT_S, left_s) else (worker, delay_s)

    def _backoff_s(self) -> float:
        least, most = BACKOFF_S
        return least + (most - least) * self._random()

    def _final_error(self, call: _Call) -> WorkerError | RequestError:
        """What the caller is told: one failure as it was, several summed up by the most hopeful of the latest."""
        errors = [error for _, error in call.failures]
        if all(error.code == "context_overflow" for error in errors):
            return RequestError(
                "the request does not fit the context window of "
                f"{', '.join(worker.id for worker, _ in call.failures)}: shorten it",
                code="context_length_exceeded",
                param="messages",
            )
        hopeful = [error for error in errors if error.code not in _HOPELESS]
        last = (hopeful or errors)[-1]
        if len(errors) == 1:
            return last
        waits = [error.retry_after_s for error in errors if error.retry_after_s is not None]
        return WorkerError(
            f"no worker replied after {call.attempts} attempts in {self._clock() - call.started:.1f} s; {last.message}",
            worker=last.worker,
            code=last.code,
            retry_after_s=min(waits) if waits else None,
        )

    # --- one attempt ---

    async def _attempt(self, call: _Call, worker: _Worker, reason: str) -> Reply | WorkerError:
        """The reply, or why there is none; on record either way."""
        call.asked = worker
        call.was_refused_here = False
        with call.before_sending(worker):
            has_place = worker.gate.enter_at_once() or await self._queue_up(worker)
        if not has_place:
            call.was_refused_here = True
            error = worker.error("overloaded", "too many calls of ours run and wait", retry_after_s=REST_S)
            call.record_unsent(error)
            return error
        try:
            with call.before_sending(worker):
                payment = await reserve(call.purse, call.query, worker.spec, worker.price)
            with payment:
                return await self._attempt_inside(call, worker, reason, payment)
        finally:
            worker.gate.leave()

    async def _queue_up(self, worker: _Worker) -> bool:
        """False when the queue is full, or when waiting took as long as a call may."""
        if worker.gate.is_full:
            return False
        try:
            async with asyncio.timeout(worker.spec.timeouts.total_s):
                await worker.gate.enter()
        except TimeoutError:
            return False
        return True

    async def _attempt_inside(self, call: _Call, worker: _Worker, reason: str, payment: Payment) -> Reply | WorkerError:
        call.attempts += 1
        attempt = call.attempts
        call.record(Called(step=call.step, worker=worker.id, attempt=attempt, reason=reason))
        worker.breaker.start()
        reply: Reply | None = None
        began = self._clock()
        try:
            completion = await self._ask(call, worker, payment.query)
            reply = attempts.replied(worker.spec, worker.price, completion, latency_ms=(self._clock() - began) * 1e3)
            error = self._unsound(call, worker, completion)
        except WorkerError as failure:
            error = failure
            error.partial = call.has_streamed
        except BaseException as other:  # recorded and passed on: what was paid for stays on record
            worker.breaker.let_go()
            over_time = call.over_time(worker) if call.is_over_time else None
            latency_ms = (self._clock() - began) * 1e3
            call.record(
                attempts.interrupted(
                    call.step,
                    attempt,
                    worker.id,
                    other,
                    over_time,
                    closed=None if call.purse is None else call.purse.closed,
                    latency_ms=latency_ms,
                )
            )
            raise
        if error is not None:
            now = self._clock()
            self._note_failure(worker, error, now)
            failed = attempts.failed(call.step, attempt, worker.id, error, reply, latency_ms=(now - began) * 1e3)
            payment.came_to(failed.usage, failed.cost_usd)
            call.record(failed)
            return error
        assert reply is not None
        worker.breaker.succeed()
        payment.came_to(reply.usage, reply.cost_usd)
        if is_filtered(completion) and call.left and not call.has_streamed and not call.has_met_filter:
            call.held = (attempt, reply)
            return worker.error("content_filter", "its provider filtered the answer")
        call.record(Replied(step=call.step, attempt=attempt, reply=reply))
        return reply

    async def _ask(self, call: _Call, worker: _Worker, query: Query) -> Completion:
        on_delta = None if call.on_delta is None else call.pass_on
        try:
            async with asyncio.timeout(worker.spec.timeouts.total_s) as limit:
                completion = await worker.backend.complete(query, on_delta)
        except TimeoutError:
            if not limit.expired():
                raise
            total_s = worker.spec.timeouts.total_s
            raise worker.error("timeout_total", f"no complete answer within {total_s:g} s") from None
        return completion

    def _unsound(self, call: _Call, worker: _Worker, completion: Completion) -> WorkerError | None:
        found = find_unsound(call.query, completion)
        if found is None:
            return None
        code, what = found
        return worker.error(code, what, partial=call.has_streamed)

    def _note_failure(self, worker: _Worker, error: WorkerError, now: float) -> None:
        breaker = worker.breaker
        if error.code == "auth":
            if not breaker.is_disabled:
                breaker.is_disabled = True
                told = "; ".join((error.message, *getattr(error, "__notes__", ())))
                _log.error("worker %r is disabled until it replies: %s", worker.id, told)
            breaker.let_go()
        elif error.code in _HEALTHY:
            breaker.let_go()
        else:
            breaker.fail(now)
        if error.code == "rate_limited" or error.retry_after_s is not None:
            breaker.rest(now, REST_S if error.retry_after_s is None else error.retry_after_s)


class _Worker:
    """A member and its state."""

    __slots__ = ("backend", "breaker", "gate", "id", "price", "spec")

    def __init__(self, member: Member) -> None:
        self.id = member.spec.id
        self.spec = member.spec
        self.backend = member.backend
        self.price = member.price
        self.gate = Gate(places=member.spec.limits.concurrency, queue=member.spec.limits.queue)
        self.breaker = Breaker()

    def error(
        self, code: WorkerCode, what: str, *, retry_after_s: float | None = None, partial: bool = False
    ) -> WorkerError:
        return WorkerError(
            f"worker {self.id!r}: {what}", worker=self.id, code=code, retry_after_s=retry_after_s, partial=partial
        )


@dataclass(slots=True, kw_only=True)
class _Call:
    """One step's way through the pool."""

    query: Query
    step: int
    record: Callable[[Event], None]
    on_delta: OnDelta | None
    purse: Purse | None
    started: float
    timeout_s: float | None
    limit: asyncio.Timeout = field(init=False)
    asked: _Worker | None = None
    """Whose turn it is."""
    left: list[_Worker] = field(default_factory=list)
    """Not asked yet, best first."""
    failures: list[tuple[_Worker, WorkerError]] = field(default_factory=list)
    attempts: int = 0
    has_streamed: bool = False
    has_retried: bool = False
    has_waited: bool = False
    has_met_filter: bool = False
    was_refused_here: bool = False
    """The latest failure is our own full queue: waiting more would defeat its bound."""
    held: tuple[int, Reply] | None = None
    """A filtered reply, kept off the record until it is known whether another worker does better."""
    skipped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.limit = asyncio.timeout(self.timeout_s)

    @property
    def is_over_time(self) -> bool:
        return self.limit.expired()

    def over_time(self, worker: _Worker) -> WorkerError:
        what = f"no complete answer within the step's limit of {self.timeout_s:g} s"
        return worker.error("timeout_total", what, partial=self.has_streamed)

    @contextmanager
    def before_sending(self, worker: _Worker) -> Iterator[None]:
        """Puts on record that the step's time went by in a queue."""
        try:
            yield
        except asyncio.CancelledError:
            if self.is_over_time:
                self.record_unsent(self.over_time(worker))
            raise

    async def pass_on(self, delta: Delta) -> None:
        assert self.on_delta is not None
        self.has_streamed = True
        await self.on_delta(delta)

    def record_skip(self, worker: _Worker, why: str) -> None:
        if worker.id not in self.skipped:
            self.skipped.add(worker.id)
            message = f"worker {worker.id!r} is not asked: {why}"
            self.record(attempts.unsent(self.step, worker.id, code="skipped", message=message))

    def record_unsent(self, error: WorkerError) -> None:
        self.record(attempts.unsent(self.step, error.worker, code=error.code, message=error.message))

    def take_held(self) -> Reply:
        assert self.held is not None
        attempt, reply = self.held
        self.held = None
        self.record(Replied(step=self.step, attempt=attempt, reply=reply))
        return reply

    def drop_held(self) -> None:
        if self.held is not None:
            attempt, reply = self.held
            self.held = None
            self.record(attempts.filtered(self.step, attempt, reply))
