"""The loop: what is recorded in which order, what is refused before it costs anything, and how runs end."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import (
    REQUEST,
    USAGE,
    Deciding,
    Meeting,
    Planned,
    Record,
    Refusing,
    Waiting,
    kinds,
    make_pool,
    plan,
)
from torafugu.errors import PlanError, StoreError, WorkerError
from torafugu.events import Accepted, Answered, Called, Failed, Replied, Stopped
from torafugu.events import Planned as PlannedEvent
from torafugu.orchestrate import Budget, Direct, Run, create_run_id, orchestrate
from torafugu.pool import Delta, Failing, Scripted
from torafugu.types import Answer, Reply, Request, Step, Usage, sum_cost

UP = WorkerError("worker 'b': 500", worker="b", code="server_error")


def scripted(*texts: str) -> Scripted:
    return Scripted(list(texts), usage=USAGE)


# --- a run, from question to answer ---


def test_direct_run() -> None:
    """A direct run is on record as accepted, planned, called, replied, answered and stopped, with its numbers."""
    record = Record()
    pool = make_pool({"a": scripted("4")})
    run = asyncio.run(orchestrate(REQUEST, Direct("a"), pool, recorder=record, run_id="run_1"))
    accepted, planned, called, replied, answered, stopped = record.events
    assert accepted == Accepted(request=REQUEST, policy="direct:a")
    assert isinstance(planned, PlannedEvent)
    assert planned.plan.steps == (Step(id=0, worker="a", is_final=True),)
    assert planned.decision_ms >= 0
    assert called == Called(step=0, worker="a", attempt=1, reason="planned")
    assert isinstance(replied, Replied)
    assert (replied.step, replied.attempt, replied.reply.text) == (0, 1, "4")
    assert answered == Answered(step=0, worker="a")
    assert isinstance(stopped, Stopped)
    assert (stopped.by, stopped.calls, stopped.usage, stopped.error) == ("answer", 1, USAGE, None)
    assert stopped.cost_usd == Decimal("0.002")
    assert (run.id, run.events, run.answer, run.stopped) == ("run_1", record.events, replied.reply, stopped)
    assert (run.workers, run.calls) == (("a",), 1)


def test_origin_is_on_record() -> None:
    """Which key asked, in which session, with which body, stands in the first event."""

    class From:
        key_id, session, body_sha256, wire = "key_1", "s", "ab12", {"a": 1}

    record = Record()
    asyncio.run(orchestrate(REQUEST, Direct("a"), make_pool({"a": scripted("4")}), recorder=record, origin=From()))
    accepted = record.events[0]
    assert isinstance(accepted, Accepted)
    assert (accepted.key_id, accepted.session, accepted.body_sha256) == ("key_1", "s", "ab12")
    assert accepted.wire == {"a": 1}


def test_alternates_take_over() -> None:
    """When the planned worker fails, its alternates are asked in order, and the answer names who gave it."""
    pool = make_pool({"a": scripted("late"), "b": Failing(UP)})
    run = asyncio.run(orchestrate(REQUEST, Planned(plan(Step(id=0, worker="b", alternates=("a",)))), pool))
    assert kinds(run.events) == ["accepted", "planned", "called", "failed", "called", "replied", "answered", "stopped"]
    assert run.workers == ("b", "a")
    assert run.answer is not None
    assert (run.answer.worker, run.answer.text) == ("a", "late")


def test_policy_sees_the_replies() -> None:
    """A policy may plan again after it saw a reply, and answer with an earlier step."""
    policy, record = Planned(plan(Step(id=0, worker="a")), plan(Step(id=1, worker="b")), answer=0), Record()
    pool = make_pool({"a": scripted("first"), "b": scripted("second")})
    run = asyncio.run(orchestrate(REQUEST, policy, pool, recorder=record))
    assert run.answer is not None
    assert run.answer.text == "first"
    assert list(run.replies) == [0, 1]
    assert run.events[-2] == Answered(step=0, worker="a")
    assert record.waits == [1]  # the disk is waited for before the first call, and not again


def test_workers_are_told_the_request() -> None:
    """A step without an instruction hands its worker the request's own messages, sampling and task."""
    worker = scripted("4")
    request = Request(model="m", messages=REQUEST.messages, task="t1")
    asyncio.run(orchestrate(request, Direct("a"), make_pool({"a": worker})))
    (query,) = worker.queries
    assert (query.messages, query.sampling, query.task) == (REQUEST.messages, request.sampling, "t1")


