"""How the steps of one plan are called: what waits for what, what runs at the same time, what becomes of losses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import REQUEST, USAGE, Meeting, Planned, Record, Waiting, make_pool, plan
from torafugu.errors import PlanError, WorkerError
from torafugu.events import Called, Event, Failed, Replied
from torafugu.orchestrate import Budget, Run, orchestrate
from torafugu.pool import Backend, Completion, Failing, OnDelta, Query, Scripted
from torafugu.types import Plan, Step

DOWN = WorkerError("worker 'down': 500", worker="down", code="server_error")


def step(id: int, worker: str = "w", *sees: int, **fields: Any) -> Step:
    return Step(id=id, worker=worker, sees=sees, instruction=f"part {id}", **fields)


class Echo:
    """Answers at once, any number of times, with what it was asked to do; knows how many calls ran at one time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.asked: list[str] = []

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        self.asked.append(query.question or "")
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        return Completion(text=f"did {query.question}", finish_reason="stop", usage=USAGE)

    async def close(self) -> None:
        return


def execute(backends: dict[str, Backend], *plans: Plan, answer: int, budget: Budget = Budget(), **more: Any) -> Run:  # noqa: B008
    policy = Planned(*plans, answer=answer)
    return asyncio.run(orchestrate(REQUEST, policy, make_pool(backends, max_attempts=1), budget=budget, **more))


def order(events: list[Event]) -> list[str]:
    """c0: step 0 was called, r0: it replied, f0: it failed."""
    names = {Called: "c", Replied: "r", Failed: "f"}
    return [f"{names[type(event)]}{event.step}" for event in events if isinstance(event, Called | Replied | Failed)]


# --- what waits for what ---


def test_diamond_takes_three_levels() -> None:
    """The two middle steps of a diamond are called together, after the first and before the last."""
    meeting = Meeting(2)  # answers only when both are in flight
    steps = (step(0), step(1, "m", 0), step(2, "m", 0), step(3, "w", 1, 2, is_final=True))
    run = execute({"w": Echo(), "m": meeting}, plan(*steps), answer=3)
    seen = order(run.events)
    assert seen[:2] == ["c0", "r0"]
    assert set(seen[2:4]) == {"c1", "c2"}
    assert seen[-2:] == ["c3", "r3"]


def test_step_starts_when_its_inputs_exist() -> None:
    """A step does not wait for others of its level: it starts the moment what it sees has replied."""
    gate = asyncio.Event()

    class Slow:
        async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
            await gate.wait()
            return Completion(text="late", finish_reason="stop", usage=USAGE)

        async def close(self) -> None:
            return

    class Opens:
        async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
            gate.set()
            return Completion(text="opened", finish_reason="stop", usage=USAGE)

        async def close(self) -> None:
            return

    steps = (step(0), step(1, "slow"), step(2, "opens", 0), step(3, "w", 1, 2))
    run = execute({"w": Echo(), "slow": Slow(), "opens": Opens()}, plan(*steps), answer=3)
    assert order(run.events).index("c2") < order(run.events).index("r1")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Step, ...]:
    size = draw(st.integers(1, 8))
    sees = [draw(st.sets(st.integers(0, i - 1))) if i else set() for i in range(size)]
    return tuple(step(i, "w", *sorted(seen)) for i, seen in enumerate(sees))


@settings(max_examples=60, deadline=None)
@given(graphs(), st.none() | st.integers(1, 3))
def test_any_graph(steps: tuple[Step, ...], parallel: int | None) -> None:
    """Every step of any graph is called once, after all that it sees have replied, never more at one time than said."""
    echo = Echo()
    run = execute({"w": echo}, plan(*steps, parallel=parallel), answer=0)
    seen = order(run.events)
    assert sorted(seen) == sorted([f"{what}{s.id}" for s in steps for what in "cr"])
    for s in steps:
        assert all(seen.index(f"r{id}") < seen.index(f"c{s.id}") for id in s.sees)
    assert echo.most <= (parallel or len(steps))


