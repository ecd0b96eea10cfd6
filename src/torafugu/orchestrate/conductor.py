"""`fugu-ultra`: a language model writes the workflow, the loop executes it (the Conductor, arXiv 2512.04388).

    ask the conductor -> parse its text -> plan of steps -> their replies
    -> the last one is the answer; or the conductor named itself, or a step was lost: it is asked again

Its calls are steps of the run like all others. What it writes is tolerated in form and strict in meaning: after
`attempts` texts that are no workflow the run fails as the policy's fault, or answers with what an earlier round came
to. Everything is read off the run, so a policy serves any number of runs at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import msgspec

from ..errors import ConfigError, PlanError, RequestError
from ..types import Answer, Json, Message, Plan, Sampling, Step
from .conductor_prompts import (
    Happened,
    Left,
    Offer,
    render_brief,
    render_brief_round,
    render_conductor,
    render_fault,
    render_replan,
    render_round,
)
from .execute import INPUT_MISSING
from .plan import PlanFormat, Workflow, parse_workflow, visible
from .plan_grammar import workflow_grammar, workflow_schema
from .render import what_concerns_all
from .run import Run

__all__ = ["EFFORTS", "RESULT_STANDS", "USUAL_EFFORT", "Conductor", "ConductorConfig", "Effort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a request's reasoning effort means here."""

    steps: int
    rounds: int
    """Workflows; more than one lets the conductor call itself."""
    parallel: int


