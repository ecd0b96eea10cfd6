"""The tri-role coordinator as served: its rules, its faults, its record. `test_rollout.py`: training plays the same."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from coordinators import RULES, draw_evidence, make_evidence, make_head, make_tri_head, run_recorded, write_answers
from heads import DIM, Texts, models
from runs import REQUEST, USAGE, Record, Waiting, make_pool
from torafugu.errors import ModelError, PlanError, WorkerError
from torafugu.events import Answered, Called, Event, Failed, Planned, event_from_json, event_to_json
from torafugu.orchestrate import Budget, Encoding, Run, orchestrate
from torafugu.orchestrate.artefact import save_artefact, seal
from torafugu.orchestrate.coordinator import Coordinator, CoordinatorHead
from torafugu.orchestrate.tri_head import Rules, TriHead
from torafugu.pool import Backend, Completion, Delta, Failing, Query, Scripted
from torafugu.store import open_store
from torafugu.train.tri_trainers import Start
from torafugu.types import Message, Request, Sampling, Step, ToolCall, Usage

DOWN = WorkerError("worker: 500", worker="x", code="server_error")
TOO_LONG = WorkerError("worker: too long", worker="x", code="context_overflow")
TASK = "How much is 6 times 7? Put the number between <answer> and </answer>."
ASK = Request(model="fugu-trinity", messages=(Message(role="user", content=TASK),))
ESSAY = Request(model="fugu-trinity", messages=(Message(role="user", content="Write me an essay on tigers."),))

WORK_THEN_VERIFY = make_tri_head(
    {"worker": {"constant": 1}, "verifier": {"has_answer": 2}},
    {"worker": {"ability": 1, "known": -5}, "verifier": {"ability": 1}},
)
"""The ablest works; then the ablest of those who were not asked yet verify."""
WORK = make_tri_head({"worker": {"constant": 1}}, {"worker": {"ability": 1, "known": -5}})
"""Only works: first whoever was not asked yet, by ability; then whoever differs."""
THINK_FIRST = make_tri_head(
    {"thinker": {"constant": 3, "has_answer": -9, "thought": -9}, "worker": {"constant": 1}},
    {"worker": {"ability": 1, "known": -5}, "verifier": {"ability": 1}},
)
"""Thinks once, then works; verifies only when that is suggested. The first worker thinks, the ablest new one acts."""
THINK_SECOND = make_tri_head(
    {"thinker": {"has_answer": 5, "thought": -9}, "worker": {"constant": 1}},
    {"worker": {"ability": 1, "known": -5}, "verifier": {"ability": 1}},
)
"""Works, then thinks, then works; verifies only when that is suggested."""
PAPER = Rules(recall=False, max_turns=5, max_calls=5, transcript="shared")
ADVICE = "<suggestion>Try {0}.</suggestion><suggested_role>{0}</suggested_role>"
ONE_VOICE, TWO_ALONE = 0.7311, 0.4223
"""Trust by `make_evidence`: e / (1 + e) in the only answer, e / (1 + 2 e) in one of two that nobody else gave."""


def says(worker: str, *, verdict: str = "", thought: str = "") -> Scripted:
    """A worker that answers this, and as Verifier and Thinker that."""

    def answer(query: Query) -> str:
        return {"worker": worker, "verifier": verdict, "thinker": thought}[query.role]

    return Scripted(answer, usage=USAGE)


def accepts(answer: str = "<answer>42</answer>") -> Scripted:
    return says(answer, verdict=f"{answer}\n<verdict>ACCEPT</verdict>")


def rejects(answer: str = "<answer>41</answer>") -> Scripted:
    return says(answer, verdict=f"{answer}\n<verdict>REJECT</verdict>")


def only_as(role: str, good: Backend, bad: Backend) -> Backend:
    """`bad` in this role, `good` in the others."""

    class Split:
        async def complete(self, query: Query, on_delta: Any) -> Completion:
            return await (bad if query.role == role else good).complete(query, on_delta)

        async def close(self) -> None:
            return

    return Split()


def make_policy(head: TriHead, workers: Sequence[str] = "abc", rules: Rules = Rules(), **fields: Any) -> Coordinator:  # noqa: B008
    return Coordinator(
        make_head(workers, head, rules, evidence=make_evidence(len(workers), **fields)), Texts(), models(workers)
    )


def serve(policy: Coordinator, pool: Any, request: Request = ASK, **fields: Any) -> Run:
    return asyncio.run(orchestrate(request, policy, pool, **fields))


def steps(run: Run) -> list[Step]:
    return [planned.plan.steps[0] for planned in run.plans]


def turns(run: Run) -> list[str]:
    """`role worker` of each planned turn."""
    return [f"{step.role} {step.worker}" for step in steps(run)]


def answered(run: Run) -> Answered:
    return next(event for event in run.events if isinstance(event, Answered))


# --- rules, whatever the head ---


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_rules_hold_for_any_head(tmp_path: Path, rules: Rules) -> None:
    """Whatever the head: no Verifier before an answer, no role that is not there, no call too many, no stranger."""
    for seed in range(12):
        recorded = write_answers(tmp_path / str(seed), seed=seed)
        for ran in run_recorded(recorded, make_head(recorded.workers, rules=rules, seed=seed)):
            taken = ran.turns_taken
            roles = [role for role, _, _ in taken]
            assert set(roles) <= set(rules.roles)
            assert "verifier" not in roles[: roles.index("worker") if "worker" in roles else None]
            assert len(taken) <= rules.max_turns
            assert len(ran.called) <= rules.max_calls
            assert (ran.answered_by is None) == ("worker" not in roles)
            assert rules.recall or all(is_called for _, _, is_called in taken)
            asked: set[str] = set()
            for role, worker, is_called in taken:
                assert is_called or role == "verifier" or worker in asked  # a Worker that is recalled has worked
                asked |= {worker} if role == "worker" else set()
            allowed = ran.record.events[0].request.allowed  # type: ignore[union-attr]
            for planned in ran.plans:
                (step,) = planned.plan.steps
                assert {step.worker, *step.alternates} <= allowed
                assert set(planned.plan.masked) == set(recorded.workers) - allowed


def test_random_heads_take_every_kind_of_turn(tmp_path: Path) -> None:
    """What the tests above and the twin's are about happens: each role, called and recalled, and each way to end."""
    seen, ends = set(), set()
    for name in ("long", "workers only"):
        for seed in range(12):
            recorded = write_answers(tmp_path / name / str(seed), seed=seed)
            for ran in run_recorded(recorded, make_head(recorded.workers, rules=RULES[name], seed=seed)):
                seen |= {(role, is_called) for role, _, is_called in ran.turns_taken}
                ends.add(ran.stopped)
    assert seen == {("worker", True), ("worker", False), ("thinker", True), ("verifier", True), ("verifier", False)}
    assert ends == {"accepted", "turns", "exhausted", None}


