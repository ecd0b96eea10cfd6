"""How a run ends other than with its policy's answer: budgets, clients that leave, faults of this program."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from runs import REQUEST, USAGE, Deciding, Endless, Planned, Record, Waiting, kinds, make_pool, plan
from torafugu.errors import PlanError
from torafugu.events import Answered, Failed, Stopped
from torafugu.orchestrate import Budget, Direct, Run, orchestrate
from torafugu.pool import Backend, Completion, Delta, OnDelta, Query, Scripted
from torafugu.types import Answer, Plan, Sampling, Step


def scripted(*texts: str) -> Scripted:
    return Scripted(list(texts), usage=USAGE)


class Dripping:
    """A worker that streams a piece of an answer and then never ends."""

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del query
        if on_delta is not None:
            await on_delta(Delta(text="It is"))
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        return


def last(events: list[Any]) -> Stopped:
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    return stopped


# --- budgets ---


def test_budget_of_calls() -> None:
    """A policy that never ends is stopped after the calls it may make; the latest reply is the answer, on record."""
    run = asyncio.run(
        orchestrate(REQUEST, Endless("a"), make_pool({"a": scripted("1", "2", "3", "4")}), budget=Budget(calls=3))
    )
    assert last(run.events).by == "budget:calls"
    assert run.calls == 3
    assert run.answer is not None
    assert run.answer.text == "3"
    assert run.events[-2] == Answered(step=2, worker="a")


@pytest.mark.parametrize(("usd", "calls"), [("0.0045", 2), ("0.0061", 3), ("0.0021", 1), ("0.002", 0)])
def test_budget_of_usd(usd: str, calls: int) -> None:
    """No call is made whose worst case is more than what is left; a call costs 0.002 here, at worst a little more."""
    pool = make_pool({"a": scripted(*"123456")})
    request = msgspec.structs.replace(REQUEST, sampling=Sampling(max_output_tokens=100))
    run = asyncio.run(orchestrate(request, Endless("a"), pool, budget=Budget(usd=Decimal(usd))))
    assert (last(run.events).by, run.calls) == ("budget:usd", calls)
    assert (run.answer is not None) == (calls > 0)


def test_unknown_prices_never_pass_a_limit() -> None:
    """A run with a limit in USD calls nobody who may cost anything."""
    pool = make_pool({"a": scripted("1", "2")}, prices=None)
    run = asyncio.run(orchestrate(REQUEST, Endless("a"), pool, budget=Budget(usd=Decimal(1000))))
    assert (last(run.events).by, run.calls, run.cost_usd) == ("budget:usd", 0, Decimal(0))


def test_budget_of_no_calls() -> None:
    """A run that may call nobody ends without an answer, and without an error."""
    run = asyncio.run(orchestrate(REQUEST, Direct("a"), make_pool({"a": scripted("4")}), budget=Budget(calls=0)))
    assert (last(run.events).by, run.answer, run.calls) == ("budget:calls", None, 0)
    assert kinds(run.events) == ["accepted", "stopped"]


def test_answer_within_budget() -> None:
    """A policy that answers after its last allowed call is not said to have run out."""
    policy = Planned(plan(Step(id=0, worker="a")))
    run = asyncio.run(orchestrate(REQUEST, policy, make_pool({"a": scripted("4")}), budget=Budget(calls=1)))
    assert last(run.events).by == "answer"


def test_budget_of_seconds() -> None:
    """When time is up the call in flight is dropped, its cost is unknown, and there is no answer, and no error."""

    async def main() -> tuple[Run, Waiting]:
        waiting = Waiting()
        return await orchestrate(REQUEST, Direct("a"), make_pool({"a": waiting}), budget=Budget(seconds=0.02)), waiting

    run, waiting = asyncio.run(main())
    assert waiting.cancelled.is_set()
    assert (last(run.events).by, run.answer, last(run.events).cost_usd) == ("budget:seconds", None, None)
    assert kinds(run.events) == ["accepted", "planned", "called", "failed", "stopped"]
    (failed,) = [event for event in run.events if isinstance(event, Failed)]
    assert (failed.code, failed.fault, failed.cost_usd) == ("dropped", "policy", None)


def test_seconds_end_with_the_best_reply() -> None:
    """When time is up in a later call, the reply that there is becomes the answer."""

    async def main() -> Run:
        policy = Planned(plan(Step(id=0, worker="a")), plan(Step(id=1, worker="b")), answer=1)
        pool = make_pool({"a": scripted("a draft"), "b": Waiting()})
        return await orchestrate(REQUEST, policy, pool, budget=Budget(seconds=0.02))

    run = asyncio.run(main())
    assert last(run.events).by == "budget:seconds"
    assert run.answer is not None
    assert run.answer.text == "a draft"
    assert run.events[-2] == Answered(step=0, worker="a")


def test_final_reply_beats_a_later_one() -> None:
    """Where the final step has replied, its reply is kept when the budget ends, whoever replied after it."""

    class Restless:
        id = "restless"

        async def decide(self, run: Run) -> Plan | Answer:
            number = len(run.plans)
            return plan(Step(id=number, worker="a", is_final=number == 0))

    run = asyncio.run(
        orchestrate(REQUEST, Restless(), make_pool({"a": scripted("final", "more")}), budget=Budget(calls=2))
    )
    assert run.answer is not None
    assert run.answer.text == "final"


@pytest.mark.parametrize("is_streaming", [True, False])
def test_streamed_beginning_is_not_mixed(is_streaming: bool) -> None:
    """A client that has got the beginning of one answer is not given another's end: then there is none."""
    heard: list[str] = []

    async def on_delta(delta: Delta) -> None:
        heard.append(delta.text)

    async def main() -> Run:
        policy = Planned(plan(Step(id=0, worker="a")), plan(Step(id=1, worker="b", is_final=True)), answer=1)
        pool = make_pool({"a": scripted("a draft"), "b": Dripping()})
        stream = on_delta if is_streaming else None
        return await orchestrate(REQUEST, policy, pool, budget=Budget(seconds=0.02), on_delta=stream)

    run = asyncio.run(main())
    assert heard == (["It is"] if is_streaming else [])
    assert (run.answer is None) == is_streaming
    assert last(run.events).by == "budget:seconds"


