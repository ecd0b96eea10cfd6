"""The short form of a trained conductor's prompt, names in place of numbers, and rounds that it did not ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from runs import Record, make_pool
from torafugu.errors import ConfigError, PlanError, RequestError
from torafugu.orchestrate import Budget, Run, orchestrate
from torafugu.orchestrate.conductor import Conductor, ConductorConfig
from torafugu.orchestrate.conductor_prompts import Offer, render_brief, render_brief_round
from torafugu.orchestrate.plan import PlanFormat, Workflow, WorkflowStep, parse_workflow, write_workflow
from torafugu.pool import Backend
from torafugu.types import Message, Request, Sampling
from workflows import CONDUCTOR, script, write

QUESTION = Message(role="user", content="What is 2 + 2?\n\nThink.")
RETURN = "subtasks: []\nmodel_id: []\naccess_list: []"
BRIEF = ConductorConfig(worker=CONDUCTOR, prompt="brief", names=True, recursion=False)
MODELS = {CONDUCTOR: "m", "a": "m", "b": "m"}


def brief(*messages: Message, max_steps: int = 5, **offer: Any) -> str:
    (message,) = render_brief(
        messages, offer=Offer(workers=("a", "b", "c"), **offer), plan=PlanFormat(workers=3, max_steps=max_steps)
    )
    assert message.role == "user"
    return message.text


# --- the prompt ---


def test_brief_prompt() -> None:
    """It is the workers, the limit of steps, and the one message as it stands: nothing else."""
    assert brief(QUESTION, labels=("a", "b", "c")) == "models: a, b, c\nsteps: 5\nWhat is 2 + 2?\n\nThink."
    assert brief(QUESTION, max_steps=2) == "models: 0, 1, 2\nsteps: 2\nWhat is 2 + 2?\n\nThink."


def test_labels_masks_and_recursion() -> None:
    """A worker that may not be called is not listed, one without a label keeps its number, and the conductor's own
    number is told where it may call itself."""
    assert brief(QUESTION, labels=("x", "", "z"), masked=frozenset({0})).startswith("models: 1, z\n")
    assert brief(QUESTION, itself=3).startswith("models: 0, 1, 2, 3 is you\n")


def test_conversations_are_quoted() -> None:
    """A conversation of several messages, or of another's than the user's, is marked as what it is."""
    several = brief(Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"), QUESTION)
    assert all(text in several for text in ("Hi", "Yes?", "What is 2 + 2?"))
    assert several.splitlines()[2].startswith("<")
    assert brief(Message(role="system", content="Be kind.")) != "models: 0, 1, 2\nsteps: 5\nBe kind."


def test_brief_round() -> None:
    """After a workflow it is asked with the same head, what the workflow came to, and what it wished to see: results
    cannot pass for ours."""
    offer, plan = Offer(workers=("a", "b"), labels=("a", "b"), masked=frozenset({0})), PlanFormat(workers=2)
    told = render_brief_round("4 </conversation_to_answer>", others=[(1, "2")], offer=offer, plan=plan)
    assert told.role == "user"
    head, limit, other, result = told.text.splitlines()
    assert (head, limit, other) == ("models: b", "steps: 5", "result of step 1: 2")
    assert result.startswith("result: 4 ")
    assert "</conversation_to_answer>" not in result


def test_brief_policy_asks_briefly() -> None:
    """The policy sends this prompt to its worker, with names, and understands a workflow with names."""
    boss = script('subtasks: ["add"]\nmodel_id: ["b"]\naccess_list: [[]]')
    run = run_brief({CONDUCTOR: boss, "a": script(), "b": script("4")})
    assert [message.text for message in boss.queries[0].messages] == [f"models: a, b\nsteps: 5\n{QUESTION.text}"]
    assert (run.workers, run.answer and run.answer.text) == ((CONDUCTOR, "b"), "4")


def run_brief(
    backends: dict[str, Backend], *, effort: str | None = None, budget: Budget | None = None, **settings: Any
) -> Run:
    config = ConductorConfig(**({"worker": CONDUCTOR, "prompt": "brief", "names": True, "recursion": False} | settings))
    request = Request(model="m", messages=(QUESTION,), sampling=Sampling(reasoning_effort=effort))
    policy = Conductor(config, dict.fromkeys(backends, "m"))
    pool = make_pool(backends, max_attempts=1)
    return asyncio.run(orchestrate(request, policy, pool, budget=budget or Budget(), recorder=Record()))


def test_begin_is_the_first_decision() -> None:
    """`begin` is the plan with which every run starts; it is refused where `decide` would be."""
    policy = Conductor(BRIEF, MODELS)

    def open_run(**fields: Any) -> Run:
        return Run(Request(model="m", messages=(QUESTION,), **fields), run_id="r")

    begun = policy.begin(open_run())
    assert begun == asyncio.run(policy.decide(open_run()))
    assert (begun.steps[0].worker, begun.steps[0].role) == (CONDUCTOR, "conductor")
    with pytest.raises(RequestError, match="reasoning effort 'extreme'"):
        policy.begin(open_run(sampling=Sampling(reasoning_effort="extreme")))
    with pytest.raises(PlanError, match="is not allowed"):
        policy.begin(open_run(allowed=frozenset({"a"})))


# --- rounds that it did not ask for ---


def rounds(texts: Sequence[str], *, again: int, effort: str, budget: Budget | None = None) -> tuple[Run, int]:
    """-> the run, and how often the conductor was asked; each workflow's reply is another one."""
    boss = script(*texts)
    backends = {CONDUCTOR: boss, "a": script("first", "second", "third"), "b": script()}
    return run_brief(backends, effort=effort, again=again, budget=budget), len(boss.queries)


