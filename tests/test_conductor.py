"""`fugu-ultra` through the loop: what the conductor is asked, how its workflow runs, and what becomes of its faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from runs import USAGE, Record, Waiting, kinds, make_pool
from torafugu.errors import ConfigError, PlanError, RequestError, WorkerError
from torafugu.events import Answered, Called, Failed, Planned, Stopped
from torafugu.orchestrate import Budget, Run, orchestrate
from torafugu.orchestrate.conductor import EFFORTS, Conductor, ConductorConfig
from torafugu.orchestrate.plan import PlanFormat, parse_workflow
from torafugu.pool import Backend, Completion, Delta, Failing, Query, Scripted
from torafugu.types import Message, Request, Sampling
from workflows import CONDUCTOR, prompt_of, script, write

WORKERS = ("a", "b", "c")
QUESTION = "What is 2 + 2, written backwards?"


def ask(effort: str | None = None, **fields: Any) -> Request:
    return Request(
        model="fugu-ultra",
        messages=(Message(role="user", content=QUESTION),),
        sampling=Sampling(reasoning_effort=effort, **fields),
    )


CHAIN = write((0, "add 2 and 2", []), (1, "write the result of step 0 backwards", [0]))
EMPTY = "subtasks: []\nmodel_id: []\naccess_list: []"


def run_ultra(
    backends: Mapping[str, Backend],
    request: Request | None = None,
    *,
    config: ConductorConfig = ConductorConfig(worker=CONDUCTOR),  # noqa: B008  # frozen
    budget: Budget = Budget(),  # noqa: B008  # frozen
    record: Record | None = None,
    on_delta: Callable[[Delta], Any] | None = None,
    max_attempts: int = 1,
) -> Run:
    pool = make_pool(backends, max_attempts=max_attempts)
    policy = Conductor(config, {id: f"{id}-1" for id in backends})
    return asyncio.run(
        orchestrate(request or ask(), policy, pool, budget=budget, recorder=record or Record(), on_delta=on_delta)
    )


def plans(run: Run) -> list[Planned]:
    return [event for event in run.events if isinstance(event, Planned)]


# --- from question to answer ---


def test_workflow_runs() -> None:
    """The conductor is asked first, the steps run on the workers that it named, the last reply is the answer."""
    boss, a, b = script(CHAIN), script("It is 4."), script("4")
    run = run_ultra({CONDUCTOR: boss, "a": a, "b": b, "c": script()})
    assert run.answer is not None
    assert (run.answer.worker, run.answer.text) == ("b", "4")
    assert kinds(run.events) == [
        "accepted",
        *["planned", "called", "replied"],
        *["planned", "called", "replied", "called", "replied"],
        *["answered", "stopped"],
    ]
    assert run.workers == (CONDUCTOR, "a", "b")
    assert run.cost_usd == Decimal("0.006")
    assert isinstance(run.events[-1], Stopped)
    assert run.events[-1].by == "answer"


def test_workers_are_shown_what_they_may_see() -> None:
    """A step gets the conversation, its subtask and the replies in its access list; of others nothing."""
    text = write((0, "SUBTASK-0", []), (1, "SUBTASK-1", []), (2, "SUBTASK-2", [1]), (0, "SUBTASK-3", [0, 2]))
    backends = {"a": script("REPLY-0", "REPLY-3"), "b": script("REPLY-1"), "c": script("REPLY-2")}
    run_ultra({CONDUCTOR: script(text), **backends})
    sights = {
        "SUBTASK-0": backends["a"].queries[0],
        "SUBTASK-1": backends["b"].queries[0],
        "SUBTASK-2": backends["c"].queries[0],
        "SUBTASK-3": backends["a"].queries[1],
    }
    shown = {
        own: [f"{what}-{k}" for what in ("SUBTASK", "REPLY") for k in range(4) if f"{what}-{k}" in prompt_of(query)]
        for own, query in sights.items()
    }
    assert shown == {
        "SUBTASK-0": ["SUBTASK-0"],
        "SUBTASK-1": ["SUBTASK-1"],
        "SUBTASK-2": ["SUBTASK-1", "SUBTASK-2", "REPLY-1"],
        "SUBTASK-3": ["SUBTASK-0", "SUBTASK-2", "SUBTASK-3", "REPLY-0", "REPLY-2"],
    }
    assert all(QUESTION in prompt_of(query) for query in sights.values())
    assert dict(sights["SUBTASK-3"].results) == {0: "REPLY-0", 2: "REPLY-2"}


@pytest.mark.parametrize(
    ("access", "seen"),
    [("binary", ["REPLY-0", "REPLY-1"]), ("worker", ["REPLY-0", "REPLY-1"]), ("position", ["REPLY-0", "REPLY-1"])],
)
def test_access_modes(access: Any, seen: list[str]) -> None:
    """All three ways to write an access list are executed: everything, by step, by model."""
    entry = {"binary": "all", "worker": [0, 1], "position": [0, 1]}[access]
    c = script("done")
    config = ConductorConfig(worker=CONDUCTOR, access=access)
    boss = script(write((0, "x", []), (1, "y", []), (2, "z", entry)))
    run_ultra({CONDUCTOR: boss, "a": script("REPLY-0"), "b": script("REPLY-1"), "c": c}, config=config)
    assert [f"REPLY-{k}" for k in range(2) if f"REPLY-{k}" in prompt_of(c.queries[0])] == seen


def test_last_step_streams() -> None:
    """Only the last step's tokens are streamed."""
    pieces: list[str] = []

    async def take(delta: Delta) -> None:
        pieces.append(delta.text)

    b = Scripted(["the answer"], pieces=3, usage=USAGE)
    run_ultra({CONDUCTOR: script(CHAIN), "a": script("hidden"), "b": b}, on_delta=take)
    assert (len(pieces), "".join(pieces)) == (3, "the answer")


