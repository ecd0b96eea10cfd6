"""Calls the steps of one plan: each starts the moment the steps that it sees have replied, the rest at the same time.

A step without reply takes those that see it with it. Whether that ends the run, or the plan goes on as far as it can,
is the plan's to say (`on_error`). What is running when a budget ends is paid for, so it may end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

from ..errors import FuguError, PlanError, RequestError, WorkerError
from ..events import Event, Failed
from ..pool.backend import OnDelta, Query
from ..pool.purse import DROPPED, BudgetEnded, Purse
from ..types import Plan, Reply, Step, Usage, sum_cost
from .render import step_to_query
from .run import Run

__all__ = ["INPUT_MISSING", "Caller", "execute"]

INPUT_MISSING = "input_missing"
"""Code of a step that was not called, for one that it sees had no reply."""


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
        timeout_s: float | None = None,
        purse: Purse | None = None,
    ) -> Reply:
        """Ask the first of `workers`, failing over to the rest; every attempt is recorded and paid for by `purse`.

        Raises:
            WorkerError: no worker replied, or none within `timeout_s`.
            RequestError: the request itself cannot be answered by any (it does not fit a context window).
            BudgetEnded: the next attempt cannot be paid for.
        """
        ...


async def execute(plan: Plan, run: Run, pool: Caller, on_delta: OnDelta | None) -> None:
    """Every step has a reply afterwards, or its error in `run.failed`, or waits for the client's tools, itself
    (`run.suspended`) or through what it sees. Steps that have a reply already are not called again.

    Raises:
        FuguError: the first fault, where it ends the run; the other calls are cancelled.
        BudgetEnded: a step could not be paid for; those that could have ended.
    """
    execution = _Execution(plan, run, pool, on_delta)
    if len(plan.steps) == 1:  # spares the task group, on the path of every `fugu` request
        await execution.call(plan.steps[0])
    else:
        await execution.call_all()
    if execution.ended is not None:
        raise execution.ended


class _Execution:
    """One plan while it runs."""

    def __init__(self, plan: Plan, run: Run, pool: Caller, on_delta: OnDelta | None) -> None:
        self._plan = plan
        self._run = run
        self._pool = pool
        self._on_delta = on_delta
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._settled: set[int] = set()
        self._waiting: set[int] = set()
        """Steps that wait for the client's tools, and those that wait for these."""
        self._change = asyncio.Event()
        self._is_over = False
        """The quorum has replied."""
        self.ended: BudgetEnded | None = None

    async def call_all(self) -> None:
        gate = None if self._plan.parallel is None else asyncio.Semaphore(self._plan.parallel)
        try:
            async with asyncio.TaskGroup() as group:
                for step in self._plan.steps:
                    if step.id not in self._run.replies:  # else it was done before the run had to wait for tools
                        self._tasks[step.id] = group.create_task(self._go(step, gate), name=f"step {step.id}")
        except BaseExceptionGroup as failures:  # the first fault ends the plan, and its siblings with it
            raise failures.exceptions[0] from None

    async def _go(self, step: Step, gate: asyncio.Semaphore | None) -> None:
        try:
            while not self._is_ready(step):
                await self._change.wait()
            missing = self._find_missing(step)
            if not self._waiting.isdisjoint(step.sees):
                self._waiting.add(step.id)
            elif missing is None:
                async with gate or nullcontext():
                    await self.call(step)
            else:
                self._skip(step, missing)
        except Exception:  # whatever it was, it ends the run, and the group cancels the steps beside it
            self._run.budget.close("a step beside it was lost")
            raise
        finally:
            self._settled.add(step.id)
            change, self._change = self._change, asyncio.Event()
            change.set()
            self._drop_rest()

    async def call(self, step: Step) -> None:
        run = self._run
        trajectory = run.trajectories.get(step.id)
        try:
            reply = await self._pool.complete(
                step_to_query(step, run),
                step=step.id,
                workers=(step.worker, *step.alternates) if trajectory is None else (trajectory.worker,),
                record=run.record,
                on_delta=self._on_delta if step.is_final else None,
                timeout_s=step.timeout_s,
                purse=run.budget,
            )
            if step.may_suspend and reply.tool_calls:
                run.suspend(step.id, reply)
                self._waiting.add(step.id)
        except BudgetEnded as ended:
            self.ended = self.ended or ended
        except (WorkerError, RequestError) as error:  # each attempt is on record; what does not fit was not all theirs
            self._fail(step, error)

    def _fail(self, step: Step, error: FuguError, *, cause: FuguError | None = None) -> None:
        self._run.failed[step.id] = error
        if step.is_optional or self.ended is not None:
            return
        if self._plan.on_error == "fail" or self._run.has_streamed:  # another answer must not follow what has left
            raise cause or error

    # --- what a step waits for ---

    def _is_ready(self, step: Step) -> bool:
        return all(id in self._settled for id in step.sees if id in self._tasks)

    def _find_missing(self, step: Step) -> int | None:
        """The step for want of whose reply this one cannot be called; None: it can."""
        missing = [id for id in step.sees if id not in self._run.replies]
        if len(missing) < len(step.sees):
            may_miss = {s.id for s in self._plan.steps if s.is_optional}
            missing = [id for id in missing if id not in may_miss]
        return missing[0] if missing else None

    def _drop_rest(self) -> None:
        """Cancels what is still running once as many steps have replied as the plan needs."""
        quorum = self._plan.quorum
        if quorum is None or sum(step.id in self._run.replies for step in self._plan.steps) < quorum or self._is_over:
            return
        self._is_over = True
        for id, task in self._tasks.items():
            if id not in self._settled:
                task.cancel(DROPPED)

    def _skip(self, step: Step, missing: int) -> None:
        """Nothing is sent: on record, at no cost."""
        what = f"step {step.id} is not called: step {missing}, which it sees, gave no reply"
        self._run.record(
            Failed(
                step=step.id,
                worker=step.worker,
                attempt=0,
                fault="worker",
                code=INPUT_MISSING,
                message=what,
                usage=Usage.total(()),
                cost_usd=sum_cost(()),
            )
        )
        self._fail(step, PlanError(what, code=INPUT_MISSING), cause=self._run.failed.get(missing))
