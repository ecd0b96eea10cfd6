"""A run as it was, from its record: what was answered, with what, for how much. Nothing is called."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..events import Accepted, Answered, Event, Suspended
from .pending import merge_calls
from .run import Run

__all__ = ["replay"]


def replay(run_id: str, events: Sequence[Event]) -> Run:
    """The run that recorded these events.

    Raises:
        ValueError: they do not begin with its request.
    """
    if not events or not isinstance(events[0], Accepted):
        raise ValueError(f"run {run_id}: expected `Accepted` as the first event")
    run = Run(events[0].request, run_id=run_id)
    for event in events:
        run.record(event)
        if isinstance(event, Suspended):
            run.suspended = {step: run.replies.pop(step) for step in event.pending.waiting}
        elif isinstance(event, Answered) and run.suspended:
            run.answer = merge_calls(run.id, event.step, run.suspended, is_for_client=event.is_for_client)
        elif isinstance(event, Answered) and event.step in run.replies:
            reply = run.replies[event.step]
            run.answer = msgspec.structs.replace(reply, finish_reason="length") if event.is_cut else reply
    return run
