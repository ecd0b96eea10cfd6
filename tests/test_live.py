"""Live evaluation: what is kept of a run, what the numbers are, how a gain is divided, when an alarm sounds."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outcomes import write_world
from runs import REQUEST, USAGE, make_pool
from torafugu.envs.composed import composed_tasks, find_workflow
from torafugu.episode import Episode
from torafugu.errors import ConfigError, FuguError, GradeError, StoreError, WorkerError
from torafugu.eval.live import Contestant, LiveLimits, LiveRow, LiveTally, open_live_log, plan_live, run_live
from torafugu.eval.live_costs import Calls, estimate_live
from torafugu.eval.live_policies import RandomWorkers
from torafugu.eval.live_report import BestSingle, Entry, Measured, choose_by_data, choose_by_rows, report_live
from torafugu.eval.live_settings import fingerprint
from torafugu.eval.matrix import build_matrix
from torafugu.eval.stats import paired_bootstrap
from torafugu.eval.workflows import (
    PlannedStep,
    WorkflowTrace,
    describe_workflows,
    rank_correlation,
    split_gain,
    trace_workflows,
    workflow_width,
)
from torafugu.events import Event, Stopped
from torafugu.grade.by_task import TaskGrader
from torafugu.grade.grader import Verdict
from torafugu.grade.task import Task
from torafugu.orchestrate import Direct, Policy, Run, orchestrate
from torafugu.orchestrate.conductor import Conductor, ConductorConfig
from torafugu.orchestrate.plan import PlanFormat, Workflow, WorkflowStep, write_workflow
from torafugu.pool import Backend, Completion, Failing, Pool, Prices, Query, Scripted, WorkerSpec, resolve_price
from torafugu.pool.home import make_home
from torafugu.pool.recorded import read_recorded
from torafugu.pool.spec import Limits
from torafugu.types import Answer, Json, Plan, Reply, Step, Usage
from workflows import CONDUCTOR, script, write

HOME = ("exact-math", "text-ops", "facts", "generalist", "hasty")
ONE = write((0, "Do it.", []))
CHAIN = write((0, "Begin.", []), (1, "End.", [0]))


class Kept:
    """A recorder that keeps."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)

    async def wait_durable(self) -> None:
        return


def trace_of(
    *texts: str | Completion, workers: Mapping[str, Backend] | None = None, **config: Any
) -> WorkflowTrace | None:
    """The trace of one run with this conductor."""
    backends = {CONDUCTOR: script(*texts), **(workers or {"a": script(*["A"] * 9), "b": script(*["B"] * 9)})}
    kept, is_policy_fault = Kept(), False
    policy = Conductor(ConductorConfig(worker=CONDUCTOR, **config), {id: id for id in backends})
    try:
        asyncio.run(orchestrate(REQUEST, policy, make_pool(backends), recorder=kept))
    except FuguError as error:
        is_policy_fault = error.fault == "policy"
    return trace_workflows(kept.events, is_policy_fault=is_policy_fault)


# What is read off a run


def test_a_plan_at_the_first_attempt_is_traced() -> None:
    """Texts, validity, steps and whom each sees by position are read off the events."""
    assert trace_of(CHAIN) == WorkflowTrace(
        texts=1,
        first_valid=True,
        valid=True,
        workflows=((PlannedStep(worker="a"), PlannedStep(worker="b", sees=(0,))),),
    )


def test_a_plan_after_a_refused_text_is_not_valid_at_first() -> None:
    """A second text that is a workflow makes the run valid, and its first text not."""
    trace = trace_of("Well.", CHAIN)
    assert trace is not None
    assert (trace.texts, trace.first_valid, trace.valid, trace.steps) == (2, False, True, 2)


def test_texts_that_are_no_workflow_are_invalid() -> None:
    """When no text is a workflow the run is invalid and has no steps."""
    assert trace_of("Well.", "Hm.", "No.") == WorkflowTrace(texts=3, first_valid=False, valid=False)


def test_a_conductor_that_does_not_reply_says_nothing_of_form() -> None:
    """Where the conductor's worker fails, validity is unknown, not false."""
    assert trace_of() == WorkflowTrace(texts=0, first_valid=None, valid=None)


def test_a_replan_is_counted() -> None:
    """A workflow that lost a step and the one written after it are both there, and one replan."""
    broken = Failing(WorkerError("gone", worker="b", code="rejected"))
    trace = trace_of(CHAIN, ONE, workers={"a": script("A", "A"), "b": broken})
    assert trace is not None
    assert [len(workflow) for workflow in trace.workflows] == [2, 1]
    assert (trace.replans, trace.recursions) == (1, 0)