def test_later_plans_see_earlier_ones() -> None:
    """A step may see replies of plans before its own."""
    echo = Echo()
    execute({"w": echo}, plan(step(0), step(1)), plan(step(2, "w", 0), step(3, "w", 1, 2)), answer=3)
    assert echo.asked == ["part 0", "part 1", "part 2", "part 3"]


# --- losses ---


def test_loss_takes_its_readers_with_it() -> None:
    """Where the policy will plan anew, what depends on a lost step is not called, at no cost, and the rest is done."""
    steps = (step(0, "down"), step(1, "w", 0), step(2, "w", 1), step(3), step(4, "w", 3))
    run = execute({"w": Echo(), "down": Failing(DOWN)}, plan(*steps, on_error="replan"), answer=4)
    failed = {event.step: (event.code, event.attempt) for event in run.events if isinstance(event, Failed)}
    assert failed == {0: ("server_error", 1), 1: ("input_missing", 0), 2: ("input_missing", 0)}
    assert set(run.replies) == {3, 4}
    assert {id: error.code for id, error in run.failed.items()} == {
        0: "server_error",
        1: "input_missing",
        2: "input_missing",
    }
    assert run.calls == 3


def test_loss_ends_the_plan() -> None:
    """Else the first loss ends the run with its error, and the calls beside it are dropped: no client gave them up."""
    waiting, record = Waiting(), Record()
    steps = (step(0, "waits"), step(1, "down"), step(2, "w", 0, 1))
    with pytest.raises(WorkerError, match="500"):
        execute({"w": Echo(), "down": Failing(DOWN), "waits": waiting}, plan(*steps), answer=2, recorder=record)
    assert waiting.cancelled.is_set()
    failed = [event for event in record.events if isinstance(event, Failed)]
    assert [(event.code, event.fault) for event in failed] == [("server_error", "worker"), ("dropped", "policy")]
    assert failed[1].message.endswith("was dropped: a step beside it was lost")


def test_a_fault_of_ours_ends_the_plan() -> None:
    """Calls beside a step that our own code failed at are dropped too, and that step's fault is ours."""

    class Broken(Failing):
        async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
            raise ZeroDivisionError

    waiting, record = Waiting(), Record()
    steps = (step(0, "waits"), step(1, "broken"), step(2, "w", 0, 1))
    with pytest.raises(ZeroDivisionError):
        execute({"w": Echo(), "broken": Broken("hang"), "waits": waiting}, plan(*steps), answer=2, recorder=record)
    failed = [event for event in record.events if isinstance(event, Failed)]
    assert [(event.code, event.fault) for event in failed] == [("internal_error", "us"), ("dropped", "policy")]


def test_optional_steps_may_be_lost() -> None:
    """A step that sees optional ones goes on with those that replied."""
    steps = (step(0, "down", is_optional=True), step(1, is_optional=True), step(2, "w", 0, 1))
    run = execute({"w": Echo(), "down": Failing(DOWN)}, plan(*steps), answer=2)
    assert set(run.replies) == {1, 2}


def test_all_optional_steps_lost() -> None:
    """When none of what a step sees has replied it is not called, and the run fails with the reason of that."""
    steps = (step(0, "down", is_optional=True), step(1, "w", 0))
    with pytest.raises(WorkerError, match="500"):
        execute({"w": Echo(), "down": Failing(DOWN)}, plan(*steps), answer=1)


# --- quorums ---


def test_quorum_drops_the_rest() -> None:
    """When as many steps as the plan needs have replied, the other calls are dropped, by the policy, and it is over."""
    waiting = Waiting()
    steps = (step(0), step(1), step(2, "waits"), step(3, "w", 2))
    run = execute({"w": Echo(), "waits": waiting}, plan(*steps, quorum=2), answer=1)
    assert run.answer is not None
    assert waiting.cancelled.is_set()
    (dropped,) = [event for event in run.events if isinstance(event, Failed)]
    assert (dropped.step, dropped.code, dropped.fault) == (2, "dropped", "policy")
    assert run.cost_usd is None  # nobody knows what was billed until then