def test_the_same_run_twice(tmp_path: Path) -> None:
    """Serving draws nothing: the same question, asked twice, gives the same decisions with the same numbers."""
    recorded = write_answers(tmp_path, seed=5)
    head = make_head(recorded.workers, seed=5)
    one, other = run_recorded(recorded, head), run_recorded(recorded, head)

    def decisions(ran: Any) -> list[tuple[Any, ...]]:
        notes = [{k: v for k, v in p.plan.notes.items() if k != "encode_ms"} for p in ran.plans]
        return [(p.plan.steps, p.plan.scores, note) for p, note in zip(ran.plans, notes, strict=True)]

    assert [decisions(ran) for ran in one] == [decisions(ran) for ran in other]


# --- what a verdict does ---


def test_accepting_verifier_ends_the_run() -> None:
    """What a Verifier accepts is the answer: the Worker's own reply, not the Verifier's words."""
    run = serve(
        make_policy(WORK_THEN_VERIFY), make_pool({"a": says("<answer>42</answer>"), "b": accepts(), "c": says("")})
    )
    assert turns(run) == ["worker a", "verifier b"]
    assert run.answer is not None
    assert (run.answer.worker, run.answer.text) == ("a", "<answer>42</answer>")
    assert answered(run).notes["stopped"] == "accepted"
    assert run.stopped is not None
    assert run.stopped.by == "answer"


def test_rejecting_verifier_does_not_end_the_run() -> None:
    """After a rejection the run goes on; without an acceptance the last Worker's reply is the answer."""
    rules = Rules(recall=False, max_turns=3)
    pool = make_pool({"a": says("<answer>42</answer>"), "b": rejects(), "c": rejects()})
    run = serve(make_policy(WORK_THEN_VERIFY, rules=rules), pool)
    assert turns(run) == ["worker a", "verifier b", "verifier c"]
    assert run.answer is not None
    assert run.answer.worker == "a"
    assert answered(run).notes == {"stopped": "turns", "recalled": [], "turns": 3}


def test_rejecting_verifiers_answer_is_on_the_table() -> None:
    """A Verifier has solved the request: once a Worker gives its answer they agree, and accepting it needs no call."""
    head = make_tri_head(
        {"worker": {"constant": 1, "asked": 4}, "verifier": {"has_answer": 2.5, "supported": 5}},
        {"worker": {"ability": 1, "known": -5}, "verifier": {"ability": 1}},
    )
    pool = make_pool(
        {"a": says("<answer>41</answer>"), "b": rejects("<answer>42</answer>"), "c": says("<answer>42</answer>")}
    )
    run = serve(make_policy(head), pool)
    assert turns(run) == ["worker a", "verifier b", "worker c"]
    assert run.answer is not None
    assert run.answer.worker == "c"
    assert answered(run).notes["recalled"] == [["verifier", "b"]]
    assert answered(run).notes["turns"] == 4


@pytest.mark.parametrize("verdict", ["REJECT", "I reject this.\n<verdict>REJECT</verdict>"])
@pytest.mark.parametrize("prompt", [TASK, "How much is 6 times 7?", "How much is 6 times 7? Put it in \\boxed{}."])
def test_verdicts_are_no_answers(prompt: str, verdict: str) -> None:
    """Verifiers that give no answer of their own do not agree on one: the words of a verdict are not on the table."""
    request = Request(model="fugu-trinity", messages=(Message(role="user", content=prompt),))
    refuse = says("", verdict=verdict)
    pool = make_pool({"a": says("<answer>42</answer>"), "b": refuse, "c": refuse})
    run = serve(make_policy(WORK_THEN_VERIFY), pool, request)
    assert turns(run) == ["worker a", "verifier b", "verifier c"]
    assert [planned.plan.notes["trust"] for planned in run.plans] == [None, ONE_VOICE, ONE_VOICE]
    assert answered(run).notes["trust"] == ONE_VOICE


