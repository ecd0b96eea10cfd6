"""The steps of a run as clients are told of them: who did what, what it came to, how long it took, for how much. Pure.

Nobody's words are in it. The tokens and costs of all steps add up to the run's, exactly: each step has those of all its
attempts. Those of an earlier run, which had to wait for the client's tools, were paid for there.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Called, Failed, Planned, Replied
from ..orchestrate import Run
from ..types import Json, Step, Usage, sum_cost

__all__ = ["describe_steps", "is_one_step"]


def is_one_step(plans: Sequence[Planned]) -> bool:
    """No more was planned than one call, whose reply is the answer: there is nothing to tell of."""
    steps = [step for planned in plans for step in planned.plan.steps]
    return not steps or (len(steps) == 1 and steps[0].is_final)


def describe_steps(run: Run) -> list[dict[str, Json]]:
    """In the order of planning. The run is over."""
    return [_describe(step, run) for step in run.steps]


def _describe(step: Step, run: Run) -> dict[str, Json]:
    called = [event for event in run.events if isinstance(event, Called) and event.step == step.id]
    ends = [event for event in run.events if isinstance(event, (Replied, Failed)) and event.step == step.id]
    reply = run.replies.get(step.id)
    worker = reply.worker if reply is not None else called[-1].worker if called else step.worker
    usage = Usage.total(end.reply.usage if isinstance(end, Replied) else end.usage for end in ends)
    return {
        "step": step.id,
        "worker": worker,
        **({} if worker == step.worker else {"planned": step.worker}),
        "role": step.role,
        "sees": step.sees,
        "seconds": _seconds(ends),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": sum_cost(end.reply.cost_usd if isinstance(end, Replied) else end.cost_usd for end in ends),
        "outcome": "earlier" if reply is not None and not ends else _outcome(ends),
    }


def _seconds(ends: Sequence[Replied | Failed]) -> float | None:
    """Of all attempts, without the pauses between them; None when none was made, or one was not timed."""
    made = [end for end in ends if end.attempt > 0]
    times_ms = [end.reply.latency_ms if isinstance(end, Replied) else end.latency_ms for end in made]
    known_ms = [time_ms for time_ms in times_ms if time_ms is not None]
    return round(sum(known_ms) / 1e3, 4) if made and len(known_ms) == len(made) else None


def _outcome(ends: Sequence[Replied | Failed]) -> str:
    """A reply that was held back while another worker was asked is on record before that one's failure."""
    if any(isinstance(end, Replied) for end in ends):
        return "replied"
    failures = [end.code for end in ends if isinstance(end, Failed)]
    return f"failed:{failures[-1]}" if failures else "not_called"