def test_run_ids() -> None:
    """Run ids are unique, of one length, and sort by the millisecond of their making."""
    ids = [create_run_id() for _ in range(2000)]
    assert len(set(ids)) == len(ids)
    assert {len(id) for id in ids} == {4 + 26}
    moments = [id[:16] for id in ids]
    assert moments == sorted(moments)


# --- nothing is called before the first event is durable ---


def test_waits_until_durable() -> None:
    """No worker is called while the accepted event is not durable; once it is, the run goes on."""

    async def main() -> None:
        record, worker = Record(durable=False), scripted("4")
        work = asyncio.create_task(orchestrate(REQUEST, Direct("a"), make_pool({"a": worker}), recorder=record))
        await record.asked.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (kinds(record.events), worker.queries) == (["accepted"], [])
        record.durable.set()
        run = await work
        assert run.answer is not None
        assert record.waits == [1]  # once, when nothing but the first event was written

    asyncio.run(main())


def test_store_that_refuses() -> None:
    """When the record cannot be kept no worker is called, and the run ends in a StoreError that is on record too."""
    record, worker = Refusing(), scripted("4")
    with pytest.raises(StoreError, match="disk is full"):
        asyncio.run(orchestrate(REQUEST, Direct("a"), make_pool({"a": worker}), recorder=record))
    assert worker.queries == []
    assert kinds(record.events) == ["accepted", "stopped"]
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.by, stopped.calls, stopped.cost_usd) == ("error", 0, Decimal(0))
    assert stopped.error == {"fault": "us", "code": "store_unavailable", "message": "the disk is full"}


# --- plans that cannot be executed ---

ONLY_A = Request(model="m", messages=REQUEST.messages, allowed=frozenset({"a"}))
BAD_PLANS = {
    "no steps": (REQUEST, plan(), "no steps"),
    "unknown worker": (REQUEST, plan(Step(id=0, worker="z")), "'z': the pool has a, b"),
    "unknown alternate": (REQUEST, plan(Step(id=0, worker="a", alternates=("z",))), "'z'"),
    "worker not allowed": (ONLY_A, plan(Step(id=0, worker="b")), "'b', which this request does not allow"),
    "alternate not allowed": (ONLY_A, plan(Step(id=0, worker="a", alternates=("b",))), "does not allow"),
    "step id twice": (REQUEST, plan(Step(id=0, worker="a"), Step(id=0, worker="b")), "step 0 is planned twice"),
    "sees itself": (REQUEST, plan(Step(id=0, worker="a", sees=(0,))), r"sees \[0\]: no such earlier step"),
    "sees the future": (
        REQUEST,
        plan(Step(id=0, worker="a", sees=(1,)), Step(id=1, worker="b")),
        r"sees \[1\]: no such earlier step",
    ),
    "two answers": (
        REQUEST,
        plan(Step(id=0, worker="a", is_final=True), Step(id=1, worker="b", is_final=True)),
        "all final",
    ),
    "quorum": (
        REQUEST,
        plan(Step(id=0, worker="a"), Step(id=1, worker="b"), quorum=3),
        "a quorum of 3 among 2 steps",
    ),
    "instruction": (
        REQUEST,
        plan(Step(id=0, worker="a"), Step(id=1, worker="b", role="thinker", instruction="x")),
        "step 1 has an instruction as thinker",
    ),
}