def test_essays_stay_unreadable() -> None:
    """A Verifier puts a line between tags even of an essay; the essay does not become an empty answer by it."""
    essay = says("Tigers are large.\nThey are striped, and rare, and rather shy, as far as anybody can tell.")
    pool = make_pool({"a": essay, "b": rejects("<answer>no sources</answer>"), "c": accepts("<answer>fine</answer>")})
    run = serve(make_policy(WORK_THEN_VERIFY), pool, ESSAY)
    assert turns(run) == ["worker a", "verifier b", "verifier c"]
    assert [planned.plan.notes["trust"] for planned in run.plans] == [None, ONE_VOICE, TWO_ALONE]
    assert (run.answer and run.answer.worker) == "a"


def test_a_workers_answer_is_that_of_its_reply() -> None:
    """A worker that says another thing as Verifier than it did as Worker is recalled, and compared, with its reply."""
    head = make_tri_head(
        {"worker": {"constant": 1, "thought": 9}, "thinker": {"has_answer": 5}},
        {"worker": {"known": -5}},
    )
    wavering = says(
        "<answer>41</answer>",
        verdict="<answer>42</answer>\n<verdict>REJECT</verdict>",
        thought=ADVICE.format("verifier"),
    )
    run = serve(make_policy(head, rules=PAPER), make_pool({"a": wavering, "b": accepts(), "c": accepts()}))
    assert turns(run) == ["worker a", "thinker a", "verifier a", "worker b", "thinker a"]
    assert run.plans[4].plan.notes["trust"] == TWO_ALONE


# --- what is recalled ---


def test_recalled_worker_answers_without_a_call() -> None:
    """Choosing a worker again makes its reply the current one: no call, and the record says so."""
    pool = make_pool(
        {"a": says("<answer>41</answer>"), "b": says("<answer>42</answer>"), "c": says("<answer>42</answer>")}
    )
    run = serve(make_policy(WORK, rules=Rules(max_turns=4)), pool)
    assert turns(run) == ["worker a", "worker b", "worker c"]
    assert (run.calls, answered(run)) == (
        3,
        Answered(step=0, worker="a", notes={"stopped": "turns", "recalled": [["worker", "a"]], "turns": 4}),
    )


def test_the_papers_loop_calls_again() -> None:
    """Without recall every turn is a call, and the last Worker's reply is the answer."""
    pool = make_pool({"a": Scripted(["<answer>1</answer>", "<answer>2</answer>"]), "b": says("<answer>3</answer>")})
    run = serve(make_policy(WORK, "ab", rules=Rules(recall=False, max_turns=3)), pool)
    assert turns(run) == ["worker a", "worker b", "worker a"]
    assert run.answer is not None
    assert (run.answer.text, answered(run).step) == ("<answer>2</answer>", 2)


def test_whoever_can_be_recalled_does_not_stand_by() -> None:
    """A worker whose turn would need no call is no alternate: failing over to it would pay for what is known."""
    workers = {"a": says("<answer>1</answer>"), "b": says("<answer>2</answer>"), "c": Failing(DOWN)}
    run = serve(make_policy(WORK, rules=Rules(max_turns=4)), make_pool(workers))
    assert [(step.worker, step.alternates) for step in steps(run)] == [("a", ("b", "c")), ("b", ("c",)), ("c", ())]
    assert answered(run).notes["recalled"] == [["worker", "a"]]
    assert len(workers["a"].queries) == 1  # type: ignore[union-attr]


def test_shared_transcript() -> None:
    """In a shared transcript a Worker sees the latest reply of each Worker before it, oldest first; else none."""
    pool = make_pool(dict.fromkeys("ab", says("<answer>1</answer>")))
    for transcript, sees in (("shared", [(), (0,), (0, 1), (1, 2)]), ("independent", [(), (), (), ()])):
        rules = Rules(recall=False, max_turns=4, transcript=transcript)
        run = serve(make_policy(WORK, "ab", rules=rules), pool)
        assert turns(run) == ["worker a", "worker b", "worker a", "worker a"]
        assert [step.sees for step in steps(run)] == sees


def test_verifier_sees_what_it_judges() -> None:
    """A Verifier judges the current reply: it sees it last, and in an independent transcript alone."""
    pool = make_pool(
        {"a": says("<answer>1</answer>"), "b": rejects("<answer>2</answer>"), "c": rejects("<answer>3</answer>")}
    )
    run = serve(make_policy(WORK_THEN_VERIFY), pool)
    assert [step.sees for step in steps(run)] == [(), (0,), (0,)]


# --- what a Thinker does ---


