"""Runs that wait for the client's tools: which step is suspended, what finds its way back, and who sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from runs import Record, make_pool
from torafugu.errors import PlanError, RequestError, WorkerError
from torafugu.events import Accepted, Called, Suspended, event_from_json, event_to_json
from torafugu.orchestrate import Budget, Run, orchestrate
from torafugu.orchestrate.conductor import Conductor, ConductorConfig
from torafugu.orchestrate.pending import add_results, find_run, name_calls
from torafugu.pool import Backend, Failing
from torafugu.types import Message, Pending, Request, Sampling, ToolCall
from workflows import CONDUCTOR, calls, prompt_of, script, write

READ = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
ASKED = (Message(role="user", content="Mend the bug."),)
REQUEST = Request(model="fugu-ultra", messages=ASKED, sampling=Sampling(tools=(READ,)))
PLAN = write((0, "FIND", []), (1, "MEND", [0]))


def run_ultra(
    backends: Mapping[str, Backend],
    request: Request = REQUEST,
    resume: Pending | None = None,
    *,
    config: ConductorConfig = ConductorConfig(worker=CONDUCTOR),  # noqa: B008  # frozen
    budget: Budget = Budget(),  # noqa: B008  # frozen
    record: Record | None = None,
) -> Run:
    pool = make_pool(backends, max_attempts=1)
    policy = Conductor(config, {id: id for id in backends}, tool_users=frozenset(backends) - {"toolless"})
    return asyncio.run(orchestrate(request, policy, pool, resume=resume, budget=budget, recorder=record or Record()))


def wait(run: Run) -> Pending:
    """Stored and read back, as between two processes."""
    assert run.stopped is not None
    assert run.stopped.by == "suspended"
    (event,) = [event for event in run.events if isinstance(event, Suspended)]
    _, read = event_from_json(event_to_json(event, at=0.0))
    assert isinstance(read, Suspended)
    assert read == event
    return read.pending


def answer(run: Run, *results: str, said: str | None = None, messages: Sequence[Message] = ASKED) -> Request:
    """The client's next request: the calls, and what its tools returned."""
    assert run.answer is not None
    made = run.answer.tool_calls
    more = [Message(role="user", content=said)] if said else []
    return msgspec.structs.replace(
        REQUEST,
        messages=(
            *messages,
            Message(role="assistant", content=None, tool_calls=made),
            *(
                Message(role="tool", content=text, tool_call_id=call.id)
                for call, text in zip(made, results, strict=False)
            ),
            *more,
        ),
    )


def go_on(run: Run, backends: Mapping[str, Backend], *results: str, **more: Any) -> Run:
    request = answer(run, *results)
    assert find_run(request.messages) == run.id
    return run_ultra(backends, request, add_results(wait(run), request.messages), **more)


# --- suspended and resumed ---


def test_step_that_calls_tools_suspends_the_run() -> None:
    """The client gets the calls of the step, the steps that wait for it are not called, and nothing is lost."""
    b = script()
    run = run_ultra({CONDUCTOR: script(PLAN), "a": script(calls({"path": "x"}, text="I look.")), "b": b})
    assert run.answer is not None
    assert (run.answer.finish_reason, run.answer.text) == ("tool_calls", "")
    (call,) = run.answer.tool_calls
    assert (call.name, call.arguments) == ("read", '{"path": "x"}')
    assert call.id == f"call_{run.id.removeprefix('run_')}_1_0"
    assert b.queries == []
    assert wait(run).waiting == (1,)
    assert run.cost_usd == Decimal("0.004")


def test_results_resume_the_step_on_its_worker() -> None:
    """The results go to exactly the step that asked, with its own trajectory; then the workflow goes on."""
    a = script(calls({"path": "x"}, text="I look."), "FOUND")
    b, boss = script("MENDED"), script(PLAN)
    backends = {CONDUCTOR: boss, "a": a, "b": b}
    first = run_ultra(backends)
    record = Record()
    second = go_on(first, backends, "SECRET-FILE", record=record)
    assert second.answer is not None
    assert second.answer.text == "MENDED"
    assert len(boss.queries) == 1
    assert [message.role for message in a.queries[1].messages] == ["system", "user", "assistant", "tool"]
    assert a.queries[1].messages[:2] == a.queries[0].messages
    assert a.queries[1].messages[2].tool_calls[0].id == "toolu_0"  # its own id, not ours
    assert a.queries[1].messages[3] == Message(role="tool", content="SECRET-FILE", tool_call_id="toolu_0")
    assert "FOUND" in prompt_of(b.queries[0])
    assert "SECRET-FILE" not in prompt_of(b.queries[0])  # a trajectory is its step's alone
    accepted = record.events[0]
    assert isinstance(accepted, Accepted)
    assert accepted.resumes == first.id
    assert second.cost_usd == Decimal("0.004")  # its own calls, not those before