@pytest.mark.parametrize(("request_", "bad", "message"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_bad_plans(request_: Request, bad: Any, message: str) -> None:
    """A plan that cannot be executed is the policy's fault and on record, and none of its steps is called."""
    record, workers = Record(), {"a": scripted("4"), "b": scripted("5")}
    with pytest.raises(PlanError, match=message):
        asyncio.run(orchestrate(request_, Planned(bad), make_pool(workers), recorder=record))
    assert [worker.queries for worker in workers.values()] == [[], []]
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.by, stopped.calls) == ("error", 0)
    assert stopped.error is not None
    assert (stopped.error["fault"], stopped.error["code"]) == ("policy", "bad_plan")


def test_replanning_a_step() -> None:
    """A step that has its reply already cannot be planned again; what it cost stays on record."""
    record = Record()
    policy = Planned(plan(Step(id=0, worker="a")), plan(Step(id=0, worker="a")))
    with pytest.raises(PlanError, match="step 0 is planned twice"):
        asyncio.run(orchestrate(REQUEST, policy, make_pool({"a": scripted("4", "5")}), recorder=record))
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.calls, stopped.cost_usd) == (1, Decimal("0.002"))


def test_answer_without_a_reply() -> None:
    """A policy cannot answer with a step that has no reply."""
    with pytest.raises(PlanError, match="answers with step 3, which has no reply"):
        asyncio.run(orchestrate(REQUEST, Deciding(lambda: Answer(step=3)), make_pool({"a": scripted("4")})))


def test_direct_worker_that_is_not_allowed() -> None:
    """Naming a worker does not get around the workers that a key allows."""
    with pytest.raises(PlanError, match="'b' is not among the workers allowed"):
        asyncio.run(orchestrate(ONLY_A, Direct("b"), make_pool({"a": scripted("4"), "b": scripted("5")})))


# --- roles, and steps that may fail ---


def test_steps_are_told_their_role() -> None:
    """Each worker is asked in its step's role, about the replies that the step sees."""
    policy = Planned(
        plan(Step(id=0, worker="a")),
        plan(Step(id=1, worker="b", role="thinker", sees=(0,))),
        plan(Step(id=2, worker="c", role="verifier", sees=(1, 0))),
    )
    advice = "<suggestion>Be brief.</suggestion><suggested_role>verifier</suggested_role>"
    workers = {"a": scripted("four"), "b": scripted(advice), "c": scripted("ACCEPT")}
    run = asyncio.run(orchestrate(REQUEST, policy, make_pool(workers)))
    (worked,), (thought,), (verified,) = (worker.queries for worker in workers.values())
    assert [query.role for query in (worked, thought, verified)] == ["worker", "thinker", "verifier"]
    assert worked.messages == REQUEST.messages
    assert "<current_answer>\nfour\n</current_answer>" in thought.messages[-1].text
    assert "<suggestion>Be brief.</suggestion>" in verified.messages[-1].text
    assert verified.verifies == "four"
    assert run.answer is not None
    assert run.answer.text == "four"


def test_verifier_that_sees_no_answer() -> None:
    """A plan to verify nothing is the policy's fault, and is not paid for."""
    worker = scripted("ACCEPT")
    with pytest.raises(PlanError, match="step 0: a Verifier has to see the reply that it verifies"):
        asyncio.run(
            orchestrate(REQUEST, Planned(plan(Step(id=0, worker="a", role="verifier"))), make_pool({"a": worker}))
        )
    assert worker.queries == []


@pytest.mark.parametrize("code", ["server_error", "context_overflow"])
def test_optional_step_may_fail(code: Any) -> None:
    """When nobody replies to an optional step the run goes on; its attempts are on record, and it has no reply."""
    record = Record()
    policy = Planned(plan(Step(id=0, worker="a")), plan(Step(id=1, worker="b", is_optional=True)))
    down = WorkerError("worker 'b': no", worker="b", code=code)
    pool = make_pool({"a": scripted("4"), "b": Failing(down)}, max_attempts=1)
    run = asyncio.run(orchestrate(REQUEST, policy, pool, recorder=record))
    assert kinds(record.events) == [
        *("accepted", "planned", "called", "replied", "planned", "called", "failed", "answered", "stopped")
    ]
    assert list(run.replies) == [0]
    assert run.stopped is not None
    assert (run.stopped.by, run.stopped.calls, run.stopped.error) == ("answer", 2, None)


def test_optional_step_beside_others() -> None:
    """An optional step that fails does not cancel the steps beside it."""
    policy = Planned(plan(Step(id=0, worker="a"), Step(id=1, worker="b", is_optional=True), Step(id=2, worker="c")))
    pool = make_pool({"a": scripted("4"), "b": Failing(UP), "c": scripted("5")}, max_attempts=1)
    run = asyncio.run(orchestrate(REQUEST, policy, pool))
    assert sorted(run.replies) == [0, 2]


