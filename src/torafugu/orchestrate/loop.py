"""`orchestrate`: the one loop. The server, the fitness of the evolution strategy and the evaluation all run this.

    decide -> plan -> execute its steps -> decide -> ... -> answer

The loop retries nothing and times out only the whole run; calling a worker (retries, failover, limits, prices) is the
pool's. Nothing is paid for before the run's first event is durable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from ..errors import FuguError, PlanError
from ..events import Accepted, Answered, Planned, Stopped, Suspended
from ..pool.backend import Delta, OnDelta
from ..pool.purse import BudgetEnded
from ..types import Answer, Json, Pending, Plan, Request, Step
from .budget import Budget, RunBudget
from .execute import Caller, execute
from .pending import merge_calls
from .policy import Policy
from .run import NO_RECORD, Recorder, Run, create_run_id

__all__ = ["Caller", "Origin", "orchestrate"]


class Origin(Protocol):
    """Where a request came from, for the record: what the server knows and the loop does not."""

    key_id: str | None
    session: str | None
    body_sha256: str | None
    wire: Mapping[str, Json] | None


async def orchestrate(
    request: Request,
    policy: Policy,
    pool: Caller,
    *,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    shared: RunBudget | None = None,
    recorder: Recorder = NO_RECORD,
    on_delta: OnDelta | None = None,
    run_id: str | None = None,
    origin: Origin | None = None,
    only_plans: bool = False,
    resume: Pending | None = None,
) -> Run:
    """One request, from question to answer. `on_delta` receives the answer's tokens as they come.

    Returns the run with its `answer`. A budget that ends keeps the best reply so far; `answer` is None only when there
    is none, or when a part of another one has already been streamed. `budget` is this run's own; `shared` is an account
    that many runs pay from. With `only_plans` the run stops (`routed`) at the first plan that does more than plan.

    A run whose step calls the client's tools stops as `suspended`; its answer holds the calls, and its event
    `Suspended` what is to go on: give that as `resume`, with the results, when `request` brings them.

    Raises:
        FuguError: whose `fault` says why there is no answer; the run's last event says the same.
        CancelledError: the caller gave up; calls in flight are cancelled, the run is recorded as `client_closed`.
    """
    account = RunBudget(budget, shared=shared)
    about = request if resume is None else _renew(resume.request, request)
    run = Run(about, run_id=run_id or create_run_id(), recorder=recorder, budget=account)
    if resume is not None:
        run.restore(resume)
    run.record(
        Accepted(
            request=request,
            policy=policy.id,
            key_id=origin.key_id if origin else None,
            session=origin.session if origin else None,
            body_sha256=origin.body_sha256 if origin else None,
            resumes=None if resume is None else resume.run_id,
            wire=origin.wire if origin else None,
        )
    )
    try:
        try:
            async with asyncio.timeout(budget.seconds) as deadline:
                account.deadline = deadline
                stopped_by = await _decide_and_execute(
                    run, policy, pool, on_delta=_mark_streamed(run, on_delta), only_plans=only_plans
                )
        except TimeoutError:
            if not deadline.expired():  # not ours: nothing below may leak one
                raise
            stopped_by = "budget:seconds"
        except BudgetEnded as ended:
            stopped_by = f"budget:{ended.limit}"
        if run.answer is None and (best := _best_so_far(run)) is not None:
            _answer(run, Answer(step=best[0]), is_cut=best[1])
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


def _mark_streamed(run: Run, on_delta: OnDelta | None) -> OnDelta | None:
    if on_delta is None:
        return None

    async def pass_on(delta: Delta) -> None:
        run.has_streamed = True
        await on_delta(delta)

    return pass_on


async def _decide_and_execute(
    run: Run, policy: Policy, pool: Caller, *, on_delta: OnDelta | None, only_plans: bool
) -> str:
    """Returns what stopped the run."""
    is_durable = False
    if run.trajectories and only_plans:
        return "routed"
    if run.trajectories:  # the latest plan waited for the client's tools
        left = [step for step in run.plans[-1].plan.steps if step.id not in run.replies]
        for step in left:  # pool and key may have changed since
            own = run.trajectories.get(step.id)
            _check_workers(step, (step.worker, *step.alternates) if own is None else (own.worker,), run, pool)
        await run.wait_durable()
        is_durable = True
        await execute(run.plans[-1].plan, run, pool, on_delta)
        if run.suspended:
            return _suspend(run, policy)
    while True:
        started = time.perf_counter()
        decision = await policy.decide(run)
        if isinstance(decision, Answer):
            if decision.step not in run.replies:
                raise PlanError(f"policy {policy.id!r} answers with step {decision.step}, which has no reply")
            _answer(run, decision)
            return decision.stopped_by
        limit = run.budget.ended
        if limit is not None:
            return f"budget:{limit}"
        _check(decision, run, pool)
        decision_ms = (time.perf_counter() - started) * 1e3
        if not is_durable:  # the commit went on while the policy was deciding
            await run.wait_durable()
            is_durable = True
        run.record(Planned(plan=decision, decision_ms=decision_ms))
        if only_plans and any(step.role != "conductor" for step in decision.steps):
            return "routed"
        await execute(decision, run, pool, on_delta)
        if run.suspended:
            return _suspend(run, policy)


def _renew(first: Request, latest: Request) -> Request:
    """What the workflow is about, with what the client allows and offers now."""
    return msgspec.structs.replace(first, sampling=latest.sampling, allowed=latest.allowed, ignored=latest.ignored)


def _suspend(run: Run, policy: Policy) -> str:
    """The answer is the tool calls of all steps that wait; of their texts only the final one's is for the client."""
    final = [step.id for step in run.steps if step.is_final and step.id in run.suspended]
    step = final[-1] if final else next(iter(run.suspended))
    run.answer = merge_calls(run.id, step, run.suspended, is_for_client=bool(final))
    run.record(Suspended(pending=run.to_pending(policy.id)))
    run.record(Answered(step=step, worker=run.answer.worker, is_for_client=bool(final)))
    return "suspended"