def test_final_step_gets_the_clients_messages_and_sampling() -> None:
    """Whoever writes the reply is given the client's own messages, tools, format and limits; nobody else is."""
    request = Request(
        model="fugu-ultra",
        messages=(Message(role="system", content="Answer in JSON."), Message(role="user", content=QUESTION)),
        sampling=Sampling(max_output_tokens=7, stop=("END",), response_format={"type": "json_object"}, temperature=0.5),
    )
    a, b = script("4"), script("4")
    run_ultra({CONDUCTOR: script(CHAIN), "a": a, "b": b}, request)
    assert b.queries[0].sampling == request.sampling
    assert b.queries[0].messages[0] == request.messages[0]
    assert a.queries[0].sampling == Sampling(temperature=0.5)
    assert a.queries[0].messages[0] != request.messages[0]


# --- what the conductor is told ---


def test_prompt_hides_names_and_shows_the_budget() -> None:
    """The conductor reads numbers, not names, the limits that are left, and no example of one step."""
    boss = script(CHAIN)
    backends = {CONDUCTOR: boss, "claude-x": script("4"), "gpt-y": script("4")}
    run_ultra(backends, budget=Budget(calls=9, usd=Decimal("0.25"), seconds=None))
    told = prompt_of(boss.queries[0])
    assert "model 0\nmodel 1\n" in told
    assert "claude-x" not in told
    assert "gpt-y" not in told
    assert "9 calls, 0.25 US dollars" in told
    assert QUESTION in told
    examples = told.split("Conversation: ")[1:]
    assert len(examples) == 3
    for example in examples:
        workflow = parse_workflow(example.split("The models:")[0], PlanFormat(workers=2, access="position"))
        assert len(workflow.steps) > 1


def test_descriptions_and_names() -> None:
    """What the operator says of a worker, and its name when that is shown, stand beside its number."""
    config = ConductorConfig(worker=CONDUCTOR, describe={"b": "good at text"}, names=True)
    boss = script(CHAIN)
    run_ultra({CONDUCTOR: boss, "a": script("4"), "b": script("4")}, config=config)
    assert "model 0: a\nmodel 1: b, good at text\n" in prompt_of(boss.queries[0])


