"""`orchestrate`: the one loop. The server, the fitness of the evolution strategy and the evaluation all run this.

    decide -> plan -> execute its steps -> decide -> ... -> answer

The loop retries nothing and times out only the whole run; calling a worker (retries, failover, limits, prices) is the
pool's. Nothing is paid for before the run's first event is durable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import FuguError, PlanError, RequestError, WorkerError
from ..events import Accepted, Answered, Event, Planned, Stopped
from ..pool.backend import OnDelta, Query
from ..types import Answer, Plan, Reply, Request, Step
from .budget import Budget
from .policy import Policy
from .render import step_to_query
from .run import NO_RECORD, Recorder, Run, create_run_id

__all__ = ["Caller", "Origin", "orchestrate"]


class Caller(Protocol):
    """What the loop needs of a pool."""

    @property
    def ids(self) -> frozenset[str]:
        """The workers that can be called."""
        ...

    async def complete(
        self,
        query: Query,
        *,
        step: int,
        workers: Sequence[str],
        record: Callable[[Event], None],
        on_delta: OnDelta | None,
    ) -> Reply:
        """Ask the first of `workers`, failing over to the rest; every attempt is recorded.

        Raises:
            WorkerError: no worker replied.
            RequestError: the request itself cannot be answered by any (it does not fit a context window).
        """
        ...


class Origin(Protocol):
    """Where a request came from, for the record: what the server knows and the loop does not."""

    key_id: str | None
    session: str | None
    body_sha256: str | None


async def orchestrate(
    request: Request,
    policy: Policy,
    pool: Caller,
    *,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    recorder: Recorder = NO_RECORD,
    on_delta: OnDelta | None = None,
    run_id: str | None = None,
    origin: Origin | None = None,
) -> Run:
    """One request, from question to answer. `on_delta` receives the answer's tokens as they come.

    Returns the run with its `answer`. A budget that ends keeps the best reply so far; `answer` is None only when there
    is none, or when a part of another one may already have been streamed.

    Raises:
        FuguError: whose `fault` says why there is no answer; the run's last event says the same.
        CancelledError: the caller gave up; calls in flight are cancelled, the run is recorded as `client_closed`.
    """
    run = Run(request, run_id=run_id or create_run_id(), recorder=recorder)
    run.record(
        Accepted(
            request=request,
            policy=policy.id,
            key_id=origin.key_id if origin else None,
            session=origin.session if origin else None,
            body_sha256=origin.body_sha256 if origin else None,
        )
    )
    try:
        try:
            async with asyncio.timeout(budget.seconds) as deadline:
                stopped_by = await _decide_and_execute(run, policy, pool, budget=budget, on_delta=on_delta)
        except TimeoutError:
            if not deadline.expired():  # not ours: nothing below may leak one
                raise
            stopped_by = "budget:seconds"
        if run.answer is None and (best := _best_so_far(run, is_streaming=on_delta is not None)) is not None:
            _answer(run, Answer(step=best))
    except asyncio.CancelledError:
        _stop(run, "client_closed")
        raise
    except FuguError as error:
        _stop(run, "error", error)
        raise
    except Exception as error:
        _stop(run, "error", FuguError(f"{type(error).__name__}: a fault of this program; its log has the trace"))
        raise
    _stop(run, stopped_by)
    return run


async def _decide_and_execute(
    run: Run, policy: Policy, pool: Caller, *, budget: Budget, on_delta: OnDelta | None
) -> str:
    """Returns what stopped the run."""
    is_durable = False
    while True:
        started = time.perf_counter()
        decision = await policy.decide(run)
        if isinstance(decision, Answer):
            if decision.step not in run.replies:
                raise PlanError(f"policy {policy.id!r} answers with step {decision.step}, which has no reply")
            _answer(run, decision)
            return "answer"
        limit = budget.spent_by(run)
        if limit is not None:
            return f"budget:{limit}"
        _check(decision, run, pool)
        decision_ms = (time.perf_counter() - started) * 1e3
        if not is_durable:  # the commit went on while the policy was deciding
            await run.wait_durable()
            is_durable = True
        run.record(Planned(plan=decision, decision_ms=decision_ms))
        await _execute(decision, run, pool, on_delta)


def _answer(run: Run, answer: Answer) -> None:
    run.answer = run.replies[answer.step]
    run.record(Answered(step=answer.step, worker=run.answer.worker, notes=answer.notes))


def _best_so_far(run: Run, *, is_streaming: bool) -> int | None:
    """The step whose reply stands in when the budget ended: the final one, else the latest Worker's, or
    the earlier one that the policy had gone back to."""
    steps = [step for planned in run.plans for step in planned.plan.steps]
    final = [step.id for step in steps if step.is_final]
    replied = [step for step in final if step in run.replies]
    if replied:
        return replied[-1]
    if final and is_streaming:  # its first tokens may have left: another answer must not follow them
        return None
    for planned in reversed(run.plans):
        workers = {
            step.id for step in planned.plan.steps if step.role == "worker"
        }  # advice and verdicts are no answers
        latest = next((id for id in reversed(run.replies) if id in workers), planned.plan.stand_in)
        if latest in run.replies:
            return latest
    return None


def _check(plan: Plan, run: Run, pool: Caller) -> None:
    """A plan that cannot be executed is the policy's fault, found before anything is paid for."""
    if not plan.steps:
        raise PlanError("the plan has no steps")
    if len(final := [step.id for step in plan.steps if step.is_final]) > 1:
        raise PlanError(f"steps {final} are all final: one reply is the answer")
    known = {step.id for planned in run.plans for step in planned.plan.steps}
    allowed = run.request.allowed
    for step in plan.steps:
        if step.id in known:
            raise PlanError(f"step {step.id} is planned twice")
        if unseen := set(step.sees) - set(run.replies):
            raise PlanError(f"step {step.id} sees {sorted(unseen)}: no such earlier reply")
        if step.instruction is not None:
            raise PlanError(f"step {step.id} has an instruction: no policy here plans that yet")
        for worker in (step.worker, *step.alternates):
            if worker not in pool.ids:
                raise PlanError(f"step {step.id} names worker {worker!r}: the pool has {', '.join(sorted(pool.ids))}")
            if allowed is not None and worker not in allowed:
                raise PlanError(f"step {step.id} names worker {worker!r}, which this request does not allow")
        known.add(step.id)


