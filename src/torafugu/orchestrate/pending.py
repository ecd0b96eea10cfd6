"""A run that waits for the client's tools, as a value: stored when a step calls them, taken up when their results come.

Each step has its own trajectory: its tool calls and their results are shown to it and to nobody else, so that the first
step's doings do not steer all later ones (Fugu report, 3.2.2). A call's id names run, step and call, so the client's
next request finds its way back to exactly that step on exactly that worker, in another process too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from ..errors import FuguError, PlanError, RequestError, WorkerError
from ..types import Loss, Message, Pending, Reply, ToolCall

__all__ = ["add_results", "error_to_loss", "find_run", "loss_to_error", "merge_calls", "name_calls"]

_CALL_ID = re.compile(r"call_([0-9a-f]{26})_(\d{1,4})_(\d{1,4})")
"""At most 42 characters of what all providers take in ids."""


def error_to_loss(error: FuguError) -> Loss:
    worker = error.worker if isinstance(error, WorkerError) else None
    return Loss(fault=error.fault, code=error.code, message=error.message, worker=worker)


def loss_to_error(loss: Loss) -> FuguError:
    if loss.worker is not None:
        return WorkerError(loss.message, worker=loss.worker, code=loss.code)  # type: ignore[arg-type]  # it was one
    kind = RequestError if loss.fault == "client" else PlanError
    return kind(loss.message, code=loss.code)


def name_calls(run_id: str, step: int, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """A step's calls with ids that find back to it."""
    key = run_id.removeprefix("run_")
    return tuple(msgspec.structs.replace(call, id=f"call_{key}_{step}_{k}") for k, call in enumerate(calls))


def merge_calls(run_id: str, step: int, waiting: Mapping[int, Reply], *, is_for_client: bool) -> Reply:
    """One answer with the calls of all steps that wait; the rest of it is that of `step`, its words if they are for the
    client."""
    reply = waiting[step]
    if not is_for_client:
        reply = msgspec.structs.replace(reply, text="", reasoning=None)
    calls = [call for id, each in waiting.items() for call in name_calls(run_id, id, each.tool_calls)]
    return msgspec.structs.replace(reply, tool_calls=tuple(calls), finish_reason="tool_calls")


def find_run(messages: Sequence[Message]) -> str | None:
    """The run whose tool calls the latest messages answer; None: they answer none of ours.

    Raises:
        RequestError: they answer calls of several runs, or of ours and others mixed.
    """
    results = [message for message in _after_assistant(messages) if message.role == "tool"]
    runs = {None if found is None else found[1] for found in map(_match, results)}
    if not runs or runs == {None}:
        return None
    if len(runs) > 1:
        raise RequestError(
            "the latest tool results answer calls of different requests: expected those of one",
            code="unknown_tool_call",
            param="messages",
        )
    return f"run_{runs.pop()}"


def add_results(pending: Pending, messages: Sequence[Message]) -> Pending:
    """With the results that the latest messages hold, and with what the user says beside them.

    Raises:
        RequestError: a call has no result, or a result answers no call that is open.
    """
    latest = _after_assistant(messages)
    results: dict[tuple[int, int], Message] = {}
    for message in latest:
        if (found := _match(message)) is not None:
            results[int(found[2]), int(found[3])] = message
    said = [message for message in latest if message.role != "tool"]
    trajectories = dict(pending.trajectories)
    for step in pending.waiting:
        trajectory = trajectories[step]
        turns: list[Message] = []
        for k, call in enumerate(trajectory.turns[-1].tool_calls):
            result = results.pop((step, k), None)
            if result is None:
                (named,) = name_calls(pending.run_id, step, [call] * (k + 1))[k:]
                raise RequestError(
                    f"tool call {named.id!r} ({call.name}) has no result: send one for every call",
                    code="missing_tool_result",
                    param="messages",
                )
            turns.append(msgspec.structs.replace(result, tool_call_id=call.id))
        trajectories[step] = msgspec.structs.replace(trajectory, turns=(*trajectory.turns, *turns, *said))
    if results:
        step, k = next(iter(results))
        raise RequestError(
            f"tool call {results[step, k].tool_call_id!r} is not open: nothing of this request waits for it",
            code="unknown_tool_call",
            param="messages",
        )
    return msgspec.structs.replace(pending, trajectories=trajectories, waiting=())


def _after_assistant(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[last + 1 :]


def _match(message: Message) -> re.Match[str] | None:
    return _CALL_ID.fullmatch(message.tool_call_id or "") if message.role == "tool" else None