def test_quorum_that_is_not_met() -> None:
    """A quorum that too few replies meet waits for all, and is no fault."""
    steps = (step(0), step(1, "down", is_optional=True))
    run = execute({"w": Echo(), "down": Failing(DOWN)}, plan(*steps, quorum=2), answer=0)
    assert set(run.replies) == {0}


# --- deadlines, budgets, departures ---


def test_deadline_of_a_step() -> None:
    """A step that takes longer than it may is lost as the worker's fault."""
    with pytest.raises(WorkerError) as raised:
        execute({"w": Failing("hang")}, plan(step(0, timeout_s=0.02), step(1)), answer=0)
    assert raised.value.code == "timeout_total"


def test_budget_ends_between_steps() -> None:
    """Steps that cannot be paid for are not called; those that run may end, and the run says what stopped it."""
    steps = (step(0), step(1), step(2), step(3, "w", 0, 1, 2))
    run = execute({"w": Echo()}, plan(*steps), answer=3, budget=Budget(calls=2))
    assert run.stopped is not None
    assert run.stopped.by == "budget:calls"
    assert (set(run.replies), run.calls) == ({0, 1}, 2)
    assert run.answer is not None
    assert run.answer.finish_reason == "length"


def test_time_is_up_for_all() -> None:
    """When the run's time is up all its calls are dropped: no client gave them up."""
    one, other = Waiting(), Waiting()
    steps = (step(0), step(1, "one"), step(2, "other"), step(3, "w", 1, 2))
    run = execute({"w": Echo(), "one": one, "other": other}, plan(*steps), answer=3, budget=Budget(seconds=0.03))
    assert one.cancelled.is_set()
    assert other.cancelled.is_set()
    assert run.stopped is not None
    assert run.stopped.by == "budget:seconds"
    failed = [event for event in run.events if isinstance(event, Failed)]
    assert [(event.code, event.fault) for event in failed] == [("dropped", "policy")] * 2
    assert all("the run's time is up" in event.message for event in failed)


def test_leaving_cancels_every_call() -> None:
    """A caller that gives up cancels all calls of the tree; the record says whose doing it was."""
    one, other, record = Waiting(), Waiting(), Record()

    async def leave() -> None:
        pool = make_pool({"one": one, "other": other}, max_attempts=1)
        work = orchestrate(REQUEST, Planned(plan(step(0, "one"), step(1, "other"))), pool, recorder=record)
        task = asyncio.create_task(work)
        await asyncio.gather(one.called.wait(), other.called.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert one.cancelled.is_set()
    assert other.cancelled.is_set()
    failed = [event for event in record.events if isinstance(event, Failed)]
    assert {(event.code, event.fault) for event in failed} == {("cancelled", "client")}


def test_step_that_sees_a_lost_one_of_an_earlier_plan() -> None:
    """A plan that wants to see what was never replied is the policy's fault."""
    first = plan(step(0, "down", is_optional=True), step(1))
    with pytest.raises(PlanError, match=r"step 2 sees \[0\]"):
        execute({"w": Echo(), "down": Failing(DOWN)}, first, plan(step(2, "w", 0)), answer=1)


def test_streamed_final_step_beside_others() -> None:
    """Only the final step's tokens are streamed, wherever it stands in the plan."""
    pieces: list[str] = []

    async def take(delta: Any) -> None:
        pieces.append(delta.text)

    steps = (step(0, "a"), step(1, "b", 0, is_final=True))
    backends = {"a": Scripted(["hidden"], usage=USAGE), "b": Scripted(["shown"], usage=USAGE)}
    execute(backends, plan(*steps), answer=1, on_delta=take)
    assert pieces == ["shown"]
