"""Is a completion an answer? Empty ones and broken tool calls are the worker's failure, never passed on as a reply."""

from __future__ import annotations

import msgspec

from ..errors import WorkerCode
from ..types import Json, Sampling, ToolCall
from .backend import Completion, Query

__all__ = ["find_unsound", "is_filtered", "mend_tool_calls"]


def is_filtered(completion: Completion) -> bool:
    """The provider's filter held the whole answer back."""
    return completion.finish_reason == "content_filter" and not completion.text and not completion.tool_calls


def find_unsound(query: Query, completion: Completion) -> tuple[WorkerCode, str] | None:
    """What is wrong with it, and in words; None for an answer that can be passed on."""
    if completion.tool_calls:
        wrong = _wrong_call(query.sampling, completion.tool_calls)
        return None if wrong is None else ("malformed", wrong)
    if not completion.text and completion.finish_reason != "content_filter":
        spent = " (its reasoning used up the output limit)" if completion.finish_reason == "length" else ""
        return "empty", f"an answer without text or tool calls{spent}"
    return None


def mend_tool_calls(calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """The calls with what can be mended without loss: no arguments are `{}`, and an id given twice is numbered."""
    taken: set[str] = set()
    mended = []
    for call in calls:
        call_id, n = call.id, 1
        while call_id in taken:
            n += 1
            call_id = f"{call.id}_{n}"
        taken.add(call_id)
        mended.append(msgspec.structs.replace(call, id=call_id, arguments=call.arguments.strip() or "{}"))
    return tuple(mended)


def _wrong_call(sampling: Sampling, calls: tuple[ToolCall, ...]) -> str | None:
    free_text: dict[str, bool] = {}
    for tool in sampling.tools:
        if (name := _tool_name(tool)) is not None:
            free_text[name] = tool.get("type") == "custom"
    for call in calls:
        if call.name not in free_text:
            return f"a call of tool {call.name[:100]!r}, which was not offered"
        if not free_text[call.name] and not _is_object(call.arguments):
            return f"a call of tool {call.name!r} whose arguments are not a JSON object"
    return None


def _tool_name(tool: Json) -> str | None:
    if not isinstance(tool, dict):
        return None
    inner = tool.get("function") or tool.get("custom") or tool
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(arguments.strip() or "{}"), dict)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