def test_suggested_role_overrides_the_next_turn() -> None:
    """A Thinker's role is taken at the next turn in place of the head's, by whom the head likes; and only there."""
    workers = {"a": says("<answer>1</answer>", thought=ADVICE.format("verifier")), "b": rejects("<answer>2</answer>")}
    run = serve(make_policy(THINK_SECOND, "ab", rules=Rules(max_turns=4)), make_pool(workers))
    assert turns(run) == ["worker a", "thinker a", "verifier b", "worker b"]
    assert [planned.plan.notes["suggested"] for planned in run.plans] == [None, None, "verifier", None]


def test_suggestion_is_used_up_by_a_recalled_turn() -> None:
    """A suggested role that is taken without a call has been taken: the turn after it is the head's again."""
    head = make_tri_head(
        {"worker": {"constant": 3}, "thinker": {"asked": 8, "thought": -9}, "verifier": {"thought": 5}},
        {"worker": {"ability": 1, "known": -5}},
    )
    workers = {"a": says("<answer>1</answer>", thought=ADVICE.format("worker")), "b": says("<answer>2</answer>")}
    run = serve(make_policy(head, "ab"), make_pool(workers))
    assert turns(run) == ["worker a", "worker b", "thinker a"]
    assert answered(run).notes["recalled"] == [["worker", "a"], ["verifier", "a"]]
    assert answered(run).notes["stopped"] == "accepted"


def test_suggestion_that_is_impossible() -> None:
    """A Verifier that is suggested before there is an answer is not called, then or later."""
    workers = {"a": says("<answer>1</answer>", thought=ADVICE.format("verifier")), "b": accepts("<answer>2</answer>")}
    run = serve(make_policy(THINK_FIRST, "ab", rules=Rules(max_turns=3)), make_pool(workers))
    assert turns(run) == ["thinker a", "worker a", "worker b"]
    assert [planned.plan.notes["suggested"] for planned in run.plans] == [None, None, None]


@pytest.mark.parametrize(
    "thought",
    [
        "You should verify this.",
        "<suggested_role>verifier</suggested_role>",
        "<suggestion>Verify it.</suggestion>",
        ADVICE.format("Verifier"),
        ADVICE.format("solver"),
        ADVICE.format("thinker"),
    ],
)
def test_advice_out_of_form(thought: str) -> None:
    """Without both tags, or with a role that is none, a Thinker's words change neither the role nor the next prompt."""
    workers = {"a": says("<answer>1</answer>", thought=thought), "b": says("<answer>2</answer>", verdict="REJECT")}
    run = serve(make_policy(THINK_SECOND, "ab", rules=Rules(max_turns=3)), make_pool(workers))
    assert turns(run) == ["worker a", "thinker a", "worker b"]
    assert workers["b"].queries[0].messages == ASK.messages


def test_advice_reaches_the_next_worker_once() -> None:
    """The next Worker reads the suggestion below the request; the one after it does not."""
    workers = {"a": says("<answer>1</answer>", thought=ADVICE.format("worker")), "b": says("<answer>2</answer>")}
    serve(make_policy(THINK_FIRST, "ab", rules=Rules(max_turns=3)), make_pool(workers))
    first, second = workers["a"].queries[1], workers["b"].queries[0]
    assert "<suggestion>Try worker.</suggestion>" in first.messages[-1].text
    assert second.messages == ASK.messages


def test_thinker_looks_at_the_current_answer() -> None:
    """After an earlier reply was recalled, that reply is what a Thinker is asked about."""
    head = make_tri_head(
        {"worker": {"constant": 3}, "thinker": {"asked": 8, "trust_gap": -100}},
        {"worker": {"ability": 1, "known": -5}},
    )
    workers = {"a": says("<answer>41</answer>", thought="Hm."), "b": says("<answer>42</answer>")}
    policy = make_policy(head, "ab", Rules(max_turns=4), weight=np.array([2.0, 1.0]))
    run = serve(policy, make_pool(workers))
    assert turns(run) == ["worker a", "worker b", "thinker a"]
    assert run.plans[2].plan.notes["recalled"] == [["worker", "a"]]
    assert "<current_answer>\n<answer>41</answer>\n</current_answer>" in workers["a"].queries[-1].messages[-1].text


def test_thinkers_alone_answer_nothing() -> None:
    """A head that only thinks has no answer when its turns are over, which is the policy's fault."""
    think = make_tri_head({"thinker": {"constant": 1}}, {})
    with pytest.raises(PlanError, match=r"the run is over \(turns\), and no Worker has answered"):
        serve(make_policy(think, rules=Rules(max_turns=3)), make_pool(dict.fromkeys("abc", says("", thought="Hm."))))


# --- faults ---


def test_dead_worker_is_replaced() -> None:
    """When the chosen worker is down the next best answers in its role, and counts as who answered."""
    workers = {"a": Failing(DOWN), "b": says("<answer>42</answer>"), "c": accepts()}
    run = serve(make_policy(WORK_THEN_VERIFY), make_pool(workers))
    assert run.answer is not None
    assert (run.answer.worker, answered(run).notes["stopped"]) == ("b", "accepted")