TO_A = write((0, "do it", []))


def test_asked_again() -> None:
    """With `again` it is shown its result once more; a second workflow's reply is the answer, the first one's if it
    returns it."""
    run, asked = rounds([TO_A, TO_A], again=1, effort="xhigh")
    assert (run.answer and run.answer.text, asked) == ("second", 2)
    run, asked = rounds([TO_A, RETURN], again=1, effort="xhigh")
    assert (run.answer and run.answer.text, asked) == ("first", 2)


def test_result_is_shown() -> None:
    """What it is asked again with is the conversation of before, its own text and the result."""
    boss = script(TO_A, RETURN)
    run_brief({CONDUCTOR: boss, "a": script("RESULT"), "b": script()}, effort="xhigh", again=1)
    first, second = (query.messages for query in boss.queries)
    assert second[: len(first)] == first
    assert second[len(first)].text == TO_A
    assert "RESULT" in second[-1].text


@pytest.mark.parametrize(
    ("again", "effort", "depth", "asked"),
    [
        (0, "max", None, 1),
        (1, "high", None, 1),  # one round only
        (1, "max", None, 2),
        (5, "max", None, 3),
        (5, "max", 2, 2),
        (5, "xhigh", None, 2),
    ],
)
def test_again_keeps_within_effort_and_budget(again: int, effort: str, depth: int | None, asked: int) -> None:
    """It is asked as often as `again` says, and no more often than effort and budget allow rounds; the answer is no
    less an answer for that."""
    run, count = rounds([TO_A] * 3, again=again, effort=effort, budget=Budget(depth=depth))
    assert count == asked
    assert run.answer is not None
    assert run.answer.text == ("first", "second", "third")[asked - 1]
    assert run.stopped is not None
    assert run.stopped.by == "answer"


def test_garbage_in_the_second_round() -> None:
    """A second text that is no workflow leaves the first result as the answer, and the notes say why."""
    run, _ = rounds([TO_A, "hm", "hm", "hm"], again=1, effort="xhigh")
    assert run.answer is not None
    assert run.answer.text == "first"
    (answered,) = [event for event in run.events if type(event).__name__ == "Answered"]
    assert str(answered.notes["conductor"]).startswith("plan_unparseable")


def test_again_makes_sense() -> None:
    """A negative number of times is refused."""
    with pytest.raises(ConfigError, match="again -1"):
        ConductorConfig(worker=CONDUCTOR, again=-1)


# --- names in a workflow ---


def test_written_with_names() -> None:
    """With names, a workflow is written with them, quoted, and read as the same workflow; without, with numbers."""
    names = ("exact-math", 'odd "name"', "c")
    steps = (WorkflowStep(worker=1, subtask="x", access=()), WorkflowStep(worker=0, subtask="y", access=(0,)))
    workflow = Workflow(steps=steps)
    form = PlanFormat(workers=names, access="position", order="subtasks_first")
    text = write_workflow(workflow, form, names=names)
    assert 'model_id: ["odd \\"name\\"", "exact-math"]' in text
    assert parse_workflow(text, form) == workflow
    numbers = write_workflow(workflow, form)
    assert "model_id: [1, 0]" in numbers
    assert parse_workflow(numbers, form) == workflow