# --- a client that leaves ---


@pytest.mark.parametrize("steps", [1, 2])
def test_cancelled(steps: int) -> None:
    """Cancelling a run cancels its calls, and the last event on record says that the client left."""

    async def main() -> tuple[list[Waiting], Record]:
        record, waiting = Record(), [Waiting() for _ in range(steps)]
        backends: dict[str, Backend] = {f"w{i}": worker for i, worker in enumerate(waiting)}
        policy = Planned(plan(*(Step(id=i, worker=id) for i, id in enumerate(backends))))
        work = asyncio.create_task(orchestrate(REQUEST, policy, make_pool(backends), recorder=record))
        for worker in waiting:
            await worker.called.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return waiting, record

    waiting, record = asyncio.run(main())
    assert all(worker.cancelled.is_set() for worker in waiting)
    assert kinds(record.events) == ["accepted", "planned", *["called"] * steps, *["failed"] * steps, "stopped"]
    assert [event.code for event in record.events if isinstance(event, Failed)] == ["cancelled"] * steps
    stopped = last(record.events)
    assert (stopped.by, stopped.calls, stopped.cost_usd) == ("client_closed", steps, None)


def test_cancelled_before_it_is_durable() -> None:
    """A client that leaves before anything was called has cost nothing, and that is known."""

    async def main() -> Record:
        record = Record(durable=False)
        work = asyncio.create_task(orchestrate(REQUEST, Direct("a"), make_pool({"a": scripted("4")}), recorder=record))
        await record.asked.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return record

    stopped = last(asyncio.run(main()).events)
    assert (stopped.by, stopped.calls, stopped.cost_usd) == ("client_closed", 0, Decimal(0))


# --- faults of this program ---


class Broken:
    """A worker with a bug."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del query, on_delta
        raise self._error

    async def close(self) -> None:
        return


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), TimeoutError("secret")], ids=type)
@pytest.mark.parametrize("where", ["policy", "worker"])
def test_bugs(error: Exception, where: str) -> None:
    """An exception nobody meant, a foreign TimeoutError too, ends the record as our fault and is raised as it is.

    Its message, which may quote a prompt, is not recorded.
    """
    record = Record()

    def fail() -> Plan:
        raise error

    policy = Deciding(fail) if where == "policy" else Direct("a")
    with pytest.raises(type(error)) as caught:
        asyncio.run(orchestrate(REQUEST, policy, make_pool({"a": Broken(error)}), recorder=record))
    assert caught.value is error
    stopped = last(record.events)
    assert stopped.error is not None
    assert (stopped.by, stopped.error["fault"], stopped.error["code"]) == ("error", "us", "internal_error")
    assert type(error).__name__ in stopped.error["message"]
    assert "secret" not in str(record.events)


def test_bug_beside_other_steps() -> None:
    """A bug in one of several steps is raised as itself, not as a group."""
    error = ZeroDivisionError()
    policy = Planned(plan(Step(id=0, worker="a"), Step(id=1, worker="b")))

    async def main() -> None:
        await orchestrate(REQUEST, policy, make_pool({"a": Waiting(), "b": Broken(error)}))

    with pytest.raises(ZeroDivisionError) as caught:
        asyncio.run(main())
    assert caught.value is error


def test_policy_that_cannot_plan() -> None:
    """A policy's own PlanError is recorded with its reason."""
    record = Record()

    def fail() -> Plan:
        raise PlanError("nobody is allowed")

    with pytest.raises(PlanError):
        asyncio.run(orchestrate(REQUEST, Deciding(fail), make_pool({"a": scripted("4")}), recorder=record))
    assert last(record.events).error == {"fault": "policy", "code": "bad_plan", "message": "nobody is allowed"}