@pytest.mark.parametrize("error", [DOWN, TOO_LONG], ids=["down", "too long"])
@pytest.mark.parametrize("role", ["verifier", "thinker"])
def test_later_steps_may_fail(role: str, error: WorkerError) -> None:
    """Once there is an answer, nobody else has to reply: a role that all fail in, whyever, does not end the run."""
    workers = {w: only_as(role, says(f"<answer>{w}</answer>"), Failing(error)) for w in "abc"}
    head = WORK_THEN_VERIFY if role == "verifier" else THINK_SECOND
    run = serve(make_policy(head), make_pool(workers))
    assert turns(run)[:2] == ["worker a", f"{role} {'b' if role == 'verifier' else 'a'}"]
    assert [step.is_optional for step in steps(run)][:2] == [False, True]
    assert any(isinstance(event, Failed) for event in run.events)
    assert run.answer is not None
    assert run.answer.worker == "a"
    assert run.stopped is not None
    assert (run.stopped.by, run.stopped.error) == ("answer", None)


def test_nobody_answers() -> None:
    """Without any answer the first step is not optional: its failure is the workers', not the policy's."""
    with pytest.raises(WorkerError, match="no worker replied"):
        serve(make_policy(WORK), make_pool(dict.fromkeys("abc", Failing(DOWN))))


def test_who_was_not_asked_may_still_be() -> None:
    """A step that failed before it reached a worker says nothing about that worker."""
    dead = only_as("verifier", says("<answer>1</answer>"), Failing(DOWN))
    workers = {"a": says("<answer>42</answer>"), **dict.fromkeys("bcde", dead), "f": accepts()}
    run = serve(make_policy(WORK_THEN_VERIFY, "abcdef"), make_pool(workers, max_attempts=4))
    assert "f" in run.workers


def test_dead_worker_is_asked_once() -> None:
    """A worker that was down is not the first choice again at the next turn of the same run: others are waited for."""
    head = make_tri_head(
        {"worker": {"constant": 1}, "verifier": {"has_answer": 2}},
        {"worker": {"ability": 1}, "verifier": {"ability": 1, "agrees": -5}},
    )
    workers = {"a": Failing(DOWN), "b": says("<answer>1</answer>"), "c": rejects("<answer>2</answer>")}
    run = serve(make_policy(head), make_pool(workers))
    assert [event.worker for event in run.events if isinstance(event, Called)].count("a") == 1


def test_hanging_after_a_recalled_turn() -> None:
    """When the time is up after a reply was recalled, that reply is the answer: it was current."""
    head = make_tri_head(
        {"worker": {"constant": 3}, "thinker": {"asked": 8, "trust_gap": -100}},
        {"worker": {"ability": 1, "known": -5}},
    )
    workers = {"a": only_as("thinker", says("<answer>41</answer>"), Waiting()), "b": says("<answer>42</answer>")}
    policy = make_policy(head, "ab", Rules(max_turns=4), weight=np.array([2.0, 1.0]))
    run = serve(policy, make_pool(workers), budget=Budget(seconds=0.1))
    assert (run.answer and run.answer.worker) == "a"


def test_hanging_verifier() -> None:
    """When the time is up in a Verifier's call, the Worker's reply is the answer."""
    workers = {"a": says("<answer>42</answer>"), "b": only_as("verifier", says(""), Waiting()), "c": says("")}
    run = serve(make_policy(WORK_THEN_VERIFY), make_pool(workers), budget=Budget(seconds=0.1))
    assert run.answer is not None
    assert (run.answer.worker, run.stopped and run.stopped.by) == ("a", "budget:seconds")


@pytest.mark.parametrize("calls", range(1, 6))
def test_budget_never_answers_with_advice_or_a_verdict(calls: int) -> None:
    """Wherever a budget ends the run, its answer is a Worker's reply, or there is none."""
    head = make_tri_head(
        {"thinker": {"constant": 3, "thought": -9}, "worker": {"constant": 1}, "verifier": {"has_answer": 2}},
        {"worker": {"ability": 1}, "verifier": {"ability": 1}},
    )
    talker = says("<answer>1</answer>", verdict="<answer>2</answer>\nREJECT", thought=ADVICE.format("worker"))
    run = serve(make_policy(head, rules=PAPER), make_pool(dict.fromkeys("abc", talker)), budget=Budget(calls=calls))
    assert [step.role for step in steps(run)] == ["thinker", "worker", "thinker", "worker", "thinker"][:calls]
    assert run.stopped is not None
    assert run.stopped.by == ("answer" if calls == 5 else "budget:calls")
    assert (run.answer and run.answer.text) == (None if calls == 1 else "<answer>1</answer>")