async def _execute(plan: Plan, run: Run, pool: Caller, on_delta: OnDelta | None) -> None:
    if len(plan.steps) == 1:  # spares the task group, on the path of every `fugu` request
        await _call(plan.steps[0], run, pool, on_delta)
        return
    try:
        async with asyncio.TaskGroup() as group:
            for step in plan.steps:
                group.create_task(_call(step, run, pool, on_delta), name=f"step {step.id}")
    except BaseExceptionGroup as failures:  # the first fault ends the plan, and its siblings with it
        raise failures.exceptions[0] from None


async def _call(step: Step, run: Run, pool: Caller, on_delta: OnDelta | None) -> None:
    try:
        await pool.complete(
            step_to_query(step, run),
            step=step.id,
            workers=(step.worker, *step.alternates),
            record=run.record,
            on_delta=on_delta if step.is_final else None,
        )
    except (WorkerError, RequestError):  # each attempt is on record; what does not fit was not all of the client's
        if not step.is_optional:
            raise


def _stop(run: Run, by: str, error: FuguError | None = None) -> None:
    run.record(
        Stopped(
            by=by,
            latency_ms=run.elapsed_ms,
            calls=run.calls,
            usage=run.usage,
            cost_usd=run.cost_usd,
            error=None if error is None else {"fault": error.fault, "code": error.code, "message": error.message},
        )
    )