def test_masked_workers_are_not_offered() -> None:
    """A worker that the request does not allow is not listed; the others keep their numbers."""
    boss = script(write((0, "x", []), (2, "y", [0])))
    request = msgspec.structs.replace(ask(), allowed=frozenset({CONDUCTOR, "a", "c"}))
    run = run_ultra({CONDUCTOR: boss, "a": script("1"), "b": script(), "c": script("2")}, request)
    assert "model 0\nmodel 2\n" in prompt_of(boss.queries[0])
    assert run.workers == (CONDUCTOR, "a", "c")


def test_constrained_conductor_gets_a_schema() -> None:
    """A conductor that supports it is held to JSON; what it then writes is executed."""
    text = json.dumps({"subtasks": ["x", "y"], "model_id": [0, 1], "access_list": [[], [0]]})
    boss = script(text)
    run = run_ultra(
        {CONDUCTOR: boss, "a": script("1"), "b": script("2")},
        config=ConductorConfig(worker=CONDUCTOR, constrained="schema"),
    )
    response_format = boss.queries[0].sampling.response_format
    assert response_format["type"] == "json_schema"
    assert set(response_format["json_schema"]["schema"]["required"]) == {"subtasks", "model_id", "access_list"}
    assert run.answer is not None


def test_conductor_held_to_a_grammar() -> None:
    """A conductor whose endpoint takes grammars is sent one for the lists that it may write."""
    boss = script(CHAIN)
    run_ultra(
        {CONDUCTOR: boss, "a": script("1"), "b": script("2")},
        config=ConductorConfig(worker=CONDUCTOR, constrained="grammar"),
    )
    response_format = boss.queries[0].sampling.response_format
    assert response_format["type"] == "gbnf"
    assert "root ::= " in response_format["grammar"]


@pytest.mark.parametrize("effort", EFFORTS)
def test_effort_bounds_the_workflow(effort: str) -> None:
    """The effort says how many steps a workflow may have, and a longer one is not begun."""
    steps = EFFORTS[effort].steps
    long = write(*((0, f"part {k}", [k - 1] if k else []) for k in range(steps + 1)))
    fits = write(*((0, f"part {k}", [k - 1] if k else []) for k in range(steps)))
    boss, a = script(long, fits), script(*"x" * steps)
    run = run_ultra({CONDUCTOR: boss, "a": a, "b": script()}, ask(effort))
    assert f"at most {steps} steps" in prompt_of(boss.queries[0])
    assert f"{steps + 1} steps: expected at most {steps}" in prompt_of(boss.queries[1])
    assert len(a.queries) == steps
    assert plans(run)[-1].plan.parallel == EFFORTS[effort].parallel


def test_efforts_beyond_high_stay_ours() -> None:
    """Workers are asked for `high` where the client said xhigh or max, which providers do not know."""
    a, b = script("4"), script("4")
    run_ultra({CONDUCTOR: script(CHAIN), "a": a, "b": b}, ask("max"))
    assert a.queries[0].sampling.reasoning_effort == "high"
    assert b.queries[0].sampling.reasoning_effort == "high"


def test_unknown_effort_is_the_clients_fault() -> None:
    """Nothing is called for an effort that does not exist."""
    boss = script(CHAIN)
    with pytest.raises(RequestError, match="'huge': expected one of none, minimal, low, medium, high, xhigh, max"):
        run_ultra({CONDUCTOR: boss, "a": script()}, ask("huge"))
    assert boss.queries == []


# --- the conductor's faults ---