def test_many_rounds_of_tools() -> None:
    """A step may call tools again and again; its trajectory grows, and only its final reply is seen by others."""
    a = script(calls({"n": 1}), calls({"n": 2}), calls({"n": 3}), "FOUND")
    backends = {CONDUCTOR: script(PLAN), "a": a, "b": script("MENDED")}
    run = run_ultra(backends)
    for k in range(3):
        run = go_on(run, backends, f"RESULT-{k}")
    assert run.answer is not None
    assert run.answer.text == "MENDED"
    assert [m.content for m in a.queries[-1].messages if m.role == "tool"] == ["RESULT-0", "RESULT-1", "RESULT-2"]


def test_parallel_steps_wait_together() -> None:
    """Calls of several steps come in one answer, those of one step stay together, each result finds its step."""
    plan = write((0, "LEFT", []), (1, "RIGHT", []), (2, "JOIN", [0, 1]))
    a, b = script(calls({"n": 1}, {"n": 2}), "L"), script(calls({"n": 3}), "R")
    backends = {CONDUCTOR: script(plan), "a": a, "b": b, "c": script("JOINED")}
    first = run_ultra(backends)
    assert first.answer is not None
    assert len(first.answer.tool_calls) == 3
    assert len({call.id for call in first.answer.tool_calls}) == 3
    second = go_on(first, backends, "ONE", "TWO", "THREE")
    assert [m.content for m in a.queries[1].messages if m.role == "tool"] == ["ONE", "TWO"]
    assert [m.content for m in b.queries[1].messages if m.role == "tool"] == ["THREE"]
    assert second.answer is not None
    assert second.answer.text == "JOINED"


def test_steps_beside_go_on() -> None:
    """A step that does not wait is done when the run is suspended, and is not called again."""
    plan = write((0, "LEFT", []), (1, "RIGHT", []), (2, "JOIN", [0, 1]))
    b = script("R")
    backends = {CONDUCTOR: script(plan), "a": script(calls({"n": 1}), "L"), "b": b, "c": script("JOINED")}
    second = go_on(run_ultra(backends), backends, "ONE")
    assert len(b.queries) == 1
    assert second.answer is not None
    called = [event.worker for event in second.events if isinstance(event, Called)]
    assert called == ["a", "c"]


def test_last_step_calls_tools() -> None:
    """The step that writes the reply may call tools as well; its text belongs to the client."""
    b = script(calls({"n": 1}, text="Let me check."), "DONE")
    backends = {CONDUCTOR: script(PLAN), "a": script("FOUND"), "b": b}
    first = run_ultra(backends)
    assert first.answer is not None
    assert first.answer.text == "Let me check."
    second = go_on(first, backends, "OK")
    assert second.answer is not None
    assert second.answer.text == "DONE"


def test_what_the_user_says_beside_results() -> None:
    """Words of the user's that come with the results reach the step that waits."""
    a = script(calls({"n": 1}), "FOUND")
    backends = {CONDUCTOR: script(PLAN), "a": a, "b": script("MENDED")}
    first = run_ultra(backends)
    request = answer(first, "RESULT", said="Hurry up.")
    run_ultra(backends, request, add_results(wait(first), request.messages))
    assert a.queries[1].messages[-1] == Message(role="user", content="Hurry up.")


def test_thoughts_of_a_step_are_its_own() -> None:
    """What a step that is not the last one thought before it called a tool is not for the client."""
    thinking = msgspec.structs.replace(calls({"n": 1}, text="I look."), reasoning="SECRET")
    run = run_ultra({CONDUCTOR: script(PLAN), "a": script(thinking), "b": script()})
    assert run.answer is not None
    assert (run.answer.text, run.answer.reasoning) == ("", None)


def test_planning_only_calls_nobody() -> None:
    """Asked only what would be done with the results, the step that waits for them is not called."""
    a = script(calls({"n": 1}), "FOUND")
    backends = {CONDUCTOR: script(PLAN), "a": a, "b": script()}
    first = run_ultra(backends)
    request = answer(first, "RESULT")
    pool = make_pool(backends, max_attempts=1)
    policy = Conductor(ConductorConfig(worker=CONDUCTOR), {id: id for id in backends})
    run = asyncio.run(
        orchestrate(request, policy, pool, resume=add_results(wait(first), request.messages), only_plans=True)
    )
    assert run.stopped is not None
    assert (run.stopped.by, run.calls, len(a.queries)) == ("routed", 0, 1)


def test_retry_of_the_client() -> None:
    """The same results sent twice resume the same step twice: a client that lost our answer gets another."""
    a = script(calls({"n": 1}), "FOUND", "FOUND")
    backends = {CONDUCTOR: script(PLAN), "a": a, "b": script("MENDED", "MENDED")}
    first = run_ultra(backends)
    for _ in range(2):
        again = go_on(first, backends, "RESULT")
        assert again.answer is not None
        assert again.answer.text == "MENDED"


def test_budget_goes_on() -> None:
    """What was spent before the run had to wait counts."""
    backends = {CONDUCTOR: script(PLAN), "a": script(calls({"n": 1}), "FOUND"), "b": script("MENDED")}
    second = go_on(run_ultra(backends, budget=Budget(calls=3)), backends, "RESULT", budget=Budget(calls=3))
    assert second.stopped is not None
    assert second.stopped.by == "budget:calls"


