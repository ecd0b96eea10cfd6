"""A step as the query that its worker is sent: the client's messages, or the role's prompt about them. Pure."""

from __future__ import annotations

from ..errors import PlanError
from ..pool.backend import Query
from ..types import Reply, Sampling, Step
from .answers import last_user_text, read_answer
from .prompts import parse_suggestion, parse_thought, render_thinker, render_verifier, render_worker
from .run import Run

__all__ = ["step_to_query"]


def step_to_query(step: Step, run: Run) -> Query:
    """What a worker is shown: of the Workers that the step sees their thoughts, of a Thinker its suggestion; a Verifier
    judges the reply of the last Worker that it sees.

    A Worker gets the client's sampling; of a Thinker or Verifier the client's tools, formats and limits ask nothing.

    Raises:
        PlanError: a Verifier sees no Worker's reply, or the role is unknown.
    """
    request = run.request
    roles = {planned.id: planned.role for event in run.plans for planned in event.plan.steps}
    replies = [run.replies[id] for id in step.sees if roles[id] == "worker"]
    advice = [found for id in step.sees if roles[id] == "thinker" and (found := parse_suggestion(run.replies[id].text))]
    suggestion = advice[-1].text if advice else None
    thoughts = [parse_thought(reply.text) for reply in replies]
    if step.role == "worker":
        messages = render_worker(request.messages, thoughts=thoughts, suggestion=suggestion)
        question = None if messages is request.messages else last_user_text(request.messages)
        return Query(messages=messages, sampling=request.sampling, task=request.task, question=question)
    sampling = Sampling(
        temperature=request.sampling.temperature,
        seed=request.sampling.seed,
        reasoning_effort=request.sampling.reasoning_effort,
    )
    question = last_user_text(request.messages)
    current: Reply | None = replies[-1] if replies else None
    if step.role == "thinker":
        messages = render_thinker(request.messages, thoughts=thoughts, current=current.text if current else None)
        return Query(messages=messages, sampling=sampling, task=request.task, question=question, role="thinker")
    if step.role != "verifier":
        raise PlanError(f"step {step.id}: no role {step.role!r}: expected worker, thinker or verifier")
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