def test_tool_calls_end_the_run() -> None:
    """A Worker that calls a tool of the client's is answered by the client: its calls are passed on at once."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = ToolCall(id="call_1", name="look", arguments='{"at": "tigers"}')
    workers = {
        "a": Scripted([Completion(text="", finish_reason="tool_calls", tool_calls=(call,))]),
        "b": accepts(),
        "c": accepts(),
    }
    request = msgspec.structs.replace(ASK, sampling=Sampling(tools=(tool,)))
    run = serve(make_policy(WORK_THEN_VERIFY), make_pool(workers), request)
    assert run.answer is not None
    assert (run.answer.tool_calls, run.calls, answered(run).notes["stopped"]) == ((call,), 1, "tool_calls")


def test_nothing_is_streamed_before_it_is_decided() -> None:
    """No token of any step leaves before the run is over, for any reply may turn out not to be the answer."""
    heard: list[Delta] = []

    async def on_delta(delta: Delta) -> None:
        heard.append(delta)

    pool = make_pool({"a": says("<answer>42</answer>"), "b": accepts(), "c": accepts()})
    run = serve(make_policy(WORK_THEN_VERIFY), pool, on_delta=on_delta)
    assert (heard, run.answer and run.answer.text) == ([], "<answer>42</answer>")


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"z"})])
def test_no_worker_is_allowed(allowed: frozenset[str]) -> None:
    """A request that no worker of the pool may serve cannot be planned, and calls nobody."""
    record = Record()
    request = msgspec.structs.replace(ASK, allowed=allowed)
    with pytest.raises(PlanError, match="no worker of the pool is allowed"):
        serve(make_policy(WORK), make_pool(dict.fromkeys("abc", accepts())), request, recorder=record)
    assert not any(isinstance(event, Called) for event in record.events)


def test_opted_out_workers_are_masked() -> None:
    """A worker that the request does not allow neither works nor verifies nor stands by, and is on record as masked."""
    request = msgspec.structs.replace(ASK, allowed=frozenset({"b", "c"}))
    run = serve(make_policy(WORK_THEN_VERIFY), make_pool(dict.fromkeys("abc", accepts())), request)
    assert turns(run) == ["worker b", "verifier c"]
    assert [(step.alternates, planned.plan.masked) for step, planned in zip(steps(run), run.plans, strict=True)] == [
        (("c",), ("a",)),
        ((), ("a",)),
    ]


# --- the record ---


def run_long(**fields: Any) -> Run:
    """Worker, Thinker, Verifier, Worker, Thinker; then a Verifier that fails, and one that is recalled."""
    workers = {
        "a": says("<answer>1</answer>", thought=ADVICE.format("verifier")),
        "b": says("<answer>2</answer>", verdict="<answer>2</answer>\nREJECT"),
        "c": Failing(DOWN),
    }
    return serve(make_policy(THINK_SECOND, rules=Rules(max_calls=9)), make_pool(workers), **fields)


def test_events_of_a_run_survive_json() -> None:
    """Plans with roles and notes, failures of optional steps and the answer's notes are read back as they were."""
    run = run_long()
    assert {step.role for step in steps(run)} == {"worker", "thinker", "verifier"}
    assert any(planned.plan.notes["recalled"] for planned in run.plans) or answered(run).notes["recalled"]
    for event in run.events:
        assert event_from_json(event_to_json(event, at=1.0)) == (1.0, event)


def test_run_is_stored_and_read_back(tmp_path: Path) -> None:
    """The store keeps a run of all three roles, event by event."""

    async def main() -> tuple[list[Event], list[Event]]:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_1")
            workers = {
                "a": says("<answer>1</answer>", thought=ADVICE.format("verifier")),
                "b": accepts(),
                "c": rejects(),
            }
            policy = make_policy(THINK_SECOND)
            run = await orchestrate(ASK, policy, make_pool(workers), recorder=recorder, run_id="run_1")
            await recorder.wait_durable()
            found = await store.get_run("run_1")
            assert found is not None
            return run.events, [event for _, event in found.events]

    lived, stored = asyncio.run(main())
    assert {s.role for e in stored if isinstance(e, Planned) for s in e.plan.steps} == {"worker", "thinker", "verifier"}
    assert stored == lived


def test_every_decision_follows_from_the_record(tmp_path: Path) -> None:
    """Given the events before a decision, read back from JSON, another process decides the same."""
    recorded = write_answers(tmp_path, count=6, seed=8)
    head = make_head(recorded.workers, rules=RULES["long"], seed=8)
    again = Coordinator(head, Texts(), models(recorded.workers))

    async def check(events: list[Event]) -> int:
        run, decisions = Run(events[0].request, run_id="r"), 0  # type: ignore[union-attr]
        for event in events:
            if isinstance(event, Planned):
                plan = await again.decide(run)
                notes = {k: v for k, v in plan.notes.items() if k != "encode_ms"}
                assert notes == {k: v for k, v in event.plan.notes.items() if k != "encode_ms"}
                assert msgspec.structs.replace(plan, notes={}) == msgspec.structs.replace(event.plan, notes={})
                decisions += 1
            elif isinstance(event, Answered):
                answer = await again.decide(run)
                assert (answer.step, answer.notes) == (event.step, event.notes)  # type: ignore[union-attr]
            run.record(event_from_json(event_to_json(event, at=0.0))[1])
        return decisions

    counts = [asyncio.run(check(ran.record.events)) for ran in run_recorded(recorded, head)]
    assert max(counts) > 3


def test_notes_say_what_was_decided_and_why() -> None:
    """A plan's notes name the turn, both distributions, what was recalled and the trust; reading is noted once."""
    run = serve(make_policy(WORK_THEN_VERIFY), make_pool({"a": accepts(), "b": rejects(), "c": accepts()}))
    first, second = run.plans[0].plan, run.plans[1].plan
    assert first.notes.keys() - second.notes.keys() == {"encode_ms", "tokens_read", "tokens_total"}
    assert (first.notes["turn"], second.notes["turn"]) == (0, 1)
    assert (first.notes["trust"], second.notes["trust"]) == (None, ONE_VOICE)
    for plan in (first, second):
        assert sum(plan.notes["roles"].values()) == pytest.approx(1)
        assert plan.scores is not None
        assert sum(plan.scores.values()) == pytest.approx(1)
        assert max(plan.scores, key=plan.scores.__getitem__) == plan.steps[0].worker
    assert first.notes["roles"]["verifier"] == 0