def test_a_run_without_conductor_has_no_trace() -> None:
    """A worker that is asked directly leaves no trace of workflows."""
    kept = Kept()
    asyncio.run(orchestrate(REQUEST, Direct("a"), make_pool({"a": script("A")}), recorder=kept))
    assert trace_workflows(kept.events, is_policy_fault=False) is None


@pytest.mark.parametrize(
    ("sight", "width"),
    [
        ((), 0),
        (((),), 1),
        (((), (0,), (1,)), 1),
        (((), (), (0, 1)), 2),
        (((), (0,), (0,), (1, 2)), 2),
        (((), (), ()), 3),
    ],
)
def test_width_is_the_most_steps_side_by_side(sight: Sequence[tuple[int, ...]], width: int) -> None:
    """Chains are one wide, joins and diamonds two, independent steps as many as they are."""
    assert workflow_width([PlannedStep(worker="a", sees=sees) for sees in sight]) == width


# Numbers of workflows


def traced(*sight: tuple[int, ...], workers: str = "abcd", first: bool | None = True) -> WorkflowTrace:
    steps = tuple(PlannedStep(worker=w, sees=sees) for w, sees in zip(workers, sight, strict=False))
    return WorkflowTrace(
        texts=1 if first else 2, first_valid=first, valid=bool(steps), workflows=(steps,) if steps else ()
    )


def test_numbers_of_workflows_are_those_computed_by_hand() -> None:
    """Rates, shapes, shares and effort of four runs, one of them without a workflow."""
    traces = [traced(()), traced((), (0,)), traced((), (), (0, 1)), traced(first=False)]
    found = describe_workflows(traces, [1, 1, 0, 0], [1, 2, 3, 3])
    assert found["valid_rate_first_text"] == found["valid_rate"] == found["valid_share"] == 0.75
    assert found["accuracy_given_valid"] == pytest.approx(2 / 3)
    assert found["texts_mean"] == 1.25
    assert found["steps_mean"] == 2
    assert found["steps_histogram"] == {"1": 1, "2": 1, "3": 1}
    assert found["one_step_share"] == pytest.approx(1 / 3)
    assert found["steps_that_see_others_share"] == pytest.approx(2 / 6)
    assert found["width_mean"] == pytest.approx(4 / 3)
    assert found["parallel_share"] == pytest.approx(1 / 3)
    assert found["worker_shares"] == {"a": 0.5, "b": pytest.approx(1 / 3), "c": pytest.approx(1 / 6)}
    assert found["worker_entropy_bits"] == pytest.approx(1.459, abs=1e-3)
    assert found["steps_by_difficulty"] == [{"difficulty": d, "n": 1, "steps_mean": float(d)} for d in (1, 2, 3)]
    assert found["steps_difficulty_correlation"] == pytest.approx(1)


def test_no_workflow_at_all_is_unknown_not_zero() -> None:
    """Where nothing could be executed, what it would have been like is None."""
    found = describe_workflows([traced(first=False)], [0], [None])
    assert found["valid_rate"] == 0
    for key in ("accuracy_given_valid", "steps_mean", "one_step_share", "worker_entropy_bits", "width_mean"):
        assert found[key] is None
    assert found["steps_difficulty_correlation"] is None
    with pytest.raises(ValueError, match="expected one of each"):
        describe_workflows([], [], [])


def test_rank_correlation_shares_ranks() -> None:
    """Equal values share their mean rank; a constant has no correlation; order alone counts."""
    assert rank_correlation([1, 2, 2, 3], [1, 5, 5, 900]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 3]) == pytest.approx(3.75 / 4.5)  # ranks 1 2.5 2.5 4, 1 2 3.5 3.5
    assert rank_correlation([1, 1], [1, 2]) is None


# Form and orchestration


def side(*rows: tuple[bool, float]) -> tuple[list[bool], list[float]]:
    return [valid for valid, _ in rows], [score for _, score in rows]


def test_the_two_parts_are_shapleys() -> None:
    """v 0.5 -> 1, a 0.5 -> 0.75: form is 0.5 * 0.625, orchestration 0.25 * 0.75, and they add up."""
    before = side((True, 1), (True, 0), (False, 0), (False, 0))
    after = side((True, 1), (True, 1), (True, 1), (True, 0))
    split = split_gain(before, after, seed=0)
    assert split.format.mean == pytest.approx(0.3125)
    assert split.orchestration.mean == pytest.approx(0.1875)
    assert split.total.mean == pytest.approx(0.5)
    assert (split.valid_rate, split.accuracy_given_valid) == ((0.5, 1.0), (0.5, 0.75))