def test_worker_that_dies_after_waiting() -> None:
    """A step whose worker is gone when the results come is lost like any other: the conductor plans around it."""
    down = Failing(WorkerError("worker 'a': 500", worker="a", code="server_error"))
    boss = script(PLAN, write((1, "AGAIN", [])))
    backends: dict[str, Backend] = {CONDUCTOR: boss, "a": script(calls({"n": 1})), "b": script("DONE")}
    first = run_ultra(backends)
    second = go_on(first, {**backends, "a": down}, "RESULT")
    assert second.answer is not None
    assert second.answer.text == "DONE"
    assert len(boss.queries) == 2


@pytest.mark.parametrize("gone", ["a", "b"])
def test_workers_that_are_no_longer_allowed(gone: str) -> None:
    """A key that lost a worker since does not get it through a workflow that was planned before."""
    a, b = script(calls({"n": 1}), "FOUND"), script("MENDED")
    backends = {CONDUCTOR: script(PLAN), "a": a, "b": b}
    first = run_ultra(backends)
    request = msgspec.structs.replace(answer(first, "RESULT"), allowed=frozenset({CONDUCTOR, "a", "b"} - {gone}))
    with pytest.raises(PlanError, match=f"'{gone}', which this request does not allow"):
        run_ultra(backends, request, add_results(wait(first), request.messages))
    assert (len(a.queries), len(b.queries)) == (1, 0)


# --- who is given tools ---


def test_workers_that_call_no_tools_are_given_none() -> None:
    """A worker without tools does its step without; nothing fails for that."""
    toolless = script("FOUND")
    backends = {CONDUCTOR: script(PLAN), "toolless": toolless, "b": script("MENDED")}
    run = run_ultra(backends)
    assert run.answer is not None
    assert toolless.queries[0].sampling.tools == ()


def test_no_tools_by_choice() -> None:
    """A client that forbids tool calls gets none."""
    request = msgspec.structs.replace(REQUEST, sampling=Sampling(tools=(READ,), tool_choice="none"))
    a, b = script("FOUND"), script("MENDED")
    run = run_ultra({CONDUCTOR: script(PLAN), "a": a, "b": b}, request)
    assert run.stopped is not None
    assert run.stopped.by == "answer"
    assert a.queries[0].sampling.tools == ()


def test_forced_tool_without_a_worker_for_it() -> None:
    """A call that the client insists on, from a worker that can make none, is refused."""
    request = msgspec.structs.replace(REQUEST, sampling=Sampling(tools=(READ,), tool_choice="required"))
    plan = write((0, "FIND", []), (1, "MEND", [0]))
    with pytest.raises(RequestError, match="calls no tools"):
        run_ultra({CONDUCTOR: script(plan), "a": script("x"), "toolless": script("y")}, request)


def test_forced_tool_binds_the_last_step_only() -> None:
    """That a call is forced concerns whoever writes the reply."""
    request = msgspec.structs.replace(REQUEST, sampling=Sampling(tools=(READ,), tool_choice="required"))
    a, b = script("FOUND"), script(calls({"n": 1}))
    run_ultra({CONDUCTOR: script(PLAN), "a": a, "b": b}, request)
    assert a.queries[0].sampling.tool_choice is None
    assert b.queries[0].sampling.tool_choice == "required"


# --- ids ---


def test_ids_find_back() -> None:
    """An id names run, step and call; those of others name no run."""
    run_id = "run_" + "0a" * 13
    (named,) = name_calls(run_id, 3, [ToolCall(id="x", name="read", arguments="{}")])
    result = Message(role="tool", content="r", tool_call_id=named.id)
    foreign = Message(role="tool", content="r", tool_call_id="call_abc")
    said = Message(role="assistant", content="ok")
    assert find_run([*ASKED, said, result]) == run_id
    assert find_run([*ASKED, said, foreign]) is None
    assert find_run([*ASKED, said, result, said, *ASKED]) is None  # answered long ago
    assert find_run(ASKED) is None
    with pytest.raises(RequestError, match="different requests"):
        find_run([*ASKED, said, result, foreign])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda results: results[:1], "missing_tool_result", "has no result"),
        (
            lambda results: [
                *results,
                msgspec.structs.replace(results[0], tool_call_id=results[0].tool_call_id[:-1] + "7"),
            ],
            "unknown_tool_call",
            "is not open",
        ),
    ],
)
def test_results_that_do_not_fit(change: Any, code: str, message: str) -> None:
    """A missing result and one that nobody waits for are the client's fault, and named."""
    backends = {CONDUCTOR: script(PLAN), "a": script(calls({"n": 1}, {"n": 2})), "b": script()}
    first = run_ultra(backends)
    request = answer(first, "ONE", "TWO")
    results = [message for message in request.messages if message.role == "tool"]
    with pytest.raises(RequestError, match=message) as raised:
        add_results(wait(first), [*ASKED, Message(role="assistant", content="."), *change(results)])
    assert raised.value.code == code