def test_garbage_is_told_and_tried_again() -> None:
    """A text that is no workflow is shown to the conductor with what is wrong; the next one is executed."""
    boss = script("I would just answer: 4", write((7, "x", [])), CHAIN)
    run = run_ultra({CONDUCTOR: boss, "a": script("4"), "b": script("4")})
    assert run.answer is not None
    second, third = boss.queries[1:]
    assert [m.role for m in second.messages[-3:]] == ["user", "assistant", "user"]
    assert second.messages[-2].text == "I would just answer: 4"
    assert "expected three lists" in second.messages[-1].text
    assert "model_id[0] holds '7': expected one of 0, 1" in third.messages[-1].text
    assert run.cost_usd == Decimal("0.010")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no plan at all", "plan_unparseable"),
        (write((9, "x", [])), "plan_unknown_worker"),
        (write(*((0, "x", [k - 1] if k else []) for k in range(6))), "plan_too_many_steps"),
        (EMPTY, "plan_empty"),
        (write((0, "x", [1]), (1, "y", [])), "plan_future_reference"),
    ],
)
def test_conductor_that_never_plans(text: str, code: str) -> None:
    """After three texts that are no workflow the run fails as the policy's fault; no worker was called."""
    a, record = script(), Record()
    with pytest.raises(PlanError, match="'boss' wrote no workflow in 3 attempts") as raised:
        run_ultra({CONDUCTOR: script(text, text, text), "a": a, "b": script()}, record=record)
    assert raised.value.code == code
    assert a.queries == []
    stopped = record.events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.by, stopped.calls, stopped.cost_usd) == ("error", 3, Decimal("0.006"))
    assert stopped.error is not None
    assert stopped.error["fault"] == "policy"


def test_naming_a_masked_worker() -> None:
    """A workflow that names a worker which the request forbids is not executed, and the worker is not called."""
    b = script()
    request = msgspec.structs.replace(ask(), allowed=frozenset({CONDUCTOR, "a"}))
    with pytest.raises(PlanError) as raised:
        run_ultra({CONDUCTOR: script(CHAIN, CHAIN, CHAIN), "a": script(), "b": b}, request)
    assert raised.value.code == "plan_masked_worker"
    assert b.queries == []


def test_text_that_was_cut_off() -> None:
    """A plan that ran into its limit of tokens is no workflow, even if it looks like one."""
    cut = Completion(text=CHAIN, finish_reason="length", usage=USAGE)
    boss = script(cut, CHAIN)
    run_ultra({CONDUCTOR: boss, "a": script("4"), "b": script("4")})
    assert "cut off" in boss.queries[1].messages[-1].text


def test_dead_conductor() -> None:
    """A conductor that cannot be reached is the worker's fault, and nothing else is called."""
    a = script()
    down = Failing(WorkerError("worker 'boss': 500", worker=CONDUCTOR, code="server_error"))
    with pytest.raises(WorkerError, match="500"):
        run_ultra({CONDUCTOR: down, "a": a})
    assert a.queries == []


def test_conductor_that_may_not_be_called() -> None:
    """A key that does not allow the conductor gets no workflow, and no call is made."""
    request = msgspec.structs.replace(ask(), allowed=frozenset({"a"}))
    with pytest.raises(PlanError, match="'boss', which conducts, is not allowed"):
        run_ultra({CONDUCTOR: script(CHAIN), "a": script()}, request)


# --- workers that die ---

DOWN = WorkerError("worker 'a': 500", worker="a", code="server_error")


def test_lost_step_is_planned_around() -> None:
    """The conductor is told what was lost and what was done, and plans again without the dead worker."""
    first = write((1, "BEFORE", []), (0, "LOST", [0]), (2, "AFTER", [1]))
    second = write((1, "again", "all"), (2, "write it", [0]))
    boss, b, c = script(first, second), script("DONE-1", "better"), script("answer")
    run = run_ultra({CONDUCTOR: boss, "a": Failing(DOWN), "b": b, "c": c})
    assert run.answer is not None
    assert run.answer.text == "answer"
    told = boss.queries[1].messages[-1].text
    assert "DONE-1" in told
    assert "step 1 (model 0), LOST: no reply (server_error)" in told
    assert "Not available any more: model 0." in told
    assert "DONE-1" in prompt_of(b.queries[1])  # what was paid for is not lost
    failed = [event for event in run.events if isinstance(event, Failed)]
    assert [(event.step, event.code) for event in failed] == [(2, "server_error"), (3, "input_missing")]
    assert plans(run)[-1].plan.masked == ("a",)