def test_parts_add_up_whatever_the_outcomes() -> None:
    """Form and orchestration add up to the difference of accuracy, for any outcomes; intervals hold their means."""
    rng = random.Random(1)
    for _ in range(40):
        n = rng.randint(1, 30)
        sides = []
        for _ in range(2):
            valid = [rng.random() < rng.choice((0, 0.5, 0.9)) for _ in range(n)]
            sides.append((valid, [rng.choice((0, 0.5, 1)) if v else 0 for v in valid]))
        split = split_gain(sides[0], sides[1], samples=200, seed=2)
        assert split.format.mean + split.orchestration.mean == pytest.approx(split.total.mean, abs=1e-12)
        assert split.total.mean == pytest.approx(np.mean(sides[1][1]) - np.mean(sides[0][1]), abs=1e-12)


def test_a_gain_of_form_alone_is_no_orchestration() -> None:
    """When valid plans are as good as before and only more of them are valid, all of the gain is form; and back."""
    half = [(True, 1), (True, 0)] * 20
    bad = side(*half[:20], *[(False, 0)] * 20)
    form = split_gain(bad, side(*half), seed=0)
    assert form.orchestration.mean == pytest.approx(0)
    assert form.format.low > 0
    better = split_gain(side(*half), side(*[(True, 1)] * 40), seed=0)
    assert better.format.mean == better.format.low == better.format.high == pytest.approx(0)
    assert better.orchestration.low > 0


def test_a_start_without_any_plan_leaves_all_to_form() -> None:
    """Where accuracy given a plan is unknown on one side, the other side's stands in; on both, nothing is divided."""
    none, all_right = side(*[(False, 0)] * 10), side(*[(True, 1)] * 10)
    split = split_gain(none, all_right, seed=0)
    assert (split.format.mean, split.orchestration.mean) == (1, 0)
    assert split.accuracy_given_valid == (None, 1)
    assert split_gain(none, none, seed=0).total.high == 0


def test_the_interval_of_the_total_is_the_paired_one() -> None:
    """Tasks are resampled in pairs: the total's interval is that of the paired bootstrap."""
    rng = random.Random(3)
    before = side(*[(True, rng.choice((0, 1))) for _ in range(200)])
    after = side(*[(True, rng.choice((0, 1, 1))) for _ in range(200)])
    ours, theirs = split_gain(before, after, seed=0).total, paired_bootstrap(after[1], before[1], seed=1)
    assert ours.low == pytest.approx(theirs.low, abs=0.011)
    assert ours.high == pytest.approx(theirs.high, abs=0.011)


def test_outcomes_that_contradict_themselves_are_refused() -> None:
    """A score without a valid plan, and sides of different tasks, are errors."""
    with pytest.raises(ValueError, match="without a valid plan has a score"):
        split_gain(side((False, 1)), side((True, 1)), seed=0)
    with pytest.raises(ValueError, match="1 plans and 0 scores"):
        split_gain(([True], []), side((True, 1)), seed=0)


# Workers at random


class Fixed:
    """A policy that decides this."""

    id = "fixed"

    def __init__(self, decision: Plan | Answer) -> None:
        self.decision = decision

    async def decide(self, run: Run) -> Plan | Answer:
        return self.decision


def drawn(plan: Plan, *, seed: int = 0) -> Plan:
    decided = asyncio.run(RandomWorkers(Fixed(plan), HOME, seed=seed).decide(Run(REQUEST, run_id="r")))
    assert isinstance(decided, Plan)
    return decided


def make_plan(count: int, **rest: Any) -> Plan:
    steps = tuple(
        Step(id=i, worker="facts", instruction=f"part {i}", sees=(i - 1,) if i else (), is_final=i == count - 1)
        for i in range(count)
    )
    return Plan(steps=steps, **rest)


def test_only_the_workers_are_drawn() -> None:
    """Subtasks, sight and order stay; workers come by chance, all of them, and the same again for the same seed."""
    plan = make_plan(40)
    first, again, other = drawn(plan), drawn(plan), drawn(plan, seed=1)
    assert first == again
    assert [s.worker for s in first.steps] != [s.worker for s in other.steps]
    assert {s.worker for s in first.steps} == set(HOME)
    assert [(s.id, s.instruction, s.sees, s.is_final) for s in first.steps] == [
        (s.id, s.instruction, s.sees, s.is_final) for s in plan.steps
    ]