def test_failed_step_leaves_no_reply() -> None:
    """An optional step that failed can be seen by none, answered with by none, and its id is not free again."""
    failing = plan(Step(id=1, worker="b", is_optional=True))
    first = plan(Step(id=0, worker="a"))
    for then, answer, message in (
        (plan(Step(id=2, worker="a", sees=(1,))), 0, r"step 2 sees \[1\]: no such earlier step or reply"),
        (plan(Step(id=1, worker="a")), 0, "step 1 is planned twice"),
        (None, 1, "answers with step 1, which has no reply"),
    ):
        policy = Planned(first, failing, *([then] if then else []), answer=answer)
        pool = make_pool({"a": scripted("4", "5"), "b": Failing(UP)}, max_attempts=1)
        with pytest.raises(PlanError, match=message):
            asyncio.run(orchestrate(REQUEST, policy, pool))


def test_answers_notes_are_on_record() -> None:
    """What a policy has to say on its answer stands in the record of it."""
    answer = Answer(step=0, notes={"stopped": "accepted", "turns": 3, "recalled": [["worker", "a"]]})
    decisions = iter([plan(Step(id=0, worker="a")), answer])
    run = asyncio.run(orchestrate(REQUEST, Deciding(lambda: next(decisions)), make_pool({"a": scripted("4")})))
    assert run.events[-2] == Answered(step=0, worker="a", notes=answer.notes)


@pytest.mark.parametrize("role", ["thinker", "verifier"])
def test_budget_keeps_the_latest_workers_reply(role: str) -> None:
    """A budget that ends after advice or a verdict answers with the Worker's reply before it."""
    policy = Planned(
        plan(Step(id=0, worker="a")),
        plan(Step(id=1, worker="b", role=role, sees=(0,))),
        plan(Step(id=2, worker="a")),
    )
    pool = make_pool({"a": scripted("4", "5"), "b": scripted("ACCEPT")})
    run = asyncio.run(orchestrate(REQUEST, policy, pool, budget=Budget(calls=2)))
    assert run.answer is not None
    assert run.stopped is not None
    assert (run.answer.text, run.stopped.by) == ("4", "budget:calls")


def test_budget_that_ends_on_advice() -> None:
    """Where only a Thinker has replied there is no answer, and its words do not stand in for one."""
    policy = Planned(plan(Step(id=0, worker="a", role="thinker")), plan(Step(id=1, worker="a")))
    run = asyncio.run(orchestrate(REQUEST, policy, make_pool({"a": scripted("Hm.", "4")}), budget=Budget(calls=1)))
    assert run.stopped is not None
    assert (run.answer, run.stopped.by) == (None, "budget:calls")


# --- several steps at once ---


def test_steps_run_side_by_side() -> None:
    """Steps of one plan are in flight together, and all are on record before the policy decides again."""

    async def main() -> Run:
        meeting = Meeting(3)
        steps = [Step(id=i, worker=worker) for i, worker in enumerate("abc")]
        return await orchestrate(REQUEST, Planned(plan(*steps), answer=2), make_pool(dict.fromkeys("abc", meeting)))

    run = asyncio.run(main())
    assert kinds(run.events) == ["accepted", "planned", *["called"] * 3, *["replied"] * 3, "answered", "stopped"]
    assert run.answer is not None
    assert run.answer.worker == "c"
    assert run.cost_usd == Decimal("0.006")


def test_one_failure_cancels_its_siblings() -> None:
    """When one step fails its siblings' calls are cancelled, and the run ends with that step's own error."""

    async def main() -> tuple[Waiting, Record]:
        waiting, record = Waiting(), Record()
        pool = make_pool({"a": waiting, "b": Failing(UP)}, max_attempts=1)
        with pytest.raises(WorkerError, match="worker 'b': 500"):
            await orchestrate(
                REQUEST, Planned(plan(Step(id=0, worker="a"), Step(id=1, worker="b"))), pool, recorder=record
            )
        return waiting, record

    waiting, record = asyncio.run(main())
    assert waiting.cancelled.is_set()
    assert kinds(record.events) == ["accepted", "planned", "called", "called", "failed", "failed", "stopped"]
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.error is not None
    assert (stopped.by, stopped.error["fault"], stopped.error["code"]) == ("error", "worker", "server_error")