def test_second_loss_ends_the_run() -> None:
    """What was lost again after a new plan is told as it is: the worker's fault."""
    text = write((0, "x", []), (1, "y", [0]))
    again = write((1, "x", []), (2, "y", [0]))
    down = WorkerError("worker 'b': 503", worker="b", code="overloaded")
    with pytest.raises(WorkerError, match="'b': 503"):
        run_ultra({CONDUCTOR: script(text, again), "a": Failing(DOWN), "b": Failing(down), "c": script()})


def test_substitution() -> None:
    """Asked to substitute, the next worker takes the step over, on record as a failover."""
    config = ConductorConfig(worker=CONDUCTOR, on_error="substitute", substitutes=("c", "b"))
    c = script("4", "4")
    run = run_ultra(
        {CONDUCTOR: script(CHAIN), "a": Failing(DOWN), "b": script("back"), "c": c}, config=config, max_attempts=4
    )
    called = [(event.worker, event.reason) for event in run.events if isinstance(event, Called)]
    assert called == [(CONDUCTOR, "planned"), ("a", "planned"), ("c", "failover"), ("b", "planned")]


def test_failing_at_once() -> None:
    """Asked to fail, the run ends with the first lost step, and steps beside it are dropped."""
    config = ConductorConfig(worker=CONDUCTOR, on_error="fail")
    waiting = Waiting()
    text = write((1, "x", []), (0, "y", []), (2, "z", [0, 1]))
    with pytest.raises(WorkerError, match="'a': 500"):
        run_ultra({CONDUCTOR: script(text), "a": Failing(DOWN), "b": waiting, "c": script()}, config=config)
    assert waiting.cancelled.is_set()


def test_hanging_worker() -> None:
    """A step that takes longer than it may is lost like any other, and planned around."""
    config = ConductorConfig(worker=CONDUCTOR, step_timeout_s=0.02)
    boss = script(CHAIN, write((1, "x", []), (2, "y", [0])))
    run = run_ultra({CONDUCTOR: boss, "a": Failing("hang"), "b": script("4"), "c": script("fine")}, config=config)
    assert run.answer is not None
    assert run.answer.text == "fine"
    assert "no reply (timeout_total)" in boss.queries[1].messages[-1].text


def test_empty_reply_is_a_lost_step() -> None:
    """A worker that returns nothing has not done its step."""
    boss = script(CHAIN, write((1, "x", []), (2, "y", [0])))
    run = run_ultra({CONDUCTOR: boss, "a": Failing("empty"), "b": script("4"), "c": script("fine")})
    assert run.answer is not None
    assert "no reply (empty)" in boss.queries[1].messages[-1].text


def test_stream_that_broke_is_not_planned_around() -> None:
    """Once tokens of the answer have left, no other answer may follow: the run fails."""

    async def take(delta: Delta) -> None:
        del delta

    boss = script(CHAIN, CHAIN)
    with pytest.raises(WorkerError, match="the stream broke"):
        run_ultra({CONDUCTOR: boss, "a": script("4"), "b": Failing("die", deltas=2)}, on_delta=take)
    assert len(boss.queries) == 1


def test_what_does_not_fit_is_planned_around() -> None:
    """A worker whose window is too small is lost like a dead one; where none is large enough it is the client's."""
    small = WorkerError("worker 'a': too long", worker="a", code="context_overflow")
    boss = script(CHAIN, write((1, "x", []), (2, "y", [0])))
    run = run_ultra({CONDUCTOR: boss, "a": Failing(small), "b": script("4"), "c": script("fine")})
    assert run.answer is not None
    assert run.answer.text == "fine"
    boss = script(CHAIN, write((1, "x", []), (2, "y", [0])))
    with pytest.raises(RequestError, match="context window"):
        run_ultra({CONDUCTOR: boss, "a": Failing(small), "b": Failing(small), "c": script()})


# --- recursion ---

AGAIN = write((0, "try", []), (3, "look at it", [0]))
"""Model 3 is the conductor: three workers come before it."""


def team(boss: Backend, **backends: Backend) -> dict[str, Backend]:
    return {CONDUCTOR: boss, **{worker: backends.get(worker, script()) for worker in WORKERS}}


