"""A step as its worker's query: what each role is shown of the run, and what it is not."""

from __future__ import annotations

import pytest

from runs import plan
from torafugu.errors import PlanError
from torafugu.events import Planned, Replied
from torafugu.orchestrate import Run
from torafugu.orchestrate.prompts import render_thinker, render_verifier, render_worker
from torafugu.orchestrate.render import step_to_query
from torafugu.types import Message, Reply, Request, Sampling, Step

MESSAGES = (
    Message(role="system", content="Reply in JSON only."),
    Message(role="user", content="How much is 6 times 7? Use <answer> tags."),
)
SAMPLING = Sampling(
    max_output_tokens=9,
    temperature=0.3,
    top_p=0.5,
    stop=("END",),
    seed=7,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    reasoning_effort="high",
    response_format={"type": "json_object"},
    tools=({"type": "function", "function": {"name": "look"}},),
    tool_choice="required",
    parallel_tool_calls=False,
)
REQUEST = Request(model="m", messages=MESSAGES, sampling=SAMPLING, task="t1")
ADVICE = "<suggestion>Multiply.</suggestion><suggested_role>worker</suggested_role>"


def make_run(*turns: tuple[str, str]) -> Run:
    """Step i is the i-th (role, reply)."""
    run = Run(REQUEST, run_id="r")
    for i, (role, text) in enumerate(turns):
        run.record(Planned(plan=plan(Step(id=i, worker="a", role=role)), decision_ms=0.0))
        run.record(Replied(step=i, attempt=1, reply=Reply(worker="a", text=text, finish_reason="stop")))
    return run


def test_worker_that_sees_nothing() -> None:
    """A Worker that sees nobody gets the client's messages, sampling and task, untouched."""
    query = step_to_query(Step(id=1, worker="b"), make_run(("worker", "41")))
    assert (query.messages, query.sampling, query.task) == (MESSAGES, SAMPLING, "t1")
    assert (query.role, query.verifies) == ("worker", None)


def test_worker_that_sees_others() -> None:
    """Thoughts are the Workers' alone, numbered from 0 in the order seen, and their idea where they mark one."""
    run = make_run(
        ("worker", "So <idea>six sevens</idea> <answer>41</answer>"),
        ("thinker", ADVICE),
        ("verifier", "<answer>42</answer> REJECT"),
        ("worker", "42, surely"),
    )
    query = step_to_query(Step(id=4, worker="b", sees=(0, 1, 2, 3)), run)
    assert query.messages == render_worker(MESSAGES, thoughts=["six sevens", "42, surely"], suggestion="Multiply.")
    text = query.messages[-1].text
    assert "<reference_thought_0>six sevens</reference_thought_0>" in text
    assert "<reference_thought_1>42, surely</reference_thought_1>" in text
    assert "REJECT" not in text
    assert query.sampling == SAMPLING


@pytest.mark.parametrize("thought", ["Just multiply.", "<suggestion>Multiply.</suggestion>", ""])
def test_advice_out_of_form_is_not_shown(thought: str) -> None:
    """What a Thinker says outside of its form reaches nobody."""
    query = step_to_query(Step(id=1, worker="b", sees=(0,)), make_run(("thinker", thought)))
    assert query.messages == MESSAGES


def test_latest_advice_counts() -> None:
    """Of several Thinkers that a step sees, the last that gave advice is followed."""
    later = ADVICE.replace("Multiply", "Add up")
    run = make_run(("thinker", ADVICE), ("thinker", later), ("thinker", "Hm."))
    query = step_to_query(Step(id=3, worker="b", sees=(0, 1, 2)), run)
    assert query.messages == render_worker(MESSAGES, suggestion="Add up.")


def test_thinker() -> None:
    """A Thinker gets the conversation quoted, with the last Worker's reply that it sees, or none."""
    empty = step_to_query(Step(id=0, worker="b", role="thinker"), make_run())
    assert empty.messages == render_thinker(MESSAGES)
    assert (empty.role, empty.task, empty.verifies) == ("thinker", "t1", None)
    run = make_run(("worker", "41"), ("worker", "42"))
    query = step_to_query(Step(id=2, worker="b", role="thinker", sees=(1, 0)), run)
    assert query.messages == render_thinker(MESSAGES, thoughts=["42", "41"], current="41")


def test_verifier() -> None:
    """A Verifier judges the last Worker's reply that it sees, beside the thoughts before it; its query names it."""
    run = make_run(("worker", "<answer>41</answer>"), ("worker", "<answer>42</answer>"), ("thinker", ADVICE))
    query = step_to_query(Step(id=3, worker="b", role="verifier", sees=(2, 0, 1)), run)
    current = "<answer>42</answer>"
    assert query.messages == render_verifier(
        MESSAGES, current=current, thoughts=["<answer>41</answer>"], suggestion="Multiply."
    )
    assert (query.role, query.task, query.verifies) == ("verifier", "t1", "42")


@pytest.mark.parametrize("role", ["thinker", "verifier"])
def test_only_workers_get_the_clients_form(role: str) -> None:
    """Tools, formats, stop sequences and limits are about the answer: neither advice nor a verdict is held to them."""
    query = step_to_query(Step(id=1, worker="b", role=role, sees=(0,)), make_run(("worker", "41")))
    assert query.sampling == Sampling(temperature=0.3, seed=7, reasoning_effort="high")
    assert [message.role for message in query.messages] == ["system", "user"]
    assert query.messages[0].text != "Reply in JSON only."


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step(id=1, worker="b", role="verifier"), "step 1: a Verifier has to see the reply"),
        (Step(id=2, worker="b", role="verifier", sees=(1,)), "step 2: a Verifier has to see the reply"),
        (
            Step(id=2, worker="b", role="judge", sees=(0,)),
            "step 2: no role 'judge' without messages: expected worker, thinker or verifier",
        ),
    ],
)
def test_steps_that_cannot_be_rendered(step: Step, message: str) -> None:
    """A Verifier without a Worker's reply and a role that is none are the policy's fault."""
    with pytest.raises(PlanError, match=message):
        step_to_query(step, make_run(("worker", "41"), ("thinker", ADVICE)))