def test_masked_workers_are_not_drawn() -> None:
    """A worker that the plan says is masked is never drawn; nobody to draw from is refused."""
    assert {s.worker for s in drawn(make_plan(40, masked=HOME[:3])).steps} == set(HOME[3:])
    with pytest.raises(ConfigError, match="expected at least one"):
        RandomWorkers(Fixed(Answer(step=0)), (), seed=0)


# The file


TASKS = tuple(
    Task(
        id=f"t{i}",
        family=f"f{i % 2}",
        category="c",
        dataset="d",
        prompt=f"What is {i} + {i}?",
        gold=str(2 * i),
        split="test",
        meta={"grader": "exact"},
    )
    for i in range(6)
)


def doubles(query: Query) -> Completion:
    """Right."""
    number = int(query.messages[-1].text.split()[2])
    return Completion(text=f"<answer>{2 * number}</answer>", finish_reason="stop", usage=USAGE)


def run_all(
    path: Path,
    backends: Mapping[str, Backend],
    tasks: Sequence[Task] = TASKS,
    *,
    grader: Any = None,
    limits: LiveLimits = LiveLimits(),  # noqa: B008  # frozen
    settings: Mapping[str, Json] | None = None,
    **more: Any,
) -> tuple[LiveTally, dict[tuple[str, str], LiveRow]]:
    log = open_live_log(path, settings or {"seed": 0})
    contestants = [Contestant(name=worker, policy=Direct(worker)) for worker in backends]
    jobs = plan_live(contestants, tasks, log)
    try:
        tally = asyncio.run(run_live(jobs, make_pool(backends), grader or TaskGrader(), log, limits=limits, **more))
    finally:
        log.close()
    return tally, dict(log.rows)


def test_an_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is scored is not run again; half a row, left by a process that was killed, is."""
    path, right = tmp_path / "e.jsonl", Scripted(doubles)
    run_all(path, {"a": right}, TASKS[:4])
    path.write_bytes(path.read_bytes()[:-20])
    tally, rows = run_all(path, {"a": right})
    assert tally.done == 3
    assert len(right.queries) == 7
    assert [rows["a", task.id].episode.score for task in TASKS] == [1.0] * 6
    assert run_all(path, {"a": right})[0].done == 0


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    """A file of other settings is left as it is, and the error names which of them differ."""
    path = tmp_path / "e.jsonl"
    run_all(path, {"a": Scripted(doubles)}, settings={"seed": 0, "n": 6})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"another evaluation \(n, seed: not as then\)"):
        open_live_log(path, {"seed": 1})
    assert path.read_bytes() == before


def test_a_model_trained_anew_is_another_one(tmp_path: Path) -> None:
    """A worker's fingerprint holds what it is and, of a local model, its files; not how hard it may be driven."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"old")
    spec = WorkerSpec(id="tiny", dialect="local", model="tiny")
    first = fingerprint(spec, tmp_path)
    assert fingerprint(replace(spec, limits=Limits(concurrency=1)), tmp_path) == first
    assert fingerprint(replace(spec, tools=False), tmp_path) != first
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"newer")
    assert fingerprint(spec, tmp_path) != first