def test_recursion_returns_the_result() -> None:
    """The conductor that named itself sees what the workflow came to, and three empty lists return it unchanged."""
    boss = script(AGAIN, EMPTY)
    run = run_ultra(team(boss, a=script("FIRST")), ask("xhigh"))
    assert run.answer is not None
    assert run.answer.text == "FIRST"
    assert "FIRST" in boss.queries[1].messages[-1].text
    assert boss.queries[1].messages[-2].text == AGAIN
    assert "model 3" in prompt_of(boss.queries[0])
    assert run.cost_usd == Decimal("0.006")


def test_reply_that_may_be_returned_is_the_clients() -> None:
    """The last step before the conductor looks again writes a whole reply, for it may be the answer."""
    a = script("FIRST")
    request = ask("xhigh", response_format={"type": "json_object"})
    run_ultra(team(script(AGAIN, EMPTY), a=a), request)
    assert a.queries[0].messages[0].role == "user"
    assert a.queries[0].sampling.response_format == {"type": "json_object"}


def test_recursion_plans_again() -> None:
    """A second round's workflow is executed, its steps that see everything see the first round's result."""
    b = script("SECOND")
    run = run_ultra(team(script(AGAIN, write((1, "improve", "all"))), a=script("FIRST"), b=b), ask("xhigh"))
    assert run.answer is not None
    assert run.answer.text == "SECOND"
    assert "FIRST" in prompt_of(b.queries[0])


def test_no_recursion_below_xhigh() -> None:
    """With one round the conductor is not told that it could call itself, and may not."""
    boss = script(AGAIN, AGAIN, AGAIN)
    with pytest.raises(PlanError) as raised:
        run_ultra(team(boss, a=script("FIRST")))
    assert raised.value.code == "plan_unknown_worker"
    assert "which is you" not in prompt_of(boss.queries[0])


def test_recursion_for_ever() -> None:
    """A conductor that asks for itself in the last round too gets its workflow done, and the run says what ended it."""
    boss = script(AGAIN, AGAIN, AGAIN)
    run = run_ultra(team(boss, a=script("FIRST", "SECOND", "THIRD")), ask("max"))
    assert run.answer is not None
    assert (run.answer.text, run.answer.finish_reason) == ("THIRD", "stop")
    assert run.stopped is not None
    assert run.stopped.by == "budget:depth"
    assert len(boss.queries) == 3
    told = [prompt_of(query) for query in boss.queries]
    assert "2 further workflows of yours" in told[0]
    assert "It may again end with model 3" in told[1]
    assert "It may again end with model 3" not in boss.queries[2].messages[-1].text


@pytest.mark.parametrize(("text", "by"), [(CHAIN, "answer"), (AGAIN, "budget:depth")])
def test_depth_is_a_budget(text: str, by: str) -> None:
    """A budget of one round does not offer what the effort would allow, and ends the run that asks for it."""
    boss = script(text)
    run = run_ultra(team(boss, a=script("4"), b=script("4")), ask("max"), budget=Budget(depth=1))
    assert "which is you" not in prompt_of(boss.queries[0])
    assert run.stopped is not None
    assert (run.stopped.by, len(boss.queries)) == (by, 1)
    assert run.answer is not None


def test_dead_conductor_in_a_later_round() -> None:
    """When the conductor dies after a round, that round's result is the answer, and the record says why."""
    down = Failing(WorkerError("worker 'boss': 500", worker=CONDUCTOR, code="server_error"))
    boss = Failing("hang", times=0, then=script(AGAIN))

    class OnceThenDown:
        def __init__(self) -> None:
            self.calls = 0

        async def complete(self, query: Query, on_delta: Any) -> Completion:
            self.calls += 1
            return await (boss if self.calls == 1 else down).complete(query, on_delta)

        async def close(self) -> None:
            return

    run = run_ultra(team(OnceThenDown(), a=script("FIRST")), ask("xhigh"))
    assert run.answer is not None
    assert run.answer.text == "FIRST"
    answered = run.events[-2]
    assert isinstance(answered, Answered)
    assert answered.notes["conductor"] == "no reply: server_error"


# --- budgets ---