def _answer(run: Run, answer: Answer, *, is_cut: bool = False) -> None:
    """`is_cut`: it is what a workflow had come to when it had to end, which the client is told as `length`."""
    reply = run.replies[answer.step]
    run.answer = msgspec.structs.replace(reply, finish_reason="length") if is_cut else reply
    run.record(Answered(step=answer.step, worker=reply.worker, is_cut=is_cut, notes=answer.notes))


def _best_so_far(run: Run) -> tuple[int, bool] | None:
    """(The step whose reply stands in when the budget ended, whether it is but a part of the work.)

    The final one; else the last Worker's that answers the request, or the earlier one that the policy had gone back to;
    else what a workflow had come to.
    """
    final = [step.id for step in run.steps if step.is_final and step.id in run.replies]
    if final:
        return final[-1], False
    if run.has_streamed:
        return None
    part: int | None = None
    for planned in reversed(run.plans):
        steps = planned.plan.steps
        for step in reversed(steps):
            if step.role != "worker" or step.id not in run.replies:  # advice, verdicts and plans are no answers
                continue
            if step.instruction is None or step is steps[-1]:
                return step.id, False
            part = step.id if part is None else part
        if planned.plan.stand_in in run.replies:
            return planned.plan.stand_in, False
    return None if part is None else (part, True)


def _check(plan: Plan, run: Run, pool: Caller) -> None:
    """A plan that cannot be executed is the policy's fault, found before anything is paid for."""
    if not plan.steps:
        raise PlanError("the plan has no steps")
    if plan.quorum is not None and not 1 <= plan.quorum <= len(plan.steps):
        raise PlanError(f"a quorum of {plan.quorum} among {len(plan.steps)} steps")
    if len(final := [step.id for step in plan.steps if step.is_final]) > 1:
        raise PlanError(f"steps {final} are all final: one reply is the answer")
    known = {step.id for step in run.steps}
    visible = set(run.replies)
    for step in plan.steps:
        if step.id in known:
            raise PlanError(f"step {step.id} is planned twice")
        if unseen := set(step.sees) - visible:
            raise PlanError(f"step {step.id} sees {sorted(unseen)}: no such earlier step or reply")
        if step.instruction is not None and step.role != "worker":
            raise PlanError(f"step {step.id} has an instruction as {step.role}: only workers are given subtasks")
        _check_workers(step, (step.worker, *step.alternates), run, pool)
        known.add(step.id)
        visible.add(step.id)


def _check_workers(step: Step, workers: Iterable[str], run: Run, pool: Caller) -> None:
    allowed = run.request.allowed
    for worker in workers:
        if worker not in pool.ids:
            raise PlanError(f"step {step.id} names worker {worker!r}: the pool has {', '.join(sorted(pool.ids))}")
        if allowed is not None and worker not in allowed:
            raise PlanError(f"step {step.id} names worker {worker!r}, which this request does not allow")


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