@pytest.mark.parametrize("line", [b"{}\n", b"what?\n", b'{"settings": 1}\n', b"my notes", b"my\nnotes", b'"\xff"\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: bytes) -> None:
    """A file without settings is no evaluation's, and stays as it is."""
    path = tmp_path / "e.jsonl"
    path.write_bytes(line)
    with pytest.raises(ConfigError, match=r"line 1: .*expected the settings"):
        open_live_log(path, {"seed": 1})
    assert path.read_bytes() == line


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    """A row that cannot be read is an error with its line."""
    path = tmp_path / "e.jsonl"
    run_all(path, {"a": Scripted(doubles)}, TASKS[:1])
    path.write_bytes(path.read_bytes() + b'{"name": 3}\n')
    with pytest.raises(ConfigError, match="line 3"):
        open_live_log(path, {"seed": 0})


# Running


class Undecided:
    """A grader that cannot tell."""

    def grade(self, task: Task, reply: Reply) -> Verdict:
        raise GradeError(f"{task.id}: no verdict on {reply.worker!r}")


def test_faults_of_workers_and_graders_are_never_scored(tmp_path: Path) -> None:
    """Such an episode is kept without a score, counted by owner and code, and run again the next time."""
    broken = Failing(WorkerError("no", worker="b", code="rejected"), times=2, then=Scripted(doubles))
    tally, rows = run_all(tmp_path / "w.jsonl", {"a": Scripted(doubles), "b": broken}, limits=LiveLimits(concurrency=1))
    assert tally.faults == {"b worker:rejected": 2}
    assert [rows["b", task.id].episode.score for task in TASKS] == [None, None, 1, 1, 1, 1]
    again, rows = run_all(tmp_path / "w.jsonl", {"a": Scripted(doubles), "b": broken})
    assert (again.done, again.faults) == (2, {})
    assert [rows["b", task.id].episode.score for task in TASKS] == [1.0] * 6
    tally, rows = run_all(tmp_path / "g.jsonl", {"a": Scripted(doubles)}, TASKS[:1], grader=Undecided())
    assert tally.faults == {"a grader:grade_error": 1}
    assert rows["a", "t0"].episode.score is None


def test_no_episode_begins_once_the_money_is_spent(tmp_path: Path) -> None:
    """`max_usd` ends it; what was in flight is kept, and the rest is run next time."""
    limits = LiveLimits(concurrency=1, max_usd=Decimal("0.003"))  # an episode costs 0.002
    tally, rows = run_all(tmp_path / "e.jsonl", {"a": Scripted(doubles)}, limits=limits)
    assert (tally.done, tally.cost_usd, tally.stopped_by) == (2, Decimal("0.004"), "max_usd")
    assert run_all(tmp_path / "e.jsonl", {"a": Scripted(doubles)})[0].done == 4
    assert len(rows) == 2


def test_every_contestant_has_run_a_task_before_the_next(tmp_path: Path) -> None:
    """Cut short, an evaluation is even over contestants."""
    limits = LiveLimits(concurrency=1, max_usd=Decimal("0.007"))
    _, rows = run_all(tmp_path / "e.jsonl", {"a": Scripted(doubles), "b": Scripted(doubles)}, limits=limits)
    assert list(rows) == [("a", "t0"), ("b", "t0"), ("a", "t1"), ("b", "t1")]


def test_concurrency_changes_nothing_but_the_order(tmp_path: Path) -> None:
    """Sixteen at a time come to the same scores as one at a time."""
    slow = Scripted(doubles, latency_s=0.001)
    one = run_all(tmp_path / "1.jsonl", {"a": slow}, limits=LiveLimits(concurrency=1))[1]
    many = run_all(tmp_path / "2.jsonl", {"a": slow}, limits=LiveLimits(concurrency=16))[1]
    assert {key: row.episode.score for key, row in one.items()} == {k: r.episode.score for k, r in many.items()}


def test_runs_can_be_recorded(tmp_path: Path) -> None:
    """`record` gets every event of every run, under the id that the row names."""
    kept: dict[str, Kept] = {}

    def record(run_id: str) -> Kept:
        return kept.setdefault(run_id, Kept())

    _, rows = run_all(tmp_path / "e.jsonl", {"a": Scripted(doubles)}, TASKS[:2], record=record)
    assert set(kept) == {row.run_id for row in rows.values()}
    for each in kept.values():
        assert isinstance(each.events[-1], Stopped)


class Full(Kept):
    """A record that cannot be kept."""

    async def wait_durable(self) -> None:
        raise StoreError("the disk is full")


def test_nothing_is_called_that_cannot_be_recorded(tmp_path: Path) -> None:
    """Where the record fails no worker is asked, and the episode is our fault, not scored."""
    worker = Scripted(doubles)
    tally, _ = run_all(tmp_path / "e.jsonl", {"a": worker}, TASKS[:1], record=lambda run_id: Full())
    assert tally.faults == {"a us:store_unavailable": 1}
    assert worker.queries == []


# The report


def row(name: str, task: Task, score: float | None, **rest: Any) -> LiveRow:
    given: dict[str, Any] = {"calls": 1, "cost_usd": Decimal("0.01"), "latency_ms": 100.0, "usage": USAGE}
    given |= {"replied": ((name, "worker"),)} if score is not None else {"fault": "worker", "code": "timeout_total"}
    trace = rest.pop("trace", None)
    return LiveRow(name=name, episode=Episode(task=task.id, score=score, **(given | rest)), run_id="r", trace=trace)


def measure(
    scores: Mapping[str, Sequence[float | None]], *, best: str | None, tasks: Sequence[Task] = TASKS
) -> Measured:
    """`ours`, `start: old` and `random workers` are policies; all others are workers."""
    kinds = {"ours": "policy", "start: old": "start"}
    rows = {(name, t.id): row(name, t, s) for name, many in scores.items() for t, s in zip(tasks, many, strict=True)}
    entries = [Entry(name=name, id=name, kind=kinds.get(name, "worker")) for name in scores]
    single = None if best is None else BestSingle(worker=best, chosen_on="others", candidates={})
    return Measured(ours=entries[0], others=entries[1:], tasks=tasks, rows=rows, best=single)


def codes(report: Mapping[str, Json]) -> set[str]:
    return {alarm["code"] for alarm in report["alarms"]}


def test_policies_are_compared_on_what_was_scored_for_both() -> None:
    """A task that either did not get scored on counts for neither side of the gain."""
    found = report_live(measure({"ours": [1, 1, None, 1, 0, 1], "a": [0, None, 0, 1, 1, 0]}, best="a"), seed=0)
    assert (found["n"], found["unscored"]) == (5, 1)
    assert found["accuracy"] == 0.8
    assert found["gain"]["n"] == 4
    assert found["gain"]["mean"] == pytest.approx((1 + 0 - 1 + 1) / 4)
    assert found["gain"] == found["gain_over"]["a"]
    assert found["policies"]["a"]["faults"] == [
        {"owner": "worker", "code": "timeout_total", "scored": False, "count": 1}
    ]


def test_costs_times_and_tokens_are_told() -> None:
    """Means are of scored episodes, the total of all; one unknown cost makes a sum unknown."""
    measured = measure({"ours": [1] * 6, "a": [1] * 6}, best="a")
    rows = {**measured.rows, ("a", "t0"): row("a", TASKS[0], 1, cost_usd=None, usage=Usage())}
    for i, task in enumerate(TASKS):
        rows["ours", task.id] = row("ours", task, 1, latency_ms=float(i), calls=2)
    found = report_live(
        Measured(ours=measured.ours, others=measured.others, tasks=TASKS, rows=rows, best=measured.best), seed=0
    )["policies"]
    assert found["ours"]["cost_usd"] == pytest.approx(0.06)
    assert found["ours"]["cost_usd_per_task"] == pytest.approx(0.01)
    assert found["ours"]["latency_ms"] == {"p50": 2.5, "p95": 4.75}
    assert (found["ours"]["calls_mean"], found["ours"]["input_tokens_mean"]) == (2, 1000)
    assert found["a"]["cost_usd"] is None
    assert found["a"]["input_tokens_mean"] is None
    assert found["a"]["cost_known_share"] == pytest.approx(5 / 6)


def test_regret_is_to_the_best_worker_of_the_family() -> None:
    """Each family has its own best worker; regret there is what it scores more than ours."""
    scores = {"ours": [1, 0, 1, 0, 1, 0], "a": [1, 0, 1, 0, 0, 0], "b": [0, 1, 0, 1, 0, 1]}
    found = report_live(measure(scores, best="a"), seed=0)
    assert found["by_family"]["f0"]["best_worker"] == "a"
    assert found["by_family"]["f0"]["regret"] == pytest.approx(-1 / 3)
    assert found["by_family"]["f1"]["best_worker"] == "b"
    assert found["by_family"]["f1"]["best_single"] == 0
    assert found["by_family"]["f1"]["regret"] == 1
    assert found["regret_mean"] == pytest.approx((-1 / 3 + 1) / 2)
    assert found["oracle"] == pytest.approx(5 / 6)
    assert found["by_steps"] == {}


def test_the_best_single_worker_is_chosen_on_other_rows() -> None:
    """The highest mean on the tasks of the choice; a worker that was hardly scored there is not eligible."""
    scores: dict[str, Sequence[float | None]] = {
        "a": [1, 0, 1, 0, 1, 1],
        "b": [1, None, None, None, None, None],
        "c": [0, 0, 0, 1, 1, 1],
    }
    rows = measure(scores, best=None).rows
    best = choose_by_rows(rows, ["a", "b", "c"], TASKS, chosen_on="six tasks")
    assert best.worker == "a"
    assert best.candidates["b"] == {"accuracy": 1.0, "n": 1}
    with pytest.raises(ConfigError, match="none of z was scored"):
        choose_by_rows(rows, ["z"], TASKS, chosen_on="six tasks")


def test_the_best_single_worker_is_chosen_on_recorded_outcomes_that_are_not_measured(tmp_path: Path) -> None:
    """Of recorded data only train and validation count, and no question that is measured."""
    matrix = build_matrix(read_recorded(write_world(tmp_path / "d", seed=1, splits={"train": 12, "test": 4})))
    workers = list(matrix.workers)
    best = choose_by_data(matrix, workers, TASKS)
    assert best.chosen_on.endswith("train and validation: 12 questions")
    train = [q for q in matrix.questions if q.split == "train"]
    asked = [
        Task(id=q.qid, family="f", category="c", dataset="d", prompt=q.text, gold=None, split="test") for q in train
    ]
    assert choose_by_data(matrix, workers, asked[:5]).chosen_on.endswith("7 questions")
    with pytest.raises(ConfigError, match="0 questions that are not measured"):
        choose_by_data(matrix, workers, asked)
    with pytest.raises(ConfigError, match="at least one of nobody"):
        choose_by_data(matrix, ["nobody"], TASKS)


def test_difficulty_is_the_tasks_own_or_the_workers() -> None:
    """Steps where every task names them; else the share of single workers that are wrong."""
    measured = measure({"ours": [1] * 6, "a": [1] * 6, "b": [0] * 6}, best="a")
    assert report_live(measured, seed=0)["difficulty"] == "share of single workers that are wrong"
    assert report_live(measure({"ours": [1] * 6, "a": [1] * 6}, best="a"), seed=0)["difficulty"] is None


# Alarms


def many(count: int) -> list[Task]:
    return [
        Task(id=f"m{i}", family=f"f{i % 2}", category="c", dataset="d", prompt=f"{i}", gold="1", split="test", meta={})
        for i in range(count)
    ]


def conducted(scores: Sequence[float], traces: Callable[[int], WorkflowTrace], **replied: Any) -> Measured:
    """A conductor and a worker `a` that is never right, over as many tasks as there are scores."""
    tasks = many(len(scores))
    measured = measure({"ours": scores, "a": [0] * len(scores)}, best="a", tasks=tasks)
    mine = {("ours", t.id): row("ours", t, scores[i], trace=traces(i), **replied) for i, t in enumerate(tasks)}
    rows = {**measured.rows, **mine}
    return Measured(ours=measured.ours, others=measured.others, tasks=tasks, rows=rows, best=measured.best)


TWO = (("a", "worker"), ("b", "worker"))


def test_what_is_well_raises_no_alarm() -> None:
    """A conductor that is right, plans several steps and calls several workers is not complained of."""
    assert codes(report_live(conducted([1] * 40, lambda i: traced((), (0,)), replied=TWO), seed=0)) == set()


def test_each_alarm_sounds() -> None:
    """Collapse, one-step plans, invalid plans, no gain, regret of a family, too few tasks, many unscored."""
    alone = report_live(conducted([1] * 40, lambda i: traced(())), seed=0)
    assert codes(alone) == {"worker_collapse", "one_step_plans"}
    broken = conducted([1] * 37 + [0] * 3, lambda i: traced((), (0,)) if i < 37 else traced(first=False), replied=TWO)
    assert codes(report_live(broken, seed=0)) == {"invalid_plans"}
    scores: dict[str, Sequence[float | None]] = {"ours": [1, 0] * 20, "a": [1, 1] * 20, "b": [0, 0] * 20}
    worse = report_live(measure(scores, best="a", tasks=many(40)), seed=0)
    assert {"no_gain", "family_regret"} <= codes(worse)
    told = next(alarm["message"] for alarm in worse["alarms"] if alarm["code"] == "family_regret")
    assert "f1 (a)" in told
    assert "f0" not in told
    once = report_live(measure({"ours": [0, *[1] * 9], "a": [1] * 10}, best="a", tasks=many(10)), seed=0)
    assert "family_regret" not in codes(once)
    few = report_live(measure({"ours": [1, None, 1, 1, 1, 1], "a": [0] * 6}, best="a"), seed=0)
    assert {"too_few_tasks", "many_unscored"} <= codes(few)


def test_one_step_is_right_where_tasks_have_one() -> None:
    """No alarm for one-step workflows when every task has a single step."""
    measured = conducted([1] * 40, lambda i: traced(()), replied=TWO)
    tasks = [Task(**{**{k: getattr(t, k) for k in t.__struct_fields__}, "meta": {"steps": 1}}) for t in measured.tasks]
    one = Measured(ours=measured.ours, others=measured.others, tasks=tasks, rows=measured.rows, best=measured.best)
    assert codes(report_live(one, seed=0)) == set()


# What it would cost


def test_the_estimate_is_that_computed_by_hand() -> None:
    """A call of any worker is reckoned at the mean price, the worst at the dearest; a budget bounds the worst."""
    specs = {
        "a": WorkerSpec(id="a", dialect="scripted", model="a", prices=Prices(input=Decimal(0), output=Decimal(10))),
        "b": WorkerSpec(id="b", dialect="scripted", model="b", prices=Prices(input=Decimal(0), output=Decimal(20))),
    }
    jobs = [(TASKS[0], [Calls(workers=("a", "b"), typical=2, most=3)])]

    def estimate(specs: Mapping[str, WorkerSpec], usd: Decimal | None = None) -> tuple[Decimal | None, Decimal | None]:
        found = estimate_live(jobs, specs=specs, price_of=lambda w: resolve_price(specs[w]), usd_per_run=usd)
        return found.typical, found.at_most

    assert estimate(specs) == (Decimal("0.018"), None)  # 2 calls of 600 tokens at 15 per million; no limit of output
    assert estimate(specs, Decimal(1)) == (Decimal("0.018"), Decimal(1))
    limited = {
        id: WorkerSpec(id=id, dialect="scripted", model=id, prices=s.prices, max_output_tokens=1000)
        for id, s in specs.items()
    }
    assert estimate(limited) == (Decimal("0.018"), Decimal("0.06"))
    assert estimate({**specs, "b": WorkerSpec(id="b", dialect="scripted", model="b")}) == (None, None)


# All of it, on the home pool


def conduct(query: Query) -> str:
    """The right workflow of a generated question."""
    gold = find_workflow(query.question or "")
    assert gold is not None
    rows = zip(gold.workers, gold.subtasks, gold.access, strict=True)
    steps = tuple(WorkflowStep(worker=HOME.index(worker), subtask=s, access=tuple(seen)) for worker, s, seen in rows)
    return write_workflow(Workflow(steps=steps), PlanFormat(workers=len(HOME), access="position"))


def fumble(query: Query) -> str:
    """The right workflow of about two questions in three, and no workflow of the others."""
    return conduct(query) if len(query.question or "") % 3 else "I would ask the facts."


def home_pool() -> tuple[Pool, dict[str, str]]:
    backends: dict[str, Backend] = {
        worker: make_home(WorkerSpec(id=worker, dialect="home", model=worker)) for worker in HOME
    }
    backends |= {CONDUCTOR: Scripted(conduct, usage=USAGE), "old": Scripted(fumble, usage=USAGE)}
    return make_pool(backends), {id: id for id in backends}


def test_an_optimal_conductor_is_shown_to_be_one(tmp_path: Path) -> None:
    """On tasks of several steps it is always right, beats every worker, plans more for harder tasks; its gain over one
    that fumbles the form is all form, and most of it is owed to whom it calls."""
    tasks = [task for task in composed_tasks(n=200, seed=5) if task.split == "test"]
    pool, models = home_pool()
    ultra = Conductor(ConductorConfig(worker=CONDUCTOR, workers=HOME), models)
    policies: dict[str, tuple[str, Policy]] = {
        "fugu-ultra": ("policy", ultra),
        **{worker: ("worker", Direct(worker)) for worker in HOME},
        "start": ("start", Conductor(ConductorConfig(worker="old", workers=HOME), models)),
        "random workers": ("random workers", RandomWorkers(ultra, HOME, seed=0)),
    }
    contestants = [Contestant(name=name, policy=policy) for name, (_, policy) in policies.items()]
    log = open_live_log(tmp_path / "e.jsonl", {})
    asyncio.run(run_live(plan_live(contestants, tasks, log), pool, TaskGrader(), log, limits=LiveLimits()))
    log.close()
    entries = [Entry(name=name, id=policy.id, kind=kind) for name, (kind, policy) in policies.items()]
    best = BestSingle(worker="generalist", chosen_on="a look", candidates={})
    found = report_live(Measured(ours=entries[0], others=entries[1:], tasks=tasks, rows=log.rows, best=best), seed=0)
    assert found["accuracy"] == 1
    assert found["gain"]["low"] > 0.2
    assert found["alarms"] == []
    flows = found["workflows"]
    assert set(flows) == {"fugu-ultra", "start", "random workers"}
    assert found["difficulty"] == "steps of the task"
    assert flows["fugu-ultra"]["steps_difficulty_correlation"] == pytest.approx(1)
    assert flows["fugu-ultra"]["parallel_share"] > 0
    assert flows["start"]["valid_rate"] < 1
    split = found["format_and_orchestration"]
    assert (
        split["format"]["mean"]
        == pytest.approx(split["total"]["mean"])
        == pytest.approx(1 - flows["start"]["valid_rate"])
    )
    assert split["orchestration"]["mean"] == pytest.approx(0)
    assert flows["random workers"]["steps_histogram"] == flows["fugu-ultra"]["steps_histogram"]
    assert found["gain_over"]["random workers"]["low"] > 0.5
    assert set(found["by_steps"]) == {"1", "2", "3", "4"}
    json.dumps(found, allow_nan=False)