def test_budget_keeps_an_earlier_round() -> None:
    """A budget that ends in the second round answers with the first one's result, and says what stopped it."""
    boss = script(AGAIN, write((1, "x", []), (2, "y", [0])))
    run = run_ultra(team(boss, a=script("FIRST"), b=script("part"), c=script()), ask("xhigh"), budget=Budget(calls=4))
    assert run.stopped is not None
    assert run.stopped.by == "budget:calls"
    assert run.answer is not None
    assert (run.answer.text, run.answer.finish_reason) == ("FIRST", "stop")


def test_budget_in_the_first_workflow() -> None:
    """With no answer yet, what the workflow had come to is given, marked as cut."""
    run = run_ultra(team(script(CHAIN), a=script("part"), b=script()), budget=Budget(calls=2))
    assert run.stopped is not None
    assert run.stopped.by == "budget:calls"
    assert run.answer is not None
    assert (run.answer.text, run.answer.finish_reason) == ("part", "length")


def test_budget_spent_on_planning() -> None:
    """When only the conductor could be paid for, there is no answer, and no error."""
    run = run_ultra(team(script(CHAIN), a=script()), budget=Budget(calls=1))
    assert run.stopped is not None
    assert (run.stopped.by, run.answer) == ("budget:calls", None)


def test_only_plans() -> None:
    """A run that only plans calls nobody but the conductor; its plan is on record."""
    a = script()
    pool = make_pool(team(script("hm", CHAIN), a=a), max_attempts=1)
    policy = Conductor(ConductorConfig(worker=CONDUCTOR), {id: id for id in (CONDUCTOR, *WORKERS)})
    run = asyncio.run(orchestrate(ask(), policy, pool, only_plans=True))
    assert run.stopped is not None
    assert (run.stopped.by, run.answer, run.calls) == ("routed", None, 2)
    assert [step.instruction for step in run.plans[-1].plan.steps] == [
        "add 2 and 2",
        "write the result of step 0 backwards",
    ]
    assert a.queries == []


# --- configuration ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"worker": "nobody"}, "conductor.worker: no worker 'nobody': the pool has boss, a, 7"),
        ({"worker": CONDUCTOR, "workers": ("a", "z")}, "conductor.workers: no worker 'z'"),
        ({"worker": CONDUCTOR, "describe": {"z": "fast"}}, "conductor.describe: no worker 'z'"),
        ({"worker": CONDUCTOR, "substitutes": ("z",)}, "conductor.substitutes: no worker 'z'"),
        ({"worker": CONDUCTOR, "workers": ("7",), "names": True}, "cannot be a worker's name"),
        ({"worker": CONDUCTOR, "attempts": 0}, "attempts 0"),
        ({"worker": CONDUCTOR, "replans": -1}, "replans -1"),
        ({"worker": CONDUCTOR, "workers": ()}, "expected at least one"),
        ({"worker": CONDUCTOR, "step_timeout_s": 0.0}, "step_timeout_s 0.0"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    """What cannot be conducted is found before a server starts, and named."""
    with pytest.raises(ConfigError, match=message):
        Conductor(ConductorConfig(**fields), {CONDUCTOR: "m", "a": "m", "7": "m"})


def test_conductor_alone() -> None:
    """A pool without anybody else cannot be conducted."""
    with pytest.raises(ConfigError, match="nobody to conduct"):
        Conductor(ConductorConfig(worker=CONDUCTOR), {CONDUCTOR: "m"})


def test_identity() -> None:
    """The id hangs on the configuration and on the models, so that a record tells two conductors apart."""
    models = {CONDUCTOR: "m", "a": "n"}
    config = ConductorConfig(worker=CONDUCTOR)
    ids = {
        Conductor(config, models).id,
        Conductor(replace(config, attempts=2), models).id,
        Conductor(config, {**models, "a": "other"}).id,
        Conductor(config, {**models, CONDUCTOR: "other"}).id,
    }
    assert len(ids) == 4
    assert Conductor(config, models).id == Conductor(config, dict(models)).id
    assert all(id.startswith("fugu-ultra@") for id in ids)