# --- lengths ---


@pytest.mark.parametrize(("tokens", "trusted"), [(20, True), (2000, False), (None, True)])
def test_length_of_a_reply_tells_whether_to_ask_another(tokens: int | None, trusted: bool) -> None:
    """Where long replies are often wrong, one makes the coordinator ask on; one of unknown length says nothing."""
    evidence = make_evidence(2, weight=np.full(2, 2.0))
    lengths = replace(evidence.lengths, mean=np.full(2, 5.0), of_voice=-1.0)
    usage = count_tokens(tokens)
    backends = {worker: Scripted(lambda query: "<answer>7</answer>", usage=usage) for worker in "ab"}
    head = make_head("ab", Start(threshold=0.8, deviation=0).to_head(), evidence=replace(evidence, lengths=lengths))
    run = asyncio.run(orchestrate(ASK, Coordinator(head, Texts(), models("ab")), make_pool(backends)))
    assert turns(run) == (["worker a"] if trusted else ["worker a", "worker b"])


def test_length_of_verification_is_not_that_of_an_answer() -> None:
    """A Verifier's reply holds an answer of its own, but how long it is says nothing of how hard answering was."""
    verifier = make_tri_head(
        {"worker": {"constant": 1, "has_answer": -9}, "verifier": {"has_answer": 1}},
        {"worker": {"ability": 1}, "verifier": {"agrees": -5, "ability": 1}},
    )
    evidence = make_evidence(2)
    lengths = replace(evidence.lengths, of_voice=-1.0, of_none=1.0)
    found = []
    for tokens in (5, 5000):

        def answer(query: Query, tokens: int = tokens) -> Completion:
            text = "<answer>7</answer>" + ("<verdict>REJECT</verdict>" if query.role == "verifier" else "")
            usage = count_tokens(tokens if query.role == "verifier" else 50)
            return Completion(text=text, finish_reason="stop", usage=usage)

        head = make_head("ab", verifier, Rules(max_turns=3), evidence=replace(evidence, lengths=lengths))
        pool = make_pool({worker: Scripted(answer) for worker in "ab"})
        run = asyncio.run(orchestrate(ASK, Coordinator(head, Texts(), models("ab")), pool))
        assert turns(run)[:2] == ["worker a", "verifier b"]
        found.append([planned.plan.notes["trust"] for planned in run.plans])
    assert found[0] == found[1]


def count_tokens(tokens: int | None) -> Usage:
    return msgspec.structs.replace(USAGE, output_tokens=tokens)


# --- heads that do not fit ---


def test_head_for_another_encoder() -> None:
    """A head does not read hidden states of an encoder that it was not trained on."""
    with pytest.raises(ModelError, match="reads hidden states of 'other'; this is 'texts'"):
        Coordinator(make_head("ab", encoder="other"), Texts(), models("ab"))


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"a": "a-1", "z": "z-1"}, "the pool also has z"),
        ({"a": "a-1", "b": "b-2"}, "worker 'b' was 'b-1' in training and is 'b-2'"),
    ],
)
def test_head_for_another_pool(pool: dict[str, str], message: str) -> None:
    """A worker that is new, or another model under an old name, is not guessed at."""
    with pytest.raises(ModelError, match=message):
        Coordinator(make_head("ab"), Texts(), pool)


def test_worker_that_left_the_pool() -> None:
    """A worker of the head that is not in the pool any more is not called."""
    run = asyncio.run(
        orchestrate(
            ASK,
            Coordinator(make_head("abc", WORK, evidence=make_evidence(3)), Texts(), models("bc")),
            make_pool({"b": says("<answer>1</answer>"), "c": says("<answer>1</answer>")}),
        )
    )
    assert turns(run)[0] == "worker b"
    assert "a" not in {w for step in steps(run) for w in (step.worker, *step.alternates)}


TENSORS = [
    "evidence.ability",
    "evidence.cost",
    "evidence.lengths",
    "evidence.none",
    "evidence.of_length",
    "evidence.of_log_odds",
    "evidence.overlap",
    "evidence.weight",
    "features.gamma",
    "features.landmarks",
    "features.mean",
    "features.projection",
    "head.role",
    "head.worker",
    "question.weight",
]
DAMAGES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "missing": lambda tensors, name: tensors.pop(name),
    "another shape": lambda tensors, name: tensors.update(
        {name: np.zeros((*tensors[name].shape[:-1], 99), np.float32)}
    ),
    "flat": lambda tensors, name: tensors.update({name: tensors[name].reshape(1, -1, 1)}),
    "NaN": lambda tensors, name: tensors[name].fill(np.nan),
    "infinite": lambda tensors, name: tensors[name].fill(np.inf),
    "float64": lambda tensors, name: tensors.update({name: tensors[name].astype(np.float64)}),
}