# --- streaming ---


def test_only_the_final_step_is_streamed() -> None:
    """Tokens of steps that are not the answer never reach the client."""
    heard: list[str] = []

    async def on_delta(delta: Delta) -> None:
        heard.append(delta.text)

    policy = Planned(plan(Step(id=0, worker="a"), Step(id=1, worker="b", is_final=True)), answer=1)
    pool = make_pool({"a": Scripted(["draft"], pieces=3), "b": Scripted(["answer"], pieces=3)})
    run = asyncio.run(orchestrate(REQUEST, policy, pool, on_delta=on_delta))
    assert heard == ["an", "sw", "er"]
    assert run.answer is not None
    assert run.answer.text == "answer"


# --- what it cost ---

costs = st.none() | st.decimals(min_value=0, max_value=1000, places=9)


@given(st.lists(st.tuples(costs, st.booleans()), max_size=8))
def test_cost_is_the_sum_of_attempts(attempts: list[tuple[Decimal | None, bool]]) -> None:
    """A run costs exactly what its attempts cost together, failed ones too; one unknown makes the sum unknown."""
    run = Run(REQUEST, run_id="r")
    for i, (cost, has_failed) in enumerate(attempts):
        if has_failed:
            run.record(Failed(step=i, worker="a", attempt=1, fault="worker", code="x", message="x", cost_usd=cost))
        else:
            reply = Reply(worker="a", text="x", finish_reason="stop", cost_usd=cost)
            run.record(Replied(step=i, attempt=1, reply=reply))
    scaled = [None if cost is None else int(cost * 10**9) for cost, _ in attempts]
    expected = None if None in scaled else Decimal(sum(n for n in scaled if n is not None)) / 10**9
    assert run.cost_usd == expected
    assert sum_cost(cost for cost, _ in attempts) == expected


@given(st.lists(st.sampled_from(["ok", "fail", "free"]), min_size=1, max_size=4))
def test_stopped_has_the_sum(outcomes: list[str]) -> None:
    """However calls go, the last event's cost and calls are those of all attempts on record."""
    record = Record()
    faults = {
        "fail": WorkerError("x", worker="b", code="server_error"),
        "free": WorkerError("x", worker="b", code="rejected"),
    }
    backends = {
        f"w{i}": scripted("4") if outcome == "ok" else Failing(faults[outcome]) for i, outcome in enumerate(outcomes)
    }
    names = tuple(backends)
    policy = Planned(plan(Step(id=0, worker=names[0], alternates=names[1:])))
    try:
        asyncio.run(orchestrate(REQUEST, policy, make_pool(backends, max_attempts=4), recorder=record))
    except WorkerError:
        assert "ok" not in outcomes
    attempts = [e for e in record.events if isinstance(e, (Replied, Failed))]
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    each = [e.reply.cost_usd if isinstance(e, Replied) else e.cost_usd for e in attempts]
    assert stopped.cost_usd == (None if None in each else sum(c for c in each if c is not None))
    assert (None in each) == ("fail" in outcomes[: outcomes.index("ok") if "ok" in outcomes else None])
    assert stopped.calls == sum(isinstance(e, Called) for e in record.events)


def test_usage_sums() -> None:
    """Token counts add up field by field; one call that did not say makes that field unknown, and no other."""
    assert Usage.total([]) == Usage(
        input_tokens=0, cached_input_tokens=0, cache_write_tokens=0, output_tokens=0, reasoning_tokens=0
    )
    total = Usage.total([USAGE, Usage(input_tokens=1, output_tokens=2)])
    assert total == Usage(input_tokens=1001, output_tokens=102)


def test_price_that_nobody_knows() -> None:
    """A run of a worker without a price has an unknown cost, not a cost of nothing."""
    run = asyncio.run(orchestrate(REQUEST, Direct("a"), make_pool({"a": scripted("4")}, prices=None)))
    assert run.stopped is not None
    assert run.stopped.cost_usd is None
    assert run.stopped.usage == USAGE