EFFORTS: Mapping[str, Effort] = {
    "none": Effort(steps=2, rounds=1, parallel=2),
    "minimal": Effort(steps=2, rounds=1, parallel=2),
    "low": Effort(steps=3, rounds=1, parallel=3),
    "medium": Effort(steps=4, rounds=1, parallel=4),
    "high": Effort(steps=5, rounds=1, parallel=5),
    "xhigh": Effort(steps=5, rounds=2, parallel=5),
    "max": Effort(steps=8, rounds=3, parallel=8),
}
"""`high`, the default, has the paper's five steps."""
RESULT_STANDS = "the result is the answer"
"""Noted beside an answer that a later round's text has let pass."""
USUAL_EFFORT = "high"
_BEYOND_HIGH = frozenset({"xhigh", "max"})
"""Efforts of ours; workers are asked for `high`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorConfig:
    """The `[conductor]` table of `fugu.toml`."""

    worker: str
    """Which worker of the pool writes the workflows: any that follows instructions, or one trained for it."""
    workers: tuple[str, ...] | None = None
    """Whom it may call, in the order of their numbers. None: the pool without itself."""
    access: Literal["binary", "position", "worker"] = "position"
    """How it says what a step sees: all or nothing (the paper's main runs), by step, or by model."""
    order: Literal["models_first", "subtasks_first"] = "subtasks_first"
    """Of the lists. Small models that write the models first get the lengths wrong."""
    describe: Mapping[str, str] = field(default_factory=dict)
    """What it is told of a worker; by default nothing but a number, as in the paper."""
    names: bool = False
    """Tell it the workers' ids."""
    prompt: Literal["full", "brief"] = "full"
    """Rules and examples around the conversation, for a model that follows instructions; or nothing but the workers,
    the limit of steps and the conversation, for one that was trained on just that."""
    examples: bool = True
    constrained: Literal["schema", "grammar"] | None = None
    """Hold it to the form while it writes, where its endpoint supports that: to a JSON object by schema
    (`response_format`), or to our three lists by a grammar (`grammar`, as llama.cpp's server takes it)."""
    recursion: bool = True
    """It may call itself, where effort and budget allow more than one round."""
    again: int = 0
    """So many times it is asked whether the result will do, though it did not wish to see it (the paper's recursion);
    where effort and budget allow as many rounds."""
    attempts: int = 3
    """Texts that it may write for one workflow."""
    replans: int = 1
    """Workflows that it may write after one that lost a step."""
    on_error: Literal["replan", "substitute", "fail"] = "replan"
    """When a step gets no reply: tell the conductor, ask the next worker in its place, or give up."""
    substitutes: tuple[str, ...] = ()
    """Best first; empty: those it may call, in their order."""
    step_timeout_s: float | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    """Of the conductor. A text that is cut off is no workflow."""

    def __post_init__(self) -> None:
        for name in ("attempts", "max_output_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} {number}: expected at least 1")
        for name in ("replans", "again"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.step_timeout_s is not None and not 0 < self.step_timeout_s < float("inf"):
            raise ConfigError(f"step_timeout_s {self.step_timeout_s}: expected a number of seconds above 0")
        if self.workers is not None and (not self.workers or len(set(self.workers)) < len(self.workers)):
            raise ConfigError(f"workers {self.workers!r}: expected at least one, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What a conductor's plan is for, as its notes say."""

    number: int
    """Workflows executed before, by its own wish."""
    replans: int
    """Workflows that lost a step before."""
    attempt: int
    """From 1."""


class Conductor:
    """The policy behind `fugu-ultra`."""

    def __init__(
        self, config: ConductorConfig, models: Mapping[str, str], *, tool_users: frozenset[str] = frozenset()
    ) -> None:
        """`models`: the model of every worker of the pool, by worker id; `tool_users`: those that can call the client's
        tools.

        Raises:
            ConfigError: a worker is named that the pool does not have, or nobody is left to be called.
        """
        named = {
            "worker": (config.worker,),
            "workers": config.workers or (),
            "substitutes": config.substitutes,
            "describe": tuple(config.describe),
        }
        for key, workers in named.items():
            if unknown := [worker for worker in workers if worker not in models]:
                raise ConfigError(f"conductor.{key}: no worker {unknown[0]!r}: the pool has {', '.join(models)}")
        self._config = config
        self._tool_users = tool_users
        self._workers = config.workers or tuple(worker for worker in models if worker != config.worker)
        if not self._workers:
            raise ConfigError(f"conductor.worker {config.worker!r} is the only worker: there is nobody to conduct")
        if config.names:
            PlanFormat(workers=self._workers)  # finds ids that could be read as another worker's number
        identity = msgspec.json.encode([asdict(config), {worker: models[worker] for worker in self._workers}])
        self.id = f"fugu-ultra@{hashlib.sha256(identity + models[config.worker].encode()).hexdigest()[:8]}"

    async def decide(self, run: Run) -> Plan | Answer:
        """
        Raises:
            PlanError: the conductor wrote no workflow that can be executed, or may not be called.
            RequestError: an effort that is not known.
        """
        effort = _effort_of(run)
        if not run.plans:
            return self.begin(run)
        latest = run.plans[-1].plan
        if latest.steps[0].role == "conductor":
            return self._read(run, effort, latest)
        return self._go_on(run, effort, latest)

    def begin(self, run: Run) -> Plan:
        """The first call of the conductor, which asks it for a workflow.

        Raises:
            PlanError, RequestError: as of `decide`.
        """
        return self._ask(run, _effort_of(run), _Round(number=0, replans=0, attempt=1), before=None)

    # --- asking ---

    def _ask(self, run: Run, effort: Effort, at: _Round, *, before: Plan | None, told: Message | None = None) -> Plan:
        """One call of the conductor; `before` is the conductor's plan that this one continues, `told` what is new."""
        config = self._config
        if run.request.allowed is not None and config.worker not in run.request.allowed:
            raise PlanError(f"worker {config.worker!r}, which conducts, is not allowed for this request")
        offer, plan = self._offer(run, effort, at), self._format(run, effort, at)
        if before is None:
            messages = (
                render_brief(run.request.messages, offer=offer, plan=plan)
                if config.prompt == "brief"
                else render_conductor(
                    run.request.messages,
                    offer=offer,
                    plan=plan,
                    left=_left(run, effort, at),
                    examples=config.examples,
                    as_json=config.constrained == "schema",
                )
            )
        else:
            asked = before.steps[0]
            assert asked.messages is not None
            assert told is not None
            messages = (*asked.messages, Message(role="assistant", content=run.replies[asked.id].text), told)
        return Plan(
            steps=(
                Step(
                    id=len(run.steps),
                    worker=config.worker,
                    role="conductor",
                    messages=messages,
                    sampling=Sampling(
                        temperature=config.temperature,
                        max_output_tokens=config.max_output_tokens,
                        seed=run.request.sampling.seed,
                        response_format=self._hold_to_form(plan),
                    ),
                    is_optional=self._answer_so_far(run) is not None,
                ),
            ),
            stand_in=self._answer_so_far(run),
            notes=asdict(at),
        )

    def _hold_to_form(self, plan: PlanFormat) -> Json | None:
        """As in `Sampling.response_format`."""
        if self._config.constrained == "schema":
            schema = {"name": "workflow", "strict": True, "schema": workflow_schema(plan)}
            return {"type": "json_schema", "json_schema": schema}
        if self._config.constrained == "grammar":
            return {"type": "gbnf", "grammar": workflow_grammar(plan)}
        return None

    def _offer(self, run: Run, effort: Effort, at: _Round) -> Offer:
        config = self._config
        may_recur = config.recursion and at.number + 1 < _rounds(run, effort)
        labels = [
            ", ".join(filter(None, [worker if config.names else "", config.describe.get(worker, "")]))
            for worker in self._workers
        ]
        return Offer(
            workers=self._workers,
            labels=tuple(labels),
            masked=self._masked(run),
            itself=len(self._workers) if may_recur else None,
        )

    def _format(self, run: Run, effort: Effort, at: _Round) -> PlanFormat:
        """Where recursion is possible at all, its number is understood in the last round too, though it is not offered
        there: what was planned is done, and the run says what ended it."""
        is_recursive = self._config.recursion and effort.rounds > 1
        return PlanFormat(
            workers=self._workers if self._config.names else len(self._workers),
            max_steps=effort.steps,
            access=self._config.access,
            order=self._config.order,
            may_return=at.number > 0,
            has_history=at.number + at.replans > 0,
            itself=len(self._workers) if is_recursive else None,
            masked=self._masked(run),
        )

    def _masked(self, run: Run) -> frozenset[int]:
        """Those that the request does not allow, and those that have lost a step of this run."""
        allowed = run.request.allowed
        gone = {i for i, worker in enumerate(self._workers) if allowed is not None and worker not in allowed}
        if len(gone) == len(self._workers):
            raise PlanError(f"none of the workers {', '.join(self._workers)} is allowed for this request")
        failed = {id for id, error in run.failed.items() if error.code != INPUT_MISSING}
        lost = {step.worker for step in run.steps if step.id in failed and step.role != "conductor"}
        both = gone | {i for i, worker in enumerate(self._workers) if worker in lost}
        return frozenset(both if len(both) < len(self._workers) else gone)

    # --- reading ---

    def _read(self, run: Run, effort: Effort, asked: Plan) -> Plan | Answer:
        """The conductor's text becomes a plan, or it is asked again, or the run ends with what there is."""
        step = asked.steps[0]
        at = msgspec.convert(asked.notes, _Round)
        so_far = self._answer_so_far(run)
        reply = run.replies.get(step.id)
        if reply is None:
            assert so_far is not None, "the plan is optional only then"
            return Answer(step=so_far, notes={"conductor": f"no reply: {run.failed[step.id].code}"})
        try:
            if reply.finish_reason == "length":
                raise PlanError("the text was cut off at its limit of tokens", code="plan_cut_off")
            workflow = parse_workflow(reply.text, self._format(run, effort, at))
        except PlanError as error:
            if at.attempt < self._config.attempts:
                at = replace(at, attempt=at.attempt + 1)
                return self._ask(run, effort, at, before=asked, told=render_fault(error.message))
            if so_far is not None:
                return Answer(step=so_far, notes={"conductor": f"{error.code}: {error.message}"})
            raise PlanError(
                f"the conductor {self._config.worker!r} wrote no workflow in {at.attempt} attempts: {error.message}",
                code=error.code,
            ) from None
        if not workflow.steps:
            assert so_far is not None, "only a later round may return"
            return Answer(step=so_far, notes={"conductor": RESULT_STANDS})
        return self._to_plan(workflow, run, effort, at)

    def _to_plan(self, workflow: Workflow, run: Run, effort: Effort, at: _Round) -> Plan:
        plan_format = self._format(run, effort, at)
        recurs = plan_format.itself is not None and workflow.steps[-1].worker == plan_format.itself
        steps = workflow.steps[:-1] if recurs else workflow.steps
        first = len(run.steps)
        carried = self._carried(run)
        sampling = run.request.sampling
        has_tools = bool(sampling.tools) and sampling.tool_choice != "none"
        if sampling.reasoning_effort in _BEYOND_HIGH:
            sampling = msgspec.structs.replace(sampling, reasoning_effort="high")
        sight = visible(workflow, plan_format.access)
        made = []
        for i, (step, seen) in enumerate(zip(steps, sight, strict=False)):
            worker = self._workers[step.worker]
            is_last = i == len(steps) - 1
            history = carried if step.access == "all" else ()
            may_suspend = has_tools and worker in self._tool_users
            made.append(
                Step(
                    id=first + i,
                    worker=worker,
                    instruction=step.subtask,
                    sees=(*history, *(first + position for position in seen)),
                    sampling=(sampling if may_suspend else _without_tools(sampling))
                    if is_last
                    else what_concerns_all(sampling),
                    may_suspend=may_suspend,
                    alternates=self._substitutes(worker, plan_format.masked),
                    timeout_s=self._config.step_timeout_s,
                    is_final=is_last and not recurs,
                )
            )
        return Plan(
            steps=tuple(made),
            masked=tuple(self._workers[i] for i in sorted(plan_format.masked)),
            stand_in=self._answer_so_far(run),
            parallel=effort.parallel,
            on_error="replan" if self._config.on_error == "replan" else "fail",
            notes={**asdict(at), **({"shows": [first + position for position in sight[-1]]} if recurs else {})},
        )

    def _substitutes(self, worker: str, masked: frozenset[int]) -> tuple[str, ...]:
        if self._config.on_error != "substitute":
            return ()
        gone = {self._workers[i] for i in masked}
        ranked = self._config.substitutes or self._workers
        return tuple(other for other in ranked if other != worker and other not in gone)

    # --- after a workflow ---

    def _go_on(self, run: Run, effort: Effort, done: Plan) -> Plan | Answer:
        last = done.steps[-1]
        shows = done.notes.get("shows")  # of the replies, to the conductor itself
        at = _Round(number=int(done.notes["number"]), replans=int(done.notes["replans"]), attempt=1)
        asked = next(p.plan for p in reversed(run.plans) if p.plan.steps[0].role == "conductor")
        if last.id not in run.replies:
            return self._replan(run, effort, at, asked, done)
        at = replace(at, number=at.number + 1)
        is_last_round = at.number >= _rounds(run, effort)
        if shows is None and (is_last_round or at.number > self._config.again):
            return Answer(step=last.id)
        if is_last_round:
            return Answer(step=last.id, stopped_by="budget:depth")
        result, offer, plan = run.replies[last.id].text, self._offer(run, effort, at), self._format(run, effort, at)
        others = [(i, run.replies[s.id].text) for i, s in enumerate(done.steps[:-1]) if s.id in (shows or ())]
        told = (
            render_brief_round(result, others=others, offer=offer, plan=plan)
            if self._config.prompt == "brief"
            else render_round(result, others=others, offer=offer, plan=plan, left=_left(run, effort, at))
        )
        return self._ask(run, effort, at, before=asked, told=told)

    def _replan(self, run: Run, effort: Effort, at: _Round, asked: Plan, done: Plan) -> Plan | Answer:
        lost = next(run.failed[step.id] for step in done.steps if step.id in run.failed)
        if at.replans >= self._config.replans:
            so_far = self._answer_so_far(run)
            if so_far is None:
                raise lost
            return Answer(step=so_far, notes={"conductor": f"lost a step again: {lost.code}"})
        at = replace(at, replans=at.replans + 1)
        happened = [
            Happened(
                model=self._workers.index(step.worker),
                subtask=step.instruction or "",
                result=run.replies[step.id].text if step.id in run.replies else None,
                fault=run.failed[step.id].code if step.id in run.failed else None,
            )
            for step in done.steps
        ]
        told = render_replan(
            happened,
            gone=sorted(self._masked(run)),
            plan=self._format(run, effort, at),
            left=_left(run, effort, at),
        )
        return self._ask(run, effort, at, before=asked, told=told)

    @staticmethod
    def _answer_so_far(run: Run) -> int | None:
        """The last step of the latest workflow that came to its end."""
        for planned in reversed(run.plans):
            last = planned.plan.steps[-1]
            if last.role == "worker" and last.id in run.replies:
                return last.id
        return None

    @staticmethod
    def _carried(run: Run) -> tuple[int, ...]:
        """What a step of a later workflow that sees everything sees of the one before: its last reply; of one that lost
        a step, all replies."""
        workflows = [p.plan for p in run.plans if p.plan.steps[0].role == "worker"]
        if not workflows:
            return ()
        latest = workflows[-1]
        if latest.steps[-1].id in run.replies:
            return (latest.steps[-1].id,)
        return tuple(step.id for step in latest.steps if step.id in run.replies)


def _without_tools(sampling: Sampling) -> Sampling:
    """For a worker that cannot call any.

    Raises:
        RequestError: the client insists on a call.
    """
    if not sampling.tools:
        return sampling
    if sampling.tool_choice not in (None, "none", "auto"):
        raise RequestError("the worker that writes the reply calls no tools, but one is asked for", param="tool_choice")
    return msgspec.structs.replace(sampling, tools=(), tool_choice=None, parallel_tool_calls=None)


def _effort_of(run: Run) -> Effort:
    name = run.request.sampling.reasoning_effort or USUAL_EFFORT
    if name not in EFFORTS:
        raise RequestError(f"reasoning effort {name!r}: expected one of {', '.join(EFFORTS)}", param="reasoning_effort")
    return EFFORTS[name]


def _rounds(run: Run, effort: Effort) -> int:
    depth = run.budget.limits.depth
    return effort.rounds if depth is None else min(depth, effort.rounds)


def _left(run: Run, effort: Effort, at: _Round) -> Left:
    budget = run.budget.left(elapsed_s=run.elapsed_ms / 1e3)
    return Left(
        calls=budget.calls,
        tokens=budget.tokens,
        usd=budget.usd,
        seconds=budget.seconds,
        rounds=_rounds(run, effort) - at.number - 1,
    )