def test_head_is_saved_and_loaded(tmp_path: Path) -> None:
    """What is loaded is what was saved: the same id, rules and numbers, from exactly the tensors named here."""
    head = make_head("abc", rules=RULES["shared"])
    head.save(tmp_path)
    other = CoordinatorHead.load(tmp_path)
    assert (other.id, other.rules, other.card) == (head.id, head.rules, head.card)
    assert (other.head.to_vector() == head.head.to_vector()).all()
    made, evidence = draw_evidence(3, seed=0), other.evidence
    assert evidence.in_log_odds is made.in_log_odds is True
    assert (evidence.of_deviation, evidence.of_easiness) == pytest.approx((made.of_deviation, made.of_easiness))
    assert sorted(load((tmp_path / "head.safetensors").read_bytes())) == TENSORS


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", TENSORS)
def test_damaged_tensors(tmp_path: Path, name: str, damage: Callable[[dict[str, Any], str], Any]) -> None:
    """Each tensor is there, in its shape and type, with finite numbers, or the head does not load."""
    head = make_head("abc")
    head.save(tmp_path / "whole")
    tensors = load((tmp_path / "whole" / "head.safetensors").read_bytes())
    damage(tensors, name)
    raw = save(tensors)
    save_artefact(tmp_path / "damaged", raw, seal(raw, head.card)[1])
    with pytest.raises(ModelError, match="damaged"):
        CoordinatorHead.load(tmp_path / "damaged")


@pytest.mark.parametrize(
    "rules", [{"turns": 3}, {"max_turns": "3"}, {"recall": 1}, {"roles": "worker"}, {"max_calls": 2.5}]
)
def test_rules_that_cannot_be_read(tmp_path: Path, rules: dict[str, Any]) -> None:
    """A card whose rules have an unknown name or a wrong type does not load."""
    head = make_head("abc")
    head.save(tmp_path)
    save_artefact(
        tmp_path, (tmp_path / "head.safetensors").read_bytes(), msgspec.structs.replace(head.card, rules=rules)
    )
    with pytest.raises(ModelError, match=next(iter(rules))):
        CoordinatorHead.load(tmp_path)


@pytest.mark.parametrize("is_first", [True, False])
def test_head_of_an_earlier_version(tmp_path: Path, *, is_first: bool) -> None:
    """It loads and means what it meant: deviations count by points, in the first versions with one number for all of
    the deviation, and no lengths.
    """
    before = draw_evidence(3, seed=1)
    assert not before.in_log_odds
    make_head("abc", evidence=before).save(tmp_path)
    tensors = load((tmp_path / "head.safetensors").read_bytes())
    card = CoordinatorHead.load(tmp_path).card
    assert "evidence.of_log_odds" not in tensors
    if is_first:
        del tensors["evidence.lengths"], tensors["evidence.of_length"], tensors["evidence.of_easiness"]
    raw = save(tensors)
    save_artefact(tmp_path, raw, msgspec.structs.replace(card, weights_sha256=hashlib.sha256(raw).hexdigest()))
    evidence = CoordinatorHead.load(tmp_path).evidence
    assert evidence.of_deviation == pytest.approx(before.of_deviation)
    assert not evidence.in_log_odds
    assert evidence.of_easiness == pytest.approx(before.of_deviation if is_first else before.of_easiness)
    assert (evidence.lengths.of_voice == evidence.lengths.of_none == 0) is is_first


def test_spread_of_lengths_that_cannot_be(tmp_path: Path) -> None:
    """A head whose lengths have no spread would divide by it: it does not load."""
    evidence = make_evidence(3)
    lengths = replace(evidence.lengths, scale=np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ModelError, match="a standard deviation of 0"):
        make_head("abc", evidence=replace(evidence, lengths=lengths)).save(tmp_path)


@pytest.mark.parametrize(
    "rules",
    [{"transcript": "Shared"}, {"roles": ["solver"]}, {"roles": ["verifier"]}, {"max_turns": 0}, {"max_calls": 0}],
)
def test_rules_that_mean_nothing(tmp_path: Path, rules: dict[str, Any]) -> None:
    """A card whose rules say what no run can do does not load."""
    head = make_head("abc")
    head.save(tmp_path)
    save_artefact(
        tmp_path, (tmp_path / "head.safetensors").read_bytes(), msgspec.structs.replace(head.card, rules=rules)
    )
    with pytest.raises(ModelError):
        CoordinatorHead.load(tmp_path)


def test_encoder_of_another_size() -> None:
    """An encoder of the right name that gives other numbers is refused before anybody asks."""
    with pytest.raises(ModelError, match="numbers"):
        Coordinator(make_head("ab"), Texts(dim=DIM + 1), models("ab"))


def test_hidden_state_that_is_not_of_numbers() -> None:
    """A hidden state of NaN is an error with a reason, as it is for the selector."""

    class Broken(Texts):
        async def encode(self, messages: Sequence[Message]) -> Encoding:
            del messages
            return Encoding(hidden=np.full(DIM, np.nan, np.float32), tokens_read=1, tokens_total=1)

    policy = Coordinator(make_head("ab"), Broken(), models("ab"))
    with pytest.raises(ModelError, match="not finite"):
        asyncio.run(policy.decide(Run(REQUEST, run_id="r")))
