"""A step as the query that its worker is sent: the client's messages, or the role's prompt about them. Pure.

What a step does not see is not in its query: the access list is enforced here, not merely told to the model.
"""

from __future__ import annotations

import msgspec

from ..errors import PlanError
from ..pool.backend import Query
from ..types import Reply, Sampling, Step
from .answers import last_user_text, read_answer
from .prompts import (
    Result,
    parse_suggestion,
    parse_thought,
    render_subtask,
    render_thinker,
    render_verifier,
    render_worker,
)
from .run import Run

__all__ = ["step_to_query", "what_concerns_all"]


def step_to_query(step: Step, run: Run) -> Query:
    """What a worker is shown: of the Workers that the step sees their thoughts, of a Thinker its suggestion; a Verifier
    judges the reply of the last Worker that it sees; with a subtask, the whole replies and what they were asked for.

    Whoever writes the answer gets the client's sampling. Of all others the client's tools, formats and limits ask
    nothing.

    Raises:
        PlanError: a Verifier sees no Worker's reply, or the role is unknown.
    """
    if step.messages is not None:
        return _query_of_messages(step, run)
    if step.instruction is not None:
        query = _query_of_subtask(step, step.instruction, run)
        if (own := run.trajectories.get(step.id)) is None:
            return query
        return msgspec.structs.replace(query, messages=(*query.messages, *own.turns))
    request = run.request
    roles = {planned.id: planned.role for planned in run.steps}
    seen = [id for id in step.sees if id in run.replies]
    replies = [run.replies[id] for id in seen if roles[id] == "worker"]
    advice = [found for id in seen if roles[id] == "thinker" and (found := parse_suggestion(run.replies[id].text))]
    suggestion = advice[-1].text if advice else None
    thoughts = [parse_thought(reply.text) for reply in replies]
    if step.role == "worker":
        messages = render_worker(request.messages, thoughts=thoughts, suggestion=suggestion)
        question = None if messages is request.messages else last_user_text(request.messages)
        sampling = step.sampling or request.sampling
        return Query(messages=messages, sampling=sampling, task=request.task, question=question)
    sampling = step.sampling or what_concerns_all(request.sampling)
    question = last_user_text(request.messages)
    current: Reply | None = replies[-1] if replies else None
    if step.role == "thinker":
        messages = render_thinker(request.messages, thoughts=thoughts, current=current.text if current else None)
        return Query(messages=messages, sampling=sampling, task=request.task, question=question, role="thinker")
    if step.role != "verifier":
        raise PlanError(f"step {step.id}: no role {step.role!r} without messages: expected worker, thinker or verifier")
    if current is None:
        raise PlanError(f"step {step.id}: a Verifier has to see the reply that it verifies")
    return Query(
        messages=render_verifier(request.messages, current=current.text, thoughts=thoughts[:-1], suggestion=suggestion),
        sampling=sampling,
        task=request.task,
        question=question,
        role="verifier",
        verifies=read_answer(request, current),
    )


def _query_of_messages(step: Step, run: Run) -> Query:
    assert step.messages is not None
    request = run.request
    sampling = step.sampling or (request.sampling if step.role == "worker" else what_concerns_all(request.sampling))
    return Query(
        messages=step.messages,
        sampling=sampling,
        task=request.task,
        question=last_user_text(request.messages),
        role=step.role,
    )


def _query_of_subtask(step: Step, subtask: str, run: Run) -> Query:
    steps = {planned.id: planned for planned in run.steps}
    results = [
        Result(step=_position(id, run), subtask=steps[id].instruction, text=run.replies[id].text)
        for id in step.sees
        if id in run.replies
    ]
    request = run.request
    is_reply = step.id == run.plans[-1].plan.steps[-1].id  # also where the conductor may still want another
    sampling = step.sampling or (request.sampling if step.is_final else what_concerns_all(request.sampling))
    if step.may_suspend and not step.is_final:
        given = request.sampling
        sampling = msgspec.structs.replace(sampling, tools=given.tools, parallel_tool_calls=given.parallel_tool_calls)
    return Query(
        messages=render_subtask(request.messages, subtask=subtask, results=results, is_final=is_reply),
        sampling=sampling,
        task=request.task,
        question=subtask,
        results={result.step: result.text for result in results if result.step is not None},
    )


def _position(id: int, run: Run) -> int | None:
    """Of a step among the subtasks of its plan, as the conductor counted them; None: of an earlier round."""
    steps = run.plans[-1].plan.steps
    return next((i for i, step in enumerate(steps) if step.id == id), None)


def what_concerns_all(sampling: Sampling) -> Sampling:
    """What of the client's sampling is not only for whoever writes the reply."""
    return Sampling(temperature=sampling.temperature, seed=sampling.seed, reasoning_effort=sampling.reasoning_effort)
